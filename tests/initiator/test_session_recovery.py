"""Session recovery (RFC 7143 section 7.1.4.4): what happens to commands when the connection is lost."""

import random
from itertools import pairwise

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock, wait_all_tasks_blocked

from iscsifs.errors import CommandTimeout, LoginRefused, TransportError, UnitError
from iscsifs.initiator.redial import FIRST_DELAY, LONGEST_DELAY
from iscsifs.initiator.supervisor import TICK
from iscsifs.iscsi.pdu import (
    RESERVED_TAG,
    DataIn,
    DataInFlag,
    DataOut,
    LogoutRequest,
    NopIn,
    NopOut,
    ScsiCommand,
    TaskManagementRequest,
)
from iscsifs.iscsi.states import ConnectionState, SessionState
from iscsifs.limits import ATTEMPT_PATIENCE, ATTEMPT_PAUSE, MAX_ATTEMPTS
from iscsifs.scsi import cdb
from iscsifs.scsi.sense import Sense, SenseKey
from support.memory_line import LUN, OTHER_LUN, Pair, pair
from support.network import ISID
from support.peer import Closed

READ = cdb.read_10(0, 2)
WRITE = cdb.write_10(0, 2)
INQUIRY_CHANGED = Sense(SenseKey.UNIT_ATTENTION, 0x3F, 0x03)
AWAY = TransportError("192.0.2.1:3260: Connection refused")


async def back(line: Pair) -> None:
    """Let the session log in, and wait until it is up."""
    await line.peer.login()
    await wait_all_tasks_blocked()
    assert line.session.state is SessionState.LOGGED_IN
    assert not line.session.is_away


# The new login.


@pytest.mark.conformance("ERR-14", "ERR-15")
async def test_the_new_login_takes_the_place_of_the_lost_session(autojump_clock: MockClock) -> None:
    async with pair() as line:
        first_offer = dict(line.peer.offered)
        await line.peer.close()
        await back(line)
        old, new = line.logins
        assert (new.isid, new.tsih) == (old.isid, 0) == (ISID, 0)
        assert line.peer.offered == first_offer
        for name in "InitiatorName", "TargetName", "SessionType", "AuthMethod":
            assert name in first_offer


@pytest.mark.conformance("ERR-14")
@pytest.mark.parametrize("time2wait", [3, 0])
async def test_default_time2wait_is_obeyed(autojump_clock: MockClock, time2wait: int) -> None:
    async with pair(keys={"DefaultTime2Wait": str(time2wait)}) as line:
        lost = trio.current_time()
        await line.peer.close()
        line.call()  # no command cuts this short
        await line.peer.login()
        assert line.line.dialled == [pytest.approx(lost + time2wait, abs=0.1)]


@pytest.mark.conformance("ERR-14")
async def test_long_after_time2retain_it_is_still_a_new_session(autojump_clock: MockClock) -> None:
    async with pair(keys={"DefaultTime2Retain": "0"}) as line:
        line.line.failure = AWAY
        await line.peer.close()
        await trio.sleep(300.0)
        line.line.failure = None
        await back(line)
        assert [(login.isid, login.tsih) for login in line.logins] == [(ISID, 0)] * 2


@pytest.mark.conformance("ERR-15")
async def test_the_old_connection_is_closed_before_the_new_login(autojump_clock: MockClock) -> None:
    async with pair() as line:
        old = line.peer.stream
        await line.peer.send_bytes(b"\x3c" + bytes(47))
        await line.peer.closed()
        assert await old.receive_some(1) == b""
        await back(line)


@pytest.mark.conformance("ERR-14")
async def test_a_second_loss_and_a_third_are_recovered_from_as_well(autojump_clock: MockClock) -> None:
    async with pair() as line:
        for _ in range(3):
            call = line.call()
            await line.peer.expect(ScsiCommand)
            await line.peer.close()
            await line.peer.login()
            await line.peer.status(await line.peer.expect(ScsiCommand))
            await call.succeeded()


async def test_a_login_on_a_connection_that_is_gone_already_fails_at_once(
    autojump_clock: MockClock,
) -> None:
    async with pair() as line:
        line.line.hang_up = True
        await line.peer.close()
        await wait_all_tasks_blocked()
        assert len(line.line.dialled) == 1
        line.line.hang_up = False
        await back(line)


