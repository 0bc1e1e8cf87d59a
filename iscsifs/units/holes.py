"""Truncation of a unit whose size cannot change: which bytes programs take for zeros.

A truncation to N sets the *end* of what programs mean. What comes inside the end again without being
written, because of a write behind it or of a truncation to more, is a *hole*: it reads as zeros at once and
is zeroed on the unit later. What is behind the last end stays as it is. Nothing here does any I/O. Offsets
are in bytes.

A hole goes through two states. PENDING: the unit still has the old bytes. ZEROED: a command has zeroed it,
which the unit's volatile cache may still lose; then it is pending again. SYNCHRONIZE CACHE ends that state.

A disk has several *views*: the whole, and each of its partitions. Each has an end of its own, which is that
of the programs that use this view; the holes are those of the disk. A write or a read by one view is one by
every other view that has the same bytes.

When the last writer has closed the end is forgotten, so that a program that uses the unit as a disk is not
affected by what another one has truncated before. Where nothing was written since the truncation, the end is
*dormant* first: a truncation goes on from it, which serves ``truncate -s 0 X; truncate -s SIZE X``, and a
read or a write forgets it.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final


class RangeSet:
    """Ranges of bytes, START to END (exclusive), that neither overlap nor touch each other."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        """Return the number of ranges."""
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    @property
    def size(self) -> int:
        """The number of bytes."""
        return sum(self._ends) - sum(self._starts)

    def add(self, start: int, end: int) -> None:
        """Add *start* to *end*."""
        if start >= end:
            return
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def remove(self, start: int, end: int) -> None:
        """Remove *start* to *end*."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if first >= last or start >= end:
            return
        left = [(self._starts[first], start)] if self._starts[first] < start else []
        right = [(end, self._ends[last - 1])] if end < self._ends[last - 1] else []
        self._starts[first:last] = [start for start, _ in left + right]
        self._ends[first:last] = [end for _, end in left + right]

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return what is between *start* and *end*."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        pairs = zip(self._starts[first:last], self._ends[first:last], strict=True)
        return [(max(left, start), min(right, end)) for left, right in pairs]

    def clear(self) -> None:
        """Remove everything."""
        self._starts.clear()
        self._ends.clear()


_FAR: Final = 1 << 64
"""An offset behind the end of every unit."""


class Holes:
    """The holes of one unit, and the ends of its `views`, of which `whole` is the first.

    `is_active` is False as long as neither reads nor writes make any difference here.
    """

    def __init__(self) -> None:
        self.pending = RangeSet()
        self.is_active = False
        self._zeroed = RangeSet()
        self._lost = RangeSet()  # what is pending because it was zeroed, which was lost: wherever the end is
        self._zeroings = 0
        self.whole: Final = View(self)
        self._views = [self.whole]

    @property
    def is_owed(self) -> bool:
        """Whether there are holes that the unit may not have on stable storage."""
        return bool(self.pending) or bool(self._zeroed)

    @property
    def count(self) -> int:
        """The number of ranges that are kept."""
        return len(self.pending) + len(self._zeroed)

    def view(self, start: int, stop: int) -> "View":
        """Return a new view of *start* to *stop*."""
        view = View(self, start, stop)
        self._views.append(view)
        return view

    def remove_view(self, view: "View") -> None:
        """Forget *view*: nobody uses it any more."""
        self._views.remove(view)
        self.note_activity()

    def wrote(self, start: int, end: int, capacity: int) -> None:
        """Note that *start* to *end* were written."""
        self._remove(start, end)
        for view in self._views:
            view.wrote(start, end, capacity)
        self.note_activity()

    def read(self, start: int, end: int, capacity: int) -> None:
        """Note that *start* to *end* are being read."""
        for view in self._views:
            view.read(start, end, capacity)

    def clip(self, capacity: int) -> None:
        """Note that the unit has *capacity* bytes now."""
        self._remove(capacity, _FAR)
        for view in self._views:
            view.clip(capacity)
        self.note_activity()

    def cut(self, start: int, end: int) -> None:
        """Note that *start* to *end* are behind the end of a view: they stay, except for lost zeros."""
        self.pending.remove(start, end)
        for first, last in self._lost.within(start, end):
            self.pending.add(first, last)

    def zeroed(self, start: int, end: int) -> None:
        """Note that what is pending of *start* to *end* was zeroed, perhaps only in the unit's cache."""
        self._zeroings += 1
        for first, last in self.pending.within(start, end):
            self._zeroed.add(first, last)
        self.pending.remove(start, end)
        self._lost.remove(start, end)

    def mark(self) -> int:
        """Return what `synchronised` needs, at the moment when a SYNCHRONIZE CACHE begins."""
        return self._zeroings

    def synchronised(self, mark: int) -> None:
        """Note that the SYNCHRONIZE CACHE has succeeded."""
        if mark == self._zeroings:  # otherwise the next one will tell
            self._zeroed.clear()
            self.note_activity()

    def lost(self) -> None:
        """Note that what was zeroed and not synchronised may be lost."""
        for start, end in self._zeroed:
            self.pending.add(start, end)
            self._lost.add(start, end)
        self._zeroed.clear()

    def forget(self) -> None:
        """Forget everything: the unit is gone."""
        self._remove(0, _FAR)
        for view in self._views:
            view.forget()
        self.note_activity()

    def note_activity(self) -> None:
        """Note that a range, or the end of a view, has changed."""
        self.is_active = self.is_owed or any(view.end is not None for view in self._views)

    def _remove(self, start: int, end: int) -> None:
        for ranges in (self.pending, self._zeroed, self._lost):
            ranges.remove(start, end)


