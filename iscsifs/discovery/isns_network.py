"""The sockets of an iSNS client: the connection to the server, and a port for what the server has to tell."""

import errno
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import trio

from iscsifs.errors import TransportError, reason
from iscsifs.iscsi.names import Portal
from iscsifs.limits import ISNS_CONNECT_TIMEOUT
from iscsifs.transport.lookup import look_up

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Line:
    """A connection, with the addresses of both its ends."""

    stream: trio.abc.Stream
    local: Address
    peer: Address


class Network(Protocol):
    """What a client needs of the network; the tests have one in memory."""

    async def connect(self, server: Portal) -> Line:
        """Return a connection to *server*; raises TransportError."""
        ...

    async def listen(
        self,
        nursery: trio.Nursery,
        address: Address,
        port: int,
        serve: Callable[[Line], Awaitable[None]],
    ) -> int:
        """Have *serve* called, in *nursery*, for each connection to *address*; return the port.

        *port* is the one that is wanted, 0: any. Where it is taken, it is another one. Raises TransportError.
        """
        ...

    async def is_served(self, address: Address, port: int) -> bool:
        """Return whether somebody listens at a port of this host; True where that is not known."""
        ...


class Tcp:
    """The real network; *family* is that of the addresses of servers to connect to."""

    def __init__(self, family: socket.AddressFamily = socket.AF_UNSPEC) -> None:
        self._family = family

    async def connect(self, server: Portal) -> Line:
        """Try the addresses of *server* one after the other."""
        failure = TransportError(f"{server}: it has no address")
        for family, kind, protocol, _, address in await look_up(server, self._family):
            try:
                with trio.fail_after(ISNS_CONNECT_TIMEOUT):
                    return await _connect(trio.socket.socket(family, kind, protocol), address)
            except trio.TooSlowError:
                seconds = f"{ISNS_CONNECT_TIMEOUT:g} s"
                failure = TransportError(f"{server}: no connection within {seconds}; is the host up?")
            except OSError as error:
                failure = TransportError(f"{server}: {_reason(error)}")
        raise failure

    async def listen(
        self,
        nursery: trio.Nursery,
        address: Address,
        port: int,
        serve: Callable[[Line], Awaitable[None]],
    ) -> int:
        """Listen at *address* only: nobody who cannot reach that has anything to tell."""

        async def handle(stream: trio.SocketStream) -> None:
            async with stream:
                with suppress(OSError):  # the other end has gone already
                    line = _line(stream)
                    await serve(line)

        try:
            try:
                listeners = await trio.open_tcp_listeners(port, host=str(address))
            except OSError:
                listeners = await trio.open_tcp_listeners(0, host=str(address))
        except OSError as error:
            raise TransportError(f"{address}: no port to listen at: {reason(error)}") from None
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        number: int = listeners[0].socket.getsockname()[1]
        return number

    async def is_served(self, address: Address, port: int) -> bool:
        """Connect, and close that connection at once."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with trio.move_on_after(1.0), trio.socket.socket(family) as sock:
            try:
                await sock.connect((str(address), port))
            except OSError as error:
                return error.errno != errno.ECONNREFUSED
        return True


async def _connect(sock: trio.socket.SocketType, address: object) -> Line:
    """Return a connection by *sock*, which is closed where there is none."""
    try:
        await sock.connect(address)
        return _line(trio.SocketStream(sock))
    except BaseException:
        sock.close()
        raise


def _line(stream: trio.SocketStream) -> Line:
    """Return *stream* with its addresses; raises OSError where the other end has gone."""
    local, peer = stream.socket.getsockname(), stream.socket.getpeername()
    return Line(stream, _address(local[0]), _address(peer[0]))


def _address(text: str) -> Address:
    """Return an address as it is: IPv4 over an IPv6 socket is IPv4."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _reason(error: OSError) -> str:
    """Return why there is no connection, without the address that trio has put in front, and the remedy."""
    plain = OSError(error.errno, os.strerror(error.errno)) if error.errno else error
    if plain.errno == errno.ECONNREFUSED:
        return f"{plain.strerror}; is an iSNS server running there, and is the port right?"
    return reason(plain)
