"""Reads and writes of any size, with whatever was agreed on, move exactly the right bytes."""

import random
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from iscsifs.iscsi.events import Event
from iscsifs.iscsi.pdu import (
    FINAL,
    RESERVED_TAG,
    CommandFlag,
    DataInFlag,
    DataOut,
    ResponseFlag,
    ScsiCommand,
)
from iscsifs.iscsi.task import Task
from support.memory_target import LUN, MemoryTarget, Sent, pattern


class Transfer(NamedTuple):
    """A read or a write of *length* bytes, of which the target has only *available*."""

    writes: bool
    length: int
    available: int


class Work:
    """What the honest target has to do for one command."""

    def __init__(self, number: int, transfer: Transfer) -> None:
        self.transfer = transfer
        self.content = pattern(transfer.length, number)
        self.memory = bytearray(b"\xaa" * transfer.length)
        cdb = number.to_bytes(6, "big")
        if transfer.writes:
            self.task = Task(LUN, cdb, data_out=memoryview(self.content))
        else:
            self.task = Task(LUN, cdb, data_in=memoryview(self.memory))
        self.received = bytearray(transfer.length)
        self.filled = 0
        self.unsolicited = False
        self.asked = 0
        self.outstanding: dict[int, tuple[int, int, int]] = {}  # by TTT: next offset, end, next DataSN
        self.r2t_sn = 0
        self.sent = 0
        self.data_sn = 0
        self.done = False


class HonestTarget:
    """A disk that keeps to every rule, and checks that the initiator does; *choice* decides what is free."""

    def __init__(self, target: MemoryTarget, works: list[Work], choice: random.Random) -> None:
        self.target = target
        self.works = works
        self.choice = choice
        self.work: dict[int, Work] = {}
        self.next_tag = 0

    def take(self, sent: Sent) -> None:
        """Take a PDU of the initiator."""
        parameters = self.target.parameters
        if isinstance(sent.pdu, ScsiCommand):
            work = self.works[int.from_bytes(sent.pdu.cdb[:6], "big")]
            self.work[sent.pdu.initiator_task_tag] = work
            assert sent.pdu.expected_data_transfer_length == work.transfer.length
            if not work.transfer.writes:
                assert not sent.data
                return
            assert sent.pdu.flags & CommandFlag.WRITE
            assert parameters.immediate_data or not sent.data
            self._fill(work, 0, sent.data)
            work.unsolicited = not sent.pdu.flags & FINAL
            assert not (work.unsolicited and parameters.initial_r2t)
            work.outstanding = {RESERVED_TAG: (len(sent.data), 0, 0)} if work.unsolicited else {}
            work.asked = len(sent.data)
            assert work.asked <= parameters.first_burst_length
            return
        assert isinstance(sent.pdu, DataOut)
        work = self.work[sent.pdu.initiator_task_tag]
        offset, end, data_sn = work.outstanding.pop(sent.pdu.target_transfer_tag)
        assert (sent.pdu.buffer_offset, sent.pdu.data_sn) == (offset, data_sn)
        self._fill(work, offset, sent.data)
        offset += len(sent.data)
        if not sent.pdu.flags & FINAL:
            work.outstanding[sent.pdu.target_transfer_tag] = (offset, end, data_sn + 1)
        elif work.unsolicited:
            work.unsolicited = False
            work.asked = offset
            assert offset == min(parameters.first_burst_length, work.transfer.length)
        else:
            assert offset == end

    def _fill(self, work: Work, offset: int, data: bytes) -> None:
        assert offset + len(data) <= work.transfer.length
        work.received[offset : offset + len(data)] = data
        work.filled += len(data)

    def step(self) -> None:
        """Do one of the things that there are to do."""
        for sent in self.target.received():
            self.take(sent)
        ready = [work for work in self.work.values() if not work.done]
        if ready:
            work = self.choice.choice(ready)
            (self._go_on_writing if work.transfer.writes else self._go_on_reading)(work)

    def _go_on_writing(self, work: Work) -> None:
        parameters = self.target.parameters
        if work.asked < work.transfer.length and not work.unsolicited:
            requests = []
            room = parameters.max_outstanding_r2t - len(work.outstanding)
            for _ in range(self.choice.randint(1, room)):
                length = min(
                    work.transfer.length - work.asked,
                    self.choice.choice([parameters.max_burst_length, self.choice.randint(1, 2000)]),
                    parameters.max_burst_length,
                )
                if not length:
                    break
                self.next_tag += 1
                work.outstanding[self.next_tag] = (work.asked, work.asked + length, 0)
                requests.append((work.asked, length, work.r2t_sn, self.next_tag))
                work.asked += length
                work.r2t_sn += 1
            for offset, length, number, tag in requests:
                self.target.r2t(work.task, offset, length, number, target_transfer_tag=tag)
        elif not work.outstanding:
            assert work.filled == work.transfer.length
            self.target.respond(work.task)
            work.done = True

    def _go_on_reading(self, work: Work) -> None:
        limit = self.target.parameters.max_recv_data_segment_length
        available = work.transfer.available
        length = min(available - work.sent, self.choice.choice([limit, self.choice.randint(0, limit)]))
        last = work.sent + length == available
        with_status = last and self.choice.random() < 0.5
        missing = work.transfer.length - available
        residual: dict[str, Any] = {"residual_count": missing}
        flags = FINAL if last else 0
        if with_status:
            flags |= DataInFlag.STATUS | (DataInFlag.UNDERFLOW if missing else 0)
        data = work.content[work.sent : work.sent + length]
        self.target.data_in(
            work.task, work.sent, data, work.data_sn, flags=flags, **(residual if with_status else {})
        )
        work.sent += length
        work.data_sn += 1
        if last and not with_status:
            flags = FINAL | (ResponseFlag.UNDERFLOW if missing else 0)
            self.target.respond(work.task, flags=flags, exp_data_sn=work.data_sn, **residual)
        work.done = last


