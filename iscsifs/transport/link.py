"""A connection on a socket: the bytes of `iscsi.connection.Connection`, moved by trio.

One function reads from the socket, and one writes to it. What a caller queues while the line is quiet is
sent at once, and the caller may `busy_poll` for the answer; while much is under way it is left to the sender
task, which takes what all callers queued in this turn of the loop and sends it in one system call.

The target says how much there is to receive, and by R2T how much to send. So the work of one turn of the
event loop is bounded here, by reads and by PDUs (`Connection.pdus`); the rest stays in the socket until the
next turn.
"""

import errno
import fcntl
import socket
import struct
import termios
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

import trio

from iscsifs.errors import ConnectionClosed, IscsifsError, PathLost, TransportError
from iscsifs.iscsi.connection import Connection
from iscsifs.iscsi.events import Event, Logout, Management, Ping, Text
from iscsifs.iscsi.framing import Buffer
from iscsifs.iscsi.login import Redirect
from iscsifs.iscsi.names import Portal
from iscsifs.iscsi.pdu import TaskFunction
from iscsifs.iscsi.task import Task
from iscsifs.iscsi.text import Pair
from iscsifs.limits import MAX_PDUS, MAX_READS
from iscsifs.transport.polling import NO_POLLER, Poller
from iscsifs.transport.tap import MakeRecorder, tapped

_R = TypeVar("_R")

MAX_BUFFERS: Final = 1024
"""Buffers for one `sendmsg` (IOV_MAX on Linux)."""

QUIET: Final = 2
"""With fewer commands on the wire a new one is sent at once instead of together with others."""


