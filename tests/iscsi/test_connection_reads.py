"""Data-In and the status of commands: RFC 7143 sections 11.4 and 11.7."""

from typing import Any

import pytest

from iscsifs.errors import DataError, TaskAborted
from iscsifs.iscsi.events import Noted, SenseReported
from iscsifs.iscsi.pdu import (
    FINAL,
    DataIn,
    DataInFlag,
    NopOut,
    ResponseFlag,
    ScsiCommand,
    ScsiResponse,
)
from iscsifs.iscsi.task import Task
from iscsifs.limits import MAX_SENSE_LENGTH
from support.memory_target import LUN, MemoryTarget, pattern, plain_task

GOOD, CHECK_CONDITION, BUSY = 0, 2, 8
STATUS = DataInFlag.FINAL | DataInFlag.STATUS
SENSE = bytes.fromhex("70000300000000 0a 00000000 1100 00 000000")


@pytest.mark.conformance("FFP-10.1")
def test_a_status_in_the_last_data_in_ends_the_read() -> None:
    target = MemoryTarget()
    task = target.read(1024)
    data = pattern(1024)
    target.received(ScsiCommand)
    target.data_in(task, 0, data[:512], 0, flags=0)
    assert target.events() == []
    target.data_in(task, 512, data[512:], 1, flags=STATUS)
    assert target.events() == [task]
    assert (task.status, task.failure, task.residual, task.received) == (GOOD, None, 0, 1024)
    assert task.data_in.tobytes() == data
    assert target.connection.tasks_on_the_wire == 0
    target.submit(plain_task())
    (command,) = target.received(ScsiCommand)
    assert command.pdu.exp_stat_sn == target.stat_sn  # the status is acknowledged
    with target.drop("4.2.5.3"):  # a SCSI Response is not waited for
        target.respond(task)


def test_a_status_in_a_response_ends_the_read() -> None:
    target = MemoryTarget()
    task = target.read(1024)
    data = pattern(1024)
    target.data_in(task, 0, data[:1000], 0, flags=0)
    target.data_in(task, 1000, data[1000:], 1)
    assert target.events() == []
    target.respond(task, exp_data_sn=2)
    assert target.events() == [task]
    assert (task.status, task.failure, task.data_in.tobytes()) == (GOOD, None, data)


@pytest.mark.conformance("FFP-10.2")
def test_data_is_not_acknowledged() -> None:
    target = MemoryTarget()
    task = target.read(1024)
    target.received(ScsiCommand)
    target.data_in(task, 0, bytes(512), 0, flags=FINAL | DataInFlag.ACKNOWLEDGE, target_transfer_tag=5)
    target.data_in(task, 512, bytes(512), 1, flags=STATUS | DataInFlag.ACKNOWLEDGE, target_transfer_tag=6)
    assert target.events() == [task]
    assert target.nothing_received()


@pytest.mark.conformance("FFP-11.1.2")
def test_an_empty_data_in_counts() -> None:
    target = MemoryTarget(initiator={"MaxRecvDataSegmentLength": 512})
    task = target.read(512)
    data = pattern(512)
    target.data_in(task, 0, b"", 0, flags=0)
    target.data_in(task, 0, data, 1, flags=0)
    target.data_in(task, 512, b"", 2, flags=0)
    target.respond(task, exp_data_sn=3)
    assert target.events() == [task]
    assert (task.failure, task.data_in.tobytes()) == (None, data)


def test_reads_are_answered_in_any_order_and_piece_by_piece() -> None:
    target = MemoryTarget()
    tasks = [target.read(1024) for _ in range(3)]
    data = [pattern(1024, seed) for seed in range(3)]
    for half in (0, 1):
        for number in (2, 0, 1):
            offset = half * 512
            piece = data[number][offset : offset + 512]
            target.data_in(tasks[number], offset, piece, half, flags=STATUS if half else 0)
    assert target.events() == [tasks[2], tasks[0], tasks[1]]
    assert [task.data_in.tobytes() for task in tasks] == data


