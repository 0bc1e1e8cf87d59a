"""Data-Out, immediate, unsolicited and asked for by R2Ts: RFC 7143 sections 4.2.5.2, 11.7 and 11.8."""

from typing import Any

import pytest

from iscsifs.errors import DataError
from iscsifs.iscsi.keys import Value
from iscsifs.iscsi.pdu import (
    FINAL,
    R2T,
    RESERVED_TAG,
    CommandFlag,
    DataOut,
    NopIn,
    NopOut,
    ResponseFlag,
    ScsiCommand,
    ScsiResponse,
)
from iscsifs.iscsi.task import Task
from iscsifs.limits import MAX_DATA_OUTS
from support.memory_target import LUN, MemoryTarget, Sent, feed, pattern, plain_task

SOLICITED_ONLY: dict[str, Value] = {"InitialR2T": True, "ImmediateData": False}


def target_of(
    *,
    initial_r2t: bool,
    immediate_data: bool,
    first_burst: int = 512,
    max_burst: int = 1024,
    mrdsl: int = 8192,
) -> MemoryTarget:
    return MemoryTarget(
        initiator={
            "InitialR2T": initial_r2t,
            "ImmediateData": immediate_data,
            "FirstBurstLength": first_burst,
            "MaxBurstLength": max_burst,
        },
        target={"MaxRecvDataSegmentLength": mrdsl},
    )


def solicited(*, max_burst: int = 65536, mrdsl: int = 8192, outstanding: int = 1) -> MemoryTarget:
    """A target to which all data go by R2T."""
    return MemoryTarget(
        initiator={
            **SOLICITED_ONLY,
            "MaxBurstLength": max_burst,
            "FirstBurstLength": 512,
            "MaxOutstandingR2T": outstanding,
        },
        target={"MaxRecvDataSegmentLength": mrdsl},
    )


def test_r2ts_are_answered_turn_by_turn() -> None:
    """One PDU may ask for thousands of Data-Outs: they are made when they are taken, a part each time."""
    target = solicited(max_burst=2 * MAX_DATA_OUTS * 512, mrdsl=512)
    connection = target.connection
    data = memoryview(pattern(2 * MAX_DATA_OUTS * 512))
    tasks = [Task(LUN, bytes(6), data_out=data) for _ in range(3)]
    for task in tasks:
        connection.submit(task)
    target.received()
    asked = b"".join(
        target.bytes_of(
            R2T,
            lun=task.lun,
            initiator_task_tag=task.initiator_task_tag,
            target_transfer_tag=1,
            desired_data_transfer_length=len(data),
        )
        for task in tasks
    )
    pdus = connection.pdus
    feed(connection, asked)
    assert connection.pdus == pdus + len(tasks)
    for number in range(2 * len(tasks)):
        assert len(connection.data_to_send()) == 2 * MAX_DATA_OUTS
        assert connection.has_more_to_send == (number + 1 < 2 * len(tasks))
        assert connection.pdus == pdus + len(tasks) + (number + 1) * MAX_DATA_OUTS
        assert [task.r2ts_unsent for task in tasks].count(0) == (number + 1) // 2
    assert connection.data_to_send() == []


def check_sequence(
    burst: list[Sent], task: Task, offset: int, length: int, target_transfer_tag: int, lun: int, mrdsl: int
) -> None:
    """Check that *burst* is one sequence of Data-Outs that fills exactly *length* bytes at *offset*."""
    assert all(isinstance(sent.pdu, DataOut) for sent in burst)
    assert [sent.pdu.data_sn for sent in burst] == [*range(len(burst))]
    assert [sent.pdu.flags for sent in burst] == [0] * (len(burst) - 1) + [FINAL]
    assert {sent.pdu.target_transfer_tag for sent in burst} == {target_transfer_tag}
    assert {sent.pdu.lun for sent in burst} == {lun}
    assert {sent.pdu.initiator_task_tag for sent in burst} == {task.initiator_task_tag}
    position = offset
    for sent in burst:
        assert sent.pdu.buffer_offset == position
        assert 0 < len(sent.data) <= mrdsl
        assert sent is burst[-1] or len(sent.data) % 4 == 0
        position += len(sent.data)
    assert position == offset + length
    assert b"".join(sent.data for sent in burst) == task.data_out[offset:position]


