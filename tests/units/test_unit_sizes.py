"""The sizes that a logical unit prefers, whatever it says of itself."""

import pytest
import trio

from iscsifs.scsi.capacity import Capacity
from iscsifs.scsi.inquiry import DeviceType, InquiryData
from iscsifs.scsi.vpd import BlockLimits, Provisioning
from iscsifs.units.block import PREFERRED_TRANSFER, BlockUnit
from iscsifs.units.identity import Description
from iscsifs.units.transfers import LONGEST_TRANSFER
from support.memory_path import MemoryPath, queue_of


@pytest.mark.parametrize(
    ("physical", "optimal", "longest", "preferred"),
    [
        (512, 0, 0, PREFERRED_TRANSFER),
        (512, 128, 0, 128 * 512),
        (4096, 1, 0, 4096),
        (512, 0, 64, 64 * 512),
        (512, 0xFFFFFFFF, 0xFFFFFFFF, LONGEST_TRANSFER),
        (512 << 15, 0, 0, LONGEST_TRANSFER),  # the largest that READ CAPACITY(16) can say
        (4096, 0, 1, 512),
    ],
)
async def test_the_preferred_size_is_within_the_limits(
    physical: int, optimal: int, longest: int, preferred: int
) -> None:
    description = Description(
        inquiry=InquiryData(DeviceType.DISK),
        serial="",
        designators=(),
        capacity=Capacity(1 << 20, 512, physical),
        no_storage="",
        limits=BlockLimits(optimal_transfer_length=optimal, max_transfer_length=longest),
        provisioning=Provisioning(),
        write_protected=False,
        volatile_cache=None,
    )
    async with trio.open_nursery() as nursery:
        queue = queue_of(MemoryPath(lambda _: b""), nursery)
        assert BlockUnit(0, queue, description, nursery).preferred_size == preferred
