"""Where the bytes of a disk are: a file, or memory; and a log of what a power failure would take back."""

import ctypes
import errno
import os
import stat
from pathlib import Path
from typing import Final, Self

from iscsifs.errors import ConfigError
from iscsifs.iscsi.framing import Buffer

_PUNCH_HOLE: Final = 0x03  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE of fallocate(2)
_ZEROS: Final = memoryview(bytes(1 << 20))

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Store:
    """A range of bytes behind a file descriptor, which it owns.

    Offsets, lengths and `size` are in bytes. `read` and `write` go to the page cache and never block for
    long; `sync` does. All of them raise OSError.
    """

    def __init__(self, fd: int, size: int, *, in_memory: bool = False) -> None:
        self._fd = fd
        self.size = size
        self.in_memory = in_memory

    @classmethod
    def memory(cls, size: int) -> Self:
        """Return a store of zeros in memory, which is taken only for what is written."""
        fd = os.memfd_create("iscsifs-target")
        os.ftruncate(fd, size)
        return cls(fd, size, in_memory=True)

    @classmethod
    def open(cls, path: Path, *, size: int | None = None, read_only: bool = False) -> Self:
        """Return the store of the file or block device at *path*.

        A file that does not exist is made, sparse and of *size* bytes; one that exists keeps its own size.
        Raises ConfigError.
        """
        flags = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR)
        if size is not None and not read_only:
            flags |= os.O_CREAT
        try:
            fd = os.open(path, flags, 0o600)
        except OSError as exc:
            hint = "; give its size to have it made" if exc.errno == errno.ENOENT else ""
            raise ConfigError(f"image {path}: {exc.strerror}{hint}") from None
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise ConfigError(f"image {path}: it is neither a file nor a block device")
            length = os.lseek(fd, 0, os.SEEK_END)
            if not length and size and stat.S_ISREG(mode):
                os.ftruncate(fd, size)
                length = size
        except OSError as exc:
            os.close(fd)
            raise ConfigError(f"image {path}: {exc.strerror}") from None
        except ConfigError:
            os.close(fd)
            raise
        return cls(fd, length)

    def read(self, offset: int, length: int) -> bytearray:
        """Return *length* bytes at *offset*; what the file has lost since it was opened are zeros."""
        data = bytearray(length)
        view = memoryview(data)
        while view:
            count = os.preadv(self._fd, [view], offset)
            if not count:
                break
            view = view[count:]
            offset += count
        return data

    def write(self, offset: int, data: Buffer) -> None:
        """Put *data* at *offset*."""
        view = memoryview(data)
        while view:
            count = os.pwritev(self._fd, [view], offset)
            view = view[count:]
            offset += count

    def discard(self, offset: int, length: int) -> None:
        """Make *length* bytes at *offset* zeros, and give their space back where the file system can."""
        if not length or _fallocate(self._fd, _PUNCH_HOLE, offset, length) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(code, os.strerror(code))
        while length:
            count = min(length, len(_ZEROS))
            self.write(offset, _ZEROS[:count])
            offset += count
            length -= count

    def extent(self, offset: int) -> tuple[bool, int]:
        """Return whether the byte at *offset* has space of its own, and the offset up to where that holds."""
        try:
            data = os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno != errno.ENXIO:  # there are no more data
                raise
            return False, self.size
        if data > offset:
            return False, min(data, self.size)
        return True, min(os.lseek(self._fd, offset, os.SEEK_HOLE), self.size)

    def resize(self, size: int) -> None:
        """Cut or lengthen it to *size* bytes, new ones being zeros."""
        os.ftruncate(self._fd, size)
        self.size = size

    def sync(self) -> None:
        """Wait until all that was written is on the medium."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Give the file back; the store is not to be used any more."""
        os.close(self._fd)


class UndoLog:
    """What the blocks of a store held when they were last synchronised, for those written since.

    This is a volatile write cache turned round: new data go straight to the store, and a power failure puts
    back what they replaced.
    """

    def __init__(self, store: Store, block_size: int) -> None:
        self._store = store
        self._block_size = block_size
        self._old: dict[int, bytes] = {}

    @property
    def blocks(self) -> frozenset[int]:
        """The LBAs whose data a power failure would take back."""
        return frozenset(self._old)

    def remember(self, lba: int, blocks: int) -> None:
        """Take note that *blocks* from *lba* are about to be written."""
        size = self._block_size
        fresh = [block for block in range(lba, lba + blocks) if block not in self._old]
        if fresh:
            held = memoryview(self._store.read(lba * size, blocks * size))
            for block in fresh:
                start = (block - lba) * size
                self._old[block] = bytes(held[start : start + size])

    def forget(self, lba: int, blocks: int) -> None:
        """Take note that *blocks* from *lba* are on the medium."""
        if blocks < len(self._old):
            for block in range(lba, lba + blocks):
                self._old.pop(block, None)
        else:
            self._old = {block: old for block, old in self._old.items() if not lba <= block < lba + blocks}

    def undo(self) -> None:
        """Put back what every block held that is not on the medium."""
        for block, old in self._old.items():
            self._store.write(block * self._block_size, old)
        self._old.clear()
