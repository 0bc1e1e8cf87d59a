"""The open disks of a mount: what each handle was opened for, what it was used for, and when it is closed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import trio

from iscsifs.fs.losses import Handle
from iscsifs.fs.storage import Storage, overlapping
from iscsifs.fs.times import Times

RELEASE_TIME: Final = 1.0
"""Seconds that the kernel may take to send RELEASE: it does so some time after close(2) has returned."""


@dataclass(slots=True, eq=False)
class OpenFile:
    """An open disk, with what its handle was told of lost writes.

    *pid* is the thread that has opened it. *writes*: it may write; *direct*: it was opened O_DIRECT; *sync*:
    each write has to reach stable storage (O_SYNC, O_DSYNC). It *is_new* until it was written to, truncated
    or closed. It *may_be_closed* where nothing was written since the last close of one of its descriptors.
    *in_work* counts its requests in work.
    """

    storage: Storage
    losses: Handle
    inode: int
    times: Times
    pid: int
    writes: bool
    sync: bool
    direct: bool
    is_new: bool = True
    may_be_closed: bool = False
    in_work: int = 0

    def used(self) -> None:
        """Note that there was a write or a truncation by this handle."""
        self.is_new = self.may_be_closed = False

    def flushed(self) -> None:
        """Note that a descriptor of this handle was closed, which may have been the last."""
        self.is_new = False
        self.may_be_closed = True


class OpenFiles:
    """All open disks, in the order in which they were opened."""

    def __init__(self) -> None:
        self._files: dict[OpenFile, None] = {}
        self._released = trio.Event()  # a new one after each release

    def __iter__(self) -> Iterator[OpenFile]:
        return iter(self._files)

    def add(self, file: OpenFile) -> None:
        """Take note that *file* is open."""
        self._files[file] = None

    def remove(self, file: OpenFile) -> None:
        """Take note that *file* is closed; a truncation is forgotten with the last writer."""
        del self._files[file]
        if file.writes and not self.writers(file.storage):
            file.storage.release()
        self._released.set()
        self._released = trio.Event()

    def of(self, storage: Storage) -> list[OpenFile]:
        """Return the open files of *storage*, in the order in which they were opened."""
        return [file for file in self._files if file.storage is storage]

    def writers(self, storage: Storage) -> list[OpenFile]:
        """Return those of them that may write."""
        return [file for file in self.of(storage) if file.writes]

    def touching(self, storage: Storage) -> list[OpenFile]:
        """Return the open files of *storage*, and those of others that have bytes of it."""
        storages = set(overlapping(storage))
        return [file for file in self._files if file.storage in storages]

    def rivals(self, storage: Storage) -> list[OpenFile]:
        """Return those of them that may write."""
        return [file for file in self.touching(storage) if file.writes]

    async def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Return whether *condition* holds, or comes to hold when a file is released within RELEASE_TIME."""
        with trio.move_on_after(RELEASE_TIME):
            while not condition():
                await self._released.wait()
            return True
        return False
