"""The blocks of a pcapng file (draft-ietf-opsawg-pcapng), little-endian, with one interface."""

import struct
from collections.abc import Sequence
from typing import Final

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_BYTE_ORDER: Final = 0x1A2B3C4D
_ETHERNET: Final = 1  # link type

_COMMENT, _APPLICATION, _NAME, _RESOLUTION, _FLAGS = 1, 4, 2, 9, 2  # options, each of its block
_NANOSECONDS: Final = 9  # decimal places of a time stamp

INBOUND: Final = 1
OUTBOUND: Final = 2


def section(application: str, comment: str) -> bytes:
    """Return the header of a section whose length is not known."""
    body = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)
    return _block(_SECTION, body, (_COMMENT, comment.encode()), (_APPLICATION, application.encode()))


def interface(name: str, snap_length: int) -> bytes:
    """Return the description of an interface; *snap_length* is 0 where packets are whole."""
    body = struct.pack("<HHI", _ETHERNET, 0, snap_length)
    return _block(_INTERFACE, body, (_NAME, name.encode()), (_RESOLUTION, bytes([_NANOSECONDS])))


def packet(data: bytes, length: int, nanoseconds: int, direction: int) -> bytes:
    """Return an enhanced packet block: *data* of a packet that has *length* bytes.

    *nanoseconds* count from 1970, *direction* is INBOUND or OUTBOUND.
    """
    head = struct.pack("<IIIII", 0, nanoseconds >> 32, nanoseconds & 0xFFFFFFFF, len(data), length)
    return _block(_PACKET, head + data + bytes(-len(data) % 4), (_FLAGS, struct.pack("<I", direction)))


def _block(kind: int, body: bytes, *options: tuple[int, bytes]) -> bytes:
    """Return a block with its length at both ends, and its options."""
    parts: Sequence[bytes] = [
        struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4) for code, value in options
    ]
    content = body + b"".join(parts) + bytes(4)  # the end of the options
    length = struct.pack("<I", len(content) + 12)
    return struct.pack("<I", kind) + length + content + length
