"""What an initiator asks for beside commands, what a target reports by itself, and rejects.

Task management (RFC 7143 sections 11.5 and 11.6), NOP (11.18 and 11.19), text (11.10 and 11.11), logout
(11.14 and 11.15), Asynchronous Message (11.9) and Reject (11.17).
"""

from collections.abc import Callable
from typing import Final

from iscsifs.errors import CommandError, ProtocolError, TaskAborted
from iscsifs.iscsi.bhs import BHS_LENGTH, unpack
from iscsifs.iscsi.events import (
    ConnectionDropped,
    Logout,
    LogoutRequested,
    Management,
    Ping,
    SenseReported,
    Text,
)
from iscsifs.iscsi.exchange import Exchange
from iscsifs.iscsi.framing import pdu_name
from iscsifs.iscsi.pdu import (
    FINAL,
    RESERVED_TAG,
    AsyncEvent,
    AsyncMessage,
    DataOut,
    LogoutReason,
    LogoutRequest,
    LogoutResponse,
    LogoutResponseCode,
    NopIn,
    NopOut,
    Reject,
    RejectReason,
    ScsiCommand,
    TaskFunction,
    TaskManagementRequest,
    TaskManagementResponse,
    TaskResponse,
    TextFlag,
    TextRequest,
    TextResponse,
)
from iscsifs.iscsi.states import MAY_REQUEST, ConnectionEvent, ConnectionState
from iscsifs.iscsi.task import Task, read_sense
from iscsifs.iscsi.text import Pair, TextCollector, encode_pairs
from iscsifs.limits import MAX_ANSWER_LENGTH, MAX_ANSWER_PIECES, MAX_UNSENT_ANSWERS

VENDOR_EVENTS: Final = 248
"""The first of the asynchronous events that a vendor may define (section 11.9.1)."""

FAILURE_OF_REJECT: Final[dict[int, type[CommandError]]] = {
    RejectReason.DATA_DIGEST_ERROR: TaskAborted,
    RejectReason.PROTOCOL_ERROR: CommandError,
    RejectReason.COMMAND_NOT_SUPPORTED: CommandError,
    RejectReason.TOO_MANY_IMMEDIATE_COMMANDS: TaskAborted,
    RejectReason.TASK_IN_PROGRESS: TaskAborted,
    RejectReason.INVALID_PDU_FIELD: CommandError,
    RejectReason.OUT_OF_RESOURCES: TaskAborted,
}
"""How a rejected command fails: only TaskAborted may be sent again, as a new task (section 7.3)."""


