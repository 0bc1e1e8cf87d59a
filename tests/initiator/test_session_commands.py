"""Commands of a session while its connection lives: windows, cancellation, many at once, time-outs."""

import random
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from iscsifs.errors import CommandTimeout, DataError, TaskAborted, TransportError
from iscsifs.iscsi.events import SenseReported
from iscsifs.iscsi.pdu import (
    FINAL,
    RESERVED_TAG,
    DataOut,
    LogoutRequest,
    NopIn,
    NopOut,
    RejectReason,
    ScsiCommand,
    ScsiResponse,
    TaskFunction,
    TaskManagementRequest,
    TaskResponse,
)
from iscsifs.limits import LAST_LOGOUT_TIMEOUT, MANAGEMENT_TIMEOUT
from iscsifs.scsi import cdb
from iscsifs.scsi.sense import Condition, Sense, SenseKey
from iscsifs.scsi.status import Status
from support.memory_line import LUN, OTHER_LUN, Call, pair
from support.peer import Closed, Peer

READ = cdb.read_10(0, 1)
WRITE = cdb.write_10(0, 1)


async def open_window(peer: Peer) -> None:
    """Tell the initiator of the window by a NOP-In that asks for nothing."""
    await peer.send(NopIn(0, RESERVED_TAG, RESERVED_TAG, **peer.numbers))


# Many at once.


async def test_a_command_and_its_answer(autojump_clock: MockClock) -> None:
    async with pair() as line:
        call = line.attempt(READ, read=512)
        command = await line.peer.expect(ScsiCommand)
        assert (command.lun, command.expected_data_transfer_length) == (LUN, 512)
        await line.peer.data_in(command, b"x" * 512)
        await call.succeeded()
        assert call.buffer == b"x" * 512


async def test_many_in_parallel_answered_in_any_order(autojump_clock: MockClock) -> None:
    async with pair(window=64) as line:
        calls = [line.attempt(cdb.read_10(lba, 1), read=512) for lba in range(64)]
        commands = [await line.peer.expect(ScsiCommand) for _ in calls]
        shuffled = list(commands)
        random.Random(7143).shuffle(shuffled)
        for command in shuffled:
            await line.peer.data_in(command, bytes([int.from_bytes(command.cdb[2:6], "big")]) * 512)
        for lba, call in enumerate(calls):
            await call.succeeded()
            assert call.buffer == bytes([lba]) * 512


@pytest.mark.conformance("FFP-3.1")
async def test_a_closed_window_holds_commands_back_until_it_opens(autojump_clock: MockClock) -> None:
    async with pair(window=1, ping_interval=1.0) as line:
        first = line.attempt()
        command = await line.peer.expect(ScsiCommand)
        line.peer.window = 0
        await line.peer.status(command)
        await first.succeeded()
        second = line.attempt()
        started = trio.current_time()
        ping = await line.peer.expect(NopOut)  # what is immediate goes out all the same
        assert ping.immediate
        await line.peer.send(NopIn(0, ping.initiator_task_tag, RESERVED_TAG, **line.peer.counted()))
        await trio.sleep_until(started + 2.0)
        line.peer.window = 1
        await open_window(line.peer)
        pdu, _ = await line.peer.receive()
        while isinstance(pdu, NopOut):
            pdu, _ = await line.peer.receive()
        assert isinstance(pdu, ScsiCommand)
        assert trio.current_time() - started < 2.1
        await line.peer.status(pdu)
        await second.succeeded()


async def test_thousands_of_waiting_commands_keep_their_order(autojump_clock: MockClock) -> None:
    async with pair(window=1) as line:
        calls = [Call(cdb.read_10(lba, 1), read=1) for lba in range(5000)]
        for call in calls:
            line.nursery.start_soon(call.run, line.queue())
            await trio.lowlevel.checkpoint()
        line.peer.window = 128
        seen = []
        for _ in calls:
            command = await line.peer.expect(ScsiCommand)
            seen.append(int.from_bytes(command.cdb[2:6], "big"))
            assert line.session.link.connection.tasks_on_the_wire <= 256
            await line.peer.data_in(command, b"x")
        for call in calls:
            await call.succeeded()
        assert sorted(seen) == list(range(5000))
        assert seen[1:] == sorted(seen[1:])


