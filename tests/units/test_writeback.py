"""Write-behind: what is sent when, what waits for what, and who is told when data are lost."""

import sys
from collections.abc import Awaitable, Callable
from types import FrameType

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from iscsifs.errors import DataLostError, IscsifsError, MediumError, TransportError, UnitError
from iscsifs.units.extents import Extent, compact
from iscsifs.units.writeback import Command, Outcome, WriteBuffer
from support.memory_cache import CachedUnit

BAD_BLOCK = MediumError("a bad block", status=2)
GONE = TransportError("gone")


class Waiting:
    """A call that may have to wait: `done`, and the `failure` that it ended with."""

    def __init__(self) -> None:
        self.done = False
        self.failure: IscsifsError | None = None
        self.scope = trio.CancelScope()

    async def run(self, function: Callable[..., Awaitable[None]], *args: object) -> None:
        with self.scope:
            try:
                await function(*args)
            except IscsifsError as error:
                self.failure = error
            self.done = True


async def begin(nursery: trio.Nursery, function: Callable[..., Awaitable[None]], *args: object) -> Waiting:
    """Call *function*, up to where it waits."""
    waiting = Waiting()
    nursery.start_soon(waiting.run, function, *args)
    await wait_all_tasks_blocked()
    return waiting


@pytest.fixture
def unit() -> CachedUnit:
    return CachedUnit(64)


async def answer(unit: CachedUnit, index: int = 0, failure: IscsifsError | None = None) -> None:
    """Answer the WRITE that came as number *index* of those under way."""
    unit.writes[index].answer(failure)
    await wait_all_tasks_blocked()


async def answer_all(unit: CachedUnit) -> None:
    """Answer everything, until nothing more comes."""
    await wait_all_tasks_blocked()
    while calls := [*unit.writes, *unit.synchronisings]:
        calls[0].answer()
        await wait_all_tasks_blocked()


async def write(buffer: WriteBuffer, start: int, data: bytes) -> None:
    """Write behind, and let go what can go."""
    await buffer.write(start, data)
    await wait_all_tasks_blocked()


# What is sent, and when.


async def test_a_write_is_sent_at_once(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 4, b"abcd")
    assert unit.log == [(4, b"abcd")]


async def test_neighbours_go_into_one_command_while_the_line_is_busy(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 40, b"x")
    for start, data in (3, b"d"), (2, b"c"), (4, b"e"), (1, b"b"):
        await write(buffer, start, data)
    assert unit.log == [(40, b"x")]  # what grows is held back
    await answer(unit)
    assert unit.log[1:] == [(1, b"bcde")]


async def test_a_command_is_not_longer_than_the_longest(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery, longest=4)
    await write(buffer, 40, b"x")
    await write(buffer, 0, b"abc")
    await write(buffer, 3, b"def")
    assert unit.log[1:] == [(0, b"abc")]  # nothing more can join it
    await write(buffer, 6, b"g")
    assert unit.log[2:] == [(3, b"defg")]


async def test_what_grows_is_not_held_back_once_somebody_waits_for_it(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 40, b"x")
    await write(buffer, 0, b"a")
    assert unit.log == [(40, b"x")]
    await begin(nursery, buffer.drain)
    assert unit.log == [(40, b"x"), (0, b"a")]


