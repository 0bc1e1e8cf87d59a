"""A trace of sessions with the embedded target, over TCP, as Wireshark reads it."""

import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from iscsifs.initiator.options import Digests, InitiatorOptions
from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.names import Portal
from iscsifs.monitor.frames import MAX_SEGMENT
from iscsifs.monitor.trace import Trace
from iscsifs.service import ManagedTarget, open_initiator
from iscsifs.target.testing import TestTarget
from iscsifs.units.block import BlockUnit
from support.tshark import capinfos, count, dissect

KIB = 1024
SECRET = "secretsecret1"
OPTIONS = InitiatorOptions("iqn.2001-04.com.example:initiator", write_behind=False)
CHAP = replace(OPTIONS, credentials=Credentials("joe", SECRET.encode()))


@pytest.fixture(autouse=True)
def _wireshark(require: Callable[..., None]) -> None:
    require("tshark", "capinfos")


@pytest.fixture
def target() -> Iterator[TestTarget]:
    with TestTarget(size=4 << 20) as running:
        yield running


@asynccontextmanager
async def traced(
    target: TestTarget, trace: Trace, options: InitiatorOptions = OPTIONS
) -> AsyncIterator[ManagedTarget]:
    """Log in with a trace; it ends with the session."""
    async with open_initiator(replace(options, record=trace.stream)) as initiator:
        yield await initiator.login(target.name, [Portal(target.host, target.port)])
    trace.close()


def disk(session: ManagedTarget) -> BlockUnit:
    """Return the only unit of the target."""
    (unit,) = session.units
    assert isinstance(unit, BlockUnit)
    return unit


def known(target: TestTarget) -> list[str]:
    """Return the option for a port that is not the usual one."""
    return [f"iscsi.target_ports:3260,{target.port}"]


def problems(capture: Path, options: Sequence[str] = ()) -> list[list[str]]:
    """Return the frames that Wireshark finds something wrong with."""
    wrong = "_ws.malformed or tcp.analysis.flags or tcp.checksum.status==0 or ip.checksum.status==0"
    checks = ["tcp.check_checksum:TRUE", "ip.check_checksum:TRUE", *options]
    return dissect(
        capture, ["frame.number", "_ws.col.Info", "_ws.expert.message"], only=wrong, options=checks
    )


@pytest.mark.conformance("TRACE-1.1", "TRACE-1.4", "TRACE-1.12")
async def test_wireshark_reads_a_session(target: TestTarget, tmp_path: Path) -> None:
    capture = tmp_path / "trace.pcapng"
    async with traced(target, Trace(capture)) as session:
        unit = disk(session)
        await unit.write(16 * 512, b"w" * 4096)
        assert bytes(await unit.read(16 * 512, 8 * 512)) == b"w" * 4096
    said = capinfos(capture)
    assert re.search(r"File type: +Wireshark/\.\.\. - pcapng", said)
    assert re.search(r"File encapsulation: +Ethernet", said)
    assert re.search(r"Time resolution: +nanoseconds|nanosecond", said)
    assert problems(capture, known(target)) == []
    opcodes = [row[0] for row in dissect(capture, ["iscsi.opcode"], only="iscsi", options=known(target))]
    assert opcodes[0] == "0x03"
    assert "0x01" in opcodes
    assert "0x25" in opcodes
    fields = [
        *("iscsi.opcode", "scsi_sbc.opcode", "scsi_sbc.rdwr10.lba", "scsi_sbc.rdwr10.xferlen"),
        *("iscsi.response_frame", "iscsi.cmdsn", "iscsi.initiatortasktag"),
    ]
    (read,) = dissect(
        capture, fields, only="scsi_sbc.opcode==0x28 and iscsi.opcode==1", options=known(target)
    )
    opcode, command, lba, length, answered, cmd_sn, tag = read
    assert (opcode, command, lba, length) == ("0x01", "0x28", "16", "8")
    (answer,) = dissect(
        capture,
        ["iscsi.opcode", "iscsi.request_frame", "iscsi.initiatortasktag"],
        only=f"frame.number=={answered}",
        options=known(target),
    )
    assert answer[0] == "0x25"
    assert answer[2] == tag
    commands = dissect(capture, ["iscsi.cmdsn"], only="iscsi.opcode==1", options=known(target))
    numbers = [int(row[0], 0) for row in commands]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert int(cmd_sn, 0) in numbers


@pytest.mark.conformance("TRACE-1.3", "TRACE-1.4")
async def test_connections_have_a_beginning_a_direction_and_an_end(
    target: TestTarget, tmp_path: Path
) -> None:
    capture = tmp_path / "trace.pcapng"
    trace = Trace(capture)
    async with open_initiator(replace(OPTIONS, record=trace.stream)) as initiator:
        session = await initiator.login(target.name, [Portal(target.host, target.port)])
        unit = disk(session)
        target.disk.disconnect("read", times=1)
        assert len(await unit.read(0, 512)) == 512
    trace.close()
    rows = dissect(capture, ["tcp.stream", "tcp.flags", "tcp.dstport", "frame.packet_flags_direction"])
    assert {row[0] for row in rows} == {"0", "1"}, "a new connection is a new stream"
    for stream in "0", "1":
        flags = [int(row[1], 16) for row in rows if row[0] == stream]
        assert flags[:3] == [0x02, 0x12, 0x10]
        assert any(flag & 0x05 for flag in flags[-3:])
    assert {row[3] for row in rows if row[2] == str(target.port)} == {"0x00000002"}
    assert {row[3] for row in rows if row[2] != str(target.port)} == {"0x00000001"}
    addresses = dissect(capture, ["ip.dst", "tcp.dstport"], only="tcp.flags==2")
    assert addresses == [[target.host, str(target.port)]] * 2
    assert problems(capture, known(target)) == []


