"""Numbers and windows of a connection: RFC 7143 section 4.2.2."""

from collections.abc import Callable

import pytest

from iscsifs.errors import ProtocolError
from iscsifs.iscsi import serial
from iscsifs.iscsi.bhs import pack
from iscsifs.iscsi.events import Noted
from iscsifs.iscsi.pdu import (
    RESERVED_TAG,
    CommandFlag,
    DataIn,
    DataInFlag,
    NopIn,
    NopOut,
    Reject,
    RejectReason,
    ScsiCommand,
    ScsiResponse,
    TaskFunction,
    TaskManagementRequest,
)
from iscsifs.iscsi.task import Task
from iscsifs.limits import MAX_TASKS
from support.memory_target import LUN, MemoryTarget, pattern, plain_task, read_task, write_task


def status(target: MemoryTarget, task: Task, stat_sn: int) -> None:
    target.respond(task, stat_sn=stat_sn)


def status_in_data_in(target: MemoryTarget, task: Task, stat_sn: int) -> None:
    flags = DataInFlag.FINAL | DataInFlag.STATUS
    target.data_in(task, 0, bytes(len(task.data_in)), 0, flags=flags, stat_sn=stat_sn)


def report(target: MemoryTarget, task: Task, stat_sn: int) -> None:
    target.report(255, stat_sn=stat_sn)


def echo(target: MemoryTarget, task: Task, stat_sn: int) -> None:
    target.connection.requests.ping()
    (ping,) = target.received(NopOut)
    target.send(NopIn, initiator_task_tag=ping.pdu.initiator_task_tag, stat_sn=stat_sn)


def rejection(target: MemoryTarget, task: Task, stat_sn: int) -> None:
    target.send(Reject, pack(NopOut()), reason=RejectReason.PROTOCOL_ERROR, stat_sn=stat_sn)


@pytest.mark.conformance("FFP-1.1")
@pytest.mark.parametrize("first", [1, 0, 0x7FFFFFFE, 0xFFFFFFFE])
def test_commands_count_up_from_the_login(first: int) -> None:
    target = MemoryTarget(cmd_sn=first)
    tasks = [target.submit(plain_task()) for _ in range(5)]
    commands = target.received(*[ScsiCommand] * 5)
    assert [sent.pdu.cmd_sn for sent in commands] == [(first + n) % 2**32 for n in range(5)]
    assert [sent.pdu.initiator_task_tag for sent in commands] == [task.initiator_task_tag for task in tasks]


@pytest.mark.conformance("FFP-2.1", "FFP-15.2")
def test_a_ping_carries_cmd_sn_and_does_not_advance_it() -> None:
    target = MemoryTarget()
    ping = target.connection.requests.ping()
    target.submit(plain_task())
    (sent,), (command,) = [[one] for one in target.received(NopOut, ScsiCommand)]
    assert sent.pdu.immediate
    assert sent.pdu.cmd_sn == command.pdu.cmd_sn == 1
    assert sent.pdu.target_transfer_tag == RESERVED_TAG != sent.pdu.initiator_task_tag
    assert (sent.pdu.lun, sent.data) == (0, b"")
    target.send(NopIn, initiator_task_tag=sent.pdu.initiator_task_tag)
    assert target.events() == [ping]
    with target.drop("4.2.5.3"):  # the tag is free again
        target.send(NopIn, initiator_task_tag=sent.pdu.initiator_task_tag)


@pytest.mark.conformance("FFP-2.2")
def test_task_management_carries_cmd_sn_and_does_not_advance_it() -> None:
    target = MemoryTarget()
    task = target.submit(plain_task())
    target.connection.requests.abort_task(task)
    target.submit(plain_task())
    _, management, command = target.received(ScsiCommand, TaskManagementRequest, ScsiCommand)
    assert management.pdu.immediate
    assert management.pdu.cmd_sn == command.pdu.cmd_sn == 2


@pytest.mark.conformance("FFP-3.1")
def test_a_closed_window_lets_only_immediate_requests_pass() -> None:
    target = MemoryTarget(window=1)
    first = target.read()
    target.received(ScsiCommand)
    target.window = 0
    target.ping()
    target.received(NopOut)
    second = target.read()
    text = target.connection.requests.send_text([("SendTargets", "All")])
    assert target.nothing_received()
    target.connection.requests.ping()
    target.connection.requests.abort_task(first)
    target.received(NopOut, TaskManagementRequest)
    target.window = 1
    target.send(NopIn)
    (sent,) = target.received()
    assert sent.data == b"SendTargets=All\0"
    assert text.pairs is None
    target.send(NopIn)
    (command,) = target.received(ScsiCommand)
    assert command.pdu.initiator_task_tag == second.initiator_task_tag


