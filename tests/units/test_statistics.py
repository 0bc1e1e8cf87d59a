"""The counts of a logical unit."""

from contextlib import suppress

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from iscsifs.errors import IscsifsError, MediumError, TaskAborted, UnitError
from iscsifs.scsi import cdb
from iscsifs.scsi.status import Status
from iscsifs.target.disk import Disk
from iscsifs.target.unit import BUS_DEVICE_RESET, READ_CODES, READ_ERROR, WRITE_CODES, WRITE_ERROR, Fault
from iscsifs.units.statistics import LATENCY_BOUNDS, OperationStatistics
from support.memory_path import Answer, MemoryPath, queue_of
from support.memory_san import San

BLOCK = 512
READ = cdb.read_10(7, 1)


def test_an_operation_counts_once_with_its_bytes_and_its_time() -> None:
    reads = OperationStatistics()
    reads.ended(0.0001, 4096)
    reads.ended(0.5, 512)
    reads.failed(200.0)
    assert (reads.operations, reads.bytes, reads.errors) == (3, 4608, 1)
    assert reads.seconds == 200.5001
    assert reads.latencies[0] == reads.latencies[LATENCY_BOUNDS.index(0.5)] == reads.latencies[-1] == 1


@given(st.lists(st.floats(0, 1000), max_size=30))
def test_each_time_is_in_the_first_bucket_that_reaches_it(times: list[float]) -> None:
    statistics = OperationStatistics()
    for seconds in times:
        statistics.ended(seconds, 1)
    cumulative = 0
    for bound, count in zip((*LATENCY_BOUNDS, float("inf")), statistics.latencies, strict=True):
        cumulative += count
        assert cumulative == sum(seconds <= bound for seconds in times)


@pytest.fixture
async def san(nursery: trio.Nursery) -> San:
    """A disk of 64 blocks, just logged in to."""
    san = San(nursery, Disk.in_memory(64 * BLOCK))
    await san.log_in()
    return san


def counts(statistics: OperationStatistics) -> tuple[int, int, int]:
    return statistics.operations, statistics.bytes, statistics.errors


async def test_what_a_user_does_counts_and_not_the_commands_that_it_takes(san: San) -> None:
    statistics = san.unit.statistics
    assert counts(statistics.reads) == counts(statistics.writes) == counts(statistics.flushes) == (0, 0, 0)
    await san.unit.write(100, bytes(1000))  # three blocks, two of which are read first
    await san.unit.write(8 * BLOCK, bytes(BLOCK))
    await san.unit.flush()
    assert len(await san.unit.read(63 * BLOCK, 2 * BLOCK)) == BLOCK
    assert counts(statistics.writes) == (2, 1000 + BLOCK, 0)
    assert counts(statistics.reads) == (1, BLOCK, 0)
    assert counts(statistics.flushes) == (1, 0, 0)
    for kind in (statistics.reads, statistics.writes, statistics.flushes):
        assert sum(kind.latencies) == kind.operations
        assert 0 < kind.seconds < 60


async def test_what_fails_counts_as_an_error_and_without_bytes(san: San) -> None:
    statistics = san.unit.statistics
    san.disk.faults.append(Fault(READ_ERROR, codes=READ_CODES))
    with pytest.raises(MediumError):
        await san.unit.read(0, BLOCK)
    san.disk.faults.append(Fault(WRITE_ERROR, codes=WRITE_CODES))
    with pytest.raises(MediumError):
        await san.unit.write(0, bytes(BLOCK), sync=True)
    assert counts(statistics.reads) == counts(statistics.writes) == (1, 0, 1)
    san.unit.lose("gone")
    with pytest.raises(UnitError):
        await san.unit.flush()
    assert counts(statistics.flushes) == (1, 0, 1)


async def test_a_time_is_that_from_the_call_to_the_answer(
    san: San, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iscsifs.units.block.perf_counter", trio.current_time)
    san.disk.faults.append(Fault(status=Status.BUSY, codes=READ_CODES, times=8))
    began = trio.current_time()
    await san.unit.read(0, BLOCK)
    seconds = trio.current_time() - began
    assert 2 < seconds < 10
    reads = san.unit.statistics.reads
    assert reads.seconds == pytest.approx(seconds)
    assert sum(reads.latencies[LATENCY_BOUNDS.index(5.0) :]) == 1
    assert san.unit.statistics.repeats == 8


async def test_the_counts_outlive_a_lost_connection(san: San, autojump_clock: MockClock) -> None:
    statistics = san.unit.statistics
    await san.unit.read(0, BLOCK)
    san.trouble.answers_to_lose = 1
    await san.unit.read(0, BLOCK)
    assert san.unit.statistics is statistics
    assert counts(statistics.reads) == (2, 2 * BLOCK, 0)
    assert statistics.repeats == 1
    assert statistics.depth == 0


async def test_each_repeat_counts(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    answers: list[Answer] = [Status.BUSY, Status.BUSY, TaskAborted("aborted"), BUS_DEVICE_RESET, Status.GOOD]
    path = MemoryPath(lambda _: answers[len(path.times) - 1])
    queue = queue_of(path, nursery)
    await queue.run(READ)
    assert queue.statistics.repeats == 4
    assert queue.statistics.depth == 0


async def test_the_depth_is_what_has_not_ended(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    path = MemoryPath(lambda _: Status.GOOD, lambda _: 1.0)
    queue = queue_of(path, nursery)
    async with trio.open_nursery() as users:
        for _ in range(5):
            users.start_soon(queue.run, READ)
        await wait_all_tasks_blocked()
        assert (queue.statistics.depth, queue.statistics.deepest) == (5, 5)
    with trio.move_on_after(0.5):
        await queue.run(READ)
    assert (queue.statistics.depth, queue.statistics.deepest) == (0, 5)


@pytest.mark.parametrize("end", ["restored", "closed", "unit gone", "expired", "caller gone"])
async def test_what_waits_counts_until_its_end(
    nursery: trio.Nursery, autojump_clock: MockClock, end: str
) -> None:
    path = MemoryPath(lambda _: Status.GOOD)
    queue = queue_of(path, nursery)
    path.lose()

    async def run() -> None:
        with suppress(IscsifsError):
            await queue.run(READ)

    async with trio.open_nursery() as users:
        for _ in range(3):
            users.start_soon(run)
        await wait_all_tasks_blocked()
        assert queue.statistics.depth == 3
        match end:
            case "restored":
                path.restore()
            case "closed":
                path.close()
            case "unit gone":
                queue.fail(UnitError("gone"))
            case "caller gone":
                users.cancel_scope.cancel()
    assert (queue.statistics.depth, queue.statistics.deepest) == (0, 3)
