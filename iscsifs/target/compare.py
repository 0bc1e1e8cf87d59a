"""The commands of a disk that compare or combine data: VERIFY, WRITE AND VERIFY, COMPARE AND WRITE, ORWRITE.

None of them waits between reading and writing, so that each is atomic among the commands of the disk.
"""

from typing import TYPE_CHECKING, Final

from iscsifs.limits import MAX_COMPARE_AND_WRITE
from iscsifs.scsi.cdb import OperationCode
from iscsifs.scsi.sense import Sense
from iscsifs.target.unit import (
    INVALID_FIELD_IN_CDB,
    MISCOMPARE,
    PARAMETER_LIST_LENGTH_ERROR,
    CheckCondition,
    Nexus,
    Operation,
    Result,
)

if TYPE_CHECKING:
    from iscsifs.target.disk import Disk

VERIFY_CODES: Final = frozenset({OperationCode.VERIFY_10, OperationCode.VERIFY_12, OperationCode.VERIFY_16})
WRITE_AND_VERIFY_CODES: Final = frozenset(
    {
        OperationCode.WRITE_AND_VERIFY_10,
        OperationCode.WRITE_AND_VERIFY_12,
        OperationCode.WRITE_AND_VERIFY_16,
    }
)
WITHOUT_FUA: Final = VERIFY_CODES | WRITE_AND_VERIFY_CODES
"""They always concern the medium, and have another bit in the place of FUA."""

# BYTCHK (SBC-3 section 5.30): what the blocks are compared with.
_NOTHING: Final = 0
_ALL_BLOCKS: Final = 1
_ONE_BLOCK: Final = 3


def verify(disk: "Disk", _nexus: Nexus, cdb: bytes) -> Operation:
    """VERIFY (SBC-3 sections 5.30 to 5.32): the blocks can be read, and hold what is sent if any is."""
    lba, blocks, _ = disk.check_transfer(cdb)
    check = _bytchk(cdb)
    wanted = {_NOTHING: 0, _ALL_BLOCKS: blocks, _ONE_BLOCK: min(blocks, 1)}[check] * disk.block_size

    def compare(data: memoryview) -> Result:
        held = disk.load(lba, blocks)
        _require_all(data, wanted)
        if check != _NOTHING:
            _compare(held, bytes(data) * (blocks if check == _ONE_BLOCK else 1))
        return disk.synchronised(lba, blocks)

    return Operation(compare, wanted)


def write_and_verify(disk: "Disk", _nexus: Nexus, cdb: bytes) -> Operation:
    """WRITE AND VERIFY (SBC-3 sections 5.36 to 5.38): a write that is over when it is on the medium."""
    disk.check_writable()
    lba, blocks, _ = disk.check_transfer(cdb)
    if _bytchk(cdb) == _ONE_BLOCK:
        raise CheckCondition(INVALID_FIELD_IN_CDB)

    def write(data: memoryview) -> Result:
        whole = disk.put(lba, data)
        _compare(disk.load(lba, whole), data[: whole * disk.block_size])
        return disk.synchronised(lba, whole)

    return Operation(write, blocks * disk.block_size)


def compare_and_write(disk: "Disk", _nexus: Nexus, cdb: bytes) -> Operation:
    """COMPARE AND WRITE (SBC-3 section 5.2): the second half of the data where the blocks hold the first."""
    disk.check_writable()
    lba, fua, blocks = int.from_bytes(cdb[2:10], "big"), bool(cdb[1] & 0x08), cdb[13]
    disk.check_fua(cdb)
    if blocks > MAX_COMPARE_AND_WRITE:
        raise CheckCondition(INVALID_FIELD_IN_CDB)
    disk.check_range(lba, blocks)
    length = blocks * disk.block_size

    def carry_out(data: memoryview) -> Result:
        _require_all(data, 2 * length)
        _compare(disk.load(lba, blocks), data[:length])
        return disk.written(lba, disk.put(lba, data[length:]), fua=fua)

    return Operation(carry_out, 2 * length, exact=True)


def or_write(disk: "Disk", _nexus: Nexus, cdb: bytes) -> Operation:
    """ORWRITE(16) (SBC-3 section 5.6), of the set operation: each bit of the data sets one on the disk."""
    disk.check_writable()
    lba, blocks, fua = disk.check_transfer(cdb)

    def carry_out(data: memoryview) -> Result:
        whole = len(data) // disk.block_size
        length = whole * disk.block_size
        held = int.from_bytes(disk.load(lba, whole), "big")
        combined = (held | int.from_bytes(data[:length], "big")).to_bytes(length, "big")
        return disk.written(lba, disk.put(lba, memoryview(combined)), fua=fua)

    return Operation(carry_out, blocks * disk.block_size)


def _bytchk(cdb: bytes) -> int:
    check = cdb[1] >> 1 & 3
    if check not in (_NOTHING, _ALL_BLOCKS, _ONE_BLOCK):
        raise CheckCondition(INVALID_FIELD_IN_CDB)
    return check


def _require_all(data: memoryview, length: int) -> None:
    """Raise CheckCondition where the initiator has brought less than *length*: part of it proves nothing."""
    if len(data) < length:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)


def _compare(held: bytearray, expected: bytes | memoryview) -> None:
    """Raise CheckCondition where they differ, with the offset of the first byte that does."""
    wanted = bytes(expected)
    if held == wanted:
        return
    start, end = 0, len(wanted)  # by halves, as byte by byte would take seconds
    while start + 1 < end:
        middle = (start + end) // 2
        if held[start:middle] == wanted[start:middle]:
            start = middle
        else:
            end = middle
    raise CheckCondition(Sense(MISCOMPARE.key, MISCOMPARE.asc, MISCOMPARE.ascq, information=start))
