"""Log lines that peers cause: the first of each kind is logged, those like it are counted (trio).

The command ``iscsifs`` counts in the handlers of its log (`iscsifs.logs`). The embedded target is a library
as well, and there the handlers belong to the program that uses it: so it counts before it logs.
"""

import logging
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

import trio

from iscsifs.limits import MAX_KINDS_OF_LINES, REPEATS_INTERVAL

_OTHERS: Final = object()
"""The kind of all lines for whose own kind there is no room."""


@dataclass(slots=True)
class _Kind:
    message: str
    since: float
    more: int = 0


class Repeats:
    """Warnings to *log*: one of each kind in REPEATS_INTERVAL, with the count of those left out before it."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._kinds: dict[Hashable, _Kind] = {}

    def warn(self, kind: Hashable, message: str) -> None:
        """Log *message*, or count it where one of the same *kind* was logged less than an interval ago."""
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS_OF_LINES:
            kind = _OTHERS
        known = self._kinds.get(kind)
        now = trio.current_time()
        if known is not None and now - known.since < REPEATS_INTERVAL:
            known.more += 1
            return
        self._kinds[kind] = _Kind(message, now)
        self._write(message, known.more if known is not None else 0)

    def close(self) -> None:
        """Log what was counted since the last line of each kind."""
        for known in self._kinds.values():
            if known.more:
                self._write(known.message, known.more)
        self._kinds.clear()

    def _write(self, message: str, more: int) -> None:
        self._log.warning("%s", f"{message} ({more} more like this)" if more else message)
