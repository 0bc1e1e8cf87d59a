"""The whole initiator, from `LogicalUnit` to the bytes on a socket, against a target and a model.

A state machine writes (also with O_SYNC), reads and flushes, several at once and also parts of blocks, while
connections break, the target stalls, loses its cache, is busy, fails, says that its disk may be another one,
and exchanges it for another one. Whatever happens: a read gives nothing older than the last write that was
acknowledged before, what a flush was done for stays and so does a write with O_SYNC, an exception to this is
reported first, another disk never gets a byte, and everything ends. The disk may also be gone for a while, or
for ever; and it may be one that nothing identifies: then its exchange cannot be noticed, but another disk
gets nothing of before. 200 runs of 50 steps by default; 20,000 by

    ISCSIFS_MODEL_RUNS=20000 pytest tests/model

Each write fills its cells, quarters of a block, with its number. So a cell's history is a list of numbers,
and what is known of it is which of them are possible.
"""

import os
from bisect import bisect_left, insort
from collections.abc import Awaitable, Callable
from contextlib import suppress
from copy import deepcopy

import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iscsifs.errors import (
    CommandTimeout,
    DataLostError,
    IscsifsError,
    MediumError,
    TaskAborted,
    UnitError,
)
from iscsifs.scsi.cdb import parse_rw
from iscsifs.scsi.sense import Sense, SenseKey
from iscsifs.scsi.status import Status
from iscsifs.target.disk import Disk
from iscsifs.target.login import TARGET_OFFER, TargetConfig
from iscsifs.target.unit import (
    INQUIRY_CHANGED,
    INVALID_FIELD_IN_CDB,
    LUNS_CHANGED,
    MEDIUM_CHANGED,
    POWER_ON,
    READ_CODES,
    READ_ERROR,
    SYNCHRONIZE_CODES,
    WRITE_CODES,
    WRITE_ERROR,
    Fault,
)
from support.memory_san import Anonymous, San
from support.stepwise import Loop

RUNS = int(os.environ.get("ISCSIFS_MODEL_RUNS", "200"))

BLOCK = 512
CELL = BLOCK // 4
CELLS = 64
LIMIT = 300.0
"""Seconds after the end of all trouble in which everything has to be over: a command that is ignored waits
for its time-out, for ABORT TASK and for LOGICAL UNIT RESET, and is repeated."""

SMALL_BURSTS = {
    **TARGET_OFFER,
    "InitialR2T": True,
    "ImmediateData": False,
    "MaxRecvDataSegmentLength": 512,
    "MaxBurstLength": 1024,
    "FirstBurstLength": 512,
    "MaxOutstandingR2T": 1,
}
DIGESTS = {**TARGET_OFFER, "HeaderDigest": ("CRC32C",), "DataDigest": ("CRC32C",)}

WRITE_FAILED_LATER = Sense(SenseKey.MEDIUM_ERROR, 0x0C, deferred=True)

REPORTS = [INQUIRY_CHANGED, MEDIUM_CHANGED, POWER_ON]

starts = st.integers(0, CELLS - 1)
lengths = st.one_of(st.integers(1, 12), st.sampled_from([4, 8, 16, 32]))
seconds = st.sampled_from([0.5, 3.0, 20.0, 150.0])


class RefusedFua(Fault):
    """Has every WRITE with FUA refused."""

    def applies(self, cdb: bytes) -> bool:
        return cdb[0] in WRITE_CODES and parse_rw(cdb).fua


class Cell:
    """What is known of a quarter of a block; places are those in `history`."""

    def __init__(self) -> None:
        self.history = [0]  # the numbers of all writes to it, in the order of their arrival
        self.succeeded = [0]  # the places of the writes that have, in their order
        self.safe = 0  # the place of the newest write that a flush was done for
        self.lost = 0  # the place up to which a loss was reported

    @property
    def oldest(self) -> int:
        """The place of the oldest write that can be read."""
        return self.succeeded[-1] if self.succeeded[-1] > self.lost else self.safe


