"""`Commands`: what is worth repeating is repeated, with delays, and in bounded time."""

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from iscsifs.errors import (
    CommandError,
    CommandTimeout,
    DataError,
    IscsifsError,
    MediumError,
    NoMediumError,
    ReservationError,
    SpaceError,
    StatusError,
    TaskAborted,
    WriteProtectedError,
)
from iscsifs.initiator.commands import LONGEST_DELAY, Commands, Unsupported
from iscsifs.iscsi.task import Task
from iscsifs.limits import MAX_ABORTS, MAX_REPEATS
from iscsifs.scsi import cdb
from iscsifs.scsi.sense import Condition, Sense, SenseKey
from iscsifs.scsi.status import Status

PATIENCE = 30.0
READ = cdb.read_10(7, 1)

Answer = int | Sense | IscsifsError


class FakeSession:
    """Answers each command as `answer` says, and takes note of when it was asked."""

    def __init__(self, answer: Callable[[int], Answer]) -> None:
        self.answer = answer
        self.times: list[float] = []

    async def execute(self, task: Task) -> None:
        await trio.lowlevel.checkpoint()
        answer = self.answer(len(self.times))
        self.times.append(trio.current_time())
        assert not task.on_the_wire, "each attempt is a new task"
        assert not task.ended, "each attempt is a new task"
        task.initiator_task_tag = len(self.times)
        task.ended = True
        if isinstance(answer, IscsifsError):
            task.failure = answer
            raise answer
        task.status = Status.CHECK_CONDITION if isinstance(answer, Sense) else answer
        task.sense = answer.pack() if isinstance(answer, Sense) else b""
        task.received = len(task.data_in) if task.status == Status.GOOD else 0


def unit(answer: Callable[[int], Answer]) -> tuple[Commands, FakeSession]:
    session = FakeSession(answer)
    commands = Commands(session, 0, name="disk LUN 0", patience=PATIENCE)  # type: ignore[arg-type]
    return commands, session


BUSY = [Status.BUSY, Status.TASK_SET_FULL, Status.TASK_ABORTED, Status.ACA_ACTIVE]


@pytest.mark.conformance("ERR-22")
@pytest.mark.parametrize("status", BUSY)
async def test_busy_once(autojump_clock: MockClock, status: Status) -> None:
    commands, session = unit(lambda n: status if n == 0 else 0)
    await commands.run(READ)
    assert len(session.times) == 2
    assert session.times[1] - session.times[0] < 0.1


@pytest.mark.conformance("ERR-22")
@pytest.mark.parametrize("status", BUSY)
async def test_busy_for_five_seconds(autojump_clock: MockClock, status: Status) -> None:
    until = trio.current_time() + 5.0
    commands, session = unit(lambda _: status if trio.current_time() < until else 0)
    await commands.run(READ)
    delays = [later - earlier for earlier, later in zip(session.times, session.times[1:], strict=False)]
    assert 5.0 <= session.times[-1] - session.times[0] <= 5.0 + LONGEST_DELAY
    assert len(delays) <= 15
    assert delays[-1] > 10 * delays[0]


@pytest.mark.conformance("ERR-22")
@pytest.mark.parametrize("status", BUSY)
async def test_busy_for_ever(autojump_clock: MockClock, status: Status) -> None:
    commands, session = unit(lambda _: status)
    with pytest.raises(StatusError, match=f"disk LUN 0: READ.*{status.name} for 30 s") as caught:
        await commands.run(READ)
    assert caught.value.status == status
    assert PATIENCE <= trio.current_time() - session.times[0] <= PATIENCE + LONGEST_DELAY
    assert len(session.times) < 50


@pytest.mark.conformance("ERR-22")
async def test_the_time_without_an_answer_is_not_counted_as_busy(autojump_clock: MockClock) -> None:
    """The unit is busy for two moments, with an attempt in between that is aborted after a long time."""

    class Silent(FakeSession):
        async def execute(self, task: Task) -> None:
            if len(self.times) == 1:
                await trio.sleep(PATIENCE + 1)
            await super().execute(task)

    answers: list[Answer] = [Status.BUSY, TaskAborted("no answer"), Status.BUSY, Status.GOOD]
    session = Silent(lambda n: answers[n])
    commands = Commands(session, 0, name="disk LUN 0", patience=PATIENCE)  # type: ignore[arg-type]
    await commands.run(READ)
    assert len(session.times) == len(answers)


@pytest.mark.conformance("ERR-22")
async def test_the_delays_are_jittered(autojump_clock: MockClock) -> None:
    patterns = set()
    for _ in range(5):
        commands, session = unit(lambda n: Status.BUSY if n < 6 else 0)
        await commands.run(READ)
        start = session.times[0]
        patterns.add(tuple(round(moment - start, 9) for moment in session.times))
    assert len(patterns) == 5


