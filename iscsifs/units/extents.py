"""Data on their way to a logical unit: extents, the commands that write them, and who waits for them."""

from collections.abc import Iterable
from contextlib import suppress
from enum import Enum, auto

import trio

from iscsifs.errors import IscsifsError


class State(Enum):
    """How far an extent has come."""

    DIRTY = auto()
    SENDING = auto()
    WRITTEN = auto()


class Extent:
    """The newest data for bytes *start* to *end*: *chunks*, one behind the other, as they were written."""

    __slots__ = (
        "acknowledged",
        "alone",
        "blockers",
        "chunks",
        "command",
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
        self.state = State.DIRTY
        self.command: Command | None = None  # what it is SENDING in
        self.blockers: set[Command] = set()  # older data for the same blocks, on their way
        self.epoch = 0  # how many SYNCHRONIZE CACHE were sent before it was WRITTEN
        self.repeats = 0  # how often in a row the cache was lost while it was SENDING
        self.acknowledged = False  # somebody counts on it
        self.covers = False  # in its place were unsynchronised data, which are no longer kept
        self.alone = False  # it goes into a command of its own
        self.sync = False  # its writer waits until it is on stable storage

    def __len__(self) -> int:
        return self.end - self.start

    def stand_in(self) -> None:
        """From now on it is all that there is of the data in its place."""
        self.acknowledged |= self.covers
        self.covers = False

    def part(self, start: int, end: int) -> "Extent":
        """Return bytes *start* to *end* as an extent in the same state."""
        part = Extent(start, end, cut(self.chunks, start - self.start, end - self.start))
        part.state = self.state
        part.command = self.command
        part.blockers = self.blockers.copy()
        part.epoch = self.epoch
        part.repeats = self.repeats
        part.acknowledged = self.acknowledged
        part.covers = self.covers
        part.alone = self.alone
        part.sync = self.sync
        return part


class Command:
    """A WRITE under way. What becomes of its *extent* in the meantime does not change what is sent.

    *resets* is how often the target had lost its cache before. `fua`: it succeeds only when its data are on
    stable storage. With a `failure` it has failed, whatever it is answered with.
    """

    __slots__ = ("blocked", "data", "extents", "failure", "fua", "merged", "resets", "start")

    def __init__(self, extent: Extent, resets: int) -> None:
        chunks = extent.chunks
        self.start = extent.start
        self.merged = len(chunks) > 1
        self.data = memoryview(b"".join(chunks)) if self.merged else chunks[0]
        self.resets = resets
        self.fua = False
        self.failure: IscsifsError | None = None
        self.extents: dict[Extent, None] = {}  # what of it is still the newest
        self.blocked: dict[Extent, None] = {}  # what must not be sent before it has ended


class Barrier:
    """Waits until some extents are written, or others in their stead, and the commands under way with them.

    `failure` is how one of them has failed. `is_safe`: all of them were written by commands with FUA.
    """

    __slots__ = ("_over", "failure", "is_safe", "things")

    def __init__(self, things: Iterable[Extent | Command]) -> None:
        self.things = set(things)
        self.failure: IscsifsError | None = None
        self.is_safe = bool(self.things)
        self._over = trio.Event()

    def replace(self, old: Extent | Command, *new: Extent | Command) -> None:
        """If *old* is waited for, wait for *new* instead."""
        if old in self.things:
            self.things.remove(old)
            self.things.update(new)
            if not self.things:
                self._over.set()

    def succeed(self, command: Command, *again: Extent) -> None:
        """If *command*, which has succeeded, is waited for, wait for the data that it was not enough for."""
        if command in self.things:
            self.is_safe &= command.fua
            self.replace(command, *again)

    def fail(self, thing: Extent | Command, failure: IscsifsError, *newer: Extent) -> None:
        """If *thing* is waited for, wait no more, but for the *newer* data over it: it has ended with
        *failure*."""
        if thing in self.things:
            self.failure = failure
            self.replace(thing, *newer)

    async def wait(self) -> None:
        """Return when all have been written or have failed."""
        if self.things:
            await self._over.wait()


def cut(chunks: Iterable[memoryview], start: int, end: int) -> list[memoryview]:
    """Return bytes *start* to *end* of *chunks*; where most of a buffer is left out, the rest is copied, so
    that it does not keep the whole alive."""
    parts: list[memoryview] = []
    position = 0
    for chunk in chunks:
        part = chunk[max(start - position, 0) : max(end - position, 0)]
        if part:
            if 2 * len(part) < memoryview(chunk.obj).nbytes:
                with suppress(MemoryError):  # then the whole stays
                    part = memoryview(bytes(part))
            parts.append(part)
        position += len(chunk)
    return parts
