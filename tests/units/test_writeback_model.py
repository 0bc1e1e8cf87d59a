"""The write buffer against a model: any writes, any order of answers, losses of the cache, failures.

Every write has a number, and writes bytes of that value: so a byte tells which write it is from, and a larger
one is from a newer write. Where a write has not returned, or has failed, its data may be there or older ones.
400 runs by default, or ISCSIFS_MODEL_RUNS.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import pairwise

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iscsifs.errors import IscsifsError, MediumError, TransportError
from iscsifs.units.answers import Unsupported
from iscsifs.units.extents import Extent, State
from iscsifs.units.writeback import MEMORY_PAUSE, WriteBuffer
from support.memory_cache import CachedUnit, Call
from support.stepwise import Loop

SIZE = 12
LONGEST = 5
COMMANDS = 3
UNWRITTEN = 8
UNSYNCHRONISED = 12

RUNS = int(os.environ.get("ISCSIFS_MODEL_RUNS", "400"))


class WriteBufferMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.number = 0
        self.newest = [0] * SIZE  # the number of the newest write that has succeeded
        self.lost = [0] * SIZE  # writes up to this number were reported to be lost, perhaps
        self.accepted: list[set[int]] = [{0} for _ in range(SIZE)]
        self.durable = [0] * SIZE  # the number of the newest write that a flush has made safe
        self.failures = 0
        self.unfinished = 0

    @initialize(
        behind=st.booleans(), volatile=st.booleans(), fua=st.booleans(), transfer=st.sampled_from([2, SIZE])
    )
    def open(self, behind: bool, volatile: bool, fua: bool, transfer: int) -> None:
        self.unit = CachedUnit(SIZE, volatile=volatile)
        self.unit.longest = transfer
        self.buffer = self.unit.open(
            self.loop.nursery,
            behind=behind,
            fua=fua,
            longest=LONGEST,
            max_commands=COMMANDS,
            max_unwritten=UNWRITTEN,
            max_unsynchronised=UNSYNCHRONISED,
        )

    # What the owner of the buffer does.

    @precondition(lambda self: self.number < 255)
    @rule(start=st.integers(0, SIZE - 1), length=st.integers(1, 6), sync=st.booleans())
    def write(self, start: int, length: int, sync: bool) -> None:
        self.number += 1
        end = min(start + length, SIZE)
        self.begin(self._write, start, end, self.number, sync)

    async def _write(self, start: int, end: int, number: int, sync: bool) -> None:
        for position in range(start, end):
            self.accepted[position].add(number)
        with suppress(IscsifsError):
            await self.buffer.write(start, bytes([number]) * (end - start), sync)
            self.newest[start:end] = [number] * (end - start)
            if sync:
                self.learn_of_failures()
                self.hold_that_it_is_safe(range(start, end), number)

    @rule()
    def flush(self) -> None:
        self.begin(self._flush)

    async def _flush(self) -> None:
        await self.buffer.admission.drain()
        wanted = list(self.newest)
        try:
            await self.buffer.flush()
        except IscsifsError:
            return
        self.learn_of_failures()
        for position, number in enumerate(wanted):
            if number > self.lost[position]:
                self.hold_that_it_is_safe([position], number)

    def hold_that_it_is_safe(self, positions: Iterable[int], number: int) -> None:
        """A crash of the unit now leaves write *number*, or a newer one, at *positions*."""
        for position in positions:
            kept = self.unit.medium[position]
            assert kept >= number, f"byte {position}: {kept} is older than {number}"
            assert kept in self.accepted[position]
            self.durable[position] = max(self.durable[position], number)

    @rule()
    def drain(self) -> None:
        self.begin(self._drain)

    @rule()
    def relieve(self) -> None:
        self.buffer.relieve()
        self.loop.settle()

    async def _drain(self) -> None:
        await self.buffer.drain()

    def begin(self, function: Callable[..., object], *args: object) -> None:
        """Let *function* go on by itself."""

        async def counted() -> None:
            await function(*args)  # type: ignore[misc]
            self.unfinished -= 1

        self.unfinished += 1
        self.loop.nursery.start_soon(counted)
        self.loop.settle()

    # What the unit does.

    def under_way(self) -> list[Call]:
        return [*self.unit.writes, *self.unit.synchronisings]

    @precondition(lambda self: self.under_way())
    @rule(
        choice=st.integers(0, 31),
        failure=st.sampled_from(
            [None, None, None, None, MediumError, TransportError, Unsupported, MemoryError]
        ),
    )
    def answer(self, choice: int, failure: type[Exception] | None) -> None:
        calls = self.under_way()
        call = calls[choice % len(calls)]
        if failure is Unsupported and call.fua and not call.carried_out:
            self.fail(call, Unsupported("no FUA here", status=2))
        elif failure is MediumError:
            self.fail(call, MediumError("bad block", status=2))
        elif failure is TransportError:
            self.fail(call, TransportError("gone"))
        elif failure is MemoryError:
            self.fail(call, MemoryError())
        else:
            call.answer()
            self.loop.settle()
            self.learn_of_failures()

    def fail(self, call: Call, failure: Exception) -> None:
        """Answer *call* with *failure*: if this was reported, what it was to write may be lost."""
        before = self.buffer.ledger.failures
        call.answer(failure)
        self.loop.settle()
        if self.buffer.ledger.failures != before and call.data is not None:
            self.failures += 1
            for position, number in enumerate(call.data, call.start):
                self.lost[position] = max(self.lost[position], number)
        self.learn_of_failures()

    @precondition(lambda self: self.under_way())
    @rule(choice=st.integers(0, 31))
    def carry_out(self, choice: int) -> None:
        """The answer comes later."""
        calls = [call for call in self.under_way() if not call.carried_out]
        if calls:
            calls[choice % len(calls)].carry_out()
            self.loop.settle()
            self.learn_of_failures()

    @rule()
    def pause(self) -> None:
        """What there was no memory for is sent again."""
        self.loop.run(trio.sleep, MEMORY_PAUSE)
        self.loop.settle()

    @rule()
    def lose_cache(self) -> None:
        self.unit.lose_cache()

    @rule()
    def report_loss(self) -> None:
        self.unit.report_loss()
        self.loop.settle()
        self.learn_of_failures()

    def learn_of_failures(self) -> None:
        """After a loss of nobody knows what, all that was never safe may be lost."""
        if self.buffer.ledger.failures != self.failures:
            self.failures = self.buffer.ledger.failures
            for position, numbers in enumerate(self.accepted):
                if max(numbers) > self.durable[position]:
                    self.lost[position] = max(numbers)

    # What always holds.

    @invariant()
    def the_newest_data_are_read(self) -> None:
        if hasattr(self, "unit") and not self.unit.loss_unreported:  # a read would bring the report
            for position, byte in enumerate(self.unit.read(0, SIZE)):
                if self.newest[position] > self.lost[position]:
                    assert byte >= self.newest[position]
                assert byte in self.accepted[position]

    @invariant()
    def what_needs_no_flush_is_safe(self) -> None:
        if hasattr(self, "unit") and not self.buffer.ledger.needs_flush:
            for number, lost, kept in zip(self.newest, self.lost, self.unit.medium, strict=True):
                assert number <= max(lost, kept)

    @invariant()
    def the_books_are_right(self) -> None:
        if hasattr(self, "unit"):
            check_books(self.buffer)
            assert not self.unit.overlaps
            assert "bug" not in str(self.buffer.ledger.failure)

    def teardown(self) -> None:
        try:
            if hasattr(self, "unit"):
                self.finish()
        finally:
            self.loop.close()

    def finish(self) -> None:
        """Nobody hangs, and what was not reported to be lost is safe."""
        self.begin(self._flush)
        for _ in range(2):  # what a pause keeps back as well
            while calls := self.under_way():
                calls[0].answer()
                self.loop.settle()
            self.loop.run(trio.sleep, MEMORY_PAUSE)
            self.loop.settle()
        while calls := self.under_way():
            calls[0].answer()
            self.loop.settle()
        self.learn_of_failures()
        assert not self.unfinished
        for position, number in enumerate(self.newest):
            if number > self.lost[position]:
                assert self.unit.medium[position] >= number


def check_books(buffer: WriteBuffer) -> None:
    """Every extent is in the map and in one book, the sums are right, nothing overlaps."""
    extents = buffer.extents
    every = list(extents)
    assert all(left.end <= right.start for left, right in pairwise(every))
    assert all(len(extent) == sum(map(len, extent.chunks)) for extent in every)
    for state, book in zip(State, extents._books, strict=True):
        assert {extent for extent in every if extent.state is state} == set(book)
    commands = {command.start: command.end for command in buffer._commands}
    assert extents._under_way == commands

    def is_under_way(extent: Extent) -> bool:
        return any(start < extent.end and extent.start < end for start, end in commands.items())

    assert all(is_under_way(extent) == (extent.state is State.BLOCKED) for extent in extents.waiting)
    assert all(is_under_way(extent) for extent in extents.sending)
    assert not any(is_under_way(extent) for extent in extents.written)
    assert extents.unsynchronised == sum(map(len, extents.written)) <= UNSYNCHRONISED
    assert extents.unwritten == sum(map(len, every)) - extents.unsynchronised


TestWriteBuffer = WriteBufferMachine.TestCase
TestWriteBuffer.settings = settings(max_examples=RUNS, stateful_step_count=40)
