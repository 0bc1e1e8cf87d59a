"""What a SendTargets answer says: RFC 7143 sections 4.3, 13.8 and appendix C."""

import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import ProtocolError
from iscsifs.iscsi.discovery import DiscoveredTarget, read_targets
from iscsifs.iscsi.names import MAX_NAME_LENGTH, Portal, TargetAddress
from iscsifs.iscsi.pdu import RESERVED_TAG, TextRequest, TextResponse
from iscsifs.iscsi.text import Pair, encode_pairs
from iscsifs.limits import MAX_ADDRESSES, MAX_ANSWER_LENGTH, NOTES_A_LIST
from support.memory_target import MemoryTarget

HERE = Portal("192.0.2.9", 3261)
DISK = "iqn.2001-04.com.example:disk"


def address(host: str, port: int = 3260, tag: int | None = None) -> TargetAddress:
    return TargetAddress(Portal(host, port), tag)


def addresses(*values: str, zone: str | None = None) -> tuple[TargetAddress, ...]:
    """What is read from one target with these addresses."""
    pairs = [("TargetName", DISK), *(("TargetAddress", value) for value in values)]
    (target,) = read_targets(pairs, HERE, zone)
    return target.addresses


def discover(answer: bytes, size: int = 4096) -> list[DiscoveredTarget]:
    """Ask a target that says *answer*, in pieces of *size* bytes."""
    target = MemoryTarget(target_name=None)
    text = target.connection.requests.send_text([("SendTargets", "All")])
    (sent,) = target.received(TextRequest)
    tag = sent.pdu.initiator_task_tag
    for start in range(0, len(answer), size):
        last = start + size >= len(answer)
        fields = {} if last else {"flags": 0, "target_transfer_tag": 1}
        target.send(TextResponse, answer[start : start + size], initiator_task_tag=tag, **fields)
    assert target.events() == [text]
    assert text.pairs is not None
    return read_targets(text.pairs, HERE)


@pytest.mark.conformance("DISC-4")
def test_a_target_without_an_address_is_at_this_portal() -> None:
    assert addresses() == (address("192.0.2.9", 3261),)


@pytest.mark.conformance("DISC-5")
def test_all_addresses_are_kept_in_their_order() -> None:
    values = ("192.0.2.5:3260,2", "192.0.2.1:3260,1", "192.0.2.3:3260,2")
    assert [str(one) for one in addresses(*values)] == [*values]


@pytest.mark.conformance("DISC-5", "HOSTILE-33")
def test_two_records_of_one_target_are_one_target() -> None:
    pairs = [
        ("TargetName", DISK),
        ("TargetAddress", "192.0.2.1:3260,1"),
        ("TargetName", DISK + "2"),
        ("TargetAddress", "192.0.2.2:3260,1"),
        ("TargetName", DISK),
        ("TargetAddress", "192.0.2.3:3260,2"),
        ("TargetAddress", "192.0.2.1:3260,1"),
    ]
    assert read_targets(pairs, HERE) == [
        DiscoveredTarget(DISK, (address("192.0.2.1", tag=1), address("192.0.2.3", tag=2))),
        DiscoveredTarget(DISK + "2", (address("192.0.2.2", tag=1),)),
    ]


@pytest.mark.conformance("HOSTILE-33")
def test_names_that_differ_in_case_are_distinct() -> None:
    names = ["eui.02004567A425678D", "eui.02004567a425678d", "naa.52004567BA64678D", "naa.52004567ba64678d"]
    found = read_targets([("TargetName", name) for name in names], HERE)
    assert [target.name for target in found] == names


@pytest.mark.conformance("DISC-6")
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("192.0.2.1", address("192.0.2.1")),
        ("192.0.2.1:3261", address("192.0.2.1", 3261)),
        ("192.0.2.1:3261,0", address("192.0.2.1", 3261, 0)),
        ("192.0.2.1,65535", address("192.0.2.1", 3260, 65535)),
        ("192.0.2.1,0x1", address("192.0.2.1", 3260, 1)),
        ("storage.example.com", address("storage.example.com")),
        ("storage.example.com:3261,1", address("storage.example.com", 3261, 1)),
        ("[2001:db8::1]", address("2001:db8::1")),
        ("[2001:db8::1]:3261", address("2001:db8::1", 3261)),
        ("[2001:db8::1]:3261,1", address("2001:db8::1", 3261, 1)),
    ],
)
def test_addresses_that_can_be_used(value: str, expected: TargetAddress) -> None:
    assert addresses(value) == (expected,)


