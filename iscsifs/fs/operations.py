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
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Concatenate, Final, NoReturn, ParamSpec, Self, TypeVar

import pyfuse3
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
    IscsifsError,
    MediumError,
    NoMediumError,
    ReservationError,
    SpaceError,
    WriteProtectedError,
)
from iscsifs.fs.tree import MAX_NAME, Directory, File, Link, Node, Storage, Tree
from iscsifs.fs.truncation import Writers

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")

ERRNO: Final[dict[type[BaseException], int]] = {
    MediumError: errno.EIO,
    WriteProtectedError: errno.EROFS,
    SpaceError: errno.ENOSPC,
    NoMediumError: errno.ENOMEDIUM,
    ReservationError: errno.EBADE,
    IscsifsError: errno.EIO,
    MemoryError: errno.ENOMEM,
}
"""What a failed operation is answered with; a class that is not here has its base's."""

_SECTOR: Final = 512  # the unit of st_blocks, and of what statfs answers

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
                log.error("%s: %s", method.__name__, exc)
            elif isinstance(exc, MemoryError):
                log.error("%s: no memory", method.__name__)
            else:
                log.exception("%s: unexpected error", method.__name__)
            raise FUSEError(error_number(exc)) from exc

    return guarded


@dataclass(slots=True)
class _OpenFile:
    """A file handle; *failures* are those of *storage* that were there before or that it has been told.

    As a context manager it counts the requests in work.
    """

    storage: Storage
    failures: int
    inode: int
    writes: bool
    in_work: int = 0

    def __enter__(self) -> Self:
        self.in_work += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.in_work -= 1


