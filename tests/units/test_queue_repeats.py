"""A queue: what is worth repeating is repeated, with delays, and in bounded time."""

from collections.abc import Callable
from typing import Protocol

import pytest
import trio
from trio.testing import MockClock

from iscsifs.errors import (
    CommandError,
    CommandTimeout,
    DataError,
    MediumError,
    NoMediumError,
    ReservationError,
    SpaceError,
    StatusError,
    TaskAborted,
    WriteProtectedError,
)
from iscsifs.limits import MAX_ABORTS, MAX_REPEATS
from iscsifs.scsi import cdb
from iscsifs.scsi.sense import Condition, Sense, SenseKey
from iscsifs.scsi.status import Status
from iscsifs.units.answers import Unsupported
from iscsifs.units.queue import LONGEST_DELAY, Queue
from support.memory_path import Answer, MemoryPath, queue_of

PATIENCE = 30.0
READ = cdb.read_10(7, 1)


class Unit(Protocol):
    """The fixture `unit`: a queue whose path answers by *answer*, which gets the number of the attempt."""

    def __call__(
        self, answer: Callable[[int], Answer], delay: Callable[[int], float] = lambda _: 0.0
    ) -> tuple[Queue, MemoryPath]: ...


@pytest.fixture
def unit(nursery: trio.Nursery) -> Unit:
    def make(
        answer: Callable[[int], Answer], delay: Callable[[int], float] = lambda _: 0.0
    ) -> tuple[Queue, MemoryPath]:
        path = MemoryPath(lambda _: answer(len(path.times) - 1), lambda _: delay(len(path.times) - 1))
        return queue_of(path, nursery, patience=PATIENCE), path

    return make


BUSY = [Status.BUSY, Status.TASK_SET_FULL, Status.TASK_ABORTED, Status.ACA_ACTIVE]


@pytest.mark.conformance("ERR-22")
@pytest.mark.parametrize("status", BUSY)
async def test_busy_once(unit: Unit, autojump_clock: MockClock, status: Status) -> None:
    queue, path = unit(lambda n: status if n == 0 else 0)
    await queue.run(READ)
    assert len(path.times) == 2
    assert path.times[1] - path.times[0] < 0.1


@pytest.mark.conformance("ERR-22")
@pytest.mark.parametrize("status", BUSY)
async def test_busy_for_five_seconds(unit: Unit, autojump_clock: MockClock, status: Status) -> None:
    until = trio.current_time() + 5.0
    queue, path = unit(lambda _: status if trio.current_time() < until else 0)
    await queue.run(READ)
    delays = [later - earlier for earlier, later in zip(path.times, path.times[1:], strict=False)]
    assert 5.0 <= path.times[-1] - path.times[0] <= 5.0 + LONGEST_DELAY
    assert len(delays) <= 15
    assert delays[-1] > 10 * delays[0]


@pytest.mark.conformance("ERR-22")
@pytest.mark.parametrize("status", BUSY)
async def test_busy_for_ever(unit: Unit, autojump_clock: MockClock, status: Status) -> None:
    queue, path = unit(lambda _: status)
    with pytest.raises(StatusError, match=f"disk LUN 0: READ.*{status.name} for 30 s") as caught:
        await queue.run(READ)
    assert caught.value.status == status
    assert PATIENCE <= trio.current_time() - path.times[0] <= PATIENCE + LONGEST_DELAY
    assert len(path.times) < 50


@pytest.mark.conformance("ERR-22")
async def test_the_time_without_an_answer_is_not_counted_as_busy(
    unit: Unit, autojump_clock: MockClock
) -> None:
    """The unit is busy for two moments, with an attempt in between that is aborted after a long time."""

    answers: list[Answer] = [Status.BUSY, TaskAborted("no answer"), Status.BUSY, Status.GOOD]
    queue, path = unit(lambda n: answers[n], lambda n: (PATIENCE + 1) * (n == 1))
    await queue.run(READ)
    assert len(path.times) == len(answers)


@pytest.mark.conformance("ERR-22")
async def test_the_delays_are_jittered(unit: Unit, autojump_clock: MockClock) -> None:
    patterns = set()
    for _ in range(5):
        queue, path = unit(lambda n: Status.BUSY if n < 6 else 0)
        await queue.run(READ)
        start = path.times[0]
        patterns.add(tuple(round(moment - start, 9) for moment in path.times))
    assert len(patterns) == 5


@pytest.mark.conformance("ERR-23")
async def test_a_reservation_conflict_fails_at_once(unit: Unit, autojump_clock: MockClock) -> None:
    queue, path = unit(lambda _: Status.RESERVATION_CONFLICT)
    with pytest.raises(ReservationError, match="disk LUN 0: READ.*reserved"):
        await queue.run(READ)
    assert len(path.times) == 1


@pytest.mark.conformance("ERR-24")
@pytest.mark.parametrize(
    ("asc", "ascq", "condition"),
    [
        (0x29, 0x00, Condition.RESET),
        (0x47, 0x7F, Condition.COMMANDS_CLEARED),
        (0x2A, 0x09, Condition.CAPACITY_CHANGED),
        (0x3F, 0x0E, Condition.LUNS_CHANGED),
        (0x5E, 0x00, Condition.RETRY),
    ],
)
async def test_a_command_with_a_unit_attention_is_repeated(
    unit: Unit, autojump_clock: MockClock, asc: int, ascq: int, condition: Condition
) -> None:
    sense = Sense(SenseKey.UNIT_ATTENTION, asc, ascq)
    assert sense.condition is condition
    queue, path = unit(lambda n: sense if n == 0 else 0)
    assert len(await queue.ask(READ, 512)) == 512
    assert len(path.times) == 2
    assert path.times[0] == path.times[1]


