"""iSNSP messages on a byte stream: headers, segmentation, authentication blocks (RFC 4171 section 5)."""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from iscsifs.errors import IsnsProtocolError
from iscsifs.limits import (
    ISNS_MESSAGE_TIMEOUT,
    MAX_ISNS_AUTHENTICATION_LENGTH,
    MAX_ISNS_MESSAGE_LENGTH,
    MAX_ISNS_PDUS,
)

VERSION: Final = 1
"""The only iSNSP version (section 5.1.1)."""

MAX_REQUEST_LENGTH: Final = 8192
"""Bytes of one of our requests, header included. open-isns resets the connection above that, and does not
answer a request of several PDUs."""

RESPONSE: Final = 0x8000
"""This bit of the function makes a message a response (section 5.1.2)."""

_HEADER: Final = struct.Struct(">HHHHHH")
_STATUS: Final = struct.Struct(">I")
_BLOCK: Final = struct.Struct(">II")
_MIN_BLOCK_LENGTH: Final = 20


class MessageTooLong(IsnsProtocolError):
    """A message is longer than MAX_ISNS_MESSAGE_LENGTH."""


class Function(IntEnum):
    """The functions of iSCSI clients (section 4.1.3)."""

    DEV_ATTR_REG = 0x0001
    DEV_ATTR_QRY = 0x0002
    DEV_GET_NEXT = 0x0003
    DEV_DEREG = 0x0004
    SCN_REG = 0x0005
    SCN_DEREG = 0x0006
    SCN_EVENT = 0x0007
    SCN = 0x0008
    ESI = 0x000D


class Flag(IntFlag):
    """Flags of the header (section 5.1.4)."""

    CLIENT = 0x8000
    SERVER = 0x4000
    AUTHENTICATED = 0x2000
    REPLACE = 0x1000
    LAST = 0x0800
    FIRST = 0x0400


class Status(IntEnum):
    """Status codes of responses (section 5.4)."""

    SUCCESSFUL = 0
    UNKNOWN_ERROR = 1
    MESSAGE_FORMAT_ERROR = 2
    INVALID_REGISTRATION = 3
    INVALID_QUERY = 5
    SOURCE_UNKNOWN = 6
    SOURCE_ABSENT = 7
    SOURCE_UNAUTHORIZED = 8
    NO_SUCH_ENTRY = 9
    VERSION_NOT_SUPPORTED = 10
    INTERNAL_ERROR = 11
    BUSY = 12
    OPTION_NOT_UNDERSTOOD = 13
    INVALID_UPDATE = 14
    MESSAGE_NOT_SUPPORTED = 15
    SCN_EVENT_REJECTED = 16
    SCN_REGISTRATION_REJECTED = 17
    ATTRIBUTE_NOT_IMPLEMENTED = 18
    FC_DOMAIN_ID_NOT_AVAILABLE = 19
    FC_DOMAIN_ID_NOT_ALLOCATED = 20
    ESI_NOT_AVAILABLE = 21
    INVALID_DEREGISTRATION = 22
    REGISTRATION_FEATURE_NOT_SUPPORTED = 23


def status_text(status: int) -> str:
    """Return *status* with its number, in the words of section 5.4."""
    words = (
        Status(status).name.lower().replace("_", " ") if status in set(Status) else "a reserved status code"
    )
    return f"status {status} ({words})"


@dataclass(frozen=True, slots=True)
class Message:
    """One message. A response has a *status*, and its *payload* is what follows that."""

    function: int
    transaction_id: int
    payload: bytes = b""
    status: int | None = None
    replace: bool = False

    @property
    def is_response(self) -> bool:
        """Whether it answers a request."""
        return bool(self.function & RESPONSE)

    def answer(self, status: int, payload: bytes = b"") -> "Message":
        """Return the response to this request."""
        return Message(self.function | RESPONSE, self.transaction_id, payload, status)

    def pack(self) -> bytes:
        """Return the message as one PDU of an iSNS client; raises ValueError where it is too long for one."""
        payload = self.payload if self.status is None else _STATUS.pack(self.status) + self.payload
        if _HEADER.size + len(payload) > MAX_REQUEST_LENGTH and not self.is_response:
            raise ValueError(f"a request of {len(payload)} bytes")
        flags = Flag.CLIENT | Flag.LAST | Flag.FIRST | (Flag.REPLACE if self.replace else 0)
        return _HEADER.pack(VERSION, self.function, len(payload), flags, self.transaction_id, 0) + payload


