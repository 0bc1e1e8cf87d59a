"""Memory for requests: none is taken from FUSE unless there is enough for it.

libfuse and pyfuse3 allocate while they take a request. Where that fails they cannot answer it, and whoever
made it would wait for ever; or the main loop ends, and the mount with it. What we allocate ourselves may fail
(ENOMEM), so it is enough to look before. A request that is not taken waits in the kernel.

Looking takes two system calls. While there is plenty, one look is good for many requests.
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
"""That there have to be: libfuse's, pyfuse3's copy, our own, an arena of Python's for the small things, and
four that a write of neighbours may be joined in, so that what is held can always be written and let go."""

_BURST: Final = 64
"""Requests for which one look is enough while there is plenty."""

_PLENTY: Final = (_BURST * 2 + 2 * _PIECES) * _PIECE + 64 * MIB
"""Bytes for a burst of requests, and for what others take in the meantime."""

_TRUST: Final = 0.002
"""Seconds for which one look is enough."""

RESERVE: Final = 32 * MIB
"""Bytes of addresses, without memory behind them, that are held until memory runs short: what a request
needs, and as much again for a few more and for the stack of a thread."""


class Headroom:
    """The memory that is left. *relieve* is called, again and again, while it is not enough for a request.

    Raises OSError where there is not even enough for the reserve.
    """

    def __init__(self, relieve: Callable[[], None]) -> None:
        self._relieve = relieve
        self._reserve: mmap.mmap | None = _map(RESERVE)
        self._requests = 0  # that need no other look
        self._until = 0.0

    def has_room(self) -> bool:
        """Say whether a request can be taken now, which the caller then does at once."""
        if self._requests and monotonic() < self._until:
            self._requests -= 1
            return True
        return self._look()

    def _look(self) -> bool:
        self._requests = 0
        if _may_map(_PLENTY):
            if self._reserve is None:
                with suppress(OSError):  # somebody else was faster
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
        with suppress(MemoryError):  # it is called again
            self._relieve()
        return _may_map(_PIECES * _PIECE)


def _map(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _may_map(size: int) -> bool:
    """Say whether the kernel lets us have *size* bytes more; they are not used."""
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
    """Say whether the pieces can be had, also of what the process has but does not use."""
    pieces = [_libc.malloc(_PIECE) for _ in range(_PIECES)]
    for piece in pieces:
        _libc.free(piece)
    return all(pieces)