@pytest.mark.conformance("FFP-3.1")
def test_every_pdu_of_the_target_may_open_the_window() -> None:
    def data_in(target: MemoryTarget, task: Task, _: int) -> None:
        target.data_in(task, 0, bytes(512), 0, flags=0)

    def ping(target: MemoryTarget, task: Task, _: int) -> None:
        target.ping()

    for opener in (data_in, status, status_in_data_in, ping, report, echo, rejection):
        target = MemoryTarget(window=1)
        task = target.read()
        waiting = target.read()
        target.received(ScsiCommand)
        opener(target, task, target.stat_sn)
        (command,) = [sent for sent in target.received() if isinstance(sent.pdu, ScsiCommand)]
        assert command.pdu.initiator_task_tag == waiting.initiator_task_tag, opener


@pytest.mark.conformance("FFP-3.2", "HOSTILE-10")
@pytest.mark.parametrize(("window", "sent"), [(100, 100), (2**31 - 1, MAX_TASKS)])
def test_the_window_is_filled_and_never_overrun(window: int, sent: int) -> None:
    target = MemoryTarget(window=min(window, 100))
    target.window = window
    target.send(NopIn)
    tasks = [target.submit(plain_task()) for _ in range(sent + 20)]
    commands = target.received(*[ScsiCommand] * sent)
    assert target.connection.tasks_on_the_wire == sent
    assert list(target.connection.tasks()) == tasks
    target.respond(tasks[0], exp_cmd_sn=commands[0].pdu.cmd_sn, max_cmd_sn=commands[-1].pdu.cmd_sn)
    assert len(target.received()) == (1 if window > sent else 0)


@pytest.mark.conformance("FFP-3.3")
def test_a_window_of_one_takes_one_command_at_a_time() -> None:
    target = MemoryTarget(window=1)
    tasks = [target.submit(plain_task()) for _ in range(4)]
    for number in range(4):
        (command,) = target.received(ScsiCommand)
        assert command.pdu.cmd_sn == 1 + number
        target.respond(tasks[number])
    assert target.events() == tasks
    assert target.nothing_received()


@pytest.mark.conformance("FFP-4.1")
def test_nothing_is_sent_twice() -> None:
    target = MemoryTarget()
    target.read()
    target.write()
    unanswered = target.received()
    for _ in range(3):
        target.send(NopIn, exp_cmd_sn=1)  # acknowledges neither
        target.ping(exp_cmd_sn=1)
    assert len(unanswered) > 1
    assert {type(sent.pdu) for sent in target.received()} == {NopOut}


EDGES = [5, 2**31 - 1, 2**32 - 2]
"""The first StatSN of a connection: on the way, and where the numbers wrap around."""


@pytest.mark.conformance("FFP-5.1", "HOSTILE-6")
@pytest.mark.parametrize("step", [1, 2, 2**31 - 1, 2**31])
@pytest.mark.parametrize("send", [status, status_in_data_in, report, echo, rejection])
@pytest.mark.parametrize("first", EDGES)
def test_a_stat_sn_that_skips_one_ends_the_connection(
    send: Callable[[MemoryTarget, Task, int], None], step: int, first: int
) -> None:
    target = MemoryTarget(stat_sn=first)
    task = target.read(512)
    with target.drop("4.2.2.2"):
        send(target, task, serial.add(target.stat_sn, step))


@pytest.mark.conformance("HOSTILE-6")
@pytest.mark.parametrize("step", [1, 2, 2**31 - 1])
@pytest.mark.parametrize("first", EDGES)
def test_a_stat_sn_that_repeats_in_an_answer_is_taken_with_one_warning(step: int, first: int) -> None:
    """NetBSD's iscsi-target counts so while several writes are under way. Nothing is missing."""
    target = MemoryTarget(stat_sn=first)
    noted: list[str] = []
    for send in (status, status_in_data_in, status, echo):
        task = target.read(512)
        target.received(ScsiCommand)
        due = target.stat_sn
        if send is status:
            target.respond(task, status=8, stat_sn=serial.add(due, -step))  # BUSY, without data
        else:
            send(target, task, serial.add(due, -step))
        events = target.events()
        noted += [event.text for event in events if isinstance(event, Noted)]
        assert len([event for event in events if not isinstance(event, Noted)]) == 1
        ending = target.submit(plain_task())
        (command,) = target.received(ScsiCommand)
        assert command.pdu.exp_stat_sn == due
        target.respond(ending)
        assert target.events() == [ending]
        assert (task.failure, ending.failure) == (None, None)
    assert noted == ["the StatSN of the target does not count up, against RFC 7143 section 4.2.2.2; going on"]


