"""A TCP relay that delays each direction by a fixed time: a longer wire, on one machine.

The bytes wait in a pipe and are moved by splice(2), so nothing is copied, and the relay takes little of the
processor that it shares with what is measured. It is a process of its own::

    python3 relay.py TARGET-PORT DELAY-IN-SECONDS      prints the port at which it listens
"""

import ctypes
import fcntl
import os
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CHUNK = 1 << 20
PIPE_SIZES = (16 << 20, 1 << 20)  # bytes under way; without root the kernel allows the second only
PR_SET_TIMERSLACK = 29


class Direction:
    """One direction of a connection: what *source* receives is sent to *sink* *delay* seconds later."""

    def __init__(self, source: socket.socket, sink: socket.socket, delay: float) -> None:
        self._source = source
        self._sink = sink
        self._delay = delay
        self._out_end, self._in_end = os.pipe()
        for size in PIPE_SIZES:
            with suppress(PermissionError):
                fcntl.fcntl(self._in_end, fcntl.F_SETPIPE_SZ, size)
                break
        self._arrived: queue.SimpleQueue[tuple[float, int]] = queue.SimpleQueue()
        threading.Thread(target=self._receive, daemon=True).start()
        threading.Thread(target=self._send, daemon=True).start()

    def _receive(self) -> None:
        count = CHUNK
        while count:
            # Wait first: a splice that waits holds the pipe's lock, and then nothing can leave the pipe.
            select.select([self._source], [], [])
            select.select([], [self._in_end], [])
            try:
                count = os.splice(self._source.fileno(), self._in_end, CHUNK, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                continue
            except OSError:  # reset, or the pipe's reader has gone
                count = 0
            self._arrived.put((time.monotonic() + self._delay, count))
        os.close(self._in_end)

    def _send(self) -> None:
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1)  # else each sleep is 50 us too long
        try:
            while True:
                due, count = self._arrived.get()
                if not count:
                    self._sink.shutdown(socket.SHUT_WR)
                    return
                time.sleep(max(0.0, due - time.monotonic()))
                while count:
                    count -= os.splice(self._out_end, self._sink.fileno(), count)
        except OSError:  # the sink has gone: so shall the source
            with suppress(OSError):
                self._source.shutdown(socket.SHUT_RDWR)
        finally:
            os.close(self._out_end)


def serve(target_port: int, delay: float) -> None:
    """Relay connections to *target_port* of this machine for ever."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _ = listener.accept()
            target = socket.create_connection(("127.0.0.1", target_port))
            for end in (client, target):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Direction(client, target, delay)
            Direction(target, client, delay)


@contextmanager
def relay(target_port: int, round_trip: float) -> Iterator[int]:
    """Run a relay to *target_port* that adds *round_trip* seconds, and give the port it listens at."""
    command = [sys.executable, __file__, str(target_port), str(round_trip / 2)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def measure(round_trip: float, seconds: float = 0.5) -> tuple[float, float]:
    """Return what a relay really gives: the median round trip in seconds, and its bytes per second."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        relay(listener.getsockname()[1], round_trip) as port,
        socket.create_connection(("127.0.0.1", port)) as near,
        listener.accept()[0] as far,
    ):
        times = []
        for _ in range(200):
            start = time.perf_counter()
            near.sendall(b"x" * 48)
            far.sendall(far.recv(48))
            near.recv(48)
            times.append(time.perf_counter() - start)

        def flood() -> None:
            with suppress(OSError):
                while True:
                    far.sendall(bytes(CHUNK))

        threading.Thread(target=flood, daemon=True).start()
        buffer = bytearray(CHUNK)
        received = 0
        start = time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            received += near.recv_into(buffer)
        far.shutdown(socket.SHUT_RDWR)
    return sorted(times)[len(times) // 2], received / spent


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]))
