"""The map of a write buffer: which bytes are newer here than on stable storage, and how far they have come.

The map holds extents that do not overlap, sorted by offset, each the newest data for its range. Nothing here
does any I/O, and nothing knows what a command is: the map knows which ranges are under way, and no more.

=======  ==========================================  ==================================================
state    meaning                                     next
=======  ==========================================  ==================================================
DIRTY    to be sent                                  SENDING
BLOCKED  to be sent, after what is under way for     DIRTY
         the same bytes
SENDING  under way                                   WRITTEN; DIRTY, to be sent again; none: it failed
WRITTEN  the target has it, perhaps only in a        none: it is safe, or let go; DIRTY: the cache may
         volatile cache                              be lost
=======  ==========================================  ==================================================

New data take the place of what they overlap; what is left of an old extent keeps its state. They are BLOCKED
where a range under way overlaps them: so two commands for the same bytes are never under way at once, and
overlapping writes arrive in their order. New data next to an extent that is still to be sent join it, so an
extent is what one command writes.

An extent remembers what a failure of it means. `acknowledged`: a writer was told that it succeeded, so that
its failure is a loss. `covers`: it has taken the place of acknowledged data that are under way or WRITTEN. As
long as these are safe its failure is none of theirs; once they may be lost it has to `stand_in` for them.

Offsets are in bytes, all of them multiples of the block size.
"""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from enum import IntEnum
from itertools import accumulate
from operator import attrgetter
from typing import Final

import trio

from iscsifs.errors import IscsifsError


class State(IntEnum):
    """How far an extent has come."""

    DIRTY = 0
    BLOCKED = 1
    SENDING = 2
    WRITTEN = 3


DIRTY: Final = State.DIRTY
BLOCKED: Final = State.BLOCKED
SENDING: Final = State.SENDING
WRITTEN: Final = State.WRITTEN


class Barrier:
    """Waits for data: until they are written or have failed, or others that take their place.

    It is `held` by so many extents and commands. `failure` is how one of them has failed. `is_safe`: all of
    them were written by commands with FUA.
    """

    __slots__ = ("_over", "failure", "held", "is_safe")

    def __init__(self) -> None:
        self.held = 0
        self.failure: IscsifsError | None = None
        self.is_safe = True
        self._over = trio.Event()

    def release(self) -> None:
        """Be held by one less."""
        self.held -= 1
        if not self.held:
            self._over.set()

    async def wait(self) -> None:
        """Return when nothing holds the barrier."""
        if self.held:
            await self._over.wait()


class Extent:
    """The newest data for bytes *start* to *end*: *chunks*, one behind the other, as they were written."""

    __slots__ = (
        "acknowledged",
        "alone",
        "barriers",
        "chunks",
        "covers",
        "end",
        "epoch",
        "repeats",
        "start",
        "state",
        "sync",
    )

    def __init__(self, start: int, end: int, chunks: list[memoryview]) -> None:
        self.start = start
        self.end = end
        self.chunks = chunks
        self.state = DIRTY
        self.barriers: tuple[Barrier, ...] = ()
        self.epoch = 0  # how many SYNCHRONIZE CACHE were begun before it was WRITTEN
        self.repeats = 0  # how often in a row the cache was lost while it was SENDING
        self.acknowledged = False
        self.covers = False
        self.alone = False  # it goes into a command of its own
        self.sync = False  # its writer waits until it is on stable storage

    def __len__(self) -> int:
        return self.end - self.start

    def stand_in(self) -> None:
        """From now on it is all that there is of the data in its place."""
        self.acknowledged |= self.covers
        self.covers = False

    def borders(self) -> list[int]:
        """Return where one write in it ends and the next begins."""
        return list(accumulate(map(len, self.chunks[:-1]), initial=self.start))[1:]

    def take_the_place_of(self, old: "Extent") -> None:
        """Take over what a failure of *old* would mean, and who waits for it."""
        is_sent = old.state >= SENDING
        self.acknowledged |= old.acknowledged and not is_sent
        self.covers |= old.covers or (old.acknowledged and is_sent)
        if old.barriers:
            self.hold(old.barriers)

    def hold(self, barriers: Iterable[Barrier]) -> None:
        """Let *barriers* wait for this extent as well."""
        for barrier in barriers:
            if barrier not in self.barriers:
                self.barriers += (barrier,)
                barrier.held += 1

    def part(self, start: int, end: int) -> "Extent":
        """Return bytes *start* to *end* as an extent in the same state, which holds no barrier."""
        part = Extent(start, end, cut(self.chunks, start - self.start, end - self.start))
        part.state = self.state
        part.epoch = self.epoch
        part.repeats = self.repeats
        part.acknowledged = self.acknowledged
        part.covers = self.covers
        part.alone = self.alone
        part.sync = self.sync
        return part


