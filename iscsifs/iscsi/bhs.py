"""The basic header segment (BHS, RFC 7143 section 11.2): the 48 bytes of each PDU, packed and unpacked.

header = pack(NopOut(cmd_sn=7, exp_stat_sn=3, immediate=True), len(ping_data))
pdu = unpack(header)
"""

from struct import Struct
from typing import Any, Final, NamedTuple

from iscsifs.errors import ProtocolError
from iscsifs.iscsi.pdu import (
    FINAL,
    R2T,
    AsyncMessage,
    DataIn,
    DataOut,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    NopOut,
    Opcode,
    Pdu,
    Reject,
    ScsiCommand,
    ScsiResponse,
    SnackRequest,
    TaskManagementRequest,
    TaskManagementResponse,
    TextRequest,
    TextResponse,
)

BHS_LENGTH: Final = 48
"""Bytes of a basic header segment (section 11.2)."""

IMMEDIATE: Final = 0x40
"""The I bit of byte 0 (section 11.2.1.1)."""


class _Layout(NamedTuple):
    """How the fields of a PDU lie in its header."""

    opcode: Opcode
    pdu: type[Pdu]
    struct: Struct  # of all 48 bytes
    fixed: int  # the bits of byte 1 that are always set and belong to no field
    in_byte1: bool  # the first field is (the rest of) byte 1
    immediate: bool  # the last field is the I bit
    before: slice  # the fields between byte 1 and the lengths: in bytes 2 and 3
    behind: slice  # those behind the lengths
    first: int  # of what the struct gives: where the fields begin
    lengths: int  # and where the lengths are


def _layout(opcode: Opcode, pdu: type[Pdu], byte1: str, byte23: str, rest: str) -> _Layout:
    """Lay out *pdu*: bytes 8 to 47 are *rest*; byte 1 is a "field", the "fixed" F bit, or "both" in one."""
    struct = Struct(">BB" + byte23 + "I" + rest)
    assert struct.size == BHS_LENGTH
    in_byte1 = byte1 != "fixed"
    immediate = "immediate" in pdu._fields
    lengths = 2 + byte23.count("B")
    before = slice(int(in_byte1), lengths - 2 + in_byte1)
    behind = slice(before.stop, -1 if immediate else None)
    fixed = FINAL if byte1 != "field" else 0
    return _Layout(opcode, pdu, struct, fixed, in_byte1, immediate, before, behind, 2 - in_byte1, lengths)


_LAYOUTS: Final = (
    _layout(Opcode.NOP_OUT, NopOut, "fixed", "2x", "QIIII16x"),
    _layout(Opcode.SCSI_COMMAND, ScsiCommand, "field", "2x", "QIIII16s"),
    _layout(Opcode.TASK_MANAGEMENT_REQUEST, TaskManagementRequest, "both", "2x", "QIIIIII8x"),
    _layout(Opcode.LOGIN_REQUEST, LoginRequest, "field", "BB", "6sHIH2xII16x"),
    _layout(Opcode.TEXT_REQUEST, TextRequest, "field", "2x", "QIIII16x"),
    _layout(Opcode.DATA_OUT, DataOut, "field", "2x", "QII4xI4xII4x"),
    _layout(Opcode.LOGOUT_REQUEST, LogoutRequest, "both", "2x", "8xIH2xII16x"),
    _layout(Opcode.SNACK_REQUEST, SnackRequest, "both", "2x", "QII4xI8xII"),
    _layout(Opcode.NOP_IN, NopIn, "fixed", "2x", "QIIIII12x"),
    _layout(Opcode.SCSI_RESPONSE, ScsiResponse, "field", "BB", "8xIIIIIIII"),
    _layout(Opcode.TASK_MANAGEMENT_RESPONSE, TaskManagementResponse, "fixed", "Bx", "8xI4xIII12x"),
    _layout(Opcode.LOGIN_RESPONSE, LoginResponse, "field", "BB", "6sHI4xIIIBB10x"),
    _layout(Opcode.TEXT_RESPONSE, TextResponse, "field", "2x", "QIIIII12x"),
    _layout(Opcode.DATA_IN, DataIn, "field", "xB", "QIIIIIIII"),
    _layout(Opcode.LOGOUT_RESPONSE, LogoutResponse, "fixed", "Bx", "8xI4xIII4xHH4x"),
    _layout(Opcode.R2T, R2T, "fixed", "2x", "QIIIIIIII"),
    _layout(Opcode.ASYNC_MESSAGE, AsyncMessage, "fixed", "2x", "QI4xIIIBBHHH4x"),
    _layout(Opcode.REJECT, Reject, "fixed", "Bx", "8xI4xIIII8x"),
)
_BY_OPCODE: Final = {layout.opcode.value: layout for layout in _LAYOUTS}
_BY_CLASS: Final[dict[type[Any], _Layout]] = {layout.pdu: layout for layout in _LAYOUTS}


def pack(pdu: Pdu, data_length: int = 0, ahs_length: int = 0) -> bytes:
    """Return the 48-byte header of *pdu*, to stand before its AHS and its data segment.

    *ahs_length* is in bytes, whole 4-byte words; *data_length* leaves the padding out (section 11.2.1.6).
    """
    opcode, _, struct, fixed, in_byte1, immediate, before, behind, _, _ = _BY_CLASS[type(pdu)]
    fields: tuple[Any, ...] = pdu
    return struct.pack(
        opcode | IMMEDIATE if immediate and fields[-1] else opcode,
        fields[0] | fixed if in_byte1 else fixed,
        *fields[before],
        ahs_length << 22 | data_length,
        *fields[behind],
    )


def unpack(buffer: bytes | bytearray | memoryview, start: int = 0) -> Pdu:
    """Read the 48-byte header that begins at *start* into the PDU of its opcode.

    Reserved bits are ignored (section 11). Raises ProtocolError for an opcode that is not in the standard.
    """
    try:
        layout = _BY_OPCODE[buffer[start] & 0x3F]
    except KeyError:
        rule = f"opcode {buffer[start] & 0x3F:02x}h is not defined"
        raise ProtocolError(rule, section="11.2.1.2") from None
    _, cls, struct, fixed, in_byte1, immediate, _, _, first, lengths = layout
    values = struct.unpack_from(buffer, start)
    fields = values[first:lengths] + values[lengths + 1 :]
    if fixed and in_byte1:
        fields = (values[1] & ~fixed, *fields[1:])
    if immediate:
        fields += (bool(values[0] & IMMEDIATE),)
    return cls._make(fields)


def opcode_of(pdu: Pdu) -> Opcode:
    """Return the opcode of *pdu* (section 11.2.1.2)."""
    return _BY_CLASS[type(pdu)].opcode