# What was not answered.


@pytest.mark.conformance("ERR-10")
async def test_an_idle_session_comes_back_by_itself(autojump_clock: MockClock) -> None:
    async with pair() as line:
        await line.peer.close()
        await back(line)


@pytest.mark.conformance("ERR-10", "HOSTILE-2")
@pytest.mark.parametrize("moment", ["in data-in", "between data-ins", "in a header"])
async def test_a_read_that_was_cut_delivers_only_what_the_next_session_brings(
    autojump_clock: MockClock, moment: str
) -> None:
    async with pair() as line:
        call = line.call(READ, read=1024)
        command = await line.peer.expect(ScsiCommand)
        if moment == "between data-ins":
            await line.peer.data_in(command, b"o" * 512, flags=0)
        else:
            half = DataIn(
                flags=DataInFlag.FINAL | DataInFlag.STATUS,
                status=0,
                lun=0,
                initiator_task_tag=command.initiator_task_tag,
                target_transfer_tag=RESERVED_TAG,
                data_sn=0,
                buffer_offset=0,
                **line.peer.counted(),
            )
            length = 48 + 700 if moment == "in data-in" else 20
            await line.peer.send_bytes(line.peer.encode(half, b"o" * 1024)[:length])
        await line.peer.close()
        await line.peer.login()
        assert not call.done.is_set()
        again = await line.peer.expect(ScsiCommand)
        assert again.cdb == command.cdb
        await line.peer.data_in(again, b"n" * 1024)
        await call.succeeded()
        assert call.buffer == b"n" * 1024


@pytest.mark.conformance("ERR-10", "ERR-11")
async def test_a_write_whose_status_was_lost_is_sent_again_whole(autojump_clock: MockClock) -> None:
    keys = {"ImmediateData": "No", "InitialR2T": "Yes"}
    async with pair(keys=keys) as line:
        call = line.call(WRITE, write=b"w" * 1024)
        command = await line.peer.expect(ScsiCommand)
        await line.peer.r2t(command, offset=0, length=512)
        await line.peer.expect(DataOut)
        await line.peer.close()
        await line.peer.login(keys)
        again = await line.peer.expect(ScsiCommand)
        await line.peer.r2t(again, offset=0, length=1024)
        await line.peer.expect(DataOut)
        assert line.peer.data == b"w" * 1024
        await line.peer.close()  # applied, but the status is lost
        await line.peer.login(keys)
        again = await line.peer.expect(ScsiCommand)
        await line.peer.r2t(again, offset=0, length=1024)
        await line.peer.expect(DataOut)
        await line.peer.status(again)
        await call.succeeded()


@pytest.mark.conformance("ERR-11", "ERR-15")
async def test_commands_are_sent_again_as_new_tasks_in_their_order(autojump_clock: MockClock) -> None:
    async with pair(window=2) as line:
        calls = []
        for lba in range(3):
            calls.append(line.call(cdb.read_10(lba, 1), read=512))
            await wait_all_tasks_blocked()
        for _ in range(2):
            await line.peer.expect(ScsiCommand)
        line.peer.window = 8
        line.line.failure = AWAY
        await line.peer.close()
        await wait_all_tasks_blocked()
        calls += [line.call(cdb.read_10(lba, 1), read=512) for lba in range(3, 6)]
        await wait_all_tasks_blocked()
        line.line.failure = None
        await line.peer.login()
        base = line.logins[-1].cmd_sn
        tags = set()
        for index in range(6):
            again = await line.peer.expect(ScsiCommand)
            lba = int.from_bytes(again.cdb[2:6], "big")
            assert again.cmd_sn == base + index
            tags.add(again.initiator_task_tag)
            if index < 3:
                assert lba == index
            await line.peer.data_in(again, bytes([lba]) * 512)
        assert len(tags) == 6
        for lba, call in enumerate(calls):
            await call.succeeded()
            assert call.buffer == bytes([lba]) * 512


async def test_what_was_kept_is_sent_as_soon_as_the_session_is_back(autojump_clock: MockClock) -> None:
    async with pair() as line:
        for _ in range(10):  # as the tasks of a new session begin in any order
            await line.peer.close()
            await wait_all_tasks_blocked()
            calls = [line.call() for _ in range(5)]
            await back(line)
            returned = trio.current_time()
            commands = [await line.peer.expect(ScsiCommand) for _ in calls]
            assert trio.current_time() == returned
            for command in commands:
                await line.peer.status(command)
            for call in calls:
                await call.succeeded()


