"""Events: what changes, in the order in which it happens, one line of JSON each.

The log is kept in memory and bounded. When it is full it is turned, as logrotate(8) turns a file: the lines
become the `previous` file, and a new one begins. So a reader that follows by name (``tail -F``) reads each
line once, and whole.
"""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from iscsifs.limits import MAX_EVENT_BYTES

MAX_TEXT: Final = 1000
"""Characters of one sentence or of one name; what is longer is cut."""


class EventFile:
    """Some lines, and how they grow."""

    __slots__ = ("data", "modified_ns")

    def __init__(self, now_ns: int) -> None:
        self.data = bytearray()
        self.modified_ns = now_ns


class Events:
    """The events of a mount; *clock* tells the time of day in nanoseconds since 1970.

    `current` and `previous` are files of *bound* bytes at most. *changed* is called after each new event.
    """

    def __init__(self, clock: Callable[[], int] = time.time_ns, bound: int = MAX_EVENT_BYTES) -> None:
        self._clock = clock
        self._bound = bound
        self.current = EventFile(clock())
        self.previous: EventFile | None = None
        self.changed: Callable[[], None] = lambda: None
        self.last_id = 0
        """The number of the latest event; the first one is 1."""

    def add(self, kind: str, text: str, **where: str | int) -> int:
        """Add an event of *kind* (a word, as in ``login_failed``) that *text* tells in a sentence; return its
        number.

        *where* says which host, target or unit it is about. Text may come from the network: JSON in ASCII
        escapes whatever a terminal would obey.
        """
        self.last_id += 1
        now_ns = self._clock()
        moment = (
            datetime.fromtimestamp(now_ns // 1_000_000 / 1000, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z")
        )
        event: dict[str, str | int] = {"id": self.last_id, "time": moment, "event": kind}
        for name, value in where.items():
            event[name] = _cut(value) if isinstance(value, str) else value
        event["text"] = _cut(text)
        line = json.dumps(event).encode() + b"\n"
        if self.current.data and len(self.current.data) + len(line) > self._bound:
            self.previous, self.current = self.current, EventFile(now_ns)
        self.current.data += line
        self.current.modified_ns = now_ns
        self.changed()
        return self.last_id


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."
