"""Zeroes the holes of a unit: what programs take for zeros, and what was not written.

WRITE SAME does it where the unit knows it, with the UNMAP bit where unmapped blocks read as zeros (LBPWS and
LBPRZ): the unit may deallocate the blocks then, and has to write them otherwise. UNMAP itself is no means for
this, as a unit is free not to unmap what it is asked to (SBC-3, UNMAP command). Else, and for what is short,
zeros go through the write buffer.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from iscsifs.errors import DataError, DataLostError
from iscsifs.limits import MAX_HOLES, MAX_ROUNDS
from iscsifs.scsi import cdb
from iscsifs.units.answers import Unsupported
from iscsifs.units.holes import Holes
from iscsifs.units.identity import Description
from iscsifs.units.queue import Queue
from iscsifs.units.ranges import Ranges
from iscsifs.units.writeback import WriteBuffer

log = logging.getLogger(__name__)

AT_ONCE: Final = 64 << 20
"""Bytes that are zeroed at once: a write to them waits for so long."""

MAX_BLOCKS_10: Final = 0xFFFF
"""Blocks that WRITE SAME(10) can name."""

BLOCKS_IN_REACH_OF_10: Final = 1 << 32
"""Blocks that WRITE SAME(10) can get at."""

LONG: Final = 1 << 30
"""Bytes from which on writing zeros takes so long that it is said."""

Build = Callable[[int, int], bytes]


class Zeroing:
    """Zeroes *holes* by *queue*, in order with other writes (*ranges*) and with the buffer *writes*.

    *read(start, end)* returns whole blocks as programs see them.
    """

    def __init__(
        self,
        holes: Holes,
        queue: Queue,
        ranges: Ranges,
        writes: WriteBuffer,
        read: Callable[[int, int], Awaitable[memoryview]],
    ) -> None:
        self._holes = holes
        self._queue = queue
        self._ranges = ranges
        self._writes = writes
        self._read = read
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
            await self._writes.flush()

    async def _fill_piece(self, start: int, end: int, description: Description, longest: int) -> None:
        assert description.capacity is not None
        size = description.capacity.block_size
        doubts = self._queue.doubts
        mine = await self._ranges.enter(start // size * size, -(-end // size) * size)
        try:
            for _ in range(MAX_ROUNDS):
                # Some of it may have been written, or zeroed by somebody else, in the meantime.
                pending = self._holes.pending.within(start, end)
                self._queue.check_doubts(doubts)
                if not pending:
                    return
                for first, last in pending:
                    await self._zero(first, last, description, longest, doubts)
            raise DataLostError(f"{self._queue.name}: the target loses its cache over and over")
        finally:
            self._ranges.leave(mine)

    async def _zero(self, start: int, end: int, description: Description, longest: int, doubts: int) -> None:
        assert description.capacity is not None
        size = description.capacity.block_size
        first, last = -(-start // size) * size, end // size * size
        resets = self._writes.resets
        for block in {start // size * size} - {start} | {last} - {end}:
            data = await self._read(block, block + size)
            self._queue.check_doubts(doubts)  # what was read may be another unit's
            await self._writes.write(block, data)
        is_short = last - first < longest
        if first < last and (is_short or not await self._write_same(first, last, description)):
            await self._write_zeros(first, last, longest, doubts)
        if self._writes.resets == resets:  # otherwise the target may have lost some of it
            self._holes.zeroed(start, end)

    async def _write_zeros(self, start: int, end: int, longest: int, doubts: int) -> None:
        zeros = memoryview(bytes(min(longest, end - start)))
        while start < end:
            stop = min(start + longest, end)
            self._queue.check_doubts(doubts)
            await self._writes.write(start, zeros[: stop - start])
            start = stop

    async def _write_same(self, start: int, end: int, description: Description) -> bool:
        """Zero whole blocks by WRITE SAME; return whether the unit can do that."""
        for name, build, most in self._ways(description):
            try:
                if await self._write_same_so(name, build, most, start, end, description):
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
        self, name: str, build: Build, most: int, start: int, end: int, description: Description
    ) -> bool:
        """Zero whole blocks in one way; return whether they are zeros then."""
        assert description.capacity is not None
        size = description.capacity.block_size
        zeros = bytes(size)
        resets = self._writes.resets
        await self._writes.drain()
        lba, last = start // size, end // size
        while lba < last:
            blocks = min(last - lba, most or last - lba)
            await self._queue.run(build(lba, blocks), data_out=memoryview(zeros))
            lba += blocks
        if name not in self._trusted:
            for lba in (start // size, last - 1):
                block = memoryview(bytearray(size))
                read = cdb.read_16 if description.capacity.blocks > BLOCKS_IN_REACH_OF_10 else cdb.read_10
                await self._queue.run(read(lba, 1), data_in=block)
                if block != zeros:
                    log.warning("%s: WRITE SAME succeeds and does nothing", self._queue.name)
                    return False
            self._trusted.add(name)
        if self._writes.resets == resets:  # until now what was written there may have to be written again
            self._writes.forget(start, end)
        return True
