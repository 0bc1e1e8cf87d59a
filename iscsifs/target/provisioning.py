"""The commands of a thinly provisioned disk: WRITE SAME, UNMAP and GET LBA STATUS (SBC-3 section 4.7)."""

import struct
from functools import partial
from typing import TYPE_CHECKING, Final

from iscsifs.limits import MAX_TRANSFER, MAX_UNMAP_DESCRIPTORS
from iscsifs.scsi import cdb as commands
from iscsifs.target.unit import (
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETERS,
    LBA_OUT_OF_RANGE,
    PARAMETER_LIST_LENGTH_ERROR,
    CheckCondition,
    Nexus,
    Operation,
    Result,
    ended,
)

if TYPE_CHECKING:
    from iscsifs.target.disk import Disk

_MAPPED: Final = 0
_DEALLOCATED: Final = 1

# Parameter data length, then one descriptor: LBA, blocks, provisioning status (SBC-3, GET LBA STATUS).
_LBA_STATUS: Final = struct.Struct(">I4xQIB3x")


def write_same(disk: "Disk", _nexus: Nexus, cdb: bytes) -> Operation:
    """WRITE SAME (SBC-3 sections 5.43 and 5.44)."""
    disk.check_writable()
    request = commands.parse_write_same(cdb)
    lba, blocks = request.lba, request.blocks
    disk.check_range(lba, blocks)
    offset, length = lba * disk.block_size, blocks * disk.block_size
    if not 0 < length <= MAX_TRANSFER:  # 0 would be "to the end", which WSNZ says there is not
        raise CheckCondition(INVALID_FIELD_IN_CDB)

    def write(data: memoryview) -> Result:
        if not request.ndob and len(data) < disk.block_size:
            raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
        pattern = bytes(data[: disk.block_size])

        def change() -> None:
            if any(pattern):
                disk.store.write(offset, pattern * blocks)
            elif request.unmap:
                disk.store.discard(offset, length)
            else:
                disk.store.write(offset, bytes(length))

        disk.change(lba, blocks, change)
        return disk.written(lba, blocks)

    return Operation(write, 0 if request.ndob else disk.block_size, exact=True)


def unmap(disk: "Disk", _nexus: Nexus, cdb: bytes) -> Operation:
    """UNMAP (SBC-3 section 5.28): all ranges are checked before the first is changed."""
    disk.check_writable()
    disk.require_medium()
    length = commands.allocation_length(cdb)

    def carry_out(data: memoryview) -> Result:
        if len(data) < length:
            raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
        try:
            ranges = commands.parse_unmap_parameters(bytes(data))
        except ValueError:
            raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR) from None
        if len(ranges) > MAX_UNMAP_DESCRIPTORS:
            raise CheckCondition(INVALID_FIELD_IN_PARAMETERS)
        if any(lba + blocks > disk.capacity.blocks for lba, blocks in ranges):
            raise CheckCondition(LBA_OUT_OF_RANGE)
        result = Result()
        for lba, blocks in ranges:
            discard = partial(disk.store.discard, lba * disk.block_size, blocks * disk.block_size)
            disk.change(lba, blocks, discard)
            result = disk.written(lba, blocks)
        return result

    return Operation(carry_out, length) if length else ended(Result())


def get_lba_status(disk: "Disk", _nexus: Nexus, cdb: bytes) -> Operation:
    """GET LBA STATUS (SBC-3 section 5.4), with one descriptor, for the range that the LBA begins."""
    lba = int.from_bytes(cdb[2:10], "big")
    disk.check_range(lba, 1)
    size = disk.block_size

    def answer(_: memoryview) -> Result:
        mapped, end = disk.store.extent(lba * size)
        # A block of which a part is mapped is mapped.
        blocks = (-(-end // size) if mapped else max(end // size, lba + 1)) - lba
        provisioning = _MAPPED if mapped or end < (lba + 1) * size else _DEALLOCATED
        status = _LBA_STATUS.pack(_LBA_STATUS.size - 4, lba, min(blocks, 0xFFFFFFFF), provisioning)
        return Result(data=memoryview(status)[: commands.allocation_length(cdb)])

    return Operation(answer)
