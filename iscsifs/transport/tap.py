"""A socket that shows what is sent and received over it; without one nothing is to be paid for that."""

import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from iscsifs.iscsi.framing import Buffer


class Recorder(Protocol):
    """Who wants to see the bytes of a connection. No method raises."""

    def sent(self, buffers: Sequence[Buffer], count: int) -> None:
        """Take note of the first *count* bytes of *buffers*."""

    def received(self, data: memoryview) -> None:
        """Take note of bytes that have arrived."""

    def closed(self, *, reset: bool = False) -> None:
        """Note the end of the connection; it may be told twice."""


Address = tuple[str, int]
"""A numeric address and a port."""

MakeRecorder = Callable[[Address, Address], Recorder]
"""Returns who records a connection from the first address, ours, to the second."""


def tapped(sock: socket.socket, make: MakeRecorder) -> socket.socket:
    """Return the connected *sock* as one that is recorded; it is not to be used itself any more."""
    try:
        local, remote = sock.getsockname(), sock.getpeername()
    except OSError:  # the connection is gone already, which its user will see
        return sock
    return TappedSocket(sock, make((local[0], local[1]), (remote[0], remote[1])))


class TappedSocket(socket.socket):
    """A connected, non-blocking socket in the place of another one, whose descriptor it takes over."""

    def __init__(self, sock: socket.socket, recorder: Recorder) -> None:
        super().__init__(fileno=sock.detach())
        self.setblocking(False)
        self._recorder = recorder

    def recv_into(self, buffer: Any, *args: int) -> int:
        """Receive, and show what was received."""
        try:
            count = super().recv_into(buffer, *args)
        except BlockingIOError:
            raise
        except OSError:
            self._recorder.closed(reset=True)
            raise
        if count:
            self._recorder.received(memoryview(buffer)[:count])
        return count

    def sendmsg(self, buffers: Iterable[Any], *args: Any) -> int:
        """Send, and show what was sent."""
        given = list(buffers)
        try:
            count = super().sendmsg(given, *args)
        except BlockingIOError:
            raise
        except OSError:
            self._recorder.closed(reset=True)
            raise
        self._recorder.sent(given, count)
        return count

    def close(self) -> None:
        """Close the socket, and show that."""
        self._recorder.closed()
        super().close()
