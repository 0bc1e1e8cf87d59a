"""Busy-poll: block the event loop briefly, and run the callbacks of other ready descriptors.

While small operations come one by one, an answer follows its request after a few hundredths of a
millisecond, and the next request follows the answer as soon. A turn of trio's event loop takes as long again.
So a task that expects an answer blocks the loop until its descriptor is readable. Three rules keep this fair:

- A poll ends when another watched descriptor is ready that has no callback: it needs a turn of the loop.
- While other tasks can run, a poll lasts MAX_BUSY; while none can, MAX_IDLE, which is enough for the answer
  of a near network.
- After a poll without a result the next POLLS_SKIPPED polls of that descriptor return at once.
"""

import os
from collections.abc import Callable
from select import select
from typing import Final

import trio

MAX_BUSY: Final = 0.0001
"""Seconds that a poll blocks the event loop at most while other tasks can run."""

MAX_IDLE: Final = 0.002
"""Seconds that a poll blocks it at most while none can; a time-out may come so much later."""

MAX_IN_A_ROW: Final = 16
"""Results of the polls of one descriptor without a turn of the event loop in between."""

POLLS_SKIPPED: Final = 64
"""Polls that are skipped after one without a result."""

MAX_WATCHED: Final = 16
"""Watched descriptors up to which select(2) of all of them is cheap enough."""

FD_SETSIZE: Final = 1024
"""The first descriptor that select(2) cannot name."""


class BusyPoller:
    """The descriptors of all that poll; nothing is polled while there are more than *max_watched* of them."""

    def __init__(self, max_watched: int = MAX_WATCHED) -> None:
        self.max_watched = max_watched
        self.watched: dict[int, Watched] = {}

    def watch(self, fd: int) -> "Watched":
        """Watch *fd*, a descriptor to read from, until `Watched.close`."""
        watched = self.watched[fd] = Watched(self, fd)
        return watched

    def forget_closed(self) -> None:
        """Forget the descriptors that were closed without `Watched.close`."""
        for fd in list(self.watched):
            try:
                os.fstat(fd)
            except OSError:
                del self.watched[fd]


class Watched:
    """A descriptor that is watched by *poller*."""

    def __init__(self, poller: BusyPoller, fd: int) -> None:
        self.callback: Callable[[], None] | None = None
        """Called when the descriptor is ready while another one is polled; None: it needs a turn of the event
        loop."""
        self._poller = poller
        self._fd = fd
        self._in_a_row = 0
        self._to_skip = 0

    def close(self) -> None:
        """Stop watching the descriptor; a second call does nothing."""
        self.callback = None
        watched = self._poller.watched
        if watched.get(self._fd) is self:  # otherwise the number is that of another one by now
            del watched[self._fd]

    def poll(self) -> bool:
        """Return whether the descriptor is readable, and nothing before it needs a turn of the event loop."""
        if self._to_skip:
            self._to_skip -= 1
            return False
        watched = self._poller.watched
        if self._fd not in watched or len(watched) > self._poller.max_watched or max(watched) >= FD_SETSIZE:
            return False
        while self._in_a_row < MAX_IN_A_ROW:
            self._in_a_row += 1
            try:
                ready, _, _ = select(watched, (), (), MAX_BUSY)
                if not ready and not _other_tasks_can_run():
                    ready, _, _ = select(watched, (), (), MAX_IDLE)
            except OSError:
                self._poller.forget_closed()
                return False
            if not ready:
                self._to_skip = POLLS_SKIPPED
                return False
            if self._fd in ready:
                return True
            for fd in ready:
                other = watched.get(fd)
                if other is None or other.callback is None:
                    return False
                other.callback()
            if _other_tasks_can_run():  # woken by a callback, perhaps
                return False
        self._in_a_row = 0
        return False


def _other_tasks_can_run() -> bool:
    return trio.lowlevel.current_statistics().tasks_runnable > 0
