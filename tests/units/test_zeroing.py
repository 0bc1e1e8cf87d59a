"""How holes are zeroed: by which commands, in which pieces, and what becomes of them when that fails."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from iscsifs.errors import IscsifsError, MediumError, UnitError, WriteProtectedError
from iscsifs.scsi.cdb import OperationCode, parse_write_same
from iscsifs.scsi.vpd import Provisioning
from iscsifs.target.disk import Disk
from iscsifs.target.unit import (
    INVALID_FIELD_IN_CDB,
    INVALID_OPERATION_CODE,
    WRITE_CODES,
    WRITE_ERROR,
    WRITE_PROTECTED,
    WRITE_SAME_CODES,
    Fault,
)
from iscsifs.units import zeroing
from support.memory_san import San

MIB = 1 << 20
BLOCK = 512
SIZE = 8 * MIB
OLD = b"old." * (SIZE // 4)

Open = Callable[..., Awaitable[San]]


@pytest.fixture
def connect(nursery: trio.Nursery) -> Open:
    """Log in to a disk of 8 MiB that is full of old bytes."""

    async def connect(*, write_behind: bool = True) -> San:
        disk = Disk.in_memory(SIZE, droppable=True)
        san = San(nursery, disk, write_behind=write_behind)
        await san.log_in()
        await san.unit.write(0, OLD)
        await san.unit.flush()
        san.trouble.commands.clear()
        return san

    return connect


def offer(san: San, provisioning: Provisioning, most: int = 0) -> None:
    """Have the unit say that it knows *provisioning*, and WRITE SAME of *most* blocks."""
    description = san.unit.description
    limits = replace(description.limits, max_write_same_length=most)
    san.unit.description = replace(description, provisioning=provisioning, limits=limits)


def sent(san: San, *codes: int) -> list[bytes]:
    return [cdb for cdb in san.trouble.commands if cdb[0] in codes]


def stored(san: San) -> bytes:
    """What the target has, in its cache or on its medium."""
    return bytes(san.disk.store.read(0, SIZE))


async def empty(san: San, size: int = SIZE) -> None:
    """Let *size* bytes be zeros."""
    await san.unit.truncate(0)
    await san.unit.truncate(size)


@pytest.mark.parametrize(
    ("provisioning", "unmaps"),
    [
        (Provisioning(lbpws=True, lbprz=True), True),
        (Provisioning(lbpws=True), False),  # what is unmapped may read as anything
        (Provisioning(lbpu=True, lbprz=True), False),  # UNMAP is no promise
        (Provisioning(), False),
    ],
)
async def test_zeros_are_written_by_write_same(
    connect: Open, provisioning: Provisioning, unmaps: bool
) -> None:
    san = await connect()
    offer(san, provisioning)
    await empty(san)
    await san.unit.flush()
    assert san.medium() == bytes(SIZE)
    (cdb,) = sent(san, *WRITE_SAME_CODES)
    assert parse_write_same(cdb) == (0, SIZE // BLOCK, unmaps, False)
    assert not sent(san, OperationCode.UNMAP, *WRITE_CODES)


async def test_no_command_zeroes_more_than_the_unit_allows(connect: Open) -> None:
    san = await connect()
    offer(san, Provisioning(), most=5000)
    await empty(san)
    await san.unit.flush()
    assert san.medium() == bytes(SIZE)
    assert [parse_write_same(cdb).blocks for cdb in sent(san, *WRITE_SAME_CODES)] == [5000, 5000, 5000, 1384]


@pytest.mark.parametrize("sense", [INVALID_OPERATION_CODE, INVALID_FIELD_IN_CDB])
@pytest.mark.parametrize("known", [{OperationCode.WRITE_SAME_10}, set()])
async def test_a_unit_without_write_same_is_written_to(
    connect: Open, sense: object, known: set[OperationCode]
) -> None:
    san = await connect()
    codes = frozenset(WRITE_SAME_CODES - known)
    san.disk.faults.append(Fault(sense, codes=codes))  # type: ignore[arg-type]
    await empty(san)
    await san.unit.flush()
    assert san.medium() == bytes(SIZE)
    assert bool(sent(san, *WRITE_CODES)) == (not known)
    san.trouble.commands.clear()
    await empty(san)
    await san.unit.flush()
    assert not sent(san, *codes)  # it is not asked again


async def test_a_unit_that_only_says_that_it_writes_the_same_is_found_out(
    connect: Open, monkeypatch: pytest.MonkeyPatch, says: Callable[[], list[str]]
) -> None:
    san = await connect()
    run = san.unit.queue.run

    async def pretend(cdb: bytes, **data: Any) -> object:
        if cdb[0] in WRITE_SAME_CODES:
            await trio.lowlevel.checkpoint()
            return None
        return await run(cdb, **data)

    monkeypatch.setattr(san.unit.queue, "run", pretend)
    await empty(san)
    await san.unit.flush()
    assert san.medium() == bytes(SIZE)
    assert any("does nothing" in line for line in says())


async def test_what_cannot_be_zeroed_fails_each_time_and_stays_zeros(connect: Open) -> None:
    san = await connect()
    fault = Fault(WRITE_ERROR, codes=WRITE_SAME_CODES)
    san.disk.faults.append(fault)
    await empty(san)
    for ask in (san.unit.zero, san.unit.flush, san.unit.flush):
        with pytest.raises(MediumError):
            await ask()
        assert san.unit.needs_flush
        assert await san.unit.read(MIB, MIB) == bytes(MIB)
    san.disk.faults.remove(fault)
    await san.unit.flush()
    assert san.medium() == bytes(SIZE)
    assert not san.unit.needs_flush


async def test_zeros_that_the_buffer_could_not_write_are_a_loss_and_tried_again(connect: Open) -> None:
    san = await connect()
    await empty(san, MIB // 2)  # too short for WRITE SAME
    san.disk.faults.append(Fault(WRITE_ERROR, codes=WRITE_CODES, times=1))
    await san.unit.flush()
    assert san.unit.failures == 1
    assert san.unit.needs_flush
    assert await san.unit.read(0, MIB // 2) == bytes(MIB // 2)
    await san.unit.flush()
    assert san.medium() == bytes(MIB // 2) + OLD[MIB // 2 :]
    assert san.unit.failures == 1


async def test_a_unit_that_became_write_protected_fails_the_flush(connect: Open) -> None:
    san = await connect()
    await empty(san)
    san.disk.faults.append(Fault(WRITE_PROTECTED, codes=WRITE_CODES | WRITE_SAME_CODES))
    san.unit.description = replace(san.unit.description, write_protected=True)
    with pytest.raises(WriteProtectedError):
        await san.unit.flush()
    assert san.unit.needs_flush


async def test_a_unit_that_is_gone_has_lost_the_zeros_that_were_owed(connect: Open) -> None:
    san = await connect()
    await empty(san)
    san.unit.lose("it is another one now")
    assert san.unit.failures == 1
    with pytest.raises(UnitError):
        await san.unit.flush()


async def test_a_unit_that_may_be_another_is_not_zeroed(connect: Open) -> None:
    san = await connect()
    await empty(san)
    san.unit.disown()
    await san.unit.flush()
    assert san.unit.failures == 1
    assert san.medium() == OLD


async def test_others_write_and_read_while_a_large_unit_is_zeroed(
    connect: Open, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    """Only what is zeroed at once is locked, and a write to it wins."""
    monkeypatch.setattr(zeroing, "AT_ONCE", MIB)
    san = await connect()
    await empty(san)
    san.trouble.stall()
    nursery.start_soon(san.unit.zero)
    await wait_all_tasks_blocked()
    nursery.start_soon(san.unit.write, 100, b"new")  # waits for the first piece
    await san.unit.write(5 * MIB, b"new")
    assert await san.unit.read(6 * MIB, MIB) == bytes(MIB)
    san.trouble.go_on()
    await san.unit.flush()
    expected = bytearray(SIZE)
    expected[100:103] = expected[5 * MIB : 5 * MIB + 3] = b"new"
    assert san.medium() == expected


async def test_zeroing_that_is_cancelled_leaves_holes(connect: Open, autojump_clock: MockClock) -> None:
    san = await connect()
    await empty(san)
    san.trouble.stall()
    with trio.move_on_after(1) as scope:
        await san.unit.zero()
    assert scope.cancelled_caught
    san.trouble.go_on()
    assert san.unit.needs_flush
    await san.unit.flush()
    assert san.medium() == bytes(SIZE)


async def test_holes_without_number_are_zeroed_before_they_cost_too_much(
    connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iscsifs.units.block.MAX_HOLES", 10)
    monkeypatch.setattr(zeroing, "MAX_HOLES", 10)
    san = await connect()
    await san.unit.truncate(0)
    for number in range(100):
        await san.unit.write((2 * number + 1) * BLOCK, b"n" * BLOCK)
        assert san.unit._holes.count <= 11
    await san.unit.flush()
    assert san.medium() == (bytes(BLOCK) + b"n" * BLOCK) * 100 + OLD[200 * BLOCK :]


@pytest.mark.parametrize(("start", "end"), [(5, 9), (500, 520), (512, 1024), (3, 1500), (0, 3 * MIB + 7)])
async def test_parts_of_blocks_are_zeroed_and_the_rest_of_them_stays(
    connect: Open, start: int, end: int
) -> None:
    san = await connect()
    await san.unit.truncate(start)
    await san.unit.truncate(end)
    await san.unit.flush()
    assert san.medium() == OLD[:start] + bytes(end - start) + OLD[end:]


async def test_nothing_is_asked_of_the_unit_for_what_is_zeros(connect: Open) -> None:
    san = await connect()
    await empty(san)
    assert await san.unit.read(0, SIZE) == bytes(SIZE)
    assert san.trouble.commands == []


async def test_a_read_that_is_told_of_a_lost_cache_gets_the_zeros(connect: Open) -> None:
    """It brings the old bytes first."""
    san = await connect()
    await empty(san)
    await san.unit.zero()
    san.disk.drop_cache()
    assert await san.unit.read(MIB, MIB) == bytes(MIB)


@pytest.mark.parametrize("by", ["zero", "flush"])
async def test_a_cache_that_is_lost_between_two_commands_is_zeroed_again(
    connect: Open, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """The second one brings the report, and knows nothing of the first."""
    san = await connect()
    offer(san, Provisioning(), most=5000)
    await empty(san)
    await san.unit.flush()  # what the unit does is looked at the first time only
    await san.unit.write(0, OLD)
    await san.unit.flush()
    san.trouble.commands.clear()
    run = san.unit.queue.run

    async def lose_cache_once(cdb: bytes, **data: Any) -> object:
        task = await run(cdb, **data)
        if cdb[0] in WRITE_SAME_CODES and len(sent(san, *WRITE_SAME_CODES)) == 1:
            san.disk.drop_cache()
        return task

    monkeypatch.setattr(san.unit.queue, "run", lose_cache_once)
    await empty(san)
    await getattr(san.unit, by)()
    assert stored(san) == bytes(SIZE)


async def test_a_truncation_alone_costs_nothing(connect: Open) -> None:
    san = await connect()
    await san.unit.truncate(0)
    await san.unit.zero()
    await san.unit.drain()
    assert san.trouble.commands == []
    assert not san.unit.needs_flush


async def test_a_flush_that_fails_leaves_what_it_should_have_kept(connect: Open) -> None:
    san = await connect()
    await empty(san)
    san.disk.faults.append(Fault(WRITE_ERROR, codes=frozenset({OperationCode.SYNCHRONIZE_CACHE_10}), times=1))
    with pytest.raises(IscsifsError):
        await san.unit.flush()
    san.disk.drop_cache()
    await san.unit.flush()
    assert san.medium() == bytes(SIZE)