@pytest.mark.conformance("DISC-7")
def test_a_link_local_address_is_in_the_zone_of_the_connection() -> None:
    assert addresses("[fe80::1]:3260,1", zone="eth3") == (address("fe80::1%eth3", tag=1),)
    assert addresses("[fe80::1%eth0]:3260,1", "192.0.2.1", zone="eth3") in (
        (address("fe80::1%eth3", tag=1), address("192.0.2.1")),
        (address("192.0.2.1"),),
    )


@pytest.mark.conformance("DISC-7")
@pytest.mark.parametrize(
    "value",
    [
        "[fe80::1]:3260,1",  # this connection has no zone
        "[fe80::1%eth0]:3260,1",
        "2001:db8::1",
        "192.0.2.1:0",
        "192.0.2.1:65536",
        "192.0.2.1:3260,65536",
        "192.0.2.1:3260,",
        "192.0.2.1:3260,1,1",
        "192.0.2.256",
        "[192.0.2.1]",
        "0.0.0.0:3260,1",
        "",
        "\x1b[2J",
        "a b",
        "../../etc",
        "\udcff",
    ],
)
def test_an_address_that_cannot_be_used_is_left_out(value: str, caplog: pytest.LogCaptureFixture) -> None:
    assert addresses(value, "192.0.2.7:3260,1") == (address("192.0.2.7", tag=1),)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().isprintable()
    assert addresses(value) == (TargetAddress(HERE),)  # what is left is where the answer came from


@pytest.mark.conformance("DISC-8")
@pytest.mark.parametrize("key", ["TargetAlias", "InitiatorName", "X-com.example.key", "MaxBurstLength"])
def test_other_keys_do_not_belong_there(key: str) -> None:
    for pairs in ([(key, "1")], [("TargetName", DISK), (key, "1")]):
        with pytest.raises(ProtocolError, match=key):
            read_targets(pairs, HERE)


@pytest.mark.conformance("DISC-8")
def test_an_address_of_no_target() -> None:
    with pytest.raises(ProtocolError, match="before any TargetName"):
        read_targets([("TargetAddress", "192.0.2.1:3260,1"), ("TargetName", DISK)], HERE)


@pytest.mark.conformance("DISC-8")
def test_no_targets() -> None:
    assert read_targets([], HERE) == []
    target = MemoryTarget(target_name=None)
    text = target.connection.requests.send_text([("SendTargets", "All")])
    (sent,) = target.received(TextRequest)
    target.send(TextResponse, initiator_task_tag=sent.pdu.initiator_task_tag)
    assert target.events() == [text]
    assert text.pairs == []


BAD_NAMES = [
    b"iqn.2001-04.com.example:a/b",
    b"iqn.2001-04.com.example:\x1b[2J",
    b"iqn.2001-04.com.example:a\nb",
    b"iqn.2001-04.com.example:a b",
    b"iqn.2001-04.com.example:\xff\xfe",
    b"iqn.2001-04.com.example:\xed\xa0\x80",
    b"..",
    b".",
    b"../../etc/passwd",
    b"",
    b"iqn.2001-04.com.example:" + b"x" * 200,
    b"iqn.2001-04.com.example:" + b"x" * 60000,
]


@pytest.mark.conformance("HOSTILE-31", "HOSTILE-32")
@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_target_whose_name_is_none_is_left_out(name: bytes, caplog: pytest.LogCaptureFixture) -> None:
    record = b"TargetName=" + name + b"\0TargetAddress=192.0.2.66:3260,1\0TargetAddress=rubbish!\0"
    good = b"TargetName=%s\0TargetAddress=192.0.2.1:3260,1\0"
    answer = record + good % DISK.encode() + record + good % (DISK + "2").encode()
    found = discover(answer)
    assert [target.name for target in found] == [DISK, DISK + "2"]
    assert {target.addresses for target in found} == {(address("192.0.2.1", tag=1),)}
    (said,) = caplog.records  # once
    message = said.getMessage()
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 500