class Initiator(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.cells = [Cell() for _ in range(CELLS)]
        self.number = 0
        self.failures = 0
        self.unfinished = 0
        self.possible: set[type[IscsifsError]] = set()  # what may be raised after what went wrong so far
        self.anonymous = False
        self.vanished = False
        # Of an anonymous disk that was exchanged: what was known then, and how much had been written or lost.
        self.before: tuple[list[Cell], int, int] | None = None

    @initialize(
        write_behind=st.booleans(),
        write_cache=st.booleans(),
        offer=st.sampled_from([TARGET_OFFER, SMALL_BURSTS, DIGESTS]),
        window=st.sampled_from([128, 2]),
        exchanged_at_last=st.booleans(),
        fua=st.sampled_from(["honoured", "refused", "absent"]),
        anonymous=st.booleans(),
    )
    def open(
        self,
        write_behind: bool,
        write_cache: bool,
        offer: dict[str, object],
        window: int,
        exchanged_at_last: bool,
        fua: str,
        anonymous: bool,
    ) -> None:
        self.exchanged_at_last = exchanged_at_last
        self.anonymous = anonymous
        if anonymous:
            self.possible |= {DataLostError}
        kind = Anonymous if anonymous else Disk
        disk = kind.in_memory(
            CELLS * CELL, block_size=BLOCK, write_cache=write_cache, droppable=True, dpo_fua=fua != "absent"
        )
        if fua == "refused":
            disk.faults.append(RefusedFua(INVALID_FIELD_IN_CDB))
        config = TargetConfig(target_names=frozenset(), offer=offer, command_window=window)  # type: ignore[arg-type]
        self.san = San(self.loop.nursery, disk, config, write_behind=write_behind)
        self.loop.run(self.san.log_in)
        self.unit = self.san.unit

    # What users do. It only begins here.

    @rule(start=starts, length=lengths, sync=st.booleans())
    def write(self, start: int, length: int, sync: bool = False) -> None:
        self.number += 1
        self.begin(self._write, start, min(start + length, CELLS), self.number, sync)

    async def _write(self, start: int, end: int, number: int, sync: bool) -> None:
        places = []
        for cell in self.cells[start:end]:
            places.append(len(cell.history))
            cell.history.append(number)
        await self.unit.write(start * CELL, bytes([number]) * CELL * (end - start), sync)
        for cell, place in zip(self.cells[start:end], places, strict=True):
            insort(cell.succeeded, place)
            if sync:
                cell.safe = max(cell.safe, place)
        if sync:
            self.compare(self.san.medium(), [cell.safe for cell in self.cells])

    @rule(start=starts, length=lengths)
    def read(self, start: int, length: int) -> None:
        self.begin(self._read, start, min(start + length, CELLS))

    async def _read(self, start: int, end: int) -> None:
        oldest = [cell.oldest for cell in self.cells[start:end]]
        data = bytes(await self.unit.read(start * CELL, (end - start) * CELL))
        self.compare(data, oldest, start)

    @rule()
    def flush(self) -> None:
        self.begin(self._flush)

    async def _flush(self) -> None:
        arrived = [len(cell.history) for cell in self.cells]
        await self.unit.flush()
        self.learn_of_failures()
        # All writes that had arrived have ended by now; those that succeeded are safe.
        for cell, before in zip(self.cells, arrived, strict=True):
            done = cell.succeeded[bisect_left(cell.succeeded, before) - 1]
            if done > cell.lost:
                cell.safe = max(cell.safe, done)
        if self.before is None:
            self.compare(self.san.medium(), [cell.safe for cell in self.cells])

    @rule()
    def drain(self) -> None:
        self.begin(self.unit.drain)

    def begin(self, function: Callable[..., Awaitable[None]], *args: object) -> None:
        async def user() -> None:
            try:
                await function(*args)
            except IscsifsError as error:
                if not isinstance(error, tuple(self.possible)):
                    raise
            self.unfinished -= 1

        self.unfinished += 1
        self.loop.nursery.start_soon(user)

    def compare(self, data: bytes, oldest: list[int], start: int = 0) -> None:
        """*data* from cell *start* on are from writes that are not older than *oldest*."""
        self.learn_of_failures()
        if self.before is not None:
            return  # it may be from either disk
        for index, place in enumerate(oldest):
            cell = self.cells[start + index]
            value = data[index * CELL : (index + 1) * CELL]
            numbers = cell.history[place if place > cell.lost else min(place, cell.safe) :]
            assert value[0] in numbers, f"cell {start + index}: {value[0]}, not one of {numbers}"
            assert value == value[:1] * CELL, f"cell {start + index} is from several writes"

    def learn_of_failures(self) -> None:
        """What was reported to be lost may have been anything that was not safe."""
        if self.unit.failures != self.failures:
            self.failures = self.unit.failures
            for cell in self.cells:
                if len(cell.history) - 1 > cell.safe:
                    cell.lost = len(cell.history) - 1

    # How things go on.

    @rule(count=st.integers(1, 30))
    def tick(self, count: int) -> None:
        self.loop.tick(count)

    @rule()
    def settle(self) -> None:
        self.loop.settle()

    @rule(duration=seconds)
    def wait(self, duration: float) -> None:
        self.loop.run(trio.sleep, duration)

    # What goes wrong.

    @rule(reset=st.booleans())
    def drop_connection(self, reset: bool) -> None:
        self.san.server.drop_connections(reset=reset)

    @rule(duration=seconds)
    def stall(self, duration: float) -> None:
        self.possible |= {CommandTimeout, TaskAborted}
        self.san.trouble.stall()
        self.later(duration, self.san.trouble.go_on)

    @rule(duration=seconds)
    def refuse(self, duration: float) -> None:
        self.possible |= {CommandTimeout}
        self.san.trouble.refusing = True
        self.san.server.drop_connections()
        self.later(duration, self._listen)

    def _listen(self) -> None:
        self.san.trouble.refusing = False

    @rule(count=st.integers(1, 3))
    def ignore_commands(self, count: int) -> None:
        self.possible |= {CommandTimeout, TaskAborted}
        self.san.trouble.commands_to_ignore = count

    @rule(count=st.integers(1, 2))
    def lose_answers(self, count: int) -> None:
        self.possible |= {CommandTimeout}
        self.san.trouble.answers_to_lose = count

    @rule()
    def lose_cache(self) -> None:
        self.san.disk.drop_cache()

    @rule(report=st.sampled_from([*REPORTS, LUNS_CHANGED]))
    def report(self, report: Sense) -> None:
        """The disk says that it may be another, but is not."""
        self.san.disk.establish_attention(report)

    @precondition(lambda self: self.san.trouble.stranger is None)
    @rule(report=st.sampled_from(REPORTS), at_a_login=st.booleans())
    def exchange(self, report: Sense, at_a_login: bool = False) -> None:
        self.possible |= {UnitError}
        self.learn_of_failures()
        if self.anonymous:
            self.before = deepcopy(self.cells), self.number, self.failures
        self.san.exchange(report)
        if at_a_login:
            self.san.server.drop_connections()

    @precondition(lambda self: self.san.trouble.stranger is None)
    @rule(duration=seconds)
    def vanish(self, duration: float) -> None:
        self.possible |= {UnitError}
        self.vanished = True
        self.san.vanish()
        self.later(duration, self.san.come_back)

    @precondition(lambda self: len(self.background_failures()) < 2)
    @rule()
    def fail_in_the_background(self) -> None:
        """A write that was acknowledged fails later, and the next command reports it."""
        self.possible |= {DataLostError}  # a synchronous write tells of that
        assert self.san.disk.undo_log is not None
        self.san.disk.undo_log.undo()
        codes = READ_CODES | WRITE_CODES | SYNCHRONIZE_CODES
        self.add(Fault(WRITE_FAILED_LATER, codes=codes, times=1))

    @precondition(lambda self: len(self.busy()) < 3)  # a unit may be busy for 30 s
    @rule(status=st.sampled_from([Status.BUSY, Status.TASK_SET_FULL]), times=st.integers(1, 6))
    def be_busy(self, status: int, times: int) -> None:
        self.add(Fault(status=status, times=times))

    @rule(start=st.integers(0, CELLS // 4 - 1), length=st.integers(1, 4), times=st.integers(1, 3))
    def fail_to_write(self, start: int, length: int, times: int) -> None:
        self.possible |= {MediumError}
        self.add(Fault(WRITE_ERROR, codes=WRITE_CODES, blocks=range(start, start + length), times=times))

    @rule(start=st.integers(0, CELLS // 4 - 1), length=st.integers(1, 4), times=st.integers(1, 3))
    def fail_to_read(self, start: int, length: int, times: int) -> None:
        self.possible |= {MediumError}
        self.add(Fault(READ_ERROR, codes=READ_CODES, blocks=range(start, start + length), times=times))

    @rule(times=st.integers(1, 2))
    def fail_to_synchronise(self, times: int) -> None:
        self.possible |= {MediumError}
        self.add(Fault(WRITE_ERROR, codes=SYNCHRONIZE_CODES, times=times))

    def background_failures(self) -> list[Fault]:
        """Those that were not reported yet."""
        return [fault for fault in self.san.disk.faults if fault.sense == WRITE_FAILED_LATER and fault.times]

    def busy(self) -> list[Fault]:
        """The times to come in which the unit is busy."""
        return [fault for fault in self.san.disk.faults if fault.sense is None and fault.times]

    def add(self, fault: Fault) -> None:
        self.san.disk.faults.append(fault)

    def later(self, delay: float, action: Callable[[], None]) -> None:
        async def act() -> None:
            await trio.sleep(delay)
            action()

        self.loop.nursery.start_soon(act)

    # How it ends.

    @precondition(lambda self: hasattr(self, "unit"))
    @invariant()
    def another_unit_is_noticed_and_gets_nothing(self) -> None:
        stranger = self.san.trouble.stranger
        if stranger is None:
            assert self.unit.failure is None or self.vanished
        elif self.before is not None:
            _, number, _ = self.before
            data = stranger.store.read(0, CELLS * CELL)
            assert all(value == 0 or value > number for value in data), "it got a write of before"
        else:
            assert self.san.trouble.came_too_late == []
            assert stranger.store.read(0, CELLS * CELL) == bytes(CELLS * CELL)
        self.learn_of_failures()

    def teardown(self) -> None:
        try:
            if hasattr(self, "unit"):
                self.loop.run(self.finish)
        finally:
            self.loop.close()

    async def finish(self) -> None:
        self.san.trouble.end()
        self.san.come_back()
        # What has gone wrong already is still to be reported.
        self.san.disk.faults = self.background_failures()
        with trio.fail_after(LIMIT):
            while self.unfinished or not self.san.is_up:  # noqa: ASYNC110 - the time is virtual
                await trio.sleep(1)
            if self.before is not None:
                await self.finish_with_another_disk()
                return
            if self.san.trouble.stranger is not None or self.unit.failure is not None:
                await self.finish_without_the_disk()
                return
            await self.unit.drain()  # what is here would be read without a command, and so without a report
            await self._read(0, CELLS)
            while self.background_failures():
                await self._read(0, CELLS)
            await self.unit.drain()
            self.learn_of_failures()
            failures = self.failures
            await self._flush()
            await self._read(0, CELLS)
            assert self.failures == failures, f"a loss without a reason: {self.unit.last_failure}"
        for cell in self.cells:
            assert cell.succeeded[-1] <= max(cell.safe, cell.lost)
        with trio.fail_after(LIMIT):
            if self.exchanged_at_last and not self.anonymous:
                self.exchange(INQUIRY_CHANGED)
                for start in range(0, CELLS, 3):
                    self.write(start, 2)
                await self.finish_without_the_disk()
            else:
                await self.san.log_out()

    async def finish_with_another_disk(self) -> None:
        """It cannot be noticed; the old one has all that was acknowledged, or the loss was reported."""
        assert self.before is not None
        with suppress(IscsifsError):
            await self.unit.flush()
        self.another_unit_is_noticed_and_gets_nothing()
        self.cells, _, failures = self.before
        self.before = None
        if self.unit.failure is None and self.unit.failures == failures:
            self.compare(self.san.medium(), [cell.oldest for cell in self.cells])
        await self.san.log_out()

    async def finish_without_the_disk(self) -> None:
        """It is exchanged: it has all that was acknowledged, or the loss of that was reported."""
        with suppress(UnitError):
            await self.unit.flush()
        while self.unfinished:  # noqa: ASYNC110 - the time is virtual
            await trio.sleep(1)
        assert self.unit.failure is not None
        self.another_unit_is_noticed_and_gets_nothing()
        self.compare(self.san.medium(), [cell.oldest for cell in self.cells])
        await self.san.log_out()


TestInitiator = Initiator.TestCase
TestInitiator.settings = settings(
    max_examples=RUNS, stateful_step_count=50, suppress_health_check=list(HealthCheck)
)
