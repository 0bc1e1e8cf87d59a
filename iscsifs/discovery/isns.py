"""iSNS (RFC 4171) as a source of targets: they come and go as the server tells."""

import logging
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from iscsifs.discovery.isns_network import Address, Line, Network, Tcp
from iscsifs.discovery.source import Report, Wanted
from iscsifs.errors import ConnectionClosed, IsnsError, TransportError, printable
from iscsifs.iscsi.names import Portal, TargetAddress, name_fault
from iscsifs.isns.client import Client, ClientConfig, Note, TargetsChanged
from iscsifs.isns.messages import OwnPortal
from iscsifs.isns.pdu import Receiver
from iscsifs.isns.states import State
from iscsifs.isns.targets import IsnsTarget, usable_address
from iscsifs.limits import (
    ISNS_FIRST_TIMEOUT,
    ISNS_LEAVE_TIMEOUT,
    ISNS_POLL_INTERVAL,
    ISNS_RESPONSE_TIMEOUT,
    ISNS_SHARE,
    MAX_ISNS_CONNECTIONS,
    NOTES_A_LIST,
)

log = logging.getLogger(__name__)

DEFAULT_PORT: Final = 3205
"""The port of iSNS servers (section 2.9.1)."""

_PIECE: Final = 65536


def parse_server(text: str) -> Portal:
    """Read what a user gives for an iSNS server: ``host``, ``host:port``, ``[address]:port``, IPv6 address.

    Raises ConfigError.
    """
    return Portal.parse(text, DEFAULT_PORT)