@pytest.mark.conformance("HOSTILE-11")
@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (4096, 4),
        (4096, 512),
        (4100, 0),
        (4092, 8),
        (0, 4097),
        (2**32 - 4, 8),
        (2**32 - 1, 1),
        (2**32 - 512, 512),
    ],
)
@pytest.mark.parametrize("received", [0, 4092, 4096])
def test_data_beyond_what_is_expected(received: int, offset: int, length: int) -> None:
    memory = bytearray(b"\xaa" * 8192)
    target = MemoryTarget()
    task = target.submit(Task(LUN, bytes(6), data_in=memoryview(memory)[:4096]))
    target.data_in(task, 0, bytes(received), 0, flags=0)
    with target.drop("11.7.6"):
        target.data_in(task, offset, b"\x55" * length, 1)
    assert memory == bytes(received) + b"\xaa" * (8192 - received)


@pytest.mark.conformance("HOSTILE-12")
@pytest.mark.parametrize("offset", [0, 508, 511, 513, 516, 1024, 3584])
def test_data_that_overlaps_or_leaves_a_gap(offset: int) -> None:
    target = MemoryTarget()
    task = target.read(4096)
    first = pattern(512)
    target.data_in(task, 0, first, 0)
    with target.drop("11.7.6"):
        target.data_in(task, offset, b"\x55" * 512, 1)
    assert task.data_in.tobytes() == first + bytes(4096 - 512)


@pytest.mark.conformance("HOSTILE-13", "FFP-13.1")
@pytest.mark.parametrize("data_sn", [2, 3, 2**31 + 1, 2**32 - 1])
def test_a_skipped_data_sn_ends_the_connection_without_a_snack(data_sn: int) -> None:
    target = MemoryTarget()
    task = target.read(4096)
    target.data_in(task, 0, bytes(512), 0)
    with target.drop("7.9"):
        target.data_in(task, 512, bytes(512), data_sn)


@pytest.mark.conformance("HOSTILE-13")
def test_a_repeated_data_in_is_thrown_away() -> None:
    target = MemoryTarget()
    task = target.read(1536)
    data = pattern(1536)
    for number in range(2):
        target.data_in(task, number * 512, data[number * 512 :][:512], number, flags=0)
    for number, offset, length in ((0, 0, 512), (1, 512, 512), (1, 1024, 512), (0, 9999, 4096), (0, 0, 0)):
        target.data_in(task, offset, b"\xee" * length, number)
    assert target.events() == []
    target.data_in(task, 1024, data[1024:], 2, flags=STATUS)
    assert target.events() == [task]
    assert (task.failure, task.data_in.tobytes()) == (None, data)


@pytest.mark.conformance("HOSTILE-13")
def test_a_status_is_not_repeated() -> None:
    target = MemoryTarget()
    task = target.read(1024)
    target.data_in(task, 0, bytes(512), 0)
    with target.drop("7.9"):
        target.data_in(task, 0, bytes(512), 0, flags=STATUS)


@pytest.mark.conformance("HOSTILE-14")
@pytest.mark.parametrize("length", [0, 512])
def test_data_in_for_what_reads_nothing(length: int) -> None:
    for kind in ("write", "plain"):
        target = MemoryTarget()
        task = target.write() if kind == "write" else target.submit(plain_task())
        with target.drop("4.2.5.3"):
            target.data_in(task, 0, bytes(length), 0)


@pytest.mark.conformance("HOSTILE-15")
@pytest.mark.parametrize(
    ("flags", "status"), [(DataInFlag.STATUS, GOOD), (STATUS, CHECK_CONDITION), (DataInFlag.STATUS, BUSY)]
)
def test_a_status_that_cannot_come_in_a_data_in(flags: int, status: int) -> None:
    target = MemoryTarget()
    task = target.read(512)
    with target.drop("11.7.3"):
        target.data_in(task, 0, bytes(512), 0, flags=flags, status=status)