class View:
    """The end of what programs mean of *start* to *stop* of a unit with *holes*.

    `end` is an offset in the unit, and None where it is `stop`, or the capacity. `stale` is set when a hole
    comes to be where old bytes were read since the truncation, or may have been before it: copies of these
    must not be used any more. Who drops them clears it.
    """

    def __init__(self, holes: Holes, start: int = 0, stop: int = _FAR) -> None:
        self.start: Final = start
        self.stop = stop
        self.end: int | None = None
        self.stale = False
        self._holes = holes
        self._is_dormant = False
        self._is_written = False  # since the end was laid further to the front
        self._shown = (0, 0)  # old bytes behind the end that somebody may have a copy of

    def shrinks(self, size: int, capacity: int) -> bool:
        """Say whether a truncation to *size* bytes lays the end further to the front."""
        return self.start + size < (min(self.stop, capacity) if self.end is None else self.end)

    def truncate(self, size: int, capacity: int) -> None:
        """Set the end to *size* bytes behind the start."""
        stop, wanted = min(self.stop, capacity), self.start + size
        end = stop if self.end is None else self.end
        if wanted < end:
            self._holes.cut(wanted, stop)
            self._shown = (wanted, stop)
            self._is_written = False
        elif wanted > end:
            self._open(end, wanted)
        self._set_end(wanted, stop)
        self._holes.note_activity()

    def wrote(self, start: int, end: int, capacity: int) -> None:
        """Note that *start* to *end* of the unit were written."""
        stop = min(self.stop, capacity)
        start, end = max(start, self.start), min(end, stop)
        if start >= end:
            return
        if self._is_dormant:
            self._set_end(stop, stop)
        elif self.end is not None:
            if start > self.end:
                self._open(self.end, start)
            self._set_end(max(end, self.end), stop)
            self._is_written = True

    def read(self, start: int, end: int, capacity: int) -> None:
        """Note that *start* to *end* of the unit are being read."""
        stop = min(self.stop, capacity)
        start, end = max(start, self.start), min(end, stop)
        if start >= end:
            return
        if self._is_dormant:
            self._set_end(stop, stop)
            self._holes.note_activity()
        elif self.end is not None and end > self.end:
            first, last = self._shown
            start = max(start, self.end)
            self._shown = (min(first, start), max(last, end)) if first < last else (start, end)

    def release(self) -> None:
        """Note that the last writer by this view has closed."""
        if self._is_written:
            self.end = None
            self._holes.note_activity()
        self._is_dormant = self.end is not None

    def clip(self, capacity: int) -> None:
        """Note that the unit has *capacity* bytes now."""
        stop = min(self.stop, capacity)
        if self.end is not None and self.end >= stop:
            self._set_end(stop, stop)

    def resize(self, stop: int) -> None:
        """Let the view reach to *stop*. An end that programs mean now is not changed by that."""
        self.stop = stop
        self.clip(stop)
        self._holes.note_activity()

    def forget(self) -> None:
        """Forget the end: the unit is gone."""
        self.end = None
        self._is_dormant = False

    def _open(self, start: int, end: int) -> None:
        """Make a hole."""
        self._holes.pending.add(start, end)
        first, last = self._shown
        if start < last and first < end:
            self.stale = True
            self._shown = (0, 0)

    def _set_end(self, end: int, stop: int) -> None:
        self.end = end if end < stop else None
        self._is_dormant = False
