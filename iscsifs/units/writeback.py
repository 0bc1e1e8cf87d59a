"""The scheduler of a write buffer: what of the map is sent when, and who waits for it.

A write goes into the map (`extents`) and is acknowledged; the commands that write it follow.

- What: one command writes one extent, up to the longest transfer of the unit. Neighbours have been joined by
  the map. What there is no memory for is sent again after a pause: a write that was acknowledged is not lost
  because memory is short.
- When: at once, the oldest first, as long as fewer than *max_commands* are under way. Only the extent that
  was written last waits while others are under way, since what comes next may join it; and not even that
  once anybody waits. The map blocks what overlaps a command under way.
- Bounds: writers wait while too many bytes are not written (`admission`). What is written and not
  synchronised is bounded as well (`durability`); half-way to that bound SYNCHRONIZE CACHE is sent unasked.
- Failures: of a command that was joined from several writes, and failed with a medium error, each write is
  sent for itself, so that only those are lost whose blocks are bad. FUA that is refused is not used again.
  What was under way when the cache was lost is sent again. Everything else is the queue's to repeat.
- Who waits: a drain for all that is here, a writer without write-behind for its own data. A synchronous
  writer waits until they are on stable storage. Its data take the same way through the map, so that
  overlapping data stay in order, but in commands of their own: with FUA where the unit honours it, and their
  data are not kept any longer; otherwise SYNCHRONIZE CACHE follows.
"""

import logging
from collections.abc import Callable, Iterable
from enum import Enum, auto
from functools import partial
from typing import Final, Protocol

import trio

from iscsifs.errors import IscsifsError, MediumError, TransportError
from iscsifs.limits import MAX_ROUNDS
from iscsifs.units.admission import Admission, Arrival
from iscsifs.units.answers import Unsupported
from iscsifs.units.durability import Ledger
from iscsifs.units.extents import DIRTY, SENDING, Barrier, Extent, ExtentMap, compact

log = logging.getLogger(__name__)

MAX_COMMANDS: Final = 32
"""WRITEs of one unit under way at once."""

MEMORY_PAUSE: Final = 0.2
"""Seconds before data are sent again for which there was no memory."""


class Outcome(Protocol):
    """How a WRITE has ended."""

    @property
    def failure(self) -> Exception | None:
        """Why it failed, or None."""


class Transfers(Protocol):
    """Sends the commands of one unit."""

    @property
    def longest(self) -> int:
        """Bytes that one command may write."""

    def send_write(self, start: int, data: memoryview, fua: bool, on_end: Callable[[Outcome], None]) -> None:
        """Send a WRITE; *on_end* is called with its outcome, perhaps before this returns."""

    async def synchronise_cache(self) -> None:
        """Run SYNCHRONIZE CACHE; raises what it fails with."""

    def poll(self) -> None:
        """Busy-poll for answers."""


class Unasked(Enum):
    """What has become of SYNCHRONIZE CACHE that nobody has asked for."""

    IDLE = auto()
    UNDER_WAY = auto()
    FAILED = auto()
    """It is not sent again until one that was asked for has succeeded."""


class Failed:
    """The outcome of a WRITE that could not be sent because of *failure*."""

    def __init__(self, failure: Exception) -> None:
        self.failure = failure


class Command:
    """A WRITE of *extent* under way. What becomes of the extent meanwhile does not change what is sent.

    *resets* is how often the target had lost its cache before. `fua`: it succeeds only when its data are on
    stable storage. With a `failure` it has failed, whatever its outcome is. Raises MemoryError where there
    is none to join the data.
    """

    __slots__ = ("barriers", "data", "end", "failure", "fua", "is_joined", "resets", "start")

    def __init__(self, extent: Extent, resets: int, fua: bool) -> None:
        chunks = extent.chunks
        self.start = extent.start
        self.end = extent.end
        self.is_joined = len(chunks) > 1
        self.data = memoryview(b"".join(chunks)) if self.is_joined else chunks[0]
        self.resets = resets
        self.fua = fua
        self.failure: IscsifsError | None = None
        self.barriers: tuple[Barrier, ...] = ()


