"""The text of logins and Text Requests: key=value pairs and the forms of values (RFC 7143 section 6.1).

The `parse_...` functions raise ValueError with a short reason, to which `keys` and `chap` add the key;
`decode_pairs` and `TextCollector` raise ProtocolError. All are strict: Python's own int(), bytes.fromhex()
and b64decode() take underscores, blanks and digits of other scripts.
"""

import base64
import re
from collections.abc import Iterable
from typing import Final

from iscsifs.errors import ProtocolError, printable
from iscsifs.limits import MAX_PAIRS, MAX_TEXT_LENGTH, MAX_TEXT_PIECES

Pair = tuple[str, str]
"""A key and its value."""

MAX_KEY_LENGTH: Final = 63
"""Characters of a key-name (section 6.1)."""

MAX_VALUE_LENGTH: Final = 255
"""Bytes of a simple-value, or of one item of a list-of-values (section 6.1)."""

# Section 6.1 asks for a capital letter in front, and knows no "#"; iSCSIProtocolLevel and X#NodeArchitecture
# keep to neither (sections 13.24 and 13.26).
_KEY: Final = re.compile(rf"[A-Za-z][A-Za-z0-9.\-+@_#]{{0,{MAX_KEY_LENGTH - 1}}}")
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,19}")
_HEXADECIMAL: Final = re.compile(r"0[xX]0*([0-9a-fA-F]{1,16})")
_HEX_BINARY: Final = re.compile(r"0[xX]([0-9a-fA-F]+)")
_BASE64_BINARY: Final = re.compile(r"0[bB]((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)")


def encode_pairs(pairs: Iterable[Pair]) -> bytes:
    """Return *pairs* as the text of a data segment."""
    return b"".join(f"{key}={value}\0".encode() for key, value in pairs)


def decode_pairs(text: bytes | bytearray, *, pdu: str, errors: str = "strict") -> list[Pair]:
    """Split the complete *text* of a data segment into its pairs, in order.

    *errors* says what becomes of bytes that are not UTF-8, as for `bytes.decode`.

    Raises ProtocolError, naming *pdu*, where the text breaks section 6.1 or has more than MAX_PAIRS.
    """
    if text and not text.endswith(b"\0"):
        raise ProtocolError("the text does not end with a null byte", section="6.1", pdu=pdu)
    pairs: list[Pair] = []
    keys: dict[str, str] = {}  # each that has come, so that it is checked once and kept once
    start = 0
    while start < len(text):  # one by one: of a long text there are neither copies nor lists of its parts
        end = text.index(0, start)
        try:
            item = text[start:end].decode(errors=errors)
        except UnicodeDecodeError:
            raise ProtocolError("the text is not UTF-8", section="6.1", pdu=pdu) from None
        key, equals, value = item.partition("=")
        if not equals:
            raise ProtocolError(f'no "=" in "{printable(item, 64)}"', section="6.1", pdu=pdu)
        if key not in keys:
            if not _KEY.fullmatch(key):
                raise ProtocolError(f'"{printable(key, 64)}" is not a key', section="6.1", pdu=pdu)
            keys[key] = key
        if len(pairs) == MAX_PAIRS:
            raise ProtocolError(f"more than {MAX_PAIRS} keys in one text", section="6.1", pdu=pdu)
        pairs.append((keys[key], value))
        start = end + 1
    return pairs


def cut_text(text: bytes, size: int) -> list[bytes]:
    """Cut *text* into data segments of at most *size* bytes; at least one, which may be empty.

    All but the last are sent with C=1 (section 6.2).
    """
    return [text[start : start + size] for start in range(0, len(text), size)] or [b""]


class TextCollector:
    """Joins the text that a peer sends in several PDUs, and keeps it within bounds.

    One collector serves one negotiation, in which several texts may follow each other; the bounds hold for
    all of them together. *pdu* is the name of the PDUs, for errors; *errors* is that of `decode_pairs`.
    """

    def __init__(
        self,
        pdu: str,
        *,
        max_length: int = MAX_TEXT_LENGTH,
        max_pieces: int = MAX_TEXT_PIECES,
        errors: str = "strict",
    ) -> None:
        self._pdu = pdu
        self._errors = errors
        self._room = max_length
        self._pieces = max_pieces
        self._text = bytearray()

    def add(self, piece: bytes | bytearray | memoryview, *, more: bool) -> list[Pair] | None:
        """Take the data segment of one PDU; return None while *more* is to follow, then all the pairs.

        Raises ProtocolError for text that is not well-formed or goes beyond the bounds.
        """
        self._room -= len(piece)
        self._pieces -= 1
        if self._room < 0:
            raise ProtocolError("more text than is accepted in one negotiation", section="6.1", pdu=self._pdu)
        if self._pieces < 0:
            raise ProtocolError("the negotiation does not come to an end", section="6.2", pdu=self._pdu)
        self._text += piece
        if more:
            return None
        text, self._text = self._text, bytearray()
        return decode_pairs(text, pdu=self._pdu, errors=self._errors)


def parse_number(value: str) -> int:
    """Read a numerical-value: decimal without leading zeros, or hexadecimal after 0x; below 2**64."""
    if hexadecimal := _HEXADECIMAL.fullmatch(value):
        return int(hexadecimal[1], 16)
    if not _DECIMAL.fullmatch(value):
        raise ValueError(f'"{printable(value, 32)}" is not a number')
    number = int(value)
    if number >= 2**64:
        raise ValueError(f"{number} is not below 2**64")
    return number


def parse_boolean(value: str) -> bool:
    """Read a boolean-value: exactly "Yes" or "No"."""
    if value not in ("Yes", "No"):
        raise ValueError(f'"{printable(value, 32)}" is neither Yes nor No')
    return value == "Yes"


def format_boolean(value: bool) -> str:
    """Write a boolean-value."""
    return "Yes" if value else "No"


def parse_list(value: str) -> tuple[str, ...]:
    """Read a list-of-values: at least one item, none empty, each at most MAX_VALUE_LENGTH bytes."""
    items = tuple(value.split(","))
    for item in items:
        if not item:
            raise ValueError(f'"{printable(value, 64)}" has an empty item')
        check_length(item)
    return items


def check_length(value: str) -> None:
    """Raise ValueError where *value* is longer than a simple-value may be."""
    if len(value.encode()) > MAX_VALUE_LENGTH:
        raise ValueError(f"the value is longer than {MAX_VALUE_LENGTH} bytes")


def parse_binary(value: str) -> bytes:
    """Read a binary-value whose length is that of its text: hexadecimal after 0x, or base64 after 0b.

    An odd number of hexadecimal digits has a zero nibble in front. An empty one is an error.
    """
    if hexadecimal := _HEX_BINARY.fullmatch(value):
        digits = hexadecimal[1]
        return bytes.fromhex(digits if len(digits) % 2 == 0 else "0" + digits)
    encoded = _BASE64_BINARY.fullmatch(value)
    if encoded is None or not encoded[1]:
        raise ValueError(f'"{printable(value, 32)}" is not a hexadecimal or base64 value')
    return base64.b64decode(encoded[1])


def format_binary(data: bytes) -> str:
    """Write a binary-value in hexadecimal, which every peer reads."""
    return "0x" + data.hex()