@pytest.mark.conformance("ERR-10")
@pytest.mark.parametrize("seed", range(20))
async def test_whenever_the_connection_is_cut_each_command_ends_once_and_well(
    autojump_clock: MockClock, seed: int
) -> None:
    """A target that works, over a line that is cut after any number of bytes, though not too often for one
    command."""
    chance = random.Random(seed)
    cuts = 0
    async with pair() as line:

        async def target() -> None:
            nonlocal cuts
            while True:
                try:
                    while True:
                        command, _ = await line.peer.receive()
                        if isinstance(command, TaskManagementRequest):
                            await line.peer.managed(command, 1)
                            continue
                        assert isinstance(command, ScsiCommand)
                        data = command.cdb[2:6] * 128
                        if chance.random() < 0.15 and cuts < MAX_ATTEMPTS - 1:
                            cuts += 1
                            answer = DataIn(
                                flags=DataInFlag.FINAL | DataInFlag.STATUS,
                                status=0,
                                lun=0,
                                initiator_task_tag=command.initiator_task_tag,
                                target_transfer_tag=RESERVED_TAG,
                                data_sn=0,
                                buffer_offset=0,
                                **line.peer.counted(),
                            )
                            whole = line.peer.encode(answer, data)
                            await line.peer.send_bytes(whole[: chance.randrange(len(whole) + 1)])
                            await line.peer.close()
                            raise Closed
                        await line.peer.data_in(command, data)
                except Closed:
                    await line.peer.login()

        line.nursery.start_soon(target)
        for lba in range(60):
            cuts = 0
            calls = [line.call(cdb.read_10(lba + n, 1), read=512) for n in range(3)]
            for n, call in enumerate(calls):
                if chance.random() < 0.1:
                    await trio.lowlevel.checkpoint()
                    call.scope.cancel()
                else:
                    await call.succeeded()
                    assert call.buffer == (lba + n).to_bytes(4, "big") * 128
        await wait_all_tasks_blocked()


async def test_a_command_that_ends_every_session_is_given_up(autojump_clock: MockClock) -> None:
    async with pair() as line:
        call = line.call(READ, read=1024)
        for _ in range(MAX_ATTEMPTS):
            await line.peer.expect(ScsiCommand)
            await line.peer.close()
            await line.peer.login()
        failure = await call.failed()
        assert isinstance(failure, CommandTimeout)
        assert "READ(10)" in str(failure)
        other = line.call()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await other.succeeded()


async def test_what_was_never_sent_does_not_count_as_an_attempt(autojump_clock: MockClock) -> None:
    async with pair(window=0) as line:
        call = line.call()
        for _ in range(MAX_ATTEMPTS + 1):
            await wait_all_tasks_blocked()
            await line.peer.close()
            await line.peer.login()
        await wait_all_tasks_blocked()
        line.peer.window = 1
        await line.peer.send(NopIn(0, RESERVED_TAG, RESERVED_TAG, **line.peer.numbers))
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()


# Callers that give up while there is no connection.


async def test_a_caller_that_gives_up_while_the_target_is_away_leaves_nothing(
    autojump_clock: MockClock,
) -> None:
    async with pair() as line:
        sent = line.call()
        await line.peer.expect(ScsiCommand)
        line.line.failure = AWAY
        await line.peer.close()
        await wait_all_tasks_blocked()
        kept = line.call()
        await wait_all_tasks_blocked()
        for call in sent, kept:
            call.scope.cancel()
        line.line.failure = None
        await back(line)
        await line.peer.nothing(5.0)


async def test_a_caller_that_gave_up_before_the_loss_is_forgotten_with_it(autojump_clock: MockClock) -> None:
    async with pair() as line:
        call = line.call()
        await line.peer.expect(ScsiCommand)
        call.scope.cancel()
        await line.peer.expect(TaskManagementRequest)
        await line.peer.close()
        await back(line)
        await line.peer.nothing(30.0)


# The wait for a target that is away.


