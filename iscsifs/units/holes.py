"""Truncation of a unit whose size cannot change: which bytes programs take for zeros.

A truncation to N sets the *end* of what programs mean. What comes inside the end again without being
written, because of a write behind it or of a truncation to more, is a *hole*: it reads as zeros at once and
is zeroed on the unit later. What is behind the last end stays as it is. Nothing here does any I/O. Offsets
are in bytes.

A hole goes through two states. PENDING: the unit still has the old bytes. ZEROED: a command has zeroed it,
which the unit's volatile cache may still lose; then it is pending again. SYNCHRONIZE CACHE ends that state.

When the last writer has closed the end is forgotten, so that a program that uses the unit as a disk is not
affected by what another one has truncated before. Where nothing was written since the truncation, the end is
*dormant* first: a truncation goes on from it, which serves ``truncate -s 0 X; truncate -s SIZE X``, and a
read or a write forgets it.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


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


class Holes:
    """The end and the holes of one unit.

    `end` is None where it is the capacity. `is_active` is False as long as neither reads nor writes make any
    difference here. `stale` is set when a hole comes to be where old bytes were read since the truncation, or
    may have been before it: copies of these must not be used any more. Who drops them clears it.
    """

    def __init__(self) -> None:
        self.end: int | None = None
        self.pending = RangeSet()
        self.is_active = False
        self.stale = False
        self._zeroed = RangeSet()
        self._lost = RangeSet()  # what is pending because it was zeroed, which was lost: wherever the end is
        self._zeroings = 0
        self._is_dormant = False
        self._is_written = False  # since the end was laid further to the front
        self._shown = (0, 0)  # old bytes behind the end that somebody may have a copy of

    @property
    def is_owed(self) -> bool:
        """Whether there are holes that the unit may not have on stable storage."""
        return bool(self.pending) or bool(self._zeroed)

    @property
    def count(self) -> int:
        """The number of ranges that are kept."""
        return len(self.pending) + len(self._zeroed)

    def shrinks(self, size: int, capacity: int) -> bool:
        """Say whether a truncation to *size* lays the end further to the front."""
        return size < (capacity if self.end is None else self.end)

    def truncate(self, size: int, capacity: int) -> None:
        """Set the end to *size*."""
        end = capacity if self.end is None else self.end
        if size < end:
            self.pending.remove(size, capacity)
            for start, stop in self._lost.within(size, capacity):
                self.pending.add(start, stop)
            self._shown = (size, capacity)
            self._is_written = False
        elif size > end:
            self._open(end, size)
        self._set_end(size, capacity)

    def wrote(self, start: int, end: int, capacity: int) -> None:
        """Note that *start* to *end* were written."""
        self._remove(start, end)
        if self._is_dormant:
            self._set_end(capacity, capacity)
        elif self.end is not None:
            if start > self.end:
                self._open(self.end, start)
            self._set_end(max(end, self.end), capacity)
            self._is_written = True
        self._note_activity()

    def read(self, start: int, end: int, capacity: int) -> None:
        """Note that *start* to *end* are being read."""
        if self._is_dormant:
            self._set_end(capacity, capacity)
        elif self.end is not None and end > self.end:
            first, last = self._shown
            start = max(start, self.end)
            self._shown = (min(first, start), max(last, end)) if first < last else (start, end)

    def release(self) -> None:
        """Note that the last writer has closed."""
        if self._is_written:
            self.end = None
            self._note_activity()
        self._is_dormant = self.end is not None

    def clip(self, capacity: int) -> None:
        """Note that the unit has *capacity* bytes now."""
        self._remove(capacity, 1 << 64)
        if self.end is not None and self.end >= capacity:
            self._set_end(capacity, capacity)
        self._note_activity()

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
            self._note_activity()

    def lost(self) -> None:
        """Note that what was zeroed and not synchronised may be lost."""
        for start, end in self._zeroed:
            self.pending.add(start, end)
            self._lost.add(start, end)
        self._zeroed.clear()

    def forget(self) -> None:
        """Forget everything: the unit is gone."""
        self._remove(0, 1 << 64)
        self.end = None
        self._is_dormant = self.is_active = False

    def _remove(self, start: int, end: int) -> None:
        for ranges in (self.pending, self._zeroed, self._lost):
            ranges.remove(start, end)

    def _open(self, start: int, end: int) -> None:
        """Make a hole."""
        self.pending.add(start, end)
        first, last = self._shown
        if start < last and first < end:
            self.stale = True
            self._shown = (0, 0)

    def _set_end(self, end: int, capacity: int) -> None:
        self.end = end if end < capacity else None
        self._is_dormant = False
        self._note_activity()

    def _note_activity(self) -> None:
        self.is_active = self.end is not None or self.is_owed
