"""A target that has much to say lets others have their turn: what is done between two turns of the loop."""

import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import trio
from trio.testing import MockClock

from iscsifs.iscsi.bhs import BHS_LENGTH
from iscsifs.iscsi.events import SenseReported
from iscsifs.iscsi.pdu import (
    FINAL,
    RESERVED_TAG,
    AsyncEvent,
    AsyncMessage,
    DataIn,
    NopIn,
    Opcode,
    ScsiCommand,
    ScsiResponse,
)
from iscsifs.limits import MAX_DATA_OUTS, MAX_PDUS, MAX_READS
from iscsifs.scsi import cdb
from support.memory_line import Pair, pair
from support.network import End
from support.peer import Peer

MESSAGES = 1200

MAX_A_TURN = 512
"""Messages between two turns of another task, which are up to two turns of the receive loop."""


class Turns:
    """How far a *counter* goes between two turns of another task.

    The tasks of one round of the loop have their turns in any order, so that one may have two in between.
    """

    def __init__(self, counter: Callable[[], int]) -> None:
        self._counter = counter
        self._seen: list[int] = []

    @property
    def longest(self) -> int:
        return max(after - before for before, after in pairwise(self._seen))

    async def until(self, count: int) -> None:
        """Have turns until the counter stands at *count*; nothing else may be needed for that."""
        for _ in range(1000):
            self._seen.append(self._counter())
            if self._seen[-1] == count:
                return
            await trio.lowlevel.checkpoint()
        raise AssertionError(f"{self._seen[-1]} of {count}")


def reports(peer: Peer) -> bytes:
    """As many messages with sense data."""
    return b"".join(
        peer.encode(AsyncMessage(0, RESERVED_TAG, async_event=AsyncEvent.SCSI, **peer.counted()), b"\0\2no")
        for _ in range(MESSAGES)
    )


def count_reports(line: Pair) -> Turns:
    heard: list[SenseReported] = []
    line.session.on_sense = heard.append
    return Turns(lambda: len(heard))


async def test_a_flood_of_small_pdus_is_looked_at_turn_by_turn(autojump_clock: MockClock) -> None:
    async with pair() as line:
        turns = count_reports(line)
        await line.peer.send_bytes(reports(line.peer))
        await turns.until(MESSAGES)
    assert MAX_PDUS <= turns.longest <= MAX_A_TURN


async def test_a_flood_is_looked_at_turn_by_turn_in_a_busy_poll_as_well(autojump_clock: MockClock) -> None:
    async with pair() as line:
        call = line.call()  # the first that is alone
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()
        turns = count_reports(line)
        flood = reports(line.peer)

        async def flood_and_execute() -> None:
            assert os.write(line.peer.stream.socket.fileno(), flood) == len(flood)
            await line.queue().run(cdb.test_unit_ready())  # the receive loop had no turn yet

        line.nursery.start_soon(flood_and_execute)
        await turns.until(MESSAGES)
    assert MAX_PDUS <= turns.longest <= MAX_A_TURN


class Torrent(End):
    """A socket that always has more, until *supply* is used up."""

    supply = memoryview(b"")
    reads = 0

    def recv_into(self, buffer: Any, *rest: Any) -> int:
        count = min(len(buffer), len(self.supply))
        if not count:
            return super().recv_into(buffer, *rest)
        self.reads += 1
        buffer[:count] = self.supply[:count]
        self.supply = self.supply[count:]
        return count


async def test_large_pdus_are_received_many_reads_in_a_row(autojump_clock: MockClock) -> None:
    """They are few PDUs, and others have waited long enough after MAX_READS."""
    async with pair(end=Torrent) as line:
        torrent, peer = line.line.network.ends[-1], line.peer
        assert isinstance(torrent, Torrent)
        size, count = 128 * 1024, 4 * MAX_READS
        call = line.call(cdb.read_16(0, size * count // 512), read=size * count)
        command = await peer.expect(ScsiCommand)
        pieces = [
            peer.encode(
                DataIn(
                    *(0, 0, 0, command.initiator_task_tag, RESERVED_TAG),
                    **(peer.numbers | {"stat_sn": 0, "data_sn": number, "buffer_offset": number * size}),
                ),
                bytes(size),
            )
            for number in range(count)
        ]
        torrent.supply = memoryview(b"".join(pieces))
        await peer.send(NopIn(0, RESERVED_TAG, RESERVED_TAG, **peer.numbers))  # something to be woken by
        turns = Turns(lambda: torrent.reads)
        await turns.until(2 * count)  # a header with the first data, and then the rest
        await peer.status(command, exp_data_sn=count)
        await call.done.wait()
    assert call.failure is None
    assert MAX_READS <= turns.longest <= 2 * MAX_READS


class Sink(End):
    """A socket that takes any number of Data-Outs at once, and passes everything else on."""

    data_outs = 0

    def sendmsg(self, buffers: Any, *rest: Any) -> int:
        count = sum(len(buffer) == BHS_LENGTH and buffer[0] == Opcode.DATA_OUT for buffer in buffers)
        if not count:
            return super().sendmsg(buffers, *rest)
        self.data_outs += count
        return sum(map(len, buffers))


async def test_a_long_sequence_of_data_outs_is_sent_turn_by_turn(autojump_clock: MockClock) -> None:
    count = 8 * MAX_DATA_OUTS
    keys = {
        "InitialR2T": "Yes",
        "ImmediateData": "No",
        "MaxBurstLength": str(512 * count),
        "MaxRecvDataSegmentLength": "512",
    }
    async with pair(end=Sink, keys=keys) as line:
        sink, peer = line.line.network.ends[-1], line.peer
        assert isinstance(sink, Sink)
        call = line.call(cdb.write_16(0, count), write=bytes(512 * count))
        command = await peer.expect(ScsiCommand)
        await peer.r2t(command, offset=0, length=512 * count)
        turns = Turns(lambda: sink.data_outs)
        await turns.until(count)
        await peer.status(command)
        await call.done.wait()
    assert MAX_DATA_OUTS <= turns.longest <= 2 * MAX_DATA_OUTS


async def test_without_memory_for_what_one_thing_means_the_others_of_that_read_are_told(
    autojump_clock: MockClock,
) -> None:
    async with pair() as line:

        def no_memory(_: SenseReported) -> None:
            raise MemoryError

        line.session.on_sense = no_memory
        call = line.call()
        peer = line.peer
        command = await peer.expect(ScsiCommand)
        message = AsyncMessage(0, RESERVED_TAG, async_event=AsyncEvent.SCSI, **peer.counted())
        response = ScsiResponse(FINAL, 0, 0, command.initiator_task_tag, **peer.counted())
        await peer.send_bytes(peer.encode(message, b"\0\2no") + peer.encode(response))
        await call.succeeded()
        assert line.session.link.failure is not None