@pytest.mark.conformance("HOSTILE-16")
@pytest.mark.parametrize("exp_data_sn", [0, 1, 3, 2**32 - 1])
def test_a_count_of_data_in_that_is_not_theirs(exp_data_sn: int) -> None:
    target = MemoryTarget()
    task = target.read(1024)
    target.data_in(task, 0, bytes(512), 0, flags=0)
    target.data_in(task, 512, bytes(512), 1)
    with target.drop("11.4.8"):
        target.respond(task, exp_data_sn=exp_data_sn)


@pytest.mark.conformance("HOSTILE-16")
def test_a_count_of_data_in_where_there_was_none() -> None:
    target = MemoryTarget()
    task = target.read(1024)
    with target.drop("11.4.8"):
        target.respond(task, exp_data_sn=1)


@pytest.mark.conformance("HOSTILE-17")
@pytest.mark.parametrize(
    "flags",
    [
        ResponseFlag.UNDERFLOW | ResponseFlag.OVERFLOW,
        ResponseFlag.BIDI_UNDERFLOW | ResponseFlag.BIDI_OVERFLOW,
        ResponseFlag.UNDERFLOW
        | ResponseFlag.OVERFLOW
        | ResponseFlag.BIDI_UNDERFLOW
        | ResponseFlag.BIDI_OVERFLOW,
    ],
)
@pytest.mark.parametrize("status", [GOOD, BUSY])
def test_too_much_and_too_little_at_once(flags: int, status: int) -> None:
    target = MemoryTarget()
    task = target.read(512)
    with target.drop("11.4.1"):
        target.respond(task, flags=FINAL | flags, status=status, residual_count=512)


@pytest.mark.conformance("HOSTILE-17")
def test_too_much_and_too_little_at_once_in_a_data_in() -> None:
    target = MemoryTarget()
    task = target.read(512)
    with target.drop("11.4.1"):
        target.data_in(
            task,
            0,
            bytes(512),
            0,
            flags=STATUS | DataInFlag.UNDERFLOW | DataInFlag.OVERFLOW,
            residual_count=1,
        )


@pytest.mark.parametrize(
    ("arrived", "flags", "count", "residual"),
    [
        (1024, 0, 0, 0),
        (600, ResponseFlag.UNDERFLOW, 424, 424),
        (0, ResponseFlag.UNDERFLOW, 1024, 1024),
        (1024, ResponseFlag.OVERFLOW, 7, -7),
        (1024, ResponseFlag.UNDERFLOW, 0, 0),
    ],
)
@pytest.mark.parametrize("in_data_in", [True, False])
def test_an_honest_residual_count(
    arrived: int, flags: int, count: int, residual: int, in_data_in: bool
) -> None:
    task = end_read(arrived, flags, count, in_data_in)
    assert (task.failure, task.residual, task.received) == (None, residual, arrived)


@pytest.mark.conformance("HOSTILE-18")
@pytest.mark.parametrize(
    ("arrived", "flags", "count"),
    [
        (600, ResponseFlag.UNDERFLOW, 423),
        (600, ResponseFlag.UNDERFLOW, 425),
        (600, ResponseFlag.UNDERFLOW, 600),
        (600, ResponseFlag.UNDERFLOW, 1025),
        (0, ResponseFlag.UNDERFLOW, 2**32 - 1),
        (600, 0, 0),
        (0, 0, 0),
        (600, 0, 424),  # the count means nothing without a flag
        (600, ResponseFlag.OVERFLOW, 424),
        (0, ResponseFlag.OVERFLOW, 1),
    ],
)
@pytest.mark.parametrize("in_data_in", [True, False])
def test_a_residual_count_that_is_not_true_fails_the_command(
    arrived: int, flags: int, count: int, in_data_in: bool
) -> None:
    task = end_read(arrived, flags, count, in_data_in)
    assert isinstance(task.failure, DataError)
    assert f"{arrived} of 1024 bytes" in str(task.failure)
    assert task.data_in.tobytes() == pattern(arrived) + b"\xaa" * (1024 - arrived)  # nothing is made up


