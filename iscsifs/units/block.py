"""A logical unit as a range of bytes."""

import logging
from contextlib import suppress
from dataclasses import replace
from typing import Final

import trio

from iscsifs.errors import DataError, DataLostError, IscsifsError, UnitError
from iscsifs.limits import MAX_HOLES, MAX_ROUNDS
from iscsifs.scsi import cdb
from iscsifs.scsi.capacity import Capacity
from iscsifs.scsi.luns import lun_label
from iscsifs.scsi.sense import Condition, Sense
from iscsifs.units.answers import Unsupported
from iscsifs.units.holes import Holes
from iscsifs.units.identity import Description, Name, describe
from iscsifs.units.queue import Command, Queue
from iscsifs.units.ranges import Ranges
from iscsifs.units.writeback import Done, WriteBuffer
from iscsifs.units.zeroing import Zeroing

log = logging.getLogger(__name__)

LONGEST_TRANSFER: Final = 4 * 1024 * 1024
"""Bytes of one READ or WRITE at most, also where the unit has no limit."""

MAX_BLOCKS_10: Final = 0xFFFF
"""Blocks that a ten-byte command can name."""

BLOCKS_IN_REACH_OF_10: Final = 1 << 32
"""Blocks that a ten-byte command can get at."""

MAX_BLOCKS: Final = 0xFFFFFFFF
"""Blocks that one range of UNMAP, or a 16-byte command, can name."""

_CACHE_MAY_BE_LOST: Final = frozenset({Condition.RESET, Condition.COMMANDS_CLEARED, Condition.DEFERRED_ERROR})

PREFERRED_TRANSFER: Final = 1024 * 1024
"""Bytes of a transfer that goes well, where the unit does not say it."""


