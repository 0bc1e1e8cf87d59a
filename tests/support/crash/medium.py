"""A disk that remembers every write and every flush, and what a power failure leaves of it."""

import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from iscsifs.iscsi.framing import Buffer
from iscsifs.target.disk import Disk
from iscsifs.target.store import Store, UndoLog
from iscsifs.target.unit import Identity

SECTOR: Final = 512
"""Bytes of a block of the disk."""


@dataclass(frozen=True, slots=True)
class Write:
    """The sectors from *lba* hold *data* since WRITE, WRITE SAME or UNMAP was carried out."""

    lba: int
    data: bytes

    @property
    def end(self) -> int:
        """The LBA after the last."""
        return self.lba + len(self.data) // SECTOR

    def part(self, start: int, end: int) -> list["Write"]:
        """What of this write is in the sectors from *start* to *end*, if anything."""
        start, end = max(start, self.lba), min(end, self.end)
        if start >= end:
            return []
        return [Write(start, self.data[(start - self.lba) * SECTOR : (end - self.lba) * SECTOR])]


@dataclass(frozen=True, slots=True)
class Flush:
    """Sectors reached the medium: a SYNCHRONIZE CACHE, or a WRITE with FUA, was carried out."""

    lba: int
    blocks: int


Entry = Write | Flush


class _LoggedStore(Store):
    entries: list[Entry]

    def write(self, offset: int, data: Buffer) -> None:
        super().write(offset, data)
        self.entries.append(Write(offset // SECTOR, bytes(data)))

    def discard(self, offset: int, length: int) -> None:
        super().discard(offset, length)
        self.entries.append(Write(offset // SECTOR, bytes(length)))


class _LoggedFlushes(UndoLog):
    def __init__(self, store: _LoggedStore) -> None:
        super().__init__(store, SECTOR)
        self._entries = store.entries

    def forget(self, lba: int, blocks: int) -> None:
        super().forget(lba, blocks)
        self._entries.append(Flush(lba, blocks))


def logged_disk(image: Path, entries: list[Entry]) -> Disk:
    """Return a disk on *image* with a volatile cache, which appends what is done to it to *entries*.

    The cache can be dropped; what was there before is then written again, and not flushed.
    """
    store = _LoggedStore.open(image)
    store.entries = entries
    disk = Disk(store, Identity(image.stem), block_size=SECTOR, write_cache=True)
    disk.undo_log = _LoggedFlushes(store)
    return disk


class Medium:
    """The medium of a disk as its log goes on: what was flushed, and the writes that were not.

    *image* is what it held before the first of *entries*; it is changed.
    """

    def __init__(self, image: Path, entries: Sequence[Entry]) -> None:
        self._image = image
        self._entries = entries
        self.position = 0
        self.cached: list[Write] = []
        """The writes that a power failure may take, in the order in which they were carried out."""

    def advance(self, position: int) -> None:
        """Go on to where *position* entries of the log have happened."""
        with self._image.open("r+b") as file:
            for entry in self._entries[self.position : position]:
                if isinstance(entry, Write):
                    self.cached.append(entry)
                    continue
                start, end = entry.lba, entry.lba + entry.blocks
                left = []
                for write in self.cached:
                    for durable in write.part(start, end):
                        _apply(file.fileno(), durable)
                    left += write.part(0, start) + write.part(end, write.end)
                self.cached = left
        self.position = position

    def fail(self, survivors: Sequence[Write], image: Path) -> None:
        """Make *image* what is left when the power fails now and of the cached writes *survivors* remain."""
        copy_sparse(self._image, image)
        with image.open("r+b") as file:
            for write in survivors:
                _apply(file.fileno(), write)


def nothing(cached: Sequence[Write], atom: int, rng: random.Random) -> list[Write]:
    """The cache is lost."""
    return []


def everything(cached: Sequence[Write], atom: int, rng: random.Random) -> list[Write]:
    """The cache was just written."""
    return list(cached)


def some(cached: Sequence[Write], atom: int, rng: random.Random) -> list[Write]:
    """Any of the writes made it."""
    share = rng.random()
    return [write for write in cached if rng.random() < share]


def torn(cached: Sequence[Write], atom: int, rng: random.Random) -> list[Write]:
    """Of any of the writes, any of the atoms made it."""
    share = rng.random()
    return [part for write in cached for part in _atoms(write, atom) if rng.random() < share]


def interrupted(cached: Sequence[Write], atom: int, rng: random.Random) -> list[Write]:
    """The cache was being written in its order; the last of the writes is there in part."""
    if not cached:
        return []
    last = rng.randrange(len(cached))
    atoms = _atoms(cached[last], atom)
    return [*cached[:last], *atoms[: rng.randint(0, len(atoms))]]


FAILURES: Final = (nothing, everything, some, torn, interrupted)
"""What a power failure may leave of the cached writes, where *atom* sectors are written as a whole."""


def copy_sparse(source: Path, copy: Path) -> None:
    """Make *copy* a file with the contents of *source* and its holes."""
    with source.open("rb") as old, copy.open("wb") as new:
        size = os.fstat(old.fileno()).st_size
        new.truncate(size)
        start = 0
        while start < size:
            try:
                start = os.lseek(old.fileno(), start, os.SEEK_DATA)
            except OSError:  # ENXIO: the rest is a hole
                break
            end = os.lseek(old.fileno(), start, os.SEEK_HOLE)
            old.seek(start)
            new.seek(start)
            while start < end:
                start += os.sendfile(new.fileno(), old.fileno(), start, end - start)
    shutil.copymode(source, copy)


def _atoms(write: Write, atom: int) -> list[Write]:
    """Cut *write* up at multiples of *atom* sectors."""
    starts = range(write.lba // atom * atom, write.end, atom)
    return [part for start in starts for part in write.part(start, start + atom)]


def _apply(fd: int, write: Write) -> None:
    os.pwrite(fd, write.data, write.lba * SECTOR)
