"""A socket that shows what is sent and received over it; without one nothing is to be paid for that."""

import socket
from collections.abc import Iterable, Sequence
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


class MakeRecorder(Protocol):
    """Chooses who records a connection."""

    def __call__(
        self,
        local: Address,
        remote: Address,
        digests: tuple[bool, bool] | None = None,
        *,
        skip_sent: int = 0,
        skip_received: int = 0,
    ) -> Recorder | None:
        """Return who records the connection from *local*, which is ours; None where nobody does.

        A connection that is logged in already has *digests*, for headers and for data. The next bytes that
        are sent and received, *skip_sent* and *skip_received* of them, are not the beginning of a PDU.
        """


def tapped(
    sock: socket.socket,
    make: MakeRecorder,
    digests: tuple[bool, bool] | None = None,
    *,
    skip_sent: int = 0,
    skip_received: int = 0,
) -> socket.socket:
    """Return the connected *sock* as one that is recorded, where *make* wants that; see `MakeRecorder`.

    *sock* itself is not to be used any more then.
    """
    try:
        local, remote = sock.getsockname(), sock.getpeername()
    except OSError:  # the connection is gone already, which its user will see
        return sock
    recorder = make(
        (local[0], local[1]),
        (remote[0], remote[1]),
        digests,
        skip_sent=skip_sent,
        skip_received=skip_received,
    )
    return sock if recorder is None else TappedSocket(sock, recorder)


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