@pytest.mark.conformance("FFP-8.1", "FFP-11.2.1")
@pytest.mark.parametrize("size", [1, 511, 512, 513, 1024, 3000])
@pytest.mark.parametrize("mrdsl", [8192, 512, 515])
def test_immediate_data_up_to_the_first_burst_and_the_rest_by_r2t(size: int, mrdsl: int) -> None:
    target = target_of(initial_r2t=False, immediate_data=True, mrdsl=mrdsl)
    task = target.write(pattern(size))
    sent = target.received()
    unsolicited = min(512, size)
    assert len(sent[0].data) == unsolicited
    assert sent[0].pdu.flags & FINAL
    assert len(sent) == 1
    assert sent[0].data == task.data_out[:unsolicited]
    for number, offset in enumerate(range(unsolicited, size, 1024)):
        length = min(1024, size - offset)
        target.r2t(task, offset, length, number)
        check_sequence(target.received(), task, offset, length, 0x1000 + number, LUN, mrdsl)
    target.respond(task)
    assert target.events() == [task]
    assert task.failure is None


@pytest.mark.conformance("FFP-8.1", "FFP-11.2.1", "FFP-9.1")
@pytest.mark.parametrize("size", [512, 513, 1024, 2047, 2048, 2049, 5000])
@pytest.mark.parametrize("mrdsl", [512, 514, 1000])
def test_a_first_burst_that_does_not_fit_the_command_fills_it_exactly(size: int, mrdsl: int) -> None:
    target = target_of(initial_r2t=False, immediate_data=True, first_burst=2048, max_burst=4096, mrdsl=mrdsl)
    task = target.write(pattern(size))
    command, *burst = target.received()
    immediate = size if size <= mrdsl else mrdsl & ~3
    assert command.data == task.data_out[:immediate]
    assert bool(command.pdu.flags & FINAL) == (not burst)
    if size > immediate:
        check_sequence(burst, task, immediate, min(2048, size) - immediate, RESERVED_TAG, 0, mrdsl)
    else:
        assert not burst


@pytest.mark.conformance("FFP-8.1")
def test_unsolicited_bursts_follow_their_commands_in_order() -> None:
    target = target_of(initial_r2t=False, immediate_data=True, first_burst=2048, max_burst=2048, mrdsl=512)
    target.window = 0
    target.send(NopIn, exp_cmd_sn=1, max_cmd_sn=0)
    tasks = [target.write(pattern(2048, seed)) for seed in range(3)]
    target.window = 32
    target.send(NopIn)
    sent = target.received()
    tags = [one.pdu.initiator_task_tag for one in sent]
    assert tags == [task.initiator_task_tag for task in tasks for _ in range(4)]
    assert [type(one.pdu) for one in sent] == [ScsiCommand, DataOut, DataOut, DataOut] * 3


@pytest.mark.conformance("FFP-8.2")
@pytest.mark.parametrize("immediate_data", [False, True])
def test_with_initial_r2t_nothing_but_immediate_data_goes_without_one(immediate_data: bool) -> None:
    target = target_of(initial_r2t=True, immediate_data=immediate_data, mrdsl=512)
    task = target.write(pattern(2000))
    (command,) = target.received(ScsiCommand)
    assert command.pdu.flags & FINAL
    assert command.data == (task.data_out[:512] if immediate_data else b"")
    target.ping()
    target.received(NopOut)
    start = len(command.data)
    target.r2t(task, start, 1024)
    check_sequence(target.received(), task, start, 1024, 0x1000, LUN, 512)


@pytest.mark.conformance("FFP-8.3", "FFP-11.2.1")
@pytest.mark.parametrize("size", [1, 511, 512, 513, 1024, 3000])
def test_without_immediate_data_one_burst_of_exactly_the_first_burst_length(size: int) -> None:
    target = target_of(initial_r2t=False, immediate_data=False, first_burst=1000, mrdsl=512)
    task = target.write(pattern(size))
    command, *burst = target.received()
    assert command.data == b""
    assert not command.pdu.flags & FINAL
    check_sequence(burst, task, 0, min(1000, size), RESERVED_TAG, 0, 512)


