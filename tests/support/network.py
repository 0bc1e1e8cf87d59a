"""What stands in for TCP: each connection is a pair of sockets, no port is needed, and a clock may jump.

This is the one wiring of initiator and target in memory. A `Network` has a `Listener` for each host, which
hands the far end of each connection to what serves it: the embedded target of a `Site`, or a scripted peer.
The initiator dials with the network's `connect`, and all above that is its own.
"""

import socket
from collections.abc import Callable

import trio

from iscsifs.errors import IscsifsError, TransportError
from iscsifs.fs.platform.busy_poll import BusyPoller
from iscsifs.initiator.dial import Dialler
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.initiator.session import Session
from iscsifs.iscsi.chap import ChallengeMemory
from iscsifs.iscsi.names import Portal, TargetAddress
from iscsifs.service import ManagedTarget
from iscsifs.target.device import Device
from iscsifs.target.login import TargetConfig
from iscsifs.target.server import Server
from support.trouble import Trouble

ADDRESS = "192.0.2.1"
OWN_ADDRESS = "192.0.2.9"
ISID = bytes.fromhex("800102030405")


class End(socket.socket):
    """The initiator's end of a pair, with addresses as a socket of TCP has them."""

    def getsockname(self) -> tuple[str, int]:
        return (OWN_ADDRESS, 49152)

    def getpeername(self) -> tuple[str, int]:
        return (ADDRESS, 3260)


class Listener:
    """One host: *serve* gets the far end of each connection."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self.serve = serve
        self.reachable = True
        """Whether there is anybody who listens."""
        self.failure: IscsifsError | None = None
        """What else attempts to connect fail with."""
        self.hang_up = False
        """Whether connections end as soon as they are there."""
        self.buffer_size = 0
        """Bytes that may be under way in each direction; 0: the usual."""
        self.dialled: list[float] = []
        """When there were attempts to connect."""
        self.connections = 0


class Network:
    """Hosts by their names. `ends` are the initiator's ends of all connections, of the class `end`."""

    def __init__(self) -> None:
        self.hosts: dict[str, Listener] = {}
        self.poller = BusyPoller()
        self.end: type[End] = End
        self.ends: list[End] = []

    def listen(self, serve: Callable[[socket.socket], None], host: str = ADDRESS) -> Listener:
        """Have *serve* take the connections to *host*."""
        listener = self.hosts[host] = Listener(serve)
        return listener

    async def connect(self, portal: Portal, family: socket.AddressFamily) -> socket.socket:
        """Take the place of `dial.connect`."""
        listener = self.hosts[portal.host]
        listener.dialled.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if not listener.reachable:
            raise TransportError(f"{portal}: Connection refused")
        if listener.failure is not None:
            raise listener.failure
        listener.connections += 1
        near, far = socket.socketpair()
        for end in near, far:
            end.setblocking(False)
            if listener.buffer_size:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, listener.buffer_size)
        if listener.hang_up:
            far.close()
        else:
            listener.serve(far)
        self.ends.append(self.end(fileno=near.detach()))
        return self.ends[-1]

    def dialler(self, options: InitiatorOptions, target_name: str, host: str = ADDRESS) -> Dialler:
        """Return what logs in to *target_name* at *host*."""
        addresses = [TargetAddress(Portal(host, 3260))]
        return Dialler(options, ChallengeMemory(), target_name, addresses, ISID, self.poller, self.connect)


class Site:
    """A target in memory, and the way to it: *device* at *host*, served as *config* and *trouble* say.

    Its connections are served in *nursery*.
    """

    def __init__(
        self,
        device: Device,
        network: Network,
        nursery: trio.Nursery,
        *,
        host: str = ADDRESS,
        trouble: Trouble | None = None,
        config: TargetConfig | None = None,
    ) -> None:
        self.device = device
        self.network = network
        self.host = host
        self.trouble = trouble or Trouble()
        self.server = Server([device], script=self.trouble, config=config)
        self.listener = network.listen(lambda far: nursery.start_soon(self.server.serve, far), host)
        self._nursery = nursery

    async def log_in(self, options: InitiatorOptions) -> ManagedTarget:
        """Log in, find the units, and keep the session until the nursery ends."""
        dialler = self.network.dialler(options, self.device.name, self.host)
        session = Session(self.device.name, dialler, options, await dialler())
        self._nursery.start_soon(session.run)
        target = ManagedTarget(self.device.name, dialler, session, options, self._nursery)
        await target.find_units()
        return target

    def kill(self, *, reset: bool = True) -> None:
        """End the target at once: its connections are cut and new ones refused."""
        self.listener.reachable = False
        self.server.drop_connections(reset=reset)

    def restart(self) -> None:
        """Let the target run again."""
        self.listener.reachable = True
