"""PDUs on a byte stream: RFC 7143 section 11.2."""

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import DigestError, ProtocolError
from iscsifs.iscsi import bhs, pdu
from iscsifs.iscsi.framing import (
    SCRATCH_LENGTH,
    Buffer,
    DataSequence,
    Receiver,
    Sender,
    digest,
    frame,
    frame_sequence,
)
from iscsifs.limits import MAX_DATA_OUTS
from support.memory_target import pattern

Arrived = tuple[pdu.Pdu, bytes, bytes]


def text_response(number: int) -> pdu.TextResponse:
    return pdu.TextResponse(pdu.FINAL, 0, number)


def feed(receiver: Receiver, stream: bytes, cuts: Iterable[int] = ()) -> None:
    """Let *stream* arrive in pieces of at most the lengths *cuts*, the rest as the receiver asks for it."""
    lengths = iter(cuts)
    position = 0
    while position < len(stream):
        place = receiver.get_buffer()
        count = min(len(place), next(lengths, len(stream)), len(stream) - position)
        place[:count] = stream[position : position + count]
        position += count
        receiver.buffer_updated(count)


def collector(**options: int | bool) -> tuple[Receiver, list[Arrived]]:
    arrived: list[Arrived] = []
    receiver = Receiver(
        lambda *_: None,
        lambda fields, ahs, data: arrived.append((fields, ahs, bytes(data))),
        max_data_segment_length=int(options.get("limit", 2**24 - 1)),
        ahs_allowed=bool(options.get("ahs", False)),
    )
    receiver.header_digest = bool(options.get("header_digest"))
    receiver.data_digest = bool(options.get("data_digest"))
    return receiver, arrived


def stream_of(pdus: list[tuple[bytes, bytes]], header_digest: bool, data_digest: bool) -> bytes:
    buffers: list[Buffer] = []
    for number, (ahs, data) in enumerate(pdus):
        fields = text_response(number)
        buffers += frame(fields, data, ahs, header_digest=header_digest, data_digest=data_digest)
    return b"".join(buffers)


segments = st.one_of(
    st.binary(max_size=40), st.integers(0, 3 * SCRATCH_LENGTH).map(lambda n: (b"%x" % n * n)[:n])
)
ahs_segments = st.integers(0, 255).map(lambda words: b"ahs." * words)


@given(
    pdus=st.lists(st.tuples(ahs_segments, segments), min_size=1, max_size=6),
    header_digest=st.booleans(),
    data_digest=st.booleans(),
    cuts=st.lists(st.integers(1, 100_000), max_size=40),
)
def test_any_split_of_the_stream_gives_the_same_pdus(
    pdus: list[tuple[bytes, bytes]], header_digest: bool, data_digest: bool, cuts: list[int]
) -> None:
    receiver, arrived = collector(ahs=True, header_digest=header_digest, data_digest=data_digest)
    feed(receiver, stream_of(pdus, header_digest, data_digest), cuts)
    assert arrived == [(text_response(n), ahs, data) for n, (ahs, data) in enumerate(pdus)]
    assert not receiver.in_pdu


@given(st.binary(max_size=400), st.booleans(), st.booleans())
def test_garbage_is_pdus_or_a_protocol_error(garbage: bytes, header_digest: bool, data_digest: bool) -> None:
    receiver, _ = collector(header_digest=header_digest, data_digest=data_digest, limit=64)
    try:
        feed(receiver, garbage)
    except ProtocolError:
        return
    assert receiver.in_pdu or len(garbage) % 4 == 0


@given(
    size=st.integers(1, 20_000),
    longest=st.integers(512, 9000),
    offset=st.integers(0, 1000).map(lambda words: 4 * words),
    header_digest=st.booleans(),
    data_digest=st.booleans(),
)
def test_a_sequence_of_data_outs(
    size: int, longest: int, offset: int, header_digest: bool, data_digest: bool
) -> None:
    data = pattern(size)
    last = pdu.DataOut(pdu.FINAL, 1, 2, 3, 4, 0, offset)
    receiver, arrived = collector(header_digest=header_digest, data_digest=data_digest)
    buffers = frame_sequence(
        last, memoryview(data), longest, header_digest=header_digest, data_digest=data_digest
    )
    feed(receiver, b"".join(buffers))
    assert not receiver.in_pdu
    position = 0
    for number, (fields, _, piece) in enumerate(arrived):
        is_last = number == len(arrived) - 1
        flags = pdu.FINAL if is_last else 0
        assert fields == last._replace(flags=flags, data_sn=number, buffer_offset=offset + position)
        assert piece == data[position : position + len(piece)]
        assert 0 < len(piece) <= longest if is_last else len(piece) == longest // 4 * 4
        position += len(piece)
    assert position == size


@given(
    size=st.integers(1, 20_000),
    longest=st.integers(512, 9000),
    offset=st.integers(0, 1000).map(lambda words: 4 * words),
    counts=st.lists(st.integers(1, 10), min_size=1),
)
def test_a_sequence_taken_in_parts_is_the_same_sequence(
    size: int, longest: int, offset: int, counts: list[int]
) -> None:
    data = memoryview(pattern(size))
    last = pdu.DataOut(pdu.FINAL, 1, 2, 3, 4, 0, offset)
    over: list[bool] = []
    sequence = DataSequence(last, data, longest, lambda: over.append(True))
    buffers: list[Buffer] = []
    for count in itertools.cycle(counts):
        part = frame_sequence(*sequence.take(count)[1:], longest, header_digest=False, data_digest=False)
        assert sum(len(buffer) == bhs.BHS_LENGTH for buffer in part[::2]) <= count
        buffers += part
        if not sequence.data:
            break
    receiver, parts = collector()
    feed(receiver, b"".join(buffers))
    receiver, whole = collector()
    feed(receiver, b"".join(frame_sequence(last, data, longest, header_digest=False, data_digest=False)))
    assert [(fields, bytes(piece)) for fields, _, piece in parts] == [
        (fields, bytes(piece)) for fields, _, piece in whole
    ]
    assert over == []  # that is the sender's to tell


