"""Files that take a line as a command, and may tell how things are."""

import os
import stat
from collections.abc import Awaitable, Callable

from iscsifs.fs.nodes import MAX_COMMAND, Handle, Node, Refusal, Refused, Stat


class CommandFile(Node):
    """A file to which a line is written to have *command* carried out with it; *text* is what can be read.

    One write(2) is one command, wherever in the file, and returns when that is done, with its error. The file
    belongs to the user of this process, whoever the other files belong to: what a command does, it does as
    this user.
    """

    __slots__ = ("_command", "_text")
    attr_timeout = 0.0

    def __init__(
        self, inode: int, command: Callable[[str], Awaitable[None]], text: Callable[[], str] | None = None
    ) -> None:
        super().__init__(inode)
        self._command = command
        self._text = text

    def stat(self) -> Stat:
        """Return a mode for the owner only."""
        mode = 0o200 if self._text is None else 0o600
        return Stat(stat.S_IFREG | mode, self._times(), len(self._content()), owner=os.geteuid())

    async def open(self, flags: int, thread: int) -> Handle:
        """Return a handle to the text of this moment, which takes commands."""
        return _CommandHandle(self._command, self._content())

    def _content(self) -> bytes:
        return b"" if self._text is None else self._text().encode()


class _CommandHandle(Handle):
    """An open `CommandFile`."""

    __slots__ = ("_command", "_content")
    direct_io = True

    def __init__(self, command: Callable[[str], Awaitable[None]], content: bytes) -> None:
        self._command = command
        self._content = content

    async def read(self, offset: int, size: int) -> bytes:
        """Return what is there of the text."""
        return self._content[offset : offset + size]

    async def write(self, offset: int, data: bytes) -> int:
        """Carry out the command."""
        if len(data) > MAX_COMMAND:
            raise Refused(Refusal.TOO_LONG)
        try:
            line = bytes(data).decode().removesuffix("\n")
        except UnicodeDecodeError:
            raise Refused(Refusal.INVALID) from None
        if not line.strip() or not line.isprintable():
            raise Refused(Refusal.INVALID)
        await self._command(line.strip())
        return len(data)