@pytest.mark.conformance("ERR-23")
async def test_a_reservation_conflict_fails_at_once(autojump_clock: MockClock) -> None:
    commands, session = unit(lambda _: Status.RESERVATION_CONFLICT)
    with pytest.raises(ReservationError, match="disk LUN 0: READ.*reserved"):
        await commands.run(READ)
    assert len(session.times) == 1


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
    autojump_clock: MockClock, asc: int, ascq: int, condition: Condition
) -> None:
    sense = Sense(SenseKey.UNIT_ATTENTION, asc, ascq)
    assert sense.condition is condition
    commands, session = unit(lambda n: sense if n == 0 else 0)
    assert len(await commands.ask(READ, 512)) == 512
    assert len(session.times) == 2
    assert session.times[0] == session.times[1]


async def test_unit_attentions_without_end_are_given_up(autojump_clock: MockClock) -> None:
    commands, session = unit(lambda _: Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x00))
    with pytest.raises(StatusError, match="UNIT ATTENTION 29/00"):
        await commands.run(READ)
    assert len(session.times) == 1 + MAX_REPEATS


@pytest.mark.conformance("ERR-25")
@pytest.mark.parametrize(("asc", "ascq"), [(0x47, 0x05), (0x0C, 0x0C), (0x0C, 0x0D), (0x11, 0x13)])
async def test_aborted_commands_of_iscsi_are_no_success(
    autojump_clock: MockClock, asc: int, ascq: int
) -> None:
    sense = Sense(SenseKey.ABORTED_COMMAND, asc, ascq)
    commands, session = unit(lambda n: sense if n == 0 else 0)
    await commands.run(READ)
    assert len(session.times) == 2
    commands, session = unit(lambda _: sense)
    with pytest.raises(StatusError, match="ABORTED COMMAND"):
        await commands.run(READ)
    assert len(session.times) == 1 + MAX_REPEATS


async def test_a_unit_that_becomes_ready_is_waited_for(autojump_clock: MockClock) -> None:
    until = trio.current_time() + 20.0
    becoming_ready = Sense(SenseKey.NOT_READY, 0x04, 0x01)
    commands, session = unit(lambda _: becoming_ready if trio.current_time() < until else 0)
    await commands.run(READ)
    assert len(session.times) < 40


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
    autojump_clock: MockClock, sense: Sense, error: type[StatusError], caplog: pytest.LogCaptureFixture
) -> None:
    commands, session = unit(lambda _: sense)
    with pytest.raises(error, match=r"disk LUN 0: READ\(10\)") as caught:
        await commands.run(READ)
    assert (caught.value.status, caught.value.sense) == (Status.CHECK_CONDITION, sense.pack())
    assert len(session.times) == 1
    assert caplog.records == []  # who asked says what it means
    if sense.information is not None:
        assert "LBA 7" in str(caught.value)


async def test_a_recovered_error_is_a_success(autojump_clock: MockClock) -> None:
    commands, session = unit(lambda _: Sense(SenseKey.RECOVERED_ERROR, 0x17, 0x01))
    await commands.run(READ)
    assert len(session.times) == 1


async def test_a_check_condition_without_sense_data_is_an_error(autojump_clock: MockClock) -> None:
    commands, _ = unit(lambda _: Status.CHECK_CONDITION)
    with pytest.raises(StatusError):
        await commands.run(READ)


async def test_an_unknown_status_is_an_error(autojump_clock: MockClock) -> None:
    commands, session = unit(lambda _: 0x7E)
    with pytest.raises(StatusError, match="status 7eh"):
        await commands.run(READ)
    assert len(session.times) == 1


async def test_an_aborted_command_is_repeated_as_a_new_task_and_not_for_ever(
    autojump_clock: MockClock,
) -> None:
    commands, session = unit(lambda n: TaskAborted("the command was aborted") if n < MAX_ABORTS else 0)
    await commands.run(READ)
    assert len(session.times) == 1 + MAX_ABORTS
    commands, session = unit(lambda _: TaskAborted("the command was aborted"))
    with pytest.raises(TaskAborted, match=r"disk LUN 0: READ\(10\).*aborted"):
        await commands.run(READ)
    assert len(session.times) == 1 + MAX_ABORTS


@pytest.mark.parametrize("kind", [CommandError, DataError, CommandTimeout])
async def test_what_no_repetition_helps_is_raised_at_once(
    autojump_clock: MockClock, kind: type[CommandError]
) -> None:
    commands, session = unit(lambda _: kind("for a reason"))
    with pytest.raises(kind, match="for a reason"):
        await commands.run(READ)
    assert len(session.times) == 1


async def test_a_read_of_fewer_bytes_than_the_buffer_gives_those(autojump_clock: MockClock) -> None:
    class Short(FakeSession):
        async def execute(self, task: Task) -> None:
            await super().execute(task)
            task.received = 100

    commands = Commands(Short(lambda _: 0), 0, name="disk LUN 0", patience=1.0)  # type: ignore[arg-type]
    assert await commands.ask(cdb.inquiry(255), 255) == bytes(100)
