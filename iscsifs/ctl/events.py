"""The events of a mount: read, followed, and asked for why a command has failed."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from iscsifs.ctl.mounted import CONTROL, GoneError, Mount
from iscsifs.ctl.places import Place
from iscsifs.ctl.tables import json_line
from iscsifs.errors import printable

CURRENT: Final = "events"
_PREVIOUS: Final = "events.1"
_FAILURES: Final = ("failed", "refused", "error", "losses", "lost")
"""How the kinds of events end that tell of something that went wrong."""

_LONGEST: Final = 4096
"""Characters of one sentence that are printed."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line: *number* counts from 1 in each mount; *fields* are all of its values."""

    number: int
    fields: dict[str, Any]

    @property
    def text(self) -> str:
        """The sentence, fit for a terminal."""
        return printable(str(self.fields.get("text", "")), _LONGEST)

    @property
    def is_failure(self) -> bool:
        """Say whether it tells of something that went wrong."""
        return str(self.fields.get("event", "")).endswith(_FAILURES)

    @property
    def place(self) -> str:
        """Host, target and unit, as far as the event names them, fit for a terminal."""
        lun = self.fields.get("lun")
        names = [self.fields.get("host"), self.fields.get("target"), None if lun is None else f"lun{lun}"]
        return printable("/".join(str(name) for name in names if name))

    def concerns(self, place: Place) -> bool:
        """Say whether it names the host of *place*, and no other target."""
        host, target = self.fields.get("host"), self.fields.get("target")
        is_host = place.host == host or place.host.startswith(f"{host}:")
        return is_host and (not target or not place.target or str(target).endswith(place.target))

    def line(self) -> str:
        """Return it for people, in one line."""
        time = printable(str(self.fields.get("time", "")))
        kind = printable(str(self.fields.get("event", "")))
        return "  ".join(part for part in (time, kind, self.place, self.text) if part)

    def json(self) -> str:
        """Return it for scripts, in one line."""
        return json_line(self.fields)


def parse(text: str) -> Iterator[Event]:
    """Yield the events of a file; a line that is none is left out."""
    for line in text.splitlines():
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(fields, dict) and type(number := fields.get("id")) is int:
            yield Event(number, fields)


def read(mount: Mount) -> list[Event]:
    """Return all events that are kept, in their order."""
    found: dict[int, Event] = {}
    # In this order: when the log is turned between the two, nothing is missing.
    for name in (CURRENT, _PREVIOUS):
        try:
            found |= {event.number: event for event in parse(mount.read(CONTROL, name))}
        except GoneError:
            continue
    return [found[number] for number in sorted(found)]


class Follower:
    """What is new in the events, from one look to the next.

    Nothing is held open between them: that would keep the mount from being unmounted. And a look at the size
    costs no reading.
    """

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._last = 0
        self._seen: tuple[int, int] | None = None

    def skip(self, events: Iterable[Event]) -> None:
        """Take *events* for seen."""
        self._last = max((event.number for event in events), default=self._last)

    def look(self) -> list[Event]:
        """Return the events since the last look; raises GoneError where the mount is not there any more."""
        self._mount.check_again()
        status = self._mount.status(CONTROL, CURRENT)
        seen = None if status is None else (status.st_size, status.st_mtime_ns)
        if seen is None or seen == self._seen:
            return []
        self._seen = seen
        new = [event for event in read(self._mount) if event.number > self._last]
        self.skip(new)
        return new


class Reasons:
    """Why a command fails: the events that come while it runs."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._last = max((event.number for event in read(mount)), default=0)

    def new(self) -> list[Event]:
        """Return the events since this object was made."""
        return [event for event in read(self._mount) if event.number > self._last]

    def failures(self, place: Place | None) -> list[Event]:
        """Return the new events that tell of failures at *place*; anywhere where that is None."""
        found = [event for event in self.new() if event.is_failure]
        return found if place is None else self._about(found, place)

    def sentence(self, place: Place | None) -> str | None:
        """Return what the latest of the new events tells that is about *place*; else the latest failure."""
        new = self.new()
        failures = [event for event in new if event.is_failure]
        told = self._about(failures, place) or self._about(new, place) or failures
        return told[-1].text if told else None

    @staticmethod
    def _about(events: Iterable[Event], place: Place | None) -> list[Event]:
        return [event for event in events if place is not None and event.concerns(place)]