lengths = st.one_of(st.integers(512, 4096), st.sampled_from([512, 513, 1024, 8192, 65536, 262144]))
sizes = st.one_of(st.integers(1, 5000), st.sampled_from([512, 4096, 65536, 100_000, 300_000]))


@st.composite
def transfers(draw: st.DrawFn) -> Transfer:
    writes, length = draw(st.booleans()), draw(sizes)
    return Transfer(writes, length, length if writes or draw(st.booleans()) else draw(st.integers(0, length)))


@st.composite
def offers(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the two sides offer."""
    burst = draw(lengths)
    digests = st.sampled_from([("None",), ("CRC32C",)])
    both = {"HeaderDigest": draw(digests), "DataDigest": draw(digests)}
    initiator = {
        "MaxRecvDataSegmentLength": draw(lengths),
        "InitialR2T": draw(st.booleans()),
        "ImmediateData": draw(st.booleans()),
        "MaxBurstLength": burst,
        "FirstBurstLength": min(burst, draw(lengths)),
        "MaxOutstandingR2T": draw(st.sampled_from([1, 2, 8])),
    }
    return initiator | both, {"MaxRecvDataSegmentLength": draw(lengths)} | both


@given(
    offers(),
    st.lists(transfers(), min_size=1, max_size=5),
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
)
def test_every_byte_gets_where_it_belongs(
    offer: tuple[dict[str, Any], dict[str, Any]], asked: list[Transfer], window: int, seed: int
) -> None:
    choice = random.Random(seed)
    target = MemoryTarget(initiator=offer[0], target=offer[1], window=window)
    works = [Work(number, transfer) for number, transfer in enumerate(asked)]
    honest = HonestTarget(target, works, choice)
    waiting = list(works)
    ended: list[Event] = []
    while len(ended) < len(works):
        if waiting and choice.random() < 0.5:
            target.submit(waiting.pop(0).task)
        honest.step()
        ended += target.events()
    assert target.nothing_received()
    for work in works:
        task, transfer = work.task, work.transfer
        assert (task.failure, task.status, task.ended) == (None, 0, True)
        assert task.residual == transfer.length - transfer.available
        if transfer.writes:
            assert work.received == work.content
        else:
            assert task.received == transfer.available
            assert work.memory[: transfer.available] == work.content[: transfer.available]
            assert work.memory[transfer.available :] == b"\xaa" * (transfer.length - transfer.available)
