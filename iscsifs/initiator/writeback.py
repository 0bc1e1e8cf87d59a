"""Writes of one logical unit between their arrival and the moment from which they cannot be lost.

A write goes through three states. DIRTY: we have it, the target has not. SENDING: it is in a command under
way. WRITTEN: the target has it, perhaps only in a volatile cache. SYNCHRONIZE CACHE ends the last state;
until then the data are kept, because a target that is reset or loses power may have lost them, and they are
written again (`lost_cache`). So there are two bounds: one for what is not yet written, at which writers
wait, and one for what is written but not synchronised, at which the oldest are let go; a reset after that
is reported as a failure.

The buffer is a map of pieces that do not overlap, sorted by offset, each the newest data for its range.
Offsets are in bytes, all of them multiples of the block size.
"""

import logging
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum, auto
from typing import Final

import trio

from iscsifs.errors import DataLostError, IscsifsError

log = logging.getLogger(__name__)

MAX_COMMANDS: Final = 32
"""WRITEs of one unit on their way at once."""

MAX_UNWRITTEN: Final = 32 * 1024 * 1024
"""Bytes that may wait to be written; then writers wait."""

MAX_UNSYNCHRONISED: Final = 64 * 1024 * 1024
"""Bytes of written data that are kept until they are synchronised."""


class State(Enum):
    """How far a piece has come."""

    DIRTY = auto()
    SENDING = auto()
    WRITTEN = auto()


class Command:
    """A WRITE under way, of neighbouring *pieces*; what becomes of these does not change what is sent."""

    __slots__ = ("data", "done", "pieces", "start")

    def __init__(self, pieces: list["Piece"]) -> None:
        chunks = [piece.data for piece in pieces]
        self.start = pieces[0].start
        self.data = chunks[0] if len(chunks) == 1 else memoryview(b"".join(chunks))
        self.pieces = pieces
        self.done = False


class Piece:
    """The newest data for bytes *start* to *end*."""

    __slots__ = ("blockers", "command", "data", "end", "epoch", "start", "state")

    def __init__(self, start: int, data: memoryview) -> None:
        self.start = start
        self.end = start + len(data)
        self.data = data
        self.state = State.DIRTY
        self.command: Command | None = None
        self.blockers: list[Command] = []  # older data for the same blocks, on their way
        self.epoch = 0  # how many SYNCHRONIZE CACHE were sent before it was WRITTEN

    def part(self, start: int, end: int) -> "Piece":
        """Return bytes *start* to *end* as a piece in the same state."""
        part = Piece(start, self.data[start - self.start : end - self.start])
        part.state = self.state
        part.command = self.command
        part.blockers = list(self.blockers)
        part.epoch = self.epoch
        return part

    @property
    def blocked(self) -> bool:
        """Whether older data for the same blocks must arrive first."""
        if self.blockers:
            self.blockers = [command for command in self.blockers if not command.done]
        return bool(self.blockers)


class Barrier:
    """Waits until some pieces are written, or others in their stead, and the commands under way with them.

    Whoever *reports* is told of a `failure` among them, which then counts as said.
    """

    __slots__ = ("_over", "failure", "reports", "things")

    def __init__(self, things: Iterable[Piece | Command], reports: bool) -> None:
        self.things = set(things)
        self.reports = reports
        self.failure: IscsifsError | None = None
        self._over = trio.Event()

    def replace(self, old: Piece | Command, *new: Piece | Command) -> None:
        """If *old* is waited for, wait for *new* instead."""
        if old in self.things:
            self.things.remove(old)
            self.things.update(new)
            if not self.things:
                self._over.set()

    async def wait(self) -> None:
        """Return when all have been written or have failed."""
        if self.things:
            await self._over.wait()


