"""Memory for requests: none is taken from FUSE unless there is enough for it.

libfuse and pyfuse3 allocate memory while they take a request. If that fails, they cannot answer the request
and its process hangs, or the main loop ends and the mount with it. An allocation of our own may fail: then
the request gets ENOMEM. So the check comes before a request is taken. Until then it waits in the kernel.

A check costs two system calls. While there is plenty of memory, one check is enough for many requests.
"""

import ctypes
import logging
import mmap
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Final

log = logging.getLogger(__name__)

MIB: Final = 1 << 20

_PIECE: Final = MIB + (64 << 10)
"""Bytes of a buffer that a request may need: 1 MiB of data, and headers."""

_PIECES: Final = 8
"""Pieces that a request needs: one each for libfuse, for pyfuse3's copy, for our own, and for an arena of
Python's small objects, and four for a write that joins neighbours: the write buffer can always be written."""

_BURST: Final = 64
"""Requests for which one check is enough while there is plenty of memory."""

_PLENTY: Final = (_BURST * 2 + 2 * _PIECES) * _PIECE + 64 * MIB
"""Bytes for a burst of requests, and for what other processes allocate in the meantime."""

_TRUST: Final = 0.002
"""Seconds for which one check is enough."""

RESERVE: Final = 32 * MIB
"""Bytes of addresses, without memory behind them, that are released when memory runs short: enough for one
request, for a few more, and for the stack of a thread."""


class Headroom:
    """The free memory. *relieve* is called at each check while there is not enough for a request.

    Raises OSError where there is not even enough for the reserve.
    """

    def __init__(self, relieve: Callable[[], None]) -> None:
        self._relieve = relieve
        self._reserve: mmap.mmap | None = _map(RESERVE)
        self._requests = 0  # that need no other check
        self._until = 0.0

    def has_room(self) -> bool:
        """Return whether there is memory for a request, which the caller takes at once."""
        if self._requests and monotonic() < self._until:
            self._requests -= 1
            return True
        return self._look()

    def _look(self) -> bool:
        self._requests = 0
        if _may_map(_PLENTY):
            if self._reserve is None:
                with suppress(OSError):  # another process has taken it
                    self._reserve = _map(RESERVE)
                    log.warning("there is enough memory again")
            self._requests = _BURST - 1
            self._until = monotonic() + _TRUST
            return True
        if _may_map(_PIECES * _PIECE) or _has_pieces():
            return True
        if self._reserve is not None:
            self._reserve.close()
            self._reserve = None
            log.error("memory runs short, and requests may have to wait; raise the limit with: ulimit -v")
        with suppress(MemoryError):  # the next check calls it again
            self._relieve()
        return _may_map(_PIECES * _PIECE)


def _map(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _may_map(size: int) -> bool:
    """Return whether the kernel would map *size* bytes more."""
    try:
        _map(size).close()
    except OSError:
        return False
    return True


_libc: Final = ctypes.PyDLL(None)
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.malloc.restype = ctypes.c_void_p
_libc.free.argtypes = [ctypes.c_void_p]
_libc.free.restype = None


def _has_pieces() -> bool:
    """Return whether malloc(3) has the pieces, also from memory that the process has but does not use."""
    pieces = [_libc.malloc(_PIECE) for _ in range(_PIECES)]
    for piece in pieces:
        _libc.free(piece)
    return all(pieces)
