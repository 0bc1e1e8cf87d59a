"""What a target says by itself, and what a session makes of it."""

import logging

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from iscsifs.errors import TaskAborted
from iscsifs.iscsi.events import SenseReported
from iscsifs.iscsi.pdu import (
    FINAL,
    AsyncEvent,
    LoginResponse,
    LogoutRequest,
    RejectReason,
    ScsiCommand,
    ScsiResponse,
    Stage,
    TaskFunction,
    TaskManagementRequest,
    TextRequest,
)
from iscsifs.iscsi.states import SessionState
from iscsifs.limits import LOGOUT_TIMEOUT, MAX_TIME2WAIT, NOTES_A_MINUTE
from iscsifs.scsi import cdb
from iscsifs.scsi.sense import Sense, SenseKey
from support.memory_line import LUN, TARGET, pair

CAPACITY_CHANGED = Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x09).pack()


# The target asks for a logout.


@pytest.mark.conformance("FFP-14.1")
async def test_a_logout_that_is_asked_for_comes_at_once(autojump_clock: MockClock) -> None:
    async with pair() as line:
        unanswered = line.call()
        await line.peer.expect(ScsiCommand)
        asked = trio.current_time()
        await line.peer.async_message(AsyncEvent.LOGOUT_REQUESTED, parameter3=5)
        await wait_all_tasks_blocked()
        late = line.call()
        logout = await line.peer.expect(LogoutRequest)
        assert trio.current_time() == asked
        assert logout.reason == 0
        assert logout.exp_stat_sn == line.peer.stat_sn
        assert line.peer.data == b""
        await line.peer.nothing(1.0)
        await line.peer.logged_out(logout)
        await line.peer.closed()
        await line.peer.login()
        for _ in range(2):
            await line.peer.status(await line.peer.expect(ScsiCommand))
        await unanswered.succeeded()
        await late.succeeded()


@pytest.mark.conformance("ERR-8")
async def test_a_reject_that_waits_for_a_logout_gets_one(autojump_clock: MockClock) -> None:
    async with pair() as line:
        call = line.call()
        await line.peer.reject(RejectReason.WAITING_FOR_LOGOUT, await line.peer.expect(ScsiCommand))
        await line.peer.logged_out(await line.peer.expect(LogoutRequest))
        await line.peer.closed()
        await line.peer.login()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()


@pytest.mark.conformance("ERR-8")
@pytest.mark.parametrize("reason", [0x03, 0x08, 0x01, 0x55])
async def test_a_reject_without_a_cause_ends_the_session(autojump_clock: MockClock, reason: int) -> None:
    async with pair() as line:
        call = line.call()
        await line.peer.reject(reason, await line.peer.expect(ScsiCommand))
        await line.peer.closed()
        await line.peer.login()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()


async def test_a_logout_that_was_asked_for_and_is_not_answered_takes_bounded_time(
    autojump_clock: MockClock,
) -> None:
    async with pair() as line:
        call = line.call()
        await line.peer.expect(ScsiCommand)
        asked = trio.current_time()
        await line.peer.async_message(AsyncEvent.LOGOUT_REQUESTED, parameter3=60)
        await line.peer.expect(LogoutRequest)
        await line.peer.closed()
        assert LOGOUT_TIMEOUT <= trio.current_time() - asked <= LOGOUT_TIMEOUT + 2.0
        await line.peer.login()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()


@pytest.mark.conformance("ERR-13")
@pytest.mark.parametrize(("response", "earliest"), [(0, 0.0), (1, 0.0), (2, 7.0), (3, 7.0)])
async def test_time2wait_of_a_logout_counts_where_it_failed(
    autojump_clock: MockClock, response: int, earliest: float
) -> None:
    async with pair() as line:
        await line.peer.async_message(AsyncEvent.LOGOUT_REQUESTED, parameter3=5)
        asked = trio.current_time()
        request = await line.peer.expect(LogoutRequest)
        assert line.session.state is SessionState.LOGGED_IN
        await line.peer.logged_out(request, response, time2wait=7)
        await line.peer.closed()
        assert line.session.state is (SessionState.FAILED if response else SessionState.FREE)
        await line.peer.login()
        assert line.line.dialled == [pytest.approx(asked + earliest, abs=0.1)]
        await wait_all_tasks_blocked()
        assert line.session.state is SessionState.LOGGED_IN


async def test_a_logout_is_asked_for_while_the_units_are_held(autojump_clock: MockClock) -> None:
    """They are released in the same moment, but no command may follow the logout."""
    async with pair() as line:
        line.session.on_login = line.queue().suspend
        call = line.call()
        await line.peer.expect(ScsiCommand)
        await line.peer.close()
        await line.peer.login()
        await wait_all_tasks_blocked()
        await line.peer.async_message(AsyncEvent.LOGOUT_REQUESTED, parameter3=5)
        logout = await line.peer.expect(LogoutRequest)
        line.queue().resume()
        await line.peer.nothing(1.0)
        assert line.session.state is SessionState.LOGGED_IN
        assert line.session.is_away
        assert not line.session.is_closed
        await line.peer.logged_out(logout)
        await line.peer.login()
        await wait_all_tasks_blocked()
        await line.peer.nothing(1.0)  # a new session, so it is held again
        line.queue().resume()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()