class LogicalUnit:
    """One logical unit; where it `is_block`, its bytes can be read, written and flushed.

    Offsets and sizes are bytes and may be anything within the unit: what is no whole block is read, changed
    and written back. All methods raise CommandError, and UnitError once there is another unit under the
    LUN.
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
        self.lun = lun
        """The 64-bit LUN."""
        self.label = lun_label(lun)
        self.name = queue.name
        self.queue = queue
        self._ranges = Ranges()
        self._holes = Holes()
        self._block_size = 0
        self._is_large = False
        self._take(description)
        self._writes = WriteBuffer(
            self.name,
            self._start_write,
            self._synchronise,
            nursery,
            busy_poll=queue.path.busy_poll,
            longest=self.preferred_size if self.is_block else 0,
            behind=write_behind,
            volatile=description.volatile_cache is not False,
            fua=description.dpo_fua,
        )
        self._failures_before = 0
        self._zeroing = Zeroing(self._holes, queue, self._ranges, self._writes, self._read_newest)

    @property
    def failure(self) -> IscsifsError | None:
        """Why the unit cannot be used any more."""
        return self.queue.failure

    @property
    def device_type(self) -> int:
        """The peripheral device type (SPC-3 section 6.4.2)."""
        return self.description.inquiry.device_type

    @property
    def type_name(self) -> str:
        """The peripheral device type as a word."""
        return self.description.inquiry.device_type.label

    @property
    def vendor(self) -> str:
        """The T10 vendor identification."""
        return self.description.inquiry.vendor

    @property
    def product(self) -> str:
        """The product identification."""
        return self.description.inquiry.product

    @property
    def revision(self) -> str:
        """The product revision level."""
        return self.description.inquiry.revision

    @property
    def serial(self) -> str | None:
        """The unit serial number (VPD page 80h), where there is one."""
        return self.description.serial or None

    @property
    def wwid(self) -> str | None:
        """The worldwide name (VPD page 83h), where there is one."""
        return self.description.wwid

    @property
    def is_block(self) -> bool:
        """Whether the unit has bytes to read."""
        return self.description.capacity is not None

    @property
    def capacity(self) -> Capacity:
        """The capacity; raises UnitError where the unit is not read by block."""
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
        return min(max(preferred, self.capacity.physical_block_size), self._longest_transfer)

    @property
    def read_only(self) -> bool:
        """Whether the unit takes no writes."""
        return self.description.write_protected

    def _take(self, description: Description) -> None:
        """From now on the unit is what *description* says."""
        self.description = description
        capacity = description.capacity
        # What every operation needs, so that it is not worked out each time. While there is no medium its
        # blocks are those of the last one: what was accepted for that may still be written.
        self._size = capacity.size if capacity else 0
        if capacity is not None:
            self._holes.clip(capacity.size)
            self._block_size = capacity.block_size
            self._is_large = capacity.blocks > BLOCKS_IN_REACH_OF_10
        limit = description.limits.max_transfer_length * self._block_size
        self._longest_transfer = min(limit or LONGEST_TRANSFER, LONGEST_TRANSFER)
        self._read_cdb = cdb.read_16 if self._is_large else cdb.read_10
        self._write_cdb = cdb.write_16 if self._is_large else cdb.write_10

    @property
    def failures(self) -> int:
        """How many losses there were of writes that had been acknowledged; `last_failure` is the latest."""
        return self._writes.failures

    @property
    def last_failure(self) -> IscsifsError | None:
        """The latest such loss."""
        return self._writes.failure

    @property
    def is_away(self) -> bool:
        """Whether there is no session with the target: what is asked for waits for its return."""
        return self.queue.path.is_away

    @property
    def unwritten(self) -> int:
        """How many bytes that were accepted are not known to have reached the target."""
        return self._writes.unwritten

    @property
    def needs_flush(self) -> bool:
        """Whether anything was written, or is being written, that is not known to be on stable storage."""
        return bool(self._ranges) or self._writes.needs_flush or self._holes.is_owed

    def take_stale(self) -> bool:
        """Say whether copies of what was read may have old bytes where there are zeros now; once."""
        stale, self._holes.stale = self._holes.stale, False
        return stale

    def shrinks(self, size: int) -> bool:
        """Say whether a truncation to *size* would lay the end of what programs mean further to the front."""
        return self._holes.shrinks(size, self.size)

    async def truncate(self, size: int) -> None:
        """Let *size* bytes be what programs mean of the unit, as far as its bytes are to be zeros (`holes`).

        The size of the unit stays what it is, and *size* is no more than that.
        """
        self._check()
        self._holes.truncate(size, self.size)

    def release(self) -> None:
        """From now on nobody writes who would know of the last truncation."""
        self._holes.release()

    async def zero(self) -> None:
        """Return when the holes that truncations have left are zeros in the unit, perhaps only in its cache.

        What could not be zeroed still reads as zeros, and is tried again the next time.
        """
        if self._holes.pending:
            self._check()
            await self._zeroing.fill(self.description, self.preferred_size)

    async def read(self, offset: int, size: int) -> memoryview:
        """Return *size* bytes from *offset*; fewer, or none, at the end of the unit."""
        self._check()
        size = min(size, (self._size or self.size) - offset)
        if size <= 0:
            return memoryview(b"")
        block_size = self._block_size
        start = offset // block_size * block_size
        end = -(-(offset + size) // block_size) * block_size
        if self._holes.is_active:
            self._holes.read(offset, offset + size, self.size)
        blocks = await self._read_newest(start, end)
        return blocks if len(blocks) == size else blocks[offset - start : offset - start + size]

    async def _read_newest(self, start: int, end: int) -> memoryview:
        """Return whole blocks as the last write made them, on the target or not yet."""
        buffer = memoryview(bytearray(end - start))
        for _ in range(MAX_ROUNDS):
            resets = self._writes.resets
            newer = self._writes.newer(start, end)
            zeros = self._holes.pending.within(start, end) if self._holes.is_active else ()
            if zeros == [(start, end)]:
                return memoryview(bytearray(end - start))
            if not newer or sum(len(data) for _, data in newer) < len(buffer):
                await self._read_blocks(start, buffer)
            for position, data in newer:
                buffer[position - start : position - start + len(data)] = data
            for first, last in zeros:  # newer than what is in the write buffer there
                buffer[first - start : last - start] = bytes(last - first)
            if self._writes.resets == resets:
                return buffer
        raise DataLostError(f"{self.name}: the target loses its cache over and over")

    async def write(self, offset: int, data: bytes, sync: bool = False) -> None:
        """Write *data* at *offset*; the caller has seen to it that it ends within the unit.

        With write-behind it returns as soon as the data are kept here, and failures show in `failures`. With
        *sync* it returns when they are on stable storage, by FUA or SYNCHRONIZE CACHE, and raises what fails.
        """
        self._check()
        if not data:
            return
        if self._holes.is_active and self._holes.count > MAX_HOLES:
            await self.zero()
        block_size = self._block_size
        last = offset + len(data)
        start = offset // block_size * block_size
        end = -(-last // block_size) * block_size
        doubts = self.queue.doubts
        mine = await self._ranges.enter(start, end)
        try:
            if doubts != self.queue.doubts:  # this was meant for the unit that was there
                self.queue.check_doubts(doubts)
            blocks = data if end - start == len(data) else await self._change_blocks(start, end, offset, data)
            await self._writes.write(start, blocks, sync)
            if self._holes.is_active:
                self._holes.wrote(offset, last, self.size)
        finally:
            self._ranges.leave(mine)
        if sync and self._holes.is_owed:
            await self.flush()  # a hole in front of the data has to be zeros after a crash as well

    async def _change_blocks(self, start: int, end: int, offset: int, data: bytes) -> memoryview:
        """Return the blocks from *start* to *end* with *data* at *offset*; only their ends are read."""
        block_size = self._block_size
        blocks = memoryview(bytearray(end - start))
        partial = {start} if start < offset else set()
        if offset + len(data) < end:
            partial.add(end - block_size)
        doubts = self.queue.doubts
        for block in partial:
            blocks[block - start :][:block_size] = await self._read_newest(block, block + block_size)
        self.queue.check_doubts(doubts)  # what was read may be another unit's
        blocks[offset - start : offset - start + len(data)] = data
        return blocks

    async def discard(self, offset: int, size: int) -> None:
        """Tell the unit that nobody needs the whole blocks among *size* bytes from *offset* any more.

        What they hold until they are written again is undefined: zeros, once this has succeeded, on a unit
        whose capacity says LBPRZ; else anything that they ever held. Raises UnitError where the unit takes
        nothing back (SBC-3, Logical Block Provisioning VPD page).
        """
        self._check()
        block_size = self.block_size
        lba = -(-offset // block_size)
        end = min(offset + size, self.size) // block_size
        doubts = self.queue.doubts
        mine = await self._ranges.enter(lba * block_size, end * block_size)
        try:
            while lba < end:
                blocks, command, data = self._unmap(lba, end - lba)
                await self._writes.drain()
                self.queue.check_doubts(doubts)
                self._writes.forget(lba * block_size, (lba + blocks) * block_size)
                # tgt does what it is told, and then reports a residual of the whole parameter list.
                with suppress(DataError):
                    await self.queue.run(command, data_out=memoryview(data))
                lba += blocks
        finally:
            self._ranges.leave(mine)

    def _unmap(self, lba: int, blocks: int) -> tuple[int, bytes, bytes]:
        """Return how many of *blocks* from *lba* one command can give back, with its CDB and its data."""
        offered, limits = self.description.provisioning, self.description.limits
        if offered.lbpu:
            blocks = min(blocks, limits.max_unmap_blocks or MAX_BLOCKS)
            parameters = cdb.unmap_parameters([(lba, blocks)])
            return blocks, cdb.unmap(len(parameters)), parameters
        blocks = min(blocks, limits.max_write_same_length or MAX_BLOCKS)
        zeros = bytes(self.block_size)
        if offered.lbpws:
            return blocks, cdb.write_same_16(lba, blocks, unmap=True), zeros
        if offered.lbpws10 and not self._is_large:
            blocks = min(blocks, MAX_BLOCKS_10)
            return blocks, cdb.write_same_10(lba, blocks, unmap=True), zeros
        raise UnitError(f"{self.name}: it takes no blocks back; it is not thinly provisioned")

    def relieve(self) -> None:
        """Memory is short: have what was written synchronised soon, so that it need not be kept."""
        self._writes.relieve()

    async def drain(self) -> None:
        """Return when all writes that were received before have reached the target, or have failed."""
        await self._ranges.drain()
        await self._writes.drain()
        self._notice_losses()

    async def flush(self) -> None:
        """Return when all writes that were received before, and the zeros of all holes, are on stable storage
        (SYNCHRONIZE CACHE).

        A unit that takes no writes is asked for that only as long as it owes anything: it may have become so.
        """
        self._check()
        for _ in range(MAX_ROUNDS):
            resets = self._writes.resets
            await self._ranges.drain()
            await self.zero()
            if self.read_only and not self._writes.needs_flush and not self._holes.is_owed:
                return
            await self._writes.flush()
            if not self._holes.pending or self._writes.resets == resets:
                return
        raise DataLostError(f"{self.name}: the target loses its cache over and over")

    async def _synchronise(self) -> None:
        command = cdb.synchronize_cache_16() if self._is_large else cdb.synchronize_cache_10()
        self._notice_losses()
        mark, resets = self._holes.mark(), self._writes.resets
        try:
            await self.queue.run(command)
        except Unsupported:
            # Without the command there is no cache that it could be about, unless the unit says otherwise.
            if self.description.volatile_cache:
                raise
        except IscsifsError:
            self._holes.lost()
            raise
        if self._writes.resets == resets:
            self._holes.synchronised(mark)

    def _notice_losses(self) -> None:
        """Have the holes zeroed again if a write was lost: it may have been one of zeros."""
        if self._failures_before != self._writes.failures:
            self._failures_before = self._writes.failures
            self._holes.lost()

    def notice(self, condition: Condition, sense: Sense) -> None:
        """Draw the consequences of what the unit reports."""
        log.info("%s: %s", self.name, sense, extra={"kind": f"{self.name}: {sense.kind}"})
        if condition in _CACHE_MAY_BE_LOST:
            self._holes.lost()
            self._writes.lost_cache()
            if condition is Condition.DEFERRED_ERROR and not self._writes.volatile:
                # There is no cache, so nothing was kept to be written again.
                self._writes.report(DataLostError(f"{self.name}: {sense}"))

    async def check(self, probes: Queue, *, resized: bool = False) -> bool:
        """Ask the unit by *probes* whether it is still the same, and take over what has changed.

        *resized*: it has reported that its size is another. Raises what `describe` raises.
        """
        now = await describe(probes)
        now = replace(now, shared_names=self.description.shared_names & now.names)
        if not self.description.is_same_unit(now, resized=resized):
            return False
        if now.capacity is not None and self._block_size not in (0, now.capacity.block_size):
            return False
        self._take(now)
        self._writes.volatile = now.volatile_cache is not False
        self._writes.fua = now.dpo_fua
        return True

    def share_names(self, names: frozenset[Name]) -> None:
        """These of its names are those of other units of the target as well (`Description.shared_names`)."""
        self.description = replace(self.description, shared_names=names)

    def disown(self) -> None:
        """It is not known whether this is the unit that was written to: nothing of what was begun before may
        be written (again).

        What was acknowledged and is not synchronised counts as lost, see `failures`; writes that wait fail.
        """
        reason = f"it may be another unit now, as {self.description.unidentified}"
        failure = DataLostError(f"{self.name}: {reason}; what was not synchronised is not written to it")
        self.queue.disown(failure)
        self._writes.disown(failure)
        self._forget_holes(failure)

    def lose(self, reason: str) -> UnitError:
        """From now on there is no such unit: everything fails with what is returned."""
        failure = UnitError(f"{self.name}: {reason}")
        log.error("%s", failure)
        self.queue.fail(failure)
        self._writes.give_up(failure)
        self._forget_holes(failure)
        return failure

    def _forget_holes(self, failure: IscsifsError) -> None:
        """No hole may be zeroed any more because of *failure*; those that were to be count as a loss."""
        if self._holes.is_owed:
            self._writes.report(failure)
        self._holes.forget()

    def _check(self) -> None:
        failure = self.queue.failure
        if failure is not None:
            raise failure

    async def _read_blocks(self, offset: int, buffer: memoryview) -> None:
        size = len(buffer)
        if size > self._longest_transfer:
            await self._read_in_pieces(offset, buffer)
            return
        command = self._read_cdb(offset // self._block_size, size // self._block_size)
        task = await self.queue.run(command, data_in=buffer)
        if task.received != size:
            reason = f"{task.received} of {size} bytes arrived"
            error = DataError(f"{self.name}: {cdb.describe(command)}: {reason}")
            raise error.counted_as(f"{self.name}: {cdb.command_name(command)}: too few bytes arrived")

    def _start_write(self, offset: int, data: memoryview, fua: bool, done: Done) -> None:
        """Write whole blocks, in parallel pieces if need be, and tell *done* the first failure, or None."""
        longest = self._longest_transfer
        left = -(-len(data) // longest)
        first: Exception | None = None

        def piece_done(command: Command) -> None:
            nonlocal left, first
            left -= 1
            first = first or command.failure
            if not left:
                done(first)

        try:
            for start in range(0, len(data), longest):
                piece = data[start : start + longest]
                blocks = (offset + start) // self._block_size, len(piece) // self._block_size
                self.queue.start(self._write_cdb(*blocks, fua), piece_done, data_out=piece)
        except MemoryError as error:  # what has been started goes on, and must not overtake what comes next
            left -= len(range(start, len(data), longest))
            first = first or error
            if not left:
                done(first)

    async def _read_in_pieces(self, offset: int, buffer: memoryview) -> None:
        """Read in parallel pieces, none of them longer than one command may be."""
        longest = self._longest_transfer
        failures: list[IscsifsError] = []

        async def read_piece(start: int) -> None:
            try:
                await self._read_blocks(offset + start, buffer[start : start + longest])
            except IscsifsError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for start in range(0, len(buffer), longest):
                nursery.start_soon(read_piece, start)
        if failures:
            raise failures[0]
