"""Attributes as tag, length and value (RFC 4171 sections 5.3 and 6.1)."""

import struct
from collections.abc import Iterable, Iterator
from enum import Enum, IntEnum, IntFlag
from ipaddress import IPv6Address
from typing import Final, NamedTuple

from iscsifs.errors import IsnsProtocolError

Value = int | str | IPv6Address | bytes | None
"""A value, None where the attribute has the length 0: it has no value (NULL), or is one that is asked for."""

_TLV: Final = struct.Struct(">II")


class Tag(IntEnum):
    """The tags that the client uses, by the names of section 6.1."""

    DELIMITER = 0
    ENTITY_ID = 1
    ENTITY_PROTOCOL = 2
    TIMESTAMP = 4
    REGISTRATION_PERIOD = 6
    PORTAL_ADDRESS = 16
    PORTAL_PORT = 17
    ESI_INTERVAL = 19
    ESI_PORT = 20
    SCN_PORT = 23
    ISCSI_NAME = 32
    ISCSI_NODE_TYPE = 33
    ISCSI_ALIAS = 34
    ISCSI_SCN_BITMAP = 35
    PG_ISCSI_NAME = 48
    PG_PORTAL_ADDRESS = 49
    PG_PORTAL_PORT = 50
    PG_TAG = 51
    DD_ID = 2065
    DD_MEMBER_ISCSI_NAME = 2068


class NodeType(IntFlag):
    """ISCSI_NODE_TYPE (section 6.4.2)."""

    CONTROL = 4
    INITIATOR = 2
    TARGET = 1


class Scn(IntFlag):
    """ISCSI_SCN_BITMAP (section 6.4.4)."""

    INITIATOR_AND_SELF = 0x80
    TARGET_AND_SELF = 0x40
    MANAGEMENT = 0x20
    REMOVED = 0x10
    ADDED = 0x08
    UPDATED = 0x04
    MEMBER_REMOVED = 0x02
    MEMBER_ADDED = 0x01


ENTITY_PROTOCOL_ISCSI: Final = 2
"""ENTITY_PROTOCOL (section 6.2.2)."""

UDP: Final = 1 << 16
"""This bit of a port says that it is one of UDP; those above it are reserved (section 6.3.2)."""


class Kind(Enum):
    """How a value is encoded."""

    NUMBER = "a number of 4 or 8 bytes, big-endian"
    TEXT = "UTF-8, ended by a NUL, padded with NULs to a multiple of 4"
    ADDRESS = "an IPv6 address"
    OPAQUE = "bytes of any length"


class Form(NamedTuple):
    """The encoding of a value and its *shortest* and *longest* length, the padding included."""

    kind: Kind
    shortest: int
    longest: int


_NUMBER: Final = Form(Kind.NUMBER, 4, 4)
_LONG: Final = Form(Kind.NUMBER, 8, 8)
_TEXT: Final = Form(Kind.TEXT, 4, 256)
_NAME: Final = Form(Kind.TEXT, 4, 224)
_ADDRESS: Final = Form(Kind.ADDRESS, 16, 16)
_OPAQUE: Final = Form(Kind.OPAQUE, 4, (1 << 32) - 4)

FORMS: Final = {
    **dict.fromkeys((2, 5, 6, 7, 8, 17, 19, 20, 22, 23, 24, 27, 33, 35, 36, 38, 50, 51, 52, 53), _NUMBER),
    **dict.fromkeys((2049, 2051, 2052, 2065, 2067, 2070, 2072, 2078, 2079), _NUMBER),
    **dict.fromkeys((4, 37), _LONG),
    **dict.fromkeys((1, 18, 34, 2050, 2066), _TEXT),
    **dict.fromkeys((32, 48, 2068), _NAME),
    **dict.fromkeys((3, 16, 49, 2071), _ADDRESS),
    **dict.fromkeys((11, 12, 28, 29, 31, 42), _OPAQUE),
}
"""The attributes of section 6.1 without those of Fibre Channel. Others are skipped by their length."""


class Attribute(NamedTuple):
    """An attribute; *tag* is a `Tag`, or one of `FORMS` that the client has no use for."""

    tag: int
    value: Value = None


def pack(attributes: Iterable[Attribute]) -> bytes:
    """Return *attributes* as they are sent; raises ValueError for a value that its tag cannot have.

    What was unpacked can be packed: a text that is no UTF-8 goes back as it came, and the longest has no NUL.
    """
    return b"".join(map(_pack_one, attributes))


def _pack_one(attribute: Attribute) -> bytes:
    if attribute.value is None:
        return _TLV.pack(attribute.tag, 0)
    form = FORMS[attribute.tag]
    value = _pack_value(form, attribute.value)
    if not form.shortest <= len(value) <= form.longest:
        raise ValueError(f"{len(value)} bytes for attribute {attribute.tag}")
    return _TLV.pack(attribute.tag, len(value)) + value


def _pack_value(form: Form, value: Value) -> bytes:
    if isinstance(value, int):
        return value.to_bytes(form.longest, "big")
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogateescape")
        if len(text) < form.longest:
            text += b"\0"
        return text + bytes(-len(text) % 4)
    if isinstance(value, IPv6Address):
        return value.packed
    assert value is not None
    return value


def unpack(payload: bytes) -> Iterator[Attribute]:
    """Return the attributes of *payload* that are known, in their order.

    Raises IsnsProtocolError for one whose length does not suit its tag, or which is not all there.
    """
    position, end, header = 0, len(payload), _TLV.unpack_from
    while position < end:
        if end - position < 8:
            raise IsnsProtocolError("an attribute that is cut off", section="5.3")
        tag, length = header(payload, position)
        position += 8
        if length > end - position or length % 4:
            rule = f"attribute {tag} of {length} bytes with {end - position} left in the message"
            raise IsnsProtocolError(rule, section="5.3")
        form = FORMS.get(tag)
        if length and tag == Tag.DELIMITER:
            raise IsnsProtocolError(f"a delimiter of {length} bytes", section="5.6.3")
        if not length and (form is not None or tag == Tag.DELIMITER):
            yield Attribute(tag)
        elif form is not None:
            if not form.shortest <= length <= form.longest:
                raise IsnsProtocolError(f"attribute {tag} of {length} bytes", section="6.1")
            yield Attribute(tag, _unpack_value(form, payload[position : position + length]))
        position += length


def _unpack_value(form: Form, value: bytes) -> Value:
    if form.kind is Kind.NUMBER:
        return int.from_bytes(value, "big")
    if form.kind is Kind.TEXT:
        return value.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    if form.kind is Kind.ADDRESS:
        return IPv6Address(value)
    return value
