"""iSNSP messages on a byte stream: RFC 4171 sections 5.1 to 5.5."""

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import IsnsProtocolError
from iscsifs.isns.attributes import pack
from iscsifs.isns.conversation import Conversation, Procedure, ask_all
from iscsifs.isns.messages import query_all_targets, query_target
from iscsifs.isns.pdu import Function, Message, Receiver, status_text
from iscsifs.limits import ISNS_MESSAGE_TIMEOUT, MAX_ISNS_PDUS
from support.memory_isns import attributes, pdu

ME = "iqn.2001-04.com.example:me"
OK = bytes(4)


def received(*pdus: bytes) -> list[Message]:
    return Receiver().receive(b"".join(pdus), 0.0)


@pytest.mark.conformance("ISNS-1.1")
def test_a_request_is_one_pdu_with_the_flags_of_a_client() -> None:
    data = Message(Function.DEV_ATTR_QRY, 0x1234, b"abcd" * 3).pack()
    assert data[:12].hex(" ", 2) == "0001 0002 000c 8c00 1234 0000"
    assert data[12:] == b"abcd" * 3
    assert Message(Function.DEV_ATTR_REG, 1, b"", replace=True).pack()[6:8].hex() == "9c00"


@pytest.mark.conformance("ISNS-4.9")
def test_a_request_that_is_too_long_for_one_pdu_is_never_sent() -> None:
    assert len(Message(Function.DEV_ATTR_QRY, 1, bytes(8180)).pack()) == 8192
    with pytest.raises(ValueError, match="8184"):
        Message(Function.DEV_ATTR_QRY, 1, bytes(8184)).pack()


@pytest.mark.conformance("ISNS-1.3")
def test_a_response_in_three_pdus_is_joined_before_it_is_parsed() -> None:
    payload = pack(attributes((32, ME), (33, 1), (32, "iqn.2001-04.com.example:other")))
    stream = OK + payload
    cuts = stream[:8], stream[8:44], stream[44:]  # in the middle of the first name
    pdus = [
        pdu(part, flags=flags, seq=seq)
        for seq, (part, flags) in enumerate(zip(cuts, (0x4400, 0x4000, 0x4800), strict=True))
    ]
    (message,) = received(*pdus)
    assert message == Message(0x8002, 1, payload, 0)


@pytest.mark.conformance("ISNS-1.4")
@pytest.mark.parametrize(
    ("pdus", "why"),
    [
        ([pdu(OK, flags=0x4800)], "without the first PDU flag"),
        ([pdu(OK, flags=0x4400), pdu(OK, flags=0x4800, seq=2)], "sequence id 2 where 1"),
        ([pdu(OK, flags=0x4400), pdu(OK, flags=0x4800, seq=0)], "sequence id 0 where 1"),
        ([pdu(OK, flags=0x4400), pdu(OK, flags=0x4C00, seq=1)], "first PDU before the last"),
        ([pdu(OK, flags=0x4400), pdu(OK, 0x8003, flags=0x4800, seq=1)], "mixed"),
        ([pdu(OK, flags=0x4400), pdu(OK, flags=0x4800, seq=1, xid=2)], "mixed"),
        ([pdu(OK, seq=1)], "sequence id 1 where 0"),
    ],
)
def test_fragments_that_do_not_fit_together_end_the_connection(pdus: list[bytes], why: str) -> None:
    with pytest.raises(IsnsProtocolError, match=why):
        received(*pdus)


@pytest.mark.conformance("ISNS-1.4")
def test_the_time_for_a_message_runs_from_its_first_byte() -> None:
    receiver = Receiver()
    assert receiver.deadline is None
    receiver.receive(pdu(OK, flags=0x4400), 5.0)
    receiver.receive(pdu(OK, flags=0x4000, seq=1), 12.0)
    assert receiver.deadline == 5.0 + ISNS_MESSAGE_TIMEOUT
    receiver.receive(pdu(OK, flags=0x4800, seq=2), 13.0)
    assert receiver.deadline is None
    receiver.receive(b"\0", 20.0)
    assert receiver.deadline == 20.0 + ISNS_MESSAGE_TIMEOUT


@pytest.mark.conformance("ISNS-1.5")
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\0\0" + pdu(OK)[2:], "version 0"),
        (b"\0\2" + pdu(OK)[2:], "version 2"),
        (pdu(OK + b"\0"), "no multiple of 4"),
        (pdu(b""), "without a status"),
    ],
)
def test_headers_that_cannot_be_end_the_connection(data: bytes, why: str) -> None:
    with pytest.raises(IsnsProtocolError, match=why):
        received(data)


@pytest.mark.conformance("ISNS-1.6")
@pytest.mark.parametrize("flags", [0x8C00, 0x4C00, 0x0C00, 0xCC00])
def test_the_sender_bits_decide_nothing(flags: int) -> None:
    assert received(pdu(b"", Function.ESI, flags)) == [Message(Function.ESI, 1)]


