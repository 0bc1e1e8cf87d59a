"""Targets that flood us: the memory, in a process of its own, and those who have nothing to do with it."""

import json
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest
import trio

from iscsifs.iscsi.bhs import pack
from iscsifs.iscsi.framing import frame
from iscsifs.iscsi.pdu import (
    FINAL,
    R2T,
    RESERVED_TAG,
    AsyncEvent,
    AsyncMessage,
    DataInFlag,
    LoginFlag,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    NopIn,
    NopOut,
    Reject,
    RejectReason,
    ScsiCommand,
    ScsiResponse,
    TextFlag,
    TextRequest,
    TextResponse,
)
from iscsifs.iscsi.text import cut_text, encode_pairs
from iscsifs.limits import (
    LINES_A_MINUTE,
    MAX_ANSWER_LENGTH,
    MAX_DATA_SEGMENT_LENGTH,
    MAX_LUNS,
    MAX_PAIRS,
    MAX_UNSENT_ANSWERS,
    MAX_UNWRITTEN,
)
from iscsifs.scsi import mode
from iscsifs.scsi.capacity import Capacity
from iscsifs.scsi.cdb import OperationCode
from iscsifs.scsi.inquiry import DeviceType, InquiryData
from iscsifs.scsi.luns import lun_from_number, pack_luns
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.server import Server
from support import MODULES
from support.flooded import GOOD, MIB, Cost
from support.peer import Closed, Peer, scripted_peer

NOISE = 4.0
"""MiB by which a process may grow that keeps nothing: what it had not used before, and fragmentation."""

SEGMENT = MAX_DATA_SEGMENT_LENGTH / MIB
ANSWER = MAX_ANSWER_LENGTH / MIB

SECONDS = 30.0
"""How long a flood may take that is refused or absorbed, on a machine that has other things to do as well."""

UNRESPONSIVE = 5.0
"""Seconds that a neighbour may wait for 4 KiB meanwhile."""

LINES = 3 * LINES_A_MINUTE
"""Lines that may be logged, from as many places as have something to say of one flood."""

Flood = Callable[[Peer], Awaitable[None]]


async def cost_of(what: str, flood: Flood) -> Cost:
    """Let a process do *what*, see `flooded`, while its target does *flood*."""
    command = [sys.executable, "-m", "support.flooded", what]
    environment = {"PYTHONPATH": MODULES}
    good = Server([Device(GOOD, {0: Disk.in_memory(MIB, "good")})])
    with trio.fail_after(60):
        async with good, scripted_peer() as peer, trio.open_nursery() as nursery:
            nursery.start_soon(_flood, flood, peer)
            ports = [str(portal.port) for portal in (good.portals[0], peer.portal)]
            process = await trio.run_process(
                [*command, *ports], capture_stdout=True, capture_stderr=True, env=environment
            )
            nursery.cancel_scope.cancel()
    return Cost(lines=process.stderr.count(b"\n"), **json.loads(process.stdout))


async def _flood(flood: Flood, peer: Peer) -> None:
    with suppress(Closed, trio.BrokenResourceError):
        await flood(peer)


def copies(peer: Peer, pdu: Any, count: int, data: bytes = b"") -> bytes:
    """Return *count* times *pdu*, each with a StatSN of its own, whatever kind it is."""
    whole = bytearray(b"".join(frame(pdu, data)))
    pieces = []
    for _ in range(count):
        whole[24:28] = peer.count_status().to_bytes(4, "big")
        pieces.append(bytes(whole))
    return b"".join(pieces)


INVALID = bytes.fromhex("70 00 05 00 00 00 00 0a 00 00 00 00 20 00 00 00 00 00")
DEFERRED = bytes.fromhex("71 00 03 00 00 00 00 0a 00 00 00 00 0c 00 00 00 00 00")
NO_CACHE = mode.ModeData(pages={(mode.CACHING_PAGE, 0): mode.Caching(wce=False).pack()}).pack_6()
ANSWERS = {
    OperationCode.INQUIRY: InquiryData(DeviceType.DISK, version=5).pack(),
    OperationCode.REPORT_LUNS: pack_luns([0]),
    OperationCode.TEST_UNIT_READY: b"",
    OperationCode.SERVICE_ACTION_IN_16: Capacity(1 << 20, 512).pack_16(),
}