class WriteBuffer:
    """The write buffer of one unit.

    *write(offset, data)* and *synchronise()* do it, and raise IscsifsError where they fail. *longest* is
    the number of bytes that neighbouring pieces are merged to. With *behind* False a write returns when the
    target has it.

    `failures` counts what was lost of writes that had been acknowledged, `failure` is the latest such loss:
    every open file that was there has to report it once.
    """

    def __init__(
        self,
        write: Callable[[int, memoryview], Awaitable[None]],
        synchronise: Callable[[], Awaitable[None]],
        nursery: trio.Nursery,
        *,
        longest: int,
        behind: bool = True,
        volatile: bool = True,
        max_unwritten: int = MAX_UNWRITTEN,
        max_unsynchronised: int = MAX_UNSYNCHRONISED,
    ) -> None:
        self.failures = 0
        self.failure: IscsifsError | None = None
        self.resets = 0
        """How often the cache of the target may have been lost."""
        self._write = write
        self._synchronise = synchronise
        self._nursery = nursery
        self._longest = longest
        self._behind = behind
        self._volatile = volatile
        self._max_unwritten = max_unwritten
        self._max_unsynchronised = max_unsynchronised
        self._starts: list[int] = []
        self._pieces: list[Piece] = []
        self._dirty: dict[Piece, None] = {}  # by age
        self._written: dict[Piece, None] = {}  # by age
        self._commands: set[Command] = set()
        self._barriers: list[Barrier] = []
        self._newest: Piece | None = None
        self._unwritten = 0
        self._unsynchronised = 0
        self._epoch = 0
        self._let_go: int | None = None  # the epoch of the newest data that were let go unsynchronised
        self._room = trio.Event()

    async def write(self, start: int, data: bytes | memoryview) -> None:
        """Take *data* for offset *start*, and wait until there is room; without *behind*, until it is
        written."""
        while self._unwritten >= self._max_unwritten:
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()
        piece = Piece(start, memoryview(data))
        self._insert(piece)
        self._pump()
        if not self._behind:
            barrier = await self._wait_for([piece], reports=True)
            if barrier.failure is not None:
                raise barrier.failure

    def newer(self, start: int, end: int) -> list[tuple[int, memoryview]]:
        """Return what is newer here than on the target between *start* and *end*, as (offset, data)."""
        if not self._unwritten:
            return []
        first, last = self._overlapping(start, end)
        return [
            (max(piece.start, start), piece.data[max(start - piece.start, 0) : end - piece.start])
            for piece in self._pieces[first:last]
            if piece.state is not State.WRITTEN
        ]

    async def drain(self) -> None:
        """Wait until everything that is here now was written, or has failed."""
        await self._wait_for([*self._dirty, *self._commands])

    async def flush(self) -> None:
        """Wait until everything that is here now is safe from a loss of the target's cache.

        Raises what SYNCHRONIZE CACHE failed with; the data are then written again before the next one. The
        failure of a write shows in `failures`.
        """
        while True:
            resets = self.resets
            await self.drain()
            epoch = self._epoch
            self._epoch += 1
            try:
                await self._synchronise()
            except IscsifsError as error:
                # Nobody knows what the target has kept, and a second SYNCHRONIZE CACHE may not tell.
                self._fail(error)
                self._write_again()
                raise
            if self.resets == resets:
                self._forget_synchronised(epoch)
                return

    def lost_cache(self) -> None:
        """The target may have lost what it had not synchronised: write it again (SPC, unit attention 29h)."""
        self.resets += 1
        if self._let_go is not None:
            self._let_go = None
            self._fail(
                DataLostError("the target may have lost its cache, and more was in it than is kept here")
            )
        self._write_again()
        self._pump()

    def discard(self, failure: IscsifsError) -> None:
        """Give everything up because of *failure*, but for what is on its way."""
        if self._dirty or self._written:
            self._fail(failure)
        for piece in [*self._dirty, *self._written]:
            self._remove(piece)
            for barrier in self._barriers:
                barrier.replace(piece)
        self._make_room()

    # The map of pieces.

    def _overlapping(self, start: int, end: int) -> tuple[int, int]:
        """Return the slice of the pieces that touch *start* to *end*."""
        first = bisect_right(self._starts, start)
        if first and self._pieces[first - 1].end > start:
            first -= 1
        last = first
        while last < len(self._pieces) and self._pieces[last].start < end:
            last += 1
        return first, last

    def _insert(self, new: Piece) -> None:
        """Put *new* into the map, over what was there."""
        first, last = self._overlapping(new.start, new.end)
        around = [new]
        for old in self._pieces[first:last]:
            parts = []
            if old.start < new.start:
                parts.append(old.part(old.start, new.start))
                around.insert(0, parts[-1])
            if old.end > new.end:
                parts.append(old.part(new.end, old.end))
                around.append(parts[-1])
            new.blockers += [old.command] if old.command else old.blockers
            self._replace(old, parts, new)
        self._pieces[first:last] = around
        self._starts[first:last] = [piece.start for piece in around]
        self._dirty[new] = None
        self._unwritten += len(new.data)
        self._newest = new

    def _replace(self, old: Piece, parts: list[Piece], new: Piece) -> None:
        """Put *parts* of *old* where it was registered; *new* has taken the place of the rest."""
        length = sum(len(part.data) for part in parts) - len(old.data)
        match old.state:
            case State.DIRTY:
                del self._dirty[old]
                self._dirty.update(dict.fromkeys(parts))
                self._unwritten += length
                for barrier in self._barriers:
                    barrier.replace(old, *parts, new)
            case State.SENDING:
                assert old.command is not None
                old.command.pieces.remove(old)
                old.command.pieces += parts
                self._unwritten += length
            case State.WRITTEN:
                del self._written[old]
                self._written.update(dict.fromkeys(parts))
                self._unsynchronised += length

    def _remove(self, piece: Piece) -> None:
        """Take *piece* out of the map, and out of the books of its state."""
        index = bisect_right(self._starts, piece.start) - 1
        del self._pieces[index], self._starts[index]
        if piece.state is State.WRITTEN:
            del self._written[piece]
            self._unsynchronised -= len(piece.data)
        else:
            self._dirty.pop(piece, None)
            self._unwritten -= len(piece.data)

    # Writing.

    def _pump(self) -> None:
        """Start commands as long as there is something to send and some are free."""
        while len(self._commands) < MAX_COMMANDS and (command := self._next_command()):
            self._nursery.start_soon(self._send, command)

    def _next_command(self) -> Command | None:
        """Choose the next pieces to send: the oldest, with the neighbours that go into the same command."""
        for piece in self._dirty:
            if piece.blocked:
                continue
            pieces = self._neighbours(piece)
            # Where the writer is now there will soon be more: as long as the line is busy, wait for it.
            growing = pieces[-1] is self._newest and pieces[-1].end - pieces[0].start < self._longest
            if growing and self._commands and not self._barriers:
                continue
            command = Command(pieces)
            for sent in command.pieces:
                del self._dirty[sent]
                sent.state = State.SENDING
                sent.command = command
                for barrier in self._barriers:
                    barrier.replace(sent, command)
            self._commands.add(command)
            return command
        return None

    def _neighbours(self, piece: Piece) -> list[Piece]:
        """Return *piece* with the dirty ones that touch it on both sides, as far as one command goes."""
        index = bisect_right(self._starts, piece.start) - 1
        first = last = index
        room = self._longest - len(piece.data)
        pieces = self._pieces

        def joins(left: int, right: int, candidate: Piece) -> bool:
            return (
                pieces[left].end == pieces[right].start
                and candidate.state is State.DIRTY
                and len(candidate.data) <= room
                and not candidate.blocked
            )

        while first and joins(first - 1, first, pieces[first - 1]):
            first -= 1
            room -= len(pieces[first].data)
        while last + 1 < len(pieces) and joins(last, last + 1, pieces[last + 1]):
            last += 1
            room -= len(pieces[last].data)
        return pieces[first : last + 1]

    async def _send(self, first: Command) -> None:
        """Carry out *first*, and then others as long as there are any."""
        command: Command | None = first
        while command is not None:
            failure: IscsifsError | None = None
            try:
                await self._write(command.start, command.data)
            except IscsifsError as error:
                failure = error
            except Exception:
                log.exception("a write failed because of a bug")
                failure = IscsifsError("a write failed because of a bug; see the log")
            self._finish(command, failure)
            command = self._next_command()
            self._pump()

    def _finish(self, command: Command, failure: IscsifsError | None) -> None:
        """Book the end of *command*."""
        self._commands.remove(command)
        command.done = True
        for piece in command.pieces:
            if failure is None and self._volatile:
                piece.state = State.WRITTEN
                piece.command = None
                piece.epoch = self._epoch
                self._written[piece] = None
                self._unwritten -= len(piece.data)
                self._unsynchronised += len(piece.data)
            else:
                self._remove(piece)
        reported = False
        for barrier in self._barriers:
            if failure is not None and barrier.reports and command in barrier.things:
                barrier.failure = failure
                reported = True
            barrier.replace(command)
        if failure is not None and not reported:
            self._fail(failure)
        self._let_go_of_the_oldest()
        self._make_room()

    def _make_room(self) -> None:
        if self._unwritten < self._max_unwritten:
            self._room.set()

    async def _wait_for(self, things: Iterable[Piece | Command], *, reports: bool = False) -> Barrier:
        barrier = Barrier(things, reports)
        if barrier.things:
            self._barriers.append(barrier)
            try:
                self._pump()  # nothing is held back any more
                await barrier.wait()
            finally:
                self._barriers.remove(barrier)
        return barrier

    # Losing and keeping.

    def _fail(self, failure: IscsifsError) -> None:
        self.failures += 1
        self.failure = failure

    def _write_again(self) -> None:
        """Make everything that the target may have lost dirty again."""
        for piece in self._written:
            piece.state = State.DIRTY
        self._dirty.update(self._written)
        self._written.clear()
        self._unwritten += self._unsynchronised
        self._unsynchronised = 0

    def _let_go_of_the_oldest(self) -> None:
        while self._unsynchronised > self._max_unsynchronised:
            oldest = next(iter(self._written))
            self._let_go = self._epoch
            self._remove(oldest)

    def _forget_synchronised(self, epoch: int) -> None:
        """Let go of what was written before SYNCHRONIZE CACHE number *epoch* was sent."""
        for piece in [piece for piece in self._written if piece.epoch <= epoch]:
            self._remove(piece)
        if self._let_go is not None and self._let_go <= epoch:
            self._let_go = None
