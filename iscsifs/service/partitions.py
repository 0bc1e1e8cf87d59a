"""The partitions of disks, as files: the table is read at the login, and again when it may have changed.

That is when a program that had the disk open to write closes it, after a new login or a reset, on a rescan,
and when the size of the disk is another. A partition that a program has open stays as it is until it is
closed, as with BLKRRPART of Linux.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import trio

from iscsifs.errors import IscsifsError
from iscsifs.fs.storage import Storage
from iscsifs.fs.tree import DIRECT_ACCESS, TargetDirectory, Tree, UnitDirectory
from iscsifs.limits import MAX_TARGET_PARTITIONS, PROBES_AT_ONCE
from iscsifs.units.block import BlockUnit
from iscsifs.units.partitions import Partition, partitions
from iscsifs.units.window import Window

log = logging.getLogger(__name__)

PATIENCE: Final = 2.0
"""Seconds that a login or a rescan waits for the tables of the disks: then they appear later."""


class _Disks(dict[BlockUnit, "_Disk"]):
    """The disks of one target."""

    def __init__(self) -> None:
        super().__init__()
        self.limit: Final = trio.CapacityLimiter(PROBES_AT_ONCE)

    def room(self) -> int:
        """Return how many more partitions may be shown."""
        return MAX_TARGET_PARTITIONS - sum(len(disk.windows) for disk in self.values())


@dataclass(eq=False, slots=True)
class _Disk:
    """A disk that *directory* shows, and its partitions by number."""

    unit: BlockUnit
    directory: UnitDirectory
    size: int
    siblings: _Disks
    windows: dict[int, Window] = field(default_factory=dict)
    is_due: bool = False
    is_looking: bool = False
    kept: frozenset[int] = frozenset()  # those that are not what the table says, as they are in use


class Partitions:
    """Shows the partitions of the disks of *tree*; reads their tables in *nursery*."""

    def __init__(self, tree: Tree, nursery: trio.Nursery) -> None:
        self._tree = tree
        self._nursery = nursery
        self._targets: dict[TargetDirectory, _Disks] = {}
        self._disks: dict[Storage, _Disk] = {}
        self._looks = 0
        self._idle = trio.Event()
        tree.storages.on_close = self.look

    def follow(self, target: TargetDirectory) -> None:
        """Read the tables of the disks that *target* has now and did not have, or not with this size."""
        disks = self._targets.setdefault(target, _Disks())
        for unit in [unit for unit, disk in disks.items() if not self._is_shown(disk)]:
            del disks[unit], self._disks[unit]
        for directory in target.units():
            storage = directory.unit.storage
            if not isinstance(storage, BlockUnit) or directory.unit.device_type != DIRECT_ACCESS:
                continue
            disk = disks.get(storage)
            if disk is None:
                disk = disks[storage] = _Disk(storage, directory, 0, disks)
                self._disks[storage] = disk
            if disk.size != storage.size:
                disk.size = storage.size
                self.look(storage)

    def forget(self, target: TargetDirectory) -> None:
        """Forget the disks of *target*."""
        for unit in self._targets.pop(target, ()):
            del self._disks[unit]

    def look(self, storage: Storage) -> None:
        """Read the table of *storage*, or of the disk that it is a partition of, soon."""
        disk = self._disks.get(storage.whole)
        if disk is None or (storage is not disk.unit and not disk.kept):
            return  # a partition was closed, and nothing has waited for that
        disk.is_due = True
        if not disk.is_looking:
            disk.is_looking = True
            self._looks += 1
            self._nursery.start_soon(self._look, disk)

    async def rescan(self, units: Iterable[UnitDirectory]) -> None:
        """Read the tables of these disks again, and wait for that as `settle` does."""
        for directory in units:
            if directory.unit.storage is not None:
                self.look(directory.unit.storage)
        await self.settle()

    async def settle(self) -> None:
        """Return when all tables are read, or after PATIENCE seconds."""
        with trio.move_on_after(PATIENCE):
            while self._looks:
                await self._idle.wait()

    async def _look(self, disk: _Disk) -> None:
        try:
            while disk.is_due:
                disk.is_due = False
                async with disk.siblings.limit:
                    found = await _read_table(disk.unit)
                if not self._is_shown(disk):
                    break
                self._show(disk, found)
        except IscsifsError as exc:
            log.info("%s: its partition table is not known: %s", disk.unit.name, exc)
        except Exception:  # which must not end the mount
            log.exception("%s: unexpected error, please report it", disk.unit.name)
        finally:
            disk.is_looking = False
            self._looks -= 1
            if not self._looks:
                self._idle.set()
                self._idle = trio.Event()

    def _is_shown(self, disk: _Disk) -> bool:
        directory = disk.directory
        return self._tree.nodes.get(directory.inode) is directory and directory.unit.storage is disk.unit

    def _show(self, disk: _Disk, found: list[Partition]) -> None:
        """Let the tree have the partitions that were *found* on *disk*."""
        wanted = {partition.number: partition for partition in found}
        kept = set()
        for number, window in list(disk.windows.items()):
            partition = wanted.get(number)
            if partition is not None and partition.start == window.start:
                window.resize(partition.size)
            elif self._tree.storages.files.of(window):
                kept.add(number)
            else:
                del disk.windows[number]
                disk.unit.close_window(window)
        room = disk.siblings.room()
        new = [partition for number, partition in wanted.items() if number not in disk.windows]
        if len(new) > room:
            log.warning(
                "%s: %d partitions are left out, as its target has more than %d",
                disk.unit.name,
                len(new) - room,
                MAX_TARGET_PARTITIONS,
                extra={"kind": f"{disk.unit.name}: partitions are left out"},
            )
        for partition in new[: max(0, room)]:
            number = partition.number
            name = f"{disk.unit.name} partition {number}"
            disk.windows[number] = disk.unit.open_window(name, partition.start, partition.size)
        if others := kept - disk.kept:
            log.warning(
                "%s: partition %s is in use, and not what the table says now; it changes when it is closed",
                disk.unit.name,
                ", ".join(map(str, sorted(others))),
            )
        disk.kept = frozenset(kept)
        self._tree.set_partitions(disk.directory, dict(sorted(disk.windows.items())))


async def _read_table(unit: BlockUnit) -> list[Partition]:
    """Return the partitions of *unit*; raises what reading does."""
    steps = partitions(unit.size, unit.block_size)
    data: bytes | None = None
    while True:
        try:
            offset, size = next(steps) if data is None else steps.send(data)
        except StopIteration as end:
            found: list[Partition] = end.value
            return found
        data = bytes(await unit.peek(offset, size))
