"""The target's end of a TCP connection: PDUs out, whole or spoilt on purpose."""

import socket
import struct
from collections import deque
from itertools import islice
from typing import Final

import trio

from iscsifs.iscsi.framing import Buffer, frame
from iscsifs.iscsi.pdu import LoginResponse, TargetPdu

_IOV_MAX: Final = 1024  # buffers that sendmsg(2) takes at once
_LINGER_RESET: Final = struct.pack("ii", 1, 0)


class Wire:
    """A connected, non-blocking *sock*, owned by it, and the digests that are on for what it sends.

    What is sent when the peer has gone, or after `close`, is lost without an error: the end is seen by who
    receives.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.header_digest = False
        self.data_digest = False
        self.peer_address = _address(sock)
        """The address of the peer; empty where that has none, or has gone already."""
        self._sock = sock
        self._out: deque[Buffer] = deque()
        self._sending = trio.Lock()

    @property
    def closed(self) -> bool:
        """Whether `close` or `reset` was called."""
        return self._sock.fileno() == -1

    @property
    def local_address(self) -> str:
        """The address at which the peer has found us; empty where that is no IP address."""
        name = self._sock.getsockname()
        return str(name[0]) if isinstance(name, tuple) else ""

    async def receive(self, buffer: memoryview) -> int:
        """Receive into *buffer*; return the count of bytes, 0 when the connection has ended in any way."""
        await trio.lowlevel.checkpoint()
        while not self.closed:
            try:
                return self._sock.recv_into(buffer)
            except BlockingIOError:
                pass
            except OSError:
                return 0
            try:
                await trio.lowlevel.wait_readable(self._sock)
            except trio.ClosedResourceError:
                return 0
        return 0

    def frame(self, pdu: TargetPdu, data: Buffer = b"") -> list[Buffer]:
        """Return the buffers of a PDU, with the digests that are on."""
        if isinstance(pdu, LoginResponse):  # a login is without digests, and so is its end (section 13.1)
            return frame(pdu, data)
        return frame(pdu, data, header_digest=self.header_digest, data_digest=self.data_digest)

    async def send(self, pdu: TargetPdu, data: Buffer = b"") -> None:
        """Send one PDU."""
        await self.send_buffers(self.frame(pdu, data))

    async def send_spoilt(
        self, pdu: TargetPdu, data: Buffer = b"", *, header: bool = False, payload: bool = False
    ) -> None:
        """Send one PDU with a bit of its header, or of its data segment, wrong behind the digest's back."""
        buffers = self.frame(pdu, data)
        if header:
            buffers[0] = bytes(buffers[0][:1]) + bytes((buffers[0][1] ^ 1,)) + bytes(buffers[0][2:])
        if payload:
            buffers[1] = bytes((buffers[1][0] ^ 1,)) + bytes(buffers[1][1:])
        await self.send_buffers(buffers)

    async def send_part(self, count: int, pdu: TargetPdu, data: Buffer = b"") -> None:
        """Send the first *count* bytes of a PDU, to be followed by `close` or `reset`."""
        await self.send_buffers([b"".join(self.frame(pdu, data))[:count]])

    async def send_buffers(self, buffers: list[Buffer]) -> None:
        """Send any bytes."""
        self._out.extend(buffers)
        async with self._sending:
            while self._out and not self.closed:
                try:
                    self._sent(self._sock.sendmsg(islice(self._out, _IOV_MAX)))
                except BlockingIOError:
                    try:
                        await trio.lowlevel.wait_writable(self._sock)
                    except trio.ClosedResourceError:
                        break
                except OSError:
                    break
            self._out.clear()

    def _sent(self, count: int) -> None:
        while count:
            first = self._out.popleft()
            if count < len(first):
                self._out.appendleft(memoryview(first)[count:])
                return
            count -= len(first)

    def close(self) -> None:
        """End the connection: FIN, or RST where something that came was not received."""
        if not self.closed:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    def reset(self) -> None:
        """End the connection with RST."""
        if not self.closed:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self.close()


def _address(sock: socket.socket) -> str:
    try:
        name = sock.getpeername()
    except OSError:
        return ""
    return str(name[0]) if isinstance(name, tuple) else ""
