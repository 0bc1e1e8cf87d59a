"""A target and its units as they come, change and go: against the embedded target, in memory."""

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from iscsifs.errors import CommandTimeout, TransportError, UnitError
from iscsifs.iscsi.pdu import AsyncEvent
from iscsifs.limits import NOTES_A_LIST, UNIT_GRACE
from iscsifs.scsi.cdb import OperationCode
from iscsifs.scsi.inquiry import DeviceType
from iscsifs.scsi.sense import Sense, SenseKey
from iscsifs.scsi.status import Status
from iscsifs.target import unit as scsi
from iscsifs.target.disk import Disk
from iscsifs.target.store import Store
from iscsifs.units.block import BlockUnit
from iscsifs.units.inventory import PAUSE
from support.disks import disks
from support.memory_world import KIB, TARGET, disk, world

HARDWARE_ERROR = Sense(SenseKey.HARDWARE_ERROR, 0x44, 0x00)


class OddDisk(Disk):
    """A disk that says that its blocks have 520 bytes."""

    def _read_capacity_16(self, _nexus: scsi.Nexus, cdb: bytes) -> scsi.Operation:
        return scsi.data_in(bytes(8) + (520).to_bytes(4, "big") + bytes(20), 32)


# What there is.


async def test_the_units_of_a_target(autojump_clock: MockClock) -> None:
    units = {3: disk("S-3"), 0: disk("S-0"), 1: scsi.LogicalUnit(scsi.Identity("S-1"), DeviceType.TAPE)}
    async with world(units) as w:
        assert w.labels == ["0", "1", "3"]
        assert [unit.serial for unit in w.target.units] == ["S-0", "S-1", "S-3"]
        assert [unit.is_block for unit in w.target.units] == [True, False, True]
        assert w.unit(0).size == 64 * KIB
        assert [unit.storage is unit for unit in w.target.units] == [True, False, True]
        assert w.target.tag == 1


