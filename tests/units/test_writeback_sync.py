"""Synchronous writes: FUA or SYNCHRONIZE CACHE, the order of the buffer, and who is told of a failure."""

import pytest
import trio
from test_writeback import BAD_BLOCK, GONE, answer, answer_all, begin, write
from trio.testing import wait_all_tasks_blocked

from iscsifs.errors import DataLostError
from iscsifs.units.answers import Unsupported
from support.memory_cache import CachedUnit

REFUSED = Unsupported("INVALID FIELD IN CDB", status=2)


@pytest.fixture
def unit() -> CachedUnit:
    return CachedUnit(64)


def crash(unit: CachedUnit) -> bytes:
    """Return what a loss of power leaves."""
    unit.lose_cache()
    return bytes(unit.medium)


@pytest.mark.parametrize("behind", [False, True])
async def test_with_fua_one_command_is_enough_and_nothing_is_kept(
    unit: CachedUnit, nursery: trio.Nursery, behind: bool
) -> None:
    buffer = unit.open(nursery, fua=True, behind=behind)
    sync = await begin(nursery, buffer.write, 4, b"abcd", True)
    assert unit.fua_log == unit.log == [(4, b"abcd")]
    assert not sync.done
    await answer(unit)
    assert sync.done
    assert sync.failure is None
    assert crash(unit)[4:8] == b"abcd"
    assert not buffer.ledger.needs_flush
    unit.report_loss()
    await wait_all_tasks_blocked()
    assert len(unit.log) == 1  # it is not written again


@pytest.mark.parametrize("behind", [False, True])
async def test_without_fua_the_cache_is_synchronised(
    unit: CachedUnit, nursery: trio.Nursery, behind: bool
) -> None:
    buffer = unit.open(nursery, behind=behind)
    sync = await begin(nursery, buffer.write, 4, b"abcd", True)
    await answer(unit)
    assert not sync.done
    assert unit.log == [(4, b"abcd"), None]
    await answer_all(unit)
    assert sync.done
    assert crash(unit)[4:8] == b"abcd"


async def test_others_are_not_waited_for_nor_written_with_fua(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery, fua=True)
    await write(buffer, 40, b"x")
    await write(buffer, 8, b"n")
    sync = await begin(nursery, buffer.write, 4, b"abcd", True)
    assert unit.fua_log == [(4, b"abcd")]
    unit.writes[[call.start for call in unit.writes].index(4)].answer()
    await wait_all_tasks_blocked()
    assert sync.done
    assert unit.log.count(None) == 0
    assert buffer.ledger.needs_flush  # for the others


async def test_older_data_for_the_same_blocks_arrive_before(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery, fua=True)
    await write(buffer, 4, b"old!")
    sync = await begin(nursery, buffer.write, 6, b"NEW", True)
    assert unit.log == [(4, b"old!")]
    await answer(unit)
    assert unit.log[1:] == unit.fua_log == [(6, b"NEW")]
    await answer(unit)
    assert sync.done
    assert not unit.overlaps
    assert crash(unit)[6:9] == b"NEW"
    unit.report_loss()
    await answer_all(unit)
    assert unit.cache[4:9] == b"olNEW"  # what was written without FUA is written again, and not over it


async def test_synchronous_neighbours_go_into_one_command_with_fua(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery, fua=True, max_commands=1)
    await write(buffer, 40, b"x")
    syncs = [await begin(nursery, buffer.write, start, b"ab", True) for start in (0, 2, 4)]
    await answer(unit)
    assert unit.fua_log == unit.log[1:] == [(0, b"ababab")]
    await answer(unit)
    assert all(sync.done for sync in syncs)


async def test_newer_data_that_take_its_place_have_to_be_safe_as_well(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery, fua=True, max_commands=1)
    await write(buffer, 40, b"x")
    sync = await begin(nursery, buffer.write, 0, b"ab", True)
    await write(buffer, 0, b"YZ")  # before the other was sent, and without O_SYNC
    await answer(unit)
    await answer(unit)
    assert unit.log[-1] is None  # no FUA, so the cache is synchronised
    assert not sync.done
    await answer_all(unit)
    assert sync.done
    assert crash(unit)[:2] == b"YZ"


