"""Zeroes the holes of a unit: what programs take for zeros, and what was not written.

WRITE SAME does it where the unit knows it, with the UNMAP bit where unmapped blocks read as zeros (LBPWS and
LBPRZ): the unit may deallocate the blocks then, and has to write them otherwise. UNMAP itself is no means for
this, as a unit is free not to unmap what it is asked to (SBC-3, UNMAP command). Else, and for what is short,
zeros go through the write buffer.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from iscsifs.errors import DataError
from iscsifs.limits import MAX_HOLES, MAX_ROUNDS
from iscsifs.scsi import cdb
from iscsifs.units.admission import Arrival
from iscsifs.units.answers import Unsupported
from iscsifs.units.holes import Holes
from iscsifs.units.identity import Description
from iscsifs.units.queue import Queue
from iscsifs.units.transfers import BLOCKS_IN_REACH_OF_10, BlockTransfers
from iscsifs.units.writeback import WriteBuffer

log = logging.getLogger(__name__)

AT_ONCE: Final = 64 << 20
"""Bytes that are zeroed at once: a write to them waits for so long."""

MAX_BLOCKS_10: Final = 0xFFFF
"""Blocks that WRITE SAME(10) can name."""

LONG: Final = 1 << 30
"""Bytes from which on writing zeros takes so long that it is said."""

Build = Callable[[int, int], bytes]


class Zeroing:
    """Zeroes *holes* by *queue* and *transfers*, in order with the writes in the buffer *writes*.

    *read(start, end)* returns whole blocks as programs see them.
    """

    def __init__(
        self,
        holes: Holes,
        queue: Queue,
        transfers: BlockTransfers,
        writes: WriteBuffer,
        read: Callable[[int, int], Awaitable[memoryview]],
    ) -> None:
        self._holes = holes
        self._queue = queue
        self._transfers = transfers
        self._writes = writes
        self._read = read
        self._seen = 0, 0  # losses of the cache, and of writes, that the holes know of
        self._refused: set[str] = set()  # the ways to write the same that the unit does not know
        self._trusted: set[str] = set()  # those that were seen to do what they say

    async def fill(self, description: Description, longest: int) -> None:
        """Zero what is pending now, in commands of up to *longest* bytes. Raises CommandError.

        What could not be zeroed stays pending. Each piece is locked for itself, so that others can write.
        """
        holes = self._holes
        if holes.pending.size >= LONG and not self._ways(description):
            log.warning(
                "%s: writing %d bytes of zeros; the unit knows no WRITE SAME",
                self._queue.name,
                holes.pending.size,
            )
        for start, end in list(holes.pending):
            while start < end:
                stop = min(end, start - start % AT_ONCE + AT_ONCE)
                await self._fill_piece(start, stop, description, longest)
                start = stop
        if holes.count > MAX_HOLES:
            await self.flush()

    async def flush(self) -> None:
        """Flush the write buffer, and with it what was zeroed before. Raises what that raises."""
        self.notice_losses()
        mark, resets = self._holes.mark(), self._writes.ledger.resets
        await self._writes.flush()
        self.notice_losses()
        if self._writes.ledger.resets == resets:
            self._holes.synchronised(mark)

    def notice_losses(self) -> None:
        """Have what was zeroed zeroed again if a write or the cache was lost: that may have been of zeros."""
        ledger = self._writes.ledger
        seen = ledger.resets, ledger.failures
        if seen != self._seen:
            self._seen = seen
            self._holes.lost()

    async def _fill_piece(self, start: int, end: int, description: Description, longest: int) -> None:
        size = self._transfers.block_size
        admission = self._writes.admission
        async with admission.turn(start - start % size, end + -end % size) as arrival:
            for _ in range(MAX_ROUNDS):
                # Some of it may have been written, or zeroed by somebody else, in the meantime.
                pending = self._holes.pending.within(start, end)
                arrival.check()
                if not pending:
                    return
                for first, last in pending:
                    await self._zero(first, last, description, longest, arrival)
            raise self._writes.ledger.always_lost()

    async def _zero(
        self, start: int, end: int, description: Description, longest: int, arrival: Arrival
    ) -> None:
        size = self._transfers.block_size
        first, last = start + -start % size, end - end % size
        ledger = self._writes.ledger
        resets = ledger.resets
        for block in {start - start % size} - {start} | {last} - {end}:
            data = await self._read(block, block + size)
            await self._writes.write(block, data, arrival=arrival)
        is_short = last - first < longest
        if first < last and (is_short or not await self._write_same(first, last, description, arrival)):
            zeros = memoryview(bytes(min(longest, last - first)))
            for position in range(first, last, longest):
                piece = zeros[: last - position]
                await self._writes.write(position, piece, arrival=arrival)
        if ledger.resets == resets:  # otherwise the target may have lost some of it
            self._holes.zeroed(start, end)

    async def _write_same(self, start: int, end: int, description: Description, arrival: Arrival) -> bool:
        """Zero whole blocks by WRITE SAME; return whether the unit can do that."""
        for name, build, most in self._ways(description):
            try:
                if await self._write_same_so(name, build, most, start, end, arrival):
                    return True
            except (Unsupported, DataError) as error:
                log.info("%s: zeros are written otherwise: %s", self._queue.name, error)
            self._refused.add(name)
        return False

    def _ways(self, description: Description) -> list[tuple[str, Build, int]]:
        """Return the ways to write the same, the best first, each with a name and its most blocks."""
        assert description.capacity is not None
        limit, offered = description.limits.max_write_same_length, description.provisioning
        ways: list[tuple[str, Build, int]] = []
        if offered.lbpws and offered.lbprz:
            ways.append(("unmap", lambda lba, blocks: cdb.write_same_16(lba, blocks, unmap=True), limit))
        ways.append(("16", cdb.write_same_16, limit))
        if description.capacity.blocks <= BLOCKS_IN_REACH_OF_10:
            ways.append(("10", cdb.write_same_10, min(limit or MAX_BLOCKS_10, MAX_BLOCKS_10)))
        return [way for way in ways if way[0] not in self._refused]

    async def _write_same_so(
        self, name: str, build: Build, most: int, start: int, end: int, arrival: Arrival
    ) -> bool:
        """Zero whole blocks in one way; return whether they are zeros then."""
        size = self._transfers.block_size
        zeros = memoryview(bytes(size))
        resets = self._writes.ledger.resets
        await self._writes.settle(start, end)
        lba, last = start // size, end // size
        while lba < last:
            blocks = min(last - lba, most or last - lba)
            arrival.check()
            await self._queue.run(build(lba, blocks), data_out=zeros)
            lba += blocks
        if name not in self._trusted:
            for position in (start, end - size):
                block = memoryview(bytearray(size))
                await self._transfers.read(position, block)
                if block != zeros:
                    log.warning("%s: WRITE SAME succeeds and does nothing", self._queue.name)
                    return False
            self._trusted.add(name)
        if self._writes.ledger.resets == resets:  # until now what was written may have to be written again
            self._writes.extents.forget(start, end)
        return True