class Requests:
    """The requests beside commands on one connection, and the PDUs from the target that belong to no command.

    *cid* is the connection's. *end_task* ends a command whose tag is in use. `unsent_answers` counts the
    answers to pings that are not sent yet; `unsent_texts` wait for the command window.
    """

    def __init__(self, exchange: Exchange, cid: int, end_task: Callable[[Task], None]) -> None:
        self.unsent_answers = 0
        self._exchange = exchange
        self._cid = cid
        self._end_task = end_task
        self.unsent_texts: list[tuple[TextRequest, bytes]] = []

    # Requests.

    def abort_task(self, task: Task) -> Management:
        """Abort *task*, which is on the wire; its tag stays reserved until the answer (section 11.5.1)."""
        management = Management(TaskFunction.ABORT_TASK, task.lun, [task])
        self._manage(management, task.initiator_task_tag, task.cmd_sn)
        return management

    def reset(self, function: TaskFunction, lun: int = 0) -> Management:
        """Send a *function* that ends all tasks of *lun*, or with lun 0 of the target (section 11.5.1)."""
        whole_target = function in (TaskFunction.TARGET_WARM_RESET, TaskFunction.TARGET_COLD_RESET)
        affected = [
            request
            for request in self._exchange.requests.values()
            if isinstance(request, Task) and (whole_target or request.lun == lun)
        ]
        for task in affected:
            task.aborting = True
        management = Management(function, lun, affected)
        self._manage(management, RESERVED_TAG, 0)
        return management

    def repeat(self, management: Management) -> Management:
        """Send a task management function again that was refused for want of room (section 7.3)."""
        if management.function is TaskFunction.ABORT_TASK:
            again = self.abort_task(management.tasks[0])
        else:
            again = self.reset(management.function, management.lun)
        again.failure = management.failure
        return again

    def _manage(self, management: Management, referenced_task_tag: int, ref_cmd_sn: int) -> None:
        self._exchange.send_request(
            TaskManagementRequest(
                management.function,
                management.lun,
                self._exchange.new_tag(management),
                referenced_task_tag,
                ref_cmd_sn=ref_cmd_sn,
            )
        )

    def ping(self) -> Ping:
        """Send a NOP-Out that asks for an echo (section 11.18)."""
        ping = Ping()
        self._exchange.send_request(NopOut(initiator_task_tag=self._exchange.new_tag(ping), immediate=True))
        return ping

    def send_text(self, pairs: list[Pair], *, immediate: bool = False) -> Text:
        """Start a text exchange with *pairs* (section 11.10), which fit one PDU.

        It is sent as soon as the command window is open; an *immediate* one at once (some targets count its
        CmdSN all the same).
        """
        collector = TextCollector(
            "TEXT_RESPONSE",
            max_length=MAX_ANSWER_LENGTH,
            max_pieces=MAX_ANSWER_PIECES,
            errors="surrogateescape",  # one name that is not UTF-8 is no reason to lose the others
        )
        text = Text(collector, immediate)
        self._text_request(text, 0, self._exchange.new_tag(text), RESERVED_TAG, encode_pairs(pairs))
        return text

    def _text_request(self, text: Text, lun: int, tag: int, target_transfer_tag: int, data: bytes) -> None:
        request = TextRequest(FINAL, lun, tag, target_transfer_tag, immediate=text.immediate)
        if text.immediate:
            self._exchange.send_request(request, data)
        else:
            self.unsent_texts.append((request, data))
            self.send_texts()

    def log_out(self) -> Logout:
        """Ask the target to close the session (section 11.14).

        Whatever is asked for after that, also another logout, is never sent and has no answer.
        """
        logout = Logout(LogoutReason.CLOSE_SESSION)
        request = LogoutRequest(logout.reason, self._exchange.new_tag(logout), self._cid)
        if self._exchange.state in MAY_REQUEST:
            self._exchange.send_request(request)
            self._exchange.move(ConnectionEvent.LOGOUT_SENT)
        return logout

    def send_texts(self) -> None:
        """Send the Text Requests that wait, as far as the command window is open (section 4.2.2.1)."""
        exchange = self._exchange
        while self.unsent_texts and exchange.state is ConnectionState.LOGGED_IN and exchange.commands.window:
            exchange.send_request(*self.unsent_texts.pop(0))
            exchange.commands.take_cmd_sn()

    # Answers.

    def nop_in(self, pdu: NopIn, data: memoryview) -> None:
        """Answer a ping of the target, or take the echo of ours (section 11.19)."""
        exchange = self._exchange
        if pdu.initiator_task_tag == RESERVED_TAG:
            if pdu.target_transfer_tag == RESERVED_TAG:
                return
            if data:
                raise ProtocolError("a ping with data", section="11.19", pdu="NOP_IN")
            self.unsent_answers += 1
            if self.unsent_answers > MAX_UNSENT_ANSWERS:
                raise ProtocolError(
                    "pings faster than their answers are taken", section="11.18", pdu="NOP_IN"
                )
            answer = NopOut(
                pdu.lun,
                RESERVED_TAG,
                pdu.target_transfer_tag,
                exchange.commands.cmd_sn,
                exchange.statuses.exp_stat_sn,
                immediate=True,
            )
            exchange.sender.send(answer)
            return
        if pdu.target_transfer_tag != RESERVED_TAG:
            raise ProtocolError("both task tags are set", section="11.19", pdu="NOP_IN")
        exchange.statuses.count(pdu)
        ping = exchange.requests.get(pdu.initiator_task_tag)
        if not isinstance(ping, Ping):
            raise exchange.unknown_tag(pdu.initiator_task_tag, pdu)
        exchange.end_request(pdu.initiator_task_tag, ping)

    def management_response(self, pdu: TaskManagementResponse, data: memoryview) -> None:
        """Take the answer to a task management function (section 11.6)."""
        exchange = self._exchange
        exchange.statuses.count(pdu)
        management = exchange.requests.get(pdu.initiator_task_tag)
        if not isinstance(management, Management):
            raise exchange.unknown_tag(pdu.initiator_task_tag, pdu)
        management.response = pdu.response
        if management.succeeded:
            for task in management.tasks:
                if not task.ended:
                    exchange.remember_late(task)
                    task.fail(management.failure)
                    self._end_task(task)
        exchange.end_request(pdu.initiator_task_tag, management)

    def text_response(self, pdu: TextResponse, data: memoryview) -> None:
        """Take the answer to a Text Request, or a part of it (section 11.11)."""
        exchange = self._exchange
        exchange.statuses.count(pdu)
        text = exchange.requests.get(pdu.initiator_task_tag)
        if not isinstance(text, Text):
            raise exchange.unknown_tag(pdu.initiator_task_tag, pdu)
        final = bool(pdu.flags & TextFlag.FINAL)
        if final and pdu.flags & TextFlag.CONTINUE:
            raise ProtocolError("C=1 with F=1", section="11.11.2", pdu="TEXT_RESPONSE")
        if not final and pdu.target_transfer_tag == RESERVED_TAG:
            raise ProtocolError("F=0 without a Target Transfer Tag", section="11.11.4", pdu="TEXT_RESPONSE")
        # Some targets cut a long answer with F=0 alone, so the cut may be anywhere with C=0 as well.
        pairs = text.collector.add(data, more=not final)
        if pairs is None:
            self._text_request(text, pdu.lun, pdu.initiator_task_tag, pdu.target_transfer_tag, b"")
            return
        text.pairs = pairs
        exchange.end_request(pdu.initiator_task_tag, text)

    def logout_response(self, pdu: LogoutResponse, data: memoryview) -> None:
        """Take the answer to a logout (section 11.15)."""
        exchange = self._exchange
        exchange.statuses.count(pdu)
        logout = exchange.requests.get(pdu.initiator_task_tag)
        if not isinstance(logout, Logout):
            raise exchange.unknown_tag(pdu.initiator_task_tag, pdu)
        logout.response = pdu.response
        logout.time2wait = pdu.time2wait
        succeeded = pdu.response == LogoutResponseCode.CLOSED
        exchange.move(ConnectionEvent.LOGOUT_SUCCEEDED if succeeded else ConnectionEvent.LOGOUT_FAILED)
        exchange.end_request(pdu.initiator_task_tag, logout)

    # What a target reports by itself.

    def asynchronous(self, pdu: AsyncMessage, data: memoryview) -> None:
        """Take what the target reports by itself (section 11.9)."""
        exchange = self._exchange
        exchange.statuses.count(pdu)
        match pdu.async_event:
            case AsyncEvent.SCSI:
                exchange.events.append(SenseReported(pdu.lun, read_sense(data, "ASYNC_MESSAGE")))
            case AsyncEvent.LOGOUT_REQUESTED:
                exchange.move(ConnectionEvent.LOGOUT_REQUESTED)
                exchange.events.append(LogoutRequested(pdu.parameter3))
            case AsyncEvent.CONNECTION_DROPPED if pdu.parameter1 != self._cid:
                exchange.note(f"the target drops connection {pdu.parameter1}, which is not ours")
            case AsyncEvent.CONNECTION_DROPPED | AsyncEvent.ALL_CONNECTIONS_DROPPED:
                exchange.move(ConnectionEvent.LOST)
                exchange.events.append(ConnectionDropped(pdu.parameter2))
            case AsyncEvent.NEGOTIATION_REQUESTED:
                if not any(isinstance(request, Text) for request in exchange.requests.values()):
                    self.send_text([], immediate=True)
            case event if event >= VENDOR_EVENTS:
                exchange.note(f"the target reports its own event {event}")
            case event:
                raise ProtocolError(f"event {event} was not agreed on", section="11.9.1", pdu="ASYNC_MESSAGE")

    def reject(self, pdu: Reject, data: memoryview) -> None:
        """Draw the consequences for the PDU whose header the target sends back (sections 7.3 and 11.17)."""
        exchange = self._exchange
        exchange.statuses.count(pdu)
        if len(data) < BHS_LENGTH:
            raise ProtocolError("the rejected header is cut short", section="11.17.4", pdu="REJECT")
        if pdu.reason == RejectReason.WAITING_FOR_LOGOUT:
            exchange.move(ConnectionEvent.LOGOUT_REQUESTED)
            exchange.events.append(LogoutRequested(0))
            return
        if pdu.reason not in FAILURE_OF_REJECT:
            raise ProtocolError(f"reason {pdu.reason:02x}h has no cause", section="11.17.1", pdu="REJECT")
        reason = RejectReason(pdu.reason)
        rejected = unpack(data)
        exchange.note(f"the target rejected a {pdu_name(rejected)}: {reason.name}")
        if isinstance(rejected, DataOut):
            return  # its task goes on, or has ended while it was under way
        tag = rejected.initiator_task_tag
        if isinstance(rejected, NopOut) and tag == RESERVED_TAG:
            return
        match rejected, exchange.requests.get(tag):
            case ScsiCommand(), Task() as task:
                if reason != RejectReason.TASK_IN_PROGRESS:
                    self._abort_rejected(task, reason)
            case TaskManagementRequest(), Management() as management:
                management.response = TaskResponse.REJECTED
                management.refused_for_now = reason == RejectReason.TOO_MANY_IMMEDIATE_COMMANDS
                exchange.end_request(tag, management)
            case (NopOut(), Ping() as request) | (TextRequest(), Text() as request):
                exchange.end_request(tag, request)
            case LogoutRequest(), Logout() as logout:
                exchange.move(ConnectionEvent.LOGOUT_FAILED)
                exchange.end_request(tag, logout)
            case _:
                raise exchange.unknown_tag(tag, pdu)

    def _abort_rejected(self, task: Task, reason: RejectReason) -> None:
        """Abort a rejected command, which also fills the gap that it left in CmdSN (section 11.6.1)."""
        failure = FAILURE_OF_REJECT[reason](f"the target rejected the command: {reason.name}")
        for request in self._exchange.requests.values():
            if isinstance(request, Management) and task in request.tasks:
                request.failure = failure
                return
        self.abort_task(task).failure = failure
