"""Cached pages of a file that hold other bytes than the unit does now, and must be dropped.

The kernel drops the pages of a file at each open (keep_cache=False), and when it is told to
(FUSE_NOTIFY_INVAL_INODE). In both cases the caller waits for pages that are being read, and this program
answers these reads. A thread of this program that waits in the kernel cannot be killed, and holds the
descriptor of FUSE: after SIGKILL process and mount would hang until ``umount -f``.
So no thread of this program may wait for its own mount. There are two ways:

`PagesByChild`
    A child process opens the file. When this program ends, the kernel aborts the connection, and the child
    ends as well. There are at most MAX_CHILDREN. A child takes milliseconds, and keeps the mount busy while
    it runs: umount(8) may answer EBUSY in that time.
`PagesByThread`
    A thread tells the kernel the inode. This works for a mount that no path leads to: one that was detached
    (``umount -l``), or covered by another. It is used where a child has not opened the file.
"""

import logging
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import trio

log = logging.getLogger(__name__)

MAX_CHILDREN: Final = 32
"""Child processes at once; each waits for the pages of another file."""

COMMAND: Final = ("/bin/sh", "-c", ': <"$1"', "iscsifs-open")
"""What a child runs, without the path. The shell itself opens the file, and so has the child's number."""

_LOOK_INTERVAL: Final = 0.1
"""Seconds between two looks at whether a result is still wanted."""


class Pages(Protocol):
    """The kernel's cached pages of the files of a mount. A *path* is relative to the mount point."""

    @property
    def is_thread_waiting(self) -> bool:
        """Whether a thread waits in the kernel: until it returns the process cannot end."""

    async def is_answered(self) -> bool:
        """Ask the mount point for its attributes; return False where it answers with an error.

        Return True where there is neither a process nor a thread to ask.
        """

    def opened(self, inode: int, pid: int) -> None:
        """Note that process *pid* opens *inode*."""

    async def drop(self, inode: int, path: bytes | None, patience: float) -> bool:
        """Drop the pages of *inode*, at *path*; return whether that was done within *patience* seconds.

        Raises MemoryError where there is neither a process nor a thread for it.
        """

    def drop_soon(self, inode: int, path: bytes) -> None:
        """Have the pages of *inode*, at *path*, dropped soon, as far as possible."""

    async def write_back(self, inode: int, path: bytes, is_wanted: Callable[[], bool]) -> bool:
        """Return whether the kernel has written what mmap(2) has changed of *inode*, at *path*.

        A close has it written, and waits for that; syncfs(2) does not wait. Gives up when it is no longer
        wanted.
        """


class PagesByThread:
    """Drops pages by a thread, which waits in the kernel.

    *invalidate(inode)* sends FUSE_NOTIFY_INVAL_INODE. *make_room* makes room for the stack of a thread.
    """

    def __init__(
        self,
        mount_point: Path,
        invalidate: Callable[[int], None],
        make_room: Callable[[], object] = lambda: None,
    ) -> None:
        self._mount_point = os.fsencode(mount_point)
        self._invalidate = invalidate
        self._make_room = make_room
        self._waiting: list[object] = []  # an entry for each thread; append and pop are atomic

    @property
    def is_thread_waiting(self) -> bool:
        """Whether a thread waits in the kernel."""
        return bool(self._waiting)

    async def is_answered(self) -> bool:
        """Wait until the mount point answers."""
        try:
            await self._in_thread(os.stat, self._mount_point)
        except OSError:
            return False
        except MemoryError:
            pass
        return True

    def opened(self, inode: int, pid: int) -> None:
        """Do nothing."""

    async def drop(self, inode: int, path: bytes | None, patience: float) -> bool:
        """Drop the pages of *inode*; raises MemoryError where no thread can be started."""
        with trio.move_on_after(patience):
            try:
                await self._in_thread(self._invalidate, inode)
            except OSError as exc:  # the kernel knows no such inode, so it has no pages of it
                log.debug("inode %d: %s", inode, exc)
            return True
        return False

    def drop_soon(self, inode: int, path: bytes) -> None:
        """Have a thread drop the pages of *inode*."""

        async def drop() -> None:
            try:
                await self._in_thread(self._invalidate, inode)
            except (OSError, MemoryError) as exc:
                _log_kept(path, exc)

        trio.lowlevel.spawn_system_task(drop)

    async def write_back(self, inode: int, path: bytes, is_wanted: Callable[[], bool]) -> bool:
        """Have a thread open and close the file."""

        def open_and_close() -> None:
            os.close(os.open(self._mount_point + b"/" + path, os.O_RDONLY))

        done, is_written = trio.Event(), False

        async def write() -> None:
            nonlocal is_written
            try:
                await self._in_thread(open_and_close)
                is_written = True
            except (OSError, MemoryError) as exc:
                log.info("%s: not written back: %s", os.fsdecode(path), exc)
            done.set()

        trio.lowlevel.spawn_system_task(write)
        await _wait_while(is_wanted, done)
        return is_written

    async def _in_thread(self, work: Callable[..., object], *arguments: object) -> None:
        """Run *work* in a thread; raises MemoryError where none can be started."""

        def run() -> None:
            self._waiting.append(work)
            try:
                work(*arguments)
            finally:
                self._waiting.pop()

        self._make_room()
        try:
            await trio.to_thread.run_sync(run, abandon_on_cancel=True)
        except RuntimeError as exc:
            raise MemoryError(str(exc)) from None


