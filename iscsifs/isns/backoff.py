"""Growing pauses between attempts, with jitter, so that many clients do not come back at once."""

from collections.abc import Callable

from iscsifs.limits import MAX_ISNS_PAUSE


class BackOff:
    """Pauses of 1 s, 2 s, 4 s... up to MAX_ISNS_PAUSE, each times 0.5 to 1.5, by *random* from 0 to 1."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._next = 1.0

    def pause(self) -> float:
        """Return the seconds to wait before the next attempt."""
        pause, self._next = self._next, min(2 * self._next, MAX_ISNS_PAUSE)
        return pause * (0.5 + self._random())

    def reset(self) -> None:
        """Begin again: an attempt has succeeded."""
        self._next = 1.0