async def test_data_that_there_is_no_memory_to_join_are_sent_later(
    unit: CachedUnit,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_short = True

    def command(extent: Extent, resets: int, fua: bool) -> Command:
        if is_short and len(extent.chunks) > 1:
            raise MemoryError
        return Command(extent, resets, fua)

    monkeypatch.setattr("iscsifs.units.writeback.Command", command)
    buffer = unit.open(nursery)
    for start, data in (40, b"x"), (2, b"c"), (1, b"b"):
        await write(buffer, start, data)
    await answer(unit)
    flushed = await begin(nursery, buffer.flush)
    await trio.sleep(10)
    assert unit.log == [(40, b"x")]
    is_short = False
    await trio.sleep(1)
    assert unit.log[1:] == [(1, b"bc")]
    await answer_all(unit)
    assert flushed.done
    assert flushed.failure is None
    assert unit.medium[1:3] == b"bc"


async def test_without_memory_to_copy_a_small_rest_nothing_is_lost(
    unit: CachedUnit, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = unit.open(nursery, max_commands=1)
    await write(buffer, 40, b"x")
    await write(buffer, 0, b"abcdefgh")

    def no_memory(_: memoryview) -> bytes:
        raise MemoryError

    monkeypatch.setattr("iscsifs.units.extents.bytes", no_memory, raising=False)
    await write(buffer, 2, b"CDEF")
    assert unit.read(0, 8) == b"abCDEFgh"
    flushed = await begin(nursery, buffer.flush)
    await answer_all(unit)
    assert flushed.done
    assert (buffer.extents.unwritten, buffer.ledger.failures) == (0, 0)
    assert unit.medium[:8] == b"abCDEFgh"


async def test_several_commands_are_under_way(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery, max_commands=3)
    for start in range(0, 50, 10):
        await write(buffer, start, b"a")
    assert [call.start for call in unit.writes] == [0, 10, 20]
    await answer(unit, 1)
    assert [call.start for call in unit.writes] == [0, 20, 30]


async def test_overlapping_writes_arrive_one_after_the_other(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery, longest=4)
    await write(buffer, 0, b"aaaa")
    await write(buffer, 2, b"bbbb")
    await write(buffer, 4, b"cccc")
    await write(buffer, 20, b"dddd")
    # Of "bbbb" the second half is replaced, and the first waits for "aaaa".
    assert [(call.start, call.data) for call in unit.writes] == [(0, b"aaaa"), (4, b"cccc"), (20, b"dddd")]
    await answer_all(unit)
    assert unit.cache[:8] == b"aabbcccc"
    assert not unit.overlaps


async def test_what_waits_for_older_data_waits_for_all_of_them(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"aa")
    await write(buffer, 20, b"-")
    await write(buffer, 2, b"bb")
    await write(buffer, 30, b"-")
    await write(buffer, 1, b"cc")  # over both
    starts = [call.start for call in unit.writes]
    await answer(unit, starts.index(0))
    assert (1, b"cc") not in unit.log
    await answer(unit, [call.start for call in unit.writes].index(2))
    await answer_all(unit)
    assert unit.cache[:4] == b"accb"
    assert not unit.overlaps


# What is read.


async def test_a_flush_waits_for_what_takes_the_place_of_a_failed_write(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    flush = await begin(nursery, buffer.flush)
    await write(buffer, 0, b"b")
    await answer(unit, failure=BAD_BLOCK)
    assert not unit.synchronisings
    await answer_all(unit)
    assert flush.done
    assert flush.failure is None
    assert buffer.ledger.failures == 0
    assert unit.medium[:1] == b"b"


async def test_a_flush_waits_for_what_takes_the_place_of_a_part_of_a_failed_write(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    """What is joined in it is written again one by one, but for what has been overwritten."""
    buffer = unit.open(nursery)
    await write(buffer, 40, b"x")
    await write(buffer, 0, b"a")
    await write(buffer, 1, b"b")
    flush = await begin(nursery, buffer.flush)
    await write(buffer, 0, b"cd")
    await answer(unit, 0)
    await answer(unit, 0, BAD_BLOCK)
    assert unit.writes[0].data == b"cd"
    assert not unit.synchronisings
    await answer_all(unit)
    assert flush.done
    assert unit.medium[:2] == b"cd"


async def test_a_flush_waits_for_what_takes_the_place_of_data_that_may_have_been_lost(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    unit.writes[0].carry_out()
    unit.lose_cache()
    unit.report_loss()
    flush = await begin(nursery, buffer.flush)
    await write(buffer, 0, b"b")
    await answer(unit)
    assert unit.writes[0].data == b"b"
    assert not unit.synchronisings
    await answer_all(unit)
    assert flush.done
    assert unit.medium[:1] == b"b"


async def test_newer_data_are_seen_until_they_are_written(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"aaaa")
    await write(buffer, 2, b"bb")
    assert [(start, bytes(data)) for start, data in buffer.extents.newer(1, 3)] == [(1, b"a"), (2, b"b")]
    assert unit.read(0, 6) == b"aabb\0\0"
    await answer_all(unit)
    assert buffer.extents.newer(0, 64) == []
    assert unit.cache[:4] == b"aabb"


async def test_data_of_a_command_that_was_overwritten_count_for_the_rest(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"abcdef")
    await write(buffer, 2, b"XY")
    await answer(unit)  # abcdef is there, XY is not
    assert [(start, bytes(data)) for start, data in buffer.extents.newer(0, 64)] == [(2, b"XY")]
    assert unit.read(0, 6) == b"abXYef"


# Flushing.


async def test_a_flush_waits_for_what_came_before_and_then_synchronises(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    flush = await begin(nursery, buffer.flush)
    await write(buffer, 10, b"b")
    assert unit.log == [(0, b"a"), (10, b"b")]
    await answer(unit, 0)
    assert unit.log[2:] == [None]  # it does not wait for b
    unit.synchronisings[0].answer()
    await wait_all_tasks_blocked()
    assert flush.done
    assert unit.medium[:1] == b"a"


async def test_a_flush_waits_for_the_data_that_took_the_place_of_others(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery, max_commands=1)
    await write(buffer, 20, b"-")
    await write(buffer, 0, b"aaa")
    flush = await begin(nursery, buffer.flush)
    await write(buffer, 1, b"b")
    await answer(unit)
    assert not unit.synchronisings
    await answer_all(unit)
    assert flush.done
    assert unit.medium[:3] == b"aba"


async def test_what_is_written_while_the_cache_is_synchronised_is_kept(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    await answer(unit)
    flush = await begin(nursery, buffer.flush)
    unit.synchronisings[0].carry_out()
    await write(buffer, 10, b"b")
    await answer(unit)
    unit.synchronisings[0].answer()
    await wait_all_tasks_blocked()
    assert flush.done
    unit.lose_cache()
    unit.report_loss()
    await answer_all(unit)
    assert unit.log[-1] == (10, b"b")
    assert unit.cache[:11] == b"a" + bytes(9) + b"b"


@pytest.mark.parametrize("volatile", [True, False])
async def test_a_flush_is_needed_from_a_write_to_the_flush_that_succeeds(
    nursery: trio.Nursery, volatile: bool
) -> None:
    unit = CachedUnit(64, volatile=volatile)
    buffer = unit.open(nursery)
    assert not buffer.ledger.needs_flush
    await write(buffer, 0, b"abcd")
    assert (buffer.ledger.needs_flush, buffer.extents.unwritten) == (True, 4)
    await answer(unit)
    assert (buffer.ledger.needs_flush, buffer.extents.unwritten) == (True, 0)
    await begin(nursery, buffer.flush)
    assert buffer.ledger.needs_flush
    unit.synchronisings[0].answer(GONE)
    await answer_all(unit)  # what was in a volatile cache is written again
    assert buffer.ledger.needs_flush
    await begin(nursery, buffer.flush)
    await answer_all(unit)
    assert not buffer.ledger.needs_flush


async def test_a_flush_is_needed_for_what_was_written_during_the_last_one(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    await answer(unit)
    await begin(nursery, buffer.flush)
    await write(buffer, 0, b"b")
    await answer(unit)
    await answer_all(unit)
    assert buffer.ledger.needs_flush


async def test_a_flush_is_needed_after_one_during_which_the_cache_was_lost(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    await answer(unit)
    flush = await begin(nursery, buffer.flush)
    unit.lose_cache()
    unit.report_loss()
    unit.synchronisings[0].answer()
    await wait_all_tasks_blocked()
    assert buffer.ledger.needs_flush
    await answer_all(unit)
    assert flush.done
    assert not buffer.ledger.needs_flush


async def test_a_flush_is_needed_after_a_write_that_failed(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery, behind=False)
    await begin(nursery, buffer.write, 0, b"abcd")
    await answer(unit, failure=GONE)  # some of it may have arrived
    assert buffer.ledger.needs_flush


async def test_an_empty_flush_synchronises_all_the_same(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery)
    flush = await begin(nursery, buffer.flush)
    await answer_all(unit)
    assert flush.done
    assert unit.log == [None]


# Losing the cache.


async def test_what_was_not_synchronised_is_written_again(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    await answer(unit)
    unit.lose_cache()
    assert unit.read(0, 1) == b"\0"
    unit.report_loss()
    assert unit.read(0, 1) == b"a"
    await answer_all(unit)
    assert unit.cache[:1] == b"a"
    assert buffer.ledger.failures == 0


async def test_what_was_synchronised_is_not(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    await begin(nursery, buffer.flush)
    await answer_all(unit)
    unit.lose_cache()
    unit.report_loss()
    await wait_all_tasks_blocked()
    assert unit.log == [(0, b"a"), None]


@pytest.mark.parametrize("when", ["draining", "synchronising"])
async def test_a_flush_begins_again_when_the_cache_was_lost(
    unit: CachedUnit, nursery: trio.Nursery, when: str
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    await answer(unit)
    await write(buffer, 10, b"b")
    flush = await begin(nursery, buffer.flush)
    if when == "synchronising":
        await answer(unit)
    unit.lose_cache()
    await answer_all(unit)
    assert flush.done
    assert flush.failure is None
    assert unit.medium[:11] == b"a" + bytes(9) + b"b"


async def test_a_write_that_was_under_way_when_the_cache_was_lost_is_repeated(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    unit.writes[0].carry_out()
    unit.lose_cache()
    unit.report_loss()  # with some other command; the answer to the write is still to come
    flush = await begin(nursery, buffer.flush)
    await answer_all(unit)
    assert flush.done
    assert unit.medium[:1] == b"a"


async def test_a_unit_that_always_loses_its_cache_is_an_error(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    flush = await begin(nursery, buffer.flush)
    while not flush.done:
        unit.lose_cache()
        unit.report_loss()
        await wait_all_tasks_blocked()
        for call in [*unit.writes, *unit.synchronisings]:
            call.answer()
        await wait_all_tasks_blocked()
    assert isinstance(flush.failure, DataLostError)


async def test_a_write_under_way_whenever_the_cache_is_lost_is_lost_in_the_end(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    """What was carried out before the loss has the same answer: none says that the data are there."""
    buffer = unit.open(nursery, behind=False)
    writing = await begin(nursery, buffer.write, 0, b"a")
    while unit.writes:
        unit.writes[0].carry_out()
        unit.lose_cache()
        unit.report_loss()
        await answer(unit)
    assert isinstance(writing.failure, DataLostError)
    assert len(unit.log) > 1


async def test_a_write_repeated_now_and_then_is_not_lost(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    for _ in range(20):
        unit.writes[0].carry_out()
        unit.lose_cache()
        unit.report_loss()
        await answer_all(unit)
        unit.lose_cache()
        unit.report_loss()
        await wait_all_tasks_blocked()
    await answer_all(unit)
    assert buffer.ledger.failures == 0
    assert unit.cache[:1] == b"a"


async def test_a_unit_without_a_volatile_cache_has_nothing_to_lose(nursery: trio.Nursery) -> None:
    unit = CachedUnit(64, volatile=False)
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    await answer(unit)
    unit.lose_cache()
    unit.report_loss()
    await wait_all_tasks_blocked()
    assert unit.log == [(0, b"a")]


async def test_without_a_volatile_cache_an_answer_is_true_whatever_was_lost(nursery: trio.Nursery) -> None:
    unit = CachedUnit(64, volatile=False)
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    unit.lose_cache()
    unit.report_loss()
    flush = await begin(nursery, buffer.flush)
    await write(buffer, 0, b"b")
    await answer(unit)
    assert unit.synchronisings  # b came later
    await answer_all(unit)
    assert flush.done


# Failures.


async def test_a_failed_write_counts_as_one_failure(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    drain = await begin(nursery, buffer.drain)
    await answer(unit, 0, GONE)
    assert (buffer.ledger.failures, buffer.ledger.failure) == (1, GONE)
    assert drain.done
    assert drain.failure is None
    assert unit.read(0, 1) == b"\0"


async def test_a_bad_block_costs_only_the_write_that_touches_it(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 40, b"x")
    for start, data in (0, b"a"), (1, b"b"), (2, b"c"):
        await write(buffer, start, data)
    flush = await begin(nursery, buffer.flush)
    await answer(unit, 1, BAD_BLOCK)  # abc
    assert buffer.ledger.failures == 0
    assert sorted(call.data or b"" for call in unit.writes) == [b"a", b"b", b"c", b"x"]
    await answer(unit, [call.data for call in unit.writes].index(b"b"), BAD_BLOCK)
    assert buffer.ledger.failures == 1
    await answer_all(unit)
    assert flush.done
    assert unit.medium[:3] == b"a\0c"


async def test_data_that_were_overwritten_in_the_meantime_are_no_loss(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    await write(buffer, 0, b"b")
    await answer(unit, 0, GONE)
    await answer_all(unit)
    assert buffer.ledger.failures == 0
    assert unit.cache[:1] == b"b"


async def test_after_a_failed_synchronisation_everything_is_written_again(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    await answer(unit)
    first, other = await begin(nursery, buffer.flush), await begin(nursery, buffer.flush)
    unit.synchronisings[0].answer(BAD_BLOCK)
    await answer_all(unit)
    assert {first.failure, other.failure} == {BAD_BLOCK, None}  # each is told of its own
    assert unit.log == [(0, b"a"), None, None, (0, b"a"), None]
    assert buffer.ledger.failures == 0  # nothing is lost
    assert unit.medium[:1] == b"a"


# Without write-behind.


async def test_without_write_behind_a_write_waits_for_the_unit(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery, behind=False)
    writing = await begin(nursery, buffer.write, 0, b"a")
    assert not writing.done
    await answer(unit)
    assert writing.done
    unit.lose_cache()
    unit.report_loss()
    await answer_all(unit)
    assert unit.cache[:1] == b"a"


async def test_without_write_behind_a_write_gets_its_failure(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery, behind=False)
    writing, other = await begin(nursery, buffer.write, 0, b"a"), await begin(nursery, buffer.write, 10, b"b")
    index = [call.start for call in unit.writes].index(0)
    await answer(unit, index, GONE)
    assert writing.failure is GONE
    assert buffer.ledger.failures == 0
    await answer_all(unit)
    assert other.failure is None


async def test_what_failed_with_a_write_of_somebody_else_is_reported_as_well(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    """A write that had been acknowledged is written again, together with one that is waited for."""
    buffer = unit.open(nursery, behind=False, max_commands=1)
    await begin(nursery, buffer.write, 0, b"a")
    await answer_all(unit)
    await begin(nursery, buffer.write, 20, b"x")
    unit.lose_cache()
    unit.report_loss()
    writing = await begin(nursery, buffer.write, 1, b"b")
    await answer(unit)
    assert unit.writes[0].data == b"ab"
    await answer(unit, 0, GONE)
    assert writing.failure is GONE
    assert buffer.ledger.failures == 1


async def test_a_failed_write_takes_the_place_of_data_that_may_still_be_lost(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    """Who wrote first, and was told that it succeeded, has to hear of it when the cache is lost."""
    buffer = unit.open(nursery, behind=False)
    await begin(nursery, buffer.write, 0, b"a")
    await answer(unit)
    await begin(nursery, buffer.write, 0, b"b")
    await answer(unit, 0, GONE)
    assert buffer.ledger.failures == 0  # a is in the cache of the unit
    unit.lose_cache()
    unit.report_loss()
    assert isinstance(buffer.ledger.failure, DataLostError)


async def test_a_failed_write_takes_the_place_of_data_that_were_to_be_written_again(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery, behind=False, max_commands=1)
    await begin(nursery, buffer.write, 0, b"a")
    await answer(unit)
    await begin(nursery, buffer.write, 20, b"-")
    unit.lose_cache()
    unit.report_loss()
    await begin(nursery, buffer.write, 0, b"b")
    await answer(unit)
    await answer(unit, 0, GONE)
    assert buffer.ledger.failures == 1


async def test_a_failed_write_takes_the_place_of_data_that_were_lost_meanwhile(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery, behind=False)
    await begin(nursery, buffer.write, 0, b"a")
    await answer(unit)
    await begin(nursery, buffer.write, 0, b"b")
    unit.lose_cache()
    unit.report_loss()
    assert buffer.ledger.failures == 0  # b is on its way into the place of a
    await answer(unit, 0, GONE)
    assert buffer.ledger.failures == 1


@pytest.mark.parametrize("end", [GONE, None])
async def test_a_failed_write_takes_the_place_of_data_that_did_not_come_again(
    unit: CachedUnit, nursery: trio.Nursery, end: IscsifsError | None
) -> None:
    """They are written again, and that fails, or the cache is lost again."""
    buffer = unit.open(nursery, behind=False)
    await begin(nursery, buffer.write, 0, b"a")
    await answer(unit)
    unit.lose_cache()
    unit.report_loss()
    await wait_all_tasks_blocked()
    if end is None:
        unit.writes[0].carry_out()
        unit.lose_cache()
        unit.report_loss()
    writing = await begin(nursery, buffer.write, 0, b"b")
    await answer(unit, 0, end)
    assert buffer.ledger.failures == 0
    await answer(unit, 0, GONE)
    assert writing.failure is GONE
    assert buffer.ledger.failures == 1


# Bounds.


async def test_writers_wait_while_too_much_is_unwritten(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery, max_unwritten=4)
    await write(buffer, 0, b"aaaa")
    writers = [await begin(nursery, buffer.write, start, b"bb") for start in (10, 20, 30, 40)]
    assert not any(writer.done for writer in writers)
    await answer(unit)
    assert sum(writer.done for writer in writers) == 2
    await answer_all(unit)
    assert all(writer.done for writer in writers)


async def test_a_writer_that_gives_up_waiting_leaves_its_place_to_others(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery, max_unwritten=1)
    await write(buffer, 0, b"a")
    first, second = await begin(nursery, buffer.write, 10, b"b"), await begin(nursery, buffer.write, 20, b"c")
    unit.writes[0].answer()
    first.scope.cancel()
    await answer_all(unit)
    assert second.done
    assert (20, b"c") in unit.log


async def test_the_cache_is_synchronised_before_too_much_is_unsynchronised(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery, max_unsynchronised=8)
    await write(buffer, 0, b"aaaa")
    await answer(unit)
    assert unit.log == [(0, b"aaaa")]
    await write(buffer, 4, b"a")
    await answer(unit)
    assert unit.log[2:] == [None]
    await answer_all(unit)
    unit.lose_cache()
    unit.report_loss()
    await wait_all_tasks_blocked()
    assert unit.log[3:] == []


async def test_what_had_to_be_let_go_is_reported_when_the_cache_is_lost(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery, max_unsynchronised=8)
    for start in range(0, 12, 4):
        await write(buffer, start, b"aaaa")
        await answer(unit)
    assert len(unit.synchronisings) == 1  # which does not end
    unit.report_loss()
    assert buffer.ledger.failures == 0
    unit.lose_cache()
    unit.report_loss()
    assert buffer.ledger.failures == 1
    assert isinstance(buffer.ledger.failure, DataLostError)
    unit.lose_cache()
    unit.report_loss()
    assert buffer.ledger.failures == 1  # once


async def test_what_had_to_be_let_go_is_safe_after_the_next_flush(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery, max_unsynchronised=8)
    for start in range(0, 12, 4):
        await write(buffer, start, b"aaaa")
        await answer(unit)
    flush = await begin(nursery, buffer.flush)
    await answer_all(unit)
    assert flush.done
    unit.lose_cache()
    unit.report_loss()
    assert buffer.ledger.failures == 0


async def test_an_unasked_synchronisation_that_fails_is_not_repeated_for_ever(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery, max_unsynchronised=8)
    await write(buffer, 0, b"aaaaa")
    await answer(unit)
    unit.synchronisings[0].answer(BAD_BLOCK)
    await answer_all(unit)
    assert unit.log == [(0, b"aaaaa"), None, (0, b"aaaaa")]
    assert buffer.ledger.failures == 0


async def test_while_memory_is_short_what_is_written_is_synchronised_unasked(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    buffer.relieve()
    await write(buffer, 0, b"aa")
    buffer.relieve()
    assert unit.log == [(0, b"aa")]  # nothing to synchronise until then
    await answer(unit)
    for _ in range(3):
        buffer.relieve()
        await wait_all_tasks_blocked()
    assert unit.log[1:] == [None]
    unit.lose_cache()
    unit.report_loss()
    await answer_all(unit)
    assert unit.log[2:] == [(0, b"aa")]  # it was kept meanwhile
    buffer.relieve()
    await answer_all(unit)
    unit.lose_cache()
    unit.report_loss()
    await wait_all_tasks_blocked()
    assert unit.log[3:] == [None]  # and is safe now
    assert buffer.ledger.failures == 0


async def test_while_memory_is_short_what_cannot_be_synchronised_is_let_go(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"aa")
    await answer(unit)
    buffer.relieve()
    await wait_all_tasks_blocked()
    unit.synchronisings[0].answer(BAD_BLOCK)
    await answer_all(unit)
    assert unit.log == [(0, b"aa"), None, (0, b"aa")]
    buffer.relieve()
    await wait_all_tasks_blocked()
    assert unit.log[3:] == []
    unit.lose_cache()
    unit.report_loss()
    assert buffer.ledger.failures == 1
    assert isinstance(buffer.ledger.failure, DataLostError)


# Giving up.


async def test_many_losses_for_one_reason_are_one_line_in_the_log_up_to_the_next_flush(
    unit: CachedUnit, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    buffer = unit.open(nursery)
    for lines in 1, 2:
        for start in 0, 20, 40:
            await write(buffer, start, b"a")
        for _ in range(3):
            await answer(unit, failure=GONE)
        assert buffer.ledger.failures == 3 * lines
        assert [record.getMessage() for record in caplog.records] == [
            "acknowledged writes are lost: gone"
        ] * lines
        await begin(nursery, buffer.flush)
        await answer_all(unit)


async def test_giving_up_wakes_everybody(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery, max_unwritten=3, max_commands=1)
    await write(buffer, 0, b"a")
    await write(buffer, 10, b"bb")
    drain, flush = await begin(nursery, buffer.drain), await begin(nursery, buffer.flush)
    writer = await begin(nursery, buffer.write, 20, b"c")
    buffer.give_up(UnitError("it is another unit"))
    await answer_all(unit)
    assert drain.done
    assert flush.done
    assert writer.done
    assert (10, b"bb") not in unit.log
    assert buffer.ledger.failures == 1


async def test_giving_up_fails_who_waits_for_a_write(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery, behind=False, max_commands=1)
    await begin(nursery, buffer.write, 0, b"a")
    writing = await begin(nursery, buffer.write, 10, b"b")
    failure = UnitError("it is another unit")
    buffer.give_up(failure)
    await wait_all_tasks_blocked()
    assert writing.failure is failure
    await answer_all(unit)
    assert writing.done


async def test_giving_up_what_was_to_take_the_place_of_acknowledged_data_is_a_loss(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    """They are still in the cache of the unit, but not here any more to be written again."""
    buffer = unit.open(nursery, behind=False, max_commands=1)
    await begin(nursery, buffer.write, 0, b"a")
    await answer(unit)
    await begin(nursery, buffer.write, 20, b"x")
    await begin(nursery, buffer.write, 0, b"b")
    buffer.give_up(UnitError("it is another unit"))
    assert buffer.ledger.failures == 1


@pytest.mark.parametrize("end", [WriteBuffer.give_up, WriteBuffer.disown])
async def test_what_is_under_way_when_its_unit_is_gone_is_lost_at_once_and_once(
    unit: CachedUnit, nursery: trio.Nursery, end: Callable[[WriteBuffer, IscsifsError], None]
) -> None:
    """An fsync that waits fails at the same moment, and has to have told of it."""
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    await answer(unit)
    buffer.lost_cache()
    flush = await begin(nursery, buffer.flush)
    assert unit.log == [(0, b"a"), (0, b"a")]
    gone = UnitError("it is another unit")
    end(buffer, gone)
    assert buffer.ledger.failures == 1
    assert buffer.ledger.failure is gone
    await answer(unit, failure=gone)
    await answer_all(unit)
    assert flush.done
    assert buffer.ledger.failures == 1


@pytest.mark.parametrize("failure", [None, BAD_BLOCK, GONE], ids=str)
async def test_what_is_disowned_while_it_is_under_way_is_lost_whatever_it_is_answered_with(
    unit: CachedUnit, nursery: trio.Nursery, failure: IscsifsError | None
) -> None:
    """Another unit may have answered it: nothing of it is sent again."""
    buffer = unit.open(nursery, max_commands=1)
    await write(buffer, 0, b"a")
    await write(buffer, 10, b"b")
    await write(buffer, 11, b"c")
    await answer(unit)  # "bc", joined, are under way then
    await write(buffer, 20, b"d")
    drain = await begin(nursery, buffer.drain)
    disowned = DataLostError("it may be another unit")
    buffer.disown(disowned)
    failures = buffer.ledger.failures
    assert failures
    await answer(unit, failure=failure)
    assert drain.done
    assert buffer.ledger.failure is disowned
    assert buffer.ledger.failures == failures  # all of it was told of at once
    assert unit.log == [(0, b"a"), (10, b"bc")]
    assert buffer.extents.unwritten == 0
    await write(buffer, 10, b"n")  # what comes now is for the unit that is there now
    await answer_all(unit)
    assert unit.log[-1] == (10, b"n")


async def test_who_waits_for_room_writes_nothing_of_before(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery, max_unwritten=2, max_commands=1)
    await write(buffer, 0, b"aa")
    writers = [await begin(nursery, buffer.write, start, b"w") for start in (10, 20, 30)]
    disowned = DataLostError("it may be another unit")
    buffer.disown(disowned)
    await answer_all(unit)
    assert [writer.failure for writer in writers] == [disowned] * 3
    assert unit.log == [(0, b"aa")]


async def test_what_was_let_go_unsynchronised_is_lost_as_well_when_it_is_disowned(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery, max_unsynchronised=0)
    await write(buffer, 0, b"a")
    await answer(unit)
    unit.synchronisings[0].answer(GONE)
    await wait_all_tasks_blocked()
    await answer_all(unit)
    await write(buffer, 1, b"b")
    await answer(unit)
    failures = buffer.ledger.failures
    buffer.disown(DataLostError("it may be another unit"))
    assert buffer.ledger.failures > failures


async def test_nobody_waits_for_a_buffer_whose_nursery_was_cancelled(unit: CachedUnit) -> None:
    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as nursery:
            buffer = unit.open(nursery, max_commands=1)
            await write(buffer, 0, b"a")
            await write(buffer, 10, b"b")
            drain = await begin(outer, buffer.drain)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert drain.done
    assert buffer.ledger.failures >= 1


async def test_a_bug_in_a_write_is_a_failure_and_not_the_end(nursery: trio.Nursery) -> None:
    class Broken(CachedUnit):
        def send_write(
            self, start: int, data: memoryview, fua: bool, on_end: Callable[[Outcome], None]
        ) -> None:
            raise ZeroDivisionError

    buffer = Broken(64, automatic=True).open(nursery)
    await buffer.write(0, b"a")
    await buffer.flush()
    assert buffer.ledger.failures == 1


async def test_a_waiter_that_is_cancelled_harms_nobody(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"a")
    first, second = await begin(nursery, buffer.flush), await begin(nursery, buffer.flush)
    first.scope.cancel()
    await answer_all(unit)
    assert not first.done
    assert second.done


async def test_data_that_nobody_wants_any_more_are_forgotten(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"abcdef")
    await answer(unit)
    buffer.extents.forget(2, 4)
    unit.lose_cache()
    unit.report_loss()
    await answer_all(unit)
    assert unit.cache[:6] == b"ab\0\0ef"


# What it costs.


def test_a_small_part_does_not_keep_a_large_buffer_alive() -> None:
    whole = memoryview(bytes(1000))
    assert compact(whole[990:]).obj is not whole.obj
    assert compact(whole[10:]).obj is whole.obj


async def steps(function: Callable[[], Awaitable[None]]) -> int:
    """Count the functions that are called while *function* runs."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        await function()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("distance", [1, 2], ids=["sequential", "scattered"])
async def test_the_cost_does_not_grow_faster_than_the_number_of_writes(distance: int) -> None:
    async def use(count: int) -> int:
        unit = CachedUnit(2 * count, automatic=True)

        async def all_of_it() -> None:
            async with trio.open_nursery() as nursery:
                buffer = unit.open(nursery, longest=64)
                for position in range(count):
                    await buffer.write(position * distance, b"a")
                for position in range(0, count * distance, 16):
                    buffer.extents.newer(position, position + 4)
                for position in range(0, count, 4):
                    await buffer.write(position * distance, b"b")
                await buffer.drain()
                buffer.lost_cache()
                await buffer.flush()

        return await steps(all_of_it)

    few, many = await use(500), await use(2000)
    assert many < 5 * few


async def test_without_memory_for_a_task_the_cache_is_synchronised_another_time(
    unit: CachedUnit, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 0, b"abcd")
    await answer(unit)

    def no_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(trio.Nursery, "start_soon", no_memory)
        with pytest.raises(MemoryError):
            buffer.relieve()
    buffer.relieve()
    await answer_all(unit)
    assert unit.medium[:4] == b"abcd"