@pytest.mark.conformance("ISNS-1.7")
def test_an_authentication_block_is_skipped() -> None:
    block = struct.pack(">II", 2, 24) + bytes(16)
    stream = pdu(OK, flags=0x6C00) + block + pdu(OK, xid=2)
    for cut in range(len(stream)):  # whatever comes first
        receiver = Receiver()
        messages = receiver.receive(stream[:cut], 0.0) + receiver.receive(stream[cut:], 0.0)
        assert messages == [Message(0x8002, 1, b"", 0), Message(0x8002, 2, b"", 0)]


@pytest.mark.conformance("ISNS-1.7")
@pytest.mark.parametrize("length", [0, 19, 4097, 0xFFFFFFFF])
def test_an_authentication_block_of_no_length_that_can_be_ends_the_connection(length: int) -> None:
    with pytest.raises(IsnsProtocolError, match=f"authentication block of {length} bytes"):
        received(pdu(OK, flags=0x6C00) + struct.pack(">II", 2, length))


@pytest.mark.conformance("ISNS-8.1")
def test_a_message_has_a_bound_in_bytes_and_in_pdus() -> None:
    with pytest.raises(IsnsProtocolError, match="more than 1048576 bytes"):
        endless(bytes(65532))
    with pytest.raises(IsnsProtocolError, match=f"more than {MAX_ISNS_PDUS} PDUs"):
        endless(b"")


def endless(piece: bytes) -> None:
    """Send as many PDUs of one message as there are sequence ids."""
    receiver = Receiver()
    receiver.receive(pdu(OK, flags=0x4400), 0.0)
    tracemalloc.start()
    try:
        for seq in range(1, 65536):
            receiver.receive(pdu(piece, flags=0x4000, seq=seq), 0.0)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 << 20


def test_status_texts() -> None:
    assert status_text(6) == "status 6 (source unknown)"
    assert status_text(24) == "status 24 (a reserved status code)"


messages = st.builds(
    Message,
    st.sampled_from([1, 2, 8, 0x0D]),
    st.integers(0, 0xFFFF),
    st.binary(max_size=1000).map(lambda data: data + bytes(-len(data) % 4)),
    st.none(),
    st.booleans(),
)


@given(st.lists(messages), st.lists(st.integers(1, 100)))
def test_what_is_packed_is_received_in_pieces_of_any_length(sent: list[Message], cuts: list[int]) -> None:
    stream = b"".join(message.pack() for message in sent)
    receiver, arrived = Receiver(), []
    for cut in [*cuts, len(stream)]:
        piece, stream = stream[:cut], stream[cut:]
        arrived += receiver.receive(piece, 0.0)
    assert arrived + receiver.receive(stream, 0.0) == sent


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_a_protocol_error(data: bytes) -> None:
    receiver = Receiver()
    try:
        for byte in data:
            receiver.receive(bytes([byte]), 0.0)
    except IsnsProtocolError:
        assert receiver.begun in (None, 0.0)


# Transactions.


def asks(count: int, statuses: list[int]) -> Procedure:
    answers = yield from ask_all([query_target(ME, f"iqn.2001-04.com.example:{n}") for n in range(count)])
    statuses += [answer.status for answer in answers]


def transactions(conversation: Conversation) -> list[int]:
    return [message.transaction_id for message in Receiver().receive(conversation.data_to_send(), 0.0)]


@pytest.mark.conformance("ISNS-1.2")
def test_requests_in_flight_have_different_ids_when_the_counter_wraps_as_well() -> None:
    conversation = Conversation(print)
    conversation.run(asks(3, []), 0.0)
    assert transactions(conversation) == [1, 2, 3]
    for _ in range(0x10000 // 5 + 2):
        statuses: list[int] = []
        conversation.run(asks(5, statuses), 0.0)  # those of before stay without an answer
        ids = transactions(conversation)
        assert len(ids) == len(set(ids) - {1, 2, 3}) == 5
        for number in ids:
            conversation.receive(pdu(OK, xid=number), 0.0)
        assert statuses == [0] * 5


@pytest.mark.conformance("ISNS-1.2")
def test_answers_are_matched_in_any_order_and_others_are_dropped_with_one_note() -> None:
    notes: list[str] = []
    statuses: list[int] = []
    conversation = Conversation(notes.append)
    conversation.run(asks(3, statuses), 0.0)
    conversation.receive(pdu(struct.pack(">I", 9), xid=3), 0.0)
    conversation.receive(pdu(struct.pack(">I", 5), xid=99), 0.0)
    conversation.receive(pdu(struct.pack(">I", 5), 0x8003, xid=1), 0.0)
    assert notes == ["a response to no request of ours was dropped"] * 2  # the client says it once
    conversation.receive(pdu(struct.pack(">I", 7), xid=1) + pdu(struct.pack(">I", 8), xid=2), 0.0)
    assert statuses == [7, 8, 9]
    assert query_all_targets(ME).function == Function.DEV_ATTR_QRY
