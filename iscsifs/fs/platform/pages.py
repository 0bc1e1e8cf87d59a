"""Cached pages of a file that hold other bytes than the unit does now, and must be dropped.

The kernel drops them at each open (keep_cache=False), or when it is told to (FUSE_NOTIFY_INVAL_INODE). Both
wait for pages that are being read, that is for this program. So there are two ways, for two needs:

`PageDropper`
    For pages that somebody else may have made old, which no request waits for. Another process opens the
    file: when our end closes the connection, it ends as well. A thread of ours that waits in the kernel
    cannot be killed, and holds our descriptors: after a SIGKILL the connection would stay, and the thread
    with it.
`drop_pages`
    For pages that programs would take for zeros: the request that makes zeros of them is answered when they
    are gone. This has to be certain, and it comes with each write behind a hole. So a thread tells the
    kernel the inode, in microseconds: a process takes milliseconds, and a path can lead to another mount.
    What is said above of a SIGKILL holds for the time that the request waits; ``umount -f`` ends that. Any
    other end does so itself, where it may (`is_thread_waiting`).
"""

import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVarTuple, Unpack

import trio

log = logging.getLogger(__name__)

_Ts = TypeVarTuple("_Ts")

_OPEN: Final = ("/bin/sh", "-c", ': <"$1"', "iscsifs-open")

_LOOK_INTERVAL: Final = 0.01
"""Seconds between two looks at whether a process has ended."""


_waiting: Final[set[object]] = set()


async def drop_pages(invalidate: Callable[[int], None], inode: int, patience: float) -> bool:
    """Have the kernel drop the pages of *inode*; return whether it has done so within *patience* seconds.

    *invalidate(inode)* sends FUSE_NOTIFY_INVAL_INODE, in a thread. Raises MemoryError where none can be
    started.
    """
    with trio.move_on_after(patience):
        try:
            await trio.to_thread.run_sync(in_kernel, invalidate, inode, abandon_on_cancel=True)
        except RuntimeError as exc:
            raise MemoryError(str(exc)) from None
        except OSError as exc:  # the kernel knows no such inode, so it has no pages of it
            log.debug("inode %d: %s", inode, exc)
        return True
    return False


def in_kernel(notify: Callable[[Unpack[_Ts]], None], *arguments: *_Ts) -> None:
    """Call *notify* in this thread, and have `is_thread_waiting` know."""
    waiting = object()
    _waiting.add(waiting)
    try:
        notify(*arguments)
    finally:
        _waiting.remove(waiting)


def is_thread_waiting() -> bool:
    """Say whether a thread of `in_kernel` waits for a page or a directory: until it returns the process
    cannot end."""
    return bool(_waiting)


class PageDropper:
    """Drops pages of the files of what is mounted on *mount_point*, without waiting for that."""

    def __init__(self, mount_point: Path) -> None:
        self._mount_point = os.fsencode(mount_point)
        self._openers: dict[bytes, subprocess.Popen[bytes]] = {}

    def drop(self, path: bytes) -> None:
        """Have the pages of the file at *path*, below the mount point, dropped soon."""
        self._openers = {path: opener for path, opener in self._openers.items() if opener.poll() is None}
        if path in self._openers:
            return
        try:
            self._openers[path] = self._open(path)
        except (OSError, MemoryError) as exc:
            log.info("%s: what is cached stays until the next open (%s)", os.fsdecode(path), exc)

    async def write_back(self, path: bytes, is_wanted: Callable[[], bool]) -> bool:
        """Return whether the kernel has written what mmap(2) has changed of the file at *path*.

        A close has it written, and waits for that; syncfs(2) does not wait. Gives up when it is no longer
        wanted.
        """
        try:
            opener = self._open(path)
        except (OSError, MemoryError) as exc:
            log.info("%s: %s", os.fsdecode(path), exc)
            return False
        while opener.poll() is None:
            if not is_wanted():
                return False
            await trio.sleep(_LOOK_INTERVAL)
        return opener.returncode == 0

    def _open(self, path: bytes) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*_OPEN, self._mount_point + b"/" + path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
