"""A moment's wait for a descriptor, without a turn of trio's loop.

While small operations come one by one, an answer follows its request after a few hundredths of a
millisecond, and the next request follows the answer as soon. The turn of the loop that would give others a
chance meanwhile takes as long again. So whoever waits may block the loop for a moment, but not for longer
than it takes until anything of what all others wait for is there; who did it in vain lets the next chances
go by.
"""

import os
from select import select
from typing import Final

LONGEST: Final = 0.0001
"""Seconds that the loop is blocked at most."""

IN_A_ROW: Final = 16
"""Waits of one descriptor without a turn of the loop in between."""

PENANCE: Final = 64
"""Chances to wait that are let go by after a wait in vain."""

MAX_WATCHED: Final = 16
"""Descriptors, of all who might wait, up to which looking at all of them is cheap enough."""

FD_SETSIZE: Final = 1024
"""The first descriptor that select(2) cannot name."""

_watched: list[int] = []


class Moment:
    """The moments in which *fd* is waited for; `close` when it is no more."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._in_a_row = 0
        self._penance = 0
        _watched.append(fd)

    def close(self) -> None:
        """Let nobody's wait end because of this descriptor any more; a second time does nothing."""
        if self._fd in _watched:
            _watched.remove(self._fd)
        self._fd = -1  # the number may be somebody else's soon

    def wait(self) -> bool:
        """Return whether the descriptor has become readable, and not something else before it."""
        if self._penance:
            self._penance -= 1
            return False
        if len(_watched) > MAX_WATCHED or max(_watched) >= FD_SETSIZE:
            return False
        self._in_a_row += 1
        if self._in_a_row > IN_A_ROW:
            self._in_a_row = 0
            return False
        try:
            ready, _, _ = select(_watched, (), (), LONGEST)
        except OSError:
            _forget_the_closed()
            return False
        if not ready:
            self._penance = PENANCE
        return self._fd in ready


def _forget_the_closed() -> None:
    """Watch no more what was closed without a `Moment.close`."""
    for fd in list(_watched):
        try:
            os.fstat(fd)
        except OSError:
            _watched.remove(fd)
