"""A trace in a file, in a pipe, and on a socket."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsifs.errors import ConfigError
from iscsifs.monitor.capture import Stream
from iscsifs.monitor.trace import STANDARD_OUTPUT, Trace
from iscsifs.transport.tap import Address, TappedSocket, tapped

US, TARGET = ("192.0.2.1", 50000), ("192.0.2.2", 3260)
NOP = bytes(48)


def started(trace: Trace) -> Stream:
    """Return the recorder of a connection."""
    stream = trace.stream(US, TARGET)
    assert stream is not None
    return stream


def whole_blocks(data: bytes) -> int:
    """Return how many blocks there are; no part of one is behind them."""
    number = 0
    while data:
        length = int.from_bytes(data[4:8], "little")
        assert len(data) >= length >= 12
        assert data[length - 4 : length] == data[4:8]
        data = data[length:]
        number += 1
    return number


@pytest.mark.conformance("TRACE-1.14")
def test_the_file_is_new_and_its_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    umask = os.umask(0)
    try:
        trace = Trace(Path("trace.pcapng"))
    finally:
        os.umask(umask)
    monkeypatch.chdir("/")
    assert trace.path == tmp_path / "trace.pcapng"
    assert stat.S_IMODE(trace.path.stat().st_mode) == 0o600
    assert not os.get_inheritable(trace._descriptor)
    trace.close()
    before = trace.path.read_bytes()
    with pytest.raises(ConfigError, match="there is such a file already; remove it first"):
        Trace(trace.path)
    assert trace.path.read_bytes() == before
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="there is such a file already"):
        Trace(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(ConfigError, match="No such file or directory"):
        Trace(tmp_path / "missing" / "trace")


@pytest.mark.conformance("TRACE-1.2")
def test_a_reader_finds_whole_blocks_at_any_time(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace")
    stream = started(trace)
    for number in range(1, 20):
        stream.sent([NOP], 48)
        assert whole_blocks((tmp_path / "trace").read_bytes()) == 5 + number
    trace.close()
    trace.close()
    stream.sent([NOP], 48)
    stream.closed()
    assert not trace.is_open
    assert trace.stream(US, TARGET) is None


@pytest.mark.conformance("TRACE-1.13")
def test_a_full_disk_ends_the_trace_and_leaves_whole_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    trace = Trace(tmp_path / "trace", on_end=ended.append)
    stream = started(trace)
    written = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) < 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(descriptor, data[:-40])

    monkeypatch.setattr(os, "write", full)
    for _ in range(3):
        stream.sent([NOP], 48)
    assert ended == [f"trace {tmp_path}/trace: No space left on device; the trace ends here"]
    assert not trace.is_open
    assert whole_blocks((tmp_path / "trace").read_bytes()) == 5


@pytest.mark.conformance("TRACE-1.13")
def test_a_reader_that_stops_does_not_hold_up_the_io(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ConfigError, match="start its reader first"):
        Trace(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    trace = Trace(fifo)
    stream = started(trace)
    for _ in range(2000):
        stream.received(NOP)
    assert trace.dropped > 100
    assert trace.is_open
    taken = b""
    while True:
        try:
            taken += os.read(reader, 1 << 16)
        except BlockingIOError:
            if trace.dropped < 0:
                break
            trace.dropped = -(1 << 20)
            stream.received(NOP)  # the rest of the block that was cut comes first
            continue
    assert whole_blocks(taken) > 100
    os.close(reader)
    ended: list[str] = []
    trace._on_end = ended.append
    stream.received(NOP)
    assert "Broken pipe" in ended[0]


@pytest.mark.conformance("TRACE-1.13")
def test_the_standard_output_is_written_to(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trace = Trace(STANDARD_OUTPUT, max_bytes=1)
    started(trace)
    trace.close()
    assert os.get_blocking(1), "others share the descriptor"
    output = os.fstat(1)
    assert stat.S_ISREG(output.st_mode)
    with open("/proc/self/fd/1", "rb") as file:
        assert whole_blocks(file.read()) == 5
    os.ftruncate(1, 0)


@pytest.mark.conformance("TRACE-1.13")
def test_old_files_are_numbered_and_the_oldest_goes(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace", max_bytes=1500, files=3)
    stream = started(trace)
    for _ in range(60):
        stream.sent([NOP], 48)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace", "trace.1", "trace.2"]
    for path in tmp_path.iterdir():
        assert path.stat().st_size <= 1500
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert whole_blocks(path.read_bytes()) >= 6
    trace.close()
    alone = Trace(tmp_path / "one", max_bytes=200, files=1)
    started(alone).sent([NOP], 48)
    assert whole_blocks((tmp_path / "one").read_bytes()) >= 6, "however small, it has its preamble"
    alone.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
    client.setblocking(False)
    with client, peer:
        yield client, peer


class Events:
    """A recorder that writes down what it is told."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def sent(self, buffers: object, count: int) -> None:
        self.seen.append(("sent", count))

    def received(self, data: memoryview) -> None:
        self.seen.append(("received", bytes(data)))

    def closed(self, *, reset: bool = False) -> None:
        self.seen.append(("closed", reset))


def test_a_tapped_socket_is_the_same_connection(pair: tuple[socket.socket, socket.socket]) -> None:
    client, peer = pair
    number, events = client.fileno(), Events()
    addresses: list[object] = []

    def make(
        local: Address, remote: Address, digests: object = None, *, skip_sent: int = 0, skip_received: int = 0
    ) -> Events | None:
        addresses.extend((local, remote))
        return events if len(addresses) > 2 else None

    assert tapped(client, make) is client, "nobody records it"

    sock = tapped(client, make)
    assert sock.fileno() == number
    assert addresses == [sock.getsockname(), sock.getpeername()] * 2
    assert sock.sendmsg([b"abc", memoryview(b"de")]) == 5
    assert peer.recv(10) == b"abcde"
    buffer = bytearray(10)
    with pytest.raises(BlockingIOError):
        sock.recv_into(buffer)
    peer.send(b"xyz")
    assert sock.recv_into(memoryview(buffer)) == 3
    peer.close()
    assert sock.recv_into(buffer) == 0
    sock.close()
    assert events.seen == [("sent", 5), ("received", b"xyz"), ("closed", False)]


def test_a_connection_that_breaks_is_reset(pair: tuple[socket.socket, socket.socket]) -> None:
    client, peer = pair
    events = Events()
    sock = tapped(client, lambda *_, **__: events)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    with pytest.raises(ConnectionResetError):
        sock.recv_into(bytearray(10))
    assert events.seen == [("closed", True)]
    sock.close()
    events.seen.clear()
    second, other = socket.socketpair()
    other.close()
    with TappedSocket(second, events) as tap, pytest.raises(BrokenPipeError):
        tap.sendmsg([b"x"])
    assert events.seen[0] == ("closed", True)