async def test_what_several_callers_queue_on_a_busy_line_goes_out_in_one_piece(
    autojump_clock: MockClock,
) -> None:
    async with pair() as line:
        for _ in range(4):
            line.attempt()
        await wait_all_tasks_blocked()
        first = await line.peer.stream.receive_some(1 << 16)
        assert len(first) == 4 * 48
        for _ in range(10):
            line.attempt()
        await wait_all_tasks_blocked()
        assert len(await line.peer.stream.receive_some(1 << 16)) == 10 * 48


async def test_an_answer_right_before_a_broken_rule_counts(autojump_clock: MockClock) -> None:
    async with pair() as line:
        call = line.attempt()
        command = await line.peer.expect(ScsiCommand)
        status = ScsiResponse(FINAL, 0, 0, command.initiator_task_tag, **line.peer.counted())
        await line.peer.send_bytes(line.peer.encode(status) + b"\x3c" + bytes(47))
        await call.succeeded()


async def test_a_short_read_is_an_error(autojump_clock: MockClock) -> None:
    async with pair() as line:
        call = line.attempt(READ, read=512)
        await line.peer.data_in(await line.peer.expect(ScsiCommand), b"x" * 100)
        assert isinstance(await call.failed(), DataError)


# Callers that give up.


async def test_a_caller_that_gives_up_before_the_command_was_sent_leaves_nothing(
    autojump_clock: MockClock,
) -> None:
    async with pair(window=0) as line:
        gone, stays = line.attempt(READ, read=512), line.attempt()
        await wait_all_tasks_blocked()
        gone.scope.cancel()
        await wait_all_tasks_blocked()
        line.peer.window = 8
        await open_window(line.peer)
        command = await line.peer.expect(ScsiCommand)
        assert command.cdb[0] == 0
        await line.peer.status(command)
        await stays.succeeded()
        await line.peer.nothing(5.0)


async def test_a_caller_that_was_cancelled_before_it_began_sends_nothing(autojump_clock: MockClock) -> None:
    async with pair() as line:
        call = Call()
        call.scope.cancel()
        await call.run(line.queue())
        await line.peer.nothing(5.0)


@pytest.mark.conformance("ERR-17", "FFP-2.2")
async def test_a_caller_that_gives_up_later_has_the_command_aborted(autojump_clock: MockClock) -> None:
    async with pair() as line:
        gone = line.attempt(READ, read=512)
        command = await line.peer.expect(ScsiCommand)
        gone.scope.cancel()
        abort = await line.peer.expect(TaskManagementRequest)
        assert line.peer.data == b""
        assert abort.function == TaskFunction.ABORT_TASK
        assert abort.immediate
        assert (abort.lun, abort.referenced_task_tag) == (LUN, command.initiator_task_tag)
        assert (abort.ref_cmd_sn, abort.cmd_sn) == (command.cmd_sn, command.cmd_sn + 1)
        # Until the answer the tag is not given to another, and what still comes goes where nobody reads.
        other = line.attempt()
        following = await line.peer.expect(ScsiCommand)
        assert following.cmd_sn == abort.cmd_sn
        assert following.initiator_task_tag not in (command.initiator_task_tag, abort.initiator_task_tag)
        await line.peer.data_in(command, b"x" * 512)
        await line.peer.managed(abort, 1)
        await line.peer.status(following)
        await other.succeeded()
        assert gone.buffer == b"x" * 512


async def test_a_cancelled_write_still_answers_what_the_target_asks_for(autojump_clock: MockClock) -> None:
    async with pair(keys={"ImmediateData": "No", "InitialR2T": "Yes"}) as line:
        gone = line.attempt(WRITE, write=b"w" * 512)
        command = await line.peer.expect(ScsiCommand)
        gone.scope.cancel()
        abort = await line.peer.expect(TaskManagementRequest)
        await line.peer.r2t(command, offset=0, length=512)
        await line.peer.expect(DataOut)
        assert line.peer.data == b"w" * 512
        await line.peer.managed(abort, 0)
        other = line.attempt()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await other.succeeded()


async def test_the_answer_to_an_abort_is_not_for_the_next_attempt(autojump_clock: MockClock) -> None:
    """The abort and the status cross each other, so the target knows of no such task."""
    async with pair(command_timeout=3.0) as line:
        outcomes: list[Exception | None] = []
        line.queue().start(
            WRITE, lambda command: outcomes.append(command.failure), data_out=memoryview(b"w" * 512)
        )
        first = await line.peer.expect(ScsiCommand)
        abort = await line.peer.expect(TaskManagementRequest)
        await line.peer.status(first, Status.BUSY)
        second = await line.peer.expect(ScsiCommand)
        await line.peer.managed(abort, TaskResponse.NO_SUCH_TASK)
        await line.peer.nothing(1.0)
        assert outcomes == []
        await line.peer.status(second)
        await wait_all_tasks_blocked()
        assert outcomes == [None]


