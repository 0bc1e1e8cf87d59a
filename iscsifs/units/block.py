"""A logical unit as a range of bytes."""

from collections.abc import Sequence
from time import perf_counter
from typing import Final

import trio

from iscsifs.errors import DataLostError, IscsifsError, UnitError
from iscsifs.limits import MAX_HOLES, MAX_ROUNDS, MAX_UNWRITTEN
from iscsifs.scsi.capacity import Capacity
from iscsifs.scsi.sense import Condition, Sense
from iscsifs.units.admission import Admission
from iscsifs.units.durability import Ledger
from iscsifs.units.extents import ExtentMap
from iscsifs.units.holes import Holes
from iscsifs.units.identity import Description
from iscsifs.units.queue import Queue
from iscsifs.units.transfers import BlockTransfers
from iscsifs.units.unit import LogicalUnit
from iscsifs.units.window import Window
from iscsifs.units.writeback import WriteBuffer
from iscsifs.units.zeroing import Zeroing

_CACHE_MAY_BE_LOST: Final = frozenset({Condition.RESET, Condition.COMMANDS_CLEARED, Condition.DEFERRED_ERROR})

PREFERRED_TRANSFER: Final = 1024 * 1024
"""Bytes of a transfer that goes well, where the unit does not say it."""

_NO_BYTES: Final = memoryview(b"")