@pytest.mark.conformance("HOSTILE-18")
@pytest.mark.parametrize("count", [1, 424, 1024, 2**32 - 1])
@pytest.mark.parametrize("in_data_in", [True, False])
def test_a_residual_of_a_read_whose_data_are_all_there_is_taken_with_one_warning(
    count: int, in_data_in: bool
) -> None:
    """gotgt counts the bytes that it has moved."""
    target = MemoryTarget()
    noted: list[str] = []
    for _ in range(3):
        task = target.read(1024)
        answer(target, task, 1024, ResponseFlag.UNDERFLOW, count, in_data_in)
        ended, *others = target.events()
        assert ended is task
        noted += [event.text for event in others if isinstance(event, Noted)]
        assert (task.failure, task.received) == (None, 1024)
        assert task.data_in.tobytes() == pattern(1024)
    assert noted == [
        "the target counts a residual where all data were moved, against RFC 7143 section 11.4.5; going on"
    ]


def test_a_residual_of_a_command_that_failed_is_nothing_odd() -> None:
    target = MemoryTarget()
    task = target.read(1024)
    target.data_in(task, 0, pattern(1024), 0)
    target.respond(task, flags=FINAL | ResponseFlag.UNDERFLOW, status=BUSY, residual_count=512, exp_data_sn=1)
    assert target.events() == [task]
    assert task.status == BUSY


def end_read(arrived: int, flags: int, count: int, in_data_in: bool) -> Task:
    """Read 1024 bytes, of which *arrived* come, with GOOD status; the session goes on."""
    target = MemoryTarget()
    task = target.submit(Task(LUN, bytes(6), data_in=memoryview(bytearray(b"\xaa" * 1024))))
    answer(target, task, arrived, flags, count, in_data_in)
    assert target.events() == [task]
    target.ping()
    target.received(ScsiCommand, NopOut)
    return task


def answer(target: MemoryTarget, task: Task, arrived: int, flags: int, count: int, in_data_in: bool) -> None:
    """Send *arrived* bytes and GOOD status, with them or behind them."""
    if in_data_in:
        target.data_in(task, 0, pattern(arrived), 0, flags=STATUS | flags, residual_count=count)
    else:
        target.data_in(task, 0, pattern(arrived), 0)
        target.respond(task, flags=FINAL | flags, residual_count=count, exp_data_sn=1)


@pytest.mark.parametrize("length", [0, 18, 252])
def test_sense_data_come_with_the_status(length: int) -> None:
    target = MemoryTarget()
    task = target.read(512)
    sense = pattern(length)
    target.respond(task, length.to_bytes(2, "big") + sense + b"more", status=CHECK_CONDITION)
    assert target.events() == [task]
    assert (task.status, task.sense, task.failure) == (CHECK_CONDITION, sense, None)


@pytest.mark.parametrize("length", [253, 0xFFFF])
def test_sense_data_longer_than_there_can_be_are_cut(length: int) -> None:
    target = MemoryTarget()
    task = target.read(512)
    sense = pattern(length)
    target.respond(task, length.to_bytes(2, "big") + sense, status=CHECK_CONDITION)
    assert target.events() == [task]
    assert (task.status, task.sense, task.failure) == (CHECK_CONDITION, sense[:MAX_SENSE_LENGTH], None)
    target.report(0, length.to_bytes(2, "big") + sense, lun=LUN)
    assert target.events() == [SenseReported(LUN, sense[:MAX_SENSE_LENGTH])]


def test_a_failed_read_may_have_data_that_were_not_counted() -> None:
    """tgt answers a command that it does not know with Data-In, and then with ExpDataSN 0."""
    target = MemoryTarget()
    task = target.read(1024)
    target.data_in(task, 0, bytes(1024), 0)
    target.respond(task, status=CHECK_CONDITION, exp_data_sn=0)
    assert target.events() == [task]
    assert (task.status, task.failure, task.received) == (CHECK_CONDITION, None, 1024)