async def test_a_command_whose_time_is_over_is_not_aborted_twice(autojump_clock: MockClock) -> None:
    async with pair(command_timeout=3.0) as line:
        gone = line.attempt()
        await line.peer.expect(ScsiCommand)
        await line.peer.expect(TaskManagementRequest)
        gone.scope.cancel()
        await line.peer.nothing(MANAGEMENT_TIMEOUT - 2.0)


# Time-outs: abort the task, reset the unit, drop the session.


@pytest.mark.conformance("ERR-17")
async def test_a_command_without_an_answer_is_aborted_not_before_its_time(autojump_clock: MockClock) -> None:
    async with pair(command_timeout=30.0) as line:
        await trio.sleep(0.9)
        call = line.attempt()
        started = trio.current_time()
        command = await line.peer.expect(ScsiCommand)
        abort = await line.peer.expect(TaskManagementRequest)
        assert 30.0 <= trio.current_time() - started <= 31.0
        assert abort.referenced_task_tag == command.initiator_task_tag
        await line.peer.managed(abort)
        assert isinstance(await call.failed(), TaskAborted)


@pytest.mark.conformance("ERR-18")
@pytest.mark.parametrize("response", [0, 1])
async def test_an_abort_that_was_carried_out_or_came_too_late_ends_the_command(
    autojump_clock: MockClock, response: int
) -> None:
    async with pair(command_timeout=3.0) as line:
        call = line.attempt()
        command = await line.peer.expect(ScsiCommand)
        abort = await line.peer.expect(TaskManagementRequest)
        await line.peer.managed(abort, response)
        assert isinstance(await call.failed(), TaskAborted)
        await line.peer.status(command)  # late: thrown away
        await line.peer.nothing(5.0)
        assert line.session.link.failure is None


@pytest.mark.conformance("ERR-18")
async def test_a_status_before_the_answer_to_the_abort_is_used(autojump_clock: MockClock) -> None:
    async with pair(command_timeout=3.0) as line:
        call = line.attempt()
        command = await line.peer.expect(ScsiCommand)
        abort = await line.peer.expect(TaskManagementRequest)
        await line.peer.status(command)
        await call.succeeded()
        await line.peer.managed(abort, 1)
        await line.peer.nothing(20.0)
        assert line.session.link.failure is None


@pytest.mark.conformance("ERR-19")
@pytest.mark.parametrize("response", [2, 3, 4, 5, 6, 255, 77, None])
async def test_an_abort_that_does_not_help_is_followed_by_a_reset_and_then_by_a_new_session(
    autojump_clock: MockClock, response: int | None
) -> None:
    async with pair(command_timeout=3.0) as line:
        call = line.call()
        started = trio.current_time()
        await line.peer.expect(ScsiCommand)
        functions = []
        for _ in range(2):
            request = await line.peer.expect(TaskManagementRequest)
            functions.append(request.function)
            if response is not None:
                await line.peer.managed(request, response)
        assert functions == [TaskFunction.ABORT_TASK, TaskFunction.LOGICAL_UNIT_RESET]
        assert (request.lun, request.referenced_task_tag) == (LUN, RESERVED_TAG)
        await line.peer.closed()
        assert trio.current_time() - started <= 3.0 + 2 * MANAGEMENT_TIMEOUT + 4.0
        await line.peer.login()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()


@pytest.mark.conformance("ERR-20")
async def test_a_reset_ends_the_tasks_of_its_unit_alone(autojump_clock: MockClock) -> None:
    async with pair(command_timeout=3.0) as line:
        calls, commands = [], []
        for lun in LUN, LUN, OTHER_LUN:
            calls.append(line.attempt(lun=lun))
            commands.append(await line.peer.expect(ScsiCommand))
        stuck, answered, other = calls
        for _ in commands:
            await line.peer.managed(await line.peer.expect(TaskManagementRequest), 5)
        resets = [await line.peer.expect(TaskManagementRequest) for _ in range(2)]
        assert [reset.lun for reset in resets] == [LUN, OTHER_LUN]
        await line.peer.status(commands[1])  # before the answer to the reset: it counts
        await answered.succeeded()
        await line.peer.managed(resets[0])
        assert isinstance(await stuck.failed(), TaskAborted)
        assert not other.done.is_set()
        await line.peer.status(commands[0])  # late
        await line.peer.status(commands[2])
        await other.succeeded()


