"""The open files of a mount: what each handle was opened for, what it was used for, and when it is closed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Self

import trio

from iscsifs.fs.losses import Handle
from iscsifs.fs.storage import Storage
from iscsifs.fs.times import Times

RELEASE_TIME: Final = 1.0
"""Seconds that the kernel may take to send RELEASE: it does so some time after close(2) has returned."""


@dataclass(slots=True)
class OpenFile:
    """A file handle, with what it was told of lost writes.

    *pid* is the thread that has opened it. *writes*: it may write; *direct*: it was opened O_DIRECT; *sync*:
    each write has to reach stable storage (O_SYNC, O_DSYNC). It *is_new* until it was written to, truncated
    or closed. It *may_be_closed* where nothing was written since the last close of one of its descriptors. As
    a context manager it counts the requests in work.
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

    def __enter__(self) -> Self:
        self.in_work += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.in_work -= 1

    def used(self) -> None:
        """Note that there was a write or a truncation by this handle."""
        self.is_new = self.may_be_closed = False

    def flushed(self) -> None:
        """Note that a descriptor of this handle was closed, which may have been the last."""
        self.is_new = False
        self.may_be_closed = True


class OpenFiles:
    """All open files, `by_handle`."""

    def __init__(self) -> None:
        self.by_handle: dict[int, OpenFile] = {}
        self._released = trio.Event()  # a new one after each release

    def __getitem__(self, fh: int) -> OpenFile:
        return self.by_handle[fh]

    def __iter__(self) -> Iterator[OpenFile]:
        """Give the files in the order in which they were opened."""
        return iter(self.by_handle.values())

    def add(self, fh: int, file: OpenFile) -> None:
        """Take note that *file* is open as *fh*."""
        self.by_handle[fh] = file

    def remove(self, fh: int) -> None:
        """Take note that *fh* is closed; a truncation is forgotten with the last writer."""
        file = self.by_handle.pop(fh)
        if file.writes and not self.writers(file.storage):
            file.storage.release()
        self._released.set()
        self._released = trio.Event()

    def of(self, storage: Storage) -> list[OpenFile]:
        """Return the open files of *storage*, in the order in which they were opened."""
        return [file for file in self.by_handle.values() if file.storage is storage]

    def writers(self, storage: Storage) -> list[OpenFile]:
        """Return those of them that may write."""
        return [file for file in self.of(storage) if file.writes]

    async def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Return whether *condition* holds, or comes to hold when a file is released within RELEASE_TIME."""
        with trio.move_on_after(RELEASE_TIME):
            while not condition():
                await self._released.wait()
            return True
        return False
