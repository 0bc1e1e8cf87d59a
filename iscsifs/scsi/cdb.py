"""Command descriptor blocks: built for the initiator, taken apart for the target and for logs.

LBAs and numbers of blocks are in logical blocks, allocation and parameter list lengths in bytes. A value that
does not fit its field raises `struct.error`: the caller knows the limits. The parsers take what a transport
delivers, a CDB at least as long as its operation code demands (iSCSI's field has 16 bytes).
"""

import re
import struct
from enum import IntEnum
from typing import Final, NamedTuple


class OperationCode(IntEnum):
    """The first byte of a CDB (SPC-3 section 4.3.4)."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    READ_6 = 0x08
    WRITE_6 = 0x0A
    INQUIRY = 0x12
    MODE_SELECT_6 = 0x15
    RESERVE_6 = 0x16
    RELEASE_6 = 0x17
    MODE_SENSE_6 = 0x1A
    START_STOP_UNIT = 0x1B
    PREVENT_ALLOW_MEDIUM_REMOVAL = 0x1E
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    WRITE_AND_VERIFY_10 = 0x2E
    VERIFY_10 = 0x2F
    PRE_FETCH_10 = 0x34
    SYNCHRONIZE_CACHE_10 = 0x35
    READ_DEFECT_DATA_10 = 0x37
    WRITE_SAME_10 = 0x41
    UNMAP = 0x42
    LOG_SENSE = 0x4D
    MODE_SELECT_10 = 0x55
    MODE_SENSE_10 = 0x5A
    PERSISTENT_RESERVE_IN = 0x5E
    PERSISTENT_RESERVE_OUT = 0x5F
    READ_16 = 0x88
    COMPARE_AND_WRITE = 0x89
    WRITE_16 = 0x8A
    ORWRITE_16 = 0x8B
    WRITE_AND_VERIFY_16 = 0x8E
    VERIFY_16 = 0x8F
    PRE_FETCH_16 = 0x90
    SYNCHRONIZE_CACHE_16 = 0x91
    WRITE_SAME_16 = 0x93
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0
    MAINTENANCE_IN = 0xA3
    READ_12 = 0xA8
    WRITE_12 = 0xAA
    WRITE_AND_VERIFY_12 = 0xAE
    VERIFY_12 = 0xAF
    READ_DEFECT_DATA_12 = 0xB7


READ_CAPACITY_16 = 0x10
"""The service action of SERVICE ACTION IN(16) that is READ CAPACITY(16) (SBC-3 section 5.16)."""

GET_LBA_STATUS = 0x12
"""The service action of SERVICE ACTION IN(16) that is GET LBA STATUS (SBC-3 section 5.4)."""

REPORT_SUPPORTED_OPERATION_CODES = 0x0C
"""The service action of MAINTENANCE IN of this name (SPC-4 section 6.35)."""

REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS = 0x0D
"""The service action of MAINTENANCE IN of this name (SPC-4 section 6.36)."""

_NAMES = {code: re.sub(r"_(\d+)$", r"(\1)", code.name).replace("_", " ") for code in OperationCode}

# The group of an operation code, its first three bits, gives the length of the CDB (SPC-3 section 4.3.4.1).
_CDB_LENGTH = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}

# Commands that address a range of blocks, at the place that the group of the operation code gives.
_BLOCK_COMMANDS = frozenset(
    code
    for code in OperationCode
    if re.match(
        r"(READ|WRITE|WRITE_AND_VERIFY|VERIFY|ORWRITE|PRE_FETCH|SYNCHRONIZE_CACHE|WRITE_SAME)_\d", code.name
    )
)

# Where a command has its allocation length or parameter list length.
_LENGTH_AT: dict[int, slice] = {
    OperationCode.REQUEST_SENSE: slice(4, 5),
    OperationCode.INQUIRY: slice(3, 5),
    OperationCode.MODE_SELECT_6: slice(4, 5),
    OperationCode.MODE_SENSE_6: slice(4, 5),
    OperationCode.READ_DEFECT_DATA_10: slice(7, 9),
    OperationCode.READ_DEFECT_DATA_12: slice(6, 10),
    OperationCode.UNMAP: slice(7, 9),
    OperationCode.LOG_SENSE: slice(7, 9),
    OperationCode.MODE_SELECT_10: slice(7, 9),
    OperationCode.MODE_SENSE_10: slice(7, 9),
    OperationCode.PERSISTENT_RESERVE_IN: slice(7, 9),
    OperationCode.PERSISTENT_RESERVE_OUT: slice(5, 9),
    OperationCode.SERVICE_ACTION_IN_16: slice(10, 14),
    OperationCode.REPORT_LUNS: slice(6, 10),
    OperationCode.MAINTENANCE_IN: slice(6, 10),
}

# Bits of byte 1. The same bit has other names in other commands.
_EVPD = 0x01  # INQUIRY
_NDOB = 0x01  # WRITE SAME(16)
_IMMED = 0x02  # SYNCHRONIZE CACHE
_FUA = 0x08  # READ, WRITE
_DBD = 0x08  # MODE SENSE
_UNMAP = 0x08  # WRITE SAME

# Operation code, byte 1, LBA, (group number,) number of blocks, (group number,) control.
_BLOCKS_10 = struct.Struct(">BBIBHB")
_BLOCKS_12 = struct.Struct(">BBIIBB")
_BLOCKS_16 = struct.Struct(">BBQIBB")
_pack_10 = _BLOCKS_10.pack
_pack_16 = _BLOCKS_16.pack

# Every read and write packs one of these: a plain number is packed faster than an enum's member.
_READ_10 = int(OperationCode.READ_10)
_READ_16 = int(OperationCode.READ_16)
_WRITE_10 = int(OperationCode.WRITE_10)
_WRITE_16 = int(OperationCode.WRITE_16)

_INQUIRY = struct.Struct(">BBBHB")
_REPORT_LUNS = struct.Struct(">BxB3xIxB")
_READ_CAPACITY_16 = struct.Struct(">BBQIBB")
_UNMAP_HEADER = struct.Struct(">HH4x")
_UNMAP_DESCRIPTOR = struct.Struct(">QI4x")


# -- building ------------------------------------------------------------------------------------------------


def test_unit_ready() -> bytes:
    """TEST UNIT READY (SPC-3 section 6.33)."""
    return bytes(6)


def inquiry(allocation_length: int, page: int | None = None) -> bytes:
    """INQUIRY (SPC-3 section 6.4): the standard data, or the vital product data *page*."""
    evpd = 0 if page is None else _EVPD
    return _INQUIRY.pack(OperationCode.INQUIRY, evpd, page or 0, allocation_length, 0)


def mode_sense_6(page: int, subpage: int = 0, *, allocation_length: int = 255, dbd: bool = True) -> bytes:
    """MODE SENSE(6) (SPC-3 section 6.9): the current values of *page*, 3Fh being all pages.

    *dbd* disables block descriptors.
    """
    return bytes(
        (OperationCode.MODE_SENSE_6, _DBD if dbd else 0, page & 0x3F, subpage, allocation_length, 0),
    )


def report_luns(allocation_length: int) -> bytes:
    """REPORT LUNS (SPC-3 section 6.21) without the well-known units; *allocation_length* is at least 16."""
    return _REPORT_LUNS.pack(OperationCode.REPORT_LUNS, 0, allocation_length, 0)


def read_capacity_10() -> bytes:
    """READ CAPACITY(10) (SBC-3 section 5.15)."""
    return _pack_10(OperationCode.READ_CAPACITY_10, 0, 0, 0, 0, 0)


def read_capacity_16(allocation_length: int = 32) -> bytes:
    """READ CAPACITY(16) (SBC-3 section 5.16)."""
    return _READ_CAPACITY_16.pack(
        OperationCode.SERVICE_ACTION_IN_16, READ_CAPACITY_16, 0, allocation_length, 0, 0
    )


def read_10(lba: int, blocks: int, fua: bool = False) -> bytes:
    """READ(10) (SBC-3 section 5.11): up to 65535 blocks below LBA 2^32; *fua* reads past the cache."""
    return _pack_10(_READ_10, _FUA if fua else 0, lba, 0, blocks, 0)


def read_16(lba: int, blocks: int, fua: bool = False) -> bytes:
    """READ(16) (SBC-3 section 5.13); *fua* reads past the cache."""
    return _pack_16(_READ_16, _FUA if fua else 0, lba, blocks, 0, 0)


def write_10(lba: int, blocks: int, fua: bool = False) -> bytes:
    """WRITE(10) (SBC-3 section 5.33): up to 65535 blocks below LBA 2^32; *fua* ends it on the medium."""
    return _pack_10(_WRITE_10, _FUA if fua else 0, lba, 0, blocks, 0)


def write_16(lba: int, blocks: int, fua: bool = False) -> bytes:
    """WRITE(16) (SBC-3 section 5.35); *fua* ends the command only when the data are on the medium."""
    return _pack_16(_WRITE_16, _FUA if fua else 0, lba, blocks, 0, 0)


def synchronize_cache_10(lba: int = 0, blocks: int = 0, immed: bool = False) -> bytes:
    """SYNCHRONIZE CACHE(10) (SBC-3 section 5.26): 0 blocks are all from *lba* to the end.

    With *immed* the status comes before the work is done, and proves nothing.
    """
    return _pack_10(OperationCode.SYNCHRONIZE_CACHE_10, _IMMED if immed else 0, lba, 0, blocks, 0)


def synchronize_cache_16(lba: int = 0, blocks: int = 0, immed: bool = False) -> bytes:
    """SYNCHRONIZE CACHE(16) (SBC-3 section 5.27); the arguments are those of `synchronize_cache_10`."""
    return _pack_16(OperationCode.SYNCHRONIZE_CACHE_16, _IMMED if immed else 0, lba, blocks, 0, 0)


def write_same_10(lba: int, blocks: int, *, unmap: bool = False) -> bytes:
    """WRITE SAME(10) (SBC-3 section 5.43) of one block of data; *unmap* allows deallocation instead."""
    return _pack_10(OperationCode.WRITE_SAME_10, _UNMAP if unmap else 0, lba, 0, blocks, 0)


def write_same_16(lba: int, blocks: int, *, unmap: bool = False, ndob: bool = False) -> bytes:
    """WRITE SAME(16) (SBC-3 section 5.44); with *ndob* it writes zeros and carries no data."""
    flags = (_UNMAP if unmap else 0) | (_NDOB if ndob else 0)
    return _pack_16(OperationCode.WRITE_SAME_16, flags, lba, blocks, 0, 0)


# -- taking apart --------------------------------------------------------------------------------------------


class ReadWrite(NamedTuple):
    """READ or WRITE (6, 10, 12 or 16), WRITE AND VERIFY."""

    lba: int
    blocks: int
    fua: bool


class SynchronizeCache(NamedTuple):
    """SYNCHRONIZE CACHE (10 or 16); 0 *blocks* are all from *lba* to the end."""

    lba: int
    blocks: int
    immed: bool


class WriteSame(NamedTuple):
    """WRITE SAME (10 or 16); 0 *blocks* are all from *lba* to the end."""

    lba: int
    blocks: int
    unmap: bool
    ndob: bool


class Inquiry(NamedTuple):
    """INQUIRY; *page* is of interest (and may differ from 0) only with *evpd*."""

    evpd: bool
    page: int
    allocation_length: int


class ModeSense(NamedTuple):
    """MODE SENSE (6 or 10); *page_control* 0 asks for the current values (SPC-3 section 6.9.1)."""

    page: int
    subpage: int
    page_control: int
    dbd: bool
    allocation_length: int


def _block_range(cdb: bytes) -> tuple[int, int, int]:
    """Return byte 1, LBA and number of blocks of one of `_BLOCK_COMMANDS`."""
    group = cdb[0] >> 5
    if group == 4:
        _, flags, lba, blocks, _, _ = _BLOCKS_16.unpack_from(cdb)
    elif group == 5:
        _, flags, lba, blocks, _, _ = _BLOCKS_12.unpack_from(cdb)
    elif group:
        _, flags, lba, _, blocks, _ = _BLOCKS_10.unpack_from(cdb)
    else:
        # READ(6) and WRITE(6): 21 bits of LBA beside an obsolete field, and 0 blocks are 256.
        return 0, int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256
    return flags, lba, blocks


def parse_rw(cdb: bytes) -> ReadWrite:
    """Take apart a READ or WRITE (SBC-3 sections 5.11 to 5.13, 5.33 to 5.35; READ(6) is SBC-2's)."""
    flags, lba, blocks = _block_range(cdb)
    return ReadWrite(lba, blocks, bool(flags & _FUA))


def parse_synchronize_cache(cdb: bytes) -> SynchronizeCache:
    """Take apart a SYNCHRONIZE CACHE (SBC-3 sections 5.26 and 5.27)."""
    flags, lba, blocks = _block_range(cdb)
    return SynchronizeCache(lba, blocks, bool(flags & _IMMED))


def parse_write_same(cdb: bytes) -> WriteSame:
    """Take apart a WRITE SAME (SBC-3 sections 5.43 and 5.44)."""
    flags, lba, blocks = _block_range(cdb)
    ndob = bool(flags & _NDOB) and cdb[0] == OperationCode.WRITE_SAME_16
    return WriteSame(lba, blocks, bool(flags & _UNMAP), ndob)


def parse_inquiry(cdb: bytes) -> Inquiry:
    """Take apart an INQUIRY (SPC-3 section 6.4)."""
    return Inquiry(bool(cdb[1] & _EVPD), cdb[2], allocation_length(cdb))


def parse_mode_sense(cdb: bytes) -> ModeSense:
    """Take apart a MODE SENSE (SPC-3 sections 6.9 and 6.10)."""
    return ModeSense(cdb[2] & 0x3F, cdb[3], cdb[2] >> 6, bool(cdb[1] & _DBD), allocation_length(cdb))


def parse_unmap_parameters(data: bytes) -> list[tuple[int, int]]:
    """Return the ranges of (LBA, blocks) of UNMAP's parameter list (SBC-3 section 5.28.2).

    An incomplete last descriptor is ignored, as the standard says. A list without a whole header raises
    `ValueError` (to be answered with PARAMETER LIST LENGTH ERROR).
    """
    if len(data) < _UNMAP_HEADER.size:
        raise ValueError(f"the UNMAP parameter list has {len(data)} bytes, its header alone has 8")
    _, length = _UNMAP_HEADER.unpack_from(data)
    end = min(len(data), _UNMAP_HEADER.size + length)
    whole = end - (end - _UNMAP_HEADER.size) % _UNMAP_DESCRIPTOR.size
    return [(lba, blocks) for lba, blocks in _UNMAP_DESCRIPTOR.iter_unpack(data[_UNMAP_HEADER.size : whole])]


def allocation_length(cdb: bytes) -> int:
    """Return the allocation length or parameter list length, in bytes; 0 for a command without one."""
    field = _LENGTH_AT.get(cdb[0])
    return int.from_bytes(cdb[field], "big") if field else 0


def block_range(cdb: bytes) -> tuple[int, int] | None:
    """Return the LBA and the number of blocks that *cdb* addresses, None where it addresses none so."""
    if cdb[0] == OperationCode.COMPARE_AND_WRITE:
        return int.from_bytes(cdb[2:10], "big"), cdb[13]
    return _block_range(cdb)[1:] if cdb[0] in _BLOCK_COMMANDS else None


_CHANGES_NOTHING: Final = frozenset(
    {
        *(OperationCode.TEST_UNIT_READY, OperationCode.REQUEST_SENSE, OperationCode.INQUIRY),
        *(OperationCode.MODE_SENSE_6, OperationCode.MODE_SENSE_10, OperationCode.LOG_SENSE),
        *(OperationCode.READ_CAPACITY_10, OperationCode.SERVICE_ACTION_IN_16, OperationCode.REPORT_LUNS),
        *(OperationCode.READ_6, OperationCode.READ_10, OperationCode.READ_12, OperationCode.READ_16),
        *(OperationCode.VERIFY_10, OperationCode.VERIFY_12, OperationCode.VERIFY_16),
        *(OperationCode.READ_DEFECT_DATA_10, OperationCode.READ_DEFECT_DATA_12),
        *(OperationCode.PRE_FETCH_10, OperationCode.PRE_FETCH_16),
        *(OperationCode.SYNCHRONIZE_CACHE_10, OperationCode.SYNCHRONIZE_CACHE_16),
        *(OperationCode.PERSISTENT_RESERVE_IN, OperationCode.MAINTENANCE_IN),
    }
)


def changes_blocks(cdb: bytes) -> bool:
    """Return whether *cdb* may change what the blocks of a unit hold, as all do that are not known not to."""
    return cdb[:1] == b"" or cdb[0] not in _CHANGES_NOTHING


def command_name(cdb: bytes) -> str:
    """Return what the standard calls *cdb*: ``READ(16)``."""
    try:
        return _NAMES[OperationCode(cdb[0])]
    except (ValueError, IndexError):
        return describe(cdb)


def describe(cdb: bytes) -> str:
    """Return *cdb* for a log: ``READ(16) LBA 2048, 8 blocks``. Anything at all can be described."""
    if not cdb:
        return "empty CDB"
    try:
        code = OperationCode(cdb[0])
    except ValueError:
        return f"operation code {cdb[0]:02x}h"
    if len(cdb) < _CDB_LENGTH[code >> 5]:
        return f"{_NAMES[code]}, cut to {len(cdb)} bytes"
    if code in _BLOCK_COMMANDS:
        _, lba, blocks = _block_range(cdb)
        return f"{_NAMES[code]} LBA {lba}, {blocks} {'block' if blocks == 1 else 'blocks'}"
    name = _NAMES[code]
    if code is OperationCode.SERVICE_ACTION_IN_16:
        action = cdb[1] & 0x1F
        name = "READ CAPACITY(16)" if action == READ_CAPACITY_16 else f"{name} {action:02x}h"
    elif code is OperationCode.INQUIRY and cdb[1] & _EVPD:
        name = f"{name} page {cdb[2]:02x}h"
    elif code in (OperationCode.MODE_SENSE_6, OperationCode.MODE_SENSE_10):
        name = f"{name} page {cdb[2] & 0x3F:02x}h"
    return f"{name}, {allocation_length(cdb)} bytes" if code in _LENGTH_AT else name