async def test_a_reset_that_we_have_asked_for_counts_as_one_that_was_reported(
    autojump_clock: MockClock,
) -> None:
    async with pair(command_timeout=3.0) as line:
        call = line.attempt()
        heard: list[SenseReported] = []
        line.session.on_sense = heard.append
        await line.peer.expect(ScsiCommand)
        await line.peer.managed(await line.peer.expect(TaskManagementRequest), 5)
        assert heard == []
        await line.peer.managed(await line.peer.expect(TaskManagementRequest))
        await call.failed()
        assert [(event.lun, Sense.parse(event.sense).condition) for event in heard] == [
            (LUN, Condition.RESET)
        ]


async def test_a_management_function_that_is_rejected_again_and_again_is_given_up(
    autojump_clock: MockClock,
) -> None:
    async with pair(command_timeout=3.0) as line:
        line.attempt()
        started = trio.current_time()
        await line.peer.expect(ScsiCommand)
        functions = set()
        with suppress(Closed):
            while True:
                request = await line.peer.expect(TaskManagementRequest)
                functions.add(request.function)
                await line.peer.reject(RejectReason.TOO_MANY_IMMEDIATE_COMMANDS, request)
        assert functions == {TaskFunction.ABORT_TASK, TaskFunction.LOGICAL_UNIT_RESET}
        assert trio.current_time() - started <= 3.0 + 2 * MANAGEMENT_TIMEOUT + 4.0


@pytest.mark.conformance("ERR-5")
@pytest.mark.parametrize(
    "reason",
    [RejectReason.PROTOCOL_ERROR, RejectReason.COMMAND_NOT_SUPPORTED, RejectReason.INVALID_PDU_FIELD],
)
async def test_a_rejected_command_fails_and_the_session_stays(
    autojump_clock: MockClock, reason: RejectReason
) -> None:
    async with pair() as line:
        call = line.attempt()
        rejected = await line.peer.expect(ScsiCommand)
        other = line.attempt()
        command = await line.peer.expect(ScsiCommand)
        await line.peer.reject(reason, rejected)
        abort = await line.peer.expect(TaskManagementRequest)
        assert abort.ref_cmd_sn == rejected.cmd_sn
        await line.peer.managed(abort)
        failure = await call.failed()
        assert reason.name in str(failure)
        assert not isinstance(failure, TaskAborted)
        await line.peer.status(command)
        await other.succeeded()


@pytest.mark.conformance("ERR-6")
async def test_the_abort_of_a_rejected_command_is_sent_again_where_it_was_refused_for_now(
    autojump_clock: MockClock,
) -> None:
    async with pair() as line:
        call = line.attempt()
        await line.peer.reject(RejectReason.PROTOCOL_ERROR, await line.peer.expect(ScsiCommand))
        abort = await line.peer.expect(TaskManagementRequest)
        await line.peer.reject(RejectReason.TOO_MANY_IMMEDIATE_COMMANDS, abort)
        await line.peer.managed(await line.peer.expect(TaskManagementRequest))
        assert "PROTOCOL_ERROR" in str(await call.failed())


async def test_time_in_the_queue_is_no_time_without_an_answer(autojump_clock: MockClock) -> None:
    async with pair(window=1, command_timeout=3.0) as line:
        slow = line.attempt()
        command = await line.peer.expect(ScsiCommand)
        waiting = line.attempt()
        await trio.sleep(2.5)
        await line.peer.status(command)
        await slow.succeeded()
        second = await line.peer.expect(ScsiCommand)
        await line.peer.nothing(2.5)
        # On the wire its own time runs, however long it has waited before.
        abort = await line.peer.expect(TaskManagementRequest)
        assert abort.referenced_task_tag == second.initiator_task_tag
        await line.peer.managed(abort)
        await waiting.failed()


async def test_a_window_that_is_never_opened_costs_the_target_the_session(autojump_clock: MockClock) -> None:
    async with pair(window=0, command_timeout=5.0) as line:
        call = line.call()
        started = trio.current_time()
        await line.peer.closed()
        assert 5.0 <= trio.current_time() - started <= 7.0
        line.peer.window = 1
        await line.peer.login()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()