async def attempts(line: Pair, seconds: float) -> list[float]:
    """Return the pauses between attempts to log in within *seconds* without a target."""
    line.line.failure = AWAY
    await line.peer.close()
    await trio.sleep(seconds)
    times = line.line.dialled
    return [later - earlier for earlier, later in pairwise(times)]


async def test_pauses_between_attempts_grow_to_a_bound(autojump_clock: MockClock) -> None:
    async with pair() as line:
        lost = trio.current_time()
        pauses = await attempts(line, 60.0)
        assert line.line.dialled[0] == pytest.approx(lost, abs=0.1)
        assert pauses[0] < 1.0
        assert all(earlier < later for earlier, later in pairwise(pauses[:4]))
        assert all(LONGEST_DELAY <= pause <= LONGEST_DELAY + 2 * FIRST_DELAY for pause in pauses[6:])


async def test_pauses_are_jittered(autojump_clock: MockClock) -> None:
    async with pair() as one, pair() as other:
        assert await attempts(one, 20.0) != await attempts(other, 20.0)


async def test_a_new_command_cuts_a_pause_short(autojump_clock: MockClock) -> None:
    async with pair() as line:
        await attempts(line, 60.0)
        await trio.sleep_until(line.line.dialled[-1] + LONGEST_DELAY + 1.0)
        line.line.failure = None
        call = line.call()
        asked = trio.current_time()
        await line.peer.login()
        assert line.line.dialled[-1] == pytest.approx(asked, abs=0.01)
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()


async def test_a_probe_does_not_cut_a_pause_short(autojump_clock: MockClock) -> None:
    """Those that look after the units go on by themselves, and ask for nobody."""
    async with pair() as line:
        await attempts(line, 60.0)
        last = line.line.dialled[-1]
        await trio.sleep_until(last + 1.0)
        line.call(probe=True)
        await trio.sleep_until(last + LONGEST_DELAY - 0.1)
        assert line.line.dialled[-1] == last


async def test_a_session_that_has_lived_for_a_while_is_made_anew_at_once(autojump_clock: MockClock) -> None:
    async with pair() as line:
        for _ in range(8):  # so that pauses are as long as can be
            await line.peer.close()
            await back(line)
        await trio.sleep(LONGEST_DELAY)
        lost = trio.current_time()
        await line.peer.close()
        await back(line)
        assert line.line.dialled[-1] == pytest.approx(lost, abs=0.01)


async def test_a_flood_of_commands_does_not_make_a_flood_of_attempts(autojump_clock: MockClock) -> None:
    async with pair(replacement_timeout=5.0) as line:
        line.line.failure = AWAY
        await line.peer.close()
        await trio.sleep(10.0)
        before = len(line.line.dialled)
        for _ in range(1000):
            await line.call().failed()
            await trio.sleep(0.01)
        assert len(line.line.dialled) - before <= 10.0 / ATTEMPT_PAUSE + 1


async def test_sessions_that_end_at_once_are_not_begun_at_once(autojump_clock: MockClock) -> None:
    async with pair() as line:
        started = trio.current_time()

        async def closes_at_once() -> None:
            while True:
                await line.peer.close()
                await line.peer.login()

        line.nursery.start_soon(closes_at_once)
        await trio.sleep_until(started + 60.0)
        assert 10 <= len(line.line.dialled) <= 25


