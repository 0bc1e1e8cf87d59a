"""The nodes of the tree, and what each kind answers; nothing here knows of FUSE or of disks.

`fs.operations` hands every request to a node, or to the handle that a node gave when it was opened. What a
node does not do it refuses with `Refused`. The bytes of a disk are `fs.storage_file`.
"""

import os
import re
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
from time import time_ns
from typing import ClassVar, Final

BLOCK: Final = 512
"""Bytes of the unit of st_blocks."""

LASTING: Final = 300.0
"""Seconds that the kernel may keep attributes which change only when it is told."""

BRIEF: Final = 1.0
"""Seconds that the kernel may keep a name, which may come to lead to another node, and what goes with it."""

MAX_COMMAND: Final = 4096
"""Bytes of one command for a control file."""

_DIGITS: Final = re.compile(rb"(\d+)")


class Refusal(Enum):
    """Why a node does not do what it is asked for."""

    NOT_PERMITTED = auto()
    NOT_FOUND = auto()
    NOT_A_DIRECTORY = auto()
    IS_A_DIRECTORY = auto()
    IS_A_LINK = auto()
    INVALID = auto()
    READ_ONLY = auto()
    NO_SPACE = auto()
    IN_USE = auto()
    EXISTS = auto()
    TOO_LONG = auto()
    NO_HOST = auto()
    NO_TARGET = auto()
    NOT_LET_IN = auto()
    HOST_REFUSES = auto()
    NO_ANSWER = auto()
    NO_ROUTE = auto()
    GONE = auto()


class Refused(Exception):
    """A node does not do what it is asked for; this is an answer, and nothing for the log."""

    def __init__(self, why: Refusal) -> None:
        super().__init__(why.name)
        self.why: Final = why


@dataclass(frozen=True, slots=True)
class TreeOptions:
    """Whose the files of a mount are, and how disks are used.

    *uid* and *gid* own every file. With *read_only* no disk is written to. With *direct_io* the kernel's page
    cache is left out, for disks that others write to as well. With *sync* every handle is as if opened with
    O_SYNC. With *exclusive* a disk that is open for writing is not opened for writing once more.
    """

    uid: int
    gid: int
    read_only: bool = False
    direct_io: bool = False
    sync: bool = False
    exclusive: bool = False


@dataclass(slots=True)
class Stat:
    """What stat(2) shows of a node, beside its owner: *mode* with the type, *size* in bytes."""

    mode: int
    time_ns: tuple[int, int, int]
    """Access, modification and change, in nanoseconds since 1970."""
    size: int = 0
    preferred_size: int | None = None
    """Bytes of a transfer that goes well, None where it makes no difference."""
    owner: int | None = None
    """The user whose it is, None: the one to whom all files of the mount belong."""


class Handle:
    """An open file. A kind of node that can be opened has a kind of handle, which overrides what it does."""

    __slots__ = ()
    direct_io: bool = False
    """Whether the kernel is to keep no pages of it."""

    async def read(self, offset: int, size: int) -> bytes | bytearray | memoryview:
        """Return *size* bytes from *offset*, fewer only at the end."""
        raise Refused(Refusal.NOT_PERMITTED)

    async def write(self, offset: int, data: bytes) -> int:
        """Write *data* at *offset*; return how many bytes were taken."""
        raise Refused(Refusal.NOT_PERMITTED)

    async def flush(self) -> None:
        """Do what is due at the close of a descriptor, which may not be the last one."""

    async def fsync(self) -> None:
        """Put what was written on stable storage."""

    def release(self) -> None:
        """Take note that the last descriptor is closed."""


