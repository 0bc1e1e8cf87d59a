"""What FUSE asks for, handed to the nodes of the tree. This is the one place that answers with errno."""

import errno
import functools
import logging
import stat
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, Concatenate, Final, NoReturn, ParamSpec, TypeVar

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
    InUseError,
    IscsifsError,
    MediumError,
    NoMediumError,
    ReservationError,
    SpaceError,
    TruncationError,
    WriteProtectedError,
)
from iscsifs.fs.losses import KnownLoss
from iscsifs.fs.names import MAX_NAME
from iscsifs.fs.nodes import BLOCK, BRIEF, Directory, Handle, Link, Node, Refusal, Refused
from iscsifs.fs.tree import Tree

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

REFUSALS: Final[dict[Refusal, int]] = {
    Refusal.NOT_PERMITTED: errno.EPERM,
    Refusal.NOT_FOUND: errno.ENOENT,
    Refusal.NOT_A_DIRECTORY: errno.ENOTDIR,
    Refusal.IS_A_DIRECTORY: errno.EISDIR,
    Refusal.IS_A_LINK: errno.ELOOP,
    Refusal.INVALID: errno.EINVAL,
    Refusal.READ_ONLY: errno.EROFS,
    Refusal.NO_SPACE: errno.ENOSPC,
    Refusal.IN_USE: errno.EBUSY,
    Refusal.EXISTS: errno.EEXIST,
    Refusal.TOO_LONG: errno.E2BIG,
    Refusal.NO_HOST: errno.ENXIO,
    Refusal.NO_TARGET: errno.ENODEV,
    Refusal.NOT_LET_IN: errno.EACCES,
    Refusal.HOST_REFUSES: errno.ECONNREFUSED,
    Refusal.NO_ANSWER: errno.ETIMEDOUT,
    Refusal.NO_ROUTE: errno.EHOSTUNREACH,
    Refusal.GONE: errno.ENOTCONN,
}
"""What an operation is answered with that a node refuses."""


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
        except Exception as exc:
            raise _answer(method.__name__, exc) from None

    return guarded


def _answer(operation: str, exc: Exception) -> FUSEError:
    """Return what *operation* is answered with that has raised *exc*; log what is a failure."""
    match exc:
        case FUSEError():
            return exc
        case Refused():
            return FUSEError(REFUSALS[exc.why])
        case KnownLoss():  # the log has had it
            return FUSEError(error_number(exc.failure))
        case IscsifsError():
            log.error("%s: %s", operation, exc, extra={"kind": f"{operation}: {exc.kind}"})
        case MemoryError():
            log.error("%s: no memory", operation)
        case _:
            log.exception("%s: unexpected error", operation, extra={"kind": f"{operation}: {exc!r}"})
    return FUSEError(error_number(exc))


