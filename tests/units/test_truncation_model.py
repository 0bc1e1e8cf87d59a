"""Truncation against a model: what reads as zeros, what is on the disk after fsync, and what stays.

A state machine truncates, writes, reads and synchronises a unit of the embedded target, in pieces of a
quarter of a block, while the zeroing of holes goes on, connections break and the target loses its cache.
The model has one entry for each quarter and no ranges. A partition is compared with it as well, and what is
in front of it and behind it has to stay. 200 runs by default, or ISCSIFS_MODEL_RUNS.
"""

import os
from contextlib import suppress

import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iscsifs.errors import MediumError
from iscsifs.scsi import vpd
from iscsifs.target.disk import Disk
from iscsifs.target.unit import INVALID_OPERATION_CODE, WRITE_ERROR, WRITE_SAME_CODES, Fault
from iscsifs.units.block import BlockUnit
from iscsifs.units.window import Window
from support.memory_san import San
from support.stepwise import Loop

RUNS = int(os.environ.get("ISCSIFS_MODEL_RUNS", "200"))

BLOCK = 512
CELL = BLOCK // 4
CELLS = 64
SIZE = CELLS * CELL

places = st.integers(0, CELLS)
starts = st.integers(0, CELLS - 1)
lengths = st.one_of(st.integers(1, 12), st.sampled_from([4, 8, 16, 32]))


class SmallTransfers(Disk):
    """A disk that likes transfers of two blocks, so that longer holes are zeroed by WRITE SAME."""

    most = 3

    def _block_limits(self) -> vpd.BlockLimits:
        return vpd.BlockLimits(optimal_transfer_length=2, max_write_same_length=self.most)


class Cell:
    """What may be read of a quarter of a block. *hidden* is what the disk may have while it is a hole."""

    def __init__(self) -> None:
        self.values = {0}
        self.hidden: set[int] = set()

    def write(self, number: int) -> None:
        self.values, self.hidden = {number}, set()

    def open(self) -> None:
        """It comes inside the end without being written."""
        self.values, self.hidden = {0}, self.values | self.hidden

    def close(self) -> None:
        """It is behind the end: as it is on the disk, which may have been zeroed before."""
        self.values, self.hidden = self.values | self.hidden, set()


