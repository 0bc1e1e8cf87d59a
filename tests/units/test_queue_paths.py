"""A queue: whatever happens to the path, each command ends once, and what is sent is sent in its order."""

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from iscsifs.errors import (
    BusyError,
    CommandTimeout,
    DataLostError,
    TaskAborted,
    TransportError,
    UnitError,
)
from iscsifs.limits import MAX_ATTEMPTS
from iscsifs.scsi import cdb
from iscsifs.scsi.status import Status
from iscsifs.units.queue import Command
from support.memory_path import Answer, MemoryPath, queue_of

TIMEOUT = 120.0
PATIENCE = 30.0


def write(lba: int) -> bytes:
    return cdb.write_10(lba, 1)


def read(lba: int) -> bytes:
    return cdb.read_10(lba, 1)


class Unit:
    """A queue, its path, and the commands that were started, with how often each has ended."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.answers: dict[bytes, list[Answer]] = {}
        """What the next attempts at a command are answered with; GOOD behind the last."""
        self.seconds = 0.0
        """How long an attempt takes."""
        self.path = MemoryPath(self._answer, lambda _: self.seconds)
        self.nursery = nursery
        self.queue = queue_of(self.path, nursery, patience=PATIENCE, replacement_timeout=TIMEOUT)
        self.commands: list[Command] = []
        self.ends: dict[int, int] = {}

    def _answer(self, command: bytes) -> Answer:
        answers = self.answers.get(command)
        return answers.pop(0) if answers else int(Status.GOOD)

    def start(self, command: bytes, *, idempotent: bool = True) -> Command:
        started = self.queue.start(command, self._ended, idempotent=idempotent)
        self.commands.append(started)
        return started

    def _ended(self, command: Command) -> None:
        self.ends[command.number] = self.ends.get(command.number, 0) + 1

    async def all_end(self) -> None:
        """Wait for long: all commands have ended, each of them once."""
        await trio.sleep(10 * TIMEOUT)
        assert self.ends == {command.number: 1 for command in self.commands}


@pytest.fixture
def unit(nursery: trio.Nursery) -> Unit:
    return Unit(nursery)


# The path is lost.


async def test_what_was_sent_and_what_was_not_goes_on_in_its_order(
    unit: Unit, autojump_clock: MockClock
) -> None:
    unit.seconds = 5.0
    sent = [unit.start(write(lba)) for lba in range(3)]
    unit.path.window = False
    unsent = [unit.start(write(lba)) for lba in range(3, 6)]
    unit.path.lose()
    later = [unit.start(write(lba)) for lba in range(6, 9)]
    unit.path.asked.clear()
    unit.path.window = True
    unit.path.restore()
    await unit.all_end()
    assert unit.path.asked == [command.cdb for command in [*sent, *unsent, *later]]
    assert all(command.failure is None for command in unit.commands)
    assert [command.losses for command in unit.commands] == [1] * 3 + [0] * 6


async def test_the_path_is_lost_inside_of_send(unit: Unit, autojump_clock: MockClock) -> None:
    """The system call finds out that the connection is gone: the command ends before `send` returns."""
    send = unit.path.send

    def losing(*arguments: object) -> object:
        unit.path.window = False
        attempt = send(*arguments)  # type: ignore[arg-type]
        unit.path.lose()
        return attempt

    unit.path.send = losing  # type: ignore[method-assign, assignment]
    command = unit.start(write(1))
    unit.path.send, unit.path.window = send, True  # type: ignore[method-assign]
    assert not command.ended
    unit.path.restore()
    await unit.all_end()
    assert command.failure is None
    assert unit.path.asked == [write(1)]


async def test_a_path_that_is_lost_again_while_what_waits_is_sent(
    unit: Unit, autojump_clock: MockClock
) -> None:
    unit.path.lose()
    commands = [unit.start(write(lba)) for lba in range(5)]
    unit.answers[write(1)] = [Status.BUSY]
    send = unit.path.send

    def losing(command: bytes, *others: object) -> object:
        if command == write(2):
            unit.path.lose()
        return send(command, *others)  # type: ignore[arg-type]

    unit.path.send = losing  # type: ignore[method-assign, assignment]
    unit.path.restore()
    unit.path.send = send  # type: ignore[method-assign]
    assert unit.path.asked == [write(0), write(1)]
    await trio.sleep(5.0)
    unit.path.restore()
    await unit.all_end()
    assert unit.path.asked[2:] == [command.cdb for command in commands[1:]]  # also the one that was busy


async def test_losses_are_bounded_and_count_only_what_was_sent(unit: Unit, autojump_clock: MockClock) -> None:
    unit.path.window = False
    unsent = unit.start(write(1))
    for _ in range(2 * MAX_ATTEMPTS):
        unit.path.lose()
        unit.path.restore()
    unit.path.window, unit.seconds = True, 5.0
    sent = unit.start(write(0))
    for _ in range(MAX_ATTEMPTS):
        assert not sent.ended
        unit.path.lose()
        unit.path.restore()
    assert isinstance(sent.failure, CommandTimeout)
    assert not unsent.ended
    assert unsent.losses == MAX_ATTEMPTS - 1


async def test_what_may_not_be_carried_out_twice_is_not_sent_again(
    unit: Unit, autojump_clock: MockClock
) -> None:
    unit.seconds = 5.0
    sent = unit.start(write(0), idempotent=False)
    unit.path.window = False
    unsent = unit.start(write(1), idempotent=False)
    unit.path.lose()
    unit.path.window = True
    assert isinstance(sent.failure, TaskAborted)
    assert "may have been carried out" in str(sent.failure)
    unit.path.restore()
    await unit.all_end()
    assert unsent.failure is None
    assert unit.path.asked == [write(0), write(1)]


# The unit is suspected, lost, or another one.


async def test_what_waits_for_a_busy_unit_waits_for_a_suspended_one_as_well(
    unit: Unit, autojump_clock: MockClock
) -> None:
    unit.answers[write(0)] = [Status.BUSY]
    command = unit.start(write(0))
    unit.queue.suspend()
    await trio.sleep(10.0)
    assert len(unit.path.asked) == 1
    assert not command.ended
    unit.queue.resume()
    await unit.all_end()
    assert command.failure is None


async def test_suspended_it_takes_back_what_is_not_sent_and_lets_the_rest_end(
    unit: Unit, autojump_clock: MockClock
) -> None:
    unit.seconds = 5.0
    flush = unit.start(cdb.synchronize_cache_10())
    unit.path.window = False
    unsent = [unit.start(write(lba)) for lba in range(3)]
    unit.queue.suspend()
    unit.path.window = True
    later = unit.start(write(3))
    await trio.sleep(6.0)
    assert flush.ended
    assert flush.failure is None
    assert len(unit.path.asked) == 1
    unit.queue.resume()
    await unit.all_end()
    assert unit.path.asked[1:] == [command.cdb for command in [*unsent, later]]


async def test_a_flush_that_the_lost_path_leaves_to_a_suspended_unit_is_sent_when_it_is_known(
    unit: Unit, autojump_clock: MockClock
) -> None:
    unit.seconds = 5.0
    flush = unit.start(cdb.synchronize_cache_10())
    unit.queue.suspend()
    unit.path.lose()
    unit.path.restore(unit.queue.suspend)
    assert len(unit.path.asked) == 1
    unit.queue.resume()
    await unit.all_end()
    assert flush.failure is None
    assert len(unit.path.asked) == 2


GONE = UnitError("disk LUN 0: gone")


async def test_a_lost_unit_gets_nothing_more_wherever_its_commands_are(
    unit: Unit, autojump_clock: MockClock
) -> None:
    """On the wire and answered, on the wire and lost, delayed, not sent, and new."""
    unit.answers[write(0)] = [Status.BUSY]
    delayed = unit.start(write(0))
    unit.seconds = 1.0
    answered = unit.start(write(1))
    unit.seconds = 10.0
    lost = unit.start(write(2))
    busy = unit.start(write(5))
    unit.answers[write(5)] = [Status.BUSY]
    unit.path.window = False
    unsent = unit.start(write(3))
    unit.queue.fail(GONE)
    unit.path.window = True
    later = unit.start(write(4))
    assert [command.ended for command in (delayed, answered, lost, unsent, later)] == [
        False,
        False,
        False,
        True,
        True,
    ]
    count = len(unit.path.asked)
    await trio.sleep(5.0)
    assert answered.ended
    assert answered.failure is None  # the target has carried it out
    unit.path.lose()
    unit.path.restore()
    await unit.all_end()
    for command in delayed, lost, busy, unsent, later:
        assert isinstance(command.failure, UnitError)
        assert command.failure is not GONE  # each has one of its own
    assert len(unit.path.asked) == count


async def test_a_new_unit_under_the_number_has_nothing_to_do_with_the_commands_of_the_old_one(
    unit: Unit, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """They share the session, which is one path here; nothing of the old queue's is answered to the new."""
    unit.seconds = 5.0
    old = unit.start(write(0))
    unit.queue.fail(GONE)
    new = queue_of(unit.path, nursery)
    await new.run(write(9))
    assert old.failure is None
    unit.path.lose()
    unit.path.restore()
    await unit.all_end()
    assert unit.path.asked == [write(0), write(9)]


