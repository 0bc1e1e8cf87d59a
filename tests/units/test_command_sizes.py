"""Commands of 10 bytes reach 2^32 blocks; what is larger gets those of 16 bytes."""

from collections.abc import Awaitable, Callable

import pytest
import trio

from iscsifs.scsi.capacity import Capacity
from iscsifs.scsi.cdb import OperationCode
from iscsifs.scsi.inquiry import DeviceType, InquiryData
from iscsifs.scsi.sense import Sense, SenseKey
from iscsifs.scsi.vpd import BlockLimits, Provisioning
from iscsifs.units.block import BlockUnit
from iscsifs.units.identity import Description
from iscsifs.units.transfers import LONGEST_TRANSFER
from support.memory_path import Answer, MemoryPath, queue_of

BLOCK = 512
KIB = 1024
REACHED = 1 << 32
"""Blocks of the largest unit whose every block has an LBA of 32 bits."""

UNKNOWN_COMMAND = Sense(SenseKey.ILLEGAL_REQUEST, 0x20, 0)


def description(blocks: int) -> Description:
    return Description(
        inquiry=InquiryData(DeviceType.DISK),
        serial="",
        designators=(),
        capacity=Capacity(blocks, BLOCK),
        no_storage="",
        limits=BlockLimits(),
        provisioning=Provisioning(),
        write_protected=False,
        volatile_cache=True,
    )


class Disk:
    """A unit of so many *blocks* that answers with zeros; `codes` are the operation codes that came."""

    def __init__(self, blocks: int, nursery: trio.Nursery, unknown: frozenset[int]) -> None:
        self.size = blocks * BLOCK
        self._unknown = unknown
        self._path = MemoryPath(self._answer)
        self.unit = BlockUnit(
            0,
            queue_of(self._path, nursery),
            description(blocks),
            nursery,
            write_behind=False,
        )

    def _answer(self, cdb: bytes) -> Answer:
        return UNKNOWN_COMMAND if cdb[0] in self._unknown else bytes(64 * KIB)

    @property
    def codes(self) -> list[int]:
        return [cdb[0] for cdb in self._path.asked]


MakeDisk = Callable[..., Disk]


@pytest.fixture
def make_disk(nursery: trio.Nursery) -> MakeDisk:
    def make(blocks: int, unknown: frozenset[int] = frozenset()) -> Disk:
        return Disk(blocks, nursery, unknown)

    return make


async def read_last(disk: Disk) -> None:
    assert await disk.unit.read(disk.size - BLOCK, BLOCK) == bytes(BLOCK)


async def write_last(disk: Disk) -> None:
    await disk.unit.write(disk.size - BLOCK, b"x" * BLOCK)


async def write_and_flush(disk: Disk) -> None:
    await disk.unit.write(0, b"x" * BLOCK)
    await disk.unit.flush()


@pytest.mark.parametrize(
    ("use", "small", "large"),
    [
        (read_last, OperationCode.READ_10, OperationCode.READ_16),
        (write_last, OperationCode.WRITE_10, OperationCode.WRITE_16),
        (write_and_flush, OperationCode.SYNCHRONIZE_CACHE_10, OperationCode.SYNCHRONIZE_CACHE_16),
    ],
)
async def test_the_last_block_that_10_bytes_reach_is_reached_by_10_bytes_and_the_next_by_16(
    use: Callable[[Disk], Awaitable[None]], small: int, large: int, make_disk: MakeDisk
) -> None:
    at, beyond = make_disk(REACHED), make_disk(REACHED + 1)
    await use(at)
    assert at.codes[-1] == small
    await use(beyond)
    assert beyond.codes[-1] == large


async def zero_a_stretch(disk: Disk) -> None:
    """Have one stretch zeroed that is longer than a WRITE may be, by a truncation and another back."""
    start = (REACHED * BLOCK) // 2
    await disk.unit.truncate(start)
    await disk.unit.truncate(start + LONGEST_TRANSFER)
    await disk.unit.zero()


async def test_zeros_that_write_same_16_does_not_write_are_written_by_10_bytes_where_those_reach(
    make_disk: MakeDisk,
) -> None:
    without_16 = frozenset({OperationCode.WRITE_SAME_16})
    at, beyond = make_disk(REACHED, without_16), make_disk(REACHED + 1, without_16)
    await zero_a_stretch(at)
    assert at.codes == [
        OperationCode.WRITE_SAME_16,
        OperationCode.WRITE_SAME_10,
        *[OperationCode.READ_10] * 2,  # whether it does what it says
    ]
    await zero_a_stretch(beyond)
    assert {*beyond.codes} == {OperationCode.WRITE_SAME_16, OperationCode.WRITE_16}


async def test_whether_write_same_writes_is_asked_with_16_bytes_beyond_the_reach_of_10(
    make_disk: MakeDisk,
) -> None:
    disk = make_disk(REACHED + 1)
    await zero_a_stretch(disk)
    assert disk.codes == [OperationCode.WRITE_SAME_16, *[OperationCode.READ_16] * 2]