@pytest.mark.conformance("HOSTILE-37")
async def test_a_unit_that_does_not_answer_well_leaves_the_others_alone(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    bad, odd, good = disk("bad"), OddDisk.in_memory(64 * KIB, "odd"), disk("good")
    bad.faults.append(scsi.Fault(HARDWARE_ERROR, codes=frozenset({OperationCode.INQUIRY})))
    async with world({0: bad, 1: odd, 2: good}) as w:
        assert w.labels == ["1", "2"]
        assert bytes(await w.unit(2).read(0, 512)) == bytes(512)
        with pytest.raises(UnitError, match="blocks of 520 bytes"):
            await w.unit(1).read(0, 512)
        assert any(record.message.startswith("left out: ") for record in caplog.records)


async def test_units_that_are_left_out_are_not_logged_for_ever(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [disk(f"bad-{number}") for number in range(NOTES_A_LIST + 5)]
    for unit in bad:
        unit.faults.append(scsi.Fault(HARDWARE_ERROR, codes=frozenset({OperationCode.INQUIRY})))
    async with world(dict(enumerate([*bad, disk("good")]))) as w:
        assert w.labels == [str(len(bad))]
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(said) == NOTES_A_LIST + 1
    assert said[-1] == f"{TARGET}: left out 5 more logical units"


async def test_a_target_without_units(autojump_clock: MockClock) -> None:
    async with world({}) as w:
        assert w.target.units == []


@pytest.mark.conformance("ERR-24")
async def test_the_unit_attention_after_the_login_is_no_error(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with world({0: disk()}) as w:
        await w.unit(0).read(0, 512)
        assert not caplog.records


# After a new login.


@pytest.mark.conformance("ERR-11", "ERR-24")
async def test_after_a_loss_the_same_units_go_on(autojump_clock: MockClock) -> None:
    async with world({0: disk("S-0"), 1: disk("S-1")}) as w:
        await w.unit(0).write(0, b"w" * 512)
        units = list(w.target.units)
        w.cut()
        assert bytes(await w.unit(0).read(0, 512)) == b"w" * 512
        await trio.sleep(5.0)
        assert w.target.units == units
        assert w.changes == 0


async def test_a_unit_that_somebody_else_may_have_written_to_is_told_once(autojump_clock: MockClock) -> None:
    async with world({0: disk("S-0"), 1: disk("S-1")}) as w:
        returned: list[str] = []
        w.target.on_return = lambda unit: returned.append(unit.label)
        await w.unit(0).write(0, b"w" * 512)
        await trio.sleep(5.0)
        assert returned == []  # the first login finds them as they are
        w.cut()
        await w.unit(0).read(0, 512)
        await trio.sleep(5.0)
        assert sorted(returned) == ["0", "1"]
        w.cut()
        w.device.attach(1, disk("S-2"))  # another one, which is seen by its own name
        await trio.sleep(20.0)
        assert sorted(returned) == ["0", "0", "1"]


@pytest.mark.conformance("ERR-11")
async def test_another_unit_under_the_same_number_gets_none_of_our_commands(
    autojump_clock: MockClock,
) -> None:
    other = disk("S-2")
    async with world({0: disk("S-0"), 1: disk("S-1")}) as w:
        old, neighbour = w.unit(1), w.unit(0)
        w.cut()
        w.device.attach(1, other)
        with pytest.raises(UnitError, match="another unit"):
            await old.write(0, b"w" * 512)
        assert bytes(other.store.read(0, 512)) == bytes(512)
        await neighbour.write(0, b"w" * 512)
        # The new one is a unit of its own from now on.
        await trio.sleep(5.0)
        assert [unit.serial for unit in w.target.units] == ["S-0", "S-2"]
        assert w.unit(1) is not old
        assert w.changes >= 1
        await w.unit(1).write(0, b"n" * 512)
        with pytest.raises(UnitError, match="another unit"):
            await old.read(0, 512)


async def test_a_unit_that_has_grown_while_we_were_away(autojump_clock: MockClock) -> None:
    grown = disk()
    async with world({0: grown}) as w:
        w.cut()
        grown.resize(256)
        await w.unit(0).read(0, 512)
        assert w.unit(0).size == 256 * 512


async def test_units_that_have_come_while_we_were_away(autojump_clock: MockClock) -> None:
    async with world({0: disk()}) as w:
        w.cut()
        w.device.attach(5, disk("S-5"))
        await w.unit(0).read(0, 512)
        await trio.sleep(5.0)
        assert w.labels == ["0", "5"]
        assert w.changes == 1


async def test_a_unit_that_comes_a_little_later_than_the_target_is_waited_for(
    autojump_clock: MockClock,
) -> None:
    """A target that starts may let us in before it has set up its units."""
    async with world({0: disk("S-0"), 1: disk("S-1")}) as w:
        late, neighbour = w.unit(1), w.unit(0)
        w.cut()
        gone = w.device.detach(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(late.write, 0, b"w" * 512)
            await neighbour.read(0, 512)
            await trio.sleep(UNIT_GRACE / 2)
            w.device.attach(1, gone)
        assert late.failure is None
        assert bytes(await late.read(0, 512)) == b"w" * 512


async def test_a_unit_that_stays_away_is_given_up(autojump_clock: MockClock) -> None:
    async with world({0: disk("S-0"), 1: disk("S-1")}) as w:
        gone = w.unit(1)
        w.cut()
        w.device.detach(1)
        started = trio.current_time()
        with pytest.raises(UnitError, match="LUN 1: gone: "):
            await gone.read(0, 512)
        assert UNIT_GRACE <= trio.current_time() - started <= UNIT_GRACE + 3.0
        await trio.sleep(5.0)
        assert w.labels == ["0"]


@pytest.mark.parametrize("status", [Status.BUSY, Status.TASK_SET_FULL, Status.RESERVATION_CONFLICT])
async def test_a_unit_that_cannot_be_checked_yet_holds_up_nobody_else_and_is_not_lost(
    autojump_clock: MockClock, status: Status
) -> None:
    slow = disk("S-1")
    async with world({0: disk("S-0"), 1: slow}, replacement_timeout=60.0, command_timeout=10.0) as w:
        unit, neighbour = w.unit(1), w.unit(0)
        slow.faults.append(scsi.Fault(status=status))
        w.cut()
        await wait_all_tasks_blocked()
        with trio.fail_after(2.5):  # DefaultTime2Wait, and a little
            await neighbour.write(0, b"w" * 512)
        started = trio.current_time()
        with pytest.raises(CommandTimeout):
            await unit.write(0, b"w" * 512)
        assert trio.current_time() - started == pytest.approx(60.0, abs=2.0)
        slow.faults.clear()
        await trio.sleep(20.0)
        await unit.write(0, b"w" * 512)
        assert len(w.server.sessions) == 1


@pytest.mark.parametrize("turns", range(0, 90, 3))
async def test_closing_at_any_moment_of_a_recovery_is_well(autojump_clock: MockClock, turns: int) -> None:
    """The session is closed so many turns of the loop after it has begun to log in again."""
    async with world({0: disk("S-0"), 1: disk("S-1")}) as w:
        w.cut()
        await wait_all_tasks_blocked()
        await trio.sleep(2.0)  # DefaultTime2Wait
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        await w.target.session.close()
        await wait_all_tasks_blocked()
        assert w.server.sessions == []
        for unit in disks(w.target.units):
            assert unit.failure is None
            with pytest.raises(TransportError, match="closed"):
                await unit.read(0, 512)


@pytest.mark.parametrize("turns", range(0, 90, 3))
async def test_a_loss_at_any_moment_of_a_recovery_is_recovered_from(
    autojump_clock: MockClock, turns: int
) -> None:
    async with world({0: disk("S-0"), 1: disk("S-1")}) as w, trio.open_nursery() as nursery:
        w.cut()
        nursery.start_soon(w.unit(0).write, 0, b"w" * 512)
        await wait_all_tasks_blocked()
        await trio.sleep(2.0)  # DefaultTime2Wait
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        w.cut()
        assert bytes(await w.unit(1).read(0, 512)) == bytes(512)
        assert bytes(await w.unit(0).read(0, 512)) in (b"w" * 512, bytes(512))


# While the session lives.


async def settled() -> None:
    await trio.sleep(PAUSE * 3)


async def given_up() -> None:
    """What is not there any more has had its time to come back."""
    await trio.sleep(UNIT_GRACE + PAUSE * 3)


async def test_a_unit_that_grows_is_seen_to(autojump_clock: MockClock) -> None:
    growing = disk()
    async with world({0: growing}) as w:
        assert w.unit(0).size == 64 * KIB
        growing.resize(256)
        await w.unit(0).read(0, 512)
        await settled()
        assert w.unit(0).size == 256 * 512
        assert w.changes == 1


async def test_a_unit_that_becomes_write_protected_is_seen_to(autojump_clock: MockClock) -> None:
    changing = disk()
    async with world({0: changing}) as w:
        assert not w.unit(0).read_only
        changing.read_only = True
        changing.establish_attention(scsi.MODE_CHANGED)
        await w.unit(0).read(0, 512)
        await settled()
        assert w.unit(0).read_only
        assert w.changes == 1


async def test_units_come_and_go(autojump_clock: MockClock) -> None:
    async with world({0: disk("S-0")}) as w:
        first = w.unit(0)
        w.device.attach(7, disk("S-7"))
        await first.read(0, 512)
        await settled()
        assert w.labels == ["0", "7"]
        await w.unit(7).write(0, b"w" * 512)
        w.device.detach(7)
        await first.read(0, 512)
        await given_up()
        assert w.labels == ["0"]
        assert w.changes == 2
        assert w.unit(0) is first  # and no session was restarted
        assert len(w.server.sessions) == 1


async def test_a_unit_that_has_gone_gives_what_has_its_number_later_none_of_its_commands(
    autojump_clock: MockClock,
) -> None:
    """Nobody would look at it after a new login, nor hear for it that a cache was lost."""
    other = disk("S-8")
    async with world({0: disk("S-0"), 7: disk("S-7")}) as w:
        old = w.unit(7)
        w.device.detach(7)
        await w.unit(0).read(0, 512)
        await given_up()
        w.device.attach(7, other)
        with pytest.raises(UnitError, match="LUN 7: gone: .*there is no device"):
            await old.write(0, b"w" * 512)
        assert bytes(other.store.read(0, 512)) == bytes(512)


async def test_a_unit_that_is_exchanged_is_a_new_one(autojump_clock: MockClock) -> None:
    async with world({0: disk("S-0"), 1: disk("S-1")}) as w:
        old = w.unit(1)
        w.device.attach(1, disk("S-2"))
        await w.unit(0).read(0, 512)
        await settled()
        assert w.unit(1) is not old
        assert w.unit(1).serial == "S-2"
        with pytest.raises(UnitError, match="another unit"):
            await old.read(0, 512)


@pytest.mark.conformance("ERR-28")
async def test_what_a_unit_reports_by_itself_counts_as_well(autojump_clock: MockClock) -> None:
    growing = disk()
    async with world({0: growing}) as w:
        (session,) = w.server.sessions
        growing.store.resize(256 * 512)
        sense = scsi.CAPACITY_CHANGED.pack()
        session.connection.send_async(AsyncEvent.SCSI, data=len(sense).to_bytes(2, "big") + sense)
        await session.flush()
        await settled()
        assert w.unit(0).size == 256 * 512
        assert w.changes == 1


@pytest.mark.conformance("HOSTILE-28")
@pytest.mark.parametrize("sense", [scsi.CAPACITY_CHANGED, scsi.LUNS_CHANGED])
async def test_a_flood_of_reports_is_looked_into_now_and_then(
    autojump_clock: MockClock, sense: Sense
) -> None:
    async with world({0: disk()}) as w:
        (session,) = w.server.sessions
        before = w.trouble.codes.count(OperationCode.SERVICE_ACTION_IN_16)
        started = trio.current_time()
        data = len(sense.pack()).to_bytes(2, "big") + sense.pack()
        for _ in range(1000):
            session.connection.send_async(AsyncEvent.SCSI, data=data)
            await session.flush()
            await trio.sleep(0.01)
        seconds = trio.current_time() - started
        looks = w.trouble.codes.count(OperationCode.SERVICE_ACTION_IN_16) - before
        assert 1 <= looks <= seconds / PAUSE + 2
        assert w.changes == 0


async def test_a_report_of_a_unit_that_is_not_ours_is_ignored(autojump_clock: MockClock) -> None:
    async with world({0: disk()}) as w:
        (session,) = w.server.sessions
        sense = scsi.CAPACITY_CHANGED.pack()
        for data in len(sense).to_bytes(2, "big") + sense, b"":
            session.connection.send_async(AsyncEvent.SCSI, lun=9 << 48, data=data)
        await session.flush()
        await w.unit(0).read(0, 512)


async def test_a_change_that_cannot_be_looked_into_is_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    changing = disk()
    async with world({0: changing}) as w:
        changing.faults.append(scsi.Fault(HARDWARE_ERROR, codes=frozenset({OperationCode.INQUIRY})))
        changing.establish_attention(scsi.CAPACITY_CHANGED)
        await w.unit(0).read(0, 512)
        await settled()
        assert any("is not known" in record.message for record in caplog.records)
        assert w.unit(0).failure is None
        assert w.changes == 0


async def test_what_has_changed_about_a_unit_that_has_gone_is_not_asked_for(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The unit reports a change and goes before there is time to look into it."""
    first = disk("S-0")
    async with world({0: first, 1: disk("S-1")}) as w:
        going = w.unit(1)
        first.establish_attention(scsi.MODE_CHANGED)
        await w.unit(0).read(0, 512)
        await wait_all_tasks_blocked()  # this is looked into; what comes now waits for PAUSE to be over
        w.device.units[1].establish_attention(scsi.MODE_CHANGED)
        await going.read(0, 512)
        w.device.detach(1)
        await w.unit(0).read(0, 512)
        await given_up()
        assert w.labels == ["0"]
        assert not [record for record in caplog.records if "about it is not known" in record.message]


# Units that report, while the session lives, that they may be others.


REPORTS = [scsi.INQUIRY_CHANGED, scsi.MEDIUM_CHANGED, scsi.POWER_ON]
WRITE = OperationCode.WRITE_10


def exchange(old: Disk, report: Sense, serial: str = "S-other") -> Store:
    """Put another disk in the place of *old*, of which the target tells nothing but *report*; return what it
    holds."""
    old.identity = scsi.Identity(serial)
    old.store = Store.memory(old.store.size)
    old.establish_attention(report)
    return old.store


def is_untouched(store: Store) -> bool:
    return store.read(0, store.size) == bytes(store.size)


@pytest.mark.parametrize("report", REPORTS, ids=str)
async def test_a_write_that_is_answered_with_the_report_is_not_repeated_on_another_unit(
    autojump_clock: MockClock, report: Sense
) -> None:
    exchanged = disk("S-1")
    async with world({0: disk("S-0"), 1: exchanged}) as w:
        old = w.unit(1)
        other = exchange(exchanged, report)
        with pytest.raises(UnitError, match="LUN 1: there is another unit"):
            await old.write(0, b"w" * 512)
        assert is_untouched(other)
        await settled()
        assert [unit.serial for unit in w.target.units] == ["S-0", "S-other"]
        with trio.fail_after(1.0):
            await w.unit(1).write(0, b"n" * 512)
        assert other.read(0, 512) == b"n" * 512
        assert len(w.server.sessions) == 1


@pytest.mark.parametrize("report", REPORTS, ids=str)
async def test_a_write_that_is_answered_with_the_report_is_repeated_when_the_unit_is_known(
    autojump_clock: MockClock, report: Sense
) -> None:
    same = disk("S-0")
    async with world({0: same}) as w:
        unit = w.unit(0)
        same.establish_attention(report)
        w.trouble.commands.clear()
        with trio.fail_after(1.0):
            await unit.write(0, b"w" * 512)
        assert same.store.read(0, 512) == b"w" * 512
        first, *later = w.trouble.codes
        assert first == WRITE
        assert OperationCode.MODE_SENSE_6 in later[: later.index(WRITE)]  # with which the check ends
        await settled()
        assert w.target.units == [unit]
        assert w.changes == 0


async def test_what_was_accepted_does_not_reach_another_unit_and_the_loss_is_reported(
    autojump_clock: MockClock,
) -> None:
    exchanged = disk("S-0", size=1 << 20)
    async with world({0: exchanged}, write_behind=True) as w:
        old = w.unit(0)
        other = exchange(exchanged, scsi.INQUIRY_CHANGED)
        exchanged.faults.append(scsi.Fault(scsi.INQUIRY_CHANGED, codes=frozenset({WRITE}), times=31))
        for number in range(0, 256, 2):  # more than may be under way at once
            await old.write(number * 4096, b"w" * 4096)
        with pytest.raises(UnitError, match="another unit"):
            await old.flush()
        assert old.failures
        assert is_untouched(other)


async def test_what_a_lost_cache_held_is_not_written_again_to_another_unit(autojump_clock: MockClock) -> None:
    """A disk that takes the place of one reports, as after any power failure, that it was powered on."""
    exchanged = disk("S-0")
    async with world({0: exchanged}, write_behind=True) as w:
        old = w.unit(0)
        await old.write(0, b"w" * 512)
        await old.drain()  # on the old disk, perhaps in its cache only
        other = exchange(exchanged, scsi.POWER_ON)
        with pytest.raises(UnitError, match="another unit"):
            await old.read(512, 512)
        await settled()
        assert is_untouched(other)
        assert old.failures == 1


async def test_a_flush_waits_until_the_unit_is_known(autojump_clock: MockClock) -> None:
    same = disk("S-0")
    async with world({0: same}, write_behind=True) as w:
        unit = w.unit(0)
        same.faults.append(scsi.Fault(status=Status.BUSY, codes=frozenset({OperationCode.TEST_UNIT_READY})))
        same.establish_attention(scsi.INQUIRY_CHANGED)
        await unit.write(0, b"w" * 512)
        with trio.move_on_after(10.0) as too_early:
            await unit.flush()
        assert too_early.cancelled_caught
        same.faults.clear()
        await unit.flush()
        assert same.store.read(0, 512) == b"w" * 512
        assert not unit.failures


async def test_a_unit_that_is_exchanged_in_the_check_is_checked_again(autojump_clock: MockClock) -> None:
    checked = disk("S-0")
    async with world({0: checked}) as w:
        old = w.unit(0)
        others: list[Store] = []

        def on_command(code: int) -> bool:
            if code == OperationCode.SERVICE_ACTION_IN_16 and not others:  # it has said who it is by now
                others.append(exchange(checked, scsi.INQUIRY_CHANGED))
            return True

        w.trouble.on_command = on_command
        checked.establish_attention(scsi.INQUIRY_CHANGED)
        with pytest.raises(UnitError, match="another unit"):
            await old.write(0, b"w" * 512)
        assert is_untouched(others[0])


@pytest.mark.parametrize("exchanged", [False, True])
async def test_a_connection_that_is_lost_in_the_check_is_no_answer(
    autojump_clock: MockClock, exchanged: bool
) -> None:
    """The unit has said what it is, and the connection is lost, and with it the rest of the answers."""
    checked = disk("S-0")
    async with world({0: checked}) as w, trio.open_nursery() as nursery:
        unit = w.unit(0)
        failures = []

        async def write() -> None:
            try:
                await unit.write(0, b"w" * 512)
            except UnitError as error:
                failures.append(error)

        w.trouble.on_command = lambda code: code != OperationCode.SERVICE_ACTION_IN_16
        checked.establish_attention(scsi.INQUIRY_CHANGED)
        nursery.start_soon(write)
        await wait_all_tasks_blocked()
        assert w.trouble.codes[-1] == OperationCode.SERVICE_ACTION_IN_16
        store = exchange(checked, scsi.INQUIRY_CHANGED) if exchanged else checked.store
        w.trouble.on_command = lambda _: True
        w.cut()
        await trio.sleep(10.0)
        assert bool(failures) == exchanged
        assert store.read(0, 512) == (bytes(512) if exchanged else b"w" * 512)


@pytest.mark.parametrize("seconds", [0.0, 0.5, 50.0])
async def test_closing_while_a_unit_is_held(autojump_clock: MockClock, seconds: float) -> None:
    slow = disk("S-0")
    async with world({0: slow}) as w, trio.open_nursery() as nursery:
        unit = w.unit(0)
        slow.faults.append(scsi.Fault(status=Status.BUSY, codes=frozenset({OperationCode.TEST_UNIT_READY})))
        slow.establish_attention(scsi.INQUIRY_CHANGED)

        async def write() -> None:
            with pytest.raises(TransportError, match="closed"):
                await unit.write(0, b"w" * 512)

        nursery.start_soon(write)
        await trio.sleep(seconds)
        await w.target.session.close()
        with trio.fail_after(1.0):
            await wait_all_tasks_blocked()
        assert is_untouched(slow.store)


async def test_a_unit_that_is_only_busy_when_it_is_asked_ends_as_after_a_new_login(
    autojump_clock: MockClock,
) -> None:
    """Neighbours are served, and commands fail by the replacement time-out; when it answers, it goes on."""
    slow = disk("S-1")
    options = {"replacement_timeout": 60.0, "command_timeout": 10.0}
    async with world({0: disk("S-0"), 1: slow}, **options) as w:
        unit, neighbour = w.unit(1), w.unit(0)
        slow.faults.append(scsi.Fault(status=Status.BUSY))
        slow.establish_attention(scsi.INQUIRY_CHANGED)
        started = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                with pytest.raises(CommandTimeout, match="LUN 1: it is not known for 60 seconds"):
                    await unit.write(0, b"w" * 512)

            nursery.start_soon(write)
            await wait_all_tasks_blocked()
            with trio.fail_after(0.1):
                await neighbour.write(0, b"w" * 512)
        assert trio.current_time() - started == pytest.approx(60.0, abs=2.0)
        slow.faults.clear()
        await trio.sleep(20.0)
        await unit.write(0, b"n" * 512)
        assert slow.store.read(0, 512) == b"n" * 512
        assert len(w.server.sessions) == 1


async def test_a_unit_that_cannot_say_what_it_is_is_given_up(autojump_clock: MockClock) -> None:
    broken = disk("S-1")
    async with world({0: disk("S-0"), 1: broken}) as w:
        unit = w.unit(1)
        broken.faults.append(scsi.Fault(HARDWARE_ERROR, codes=frozenset({OperationCode.INQUIRY})))
        broken.establish_attention(scsi.INQUIRY_CHANGED)
        started = trio.current_time()
        with pytest.raises(UnitError, match="LUN 1: gone: .*44/00"):
            await unit.write(0, b"w" * 512)
        assert UNIT_GRACE <= trio.current_time() - started <= UNIT_GRACE + 3.0
        assert is_untouched(broken.store)


async def test_where_the_luns_have_changed_every_unit_may_be_another(autojump_clock: MockClock) -> None:
    """The one unit tells of it; two others have changed places."""
    disks = {number: disk(f"S-{number}") for number in range(4)}
    async with world(dict(disks)) as w:
        first, second, third, stays = (w.unit(number) for number in range(4))
        disks[1].identity, disks[2].identity = disks[2].identity, disks[1].identity
        disks[0].establish_attention(scsi.LUNS_CHANGED)
        await first.read(0, 512)
        async with trio.open_nursery() as nursery:

            async def write(unit: BlockUnit) -> None:
                with pytest.raises(UnitError, match="another unit"):
                    await unit.write(0, b"w" * 512)

            nursery.start_soon(write, second)
            nursery.start_soon(write, third)
            nursery.start_soon(stays.write, 0, b"w" * 512)
        assert is_untouched(disks[1].store)
        assert is_untouched(disks[2].store)
        assert disks[3].store.read(0, 512) == b"w" * 512


async def test_a_busy_command_is_not_repeated_on_another_unit(autojump_clock: MockClock) -> None:
    """It waits for its next attempt while another command hears what has happened."""
    exchanged = disk("S-0")
    async with world({0: exchanged}) as w, trio.open_nursery() as nursery:
        old = w.unit(0)
        exchanged.faults.append(scsi.Fault(status=Status.BUSY, codes=frozenset({WRITE}), times=3))

        async def write() -> None:
            with pytest.raises(UnitError, match="another unit"):
                await old.write(0, b"w" * 512)

        nursery.start_soon(write)
        await wait_all_tasks_blocked()
        other = exchange(exchanged, scsi.INQUIRY_CHANGED)
        exchanged.faults.clear()
        with pytest.raises(UnitError, match="another unit"):
            await old.read(4096, 512)
        await settled()
        assert is_untouched(other)