@pytest.mark.conformance("TRACE-1.3")
@pytest.mark.parametrize("digests", ["none", "all"])
async def test_a_trace_may_begin_in_mid_session(target: TestTarget, tmp_path: Path, digests: Digests) -> None:
    capture = tmp_path / "trace.pcapng"
    async with open_initiator(replace(OPTIONS, digests=digests)) as initiator:
        session = await initiator.login(target.name, [Portal(target.host, target.port)])
        unit = disk(session)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(unit.read, 0, 2 << 20)  # which is arriving meanwhile
            await trio.lowlevel.checkpoint()
            trace = Trace(capture)
            while not session.session.link.record(trace.stream):
                await trio.lowlevel.checkpoint()
        assert len(await unit.read(0, 4096)) == 4096
        trace.close()
        assert len(await unit.read(0, 4096)) == 4096, "the connection goes on without"
    options = [*known(target), "iscsi.bogus_pdu_max_data_len:16777215"]
    assert problems(capture, options) == []
    assert count(capture, "scsi_sbc.opcode==0x28 and iscsi.opcode==1", options) >= 1
    opcodes = {row[0] for row in dissect(capture, ["iscsi.opcode"], only="iscsi", options=options)}
    assert opcodes <= {"0x01", "0x25", "0x21", "0x00", "0x20"}


@pytest.mark.conformance("TRACE-1.5")
async def test_long_pdus_are_cut_and_every_pdu_begins_a_segment(target: TestTarget, tmp_path: Path) -> None:
    capture = tmp_path / "trace.pcapng"
    async with traced(target, Trace(capture)) as session:
        unit = disk(session)
        await unit.write(0, b"w" * (200 * KIB))
        assert len(await unit.read(0, 200 * KIB)) == 200 * KIB
        for block in range(20):
            await unit.read(block * 512, 512)
    assert problems(capture, known(target)) == []
    lengths = [int(row[0]) for row in dissect(capture, ["tcp.len"])]
    assert max(lengths) == MAX_SEGMENT
    # A PDU that ends in a frame has no other one behind it in this frame.
    assert all(
        "," not in row[0] for row in dissect(capture, ["iscsi.opcode"], only="iscsi", options=known(target))
    )


