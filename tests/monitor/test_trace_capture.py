"""A capture in memory: blocks, frames, and where PDUs begin."""

import ipaddress
import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.monitor.capture import Capture, Stream
from iscsifs.monitor.frames import MAX_SEGMENT, End, TcpFlag
from iscsifs.monitor.segments import Cutter, Digests, LoginText, Segment

US, TARGET = End.of("192.0.2.1", 50000), End.of("192.0.2.2", 3260)
US6, TARGET6 = End.of("fe80::1%eth0", 50000), End.of("2001:db8::2", 3260)


class Packet(NamedTuple):
    """A packet as it is in the capture; *length* is that of its data before they were cut."""

    source: int
    flags: int
    sequence: int
    acknowledged: int
    data: bytes
    length: int
    captured: int
    direction: int


def blocks(capture: bytes) -> Iterator[tuple[int, bytes]]:
    """Give the type and the body of each block, and check what all blocks have."""
    while capture:
        kind, length = struct.unpack_from("<II", capture)
        assert length % 4 == 0
        assert 12 <= length <= len(capture)
        assert capture[length - 4 : length] == struct.pack("<I", length)
        yield kind, capture[8 : length - 4]
        capture = capture[length:]


def ones_complement(data: bytes) -> int:
    """Return the sum that is 0xFFFF where a checksum is right, the slow way of RFC 1071."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def packets(capture: bytes, *, whole: bool = True) -> list[Packet]:
    """Return the packets of a capture; with *whole* their checksums are checked."""
    found = []
    for kind, body in blocks(capture):
        if kind != 6:
            continue
        _, _, _, captured, original = struct.unpack_from("<5I", body)
        frame = body[20 : 20 + captured]
        direction = struct.unpack("<HHI", body[20 + captured + -captured % 4 :][:8])[2]
        version = {0x0800: 4, 0x86DD: 6}[struct.unpack_from(">H", frame, 12)[0]]
        ip, size = frame[14:], 20 if version == 4 else 40
        tcp = ip[size:]
        source, _, sequence, acknowledged, offset, flags = struct.unpack_from(">HHIIBB", tcp)
        length = (
            struct.unpack_from(">H", ip, 2)[0] - size if version == 4 else struct.unpack_from(">H", ip, 4)[0]
        )
        assert 14 + size + length == original
        if version == 4:
            assert ones_complement(ip[:size]) == 0xFFFF
        if whole:
            addresses = ip[12:20] if version == 4 else ip[8:40]
            assert ones_complement(addresses + struct.pack(">II", length, 6) + tcp) == 0xFFFF
        data = tcp[(offset >> 4) * 4 :]
        found.append(
            Packet(
                source, flags, sequence, acknowledged, data, length - (offset >> 4) * 4, captured, direction
            )
        )
    return found


class Recorded:
    """A capture whose blocks are kept."""

    def __init__(self, snap_length: int = 0, *, show_chap: bool = False) -> None:
        self.data = b""
        self.writes: list[bytes] = []
        self.failures: list[str] = []
        self.fails = False
        self.now = 0
        self.capture = Capture(
            self._emit, self._clock, self.failures.append, snap_length=snap_length, show_chap=show_chap
        )
        self.capture.begin()

    def _emit(self, block: bytes) -> None:
        if self.fails:
            raise MemoryError
        self.writes.append(block)
        self.data += block

    def _clock(self) -> int:
        self.now += 1
        return self.now

    def stream(self, local: End = US, remote: End = TARGET) -> Stream:
        return self.capture.stream(local, remote)


def pdu(opcode: int, data: bytes = b"", *, flags: int = 0x80, ahs: bytes = b"") -> bytes:
    """Return a PDU without digests."""
    header = bytearray(48)
    header[0], header[1], header[4] = opcode, flags, len(ahs) // 4
    header[5:8] = len(data).to_bytes(3, "big")
    return bytes(header) + ahs + data + bytes(-len(data) % 4)


def login(response: bool, data: bytes, flags: int = 0) -> bytes:
    return pdu(0x23 if response else 0x43, data, flags=flags)


NOP = pdu(0x00)


@pytest.mark.conformance("TRACE-1.1", "TRACE-1.2")
def test_every_block_is_whole_and_one_write() -> None:
    recorded = Recorded()
    stream = recorded.stream()
    stream.sent([NOP, NOP], 96)
    stream.received(pdu(0x25, b"data!"))
    stream.closed()
    assert all(len(list(blocks(write))) == 1 for write in recorded.writes)
    kinds = [kind for kind, _ in blocks(recorded.data)]
    assert kinds[:2] == [0x0A0D0D0A, 1]
    assert set(kinds[2:]) == {6}
    (_, section), (_, interface), *_ = blocks(recorded.data)
    assert struct.unpack_from("<IHHq", section) == (0x1A2B3C4D, 1, 0, -1)
    assert struct.unpack_from("<HHI", interface) == (1, 0, 0)
    assert struct.pack("<HHB", 9, 1, 9) in interface, "nanoseconds"
    assert b"iscsi.target_ports" in section


@pytest.mark.conformance("TRACE-1.3", "TRACE-1.4")
def test_sequence_numbers_count_bytes() -> None:
    recorded = Recorded()
    stream = recorded.stream()
    stream.sent([NOP], 48)
    stream.received(pdu(0x25, b"x" * 100))
    stream.received(pdu(0x25, b"x" * 100))
    stream.sent([NOP, NOP], 96)
    stream.closed()
    stream.closed(reset=True)  # once is enough
    found = packets(recorded.data)
    assert [packet.flags for packet in found[:3]] == [0x02, 0x12, 0x10]
    assert [packet.flags for packet in found[-3:]] == [0x11, 0x11, 0x10]
    assert [len(packet.data) for packet in found[3:-3]] == [48, 148, 148, 48, 48]
    after = {US.port: 1, TARGET.port: 1}
    for packet in found[3:]:
        other = TARGET.port if packet.source == US.port else US.port
        assert packet.sequence == after[packet.source]
        assert packet.acknowledged == after[other]
        after[packet.source] += packet.length + bool(packet.flags & TcpFlag.FIN)
    assert {packet.direction for packet in found if packet.source == US.port} == {2}
    assert {packet.direction for packet in found if packet.source != US.port} == {1}


@pytest.mark.conformance("TRACE-1.3")
def test_an_abrupt_end_is_a_reset_and_has_what_was_under_way() -> None:
    recorded = Recorded()
    stream = recorded.stream()
    stream.received(pdu(0x25, b"x" * 100)[:60])
    stream.closed(reset=True)
    *_, part, last = packets(recorded.data)
    assert (len(part.data), last.flags) == (60, 0x14)


@pytest.mark.conformance("TRACE-1.5")
@given(
    st.lists(st.integers(0, 150_000), min_size=1, max_size=4),
    st.lists(st.integers(1, 100_000), max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_every_pdu_begins_a_segment(
    lengths: list[int], cuts: list[int], header_digest: bool, data_digest: bool
) -> None:
    ends, stream = [0], b""
    for length in lengths:
        stream += pdu(0x25, b"d" * length) + bytes(4 * (header_digest + (data_digest and length > 0)))
        ends.append(len(stream))
    cutter = Cutter(Digests(header=header_digest, data=data_digest, logged_in=True), MAX_SEGMENT)
    places = sorted({0, *(cut % len(stream) for cut in cuts), len(stream)})
    segments = [
        segment for start, end in pairwise(places) for segment in cutter.feed(memoryview(stream)[start:end])
    ]
    assert b"".join(segment.data for segment in segments) == stream
    assert all(segment.length == len(segment.data) <= MAX_SEGMENT for segment in segments)
    starts = {sum(segment.length for segment in segments[:place]) for place in range(len(segments) + 1)}
    assert set(ends) <= starts
    assert len(segments) == sum(-((start - end) // MAX_SEGMENT) for start, end in pairwise(ends))


@pytest.mark.conformance("TRACE-1.6")
@pytest.mark.parametrize(("local", "remote"), [(US, TARGET), (US6, TARGET6)])
@given(data=st.binary(max_size=70_000))
def test_checksums_are_right(local: End, remote: End, data: bytes) -> None:
    recorded = Recorded()
    stream = recorded.stream(local, remote)
    stream.received(pdu(0x25, data))
    assert sum(packet.length for packet in packets(recorded.data)) == 48 + len(data) + -len(data) % 4


def test_the_zone_of_an_address_is_left_out() -> None:
    assert US6.address == ipaddress.ip_address("fe80::1")


@pytest.mark.conformance("TRACE-1.7")
def test_with_a_snap_length_less_is_kept_and_as_much_is_counted() -> None:
    recorded, whole = Recorded(128), Recorded()
    for each in recorded, whole:
        stream = each.stream()
        for _ in range(3):
            stream.received(pdu(0x25, b"x" * 100_000))
            stream.sent([NOP], 48)
    short, full = packets(recorded.data, whole=False), packets(whole.data)
    assert max(packet.captured for packet in short) == 128
    assert [packet[2:4] for packet in short] == [packet[2:4] for packet in full]
    assert [packet.length for packet in short] == [packet.length for packet in full]
    for cut, complete in zip(short, full, strict=True):
        assert complete.data.startswith(cut.data)
        assert len(cut.data) >= min(48, cut.length)
    assert Recorded(1).capture.snap_length == 122, "headers are always kept"


def login_of(*texts: bytes, response: bool, show: bool = False) -> bytes:
    """Return what a capture shows of login PDUs with these texts."""
    cutter = Cutter(Digests(), MAX_SEGMENT, show_chap=show)
    sent = b"".join(login(response, text, 0x40 if text is not texts[-1] else 0) for text in texts)
    return b"".join(
        segment.data for place in range(len(sent)) for segment in cutter.feed(sent[place : place + 1])
    )


@pytest.mark.conformance("TRACE-1.11")
@pytest.mark.parametrize("response", [True, False])
def test_what_chap_exchanges_is_blanked(response: bool) -> None:
    text = b"CHAP_N=joe\0CHAP_R=0x1234abcd\0CHAP_I=1\0CHAP_C=0bAAAA\0CHAP_A=5\0"
    shown = login_of(text, response=response)
    assert b"CHAP_N=joe\0CHAP_R=xxxxxxxxxx\0CHAP_I=1\0CHAP_C=xxxxxx\0CHAP_A=5\0" in shown
    assert text in login_of(text, response=response, show=True)


@pytest.mark.conformance("TRACE-1.11")
@given(st.lists(st.integers(1, 60), max_size=4))
def test_a_secret_value_is_blanked_over_several_pdus(cuts: list[int]) -> None:
    text = b"CHAP_N=joe\0CHAP_R=0x1234567890abcdef1234567890abcdef\0CHAP_I=1\0"
    places = sorted({0, *(cut % len(text) for cut in cuts), len(text)})
    shown = login_of(*(text[start:end] for start, end in pairwise(places)), response=False)
    assert b"0x1234" not in shown
    assert b"67890abc" not in shown
    assert shown.count(b"x") == 34
    assert len(shown) >= len(text)


@given(st.binary(), st.lists(st.integers(0, 100), max_size=3))
def test_any_text_keeps_its_length(text: bytes, cuts: list[int]) -> None:
    places = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    scanner = LoginText()
    shown = b"".join(scanner.blank(text[start:end]) for start, end in pairwise(places))
    assert len(shown) == len(text)
    assert LoginText().blank(text) == shown


@pytest.mark.conformance("TRACE-1.10")
def test_digests_begin_behind_the_login() -> None:
    recorded = Recorded()
    stream = recorded.stream()
    stream.sent([login(False, b"HeaderDigest=CRC32C,None\0DataDigest=CRC32C\0", 0x87)], 48 + 44)
    answer = login(True, b"HeaderDigest=CRC32C\0DataDigest=CRC32C\0", 0x87)
    stream.received(answer + pdu(0x25, b"data") + b"HHHH"[:0])
    # With both digests the PDU is 8 bytes longer: what came is not all of it.
    assert len(packets(recorded.data)) == 5
    stream.received(b"12345678" + NOP + b"1234")
    assert [packet.length for packet in packets(recorded.data)[5:]] == [60, 52]


@pytest.mark.conformance("TRACE-1.3", "TRACE-1.13")
def test_a_new_file_begins_with_handshakes_at_a_pdu() -> None:
    recorded = Recorded()
    stream = recorded.stream()
    long = pdu(0x25, b"x" * 100_000)
    stream.received(long[:70_000])
    stream.sent([NOP[:20]], 20)
    recorded.data = b""
    recorded.capture.begin()
    stream.received(long[70_000:] + NOP)
    stream.sent([NOP[20:]], 28)
    found = packets(recorded.data)
    assert [packet.flags for packet in found[:3]] == [0x02, 0x12, 0x10]
    assert [packet.data for packet in found[3:]] == [NOP, NOP], "the rest of the long PDU is left out"
    assert found[1].sequence + 1 == found[3].sequence
    assert found[0].sequence + 1 == found[4].sequence


@pytest.mark.conformance("TRACE-1.3")
def test_a_trace_that_begins_in_mid_session_waits_for_the_next_pdu() -> None:
    recorded = Recorded()
    digests = Digests(header=True, logged_in=True)
    stream = recorded.capture.stream(US, TARGET, digests, skip_sent=10, skip_received=1000)
    stream.sent([b"rest of it", NOP, b"HHHH"], 62)
    stream.received(bytes(990))
    stream.received(bytes(10) + NOP + b"HHHH")
    assert [packet.data for packet in packets(recorded.data)[3:]] == [NOP + b"HHHH"] * 2


@pytest.mark.conformance("TRACE-1.4")
def test_a_window_is_never_full() -> None:
    """Whoever only receives acknowledges now and then."""
    recorded = Recorded(128)
    stream = recorded.stream()
    piece = pdu(0x25, bytes((1 << 24) - 4))
    for _ in range(33):
        stream.received(piece)
    acknowledgements = [
        packet for packet in packets(recorded.data, whole=False)[3:] if packet.source == US.port
    ]
    assert [packet.length for packet in acknowledgements] == [0]
    assert acknowledgements[0].acknowledged > 1 << 29


def test_where_memory_is_short_the_capture_ends_and_the_connection_does_not() -> None:
    recorded = Recorded()
    stream = recorded.stream()
    recorded.fails = True
    stream.sent([NOP], 48)
    assert recorded.failures == ["there is no memory for a packet"]
    recorded.fails = False
    stream.received(NOP)
    stream.closed()
    assert len(packets(recorded.data)) == 3


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=300)), max_size=6))
def test_any_bytes_are_recorded(pieces: list[tuple[bool, bytes]]) -> None:
    recorded = Recorded()
    stream = recorded.stream()
    for is_sent, data in pieces:
        if is_sent:
            stream.sent([data], len(data))
        else:
            stream.received(memoryview(data))
    stream.closed()
    found = packets(recorded.data)
    for port, is_sent in (US.port, True), (TARGET.port, False):
        total = sum(len(data) for sent, data in pieces if sent == is_sent)
        assert sum(packet.length for packet in found if packet.source == port) == total
    assert Segment(b"", 0).length == 0
