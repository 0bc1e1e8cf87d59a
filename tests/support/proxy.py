"""A proxy in front of a real target that knows where PDUs begin and end, and what to do to them.

::

    with running(partial(Proxy, tgt.port)) as (proxy, call):
        proxy.fault = lambda connection, unit: not isinstance(unit.pdu, DataOut)   # swallows all Data-Outs
        ...                                                                        # mount proxy.portal

Whatever is not touched goes on as it came, digests included.
"""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Self, TypeVar

import trio

from iscsifs.iscsi.bhs import BHS_LENGTH, unpack
from iscsifs.iscsi.framing import DIGEST_LENGTH
from iscsifs.iscsi.pdu import (
    InitiatorPdu,
    LoginFlag,
    LoginResponse,
    Pdu,
    Stage,
)

T = TypeVar("T")

_CHUNK = 1 << 18


@dataclass
class Unit:
    """A PDU as it is on the wire: its header with what belongs to it, and its data segment likewise."""

    pdu: Pdu
    header: bytes
    data: bytes
    length: int  # of the data segment, without padding and digest

    @property
    def raw(self) -> bytes:
        return self.header + self.data

    @property
    def from_initiator(self) -> bool:
        return isinstance(self.pdu, InitiatorPdu)

    def spoil_data(self) -> None:
        """Turn a bit of the data segment over, as a bad cable does."""
        assert self.length
        self.data = bytes([self.data[0] ^ 1]) + self.data[1:]

    def spoil_header(self) -> None:
        """Turn a bit of the header over that changes no length."""
        self.header = self.header[:16] + bytes([self.header[16] ^ 1]) + self.header[17:]


@dataclass(eq=False)
class Connection:
    """Connection *number*, counted from 0, from the initiator to the proxy and on to the target."""

    number: int
    initiator: trio.SocketStream
    target: trio.SocketStream
    header_digest: bool = False
    data_digest: bool = False
    _agreed: set[bytes] = field(default_factory=set)

    def cut(self, *, reset: bool) -> None:
        """End it on both sides, with RST or with FIN."""
        for stream in (self.initiator, self.target):
            if reset:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()

    def cut_within(self, unit: Unit, count: int) -> None:
        """Hand on the first *count* bytes of *unit*, and end it with FIN."""
        there = self.target if unit.from_initiator else self.initiator
        # To an idle connection on this machine so few bytes go at once.
        with socket.fromfd(there.socket.fileno(), socket.AF_INET, socket.SOCK_STREAM) as duplicate:
            duplicate.send(unit.raw[:count])
        self.cut(reset=False)

    def watch_login(self, unit: Unit) -> None:
        """Learn which digests the PDUs to come have."""
        if isinstance(unit.pdu, LoginResponse):
            self._agreed.update(unit.data[: unit.length].split(b"\0"))
            if unit.pdu.flags & LoginFlag.TRANSIT and unit.pdu.flags & 3 == Stage.FULL_FEATURE:
                self.header_digest = b"HeaderDigest=CRC32C" in self._agreed
                self.data_digest = b"DataDigest=CRC32C" in self._agreed


Fault = Callable[[Connection, Unit], bool]


class Proxy:
    """Hands PDUs on between initiators, at `portal`, and the target at *port* of this machine.

    `fault` sees each of them and returns whether it is handed on; it may alter the PDU or cut the connection.
    While the proxy is `silent`, nothing is handed on in either direction; the connections stay.
    """

    def __init__(self, port: int) -> None:
        self.portal = ""
        self.connections = 0
        self.fault: Fault = lambda connection, unit: True
        self._port = port
        self._heard = trio.Event()
        self._heard.set()
        self._nursery_manager = trio.open_nursery()

    async def __aenter__(self) -> Self:
        nursery = await self._nursery_manager.__aenter__()
        listeners = await nursery.start(trio.serve_tcp, self._serve, 0)
        self.portal = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        self._nursery = nursery
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._nursery.cancel_scope.cancel()
        await self._nursery_manager.__aexit__(None, None, None)

    def silence(self) -> None:
        """Hand nothing on from now on."""
        self._heard = trio.Event()

    def resume(self) -> None:
        """Hand on what came in the silence, and all that comes."""
        self._heard.set()

    async def _serve(self, initiator: trio.SocketStream) -> None:
        try:
            target = await trio.open_tcp_stream("127.0.0.1", self._port)
        except OSError:
            return  # it does not run: the initiator sees its connection closed
        connection = Connection(self.connections, initiator, target)
        self.connections += 1
        async with target, trio.open_nursery() as nursery:

            async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                    reader = _Reader(source, connection)
                    while (unit := await reader.read()) is not None:
                        await self._heard.wait()
                        connection.watch_login(unit)
                        if self.fault(connection, unit):
                            await sink.send_all(unit.raw)
                nursery.cancel_scope.cancel()

            nursery.start_soon(pump, initiator, target)
            nursery.start_soon(pump, target, initiator)


class _Reader:
    """Cuts what comes from *source* into PDUs."""

    def __init__(self, source: trio.SocketStream, connection: Connection) -> None:
        self._source = source
        self._connection = connection
        self._buffer = bytearray()

    async def read(self) -> Unit | None:
        """Return the next PDU, None at the end, which may be in the middle of one."""
        if (bhs := await self._take(BHS_LENGTH)) is None:
            return None
        rest = await self._take(bhs[4] * 4 + DIGEST_LENGTH * self._connection.header_digest)
        length = int.from_bytes(bhs[5:8], "big")
        digest = DIGEST_LENGTH * (self._connection.data_digest and length > 0)
        data = await self._take(length + -length % 4 + digest)
        return None if rest is None or data is None else Unit(unpack(bhs), bhs + rest, data, length)

    async def _take(self, count: int) -> bytes | None:
        while len(self._buffer) < count:
            chunk = await self._source.receive_some(_CHUNK)
            if not chunk:
                return None
            self._buffer.extend(chunk)
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


Call = Callable[[Callable[[], object]], None]
"""Calls a function in the thread of what is `running`."""


@contextmanager
def running(make: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[tuple[T, Call]]:
    """Give what *make* makes while it runs in a thread, in a trio loop of its own, and how to call it."""
    started = threading.Event()
    things: list[tuple[T, trio.lowlevel.TrioToken, trio.Event]] = []

    async def main() -> None:
        async with make() as thing:
            stop = trio.Event()
            things.append((thing, trio.lowlevel.current_trio_token(), stop))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=trio.run, args=(main,), daemon=True)
    thread.start()
    assert started.wait(10), "it does not start"
    ((thing, token, stop),) = things

    def call(function: Callable[[], object]) -> None:
        trio.from_thread.run_sync(function, trio_token=token)

    try:
        yield thing, call
    finally:
        call(stop.set)
        thread.join(10)
        assert not thread.is_alive(), "it does not end"