@pytest.mark.conformance("TRACE-1.6")
def test_ipv6_and_its_checksums(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace.pcapng")
    stream = trace.stream(("fe80::1%eth0", 50000), ("2001:db8::2", 3260))
    assert stream is not None
    nop = bytes([0x40, 0x80]) + bytes(14) + bytes(4) + b"\xff" * 4 + bytes(24)
    stream.sent([nop, nop], 96)
    stream.received(memoryview(bytes([0x20]) + nop[1:]))
    stream.closed()
    trace.close()
    assert problems(trace.path) == []
    rows = dissect(trace.path, ["ipv6.src", "ipv6.dst"], only="tcp.len>0")
    assert rows == [["fe80::1", "2001:db8::2"]] * 2 + [["2001:db8::2", "fe80::1"]]
    assert count(trace.path, "tcp.checksum.status!=1", ["tcp.check_checksum:TRUE"]) == 0


async def test_without_a_trace_nothing_is_in_the_way(target: TestTarget) -> None:
    async with open_initiator(OPTIONS) as initiator:
        session = await initiator.login(target.name, [Portal(target.host, target.port)])
        assert type(session.session.link._socket) is socket.socket


@pytest.mark.conformance("TRACE-1.7")
async def test_with_a_snap_length_every_header_is_dissected(target: TestTarget, tmp_path: Path) -> None:
    capture, whole = tmp_path / "short.pcapng", tmp_path / "whole.pcapng"
    for path, snap_length in (capture, 128), (whole, 0):
        async with traced(target, Trace(path, snap_length=snap_length)) as session:
            unit = disk(session)
            await unit.write(0, b"w" * 4096)
            assert len(await unit.read(0, 4096)) == 4096
    assert capture.stat().st_size < whole.stat().st_size / 2
    rows = dissect(capture, ["frame.cap_len", "frame.len", "tcp.len", "tcp.nxtseq", "tcp.seq"])
    assert max(int(row[0]) for row in rows) == 128
    assert any(int(row[1]) > 4096 for row in rows)
    assert all(int(row[4]) + int(row[2]) == int(row[3]) for row in rows if int(row[2]))
    assert count(capture, "_ws.malformed or tcp.analysis.flags", known(target)) == 0
    seen = [row[0] for row in dissect(capture, ["iscsi.opcode"], only="iscsi", options=known(target))]
    assert seen == [row[0] for row in dissect(whole, ["iscsi.opcode"], only="iscsi", options=known(target))]
    assert "0x25" in seen
    assert count(capture, "scsi_sbc.opcode==0x28", known(target)) >= 1


@pytest.mark.conformance("TRACE-1.8")
async def test_another_port_needs_an_option_which_the_file_tells(target: TestTarget, tmp_path: Path) -> None:
    capture = tmp_path / "trace.pcapng"
    async with traced(target, Trace(capture)) as session:
        assert session.units
    assert count(capture, "iscsi") == 0
    assert count(capture, "iscsi", known(target)) > 10
    assert "iscsi.target_ports:3260,PORT" in capinfos(capture)


@pytest.mark.conformance("TRACE-1.9")
async def test_long_data_segments_need_an_option(tmp_path: Path) -> None:
    capture = tmp_path / "trace.pcapng"
    with TestTarget(size=4 << 20) as target:
        async with traced(target, Trace(capture)) as session:
            unit = disk(session)
            assert len(await unit.read(0, 256 * KIB + 512)) == 256 * KIB + 512
        options = [*known(target), "iscsi.bogus_pdu_max_data_len:16777215"]
        longest = dissect(capture, ["iscsi.datasegmentlength"], only="iscsi.opcode==0x25", options=options)
        assert max(int(row[0], 0) for row in longest) == 256 * KIB + 512
        assert count(capture, "_ws.malformed", options) == 0
        assert problems(capture, options) == []
        without = dissect(
            capture, ["iscsi.datasegmentlength"], only="iscsi.opcode==0x25", options=known(target)
        )
        assert 256 * KIB + 512 not in [int(row[0], 0) for row in without]


@pytest.mark.conformance("TRACE-1.10")
async def test_digests_are_understood(target: TestTarget, tmp_path: Path) -> None:
    capture = tmp_path / "trace.pcapng"
    async with traced(target, Trace(capture), replace(OPTIONS, digests="all")) as session:
        unit = disk(session)
        await unit.write(0, b"w" * 4096)
        assert len(await unit.read(0, 4096)) == 4096
    options = known(target)  # older versions want iscsi.enable_data_digests:TRUE as well
    assert problems(capture, options) == []
    rows = dissect(capture, ["iscsi.opcode"], only="iscsi", options=options)
    assert all("," not in row[0] for row in rows)
    assert count(capture, "iscsi.headerdigest32", options) > 5
    assert count(capture, "iscsi.datadigest32", options) >= 2
    assert count(capture, "scsi_sbc.opcode==0x28", options) >= 1


@pytest.mark.conformance("TRACE-1.11")
async def test_what_chap_answers_is_left_out(tmp_path: Path) -> None:
    with TestTarget(size=1 << 20, user="joe", secret=SECRET) as target:
        captures = tmp_path / "without.pcapng", tmp_path / "with.pcapng"
        for capture, show in zip(captures, (False, True), strict=True):
            async with traced(target, Trace(capture, show_chap=show), CHAP) as session:
                assert session.units
        without, shown = (
            dissect(
                capture,
                ["iscsi.keyvalue"],
                only="iscsi.opcode==3 or iscsi.opcode==0x23",
                options=known(target),
            )
            for capture in captures
        )
    said = ",".join(row[0] for row in without)
    for key in ("CHAP_N=joe", "CHAP_A=", "CHAP_I="):
        assert key in said
    assert re.search(r"CHAP_C=x{10,}", said)
    assert re.search(r"CHAP_R=x{10,}", said)
    assert not re.search(rb"CHAP_[CR]=0[xb]", captures[0].read_bytes())
    assert SECRET.encode() not in captures[0].read_bytes()
    everything = ",".join(row[0] for row in shown)
    assert re.search("CHAP_C=0[xb]", everything)
    assert re.search("CHAP_R=0[xb]", everything)
    pattern = re.compile("CHAP_R=([^,]*)")
    lengths = [len(found[1]) for text in (said, everything) if (found := pattern.search(text))]
    assert len(lengths) == 2
    assert lengths[0] == lengths[1], "as many characters as there were"


@pytest.mark.conformance("TRACE-1.13")
async def test_each_file_of_several_can_be_read(target: TestTarget, tmp_path: Path) -> None:
    capture = tmp_path / "trace.pcapng"
    trace = Trace(capture, max_bytes=300 * KIB, files=4)
    async with traced(target, trace) as session:
        unit = disk(session)
        for block in range(8):
            await unit.write(block * 128 * KIB, b"w" * (128 * KIB))
    files = sorted(tmp_path.iterdir())  # noqa: ASYNC240 - nothing else runs
    assert [path.name for path in files] == [f"trace.pcapng{end}" for end in ("", ".1", ".2", ".3")]
    for path in files:
        assert path.stat().st_size <= 300 * KIB + 70_000
        capinfos(path)
        assert count(path, "tcp.flags==2") == 1, "it begins with the handshake"
        assert problems(path, known(target)) == []
        assert count(path, "iscsi", known(target)) > 0