async def until(
    peer: Peer, code: OperationCode, answers: dict[OperationCode, bytes] = ANSWERS
) -> ScsiCommand:
    """Be a disk until a command with *code* comes; return that."""
    while True:
        command = await peer.expect(ScsiCommand)
        if command.cdb[0] == code:
            return command
        await answer(peer, command, answers)


async def answer(peer: Peer, command: ScsiCommand, answers: dict[OperationCode, bytes]) -> None:
    code, vital_product_data = OperationCode(command.cdb[0]), command.cdb[1] & 1
    expected = command.expected_data_transfer_length
    if code not in answers or (code is OperationCode.INQUIRY and vital_product_data):
        flags = FINAL | (DataInFlag.UNDERFLOW if expected else 0)
        await peer.status(command, 2, INVALID, flags=flags, residual_count=expected)
    elif not expected:
        await peer.status(command)
    else:
        data = answers[code][:expected]
        flags = DataInFlag.FINAL | DataInFlag.STATUS
        missing = expected - len(data)
        flags |= DataInFlag.UNDERFLOW if missing else 0
        await peer.data_in(command, data, flags=flags, residual_count=missing)


async def login(peer: Peer) -> ScsiCommand:
    """Let the initiator in, and be a disk until it reads."""
    await peer.login()
    return await until(peer, OperationCode.READ_10)


async def give(peer: Peer, command: ScsiCommand) -> None:
    """Give the MiB that was asked for."""
    await peer.data_in(command, bytes(MIB))


# Floods of a session that reads.


async def pings_whose_answers_are_taken(peer: Peer) -> None:
    command = await login(peer)
    ping = NopIn(0, RESERVED_TAG, 0x77, **peer.numbers)
    some = b"".join(frame(ping)) * MAX_UNSENT_ANSWERS
    for _ in range(1500):
        await peer.send_bytes(some)
        left = 48 * MAX_UNSENT_ANSWERS
        while left:
            left -= len(await peer.stream.receive_some(left))
    await give(peer, command)


async def pings_whose_answers_nobody_takes(peer: Peer) -> None:
    await login(peer)
    ping = b"".join(frame(NopIn(0, RESERVED_TAG, 0x77, **peer.numbers)))
    while True:
        await peer.send_bytes(ping * 1000)


async def messages(peer: Peer) -> None:
    command = await login(peer)
    message = AsyncMessage(0, RESERVED_TAG, async_event=0xF8, **peer.numbers)
    for _ in range(100):
        await peer.send_bytes(copies(peer, message, 1000))
    await give(peer, command)


async def wishes_to_negotiate(peer: Peer) -> None:
    command = await login(peer)
    message = AsyncMessage(0, RESERVED_TAG, async_event=AsyncEvent.NEGOTIATION_REQUESTED, **peer.numbers)
    for _ in range(100):
        await peer.send_bytes(copies(peer, message, 1000))
    await give(peer, command)


async def sense_data(peer: Peer) -> None:
    command = await login(peer)
    sense = (0xFFFF).to_bytes(2, "big") + INVALID.ljust(0xFFFF, b"\xff")
    message = AsyncMessage(0, RESERVED_TAG, async_event=AsyncEvent.SCSI, **peer.numbers)
    for _ in range(500):
        await peer.send_bytes(copies(peer, message, 1, sense))
    await peer.status(command, 2, sense[2:], flags=FINAL | DataInFlag.UNDERFLOW, residual_count=MIB)


