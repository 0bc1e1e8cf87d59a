"""What units say of themselves, also where they lie."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from iscsifs.errors import (
    BusyError,
    CommandTimeout,
    IscsifsError,
    StatusError,
    TaskAborted,
    TransportError,
    UnitError,
)
from iscsifs.limits import MAX_DESIGNATORS, MAX_LUNS
from iscsifs.scsi import cdb, mode, vpd
from iscsifs.scsi.capacity import Capacity
from iscsifs.scsi.cdb import OperationCode, allocation_length
from iscsifs.scsi.inquiry import DeviceType, InquiryData
from iscsifs.scsi.luns import lun_from_number, pack_luns
from iscsifs.scsi.sense import Sense, SenseKey
from iscsifs.scsi.status import Status
from iscsifs.units.identity import (
    FIRST_LUNS_LENGTH,
    SEQUENTIAL_LUNS,
    Description,
    describe,
    report_luns,
)
from iscsifs.units.path import Attempt
from iscsifs.units.queue import Queue
from support import memory_path

INVALID_OPERATION_CODE = Sense(SenseKey.ILLEGAL_REQUEST, 0x20, 0x00)
INVALID_FIELD = Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00)
NO_MEDIUM = Sense(SenseKey.NOT_READY, 0x3A, 0x00)
NO_UNIT = Sense(SenseKey.ILLEGAL_REQUEST, 0x25, 0x00)
DISK = InquiryData(DeviceType.DISK, version=5, vendor="ACME", product="Disk", revision="1.0").pack()

Answer = bytes | Sense | Status | IscsifsError | None


class Session:
    """Answers commands by *answer*, which gets LUN and CDB; None is an unknown command."""

    def __init__(self, answer: Callable[[int, bytes], Answer]) -> None:
        self.answer = answer
        self.asked: list[tuple[int, bytes]] = []

    def queue(self, lun: int = 0, *, patience: float = 1.0) -> Queue:
        """Return a queue for questions to *lun*. Delays need no nursery: they run as system tasks."""

        def answer(command: bytes) -> memory_path.Answer:
            self.asked.append((lun, command))
            answer = self.answer(lun, command)
            return INVALID_OPERATION_CODE if answer is None else answer

        class Path(memory_path.MemoryPath):
            def send(
                self, cdb: bytes, data_in: memoryview, data_out: memoryview, on_end: Callable[[Attempt], None]
            ) -> Attempt:
                if data_in and cdb[0] != OperationCode.READ_CAPACITY_10:
                    # tgt refuses an allocation length above what the initiator expects to be sent.
                    assert allocation_length(cdb) == len(data_in)
                return super().send(cdb, data_in, data_out, on_end)

        return memory_path.queue_of(
            Path(answer), cast(trio.Nursery, SystemTasks()), patience=patience, probes=True
        )


class SystemTasks:
    """A nursery of which nobody waits for the end."""

    def start_soon(self, work: Any, *arguments: Any) -> None:
        trio.lowlevel.spawn_system_task(work, *arguments)


def commands(answer: Callable[[int, bytes], Answer], lun: int = 0) -> tuple[Queue, Session]:
    session = Session(answer)
    return session.queue(lun), session


# REPORT LUNS.


async def luns_of(answer: Callable[[int, bytes], Answer]) -> list[int]:
    return await report_luns(Session(answer).queue)


async def test_the_units_in_the_order_of_the_target() -> None:
    luns = [lun_from_number(number) for number in (3, 0, 1, 300, 20_000)]
    assert await luns_of(lambda *_: pack_luns(luns)) == luns


async def test_every_addressing_method_is_taken_as_it_comes() -> None:
    luns = [0x0005 << 48, 0x4005 << 48, 0xD2000005 << 32, 0x0001000200030000]
    assert await luns_of(lambda *_: pack_luns(luns)) == luns


async def test_well_known_units_are_none_of_ours() -> None:
    assert await luns_of(lambda *_: pack_luns([0, 0xC101 << 48])) == [0]


async def test_more_units_than_fit_are_asked_for_again() -> None:
    luns = [lun_from_number(number) for number in range(1000)]
    session = Session(lambda _, command: pack_luns(luns)[: cdb.allocation_length(command)])
    assert await report_luns(session.queue) == luns
    assert [cdb.allocation_length(command) for _, command in session.asked] == [
        FIRST_LUNS_LENGTH,
        8 + 8 * 1000,
    ]


@pytest.mark.conformance("HOSTILE-35")
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", []),
        (bytes(3), []),
        (bytes(8), []),
        ((0).to_bytes(4, "big") + bytes(4) + pack_luns([1])[8:], []),
        ((13).to_bytes(4, "big") + bytes(4) + pack_luns([1, 2])[8:], [1]),
        ((0xFFFFFFFF).to_bytes(4, "big") + bytes(4) + pack_luns([1, 2])[8:], [1, 2]),
        ((800).to_bytes(4, "big") + bytes(4) + pack_luns([1, 2])[8:], [1, 2]),
        (pack_luns([1, 2, 1, 2, 1]), [1, 2]),
    ],
)
async def test_lengths_that_lie(answer: bytes, expected: list[int], caplog: pytest.LogCaptureFixture) -> None:
    session = Session(lambda _, command: answer[: cdb.allocation_length(command)])
    assert await report_luns(session.queue) == expected
    assert len(session.asked) <= 2


@pytest.mark.conformance("HOSTILE-35")
async def test_a_million_units(caplog: pytest.LogCaptureFixture) -> None:
    answer = pack_luns(map(lun_from_number, range(1 << 20)))
    session = Session(lambda _, command: answer[: cdb.allocation_length(command)])
    assert len(await report_luns(session.queue)) == MAX_LUNS
    assert len(session.asked) == 2
    assert f"{MAX_LUNS} of the {1 << 20} logical units are used" in caplog.text


@given(st.binary(max_size=64))
def test_no_answer_to_report_luns_is_too_strange(answer: bytes) -> None:
    luns = trio.run(luns_of, lambda *_: answer)
    assert len(luns) == len(set(luns)) <= len(answer) // 8


async def test_without_report_luns_the_first_units_are_asked_one_by_one() -> None:
    def answer(lun: int, command: bytes) -> Answer:
        if command[0] == OperationCode.REPORT_LUNS:
            return INVALID_OPERATION_CODE
        assert command[0] == OperationCode.INQUIRY
        answers: dict[int, Answer] = {
            lun_from_number(0): DISK,
            lun_from_number(1): InquiryData(DeviceType.UNKNOWN, peripheral_qualifier=3).pack(),
            lun_from_number(2): b"",
            lun_from_number(3): TaskAborted("it was aborted"),
            lun_from_number(5): DISK,
        }
        return answers.get(lun, NO_UNIT)

    session = Session(answer)
    assert await report_luns(session.queue) == [lun_from_number(number) for number in (0, 3, 5)]
    assert len({lun for lun, _ in session.asked}) == SEQUENTIAL_LUNS


@pytest.mark.parametrize("kind", [CommandTimeout, TransportError, TaskAborted])
async def test_a_session_that_is_gone_is_no_target_without_report_luns(kind: type[IscsifsError]) -> None:
    session = Session(lambda *_: kind("the session is gone"))
    with pytest.raises(kind):
        await report_luns(session.queue)
    assert {command[0] for _, command in session.asked} == {OperationCode.REPORT_LUNS}


# What a unit is.


class Unit:
    """A well-behaved disk, the answers of which a test exchanges."""

    def __init__(self, **answers: Answer) -> None:
        usual: dict[str, Answer] = {
            "ready": b"",
            "inquiry": DISK,
            "pages": vpd.pack_supported_pages([0x00, 0x80, 0x83, 0xB0, 0xB2]),
            "serial": vpd.pack_serial("S-1"),
            "names": vpd.pack_designators(
                [
                    vpd.Designator(
                        vpd.DesignatorType.NAA, vpd.CodeSet.BINARY, bytes.fromhex("5000000000000001")
                    )
                ]
            ),
            "limits": vpd.BlockLimits(max_transfer_length=2048, optimal_transfer_length=128).pack(),
            "capacity_16": Capacity(1000, 512).pack_16(),
            "capacity_10": Capacity(1000, 512).pack_10(),
            "mode": mode.ModeData(pages={(8, 0): mode.Caching(wce=True, rcd=False).pack()}).pack_6(),
        }
        self.answers = usual | answers

    def __call__(self, _: int, command: bytes) -> Answer:
        pages = {0x00: "pages", 0x80: "serial", 0x83: "names", 0xB0: "limits", 0xB2: "provisioning"}
        match command[0]:
            case OperationCode.TEST_UNIT_READY:
                name = "ready"
            case OperationCode.INQUIRY:
                request = cdb.parse_inquiry(command)
                name = pages[request.page] if request.evpd else "inquiry"
            case OperationCode.READ_CAPACITY_10:
                name = "capacity_10"
            case OperationCode.SERVICE_ACTION_IN_16:
                name = "capacity_16"
            case OperationCode.MODE_SENSE_6:
                name = "mode"
            case code:
                raise AssertionError(f"{code:02x}h is not asked for")
        return self.answers.get(name)


async def description(**answers: Answer) -> Description:
    return await describe(commands(Unit(**answers))[0])


async def test_a_disk() -> None:
    disk = await description()
    assert (disk.inquiry.vendor, disk.inquiry.product, disk.serial) == ("ACME", "Disk", "S-1")
    assert disk.wwid == "naa.5000000000000001"
    assert disk.capacity == Capacity(1000, 512)
    assert (disk.limits.max_transfer_length, disk.limits.optimal_transfer_length) == (2048, 128)
    assert disk.volatile_cache is True
    assert not disk.write_protected


async def test_a_disk_that_knows_only_what_it_must(caplog: pytest.LogCaptureFixture) -> None:
    old: dict[str, Answer] = dict.fromkeys(("pages", "serial", "names", "limits", "capacity_16", "mode"))
    disk = await description(**old)
    assert disk.capacity == Capacity(1000, 512)
    assert (disk.serial, disk.wwid, disk.volatile_cache) == ("", None, None)
    assert not caplog.records  # nothing is wrong with that


async def test_write_protection() -> None:
    assert (await description(mode=mode.ModeData(write_protected=True).pack_6())).write_protected


async def test_a_cd_is_read_only_and_asked_the_short_way() -> None:
    session = Session(
        Unit(
            inquiry=InquiryData(DeviceType.CD_DVD, removable=True, version=5).pack(),
            capacity_10=Capacity(1000, 2048).pack_10(),
            capacity_16=None,
        )
    )
    cd = await describe(session.queue(patience=1.0))
    assert cd.capacity == Capacity(1000, 2048)
    assert cd.write_protected
    assert not [command for _, command in session.asked if command[0] == OperationCode.SERVICE_ACTION_IN_16]


@pytest.mark.parametrize(
    "device_type", [DeviceType.TAPE, DeviceType.PROCESSOR, DeviceType.STORAGE_ARRAY_CONTROLLER]
)
async def test_what_is_not_read_by_block_is_not_asked_for_blocks(device_type: DeviceType) -> None:
    session = Session(Unit(inquiry=InquiryData(device_type, version=5).pack()))
    unit = await describe(session.queue(patience=1.0))
    assert unit.capacity is None
    assert unit.no_storage
    assert {command[0] for _, command in session.asked} == {OperationCode.INQUIRY}


async def test_a_drive_without_a_medium() -> None:
    cd = InquiryData(DeviceType.CD_DVD, removable=True, version=5).pack()
    empty = await description(inquiry=cd, ready=NO_MEDIUM)
    assert empty.capacity is None
    assert "MEDIUM NOT PRESENT" in empty.no_storage.upper()
    full = await description(inquiry=cd, capacity_10=Capacity(1000, 2048).pack_10())
    assert full.is_same_unit(empty)
    assert empty.is_same_unit(full)


async def test_a_lun_without_a_device() -> None:
    with pytest.raises(UnitError, match="disk LUN 0: there is no device"):
        await description(inquiry=InquiryData(DeviceType.UNKNOWN, peripheral_qualifier=3).pack())


@pytest.mark.conformance("HOSTILE-37")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff" * 8 + (512).to_bytes(4, "big") + bytes(20), "larger than a file"),
        (bytes(8) + (0).to_bytes(4, "big") + bytes(20), "blocks of 0 bytes"),
        (bytes(8) + (3).to_bytes(4, "big") + bytes(20), "blocks of 3 bytes"),
        (bytes(8) + (1 << 31).to_bytes(4, "big") + bytes(20), "blocks of 2147483648 bytes"),
        (b"", "0 bytes instead of 32"),
        (bytes(11), "11 bytes instead of 32"),
    ],
)
async def test_capacities_that_no_file_can_have(
    data: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    unit = await description(capacity_16=data)
    assert unit.capacity is None
    assert reason in unit.no_storage
    assert any("disk LUN 0: no storage" in record.message for record in caplog.records)


@pytest.mark.conformance("HOSTILE-37")
async def test_the_last_lba_of_the_short_form_says_to_ask_with_the_long_one() -> None:
    class Late(Unit):
        """It knows READ CAPACITY(16), but not at the first time."""

        asked = 0

        def __call__(self, lun: int, command: bytes) -> Answer:
            if command[0] == OperationCode.SERVICE_ACTION_IN_16:
                self.asked += 1
                return None if self.asked == 1 else Capacity(1 << 33, 512).pack_16()
            return super().__call__(lun, command)

    late = Late(capacity_10=b"\xff" * 4 + (512).to_bytes(4, "big"))
    assert (await describe(commands(late)[0])).capacity == Capacity(1 << 33, 512)


HOSTILE_PAGES = [
    b"",
    b"\x00",
    b"\x00\x80\xff\xff" + b"A" * 20,
    b"\x00\x81\x00\x04ABCD",
    b"\x00\x83\x00\x0a\x01\x03\x00\xff" + bytes(6),
    b"\x00\x80\x00\x08\x1b[31mX\x00\n",
    b"\xff" * 1024,
]


@pytest.mark.conformance("HOSTILE-36")
@pytest.mark.parametrize("page", ["pages", "serial", "names", "limits", "provisioning", "mode", "inquiry"])
@pytest.mark.parametrize("data", HOSTILE_PAGES)
async def test_pages_that_lie_hide_what_they_would_have_told(page: str, data: bytes) -> None:
    try:
        unit = await description(**{page: data})
    except UnitError:
        assert page == "inquiry"
        return
    assert unit.serial.isprintable()
    assert all(field.isprintable() for field in (unit.inquiry.vendor, unit.inquiry.product))
    if page != "inquiry":
        assert unit.capacity == Capacity(1000, 512)


@pytest.mark.conformance("HOSTILE-36")
async def test_of_the_names_of_a_unit_so_many_are_kept() -> None:
    one = vpd.Designator(vpd.DesignatorType.NAA, vpd.CodeSet.BINARY, bytes.fromhex("5000000000000001"))
    unit = await description(names=vpd.pack_designators([one] * (MAX_DESIGNATORS + 1)))
    assert unit.designators == (one,) * MAX_DESIGNATORS


@pytest.mark.conformance("HOSTILE-36")
@given(st.dictionaries(st.sampled_from(sorted(Unit().answers)), st.binary(max_size=80)))
def test_no_unit_is_too_strange(answers: Mapping[str, Any]) -> None:
    async def look() -> None:
        try:
            unit = await description(**answers)
        except (UnitError, StatusError):
            return
        assert unit.is_same_unit(unit)

    trio.run(look)


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (CommandTimeout("the session is gone"), CommandTimeout),
        (TransportError("the session is gone"), TransportError),
        (TaskAborted("it was aborted"), TaskAborted),
        (Status.BUSY, BusyError),
    ],
)
@pytest.mark.parametrize("name", ["inquiry", "pages", "serial", "ready", "capacity_16", "mode"])
async def test_no_answer_is_no_missing_page(
    autojump_clock: MockClock, answer: Answer, failure: type[IscsifsError], name: str
) -> None:
    with pytest.raises(failure):
        await description(**{name: answer})


async def test_a_unit_that_becomes_ready_is_waited_for(autojump_clock: MockClock) -> None:
    class Starting(Unit):
        def __call__(self, lun: int, command: bytes) -> Answer:
            if command[0] == OperationCode.TEST_UNIT_READY and trio.current_time() < ready_at:
                return Sense(SenseKey.NOT_READY, 0x04, 0x01)
            return super().__call__(lun, command)

    ready_at = trio.current_time() + 10.0
    session = Session(Starting())
    asks = session.queue(patience=30.0)
    assert (await describe(asks)).capacity == Capacity(1000, 512)


async def test_another_unit_is_told_from_the_same_one_that_has_grown() -> None:
    disk = await description()
    assert disk.is_same_unit(await description(capacity_16=Capacity(2000, 512).pack_16()))
    for other in (
        {"serial": vpd.pack_serial("S-2")},
        {"names": vpd.pack_designators([])},
        {"inquiry": InquiryData(DeviceType.DISK, version=5, vendor="ACME", product="Tape").pack()},
        {"capacity_16": Capacity(1000, 4096).pack_16()},
    ):
        assert not disk.is_same_unit(await description(**other))