@pytest.mark.conformance("HOSTILE-31")
def test_a_name_with_a_nul_ends_there() -> None:
    target = MemoryTarget(target_name=None)
    target.connection.requests.send_text([("SendTargets", "All")])
    (sent,) = target.received(TextRequest)
    with target.drop("6.1"):
        target.send(
            TextResponse,
            b"TargetName=iqn.2001-04.com.example:a\0b\0",
            initiator_task_tag=sent.pdu.initiator_task_tag,
        )


@pytest.mark.conformance("HOSTILE-32")
def test_names_as_long_as_they_may_be(caplog: pytest.LogCaptureFixture) -> None:
    prefix = "iqn.2001-04.com.example:"
    longest = prefix + "x" * (MAX_NAME_LENGTH - len(prefix))
    umlauts = prefix + "\xe4" * ((MAX_NAME_LENGTH - len(prefix)) // 2)
    names = [longest, longest + "x", umlauts, umlauts + "\xe4" * 2]
    assert [len(longest), len((longest + "x").encode())] == [223, 224]
    found = discover(encode_pairs([("TargetName", name) for name in names]))
    assert [target.name for target in found] == [longest, umlauts]
    assert len(caplog.records) == 2


@pytest.mark.conformance("HOSTILE-34")
def test_of_one_target_so_many_addresses_are_used(caplog: pytest.LogCaptureFixture) -> None:
    values = [f"192.0.2.{number}:3260,1" for number in range(1, MAX_ADDRESSES + 3)]
    found = addresses(values[0], *values)  # the same twice counts once
    assert [str(one) for one in found] == values[:MAX_ADDRESSES]
    assert len(caplog.records) == 2


def test_what_is_left_out_is_not_logged_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    names = [("TargetName", f"disk{number}") for number in range(NOTES_A_LIST + 5)]
    assert [target.name for target in read_targets([*names, ("TargetName", DISK)], HERE)] == [DISK]
    assert len(caplog.records) == NOTES_A_LIST + 1
    assert caplog.records[-1].getMessage() == f"{HERE}: left out 5 more"


@pytest.mark.conformance("HOSTILE-34")
def test_a_hundred_thousand_targets() -> None:
    def pairs(count: int) -> list[Pair]:
        return [
            pair
            for number in range(count)
            for pair in (
                ("TargetName", f"iqn.2001-04.com.example:storage.disk{number:06}"),
                ("TargetAddress", f"192.0.2.{number % 200 + 1}:3260,1"),
            )
        ]

    answer = encode_pairs(pairs(100_000))
    assert len(answer) < MAX_ANSWER_LENGTH
    found = discover(answer, 8192)
    assert len(found) == 100_000
    assert found[-1].addresses == (address("192.0.2.200", tag=1),)

    def seconds(count: int) -> float:
        some = pairs(count)
        start = time.process_time()
        read_targets(some, HERE)
        return time.process_time() - start

    # Four times as much takes about four times as long; were it the square, it would be sixteen times.
    assert min(seconds(8_000) for _ in range(3)) < 10 * min(seconds(2_000) for _ in range(3))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["TargetName", "TargetAddress"]),
            st.one_of(
                st.text(max_size=20),
                st.sampled_from([DISK, "192.0.2.1:3260,1", "[fe80::1]"]),
            ),
        ),
        max_size=8,
    ),
    st.sampled_from([None, "eth0"]),
)
def test_any_answer_is_targets_or_a_protocol_error(pairs: list[Pair], zone: str | None) -> None:
    try:
        found = read_targets(pairs, HERE, zone)
    except ProtocolError:
        assert any(key == "TargetAddress" for key, _ in pairs)
        return
    assert all(target.addresses for target in found)
    assert len({target.name for target in found}) == len(found)


@pytest.mark.conformance("DISC-9")
def test_a_discovery_asks_for_one_thing_at_a_time() -> None:
    target = MemoryTarget(target_name=None)
    target.connection.requests.send_text([("SendTargets", "All")])
    (sent,) = target.received()
    assert sent.data == b"SendTargets=All\0"
    assert isinstance(sent.pdu, TextRequest)
    assert sent.pdu.target_transfer_tag == RESERVED_TAG
