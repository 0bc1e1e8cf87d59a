"""Keeps the process in memory.

When memory runs short, the kernel frees some by writing dirty pages back, also to disks that this process
serves. If the process then waited for memory itself, neither would go on.
"""

import ctypes
import gc
import logging
import os
import resource
from typing import Final

log = logging.getLogger(__name__)

_PR_SET_IO_FLUSHER: Final = 57  # prctl(2)
_MCL_CURRENT: Final = 1  # mlockall(2)
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4
_M_TRIM_THRESHOLD: Final = -1  # mallopt(3)
_M_MMAP_THRESHOLD: Final = -3

_KEPT: Final = 128 * 1024 * 1024
"""Bytes of freed memory that stay with the process; a flush frees half as much at once."""

_LARGEST_KEPT: Final = 1024 * 1024 + 1024
"""Bytes of the largest buffer that is kept: the data of a request. libfuse's own are larger, and there is one
for each request in work: these are returned one by one."""


class ProcessMemory:
    """The memory of this process: locking it, and returning what is freed to the kernel."""

    def __init__(self) -> None:
        self._is_locked = False

    def keep(self) -> None:
        """Lock the memory of the process, and have its allocations not wait for write-back, as far as
        permitted."""
        try:
            _call("prctl", _PR_SET_IO_FLUSHER, 1, 0, 0, 0)
        except OSError as exc:
            log.info(
                "not marked as a process that serves disks (%s); that takes CAP_SYS_RESOURCE", exc.strerror
            )
        # Under a limit, what is locked is taken from every later allocation, which then would fail.
        if os.geteuid() != 0 and resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY:
            log.info('memory is not locked; that takes root, or "ulimit -l unlimited"')
            return
        try:
            _lock()
            self._is_locked = True
        except OSError as exc:
            log.info("memory is not locked (%s)", exc.strerror)

    def keep_freed(self) -> None:
        """Use freed buffers again instead of returning their memory to the kernel, until `give_back`: a
        seventh of the time of a large write went into getting it anew, page by page."""
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
            libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)

    def give_back(self) -> None:
        """Return to the kernel what is free between the buffers in use; it takes a few milliseconds.

        What is locked cannot be returned, so the lock is off meanwhile.
        """
        gc.collect()
        libc = ctypes.CDLL(None)
        if not hasattr(libc, "malloc_trim"):  # the C library is not that of GNU
            return
        if self._is_locked:
            _call("munlockall")
        libc.malloc_trim(ctypes.c_size_t(0))
        if self._is_locked:
            _lock()


def _lock() -> None:
    """Lock what is there and what will be, as soon as it is used; raises OSError."""
    _call("mlockall", _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)


def _call(name: str, *arguments: int) -> None:
    """Call a function of the C library that returns 0; raises OSError."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*map(ctypes.c_ulong, arguments)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