async def test_what_was_disowned_is_not_written_wherever_it_is(unit: Unit, autojump_clock: MockClock) -> None:
    unit.answers[write(0)] = [Status.BUSY]
    delayed = unit.start(write(0))
    unit.seconds = 10.0
    lost = unit.start(write(1))
    unit.queue.suspend()
    waits, reads = unit.start(write(2)), unit.start(read(3))
    count = len(unit.path.asked)
    unit.queue.disown(DataLostError("it may be another unit"))
    unit.queue.resume()
    new = unit.start(write(4))
    await trio.sleep(5.0)
    unit.path.lose()
    unit.path.restore()
    await unit.all_end()
    for command in delayed, lost, waits:
        assert isinstance(command.failure, DataLostError)
    assert reads.failure is None
    assert new.failure is None
    assert unit.path.asked[count:] == [read(3), write(4)] * 2


# Callers that give up, and ends that end others.


@pytest.mark.parametrize("where", ["waiting", "delayed", "unsent", "sent"])
async def test_a_caller_that_is_cancelled_takes_its_command_back(
    unit: Unit, nursery: trio.Nursery, autojump_clock: MockClock, where: str
) -> None:
    if where == "waiting":
        unit.queue.suspend()
    elif where == "delayed":
        unit.answers[write(0)] = [Status.BUSY]
    elif where == "unsent":
        unit.path.window = False
    else:
        unit.seconds = 100.0
    scope = trio.CancelScope()

    async def call() -> None:
        with scope:
            await unit.queue.run(write(0))
            pytest.fail("it was cancelled")

    nursery.start_soon(call)
    await wait_all_tasks_blocked()
    scope.cancel()
    await wait_all_tasks_blocked()
    assert [attempt.ended for attempt in unit.path.cancelled] == {
        "waiting": [],
        "delayed": [True],
        "unsent": [False],
        "sent": [False],
    }[where]
    count = len(unit.path.asked)
    unit.path.lose()
    unit.path.window = True
    unit.path.restore()
    unit.queue.resume()
    await trio.sleep(2 * TIMEOUT)
    assert len(unit.path.asked) == count