async def test_a_unit_that_refuses_fua_is_asked_once(
    unit: CachedUnit, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    buffer = unit.open(nursery, fua=True)
    syncs = [await begin(nursery, buffer.write, start, b"abcd", True) for start in (0, 20)]
    await answer(unit, 0, REFUSED)
    await answer(unit, 0, REFUSED)
    await answer_all(unit)
    assert [sync.failure for sync in syncs] == [None, None]
    assert all(sync.done for sync in syncs)
    assert len(unit.fua_log) == 2
    (record,) = caplog.records
    assert "SYNCHRONIZE CACHE follows" in record.getMessage()
    buffer.ledger.unit_says(volatile=True, fua=True)  # it goes on saying so
    sync = await begin(nursery, buffer.write, 8, b"efgh", True)
    await answer_all(unit)
    assert sync.done
    assert len(unit.fua_log) == 2
    assert crash(unit)[:12] == b"abcd\0\0\0\0efgh"
    assert buffer.ledger.failures == 0


async def test_newer_data_over_a_write_that_was_refused_for_its_fua_are_waited_for(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery, fua=True)
    sync = await begin(nursery, buffer.write, 0, b"abcd", True)
    await write(buffer, 0, b"ABCD")
    await answer(unit, 0, REFUSED)
    assert unit.log[1:] == [(0, b"ABCD")]
    assert not sync.done
    await answer_all(unit)
    assert sync.done
    assert crash(unit)[:4] == b"ABCD"


@pytest.mark.parametrize("fua", [False, True])
async def test_a_failure_is_told_to_the_writer_and_to_nobody_else(
    unit: CachedUnit, nursery: trio.Nursery, fua: bool
) -> None:
    buffer = unit.open(nursery, fua=fua)
    sync = await begin(nursery, buffer.write, 4, b"abcd", True)
    await answer(unit, 0, BAD_BLOCK)
    assert sync.failure is BAD_BLOCK
    assert buffer.ledger.failures == 0


async def test_a_flush_that_fails_is_told_to_the_writer(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery)
    sync = await begin(nursery, buffer.write, 4, b"abcd", True)
    await answer(unit)
    unit.synchronisings[0].answer(GONE)
    await wait_all_tasks_blocked()
    assert sync.failure is GONE
    assert buffer.ledger.needs_flush
    await answer(unit, 0, BAD_BLOCK)  # it is tried again, as the target had it
    assert buffer.ledger.failures == 1


async def test_what_is_lost_while_the_cache_is_synchronised_is_told_to_the_writer(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    sync = await begin(nursery, buffer.write, 4, b"abcd", True)
    await answer(unit)
    crash(unit)
    unit.report_loss()
    await wait_all_tasks_blocked()
    await answer(unit, 0, BAD_BLOCK)  # nobody waits for this command, but for SYNCHRONIZE CACHE
    await answer_all(unit)
    assert sync.failure is BAD_BLOCK


async def test_a_synchronous_write_that_fails_over_a_write_of_another_is_a_loss_too(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery, max_commands=1)
    await write(buffer, 40, b"x")
    await write(buffer, 4, b"abcd")
    sync = await begin(nursery, buffer.write, 4, b"ABCD", True)
    await answer(unit)
    await answer(unit, 0, BAD_BLOCK)
    assert sync.failure is BAD_BLOCK
    assert buffer.ledger.failures == 1


async def test_unsynchronised_data_that_it_has_replaced_are_lost_with_it(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery)
    await write(buffer, 4, b"abcd")
    await answer(unit)
    sync = await begin(nursery, buffer.write, 4, b"ABCD", True)
    await answer(unit)
    crash(unit)
    unit.report_loss()
    await wait_all_tasks_blocked()
    await answer(unit, 0, BAD_BLOCK)
    assert buffer.ledger.failures == 1
    await answer_all(unit)
    assert sync.failure is not None


@pytest.mark.parametrize("fua", [False, True])
async def test_a_cache_that_is_lost_meanwhile(unit: CachedUnit, nursery: trio.Nursery, fua: bool) -> None:
    buffer = unit.open(nursery, fua=fua)
    sync = await begin(nursery, buffer.write, 4, b"abcd", True)
    unit.writes[0].carry_out()
    crash(unit)
    unit.report_loss()
    await answer(unit)
    assert sync.done is fua
    await answer_all(unit)
    assert sync.done
    assert sync.failure is None
    assert unit.log.count((4, b"abcd")) == (1 if fua else 2)
    assert crash(unit)[4:8] == b"abcd"


async def test_a_cache_that_is_lost_with_more_than_is_kept_here(
    unit: CachedUnit, nursery: trio.Nursery
) -> None:
    buffer = unit.open(nursery, max_unsynchronised=0)
    sync = await begin(nursery, buffer.write, 4, b"abcd", True)
    await answer(unit)
    crash(unit)
    unit.report_loss()
    await answer_all(unit)
    assert isinstance(sync.failure, DataLostError)


async def test_a_target_that_always_loses_its_cache_ends_it(unit: CachedUnit, nursery: trio.Nursery) -> None:
    buffer = unit.open(nursery)
    sync = await begin(nursery, buffer.write, 4, b"abcd", True)
    for _ in range(100):
        await wait_all_tasks_blocked()
        for call in [*unit.writes, *unit.synchronisings]:
            crash(unit)
            call.answer()
    assert sync.done
    assert isinstance(sync.failure, DataLostError)