async def losses(peer: Peer) -> None:
    """Report, again and again, that what was written is lost."""
    await peer.login()
    command = await until(peer, OperationCode.READ_10, {**ANSWERS, OperationCode.MODE_SENSE_6: NO_CACHE})
    message = AsyncMessage(0, RESERVED_TAG, async_event=AsyncEvent.SCSI, **peer.numbers)
    for _ in range(50):
        await peer.send_bytes(copies(peer, message, 1000, len(DEFERRED).to_bytes(2, "big") + DEFERRED))
    await give(peer, command)
    await give(peer, await peer.expect(ScsiCommand))  # once more: what has been read may be no more true


async def rejects(peer: Peer) -> None:
    command = await login(peer)
    reject = Reject(RejectReason.PROTOCOL_ERROR, RESERVED_TAG, **peer.numbers)
    header = pack(NopOut(0, RESERVED_TAG, 0x77, 1, 1, immediate=True))
    for _ in range(50):
        await peer.send_bytes(copies(peer, reject, 1000, header))
    await give(peer, command)


async def data_that_were_there_already(peer: Peer) -> None:
    command = await login(peer)
    await peer.data_in(command, bytes(4096), flags=0)
    for _ in range(200):
        await peer.data_in(command, bytes(MAX_DATA_SEGMENT_LENGTH), flags=0)
    await peer.data_in(command, bytes(MIB - 4096), data_sn=1, buffer_offset=4096)


async def a_segment_of_16_mib(peer: Peer) -> None:
    command = await login(peer)
    header = bytearray(frame(ScsiResponse(FINAL, 0, 2, command.initiator_task_tag, **peer.counted()))[0])
    header[5:8] = b"\xff\xff\xff"
    await peer.send_bytes(bytes(header))
    while True:
        await peer.send_bytes(bytes(MIB))


async def answers_to_nothing(peer: Peer) -> None:
    await login(peer)
    while True:
        await peer.send_bytes(copies(peer, ScsiResponse(FINAL, 0, 0, 0x5555, **peer.numbers), 1000))


async def data_for_nothing(peer: Peer) -> None:
    command = await login(peer)
    while True:
        await peer.data_in(command, bytes(MIB), flags=0, initiator_task_tag=0x5555)


async def texts_for_nothing(peer: Peer) -> None:
    await login(peer)
    while True:
        await peer.send(TextResponse(FINAL, 0, 0x5555, **peer.counted()), bytes(MIB))


# Floods of a session that writes.


async def login_to_write(peer: Peer) -> ScsiCommand:
    """The same, with the smallest segments that there are, and R2Ts for everything."""
    await peer.login(MaxRecvDataSegmentLength="512", InitialR2T="Yes", ImmediateData="No")
    return await until(peer, OperationCode.WRITE_10)


async def r2ts_for_all_that_there_is(peer: Peer) -> None:
    commands = [await login_to_write(peer)]
    while len(commands) < MAX_UNWRITTEN // MIB:
        commands.append(await peer.expect(ScsiCommand))
    for command in commands:
        await peer.r2t(command, offset=0, length=MIB)
    await trio.sleep(1)  # nobody reads what comes
    await peer.r2t(commands[0], offset=0, length=0, r2t_sn=1)
    await trio.sleep_forever()


async def the_same_r2t_again(peer: Peer) -> None:
    command = await login_to_write(peer)
    r2t = R2T(
        command.lun,
        command.initiator_task_tag,
        0x80000000,
        r2t_sn=0,
        buffer_offset=0,
        desired_data_transfer_length=MIB,
        **peer.numbers,
    )
    for _ in range(50):
        await peer.send_bytes(b"".join(frame(r2t)) * 1000)
    await peer.r2t(command, offset=0, length=0, r2t_sn=1)
    await trio.sleep_forever()


async def r2ts_of_one_byte(peer: Peer) -> None:
    command = await login_to_write(peer)
    for number in range(MIB):
        await peer.r2t(command, offset=number, length=1, r2t_sn=number)