async def test_a_logout_asked_for_in_every_session_is_no_loop_without_pauses(
    autojump_clock: MockClock,
) -> None:
    async with pair(replacement_timeout=30.0) as line:

        async def target() -> None:
            while True:
                await line.peer.async_message(AsyncEvent.LOGOUT_REQUESTED, parameter3=5)
                while True:
                    pdu, _ = await line.peer.receive()
                    if isinstance(pdu, LogoutRequest):
                        break
                await line.peer.logged_out(pdu)
                await line.peer.login()

        line.nursery.start_soon(target)
        await trio.sleep(60.0)
        assert 10 <= len(line.line.dialled) <= 25


@pytest.mark.conformance("HOSTILE-28")
async def test_event_1_again_and_again_gets_one_logout(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair() as line:
        for _ in range(1000):
            await line.peer.async_message(AsyncEvent.LOGOUT_REQUESTED, parameter3=5)
        await line.peer.expect(LogoutRequest)
        await line.peer.nothing(2.0)
        assert sum("asks for a logout" in record.message for record in caplog.records) == 1


async def test_what_comes_in_one_piece_with_the_last_login_response_is_not_lost(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair() as line:
        await line.peer.close()
        send_bytes = line.peer.send_bytes
        held = b""

        async def hold_the_last_response(data: bytes) -> None:
            nonlocal held
            held += data
            pdu = line.peer.sent[-1][0]
            if not (isinstance(pdu, LoginResponse) and pdu.flags & 3 == Stage.FULL_FEATURE):
                held, now = b"", held
                await send_bytes(now)

        monkeypatch.setattr(line.peer, "send_bytes", hold_the_last_response)
        await line.peer.login()
        assert held
        await line.peer.async_message(AsyncEvent.LOGOUT_REQUESTED, parameter3=5)
        await line.peer.expect(LogoutRequest)


# The target drops the connection.


@pytest.mark.conformance("ERR-26")
@pytest.mark.parametrize("event", [AsyncEvent.CONNECTION_DROPPED, AsyncEvent.ALL_CONNECTIONS_DROPPED])
async def test_after_a_connection_is_dropped_its_time2wait_is_obeyed(
    autojump_clock: MockClock, event: AsyncEvent
) -> None:
    async with pair(keys={"DefaultTime2Wait": "30"}) as line:
        call = line.call()
        await line.peer.expect(ScsiCommand)
        told = trio.current_time()
        await line.peer.async_message(event, parameter1=0, parameter2=1, parameter3=2)
        await line.peer.closed()
        await line.peer.login()
        assert line.line.dialled == [pytest.approx(told + 1.0, abs=0.1)]
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()


# What costs nothing: one warning for each session, and no new one.


@pytest.mark.conformance("HOSTILE-6")
async def test_a_stat_sn_that_repeats_under_queued_writes_ends_no_session(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """NetBSD's iscsi-target gives the same number to all that it answers in one go."""
    async with pair() as line:
        for _ in range(3):
            calls = [line.call(cdb.write_10(block, 1), write=bytes(512)) for block in range(8)]
            commands = [await line.peer.expect(ScsiCommand) for _ in calls]
            due = line.peer.stat_sn
            for command in commands:
                await line.peer.status(command, stat_sn=due)
            line.peer.stat_sn = due + 1
            for call in calls:
                await call.succeeded()
        assert line.line.dialled == []
        last = line.call()
        command = await line.peer.expect(ScsiCommand)
        assert command.exp_stat_sn == line.peer.stat_sn
        await line.peer.status(command)
        await last.succeeded()
    assert [record.getMessage() for record in caplog.records] == [
        f"{TARGET}: the StatSN of the target does not count up, against RFC 7143 section 4.2.2.2; going on"
    ]


# However long a target wants us away: a bound of our own holds.


@pytest.mark.conformance("ERR-14", "ERR-26", "ERR-13")
@pytest.mark.parametrize("how", ["message", "logout", "login"])
@pytest.mark.parametrize("seconds", [61, 3600, 65535])
async def test_no_target_keeps_us_away_for_hours(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, how: str, seconds: int
) -> None:
    named = min(seconds, 3600)  # in a login it cannot be more
    async with pair(keys={"DefaultTime2Wait": str(named)} if how == "login" else {}) as line:
        call = line.call()
        await line.peer.expect(ScsiCommand)
        if how == "message":
            await line.peer.async_message(AsyncEvent.CONNECTION_DROPPED, parameter1=0, parameter2=seconds)
            await line.peer.closed()
        elif how == "logout":
            await line.peer.async_message(AsyncEvent.LOGOUT_REQUESTED, parameter3=seconds)
            await line.peer.logged_out(await line.peer.expect(LogoutRequest), 3, time2wait=seconds)
            await line.peer.closed()
        else:
            await line.peer.close()
        lost = trio.current_time()
        await line.peer.login()
        assert line.line.dialled == [pytest.approx(lost + MAX_TIME2WAIT, abs=0.1)]
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()
        wanted = named if how == "login" else seconds
        said = [record.getMessage() for record in caplog.records if "away for" in record.getMessage()]
        assert said == [f"{TARGET}: the target wants us away for {wanted} s; coming back after 60 s"]


async def test_time2wait_holds_up_neither_the_failure_of_commands_nor_the_end(
    autojump_clock: MockClock,
) -> None:
    async with pair(replacement_timeout=20.0) as line:
        call = line.call()
        await line.peer.expect(ScsiCommand)
        await line.peer.async_message(AsyncEvent.CONNECTION_DROPPED, parameter1=0, parameter2=65535)
        await line.peer.closed()
        lost = trio.current_time()
        await call.failed()
        assert call.ended_at - lost <= 21.0
        await line.session.close()
        await wait_all_tasks_blocked()
        assert line.session.state is SessionState.FREE
        assert line.session.is_away
        assert line.session.is_closed
        assert trio.current_time() - lost <= 21.0
        assert line.line.dialled == []


# The rest.


@pytest.mark.conformance("ERR-27")
async def test_a_negotiation_that_is_asked_for_gets_a_text_request(autojump_clock: MockClock) -> None:
    async with pair() as line:
        asked = trio.current_time()
        await line.peer.async_message(AsyncEvent.NEGOTIATION_REQUESTED, parameter3=3)
        text = await line.peer.expect(TextRequest)
        assert trio.current_time() == asked
        await line.peer.text(text, b"")
        call = line.call()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()


@pytest.mark.conformance("ERR-28")
async def test_sense_that_comes_by_itself_is_passed_on(autojump_clock: MockClock) -> None:
    async with pair() as line:
        await line.peer.async_message(AsyncEvent.SCSI, b"\0\x12" + CAPACITY_CHANGED, lun=LUN)  # nobody asks
        await wait_all_tasks_blocked()
        heard: list[SenseReported] = []
        line.session.on_sense = heard.append
        await line.peer.async_message(AsyncEvent.SCSI, b"\0\x12" + CAPACITY_CHANGED, lun=LUN)
        call = line.call()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()
        assert [(event.lun, event.sense) for event in heard] == [(LUN, CAPACITY_CHANGED)]


async def test_sense_that_comes_with_a_status_is_passed_on_before_the_command_counts_as_done(
    autojump_clock: MockClock,
) -> None:
    async with pair() as line:
        call = line.call()
        heard: list[tuple[int | None, bytes, bool]] = []
        line.session.on_sense = lambda event: heard.append((event.lun, event.sense, call.done.is_set()))
        await line.peer.status(await line.peer.expect(ScsiCommand), 2, CAPACITY_CHANGED)
        await call.done.wait()
        assert heard == [(LUN, CAPACITY_CHANGED, False)]


@pytest.mark.conformance("HOSTILE-28", "ERR-28")
async def test_a_flood_of_messages_is_counted_but_not_logged_for_ever(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair() as line:
        for _ in range(2000):
            await line.peer.async_message(250)
        call = line.call()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()
        assert len(caplog.records) == NOTES_A_MINUTE
        await trio.sleep(61.0)
        caplog.clear()
        await line.peer.async_message(250)
        await wait_all_tasks_blocked()
        assert len(caplog.records) == 1


@pytest.mark.conformance("ERR-25")
@pytest.mark.parametrize("response", [0x01, 0x80])
async def test_a_response_that_tells_of_a_target_failure_is_no_success(
    autojump_clock: MockClock, response: int
) -> None:
    async with pair() as line:
        call = line.attempt()
        command = await line.peer.expect(ScsiCommand)
        await line.peer.send(
            ScsiResponse(FINAL, response, 0, command.initiator_task_tag, **line.peer.counted())
        )
        assert isinstance(await call.failed(), TaskAborted)


@pytest.mark.conformance("ERR-6")
async def test_a_command_that_was_rejected_as_under_way_is_waited_for_within_its_time(
    autojump_clock: MockClock,
) -> None:
    async with pair(command_timeout=5.0) as line:
        call = line.call()
        command = await line.peer.expect(ScsiCommand)
        await line.peer.reject(RejectReason.TASK_IN_PROGRESS, command)
        await line.peer.nothing(4.0)
        request = await line.peer.expect(TaskManagementRequest)
        assert request.function == TaskFunction.ABORT_TASK
        await line.peer.status(command)
        await call.succeeded()


async def test_messages_name_the_target_and_the_reason(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with pair() as line:
        await line.peer.close()
        await line.peer.login()
        await wait_all_tasks_blocked()
        lost, again = (record.message for record in caplog.records if record.name.endswith("session"))
        assert lost == ("iqn.2001-04.com.example:target: the target closed the connection; logging in again")
        assert again.startswith("iqn.2001-04.com.example:target: back after ")
