"""The life of a mount: the mount point is looked at, the file system mounted, served and unmounted."""

import ctypes
import errno
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from iscsifs.errors import ConfigError, IscsifsError, reason
from iscsifs.fs.kernel import FuseKernel, NoKernel, drop_cached_pages
from iscsifs.fs.operations import Operations
from iscsifs.fs.platform.platform import Platform
from iscsifs.fs.record import MountEntry, Record, mount_at
from iscsifs.fs.storage import Storage
from iscsifs.fs.tree import Tree
from iscsifs.limits import END_TIMEOUT

log = logging.getLogger(__name__)

# A request in work occupies a task of pyfuse3. With its default of 99 tasks, 99 processes that wait for one
# unit that is away would stop all other units, so there is a task for every process.
_MAX_TASKS: Final = 1 << 16

_MNT_FORCE: Final = 1  # umount2(2): abort the connection

_PATIENCE: Final = 0.5
"""Seconds between two checks for requests in work."""

# Idle tasks that are kept. With fewer, a queue of 32 requests starts and ends tasks all the time.
_MIN_TASKS: Final = 32


def check_mount_point(mount_point: Path, nonempty: bool = False) -> None:
    """Raise ConfigError unless *mount_point* is a directory on which this user can mount, and empty unless
    *nonempty*."""
    try:
        entries = os.listdir(mount_point)
        if os.path.ismount(mount_point):
            entry = mount_at(Path(os.path.realpath(mount_point)))
            is_ours = entry is not None and entry.fstype == "fuse.iscsifs"
            command = "iscsifs --unmount" if is_ours else "umount"
            raise ConfigError(
                f"{mount_point}: something is mounted there already; give another directory, "
                f"or unmount it with: {command} {mount_point}"
            )
    except FileNotFoundError:
        raise ConfigError(f"{mount_point}: no such directory; make it with: mkdir {mount_point}") from None
    except NotADirectoryError:
        raise ConfigError(f"{mount_point}: not a directory; give an empty directory to mount on") from None
    except OSError as exc:
        if exc.errno == errno.ENOTCONN:
            raise ConfigError(
                f"{mount_point}: the program that had mounted it has died; unmount with: "
                f"fusermount3 -u -z {mount_point}"
            ) from None
        raise ConfigError(f"{mount_point}: {exc.strerror}; give an empty directory to mount on") from None
    if entries and not nonempty:
        raise ConfigError(
            f"{mount_point}: not empty; give an empty directory, or -o nonempty to hide what is in it"
        )
    if not os.access(mount_point, os.W_OK):
        raise ConfigError(f"{mount_point}: no permission to write; give a directory of your own to mount on")
    if not os.path.exists("/dev/fuse"):
        raise ConfigError("/dev/fuse: no such device; have root load it with: modprobe fuse")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise ConfigError("fusermount3: not found, only root can mount without it; install the package fuse3")


def _is_news(record: logging.LogRecord) -> bool:
    """Return False for pyfuse3's *record* of an answer to a request that the kernel has given up."""
    return "fuse_reply" not in record.msg or record.args != (os.strerror(errno.ENOENT),)