class Link:
    """A `Connection` on a connected, non-blocking socket.

    Any failure ends the link for good: `failure` then holds the reason, and `run` returns. *poller* is
    for `busy_poll`.
    """

    def __init__(self, sock: socket.socket, connection: Connection, poller: Poller = NO_POLLER) -> None:
        self.connection = connection
        self.failure: IscsifsError | None = None
        self._socket = sock
        self._early: list[Event] = []  # what came right behind the last login response
        self._unsent: list[Buffer] = []  # taken from the connection, but the socket is full
        self._sent = 0
        self._watched = poller.watch(sock.fileno())
        self._alone = False  # there was only one command under way lately
        self._drained = True  # the last read took all that there was
        self._turn_ends = 0  # at so many PDUs
        self._idle_sender: trio.lowlevel.Task | None = None
        self._scope = trio.CancelScope()

    @property
    def peer_address(self) -> str:
        """The address of the other end. Raises TransportError where the connection is gone already."""
        try:
            return str(self._socket.getpeername()[0])
        except OSError as error:
            raise self._lost(error) from None

    @property
    def ends(self) -> tuple[str, str] | None:
        """The addresses and ports of this end and of the other; None where the connection is gone."""
        if self.failure is not None:
            return None
        try:
            local, peer = self._socket.getsockname(), self._socket.getpeername()
        except OSError:
            return None
        return str(Portal(*local[:2])), str(Portal(*peer[:2]))

    async def log_in(self) -> Redirect | None:
        """Exchange login PDUs until the full feature phase, or until the target redirects the login.

        The caller sets the deadline. Raises LoginError, ProtocolError or TransportError; the caller closes
        the link then.
        """
        events: list[Event] = []
        self.flush()
        while not events:
            while self._unsent and self.failure is None:
                await trio.lowlevel.wait_writable(self._socket)
                self.flush()
            if self.failure:
                raise self.failure
            await trio.lowlevel.wait_readable(self._socket)
            self._receive(events.append)
        outcome, *self._early = events
        return outcome if isinstance(outcome, Redirect) else None

    async def run(self, on_event: Callable[[Event], None]) -> None:
        """Move bytes and give events to *on_event* until the link fails or is closed; never raises the
        failure."""
        try:
            early, self._early = self._early, []
            for event in early:
                on_event(event)
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._watched.callback = partial(self._receive_once, on_event)
                    nursery.start_soon(self._guarded, self._send_loop)
                    nursery.start_soon(self._guarded, self._receive_loop, on_event)
        finally:
            self.close()

    def fail(self, failure: IscsifsError) -> None:
        """End the link because of *failure*; the first one counts."""
        if self.failure is None:
            self.failure = failure
            self.connection.connection_lost()
        self._watched.close()
        self._scope.cancel()

    def record(self, make: MakeRecorder) -> bool:
        """Have *make* choose who records the connection, which is logged in, from here on.

        Returns False within a header, where nobody can tell how long it is: then it may be tried again.
        """
        left = self.connection.bytes_left
        if left is None or self.failure is not None:
            return False
        parameters = self.connection.parameters
        self._socket = tapped(
            self._socket,
            make,
            (parameters.header_digest, parameters.data_digest),
            skip_sent=sum(map(len, self._unsent)),
            skip_received=left,
        )
        return True

    def close(self) -> None:
        """Close the socket and end `run`."""
        self.fail(TransportError("the connection was closed"))
        self._socket.close()

    # What can be asked of the target. Each is sent at once, or with what others ask for, if the line is busy.

    def submit(self, task: Task) -> None:
        """Send a command; its `on_end` is called when it has ended, perhaps before this returns.

        Raises PathLost once the link has failed. Where there is no memory for the command the link ends, and
        the command is handed back.
        """
        if self.failure is not None:
            raise PathLost(sent=False)
        connection = self.connection
        others = connection.tasks_on_the_wire
        try:
            connection.submit(task)
            if others:
                self._alone = False
            if others < QUIET:
                self.flush()
            elif self._idle_sender is not None:
                self._wake_sender()
        except MemoryError:
            self.fail(TransportError("no memory to send a command"))
            if task not in connection.tasks():
                raise PathLost(sent=False) from None

    def abort_task(self, task: Task) -> Management:
        """Send ABORT TASK."""
        return self._asked(self.connection.requests.abort_task(task))

    def reset(self, function: TaskFunction, lun: int) -> Management:
        """Send a task management function that ends all tasks of *lun*."""
        return self._asked(self.connection.requests.reset(function, lun))

    def repeat(self, management: Management) -> Management:
        """Send a task management function again that was refused for want of room."""
        return self._asked(self.connection.requests.repeat(management))

    def ping(self) -> Ping:
        """Send a NOP-Out that asks for an echo."""
        return self._asked(self.connection.requests.ping())

    def send_text(self, pairs: list[Pair]) -> Text:
        """Send a Text Request."""
        return self._asked(self.connection.requests.send_text(pairs))

    def log_out(self) -> Logout:
        """Send a Logout Request that closes the session."""
        return self._asked(self.connection.requests.log_out())

    def _asked(self, request: _R) -> _R:
        self.flush()
        return request

    def busy_poll(self) -> None:
        """Busy-poll for the answer, if one command alone is under way, and so was the last."""
        connection = self.connection
        alone, self._alone = self._alone, connection.tasks_on_the_wire == 1
        if alone:
            self._turn_ends = connection.pdus + MAX_PDUS
            watched = self._watched
            while connection.tasks_on_the_wire == 1 and watched.callback is not None and watched.poll():
                watched.callback()

    def _receive_once(self, on_event: Callable[[Event], None]) -> None:
        """Receive once, outside of the receive loop, unless it was enough for this turn."""
        if self.connection.pdus < self._turn_ends:
            try:
                self._receive(on_event)
            except (IscsifsError, MemoryError) as error:
                self._break(error)

    def progress(self) -> tuple[int, int]:
        """Return (bytes acknowledged by TCP, bytes not yet acknowledged).

        While the first number grows the target is alive, even if it sends nothing.
        """
        try:
            (kept,) = struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))
        except OSError:
            kept = 0  # the connection is about to fail
        return self._sent - kept, kept + sum(map(len, self._unsent))

    def _wake_sender(self) -> None:
        if self._idle_sender is not None:
            trio.lowlevel.reschedule(self._idle_sender)
            self._idle_sender = None

    async def _guarded(self, loop: Callable[..., Awaitable[None]], *args: object) -> None:
        try:
            await loop(*args)
        except (IscsifsError, MemoryError) as error:
            self._break(error)

    def _break(self, error: IscsifsError | MemoryError) -> None:
        """End the link after *error*: a PDU was received in part, and its bytes cannot be received again."""
        self.fail(error if isinstance(error, IscsifsError) else TransportError("no memory for what comes"))

    async def _receive_loop(self, on_event: Callable[[Event], None]) -> None:
        connection = self.connection
        while self.failure is None:
            await trio.lowlevel.wait_readable(self._socket)
            self._turn_ends = connection.pdus + MAX_PDUS
            for _ in range(MAX_READS):
                self._receive(on_event)
                if self._drained or self.failure is not None or connection.pdus >= self._turn_ends:
                    break

    def _receive(self, on_event: Callable[[Event], None]) -> None:
        """Receive once, tell *on_event* what has happened, and send what answers it.

        Raises ProtocolError or LoginError for a rule that the target broke, TransportError at the stream's
        end.
        """
        connection = self.connection
        buffer = connection.get_buffer()
        try:
            count = self._socket.recv_into(buffer)
        except BlockingIOError:
            self._drained = True
            return
        except OSError as error:
            raise self._lost(error) from None
        try:
            if not count:
                connection.receive_eof()
                raise TransportError("the target closed the connection after the logout")
            self._drained = count < len(buffer)
            is_asked = connection.buffer_updated(count)
        finally:  # also the events from before a rule was broken
            for event in connection.events():
                try:
                    on_event(event)
                except MemoryError as error:  # the other events are delivered all the same
                    self._break(error)
        if is_asked:
            self.flush()

    async def _send_loop(self) -> None:
        while True:
            self.flush()
            if self._unsent:
                await trio.lowlevel.wait_writable(self._socket)
            elif self.connection.has_more_to_send:
                await trio.lowlevel.checkpoint()
            else:
                self._idle_sender = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._abort_wait)

    def _abort_wait(self, _: object) -> trio.lowlevel.Abort:
        self._idle_sender = None
        return trio.lowlevel.Abort.SUCCEEDED

    def flush(self) -> None:
        """Send what the connection has queued by one system call; the sender task sends what is left.

        This is the one place that writes to the socket.
        """
        if self.failure is not None:
            return
        unsent = self._unsent or self.connection.data_to_send()
        if not unsent:
            return
        try:
            sent = self._socket.sendmsg(unsent[:MAX_BUFFERS])
        except BlockingIOError:
            self._unsent = unsent
            self._wake_sender()
            return
        except OSError as error:
            self.fail(self._lost(error))
            return
        self._sent += sent
        self._unsent = _behind(unsent, sent) if sent < sum(map(len, unsent)) else []
        if self._unsent or self.connection.has_more_to_send:
            self._wake_sender()

    def _lost(self, error: OSError) -> TransportError:
        kind = ConnectionClosed if error.errno in (errno.ECONNRESET, errno.EPIPE) else TransportError
        return kind(f"the connection was lost: {error.strerror}")


def _behind(buffers: list[Buffer], sent: int) -> list[Buffer]:
    """Return what is left of *buffers* behind their first *sent* bytes."""
    for index, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:], *buffers[index + 1 :]]
        sent -= len(buffer)
    return []
