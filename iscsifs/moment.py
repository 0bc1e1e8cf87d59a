"""A moment's wait for a descriptor, without a turn of trio's loop.

While small operations come one by one, an answer follows its request after a few hundredths of a
millisecond, and the next request follows the answer as soon. The turn of the loop that would give others a
chance meanwhile takes as long again. So whoever waits may block the loop for a moment, and serves meanwhile
who can be served; but not for longer than it takes until anything else is there that others wait for. Where
no task could run anyway, a moment may be as long as a near network needs to answer. Who waited in vain lets
the next chances go by.
"""

import os
from collections.abc import Callable
from select import select
from typing import Final

import trio

BRIEF: Final = 0.0001
"""Seconds that the loop is blocked at most while there are tasks that can run."""

LONGEST: Final = 0.002
"""Seconds that it is blocked at most while there are none; a time-out may come so much later."""

IN_A_ROW: Final = 16
"""Things that come while one descriptor is waited for, without a turn of the loop in between."""

PENANCE: Final = 64
"""Chances to wait that are let go by after a wait in vain."""

MAX_WATCHED: Final = 16
"""Descriptors, of all who might wait, up to which looking at all of them is cheap enough."""

FD_SETSIZE: Final = 1024
"""The first descriptor that select(2) cannot name."""

_watched: "dict[int, Moment]" = {}


class Moment:
    """The moments in which *fd* is waited for; `close` when it is no more."""

    def __init__(self, fd: int) -> None:
        self.serve: Callable[[], None] | None = None
        """Takes something of what has come, while somebody else waits; None where only a turn can do that."""
        self._fd = fd
        self._in_a_row = 0
        self._penance = 0
        _watched[fd] = self

    def close(self) -> None:
        """Let nobody's wait end because of this descriptor any more; a second time does nothing."""
        self.serve = None
        if _watched.get(self._fd) is self:  # otherwise the number is somebody else's by now
            del _watched[self._fd]

    def wait(self) -> bool:
        """Return whether the descriptor has become readable, and nothing before it that needs a turn."""
        if self._penance:
            self._penance -= 1
            return False
        if self._fd not in _watched or len(_watched) > MAX_WATCHED or max(_watched) >= FD_SETSIZE:
            return False
        while self._in_a_row < IN_A_ROW:
            self._in_a_row += 1
            try:
                ready, _, _ = select(_watched, (), (), BRIEF)
                if not ready and not _somebody_can_run():
                    ready, _, _ = select(_watched, (), (), LONGEST)
            except OSError:
                _forget_the_closed()
                return False
            if not ready:
                self._penance = PENANCE
                return False
            if self._fd in ready:
                return True
            for fd in ready:
                other = _watched.get(fd)
                if other is None or other.serve is None:
                    return False
                other.serve()
            if _somebody_can_run():  # whom that was for, perhaps
                return False
        self._in_a_row = 0
        return False


def _somebody_can_run() -> bool:
    return trio.lowlevel.current_statistics().tasks_runnable > 0


def _forget_the_closed() -> None:
    """Watch no more what was closed without a `Moment.close`."""
    for fd in list(_watched):
        try:
            os.fstat(fd)
        except OSError:
            del _watched[fd]