class Mount:
    """A mounted file system. There is one for each process: pyfuse3 keeps its state in globals."""

    def __init__(self, tree: Tree, mount_point: Path, options: Sequence[str], platform: Platform) -> None:
        """Mount *tree* on *mount_point* with FUSE's *options*; raise ConfigError."""
        logging.getLogger(pyfuse3.__name__).addFilter(_is_news)
        self._tree = tree
        self._mount_point = mount_point
        self._platform = platform
        self._pages = tree.storages.pages = platform.pages(mount_point, drop_cached_pages)
        self._kernel = FuseKernel()
        self._path = Path(os.path.realpath(mount_point))  # not later: a look at it would wait for us
        self.fault: IscsifsError | None = None
        """Why it could never be used, after `serve`."""
        self.is_written_back = True
        """Whether the kernel has written, or given up, all that mmap(2) has changed, after `serve`."""
        complaints = _StandardError()
        try:
            platform.reserve_memory(tree.relieve)
            with complaints:
                pyfuse3.init(
                    Operations(tree),
                    str(mount_point),
                    {"subtype=iscsifs", *pyfuse3.default_options, *options},
                )
        except RuntimeError as exc:
            labels = re.findall(r"\b\w*context=", " ".join(options))
            remedy = f"; leave out {', '.join(labels)} where there is no SELinux" if labels else ""
            said = ("; ".join(complaints.lines) or str(exc)) + remedy
            raise ConfigError(f"{mount_point}: cannot mount: {said}") from None
        except OSError as exc:
            raise ConfigError(f"{mount_point}: cannot mount: {reason(exc)}") from None

        tree.storages.kernel = self._kernel
        # It may have been unmounted already.
        self._entry = mount_at(self._path) or MountEntry("", "", self._path, "", os.geteuid())

    def record(self) -> Record:
        """Begin the record by which other processes find this one."""
        return Record(self._entry)

    async def serve(
        self,
        stop: trio.Event,
        mounted: Callable[[], None],
        write_back: Callable[[], Awaitable[None]],
    ) -> None:
        """Answer requests until the file system is unmounted from outside, or until *stop*.

        *mounted* is called when the first request was answered, unless *stop* came first. `fault` is set if
        the kernel ended the connection before that. After *stop* the pages that mmap(2) has changed are
        written back, and no new request is read. Then *write_back* is called, to put what was written on
        stable storage, and requests in work are completed: all of this together has END_TIMEOUT seconds.
        Requests that the kernel has given up, and requests to a target that is away, are not completed.
        """
        self._platform.take_requests()
        over, answered = trio.Event(), trio.Event()
        is_ready = False
        failure: Exception | None = None

        async def answer() -> None:
            nonlocal failure
            try:
                await pyfuse3.main(_MIN_TASKS, _MAX_TASKS)
            except Exception as exc:
                failure = exc  # raised when what was written is safe
            self._platform.requests_ended()
            answered.set()
            over.set()

        async def leave() -> None:
            nonlocal is_ready
            if not await self._pages.is_answered():
                with trio.move_on_after(_PATIENCE):  # where the connection was aborted, `answer` ends as well
                    await over.wait()
            if over.is_set():
                return
            # Where it was detached in the meantime (umount -l), files may still be open: the kernel says when
            # the last one was closed.
            self._platform.tune(self._entry.device)
            if not stop.is_set():
                is_ready = True
                mounted()
            await stop.wait()
            if not over.is_set():
                nursery.cancel_scope.deadline = trio.current_time() + END_TIMEOUT
                await self._write_back()
                pyfuse3.terminate()
                over.set()

        def disconnected() -> None:
            answered.set()
            over.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            nursery.start_soon(leave)
            nursery.start_soon(self._platform.attend, disconnected)
            nursery.start_soon(self._kernel.run)
            await over.wait()
            nursery.cancel_scope.deadline = min(
                nursery.cancel_scope.deadline, trio.current_time() + END_TIMEOUT
            )
            await write_back()
            while self._tree.storages.has_work() and not answered.is_set():
                with trio.move_on_after(_PATIENCE):
                    await answered.wait()
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if not is_ready and not stop.is_set() and self._is_mounted():
            self.fault = IscsifsError(f"{self._mount_point}: mounted, but the kernel ended it; unmounting")

    def close(self) -> None:
        """Unmount, even when files are still open; do nothing where that has been done from outside."""
        is_thread_waiting = self._pages.is_thread_waiting or self._kernel.is_thread_waiting
        if is_thread_waiting and self._is_mounted():
            # It waits for an answer that will not come. Only root can abort the connection.
            ctypes.CDLL(None).umount2(os.fsencode(self._path), _MNT_FORCE)
        self._tree.storages.kernel = NoKernel()
        pyfuse3.close()
        try:
            os.statvfs(self._mount_point)  # which nothing caches
        except OSError as exc:
            if exc.errno == errno.ENOTCONN:
                # libfuse takes a connection that was aborted for a file system that was unmounted.
                log.warning("%s: the kernel's connection was aborted; unmounting", self._mount_point)
                unmount = ["umount", "-i", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
                subprocess.run([*unmount, self._mount_point], stdin=subprocess.DEVNULL, check=False)

    def _is_mounted(self) -> bool:
        """Return whether the path still leads to this mount, also where there is no descriptor to look."""
        try:
            return mount_at(self._path) == self._entry
        except OSError as exc:
            log.debug("%s: %s", self._path, exc)
            return True

    async def _write_back(self) -> None:
        """Have the kernel write the pages that mmap(2) has changed; all others were written at once.

        A target that is away is not waited for: what is written for it is kept, and counted, by its unit.
        """
        left = {
            storage: (inode, path)
            for inode, storage in self._tree.storages.open_to_write()
            if (path := self._tree.path_of(inode)) is not None
        }

        async def write_back(storage: Storage, inode: int, path: bytes) -> None:
            is_written = await self._pages.write_back(inode, path, lambda: not storage.is_away)
            if is_written or storage.is_away:
                del left[storage]

        try:
            async with trio.open_nursery() as nursery:
                for storage, (inode, path) in left.items():
                    nursery.start_soon(write_back, storage, inode, path)
        finally:
            self.is_written_back = not left
            for storage in left:
                log.error(
                    "%s: data may be lost: mmap(2) may have changed pages that are not written", storage.name
                )


class _StandardError:
    """Collects in *lines* what libfuse and fusermount3 write to the standard error."""

    def __enter__(self) -> None:
        sys.stderr.flush()
        self._saved = os.dup(2)
        self._kept = os.memfd_create("stderr")
        os.dup2(self._kept, 2)

    def __exit__(self, *_: object) -> None:
        os.dup2(self._saved, 2)
        os.close(self._saved)
        with open(self._kept, "rb") as kept:
            kept.seek(0)
            self.lines = kept.read().decode(errors="replace").splitlines()