async def _wait_while(is_wanted: Callable[[], bool], done: trio.Event) -> None:
    """Wait until *done* is set, or its result is no longer wanted."""
    while not done.is_set() and is_wanted():
        with trio.move_on_after(_LOOK_INTERVAL):
            await done.wait()


def _log_kept(path: bytes, reason: object) -> None:
    log.info("%s: cached pages stay until the next open: %s", os.fsdecode(path), reason)


class _Opening:
    """One opening of a file by a child, for all who ask before it begins."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.status: int | None = None
        """The exit status of the child; None where there was none."""
        self.inode = 0
        """The inode of this mount that the child has opened; 0 where it has opened none."""


class PagesByChild:
    """Drops pages by child processes, and by *thread* where a child does not find the file."""

    def __init__(self, mount_point: Path, thread: PagesByThread) -> None:
        self._mount_point = os.fsencode(mount_point)
        self._thread = thread
        self._slots = trio.CapacityLimiter(MAX_CHILDREN)
        self._wanted: dict[bytes, _Opening] = {}  # not begun, by path
        self._busy: set[bytes] = set()  # paths that have a task
        self._children: dict[int, _Opening] = {}  # by process number

    @property
    def is_thread_waiting(self) -> bool:
        """Whether a thread waits in the kernel."""
        return self._thread.is_thread_waiting

    async def is_answered(self) -> bool:
        """Wait until a child has opened the mount point."""
        opening = self._open(b"")
        await opening.done.wait()
        return opening.status in (0, None)

    def opened(self, inode: int, pid: int) -> None:
        """Note the inode that a child opens: its path can lead to another mount."""
        if pid in self._children:
            self._children[pid].inode = inode

    async def drop(self, inode: int, path: bytes | None, patience: float) -> bool:
        """Have a child open the file at *path*; raises MemoryError where there is no thread either."""
        began = trio.current_time()
        with trio.move_on_after(patience):
            if path is not None:
                opening = self._open(path)
                await opening.done.wait()
                if opening.status == 0 and opening.inode == inode:
                    return True
            return await self._thread.drop(inode, path, began + patience - trio.current_time())
        return False

    def drop_soon(self, inode: int, path: bytes) -> None:
        """Have a child open the file at *path*."""
        self._open(path)

    async def write_back(self, inode: int, path: bytes, is_wanted: Callable[[], bool]) -> bool:
        """Have a child open and close the file at *path*."""
        opening = self._open(path)
        await _wait_while(is_wanted, opening.done)
        return opening.status == 0 and opening.inode == inode

    def _open(self, path: bytes) -> _Opening:
        """Have a child open the file at *path*, from now on and not earlier; one child at a time for each."""
        if (opening := self._wanted.get(path)) is not None:
            return opening
        opening = _Opening()
        try:
            if path not in self._busy:
                trio.lowlevel.spawn_system_task(self._open_wanted, path)
                self._busy.add(path)
            self._wanted[path] = opening
        except MemoryError as exc:
            _log_kept(path, exc)
            opening.done.set()
        return opening

    async def _open_wanted(self, path: bytes) -> None:
        try:
            while path in self._wanted:
                async with self._slots:
                    opening = self._wanted.pop(path)
                    try:
                        await self._run_child(path, opening)
                    except (OSError, MemoryError) as exc:
                        _log_kept(path, exc)
                    finally:
                        opening.done.set()
        finally:
            self._busy.discard(path)

    async def _run_child(self, path: bytes, opening: _Opening) -> None:
        """Run a child until it has opened and closed the file at *path*; raises OSError and MemoryError."""
        child = subprocess.Popen(  # noqa: ASYNC220  # trio would do it in a thread
            [*COMMAND, self._mount_point + b"/" + path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Before exec(2) this program waits for the child (vfork), so the child must not close copies of
            # descriptors then: one of a file in this mount would send FLUSH, which nobody could answer.
            close_fds=False,
            start_new_session=True,
        )
        self._children[child.pid] = opening
        try:
            descriptor = os.pidfd_open(child.pid)
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
            opening.status = child.wait()
        except trio.Cancelled:
            # At the end of the mount. The child may wait in the kernel; init reaps it when this program ends.
            child.kill()
            child.returncode = -signal.SIGKILL
            raise
        finally:
            del self._children[child.pid]
            if child.poll() is None:
                child.kill()  # reaped by the next Popen, as it may wait in the kernel
