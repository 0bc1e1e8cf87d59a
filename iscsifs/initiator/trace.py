"""What -d shows of a connection: a line for each PDU, without the data and without secrets.

Nothing is called while messages of this level are not wanted: `tracer` gives None then.
"""

import logging
from typing import Final

from iscsifs.iscsi.bhs import opcode_of
from iscsifs.iscsi.framing import Observer
from iscsifs.iscsi.pdu import (
    RESERVED_TAG,
    CommandFlag,
    DataIn,
    DataInFlag,
    DataOut,
    LoginFlag,
    LoginRequest,
    LoginResponse,
    Pdu,
    RejectReason,
    ResponseFlag,
    ScsiCommand,
    ScsiResponse,
    Stage,
    TaskFunction,
    TextFlag,
    TextRequest,
    TextResponse,
)
from iscsifs.scsi.cdb import describe
from iscsifs.scsi.luns import lun_label
from iscsifs.scsi.status import Status

log = logging.getLogger(__name__)

_NAMES: Final = {
    "initiator_task_tag": "ITT",
    "target_transfer_tag": "TTT",
    "referenced_task_tag": "RTT",
    "snack_tag": "SNACK",
    "cmd_sn": "CmdSN",
    "ref_cmd_sn": "RefCmdSN",
    "exp_cmd_sn": "ExpCmdSN",
    "max_cmd_sn": "MaxCmdSN",
    "stat_sn": "StatSN",
    "exp_stat_sn": "ExpStatSN",
    "data_sn": "DataSN",
    "exp_data_sn": "ExpDataSN",
    "r2t_sn": "R2TSN",
    "buffer_offset": "offset",
    "expected_data_transfer_length": "transfer",
    "desired_data_transfer_length": "wanted",
    "residual_count": "residual",
    "bidirectional_residual_count": "read-residual",
}
_TAGS: Final = frozenset(("initiator_task_tag", "target_transfer_tag", "referenced_task_tag", "snack_tag"))
_IF_SET: Final = frozenset(
    (
        *("snack_tag", "residual_count", "bidirectional_residual_count", "exp_data_sn", "ref_cmd_sn"),
        *("async_vcode", "parameter1", "parameter2", "parameter3"),
        *("version_max", "version_min", "version_active"),
    )
)
"""Fields that are shown only where they are not 0."""

_FLAGS: Final[dict[type, tuple[tuple[int, str], ...]]] = {
    ScsiCommand: ((CommandFlag.FINAL, "F"), (CommandFlag.READ, "R"), (CommandFlag.WRITE, "W")),
    ScsiResponse: (
        (ResponseFlag.OVERFLOW, "O"),
        (ResponseFlag.UNDERFLOW, "U"),
        (ResponseFlag.BIDI_OVERFLOW, "o"),
        (ResponseFlag.BIDI_UNDERFLOW, "u"),
    ),
    DataIn: (
        (DataInFlag.FINAL, "F"),
        (DataInFlag.ACKNOWLEDGE, "A"),
        (DataInFlag.OVERFLOW, "O"),
        (DataInFlag.UNDERFLOW, "U"),
        (DataInFlag.STATUS, "S"),
    ),
    DataOut: ((DataInFlag.FINAL, "F"),),
    TextRequest: ((TextFlag.FINAL, "F"), (TextFlag.CONTINUE, "C")),
    TextResponse: ((TextFlag.FINAL, "F"), (TextFlag.CONTINUE, "C")),
    LoginRequest: ((LoginFlag.TRANSIT, "T"), (LoginFlag.CONTINUE, "C")),
    LoginResponse: ((LoginFlag.TRANSIT, "T"), (LoginFlag.CONTINUE, "C")),
}


def tracer(peer: str) -> Observer | None:
    """Return what logs each PDU that goes to *peer* or comes from there; None where nobody wants to know."""
    if not log.isEnabledFor(logging.DEBUG):
        return None

    def observe(sent: bool, pdu: Pdu, length: int) -> None:
        log.debug("%s %s %s", peer, "->" if sent else "<-", line(pdu, length))

    return observe


def line(pdu: Pdu, length: int) -> str:
    """Describe *pdu* with *length* bytes of data: fields in the order of the wire, numbers as in captures."""
    words = [opcode_of(pdu).name]
    for name, value in zip(pdu._fields, pdu, strict=True):
        if name in _IF_SET and not value:
            continue
        words.append(_field(pdu, name, value))
    words.append(f"data={length}")
    return " ".join(filter(None, words))


def _field(pdu: Pdu, name: str, value: object) -> str:
    match name, value:
        case "flags", int(flags):
            return _flags(pdu, flags)
        case "immediate", bool(immediate):
            return "I" if immediate else ""
        case "lun", int(lun):
            return f"LUN={lun_label(lun)}"
        case "cdb", bytes(cdb):
            return f"[{describe(cdb)}]"
        case "status", int(status) if isinstance(pdu, ScsiResponse) or _has_status(pdu):
            return _named(Status, status)
        case "status", _:
            return ""
        case "function", int(function):
            return _named(TaskFunction, function)
        case "reason", int(reason) if opcode_of(pdu).name == "REJECT":
            return _named(RejectReason, reason)
        case _, bytes(octets):
            return f"{_NAMES.get(name, name)}={octets.hex()}"
        case _, int(number) if name in _TAGS:
            return f"{_NAMES[name]}={'none' if number == RESERVED_TAG else f'{number:x}h'}"
        case _:
            return f"{_NAMES.get(name, name)}={value}"


def _has_status(pdu: Pdu) -> bool:
    return isinstance(pdu, DataIn) and bool(pdu.flags & DataInFlag.STATUS)


def _named(kind: type[Status] | type[TaskFunction] | type[RejectReason], value: int) -> str:
    try:
        return kind(value).name
    except ValueError:
        return f"{value:02x}h"


def _flags(pdu: Pdu, flags: int) -> str:
    letters = "".join(letter for bit, letter in _FLAGS.get(type(pdu), ()) if flags & bit)
    if isinstance(pdu, LoginRequest | LoginResponse):
        stages = [_stage(flags >> 2 & 3)] + ([_stage(flags & 3)] if flags & LoginFlag.TRANSIT else [])
        return f"{letters or '-'} {'->'.join(stages)}"
    return letters or "-"


def _stage(number: int) -> str:
    return Stage(number).name if number in (0, 1, 3) else str(number)