@pytest.mark.conformance("HOSTILE-6")
@pytest.mark.parametrize("step", [1, 2, 2**31 - 1])
@pytest.mark.parametrize("send", [report, rejection])
@pytest.mark.parametrize("first", EDGES)
def test_a_stat_sn_that_repeats_in_what_answers_nothing_ends_the_connection(
    send: Callable[[MemoryTarget, Task, int], None], step: int, first: int
) -> None:
    target = MemoryTarget(stat_sn=first)
    task = target.read(512)
    with target.drop("4.2.2.2"):
        send(target, task, serial.add(target.stat_sn, -step))


@pytest.mark.conformance("HOSTILE-6")
def test_a_stat_sn_that_repeats_for_a_task_that_has_ended_ends_the_connection() -> None:
    target = MemoryTarget(stat_sn=5)
    task = target.submit(plain_task())
    target.received(ScsiCommand)
    target.respond(task)
    assert target.events() == [task]
    with target.drop("4.2.2.2"):
        target.respond(task, stat_sn=serial.add(target.stat_sn, -1))


def test_the_window_of_an_answer_whose_stat_sn_repeats_is_taken() -> None:
    target = MemoryTarget(stat_sn=5, window=1)
    task = target.submit(plain_task())
    waiting = target.submit(plain_task())
    target.received(ScsiCommand)
    target.respond(task, stat_sn=serial.add(target.stat_sn, -1))
    (command,) = target.received(ScsiCommand)
    assert command.pdu.initiator_task_tag == waiting.initiator_task_tag


@pytest.mark.conformance("HOSTILE-9")
@pytest.mark.parametrize("edge", [2**31, 2**32])
def test_all_numbers_run_across_their_edges(edge: int) -> None:
    start = edge - 20
    target = MemoryTarget(cmd_sn=start, stat_sn=start, window=4)
    for number in range(40):
        task = target.read(512) if number % 2 else target.write(pattern(512))
        (sent,) = target.received(ScsiCommand)
        assert sent.pdu.cmd_sn == (start + number) % 2**32
        if number % 2:
            status_in_data_in(target, task, target.stat_sn)
        else:
            target.respond(task)
        assert target.events() == [task]
        assert task.failure is None


@pytest.mark.conformance("HOSTILE-9")
def test_a_window_that_lies_across_the_edge_is_filled() -> None:
    target = MemoryTarget(cmd_sn=2**32 - 3, window=8)
    for _ in range(12):
        target.submit(plain_task())
    assert [sent.pdu.cmd_sn for sent in target.received()] == [*range(2**32 - 3, 2**32), *range(5)]


@pytest.mark.conformance("HOSTILE-8")
def test_a_window_that_cannot_be_is_ignored_and_the_rest_is_used() -> None:
    target = MemoryTarget(window=1)
    task = target.read(512)
    waiting = target.read(512)
    target.received(ScsiCommand)
    # Were ExpCmdSN looked at, this would acknowledge a command that was never sent.
    target.respond(task, b"", status=8, exp_cmd_sn=10, max_cmd_sn=8)
    assert target.events() == [task]
    assert target.nothing_received()
    target.send(NopIn)
    (command,) = target.received(ScsiCommand)
    assert command.pdu.initiator_task_tag == waiting.initiator_task_tag


def test_an_older_window_is_ignored() -> None:
    target = MemoryTarget(window=8)
    tasks = [target.submit(plain_task()) for _ in range(4)]
    target.respond(tasks[0], exp_cmd_sn=1, max_cmd_sn=1)
    for _ in range(8):
        target.submit(plain_task())
    assert [sent.pdu.cmd_sn for sent in target.received()] == [*range(1, 9)]


@pytest.mark.conformance("HOSTILE-10")
@pytest.mark.parametrize("ahead", [1, 2, 2**31 - 1])
@pytest.mark.parametrize("window", [0, 1, 64])
def test_commands_that_were_never_sent_cannot_be_acknowledged(ahead: int, window: int) -> None:
    target = MemoryTarget()
    target.submit(plain_task())
    target.send(NopIn)
    beyond = serial.add(target.exp_cmd_sn, ahead)
    with target.drop("4.2.2.1"):
        target.send(NopIn, exp_cmd_sn=beyond, max_cmd_sn=serial.add(beyond, window - 1))