class Node:
    """What all nodes have: a number that is never given to another, and the time at which it was made."""

    __slots__ = ("inode", "time_ns")
    attr_timeout: ClassVar[float] = LASTING

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.time_ns = time_ns()

    @property
    def nlink(self) -> int:
        """Return how many names lead here."""
        return 1

    def stat(self) -> Stat:
        """Return what stat(2) shows now."""
        raise NotImplementedError

    def _times(self) -> tuple[int, int, int]:
        return self.time_ns, self.time_ns, self.time_ns

    async def open(self, flags: int, thread: int) -> Handle:
        """Open it as open(2) with *flags* by *thread*, 0 being one of another container."""
        raise NotImplementedError

    async def truncate(self, size: int, handle: Handle | None, thread: int) -> None:
        """Truncate it to *size* bytes, through *handle* or by its name; here there is nothing to truncate."""

    def set_times(self, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Set the times that are not None."""
        if atime_ns is not None or mtime_ns is not None:
            raise Refused(Refusal.NOT_PERMITTED)


class Directory(Node):
    """A directory, *path* being its place below the root; *entries* maps names to nodes.

    Where `on_mkdir` and `on_rmdir` are set, its owner may make and remove directories in it: they get the
    name, and return when the directory is in the tree, or is not any more. `on_lookup` gets a name that the
    owner looks up and that is not there; when it returns it may be.
    """

    __slots__ = ("entries", "on_lookup", "on_mkdir", "on_rmdir", "path")
    attr_timeout = BRIEF

    def __init__(self, inode: int, path: bytes) -> None:
        super().__init__(inode)
        self.path = path
        self.entries: dict[bytes, Node] = {}
        self.on_lookup: Callable[[bytes], Awaitable[None]] | None = None
        self.on_mkdir: Callable[[bytes], Awaitable[None]] | None = None
        self.on_rmdir: Callable[[bytes], Awaitable[None]] | None = None

    @property
    def nlink(self) -> int:
        """Return 2 and one more for each directory in this one, as find(1) expects."""
        return 2 + sum(isinstance(node, Directory) for node in self.entries.values())

    def stat(self) -> Stat:
        """Return the mode, which lets the owner write where directories can be made or removed."""
        changeable = self.on_mkdir is not None or self.on_rmdir is not None
        return Stat(stat.S_IFDIR | (0o755 if changeable else 0o555), self._times())

    async def open(self, flags: int, thread: int) -> Handle:
        """Refuse: it can only be listed."""
        raise Refused(Refusal.IS_A_DIRECTORY)

    def find(self, name: bytes) -> Node:
        """Return what *name* leads to."""
        if (node := self.entries.get(name)) is None:
            raise Refused(Refusal.NOT_FOUND)
        return node

    def listing(self) -> list[tuple[bytes, Node]]:
        """Return the entries in the order of their names, numbers by value: lun2 before lun10."""
        return sorted(self.entries.items(), key=lambda entry: natural_order(entry[0]))

    async def mkdir(self, name: bytes) -> Node:
        """Make the directory *name* and return it."""
        if self.on_mkdir is None:
            raise Refused(Refusal.NOT_PERMITTED)
        await self.on_mkdir(name)
        return self.find(name)

    async def rmdir(self, name: bytes) -> None:
        """Remove the directory *name*."""
        if self.on_rmdir is None:
            raise Refused(Refusal.NOT_PERMITTED)
        if not isinstance(self.find(name), Directory):
            raise Refused(Refusal.NOT_A_DIRECTORY)
        await self.on_rmdir(name)


class Link(Node):
    """A symbolic link to *target*."""

    __slots__ = ("target",)

    def __init__(self, inode: int, target: bytes) -> None:
        super().__init__(inode)
        self.target = target

    def stat(self) -> Stat:
        """Return the length of the target as the size."""
        return Stat(stat.S_IFLNK | 0o777, self._times(), len(self.target))

    async def open(self, flags: int, thread: int) -> Handle:
        """Refuse: who opens what it leads to does not come here."""
        raise Refused(Refusal.IS_A_LINK)


class TextFile(Node):
    """A file whose content is made by *text* each time that somebody opens it; nobody writes to it.

    The kernel keeps no page of it, and asks for its size each time. While it is open the size is that of the
    content that was made last for a reader, who may rely on it. Its times are those at which the text was
    first found to be what it is.
    """

    __slots__ = ("_last", "_open", "_text")
    attr_timeout = 0.0

    def __init__(self, inode: int, text: Callable[[], str]) -> None:
        super().__init__(inode)
        self._text = text
        self._last = text()
        self._open: list[_Snapshot] = []

    def stat(self) -> Stat:
        """Return the size that it has for who has opened it, else that of now."""
        content = self._open[-1].content if self._open else self.content()
        return Stat(stat.S_IFREG | 0o444, self._times(), len(content))

    async def open(self, flags: int, thread: int) -> Handle:
        """Return a handle to the content of this moment."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise Refused(Refusal.NOT_PERMITTED)
        snapshot = _Snapshot(self)
        self._open.append(snapshot)
        return snapshot

    async def truncate(self, size: int, handle: Handle | None, thread: int) -> None:
        """Refuse: its content is not its user's."""
        raise Refused(Refusal.NOT_PERMITTED)

    def content(self) -> bytes:
        """Return the content of this moment."""
        text = self._text()
        if text != self._last:
            self._last = text
            self.time_ns = time_ns()
        return text.encode()

    def released(self, snapshot: "_Snapshot") -> None:
        """Take note that *snapshot* is closed."""
        self._open.remove(snapshot)


class _Snapshot(Handle):
    """A text as it was when it was opened, or when its beginning was read once more (as in sysfs)."""

    __slots__ = ("_file", "_is_read", "content")
    direct_io = True

    def __init__(self, file: TextFile) -> None:
        self._file = file
        self._is_read = False
        self.content = file.content()

    async def read(self, offset: int, size: int) -> bytes:
        """Return what is there of the text."""
        if offset == 0:
            if self._is_read:
                self.content = self._file.content()
            self._is_read = True
        return self.content[offset : offset + size]

    def release(self) -> None:
        """Let the file have its own size again."""
        self._file.released(self)


class ControlFile(Node):
    """A file to which its owner writes ``1`` to have *command* carried out.

    The write returns when that is done, with its error. A truncation changes nothing, as a shell opens with
    O_TRUNC. There is nothing in it: a read, by root, who may do so, is at the end at once. *misused* is
    called for a write that is no command.
    """

    __slots__ = ("_command", "_misused")

    def __init__(
        self, inode: int, command: Callable[[], Awaitable[None]], misused: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(inode)
        self._command = command
        self._misused = misused

    def stat(self) -> Stat:
        """Return a mode for the owner only."""
        return Stat(stat.S_IFREG | 0o200, self._times())

    async def open(self, flags: int, thread: int) -> Handle:
        """Return a handle that takes the command."""
        return _Control(self._command, self._misused)


class _Control(Handle):
    """An open `ControlFile`."""

    __slots__ = ("_command", "_misused")
    direct_io = True

    def __init__(self, command: Callable[[], Awaitable[None]], misused: Callable[[], None]) -> None:
        self._command = command
        self._misused = misused

    async def read(self, offset: int, size: int) -> bytes:
        """Return nothing, so that whoever copies all files goes on."""
        return b""

    async def write(self, offset: int, data: bytes) -> int:
        """Carry out the command."""
        if data not in (b"1", b"1\n"):
            self._misused()
            raise Refused(Refusal.TOO_LONG if len(data) > MAX_COMMAND else Refusal.INVALID)
        await self._command()
        return len(data)


def natural_order(name: bytes) -> list[bytes | int]:
    """Return a key that sorts numbers in *name* by value."""
    return [int(part) if i % 2 else part for i, part in enumerate(_DIGITS.split(name))]
