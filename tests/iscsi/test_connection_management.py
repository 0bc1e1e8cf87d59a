"""Task management: RFC 7143 sections 4.2.3.3, 11.5 and 11.6."""

import pytest

from iscsifs.errors import TaskAborted, TransportError
from iscsifs.iscsi.events import SenseReported
from iscsifs.iscsi.pdu import (
    FINAL,
    RESERVED_TAG,
    DataIn,
    DataOut,
    NopOut,
    RejectReason,
    ScsiCommand,
    TaskFunction,
    TaskManagementRequest,
    TaskManagementResponse,
    TaskResponse,
)
from iscsifs.iscsi.task import Task
from iscsifs.limits import MAX_LATE_TAGS
from support.memory_target import LUN, MemoryTarget, Sent, pattern, plain_task

OTHER_LUN = 2 << 48
REPEATABLE = [
    TaskFunction.ABORT_TASK,
    TaskFunction.LOGICAL_UNIT_RESET,
    TaskFunction.TARGET_WARM_RESET,
    TaskFunction.TARGET_COLD_RESET,
]
NOT_DONE = [2, 3, 4, 5, 6, 255, 7, 128]


def abort(target: MemoryTarget, task: Task) -> Sent:
    target.received()
    target.connection.requests.abort_task(task)
    return target.received(TaskManagementRequest)[0]


@pytest.mark.conformance("ERR-17")
def test_abort_task_names_its_task() -> None:
    target = MemoryTarget(cmd_sn=0xFFFFFFFF)
    tasks = [target.read(512, lun=OTHER_LUN) for _ in range(3)]
    commands = target.received(*[ScsiCommand] * 3)
    sent = abort(target, tasks[1])
    request = sent.pdu
    assert (request.function, request.immediate, request.lun) == (TaskFunction.ABORT_TASK, True, OTHER_LUN)
    assert request.referenced_task_tag == commands[1].pdu.initiator_task_tag
    assert (request.ref_cmd_sn, request.cmd_sn) == (commands[1].pdu.cmd_sn, 2) == (0, 2)
    assert request.initiator_task_tag not in {RESERVED_TAG, *(one.pdu.initiator_task_tag for one in commands)}
    assert (sent.data, sent.ahs) == (b"", b"")


@pytest.mark.conformance("ERR-17", "ERR-18")
@pytest.mark.parametrize("response", [TaskResponse.COMPLETE, TaskResponse.NO_SUCH_TASK])
def test_an_aborted_task_keeps_its_tag_until_it_is_concluded(response: TaskResponse) -> None:
    target = MemoryTarget()
    task = target.read(512)
    tag = task.initiator_task_tag
    sent = abort(target, task)
    assert target.events() == []
    assert not task.ended
    target.connection.exchange._last_tag = tag - 1
    assert target.submit(plain_task()).initiator_task_tag not in {tag, sent.pdu.initiator_task_tag}
    target.manage(sent, response)
    ended, management = target.events()
    assert ended is task
    assert isinstance(task.failure, TaskAborted)
    assert getattr(management, "succeeded", None) is True
    assert getattr(management, "tasks", None) == [task]
    target.connection.exchange._last_tag = tag - 1  # an answer to it may still be under way
    assert target.submit(plain_task()).initiator_task_tag != tag


@pytest.mark.conformance("ERR-18")
def test_a_status_before_the_answer_to_the_abort_is_used() -> None:
    target = MemoryTarget()
    task = target.read(512)
    sent = abort(target, task)
    target.data_in(task, 0, pattern(512), 0, flags=0x81)
    assert target.events() == [task]
    assert (task.failure, task.data_in.tobytes()) == (None, pattern(512))
    target.manage(sent, TaskResponse.NO_SUCH_TASK)
    (management,) = target.events()
    assert getattr(management, "succeeded", None) is True
    assert task.failure is None


@pytest.mark.conformance("ERR-18", "HOSTILE-7")
def test_what_comes_after_the_answer_to_the_abort_is_thrown_away() -> None:
    memory = bytearray(512)
    target = MemoryTarget()
    read = target.submit(Task(LUN, bytes(6), data_in=memoryview(memory)))
    write = target.write(pattern(1 << 19))
    for task in (read, write):
        target.manage(abort(target, task))
    target.events()
    memory[:] = b"\xaa" * 512  # the caller has it back
    target.received()
    target.data_in(read, 0, bytes(512), 0)
    target.data_in(read, 99999, bytes(4096), 7)
    target.data_in(read, 0, bytes(512), 0, flags=0x81)
    target.respond(read)
    target.r2t(write, 1 << 18, 512)
    target.respond(write)
    assert target.events() == []
    assert target.nothing_received()
    assert memory == b"\xaa" * 512
    assert target.connection.tasks_on_the_wire == 0
    task = target.submit(plain_task())  # and the StatSNs have been counted
    target.respond(task)
    assert target.events() == [task]


