"""Where the bytes of a disk are: a file, or memory; and a log of what a power failure would take back."""

import ctypes
import errno
import fcntl
import logging
import os
import stat
import weakref
from pathlib import Path
from typing import Final, Self

from iscsifs.errors import ConfigError, printable
from iscsifs.iscsi.framing import Buffer

log = logging.getLogger(__name__)

_PUNCH_HOLE: Final = 0x03  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE of fallocate(2)
_ZEROS: Final = memoryview(bytes(1 << 20))

_NO_LOCKS: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL})
"""What flock(2) answers on file systems without locks."""

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Store:
    """A range of bytes behind a file descriptor, which is closed with the last reference to the store.

    Offsets, lengths and `size` are in bytes. `read` and `write` go to the page cache and never block for
    long; `sync` does. All of them raise OSError, also where the file has become shorter than `size`: what is
    missing is never read as zeros, and a write does not make the file longer. Each kind of error is logged
    once. *name* is for messages; `made` tells whether `open` has made the file.
    """

    def __init__(
        self, fd: int, size: int, *, in_memory: bool = False, name: str = "memory", made: bool = False
    ) -> None:
        self._fd = fd
        self._closing = weakref.finalize(self, os.close, fd)
        self._cuttable = stat.S_ISREG(os.fstat(fd).st_mode)
        self._said: set[tuple[str, int | None]] = set()
        self._unsynchronised: OSError | None = None
        self.size = size
        self.in_memory = in_memory
        self.name = name
        self.made = made

    @classmethod
    def memory(cls, size: int) -> Self:
        """Return a store of zeros in memory, which is taken only for what is written."""
        fd = os.memfd_create("iscsifs-target")
        os.ftruncate(fd, size)
        return cls(fd, size, in_memory=True)

    @classmethod
    def open(
        cls, path: Path, *, size: int | None = None, read_only: bool = False, shared: bool = False
    ) -> Self:
        """Return the store of the file or block device at *path*.

        A file that does not exist is made, sparse and of *size* bytes; one that exists keeps its own size.
        It is locked (flock(2)) for as long as it is open: one store may write to it, or any number read it,
        or any number do either if all that write are *shared*. Raises ConfigError.
        """
        name = f"image {printable(str(path))}"
        fd, made = _open(path, name, size, read_only=read_only, shared=shared)
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise ConfigError(f"{name}: it is neither a file nor a block device")
            _lock(fd, name, exclusive=not (read_only or shared))
            length = os.lseek(fd, 0, os.SEEK_END)
            if not length and size and not read_only and stat.S_ISREG(mode):
                os.ftruncate(fd, size)
                length = size
            return cls(fd, length, name=name, made=made)
        except (OSError, ConfigError) as exc:
            os.close(fd)
            if made:
                path.unlink(missing_ok=True)
            if isinstance(exc, OSError):
                raise ConfigError(f"{name}: {exc.strerror}") from None
            raise

    def read(self, offset: int, length: int) -> bytearray:
        """Return *length* bytes at *offset*."""
        data = bytearray(length)
        view = memoryview(data)
        while view:
            try:
                count = os.preadv(self._fd, [view], offset)
            except OSError as exc:
                raise self._failed("read", exc) from None
            if not count:
                raise self._cut()
            view = view[count:]
            offset += count
        return data

    def write(self, offset: int, data: Buffer) -> None:
        """Put *data* at *offset*."""
        view = memoryview(data)
        self._require(offset + len(view))
        while view:
            try:
                count = os.pwritev(self._fd, [view], offset)
            except OSError as exc:
                raise self._failed("written", exc) from None
            view = view[count:]
            offset += count

    def discard(self, offset: int, length: int) -> None:
        """Make *length* bytes at *offset* zeros, and give their space back where the file system can."""
        self._require(offset + length)
        if not length or _fallocate(self._fd, _PUNCH_HOLE, offset, length) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise self._failed("written", OSError(code, os.strerror(code)))
        while length:
            count = min(length, len(_ZEROS))
            self.write(offset, _ZEROS[:count])
            offset += count
            length -= count

    def will_need(self, offset: int, length: int) -> None:
        """Have the kernel read *length* bytes at *offset* ahead, without waiting for them."""
        os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def extent(self, offset: int) -> tuple[bool, int]:
        """Return whether the byte at *offset* has space of its own, and the offset up to where that holds."""
        self._require(self.size)  # what is missing is no hole
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
        """Wait until all that was written is on the medium.

        After an error nobody can say any more that it is: the kernel forgets what it could not write, and
        would report success the next time. So the error stays for as long as the store is open.
        """
        self._require(self.size)
        if self._unsynchronised is not None:
            raise self._unsynchronised
        try:
            os.fdatasync(self._fd)
        except OSError as exc:
            self._unsynchronised = self._failed("synchronised", exc)
            raise self._unsynchronised from None

    def close(self) -> None:
        """Give the file back; the store is not to be used any more. A second time does nothing."""
        self._closing()

    def _require(self, end: int) -> None:
        """Raise OSError unless the file still reaches to *end*: a write would make it longer, with a hole."""
        if self._cuttable and os.fstat(self._fd).st_size < min(end, self.size):
            raise self._cut()

    def _cut(self) -> OSError:
        """Return the error for what the file has lost since it was opened."""
        length = os.lseek(self._fd, 0, os.SEEK_END)
        if self._first("cut", None):
            log.error(
                "%s: it was cut to %d bytes while it is served as %d: what is missing is an error now",
                *(self.name, length, self.size),
            )
        return OSError(errno.EIO, "the file was cut while it was served")

    def _failed(self, done: str, error: OSError) -> OSError:
        """Log *error* if it is the first of its kind, and return it."""
        if self._first(done, error.errno):
            log.error("%s: it cannot be %s: %s", self.name, done, error.strerror)
        return error

    def _first(self, what: str, code: int | None) -> bool:
        if (what, code) in self._said:
            return False
        self._said.add((what, code))
        return True


