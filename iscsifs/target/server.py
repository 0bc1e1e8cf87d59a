"""Targets on TCP portals (trio): portals, sessions, and the answer to SendTargets."""

import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from typing import Final, Self

import trio

from iscsifs.errors import ConfigError, TransportError, printable, reason
from iscsifs.iscsi.chap import ChallengeMemory
from iscsifs.iscsi.names import Portal, TargetAddress
from iscsifs.iscsi.text import Pair
from iscsifs.limits import (
    KEEPALIVE_COUNT,
    KEEPALIVE_IDLE,
    KEEPALIVE_INTERVAL,
    LOGIN_TIMEOUT,
    MAX_CONNECTIONS,
)
from iscsifs.target.device import Device
from iscsifs.target.login import TargetConfig, TargetLogin
from iscsifs.target.repeats import Repeats
from iscsifs.target.script import Script
from iscsifs.target.session import Session
from iscsifs.target.wire import Wire

log = logging.getLogger(__name__)

_PAUSE: Final = 0.1
"""Seconds until the next try where nothing can be accepted: most often there are too many open files."""

_SOCKET_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT),
)

ANY_PORT = Portal("127.0.0.1", 0)
"""A free port on loopback."""


_REMEDIES: Final = {
    errno.EADDRINUSE: "; another program listens there, give another port",
    errno.EADDRNOTAVAIL: "; this machine has no such address",
    errno.EACCES: "; ports below 1024 are root's, give another one",
}


