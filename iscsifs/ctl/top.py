"""``iscsifsctl top``: what the units do, again and again, on a terminal.

The mount is read by a thread of its own: a process that does not answer holds up the figures, and not the
keys.
"""

import curses
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from iscsifs.ctl import tables
from iscsifs.ctl.mounted import Mount
from iscsifs.ctl.sample import HEADINGS, Sample, Sampler, rate_table
from iscsifs.ctl.statistics import Rates
from iscsifs.errors import printable

_LOGGED_IN: Final = "LOGGED_IN"
_SMALL: Final = 3
"""Lines of a window that has no room for the names of the keys."""
_KEY_WAIT: Final = 100  # milliseconds


def _by(value: Callable[[Rates], float | None]) -> Callable[[Sample], float]:
    """Return a key for which the busiest comes first, and what is not known last."""

    def key(sample: Sample) -> float:
        found = None if sample.rates is None else value(sample.rates)
        return 1.0 if found is None else -found

    return key


@dataclass(frozen=True, slots=True)
class _Order:
    key: Callable[[Sample], float]
    columns: tuple[str, ...]
    """The headings of the columns that it is by."""


ORDERS: Final = {
    "name": _Order(lambda sample: 0.0, ("UNIT",)),
    "iops": _Order(_by(lambda rates: rates.transfers.count), ("R/S", "W/S")),
    "bytes": _Order(_by(lambda rates: rates.transfers.bytes), ("RMB/S", "WMB/S")),
    "mean": _Order(_by(lambda rates: rates.transfers.mean), ("MEAN",)),
    "p99": _Order(_by(lambda rates: rates.transfers.p99), ("P99",)),
    "dirty": _Order(_by(lambda rates: rates.now.dirty_bytes), ("DIRTY",)),
    "depth": _Order(_by(lambda rates: rates.now.depth), ("DEPTH",)),
}
"""What the units can be sorted by."""


def arranged(samples: Sequence[Sample], order: str, *, reverse: bool = False) -> list[Sample]:
    """Return *samples* in an order of ORDERS; those that are equal stay as they are."""
    found = sorted(samples, key=ORDERS[order].key)
    return found[::-1] if reverse else found


class View:
    """What the screen shows, as lines: the state of the keys, and the latest samples."""

    def __init__(self, title: str, order: str = "name") -> None:
        self._title = title
        self.order = order
        self.is_reverse = False
        self.first = 0
        """The first row that is shown, of those that are."""
        self.samples: Sequence[Sample] = ()
        self.message = "reading"

    def press(self, key: str) -> bool:
        """Do what *key* asks for; return whether it is the end."""
        names = list(ORDERS)
        if key in ("q", "Q", "\x1b"):
            return True
        if key == "s":
            self.order = names[(names.index(self.order) + 1) % len(names)]
        elif key == "S":
            self.order = names[names.index(self.order) - 1]
        elif key == "r":
            self.is_reverse = not self.is_reverse
        elif key in ("j", "KEY_DOWN"):
            self.first = min(self.first + 1, max(len(self.samples) - 1, 0))
        elif key in ("k", "KEY_UP"):
            self.first = max(self.first - 1, 0)
        return False

    def lines(self, width: int, height: int) -> list[str]:
        """Return at most *height* lines of at most *width* characters; the third is that of the headings."""
        rows = rate_table(arranged(self.samples, self.order, reverse=self.is_reverse))
        first = min(self.first, max(len(self.samples) - 1, 0))
        shown = [rows[0], *rows[1 + first :]]
        way = f"{self.order}{' upwards' if self.is_reverse else ''}"
        keys = f"q quit  s,S sort: {way}  r reverse  j,k scroll"
        body = [f"{self.message}  {self._title}".lstrip(), self._total(), *_fitting(shown, width)]
        found = [*body[: height - 1], keys] if height > _SMALL else body[:height]
        return [line[:width] for line in found]

    def is_sorted_by(self, heading: str) -> bool:
        """Say whether the units are sorted by the column of *heading*."""
        return heading in ORDERS[self.order].columns

    def _total(self) -> str:
        found = [sample.rates for sample in self.samples if sample.rates is not None]
        reads = sum(rates.each_second(rates.reads.count) for rates in found)
        writes = sum(rates.each_second(rates.writes.count) for rates in found)
        read = sum(rates.each_second(rates.reads.bytes) for rates in found)
        written = sum(rates.each_second(rates.writes.bytes) for rates in found)
        dirty = sum(rates.now.dirty_bytes for rates in found)
        away = {s.place.names[:2] for s in self.samples if s.state not in (None, _LOGGED_IN)}
        return (
            f"units {len(found)}  read {tables.rate(reads)}/s {tables.megabytes(read)} MB/s"
            f"  write {tables.rate(writes)}/s {tables.megabytes(written)} MB/s  dirty {tables.size(dirty)}"
            f"  targets away {len(away)}"
        )