class Operations(pyfuse3.Operations):
    """The handlers of one mount.

    *uid* and *gid* own every file. With *read_only* no unit is written to. With *direct_io* the kernel's page
    cache is left out, for units that others write to as well.

    Of the operations that are not here, those that would change the tree are refused, and the others answered
    with ENOSYS, after which the kernel spares itself the question (extended attributes: one for each write).
    Permissions are checked by the kernel (default_permissions).
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, tree: Tree, *, uid: int, gid: int, read_only: bool, direct_io: bool) -> None:
        super().__init__()
        self._tree = tree
        self._uid = uid
        self._gid = gid
        self._read_only = read_only
        self._direct_io = direct_io
        # A device has no times of its own. They stand still on purpose: a changed mtime makes the kernel drop
        # all pages that it has of the file.
        self._time_ns = time.time_ns()
        self._handle = 0
        self._files: dict[int, _OpenFile] = {}
        # What was ever opened to be written, and how many of its failures somebody was told of.
        self._told: dict[Storage, int] = {}
        self._writers = Writers(lambda inode: pyfuse3.invalidate_inode(inode, attr_only=False))
        self._listings: dict[int, list[tuple[bytes, Node]]] = {}

    @property
    def written(self) -> list[Storage]:
        """What may have been written, also where it is not in the tree any more."""
        return list(self._told)

    def was_told(self, storage: Storage) -> bool:
        """Say whether somebody was told of the latest failure of *storage*, or there was none."""
        return self._told[storage] == storage.failures

    def has_work(self) -> bool:
        """Say whether any request is in work that does not wait for a target that is away."""
        return any(file.in_work and not file.storage.is_away for file in self._files.values())

    def changed(self, files: Iterable[File]) -> None:
        """Have the kernel ask again for the size and the mode of *files*, which may be others now."""
        for file in files:
            try:
                pyfuse3.invalidate_inode(file.inode, attr_only=True)
            except OSError as exc:
                log.debug("inode %d: %s", file.inode, exc)  # not known to the kernel, or unmounted

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
        """Truncate, let touch(1) succeed without effect, refuse everything else."""
        node = self._node(inode)
        if fields.update_mode or fields.update_uid or fields.update_gid:
            raise FUSEError(errno.EPERM)
        if fields.update_size and isinstance(node, File):
            if self._is_read_only(node.storage):
                raise FUSEError(errno.EROFS)
            await self._truncate(node, attr.st_size, fh, ctx)
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
        self._handle += 1
        self._listings[self._handle] = node.listing()
        return self._handle

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
        """Return the size of all units together, all of it in use."""
        data = StatvfsData()
        data.f_bsize = data.f_frsize = _SECTOR
        data.f_blocks = sum(file.storage.size for file in self._tree.files()) // _SECTOR
        data.f_files = len(self._tree.nodes)
        data.f_namemax = MAX_NAME
        return data

    @_handler
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Open a storage file; pages cached before are dropped."""
        node = self._node(inode)
        if not isinstance(node, File):
            raise FUSEError(errno.EISDIR if isinstance(node, Directory) else errno.ELOOP)
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if writes:
            if self._is_read_only(node.storage):
                raise FUSEError(errno.EROFS)
            self._told.setdefault(node.storage, 0)
            if flags & os.O_TRUNC:
                await self._truncate(node, 0, None, ctx)
        self._handle += 1
        self._files[self._handle] = _OpenFile(node.storage, node.storage.failures, inode, writes)
        if writes:
            self._writers.add(self._handle, node.storage, _thread(ctx))
        return FileInfo(fh=self._handle, direct_io=self._direct_io, keep_cache=False)

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
                raise DataError(f"{len(data)} bytes at {off}, where {wanted} were asked for")
            return data

    @_handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write as much as fits in front of the end of the unit."""
        with self._files[fh] as file:
            storage = file.storage
            room = storage.size - off
            if room <= 0:
                raise FUSEError(errno.ENOSPC)
            if len(buf) > room:
                buf = buf[:room]
            await storage.write(off, buf)
            self._writers.used(fh)
            if storage.take_stale():
                await self._writers.drop_pages_behind(file.inode, off, len(buf))
            return len(buf)

    @_handler
    async def flush(self, fh: int) -> None:
        """Have all that was written so far leave this machine, for a close(2), and report what was lost."""
        with self._files[fh] as file:
            if file.writes:
                self._writers.flushed(fh)
                await file.storage.zero()
            await file.storage.drain()
            self._report(file)

    @_handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Have all that was written so far put on stable storage, and report what was lost."""
        with self._files[fh] as file:
            if not self._is_read_only(file.storage):
                try:
                    await file.storage.flush()
                except IscsifsError:
                    self._tell(file)
                    raise
                self._report(file)

    @_handler
    async def release(self, fh: int) -> None:
        """Forget an open file."""
        if self._files.pop(fh).writes:
            self._writers.remove(fh)

    async def _truncate(self, file: File, size: int, fh: int | None, ctx: RequestContext) -> None:
        try:
            await self._writers.truncate(file, size, fh, _thread(ctx))
        except OSError as exc:
            raise FUSEError(exc.errno or errno.EIO) from None

    async def _refuse(self, *args: Any) -> NoReturn:
        """Refuse to change the tree."""
        raise FUSEError(errno.EPERM)

    _refused: Any = _refuse  # whatever the arguments
    create = link = mkdir = mknod = rename = rmdir = symlink = unlink = _refused

    def _report(self, file: _OpenFile) -> None:
        """Raise the error of a write that was lost since *file* was told of the last one."""
        if file.failures != file.storage.failures:
            self._tell(file)
            if file.storage.last_failure is not None:
                raise file.storage.last_failure

    def _tell(self, file: _OpenFile) -> None:
        """Note that *file* is told of what was lost up to now."""
        file.failures = self._told[file.storage] = file.storage.failures

    def _node(self, inode: int) -> Node:
        node = self._tree.nodes.get(inode)
        if node is None:
            raise FUSEError(errno.ESTALE)
        return node

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
                attributes.st_blksize = storage.preferred_size
        return attributes
