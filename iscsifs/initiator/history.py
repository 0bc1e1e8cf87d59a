"""What has become of a session: for whoever looks at it, not for the session itself."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

KEPT: Final = 16
"""How many losses of the connection are kept with their reasons."""


class History:
    """The history of one session; *clock* tells the time of day in nanoseconds since 1970."""

    __slots__ = ("_clock", "last_error", "losses", "since_ns")

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self.since_ns = clock()
        """When the state changed last."""
        self.losses: deque[tuple[int, str]] = deque(maxlen=KEPT)
        """The last losses of the connection: when, and why."""
        self.last_error = ""
        """Why the connection was lost, or a login failed, the last time; empty while nothing has."""

    def state_changed(self) -> None:
        """Take note that the state is another one."""
        self.since_ns = self._clock()

    def lost(self, reason: str) -> None:
        """Take note that the connection was lost because of *reason*."""
        self.losses.append((self._clock(), reason))
        self.last_error = reason
