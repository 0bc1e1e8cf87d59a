"""Writes of one logical unit between their arrival and the moment from which they cannot be lost.

Data go through three states. DIRTY: we have them, the target has not. SENDING: they are in a command under
way. WRITTEN: the target has them, perhaps only in a volatile cache. SYNCHRONIZE CACHE ends the last state;
until then they are kept, because a target that is reset or loses power may have lost them, and they are
written again (`lost_cache`). So there are two bounds: one for what is not yet written, at which writers
wait, and one for what is written but not synchronised. Half-way to the second, the cache is synchronised
unasked; where this does not help, the oldest data are let go, and a reset after that is reported as a
failure. While memory is short (`relieve`) the second bound is zero.

The buffer is a map of extents that do not overlap, sorted by offset, each the newest data for its range. What
is written next to an extent that is still to be sent joins it, so an extent is what one command writes. Data
that overlap a command under way are blocked until it has ended: two commands for the same blocks are never
under way at once. Offsets are in bytes, all of them multiples of the block size.

A synchronous write returns when its data are on stable storage. They take the same way through the map, so
that overlapping data stay in order, but in commands of their own. These have FUA (SBC-3, Caches) where the
unit honours it, and their data are not kept any longer; otherwise SYNCHRONIZE CACHE follows.
"""

import logging
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from iscsifs.errors import DataLostError, IscsifsError, MediumError, TransportError
from iscsifs.limits import MAX_ROUNDS, MAX_UNSYNCHRONISED, MAX_UNWRITTEN
from iscsifs.units.answers import Unsupported
from iscsifs.units.extents import Barrier, Command, Extent, State, cut

log = logging.getLogger(__name__)

MAX_COMMANDS: Final = 32
"""WRITEs of one unit on their way at once."""

Done = Callable[[Exception | None], None]

MEMORY_PAUSE: Final = 0.2
"""Seconds before data are joined again for which there was no memory."""


