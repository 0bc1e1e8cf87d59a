"""What FUSE asks for, answered from the tree. This is the one place that answers with errno.

A `storage` file behaves as the node of a block device does: its size is the capacity and nothing changes it,
a write past the end is ENOSPC, fsync is a flush of the unit's cache. A truncation says which bytes programs
take for zeros from then on (`iscsifs.fs.truncation`).
"""

import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Iterable, Iterator
from itertools import count
from pathlib import Path
from time import time_ns
from typing import Any, Concatenate, Final, NoReturn, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FUSEError,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from iscsifs.errors import (
    DataError,
    InUseError,
    IscsifsError,
    MediumError,
    NoMediumError,
    ReservationError,
    SpaceError,
    TruncationError,
    WriteProtectedError,
)
from iscsifs.fs.losses import Ledger, Losses
from iscsifs.fs.open_files import OpenFile, OpenFiles
from iscsifs.fs.platform.pages import Pages, PagesByThread
from iscsifs.fs.storage import Storage
from iscsifs.fs.times import Timetable
from iscsifs.fs.tree import MAX_NAME, Directory, File, Link, Node, Tree
from iscsifs.fs.truncation import Truncations

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")

ERRNO: Final[dict[type[BaseException], int]] = {
    MediumError: errno.EIO,
    WriteProtectedError: errno.EROFS,
    SpaceError: errno.ENOSPC,
    NoMediumError: errno.ENOMEDIUM,
    ReservationError: errno.EBADE,
    TruncationError: errno.EFBIG,
    InUseError: errno.EBUSY,
    IscsifsError: errno.EIO,
    MemoryError: errno.ENOMEM,
}
"""What a failed operation is answered with; a class that is not here has its base's."""

_SECTOR: Final = 512  # the unit of st_blocks, and of what statfs answers

_TIME_TO_CLOSE: Final = 1.0
"""Seconds that a close waits for a target that is away."""

# A name can come to stand for another unit (a LUN that was replaced); an attribute changes only with
# `Operations.changed`.
_ENTRY_TIMEOUT: Final = 1.0
_ATTR_TIMEOUT: Final = 300.0


def error_number(exc: Exception) -> int:
    """Return the errno for what an operation raised."""
    return next((ERRNO[kind] for kind in type(exc).__mro__ if kind in ERRNO), errno.EIO)


def _thread(ctx: RequestContext | None) -> int:
    """Return the thread that asks; 0 is one that this process cannot see, of another container."""
    return 0 if ctx is None else ctx.pid


