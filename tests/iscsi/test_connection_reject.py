"""Rejects: RFC 7143 sections 7.3 and 11.17."""

from typing import Any

import pytest

from iscsifs.errors import CommandError, TaskAborted
from iscsifs.iscsi.bhs import pack
from iscsifs.iscsi.events import LogoutRequested, Noted, Ping
from iscsifs.iscsi.pdu import (
    FINAL,
    R2T,
    DataOut,
    LogoutRequest,
    NopIn,
    NopOut,
    Pdu,
    Reject,
    RejectReason,
    ScsiCommand,
    ScsiResponse,
    SnackRequest,
    TaskManagementRequest,
    TextRequest,
    TextResponse,
)
from support.memory_target import MemoryTarget, Sent, pattern, plain_task

Reason = RejectReason
REPEATABLE = [
    Reason.DATA_DIGEST_ERROR,
    Reason.TOO_MANY_IMMEDIATE_COMMANDS,
    Reason.OUT_OF_RESOURCES,
]
NOT_REPEATABLE = [Reason.PROTOCOL_ERROR, Reason.COMMAND_NOT_SUPPORTED, Reason.INVALID_PDU_FIELD]
OF_A_COMMAND = [*REPEATABLE, *NOT_REPEATABLE, Reason.TASK_IN_PROGRESS]


def told(target: MemoryTarget) -> list[Any]:
    """The events but for what goes to the log."""
    return [event for event in target.events() if not isinstance(event, Noted)]


def abort_of(sent: Sent) -> tuple[int, int]:
    assert isinstance(sent.pdu, TaskManagementRequest)
    assert sent.pdu.function == 1
    return sent.pdu.referenced_task_tag, sent.pdu.ref_cmd_sn


@pytest.mark.conformance("ERR-4", "ERR-5")
@pytest.mark.parametrize("reason", [*REPEATABLE, *NOT_REPEATABLE])
def test_a_rejected_command_is_aborted_which_fills_the_gap_in_cmd_sn(reason: RejectReason) -> None:
    target = MemoryTarget(window=3)
    task = target.write(pattern(512))
    (command,) = target.received(ScsiCommand)
    assert command.data
    header = pack(command.pdu, len(command.data))
    target.send(Reject, header, reason=reason, exp_cmd_sn=1, max_cmd_sn=3)  # to the target, it has not come
    (sent,) = target.received()
    assert abort_of(sent) == (task.initiator_task_tag, task.cmd_sn)
    assert sent.pdu.immediate
    target.manage(sent, 1)
    ended, management = told(target)
    assert ended is task
    assert getattr(management, "succeeded", None) is True
    # Only what is TaskAborted may be sent again.
    assert type(task.failure) is (TaskAborted if reason in REPEATABLE else CommandError)
    assert reason.name in str(task.failure)
    assert target.nothing_received()
    target.submit(plain_task())
    (following,) = target.received(ScsiCommand)
    assert following.pdu.cmd_sn == command.pdu.cmd_sn + 1


@pytest.mark.conformance("ERR-4", "ERR-6")
@pytest.mark.parametrize("reason", OF_A_COMMAND)
def test_a_rejected_data_out_is_not_repeated(reason: RejectReason) -> None:
    target = MemoryTarget(initiator={"InitialR2T": True, "ImmediateData": False})
    task = target.write(pattern(1024))
    target.r2t(task, 0, 512)
    _, data_out = target.received(ScsiCommand, DataOut)
    target.reject(data_out, reason)
    assert target.nothing_received()
    assert told(target) == []
    target.r2t(task, 512, 512, 1)  # the task goes on
    target.received(DataOut)
    target.respond(task, b"", status=8)
    assert told(target) == [task]
    target.reject(data_out, reason)  # one may be rejected when its task has ended
    assert told(target) == []