def test_what_is_sent_behind_a_long_sequence_stays_behind_it() -> None:
    sender = Sender()
    seen: list[int] = []
    answered: list[str] = []
    data = memoryview(pattern(512 * (2 * MAX_DATA_OUTS + 1)))
    for number in (1, 2):
        last = pdu.DataOut(pdu.FINAL, number, 2, 3, 4, 0, 0)
        sender.send_sequence(DataSequence(last, data, 512, lambda: answered.append("all")))
        sender.send(pdu.NopOut(number))
    receiver, arrived = collector()
    made = 0
    while sender.waiting:
        before = len(arrived)
        buffers: list[Buffer] = []
        count = sender.frame_waiting(buffers)
        feed(receiver, b"".join(buffers))
        assert count == sum(isinstance(fields, pdu.DataOut) for fields, *_ in arrived[before:])
        assert count <= MAX_DATA_OUTS
        made += count
        seen.append(len(answered))
    names = [(type(fields).__name__, getattr(fields, "lun", None)) for fields, *_ in arrived]
    assert [name for name, _ in itertools.groupby(names)] == [
        *(("DataOut", 1), ("NopOut", 1), ("DataOut", 2), ("NopOut", 2))
    ]
    assert made == 2 * (2 * MAX_DATA_OUTS + 1)
    assert seen == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(("header_digest", "data_digest"), [(False, False), (True, True)])
def test_it_is_known_how_much_of_a_pdu_is_to_come(header_digest: bool, data_digest: bool) -> None:
    receiver, _ = collector(header_digest=header_digest, data_digest=data_digest)
    stream = stream_of([(b"", b"d" * 101)] * 2, header_digest, data_digest)
    size, header = len(stream) // 2, 52 if header_digest else 48
    assert receiver.bytes_left == 0
    for position in range(1, len(stream) + 1):
        feed(receiver, stream[position - 1 : position])
        within = position % size
        assert receiver.bytes_left == (None if 0 < within < header else -within % size)


def test_the_digest_of_32_zero_bytes() -> None:
    assert digest(bytes(32)) == bytes.fromhex("aa36918a")


@pytest.mark.conformance("LOGIN-9.3")
def test_digests_cover_padding_and_an_empty_segment_has_none() -> None:
    fields = text_response(1)
    header, data, tail = frame(fields, b"12345", header_digest=True, data_digest=True)
    assert header[48:] == digest(header[:48])
    assert (data, tail[:3], tail[3:]) == (b"12345", bytes(3), digest(b"12345\0\0\0"))
    assert [len(piece) for piece in frame(fields, header_digest=True, data_digest=True)] == [52]


def test_a_data_segment_is_received_into_its_place() -> None:
    place = memoryview(bytearray(5000))
    receiver = Receiver(lambda *_: place[1000:], lambda *_: None)
    stream = b"".join(frame(text_response(1), b"x" * 4000))
    feed(receiver, stream, [100])
    assert place.tobytes() == bytes(1000) + b"x" * 4000
    feed(receiver, stream[:60])
    assert receiver.get_buffer().obj is place.obj


@pytest.mark.conformance("ERR-1")
@pytest.mark.parametrize("position", range(52))
def test_a_wrong_header_digest_is_noticed_before_any_field_is_used(position: int) -> None:
    receiver, arrived = collector(header_digest=True)
    stream = bytearray(b"".join(frame(text_response(1), header_digest=True)))
    stream[position] ^= 0x10
    with pytest.raises(ProtocolError) as caught:
        feed(receiver, bytes(stream) + bytes(2000))
    assert isinstance(caught.value, DigestError) or position == 4  # byte 4 announces an AHS: not allowed
    assert not arrived


@pytest.mark.parametrize("position", range(12))
def test_a_wrong_data_digest_is_noticed(position: int) -> None:
    receiver, arrived = collector(data_digest=True)
    stream = bytearray(b"".join(frame(text_response(1), b"1234567", data_digest=True)))
    stream[48 + position] ^= 1
    with pytest.raises(DigestError):
        feed(receiver, bytes(stream))
    assert not arrived


@pytest.mark.conformance("HOSTILE-5")
@pytest.mark.parametrize("length", [8193, 2**24 - 1])
def test_a_segment_above_the_declared_limit_is_refused_at_its_header(length: int) -> None:
    receiver, _ = collector(limit=8192)
    with pytest.raises(ProtocolError, match="13.12"):
        feed(receiver, bhs.pack(text_response(1), length))
    receiver, arrived = collector(limit=8192)
    feed(receiver, b"".join(frame(text_response(1), bytes(8192))))
    assert len(arrived) == 1


@pytest.mark.conformance("HOSTILE-4")
@pytest.mark.parametrize("words", [1, 255])
def test_an_ahs_from_a_target_is_refused_at_the_header(words: int) -> None:
    receiver, _ = collector()
    with pytest.raises(ProtocolError, match="11.2.1.5"):
        feed(receiver, bhs.pack(text_response(1), 0, words * 4))