@pytest.mark.conformance("HOSTILE-27")
@pytest.mark.parametrize("flood", ["R2Ts of one byte", "Data-Ins of no byte", "Data-Ins of one byte"])
async def test_a_command_that_is_answered_in_crumbs_ends_by_its_time_out(
    autojump_clock: MockClock, flood: str
) -> None:
    """However long the target could go on, and while other units are served."""
    keys = {"ImmediateData": "No", "InitialR2T": "Yes"}
    async with pair(keys=keys, command_timeout=5.0) as line:
        started = trio.current_time()
        if flood == "R2Ts of one byte":
            call = line.attempt(cdb.write_10(0, 64), write=bytes(32768))
        else:
            call = line.attempt(cdb.read_10(0, 64), read=32768)
        command = await line.peer.expect(ScsiCommand)

        async def crumbs() -> None:
            for number in range(32768):
                if flood == "R2Ts of one byte":
                    await line.peer.r2t(command, offset=number, length=1, r2t_sn=number)
                else:
                    crumb = b"x" if flood == "Data-Ins of one byte" else b""
                    offset = number * len(crumb)
                    await line.peer.data_in(command, crumb, flags=0, data_sn=number, buffer_offset=offset)
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(crumbs)
            others = 0
            while True:
                other = line.attempt(lun=OTHER_LUN)
                asked = trio.current_time()
                pdu, _ = await line.peer.receive()
                while isinstance(pdu, DataOut):
                    pdu, _ = await line.peer.receive()
                if isinstance(pdu, TaskManagementRequest):
                    break
                assert isinstance(pdu, ScsiCommand)
                await line.peer.status(pdu)
                await other.succeeded()
                assert trio.current_time() - asked < 0.1
                others += 1
                await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        assert pdu.referenced_task_tag == command.initiator_task_tag
        assert trio.current_time() - started <= 5.0 + 2.0
        assert others > 10
        await line.peer.managed(pdu)
        assert isinstance(await call.failed(), TaskAborted)


async def test_a_target_that_answers_no_command_is_done_with_in_bounded_time(
    autojump_clock: MockClock,
) -> None:
    """Five sessions, in each of which the command, the abort and the reset have their time."""
    async with pair(command_timeout=3.0) as line:
        call = line.call()

        async def silence() -> None:
            while True:
                try:
                    await line.peer.receive()
                except Closed:
                    await line.peer.login()

        line.nursery.start_soon(silence)
        started = trio.current_time()
        failure = await call.failed()
        assert isinstance(failure, CommandTimeout)
        assert "TEST UNIT READY" in str(failure)
        assert "5 sessions" in str(failure)
        assert len(line.logins) == 5
        assert trio.current_time() - started <= 5 * (3.0 + 2 * MANAGEMENT_TIMEOUT + 3.0) + 20.0


# The end.


@pytest.mark.conformance("ERR-12")
async def test_a_session_is_closed_with_a_logout(autojump_clock: MockClock) -> None:
    async with pair() as line:
        line.nursery.start_soon(line.session.close)
        logout = await line.peer.expect(LogoutRequest)
        assert (logout.reason, logout.immediate, line.peer.data) == (0, True, b"")
        late = line.attempt()
        assert isinstance(await late.failed(), TransportError)
        await line.peer.nothing(1.0)  # neither is anything sent behind it, nor is the connection closed
        await line.peer.logged_out(logout)
        await line.peer.closed()
        assert line.line.dialled == []


@pytest.mark.conformance("ERR-13")
@pytest.mark.parametrize("response", [0, 1, 2, 3, None])
async def test_closing_takes_bounded_time_whatever_the_target_answers(
    autojump_clock: MockClock, response: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair() as line:
        unanswered = line.attempt()
        await line.peer.expect(ScsiCommand)
        started = trio.current_time()
        line.nursery.start_soon(line.session.close)
        logout = await line.peer.expect(LogoutRequest)
        if response is not None:
            await line.peer.logged_out(logout, response, time2wait=60, time2retain=60)
        await line.peer.closed()
        assert isinstance(await unanswered.failed(), TransportError)
        assert trio.current_time() - started <= (0.1 if response is not None else LAST_LOGOUT_TIMEOUT + 0.1)
        assert bool(caplog.records) == (response != 0)
        assert line.line.dialled == []


@pytest.mark.conformance("ERR-10")
async def test_a_connection_that_ends_answers_the_logout(autojump_clock: MockClock) -> None:
    async with pair() as line:
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.session.close)
            await line.peer.expect(LogoutRequest)
            await line.peer.close()
        assert trio.current_time() - started < 0.1
        await trio.sleep(10.0)
        assert line.line.dialled == []