# Floods of a login and of a discovery session.


async def a_login_without_end(peer: Peer) -> None:
    await peer.accept()
    while True:
        await peer.expect(LoginRequest)
        await refuse_to_end(peer, b"X#=" + bytes(8188).replace(b"\0", b"x") + b"\0")


async def a_login_of_nothing(peer: Peer) -> None:
    await peer.accept()
    while True:
        await peer.expect(LoginRequest)
        await refuse_to_end(peer, b"")


async def refuse_to_end(peer: Peer, text: bytes) -> None:
    (request, _) = peer.received[-1]
    assert isinstance(request, LoginRequest)
    flags = request.flags & 0x0C | LoginFlag.CONTINUE
    response = LoginResponse(flags, 0, 0, request.isid, 0, request.initiator_task_tag, **peer.counted())
    await peer.send(response, text)


def text_without_end(size: int, flags: int) -> Flood:
    async def flood(peer: Peer) -> None:
        await peer.login()
        request = await peer.expect(TextRequest)
        count = max(MIB // 16 // max(size, 48), 1)
        response = TextResponse(flags, 0, request.initiator_task_tag, 1, **peer.numbers)
        while True:
            await peer.send_bytes(copies(peer, response, count, b"x" * size))

    return flood


def answer_to_send_targets(make: Callable[[], bytes]) -> Flood:
    async def flood(peer: Peer) -> None:
        await peer.login()
        request = await peer.expect(TextRequest)
        *pieces, last = cut_text(make(), MAX_DATA_SEGMENT_LENGTH)
        for piece in pieces:
            await peer.text(request, piece, flags=TextFlag.CONTINUE, target_transfer_tag=1)
        await peer.text(request, last)
        while not isinstance(logout := (await peer.receive())[0], LogoutRequest):
            pass
        await peer.logged_out(logout)

    return flood


def names() -> bytes:
    """As many names as are accepted, each as long as there is room for."""
    length = MAX_ANSWER_LENGTH // MAX_PAIRS - len("TargetName=iqn.2001-04.com.example:\0")
    return encode_pairs(
        ("TargetName", f"iqn.2001-04.com.example:{number:0{length}x}") for number in range(MAX_PAIRS)
    )


def names_that_are_none() -> bytes:
    return encode_pairs(("TargetName", f"{number:052x}") for number in range(MAX_PAIRS))


def addresses() -> bytes:
    """As many addresses of one target as are accepted."""
    name = ("TargetName", "iqn.2001-04.com.example:one")
    return encode_pairs(
        [name, *(("TargetAddress", f"192.0.2.1:{number % 65535 + 1}") for number in range(1, MAX_PAIRS))]
    )


def nothing() -> bytes:
    """As many keys as there is room for."""
    return b"A=\0" * (MAX_ANSWER_LENGTH // 3)


async def units(peer: Peer) -> None:
    """Say that there are a million units, and have as many as are looked at."""
    luns = pack_luns(map(lun_from_number, range(MAX_LUNS)))
    enclosure = InquiryData(DeviceType.ENCLOSURE_SERVICES, version=5).pack()
    answers = {
        OperationCode.REPORT_LUNS: (8 << 20).to_bytes(4, "big") + luns[4:],
        OperationCode.INQUIRY: enclosure,
    }
    await peer.login()
    while True:
        await answer(peer, await peer.expect(ScsiCommand), answers)


def flooded_by(
    what: str, flood: Flood, outcome: str, *, megabytes: float = 0.0, name: str = "", rows: Iterable[str] = ()
) -> Any:
    """A row of the table: what we do, what is done to us, how that ends, and what it may take."""
    marks = [pytest.mark.conformance(*rows)] if rows else []
    return pytest.param(what, flood, outcome, megabytes, id=name or flood.__name__, marks=marks)


TABLE = [
    # Pings, messages and rejects without end are absorbed, as long as somebody takes the answers.
    flooded_by("read", pings_whose_answers_are_taken, "", rows=["HOSTILE-26"]),
    flooded_by("read", pings_whose_answers_nobody_takes, "ProtocolError 11.18", rows=["HOSTILE-26"]),
    flooded_by("read", messages, "", rows=["HOSTILE-28"]),
    flooded_by("read", wishes_to_negotiate, "", rows=["HOSTILE-28"]),
    flooded_by("read", sense_data, "Unsupported", megabytes=1, rows=["HOSTILE-28"]),
    flooded_by("read", losses, "", rows=["HOSTILE-28"]),
    flooded_by("read", rejects, ""),
    # Segments are received into memory of their own only where they have a meaning, one at a time.
    flooded_by("read", data_that_were_there_already, "", megabytes=2 * SEGMENT, rows=["HOSTILE-13"]),
    flooded_by("read", a_segment_of_16_mib, "ProtocolError 13.12", rows=["HOSTILE-5"]),
    flooded_by("read", answers_to_nothing, "ProtocolError 4.2.5.3", rows=["HOSTILE-7"]),
    flooded_by("read", data_for_nothing, "ProtocolError 4.2.5.3", rows=["HOSTILE-7"]),
    flooded_by("read", texts_for_nothing, "ProtocolError 4.2.5.3", megabytes=SEGMENT, rows=["HOSTILE-7"]),
    # Of data that wait to be sent there are only the headers, at worst two thirds of what 512 bytes take.
    flooded_by("write", r2ts_for_all_that_there_is, "ProtocolError 11.8.4", megabytes=MAX_UNWRITTEN / MIB),
    flooded_by("write", the_same_r2t_again, "ProtocolError 11.8.4", megabytes=1, rows=["HOSTILE-22"]),
    flooded_by("write", r2ts_of_one_byte, "ProtocolError 13.17", rows=["HOSTILE-27"]),
    # Text: what is accepted of it, and what it becomes.
    flooded_by("discovery", a_login_without_end, "ProtocolError 6.1", rows=["HOSTILE-25"]),
    flooded_by("discovery", a_login_of_nothing, "ProtocolError 6.2", rows=["HOSTILE-25"]),
    *(
        flooded_by(
            "discovery",
            text_without_end(size, flags),
            f"ProtocolError {'6.1' if size else '6.2'}",
            megabytes=1.5 * ANSWER,
            name=f"text_of_{size}_bytes_without_end_{flags:02x}",
            rows=["HOSTILE-25"],
        )
        for size, flags in ((0, 0), (512, TextFlag.CONTINUE), (MIB, 0))
    ),
    *(
        flooded_by(
            "discovery",
            answer_to_send_targets(make),
            outcome,
            megabytes=megabytes,
            name=make.__name__,
            rows=["HOSTILE-34"],
        )
        for make, outcome, megabytes in (
            (names, "", 8 * ANSWER),
            (names_that_are_none, "", 6 * ANSWER),
            (addresses, "", 4 * ANSWER),
            (nothing, "ProtocolError 6.1", 3 * ANSWER),
        )
    ),
    # Units: 8 KiB each.
    flooded_by("units", units, "", megabytes=MAX_LUNS / 128, rows=["HOSTILE-35"]),
]


@pytest.mark.parametrize(("what", "flood", "outcome", "megabytes"), TABLE)
async def test_a_flood_costs_no_more_than_the_limits_say(
    what: str, flood: Flood, outcome: str, megabytes: float
) -> None:
    cost = await cost_of(what, flood)
    kind, _, section = outcome.partition(" ")
    assert cost.failure == kind, cost
    assert f"(RFC 7143 section {section})" in cost.message or not section, cost
    assert cost.grown <= megabytes + NOISE, cost
    assert cost.seconds <= SECONDS, cost
    assert cost.longest <= UNRESPONSIVE, cost
    assert cost.lines <= LINES, cost
    assert what != "units" or cost.units == MAX_LUNS, cost
