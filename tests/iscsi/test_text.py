"""key=value text and the forms of values (RFC 7143 section 6.1)."""

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import ProtocolError
from iscsifs.iscsi import text
from iscsifs.iscsi.text import TextCollector
from iscsifs.limits import MAX_PAIRS, MAX_TEXT_LENGTH

keys = st.from_regex(r"[A-Za-z][A-Za-z0-9.\-+@_#]{0,62}", fullmatch=True)
values = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
pair_lists = st.lists(st.tuples(keys, values))


@given(pair_lists)
def test_pairs_survive_the_wire(pairs: list[text.Pair]) -> None:
    assert text.decode_pairs(text.encode_pairs(pairs), pdu="Login Response") == pairs


@given(st.binary())
def test_any_bytes_are_pairs_or_a_protocol_error(data: bytes) -> None:
    try:
        pairs = text.decode_pairs(data, pdu="Login Response")
    except ProtocolError:
        return
    assert text.encode_pairs(pairs) == data


@pytest.mark.conformance("LOGIN-R.21")
@pytest.mark.parametrize(
    "data",
    [
        b"HeaderDigest\0",
        b"HeaderDigest=None\0\0",
        b"=None\0",
        b"Header Digest=None\0",
        b"Header\x1bDigest=None\0",
        b"Header\nDigest=None\0",
        b"HeaderDigest=None",
        b"HeaderDigest=None\0DataDigest=None",
        b"\xff\xfe=None\0",
        b"TargetAlias=\xc3\x28\0",
        b"TargetAlias=\xed\xa0\x80\0",
        b"1Key=1\0",
        b"#Key=1\0",
        "Gr\u00f6\u00dfe=1\0".encode(),
    ],
)
def test_text_that_is_not_well_formed(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        text.decode_pairs(data, pdu="Login Response")
    assert caught.value.section == "6.1"
    assert caught.value.pdu == "Login Response"
    assert str(caught.value).isprintable()


@pytest.mark.conformance("LOGIN-R.21")
def test_the_two_keys_of_the_standard_that_break_its_syntax_pass() -> None:
    data = b"iSCSIProtocolLevel=1\0X#NodeArchitecture=a=b\0TargetAlias=\0"
    assert text.decode_pairs(data, pdu="") == [
        ("iSCSIProtocolLevel", "1"),
        ("X#NodeArchitecture", "a=b"),
        ("TargetAlias", ""),
    ]


@pytest.mark.conformance("LOGIN-R.22")
def test_a_key_of_63_bytes_passes_and_one_of_64_does_not() -> None:
    assert text.decode_pairs(b"K" * 63 + b"=1\0", pdu="") == [("K" * 63, "1")]
    with pytest.raises(ProtocolError):
        text.decode_pairs(b"K" * 64 + b"=1\0", pdu="")


@given(pair_lists, st.data())
def test_pieces_are_joined_wherever_they_were_cut(pairs: list[text.Pair], data: st.DataObject) -> None:
    encoded = text.encode_pairs(pairs)
    size = data.draw(st.integers(max(1, len(encoded) // 50), max(1, len(encoded))))
    *firsts, last = text.cut_text(encoded, size)
    collector = TextCollector("Text Response")
    assert all(len(piece) == size for piece in firsts)
    assert all(collector.add(piece, more=True) is None for piece in firsts)
    assert collector.add(memoryview(last), more=False) == pairs


def test_one_collector_takes_one_text_after_the_other() -> None:
    collector = TextCollector("Login Response")
    assert collector.add(b"", more=False) == []
    assert collector.add(b"A=1\0", more=False) == [("A", "1")]
    assert collector.add(b"B=", more=True) is None
    assert collector.add(b"2\0", more=False) == [("B", "2")]


@pytest.mark.conformance("LOGIN-R.17")
def test_a_collector_takes_its_bound_and_no_more() -> None:
    assert MAX_TEXT_LENGTH >= 8192
    collector = TextCollector("Login Response")
    whole = b"A=" + b"x" * (MAX_TEXT_LENGTH - 3) + b"\0"
    assert collector.add(whole[:8192], more=True) is None
    assert collector.add(whole[8192:], more=False) == [("A", "x" * (MAX_TEXT_LENGTH - 3))]
    with pytest.raises(ProtocolError, match="more text"):
        collector.add(b"B", more=True)


@pytest.mark.conformance("LOGIN-R.17")
def test_a_text_has_a_bounded_number_of_pairs() -> None:
    assert len(text.decode_pairs(b"A=\0" * MAX_PAIRS, pdu="")) == MAX_PAIRS
    with pytest.raises(ProtocolError, match=f"more than {MAX_PAIRS} keys"):
        text.decode_pairs(b"A=\0" * (MAX_PAIRS + 1), pdu="")


def test_a_collector_takes_a_bounded_number_of_pieces() -> None:
    collector = TextCollector("Login Response", max_pieces=3)
    for _ in range(3):
        collector.add(b"", more=True)
    with pytest.raises(ProtocolError, match="end"):
        collector.add(b"", more=True)


def test_no_text_is_one_empty_piece() -> None:
    assert text.cut_text(b"", 8192) == [b""]
    assert text.cut_text(b"12345678", 4) == [b"1234", b"5678"]


@pytest.mark.conformance("LOGIN-R.19")
@pytest.mark.parametrize("value", ["8192", "0x2000", "0X2000", "0x00002000"])
def test_the_ways_to_write_a_number(value: str) -> None:
    assert text.parse_number(value) == 8192


NO_NUMBERS = ["010", "00", "+1", "-1", "1 ", " 1", "1\n", "1_0", "1e3", "0x", "0x1_0", "0x-1", ""]
NO_NUMBERS += [
    str(2**64),
    hex(2**64),
    "1" * 5000,
    "\u0661",
    "\uff11",
    "0x\uff11",
    "0b10",
    "Yes",
    "1,2",
    "1~2",
]


@pytest.mark.conformance("LOGIN-R.20")
@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_not_a_number(value: str) -> None:
    with pytest.raises(ValueError, match="not") as caught:
        text.parse_number(value)
    assert str(caught.value).isprintable()


@given(st.integers(0, 2**64 - 1))
def test_every_number_is_read_in_both_notations(number: int) -> None:
    assert text.parse_number(str(number)) == text.parse_number(hex(number)) == number


@given(st.text())
def test_any_value_is_a_number_or_a_value_error(value: str) -> None:
    try:
        number = text.parse_number(value)
    except ValueError:
        return
    assert value.isascii()
    assert number == int(value, 0)


def test_booleans_are_yes_and_no() -> None:
    assert text.parse_boolean("Yes")
    assert not text.parse_boolean("No")
    for value in ("yes", "NO", "True", "1", "", "Maybe", "Yes "):
        with pytest.raises(ValueError, match="neither Yes nor No"):
            text.parse_boolean(value)
    assert text.parse_boolean(text.format_boolean(True))
    assert not text.parse_boolean(text.format_boolean(False))


def test_lists_are_items_between_commas() -> None:
    assert text.parse_list("CRC32C,None") == ("CRC32C", "None")
    assert text.parse_list("None") == ("None",)
    for value in ("", ",", "a,", ",a", "a,,b"):
        with pytest.raises(ValueError, match="empty item"):
            text.parse_list(value)


@pytest.mark.conformance("LOGIN-R.22")
def test_an_item_of_255_bytes_passes_and_one_of_256_does_not() -> None:
    assert text.parse_list("a," + "b" * 255) == ("a", "b" * 255)
    with pytest.raises(ValueError, match="longer"):
        text.parse_list("a," + "b" * 256)


@pytest.mark.conformance("CHAP-R.1")
@pytest.mark.parametrize(
    ("value", "data"),
    [
        ("0x00ff", "00ff"),
        ("0X00ff", "00ff"),
        ("0xABCDEF", "abcdef"),
        ("0xaBcDeF", "abcdef"),
        ("0x1", "01"),
        ("0xfff", "0fff"),
        ("0x0", "00"),
        ("0x000", "0000"),
    ],
)
def test_hexadecimal_binary_values(value: str, data: str) -> None:
    assert text.parse_binary(value).hex() == data


@pytest.mark.conformance("CHAP-R.2")
@pytest.mark.parametrize("prefix", ["0b", "0B"])
@pytest.mark.parametrize("data", [b"\xff", b"\xff\xfe", b"\xff\xfe\xfd", b"\xfb\xf0" * 20])
def test_base64_binary_values_with_each_padding(prefix: str, data: bytes) -> None:
    assert text.parse_binary(prefix + b64encode(data).decode()) == data


NO_BINARIES = ["", "0x", "0x 00", "0x00 ", "0x0 0", "0x_0", "0x0_0", "0x0g", "0x\uff11", "00ff", "255", "x00"]
NO_BINARIES += [
    "0b",
    "0bAA",
    "0bAAA",
    "0bAA=",
    "0bAA===",
    "0bA===",
    "0b====",
    "0b=AAA",
    "0bAA==AAAA",
    "0bAAAA=",
]
NO_BINARIES += ["0bAA A", "0bAAA_", "0bAAA-", "0bAAAA\n", "0b\uff21AAA", "1xff", "0yff"]


@pytest.mark.conformance("CHAP-R.3")
@pytest.mark.parametrize("value", NO_BINARIES)
def test_what_is_not_a_binary_value(value: str) -> None:
    with pytest.raises(ValueError, match="not a hexadecimal or base64 value"):
        text.parse_binary(value)


@given(st.binary(min_size=1, max_size=1024))
def test_binary_values_survive_the_wire(data: bytes) -> None:
    assert text.parse_binary(text.format_binary(data)) == data
    assert text.parse_binary("0b" + b64encode(data).decode()) == data


@given(st.text(alphabet="0xXbBAaZz+/=_- \uff11"))
def test_any_value_is_binary_or_a_value_error(value: str) -> None:
    try:
        data = text.parse_binary(value)
    except ValueError:
        return
    assert data
