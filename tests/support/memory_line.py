"""A session and its scripted peer, connected in memory: no ports, and a clock that jumps."""

import socket
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from iscsifs.errors import IscsifsError
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.initiator.path import LunPath
from iscsifs.initiator.session import Session
from iscsifs.iscsi.pdu import LoginRequest
from iscsifs.scsi import cdb
from iscsifs.transport.link import Link
from iscsifs.units.path import NOTHING, Attempt
from iscsifs.units.queue import Queue
from support.network import ADDRESS, End, Listener, Network
from support.peer import Peer

INITIATOR = "iqn.2001-04.com.example:initiator"
TARGET = "iqn.2001-04.com.example:target"
LUN = 1 << 48
OTHER_LUN = 2 << 48
READY = cdb.test_unit_ready()


class Line(Listener):
    """What stands between a session's `dial` and a `Peer`, whose listener it is."""

    def __init__(self, options: InitiatorOptions) -> None:
        super().__init__(self._connected)
        self.socket = self
        self.gate = trio.Event()
        """Attempts wait for it, once connected."""
        self.gate.set()
        self._send, self._receive = trio.open_memory_channel[trio.socket.SocketType](1000)
        self.network = Network()
        self.network.hosts[ADDRESS] = self
        self._dialler = self.network.dialler(options, TARGET)

    def _connected(self, far: socket.socket) -> None:
        self._send.send_nowait(trio.socket.from_stdlib_socket(far))

    def getsockname(self) -> tuple[str, int]:
        return (ADDRESS, 3260)

    async def accept(self) -> trio.SocketStream:
        return trio.SocketStream(await self._receive.receive())

    async def aclose(self) -> None:
        while True:
            try:
                self._receive.receive_nowait().close()
            except trio.WouldBlock:
                return

    async def dial(self) -> Link:
        link = await self._dialler()
        try:
            await self.gate.wait()
        except BaseException:
            link.close()
            raise
        return link


class Call:
    """A command to a unit, from its caller's side; `failure` and `done` tell how it ended."""

    def __init__(
        self,
        command: bytes = READY,
        *,
        lun: int = LUN,
        read: int = 0,
        write: bytes = b"",
        probe: bool = False,
    ) -> None:
        self.lun = lun
        self.probe = probe
        self.command = command
        self.buffer = bytearray(read)
        self.data_in = memoryview(self.buffer) if read else NOTHING
        self.data_out = memoryview(write)
        self.task: Attempt | None = None
        self.failure: IscsifsError | None = None
        self.done = trio.Event()
        self.ended_at = 0.0
        self.scope = trio.CancelScope()

    async def run(self, queue: Queue) -> None:
        with self.scope:
            try:
                command = await queue.run(self.command, data_in=self.data_in, data_out=self.data_out)
                self.task = command.attempt
            except IscsifsError as error:
                self.failure = error
            self.ended_at = trio.current_time()
            self.done.set()

    async def succeeded(self) -> None:
        """Wait for the end, which has to be GOOD."""
        with trio.fail_after(10_000):
            await self.done.wait()
        assert self.failure is None, self.failure
        assert self.task is not None
        assert self.task.status == 0

    async def failed(self) -> IscsifsError:
        """Wait for the end, which has to be a failure."""
        with trio.fail_after(10_000):
            await self.done.wait()
        assert self.failure is not None
        return self.failure


class OneAttempt(Call):
    """A command that is sent once, without a queue."""

    async def run(self, queue: Queue) -> None:
        ended = trio.Event()
        with self.scope:
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                self.task = queue.path.send(
                    self.command, self.data_in, self.data_out, lambda attempt: ended.set()
                )
            except IscsifsError as error:
                self.failure = error
            else:
                queue.path.busy_poll()
                try:
                    await ended.wait()
                except trio.Cancelled:
                    queue.path.cancel(self.task)
                    raise
                self.failure = self.task.failure
            self.ended_at = trio.current_time()
            self.done.set()


class Pair:
    """A session, its peer, and the line between them."""

    def __init__(
        self,
        session: Session,
        peer: Peer,
        line: Line,
        nursery: trio.Nursery,
        options: InitiatorOptions,
    ) -> None:
        self.session = session
        self.options = options
        self.peer = peer
        self.line = line
        self.nursery = nursery
        self.scope = trio.CancelScope()
        """That of the session alone."""
        self._calls: deque[Call] = deque()
        self._queues: dict[tuple[int, bool], Queue] = {}

    def queue(self, lun: int = LUN, *, probes: bool = False) -> Queue:
        """The queue of a unit, or the one for questions to it."""
        if (lun, probes) not in self._queues:
            self._queues[lun, probes] = Queue(
                f"LUN {lun:x}",
                LunPath(self.session, lun),
                self.nursery,
                patience=self.options.command_timeout,
                replacement_timeout=self.options.replacement_timeout,
                probes=probes,
            )
        return self._queues[lun, probes]

    async def run(self) -> None:
        with self.scope:
            await self.session.run()

    def forget_queue(self, lun: int = LUN) -> None:
        """Have the next command for *lun* go to a new queue."""
        del self._queues[lun, False]

    def call(self, command: bytes = READY, **options: Any) -> Call:
        """Start a command. Commands begin in the order of the calls, though trio starts tasks in any."""
        return self._start(Call(command, **options))

    def attempt(self, command: bytes = READY, **options: Any) -> Call:
        """Start a command that is sent once, whatever happens to it."""
        return self._start(OneAttempt(command, **options))

    def _start(self, call: Call) -> Call:
        self._calls.append(call)
        self.nursery.start_soon(self._begin)
        return call

    async def _begin(self) -> None:
        call = self._calls.popleft()
        await call.run(self.queue(call.lun, probes=call.probe))

    @property
    def logins(self) -> list[LoginRequest]:
        """The first request of each login."""
        requests = [pdu for pdu, _ in self.peer.received if isinstance(pdu, LoginRequest)]
        return [request for request in requests if request.flags >> 2 & 3 == 0]


NO_KEYS: Mapping[str, str] = {}


@asynccontextmanager
async def pair(
    *,
    keys: Mapping[str, str] = NO_KEYS,
    window: int = 32,
    buffer_size: int = 0,
    end: type[End] = End,
    **options: Any,
) -> AsyncIterator[Pair]:
    """Give a session that is up; *keys* are the target's answers in the login, *options* those of
    `InitiatorOptions`; its socket is an *end*. Pings are off unless they are asked for."""
    config: dict[str, Any] = {"initiator_name": INITIATOR, "ping_interval": 0} | options
    initiator_options = InitiatorOptions(**config)
    line = Line(initiator_options)
    line.buffer_size = buffer_size
    line.network.end = end
    peer = Peer(line)  # type: ignore[arg-type]
    peer.timeout = 1000.0
    peer.window = window
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.login, keys)
        link = await line.dial()
        line.dialled.clear()
        await trio.testing.wait_all_tasks_blocked()
        session = Session(TARGET, line.dial, initiator_options, link)
        both = Pair(session, peer, line, nursery, initiator_options)
        nursery.start_soon(both.run)
        await trio.testing.wait_all_tasks_blocked()
        try:
            yield both
        finally:
            # Without a checkpoint: a Cancelled would take the place of what a test has failed with.
            nursery.cancel_scope.cancel()
            await line.aclose()
            peer.stream.socket.close()