@pytest.mark.parametrize("what", ["resume", "expire", "disown"])
async def test_the_end_of_one_may_end_another_that_waits(
    unit: Unit, nursery: trio.Nursery, autojump_clock: MockClock, what: str
) -> None:
    scope = trio.CancelScope()
    unit.queue.suspend()
    unit.queue.start(write(0), lambda _: scope.cancel())

    async def call() -> None:
        with scope:
            await unit.queue.run(write(1))

    nursery.start_soon(call)
    await wait_all_tasks_blocked()
    last = unit.start(write(2))
    if what == "resume":
        unit.queue.resume()
    elif what == "disown":
        unit.queue.disown(DataLostError("it may be another unit"))
    await trio.sleep(TIMEOUT + 1)
    assert last.ended
    assert write(1) not in unit.path.asked


# The end.


@pytest.mark.parametrize("what", ["suspended", "down", "delayed", "sent", "unsent"])
async def test_a_closed_path_ends_all(unit: Unit, autojump_clock: MockClock, what: str) -> None:
    if what == "suspended":
        unit.queue.suspend()
    elif what == "down":
        unit.path.lose()
    elif what == "delayed":
        unit.answers[write(0)] = [Status.BUSY]
    elif what == "sent":
        unit.seconds = 5.0
    else:
        unit.path.window = False
    command = unit.start(write(0))
    assert not command.ended
    unit.path.close()
    await trio.sleep(1.0)
    later = unit.start(write(1))
    for each in command, later:
        assert isinstance(each.failure, TransportError)
        assert "closed" in str(each.failure)
    await unit.all_end()