@pytest.mark.conformance("FFP-9.1", "FFP-12.1")
@pytest.mark.parametrize("tag", [0, 0x80000000, 0xFFFFFFFE])
def test_data_outs_carry_the_tag_and_the_lun_of_their_r2t(tag: int) -> None:
    target = solicited()
    lun = 0x4005_0000_0000_0000
    task = target.write(pattern(2048), lun=lun)
    target.received(ScsiCommand)
    target.r2t(task, 0, 2048, target_transfer_tag=tag)
    (sent,) = target.received(DataOut)
    check_sequence([sent], task, 0, 2048, tag, lun, 8192)


@pytest.mark.conformance("FFP-11.1.1")
def test_no_data_segment_is_longer_than_the_target_takes() -> None:
    """The memory target holds every PDU to its MaxRecvDataSegmentLength."""
    target = target_of(initial_r2t=False, immediate_data=True, first_burst=4096, max_burst=8192, mrdsl=512)
    task = target.write(pattern(20000))
    target.connection.requests.send_text([("SendTargets", "All")])
    target.r2t(task, 4096, 8192)
    target.r2t(task, 12288, 7712, 1)
    sent = target.received()
    assert max(len(one.data) for one in sent) == 512
    assert sum(len(one.data) for one in sent if not hasattr(one.pdu, "target_transfer_tag")) == 512
    data = [one for one in sent if isinstance(one.pdu, (DataOut, ScsiCommand))]
    assert b"".join(one.data for one in data) == task.data_out


@pytest.mark.conformance("FFP-11.2.2", "FFP-12.2")
def test_only_the_last_data_out_of_an_r2t_is_final() -> None:
    target = solicited()
    task = target.write(pattern(65536))
    target.received(ScsiCommand)
    target.r2t(task, 0, 65536)
    burst = target.received()
    assert len(burst) == 8
    check_sequence(burst, task, 0, 65536, 0x1000, LUN, 8192)


@pytest.mark.conformance("FFP-6.1", "FFP-11.3", "FFP-11.4", "FFP-12.2")
@pytest.mark.parametrize("size", [8192, 8191, 8189, 6145])
@pytest.mark.parametrize("mrdsl", [1024, 1023, 1025])
def test_each_sequence_is_numbered_anew_and_without_gaps(size: int, mrdsl: int) -> None:
    target = solicited(mrdsl=mrdsl)
    tasks = [target.write(pattern(size, seed)) for seed in range(2)]
    target.received(ScsiCommand, ScsiCommand)
    for number, offset in enumerate(range(0, size, 2048)):
        for task in tasks:
            length = min(2048, size - offset)
            target.r2t(task, offset, length, number)
            check_sequence(target.received(), task, offset, length, 0x1000 + number, LUN, mrdsl)
    for task in tasks:
        target.respond(task)
        assert task.failure is None
    assert target.events() == tasks


@pytest.mark.conformance("FFP-12.3")
def test_falling_offsets_where_any_order_was_agreed_on() -> None:
    target = solicited(outstanding=4)
    target.agree(data_sequence_in_order=False)
    task = target.write(pattern(8192))
    target.received(ScsiCommand)
    offsets = (6144, 4096, 2048, 0)
    requests = [r2t_fields(task, offset, 2048, number) for number, offset in enumerate(offsets)]
    target.send_bytes(b"".join(target.bytes_of(R2T, **request) for request in requests))
    sent = target.received(*[DataOut] * 4)
    for number, offset in enumerate(offsets):
        check_sequence([sent[number]], task, offset, 2048, 0x1000 + number, LUN, 8192)
    target.respond(task)
    assert task.failure is None


def r2t_fields(task: Task, offset: int, length: int, number: int) -> dict[str, Any]:
    return {
        "lun": task.lun,
        "initiator_task_tag": task.initiator_task_tag,
        "target_transfer_tag": 0x1000 + number,
        "buffer_offset": offset,
        "desired_data_transfer_length": length,
        "r2t_sn": number,
    }


@pytest.mark.conformance("FFP-12.3")
@pytest.mark.parametrize("offset", [0, 2044, 4092])
def test_falling_offsets_where_order_was_agreed_on(offset: int) -> None:
    target = solicited()
    task = target.write(pattern(8192))
    target.r2t(task, 2048, 2048)
    with target.drop("13.19"):
        target.r2t(task, offset, 2048, 1)