class IsnsSource:
    """The targets that an iSNS server knows for an initiator, which is registered there while `run` runs.

    Only targets whose names *wants* takes are reported. *say* is given a sentence for the user, one for each
    event. Targets stay while the server is away.
    """

    def __init__(
        self,
        server: Portal,
        config: ClientConfig,
        say: Callable[[str], None],
        wants: Callable[[str], bool] = lambda name: True,
        network: Network | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._server = server
        self._say_it = say
        self._wants = wants
        self._network = network or Tcp()
        self._client = Client(config, jitter)
        self._hosts: dict[str, str] = {}  # by which a target is shown for as long as it is there
        self._wake = trio.Event()
        self._port = 0
        self._callers = 0
        self._has_told_of_loss = False
        self._is_whole = True  # False while a message is on its way out

    @property
    def name(self) -> str:
        """What the source is called in messages."""
        return f"iSNS server {self._server}"

    @property
    def state(self) -> State:
        """What we and the server have to do with each other."""
        return self._client.state

    @property
    def entity_id(self) -> str | None:
        """The entity that the server has registered us in, fit for a terminal."""
        return None if self._client.entity_id is None else printable(self._client.entity_id)

    async def run(self, report: Report) -> None:
        """Give *report* the targets whenever they have changed, until this is cancelled; then deregister.

        Whatever happens to the server or the connection, this goes on; the end takes 2 s at most. Where the
        server tells of no targets within ISNS_FIRST_TIMEOUT, none are reported, so that nobody waits for it.
        """
        told = trio.Event()

        def tell(targets: Sequence[Wanted]) -> None:
            told.set()
            report(targets)

        async def tell_in_time() -> None:
            with trio.move_on_after(ISNS_FIRST_TIMEOUT):
                await told.wait()
            if not told.is_set():
                tell([])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell_in_time)
            await self._keep_in_touch(tell)

    async def _keep_in_touch(self, report: Report) -> None:
        """Connect again and again, with pauses."""
        while True:
            try:
                line = await self._network.connect(self._server)
                try:
                    await self._serve(line, report)
                finally:
                    await trio.aclose_forcefully(line.stream)
            except (TransportError, IsnsError) as error:
                self._lost(str(error).removeprefix(f"{self._server}: "))
            await trio.sleep(self._client.reconnect_pause())

    async def _serve(self, line: Line, report: Report) -> None:
        """Be a client on *line* until it is lost, which raises TransportError or IsnsError."""
        self._wake, self._is_whole, self._callers = trio.Event(), True, 0
        failures: list[TransportError | IsnsError] = []
        try:
            async with trio.open_nursery() as nursery:

                async def work(task: Callable[[Line], Awaitable[None]]) -> None:
                    try:
                        await task(line)
                    except (TransportError, IsnsError) as error:
                        failures.append(error)
                    except Exception:  # which must not end the mount
                        log.exception("%s: unexpected error, please report it", self.name)
                        failures.append(IsnsError("the connection is closed"))
                    nursery.cancel_scope.cancel()

                self._port = await self._network.listen(
                    nursery, line.local, self._port, partial(self._serve_caller, line.peer)
                )
                self._client.connected(trio.current_time(), line.local, self._port)
                nursery.start_soon(work, self._read)
                nursery.start_soon(work, partial(self._write, report))
        finally:
            if trio.current_effective_deadline() == -math.inf:
                with trio.move_on_after(ISNS_LEAVE_TIMEOUT, shield=True):
                    await self._leave(line)
            self._client.disconnected(trio.current_time())
        raise failures[0]

    async def _read(self, line: Line) -> None:
        """Hand to the client what comes."""
        while True:
            data = await _receive(line)
            async with _share_of_time():
                self._client.receive(data, trio.current_time())
                self._wake.set()

    async def _write(self, report: Report, line: Line) -> None:
        """Do what the client wants, at once or at its deadline; the only task that writes to the server."""
        while True:
            self._take_events(report)
            if (portal := self._client.probe) is not None:
                self._client.probed(await self._is_served(portal), trio.current_time())
            elif data := self._client.data_to_send():
                self._is_whole = False
                await _send(line, data)
                self._is_whole = True
            else:
                deadline = self._client.deadline
                with trio.move_on_at(math.inf if deadline is None else deadline):
                    await self._wake.wait()
                self._wake = trio.Event()
                self._client.tick(trio.current_time())

    async def _leave(self, line: Line) -> None:
        """Deregister, if the connection is still of use."""
        if not self._is_whole:
            return
        self._client.leave(trio.current_time())
        try:
            while self._client.state is State.LEAVING:
                await _send(line, self._client.data_to_send())
                self._client.receive(await _receive(line), trio.current_time())
                self._take_events(lambda targets: None)
        except (TransportError, IsnsError) as error:
            self._say(f"it is left without a deregistration: {error}")

    async def _is_served(self, portal: OwnPortal) -> bool:
        """Return whether anybody listens at a portal of this host."""
        address = usable_address(portal.address)
        if address is None or not 0 < portal.port < 1 << 16:
            return True
        return await self._network.is_served(address, portal.port)

    # What the server sends to our port.

    async def _serve_caller(self, server: Address, line: Line) -> None:
        """Answer the messages of the *server*, at another address than which nobody is listened to."""
        if line.peer != server:
            self._say(f"a connection from {line.peer}, which is not the server, was closed")
        elif self._callers == MAX_ISNS_CONNECTIONS:
            self._say(f"a connection was closed: there are {MAX_ISNS_CONNECTIONS} already")
        else:
            self._callers += 1
            try:
                await self._answer(line)
            except (TransportError, IsnsError) as error:
                log.debug("%s: a connection to our port: %s", self.name, error)
            except Exception:  # which must not end the mount
                log.exception("%s: unexpected error, please report it", self.name)
            finally:
                self._callers -= 1
        await trio.aclose_forcefully(line.stream)

    async def _answer(self, line: Line) -> None:
        """Answer messages until the other end closes *line*, or falls silent."""
        receiver = Receiver()
        while True:
            deadline = receiver.deadline
            idle = trio.current_time() + ISNS_POLL_INTERVAL
            with trio.move_on_at(idle if deadline is None else deadline) as scope:
                data = await _receive(line)
            if scope.cancelled_caught:
                raise IsnsError("nothing came for too long")
            async with _share_of_time():
                for message in receiver.receive(data, trio.current_time()):
                    response = self._client.inquire(message, trio.current_time())
                    self._wake.set()
                    if response is not None:
                        await _send(line, response.pack())

    # What the user is told.

    def _take_events(self, report: Report) -> None:
        """Report and say what has happened; raises IsnsError where the connection has to be closed."""
        for event in self._client.take_events():
            if isinstance(event, TargetsChanged):
                self._has_told_of_loss = False
                report(self._wanted(event.targets))
            elif isinstance(event, Note):
                self._say(event.sentence)
            else:
                raise IsnsError(event.reason)

    def _wanted(self, targets: Sequence[IsnsTarget]) -> list[Wanted]:
        """Return the *targets* that are wanted and can be logged in to, in the order of their names."""
        wanted, left_out = [], 0
        for target in sorted(targets, key=lambda target: target.name):
            if fault := name_fault(target.name) or ("" if target.portals else "it has no portal"):
                left_out += 1
                if left_out <= NOTES_A_LIST:
                    self._say(f'left out target "{printable(target.name)}": {fault}')
            elif self._wants(target.name):
                portals = [TargetAddress(Portal(str(p.address), p.port), p.tag) for p in target.portals]
                first = min(target.portals, key=lambda portal: (portal.address.version, int(portal.address)))
                host_name = self._hosts.get(target.name, str(first.address))
                wanted.append(Wanted(host_name, target.name, tuple(portals)))
        if left_out > NOTES_A_LIST:
            self._say(f"left out {left_out - NOTES_A_LIST} more")
        self._hosts = {target.name: target.host_name for target in wanted}
        return wanted

    def _lost(self, why: str) -> None:
        """Say that the server is away, once for each time."""
        if not self._has_told_of_loss:
            self._has_told_of_loss = True
            self._say(f"{why}; its targets stay, and it is tried again")

    def _say(self, sentence: str) -> None:
        self._say_it(f"{self.name}: {sentence}")


async def _receive(line: Line) -> bytes:
    """Return the next bytes of *line*; raises ConnectionClosed at its end."""
    try:
        data = await line.stream.receive_some(_PIECE)
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise ConnectionClosed("the connection was reset") from error
    if not data:
        raise ConnectionClosed("the connection was closed by the server")
    return bytes(data)


async def _send(line: Line, data: bytes) -> None:
    """Send *data*, which has to be taken in time; raises TransportError."""
    try:
        with trio.fail_after(ISNS_RESPONSE_TIMEOUT):
            await line.stream.send_all(data)
    except trio.TooSlowError:
        raise TransportError(f"nothing is taken for {ISNS_RESPONSE_TIMEOUT:g} s") from None
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise ConnectionClosed("the connection was reset") from error


@asynccontextmanager
async def _share_of_time() -> AsyncIterator[None]:
    """Let what is done here take no more than ISNS_SHARE of the time: others wait for the event loop."""
    begun = time.perf_counter()
    yield
    await trio.sleep((time.perf_counter() - begun) * (1 / ISNS_SHARE - 1))