async def test_the_end_of_the_nursery_ends_what_is_delayed(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        unit = Unit(nursery)
        unit.answers[write(0)] = [Status.BUSY]
        command = unit.start(write(0))
        nursery.cancel_scope.cancel()
    assert isinstance(command.failure, TransportError)
    assert unit.ends == {command.number: 1}


# How long.


async def test_while_it_waits_a_unit_is_not_busy(unit: Unit, autojump_clock: MockClock) -> None:
    """It is busy for a moment before the path is lost, and for another when it is back."""
    unit.answers[write(0)] = [Status.BUSY, Status.BUSY]
    command = unit.start(write(0))
    unit.path.lose()
    await trio.sleep(2 * PATIENCE)
    unit.path.restore()
    await unit.all_end()
    assert command.failure is None
    assert len(unit.path.asked) == 3


async def test_a_unit_that_is_busy_between_losses_is_so_for_its_patience_and_no_longer(
    unit: Unit, autojump_clock: MockClock
) -> None:
    unit.answers[write(0)] = [Status.BUSY] * 1000
    command = unit.start(write(0))
    busy = 0.0
    while not command.ended:
        await trio.sleep(5.0)
        busy += 5.0
        unit.path.lose()
        await trio.sleep(60.0)
        unit.path.restore()
        assert busy < 2 * PATIENCE
    assert isinstance(command.failure, BusyError)
    assert busy >= PATIENCE / 2  # the delay that goes on while the path is down counts


async def test_attempts_that_fail_fast_do_not_shorten_the_replacement_timeout(
    unit: Unit, autojump_clock: MockClock
) -> None:
    unit.path.lose()
    began = trio.current_time()
    command = unit.start(write(0))
    while trio.current_time() < began + TIMEOUT - 1:
        unit.path.fail_attempt()
        assert not command.ended
        await trio.sleep(0.25)
    await trio.sleep(1.5)
    assert isinstance(command.failure, CommandTimeout)
    assert "away for more than 120 seconds" in str(command.failure)
    assert unit.ends == {1: 1}


async def test_after_the_replacement_timeout_a_command_waits_for_one_attempt(
    unit: Unit, autojump_clock: MockClock
) -> None:
    unit.path.lose()
    await trio.sleep(10 * TIMEOUT)
    assert unit.start(write(0)).failure is not None  # there is no attempt to wait for
    unit.path.patience = 3.0
    failing, slow = unit.start(write(1)), unit.start(write(2))
    assert not failing.ended
    await trio.sleep(0.5)
    unit.path.fail_attempt()
    assert isinstance(failing.failure, CommandTimeout)
    assert isinstance(slow.failure, CommandTimeout)
    slow = unit.start(write(3))
    await trio.sleep(2.9)
    assert not slow.ended
    await trio.sleep(0.2)
    assert isinstance(slow.failure, CommandTimeout)
    back = unit.start(write(4))
    unit.path.restore()
    assert back.failure is None
    assert unit.path.asked == [write(4)]


async def test_after_a_long_absence_the_next_command_finds_a_unit_that_was_suspected_before(
    unit: Unit, autojump_clock: MockClock
) -> None:
    """It reported something, the path was lost before anybody had looked, and for long."""
    unit.queue.suspend()
    await trio.sleep(1.0)
    unit.path.lose()
    await trio.sleep(10 * TIMEOUT)
    unit.path.patience = 3.0
    command = unit.start(write(0))
    assert unit.path.wanted == 1
    assert not command.ended
    await trio.sleep(1.0)
    unit.path.restore(unit.queue.suspend)
    later = unit.start(write(1))
    await trio.sleep(30.0)  # the look takes its time
    unit.queue.resume()
    assert (command.failure, later.failure) == (None, None)
    assert unit.path.asked == [write(0), write(1)]


async def test_a_unit_that_nobody_verifies_has_the_replacement_timeout(
    unit: Unit, autojump_clock: MockClock
) -> None:
    """It does not begin anew whatever else the unit reports, or however often the path is lost."""
    unit.queue.suspend()
    command = unit.start(write(0))
    for _ in range(11):
        await trio.sleep(10.0)
        unit.path.lose()
        await trio.sleep(0.1)
        unit.path.restore(unit.queue.suspend)
        unit.queue.suspend()
    assert not command.ended
    await trio.sleep(10.0)
    assert isinstance(command.failure, CommandTimeout)
    assert "not known for 120 seconds" in str(command.failure)
    assert unit.start(write(1)).failure is not None


# Memory.


@pytest.mark.parametrize("what", ["listen", "start_soon", "send"])
async def test_what_there_is_no_memory_for_ends_and_is_not_sent_later(
    unit: Unit, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        if what == "listen":
            patch.setattr(unit.path, "listen", fail)
        elif what == "start_soon":
            patch.setattr(unit.queue, "_in_background", fail)
        else:
            patch.setattr(unit.path, "send", fail)
        if what != "send":
            unit.path.lose()
        command = unit.start(write(0))
        assert isinstance(command.failure, MemoryError)
    later = unit.start(write(1))
    if what != "send":
        unit.path.restore()
    await unit.all_end()
    assert later.failure is None
    assert unit.path.asked == [write(1)]


@pytest.mark.parametrize("what", ["listen", "start_soon"])
async def test_no_memory_for_one_that_comes_back_ends_that_one_alone(
    unit: Unit, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    unit.seconds = 5.0
    commands = [unit.start(write(lba)) for lba in range(3)]
    left = iter([MemoryError])

    def once(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            for error in left:
                raise error
            return real(*arguments)

        return call

    if what == "listen":
        monkeypatch.setattr(unit.path, "listen", once(unit.path.listen))
    else:
        monkeypatch.setattr(unit.queue, "_in_background", once(unit.queue._in_background))
    unit.path.lose()
    assert [type(command.failure) for command in commands] == [MemoryError, type(None), type(None)]
    unit.path.restore()
    await unit.all_end()
    assert [command.failure for command in commands[1:]] == [None, None]
    assert unit.path.asked[3:] == [write(1), write(2)]


async def test_no_memory_for_one_of_those_that_wait_holds_up_no_other(
    unit: Unit, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit.path.lose()
    commands = [unit.start(write(lba)) for lba in range(3)]
    send = unit.path.send

    def fail(command: bytes, *others: object) -> object:
        if command == write(1):
            raise MemoryError
        return send(command, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(unit.path, "send", fail)
    unit.path.restore()
    await unit.all_end()
    assert [type(command.failure) for command in commands] == [type(None), MemoryError, type(None)]