_START: Final = attrgetter("start")


class ExtentMap:
    """The extents of one unit. Neighbours are joined up to `longest` bytes.

    `dirty` and `written` have the extents of these states, the oldest first. `unwritten` is the number of
    bytes that are not WRITTEN, `unsynchronised` of those that are.
    """

    def __init__(self, longest: int = 0) -> None:
        self.unwritten = 0
        self.unsynchronised = 0
        # From the front of a plain dict every removal would be slower than the last.
        self.dirty: OrderedDict[Extent, None] = OrderedDict()
        self.written: OrderedDict[Extent, None] = OrderedDict()
        self._books = (self.dirty, OrderedDict[Extent, None](), OrderedDict[Extent, None](), self.written)
        self.longest = longest
        self._extents: list[Extent] = []
        self._under_way: dict[int, int] = {}  # from the start of a range to its end

    def __iter__(self) -> Iterator[Extent]:
        return iter(self._extents)

    @property
    def waiting(self) -> list[Extent]:
        """The extents that are still to be sent."""
        return [*self.dirty, *self._books[BLOCKED]]

    @property
    def sending(self) -> list[Extent]:
        """The extents that are under way."""
        return [*self._books[SENDING]]

    def overlapping(self, start: int, end: int) -> list[Extent]:
        """Return the extents that touch *start* to *end*."""
        first, last = self._slice(start, end)
        return self._extents[first:last]

    def newer(self, start: int, end: int) -> list[tuple[int, memoryview]]:
        """Return what is newer here than on the target between *start* and *end*, as (offset, data)."""
        found: list[tuple[int, memoryview]] = []
        if self.unwritten:
            for extent in self.overlapping(start, end):
                if extent.state is not WRITTEN:
                    position = extent.start
                    for chunk in extent.chunks:
                        if position < end and start < position + len(chunk):
                            part = chunk[max(start - position, 0) : end - position]
                            found.append((max(position, start), part))
                        position += len(chunk)
        return found

    # New data.

    def insert(self, start: int, data: memoryview, *, acknowledged: bool, sync: bool) -> Extent:
        """Put *data* into the map, over what was there, and return the extent that they are in then."""
        end = start + len(data)
        new = Extent(start, end, [data])
        new.acknowledged = acknowledged
        new.sync = sync
        extents = self._extents
        first, last = self._slice(start, end)
        if first == last:
            extents.insert(first, new)
            self.unwritten += end - start
            self.dirty[new] = None
        else:
            first = self._carve(first, last, start, end, new)
        if first + 1 < len(extents) and extents[first + 1].start == end:
            self._join(first)
        if first and extents[first - 1].end == start and self._join(first - 1):
            return extents[first - 1]
        return new

    def forget(self, start: int, end: int) -> None:
        """Take out what is WRITTEN between *start* and *end*: nobody wants these data any more."""
        for extent in self.overlapping(start, end):
            if extent.state is WRITTEN:
                first, last = max(extent.start, start), min(extent.end, end)
                self._carve(*self._slice(first, last), first, last, None)

    def _carve(self, first: int, last: int, start: int, end: int, new: Extent | None) -> int:
        """Take bytes *start* to *end* out of the extents from *first* to *last*, put *new* there, and return
        its place."""
        extents = self._extents
        olds = extents[first:last]
        # What needs memory comes before what changes anything.
        before = [_rest(olds[0], olds[0].start, start)] if olds[0].start < start else []
        behind = [_rest(olds[-1], end, olds[-1].end)] if olds[-1].end > end else []
        extents[first:last] = [*before, *([] if new is None else [new]), *behind]
        if before:
            before[0].hold(olds[0].barriers)
        if behind:
            behind[0].hold(olds[-1].barriers)
        may_be_blocked = False
        for old in olds:
            self._leave(old)
            if new is not None:
                new.take_the_place_of(old)
                may_be_blocked |= old.state in (BLOCKED, SENDING)
            _release(old)
        for rest in (*before, *behind):
            if rest.state is BLOCKED and not self._is_under_way(rest):
                rest.state = DIRTY
            self._enter(rest)
        if new is not None:
            if may_be_blocked and self._is_under_way(new):
                new.state = BLOCKED
            self._enter(new)
        return first + len(before)

    def _join(self, index: int) -> bool:
        """Take the extent behind *index*, which is next to that there, into it if one command can write both;
        return whether it can."""
        left, right = self._extents[index : index + 2]
        if (
            left.state is not right.state
            or left.state >= SENDING
            or left.alone
            or right.alone
            or left.sync != right.sync  # the one fails to its writer, the other is lost
            or right.end - left.start > self.longest
        ):
            return False
        left.chunks += right.chunks
        left.end = right.end
        left.acknowledged |= right.acknowledged
        left.covers |= right.covers
        left.hold(right.barriers)
        _release(right)
        del self._books[right.state][right]
        del self._extents[index + 1]
        return True

    # What becomes of an extent.

    def send(self, extent: Extent) -> None:
        """Note that a DIRTY extent is under way: what comes over it is blocked until it has `landed`."""
        del self.dirty[extent]
        self._books[SENDING][extent] = None
        extent.state = SENDING
        self._under_way[extent.start] = extent.end

    def landed(self, start: int, end: int) -> tuple[list[Extent], list[Extent]]:
        """Note that *start* to *end*, which were sent as one extent, are under way no more.

        Returns what is left of that extent, still SENDING, and the extents of newer data over it.
        """
        del self._under_way[start]
        sent: list[Extent] = []
        newer: list[Extent] = []
        first, last = self._slice(start, end)
        for extent in self._extents[first:last]:
            if extent.state is SENDING:
                sent.append(extent)
            else:
                newer.append(extent)
                if extent.state is BLOCKED and not self._is_under_way(extent):
                    self.change(extent, DIRTY)
        return sent, newer

    def change(self, extent: Extent, state: State) -> None:
        """Bring *extent* into *state*."""
        old, size = extent.state, extent.end - extent.start
        del self._books[old][extent]
        self._books[state][extent] = None
        extent.state = state
        if (old is WRITTEN) != (state is WRITTEN):
            sign = 1 if state is WRITTEN else -1
            self.unsynchronised += sign * size
            self.unwritten -= sign * size

    def remove(self, gone: Collection[Extent]) -> None:
        """Take *gone* out of the map; what waits for them does not any more."""
        for extent in gone:
            self._leave(extent)
            if extent.barriers:
                _release(extent)
        if len(gone) == 1:
            del self._extents[bisect_left(self._extents, extent.start, key=_START)]
        elif gone:
            set_of_gone = set(gone)
            self._extents = [extent for extent in self._extents if extent not in set_of_gone]

    def divide(self, extent: Extent, borders: Iterable[int]) -> None:
        """Put several extents in the place of a DIRTY one, cut at *borders*."""
        parts = []
        start = extent.start
        for border in (*borders, extent.end):
            parts.append(extent.part(start, border))
            start = border
        index = bisect_left(self._extents, extent.start, key=_START)
        self._extents[index : index + 1] = parts
        self._leave(extent)
        for part in parts:
            part.hold(extent.barriers)
            self._enter(part)
        _release(extent)

    def _enter(self, extent: Extent) -> None:
        """Put *extent* into the book of its state."""
        self._books[extent.state][extent] = None
        if extent.state is WRITTEN:
            self.unsynchronised += extent.end - extent.start
        else:
            self.unwritten += extent.end - extent.start

    def _leave(self, extent: Extent) -> None:
        """Take *extent* out of the book of its state."""
        del self._books[extent.state][extent]
        if extent.state is WRITTEN:
            self.unsynchronised -= extent.end - extent.start
        else:
            self.unwritten -= extent.end - extent.start

    def _slice(self, start: int, end: int) -> tuple[int, int]:
        """Return the slice of the extents that touch *start* to *end*."""
        extents = self._extents
        first = bisect_right(extents, start, key=_START)
        if first and extents[first - 1].end > start:
            first -= 1
        return first, bisect_left(extents, end, first, key=_START)

    def _is_under_way(self, extent: Extent) -> bool:
        """Say whether anything under way overlaps *extent*."""
        return any(start < extent.end and extent.start < end for start, end in self._under_way.items())


def _release(extent: Extent) -> None:
    """Let nobody wait for *extent* any more."""
    barriers, extent.barriers = extent.barriers, ()
    for barrier in barriers:
        barrier.release()


def cut(chunks: Iterable[memoryview], start: int, end: int) -> list[memoryview]:
    """Return bytes *start* to *end* of *chunks*."""
    parts: list[memoryview] = []
    position = 0
    for chunk in chunks:
        part = chunk[max(start - position, 0) : max(end - position, 0)]
        if part:
            parts.append(part)
        position += len(chunk)
    return parts


def compact(chunk: memoryview) -> memoryview:
    """Return *chunk*, or a copy where it is less than half of its buffer, which it would keep alive."""
    if 2 * len(chunk) < memoryview(chunk.obj).nbytes:
        with suppress(MemoryError):  # then the whole stays
            return memoryview(bytes(chunk))
    return chunk


def _rest(extent: Extent, start: int, end: int) -> Extent:
    """Return what is left of *extent*."""
    rest = extent.part(start, end)
    rest.chunks = [compact(chunk) for chunk in rest.chunks]
    return rest