@pytest.mark.conformance("ERR-6")
@pytest.mark.parametrize("reason", OF_A_COMMAND)
def test_a_rejected_ping_is_not_repeated(reason: RejectReason) -> None:
    target = MemoryTarget()
    task = target.read(512)
    ping = target.connection.requests.ping()
    target.ping()
    _, own, answer = target.received(ScsiCommand, NopOut, NopOut)
    target.reject(answer, reason)
    assert told(target) == []
    target.reject(own, reason)
    assert told(target) == [ping]  # a sign of life as well
    assert target.nothing_received()
    target.data_in(task, 0, pattern(512), 0, flags=0x81)
    assert told(target) == [task]
    with target.drop("4.2.5.3"):
        target.reject(own, reason)


@pytest.mark.conformance("ERR-6")
def test_a_command_that_is_in_progress_already_gets_its_own_answer() -> None:
    target = MemoryTarget()
    task = target.read(512)
    (command,) = target.received(ScsiCommand)
    target.reject(command, Reason.TASK_IN_PROGRESS)
    assert told(target) == []
    assert target.nothing_received()
    target.data_in(task, 0, pattern(512), 0, flags=0x81)
    assert told(target) == [task]
    assert task.failure is None


@pytest.mark.conformance("ERR-7")
@pytest.mark.parametrize("reason", [Reason.OUT_OF_RESOURCES, *NOT_REPEATABLE, Reason.DATA_DIGEST_ERROR])
def test_a_rejected_text_request_is_a_failed_negotiation(reason: RejectReason) -> None:
    target = MemoryTarget()
    before = target.parameters
    text = target.connection.requests.send_text([("SendTargets", "All")])
    (request,) = target.received(TextRequest)
    target.reject(request, reason)
    assert told(target) == [text]
    assert text.pairs is None
    assert target.parameters is before
    assert target.nothing_received()
    again = target.connection.requests.send_text([("SendTargets", "All")])  # the session stays
    (second,) = target.received(TextRequest)
    assert second.pdu.initiator_task_tag != request.pdu.initiator_task_tag
    target.send(TextResponse, initiator_task_tag=second.pdu.initiator_task_tag)
    assert told(target) == [again]
    assert again.pairs == []


@pytest.mark.conformance("ERR-7")
def test_a_negotiation_reset_ends_the_connection() -> None:
    target = MemoryTarget()
    target.connection.requests.send_text([("SendTargets", "All")])
    (request,) = target.received(TextRequest)
    with target.drop("11.17.1"):
        target.reject(request, Reason.NEGOTIATION_RESET)


@pytest.mark.conformance("ERR-8")
def test_a_target_that_waits_for_the_logout() -> None:
    target = MemoryTarget(window=1)
    task = target.read(512)
    target.read(512)
    (command,) = target.received(ScsiCommand)
    target.reject(command, Reason.WAITING_FOR_LOGOUT)
    assert told(target) == [LogoutRequested(0)]
    target.send(NopIn)
    assert target.nothing_received()  # no new command
    target.connection.requests.log_out()
    target.received(LogoutRequest)
    assert next(target.connection.tasks()) is task  # for the new session
    assert len(target.connection.take_unfinished()) == 2


@pytest.mark.conformance("ERR-8")
@pytest.mark.parametrize("reason", [0x00, 0x01, 0x03, 0x08, 0x0D, 0x7F, 0xFF])
def test_a_reason_that_cannot_be(reason: int) -> None:
    target = MemoryTarget()
    target.read(512)
    (command,) = target.received(ScsiCommand)
    with target.drop("11.17.1"):
        target.reject(command, reason)


@pytest.mark.conformance("ERR-8")
@pytest.mark.parametrize("reason", [*Reason])
@pytest.mark.parametrize("length", [0, 1, 47])
def test_a_rejected_header_that_is_cut_short(length: int, reason: RejectReason) -> None:
    target = MemoryTarget()
    target.read(512)
    (command,) = target.received(ScsiCommand)
    with target.drop("11.17.4"):
        target.reject(pack(command.pdu)[:length], reason)