@dataclass(slots=True)
class _Pdu:
    """A header, as far as it is of use; the sender bits decide nothing: open-isns sets the client's."""

    function: int
    length: int
    flags: int
    transaction_id: int
    sequence_id: int


class Receiver:
    """Joins the PDUs of a stream to messages.

    Any error is final, because the next header is not where it should be: the connection has to be closed.
    PDUs of two messages are never mixed on one connection.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._first: _Pdu | None = None
        self._payload = bytearray()
        self._pdus = 0
        self.begun: float | None = None
        """Since when a message is incomplete, None while none is."""

    @property
    def deadline(self) -> float | None:
        """Until when the message that has begun must be complete."""
        return None if self.begun is None else self.begun + ISNS_MESSAGE_TIMEOUT

    def receive(self, data: bytes, now: float) -> list[Message]:
        """Take *data* from the stream and return the messages that are complete; raises IsnsProtocolError."""
        self._buffer += data
        messages = []
        position = 0
        while (length := self._length_of_pdu(position)) is not None:
            message = self._join(position)
            position += length
            if message is not None:
                messages.append(message)
        del self._buffer[:position]
        if not self._buffer and self._first is None:
            self.begun = None
        elif self.begun is None or messages:
            self.begun = now
        return messages

    def _length_of_pdu(self, position: int) -> int | None:
        """Return the length of the PDU at *position* with its authentication block, None while it is cut."""
        if len(self._buffer) - position < _HEADER.size:
            return None
        pdu = self._header(position)
        length = _HEADER.size + pdu.length
        if pdu.flags & Flag.AUTHENTICATED:
            if len(self._buffer) - position < length + _BLOCK.size:
                return None
            _, block = _BLOCK.unpack_from(self._buffer, position + length)
            if not _MIN_BLOCK_LENGTH <= block <= MAX_ISNS_AUTHENTICATION_LENGTH:
                raise IsnsProtocolError(f"an authentication block of {block} bytes", section="5.5")
            length += block
        return length if len(self._buffer) - position >= length else None

    def _header(self, position: int) -> _Pdu:
        """Return the header at *position*, checked against the PDUs before it."""
        version, *fields = _HEADER.unpack_from(self._buffer, position)
        pdu = _Pdu(*fields)
        if version != VERSION:
            raise IsnsProtocolError(f"version {version}", section="5.1.1")
        if pdu.length % 4:
            raise IsnsProtocolError(
                f"a PDU length of {pdu.length}, which is no multiple of 4", section="5.1.3"
            )
        first = self._first
        if first is None:
            if not pdu.flags & Flag.FIRST:
                raise IsnsProtocolError("a message that begins without the first PDU flag", section="5.2")
            if pdu.function & RESPONSE and pdu.length < _STATUS.size:
                raise IsnsProtocolError("a response without a status code", section="5.4")
        elif pdu.flags & Flag.FIRST:
            raise IsnsProtocolError("a first PDU before the last one of the message before", section="5.2")
        elif (pdu.function, pdu.transaction_id) != (first.function, first.transaction_id):
            raise IsnsProtocolError("PDUs of two messages are mixed", section="5.2")
        if pdu.sequence_id != self._pdus:
            rule = f"sequence id {pdu.sequence_id} where {self._pdus} is expected"
            raise IsnsProtocolError(rule, section="5.1.6")
        if self._pdus == MAX_ISNS_PDUS:
            raise IsnsProtocolError(f"a message of more than {MAX_ISNS_PDUS} PDUs", section="5.2")
        if len(self._payload) + pdu.length > MAX_ISNS_MESSAGE_LENGTH:
            rule = f"a message of more than {MAX_ISNS_MESSAGE_LENGTH} bytes"
            raise MessageTooLong(rule, section="5.2")
        return pdu

    def _join(self, position: int) -> Message | None:
        """Take the whole PDU at *position*; return the message, where this PDU is its last."""
        pdu = self._header(position)
        start = position + _HEADER.size
        self._payload += self._buffer[start : start + pdu.length]
        self._pdus += 1
        if self._first is None:
            self._first = pdu
        if not pdu.flags & Flag.LAST:
            return None
        first, payload = self._first, bytes(self._payload)
        self._first, self._payload, self._pdus = None, bytearray(), 0
        replace = bool(first.flags & Flag.REPLACE)
        if not first.function & RESPONSE:
            return Message(first.function, first.transaction_id, payload, None, replace)
        (status,) = _STATUS.unpack_from(payload)
        return Message(first.function, first.transaction_id, payload[_STATUS.size :], status, replace)