@pytest.mark.conformance("FFP-12.3")
@pytest.mark.parametrize("offset", [0, 508])
def test_an_r2t_for_what_was_sent_without_one(offset: int) -> None:
    target = target_of(initial_r2t=False, immediate_data=True)
    task = target.write(pattern(2048))
    with target.drop("13.19"):
        target.r2t(task, offset, 512)


@pytest.mark.conformance("FFP-12.4")
def test_writes_are_served_in_the_order_in_which_the_target_asks() -> None:
    target = solicited()
    first, second = target.write(pattern(1024, 1)), target.write(pattern(1024, 2))
    target.received(ScsiCommand, ScsiCommand)
    for task in (second, first):
        target.r2t(task, 0, 1024)
        check_sequence(target.received(), task, 0, 1024, 0x1000, LUN, 8192)
    for task in (second, first):
        target.respond(task)
        assert task.failure is None


@pytest.mark.conformance("HOSTILE-20")
@pytest.mark.parametrize(
    ("offset", "length"),
    [(4096, 4), (4100, 4), (2**32 - 1, 1), (4092, 8), (0, 4097), (1, 4096), (2**32 - 512, 1024)],
)
def test_an_r2t_for_more_than_there_is(offset: int, length: int) -> None:
    target = solicited()
    task = target.write(pattern(4096))
    with target.drop("4.2.5.2"):
        target.r2t(task, offset, length)


@pytest.mark.conformance("HOSTILE-21")
@pytest.mark.parametrize("length", [0, 1025, 2**32 - 1])
def test_an_r2t_of_no_length_or_above_max_burst_length(length: int) -> None:
    target = solicited(max_burst=1024)
    task = target.write(pattern(4096))
    with target.drop("11.8.4"):
        target.r2t(task, 0, length)
    target = solicited(max_burst=1024)
    task = target.write(pattern(4096))
    target.r2t(task, 0, 1024)
    assert len(target.received()) == 2


@pytest.mark.conformance("HOSTILE-22")
@pytest.mark.parametrize("number", [2, 3, 2**31, 2**32 - 1])
def test_a_skipped_r2t_sn(number: int) -> None:
    target = solicited()
    task = target.write(pattern(4096))
    target.r2t(task, 0, 512)
    with target.drop("11.8.2"):
        target.r2t(task, 512, 512, number, target_transfer_tag=1)


@pytest.mark.conformance("HOSTILE-22")
def test_a_repeated_r2t_is_thrown_away() -> None:
    target = solicited()
    task = target.write(pattern(1024))
    target.r2t(task, 0, 512)
    target.received(ScsiCommand, DataOut)
    target.r2t(task, 0, 512)
    target.r2t(task, 512, 512)
    assert target.nothing_received()
    target.r2t(task, 512, 512, 1)
    (sent,) = target.received(DataOut)
    assert sent.data == task.data_out[512:]
    target.respond(task)
    assert task.failure is None


def test_a_flood_of_repeated_r2ts_takes_no_memory() -> None:
    target = solicited()
    task = target.write(pattern(1024))
    target.r2t(task, 0, 512)
    repeated = b"".join(target.bytes_of(R2T, **r2t_fields(task, 0, 512, 0)) for _ in range(1000))
    waiting = target.connection.exchange.sender.waiting
    before = len(waiting)
    while repeated:  # nothing is taken out meanwhile
        place = target.connection.get_buffer()
        count = min(len(place), len(repeated))
        place[:count] = repeated[:count]
        target.connection.buffer_updated(count)
        repeated = repeated[count:]
    assert len(waiting) == before


@pytest.mark.conformance("HOSTILE-23")
@pytest.mark.parametrize("allowed", [1, 4])
def test_more_r2ts_outstanding_than_agreed(allowed: int) -> None:
    target = solicited(outstanding=allowed)
    task = target.write(pattern(4096))

    def ask(first: int, count: int) -> bytes:
        numbers = range(first, first + count)
        return b"".join(target.bytes_of(R2T, **r2t_fields(task, n * 128, 128, n)) for n in numbers)

    target.send_bytes(ask(0, allowed))
    target.received(ScsiCommand, *[DataOut] * allowed)  # answered: as many again may come
    target.send_bytes(ask(allowed, allowed))
    target.received(*[DataOut] * allowed)
    with target.drop("13.17"):
        target.send_bytes(ask(2 * allowed, allowed + 1))