class WriteBuffer:
    """Writes the data of *extents* by *transfers*. What becomes of them is booked in *ledger*.

    *behind*: a write returns as soon as its data are in the map; otherwise, when the target has them. Pauses,
    and SYNCHRONIZE CACHE where nobody has asked for it, run in *nursery*.
    """

    def __init__(
        self,
        transfers: Transfers,
        extents: ExtentMap,
        admission: Admission,
        ledger: Ledger,
        nursery: trio.Nursery,
        *,
        behind: bool = True,
        max_commands: int = MAX_COMMANDS,
    ) -> None:
        self._transfers = transfers
        self.extents = extents
        self.admission = admission
        self.ledger = ledger
        self._nursery = nursery
        self._behind = behind
        self._max_commands = max_commands
        self._commands: set[Command] = set()
        self._newest: Extent | None = None
        self._waiting = 0  # those who wait for data to be written
        self._is_pumping = False
        self._is_short = False  # of memory, and about to try again
        self._unasked = Unasked.IDLE

    async def write(
        self, start: int, data: bytes | memoryview, sync: bool = False, arrival: Arrival | None = None
    ) -> None:
        """Take *data*, at least one block, for offset *start*, when it is their turn: that of *arrival* where
        there is one already.

        Waits until there is room; without write-behind, until they are written, with *sync*, until they are
        on stable storage, and raises what that failed with.
        """
        if arrival is None and self.admission.is_open:
            await self.put(start, data, sync)
        elif arrival is None:
            async with self.admission.turn(start, start + len(data)) as arrival:
                await self.write(start, data, sync, arrival)
        else:
            await self.admission.room()
            arrival.check()
            await self.put(start, data, sync)

    async def put(self, start: int, data: bytes | memoryview, sync: bool = False) -> None:
        """Do what `write` does, and let nothing come before: the admission is open."""
        acknowledged = self._behind and not sync
        extent = self.extents.insert(start, memoryview(data), acknowledged=acknowledged, sync=sync)
        self._newest = extent
        if acknowledged:
            self._pump()
        elif sync:
            await self._secure(extent, start, start + len(data))
        else:
            barrier = await self._wait_for([extent])
            if barrier.failure is not None:
                raise barrier.failure

    async def _secure(self, extent: Extent, start: int, end: int) -> None:
        """Wait until the data of a synchronous write, *start* to *end*, are on stable storage.

        They are in *extent* now. Raises what that failed with.
        """
        ledger = self.ledger
        resets, failures = ledger.resets, ledger.failures
        barrier = await self._wait_for([extent])
        if barrier.failure is None and barrier.is_safe:
            return
        for _ in range(MAX_ROUNDS):
            failure = barrier.failure or await self._synchronise()
            if failure is None and ledger.resets == resets:
                return
            if failure is None and ledger.failures != failures:
                failure = ledger.failure  # what the cache has lost was not kept here, and may have been this
            if failure is not None:
                raise failure
            resets = ledger.resets
            barrier = await self.settle(start, end)
        raise ledger.always_lost()

    async def settle(self, start: int, end: int) -> Barrier:
        """Wait until what is here now for *start* to *end* was written, or has failed; return the barrier."""
        extents = [extent for extent in self.extents.overlapping(start, end) if extent.state < SENDING]
        commands = [command for command in self._commands if command.start < end and start < command.end]
        return await self._wait_for(extents, commands)

    async def drain(self) -> None:
        """Wait until everything that has come was written, or has failed."""
        if self.admission.arrivals:
            await self.admission.drain()
        if self.extents.unwritten or self._commands:
            await self._wait_for(self.extents.waiting, self._commands)

    async def flush(self) -> None:
        """Wait until everything that has come is safe from a loss of the target's cache.

        Raises what SYNCHRONIZE CACHE failed with, and DataLostError for a target that loses its cache all the
        time; the data are then written again before the next flush. That a write failed shows in `failures`.
        """
        for _ in range(MAX_ROUNDS):
            resets = self.ledger.resets
            await self.drain()
            failure = await self._synchronise()
            if failure is not None:
                raise failure
            if self.ledger.resets == resets:
                if self._unasked is Unasked.FAILED:
                    self._unasked = Unasked.IDLE
                return
        raise self.ledger.always_lost()

    def relieve(self) -> None:
        """Memory is short: keep what is written only as long as it is being synchronised."""
        if self._unasked is Unasked.FAILED:
            self.ledger.let_go(0)
        elif self.extents.written:
            self._flush_unasked()

    def lost_cache(self) -> None:
        """The target may have lost what it had not synchronised: write it again."""
        self.ledger.lost_cache()
        self._pump()

    def give_up(self, failure: IscsifsError) -> None:
        """Forget everything because of *failure*, but for what is under way."""
        self.ledger.give_up(failure)
        self.admission.make_room()

    def disown(self, failure: IscsifsError) -> None:
        """Nothing that has come may be written (again), nor counts as written, because of *failure*: not what
        is under way either, whatever its outcome is."""
        self.admission.disown(failure)
        for command in self._commands:
            command.failure = failure
        self.ledger.disown(failure)
        self.admission.make_room()

    # Sending.

    def _pump(self) -> None:
        """Send as long as there is something to send and fewer than the most commands are under way."""
        if self._is_pumping or self._is_short:
            return  # from a command that has ended at once: the loop is still there
        self._is_pumping = True
        try:
            while len(self._commands) < self._max_commands:
                for extent in self.extents.dirty:
                    # Where the writer is now there will soon be more.
                    is_full = extent.end - extent.start >= self.extents.longest
                    if extent is not self._newest or is_full or self._waiting or not self._commands:
                        break
                else:
                    return
                if not self._send(extent):
                    return
        finally:
            self._is_pumping = False

    def _send(self, extent: Extent) -> bool:
        """Send a WRITE of *extent*, or of its first bytes; return whether there was memory for it."""
        longest = self._transfers.longest
        if extent.end - extent.start > longest:
            borders = range(extent.start + longest, extent.end, longest)
            self.extents.divide(extent, borders)
            return True
        ledger = self.ledger
        try:
            command = Command(extent, ledger.resets, extent.sync and ledger.fua)
            on_end = partial(self._ended, command)
        except MemoryError:
            if not self._pause():
                raise
            return False
        self.extents.send(extent)
        command.barriers, extent.barriers = extent.barriers, ()
        self._commands.add(command)
        try:
            self._transfers.send_write(command.start, command.data, command.fua, on_end)
        except Exception as error:
            self._ended(command, Failed(error))
        return not self._is_short

    def _pause(self) -> bool:
        """Send nothing for a moment, as memory is short; return whether there is memory for that at least."""
        if not self._is_short:
            try:
                self._nursery.start_soon(self._go_on_later)
            except MemoryError:
                return False
            self._is_short = True
            log.warning("%s: no memory to write; trying again", self.ledger.name)
        return True

    async def _go_on_later(self) -> None:
        try:
            await trio.sleep(MEMORY_PAUSE)
        finally:  # also at the end, when whatever is sent fails
            self._is_short = False
            self._pump()

    # The end of a command.

    def _ended(self, command: Command, outcome: Outcome) -> None:
        self._commands.remove(command)
        sent, newer = self.extents.landed(command.start, command.end)
        ledger = self.ledger
        failure = command.failure or outcome.failure
        # Was it carried out before the cache was lost, or after that? The answer does not tell.
        is_stale = command.resets != ledger.resets and ledger.volatile and not command.fua
        if failure is not None or is_stale:
            is_due = False
            self._repeat(command, failure, sent, newer)
        else:
            if command.is_joined:
                for extent in sent:
                    part = command.data[extent.start - command.start : extent.end - command.start]
                    extent.chunks = [compact(part)]
            is_due = ledger.written(sent, fua=command.fua)
            for barrier in command.barriers:
                barrier.is_safe &= command.fua
                barrier.release()
        if self.admission.arrivals:
            self.admission.make_room()
        if self.extents.dirty:
            self._pump()
        if is_due and self._unasked is Unasked.IDLE:
            self._flush_unasked()

    def _repeat(
        self, command: Command, error: Exception | None, sent: list[Extent], newer: list[Extent]
    ) -> None:
        """Send again what *command* was to write, or book its failure.

        *sent* is what is left of that. The target may have nothing of what was overwritten in the meantime:
        it is not lost, since *newer* data wait to take its place, and who waits for it waits for these; but
        it is lost if they fail as well.
        """
        ledger = self.ledger
        ledger.touched()
        for extent in newer:
            extent.stand_in()
            extent.hold(command.barriers)
        failure = None
        if error is None:
            failure = ledger.lost_under_way(sent)
        elif isinstance(error, Unsupported) and command.fua:
            ledger.refuse_fua(error)
        elif isinstance(error, MemoryError) and self._pause():
            pass
        elif not isinstance(error, MediumError) or not command.is_joined:
            failure = self._failure_of(error)
        if failure is not None:
            for barrier in command.barriers:
                barrier.failure = failure
            ledger.failed(sent, failure)
        for extent in sent if failure is None else ():
            self.extents.change(extent, DIRTY)
            extent.hold(command.barriers)
            if isinstance(error, MediumError):
                extent.alone = True
                self.extents.divide(extent, extent.borders())
        for barrier in command.barriers:
            barrier.is_safe &= command.fua
            barrier.release()

    def _failure_of(self, error: Exception) -> IscsifsError:
        if isinstance(error, IscsifsError):
            return error
        if isinstance(error, MemoryError):
            return TransportError(f"{self.ledger.name}: no memory for a command")
        log.error("%s: a write or a flush failed because of a bug", self.ledger.name, exc_info=error)
        return IscsifsError(f"{self.ledger.name}: it failed because of a bug; see the log")

    async def _wait_for(self, extents: Iterable[Extent], commands: Iterable[Command] = ()) -> Barrier:
        """Wait until *extents* and *commands*, or what takes their place, are written or have failed."""
        barrier = Barrier()
        for extent in extents:
            extent.hold((barrier,))
        for command in commands:
            command.barriers += (barrier,)
            barrier.held += 1
        if barrier.held:
            self._waiting += 1
            try:
                self._pump()  # nothing is held back any more
                self._transfers.poll()
                await barrier.wait()
            finally:
                self._waiting -= 1
        return barrier

    # SYNCHRONIZE CACHE.

    async def _synchronise(self) -> IscsifsError | None:
        """Synchronise the cache; return what that failed with."""
        ledger = self.ledger
        resets, epoch = ledger.resets, ledger.begin_flush()
        try:
            await self._transfers.synchronise_cache()
        except Exception as error:
            # Nobody knows what the target has kept, and a second SYNCHRONIZE CACHE may not tell.
            self.lost_cache()
            return self._failure_of(error)
        if ledger.resets == resets:
            ledger.flushed(epoch)
        return None

    def _flush_unasked(self) -> None:
        if self._unasked is not Unasked.UNDER_WAY:
            self._nursery.start_soon(self._synchronise_unasked)
            self._unasked = Unasked.UNDER_WAY  # not where there was no memory for the task

    async def _synchronise_unasked(self) -> None:
        failure = await self._synchronise()
        self._unasked = Unasked.IDLE if failure is None else Unasked.FAILED
        if failure is not None:
            name = self.ledger.name
            kind = {"kind": f"{name}: {failure.kind}"}
            log.warning("%s: the write cache could not be synchronised: %s", name, failure, extra=kind)
