"""The initiator's side of one connection without I/O: login, then the full feature phase (RFC 7143 section
4.2).

The caller moves the bytes. It receives into `get_buffer()`, says `buffer_updated(n)` or `receive_eof()`,
looks at `events()`, and sends what `data_to_send()` gives, which may have grown by any of these calls.

The `state` is that of section 8.1, from IN_LOGIN on: the caller makes the transport connection first, and
says `connection_lost()` at its end. At ErrorRecoveryLevel 0 every broken rule ends the connection: the calls
raise ProtocolError, nothing more is sent, `events` still gives what had happened before, and
`take_unfinished` the tasks that have no status, to be sent again in a new session.

Commands are here; what else is asked for is in `requests`.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from iscsifs.errors import ConnectionClosed, IscsifsError, ProtocolError
from iscsifs.iscsi.events import Event, LoggedIn, SenseReported
from iscsifs.iscsi.exchange import Exchange
from iscsifs.iscsi.framing import Buffer, Observer, Receiver, pdu_name
from iscsifs.iscsi.keys import Parameters
from iscsifs.iscsi.login import InitiatorLogin, Redirect
from iscsifs.iscsi.pdu import (
    R2T,
    AsyncMessage,
    DataIn,
    LogoutResponse,
    NopIn,
    Pdu,
    Reject,
    ScsiResponse,
    TaskManagementResponse,
    TextResponse,
)
from iscsifs.iscsi.requests import Requests
from iscsifs.iscsi.states import ConnectionEvent, ConnectionState, advance
from iscsifs.iscsi.task import CHECK_CONDITION, DATA_IN_STATUS, Task, read_sense
from iscsifs.limits import MAX_TASKS


class Connection:
    """One connection of a session, the only one of it; see the module for its calls.

    `heard` is set by every byte that arrives; the keepalive timer clears it.
    """

    def __init__(self, login: InitiatorLogin, observer: Observer | None = None) -> None:
        self.login = login
        self.heard = False
        self.tasks_on_the_wire = 0
        """How many commands wait for their status; those still queued are not counted."""
        self.exchange = Exchange(observer)
        """What commands and other requests share."""
        self.requests = Requests(self.exchange, login.config.cid, self._end_task)
        """What can be asked for beside commands."""
        self.receiver = Receiver(self._header_arrived, self._pdu_arrived)
        self._observer = observer
        self._queue: deque[Task] = deque()
        requests = self.requests
        self._handlers: Mapping[type[Any], Callable[[Any, memoryview], None]] = {
            DataIn: self._data_in,
            ScsiResponse: self._scsi_response,
            R2T: self._r2t,
            NopIn: requests.nop_in,
            TaskManagementResponse: requests.management_response,
            TextResponse: requests.text_response,
            AsyncMessage: requests.asynchronous,
            Reject: requests.reject,
            LogoutResponse: requests.logout_response,
        }
        self.exchange.sender.send(*login.start())

    @property
    def parameters(self) -> Parameters:
        """What the login agreed on."""
        return self.login.parameters

    @property
    def state(self) -> ConnectionState:
        """The state of section 8.1."""
        return self.exchange.state

    # Bytes in and out.

    def get_buffer(self) -> memoryview:
        """Return the memory that the next bytes from the target belong into."""
        return self.receiver.get_buffer()

    def buffer_updated(self, count: int) -> None:
        """Take note of *count* bytes received into what `get_buffer` returned.

        Raises ProtocolError for a rule that the target broke, LoginError for a login that cannot go on.
        """
        self.heard = True
        try:
            self.receiver.buffer_updated(count)
        except IscsifsError:
            self.connection_lost()
            self.exchange.sender.clear()
            raise

    def receive_eof(self) -> None:
        """Take note that the target closed the connection; raises ConnectionClosed unless that ends a
        logout."""
        state = self.state
        self.connection_lost()
        if state not in (ConnectionState.IN_LOGOUT, ConnectionState.FREE):
            where = " in the middle of a PDU" if self.receiver.in_pdu else ""
            raise ConnectionClosed(f"the target closed the connection{where}")

    def connection_lost(self) -> None:
        """Take note that the transport connection is lost or given up; what is over stays as it is."""
        self.exchange.move(ConnectionEvent.LOST)

    def events(self) -> list[Event]:
        """Return what has happened since the last call, in order; a task is there when it has ended."""
        exchange = self.exchange
        events, exchange.events = exchange.events, []
        return events

    def data_to_send(self) -> list[Buffer]:
        """Return the buffers to be sent next, in order; they must not be changed until that is done.

        There may be more while `has_more_to_send`. Commands that wait for the window are taken up only here:
        until then they can be withdrawn because of what the target has told in the answer that opened it.
        """
        requests, sender = self.requests, self.exchange.sender
        if requests.unsent_texts:
            requests.send_texts()
        if self._queue:
            self._fill_window()
        buffers = sender.take()
        if not sender.waiting:
            requests.unsent_answers = 0
        return buffers

    @property
    def has_more_to_send(self) -> bool:
        """Whether `data_to_send` has left something for the next call."""
        return bool(self.exchange.sender.waiting)

    @property
    def pdus(self) -> int:
        """How many PDUs have arrived, and Data-Outs were made: a measure of the work that was done."""
        return self.receiver.pdus + self.exchange.sender.pdus

    # Commands.

    def tasks(self) -> Iterator[Task]:
        """Give the tasks on the wire in the order of their sending, then those that wait for the window."""
        yield from (request for request in self.exchange.requests.values() if isinstance(request, Task))
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
        self.exchange.requests.clear()
        self.tasks_on_the_wire = 0
        if self.state is ConnectionState.CLEANUP_WAIT:
            self.exchange.state = advance(self.state, ConnectionEvent.CLEANED_UP)
        return unfinished

    def _fill_window(self) -> None:
        """Send what is queued while the command window is open (section 4.2.2.1)."""
        exchange, queue = self.exchange, self._queue
        if exchange.state is not ConnectionState.LOGGED_IN:
            return
        commands = exchange.commands
        while queue and self.tasks_on_the_wire < MAX_TASKS and commands.window_is_open:
            task = queue[0]
            tag = exchange.new_tag(task)  # without memory it stays in one of the two
            queue.popleft()
            self.tasks_on_the_wire += 1
            command, ahs, immediate_data, burst = task.start(
                self.login.parameters, tag, commands.take_cmd_sn(), exchange.statuses.exp_stat_sn
            )
            exchange.sender.send(command, immediate_data, ahs)
            if burst is not None:
                exchange.sender.send_sequence(burst)

    def _end_task(self, task: Task) -> None:
        self.tasks_on_the_wire -= 1
        self.exchange.end_request(task.initiator_task_tag, task)
        if task.residual and task.residual_is_odd:
            self.exchange.note_once(
                "the target counts a residual where all data were moved, against RFC 7143 section 11.4.5"
            )

    # Receiving.

    def _header_arrived(self, pdu: Pdu, ahs: bytes, length: int) -> memoryview | None:
        if type(pdu) is DataIn and self.exchange.state is not ConnectionState.IN_LOGIN:
            task = self._task(pdu)
            return None if task is None else task.data_in_announced(pdu, length)
        if length and isinstance(pdu, (R2T, TaskManagementResponse, LogoutResponse)):
            raise ProtocolError("it has a data segment", section="11.2.1.6", pdu=pdu_name(pdu))
        return None

    def _pdu_arrived(self, pdu: Pdu, ahs: bytes, data: memoryview) -> None:
        if self._observer is not None:
            self._observer(False, pdu, len(data))
        exchange = self.exchange
        if exchange.state is ConnectionState.IN_LOGIN:
            self._log_in(pdu, data)
            return
        handler = self._handlers.get(type(pdu))
        if handler is None:
            raise ProtocolError("not from a target in this phase", section="7.13", pdu=pdu_name(pdu))
        exchange.commands.update_window(pdu)  # type: ignore[arg-type]
        handler(pdu, data)

    def _log_in(self, pdu: Pdu, data: memoryview) -> None:
        exchange, login = self.exchange, self.login
        outcome = login.receive(pdu, bytes(data))
        if isinstance(outcome, Redirect):
            exchange.move(ConnectionEvent.LOGIN_FAILED)
            exchange.events.append(outcome)
            return
        if outcome is not None:
            exchange.sender.send(*outcome)
            return
        exchange.logged_in(login.config.cmd_sn, login.max_cmd_sn, login.exp_stat_sn)
        for end in (self.receiver, exchange.sender):
            end.header_digest = login.parameters.header_digest
            end.data_digest = login.parameters.data_digest
        self.receiver.max_data_segment_length = login.parameters.max_recv_data_segment_length
        exchange.events.append(LoggedIn())

    def _task(self, pdu: DataIn | ScsiResponse | R2T) -> Task | None:
        """Return the SCSI task of *pdu*, None for one that was aborted; raises ProtocolError for any
        other."""
        exchange, tag = self.exchange, pdu.initiator_task_tag
        task = exchange.requests.get(tag)
        if isinstance(task, Task):
            return task
        if tag in exchange.late_tags:
            return None
        raise exchange.unknown_tag(tag, pdu)

    def _data_in(self, pdu: DataIn, data: memoryview) -> None:
        if pdu.flags & DATA_IN_STATUS:
            self.exchange.statuses.count(pdu)
        task = self._task(pdu)
        if task is None or pdu.data_sn != task.next_data_sn:  # late, or a repetition
            return
        task.data_in_arrived(pdu, len(data))
        if task.ended:
            self._end_task(task)

    def _scsi_response(self, pdu: ScsiResponse, data: memoryview) -> None:
        exchange = self.exchange
        exchange.statuses.count(pdu)
        task = self._task(pdu)
        if task is not None:
            task.response_arrived(pdu, data)
            self._end_task(task)
        elif pdu.status == CHECK_CONDITION:
            # Nobody waits for the status, but a unit attention is reported once only (SAM-5 section 5.14).
            lun = exchange.late_tags[pdu.initiator_task_tag]
            exchange.events.append(SenseReported(lun, read_sense(data, "SCSI_RESPONSE")))

    def _r2t(self, pdu: R2T, data: memoryview) -> None:
        task = self._task(pdu)
        if task is not None:
            burst = task.solicited(pdu, self.parameters, self.exchange.statuses.exp_stat_sn)
            if burst is not None:
                self.exchange.sender.send_sequence(burst)
