"""The initiator's side of one connection without I/O: login, then the full feature phase (RFC 7143 section
4.2).

The caller moves the bytes. It receives into `get_buffer()`, says `buffer_updated(n)` or `receive_eof()`,
looks at `events()`, and sends what `data_to_send()` gives, which may have grown by any of these calls.

The `state` is that of section 8.1, from IN_LOGIN on: the caller makes the transport connection first, and
says `connection_lost()` at its end. At ErrorRecoveryLevel 0 every broken rule ends the connection: the calls
raise ProtocolError, nothing more is sent, `events` still gives what had happened before, and
`take_unfinished` the tasks that have no status, to be sent again in a new session.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from iscsifs.errors import CommandError, ConnectionClosed, IscsifsError, ProtocolError, TaskAborted
from iscsifs.iscsi import serial
from iscsifs.iscsi.bhs import BHS_LENGTH, unpack
from iscsifs.iscsi.events import (
    ConnectionDropped,
    Event,
    LoggedIn,
    Logout,
    LogoutRequested,
    Management,
    Noted,
    Ping,
    Request,
    SenseReported,
    Text,
)
from iscsifs.iscsi.framing import Buffer, Receiver, frame, frame_sequence, pdu_name
from iscsifs.iscsi.keys import Parameters
from iscsifs.iscsi.login import InitiatorLogin, Redirect
from iscsifs.iscsi.numbering import CommandNumbering, NumberedPdu, StatusNumbering
from iscsifs.iscsi.pdu import (
    FINAL,
    R2T,
    RESERVED_TAG,
    AsyncEvent,
    AsyncMessage,
    DataIn,
    DataOut,
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
    TaskFunction,
    TaskManagementRequest,
    TaskManagementResponse,
    TaskResponse,
    TextFlag,
    TextRequest,
    TextResponse,
)
from iscsifs.iscsi.states import MAY_REQUEST, OVER, ConnectionEvent, ConnectionState, advance
from iscsifs.iscsi.task import CHECK_CONDITION, DATA_IN_STATUS, Sequence, Task, read_sense
from iscsifs.iscsi.text import Pair, TextCollector, encode_pairs
from iscsifs.limits import (
    MAX_ANSWER_LENGTH,
    MAX_ANSWER_PIECES,
    MAX_LATE_TAGS,
    MAX_STEPS,
    MAX_TASKS,
    MAX_UNSENT_ANSWERS,
)

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


Observer = Callable[[bool, Pdu, int], None]
"""Is called with each PDU for a log: whether it is sent, and the length of its data segment."""


class Connection:
    """One connection of a session, the only one of it; see the module for its calls.

    `state` is the standard's. `parameters` hold what the login agreed on. `heard` is set by every byte that
    arrives; the keepalive timer clears it.
    """

    def __init__(self, login: InitiatorLogin, observer: Observer | None = None) -> None:
        self.login = login
        self._observer = observer
        self.heard = False
        self.state = advance(ConnectionState.XPT_WAIT, ConnectionEvent.CONNECTED)
        self.tasks_on_the_wire = 0
        """How many commands wait for their status; those still queued are not counted."""
        self._receiver = Receiver(self._header_arrived, self._pdu_arrived)
        self._out: list[Buffer] = []
        self._events: list[Event] = []
        self._commands = CommandNumbering()  # of the session
        self._statuses = StatusNumbering(self._may_repeat)
        self._queue: deque[Task] = deque()
        self._requests: dict[int, Request] = {}
        self._late_tags: dict[int, int] = {}  # of tasks that were aborted, with their LUNs
        self._unsent_answers = 0
        self._unsent_r2ts: list[Task] = []
        self._unsent_texts: list[tuple[TextRequest, bytes]] = []
        self._oddities: set[str] = set()
        self._last_tag = 0
        self._send(*login.start())

    @property
    def parameters(self) -> Parameters:
        """What the login agreed on."""
        return self.login.parameters

    # Bytes in and out.

    def get_buffer(self) -> memoryview:
        """Return the memory that the next bytes from the target belong into."""
        return self._receiver.get_buffer()

    def begin_turn(self) -> None:
        """Let `buffer_updated` take MAX_STEPS from now on; without this call there is no end to them."""
        self._receiver.steps_left = MAX_STEPS

    @property
    def has_rest(self) -> bool:
        """Whether they did not suffice: then `buffer_updated(0)` goes on in the next turn."""
        return self._receiver.has_rest

    def buffer_updated(self, count: int) -> None:
        """Take note of *count* bytes received into what `get_buffer` returned.

        Raises ProtocolError for a rule that the target broke, LoginError for a login that cannot go on.
        """
        self.heard = True
        try:
            self._receiver.buffer_updated(count)
        except IscsifsError:
            self.connection_lost()
            self._out.clear()
            raise

    def receive_eof(self) -> None:
        """Take note that the target closed the connection; raises ConnectionClosed unless that ends a
        logout."""
        state = self.state
        self.connection_lost()
        if state not in (ConnectionState.IN_LOGOUT, ConnectionState.FREE):
            where = " in the middle of a PDU" if self._receiver.in_pdu else ""
            raise ConnectionClosed(f"the target closed the connection{where}")

    def connection_lost(self) -> None:
        """Take note that the transport connection is lost or given up; what is over stays as it is."""
        self._move(ConnectionEvent.LOST)

    def _move(self, event: ConnectionEvent) -> None:
        """Change the state by *event*: what comes behind the end, in the same bytes, changes nothing."""
        if self.state not in OVER:
            self.state = advance(self.state, event)

    def events(self) -> list[Event]:
        """Return what has happened since the last call, in order; a task is there when it has ended."""
        events, self._events = self._events, []
        return events

    def data_to_send(self) -> list[Buffer]:
        """Return the buffers to be sent next, in order; they must not be changed until that is done.

        Commands that wait for the window are taken up only here: until then they can be withdrawn because of
        what the target has told in the answer that opened it.
        """
        if self._queue or self._unsent_texts:
            self._fill_window()
        out, self._out = self._out, []
        self._unsent_answers = 0
        for task in self._unsent_r2ts:
            task.r2ts_unsent = 0
        self._unsent_r2ts.clear()
        return out

    # What the layer above asks for.

    def tasks(self) -> Iterator[Task]:
        """Give the tasks on the wire in the order of their sending, then those that wait for the window."""
        yield from (request for request in self._requests.values() if isinstance(request, Task))
        yield from self._queue

    def submit(self, task: Task) -> None:
        """Send *task*, as soon as the command window is open (section 4.2.2.1)."""
        self._queue.append(task)
        self._fill_window()

    def withdraw(self, task: Task) -> bool:
        """Drop *task* if it is still unsent; return whether it was."""
        try:
            self._queue.remove(task)
        except ValueError:
            return False
        return True

    def withdraw_if(self, condition: Callable[[Task], bool]) -> list[Task]:
        """Drop the unsent tasks for which *condition* is true, and return them in their order."""
        withdrawn = [task for task in self._queue if condition(task)]
        if withdrawn:
            self._queue = deque(task for task in self._queue if not condition(task))
        return withdrawn

    def take_unfinished(self) -> list[Task]:
        """Return all tasks without a status, in the order of `tasks`; the connection forgets them.

        That is the whole cleanup of a lost connection (section 8.2): the tasks end with the session.
        """
        unfinished = list(self.tasks())
        self._queue.clear()
        self._requests.clear()
        self.tasks_on_the_wire = 0
        if self.state is ConnectionState.CLEANUP_WAIT:
            self.state = advance(self.state, ConnectionEvent.CLEANED_UP)
        return unfinished

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
            for request in self._requests.values()
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
        self._request(
            TaskManagementRequest(
                management.function,
                management.lun,
                self._new_tag(management),
                referenced_task_tag,
                ref_cmd_sn=ref_cmd_sn,
            )
        )

    def ping(self) -> Ping:
        """Send a NOP-Out that asks for an echo (section 11.18)."""
        ping = Ping()
        self._request(NopOut(initiator_task_tag=self._new_tag(ping), immediate=True))
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
        self._text_request(text, 0, self._new_tag(text), RESERVED_TAG, encode_pairs(pairs))
        return text

    def _text_request(self, text: Text, lun: int, tag: int, target_transfer_tag: int, data: bytes) -> None:
        request = TextRequest(FINAL, lun, tag, target_transfer_tag, immediate=text.immediate)
        if text.immediate:
            self._request(request, data)
        else:
            self._unsent_texts.append((request, data))
            self._fill_window()

    def log_out(self) -> Logout:
        """Ask the target to close the session (section 11.14).

        Whatever is asked for after that, also another logout, is never sent and has no answer.
        """
        logout = Logout(LogoutReason.CLOSE_SESSION)
        request = LogoutRequest(logout.reason, self._new_tag(logout), self.login.config.cid)
        if self.state in MAY_REQUEST:
            self._request(request)
            self._move(ConnectionEvent.LOGOUT_SENT)
        return logout

    # Sending.

    def _send(self, pdu: Pdu, data: Buffer = b"", ahs: bytes = b"") -> None:
        if self._observer is not None:
            self._observer(True, pdu, len(data))
        receiver = self._receiver  # the digests are the same in both directions
        self._out += frame(
            pdu, data, ahs, header_digest=receiver.header_digest, data_digest=receiver.data_digest
        )

    def _send_sequence(self, burst: Sequence) -> None:
        if self._observer is not None:
            self._observe_sequence(burst, self._observer)
        receiver = self._receiver
        buffers = frame_sequence(
            *burst,
            self.login.parameters.max_send_data_segment_length,
            header_digest=receiver.header_digest,
            data_digest=receiver.data_digest,
        )
        receiver.steps_left -= len(buffers) // 2
        self._out += buffers

    def _observe_sequence(self, burst: Sequence, observer: Observer) -> None:
        """Show each PDU of a *burst*, as `frame_sequence` cuts it."""
        last, data = burst
        longest = self.login.parameters.max_send_data_segment_length
        while len(data) > longest:
            length = longest & ~3
            observer(True, last._replace(flags=0), length)
            last = last._replace(data_sn=last.data_sn + 1, buffer_offset=last.buffer_offset + length)
            data = data[length:]
        observer(True, last, len(data))

    def _request(
        self, pdu: NopOut | TaskManagementRequest | TextRequest | LogoutRequest, data: bytes = b""
    ) -> None:
        """Send a request with the numbers of now, unless the state forbids it."""
        if self.state in MAY_REQUEST:
            cmd_sn, exp_stat_sn = self._commands.cmd_sn, self._statuses.exp_stat_sn
            self._send(pdu._replace(cmd_sn=cmd_sn, exp_stat_sn=exp_stat_sn), data)

    def _new_tag(self, request: Request) -> int:
        """Reserve an Initiator Task Tag for *request* (section 11.2.1.8)."""
        tag = self._last_tag
        while True:
            tag = serial.add(tag, 1)
            if tag != RESERVED_TAG and tag not in self._requests and tag not in self._late_tags:
                break
        self._last_tag = tag
        self._requests[tag] = request
        return tag

    def _fill_window(self) -> None:
        """Send what is queued while the command window is open (section 4.2.2.1)."""
        if self.state is not ConnectionState.LOGGED_IN:
            return
        if self._unsent_texts:
            self._send_texts()
        queue, commands = self._queue, self._commands
        while queue and commands.window_is_open and self.tasks_on_the_wire < MAX_TASKS:
            task = queue[0]
            tag = self._new_tag(task)  # before it leaves the queue: without memory it stays in one of the two
            queue.popleft()
            self.tasks_on_the_wire += 1
            command, ahs, immediate_data, burst = task.start(
                self.login.parameters, tag, commands.take_cmd_sn(), self._statuses.exp_stat_sn
            )
            self._send(command, immediate_data, ahs)
            if burst is not None:
                self._send_sequence(burst)

    def _send_texts(self) -> None:
        commands = self._commands
        while self._unsent_texts and commands.window_is_open:
            self._request(*self._unsent_texts.pop(0))
            commands.take_cmd_sn()

    # Receiving.

    def _header_arrived(self, pdu: Pdu, ahs: bytes, length: int) -> memoryview | None:
        if type(pdu) is DataIn and self.state is not ConnectionState.IN_LOGIN:
            task = self._task(pdu.initiator_task_tag, pdu)
            return None if task is None else task.data_in_announced(pdu, length)
        if length and isinstance(pdu, (R2T, TaskManagementResponse, LogoutResponse)):
            raise ProtocolError("it has a data segment", section="11.2.1.6", pdu=pdu_name(pdu))
        return None

    def _pdu_arrived(self, pdu: Pdu, ahs: bytes, data: memoryview) -> None:
        if self._observer is not None:
            self._observer(False, pdu, len(data))
        if self.state is ConnectionState.IN_LOGIN:
            self._log_in(pdu, data)
            return
        if not isinstance(pdu, NumberedPdu):
            raise ProtocolError("not from a target in this phase", section="7.13", pdu=pdu_name(pdu))
        self._commands.update_window(pdu)
        match pdu:
            case DataIn():
                self._data_in(pdu, len(data))
            case ScsiResponse():
                self._scsi_response(pdu, data)
            case R2T():
                self._r2t(pdu)
            case NopIn():
                self._nop_in(pdu, data)
            case TaskManagementResponse():
                self._management_response(pdu)
            case TextResponse():
                self._text_response(pdu, data)
            case AsyncMessage():
                self._asynchronous(pdu, data)
            case Reject():
                self._reject(pdu, data)
            case LogoutResponse():
                self._logout_response(pdu)

    def _log_in(self, pdu: Pdu, data: memoryview) -> None:
        login = self.login
        outcome = login.receive(pdu, bytes(data))
        if isinstance(outcome, Redirect):
            self._move(ConnectionEvent.LOGIN_FAILED)
            self._events.append(outcome)
            return
        if outcome is not None:
            self._send(*outcome)
            return
        self._commands = CommandNumbering(login.config.cmd_sn, login.max_cmd_sn)
        self._statuses = StatusNumbering(self._may_repeat, login.exp_stat_sn)
        self._receiver.header_digest = login.parameters.header_digest
        self._receiver.data_digest = login.parameters.data_digest
        self._receiver.max_data_segment_length = login.parameters.max_recv_data_segment_length
        self._move(ConnectionEvent.LOGGED_IN)
        self._events.append(LoggedIn())

    def _unknown_tag(self, tag: int, pdu: Pdu) -> ProtocolError:
        return ProtocolError(f"task tag {tag:08x}h is not in use", section="4.2.5.3", pdu=pdu_name(pdu))

    def _task(self, tag: int, pdu: Pdu) -> Task | None:
        """Return the SCSI task of *tag*, None for one that was aborted; raises ProtocolError for any
        other."""
        task = self._requests.get(tag)
        if isinstance(task, Task):
            return task
        if tag in self._late_tags:
            return None
        raise self._unknown_tag(tag, pdu)

    def _may_repeat(self, pdu: NumberedPdu) -> bool:
        """Say whether *pdu* may have a StatSN that was counted before: it answers a request that waits.

        NetBSD's iscsi-target counts so while several commands are under way. Without such a request it may
        be anything.
        """
        tag = pdu.initiator_task_tag
        if tag not in self._requests and tag not in self._late_tags:
            return False
        self._note_once("the StatSN of the target does not count up, against RFC 7143 section 4.2.2.2")
        return True

    def _note_once(self, oddity: str) -> None:
        """Have an *oddity* of the target logged that costs nothing, once for each connection."""
        if oddity not in self._oddities:
            self._oddities.add(oddity)
            self._events.append(Noted(f"{oddity}; going on"))

    def _end_task(self, task: Task) -> None:
        del self._requests[task.initiator_task_tag]
        self.tasks_on_the_wire -= 1
        self._events.append(task)
        if task.residual and task.residual_is_odd:
            self._note_once(
                "the target counts a residual where all data were moved, against RFC 7143 section 11.4.5"
            )

    def _data_in(self, pdu: DataIn, length: int) -> None:
        if pdu.flags & DATA_IN_STATUS:
            self._statuses.count(pdu)
        task = self._task(pdu.initiator_task_tag, pdu)
        if task is None or pdu.data_sn != task.next_data_sn:  # late, or a repetition
            return
        task.data_in_arrived(pdu, length)
        if task.ended:
            self._end_task(task)

    def _scsi_response(self, pdu: ScsiResponse, data: memoryview) -> None:
        self._statuses.count(pdu)
        task = self._task(pdu.initiator_task_tag, pdu)
        if task is not None:
            task.response_arrived(pdu, data)
            self._end_task(task)
        elif pdu.status == CHECK_CONDITION:
            # Nobody waits for the status, but a unit attention is reported once only (SAM-5 section 5.14).
            lun = self._late_tags[pdu.initiator_task_tag]
            self._events.append(SenseReported(lun, read_sense(data, "SCSI_RESPONSE")))

    def _r2t(self, pdu: R2T) -> None:
        task = self._task(pdu.initiator_task_tag, pdu)
        if task is None:
            return
        all_sent = not task.r2ts_unsent
        burst = task.solicited(pdu, self.parameters, self._statuses.exp_stat_sn)
        if burst is not None:
            self._send_sequence(burst)
        if all_sent and task.r2ts_unsent:
            self._unsent_r2ts.append(task)

    def _nop_in(self, pdu: NopIn, data: memoryview) -> None:
        if pdu.initiator_task_tag == RESERVED_TAG:
            if pdu.target_transfer_tag == RESERVED_TAG:
                return
            if data:
                raise ProtocolError("a ping with data", section="11.19", pdu="NOP_IN")
            self._unsent_answers += 1
            if self._unsent_answers > MAX_UNSENT_ANSWERS:
                raise ProtocolError(
                    "pings faster than their answers are taken", section="11.18", pdu="NOP_IN"
                )
            answer = NopOut(
                pdu.lun,
                RESERVED_TAG,
                pdu.target_transfer_tag,
                self._commands.cmd_sn,
                self._statuses.exp_stat_sn,
                immediate=True,
            )
            self._send(answer)
            return
        if pdu.target_transfer_tag != RESERVED_TAG:
            raise ProtocolError("both task tags are set", section="11.19", pdu="NOP_IN")
        self._statuses.count(pdu)
        ping = self._requests.get(pdu.initiator_task_tag)
        if not isinstance(ping, Ping):
            raise self._unknown_tag(pdu.initiator_task_tag, pdu)
        del self._requests[pdu.initiator_task_tag]
        self._events.append(ping)

    def _management_response(self, pdu: TaskManagementResponse) -> None:
        self._statuses.count(pdu)
        management = self._requests.get(pdu.initiator_task_tag)
        if not isinstance(management, Management):
            raise self._unknown_tag(pdu.initiator_task_tag, pdu)
        del self._requests[pdu.initiator_task_tag]
        management.response = pdu.response
        if management.succeeded:
            for task in management.tasks:
                if not task.ended:
                    self._remember_late(task)
                    task.fail(management.failure)
                    self._end_task(task)
        self._events.append(management)

    def _remember_late(self, task: Task) -> None:
        """Keep the tag of *task* out of use: the target may still answer what it has aborted (section
        4.2.3.3)."""
        self._late_tags[task.initiator_task_tag] = task.lun
        if len(self._late_tags) > MAX_LATE_TAGS:
            del self._late_tags[next(iter(self._late_tags))]

    def _text_response(self, pdu: TextResponse, data: memoryview) -> None:
        self._statuses.count(pdu)
        text = self._requests.get(pdu.initiator_task_tag)
        if not isinstance(text, Text):
            raise self._unknown_tag(pdu.initiator_task_tag, pdu)
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
        del self._requests[pdu.initiator_task_tag]
        self._events.append(text)

    def _logout_response(self, pdu: LogoutResponse) -> None:
        self._statuses.count(pdu)
        logout = self._requests.get(pdu.initiator_task_tag)
        if not isinstance(logout, Logout):
            raise self._unknown_tag(pdu.initiator_task_tag, pdu)
        del self._requests[pdu.initiator_task_tag]
        logout.response = pdu.response
        logout.time2wait = pdu.time2wait
        succeeded = pdu.response == LogoutResponseCode.CLOSED
        self._move(ConnectionEvent.LOGOUT_SUCCEEDED if succeeded else ConnectionEvent.LOGOUT_FAILED)
        self._events.append(logout)

    def _asynchronous(self, pdu: AsyncMessage, data: memoryview) -> None:
        self._statuses.count(pdu)
        match pdu.async_event:
            case AsyncEvent.SCSI:
                self._events.append(SenseReported(pdu.lun, read_sense(data, "ASYNC_MESSAGE")))
            case AsyncEvent.LOGOUT_REQUESTED:
                self._move(ConnectionEvent.LOGOUT_REQUESTED)
                self._events.append(LogoutRequested(pdu.parameter3))
            case AsyncEvent.CONNECTION_DROPPED if pdu.parameter1 != self.login.config.cid:
                self._events.append(Noted(f"the target drops connection {pdu.parameter1}, which is not ours"))
            case AsyncEvent.CONNECTION_DROPPED | AsyncEvent.ALL_CONNECTIONS_DROPPED:
                self.connection_lost()
                self._events.append(ConnectionDropped(pdu.parameter2))
            case AsyncEvent.NEGOTIATION_REQUESTED:
                if not any(isinstance(request, Text) for request in self._requests.values()):
                    self.send_text([], immediate=True)
            case event if event >= VENDOR_EVENTS:
                self._events.append(Noted(f"the target reports its own event {event}"))
            case event:
                raise ProtocolError(f"event {event} was not agreed on", section="11.9.1", pdu="ASYNC_MESSAGE")

    def _reject(self, pdu: Reject, data: memoryview) -> None:
        """Draw the consequences for the PDU whose header the target sends back (sections 7.3 and 11.17)."""
        self._statuses.count(pdu)
        if len(data) < BHS_LENGTH:
            raise ProtocolError("the rejected header is cut short", section="11.17.4", pdu="REJECT")
        if pdu.reason == RejectReason.WAITING_FOR_LOGOUT:
            self._move(ConnectionEvent.LOGOUT_REQUESTED)
            self._events.append(LogoutRequested(0))
            return
        if pdu.reason not in FAILURE_OF_REJECT:
            raise ProtocolError(f"reason {pdu.reason:02x}h has no cause", section="11.17.1", pdu="REJECT")
        reason = RejectReason(pdu.reason)
        rejected = unpack(data)
        self._events.append(Noted(f"the target rejected a {pdu_name(rejected)}: {reason.name}"))
        if isinstance(rejected, DataOut):
            return  # its task goes on, or has ended while it was under way
        tag = rejected.initiator_task_tag
        if isinstance(rejected, NopOut) and tag == RESERVED_TAG:
            return
        match rejected, self._requests.get(tag):
            case ScsiCommand(), Task() as task:
                if reason != RejectReason.TASK_IN_PROGRESS:
                    self._abort_rejected(task, reason)
            case TaskManagementRequest(), Management() as management:
                del self._requests[tag]
                management.response = TaskResponse.REJECTED
                management.refused_for_now = reason == RejectReason.TOO_MANY_IMMEDIATE_COMMANDS
                self._events.append(management)
            case (NopOut(), Ping() as request) | (TextRequest(), Text() as request):
                del self._requests[tag]
                self._events.append(request)
            case LogoutRequest(), Logout() as logout:
                del self._requests[tag]
                self._move(ConnectionEvent.LOGOUT_FAILED)
                self._events.append(logout)
            case _:
                raise self._unknown_tag(tag, pdu)

    def _abort_rejected(self, task: Task, reason: RejectReason) -> None:
        """Abort a rejected command, which also fills the gap that it left in CmdSN (section 11.6.1)."""
        failure = FAILURE_OF_REJECT[reason](f"the target rejected the command: {reason.name}")
        for request in self._requests.values():
            if isinstance(request, Management) and task in request.tasks:
                request.failure = failure
                return
        self.abort_task(task).failure = failure