@pytest.mark.conformance("HOSTILE-23")
def test_the_bound_on_r2ts_is_that_of_each_command() -> None:
    target = solicited(outstanding=1)
    tasks = [target.write(pattern(512, seed)) for seed in range(3)]
    target.received(*[ScsiCommand] * 3)
    target.send_bytes(b"".join(target.bytes_of(R2T, **r2t_fields(task, 0, 512, 0)) for task in tasks))
    assert [sent.data for sent in target.received(*[DataOut] * 3)] == [task.data_out for task in tasks]


@pytest.mark.conformance("HOSTILE-23")
def test_an_r2t_with_the_reserved_tag() -> None:
    target = solicited()
    task = target.write(pattern(4096))
    with target.drop("11.8.5"):
        target.r2t(task, 0, 512, target_transfer_tag=RESERVED_TAG)


@pytest.mark.conformance("HOSTILE-24", "HOSTILE-7")
def test_an_r2t_for_what_does_not_wait_for_one() -> None:
    target = solicited()
    task = target.write(pattern(512))
    target.r2t(task, 0, 512)
    target.respond(task)
    assert target.events() == [task]
    with target.drop("4.2.5.3"):  # after the status
        target.r2t(task, 0, 512, 1)
    target = solicited()
    task = target.read(512)
    with target.drop("4.2.5.2"):
        target.r2t(task, 0, 512)
    target = solicited()
    task = target.submit(plain_task())
    with target.drop("4.2.5.2"):
        target.r2t(task, 0, 512)
    target = solicited()
    task = target.write(pattern(512))
    with target.drop("11.8"):
        target.r2t(task, 0, 512, lun=2 << 48)
    target = solicited()
    target.connection.requests.ping()
    (ping,) = target.received(NopOut)
    with target.drop("4.2.5.3"):  # of another kind of task
        target.send(R2T, initiator_task_tag=ping.pdu.initiator_task_tag)
    target = solicited()
    task = target.write(pattern(512))
    with target.drop("4.2.5.3"):  # never used
        target.r2t(task, 0, 512, initiator_task_tag=0x5555)


@pytest.mark.conformance("HOSTILE-18")
@pytest.mark.parametrize(
    ("asked", "flags", "count"),
    [
        (0, 0, 0),
        (512, 0, 0),
        (512, ResponseFlag.UNDERFLOW, 511),
        (1024, ResponseFlag.UNDERFLOW, 512),
        (1024, ResponseFlag.UNDERFLOW, 1024),  # gotgt: it may mean all, or nothing
        (512, ResponseFlag.OVERFLOW, 512),
        (0, ResponseFlag.UNDERFLOW, 1025),
    ],
)
def test_a_write_of_which_not_all_was_taken_fails(asked: int, flags: int, count: int) -> None:
    target = solicited()
    task = target.write(pattern(1024))
    if asked:
        target.r2t(task, 0, asked)
    target.send(
        ScsiResponse,
        initiator_task_tag=task.initiator_task_tag,
        flags=FINAL | flags,
        residual_count=count,
    )
    assert target.events() == [task]
    assert isinstance(task.failure, DataError)


def test_what_is_written_is_not_copied() -> None:
    target = solicited()
    data = bytearray(pattern(4096))
    task = target.write(data)
    target.connection.data_to_send()
    stream = target.bytes_of(R2T, **r2t_fields(task, 1024, 2048, 0))
    place = target.connection.get_buffer()
    place[: len(stream)] = stream
    target.connection.buffer_updated(len(stream))
    header, payload = target.connection.data_to_send()
    assert len(header) == 48
    assert isinstance(payload, memoryview)
    assert payload.obj is data
    assert payload == data[1024:3072]


@pytest.mark.conformance("FFP-8.2")
def test_a_command_says_that_it_writes() -> None:
    target = solicited()
    target.write(b"1")
    (command,) = target.received(ScsiCommand)
    assert command.pdu.flags & (CommandFlag.WRITE | CommandFlag.READ | FINAL) == CommandFlag.WRITE | FINAL


def test_without_memory_for_a_command_it_stays_unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    target = MemoryTarget()
    task = plain_task()

    def no_memory(*_: object) -> int:
        raise MemoryError

    monkeypatch.setattr(target.connection.exchange, "new_tag", no_memory)
    target.connection.submit(task)
    with pytest.raises(MemoryError):
        target.connection.data_to_send()
    assert target.connection.take_unfinished() == [task]