class Truncation(RuleBasedStateMachine):
    before = after = 0
    """Bytes of the disk in front of and behind what is written to."""

    unit: BlockUnit | Window

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.cells = [Cell() for _ in range(CELLS)]
        self.number = 0
        self.end = CELLS
        self.dormant = self.written = False
        self.unfinished = 0

    @initialize(
        write_behind=st.booleans(),
        write_cache=st.booleans(),
        write_same=st.booleans(),
        physical=st.sampled_from([0, 3]),
    )
    def open(self, write_behind: bool, write_cache: bool, write_same: bool, physical: int) -> None:
        disk: Disk = SmallTransfers.in_memory(
            self.before + SIZE + self.after, block_size=BLOCK, write_cache=write_cache, droppable=True
        )
        if not write_same:
            disk.faults.append(Fault(INVALID_OPERATION_CODE, codes=WRITE_SAME_CODES))
        assert isinstance(disk, SmallTransfers)
        disk.most = physical
        self.san = San(self.loop.nursery, disk, write_behind=write_behind)
        self.loop.run(self.san.log_in)
        self.unit = self._unit()
        self.write(0, CELLS)  # the old bytes
        self.loop.run(self.unit.flush)

    def _unit(self) -> BlockUnit | Window:
        return self.san.unit

    # What programs do.

    @precondition(lambda self: self.number < 255)
    @rule(start=starts, length=lengths)
    def write(self, start: int, length: int) -> None:
        self.number += 1
        end = min(start + length, CELLS)
        self.loop.run(self.unit.write, start * CELL, bytes([self.number]) * CELL * (end - start))
        if self.dormant:
            self.end, self.dormant = CELLS, False
        self._extend(start)
        self.end = max(self.end, end)
        self.written = True
        for cell in self.cells[start:end]:
            cell.write(self.number)

    @rule(size=places)
    def truncate(self, size: int) -> None:
        self.loop.run(self.unit.truncate, size * CELL)
        self.dormant = False
        self.written = self.written and size >= self.end
        for cell in self.cells[size : self.end if size < self.end else size]:
            cell.close()
        self._extend(size)
        self.end = size

    @rule()
    def truncate_to_nothing_and_to_all(self) -> None:
        self.truncate(0)
        self.truncate(CELLS)

    def _extend(self, end: int) -> None:
        for cell in self.cells[self.end : end]:
            cell.open()

    @rule()
    def last_close(self) -> None:
        self.zero()
        self.loop.run(self.unit.drain)
        self.unit.release()
        self.dormant = self.end < CELLS and not self.written
        if not self.dormant:
            self.end = CELLS

    @rule(start=starts, length=lengths)
    def read(self, start: int, length: int) -> None:
        end = min(start + length, CELLS)
        data = bytes(self.loop.run(self.unit.read, start * CELL, (end - start) * CELL))
        self.compare(data, start)
        if self.dormant:
            self.end, self.dormant = CELLS, False

    @rule()
    def flush(self) -> None:
        self.loop.run(self._flush)

    async def _flush(self) -> None:
        """What was there when it began is on the medium."""
        try:
            await self.unit.flush()
        except MediumError:
            return
        for cell in self.cells:
            cell.hidden = set()
        self.compare(self.medium())

    def zero(self) -> None:
        with suppress(MediumError):
            self.loop.run(self.unit.zero)

    @rule(ticks=st.integers(0, 30))
    def zero_meanwhile(self, ticks: int) -> None:
        """Another descriptor is closed, and its zeroing races what comes next."""

        async def close() -> None:
            with suppress(MediumError):
                await self.unit.zero()
            self.unfinished -= 1

        self.unfinished += 1
        self.loop.nursery.start_soon(close)
        self.loop.tick(ticks)

    # What goes wrong.

    @rule()
    def lose_cache(self) -> None:
        self.san.disk.drop_cache()

    @rule()
    def drop_connection(self) -> None:
        self.san.server.drop_connections()

    @rule(times=st.integers(1, 2))
    def fail_to_zero(self, times: int) -> None:
        self.san.disk.faults.insert(0, Fault(WRITE_ERROR, codes=WRITE_SAME_CODES, times=times))

    # What always holds.

    def medium(self) -> bytes:
        """The bytes that are on the disk, the others being what they were."""
        return self.san.medium()

    def compare(self, data: bytes, start: int = 0) -> None:
        for index in range(len(data) // CELL):
            value = data[index * CELL : (index + 1) * CELL]
            cell = self.cells[start + index]
            assert value == value[:1] * CELL, f"cell {start + index} is from several writes"
            assert value[0] in cell.values, f"cell {start + index}: {value[0]}, not one of {cell.values}"

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "unit"):
            assert self.unit.failures == 0
            if any(cell.hidden for cell in self.cells):
                assert self.unit.needs_flush or not self.unfinished

    def teardown(self) -> None:
        try:
            if hasattr(self, "unit"):
                self.loop.run(self.finish)
        finally:
            self.loop.close()

    async def finish(self) -> None:
        with trio.fail_after(300):
            while self.unfinished:  # noqa: ASYNC110 - the time is virtual
                await trio.sleep(1)
            self.san.disk.faults = [fault for fault in self.san.disk.faults if fault.times is None]
            self.compare(bytes(await self.unit.read(0, SIZE)))
            await self.unit.flush()
            assert not self.unit.needs_flush
            self.compare(self.medium())
            self.compare(bytes(await self.unit.read(0, SIZE)))
            await self.san.log_out()


class PartitionTruncation(Truncation):
    """The same of a partition, in a disk whose other bytes are old ones."""

    before, after = 5 * BLOCK, 9 * BLOCK

    def _unit(self) -> BlockUnit | Window:
        unit = self.san.unit
        self.loop.run(unit.write, 0, b"b" * self.before)
        self.loop.run(unit.write, self.before + SIZE, b"a" * self.after)
        return unit.open_window("partition", self.before, SIZE)

    def medium(self) -> bytes:
        medium = self.san.medium()
        assert medium[: self.before] == b"b" * self.before
        assert medium[self.before + SIZE :] == b"a" * self.after
        return medium[self.before : self.before + SIZE]


TestTruncation = Truncation.TestCase
TestPartitionTruncation = PartitionTruncation.TestCase
for case in TestTruncation, TestPartitionTruncation:
    case.settings = settings(
        max_examples=RUNS, stateful_step_count=40, suppress_health_check=list(HealthCheck)
    )
