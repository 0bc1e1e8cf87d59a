"""The file that is the bytes of one disk, or of one partition.

It behaves as the node of a block device does: its size is the capacity and nothing changes it, a write past
the end finds no space, fsync is a flush of the disk's cache. The file of a partition is the same within its
part of the disk. A truncation says which bytes programs take for
zeros from then on (`iscsifs.fs.truncation`).
"""

import os
import stat
from dataclasses import dataclass
from time import time_ns
from typing import Final, cast

import trio

from iscsifs.errors import DataError, IscsifsError
from iscsifs.fs.losses import KnownLoss
from iscsifs.fs.nodes import BLOCK, Handle, Node, Refusal, Refused, Stat
from iscsifs.fs.open_files import OpenFile
from iscsifs.fs.storage import Storage
from iscsifs.fs.storages import Storages

_TIME_TO_CLOSE: Final = 1.0
"""Seconds that a close waits for a target that is away."""


class StorageFile(Node):
    """The bytes of *storage*; *storages* is what all of the mount share."""

    __slots__ = ("_nlink", "_storages", "storage")

    def __init__(self, inode: int, storage: Storage, storages: Storages) -> None:
        super().__init__(inode)
        self.storage = storage
        self._storages = storages
        self._nlink = 1

    @property
    def nlink(self) -> int:
        """Return 2 where the directory of the target shows it as well."""
        return self._nlink

    @nlink.setter
    def nlink(self, number: int) -> None:
        self._nlink = number

    @property
    def is_read_only(self) -> bool:
        """Whether nobody can write to it now."""
        return self._storages.options.read_only or self.storage.read_only

    def stat(self) -> Stat:
        """Return the capacity as the size, and the times of the disk."""
        storage = self.storage
        times = self._storages.times.of(storage, self.inode)
        return Stat(
            stat.S_IFREG | (0o400 if self.is_read_only else 0o600),
            (times.atime_ns, times.mtime_ns, times.ctime_ns),
            storage.size,
            _request_size(storage),
        )

    async def open(self, flags: int, thread: int) -> "OpenStorage":
        """Open the disk."""
        storage, storages = self.storage, self._storages
        options, files = storages.options, storages.files
        storages.pages.opened(self.inode, thread)
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if writes and self.is_read_only:
            raise Refused(Refusal.READ_ONLY)
        if flags & os.O_TRUNC:
            # Seen only where FUSE_INIT could not be amended: the size will be 0 for all others for a moment.
            await storages.require_free(lambda: not files.touching(storage))
        if writes:
            if options.exclusive:
                await storages.require_free(lambda: not files.rivals(storage))
            storages.owes(storage)
        file = OpenStorage(
            storage,
            storages.losses.open(storage),
            self.inode,
            storages.times.of(storage, self.inode),
            thread,
            writes=writes,
            sync=options.sync or bool(flags & os.O_DSYNC),  # a bit that O_SYNC has as well
            direct=bool(flags & os.O_DIRECT),
            storages=storages,
        )
        files.add(file)
        if writes and flags & os.O_TRUNC:
            try:
                await storages.truncations.truncate(storage, self.inode, 0, file, thread)
            except BaseException:
                files.remove(file)
                raise
        return file

    async def truncate(self, size: int, handle: Handle | None, thread: int) -> None:
        """Have what comes inside *size* bytes again be zeros; the size stays."""
        if self.is_read_only:
            raise Refused(Refusal.READ_ONLY)
        file = cast(OpenStorage | None, handle)
        self._storages.owes(self.storage)
        await self._storages.truncations.truncate(self.storage, self.inode, size, file, thread)
        self._storages.times.of(self.storage, self.inode).modify()

    def set_times(self, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Keep the times, until something changes them."""
        times = self._storages.times.of(self.storage, self.inode)
        if atime_ns is not None:
            times.atime_ns = atime_ns
        if mtime_ns is not None:
            times.mtime_ns = mtime_ns
        times.ctime_ns = time_ns()


@dataclass(slots=True, eq=False, kw_only=True)
class OpenStorage(OpenFile, Handle):
    """An open disk, and what its user does with it."""

    storages: Storages
    known_mtime_ns: int = 0
    """The time of modification that the other files with bytes of this one know of."""

    def __post_init__(self) -> None:
        self.known_mtime_ns = self.times.mtime_ns

    @property
    def direct_io(self) -> bool:  # type: ignore[override]  # it is set for the whole mount
        """Whether the mount leaves the kernel's page cache out."""
        return self.storages.options.direct_io

    async def read(self, offset: int, size: int) -> bytes | bytearray | memoryview:
        """Read, stopping at the end of the disk."""
        storage = self.storage
        self.in_work += 1
        try:
            data = await storage.read(offset, size)
        finally:
            self.in_work -= 1
        # The kernel takes a short answer for the end of the file, and fills up with zeros.
        if len(data) < size and offset + len(data) < storage.size:
            error = DataError(f"{len(data)} bytes at {offset}, where {size} were asked for")
            raise error.counted_as(f"{storage.name}: a short answer")
        return data

    async def write(self, offset: int, data: bytes) -> int:
        """Write as much as fits in front of the end of the disk.

        The kernel makes EIO of a short answer where the handle is O_DIRECT. So there is no space then, though
        all that fits was written.
        """
        storage = self.storage
        room = storage.size - offset
        if room <= 0:
            raise Refused(Refusal.NO_SPACE)
        crosses = len(data) > room
        if crosses:
            data = data[:room]
        self.in_work += 1
        try:
            try:
                await storage.write(offset, data, self.sync)
            finally:
                self.times.modify()
            self.is_new = self.may_be_closed = False
            if storage.take_stale():
                await self.storages.truncations.drop_pages_behind(self.inode, offset, len(data))
            if self.sync:
                self.losses.report()
        finally:
            self.in_work -= 1
        if crosses and self.direct:
            raise Refused(Refusal.NO_SPACE)
        return len(data)

    async def flush(self) -> None:
        """Have all that was written so far leave this machine, for a close(2), and show what was lost.

        A handle that only reads waits for nothing and is shown nothing: the losses are not its own.
        """
        if not self.writes:
            return
        self.flushed()
        self.in_work += 1
        try:
            await _drain(self.storage)
        finally:
            self.in_work -= 1
            self._tell_others()
        if (failure := self.losses.untold) is not None:
            raise KnownLoss(failure)

    async def fsync(self) -> None:
        """Have all that was written so far put on stable storage, and report what was lost.

        A disk that takes no writes is not asked, but as long as it owes anything: it may have become so.
        """
        storage = self.storage
        if storage.needs_flush or not (self.storages.options.read_only or storage.read_only):
            self.in_work += 1
            try:
                await storage.flush()
            except IscsifsError:
                self.losses.saw_all()  # this failure tells of all of them
                raise
            finally:
                self.in_work -= 1
        self.losses.report()

    def release(self) -> None:
        """Forget it."""
        self.storages.files.remove(self)
        if self.writes:
            self._tell_others()  # mmap(2) may have written since the last close
            self.storages.on_close(self.storage)

    def _tell_others(self) -> None:
        """Have the times of the other files with bytes of this one follow, where it was written to."""
        if self.known_mtime_ns != self.times.mtime_ns:
            self.known_mtime_ns = self.times.mtime_ns
            self.storages.closed(self.storage)


async def _drain(storage: Storage) -> None:
    """Have all that was written so far leave this machine, but do not wait for a target that is away.

    A fork and an exec come here as well, with the copy of a handle that they close: a program that has to
    start another one, perhaps to bring the target back, must not wait for that. What is kept is still
    written, and its loss still told.
    """
    failure: Exception | None = None

    async def drain() -> None:
        nonlocal failure
        try:
            await storage.zero()
            await storage.drain()
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        while True:
            await trio.sleep(_TIME_TO_CLOSE)
            if storage.is_away:
                nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _request_size(storage: Storage) -> int:
    """Return the largest power of two that divides the size of *storage*, and goes well for a transfer.

    Programs round the size of a regular file up to st_blksize (shred(1)), and the kernel keeps its logarithm.
    """
    return min(storage.size & -storage.size or BLOCK, 1 << storage.preferred_size.bit_length() - 1)