async def test_unit_attentions_without_end_are_given_up(unit: Unit, autojump_clock: MockClock) -> None:
    queue, path = unit(lambda _: Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x00))
    with pytest.raises(StatusError, match="UNIT ATTENTION 29/00"):
        await queue.run(READ)
    assert len(path.times) == 1 + MAX_REPEATS


@pytest.mark.conformance("ERR-25")
@pytest.mark.parametrize(("asc", "ascq"), [(0x47, 0x05), (0x0C, 0x0C), (0x0C, 0x0D), (0x11, 0x13)])
async def test_aborted_commands_of_iscsi_are_no_success(
    unit: Unit, autojump_clock: MockClock, asc: int, ascq: int
) -> None:
    sense = Sense(SenseKey.ABORTED_COMMAND, asc, ascq)
    queue, path = unit(lambda n: sense if n == 0 else 0)
    await queue.run(READ)
    assert len(path.times) == 2
    queue, path = unit(lambda _: sense)
    with pytest.raises(StatusError, match="ABORTED COMMAND"):
        await queue.run(READ)
    assert len(path.times) == 1 + MAX_REPEATS


async def test_a_unit_that_becomes_ready_is_waited_for(unit: Unit, autojump_clock: MockClock) -> None:
    until = trio.current_time() + 20.0
    becoming_ready = Sense(SenseKey.NOT_READY, 0x04, 0x01)
    queue, path = unit(lambda _: becoming_ready if trio.current_time() < until else 0)
    await queue.run(READ)
    assert len(path.times) < 40


@pytest.mark.parametrize(
    ("sense", "error"),
    [
        (Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00, information=7), MediumError),
        (Sense(SenseKey.HARDWARE_ERROR, 0x44, 0x00), StatusError),
        (Sense(SenseKey.DATA_PROTECT, 0x27, 0x00), WriteProtectedError),
        (Sense(SenseKey.DATA_PROTECT, 0x27, 0x07), SpaceError),
        (Sense(SenseKey.NOT_READY, 0x3A, 0x00), NoMediumError),
        (Sense(SenseKey.NOT_READY, 0x04, 0x03), NoMediumError),
        (Sense(SenseKey.ILLEGAL_REQUEST, 0x20, 0x00), Unsupported),
        (Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00), Unsupported),
        (Sense(SenseKey.ILLEGAL_REQUEST, 0x21, 0x00), StatusError),
        (Sense(SenseKey.VENDOR_SPECIFIC, 0x80, 0x00), StatusError),
    ],
)
async def test_errors_by_their_sense(
    unit: Unit,
    autojump_clock: MockClock,
    sense: Sense,
    error: type[StatusError],
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue, path = unit(lambda _: sense)
    with pytest.raises(error, match=r"disk LUN 0: READ\(10\)") as caught:
        await queue.run(READ)
    assert (caught.value.status, caught.value.sense) == (Status.CHECK_CONDITION, sense.pack())
    assert len(path.times) == 1
    assert caplog.records == []  # who asked says what it means
    if sense.information is not None:
        assert "LBA 7" in str(caught.value)


async def test_a_recovered_error_is_a_success(unit: Unit, autojump_clock: MockClock) -> None:
    queue, path = unit(lambda _: Sense(SenseKey.RECOVERED_ERROR, 0x17, 0x01))
    await queue.run(READ)
    assert len(path.times) == 1


async def test_a_check_condition_without_sense_data_is_an_error(
    unit: Unit, autojump_clock: MockClock
) -> None:
    queue, _ = unit(lambda _: Status.CHECK_CONDITION)
    with pytest.raises(StatusError):
        await queue.run(READ)


async def test_an_unknown_status_is_an_error(unit: Unit, autojump_clock: MockClock) -> None:
    queue, path = unit(lambda _: 0x7E)
    with pytest.raises(StatusError, match="status 7eh"):
        await queue.run(READ)
    assert len(path.times) == 1


async def test_an_aborted_command_is_repeated_as_a_new_task_and_not_for_ever(
    unit: Unit,
    autojump_clock: MockClock,
) -> None:
    queue, path = unit(lambda n: TaskAborted("the command was aborted") if n < MAX_ABORTS else 0)
    await queue.run(READ)
    assert len(path.times) == 1 + MAX_ABORTS
    queue, path = unit(lambda _: TaskAborted("the command was aborted"))
    with pytest.raises(TaskAborted, match=r"disk LUN 0: READ\(10\).*aborted"):
        await queue.run(READ)
    assert len(path.times) == 1 + MAX_ABORTS


@pytest.mark.parametrize("kind", [CommandError, DataError, CommandTimeout])
async def test_what_no_repetition_helps_is_raised_at_once(
    unit: Unit, autojump_clock: MockClock, kind: type[CommandError]
) -> None:
    queue, path = unit(lambda _: kind("for a reason"))
    with pytest.raises(kind, match="for a reason"):
        await queue.run(READ)
    assert len(path.times) == 1


async def test_a_read_of_fewer_bytes_than_the_buffer_gives_those(
    unit: Unit, autojump_clock: MockClock
) -> None:
    queue, _ = unit(lambda _: bytes(100))
    assert await queue.ask(cdb.inquiry(255), 255) == bytes(100)
