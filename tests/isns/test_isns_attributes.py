"""Attributes as tag, length and value: RFC 4171 sections 5.3 and 6.1."""

import struct
from ipaddress import IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import IsnsProtocolError
from iscsifs.isns.attributes import FORMS, Attribute, Kind, Tag, Value, pack, unpack


def tlv(tag: int, value: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack(">II", tag, len(value) if length is None else length) + value


def one(tag: int, value: bytes) -> Value:
    (attribute,) = unpack(tlv(tag, value))
    assert attribute.tag == tag
    return attribute.value


@pytest.mark.conformance("ISNS-2.1")
def test_texts_are_ended_by_a_nul_and_padded_and_the_padding_counts() -> None:
    for text, wire in ("abc", b"abc\0"), ("abcd", b"abcd\0\0\0\0"), ("", bytes(4)), ("\xe4b", b"\xc3\xa4b\0"):
        assert pack([Attribute(34, text)]) == tlv(34, wire)
        assert one(34, wire) == text
    assert one(34, b"abc\0def\0") == "abc"  # the first NUL ends it
    assert one(34, b"abcd") == "abcd"  # one without NUL is taken
    assert one(34, b"a\xff\0\0") == "a\udcff"


@pytest.mark.conformance("ISNS-2.2")
def test_no_length_is_no_value_and_a_wrong_one_is_an_error() -> None:
    for tag in 2, 6, 17, 51, 16, 32, 4:
        assert list(unpack(tlv(tag))) == [Attribute(tag)]
    for tag, length in (17, 2), (17, 8), (16, 4), (16, 20), (4, 4), (51, 12), (32, 228), (1, 260):
        with pytest.raises(IsnsProtocolError, match=f"attribute {tag} of {length} bytes"):
            list(unpack(tlv(tag, bytes(length))))
    with pytest.raises(IsnsProtocolError, match="delimiter of 4 bytes"):
        list(unpack(tlv(0, bytes(4))))


@pytest.mark.conformance("ISNS-2.3")
def test_unknown_attributes_and_those_of_vendors_are_skipped_by_their_length() -> None:
    between = (
        tlv(9, bytes(8)) + tlv(64, bytes(8)) + tlv(1600, b"abcdefgh") + tlv(0xFFFFFFFF) + tlv(257, b"abcd")
    )
    payload = tlv(33, bytes(4)) + between + tlv(33, b"\0\0\0\1")
    assert list(unpack(payload)) == [Attribute(33, 0), Attribute(33, 1)]


@pytest.mark.conformance("ISNS-2.4")
@pytest.mark.parametrize(
    ("tag", "value", "length"),
    [
        *((tag, 0x01020304, 4) for tag in (2, 6, 17, 19, 20, 23, 33, 35, 50, 51, 2065)),
        *((tag, "iqn.2001-04.com.example:x", 28) for tag in (1, 32, 34, 48, 2068)),
        *((tag, "n" * 223, 224) for tag in (32, 48, 2068)),
        *((tag, "e" * 255, 256) for tag in (1, 34)),
        *((tag, IPv6Address("::ffff:192.0.2.1"), 16) for tag in (16, 49)),
        (4, 1 << 40, 8),
    ],
)
def test_every_attribute_in_use_has_the_length_of_the_table(tag: int, value: Value, length: int) -> None:
    payload = pack([Attribute(tag, value)])
    assert struct.unpack(">II", payload[:8]) == (tag, length)
    assert len(payload) == 8 + length
    assert list(unpack(payload)) == [Attribute(tag, value)]


def test_a_text_that_is_too_long_is_no_attribute() -> None:
    assert pack([Attribute(32, "n" * 224)]) == tlv(32, b"n" * 224)  # as one that was received without NUL
    with pytest.raises(ValueError, match="228 bytes for attribute 32"):
        pack([Attribute(32, "n" * 225)])


@pytest.mark.conformance("ISNS-8.1")
@pytest.mark.parametrize("length", [8, 0xFFFFFFF0, 0xFFFFFFFF, 5])
def test_a_length_beyond_the_message_is_an_error(length: int) -> None:
    with pytest.raises(IsnsProtocolError, match=f"of {length} bytes with 4 left"):
        list(unpack(tlv(32, b"abcd", length)))
    with pytest.raises(IsnsProtocolError, match="cut off"):
        list(unpack(tlv(32) + b"\0\0\0\x20\0\0\0"))


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=55)
VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.TEXT: texts,
    Kind.ADDRESS: st.ip_addresses(v=6),
    Kind.OPAQUE: st.binary(min_size=4, max_size=64).map(lambda data: data[: len(data) // 4 * 4]),
}


@st.composite
def any_attribute(draw: st.DrawFn) -> Attribute:
    tag = draw(st.sampled_from(sorted(FORMS)))
    form = FORMS[tag]
    numbers = st.integers(0, (1 << 8 * min(form.longest, 8)) - 1)
    value: Value = draw(st.none() | VALUES.get(form.kind, numbers))
    return Attribute(tag, value)


@given(st.lists(any_attribute()))
def test_what_is_packed_is_unpacked(given_attributes: list[Attribute]) -> None:
    payload = pack(given_attributes)
    assert len(payload) % 4 == 0
    assert list(unpack(payload)) == given_attributes


@given(st.binary(max_size=300))
def test_any_bytes_are_attributes_or_a_protocol_error(data: bytes) -> None:
    try:
        found = list(unpack(data))
    except IsnsProtocolError:
        return
    assert all(attribute.tag in FORMS or attribute.tag == Tag.DELIMITER for attribute in found)
    assert 8 * len(found) <= len(data)
    assert list(unpack(pack(found))) == found
