"""Commands that a target has to understand and that our initiator never sends."""

import struct
from collections.abc import Sequence
from typing import Final

from iscsifs.scsi.cdb import OperationCode

_DBD = 0x08  # MODE SENSE: disable block descriptors
_MODE_SENSE_10 = struct.Struct(">BBBB3xHB")
_UNMAP_CDB = struct.Struct(">BB5xHB")
_UNMAP_HEADER = struct.Struct(">HH4x")
_UNMAP_DESCRIPTOR = struct.Struct(">QI4x")

MAX_UNMAP_RANGES: Final = (0xFFFF - _UNMAP_HEADER.size) // _UNMAP_DESCRIPTOR.size
"""How many ranges one UNMAP command can carry at most (its parameter list length has 16 bits)."""


def request_sense(allocation_length: int = 252) -> bytes:
    """REQUEST SENSE (SPC-3 section 6.27), in fixed format."""
    return bytes((OperationCode.REQUEST_SENSE, 0, 0, 0, allocation_length, 0))


def mode_sense_10(page: int, subpage: int = 0, *, allocation_length: int = 1024, dbd: bool = True) -> bytes:
    """MODE SENSE(10) (SPC-3 section 6.10); the arguments are those of `cdb.mode_sense_6`."""
    flags = _DBD if dbd else 0
    return _MODE_SENSE_10.pack(OperationCode.MODE_SENSE_10, flags, page & 0x3F, subpage, allocation_length, 0)


def unmap(parameter_list_length: int) -> bytes:
    """UNMAP (SBC-3 section 5.28), whose parameter list `unmap_parameters` makes."""
    return _UNMAP_CDB.pack(OperationCode.UNMAP, 0, parameter_list_length, 0)


def unmap_parameters(ranges: Sequence[tuple[int, int]]) -> bytes:
    """The parameter list of UNMAP for *ranges* of (LBA, blocks), `MAX_UNMAP_RANGES` at most."""
    descriptors = b"".join(_UNMAP_DESCRIPTOR.pack(lba, blocks) for lba, blocks in ranges)
    return _UNMAP_HEADER.pack(len(descriptors) + 6, len(descriptors)) + descriptors