def test_what_a_unit_reports_with_a_late_answer_is_not_thrown_away() -> None:
    target = MemoryTarget()
    task = target.submit(Task(LUN, bytes(6)))
    target.manage(abort(target, task))
    target.events()
    target.respond(task, b"\0\x03abc", status=2)
    assert target.events() == [SenseReported(LUN, b"abc")]


def test_late_tags_are_remembered_within_bounds() -> None:
    target = MemoryTarget()
    tasks = []
    for _ in range(MAX_LATE_TAGS + 1):
        tasks.append(target.read(512))
        target.manage(abort(target, tasks[-1]))
    target.respond(tasks[1])
    target.events()
    with target.drop("4.2.5.3"):
        target.respond(tasks[0])


@pytest.mark.conformance("ERR-19")
@pytest.mark.parametrize("response", NOT_DONE)
@pytest.mark.parametrize("function", [TaskFunction.ABORT_TASK, TaskFunction.LOGICAL_UNIT_RESET])
def test_an_abort_that_was_not_done_leaves_the_task_as_it_is(response: int, function: TaskFunction) -> None:
    target = MemoryTarget()
    task = target.read(512)
    target.received()
    if function is TaskFunction.ABORT_TASK:
        target.connection.requests.abort_task(task)
    else:
        target.connection.requests.reset(function, LUN)
    (sent,) = target.received(TaskManagementRequest)
    target.manage(sent, response)
    (management,) = target.events()
    assert getattr(management, "succeeded", None) is False
    assert getattr(management, "response", None) == response
    assert list(target.connection.tasks()) == [task]
    target.data_in(task, 0, pattern(512), 0, flags=0x81)
    assert target.events() == [task]
    assert task.failure is None


def test_a_reset_of_a_unit_that_the_target_does_not_know_is_not_done() -> None:
    target = MemoryTarget()
    target.connection.requests.reset(TaskFunction.LOGICAL_UNIT_RESET, LUN)
    (sent,) = target.received(TaskManagementRequest)
    target.manage(sent, TaskResponse.NO_SUCH_TASK)  # "no such task" concludes an ABORT TASK only
    (management,) = target.events()
    assert getattr(management, "succeeded", None) is False


@pytest.mark.conformance("ERR-20")
@pytest.mark.parametrize("function", [TaskFunction.ABORT_TASK_SET, TaskFunction.LOGICAL_UNIT_RESET])
def test_a_unit_is_reset(function: TaskFunction) -> None:
    target = MemoryTarget(
        initiator={"InitialR2T": True, "ImmediateData": False}, target={"MaxRecvDataSegmentLength": 512}
    )
    reads = [target.read(512) for _ in range(2)]
    writes = [target.write(pattern(4096, seed)) for seed in range(2)]
    elsewhere = target.read(512, lun=OTHER_LUN)
    target.received()
    target.connection.requests.reset(function, LUN)
    later = target.read(512)
    sent, _ = target.received(TaskManagementRequest, ScsiCommand)
    request = sent.pdu
    assert (request.function, request.immediate, request.lun) == (function, True, LUN)
    assert (request.referenced_task_tag, sent.data, sent.ahs) == (RESERVED_TAG, b"", b"")

    target.r2t(writes[0], 0, 4096)  # answered, and as soon as can be
    (data_out,) = target.received(DataOut)
    assert data_out.pdu.flags == FINAL
    assert data_out.pdu.target_transfer_tag == 0x1000
    assert data_out.data == writes[0].data_out[: len(data_out.data)]
    target.ping(9)
    (answer,) = target.received(NopOut)
    assert answer.pdu.target_transfer_tag == 9
    target.data_in(reads[0], 0, pattern(512), 0, flags=0x81)
    assert target.events() == [reads[0]]
    assert (reads[0].failure, reads[0].data_in.tobytes()) == (None, pattern(512))
    assert target.nothing_received()

    target.manage(sent)
    *ended, management = target.events()
    assert ended == [reads[1], *writes]
    assert getattr(management, "tasks", None) == [*reads, *writes]
    assert all(isinstance(task.failure, TaskAborted) for task in (reads[1], *writes))
    target.data_in(reads[1], 0, bytes(512), 0, flags=0x81)
    target.r2t(writes[1], 0, 512)
    target.respond(writes[0])
    assert target.events() == []
    assert target.nothing_received()

    for task in (elsewhere, later):
        target.data_in(task, 0, pattern(512), 0, flags=0x81)
        assert target.events() == [task]
        assert task.failure is None


