"""The target's side of one connection without I/O: login, then the full feature phase (RFC 7143 section 4.2).

The caller moves the PDUs. It gives a `framing.Receiver` the two methods `header_arrived` and `pdu_arrived`,
carries out what `tasks()` gives and says `complete`, and sends what `pdus_to_send()` gives, which may have
grown by any of these calls. At ErrorRecoveryLevel 0 every broken rule ends the connection: the calls raise
ProtocolError; after `fail` a Reject may be waiting to be sent, and then the connection is to be closed.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from iscsifs.errors import DigestError, ProtocolError
from iscsifs.iscsi import serial
from iscsifs.iscsi.bhs import pack
from iscsifs.iscsi.framing import Buffer, pdu_name
from iscsifs.iscsi.pdu import (
    FINAL,
    R2T,
    RESERVED_TAG,
    AsyncEvent,
    AsyncMessage,
    DataIn,
    DataInFlag,
    DataOut,
    LoginRequest,
    LogoutReason,
    LogoutRequest,
    LogoutResponse,
    LogoutResponseCode,
    NopIn,
    NopOut,
    Pdu,
    Reject,
    RejectReason,
    ScsiCommand,
    ScsiResponse,
    SnackRequest,
    TargetPdu,
    TaskFunction,
    TaskManagementRequest,
    TaskManagementResponse,
    TaskResponse,
    TextRequest,
    TextResponse,
)
from iscsifs.iscsi.states import MAY_REQUEST, OVER, ConnectionEvent, ConnectionState, advance_target
from iscsifs.iscsi.text import Pair
from iscsifs.limits import MAX_IMMEDIATE
from iscsifs.scsi.status import Status
from iscsifs.target.login import TargetLogin
from iscsifs.target.task import Task, rest_of_cdb
from iscsifs.target.text import TextExchange
from iscsifs.target.unit import Operation, Result

_WHOLE_SET: Final = frozenset(
    {TaskFunction.ABORT_TASK_SET, TaskFunction.CLEAR_TASK_SET, TaskFunction.LOGICAL_UNIT_RESET}
)
TARGET_RESETS: Final = frozenset({TaskFunction.TARGET_WARM_RESET, TaskFunction.TARGET_COLD_RESET})

_Numbered = NopOut | ScsiCommand | TaskManagementRequest | TextRequest | LogoutRequest


class Services(Protocol):
    """What a connection asks of the target that it belongs to."""

    def logged_in(self) -> None:
        """Called when the login is done, before the final response is sent."""

    def prepare(self, lun: int, cdb: bytes) -> Operation:
        """Check a command."""

    def manage(self, function: TaskFunction, lun: int) -> TaskResponse:
        """Carry out a task management function as far as it concerns others than this connection."""

    def send_targets(self, value: str) -> list[Pair]:
        """Answer SendTargets (appendix C)."""


class Connection:
    """One connection, the only one of its session; see the module for its calls.

    `state` is that of section 8.1.4. `statuses` and `commands` number what is sent and taken, from the login
    on. `status_in_data` lets GOOD status travel in the last Data-In; a test may turn it off.
    """

    def __init__(self, login: TargetLogin, services: Services) -> None:
        self.login = login
        self.state = advance_target(ConnectionState.FREE, ConnectionEvent.CONNECTED)
        self.statuses = login.statuses
        self.commands = login.commands
        self.status_in_data = True
        self.pongs: list[bytes] = []  # the data of NOP-Outs that answered our pings
        self.isid = bytes(6)
        self._cid = 0
        self._services = services
        self._header: tuple[Pdu, bytes, int] | None = None  # of the PDU that is on its way or being taken
        self._out: list[tuple[TargetPdu, Buffer]] = []
        self._ready: list[Task] = []
        self._tasks: dict[int, Task] = {}
        self._managing: list[tuple[TaskManagementResponse, list[Task]]] = []
        self._next_transfer_tag = 0
        self._pings: set[int] = set()
        self._text: TextExchange | None = None

    @property
    def closing(self) -> bool:
        """Whether the connection is to be closed after what is still to be sent."""
        return self.state in OVER

    def _advance(self, event: ConnectionEvent) -> None:
        self.state = advance_target(self.state, event)

    # What arrives.

    def header_arrived(self, pdu: Pdu, ahs: bytes, length: int) -> memoryview | None:
        """Return where the data segment of *pdu* belongs, None for a buffer of its own."""
        self._header = pdu, ahs, length
        if isinstance(pdu, DataOut) and (task := self._tasks.get(pdu.initiator_task_tag)) is not None:
            return task.place(pdu, length)
        return None

    def pdu_arrived(self, pdu: Pdu, ahs: bytes, data: memoryview) -> None:
        """Take a PDU with its additional header segments and data. Raises ProtocolError."""
        self._header = pdu, ahs, len(data)
        if self.closing:
            raise ProtocolError("nothing may follow a logout", section="11.14", pdu=pdu_name(pdu))
        if not self.login.done:
            self._login(pdu, data)
        else:
            self._receive(pdu, ahs, data)
        self._header = None

    def fail(self, error: ProtocolError) -> None:
        """End the connection for *error*, with a Reject where it is known of which PDU (section 7.7, 7.8)."""
        self._lose()
        if self.login.done and self._header is not None:
            digest = isinstance(error, DigestError)
            reason = RejectReason.DATA_DIGEST_ERROR if digest else RejectReason.PROTOCOL_ERROR
            self.reject(reason, *self._header)

    def connection_lost(self) -> None:
        """End the tasks without an answer: the transport connection has ended."""
        self._lose()
        self.abort()
        if self.state is ConnectionState.CLEANUP_WAIT:
            self._advance(ConnectionEvent.CLEANED_UP)

    def reinstated(self) -> None:
        """End the tasks, as a new login has taken the place of the session (section 6.3.5)."""
        if not self.closing:
            self.abort()
            self._advance(ConnectionEvent.REINSTATED)

    def _lose(self) -> None:
        if not self.closing:
            self._advance(ConnectionEvent.LOST)

    def tasks(self) -> list[Task]:
        """Return the tasks that have become ready to be carried out, in the order of their commands."""
        ready, self._ready = self._ready, []
        return ready

    def start_full_feature_phase(self) -> None:
        """Enter the full feature phase; the login may have been done without this connection."""
        if self.state is ConnectionState.XPT_UP:
            self._advance(ConnectionEvent.LOGIN_STARTED)
        self._advance(ConnectionEvent.LOGGED_IN)

    @property
    def outstanding(self) -> Sequence[Task]:
        """The tasks without an answer."""
        return [task for task in self._tasks.values() if not task.aborted]

    # What goes out.

    def pdus_to_send(self) -> list[tuple[TargetPdu, Buffer]]:
        """Return the PDUs to be sent next, in order, with their data segments."""
        out, self._out = self._out, []
        return out

    def complete(self, task: Task, result: Result) -> None:
        """Answer *task* with its data and status (sections 11.4 and 11.7); an aborted one is forgotten."""
        if self._tasks.get(task.tag) is not task or task.aborted:
            return
        self._forget(task)
        residual_flag, residual_count = task.residual(result)
        sent = 0
        for piece in task.data_in(result, status_in_data=self.status_in_data):
            sent += 1
            last = bool(piece.flags & DataInFlag.STATUS)
            flags = piece.flags | (residual_flag if last else 0)
            pdu = DataIn(
                flags=flags,
                status=Status.GOOD,
                lun=0,
                initiator_task_tag=task.tag,
                target_transfer_tag=RESERVED_TAG,
                stat_sn=self.statuses.take_stat_sn() if last else 0,
                exp_cmd_sn=self.commands.exp_cmd_sn,
                max_cmd_sn=self.commands.max_cmd_sn,
                data_sn=piece.data_sn,
                buffer_offset=piece.offset,
                residual_count=residual_count if last else 0,
            )
            self._out.append((pdu, piece.data))
            if last:
                return
        sense = result.sense_data
        response = ScsiResponse(
            flags=FINAL | residual_flag,
            response=0,
            status=result.status,
            initiator_task_tag=task.tag,
            stat_sn=self.statuses.take_stat_sn(),
            exp_cmd_sn=self.commands.exp_cmd_sn,
            max_cmd_sn=self.commands.max_cmd_sn,
            exp_data_sn=task.sequence_count(sent),
            residual_count=residual_count,
        )
        self._out.append((response, len(sense).to_bytes(2, "big") + sense if sense else b""))

    def ping(self, data: bytes = b"") -> None:
        """Send a NOP-In that asks for an answer (section 11.19)."""
        tag = self._new_transfer_tag()
        self._pings.add(tag)
        self._out.append((NopIn(0, RESERVED_TAG, tag, self.statuses.stat_sn, *self._window()), data))

    def send_async(
        self,
        event: AsyncEvent,
        *,
        lun: int = 0,
        vcode: int = 0,
        parameters: tuple[int, int, int] = (0, 0, 0),
        data: bytes = b"",
    ) -> None:
        """Send an Asynchronous Message (section 11.9); a caller that drops the connection closes it."""
        if event is AsyncEvent.LOGOUT_REQUESTED and self.state in MAY_REQUEST:
            self._advance(ConnectionEvent.LOGOUT_REQUESTED)
        numbers = self.statuses.take_stat_sn(), *self._window()
        self._out.append((AsyncMessage(lun, RESERVED_TAG, *numbers, event, vcode, *parameters), data))

    def reject(self, reason: RejectReason, pdu: Pdu, ahs: bytes = b"", data_length: int = 0) -> None:
        """Send a Reject of *pdu* (section 11.17)."""
        numbers = self.statuses.take_stat_sn(), *self._window()
        header = pack(pdu, data_length, len(ahs)) + ahs
        limit = self.login.parameters.max_send_data_segment_length
        self._out.append((Reject(reason, RESERVED_TAG, *numbers), header[:limit]))

    def abort(self, lun: int | None = None) -> list[Task]:
        """End the tasks of *lun*, or all of them, without an answer; return those that had none."""
        aborted = [task for task in self.outstanding if lun is None or task.lun == lun]
        for task in aborted:
            self._abort(task)
        return aborted

    # The numbers (section 4.2.2).

    def _window(self) -> tuple[int, int]:
        """Return ExpCmdSN and MaxCmdSN, which are in each PDU."""
        return self.commands.exp_cmd_sn, self.commands.max_cmd_sn

    def _new_transfer_tag(self) -> int:
        tag = self._next_transfer_tag
        self._next_transfer_tag = (tag + 1) % RESERVED_TAG
        return tag

    # The login phase.

    def _login(self, pdu: Pdu, data: memoryview) -> None:
        if not isinstance(pdu, LoginRequest):
            raise ProtocolError("not a login request", section="4.2.4", pdu=pdu_name(pdu))
        if self.state is ConnectionState.XPT_UP:
            self._advance(ConnectionEvent.LOGIN_STARTED)
        self.isid, self._cid = pdu.isid, pdu.cid
        response, text = self.login.receive(pdu, bytes(data))
        if self.login.done:
            self.start_full_feature_phase()
            self._services.logged_in()
        elif response.status_class:
            self._advance(ConnectionEvent.LOGIN_FAILED)
        self._out.append((response, text))

    # The full feature phase: what has no CmdSN, what is immediate, then the rest in order.

    def _receive(self, pdu: Pdu, ahs: bytes, data: memoryview) -> None:
        match pdu:
            case DataOut():
                self.statuses.acknowledged = pdu.exp_stat_sn
                self._data_out(pdu, data)
            case SnackRequest():
                self.statuses.acknowledged = pdu.exp_stat_sn
                self.reject(RejectReason.SNACK_REJECT, pdu)
            case NopOut() | ScsiCommand() | TaskManagementRequest() | TextRequest() | LogoutRequest():
                self.statuses.acknowledged = pdu.exp_stat_sn
                if pdu.immediate:
                    self._carry_out(pdu, ahs, data)
                else:
                    self._in_order(pdu, ahs, data)
            case _:
                raise ProtocolError("it has no place here", section="4.2.4", pdu=pdu_name(pdu))

    def _in_order(self, pdu: _Numbered, ahs: bytes, data: memoryview) -> None:
        """Carry out *pdu* when all before it have come; one outside of the window is ignored."""
        if self.commands.may_come(pdu.cmd_sn):
            self.commands.hold(pdu.cmd_sn, (pdu, ahs, data), len(data), pdu_name(pdu))
            self._release()

    def _release(self) -> None:
        while (held := self.commands.next()) is not None:
            for pdu, ahs, data in held:
                if isinstance(pdu, DataOut):
                    self._data_out(pdu, data)
                else:
                    self._carry_out(pdu, ahs, data)

    def _carry_out(self, pdu: Pdu, ahs: bytes, data: memoryview) -> None:
        if self.login.discovery and isinstance(pdu, ScsiCommand | TaskManagementRequest):
            self.reject(RejectReason.PROTOCOL_ERROR, pdu, ahs, len(data))
            return
        match pdu:
            case ScsiCommand():
                self._scsi_command(pdu, ahs, data)
            case TaskManagementRequest():
                self._task_management(pdu)
            case NopOut():
                self._nop_out(pdu, data)
            case TextRequest():
                self._text_request(pdu, bytes(data))
            case LogoutRequest():
                self._logout(pdu)

    # Commands and their data.

    def _scsi_command(self, pdu: ScsiCommand, ahs: bytes, data: memoryview) -> None:
        tag = pdu.initiator_task_tag
        if tag in self._tasks or tag == RESERVED_TAG:
            raise ProtocolError(f"task tag {tag:08x}h is in use", section="11.2.1.8", pdu="SCSI_COMMAND")
        if pdu.immediate and sum(task.command.immediate for task in self.outstanding) >= MAX_IMMEDIATE:
            self.reject(RejectReason.TOO_MANY_IMMEDIATE_COMMANDS, pdu, ahs, len(data))
            return
        cdb = pdu.cdb + rest_of_cdb(ahs)
        task = Task(pdu, cdb, data, self.login.parameters, self._services.prepare)
        self._tasks[tag] = task
        self.commands.queued += not pdu.immediate
        self._go_on(task)

    def _forget(self, task: Task) -> None:
        del self._tasks[task.tag]
        self.commands.queued -= not task.command.immediate

    def _data_out(self, pdu: DataOut, data: memoryview) -> None:
        tag = pdu.initiator_task_tag
        task = self._tasks.get(tag)
        if task is None:
            # It may belong to a command that waits for its turn, or to one that was aborted or ignored.
            for cmd_sn, (first, _, _) in self.commands.held():
                if isinstance(first, ScsiCommand) and first.initiator_task_tag == tag:
                    self.commands.hold(cmd_sn, (pdu, b"", data), len(data), pdu_name(pdu))
                    break
            return
        task.receive(pdu, data)
        self._go_on(task)

    def _go_on(self, task: Task) -> None:
        """Ask for what *task* still needs, or have it carried out."""
        if task.aborted:
            if not task.bursts:
                self._forget(task)
                self._conclude_management()
        elif task.ready:
            self._ready.append(task)
        else:
            for tag, r2t_sn, offset, length in task.solicit(self._new_transfer_tag):
                numbers = self.statuses.stat_sn, *self._window()
                self._out.append((R2T(task.lun, task.tag, tag, *numbers, r2t_sn, offset, length), b""))

    # Task management (sections 4.2.3.3, 11.5 and 11.6).

    def _abort(self, task: Task) -> None:
        task.abort()
        if not task.bursts:
            self._forget(task)

    def _task_management(self, pdu: TaskManagementRequest) -> None:
        if len(self._managing) == MAX_IMMEDIATE:
            self.reject(RejectReason.TOO_MANY_IMMEDIATE_COMMANDS, pdu)
            return
        waiting: list[Task] = []
        try:
            function = TaskFunction(pdu.function)
        except ValueError:
            code = TaskResponse.FUNCTION_UNSUPPORTED
        else:
            if function is TaskFunction.ABORT_TASK:
                code, waiting = self._abort_task(pdu)
            elif function is TaskFunction.TASK_REASSIGN:
                code = TaskResponse.REASSIGNMENT_UNSUPPORTED
            elif function in _WHOLE_SET | TARGET_RESETS:
                code = self._services.manage(function, pdu.lun)
                if code == TaskResponse.COMPLETE:
                    waiting = self.abort(None if function in TARGET_RESETS else pdu.lun)
                if function is TaskFunction.TARGET_COLD_RESET:
                    self._lose()
            else:
                code = TaskResponse.FUNCTION_UNSUPPORTED
        self._managing.append((TaskManagementResponse(code, pdu.initiator_task_tag), waiting))
        self._conclude_management()

    def _abort_task(self, pdu: TaskManagementRequest) -> tuple[TaskResponse, list[Task]]:
        task = self._tasks.get(pdu.referenced_task_tag)
        if task is not None and not task.aborted and task.lun == pdu.lun:
            self._abort(task)
            return TaskResponse.COMPLETE, [task]
        ref_cmd_sn = pdu.ref_cmd_sn
        if self.commands.is_in_window(ref_cmd_sn) and serial.lt(ref_cmd_sn, pdu.cmd_sn):
            self.commands.abort(ref_cmd_sn)
            self._release()
            return TaskResponse.COMPLETE, []
        return TaskResponse.NO_SUCH_TASK, []

    def _conclude_management(self) -> None:
        """Answer the requests whose aborted tasks have had all their R2Ts answered, in order."""
        while self._managing and not any(task.bursts for task in self._managing[0][1]):
            response, _ = self._managing.pop(0)
            numbers = {"exp_cmd_sn": self.commands.exp_cmd_sn, "max_cmd_sn": self.commands.max_cmd_sn}
            self._out.append((response._replace(stat_sn=self.statuses.take_stat_sn(), **numbers), b""))

    # The rest: NOP, text, logout.

    def _nop_out(self, pdu: NopOut, data: memoryview) -> None:
        if pdu.initiator_task_tag == RESERVED_TAG:
            if not pdu.immediate:
                raise ProtocolError("without a task tag it must be immediate", section="11.18", pdu="NOP_OUT")
            if pdu.target_transfer_tag != RESERVED_TAG:
                if pdu.target_transfer_tag not in self._pings:
                    raise ProtocolError("it answers no ping of ours", section="11.18.2", pdu="NOP_OUT")
                self._pings.discard(pdu.target_transfer_tag)
                self.pongs.append(bytes(data))
            return
        if pdu.target_transfer_tag != RESERVED_TAG:
            raise ProtocolError("it has two tags", section="11.18.2", pdu="NOP_OUT")
        numbers = self.statuses.take_stat_sn(), *self._window()
        echo = data[: self.login.parameters.max_send_data_segment_length]
        self._out.append((NopIn(0, pdu.initiator_task_tag, RESERVED_TAG, *numbers), echo))

    def _text_request(self, pdu: TextRequest, data: bytes) -> None:
        """Take a piece of a request, or hand out the next piece of the answer (sections 6.2 and 11.10)."""
        if pdu.target_transfer_tag == RESERVED_TAG:
            limit = self.login.parameters.max_send_data_segment_length
            self._text = TextExchange(pdu.initiator_task_tag, self._answer, limit)
        reply = None if self._text is None else self._text.receive(pdu, data)
        if reply is None:
            self._text = None
            self.reject(RejectReason.PROTOCOL_ERROR, pdu, data_length=len(data))
            return
        piece, flags = reply
        if flags & FINAL:
            self._text = None
        self._send_text(pdu, piece, flags)

    def _answer(self, pairs: list[Pair]) -> list[Pair] | None:
        """Return the answer to a whole text; None for one that a discovery session must not send."""
        if pairs and pairs[0][0] == "SendTargets":
            return self._services.send_targets(pairs[0][1]) if len(pairs) == 1 else None
        if self.login.discovery:
            return None
        return [(key, "NotUnderstood") for key, _ in pairs]

    def _send_text(self, pdu: TextRequest, piece: bytes, flags: int) -> None:
        tag = RESERVED_TAG if flags & FINAL else self._new_transfer_tag()
        numbers = self.statuses.take_stat_sn(), *self._window()
        self._out.append((TextResponse(flags, pdu.lun, pdu.initiator_task_tag, tag, *numbers), piece))

    def _logout(self, pdu: LogoutRequest) -> None:
        code = LogoutResponseCode.CLOSED
        if pdu.reason == LogoutReason.CLOSE_CONNECTION and pdu.cid != self._cid:
            code = LogoutResponseCode.CID_NOT_FOUND
        elif pdu.reason == LogoutReason.REMOVE_FOR_RECOVERY:
            code = LogoutResponseCode.RECOVERY_UNSUPPORTED
        elif pdu.reason > LogoutReason.REMOVE_FOR_RECOVERY:
            raise ProtocolError(f"reason {pdu.reason} is reserved", section="11.14.1", pdu="LOGOUT_REQUEST")
        else:
            self._advance(ConnectionEvent.LOGOUT_RECEIVED)
            self.abort()
            self._advance(ConnectionEvent.LOGOUT_SUCCEEDED)
        numbers = self.statuses.take_stat_sn(), *self._window()
        self._out.append((LogoutResponse(code, pdu.initiator_task_tag, *numbers), b""))