class Server:
    """Serves *devices* at *portals*; as an async context manager, from entry to exit::

        async with Server([device]) as server:
            ...  # log in at server.portals[0]
            await server.stop()  # all connections are cut, nobody listens
            server.start()  # at the same ports, with the same devices

    *config* says who is let in and what is negotiated; its `target_names` are those of the devices, whatever
    it says. Where a port is 0 a free one is taken, and kept. A *script* may be put in and taken away at any
    time; it holds for the connections that come. `login_timeout` is in seconds. What connects while there are
    *max_connections* takes the place of a connection that has not logged in: the oldest of those from the
    address that has most of them; or else of a discovery session. Where all have logged in to units, it is
    closed at once.

    Raises ConfigError where a portal cannot be listened at.
    """

    def __init__(
        self,
        devices: Iterable[Device] = (),
        *,
        portals: Sequence[Portal] = (ANY_PORT,),
        config: TargetConfig | None = None,
        script: Script | None = None,
        login_timeout: float = LOGIN_TIMEOUT,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.devices = {device.name: device for device in devices}
        self.portals = tuple(portals)
        self.config = config or TargetConfig(target_names=frozenset())
        self.script = script
        self.login_timeout = login_timeout
        self.max_connections = max_connections
        self.sessions: list[Session] = []
        self._memory = ChallengeMemory()
        self._numbers = count()
        self._listeners: list[socket.socket] = []
        self._accepting = True  # as far as the log knows
        self._repeats = Repeats(log)
        self._serving = trio.CancelScope()
        self._nursery_manager = trio.open_nursery()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        self._listen()
        self._nursery = await self._nursery_manager.__aenter__()
        self._nursery.start_soon(self._accept_all, self._nursery, self._serving, self._listeners[:])
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        self._close_listeners()
        # Not told of the body's exception, the nursery does not wrap it up in a group.
        await self._nursery_manager.__aexit__(None, None, None)
        self._repeats.close()

    def start(self) -> None:
        """Listen at the portals again."""
        assert self._nursery is not None, "the server is an async context manager"
        self._listen()
        self._nursery.start_soon(self._accept_all, self._nursery, self._serving, self._listeners[:])

    async def stop(self) -> None:
        """Close the portals and cut all connections."""
        self.close_portals()
        for session in list(self.sessions):
            session.wire.close()
            await session.ended.wait()

    def close_portals(self) -> None:
        """Close the portals until `start`; connections stay."""
        self._serving.cancel()
        self._close_listeners()

    def drop_connections(self, *, reset: bool = False) -> None:
        """Cut all connections, with RST if *reset*; new ones are welcome."""
        for session in self.sessions:
            if reset:
                session.wire.reset()
            else:
                session.wire.close()

    async def serve(self, sock: socket.socket) -> None:
        """Serve one connection, from its login to its end, on a *sock* that is connected already."""
        await self._serve(self._open(sock))

    def _open(self, sock: socket.socket) -> Session:
        sock.setblocking(False)
        names = frozenset(self.devices)
        number = next(self._numbers)
        login = TargetLogin(
            replace(self.config, target_names=names),
            tsih=number % 0xFFFF + 1,
            random_bytes=os.urandom,
            memory=self._memory,
        )
        session = Session(self, Wire(sock), login, number)
        self.sessions.append(session)
        return session

    async def _serve(self, session: Session) -> None:
        try:
            await session.run()
        finally:
            self._report(session)
            self.sessions.remove(session)
            session.ended.set()

    def _report(self, session: Session) -> None:
        """Log why *session* has ended, unless it was its initiator's wish."""
        login, address = session.connection.login, session.wire.peer_address or "nowhere"
        name = printable(login.initiator_name)
        who = name or "before the login"
        if login.refusal:
            target = printable(login.target_name or "") or "no target"
            self._repeats.warn(
                (address, login.refusal),
                f"login of {name or 'nobody'} from {address} to {target} refused: {login.refusal}",
            )
        elif session.failure is not None:
            failure = str(session.failure)
            self._repeats.warn(
                (address, failure),
                f"connection {session.number} from {address} closed ({who}): {failure}",
            )

    # For the sessions.

    def establish(self, session: Session) -> None:
        """Register a login; it reinstates an older session of the same names and ISID (section 6.3.5)."""
        login = session.connection.login
        session.device = None if login.target_name is None else self.devices[login.target_name]
        for other in self.sessions:
            if (
                other is not session
                and other.device is session.device is not None
                and other.connection.login.initiator_name == login.initiator_name
                and other.connection.isid == session.connection.isid
            ):
                other.connection.reinstated()
                other.wire.close()

    def send_targets(self, session: Session, value: str) -> list[Pair]:
        """Answer SendTargets=*value* (RFC 7143 appendix C)."""
        own = session.connection.login.target_name
        if session.connection.login.discovery:
            names = sorted(self.devices) if value == "All" else [value] if value in self.devices else []
        else:
            names = [own] if own and value in ("", own) else []
        addresses = [
            ("TargetAddress", str(TargetAddress(portal, self.config.portal_group_tag)))
            for portal in self._addresses(session)
        ]
        return [pair for name in names for pair in (("TargetName", name), *addresses)]

    def _addresses(self, session: Session) -> list[Portal]:
        """The portals as this initiator can reach them."""
        wildcards = ("", "0.0.0.0", "::")
        return [
            Portal(session.wire.local_address, portal.port) if portal.host in wildcards else portal
            for portal in self.portals
        ]

    def _listen(self) -> None:
        self._serving = trio.CancelScope()
        try:
            for portal in self.portals:
                self._listeners.append(_listener(portal))
        except ConfigError:
            self._close_listeners()
            raise
        self.portals = tuple(
            Portal(portal.host, listener.getsockname()[1])
            for portal, listener in zip(self.portals, self._listeners, strict=True)
        )

    async def _accept_all(
        self, nursery: trio.Nursery, serving: trio.CancelScope, listeners: list[socket.socket]
    ) -> None:
        """Accept connections until `stop`; what serves them lives on in *nursery*."""
        with serving:
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(self._accept, nursery, listener)

    async def _accept(self, nursery: trio.Nursery, listener: socket.socket) -> None:
        while listener.fileno() != -1:  # it may be closed before this begins
            await trio.lowlevel.wait_readable(listener)
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as exc:
                self._refuse(reason(exc))
                await trio.sleep(_PAUSE)
                continue
            if not self._make_room():
                sock.close()
                self._refuse(f"{self.max_connections} connections are the most")
                continue
            for level, option, value in _SOCKET_OPTIONS:
                sock.setsockopt(level, option, value)
            nursery.start_soon(self._serve, self._open(sock))
            self._accepting = True

    def _make_room(self) -> bool:
        """Return whether there is room for one more connection; close one without units for it if need be.

        Connections that have not logged in are closed first, then discovery sessions.
        """
        served = [session for session in self.sessions if not session.wire.closed]
        if len(served) < self.max_connections:
            return True
        silent = [session for session in served if not session.connection.login.done]
        discovery = [session for session in served if session.connection.login.discovery]
        for sessions, what in (silent, "no login"), (discovery, "a discovery session"):
            if sessions:
                # The address with the most of them loses one, so that it cannot take those of others.
                counts = Counter(session.wire.peer_address for session in sessions)
                most = max(counts.values())
                oldest = next(session for session in sessions if counts[session.wire.peer_address] == most)
                oldest.failure = TransportError(
                    f"{what}, and {self.max_connections} connections are the most"
                )
                oldest.wire.close()
                return True
        return False

    def _refuse(self, why: str) -> None:
        """Log why connections are refused, once until one is accepted again."""
        if self._accepting:
            self._accepting = False
            log.warning("connections are refused for now: %s", why)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            trio.lowlevel.notify_closing(listener)
            listener.close()
        self._listeners.clear()


def _listener(portal: Portal) -> socket.socket:
    family = socket.AF_INET6 if ":" in portal.host else socket.AF_INET
    try:
        listener = socket.create_server((portal.host, portal.port), family=family, backlog=128)
    except OSError as exc:
        remedy = _REMEDIES.get(exc.errno or 0, "")
        raise ConfigError(f"cannot listen at {portal}: {os.strerror(exc.errno or 0)}{remedy}") from None
    listener.setblocking(False)
    return listener