class WriteBuffer:
    """The write buffer of the unit *name*.

    *write(offset, data, fua, done)* writes and tells *done* what that failed with, or None, at once or later.
    *synchronise()* raises IscsifsError where it fails; it runs in *nursery* where nobody has asked for it.
    *busy_poll()* busy-polls for an answer. *longest* is the number of bytes up to which
    neighbours are joined. With *behind* False a write returns when the target has it. *volatile*: what the
    target has, it may still lose. *fua*: the unit honours FUA.

    `failures` counts what was lost of writes that had been acknowledged, `failure` is the latest such loss:
    every open file that was there has to report it once.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[int, memoryview, bool, Done], None],
        synchronise: Callable[[], Awaitable[None]],
        nursery: trio.Nursery,
        *,
        longest: int,
        busy_poll: Callable[[], None] = lambda: None,
        behind: bool = True,
        volatile: bool = True,
        fua: bool = False,
        max_commands: int = MAX_COMMANDS,
        max_unwritten: int = MAX_UNWRITTEN,
        max_unsynchronised: int = MAX_UNSYNCHRONISED,
    ) -> None:
        self.failures = 0
        self.failure: IscsifsError | None = None
        self.resets = 0
        """How often the cache of the target may have been lost."""
        self.volatile = volatile
        self.fua = fua
        self._name = name
        self._write = write
        self._synchronise = synchronise
        self._nursery = nursery
        self._busy_poll = busy_poll
        self._longest = longest
        self._behind = behind
        self._max_commands = max_commands
        self._max_unwritten = max_unwritten
        self._max_unsynchronised = max_unsynchronised
        self._starts: list[int] = []
        self._extents: list[Extent] = []
        # DIRTY, by age; from the front of a plain dict every removal would be slower than the last.
        self._ready: OrderedDict[Extent, None] = OrderedDict()
        self._blocked: dict[Extent, None] = {}  # DIRTY, but older data for the same blocks are on their way
        self._written: OrderedDict[Extent, None] = OrderedDict()  # WRITTEN, by age
        self._commands: set[Command] = set()
        self._pumping = False
        self._barriers: list[Barrier] = []
        self._newest: Extent | None = None
        self._unwritten = 0
        self._unsynchronised = 0
        self._epoch = 0
        self._touched = self._synchronised = -1  # the epochs of the last write, and of the last cache flush
        self._let_go: int | None = None  # the epoch of the newest data that were let go unsynchronised
        self._synchronises_unasked = False  # at this moment
        self._may_synchronise_unasked = True  # not after that has failed
        self._refused_fua = False
        self._logged = ""  # why something was lost since the last flush
        self._disowned: IscsifsError | None = None  # the latest of `disown`
        self._room = trio.lowlevel.ParkingLot()
        self._is_short = False  # of memory, and about to try again

    @property
    def unwritten(self) -> int:
        """How many bytes are not known to have reached the target."""
        return self._unwritten

    @property
    def needs_flush(self) -> bool:
        """Whether there was a write, even one that failed, that no SYNCHRONIZE CACHE has made safe."""
        return self._unwritten > 0 or self._touched > self._synchronised

    @property
    def fua(self) -> bool:
        """Whether the unit honours FUA: what it says, unless it has refused a command with it."""
        return self._fua and not self._refused_fua

    @fua.setter
    def fua(self, says: bool) -> None:
        self._fua = says

    async def write(self, start: int, data: bytes | memoryview, sync: bool = False) -> None:
        """Take *data*, at least one block, for offset *start*.

        Waits until there is room; without *behind*, until they are written, with *sync*, until they are on
        stable storage, and raises what that failed with.
        """
        disowned = self._disowned
        while self._unwritten >= self._max_unwritten:
            await self._room.park()
        if self._disowned is not disowned and self._disowned is not None:
            self._make_room()  # for the next one
            raise self._disowned
        extent = self._insert(start, memoryview(data), sync)
        self._make_room()
        if sync:
            await self._secure(extent, start, start + len(data))
            return
        if self._behind:
            self._pump()
            return
        barrier = await self._wait_for([extent])
        if barrier.failure is not None:
            raise barrier.failure

    async def _secure(self, extent: Extent, start: int, end: int) -> None:
        """Wait until the data of a synchronous write, *start* to *end*, are on stable storage.

        They are in *extent* now. Raises what that failed with.
        """
        resets, failures = self.resets, self.failures
        barrier = await self._wait_for([extent])
        if barrier.failure is None and barrier.is_safe:
            return
        for _ in range(MAX_ROUNDS):
            failure = barrier.failure or await self._synchronise_now()
            if failure is None and self.resets == resets:
                return
            if failure is None and self.failures != failures:
                failure = self.failure  # what the cache has lost was not kept here, and may have been this
            if failure is not None:
                raise failure
            resets = self.resets
            barrier = await self._wait_for(self._unwritten_things(start, end))
        raise self._always_loses_its_cache()

    def _unwritten_things(self, start: int, end: int) -> list[Extent | Command]:
        """Return what is still to be written between *start* and *end*."""
        first, last = self._overlapping(start, end)
        dirty = [extent for extent in self._extents[first:last] if extent.state is State.DIRTY]
        commands = (c for c in self._commands if c.start < end and start < c.start + len(c.data))
        return [*dirty, *commands]

    def newer(self, start: int, end: int) -> list[tuple[int, memoryview]]:
        """Return what is newer here than on the target between *start* and *end*, as (offset, data)."""
        found: list[tuple[int, memoryview]] = []
        if self._unwritten:
            first, last = self._overlapping(start, end)
            for extent in self._extents[first:last]:
                if extent.state is not State.WRITTEN:
                    position = extent.start
                    for chunk in extent.chunks:
                        if position < end and start < position + len(chunk):
                            part = chunk[max(start - position, 0) : end - position]
                            found.append((max(position, start), part))
                        position += len(chunk)
        return found

    async def drain(self) -> None:
        """Wait until everything that is here now was written, or has failed."""
        await self._wait_for([*self._ready, *self._blocked, *self._commands])

    async def flush(self) -> None:
        """Wait until everything that is here now is safe from a loss of the target's cache.

        Raises what SYNCHRONIZE CACHE failed with, and DataLostError for a target that loses its cache all the
        time; the data are then written again before the next flush. That a write failed shows in `failures`.
        """
        for _ in range(MAX_ROUNDS):
            resets = self.resets
            await self.drain()
            failure = await self._synchronise_now()
            if failure is not None:
                raise failure
            if self.resets == resets:
                self._may_synchronise_unasked = True
                return
        raise self._always_loses_its_cache()

    def relieve(self) -> None:
        """Memory is short: keep what is written only as long as it is being synchronised."""
        if not self._may_synchronise_unasked:
            self._let_go_down_to(0)
        elif self._written:
            self._begin_to_synchronise()

    def lost_cache(self) -> None:
        """The target may have lost what it had not synchronised: write it again (SPC, unit attention 29h)."""
        self.resets += 1
        if self._let_go is not None:
            self._let_go = None
            reason = "the target may have lost its cache, and more was in it than is kept here"
            self.report(DataLostError(f"{self._name}: {reason}"))
        for extent in self._extents:
            extent.stand_in()
        for extent in list(self._written):
            self._change(extent, State.DIRTY)
        self._pump()

    def report(self, failure: IscsifsError) -> None:
        """Count a loss of writes that had been acknowledged; log why, once for each reason in a row."""
        if str(failure) != self._logged:
            self._logged = str(failure)
            log.error("acknowledged writes are lost: %s", failure, extra={"kind": failure.kind})
        self.failures += 1
        self.failure = failure

    def give_up(self, failure: IscsifsError) -> None:
        """Forget everything because of *failure*, but for what is on its way.

        That counts as lost from now on as well: whoever is told of *failure* has to be told of all of it.
        """
        extents = [*self._ready, *self._blocked, *self._written]
        sending = [extent for command in self._commands for extent in command.extents]
        if any(extent.acknowledged or extent.covers for extent in (*extents, *sending)):
            self.report(failure)
        for extent in sending:
            extent.acknowledged = extent.covers = False  # that was told just now
        for extent in extents:
            self._leave(extent)
            for barrier in self._barriers:
                barrier.fail(extent, failure)
        self._keep(lambda extent: extent.state is State.SENDING)
        self._make_room()

    def disown(self, failure: IscsifsError) -> None:
        """Nothing that is here may be written again, nor counts as written, because of *failure*: not what is
        on its way either, whatever it is answered with."""
        self.resets += 1
        self._disowned = failure
        if self._let_go is not None:
            self._let_go = None
            self.report(failure)
        for command in self._commands:
            command.failure = failure
        self.give_up(failure)

    def forget(self, start: int, end: int) -> None:
        """Let go of the data between *start* and *end* that are not under way: nobody wants them any more."""
        first, last = self._overlapping(start, end)
        for extent in self._extents[first:last]:
            if extent.state is not State.SENDING:
                self._carve(max(extent.start, start), min(extent.end, end))
        self._make_room()

    # The map of extents.

    def _overlapping(self, start: int, end: int) -> tuple[int, int]:
        """Return the slice of the extents that touch *start* to *end*."""
        first = bisect_right(self._starts, start)
        if first and self._extents[first - 1].end > start:
            first -= 1
        return first, bisect_left(self._starts, end, first)

    def _index(self, extent: Extent) -> int:
        return bisect_left(self._starts, extent.start)

    def _put(self, first: int, last: int, extents: list[Extent]) -> None:
        """Put *extents* in the place of those from *first* to *last*."""
        self._extents[first:last] = extents
        self._starts[first:last] = [extent.start for extent in extents]

    def _keep(self, wanted: Callable[[Extent], bool]) -> None:
        """Remove all extents but those *wanted*."""
        self._put(0, len(self._extents), [extent for extent in self._extents if wanted(extent)])

    def _insert(self, start: int, data: memoryview, sync: bool) -> Extent:
        """Put *data* into the map, over what was there, and return the extent that they are in then."""
        new = Extent(start, start + len(data), [data])
        new.acknowledged = self._behind and not sync
        new.sync = sync
        index = self._carve(start, new.end, new)
        if self._starts[index + 1 : index + 2] == [new.end] and self._join(new, self._extents[index + 1]):
            self._put(index + 1, index + 2, [])
        if index and self._extents[index - 1].end == start and self._join(self._extents[index - 1], new):
            self._put(index, index + 1, [])
            new = self._extents[index - 1]
        self._newest = new
        return new

    def _carve(self, start: int, end: int, new: Extent | None = None) -> int:
        """Take bytes *start* to *end* out of the map, put *new* there, and return its place."""
        first, last = self._overlapping(start, end)
        before: list[Extent] = []
        behind: list[Extent] = []
        for old in self._extents[first:last]:
            self._leave(old)
            parts = [] if new is None else [new]
            if old.start < start:
                before.append(old.part(old.start, start))
                self._enter(before[0])
                parts += before
            if old.end > end:
                behind.append(old.part(end, old.end))
                self._enter(behind[0])
                parts += behind
            if new is not None:
                # If this fails: DIRTY data that were counted on are lost with it, others perhaps.
                new.acknowledged |= old.acknowledged and old.state is State.DIRTY
                new.covers |= old.covers or (old.acknowledged and old.state is not State.DIRTY)
                new.blockers |= old.blockers
                if old.command is not None:
                    new.blockers.add(old.command)
            for barrier in self._barriers:
                barrier.replace(old, *parts)
        if new is None:
            self._put(first, last, before + behind)
        else:
            self._enter(new)
            self._put(first, last, [*before, new, *behind])
        return first + len(before)

    def _join(self, left: Extent, right: Extent) -> bool:
        """Take *right*, which is next to it, into *left* if one command can write both; return whether it
        can."""
        if (
            left.state is not State.DIRTY
            or right.state is not State.DIRTY
            or left.alone
            or right.alone
            or left.sync != right.sync  # the one fails to its writer, the other is lost
            or len(left) + len(right) > self._longest
            or left.blockers != right.blockers
        ):
            return False
        self._leave(right)
        left.chunks += right.chunks
        left.end = right.end
        left.acknowledged |= right.acknowledged
        left.covers |= right.covers
        self._unwritten += len(right)
        for barrier in self._barriers:
            barrier.replace(right, left)
        return True

    # The books: every extent of the map is in exactly one of them.

    def _enter(self, extent: Extent) -> None:
        """Put *extent* into the book of its state."""
        if extent.state is State.WRITTEN:
            self._written[extent] = None
            self._unsynchronised += extent.end - extent.start
            return
        self._unwritten += extent.end - extent.start
        if extent.command is not None:
            extent.command.extents[extent] = None
        elif not extent.blockers:
            self._ready[extent] = None
        else:
            self._blocked[extent] = None
            for command in extent.blockers:
                command.blocked[extent] = None

    def _leave(self, extent: Extent) -> None:
        """Take *extent* out of the book of its state."""
        if extent.state is State.WRITTEN:
            del self._written[extent]
            self._unsynchronised -= extent.end - extent.start
            return
        self._unwritten -= extent.end - extent.start
        if extent.command is not None:
            del extent.command.extents[extent]
        elif not extent.blockers:
            del self._ready[extent]
        else:
            del self._blocked[extent]
            for command in extent.blockers:
                del command.blocked[extent]

    def _change(self, extent: Extent, state: State, command: Command | None = None) -> None:
        """Bring *extent* into *state*."""
        self._leave(extent)
        extent.state = state
        extent.command = command
        self._enter(extent)

    # Writing.

    def _pump(self) -> None:
        """Start commands as long as there is something to send and some are free."""
        if self._pumping:
            return  # from a command that has ended at once: the loop is still there
        self._pumping = True
        try:
            while len(self._commands) < self._max_commands and (command := self._next_command()):
                self._send(command)
        finally:
            self._pumping = False

    def _pump_later(self) -> None:
        """Go on when there may be memory again."""
        if self._is_short:
            return

        async def pump() -> None:
            await trio.sleep(MEMORY_PAUSE)
            self._is_short = False
            self._pump()

        self._nursery.start_soon(pump)
        self._is_short = True
        log.warning("%s: no memory to write; trying again", self._name)

    def _next_command(self) -> Command | None:
        """Begin with the oldest extent that can be sent."""
        for extent in self._ready:
            # Where the writer is now there will soon be more: as long as the line is busy, wait for it.
            growing = extent is self._newest and len(extent) < self._longest
            if growing and self._commands and not self._barriers:
                continue
            try:
                command = Command(extent, self.resets)
            except MemoryError:  # for the data that are joined in it
                self._pump_later()
                return None
            command.fua = extent.sync and self.fua
            self._change(extent, State.SENDING, command)
            self._commands.add(command)
            for barrier in self._barriers:
                barrier.replace(extent, command)
            return command
        return None

    def _send(self, command: Command) -> None:
        def done(failure: Exception | None) -> None:
            self._finish(command, None if failure is None else self._failure_of(failure))
            self._pump()

        try:
            self._write(command.start, command.data, command.fua, done)
        except Exception as error:
            done(error)

    def _failure_of(self, error: Exception) -> IscsifsError:
        if isinstance(error, IscsifsError):
            return error
        if isinstance(error, MemoryError):
            return TransportError(f"{self._name}: no memory for a command")
        log.error("%s: a write or a flush failed because of a bug", self._name, exc_info=error)
        return IscsifsError(f"{self._name}: it failed because of a bug; see the log")

    def _finish(self, command: Command, failure: IscsifsError | None) -> None:
        """Book the end of *command*."""
        failure = command.failure or failure
        self._commands.remove(command)
        if failure is not None or not command.fua:
            self._touched = self._epoch
        newer = list(command.blocked)
        for extent in newer:
            self._leave(extent)
            extent.blockers.remove(command)
            self._enter(extent)
        # Was it carried out before the cache was lost, or after that? The answer does not tell; with FUA it
        # does not matter.
        stale = self.volatile and command.resets != self.resets and not command.fua
        if failure is None and stale and any(extent.repeats == MAX_ROUNDS for extent in command.extents):
            failure = self._always_loses_its_cache()
        if failure is None and not stale:
            newer = []
        # Otherwise the target may have nothing of what was overwritten in the meantime: it is not lost, since
        # newer data wait to take its place, and a flush for these; but it is if they fail as well.
        for extent in newer:
            extent.stand_in()
        if failure is None:
            self._arrived(command, newer)
        elif isinstance(failure, Unsupported) and command.fua:
            self._do_without_fua(command, failure, newer)
        elif isinstance(failure, MediumError) and command.merged:
            self._separate(command, newer)
        else:
            self._failed(command, failure, newer)
        self._make_room()

    def _arrived(self, command: Command, newer: list[Extent]) -> None:
        again: list[Extent] = []
        for extent in list(command.extents):
            # Of a synchronous write as well: if it fails when it is written again, its writer may be waiting
            # for SYNCHRONIZE CACHE, and learns of that from the loss.
            extent.acknowledged = True
            extent.covers = False
            if command.merged:
                offset = extent.start - command.start
                extent.chunks = cut([command.data], offset, offset + len(extent))
            extent.epoch = self._epoch
            if command.fua or not self.volatile:
                self._leave(extent)
                index = self._index(extent)
                self._put(index, index + 1, [])
            elif command.resets == self.resets:
                extent.repeats = 0
                self._change(extent, State.WRITTEN)
            else:
                extent.repeats += 1
                self._change(extent, State.DIRTY)
                again.append(extent)
        for barrier in self._barriers:
            barrier.succeed(command, *again, *newer)
        self._respect_the_bound()

    def _always_loses_its_cache(self) -> DataLostError:
        return DataLostError(f"{self._name}: the target loses its cache over and over")

    def _do_without_fua(self, command: Command, failure: IscsifsError, newer: list[Extent]) -> None:
        """Send the data of *command* again without FUA, which the unit offers and refuses."""
        if not self._refused_fua:
            self._refused_fua = True
            log.warning("%s; from now on SYNCHRONIZE CACHE follows a synchronous write", failure)
        again = list(command.extents)
        for extent in again:
            self._change(extent, State.DIRTY)
        for barrier in self._barriers:
            barrier.replace(command, *again, *newer)

    def _separate(self, command: Command, newer: list[Extent]) -> None:
        """Send what was joined in *command* again one by one: of its blocks some cannot be written."""
        separate: list[Extent] = []
        for extent in list(command.extents):
            self._change(extent, State.DIRTY)
            self._leave(extent)
            parts = []
            position = extent.start
            for chunk in extent.chunks:
                part = extent.part(position, position + len(chunk))
                part.alone = True
                self._enter(part)
                parts.append(part)
                position = part.end
            index = self._index(extent)
            self._put(index, index + 1, parts)
            separate += parts
        for barrier in self._barriers:
            barrier.replace(command, *separate, *newer)

    def _failed(self, command: Command, failure: IscsifsError, newer: list[Extent]) -> None:
        acknowledged = any(extent.acknowledged for extent in command.extents)
        if acknowledged:
            self.report(failure)
        for extent in list(command.extents):
            if extent.covers and not acknowledged:  # otherwise that was told just now
                self._let_go = self._epoch
            self._leave(extent)
            index = self._index(extent)
            self._put(index, index + 1, [])
        for barrier in self._barriers:
            barrier.fail(command, failure, *newer)

    def _make_room(self) -> None:
        """Let the next writer in, who does the same."""
        if self._room and self._unwritten < self._max_unwritten:
            self._room.unpark()

    async def _wait_for(self, things: Iterable[Extent | Command]) -> Barrier:
        barrier = Barrier(things)
        if barrier.things:
            self._barriers.append(barrier)
            try:
                self._pump()  # nothing is held back any more
                self._busy_poll()
                await barrier.wait()
            finally:
                self._barriers.remove(barrier)
        return barrier

    # Synchronising.

    async def _synchronise_now(self) -> IscsifsError | None:
        """Synchronise the cache, and let go of what was written before; return what that failed with."""
        resets, epoch = self.resets, self._epoch
        self._epoch += 1
        failure: IscsifsError | None = None
        try:
            await self._synchronise()
        except Exception as error:
            failure = self._failure_of(error)
        if failure is not None:
            # Nobody knows what the target has kept, and a second SYNCHRONIZE CACHE may not tell.
            self.lost_cache()
        elif self.resets == resets:
            for extent in [extent for extent in self._written if extent.epoch <= epoch]:
                self._leave(extent)
            self._keep(lambda extent: extent.state is not State.WRITTEN or extent.epoch > epoch)
            self._synchronised = max(self._synchronised, epoch)
            self._logged = ""
            if self._let_go is not None and self._let_go <= epoch:
                self._let_go = None
        return failure

    async def _synchronise_unasked(self) -> None:
        failure = await self._synchronise_now()
        self._synchronises_unasked = False
        self._may_synchronise_unasked = failure is None
        if failure is not None:
            kind = {"kind": f"{self._name}: {failure.kind}"}
            log.warning("%s: the write cache could not be synchronised: %s", self._name, failure, extra=kind)

    def _begin_to_synchronise(self) -> None:
        if not self._synchronises_unasked:
            self._nursery.start_soon(self._synchronise_unasked)
            self._synchronises_unasked = True  # not where there was no memory for the task

    def _respect_the_bound(self) -> None:
        """See to it that not too much data are kept for being unsynchronised."""
        if self._unsynchronised > self._max_unsynchronised // 2 and self._may_synchronise_unasked:
            self._begin_to_synchronise()
        self._let_go_down_to(self._max_unsynchronised)

    def _let_go_down_to(self, bound: int) -> None:
        """Keep at most *bound* bytes that are unsynchronised, the newest."""
        while self._unsynchronised > bound:
            oldest = next(iter(self._written))
            self._let_go = max(oldest.epoch, self._let_go or 0)
            self._leave(oldest)
            index = self._index(oldest)
            self._put(index, index + 1, [])
