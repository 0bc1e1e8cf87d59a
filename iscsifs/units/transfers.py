"""READ, WRITE and SYNCHRONIZE CACHE of one unit, by offset in bytes."""

from collections.abc import Callable
from typing import Final

import trio

from iscsifs.errors import DataError, IscsifsError
from iscsifs.scsi import cdb
from iscsifs.units.answers import Unsupported
from iscsifs.units.identity import Description
from iscsifs.units.queue import Command, Queue

LONGEST_TRANSFER: Final = 4 * 1024 * 1024
"""Bytes of one READ or WRITE at most, also where the unit has no limit."""

BLOCKS_IN_REACH_OF_10: Final = 1 << 32
"""Blocks that a ten-byte command can get at."""


class BlockTransfers:
    """Moves whole blocks of the unit behind *queue*, which is what *description* says."""

    def __init__(self, queue: Queue, description: Description) -> None:
        self.block_size = 0
        """Bytes of a logical block; 0 until there was a medium."""
        self._queue = queue
        self._is_large = False
        self.take(description)

    def take(self, description: Description) -> None:
        """From now on the unit is what *description* says.

        While there is no medium its blocks are those of the last one: what was accepted for that may still be
        written.
        """
        if description.capacity is not None:
            self.block_size = description.capacity.block_size
            self._is_large = description.capacity.blocks > BLOCKS_IN_REACH_OF_10
        limit = description.limits.max_transfer_length * self.block_size
        self.longest = min(limit or LONGEST_TRANSFER, LONGEST_TRANSFER)
        """Bytes of one READ or WRITE at most."""
        self._has_cache = description.volatile_cache
        self._read_cdb = cdb.read_16 if self._is_large else cdb.read_10
        self._write_cdb = cdb.write_16 if self._is_large else cdb.write_10

    async def read(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* with blocks; raises CommandError, DataError where bytes are missing."""
        size = len(buffer)
        if size > self.longest:
            await self._read_in_pieces(offset, buffer)
            return
        block_size = self.block_size
        command = self._read_cdb(offset // block_size, size // block_size)
        task = await self._queue.run(command, data_in=buffer)
        if task.received != size:
            name = self._queue.name
            reason = f"{task.received} of {size} bytes arrived"
            error = DataError(f"{name}: {cdb.describe(command)}: {reason}")
            raise error.counted_as(f"{name}: {cdb.command_name(command)}: too few bytes arrived")

    async def _read_in_pieces(self, offset: int, buffer: memoryview) -> None:
        """Read in parallel pieces, none of them longer than one command may be."""
        longest = self.longest
        failures: list[IscsifsError] = []

        async def read_piece(start: int) -> None:
            try:
                await self.read(offset + start, buffer[start : start + longest])
            except IscsifsError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for start in range(0, len(buffer), longest):
                nursery.start_soon(read_piece, start)
        if failures:
            raise failures[0]

    def send_write(self, start: int, data: memoryview, fua: bool, on_end: Callable[[Command], None]) -> None:
        """Send a WRITE of blocks; *on_end* is called with the command when it has ended."""
        block_size = self.block_size
        command = self._write_cdb(start // block_size, len(data) // block_size, fua)
        self._queue.start(command, on_end, data_out=data)

    async def synchronise_cache(self) -> None:
        """Run SYNCHRONIZE CACHE; raises CommandError."""
        try:
            await self._queue.run(
                cdb.synchronize_cache_16() if self._is_large else cdb.synchronize_cache_10()
            )
        except Unsupported:
            # Without the command there is no cache that it could be about, unless the unit says otherwise.
            if self._has_cache:
                raise

    def poll(self) -> None:
        """Busy-poll for answers."""
        self._queue.path.busy_poll()