@pytest.mark.conformance("ERR-21")
@pytest.mark.parametrize("function", [TaskFunction.TARGET_WARM_RESET, TaskFunction.TARGET_COLD_RESET])
def test_a_target_is_reset(function: TaskFunction) -> None:
    target = MemoryTarget()
    tasks = [target.read(512), target.read(512, lun=OTHER_LUN), target.submit(plain_task(lun=0))]
    target.received()
    target.connection.requests.reset(function)
    (sent,) = target.received(TaskManagementRequest)
    assert (sent.pdu.function, sent.pdu.lun) == (function, 0)
    assert sent.pdu.referenced_task_tag == RESERVED_TAG
    target.manage(sent)
    assert target.events()[:-1] == tasks
    assert all(isinstance(task.failure, TaskAborted) for task in tasks)
    assert target.connection.tasks_on_the_wire == 0


@pytest.mark.conformance("ERR-21")
def test_a_cold_reset_may_take_the_connection_with_it() -> None:
    target = MemoryTarget()
    task = target.read(512)
    target.connection.requests.reset(TaskFunction.TARGET_COLD_RESET)
    target.received()
    with pytest.raises(TransportError, match="closed"):
        target.connection.receive_eof()
    assert target.connection.take_unfinished() == [task]


@pytest.mark.conformance("HOSTILE-7")
def test_an_answer_to_an_abort_whose_task_a_reset_has_concluded() -> None:
    target = MemoryTarget()
    task = target.read(512)
    first = abort(target, task)
    target.connection.requests.reset(TaskFunction.LOGICAL_UNIT_RESET, LUN)
    (second,) = target.received(TaskManagementRequest)
    target.manage(second)
    assert target.events()[0] is task
    assert target.connection.tasks_on_the_wire == 0
    target.manage(first)
    assert task not in target.events()
    assert target.connection.tasks_on_the_wire == 0
    assert target.nothing_received()


@pytest.mark.conformance("HOSTILE-7")
def test_an_answer_to_task_management_that_there_was_not() -> None:
    target = MemoryTarget()
    with target.drop("4.2.5.3"):  # never used
        target.send(TaskManagementResponse, initiator_task_tag=0x5555)
    target = MemoryTarget()
    task = target.read(512)
    with target.drop("4.2.5.3"):  # of another kind of task
        target.send(TaskManagementResponse, initiator_task_tag=task.initiator_task_tag)
    target = MemoryTarget()
    sent = abort(target, target.read(512))
    target.manage(sent)
    target.events()
    with target.drop("4.2.5.3"):  # just concluded
        target.manage(sent)
    target = MemoryTarget()
    sent = abort(target, target.read(512))
    with target.drop("4.2.5.3"):  # a task management function has no data
        target.send(DataIn, b"1234", initiator_task_tag=sent.pdu.initiator_task_tag)


@pytest.mark.conformance("ERR-6")
@pytest.mark.parametrize("function", REPEATABLE)
def test_a_function_that_there_was_no_room_for_is_sent_again(function: TaskFunction) -> None:
    target = MemoryTarget()
    task = target.read(512)
    target.received()
    lun = LUN if function is TaskFunction.LOGICAL_UNIT_RESET else 0
    if function is TaskFunction.ABORT_TASK:
        management = target.connection.requests.abort_task(task)
    else:
        management = target.connection.requests.reset(function, lun)
    (first,) = target.received(TaskManagementRequest)
    target.reject(first, RejectReason.TOO_MANY_IMMEDIATE_COMMANDS)
    assert management in target.events()
    assert management.refused_for_now
    assert not management.succeeded
    assert target.nothing_received()  # when to send it again is for the layer above to say
    again = target.connection.requests.repeat(management)
    (second,) = target.received(TaskManagementRequest)
    numbers = {"exp_stat_sn": target.stat_sn, "initiator_task_tag": second.pdu.initiator_task_tag}
    assert second.pdu == first.pdu._replace(**numbers)
    target.manage(second)
    assert target.events() == [task, again]
    assert again.succeeded


def test_a_reset_without_tasks_is_repeated_for_its_own_unit() -> None:
    target = MemoryTarget()
    management = target.connection.requests.reset(TaskFunction.LOGICAL_UNIT_RESET, OTHER_LUN)
    (first,) = target.received(TaskManagementRequest)
    target.reject(first, RejectReason.TOO_MANY_IMMEDIATE_COMMANDS)
    target.connection.requests.repeat(management)
    (second,) = target.received(TaskManagementRequest)
    assert second.pdu.lun == OTHER_LUN


@pytest.mark.parametrize("reason", [RejectReason.PROTOCOL_ERROR, RejectReason.COMMAND_NOT_SUPPORTED])
def test_a_function_that_is_rejected_for_good_was_not_done(reason: RejectReason) -> None:
    target = MemoryTarget()
    task = target.read(512)
    sent = abort(target, task)
    target.reject(sent, reason)
    management = target.events()[-1]
    assert getattr(management, "refused_for_now", None) is False
    assert getattr(management, "succeeded", None) is False
    assert list(target.connection.tasks()) == [task]
    with target.drop("4.2.5.3"):  # that was its answer
        target.manage(sent)
