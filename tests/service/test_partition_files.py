"""When the partitions of a disk are looked for, and what of that is shown: in memory."""

import os
import struct
from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
from trio.testing import MockClock

from iscsifs.errors import DataLostError
from iscsifs.fs.nodes import TreeOptions
from iscsifs.fs.storage_file import StorageFile
from iscsifs.fs.tree import TargetDescription, TargetDirectory, Tree, UnitDescription, UnitDirectory
from iscsifs.service import partitions as module
from iscsifs.service.partitions import Partitions
from iscsifs.target.disk import Disk
from iscsifs.target.unit import READ_CODES, READ_ERROR, Fault
from support.memory_san import San

BLOCK = 512
BLOCKS = 1024
OLD = b"old." * (BLOCKS * BLOCK // 4)


def table(*ranges: tuple[int, int]) -> bytes:
    """Return an MBR with these partitions, each (first block, blocks)."""
    entries = b"".join(struct.pack("<4xB3xII", 0x83, first, blocks) for first, blocks in ranges)
    return bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa"


class Site:
    """A disk in a tree, whose partitions are followed."""

    def __init__(self, san: San, nursery: trio.Nursery) -> None:
        self.san = san
        self.tree = Tree(TreeOptions(0, 0))
        self.partitions = Partitions(self.tree, nursery)
        unit = UnitDescription("0", 0, "disk", wwid="naa.1", block_size=BLOCK, storage=san.unit)
        self.target: TargetDirectory
        (self.target,) = self.tree.add_targets(
            [TargetDescription("host", "192.0.2.1", 3260, "disk", (unit,))]
        )
        self.directory: UnitDirectory
        (self.directory,) = self.target.units()

    def file(self, name: bytes) -> StorageFile:
        node = self.directory.entries[name]
        assert isinstance(node, StorageFile)
        return node

    def shown(self) -> dict[bytes, tuple[int, int]]:
        files = {name: self.file(name).storage for name in self.directory.partitions()}
        return {name: (part.start // BLOCK, part.size // BLOCK) for name, part in files.items()}

    async def write(self, data: bytes) -> None:
        """Write *data* to the front of the disk, as a program does."""
        handle = await self.file(b"storage").open(os.O_RDWR, 1)
        await handle.write(0, data)
        await handle.flush()
        handle.release()
        await self.partitions.settle()


Connect = Callable[..., Awaitable[Site]]


@pytest.fixture
def connect(nursery: trio.Nursery, autojump_clock: MockClock) -> Connect:
    async def connect(ranges: Sequence[tuple[int, int]] = ()) -> Site:
        disk = Disk.in_memory(BLOCKS * BLOCK)
        san = San(nursery, disk)
        await san.log_in()
        await san.unit.write(0, OLD)
        if ranges:
            await san.unit.write(0, table(*ranges))
        await san.unit.flush()
        site = Site(san, nursery)
        site.partitions.follow(site.target)
        await site.partitions.settle()
        return site

    return connect


async def test_what_the_table_says_is_shown_at_once(connect: Connect) -> None:
    site = await connect([(8, 100), (108, 200)])
    assert site.shown() == {b"part1": (8, 100), b"part2": (108, 200)}
    assert set(site.tree.root.entries[b"by-id"].entries) == {  # type: ignore[attr-defined]
        b"naa.1",
        b"naa.1-part1",
        b"naa.1-part2",
    }


async def test_a_disk_without_a_table_has_no_partitions(connect: Connect) -> None:
    assert (await connect()).shown() == {}


async def test_a_table_is_read_again_when_a_writer_closes(connect: Connect) -> None:
    site = await connect([(8, 100)])
    await site.write(table((8, 50), (58, 10)))
    assert site.shown() == {b"part1": (8, 50), b"part2": (58, 10)}
    await site.write(bytes(BLOCK))
    assert site.shown() == {}
    assert list(site.san.unit.parts) == []


async def test_a_partition_that_is_open_changes_when_it_is_closed(connect: Connect) -> None:
    site = await connect([(8, 100)])
    file = await site.file(b"part1").open(os.O_RDWR, 1)
    await site.write(table((500, 20)))
    assert site.shown() == {b"part1": (8, 100)}
    await file.write(0, b"here")
    assert bytes(await site.san.unit.read(8 * BLOCK, 4)) == b"here"
    file.release()
    await site.partitions.settle()
    assert site.shown() == {b"part1": (500, 20)}


async def test_a_look_at_the_table_leaves_a_truncation_as_it_is(connect: Connect) -> None:
    """`truncate -s 0` and `truncate -s SIZE` make zeros of everything, with a look between them."""
    site = await connect([(8, 100)])
    storage = site.file(b"storage")
    await storage.truncate(0, None, 1)
    site.partitions.look(site.san.unit)
    await site.partitions.settle()
    await storage.truncate(BLOCKS * BLOCK, None, 1)
    assert bytes(await site.san.unit.read(0, BLOCKS * BLOCK)) == bytes(BLOCKS * BLOCK)


async def test_a_table_that_cannot_be_read_changes_nothing(connect: Connect) -> None:
    site = await connect([(8, 100)])
    site.san.disk.faults.append(Fault(READ_ERROR, codes=READ_CODES))
    await site.partitions.rescan([site.directory])
    assert site.shown() == {b"part1": (8, 100)}


async def test_a_target_has_so_many_partitions_and_no_more(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_TARGET_PARTITIONS", 2)
    site = await connect([(8, 10), (18, 10), (28, 10)])
    assert set(site.shown()) == {b"part1", b"part2"}
    assert "1 partitions are left out" in caplog.text


async def test_what_is_lost_by_one_name_is_reported_by_the_other(connect: Connect) -> None:
    """To every handle that was open, and to none that is opened when somebody knows of it."""
    site = await connect([(8, 100), (108, 100)])
    whole = await site.file(b"storage").open(os.O_RDWR, 1)
    part = await site.file(b"part1").open(os.O_RDWR, 1)
    site.san.unit._writes.ledger.report(DataLostError("lost"))
    for handle in (part, whole):
        with pytest.raises(DataLostError, match="lost"):
            await handle.fsync()
        await handle.fsync()
    await (await site.file(b"part2").open(os.O_RDWR, 1)).fsync()
    assert site.tree.storages.untold == []