async def test_closing_twice_is_closing_once(autojump_clock: MockClock) -> None:
    async with pair() as line, trio.open_nursery() as nursery:
        nursery.start_soon(line.session.close)
        nursery.start_soon(line.session.close)
        await line.peer.logged_out(await line.peer.expect(LogoutRequest))
        await line.peer.closed()


async def test_a_session_that_is_cancelled_fails_its_commands_and_closes_its_socket(
    autojump_clock: MockClock,
) -> None:
    async with pair() as line:
        call = line.attempt()
        await line.peer.expect(ScsiCommand)
        line.scope.cancel()
        await line.peer.closed()
        assert isinstance(await call.failed(), TransportError)


# Without memory.


async def test_an_abort_that_there_is_no_memory_for_ends_the_connection_and_no_more(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """trio calls `cancel` where it delivers a cancellation; what is raised there ends the program."""

    def fail(*_: object) -> None:
        raise MemoryError

    async with pair() as line:
        other = line.call()
        await line.peer.expect(ScsiCommand)
        call = line.call(READ, read=512)
        await line.peer.expect(ScsiCommand)
        with monkeypatch.context() as patch:
            patch.setattr(line.session.link.connection.requests, "abort_task", fail)
            call.scope.cancel()
            await wait_all_tasks_blocked()
        await line.peer.closed()
        await line.peer.login()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await other.succeeded()
        await line.peer.nothing(1.0)


async def test_a_report_that_there_is_no_memory_for_is_not_taken_for_none(
    autojump_clock: MockClock,
) -> None:
    """The command that it came with ends, and is repeated after the next login, which asks what is there."""

    def fail(_: SenseReported) -> None:
        raise MemoryError

    async with pair() as line:
        line.session.on_sense = fail
        call = line.call(WRITE, write=bytes(512))
        command = await line.peer.expect(ScsiCommand)
        sense = Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x00).pack()
        await line.peer.status(command, Status.CHECK_CONDITION, sense)
        await line.peer.closed()
        assert not call.done.is_set()
        logins = line.session.logins
        suspended: list[int] = []
        line.session.on_login = lambda: suspended.append(line.session.logins)
        await line.peer.login()
        again = await line.peer.expect(ScsiCommand)
        assert suspended == [logins + 1]
        await line.peer.status(again)
        await call.succeeded()


@pytest.mark.parametrize("what", ["login", "listener"])
async def test_a_new_session_that_there_is_no_memory_for_ends_and_the_next_one_goes_on(
    what: str, autojump_clock: MockClock
) -> None:
    """Nothing is sent to units that are not known to be suspended, and no command waits for ever."""
    left = iter([MemoryError])

    def fail_once() -> None:
        for error in left:
            raise error

    async with pair() as line:
        call = line.call(WRITE, write=bytes(512))
        await line.peer.expect(ScsiCommand)
        if what == "login":
            line.session.on_login = fail_once
        await line.peer.close()
        await wait_all_tasks_blocked()
        if what == "listener":
            line.session.listen(fail_once)
        await line.peer.login()
        if what == "listener":
            await line.peer.expect(ScsiCommand)  # the unit's queue was told before
        await line.peer.closed()
        assert not call.done.is_set()
        await line.peer.login()
        assert next(left, None) is None
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()


async def test_a_failed_login_that_there_is_no_memory_to_tell_of_is_followed_by_others(
    autojump_clock: MockClock,
) -> None:
    told: list[float] = []

    def fail_once() -> None:
        told.append(trio.current_time())
        if len(told) == 1:
            raise MemoryError

    async with pair() as line:
        line.line.failure = TransportError("Connection refused")
        await line.peer.close()
        await wait_all_tasks_blocked()
        line.session.listen(fail_once)
        await trio.sleep(60.0)
        assert len(told) == 2
        line.line.failure = None
        await line.peer.login()


async def test_an_abort_by_the_clock_that_there_is_no_memory_for_ends_the_connection_and_no_more(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    async with pair() as line:
        call = line.call()
        await line.peer.expect(ScsiCommand)
        monkeypatch.setattr(line.session.link.connection.requests, "abort_task", fail)
        await line.peer.closed()
        await line.peer.login()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()