@pytest.mark.conformance("LOGIN-R.10")
@pytest.mark.parametrize("status", [(2, 1), (2, 3), (3, 0), (3, 1), (3, 2)])
async def test_a_refused_login_is_tried_again_after_a_loss(
    autojump_clock: MockClock, status: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    async with pair() as line:
        call = line.call()
        await line.peer.expect(ScsiCommand)
        line.line.failure = LoginRefused(*status, "not now")
        await line.peer.close()
        await trio.sleep(60.0)
        assert sum("not now" in record.message for record in caplog.records) == 1  # and is not a flood
        assert 10 <= len(line.line.dialled) <= 25
        line.line.failure = None
        await line.peer.login()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()


# The replacement time-out.


async def test_commands_wait_up_to_the_replacement_time_out(autojump_clock: MockClock) -> None:
    async with pair(replacement_timeout=30.0) as line:
        sent = line.call()
        await line.peer.expect(ScsiCommand)
        line.line.failure = AWAY
        lost = trio.current_time()
        await line.peer.close()
        await trio.sleep(20.0)
        kept = line.call()
        failures = [await sent.failed(), await kept.failed()]
        assert failures[0] is not failures[1]  # each has a traceback of its own
        for call, failure in zip((sent, kept), failures, strict=True):
            assert isinstance(failure, CommandTimeout)
            assert "30 seconds" in str(failure)
            assert 30.0 <= call.ended_at - lost <= 31.5
        # From now on they fail at once.
        asked = trio.current_time()
        late = line.call()
        assert isinstance(await late.failed(), CommandTimeout)
        assert late.ended_at == asked


async def test_after_the_replacement_time_out_the_session_comes_back_all_the_same(
    autojump_clock: MockClock,
) -> None:
    async with pair(replacement_timeout=10.0) as line:
        line.line.failure = AWAY
        await line.peer.close()
        await trio.sleep(600.0)
        assert isinstance(await line.call().failed(), CommandTimeout)
        line.line.failure = None
        await back(line)
        call = line.call()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()
        # The next loss has its own time.
        second = line.call()
        await line.peer.expect(ScsiCommand)
        await line.peer.close()
        await trio.sleep(1.0)
        assert not second.done.is_set()


async def test_after_a_long_absence_the_next_command_finds_the_target_that_is_back(
    autojump_clock: MockClock,
) -> None:
    async with pair(replacement_timeout=10.0) as line:
        line.line.failure = AWAY
        await line.peer.close()
        await trio.sleep(600.0)
        while trio.current_time() - line.line.dialled[-1] < ATTEMPT_PAUSE:  # noqa: ASYNC110 - it is virtual
            await trio.sleep(0.1)
        line.line.failure = None
        asked = trio.current_time()
        call = line.call()
        await line.peer.login()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()
        assert call.ended_at - asked < 0.1


@pytest.mark.parametrize("silent", [True, False])
async def test_after_a_long_absence_a_command_waits_for_one_attempt_and_not_for_long(
    autojump_clock: MockClock, silent: bool
) -> None:
    """*silent*: the target takes the connection and does not let us in; else nobody is there."""
    async with pair(replacement_timeout=10.0, login_timeout=15.0) as line:
        line.line.failure = AWAY
        await line.peer.close()
        await trio.sleep(60.0)
        while trio.current_time() - line.line.dialled[-1] < ATTEMPT_PAUSE:  # noqa: ASYNC110 - it is virtual
            await trio.sleep(0.1)
        if silent:
            line.line.failure = None
            line.line.gate = trio.Event()
        asked = trio.current_time()
        attempts = len(line.line.dialled)
        calls = [line.call(), line.call()]
        for call in calls:
            assert isinstance(await call.failed(), CommandTimeout)
            assert call.ended_at - asked <= (ATTEMPT_PATIENCE + TICK if silent else 0.0)
            assert not silent or call.ended_at - asked >= ATTEMPT_PATIENCE
        # While that attempt goes on, or shortly after it, nobody waits any more.
        asked = trio.current_time()
        late = line.call()
        assert isinstance(await late.failed(), CommandTimeout)
        assert late.ended_at == asked
        assert len(line.line.dialled) == attempts + 1


@pytest.mark.parametrize("where", ["connect", "login", "check"])
async def test_the_replacement_time_out_runs_while_the_target_keeps_us_waiting(
    autojump_clock: MockClock, where: str
) -> None:
    async with pair(replacement_timeout=30.0) as line:
        if where == "check":
            holds(line)
        call = line.call()
        await line.peer.expect(ScsiCommand)
        lost = trio.current_time()
        line.line.gate = trio.Event()
        await line.peer.close()
        if where != "connect":
            await line.peer.login()
        if where == "check":
            line.line.gate.set()
        assert isinstance(await call.failed(), CommandTimeout)
        assert 30.0 <= call.ended_at - lost <= 31.5


async def test_sessions_that_are_lost_in_the_check_do_not_extend_the_replacement_time_out(
    autojump_clock: MockClock,
) -> None:
    async with pair(replacement_timeout=30.0) as line:
        holds(line)
        call = line.call()
        await line.peer.expect(ScsiCommand)
        lost = trio.current_time()

        async def flap() -> None:
            while True:
                await line.peer.close()
                await line.peer.login()
                await trio.sleep(0.5)

        line.nursery.start_soon(flap)
        assert isinstance(await call.failed(), CommandTimeout)
        assert 30.0 <= call.ended_at - lost <= 31.5


# Units that are held until they were looked at, after a new login and whenever they may be others.


def holds(line: Pair) -> None:
    """Have the commands of both units held after each new login."""

    def suspend() -> None:
        for lun in LUN, OTHER_LUN:
            line.queue(lun).suspend()

    line.session.on_login = suspend


async def lose(line: Pair) -> None:
    await line.peer.close()
    await line.peer.login()
    await wait_all_tasks_blocked()


async def test_kept_commands_wait_for_the_check_and_probes_do_not(autojump_clock: MockClock) -> None:
    async with pair() as line:
        holds(line)
        call = line.call()
        await line.peer.expect(ScsiCommand)
        await lose(line)
        probe = line.call(cdb.inquiry(96), read=96, probe=True)
        command = await line.peer.expect(ScsiCommand)
        assert command.cdb[0] == 0x12
        await line.peer.data_in(command, bytes(96))
        await probe.succeeded()
        await line.peer.nothing(2.0)
        line.queue(LUN).resume()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()


async def test_a_unit_that_passed_the_check_does_not_wait_for_others(autojump_clock: MockClock) -> None:
    async with pair() as line:
        holds(line)
        waiting, released = line.call(), line.call(lun=OTHER_LUN)
        for _ in range(2):
            await line.peer.expect(ScsiCommand)
        await lose(line)
        line.queue(OTHER_LUN).resume()
        command = await line.peer.expect(ScsiCommand)
        assert command.lun == OTHER_LUN
        await line.peer.status(command)
        await released.succeeded()
        new = line.call(lun=OTHER_LUN)
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await new.succeeded()
        assert not waiting.done.is_set()
        # After the next loss it has to pass anew.
        line.call(lun=OTHER_LUN)
        await line.peer.expect(ScsiCommand)
        await lose(line)
        await line.peer.nothing(2.0)


async def test_a_released_unit_works_where_the_check_of_another_takes_too_long(
    autojump_clock: MockClock,
) -> None:
    async with pair(replacement_timeout=10.0) as line:
        holds(line)
        await lose(line)
        line.queue(OTHER_LUN).resume()
        await trio.sleep(20.0)
        assert isinstance(await line.call(lun=LUN).failed(), CommandTimeout)
        call = line.call(lun=OTHER_LUN)
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()


async def test_after_a_long_absence_a_unit_has_its_time_to_be_looked_at(autojump_clock: MockClock) -> None:
    """What had waited has failed already; what comes now has not waited yet."""
    async with pair(replacement_timeout=10.0) as line:
        holds(line)
        line.line.failure = AWAY
        await line.peer.close()
        await trio.sleep(60.0)
        line.line.failure = None
        await back(line)
        call = line.call()
        await trio.sleep(5.0)
        line.queue(LUN).resume()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()


async def test_commands_to_a_unit_that_is_another_now_fail(autojump_clock: MockClock) -> None:
    async with pair() as line:
        holds(line)
        calls = [line.call() for _ in range(2)]
        other = line.call(lun=OTHER_LUN)
        for _ in range(3):
            await line.peer.expect(ScsiCommand)
        await lose(line)
        line.queue(LUN).fail(UnitError("another unit"))
        for call in calls:
            assert isinstance(await call.failed(), UnitError)
        assert not other.done.is_set()


async def test_what_was_on_its_way_to_a_unit_that_is_gone_is_not_sent_to_the_next_one(
    autojump_clock: MockClock,
) -> None:
    async with pair() as line:
        unanswered, answered = line.call(), line.call()
        await line.peer.expect(ScsiCommand)
        command = await line.peer.expect(ScsiCommand)
        line.queue(LUN).suspend()
        line.queue(LUN).fail(UnitError("another unit"))
        await line.peer.status(command)
        await answered.succeeded()
        await line.peer.close()
        await line.peer.login()
        await line.peer.nothing(5.0)
        assert isinstance(await unanswered.failed(), UnitError)
        line.forget_queue()  # the unit that is there now has one of its own
        following = line.call()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await following.succeeded()


async def test_a_probe_goes_on_in_the_next_session_and_a_unit_stays_held(autojump_clock: MockClock) -> None:
    async with pair() as line:
        holds(line)
        call = line.call()
        await line.peer.expect(ScsiCommand)
        await lose(line)
        probe = line.call(cdb.inquiry(96), read=96, probe=True)
        await line.peer.expect(ScsiCommand)
        await lose(line)
        command = await line.peer.expect(ScsiCommand)
        assert command.cdb[0] == 0x12
        await line.peer.data_in(command, bytes(96))
        await probe.succeeded()
        await line.peer.nothing(2.0)
        line.queue(LUN).resume()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await call.succeeded()


async def test_what_waits_for_the_window_is_held_before_the_report_opens_it(
    autojump_clock: MockClock,
) -> None:
    """The answer with the report is also what lets the next command go."""
    async with pair(window=1) as line:
        line.session.on_sense = lambda report: line.queue(report.lun or 0).suspend()
        reported = line.attempt()
        await wait_all_tasks_blocked()
        waiting = line.call()
        await wait_all_tasks_blocked()
        probe = line.call(cdb.inquiry(96), read=96, probe=True)
        other = line.call(lun=OTHER_LUN)
        await wait_all_tasks_blocked()
        await line.peer.status(await line.peer.expect(ScsiCommand), 2, INQUIRY_CHANGED)
        await reported.done.wait()
        for _ in range(2):
            command = await line.peer.expect(ScsiCommand)
            if command.lun == LUN:
                assert command.cdb[0] == 0x12
                await line.peer.data_in(command, bytes(96))
            else:
                await line.peer.status(command)
        await probe.succeeded()
        await other.succeeded()
        await line.peer.nothing(5.0)
        line.queue(LUN).resume()
        await line.peer.status(await line.peer.expect(ScsiCommand))
        await waiting.succeeded()


async def test_a_caller_that_gives_up_while_its_unit_is_held_leaves_nothing(
    autojump_clock: MockClock,
) -> None:
    async with pair() as line:
        line.queue(LUN).suspend()
        call = line.call()
        await wait_all_tasks_blocked()
        call.scope.cancel()
        await wait_all_tasks_blocked()
        line.queue(LUN).resume()
        await line.peer.nothing(5.0)


# Closing, in every state.


@pytest.mark.parametrize("state", ["pausing", "time2wait", "dialling", "given up"])
async def test_a_session_without_a_connection_is_closed_at_once(
    autojump_clock: MockClock, state: str
) -> None:
    keys = {"DefaultTime2Wait": "100"} if state == "time2wait" else {}
    async with pair(keys=keys, replacement_timeout=30.0) as line:
        if state == "dialling":
            line.line.gate = trio.Event()
        else:
            line.line.failure = AWAY
        call = line.call()
        await line.peer.expect(ScsiCommand)
        await line.peer.close()
        if state == "dialling":
            await line.peer.login()
        await trio.sleep(40.0 if state == "given up" else 1.0)
        before = line.session.state
        assert before is SessionState.FAILED
        started = trio.current_time()
        await line.session.close()
        await wait_all_tasks_blocked()
        assert trio.current_time() == started
        assert isinstance(await call.failed(), CommandTimeout if state == "given up" else TransportError)
        assert line.session.state is SessionState.FREE
        assert line.session.is_away
        assert line.session.is_closed
        if state == "dialling":
            await line.peer.closed()
        attempts_until_then = len(line.line.dialled)
        await trio.sleep(60.0)
        assert len(line.line.dialled) == attempts_until_then
        assert isinstance(await line.call().failed(), TransportError)


async def test_closing_in_the_moment_in_which_a_login_has_succeeded(autojump_clock: MockClock) -> None:
    async with pair() as line:
        line.line.gate = trio.Event()
        await line.peer.close()
        await line.peer.login()
        line.line.gate.set()  # the login goes on in this turn of the loop, as does
        await line.session.close()
        await line.peer.closed()
        await wait_all_tasks_blocked()
        assert line.session.state is SessionState.FREE
        assert line.session.is_away
        assert line.session.is_closed


async def test_closing_while_the_units_are_checked(autojump_clock: MockClock) -> None:
    async with pair() as line:
        holds(line)
        call = line.call()
        await line.peer.expect(ScsiCommand)
        await lose(line)
        line.nursery.start_soon(line.session.close)
        await line.peer.logged_out(await line.peer.expect(LogoutRequest))
        await line.peer.closed()
        assert isinstance(await call.failed(), TransportError)


# A silent connection.


@pytest.mark.conformance("ERR-29", "FFP-15.2")
async def test_a_silent_target_is_pinged_and_then_given_up(autojump_clock: MockClock) -> None:
    async with pair(ping_interval=5.0, ping_timeout=7.0) as line:
        started = trio.current_time()
        ping = await line.peer.expect(NopOut)
        assert 5.0 <= trio.current_time() - started <= 7.0
        assert ping.initiator_task_tag != RESERVED_TAG
        assert (ping.target_transfer_tag, ping.lun, ping.immediate) == (RESERVED_TAG, 0, True)
        await line.peer.send(NopIn(0, ping.initiator_task_tag, RESERVED_TAG, **line.peer.counted()))
        echoed = trio.current_time()
        await line.peer.expect(NopOut)
        assert 5.0 <= trio.current_time() - echoed <= 8.0
        pinged = trio.current_time()
        given_up = line.session.link.connection
        await line.peer.closed()
        assert 7.0 <= trio.current_time() - pinged <= 9.0
        assert given_up.state is ConnectionState.FREE  # by CLEANUP_WAIT: its tasks were taken back
        await back(line)


@pytest.mark.conformance("ERR-29")
async def test_any_byte_is_a_sign_of_life(autojump_clock: MockClock) -> None:
    async with pair(ping_interval=5.0, ping_timeout=5.0) as line:
        call = line.call(READ, read=1024)
        command = await line.peer.expect(ScsiCommand)
        answer = DataIn(
            flags=DataInFlag.FINAL | DataInFlag.STATUS,
            status=0,
            lun=0,
            initiator_task_tag=command.initiator_task_tag,
            target_transfer_tag=RESERVED_TAG,
            data_sn=0,
            buffer_offset=0,
            **line.peer.counted(),
        )
        stream = line.peer.encode(answer, b"x" * 1024)
        for start in range(0, len(stream), 200):
            await line.peer.send_bytes(stream[start : start + 200])
            await trio.sleep(4.0)
        await call.succeeded()
        assert line.session.link.failure is None


async def test_a_target_that_still_takes_what_we_send_is_merely_busy(autojump_clock: MockClock) -> None:
    keys = {"FirstBurstLength": "262144"}
    async with pair(
        keys=keys, buffer_size=8192, command_timeout=1000.0, ping_interval=5.0, ping_timeout=5.0
    ) as line:
        call = line.call(cdb.write_10(0, 512), write=bytes(262144))
        taken = bytearray()
        started = trio.current_time()
        while trio.current_time() - started < 60.0:
            await trio.sleep(1.0)
            taken += await line.peer.stream.receive_some(3000)
            assert line.session.link.failure is None
        # Now it has stopped taking anything.
        await trio.sleep(15.0)
        assert line.session.link.failure is not None
        assert not call.done.is_set()
        call.scope.cancel()


async def test_without_a_ping_interval_there_are_no_pings(autojump_clock: MockClock) -> None:
    async with pair(ping_interval=0) as line:
        await line.peer.nothing(600.0)


@pytest.mark.conformance("FFP-15.1")
async def test_the_target_is_answered_when_it_pings(autojump_clock: MockClock) -> None:
    async with pair() as line:
        await line.peer.ping(lun=LUN)
        answer = await line.peer.expect(NopOut)
        assert (answer.lun, answer.target_transfer_tag) == (LUN, 0x77)
        assert answer.initiator_task_tag == RESERVED_TAG
        assert line.peer.data == b""
        await line.peer.ping(target_transfer_tag=RESERVED_TAG)
        await line.peer.nothing(5.0)


@pytest.mark.conformance("HOSTILE-26")
async def test_a_flood_of_pings_whose_answers_nobody_takes_ends_the_session(
    autojump_clock: MockClock,
) -> None:
    async with pair(buffer_size=4096) as line:
        with trio.move_on_after(60.0):
            while line.session.link.failure is None:
                await line.peer.ping()
                await trio.lowlevel.checkpoint()
        assert "pings faster" in str(line.session.link.failure)
