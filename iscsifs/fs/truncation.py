"""Truncations as the kernel tells of them: by whom, who else writes, and what its page cache has.

What a truncation means is the unit's business (`Storage.truncate`). It is refused while another handle is
open to write: that may be a loop device's, whose next write would be behind the end, and make zeros of the
file system in front of it.
"""

import math
from collections.abc import Awaitable, Callable
from typing import Final

from iscsifs.errors import InUseError, TruncationError
from iscsifs.fs.open_files import OpenFile, OpenFiles
from iscsifs.fs.storage import Storage

PAGE: Final = 4096
"""Bytes of a page on most machines: only a guess for which waiting is worthwhile."""

DROP_TIME: Final = 10.0
"""Seconds that the kernel may take to drop the pages of a file, while all reads are answered."""

SHARED_DROP_TIME: Final = 0.2
"""The same where it may hold a page until a write is answered; then there are no old bytes in that page."""


class Truncations:
    """Truncates units by their open *files*.

    *drop_pages(inode, patience)* has the kernel drop the pages of a file, and returns whether it has done so
    within so many seconds.
    """

    def __init__(self, files: OpenFiles, drop_pages: Callable[[int, float], Awaitable[bool]]) -> None:
        self._files = files
        self._drop_pages = drop_pages

    async def truncate(
        self, storage: Storage, inode: int, size: int, file: OpenFile | None, pid: int
    ) -> None:
        """Truncate *storage*, the file *inode*, to *size* bytes for thread *pid*, through the open *file* or
        by its name.

        Raises TruncationError, InUseError, and what `Storage.zero` raises. By name it also raises what its
        zeros fail with when they are written: no handle reports that later.

        The kernel does not tell the handle of open(2) with O_TRUNC, but truncates next with the same thread.
        """
        if size > storage.size:
            raise TruncationError(f"{storage.name}: it has {storage.size} bytes, and cannot get {size}")
        if file is None:
            file = self._just_opened(storage, pid)
        if storage.shrinks(size):
            await self._files.wait_until(lambda: not self._may_all_be_closed(storage, file))
            if others := self._others(storage, file):
                raise InUseError(
                    f"{storage.name}: not truncated, as {len(others)} more have it open to write; "
                    "write without truncating, as with dd conv=notrunc"
                )
        if file is not None:
            file.used()
        await storage.truncate(size)
        if storage.take_stale():
            # Pages that mmap(2) has changed are not written before this is answered.
            while not await self._drop_pages(inode, DROP_TIME):
                if not storage.is_away:
                    raise InUseError(f"{storage.name}: not truncated: programs have it mapped")
        if file is None and not self._others(storage, None):
            # Nobody will close it, so it is now that all has to be zeros.
            storage.release()
            failures = storage.failures
            await storage.zero()
            await storage.drain()
            if storage.failures != failures and storage.last_failure is not None:
                raise storage.last_failure

    async def drop_pages_behind(self, inode: int, offset: int, size: int) -> None:
        """Have the kernel drop the pages of *inode* before a write of *size* bytes at *offset* is answered.

        Until then the kernel holds the first or the last page of it if only a part of that is written and the
        page was not read. Such a page has no old bytes, so it is not waited for.
        """
        whole = offset % PAGE == 0 and (offset + size) % PAGE == 0
        await self._drop_pages(inode, math.inf if whole else SHARED_DROP_TIME)

    def _just_opened(self, storage: Storage, pid: int) -> OpenFile | None:
        """Return the file that thread *pid* has opened to write and not used yet, if there is one."""
        writers = reversed(self._files.writers(storage))
        return next((file for file in writers if file.is_new and file.pid == pid), None)

    def _others(self, storage: Storage, file: OpenFile | None) -> list[OpenFile]:
        """Return the writers of bytes of *storage* beside *file*."""
        return [other for other in self._files.rivals(storage) if other is not file]

    def _may_all_be_closed(self, storage: Storage, file: OpenFile | None) -> bool:
        """Say whether there are others, and each may have been closed: then waiting for RELEASE may help."""
        others = self._others(storage, file)
        return bool(others) and all(other.may_be_closed for other in others)
