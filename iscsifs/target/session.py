"""One session on its one connection: bytes moved, commands carried out (trio)."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from iscsifs.errors import IscsifsError, ProtocolError, TransportError
from iscsifs.iscsi.framing import Buffer, Receiver
from iscsifs.iscsi.pdu import Pdu, TargetPdu, TaskFunction, TaskResponse
from iscsifs.iscsi.states import TARGET_SESSION_STATES, SessionState
from iscsifs.iscsi.text import Pair
from iscsifs.target.connection import TARGET_RESETS, Connection
from iscsifs.target.device import Device
from iscsifs.target.login import TargetLogin
from iscsifs.target.script import Script
from iscsifs.target.task import Task
from iscsifs.target.unit import COMMANDS_CLEARED, WRITE_ERROR, Nexus, Operation, Result, failed, sense_of
from iscsifs.target.wire import Wire

if TYPE_CHECKING:
    from iscsifs.target.server import Server

_Arrived = tuple[Pdu, bytes, memoryview]


class Session(Nexus):
    """The session on *wire*; `device` is None before the end of the login and in discovery.

    `failure` is what ended it; None after a logout, or where the initiator has closed the connection.
    """

    def __init__(self, server: "Server", wire: Wire, login: TargetLogin, number: int) -> None:
        self.wire = wire
        self.number = number
        self.device: Device | None = None
        self.failure: IscsifsError | None = None
        self.ended = trio.Event()
        self.connection = Connection(login, self)
        self._server = server
        self._script = server.script
        self._arrived: list[_Arrived] = []
        self._responses, self._to_respond = trio.open_memory_channel[tuple[TargetPdu, Buffer]](math.inf)
        self._responded = trio.Event()
        if self._script is None:
            self._responded.set()
            self._receiver = Receiver(
                self.connection.header_arrived, self.connection.pdu_arrived, ahs_allowed=True
            )
        else:
            self._receiver = Receiver(
                lambda pdu, ahs, length: None, lambda *pdu: self._arrived.append(pdu), ahs_allowed=True
            )

    async def run(self) -> None:
        """Serve the connection until either side ends it."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_login)
                if self._script is not None:
                    await self._script.connected(self)
                    nursery.start_soon(self._respond, self._script)
                await self._serve(nursery)
                nursery.cancel_scope.cancel()
        finally:
            self.connection.connection_lost()
            self.wire.close()

    @property
    def state(self) -> SessionState:
        """The state of section 8.3.2."""
        return TARGET_SESSION_STATES[self.connection.state]

    async def flush(self) -> None:
        """Send the PDUs that the connection has queued; callers of its methods call this afterwards."""
        responses = self.connection.pdus_to_send()
        if self._script is not None:
            for response in responses:
                self._responses.send_nowait(response)
        elif responses:
            await self.wire.send_buffers(
                [buffer for pdu, data in responses for buffer in self.wire.frame(pdu, data)]
            )

    # What the connection asks for.

    def logged_in(self) -> None:
        """Take the place of an older session of the same name, and turn the digests on."""
        login = self.connection.login
        self._server.establish(self)
        self._receiver.header_digest = self.wire.header_digest = login.parameters.header_digest
        self._receiver.data_digest = self.wire.data_digest = login.parameters.data_digest
        self._receiver.max_data_segment_length = login.parameters.max_recv_data_segment_length

    def prepare(self, lun: int, cdb: bytes) -> Operation:
        """Check a command."""
        assert self.device is not None, "a discovery session has no commands"
        return self.device.prepare(self, lun, cdb)

    def manage(self, function: TaskFunction, lun: int) -> TaskResponse:
        """Carry out a task management function on units and other sessions (SAM-5 section 7)."""
        assert self.device is not None, "a discovery session has no tasks"
        others = [
            other for other in self._server.sessions if other.device is self.device and other is not self
        ]
        if function in TARGET_RESETS:
            for unit in self.device.units.values():
                unit.reset(self)
            for other in others:
                other.connection.abort()
                if function is TaskFunction.TARGET_COLD_RESET:
                    other.wire.close()
            return TaskResponse.COMPLETE
        unit_of_lun = self.device.unit(lun)
        if unit_of_lun is None:
            return TaskResponse.NO_SUCH_LUN
        if function is TaskFunction.LOGICAL_UNIT_RESET:
            unit_of_lun.reset(self)
        if function is not TaskFunction.ABORT_TASK_SET:
            for other in others:
                if other.connection.abort(lun) and function is TaskFunction.CLEAR_TASK_SET:
                    unit_of_lun.establish_attention_for(other, COMMANDS_CLEARED)
        return TaskResponse.COMPLETE

    def send_targets(self, value: str) -> list[Pair]:
        """Answer SendTargets."""
        return self._server.send_targets(self, value)

    # Receiving and carrying out.

    async def _watch_login(self) -> None:
        await trio.sleep(self._server.login_timeout)
        if self.state in (SessionState.FREE, SessionState.ACTIVE):
            self.failure = TransportError(f"no login within {self._server.login_timeout:g} s")
            self.wire.close()

    async def _serve(self, nursery: trio.Nursery) -> None:
        while count := await self.wire.receive(self._receiver.get_buffer()):
            try:
                self._receiver.buffer_updated(count)
                await self._take_arrived()
            except ProtocolError as exc:
                self.failure = exc
                self.connection.fail(exc)
            for task in self.connection.tasks():
                result = task.operation.run(task.data)
                if result.sync is None:
                    self.connection.complete(task, result)
                else:
                    nursery.start_soon(self._complete_later, task, result, result.sync)
            await self.flush()
            if self.connection.closing:
                self._responses.close()
                await self._responded.wait()
                return

    async def _complete_later(self, task: Task, result: Result, sync: Callable[[], None]) -> None:
        """Complete *task* when its data are on the medium."""
        try:
            await trio.to_thread.run_sync(sync)
        except OSError as exc:
            result = failed(sense_of(exc, WRITE_ERROR))
        self.connection.complete(task, result)
        await self.flush()

    # With a script, requests and responses pass through it.

    async def _take_arrived(self) -> None:
        arrived, self._arrived = self._arrived, []
        for pdu, ahs, data in arrived:
            assert self._script is not None
            wanted = await self._script.request(self, pdu, data)
            if self.wire.closed:  # meanwhile; another session may have taken the place of this one
                return
            if wanted:
                self.connection.pdu_arrived(pdu, ahs, data)

    async def _respond(self, script: Script) -> None:
        async for pdu, data in self._to_respond:
            await script.response(self, pdu, data)
        self._responded.set()
