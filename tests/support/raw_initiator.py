"""An initiator without a mind of its own: after the login a test writes every request."""

import os
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from iscsifs.iscsi.chap import ChallengeMemory
from iscsifs.iscsi.framing import Receiver, frame
from iscsifs.iscsi.keys import INITIATOR_OFFER, Parameters, Value
from iscsifs.iscsi.login import InitiatorLogin, LoginConfig
from iscsifs.iscsi.names import Portal
from iscsifs.iscsi.pdu import (
    FINAL,
    CommandFlag,
    DataIn,
    DataInFlag,
    Pdu,
    ScsiCommand,
    ScsiResponse,
)

INITIATOR = "iqn.2001-04.com.example:raw"
ISID = bytes.fromhex("800000000001")

P = TypeVar("P", bound=Pdu)


class Closed(Exception):
    """The target has closed the connection."""


class RawInitiator:
    """A connection to a target; `cmd_sn` and `exp_stat_sn` are the next numbers to be sent."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.cmd_sn = 1
        self.exp_stat_sn = 0
        self.tag = 0
        self.parameters = Parameters()
        self.data = b""
        self._receiver = Receiver(lambda *_: None, self._arrived, max_data_segment_length=1 << 24)
        self._queue: deque[tuple[Pdu, bytes]] = deque()

    async def login(
        self, target_name: str | None, *, offer: dict[str, Value] | None = None, **config: Any
    ) -> None:
        """Log in; the keyword arguments are those of LoginConfig."""
        config = {"initiator_name": INITIATOR, "isid": ISID} | config
        login = InitiatorLogin(
            LoginConfig(target_name=target_name, offer={**INITIATOR_OFFER, **(offer or {})}, **config),
            random_bytes=os.urandom,
            memory=ChallengeMemory(),
        )
        outgoing = login.start()
        while True:
            await self.send(*outgoing)
            following = login.receive(*await self.receive())
            if following is None:
                break
            assert isinstance(following, tuple)
            outgoing = following
        self.parameters = login.parameters
        self.exp_stat_sn, self.cmd_sn = login.exp_stat_sn, login.exp_cmd_sn
        self._receiver.header_digest = login.parameters.header_digest
        self._receiver.data_digest = login.parameters.data_digest

    async def send(self, pdu: Pdu, data: bytes = b"", **options: Any) -> None:
        """Send *pdu* as it is."""
        digests = {
            "header_digest": self.parameters.header_digest,
            "data_digest": self.parameters.data_digest,
        }
        await self.stream.send_all(b"".join(frame(pdu, data, **(digests | options))))

    async def receive(self) -> tuple[Pdu, bytes]:
        """Return the next PDU. Raises `Closed`."""
        with trio.fail_after(10):
            while not self._queue:
                buffer = self._receiver.get_buffer()
                try:
                    count = await self.stream.socket.recv_into(buffer)
                except OSError:
                    raise Closed from None
                if not count:
                    raise Closed
                self._receiver.buffer_updated(count)
        pdu, self.data = self._queue.popleft()
        return pdu, self.data

    async def expect(self, kind: type[P]) -> P:
        """Return the next PDU, which has to be of *kind*."""
        pdu, _ = await self.receive()
        assert isinstance(pdu, kind), f"{kind.__name__} was due, not {pdu}"
        return pdu

    def command(
        self, cdb: bytes, *, read: int = 0, write: int = 0, lun: int = 0, final: bool = True
    ) -> ScsiCommand:
        """Return a new command that expects to *read* or to *write* so many bytes."""
        self.tag += 1
        flags = CommandFlag.SIMPLE | (CommandFlag.READ if read else 0) | (CommandFlag.WRITE if write else 0)
        pdu = ScsiCommand(
            flags | (FINAL if final else 0),
            lun,
            self.tag,
            read or write,
            self.cmd_sn,
            self.exp_stat_sn,
            cdb.ljust(16, b"\0"),
        )
        self.cmd_sn += 1
        return pdu

    async def execute(
        self, cdb: bytes, data: bytes = b"", *, read: int = 0, lun: int = 0
    ) -> tuple[int, bytes, bytes]:
        """Carry out a command with immediate data; return its status, the data it read and its sense data."""
        await self.send(self.command(cdb, read=read, write=len(data), lun=lun), data)
        return await self.finish()

    async def finish(self) -> tuple[int, bytes, bytes]:
        """Receive the end of a command, as `execute` returns it."""
        received = b""
        while True:
            pdu, data = await self.receive()
            if isinstance(pdu, DataIn):
                received += data
                if pdu.flags & DataInFlag.STATUS:
                    self.exp_stat_sn = pdu.stat_sn + 1
                    return pdu.status, received, b""
            else:
                assert isinstance(pdu, ScsiResponse), pdu
                self.exp_stat_sn = pdu.stat_sn + 1
                return pdu.status, received, data[2:]

    def _arrived(self, pdu: Pdu, ahs: bytes, data: memoryview) -> None:
        self._queue.append((pdu, bytes(data)))


@asynccontextmanager
async def raw_initiator(portal: Portal) -> AsyncIterator[RawInitiator]:
    """Give a `RawInitiator` that is connected to *portal*."""
    stream = await trio.open_tcp_stream(portal.host, portal.port)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        yield RawInitiator(stream)
    finally:
        await trio.aclose_forcefully(stream)
