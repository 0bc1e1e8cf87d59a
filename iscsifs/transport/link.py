"""A connection on a socket: the bytes of `iscsi.connection.Connection`, moved by trio.

One function reads from the socket, and one writes to it. What a caller queues while the line is quiet is
sent at once, and it may `linger` for the answer; while much is under way it is left to the sender task, which
takes what all callers queued in this turn of the loop and sends it in one system call.
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
from iscsifs.iscsi.pdu import TaskFunction
from iscsifs.iscsi.task import Task
from iscsifs.iscsi.text import Pair
from iscsifs.limits import MAX_READS
from iscsifs.transport.polling import NO_POLLER, Poller
from iscsifs.transport.tap import MakeRecorder, tapped

_R = TypeVar("_R")

MAX_BUFFERS: Final = 1024
"""Buffers for one `sendmsg` (IOV_MAX on Linux)."""

QUIET: Final = 2
"""Commands on the wire up to which a new one is sent at once instead of together with others."""


class Link:
    """A `Connection` on a connected, non-blocking socket.

    Any failure ends the link for good: `failure` then holds the reason, and `run` returns. *poller* is
    for `linger`.
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
        self._idle_sender: trio.lowlevel.Task | None = None
        self._scope = trio.CancelScope()

    @property
    def peer_address(self) -> str:
        """The address of the other end. Raises TransportError where the connection is gone already."""
        try:
            return str(self._socket.getpeername()[0])
        except OSError as error:
            raise self._lost(error) from None

    async def log_in(self) -> Redirect | None:
        """Exchange login PDUs until the full feature phase, or until the target sends us elsewhere.

        The caller sets the deadline. Raises LoginError, ProtocolError or TransportError; the caller closes
        the link then.
        """
        while True:
            self._flush()
            while self._unsent and self.failure is None:
                await trio.lowlevel.wait_writable(self._socket)
                self._flush()
            if self.failure:
                raise self.failure
            await self._readable()
            self._receive()
            if events := self.connection.events():
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
                    self._watched.callback = partial(self._receive_once, on_event, nursery)
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
        """Send a command. Where there is no memory for it the link ends, and the command is handed back."""
        try:
            self.connection.submit(task)
            self.kick()
        except MemoryError:
            self.fail(TransportError("no memory to send a command"))
            if task not in self.connection.tasks():
                raise PathLost(sent=False) from None

    def abort_task(self, task: Task) -> Management:
        """Send ABORT TASK."""
        return self._asked(self.connection.abort_task(task))

    def reset(self, function: TaskFunction, lun: int) -> Management:
        """Send a task management function that ends all tasks of *lun*."""
        return self._asked(self.connection.reset(function, lun))

    def repeat(self, management: Management) -> Management:
        """Send a task management function again that was refused for want of room."""
        return self._asked(self.connection.repeat(management))

    def ping(self) -> Ping:
        """Send a NOP-Out that asks for an echo."""
        return self._asked(self.connection.ping())

    def send_text(self, pairs: list[Pair]) -> Text:
        """Send a Text Request."""
        return self._asked(self.connection.send_text(pairs))

    def log_out(self) -> Logout:
        """Send a Logout Request that closes the session."""
        return self._asked(self.connection.log_out())

    def _asked(self, request: _R) -> _R:
        self.kick()
        return request

    def kick(self) -> None:
        """See that what the connection has queued is sent: now, or with what others queue, if the line is
        busy."""
        under_way = self.connection.tasks_on_the_wire
        if under_way > 1:
            self._alone = False
        if under_way <= QUIET:
            self._flush()
        else:
            self._wake_sender()

    def linger(self) -> None:
        """Busy-poll for the answer, if one command alone is under way, and so was the last."""
        connection = self.connection
        alone, self._alone = self._alone, connection.tasks_on_the_wire == 1
        if alone and not connection.has_rest:
            connection.begin_turn()
            watched = self._watched
            while connection.tasks_on_the_wire == 1 and watched.callback is not None and watched.poll():
                watched.callback()

    def _receive_once(self, on_event: Callable[[Event], None], nursery: trio.Nursery) -> None:
        """Receive once, outside of the receive loop."""
        if self.connection.has_rest:
            return
        try:
            self._take(on_event)
        except (IscsifsError, MemoryError) as error:
            self._break(error)
        if self.connection.has_rest:  # of which the socket tells nobody
            nursery.start_soon(self._guarded, self._receive_all, on_event)

    def progress(self) -> tuple[int, int]:
        """Return how many bytes the other end has taken so far, and how many wait for that.

        The first says that somebody is there even while nothing comes back.
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
        """End the link after *error*: what has come is read in part, and cannot be read again."""
        self.fail(error if isinstance(error, IscsifsError) else TransportError("no memory for what comes"))

    async def _receive_loop(self, on_event: Callable[[Event], None]) -> None:
        while self.failure is None:
            await self._readable()
            await self._receive_all(on_event)

    async def _receive_all(self, on_event: Callable[[Event], None]) -> None:
        """Receive until there is no more; others have their turn now and then."""
        connection = self.connection
        while self.failure is None:
            connection.begin_turn()
            for _ in range(MAX_READS):
                self._take(on_event)
                if connection.has_rest:
                    break
                if self._drained:
                    return
            await trio.lowlevel.checkpoint()

    async def _readable(self) -> None:
        await trio.lowlevel.wait_readable(self._socket)

    def _take(self, on_event: Callable[[Event], None]) -> None:
        """Receive once, tell what has happened, and answer."""
        try:
            self._receive()
        finally:  # also what had happened before a rule was broken
            for event in self.connection.events():
                try:
                    on_event(event)
                except MemoryError as error:  # the others are told all the same
                    self._break(error)
        self._flush()

    def _receive(self) -> None:
        """Receive once, what there is, or look at the rest; raises TransportError at the stream's end."""
        connection = self.connection
        if connection.has_rest:
            connection.buffer_updated(0)
            return
        buffer = connection.get_buffer()
        try:
            count = self._socket.recv_into(buffer)
        except BlockingIOError:
            self._drained = True
            return
        except OSError as error:
            raise self._lost(error) from None
        if not count:
            connection.receive_eof()
            raise TransportError("the target closed the connection after the logout")
        self._drained = count < len(buffer)
        connection.buffer_updated(count)

    async def _send_loop(self) -> None:
        while True:
            self._flush()
            if self._unsent:
                await trio.lowlevel.wait_writable(self._socket)
            else:
                self._idle_sender = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._abort_wait)

    def _abort_wait(self, _: object) -> trio.lowlevel.Abort:
        self._idle_sender = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _flush(self) -> None:
        """Send what there is until the socket is full; the one place that writes to it."""
        while self.failure is None:
            if not self._unsent:
                self._unsent = self.connection.data_to_send()
                if not self._unsent:
                    return
            try:
                sent = self._socket.sendmsg(self._unsent[:MAX_BUFFERS])
            except BlockingIOError:
                self._wake_sender()
                return
            except OSError as error:
                self.fail(self._lost(error))
                return
            self._sent += sent
            self._unsent = _behind(self._unsent, sent)

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