def _open(path: Path, name: str, size: int | None, *, read_only: bool, shared: bool) -> tuple[int, bool]:
    """Open *path*; tell whether that has made it. Raises ConfigError."""
    flags = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR)
    try:
        # With O_EXCL the kernel refuses a block device that is mounted, or otherwise in use.
        block_device = not (read_only or shared) and path.is_block_device()
        return os.open(path, flags | (os.O_EXCL if block_device else 0)), False
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            raise ConfigError(
                f"{name}: it is mounted, or served already; unmount it, or give --read-only or --shared"
            ) from None
        if exc.errno != errno.ENOENT:
            remedy = "; give a file, a block device or mem:SIZE" if exc.errno == errno.EISDIR else ""
            raise ConfigError(f"{name}: {exc.strerror}{remedy}") from None
    if read_only:
        raise ConfigError(f"{name}: {os.strerror(errno.ENOENT)}; leave out --read-only to have it made")
    if size is None:
        raise ConfigError(f"{name}: {os.strerror(errno.ENOENT)}; give --size SIZE to have it made")
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600), True
    except OSError as exc:
        raise ConfigError(f"{name}: {exc.strerror}") from None


def _lock(fd: int, name: str, *, exclusive: bool) -> None:
    """Lock the file, under whichever of its names it was opened; raises ConfigError."""
    try:
        fcntl.flock(fd, fcntl.LOCK_NB | (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH))
    except BlockingIOError:
        raise ConfigError(
            f"{name}: it is served already, by this or another program; to allow it, give --shared to each"
        ) from None
    except OSError as exc:
        if exc.errno not in _NO_LOCKS:
            raise
        log.warning("%s: its file system has no locks; make sure that no other process serves it", name)


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
        """Note that *blocks* from *lba* are about to be written."""
        size = self._block_size
        fresh = [block for block in range(lba, lba + blocks) if block not in self._old]
        if fresh:
            held = memoryview(self._store.read(lba * size, blocks * size))
            for block in fresh:
                start = (block - lba) * size
                self._old[block] = bytes(held[start : start + size])

    def forget(self, lba: int, blocks: int) -> None:
        """Note that *blocks* from *lba* are on the medium."""
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