NEVER_SENT: list[Pdu] = [
    ScsiCommand(FINAL, 0, 0x5555, 0, 0, 0, bytes(16)),
    TaskManagementRequest(1, 0, 0x5555),
    TextRequest(FINAL, 0, 0x5555),
    LogoutRequest(0, 0x5555),
    NopOut(0, 0x5555),
    SnackRequest(0, 0, 0x5555, 0, 0, 0, 0),
    ScsiResponse(FINAL, 0, 0, 0x5555),
    R2T(0, 0x5555, 0, 0, 0, 0, 0, 0, 0),
]


@pytest.mark.conformance("ERR-8", "HOSTILE-7")
@pytest.mark.parametrize("reason", OF_A_COMMAND)
@pytest.mark.parametrize("pdu", NEVER_SENT, ids=lambda pdu: type(pdu).__name__)
def test_a_rejected_header_that_was_never_sent(pdu: Pdu, reason: RejectReason) -> None:
    target = MemoryTarget()
    task = target.read(512)
    with target.drop("4.2.5.3"):
        target.reject(pack(pdu), reason)
    if not isinstance(pdu, ScsiCommand):  # nor one of this kind with this tag
        target = MemoryTarget()
        task = target.read(512)
        with target.drop("4.2.5.3"):
            target.reject(pack(pdu._replace(initiator_task_tag=task.initiator_task_tag)), reason)


def test_a_rejected_header_of_an_unknown_opcode() -> None:
    target = MemoryTarget()
    target.read(512)
    with target.drop("11.2.1.2"):
        target.reject(b"\x1f" + bytes(47), Reason.PROTOCOL_ERROR)


@pytest.mark.conformance("HOSTILE-7")
def test_a_rejected_command_that_has_ended() -> None:
    target = MemoryTarget()
    task = target.read(512)
    (command,) = target.received(ScsiCommand)
    target.respond(task, status=8)
    assert told(target) == [task]
    with target.drop("4.2.5.3"):
        target.reject(command, Reason.PROTOCOL_ERROR)


def test_a_command_rejected_again_and_again_is_aborted_once() -> None:
    target = MemoryTarget()
    task = target.read(512)
    (command,) = target.received(ScsiCommand)
    for _ in range(1000):
        target.reject(command, Reason.DATA_DIGEST_ERROR)
    (sent,) = target.received(TaskManagementRequest)
    assert abort_of(sent) == (task.initiator_task_tag, task.cmd_sn)


def test_an_abort_that_had_to_wait_still_fails_its_task_for_the_first_reason() -> None:
    target = MemoryTarget()
    task = target.read(512)
    (command,) = target.received(ScsiCommand)
    target.reject(command, Reason.INVALID_PDU_FIELD)
    (first,) = target.received(TaskManagementRequest)
    target.reject(first, Reason.TOO_MANY_IMMEDIATE_COMMANDS)
    (refused,) = told(target)
    target.connection.requests.repeat(refused)
    (second,) = target.received(TaskManagementRequest)
    target.manage(second)
    assert type(task.failure) is CommandError
    assert Reason.INVALID_PDU_FIELD.name in str(task.failure)


def test_a_rejected_logout_has_no_answer() -> None:
    target = MemoryTarget()
    logout = target.connection.requests.log_out()
    (request,) = target.received(LogoutRequest)
    target.reject(request, Reason.TOO_MANY_IMMEDIATE_COMMANDS)
    assert told(target) == [logout]
    assert logout.response is None


def test_a_reject_is_told_to_the_log() -> None:
    target = MemoryTarget()
    ping = target.connection.requests.ping()
    (request,) = target.received(NopOut)
    target.send(Reject, pack(request.pdu), reason=Reason.COMMAND_NOT_SUPPORTED)
    noted, event = target.events()
    assert noted == Noted("the target rejected a NOP_OUT: COMMAND_NOT_SUPPORTED")
    assert event is ping
    assert isinstance(event, Ping)
