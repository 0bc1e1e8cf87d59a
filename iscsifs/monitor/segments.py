"""Cuts the bytes of one direction of a connection into segments, so that every PDU begins one.

A login names who may log in: what CHAP answers, and what it is asked, is replaced by as many "x".
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from iscsifs.monitor.frames import MAX_SEGMENT

_BHS_LENGTH: Final = 48
_DIGEST_LENGTH: Final = 4
_LOGIN_REQUEST, _LOGIN_RESPONSE = 0x03, 0x23
_OPCODE: Final = 0x3F
_CONTINUE: Final = 0x40
_TRANSIT_TO_FULL_FEATURE: Final = 0x83
_STATUS: Final = slice(36, 38)  # of a Login Response
_SECRET_KEYS: Final = frozenset((b"CHAP_R", b"CHAP_C"))
_DIGEST_KEYS: Final = frozenset((b"HeaderDigest", b"DataDigest"))
_LONGEST_KEY: Final = 63  # RFC 7143 section 6.1


class Segment(NamedTuple):
    """What goes into one packet: *data*, which may be cut, of *length* bytes."""

    data: bytes
    length: int


class LoginText:
    """Key=value pairs of a login, from one direction, in pieces of any length."""

    def __init__(self) -> None:
        self.digests: dict[bytes, bytes] = {}
        self._key = b""
        self._in_value = False

    def blank(self, text: bytes) -> bytes:
        """Return the next piece of *text* without what CHAP exchanges."""
        pairs = text.split(b"\0")
        last = len(pairs) - 1
        return b"\0".join(self._pair(piece, ends=place < last) for place, piece in enumerate(pairs))

    def end(self) -> None:
        """Note that no text follows which belongs to this one."""
        self._key, self._in_value = b"", False

    def _pair(self, piece: bytes, *, ends: bool) -> bytes:
        head = b""
        if not self._in_value:
            key, equals, piece = piece.partition(b"=")
            self._key = (self._key + key)[: _LONGEST_KEY + 1]
            head = key + equals
            self._in_value = bool(equals)
        if self._key in _SECRET_KEYS:
            piece = b"x" * len(piece)
        elif self._key in _DIGEST_KEYS:
            self.digests[self._key] = piece
        if ends:
            self.end()
        return head + piece


class Digests:
    """Which digests a connection has, once it is logged in; both directions share it."""

    def __init__(self, header: bool = False, data: bool = False, logged_in: bool = False) -> None:
        self.header = header
        self.data = data
        self.logged_in = logged_in


class Cutter:
    """One direction. *skip* bytes belong to a PDU that was under way before, and are left out.

    *limit* is how many bytes of a segment are kept. With *show_chap* a login is shown as it is.
    """

    def __init__(self, digests: Digests, limit: int, *, skip: int = 0, show_chap: bool = False) -> None:
        self._digests = digests
        self._limit = min(limit, MAX_SEGMENT)
        self._skip = skip
        self._show_chap = show_chap
        self._text = LoginText()
        self._header = bytearray()
        self._left = 0  # bytes of the PDU behind what was taken
        self._text_left = 0  # bytes of its data segment, where that is a login's
        self._kept = bytearray()
        self._length = 0
        self._has_begun = False  # a segment of this PDU was given already

    def feed(self, data: bytes | memoryview) -> Iterator[Segment]:
        """Take the next bytes; give the segments that are complete."""
        view = memoryview(data).cast("B")
        if self._skip:
            skipped = min(self._skip, len(view))
            self._skip -= skipped
            view = view[skipped:]
        while view:
            taken = self._take_header(view) if len(self._header) < _BHS_LENGTH else self._take_rest(view)
            view = view[taken:]
            if len(self._header) == _BHS_LENGTH and not self._left:
                yield self._cut()
                self._end_pdu()
            elif self._length == MAX_SEGMENT:
                yield self._cut()
                self._has_begun = True

    def flush(self) -> Iterator[Segment]:
        """Give what there is of a PDU that will not be completed."""
        if self._length:
            yield self._cut()

    def skip_rest(self) -> None:
        """Leave out the rest of a PDU of which a segment was given: a new file does not begin within one."""
        if self._has_begun:
            self._skip += self._left
            self._length = 0
            self._kept.clear()
            self._end_pdu()

    def _take_header(self, view: memoryview) -> int:
        piece = bytes(view[: _BHS_LENGTH - len(self._header)])
        self._header += piece
        self._keep(piece)
        if len(self._header) == _BHS_LENGTH:
            header = self._header
            length = int.from_bytes(header[5:8], "big")
            digests = self._digests
            self._left = header[4] * 4 + length + -length % 4
            if digests.logged_in:
                self._left += _DIGEST_LENGTH * (digests.header + (digests.data and length > 0))
            is_login = header[0] & _OPCODE in (_LOGIN_REQUEST, _LOGIN_RESPONSE)
            self._text_left = length if is_login and not header[4] else 0
        return len(piece)

    def _take_rest(self, view: memoryview) -> int:
        room = MAX_SEGMENT - self._length
        piece: bytes | memoryview = view[: min(self._left, room)]
        taken = len(piece)
        if self._text_left:
            text = bytes(piece[: self._text_left])
            blanked = self._text.blank(text)
            self._text_left -= len(text)
            if not self._show_chap:
                piece = blanked + bytes(piece[len(text) :])
        self._keep(piece)
        self._left -= taken
        return taken

    def _keep(self, piece: bytes | memoryview) -> None:
        self._kept += piece[: max(self._limit - self._length, 0)]
        self._length += len(piece)

    def _cut(self) -> Segment:
        segment = Segment(bytes(self._kept), self._length)
        self._kept.clear()
        self._length = 0
        return segment

    def _end_pdu(self) -> None:
        header = self._header
        opcode = header[0] & _OPCODE
        if opcode in (_LOGIN_REQUEST, _LOGIN_RESPONSE) and not header[1] & _CONTINUE:
            self._text.end()
        if opcode == _LOGIN_RESPONSE and not any(header[_STATUS]):
            settled = self._text.digests
            self._digests.header = settled.get(b"HeaderDigest") == b"CRC32C"
            self._digests.data = settled.get(b"DataDigest") == b"CRC32C"
            if header[1] & _TRANSIT_TO_FULL_FEATURE == _TRANSIT_TO_FULL_FEATURE:
                self._digests.logged_in = True
        self._header.clear()
        self._left = self._text_left = 0
        self._has_begun = False
