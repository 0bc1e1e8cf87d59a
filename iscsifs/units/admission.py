"""Which writes may go into the write buffer now, and which have to wait.

Usually a write goes into the buffer at once, and from there on the buffer keeps overlapping writes in order.
Three things do not happen at once: a write while the buffer is full; one of a part of a block, which has to
read the rest of it first; and zeros that do not go through the buffer (WRITE SAME). Each of them is an
*arrival* until it is over. What touches the bytes of an earlier arrival waits for it, so that a part of a
block is changed by one write at a time, and a drain waits for all of them.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from iscsifs.errors import IscsifsError
from iscsifs.units.extents import ExtentMap


class Arrival:
    """A write of bytes *start* to *end* that has come, until its data are in the buffer or it has failed."""

    __slots__ = ("_over", "end", "failure", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.failure: IscsifsError | None = None
        """Why it must not go on."""
        self._over = trio.Event()

    def check(self) -> None:
        """Raise the failure, if there is one."""
        if self.failure is not None:
            raise self.failure

    def finish(self) -> None:
        """Let those go on that wait for it."""
        self._over.set()

    async def wait(self) -> None:
        """Return when it is over."""
        await self._over.wait()


class Admission:
    """Admits writes to *extents* as long as less than *max_unwritten* bytes there are not written."""

    def __init__(self, extents: ExtentMap, max_unwritten: int) -> None:
        self.arrivals: dict[Arrival, None] = {}
        """Those that are not over, in their order."""
        self._map = extents
        self._max_unwritten = max_unwritten
        self._room = trio.lowlevel.ParkingLot()

    @property
    def is_open(self) -> bool:
        """Whether a write of whole blocks may go into the buffer at once."""
        return not self.arrivals and self._map.unwritten < self._max_unwritten

    @asynccontextmanager
    async def turn(self, start: int, end: int) -> AsyncIterator[Arrival]:
        """Wait for the earlier arrivals that touch *start* to *end*; those that come later wait for this one,
        until the context is left."""
        earlier = [other for other in self.arrivals if other.start < end and start < other.end]
        arrival = Arrival(start, end)
        self.arrivals[arrival] = None
        try:
            for other in earlier:
                await other.wait()
            yield arrival
        finally:
            del self.arrivals[arrival]
            arrival.finish()
            self.make_room()

    async def room(self) -> None:
        """Wait until there is room."""
        while self._map.unwritten >= self._max_unwritten:
            await self._room.park()

    def make_room(self) -> None:
        """Let the next write go on that waits for room, if there is some; it does the same for its next."""
        if self._map.unwritten < self._max_unwritten:
            self._room.unpark()

    def disown(self, failure: IscsifsError) -> None:
        """Let all arrivals of now fail with *failure*."""
        for arrival in self.arrivals:
            arrival.failure = failure

    async def drain(self) -> None:
        """Wait until all arrivals of now are over."""
        for arrival in list(self.arrivals):
            await arrival.wait()
