"""What is found without traffic and without a report: a slow poll; and resets that a user asks for."""

import pytest
import trio
from trio.testing import MockClock

from iscsifs.errors import TransportError
from iscsifs.iscsi.events import Management
from iscsifs.iscsi.pdu import AsyncEvent, TaskFunction, TaskResponse
from iscsifs.limits import MANAGEMENT_TIMEOUT, UNIT_GRACE
from iscsifs.scsi.cdb import OperationCode
from iscsifs.target import unit as scsi
from support.memory_world import disk, world


async def test_units_that_come_grow_and_go_silently_are_found(autojump_clock: MockClock) -> None:
    growing = disk("S-0")
    async with world({0: growing, 1: disk("S-1")}) as w, trio.open_nursery() as nursery:
        nursery.start_soon(w.target.poll, 60.0)
        growing.store.resize(256 * 512)
        w.device._units[2] = disk("S-2")
        w.device._units.pop(1)
        await trio.sleep(59)
        assert (w.unit(0).size, w.labels) == (128 * 512, ["0", "1"])
        await trio.sleep(2)
        assert (w.unit(0).size, w.labels) == (256 * 512, ["0", "1", "2"])
        await trio.sleep(2 * UNIT_GRACE)  # the one that is missing has its time to come back
        assert w.labels == ["0", "2"]
        before = len(w.trouble.codes)
        await trio.sleep(600)
        assert 10 <= w.trouble.codes[before:].count(OperationCode.REPORT_LUNS) <= 11
        nursery.cancel_scope.cancel()


async def test_without_an_interval_nothing_is_sent(autojump_clock: MockClock) -> None:
    async with world({0: disk()}) as w:
        before = len(w.trouble.codes)
        await w.target.poll(0)
        assert len(w.trouble.codes) == before


async def test_a_poll_of_a_target_that_is_away_waits_for_it(autojump_clock: MockClock) -> None:
    async with world({0: disk("S-0")}) as w, trio.open_nursery() as nursery:
        nursery.start_soon(w.target.poll, 60.0)
        w.kill()
        await trio.sleep(300)
        w.device._units[1] = disk("S-1")
        w.listener.reachable = True
        await trio.sleep(130)
        assert w.labels == ["0", "1"]
        nursery.cancel_scope.cancel()


async def test_the_list_of_units_is_asked_for_at_once_when_a_hidden_unit_reports_that_it_has_changed(
    autojump_clock: MockClock,
) -> None:
    """LUN 0 may be a controller that is not among the units, or not there at all."""
    async with world({1: disk("S-1")}) as w:
        (session,) = w.server.sessions
        w.device._units[2] = disk("S-2")
        sense = scsi.LUNS_CHANGED.pack()
        session.connection.send_async(AsyncEvent.SCSI, lun=0, data=len(sense).to_bytes(2, "big") + sense)
        await session.flush()
        await trio.sleep(2)
        assert w.labels == ["1", "2"]


async def test_a_reset_is_waited_for_and_units_are_checked(autojump_clock: MockClock) -> None:
    async with world({0: disk("S-0"), 1: disk("S-1")}) as w:
        await w.unit(0).write(0, b"x" * 512)
        for label in None, "1":
            returned: list[object] = []
            w.target.on_return = returned.append
            await w.target.reset(label)
            await trio.sleep(3)
            assert len(returned) == (2 if label is None else 1)
        assert await w.unit(0).read(0, 512) == b"x" * 512


async def test_where_a_target_has_no_warm_reset_its_units_are_reset(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[TaskFunction, int]] = []
    async with world({0: disk("S-0"), 1: disk("S-1")}) as w:
        supervisor = w.target.session._supervisor
        send, answered = w.target.session.open_link, supervisor.ended
        assert send is not None
        reset = send.reset

        def noted(function: TaskFunction, lun: int) -> object:
            asked.append((function, lun))
            return reset(function, lun)

        def refused(management: Management) -> None:
            if management.function is TaskFunction.TARGET_WARM_RESET:
                management.response = TaskResponse.FUNCTION_UNSUPPORTED
            answered(management)

        monkeypatch.setattr(send, "reset", noted)
        monkeypatch.setattr(supervisor, "ended", refused)
        await w.target.reset()
        assert asked == [
            (TaskFunction.TARGET_WARM_RESET, 0),
            (TaskFunction.LOGICAL_UNIT_RESET, 0),
            (TaskFunction.LOGICAL_UNIT_RESET, 1 << 48),
        ]
        assert w.target.session.logins == 1


async def test_a_reset_without_an_answer_is_an_error_and_no_new_session(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world({0: disk()}) as w:

        def unheard(management: Management) -> None:
            management.response = None

        monkeypatch.setattr(w.target.session._supervisor, "ended", unheard)
        started = trio.current_time()
        with pytest.raises(TransportError, match="no answer"):
            await w.target.reset("0")
        assert MANAGEMENT_TIMEOUT <= trio.current_time() - started <= MANAGEMENT_TIMEOUT + 2
        monkeypatch.undo()
        assert len(await w.unit(0).read(0, 512)) == 512
        assert w.target.session.logins == 1


async def test_commands_for_a_target_that_is_away_fail_at_once(autojump_clock: MockClock) -> None:
    async with world({0: disk()}) as w:
        w.kill()
        with pytest.raises(TransportError):
            await w.target.reset("0")
        await trio.sleep(1)
        started = trio.current_time()
        for command in w.target.reset, w.target.rescan:
            for label in None, "0":
                with pytest.raises(TransportError, match="away"):
                    await command(label)
        assert trio.current_time() == started
