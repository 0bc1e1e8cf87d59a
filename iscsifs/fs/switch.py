"""A file that shows a state, and to which its owner writes 0 or 1 to change it."""

import os
import stat
from collections.abc import Awaitable, Callable
from typing import Final

from iscsifs.fs.nodes import MAX_COMMAND, Handle, Node, Refusal, Refused, Stat

_COMMANDS: Final = {b"0": False, b"0\n": False, b"1": True, b"1\n": True}


class SwitchFile(Node):
    """Its content is what *state* returns, with a newline; what is written is handed to *switch*.

    The write returns when that is done, with its error. A truncation changes nothing, as a shell opens with
    O_TRUNC.
    """

    __slots__ = ("_state", "_switch")
    attr_timeout = 0.0

    def __init__(
        self, inode: int, state: Callable[[], str], switch: Callable[[bool], Awaitable[None]]
    ) -> None:
        super().__init__(inode)
        self._state = state
        self._switch = switch

    def stat(self) -> Stat:
        """Return a mode for the owner only, and the size that the text has now."""
        return Stat(stat.S_IFREG | 0o600, self._times(), len(self._text()))

    async def open(self, flags: int, thread: int) -> Handle:
        """Return a handle that shows the state of this moment, and takes the commands."""
        return _Switch(self._text() if flags & os.O_ACCMODE != os.O_WRONLY else b"", self._switch)

    def _text(self) -> bytes:
        return self._state().encode() + b"\n"


class _Switch(Handle):
    """An open `SwitchFile`."""

    __slots__ = ("_switch", "_text")
    direct_io = True

    def __init__(self, text: bytes, switch: Callable[[bool], Awaitable[None]]) -> None:
        self._text = text
        self._switch = switch

    async def read(self, offset: int, size: int) -> bytes:
        """Return a part of the text."""
        return self._text[offset : offset + size]

    async def write(self, offset: int, data: bytes) -> int:
        """Carry out the command."""
        if (on := _COMMANDS.get(bytes(data))) is None:
            raise Refused(Refusal.TOO_LONG if len(data) > MAX_COMMAND else Refusal.INVALID)
        await self._switch(on)
        return len(data)