class BlockUnit(LogicalUnit):
    """A unit that is read by block. While it `is_block`, its bytes can be read, written and flushed.

    Offsets and sizes are bytes and may be anything within the unit: what is no whole block is read, changed
    and written back. All methods raise CommandError, and UnitError once there is another unit under the
    LUN. With *write_behind* a write returns as soon as its data are kept here.
    """

    def __init__(
        self,
        lun: int,
        queue: Queue,
        description: Description,
        nursery: trio.Nursery,
        *,
        write_behind: bool = True,
    ) -> None:
        super().__init__(lun, queue, description)
        self._size = 0
        self._holes = Holes()
        self._windows: list[Window] = []
        self._transfers = BlockTransfers(queue, description)
        extents = ExtentMap()
        self._writes = WriteBuffer(
            self._transfers,
            extents,
            Admission(extents, MAX_UNWRITTEN),
            Ledger(self.name, extents),
            nursery,
            behind=write_behind,
        )
        self._zeroing = Zeroing(self._holes, queue, self._transfers, self._writes, self._read_newest)
        self._take(description)

    def _take(self, now: Description) -> None:
        super()._take(now)
        self._transfers.take(now)
        # What every operation needs, so that it is not worked out each time.
        self._size = now.capacity.size if now.capacity else 0
        if now.capacity is not None:
            self._holes.clip(now.capacity.size)
            self._writes.extents.longest = self.preferred_size
        self._writes.ledger.unit_says(volatile=now.volatile_cache is not False, fua=now.dpo_fua)

    def _is_same_unit(self, now: Description, resized: bool) -> bool:
        # The medium may have been away for a while, so that the last description has no block size.
        block_size = self._transfers.block_size
        same_blocks = now.capacity is None or block_size in (0, now.capacity.block_size)
        return same_blocks and super()._is_same_unit(now, resized)

    @property
    def is_block(self) -> bool:
        """Whether the unit has bytes to read: a drive without a medium has none."""
        return self.description.capacity is not None

    @property
    def storage(self) -> "BlockUnit | None":
        """The unit itself, while it `is_block`."""
        return self if self.is_block else None

    @property
    def capacity(self) -> Capacity:
        """The capacity; raises UnitError where there is none."""
        capacity = self.description.capacity
        if capacity is None:
            raise UnitError(f"{self.name}: {self.description.no_storage}")
        return capacity

    @property
    def size(self) -> int:
        """The capacity in bytes."""
        return self._size or self.capacity.size

    @property
    def block_size(self) -> int:
        """Bytes of a logical block."""
        return self.capacity.block_size

    @property
    def preferred_size(self) -> int:
        """Bytes of a transfer that goes well: at least a physical block, as far as the limits allow."""
        optimal = self.description.limits.optimal_transfer_length * self.block_size
        preferred = optimal or PREFERRED_TRANSFER
        return min(max(preferred, self.capacity.physical_block_size), self._transfers.longest)

    @property
    def failures(self) -> int:
        """How many losses there were of writes that had been acknowledged; `last_failure` is the latest."""
        return self._writes.ledger.failures

    @property
    def last_failure(self) -> IscsifsError | None:
        """The latest such loss."""
        return self._writes.ledger.failure

    @property
    def unwritten(self) -> int:
        """How many bytes that were accepted are not known to have reached the target."""
        return self._writes.extents.unwritten

    @property
    def unsynchronised(self) -> int:
        """How many bytes the target has that are kept here, as it may still lose them."""
        return self._writes.extents.unsynchronised

    @property
    def needs_flush(self) -> bool:
        """Whether anything was written, or is being written, that is not known to be on stable storage."""
        writes = self._writes
        return bool(writes.admission.arrivals) or writes.ledger.needs_flush or self._holes.is_owed

    # Views: the whole, and partitions.

    @property
    def whole(self) -> "BlockUnit":
        """The unit itself."""
        return self

    @property
    def start(self) -> int:
        """0: it begins with its first byte."""
        return 0

    @property
    def parts(self) -> Sequence[Window]:
        """The partitions that are views of their own."""
        return self._windows

    def open_window(self, name: str, start: int, size: int) -> Window:
        """Return a new view of *size* bytes from *start*, which messages call *name*."""
        window = Window(self, self._holes, name, start, size)
        self._windows.append(window)
        return window

    def close_window(self, window: Window) -> None:
        """Forget a view that nobody uses any more."""
        self._windows.remove(window)
        window.close()

    # Truncation.

    def take_stale(self) -> bool:
        """Say whether copies of what was read may have old bytes where there are zeros now; once."""
        whole = self._holes.whole
        stale, whole.stale = whole.stale, False
        return stale

    def shrinks(self, size: int) -> bool:
        """Say whether a truncation to *size* would lay the end of what programs mean further to the front."""
        return self._holes.whole.shrinks(size, self.size)

    async def truncate(self, size: int) -> None:
        """Let *size* bytes be what programs mean of the unit, as far as its bytes are to be zeros (`holes`).

        The size of the unit stays what it is, and *size* is no more than that.
        """
        self._check()
        self._holes.whole.truncate(size, self.size)

    def release(self) -> None:
        """From now on nobody writes who would know of the last truncation."""
        self._holes.whole.release()

    async def zero(self) -> None:
        """Return when the holes that truncations have left are zeros in the unit, perhaps only in its cache.

        What could not be zeroed still reads as zeros, and is tried again the next time.
        """
        self._zeroing.notice_losses()
        if self._holes.pending:
            self._check()
            await self._zeroing.fill(self.description, self.preferred_size)

    # Reading.

    async def read(self, offset: int, size: int) -> memoryview:
        """Return *size* bytes from *offset*; fewer, or none, at the end of the unit."""
        began = perf_counter()
        try:
            if self.queue.failure is not None:
                raise self.queue.failure
            size = min(size, (self._size or self.size) - offset)
            if size <= 0:
                return _NO_BYTES
            block_size = self._transfers.block_size
            start = offset - offset % block_size
            end = offset + size
            if self._holes.is_active:
                self._holes.read(offset, end, self.size)
            blocks = await self._read_newest(start, end + -end % block_size)
        except Exception:
            self.queue.statistics.reads.failed(perf_counter() - began)
            raise
        self.queue.statistics.reads.ended(perf_counter() - began, size)
        return blocks if len(blocks) == size else blocks[offset - start : offset - start + size]

    async def peek(self, offset: int, size: int) -> memoryview:
        """Return whole blocks as a program would read them.

        This is not a program: a truncation goes on where it would be forgotten by a program that reads.
        """
        self._check()
        return await self._read_newest(offset, offset + size)

    async def _read_newest(self, start: int, end: int) -> memoryview:
        """Return whole blocks as the last write made them, on the target or not yet."""
        buffer = memoryview(bytearray(end - start))
        ledger, extents, holes = self._writes.ledger, self._writes.extents, self._holes
        for _ in range(MAX_ROUNDS):
            resets = ledger.resets
            newer = extents.newer(start, end) if extents.unwritten else ()
            zeros: list[tuple[int, int]] = []
            if holes.is_active:
                self._zeroing.notice_losses()
                zeros = holes.pending.within(start, end)
                if zeros == [(start, end)]:
                    return memoryview(bytearray(end - start))
            if not newer or sum(len(data) for _, data in newer) < len(buffer):
                await self._transfers.read(start, buffer)
            for position, data in newer:
                buffer[position - start : position - start + len(data)] = data
            for first, last in zeros:  # newer than what is in the write buffer there
                buffer[first - start : last - start] = bytes(last - first)
            if ledger.resets == resets:
                return buffer
        raise ledger.always_lost()

    # Writing.

    async def write(self, offset: int, data: bytes, sync: bool = False) -> None:
        """Write *data* at *offset*; the caller has seen to it that it ends within the unit.

        With write-behind it returns as soon as the data are kept here, and failures show in `failures`. With
        *sync* it returns when they are on stable storage, by FUA or SYNCHRONIZE CACHE, and raises what fails.
        """
        began = perf_counter()
        try:
            if self.queue.failure is not None:
                raise self.queue.failure
            block_size = self._transfers.block_size
            is_whole = not (offset % block_size or len(data) % block_size)
            if is_whole and data and not self._holes.is_active and self._writes.admission.is_open:
                await self._writes.put(offset, data, sync)
            elif data:
                await self._write_in_turn(offset, data, sync)
        except Exception:
            self.queue.statistics.writes.failed(perf_counter() - began)
            raise
        self.queue.statistics.writes.ended(perf_counter() - began, len(data))

    async def _write_in_turn(self, offset: int, data: bytes, sync: bool) -> None:
        """Write *data* where they have to wait, are no whole blocks, or touch what a truncation has left."""
        holes = self._holes
        if holes.is_active and holes.count > MAX_HOLES:
            await self.zero()
        block_size = self._transfers.block_size
        end = offset + len(data)
        first, last = offset - offset % block_size, end + -end % block_size
        async with self._writes.admission.turn(first, last) as arrival:
            is_whole = last - first == len(data)
            blocks = data if is_whole else await self._change_blocks(first, last, offset, data)
            await self._writes.write(first, blocks, sync, arrival)
            if holes.is_active:
                holes.wrote(offset, end, self.size)
        if sync and holes.is_owed:
            await self._flush()  # a hole in front of the data has to be zeros after a crash as well

    async def _change_blocks(self, start: int, end: int, offset: int, data: bytes) -> memoryview:
        """Return the blocks from *start* to *end* with *data* at *offset*; only their ends are read."""
        block_size = self._transfers.block_size
        blocks = memoryview(bytearray(end - start))
        partial = {start} if start < offset else set()
        if offset + len(data) < end:
            partial.add(end - block_size)
        for block in partial:
            blocks[block - start :][:block_size] = await self._read_newest(block, block + block_size)
        blocks[offset - start : offset - start + len(data)] = data
        return blocks

    def relieve(self) -> None:
        """Memory is short: have what was written synchronised soon, so that it need not be kept."""
        self._writes.relieve()

    async def drain(self) -> None:
        """Return when all writes that were received before have reached the target, or have failed."""
        await self._writes.drain()

    async def flush(self) -> None:
        """Return when all writes that were received before, and the zeros of all holes, are on stable storage
        (SYNCHRONIZE CACHE).

        A unit that takes no writes is asked for that only as long as it owes anything: it may have become so.
        """
        began = perf_counter()
        try:
            await self._flush()
        except Exception:
            self.queue.statistics.flushes.failed(perf_counter() - began)
            raise
        self.queue.statistics.flushes.ended(perf_counter() - began, 0)

    async def _flush(self) -> None:
        self._check()
        holes, writes = self._holes, self._writes
        for _ in range(MAX_ROUNDS):
            resets = writes.ledger.resets
            if writes.admission.arrivals:
                await writes.admission.drain()
            if holes.is_active:
                await self.zero()
            if self.description.write_protected and not writes.ledger.needs_flush and not holes.is_owed:
                return
            if not holes.is_active:
                await writes.flush()
                return
            await self._zeroing.flush()
            if not holes.pending or writes.ledger.resets == resets:
                return
        raise writes.ledger.always_lost()

    # What happens to the unit.

    def notice(self, condition: Condition, sense: Sense) -> None:
        """Draw the consequences of what the unit reports."""
        super().notice(condition, sense)
        if condition in _CACHE_MAY_BE_LOST:
            self._writes.lost_cache()
            if condition is Condition.DEFERRED_ERROR and not self._writes.ledger.volatile:
                # There is no cache, so nothing was kept to be written again.
                self._writes.ledger.report(DataLostError(f"{self.name}: {sense}"))

    def _disown_data(self, failure: IscsifsError) -> None:
        """Forget because of *failure* what was accepted and is not synchronised.

        What was acknowledged counts as lost, see `failures`; writes that wait fail.
        """
        self._writes.disown(failure)
        self._forget_holes(failure)

    def lose(self, reason: str) -> UnitError:
        """From now on there is no such unit: everything fails with what is returned."""
        failure = super().lose(reason)
        self._writes.give_up(failure)
        self._forget_holes(failure)
        return failure

    def _forget_holes(self, failure: IscsifsError) -> None:
        """No hole may be zeroed any more because of *failure*; those that were to be count as a loss."""
        if self._holes.is_owed:
            self._writes.ledger.report(failure)
        self._holes.forget()

    def _check(self) -> None:
        if self.queue.failure is not None:
            raise self.queue.failure
