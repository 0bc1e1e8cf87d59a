"""Mode pages of a device server: MODE SENSE and MODE SELECT (SPC-3 sections 6.7 to 6.10)."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from iscsifs.scsi import cdb as commands
from iscsifs.scsi import mode
from iscsifs.scsi.cdb import OperationCode
from iscsifs.target.unit import (
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETERS,
    PARAMETER_LIST_LENGTH_ERROR,
    SAVING_NOT_SUPPORTED,
    CheckCondition,
    Operation,
    Result,
    data_in,
    ended,
)

_CHANGEABLE: Final = 1  # values of the page control field
_DEFAULT: Final = 2
_SAVED: Final = 3
_PAGE_FORMAT: Final = 0x10
_SAVE_PAGES: Final = 0x01
_SUBPAGE_FORMAT: Final = 0x40

# What stands before the block descriptors of MODE SELECT(6) and (10): medium type, and their length.
_HEADER_6: Final = struct.Struct(">xBxB")
_HEADER_10: Final = struct.Struct(">xxB3xH")


@dataclass(frozen=True, slots=True)
class Page:
    """The parameters of a mode page behind its header: now, at the start, and which bits can be changed."""

    current: bytes
    default: bytes
    changeable: bytes

    @classmethod
    def fixed(cls, parameters: bytes) -> "Page":
        """Return a page of which nothing can be changed."""
        return cls(parameters, parameters, bytes(len(parameters)))

    def accepts(self, parameters: bytes) -> bool:
        """Tell whether *parameters* differ from the current ones in what can be changed only."""
        return len(parameters) == len(self.current) and all(
            not (new ^ old) & ~mask
            for new, old, mask in zip(parameters, self.current, self.changeable, strict=True)
        )


def mode_sense(
    cdb: bytes, pages: Mapping[int, Page], *, write_protected: bool = False, dpo_fua: bool = False
) -> Operation:
    """Answer MODE SENSE(6) or (10) out of *pages*, by page code."""
    request = commands.parse_mode_sense(cdb)
    if request.page_control == _SAVED:
        raise CheckCondition(SAVING_NOT_SUPPORTED)
    wanted = pages if request.page == mode.ALL_PAGES else {request.page}
    found = {code: page for code, page in pages.items() if code in wanted}
    if not found or request.subpage not in (0, 0xFF):
        raise CheckCondition(INVALID_FIELD_IN_CDB)
    which = {_CHANGEABLE: "changeable", _DEFAULT: "default"}.get(request.page_control, "current")
    parameters = {(code, 0): getattr(page, which) for code, page in sorted(found.items())}
    answer = mode.ModeData(write_protected, dpo_fua, parameters)
    packed = answer.pack_6() if cdb[0] == OperationCode.MODE_SENSE_6 else answer.pack_10()
    return data_in(packed, request.allocation_length)


def mode_select(
    cdb: bytes, pages: Mapping[int, Page], change: Callable[[Mapping[int, bytes]], Result]
) -> Operation:
    """Check MODE SELECT(6) or (10) against *pages*; *change* carries it out with the new parameters."""
    if not cdb[1] & _PAGE_FORMAT or cdb[1] & _SAVE_PAGES:
        raise CheckCondition(INVALID_FIELD_IN_CDB)
    header = _HEADER_6 if cdb[0] == OperationCode.MODE_SELECT_6 else _HEADER_10
    length = commands.allocation_length(cdb)

    def select(data: memoryview) -> Result:
        if len(data) < length:
            raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
        parameters = _parse(bytes(data), header)
        for code, wanted in parameters.items():
            if code not in pages or not pages[code].accepts(wanted):
                raise CheckCondition(INVALID_FIELD_IN_PARAMETERS)
        return change(parameters)

    return Operation(select, length) if length else ended(Result())


def _parse(data: bytes, header: struct.Struct) -> dict[int, bytes]:
    """Return the pages of a parameter list, which is to have no block descriptors."""
    if len(data) < header.size:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    medium_type, descriptors = header.unpack_from(data)
    if medium_type or descriptors:
        raise CheckCondition(INVALID_FIELD_IN_PARAMETERS)
    pages: dict[int, bytes] = {}
    position = header.size
    while position < len(data):
        if len(data) < position + 2 or len(data) < position + 2 + data[position + 1]:
            raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
        if data[position] & _SUBPAGE_FORMAT:
            raise CheckCondition(INVALID_FIELD_IN_PARAMETERS)
        start = position + 2
        position = start + data[start - 1]
        pages[data[start - 2] & 0x3F] = data[start:position]
    return pages