class Operations(pyfuse3.Operations):
    """The handlers of one mount, which shows *tree*.

    Operations that would change the tree, and that no node does, are answered with EPERM, others that are not
    here with ENOSYS: then the kernel does not ask again (it asks for an extended attribute before each
    write). The kernel checks permissions (default_permissions).
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.tree = tree
        self._numbers = count(1)
        self._handles: dict[int, Handle] = {}
        self._listings: dict[int, list[tuple[bytes, Node]]] = {}

    @_handler
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Find *name* in a directory."""
        directory = self._directory(parent_inode)
        if directory.on_lookup is not None and name not in directory.entries and self._is_owner(ctx):
            await directory.on_lookup(name)
        return self._attributes(directory.find(name))

    @_handler
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """Return what stat(2) shows."""
        return self._attributes(self._node(inode))

    @_handler
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Truncate a file or set its times, refuse to change its mode or its owner."""
        node = self._node(inode)
        now = self._attributes(node)
        if (
            (fields.update_mode and stat.S_IMODE(attr.st_mode) != stat.S_IMODE(now.st_mode))
            or (fields.update_uid and attr.st_uid != now.st_uid)
            or (fields.update_gid and attr.st_gid != now.st_gid)
        ):
            raise FUSEError(errno.EPERM)
        if fields.update_size:
            handle = None if fh is None else self._handles[fh]
            await node.truncate(attr.st_size, handle, _thread(ctx))
        node.set_times(
            attr.st_atime_ns if fields.update_atime else None,
            attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._attributes(node)

    @_handler
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        """Return where a symbolic link leads."""
        node = self._node(inode)
        if not isinstance(node, Link):
            raise FUSEError(errno.EINVAL)
        return node.target

    @_handler
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        """Make a directory, where one can be made."""
        return self._attributes(await self._directory(parent_inode).mkdir(name))

    @_handler
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove a directory, where one can be removed."""
        await self._directory(parent_inode).rmdir(name)

    @_handler
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Open a directory; what is listed is what is in it now."""
        number = next(self._numbers)
        self._listings[number] = self._directory(inode).listing()
        return number

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
        data.f_bsize = data.f_frsize = BLOCK
        data.f_namemax = MAX_NAME
        return data

    @_handler
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Open a file. Pages cached before are dropped."""
        handle = await self._node(inode).open(flags, _thread(ctx))
        number = next(self._numbers)
        self._handles[number] = handle
        return FileInfo(fh=number, direct_io=handle.direct_io, keep_cache=False)

    @_handler
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        """Return that there are no extended attributes."""
        return []

    # The hot ways: they do by themselves what `_handler` does for others.

    async def read(  # type: ignore[override]  # any buffer will do, the annotation in pyfuse3 is narrower
        self, fh: int, off: int, size: int
    ) -> bytes | bytearray | memoryview:
        """Read, stopping at the end of the file."""
        try:
            return await self._handles[fh].read(off, size)
        except Exception as exc:
            raise _answer("read", exc) from None

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write, and return how much was taken."""
        try:
            return await self._handles[fh].write(off, buf)
        except Exception as exc:
            raise _answer("write", exc) from None

    @_handler
    async def flush(self, fh: int) -> None:
        """Do what is due at a close(2)."""
        await self._handles[fh].flush()

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Have all that was written so far put on stable storage."""
        try:
            await self._handles[fh].fsync()
        except Exception as exc:
            raise _answer("fsync", exc) from None

    @_handler
    async def release(self, fh: int) -> None:
        """Forget an open file."""
        self._handles.pop(fh).release()

    async def _refuse(self, *args: Any) -> NoReturn:
        """Refuse to change the tree."""
        raise FUSEError(errno.EPERM)

    _refused: Any = _refuse  # whatever the arguments
    create = link = mknod = rename = symlink = unlink = _refused

    def _node(self, inode: int) -> Node:
        node = self.tree.nodes.get(inode)
        if node is None:
            raise FUSEError(errno.ESTALE)
        return node

    def _directory(self, inode: int) -> Directory:
        node = self._node(inode)
        if not isinstance(node, Directory):
            raise FUSEError(errno.ENOTDIR)
        return node

    def _is_owner(self, ctx: RequestContext | None) -> bool:
        """Say whether who asks is the owner of the files, or root."""
        return ctx is None or ctx.uid in (0, self.tree.storages.options.uid)

    def _attributes(self, node: Node) -> EntryAttributes:
        options = self.tree.storages.options
        now = node.stat()
        attributes = EntryAttributes()
        attributes.st_ino = node.inode
        attributes.st_mode = now.mode
        attributes.st_nlink = node.nlink
        attributes.st_uid = options.uid if now.owner is None else now.owner
        attributes.st_gid = options.gid
        attributes.st_size = now.size
        attributes.st_atime_ns, attributes.st_mtime_ns, attributes.st_ctime_ns = now.time_ns
        if now.preferred_size is not None:
            attributes.st_blocks = now.size // BLOCK
            attributes.st_blksize = now.preferred_size
        attributes.entry_timeout = BRIEF
        attributes.attr_timeout = node.attr_timeout
        return attributes
