"""Whether a unit is still the one that it was: what identifies it, and what becomes of writes where nothing
does."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from iscsifs.errors import DataLostError, IscsifsError, UnitError
from iscsifs.limits import NOTES_A_LIST, UNIT_GRACE
from iscsifs.scsi.capacity import Capacity
from iscsifs.scsi.cdb import OperationCode
from iscsifs.scsi.inquiry import DeviceType, InquiryData
from iscsifs.scsi.sense import Condition, Sense, SenseKey
from iscsifs.scsi.status import Status
from iscsifs.scsi.vpd import (
    Association,
    BlockLimits,
    CodeSet,
    Designator,
    DesignatorType,
    Provisioning,
)
from iscsifs.target import unit as scsi
from iscsifs.target.disk import Disk
from iscsifs.target.store import Store
from iscsifs.units.identity import Description
from iscsifs.units.inventory import PAUSE, REACTIONS, Reaction
from iscsifs.units.unit import LogicalUnit
from support.memory_san import Anonymous
from support.memory_world import KIB, World, disk, world

WRITE = OperationCode.WRITE_10
BLOCK = 512


def anonymous(size: int = 64 * KIB, **options: Any) -> Disk:
    return Anonymous.in_memory(size, "unsaid", **options)


def replace_disk(w: World, number: int, other: Disk) -> Store:
    """Put *other* there while the connection is down, without a word."""
    w.cut()
    w.device._put(number, other)
    return other.store


def is_untouched(store: Store) -> bool:
    return store.read(0, store.size) == bytes(store.size)


# What identifies a unit.


def naa(digits: str, association: int = Association.LOGICAL_UNIT) -> Designator:
    return Designator(DesignatorType.NAA, CodeSet.BINARY, bytes.fromhex(digits), association)


def eui(digits: str) -> Designator:
    return Designator(DesignatorType.EUI_64, CodeSet.BINARY, bytes.fromhex(digits))


def t10(text: bytes, code_set: int = CodeSet.ASCII) -> Designator:
    return Designator(DesignatorType.T10_VENDOR_ID, code_set, text)


def scsi_name(text: bytes) -> Designator:
    return Designator(DesignatorType.SCSI_NAME_STRING, CodeSet.UTF_8, text)


def other_type(kind: int, value: bytes) -> Designator:
    return Designator(kind, CodeSet.BINARY, value)


def description(serial: str = "", *designators: Designator, **fields: Any) -> Description:
    inquiry = fields.pop("inquiry", InquiryData(DeviceType.DISK, version=5, vendor="ACME", product="Disk"))
    return Description(
        inquiry,
        serial,
        designators,
        fields.pop("capacity", Capacity(1000, 512)),
        "",
        BlockLimits(),
        Provisioning(),
        write_protected=False,
        volatile_cache=True,
        raw_inquiry=fields.pop("raw_inquiry", inquiry.pack()),
        **fields,
    )


@pytest.mark.parametrize(
    ("serial", "designators", "identified"),
    [
        ("", [], False),
        ("S-1", [], True),
        ("0001", [], True),
        # What stands where there is no serial number.
        ("   ", [], False),
        ("00000000", [], False),
        ("0", [], False),
        ("00-00-00", [], False),
        ("----", [], False),
        # NAA: the format and the company are not the unit's own.
        ("", [naa("6001405abcdef0123456789abcdef012")], True),
        ("", [naa("5001405000000001")], True),
        ("", [naa("2000001405000001")], True),
        ("", [naa("3000000000000001")], True),
        ("", [naa("00" * 16)], False),
        ("", [naa("60" + "00" * 15)], False),
        ("", [naa("60014050" + "00" * 12)], False),
        ("", [naa("6001405f" + "ff" * 12)], False),
        ("", [naa("5001405000000000")], False),
        ("", [naa("3000000000000000")], False),
        ("", [naa("6001405abcdef012")], False),  # cut short
        ("", [naa("")], False),
        # EUI-64
        ("", [eui("0014050000000001")], True),
        ("", [eui("00140500000000000000000a")], True),
        ("", [eui("0000000000000001" + "0014050000000000")], True),
        ("", [eui("0014050000000000")], False),
        ("", [eui("ff" * 8)], False),
        ("", [eui("00" * 16)], False),
        ("", [eui("001405000001")], False),  # no such length
        # T10: the vendor, and the product that INQUIRY says as well, are not the unit's own.
        ("", [t10(b"ACME    Disk   S-1")], True),
        ("", [t10(b"ACME    beaf11")], True),
        ("", [t10(b"ACME    \0\1", CodeSet.BINARY)], True),
        ("", [t10(b"ACME")], False),
        ("", [t10(b"ACME    ")], False),
        ("", [t10(b"ACME    Disk")], False),
        ("", [t10(b"ACME    Disk:")], False),
        ("", [t10(b"ACME    0000000")], False),
        ("", [t10(b"ACME    \0\0\0", CodeSet.BINARY)], False),
        # SCSI name strings
        ("", [scsi_name(b"naa.6001405abcdef0123456789abcdef012")], True),
        ("", [scsi_name(b"iqn.2001-04.com.example:disk,L,0x0001")], True),
        ("", [scsi_name(b"naa.00000000000000000000000000000000")], False),
        ("", [scsi_name(b"iqn.")], False),
        ("", [scsi_name(b"")], False),
        # The others
        ("", [other_type(DesignatorType.MD5_LOGICAL_UNIT, bytes(range(16)))], True),
        ("", [other_type(DesignatorType.MD5_LOGICAL_UNIT, bytes(16))], False),
        ("", [other_type(DesignatorType.MD5_LOGICAL_UNIT, bytes(range(15)))], False),
        ("", [other_type(DesignatorType.VENDOR_SPECIFIC, b"anything")], False),
        ("", [other_type(DesignatorType.TARGET_PORT_GROUP, b"\0\0\0\1")], False),
        ("", [other_type(DesignatorType.LOGICAL_UNIT_GROUP, b"\0\0\0\1")], False),
        ("", [other_type(DesignatorType.RELATIVE_TARGET_PORT, b"\0\0\0\1")], False),
        # Names of something else
        ("", [naa("5001405000000001", Association.TARGET_PORT)], False),
        ("", [naa("5001405000000001", Association.TARGET_DEVICE)], False),
        # One is enough.
        ("00000000", [t10(b"ACME"), naa("5001405000000001")], True),
        ("S-1", [naa("00" * 16)], True),
    ],
    ids=str,
)
def test_what_identifies_a_unit(serial: str, designators: list[Designator], identified: bool) -> None:
    unit = description(serial, *designators)
    assert unit.identified == identified
    assert bool(unit.unidentified) != identified


def test_a_name_that_another_unit_has_as_well_identifies_neither() -> None:
    name = naa("5001405000000001")
    unit = description("S-1", name)
    assert not replace(unit, shared_names=unit.names).identified
    assert replace(unit, shared_names=frozenset({"S-1"})).identified
    assert replace(unit, shared_names=frozenset({name})).identified


def test_the_name_of_a_drive_is_not_that_of_its_medium() -> None:
    inquiry = InquiryData(DeviceType.DISK, removable=True, version=5, vendor="ACME", product="Disk")
    drive = description("S-1", inquiry=inquiry)
    assert not drive.identified
    assert drive.is_same_unit(replace(drive, capacity=Capacity(2000, 512)))


GROWN = {"capacity": Capacity(2000, 512)}
REVISED = InquiryData(DeviceType.DISK, version=6, vendor="ACME", product="Disk", revision="2")
NEWER = {"inquiry": REVISED, "raw_inquiry": REVISED.pack()}
ODD = {"raw_inquiry": InquiryData(DeviceType.DISK, version=5).pack() + b"of its maker"}


@pytest.mark.parametrize(
    ("change", "identified", "unidentified", "resized"),
    [
        ({}, True, True, True),
        (GROWN, True, False, True),
        (NEWER, True, False, False),
        (ODD, True, False, False),
        ({"capacity": Capacity(1000, 4096)}, False, False, False),
        ({"capacity": None}, True, True, True),
        ({"serial": "S-2"}, False, False, False),
        ({"inquiry": InquiryData(DeviceType.DISK, vendor="ACME", product="Other")}, False, False, False),
        ({"designators": (naa("5001405000000002"),)}, False, False, False),
    ],
    ids=str,
)
def test_what_may_change_about_a_unit(
    change: dict[str, Any], identified: bool, unidentified: bool, resized: bool
) -> None:
    """*resized* is what an unidentified unit may have changed that has reported to have another size."""
    named, nameless = description("S-1"), description()
    assert named.is_same_unit(replace(named, **change)) == identified
    assert nameless.is_same_unit(replace(nameless, **change)) == unidentified
    assert nameless.is_same_unit(replace(nameless, **change), resized=True) == resized
    shared = replace(named, shared_names=named.names)
    assert shared.is_same_unit(replace(shared, **change)) == unidentified


# Units that nothing identifies.


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


async def test_it_is_said_at_once_which_units_cannot_be_identified(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    units = {0: anonymous(), 1: disk("S-1"), 2: disk("twin"), 3: disk("twin"), 4: anonymous(read_only=True)}
    async with world(dict(units)):
        lines = said(caplog)
        assert [("LUN 0" in line, "LUN 2" in line, "LUN 3" in line) for line in lines] == [
            (True, False, False),
            (False, True, False),
            (False, False, True),
        ]
        assert "it has no serial number and no worldwide name" in lines[0]
        assert "what was not synchronised is lost, and reported so (-o trust_unidentified" in lines[0]
        assert "another unit of the target has the same serial number" in lines[1]


async def test_units_that_cannot_be_identified_are_not_listed_for_ever(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with world({number: anonymous() for number in range(NOTES_A_LIST + 5)}):
        assert len(said(caplog)) == NOTES_A_LIST + 1
        assert said(caplog)[-1].endswith(": 5 more logical units cannot be identified")


async def test_it_is_said_when_a_unit_comes_that_has_the_names_of_another(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with world({0: disk("twin")}) as w:
        assert said(caplog) == []
        w.device.attach(1, disk("twin"))
        await w.unit(0).read(0, BLOCK)
        await trio.sleep(3 * PAUSE)
        assert len(said(caplog)) == 2
        assert not w.unit(0).description.identified
        gone = w.unit(1)
        w.device.detach(1)
        await w.unit(0).read(0, BLOCK)
        await trio.sleep(UNIT_GRACE + 4 * PAUSE)
        assert gone.failure is not None
        assert w.unit(0).description.identified


@pytest.mark.parametrize("state", ["accepted", "written"])
async def test_what_is_not_synchronised_is_lost_and_reported(autojump_clock: MockClock, state: str) -> None:
    old_disk = anonymous()
    async with world({0: old_disk}, write_behind=True) as w:
        unit = w.unit(0)
        if state == "accepted":
            w.trouble.on_command = lambda code: code != WRITE
        await unit.write(0, b"w" * BLOCK)
        if state == "written":
            await unit.drain()
        else:
            await wait_all_tasks_blocked()
        other = replace_disk(w, 0, anonymous())
        w.trouble.on_command = lambda _: True
        await unit.read(BLOCK, BLOCK)
        await unit.flush()
        assert unit.failures
        assert isinstance(unit.last_failure, DataLostError)
        assert "it has no serial number" in str(unit.last_failure)
        assert is_untouched(other)
        # From here on it is used as it is.
        failures = unit.failures
        await unit.write(0, b"n" * BLOCK)
        await unit.flush()
        assert unit.failures == failures
        assert other.read(0, BLOCK) == b"n" * BLOCK


async def test_what_is_synchronised_is_not_lost(autojump_clock: MockClock) -> None:
    async with world({0: anonymous()}, write_behind=True) as w:
        unit = w.unit(0)
        returned: list[LogicalUnit] = []
        w.target.on_return = returned.append
        await unit.write(0, b"w" * BLOCK)
        await unit.flush()
        w.cut()
        assert bytes(await unit.read(0, BLOCK)) == b"w" * BLOCK
        await unit.flush()
        assert not unit.failures
        assert returned == [unit]


async def test_who_trusts_it_gets_it_written_again(autojump_clock: MockClock) -> None:
    async with world({0: anonymous()}, write_behind=True, trust_unidentified=True) as w:
        unit = w.unit(0)
        w.trouble.on_command = lambda code: code != WRITE
        await unit.write(0, b"w" * BLOCK)
        await wait_all_tasks_blocked()
        w.cut()
        w.trouble.on_command = lambda _: True
        await unit.flush()
        assert not unit.failures
        assert bytes(await unit.read(0, BLOCK)) == b"w" * BLOCK


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    "other", [{"size": 128 * KIB}, {"block_size": 4096}, {"revision": "2"}], ids=["size", "block", "revision"]
)
async def test_another_size_or_other_inquiry_data_are_another_unit(
    autojump_clock: MockClock, trust: bool, other: dict[str, Any]
) -> None:
    """The same under an identification would be the old unit that has grown."""
    other = dict(other)
    revision = other.pop("revision", "1")
    async with world({0: anonymous()}, write_behind=True, trust_unidentified=trust) as w:
        unit = w.unit(0)
        await unit.write(0, b"w" * BLOCK)
        await unit.drain()
        stranger = anonymous(**other)
        stranger.identity = scsi.Identity("unsaid", revision=revision)
        store = replace_disk(w, 0, stranger)
        with pytest.raises(UnitError, match="another unit"):
            await unit.read(0, BLOCK)
        await wait_all_tasks_blocked()
        assert unit.failures
        assert is_untouched(store)


async def test_a_size_that_the_unit_has_reported_itself_is_no_other_unit(autojump_clock: MockClock) -> None:
    growing = anonymous()
    async with world({0: growing}) as w:
        growing.resize(256)
        await w.unit(0).read(0, BLOCK)
        await trio.sleep(3 * PAUSE)
        assert w.unit(0).failure is None
        assert w.unit(0).size == 256 * BLOCK


@pytest.mark.parametrize("write_behind", [False, True])
@pytest.mark.parametrize("report", [scsi.POWER_ON, scsi.INQUIRY_CHANGED, scsi.MEDIUM_CHANGED], ids=str)
async def test_a_report_that_it_may_be_another_counts_as_a_new_login(
    autojump_clock: MockClock, report: Sense, write_behind: bool
) -> None:
    exchanged = anonymous()
    async with world({0: exchanged}, write_behind=write_behind) as w:
        unit = w.unit(0)
        await unit.write(0, b"w" * BLOCK)
        await unit.drain()
        exchanged.store = Store.memory(64 * KIB)
        exchanged.establish_attention(report)
        await unit.read(BLOCK, BLOCK)
        await unit.flush()
        assert unit.failures == 1
        assert is_untouched(exchanged.store)


async def test_a_write_of_unknown_fate_fails(autojump_clock: MockClock) -> None:
    async with world({0: anonymous()}) as w, trio.open_nursery() as nursery:
        unit = w.unit(0)
        w.trouble.on_command = lambda code: code not in (WRITE, OperationCode.READ_10)
        failures: list[IscsifsError] = []

        async def write() -> None:
            try:
                await unit.write(0, b"w" * BLOCK)
            except IscsifsError as error:
                failures.append(error)

        nursery.start_soon(write)
        nursery.start_soon(unit.read, BLOCK, BLOCK)  # it is repeated
        await wait_all_tasks_blocked()
        other = replace_disk(w, 0, anonymous())
        w.trouble.on_command = lambda _: True
        await trio.sleep(5.0)
        assert [type(failure) for failure in failures] == [DataLostError]
        assert is_untouched(other)
        assert not unit.failures  # nobody had been told that it had succeeded
        await unit.write(0, b"n" * BLOCK)


async def test_a_write_that_waits_for_a_busy_unit_is_not_repeated_on_another(
    autojump_clock: MockClock,
) -> None:
    busy = anonymous()
    async with world({0: busy}) as w, trio.open_nursery() as nursery:
        unit = w.unit(0)
        busy.faults.append(scsi.Fault(status=Status.BUSY, codes=frozenset({WRITE})))

        async def write() -> None:
            with pytest.raises(DataLostError):
                await unit.write(0, b"w" * BLOCK)

        nursery.start_soon(write)
        await trio.sleep(3.0)
        busy.store = Store.memory(64 * KIB)
        busy.establish_attention(scsi.INQUIRY_CHANGED)
        busy.faults.clear()
        await unit.read(0, BLOCK)
    assert is_untouched(busy.store)


async def test_half_a_block_of_one_unit_is_not_written_to_another(autojump_clock: MockClock) -> None:
    """A part of a block is read, changed and written back."""
    exchanged = anonymous()
    exchanged.store.write(0, b"o" * BLOCK)
    async with world({0: exchanged}) as w:
        unit = w.unit(0)

        def on_command(code: int) -> bool:
            if code == WRITE and is_old:
                is_old.clear()
                exchanged.store = Store.memory(64 * KIB)
                exchanged.establish_attention(scsi.INQUIRY_CHANGED)
            return True

        is_old = [True]
        w.trouble.on_command = on_command
        with pytest.raises(DataLostError):
            await unit.write(10, b"n")
        assert is_untouched(exchanged.store)


async def test_what_waits_for_another_write_of_the_same_block_is_of_before_as_well(
    autojump_clock: MockClock,
) -> None:
    exchanged = anonymous()
    async with world({0: exchanged}) as w, trio.open_nursery() as nursery:
        unit = w.unit(0)
        exchanged.faults.append(scsi.Fault(status=Status.BUSY, codes=frozenset({WRITE})))

        async def fails(action: Callable[..., Awaitable[None]], *args: object) -> None:
            with pytest.raises(DataLostError):
                await action(*args)

        for _ in range(3):
            nursery.start_soon(fails, unit.write, 0, b"w" * BLOCK)
        await wait_all_tasks_blocked()
        nursery.start_soon(fails, unit.write, BLOCK // 2, b"p" * BLOCK)
        await wait_all_tasks_blocked()
        exchanged.store = Store.memory(64 * KIB)
        exchanged.store.write(0, b"o" * 64 * KIB)
        exchanged.establish_attention(scsi.INQUIRY_CHANGED)
        exchanged.faults.clear()
        await unit.read(32 * BLOCK, BLOCK)
    assert exchanged.store.read(0, 64 * KIB) == b"o" * 64 * KIB


# A unit that is not there.


async def test_a_unit_that_goes_and_comes_back_gets_what_was_accepted(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    coming_back = disk("S-1")
    async with world({0: disk("S-0"), 1: coming_back}, write_behind=True) as w:
        unit, neighbour = w.unit(1), w.unit(0)
        del w.device._units[1]  # without a unit attention
        for block in range(0, 128, 2):
            await unit.write(block * BLOCK, b"w" * BLOCK)
        await wait_all_tasks_blocked()
        with trio.fail_after(0.5):
            await neighbour.write(0, b"n" * BLOCK)
        await trio.sleep(UNIT_GRACE / 2)
        assert not unit.failures
        w.device._put(1, coming_back)
        with trio.fail_after(PAUSE * 2):
            await unit.flush()
        assert not unit.failures
        assert coming_back.store.read(0, 128 * BLOCK) == (b"w" * BLOCK + bytes(BLOCK)) * 64
        assert len([line for line in said(caplog) if "LUN 1" in line]) == 1  # not one for each command
        assert len(w.server.sessions) == 1


async def test_a_unit_that_stays_away_is_lost_with_the_usual_report(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with world({0: disk("S-0"), 1: disk("S-1")}, write_behind=True) as w:
        unit = w.unit(1)
        del w.device._units[1]
        started = trio.current_time()
        await unit.write(0, b"w" * BLOCK)
        with pytest.raises(UnitError, match="LUN 1: gone: .*there is no device"):
            await unit.flush()
        assert UNIT_GRACE <= trio.current_time() - started <= UNIT_GRACE + 3.0
        assert unit.failures
        await trio.sleep(3 * PAUSE)
        assert w.labels == ["0"]
        assert len(said(caplog)) <= 3


async def test_another_unit_that_comes_in_its_place_gets_nothing(autojump_clock: MockClock) -> None:
    other = disk("S-other")
    async with world({0: disk("S-0"), 1: disk("S-1")}, write_behind=True) as w:
        unit = w.unit(1)
        del w.device._units[1]
        await unit.write(0, b"w" * BLOCK)
        await trio.sleep(3.0)
        w.device._put(1, other)
        with pytest.raises(UnitError, match="another unit"):
            await unit.flush()
        assert unit.failures
        assert is_untouched(other.store)


async def test_a_unit_without_a_name_that_was_away_loses_what_was_accepted(autojump_clock: MockClock) -> None:
    coming_back = anonymous()
    async with world({0: disk("S-0"), 1: coming_back}, write_behind=True) as w:
        unit = w.unit(1)
        del w.device._units[1]
        await unit.write(0, b"w" * BLOCK)
        await trio.sleep(3.0)
        w.device._put(1, coming_back)
        await unit.flush()
        assert isinstance(unit.last_failure, DataLostError)
        assert is_untouched(coming_back.store)


async def test_a_unit_that_is_never_there_for_commands_ends(autojump_clock: MockClock) -> None:
    """It says what it is, and answers everything else with that it is not there."""
    odd = disk("S-1")
    async with world({0: disk("S-0"), 1: odd}) as w:
        unit = w.unit(1)
        odd.faults.append(scsi.Fault(scsi.LUN_NOT_SUPPORTED, codes=frozenset({WRITE})))
        with trio.fail_after(60.0), pytest.raises(IscsifsError, match="LOGICAL UNIT NOT SUPPORTED|not supp"):
            await unit.write(0, b"w" * BLOCK)
        assert w.trouble.codes.count(WRITE) <= 10


async def test_a_unit_that_the_target_does_not_report_has_its_time_as_well(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = disk("S-1")
    async with world({0: disk("S-0"), 1: hidden}) as w:
        unit = w.unit(1)
        report_luns = w.device._report_luns

        def report_the_first(cdb: bytes) -> scsi.Operation:
            unit = w.device._units.pop(1)
            answer = report_luns(cdb)
            w.device._units[1] = unit
            return answer

        monkeypatch.setattr(w.device, "_report_luns", report_the_first)
        w.device._units[0].establish_attention(scsi.LUNS_CHANGED)
        await w.unit(0).read(0, BLOCK)
        await trio.sleep(UNIT_GRACE / 2)
        await unit.write(0, b"w" * BLOCK)
        monkeypatch.undo()
        await trio.sleep(UNIT_GRACE * 2)
        await unit.write(0, b"w" * BLOCK)
        monkeypatch.setattr(w.device, "_report_luns", report_the_first)
        w.device._units[0].establish_attention(scsi.LUNS_CHANGED)
        await w.unit(0).read(0, BLOCK)
        await trio.sleep(UNIT_GRACE * 2)
        with pytest.raises(UnitError, match="does not report it any more"):
            await unit.write(0, b"w" * BLOCK)


# What is done about what a unit reports.

CHECKED_ANEW = [
    (Sense(SenseKey.UNIT_ATTENTION, 0x28, 0x00), Reaction.CHECK),
    (Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x00), Reaction.CHECK),
    (Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x04), Reaction.CHECK),
    (Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x07), None),  # the I_T nexus was lost, nothing else
    (Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x01), Reaction.REFRESH),
    (Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x09), Reaction.REFRESH),
    (Sense(SenseKey.UNIT_ATTENTION, 0x2F, 0x00), None),
    (Sense(SenseKey.UNIT_ATTENTION, 0x3F, 0x02), Reaction.CHECK),
    (Sense(SenseKey.UNIT_ATTENTION, 0x3F, 0x03), Reaction.CHECK),
    (Sense(SenseKey.UNIT_ATTENTION, 0x3F, 0x05), Reaction.CHECK),
    (Sense(SenseKey.UNIT_ATTENTION, 0x3F, 0x0D), Reaction.CHECK),  # another volume under this LUN
    (Sense(SenseKey.UNIT_ATTENTION, 0x3F, 0x0E), Reaction.CHECK_ALL),
    (Sense(SenseKey.ILLEGAL_REQUEST, 0x25, 0x00), Reaction.CHECK),
    (Sense(SenseKey.ILLEGAL_REQUEST, 0x21, 0x00), Reaction.REFRESH),
    (Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00), None),
    (Sense(SenseKey.DATA_PROTECT, 0x27, 0x00), Reaction.REFRESH),
    (Sense(SenseKey.DATA_PROTECT, 0x27, 0x07), None),
    (Sense(SenseKey.DATA_PROTECT, 0x74, 0x71), None),  # it is there, and not for us
    (Sense(SenseKey.NOT_READY, 0x04, 0x01), None),
    (Sense(SenseKey.NOT_READY, 0x04, 0x03), None),
    (Sense(SenseKey.NOT_READY, 0x3A, 0x00), None),
    (Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00), None),
    (Sense(SenseKey.HARDWARE_ERROR, 0x44, 0x00), None),
    (Sense(SenseKey.ABORTED_COMMAND, 0x47, 0x05), None),
    (Sense(SenseKey.NO_SENSE), None),
]


@pytest.mark.parametrize(("sense", "reaction"), CHECKED_ANEW, ids=str)
async def test_what_is_done_about_what_a_unit_reports(
    autojump_clock: MockClock, sense: Sense, reaction: Reaction | None
) -> None:
    asked = disk("S-1")
    async with world({0: disk("S-0"), 1: asked}, command_timeout=1.0) as w:
        await trio.sleep(2 * PAUSE)
        asked.faults.append(scsi.Fault(sense, codes=frozenset({WRITE}), times=1))
        w.trouble.commands.clear()
        try:
            await w.unit(1).write(0, b"w" * BLOCK)
        except IscsifsError:
            assert not sense.condition.repeatable
        await trio.sleep(3 * PAUSE)
        later = w.trouble.codes[1:]
        looks = later.count(OperationCode.SERVICE_ACTION_IN_16)
        assert looks == {None: 0, Reaction.CHECK: 1, Reaction.REFRESH: 1, Reaction.CHECK_ALL: 2}[reaction]
        if reaction in (Reaction.CHECK, Reaction.CHECK_ALL):
            assert WRITE not in later[: later.index(OperationCode.SERVICE_ACTION_IN_16)]


def test_the_table_names_conditions_only_once_and_leaves_none_out() -> None:
    """A new condition has to be thought about: it is in the table, or here."""
    without = {
        *(Condition.RECOVERED, Condition.RETRY, Condition.BECOMING_READY, Condition.COMMANDS_CLEARED),
        *(Condition.DEFERRED_ERROR, Condition.NOT_READY, Condition.NO_MEDIUM, Condition.MEDIUM_ERROR),
        *(Condition.NO_SPACE, Condition.UNSUPPORTED, Condition.MISCOMPARE, Condition.FAILED),
    }
    assert without.isdisjoint(REACTIONS)
    assert without | set(REACTIONS) == set(Condition)