@pytest.mark.conformance("FFP-16.1.1", "FFP-16.1.2")
@pytest.mark.parametrize("immediate_data", [True, False])
@pytest.mark.parametrize("initial_r2t", [True, False])
@pytest.mark.parametrize("size", [6, 10, 12, 16, 17, 20, 32, 260])
def test_the_command_says_what_is_to_come(immediate_data: bool, initial_r2t: bool, size: int) -> None:
    offer = {"ImmediateData": immediate_data, "InitialR2T": initial_r2t, "FirstBurstLength": 4096}
    target = MemoryTarget(initiator=offer, target={"MaxRecvDataSegmentLength": 1024})
    cdb = pattern(size)
    exactly = pattern(1024)
    tasks = [
        target.submit(plain_task(cdb=cdb)),
        target.submit(read_task(8192, cdb=cdb)),
        target.submit(write_task(exactly, cdb=cdb)),
        target.submit(write_task(pattern(8192), cdb=cdb)),
    ]
    sent = target.received()
    commands = [one for one in sent if isinstance(one.pdu, ScsiCommand)]
    flags = [one.pdu.flags & (CommandFlag.FINAL | CommandFlag.READ | CommandFlag.WRITE) for one in commands]
    final, write = CommandFlag.FINAL, CommandFlag.WRITE
    assert flags == [
        final,
        final | CommandFlag.READ,
        write | (final if immediate_data or initial_r2t else 0),
        write | (final if initial_r2t else 0),
    ]
    lengths = [0, 0, 1024, 1024] if immediate_data else [0, 0, 0, 0]
    assert [len(one.data) for one in commands] == lengths
    assert [one.pdu.expected_data_transfer_length for one in commands] == [0, 8192, 1024, 8192]
    assert [one.pdu.lun for one in commands] == [LUN] * 4
    assert not any(one.pdu.immediate for one in commands)
    tags = [one.pdu.initiator_task_tag for one in commands]
    assert tags == [task.initiator_task_tag for task in tasks]
    assert len(set(tags)) == 4
    assert RESERVED_TAG not in tags
    for one in commands:
        assert one.pdu.cdb == cdb[:16].ljust(16, b"\0")
        if size <= 16:
            assert one.ahs == b""
        else:
            assert one.ahs[:4] == (size - 15).to_bytes(2, "big") + b"\x01\x00"
            assert one.ahs[4:] == cdb[16:] + bytes(-size % 4)


def test_a_tag_is_not_used_twice_and_never_the_reserved_one() -> None:
    target = MemoryTarget()
    target.connection.exchange._last_tag = RESERVED_TAG - 2
    first = target.submit(plain_task())
    second = target.submit(plain_task())
    assert [first.initiator_task_tag, second.initiator_task_tag] == [RESERVED_TAG - 1, 0]
    target.connection.exchange._last_tag = RESERVED_TAG - 2
    third = target.submit(plain_task())
    assert third.initiator_task_tag == 1


def test_a_command_that_waits_for_the_window_can_be_withdrawn() -> None:
    target = MemoryTarget(window=1)
    tasks = [target.submit(plain_task()) for _ in range(3)]
    assert target.connection.withdraw(tasks[1])
    assert not target.connection.withdraw(tasks[0])
    assert not target.connection.withdraw(tasks[1])
    assert (tasks[0].on_the_wire, tasks[1].on_the_wire) == (True, False)
    target.respond(tasks[0])
    first, second = target.received(ScsiCommand, ScsiCommand)
    assert second.pdu.initiator_task_tag == tasks[2].initiator_task_tag
    assert second.pdu.cmd_sn == first.pdu.cmd_sn + 1


def test_the_unfinished_come_back_in_the_order_in_which_they_were_asked_for() -> None:
    target = MemoryTarget(window=4)
    tasks = [target.submit(plain_task()) for _ in range(8)]
    target.respond(tasks[2])
    left = [task for task in tasks if task is not tasks[2]]
    assert target.connection.take_unfinished() == left
    assert target.connection.take_unfinished() == []
    assert target.connection.tasks_on_the_wire == 0


@pytest.mark.conformance("FFP-15.3")
def test_a_status_is_acknowledged_by_the_next_request_and_not_by_itself() -> None:
    target = MemoryTarget()
    task = target.submit(plain_task())
    target.received(ScsiCommand)
    target.respond(task)
    assert target.nothing_received()
    target.submit(plain_task())
    (command,) = target.received(ScsiCommand)
    assert command.pdu.exp_stat_sn == target.stat_sn


def test_what_happened_before_a_broken_rule_is_still_told() -> None:
    target = MemoryTarget()
    tasks = [target.submit(plain_task()) for _ in range(2)]
    target.received()
    good = target.bytes_of(ScsiResponse, initiator_task_tag=tasks[0].initiator_task_tag)
    ping = target.bytes_of(NopIn, target_transfer_tag=1)
    bad = target.bytes_of(DataIn, initiator_task_tag=0x5555)
    with pytest.raises(ProtocolError, match="4.2.5.3"):
        target.send_bytes(good + ping + bad)
    assert target.events() == [tasks[0]]
    assert target.connection.take_unfinished() == [tasks[1]]
    assert target.nothing_received()
    target.connection.requests.abort_task(tasks[1])
    target.submit(plain_task())
    target.connection.requests.reset(TaskFunction.TARGET_WARM_RESET)
    assert target.nothing_received()