@pytest.mark.conformance("HOSTILE-19")
@pytest.mark.parametrize("data", [b"\0", b"\0\1", b"\0\x13" + bytes(18), b"\xff\xff" + bytes(100)])
def test_sense_data_that_end_behind_their_segment(data: bytes) -> None:
    target = MemoryTarget()
    task = target.read(512)
    with target.drop("11.4.7"):
        target.respond(task, data, status=CHECK_CONDITION)


@pytest.mark.conformance("HOSTILE-19")
def test_a_check_condition_without_sense_only_fails_its_command() -> None:
    """The RFC wants sense data there, but istgt sends none with some errors."""
    target = MemoryTarget()
    task = target.read(512)
    target.respond(task, status=CHECK_CONDITION)
    assert target.events() == [task]
    assert (task.status, task.sense, task.failure) == (CHECK_CONDITION, b"", None)


@pytest.mark.conformance("ERR-25")
@pytest.mark.parametrize("response", [0x01, 0x80, 0xFF])
def test_a_command_that_the_target_could_not_carry_out_has_no_status(response: int) -> None:
    target = MemoryTarget()
    task = target.read(512)
    target.received(ScsiCommand)
    flags = FINAL | ResponseFlag.UNDERFLOW | ResponseFlag.OVERFLOW
    target.respond(task, response=response, status=GOOD, flags=flags)
    assert target.events() == [task]
    assert isinstance(task.failure, TaskAborted)
    assert target.nothing_received()  # it is for the layer above to send it again, as a new task


@pytest.mark.conformance("ERR-25")
@pytest.mark.parametrize("response", [0x02, 0x7F])
def test_a_reserved_response(response: int) -> None:
    target = MemoryTarget()
    task = target.read(512)
    with target.drop("11.4.3"):
        target.respond(task, response=response)


@pytest.mark.conformance("ERR-25")
@pytest.mark.parametrize("asc", [0x4705, 0x0C0C, 0x0C0D, 0x1113])
def test_a_protocol_service_error_is_never_success(asc: int) -> None:
    target = MemoryTarget()
    task = target.write(bytes(512))
    target.received(ScsiCommand)
    sense = bytes([0x70, 0, 0x0B, 0, 0, 0, 0, 10, 0, 0, 0, 0]) + asc.to_bytes(2, "big") + bytes(4)
    target.respond(task, len(sense).to_bytes(2, "big") + sense, status=CHECK_CONDITION)
    assert target.events() == [task]
    assert (task.status, task.sense) == (CHECK_CONDITION, sense)
    assert target.nothing_received()


@pytest.mark.conformance("FFP-5.1")
def test_a_stat_sn_of_data_in_without_a_status_means_nothing() -> None:
    target = MemoryTarget()
    task = target.read(1024)
    target.data_in(task, 0, bytes(512), 0, flags=0, stat_sn=0xDEADBEEF)
    target.data_in(task, 512, bytes(512), 1, flags=STATUS)
    assert target.events() == [task]


@pytest.mark.conformance("HOSTILE-7")
def test_data_in_and_status_of_a_task_that_there_is_not() -> None:
    def data_in(target: MemoryTarget, **fields: Any) -> None:
        target.send(DataIn, b"1234", flags=FINAL, **fields)

    def response(target: MemoryTarget, **fields: Any) -> None:
        target.send(ScsiResponse, **fields)

    for send in (data_in, response):
        target = MemoryTarget()  # never used
        target.read(512)
        with target.drop("4.2.5.3"):
            send(target, initiator_task_tag=0x5555)
        target = MemoryTarget()  # of another kind of task
        target.connection.requests.ping()
        (ping,) = target.received(NopOut)
        with target.drop("4.2.5.3"):
            send(target, initiator_task_tag=ping.pdu.initiator_task_tag)
        target = MemoryTarget()  # just concluded
        task = target.read(4)
        target.data_in(task, 0, bytes(4), 0, flags=STATUS)
        assert target.events() == [task]
        with target.drop("4.2.5.3"):
            send(target, initiator_task_tag=task.initiator_task_tag)
        target = MemoryTarget()  # the reserved one
        with target.drop("4.2.5.3"):
            send(target)
