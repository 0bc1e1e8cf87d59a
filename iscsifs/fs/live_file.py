"""Files that grow while they are read: the events of a mount."""

import os
import stat
from collections.abc import Callable
from typing import Protocol

from iscsifs.fs.nodes import Directory, Handle, Node, Refusal, Refused, Stat
from iscsifs.fs.tree import Tree


class Growing(Protocol):
    """What is in such a file: bytes are added at its end, and none is ever changed."""

    @property
    def data(self) -> bytearray:
        """All of it."""

    @property
    def modified_ns(self) -> int:
        """When it grew last, in nanoseconds since 1970."""


class LiveFile(Node):
    """A file whose handles read what is there at the moment of the read, as ``tail -f`` expects.

    The kernel keeps no page of it, and asks for its size each time.
    """

    __slots__ = ("content",)
    attr_timeout = 0.0

    def __init__(self, inode: int, content: Growing) -> None:
        super().__init__(inode)
        self.content = content

    def stat(self) -> Stat:
        """Return the size of now, and when it grew last."""
        modified = self.content.modified_ns
        return Stat(stat.S_IFREG | 0o444, (modified, modified, modified), len(self.content.data))

    async def open(self, flags: int, thread: int) -> Handle:
        """Return a handle to the content; it stays with it when the file is given another name."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise Refused(Refusal.NOT_PERMITTED)
        return _LiveHandle(self.content)

    async def truncate(self, size: int, handle: Handle | None, thread: int) -> None:
        """Refuse: its content is not its user's."""
        raise Refused(Refusal.NOT_PERMITTED)


class _LiveHandle(Handle):
    """An open `LiveFile`."""

    __slots__ = ("_content",)
    direct_io = True

    def __init__(self, content: Growing) -> None:
        self._content = content

    async def read(self, offset: int, size: int) -> bytes:
        """Return what is there now."""
        return bytes(self._content.data[offset : offset + size])


class TurnedFile:
    """A `LiveFile` of *name* in *directory*, and beside it what it was before, as logrotate(8) leaves files.

    *current* returns what the file has now. When that is another content than at the last `turn`, the file of
    before has the name with ``.1`` and keeps its inode, by which ``tail -F`` tells the two.
    """

    def __init__(self, tree: Tree, directory: Directory, name: bytes, current: Callable[[], Growing]) -> None:
        self._tree = tree
        self._directory = directory
        self._name = name
        self._current = current
        self._file = self._add()

    def turn(self) -> None:
        """Take note that the content may be another."""
        if self._current() is not self._file.content:
            self._tree.rename(self._directory, self._name, self._name + b".1")
            self._file = self._add()

    def _add(self) -> LiveFile:
        content = self._current()
        return self._tree.add_node(self._directory, self._name, lambda inode: LiveFile(inode, content))
