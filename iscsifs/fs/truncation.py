"""Truncations as the kernel tells of them: by whom, who else writes, and what its page cache has.

What a truncation means is the unit's business (`Storage.truncate`). It is refused while another handle is
open to write: that may be a loop device's, whose next write would be behind the end, and make zeros of the
file system in front of it.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from iscsifs.errors import InUseError, TruncationError
from iscsifs.fs.tree import File, Storage

log = logging.getLogger(__name__)

PATIENCE: Final = 1.0
"""Seconds that a truncation waits for a writer who may have closed: the kernel sends RELEASE after close(2)
has returned."""

PAGE: Final = 4096
"""Bytes of a page on most machines: only a guess for which waiting is worthwhile."""

DROP_TIME: Final = 10.0
"""Seconds that the kernel may take to drop the pages of a file, while all reads are answered."""

SHARED_DROP_TIME: Final = 0.2
"""The same where it may hold a page until a write is answered; then there are no old bytes in that page."""


@dataclass(slots=True)
class _Writer:
    """A handle that is open to write, by thread *pid*. It `is_new` until it was used."""

    storage: Storage
    pid: int
    is_new: bool = True
    may_be_closed: bool = False


class Writers:
    """The handles that are open to write. *invalidate(inode)* has the kernel drop the pages of a file."""

    def __init__(self, invalidate: Callable[[int], None]) -> None:
        self._invalidate = invalidate
        self._writers: dict[int, _Writer] = {}
        self._released = trio.Event()

    async def open(self, fh: int, file: File, pid: int, *, truncate: bool) -> None:
        """Note that thread *pid* opens *file* to write, as *fh*; *truncate* it, see there for what is
        raised."""
        self._writers[fh] = _Writer(file.storage, pid)
        if truncate:
            try:
                await self.truncate(file, 0, fh, pid)
            except BaseException:
                self.remove(fh)
                raise

    def used(self, fh: int) -> None:
        """Note that there was a write to *fh*."""
        writer = self._writers.get(fh)
        if writer is not None:
            writer.is_new = writer.may_be_closed = False

    def flushed(self, fh: int) -> None:
        """Note that a descriptor of *fh* was closed, which may have been the last."""
        writer = self._writers[fh]
        writer.is_new = False
        writer.may_be_closed = True

    def remove(self, fh: int) -> None:
        """Note that *fh* is closed. What was truncated before is forgotten with the last writer."""
        storage = self._writers.pop(fh).storage
        if all(writer.storage is not storage for writer in self._writers.values()):
            storage.release()
        self._released.set()
        self._released = trio.Event()

    async def truncate(self, file: File, size: int, fh: int | None, pid: int) -> None:
        """Truncate *file* for thread *pid*, through *fh* or by its name.

        Raises TruncationError, InUseError, and what `Storage.zero` raises.

        The kernel does not tell the handle of open(2) with O_TRUNC, but truncates next with the same thread.
        """
        storage = file.storage
        if size > storage.size:
            raise TruncationError(f"{storage.name}: it has {storage.size} bytes, and cannot get {size}")
        if fh is None:
            fh = self._just_opened(storage, pid)
        if storage.shrinks(size):
            with trio.move_on_after(PATIENCE):
                while self._others_of(storage, fh, only_closed=True):
                    await self._released.wait()
            if others := self._others_of(storage, fh):
                raise InUseError(
                    f"{storage.name}: not truncated, as {len(others)} more have it open to write; "
                    "write without truncating, as with dd conv=notrunc"
                )
        if fh is not None:
            self.used(fh)
        await storage.truncate(size)
        if storage.take_stale():
            # Pages that mmap(2) has changed are not written before this is answered.
            while not await self._drop_pages(file.inode, DROP_TIME):
                if not storage.is_away:
                    raise InUseError(f"{storage.name}: not truncated: programs have it mapped")
        if fh is None and not self._others_of(storage, None):
            # Nobody will close it, so it is now that all has to be zeros.
            storage.release()
            await storage.zero()
            await storage.drain()

    async def drop_pages_behind(self, inode: int, offset: int, size: int) -> None:
        """Have the kernel drop the pages of *inode* before a write of *size* bytes at *offset* is answered.

        Until then the kernel holds the first or the last page of it if only a part of that is written and the
        page was not read. Such a page has no old bytes, so it is not waited for.
        """
        whole = offset % PAGE == 0 and (offset + size) % PAGE == 0
        await self._drop_pages(inode, math.inf if whole else SHARED_DROP_TIME)

    async def _drop_pages(self, inode: int, patience: float) -> bool:
        """Have the kernel drop the pages of *inode*, and return whether it has within *patience* seconds.

        This takes a thread: the kernel waits for pages that are being read, and these wait for us.
        """
        with trio.move_on_after(patience):
            try:
                await trio.to_thread.run_sync(self._invalidate, inode, abandon_on_cancel=True)
            except RuntimeError as exc:  # no thread can be started
                raise MemoryError(str(exc)) from None
            except OSError as exc:  # the kernel knows no such inode, so it has no pages of it
                log.debug("inode %d: %s", inode, exc)
            return True
        return False

    def _just_opened(self, storage: Storage, pid: int) -> int | None:
        """Return the handle that thread *pid* has opened and not used yet, if there is one."""
        for fh, writer in reversed(self._writers.items()):
            if writer.storage is storage and writer.is_new and writer.pid == pid:
                return fh
        return None

    def _others_of(self, storage: Storage, fh: int | None, only_closed: bool = False) -> list[_Writer]:
        """Return who else writes to *storage*; none where not all have *only_closed* descriptors."""
        others = [
            writer for other, writer in self._writers.items() if writer.storage is storage and other != fh
        ]
        return [] if only_closed and not all(other.may_be_closed for other in others) else others
