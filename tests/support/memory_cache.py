"""A unit with a volatile cache that carries out and answers each command when its test says so."""

from collections.abc import Callable
from dataclasses import dataclass

import trio

from iscsifs.errors import IscsifsError, TransportError
from iscsifs.limits import MAX_UNSYNCHRONISED, MAX_UNWRITTEN
from iscsifs.units.admission import Admission
from iscsifs.units.durability import Ledger
from iscsifs.units.extents import ExtentMap
from iscsifs.units.writeback import MAX_COMMANDS, Outcome, WriteBuffer


@dataclass
class Ended:
    """How a call has ended."""

    failure: Exception | None


class Call:
    """A WRITE of *data* at *start*, or without data a SYNCHRONIZE CACHE, that has arrived at the unit."""

    def __init__(self, unit: "CachedUnit", start: int, data: bytes | None, fua: bool = False) -> None:
        self.start = start
        self.data = data
        self.fua = fua
        self.carried_out = False
        self._unit = unit
        self._answered = trio.Event()
        self._failure: Exception | None = None

    @property
    def end(self) -> int:
        return self.start + len(self.data or b"")

    def carry_out(self) -> None:
        """Do it; a unit that has lost its cache reports that first, and is asked again."""
        self._unit.report_loss()
        self.carried_out = True
        if self.data is None:
            self._unit.medium[:] = self._unit.cache
            return
        self._unit.cache[self.start : self.end] = self.data
        if self.fua or not self._unit.volatile:
            self._unit.medium[self.start : self.end] = self.data

    def answer(self, failure: Exception | None = None) -> None:
        """Say that it has succeeded, carrying it out before, or that it has not."""
        if failure is None and not self.carried_out:
            self.carry_out()
        self._failure = failure
        self._answered.set()

    async def wait(self) -> None:
        """Wait for the answer, as the buffer does."""
        calls = self._unit.writes if self.data is not None else self._unit.synchronisings
        self._unit.overlaps += sum(
            other.start < self.end and self.start < other.end for other in self._unit.writes
        )
        calls.append(self)
        try:
            if self._unit.automatic:
                await trio.lowlevel.checkpoint()
                self.answer()
            await self._answered.wait()
        finally:
            calls.remove(self)
        if self._failure is not None:
            raise self._failure


class CachedUnit:
    """*size* bytes twice: what is read, `cache`, and what a loss of power leaves, `medium`.

    `writes` and `synchronisings` are under way until the test answers them, unless *automatic*. `log` has all
    that came: (offset, data), or None for a SYNCHRONIZE CACHE. `fua_log` has what came with FUA.
    """

    def __init__(self, size: int, *, volatile: bool = True, automatic: bool = False) -> None:
        self.cache = bytearray(size)
        self.medium = bytearray(size)
        self.volatile = volatile
        self.automatic = automatic
        self.longest = size
        self.writes: list[Call] = []
        self.synchronisings: list[Call] = []
        self.overlaps = 0
        """How often two writes of the same bytes were under way at once."""
        self.log: list[tuple[int, bytes] | None] = []
        self.fua_log: list[tuple[int, bytes]] = []
        self.buffer: WriteBuffer
        self.loss_unreported = False

    def send_write(self, start: int, data: memoryview, fua: bool, on_end: Callable[[Outcome], None]) -> None:
        self.log.append((start, bytes(data)))
        if fua:
            self.fua_log.append((start, bytes(data)))
        self._nursery.start_soon(self._write, Call(self, start, bytes(data), fua), on_end)

    async def _write(self, call: Call, on_end: Callable[[Outcome], None]) -> None:
        failure: Exception | None = TransportError("stopped")
        try:
            await call.wait()
            failure = None
        except (IscsifsError, MemoryError) as error:
            failure = error
        finally:
            on_end(Ended(failure))

    async def synchronise_cache(self) -> None:
        self.log.append(None)
        await Call(self, 0, None).wait()

    def poll(self) -> None:
        pass

    def open(
        self,
        nursery: trio.Nursery,
        *,
        longest: int = 8,
        behind: bool = True,
        fua: bool = False,
        max_commands: int = MAX_COMMANDS,
        max_unwritten: int = MAX_UNWRITTEN,
        max_unsynchronised: int = MAX_UNSYNCHRONISED,
    ) -> WriteBuffer:
        """Return the write buffer of this unit, which joins up to *longest* bytes."""
        self._nursery = nursery
        extents = ExtentMap(longest)
        self.buffer = WriteBuffer(
            self,
            extents,
            Admission(extents, max_unwritten),
            Ledger("disk", extents, volatile=self.volatile, fua=fua, max_unsynchronised=max_unsynchronised),
            nursery,
            behind=behind,
            max_commands=max_commands,
        )
        return self.buffer

    def lose_cache(self) -> None:
        """Lose what is not on the medium; the next command that is carried out has to report it."""
        self.cache[:] = self.medium
        self.loss_unreported = True

    def report_loss(self) -> None:
        """Report a loss that was not reported yet."""
        if self.loss_unreported:
            self.loss_unreported = False
            self.buffer.lost_cache()

    def read(self, start: int, end: int) -> bytes:
        """Return what a reader sees: the cache, and over it what the buffer has newer."""
        data = bytearray(self.cache[start:end])
        for position, newer in self.buffer.extents.newer(start, end):
            data[position - start : position - start + len(newer)] = newer
        return bytes(data)