def _fitting(rows: Sequence[str], width: int) -> list[str]:
    """Return *rows* of a table with the first column cut in front, so that the others fit into *width*."""
    longest = max(map(len, rows))
    if longest <= width:
        return list(rows)
    end = rows[0].index(HEADINGS[1])  # where the second column begins
    keep = max(end - (longest - width), 10)
    if keep >= end:
        return list(rows)
    cut = []
    for row in rows:
        name, rest = row[:end].rstrip(), row[end:]
        name = name if len(name) <= keep - 2 else "<" + name[len(name) - keep + 3 :]
        cut.append(f"{name:{keep}}{rest}")
    return cut


def once(mount: Mount, interval: float, order: str) -> list[Sample]:
    """Return what the units do in one interval."""
    sampler = Sampler(mount)
    sampler.take()
    time.sleep(interval)
    return arranged(sampler.take(), order)


def can_draw() -> bool:
    """Say whether the standard output is a terminal whose cursor can be placed."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        curses.setupterm()
    except curses.error:
        return False
    return all(curses.tigetstr(capability) for capability in ("cup", "clear"))


def run(mount: Mount, interval: float, order: str) -> None:
    """Show the units until "q" is typed; raises IscsifsError where the mount cannot be read any more."""
    view = View(f"iscsifsctl top: {printable(str(mount.path))}, every {interval:g} s", order)
    results: queue.SimpleQueue[list[Sample] | BaseException] = queue.SimpleQueue()
    threading.Thread(target=_sample, args=(mount, interval, results), daemon=True).start()
    # Not curses.wrapper: that sets colours, which would be white on black on any terminal.
    screen = curses.initscr()
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        curses.noecho()
        curses.cbreak()
        screen.keypad(True)
        with suppress(KeyboardInterrupt):
            _show(screen, view, interval, results)
    finally:
        curses.endwin()
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    """End as ^C does, so that the terminal is given back."""
    raise KeyboardInterrupt


def _sample(
    mount: Mount, interval: float, results: "queue.SimpleQueue[list[Sample] | BaseException]"
) -> None:
    """Put samples into *results*; last what ended it."""
    try:
        sampler = Sampler(mount)
        while True:
            results.put(sampler.take())
            time.sleep(interval)
            mount.check_again()
    except BaseException as exc:
        results.put(exc)


def _show(
    screen: "curses.window",
    view: View,
    interval: float,
    results: "queue.SimpleQueue[list[Sample] | BaseException]",
) -> None:
    with suppress(curses.error):  # a terminal that cannot hide its cursor
        curses.curs_set(0)
    screen.timeout(_KEY_WAIT)
    latest = time.monotonic()
    while True:
        with suppress(queue.Empty):
            while True:
                result = results.get_nowait()
                if isinstance(result, BaseException):
                    raise result
                view.samples, view.message, latest = result, "", time.monotonic()
        silent = time.monotonic() - latest
        if silent > 2 * interval + 1:
            view.message = f"no answer for {silent:.0f} s"
        _draw(screen, view)
        try:
            key = screen.getkey()
        except curses.error:  # no key in that time, or the window has another size
            continue
        if view.press(key):
            return


def _draw(screen: "curses.window", view: View) -> None:
    height, width = screen.getmaxyx()
    screen.erase()
    for row, line in enumerate(view.lines(width, height)):
        with suppress(curses.error):  # the last place of the screen cannot be written without scrolling
            screen.addnstr(row, 0, line, width)
        if row == 2:
            _mark(screen, view, line, row)
    screen.refresh()


def _mark(screen: "curses.window", view: View, line: str, row: int) -> None:
    """Mark the headings of the columns that the units are sorted by."""
    for heading in HEADINGS:
        column = f" {line} ".find(f" {heading} ")
        if view.is_sorted_by(heading) and column >= 0:
            with suppress(curses.error):
                screen.addnstr(row, column, heading, len(line) - column, curses.A_REVERSE)
