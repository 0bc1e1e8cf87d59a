"""The initiator's side of one connection without I/O: login, then the full feature phase (RFC 7143 section
4.2).

The caller moves the bytes. It receives into `get_buffer()`, says `buffer_updated(n)` or `receive_eof()`,
takes `events()`, and sends what `data_to_send()` gives. Each of these calls may add to what is to be sent.

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

    def __init__(
        self, login: InitiatorLogin, observer: Observer | None = None, queue_depth: int | None = None
    ) -> None:
        self.login = login
        self._max_tasks = min(queue_depth or MAX_TASKS, MAX_TASKS)
        self.heard = False
        self.tasks_on_the_wire = 0
        """How many commands wait for their status; those still queued are not counted."""
        self.pdus = 0
        """How many PDUs have arrived, and Data-Outs were made: a measure of the work that was done."""
        self.has_more_to_send = False
        """Whether `data_to_send` has left something for the next call."""
        self.exchange = Exchange(observer)
        """What commands and other requests share."""
        self.requests = Requests(self.exchange, login.config.cid, self._end_task)
        """What can be asked for beside commands."""
        self._receiver = Receiver(self._header_arrived, self._pdu_arrived)
        self.get_buffer = self._receiver.get_buffer
        """Returns the memory that the next bytes from the target belong into."""
        self._observer = observer
        self._queue: deque[Task] = deque()
        self.submit: Callable[[Task], None] = self._queue.append
        """Queues a task: `data_to_send` numbers it when the command window is open (section 4.2.2.1)."""
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

    @property
    def bytes_left(self) -> int | None:
        """How many bytes of the PDU that is arriving are to come; None while its header is not whole."""
        return self._receiver.bytes_left

    def buffer_updated(self, count: int) -> bool:
        """Parse *count* bytes that were received into what `get_buffer` returned; return whether there may be
        something to send now.

        Raises ProtocolError for a rule that the target broke, LoginError for a login that cannot go on.
        """
        self.heard = True
        try:
            self._receiver.buffer_updated(count)
        except IscsifsError:
            self.connection_lost()
            self.exchange.sender.clear()
            raise
        sender = self.exchange.sender
        return bool(sender.framed or sender.waiting or self._queue or self.requests.unsent_texts)

    def receive_eof(self) -> None:
        """The target has closed the connection. Raises ConnectionClosed unless that ends a
        logout."""
        state = self.state
        self.connection_lost()
        if state not in (ConnectionState.IN_LOGOUT, ConnectionState.FREE):
            where = " in the middle of a PDU" if self._receiver.in_pdu else ""
            raise ConnectionClosed(f"the target closed the connection{where}")

    def connection_lost(self) -> None:
        """The transport connection is lost or given up. A connection that has ended stays as it is."""
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
        buffers, sender.framed = sender.framed, []
        if sender.waiting:
            self.pdus += sender.frame_waiting(buffers)
        self.has_more_to_send = bool(sender.waiting)
        if not self.has_more_to_send:
            requests.unsent_answers = 0
        return buffers

    # Commands.

    def tasks(self) -> Iterator[Task]:
        """Give the tasks on the wire in the order of their sending, then those that wait for the window."""
        yield from (request for request in self.exchange.requests.values() if isinstance(request, Task))
        yield from self._queue

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
            others = [task for task in self._queue if not condition(task)]
            self._queue.clear()
            self._queue.extend(others)
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
        """Number and frame what is queued, as far as the command window is open (section 4.2.2.1)."""
        exchange, queue = self.exchange, self._queue
        if exchange.state is not ConnectionState.LOGGED_IN:
            return
        commands, sender = exchange.commands, exchange.sender
        for _ in range(min(len(queue), self._max_tasks - self.tasks_on_the_wire, commands.window)):
            task = queue[0]
            tag = exchange.new_tag(task)  # without memory it stays in one of the two
            queue.popleft()
            self.tasks_on_the_wire += 1
            command, ahs, immediate_data, burst = task.start(
                self.login.parameters, tag, commands.take_cmd_sn(), exchange.statuses.exp_stat_sn
            )
            sender.send(command, immediate_data, ahs)
            if burst is not None:
                sender.send_sequence(burst)

    def _end_task(self, task: Task) -> None:
        exchange = self.exchange
        del exchange.requests[task.initiator_task_tag]
        exchange.events.append(task)
        self.tasks_on_the_wire -= 1
        if task.residual and task.residual_is_odd:
            exchange.note_once(
                "the target counts a residual where all data were moved, against RFC 7143 section 11.4.5"
            )

    # Receiving.

    def _header_arrived(self, pdu: Pdu, ahs: bytes, length: int) -> memoryview | None:
        exchange = self.exchange
        if isinstance(pdu, DataIn) and exchange.state is not ConnectionState.IN_LOGIN:
            task = exchange.requests.get(pdu.initiator_task_tag)
            if isinstance(task, Task):
                return task.data_in_announced(pdu, length)
            self._check_late(pdu)
            return None
        if length and isinstance(pdu, (R2T, TaskManagementResponse, LogoutResponse)):
            raise ProtocolError("it has a data segment", section="11.2.1.6", pdu=pdu_name(pdu))
        return None

    def _pdu_arrived(self, pdu: Pdu, ahs: bytes, data: memoryview) -> None:
        self.pdus += 1
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
        for end in (self._receiver, exchange.sender):
            end.header_digest = login.parameters.header_digest
            end.data_digest = login.parameters.data_digest
        self._receiver.max_data_segment_length = login.parameters.max_recv_data_segment_length
        exchange.events.append(LoggedIn())

    def _check_late(self, pdu: DataIn | ScsiResponse | R2T) -> None:
        """Raise ProtocolError unless *pdu*, which belongs to no task, does belong to one that was aborted."""
        if pdu.initiator_task_tag not in self.exchange.late_tags:
            raise self.exchange.unknown_tag(pdu.initiator_task_tag, pdu)

    def _data_in(self, pdu: DataIn, data: memoryview) -> None:
        exchange = self.exchange
        if pdu.flags & DATA_IN_STATUS:
            exchange.statuses.count(pdu)
        task = exchange.requests.get(pdu.initiator_task_tag)
        if not isinstance(task, Task):
            self._check_late(pdu)
        elif pdu.data_sn == task.next_data_sn:  # otherwise a repetition
            task.data_in_arrived(pdu, len(data))
            if task.ended:
                self._end_task(task)

    def _scsi_response(self, pdu: ScsiResponse, data: memoryview) -> None:
        exchange = self.exchange
        exchange.statuses.count(pdu)
        task = exchange.requests.get(pdu.initiator_task_tag)
        if isinstance(task, Task):
            task.response_arrived(pdu, data)
            self._end_task(task)
            return
        self._check_late(pdu)
        if pdu.status == CHECK_CONDITION:
            # Nobody waits for the status, but a unit attention is reported once only (SAM-5 section 5.14).
            lun = exchange.late_tags[pdu.initiator_task_tag]
            exchange.events.append(SenseReported(lun, read_sense(data, "SCSI_RESPONSE")))

    def _r2t(self, pdu: R2T, data: memoryview) -> None:
        exchange = self.exchange
        task = exchange.requests.get(pdu.initiator_task_tag)
        if not isinstance(task, Task):
            self._check_late(pdu)
            return
        burst = task.solicited(pdu, self.parameters, exchange.statuses.exp_stat_sn)
        if burst is not None:
            exchange.sender.send_sequence(burst)