def _handler(
    method: "Callable[Concatenate[Operations, _P], Coroutine[Any, Any, _R]]",
) -> "Callable[Concatenate[Operations, _P], Coroutine[Any, Any, _R]]":
    """Let *method* raise nothing but FUSEError: anything else would end the main loop, and so the mount."""

    @functools.wraps(method)
    async def guarded(self: "Operations", /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return await method(self, *args, **kwargs)
        except FUSEError:
            raise
        except Exception as exc:
            if isinstance(exc, IscsifsError):
                kind = {"kind": f"{method.__name__}: {exc.kind}"}
                log.error("%s: %s", method.__name__, exc, extra=kind)
            elif isinstance(exc, MemoryError):
                log.error("%s: no memory", method.__name__)
            else:
                kind = {"kind": f"{method.__name__}: {exc!r}"}
                log.exception("%s: unexpected error", method.__name__, extra=kind)
            raise FUSEError(error_number(exc)) from exc

    return guarded


class Operations(pyfuse3.Operations):
    """The handlers of one mount.

    *uid* and *gid* own every file. With *read_only* no unit is written to. With *direct_io* the kernel's page
    cache is left out, for units that others write to as well. With *sync* every handle is as if opened
    with O_SYNC. With *exclusive* a unit that is open for writing is not opened for writing once more.

    Operations that would change the tree are answered with EPERM, others that are not here with ENOSYS: then
    the kernel does not ask again (it asks for an extended attribute before each write). The kernel checks
    permissions (default_permissions).
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self,
        tree: Tree,
        *,
        uid: int,
        gid: int,
        read_only: bool,
        direct_io: bool,
        sync: bool = False,
        exclusive: bool = False,
    ) -> None:
        super().__init__()
        self._tree = tree
        self._uid = uid
        self._gid = gid
        self._read_only = read_only
        self._direct_io = direct_io
        self._sync = sync
        self._exclusive = exclusive
        self._time_ns = time_ns()  # of directories and links
        self._times = Timetable()
        self.pages: Pages = PagesByThread(Path("/"), drop_cached_pages)
        """The kernel's cached pages of the files."""
        self._handles = count(1)
        self._files = OpenFiles()
        self._written: dict[Storage, None] = {}  # what was ever opened to be written, or truncated
        self._losses = Ledger(lambda storage: any(file.storage is storage for file in tree.files()))
        self._truncations = Truncations(
            self._files,
            lambda inode, patience: self.pages.drop(inode, self._tree.path_of(inode), patience),
        )
        self._listings: dict[int, list[tuple[bytes, Node]]] = {}

    @property
    def written(self) -> list[Storage]:
        """What may have been written, also where it is not in the tree any more."""
        return list(self._written)

    @property
    def untold(self) -> list[Losses]:
        """The units of which writes were lost that no fsync and no synchronous write has reported."""
        return self._losses.unseen()

    def open_to_write(self) -> Iterator[tuple[int, bytes, Storage]]:
        """Yield inode, path below the mount point, and storage of each file that is open to write."""
        for inode, storage in {file.inode: file.storage for file in self._files if file.writes}.items():
            if (path := self._tree.path_of(inode)) is not None:
                yield inode, path, storage

    def has_work(self) -> bool:
        """Say whether any request is in work that does not wait for a target that is away."""
        return any(file.in_work and not file.storage.is_away for file in self._files)

    def changed(self, nodes: Iterable[File | Link]) -> None:
        """Have the kernel ask again for the size and the mode of *nodes*, which may be others now."""
        for node in nodes:
            _forget_attributes(node.inode)

    def may_have_changed(self, storage: Storage) -> None:
        """Take note that other initiators may have written to *storage*: its session is a new one.

        Its times move on, and its cached pages are dropped: at once where it is open, else at the next open.
        """
        times = self._times.known(storage)
        if times is None:
            return  # nobody has looked at it
        times.modify()
        _forget_attributes(times.inode)
        if self._files.of(storage):
            path = self._tree.path_of(times.inode)
            if path is not None:
                self.pages.drop_soon(times.inode, path)

    def relieve(self) -> None:
        """Have all units let go of what they need not keep: memory is short."""
        for file in self._tree.files():
            file.storage.relieve()

    @_handler
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Find *name* in a directory."""
        parent = self._node(parent_inode)
        if not isinstance(parent, Directory):
            raise FUSEError(errno.ENOTDIR)
        if (node := parent.entries.get(name)) is None:
            raise FUSEError(errno.ENOENT)
        return self._attributes(node)

    @_handler
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """Return what stat(2) shows."""
        return self._attributes(self._node(inode))

    @_handler
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Truncate a storage file or set its times, refuse other changes."""
        node = self._node(inode)
        now = self._attributes(node)
        if (
            (fields.update_mode and stat.S_IMODE(attr.st_mode) != stat.S_IMODE(now.st_mode))
            or (fields.update_uid and attr.st_uid != now.st_uid)
            or (fields.update_gid and attr.st_gid != now.st_gid)
        ):
            raise FUSEError(errno.EPERM)
        if not isinstance(node, File):
            if fields.update_atime or fields.update_mtime:
                raise FUSEError(errno.EPERM)
            return now
        times = self._times.of(node)
        if fields.update_size:
            if self._is_read_only(node.storage):
                raise FUSEError(errno.EROFS)
            file = None if fh is None else self._files[fh]
            self._owes(node.storage)
            await self._truncations.truncate(node, attr.st_size, file, _thread(ctx))
            times.modify()
        if fields.update_atime:
            times.atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            times.mtime_ns = attr.st_mtime_ns
        times.ctime_ns = time_ns()
        return self._attributes(node)

    @_handler
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        """Return where a symbolic link leads."""
        node = self._node(inode)
        if not isinstance(node, Link):
            raise FUSEError(errno.EINVAL)
        return node.target

    @_handler
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Open a directory; what is listed is what is in it now."""
        node = self._node(inode)
        if not isinstance(node, Directory):
            raise FUSEError(errno.ENOTDIR)
        fh = next(self._handles)
        self._listings[fh] = node.listing()
        return fh

    @_handler
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """Answer with as many entries from *start_id* on as have room."""
        listing = self._listings[fh]
        for position in range(start_id, len(listing)):
            name, node = listing[position]
            if not pyfuse3.readdir_reply(token, name, self._attributes(node), position + 1):
                return

    @_handler
    async def releasedir(self, fh: int) -> None:
        """Close a directory."""
        del self._listings[fh]

    @_handler
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Do nothing: a directory has no data of its own."""

    @_handler
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Return no size at all, as file systems of devices do: df(1) leaves it out, and nothing alarms."""
        data = StatvfsData()
        data.f_bsize = data.f_frsize = _SECTOR
        data.f_namemax = MAX_NAME
        return data

    @_handler
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Open a storage file. Pages cached before are dropped."""
        node = self._node(inode)
        if not isinstance(node, File):
            raise FUSEError(errno.EISDIR if isinstance(node, Directory) else errno.ELOOP)
        storage = node.storage
        self.pages.opened(inode, _thread(ctx))
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if writes and self._is_read_only(storage):
            raise FUSEError(errno.EROFS)
        if flags & os.O_TRUNC:
            # Seen only where FUSE_INIT could not be amended: the size will be 0 for all others for a moment.
            await self._require_free(lambda: not self._files.of(storage))
        if writes:
            if self._exclusive:
                await self._require_free(lambda: not self._files.writers(storage))
            self._owes(storage)
        file = OpenFile(
            storage,
            self._losses.open(storage),
            inode,
            self._times.of(node),
            _thread(ctx),
            writes=writes,
            sync=self._sync or bool(flags & os.O_DSYNC),  # a bit that O_SYNC has as well
            direct=bool(flags & os.O_DIRECT),
        )
        fh = next(self._handles)
        self._files.add(fh, file)
        if writes and flags & os.O_TRUNC:
            try:
                await self._truncations.truncate(node, 0, file, file.pid)
            except BaseException:
                self._files.remove(fh)
                raise
        return FileInfo(fh=fh, direct_io=self._direct_io, keep_cache=False)

    async def _require_free(self, is_free: Callable[[], bool]) -> None:
        """Raise EBUSY unless the files that are open permit another one, or do so in a moment."""
        if not await self._files.wait_until(is_free):
            raise FUSEError(errno.EBUSY)

    @_handler
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        """Return that there are no extended attributes."""
        return []

    @_handler
    async def read(  # type: ignore[override]  # any buffer will do, the annotation in pyfuse3 is narrower
        self, fh: int, off: int, size: int
    ) -> bytes | bytearray | memoryview:
        """Read, stopping at the end of the unit."""
        with self._files[fh] as file:
            storage = file.storage
            wanted = min(size, storage.size - off)
            if wanted <= 0:
                return b""
            data = await storage.read(off, wanted)
            # The kernel takes a short answer for the end of the file, and fills up with zeros.
            if len(data) < wanted and off + len(data) < storage.size:
                error = DataError(f"{len(data)} bytes at {off}, where {wanted} were asked for")
                raise error.counted_as(f"{storage.name}: a short answer")
            return data

    @_handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write as much as fits in front of the end of the unit.

        The kernel makes EIO of a short answer where the handle is O_DIRECT. So that is ENOSPC there, though
        all that fits was written.
        """
        with self._files[fh] as file:
            storage = file.storage
            room = storage.size - off
            if room <= 0:
                raise FUSEError(errno.ENOSPC)
            crosses = len(buf) > room
            if crosses:
                buf = buf[:room]
            try:
                await storage.write(off, buf, file.sync)
            finally:
                file.times.modify()
            file.used()
            if storage.take_stale():
                await self._truncations.drop_pages_behind(file.inode, off, len(buf))
            if file.sync:
                file.losses.report()
            if crosses and file.direct:
                raise FUSEError(errno.ENOSPC)
            return len(buf)

    @_handler
    async def flush(self, fh: int) -> None:
        """Have all that was written so far leave this machine, for a close(2), and show what was lost.

        A handle that only reads waits for nothing and is shown nothing: the losses are not its own.
        """
        with self._files[fh] as file:
            if file.writes:
                file.flushed()
                await self._drain(file.storage)
                if (failure := file.losses.untold) is not None:
                    raise FUSEError(error_number(failure))  # the log has had it

    async def _drain(self, storage: Storage) -> None:
        """Have all that was written so far leave this machine, but do not wait for a target that is away.

        A fork and an exec come here as well, with the copy of a handle that they close: a program that has to
        start another one, perhaps to bring the target back, must not wait for that. What is kept is still
        written, and its loss still told.
        """
        failure: Exception | None = None

        async def drain() -> None:
            nonlocal failure
            try:
                await storage.zero()
                await storage.drain()
            except Exception as exc:
                failure = exc
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            while True:
                await trio.sleep(_TIME_TO_CLOSE)
                if storage.is_away:
                    nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    @_handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Have all that was written so far put on stable storage, and report what was lost.

        A unit that takes no writes is not asked, but as long as it owes anything: it may have become so.
        """
        with self._files[fh] as file:
            if file.storage.needs_flush or not self._is_read_only(file.storage):
                try:
                    await file.storage.flush()
                except IscsifsError:
                    file.losses.saw_all()  # this failure tells of all of them
                    raise
            file.losses.report()

    @_handler
    async def release(self, fh: int) -> None:
        """Forget an open file."""
        self._files.remove(fh)

    async def _refuse(self, *args: Any) -> NoReturn:
        """Refuse to change the tree."""
        raise FUSEError(errno.EPERM)

    _refused: Any = _refuse  # whatever the arguments
    create = link = mkdir = mknod = rename = rmdir = symlink = unlink = _refused

    def _node(self, inode: int) -> Node:
        node = self._tree.nodes.get(inode)
        if node is None:
            raise FUSEError(errno.ESTALE)
        return node

    def _owes(self, storage: Storage) -> None:
        """Take note that the end has to ask whether *storage* has everything and has lost nothing.

        A truncation by name changes bytes without a handle.
        """
        self._written[storage] = None
        self._losses.open(storage)

    def _is_read_only(self, storage: Storage) -> bool:
        return self._read_only or storage.read_only

    def _attributes(self, node: Node) -> EntryAttributes:
        attributes = EntryAttributes()
        attributes.st_ino = node.inode
        attributes.st_uid = self._uid
        attributes.st_gid = self._gid
        attributes.st_nlink = node.nlink
        attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = self._time_ns
        attributes.entry_timeout = _ENTRY_TIMEOUT
        attributes.attr_timeout = _ATTR_TIMEOUT
        match node:
            case Directory():
                attributes.st_mode = stat.S_IFDIR | 0o555
                attributes.attr_timeout = _ENTRY_TIMEOUT
            case Link():
                attributes.st_mode = stat.S_IFLNK | 0o777
                attributes.st_size = len(node.target)
            case File():
                storage = node.storage
                attributes.st_mode = stat.S_IFREG | (0o400 if self._is_read_only(storage) else 0o600)
                attributes.st_size = storage.size
                attributes.st_blocks = storage.size // _SECTOR
                attributes.st_blksize = _request_size(storage)
                times = self._times.of(node)
                attributes.st_atime_ns = times.atime_ns
                attributes.st_mtime_ns = times.mtime_ns
                attributes.st_ctime_ns = times.ctime_ns
        return attributes


def _request_size(storage: Storage) -> int:
    """Return the largest power of two that divides the size of *storage*, and goes well for a transfer.

    Programs round the size of a regular file up to st_blksize (shred(1)), and the kernel keeps its logarithm.
    """
    return min(storage.size & -storage.size or _SECTOR, 1 << storage.preferred_size.bit_length() - 1)


def drop_cached_pages(inode: int) -> None:
    """Have the kernel drop the pages of *inode*, and wait for those that are being read; raises OSError."""
    pyfuse3.invalidate_inode(inode, attr_only=False)


def _forget_attributes(inode: int) -> None:
    """Have the kernel ask again for the attributes of *inode*."""
    try:
        pyfuse3.invalidate_inode(inode, attr_only=True)
    except OSError as exc:
        log.debug("inode %d: %s", inode, exc)  # not known to the kernel, or unmounted
