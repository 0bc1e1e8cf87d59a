"""Every PDU of some connections as a pcapng capture, without I/O: what comes in are bytes, and out go blocks.

Wireshark dissects iSCSI within TCP only, so each connection gets a handshake, sequence numbers that count its
bytes, and an end. A capture that starts in mid-session, or goes on in a new file, has the handshake there.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from iscsifs.monitor import pcapng
from iscsifs.monitor.frames import MAX_SEGMENT, End, TcpFlag, frame, header_length
from iscsifs.monitor.segments import Cutter, Digests, Segment

_COMMENT: Final = (
    "Ports other than 3260 need: tshark -o iscsi.target_ports:3260,PORT, or -d tcp.port==PORT,iscsi."
    " Long data segments need: -o iscsi.bogus_pdu_max_data_len:16777215"
)
"""What Wireshark has to be told, for those who find the file without the manual."""

_LEAST_SNAP: Final = 122
"""Bytes that the headers up to the basic header segment have over IPv6: less dissects nothing."""

_UNACKNOWLEDGED: Final = 1 << 29
"""Bytes after which the other end acknowledges, though it has nothing to say: half of the window."""

_HANDSHAKE: Final = TcpFlag.SYN
_DATA: Final = TcpFlag.PSH | TcpFlag.ACK


class Capture:
    """Blocks for one file after another. *emit* takes each, *clock* gives nanoseconds since 1970.

    Of each packet *snap_length* bytes are kept, all with 0. With *show_chap* the challenges and responses of
    CHAP are shown, from which a weak secret can be found. *on_failure* is called where there is no memory for
    a packet, after which the capture is over.
    """

    def __init__(
        self,
        emit: Callable[[bytes], None],
        clock: Callable[[], int],
        on_failure: Callable[[str], None],
        *,
        application: str = "iscsifs",
        snap_length: int = 0,
        show_chap: bool = False,
    ) -> None:
        self.snap_length = max(snap_length, _LEAST_SNAP) if snap_length else 0
        self.show_chap = show_chap
        self.clock = clock
        self.emit = emit
        self.is_over = False
        self._on_failure = on_failure
        self._application = application
        self._streams: dict[Stream, None] = {}

    def begin(self) -> None:
        """Begin a file: its section, its interface, and the handshakes of all connections that there are."""
        self.emit(pcapng.section(self._application, _COMMENT))
        self.emit(pcapng.interface("iscsi", self.snap_length))
        for stream in self._streams:
            stream.begin()

    def stream(
        self,
        local: End,
        remote: End,
        digests: Digests | None = None,
        *,
        skip_sent: int = 0,
        skip_received: int = 0,
    ) -> "Stream":
        """Add a connection. One that is logged in already has *digests*.

        What it is to send and to receive until the next PDU begins is left out: *skip_sent* and
        *skip_received* bytes.
        """
        stream = Stream(self, local, remote, digests or Digests(), skip_sent, skip_received)
        self._streams[stream] = None
        stream.begin()
        return stream

    def end(self, why: str = "") -> None:
        """Take note of nothing more, because of *why*."""
        self.is_over = True
        self._streams.clear()
        if why:
            self._on_failure(why)

    def forget(self, stream: "Stream") -> None:
        """Note that a connection has ended."""
        self._streams.pop(stream, None)


class _Way:
    """One direction of a connection: where it comes from, and how far it is."""

    def __init__(self, source: End, destination: End, direction: int, cutter: Cutter) -> None:
        self.source = source
        self.destination = destination
        self.direction = direction
        self.cutter = cutter
        self.sequence = 1  # of the next byte
        self.acknowledged = 1  # of these, by the other end


class Stream:
    """One connection, as it is seen from its socket: `sent`, `received`, and in the end `closed`."""

    def __init__(
        self,
        capture: Capture,
        local: End,
        remote: End,
        digests: Digests,
        skip_sent: int,
        skip_received: int,
    ) -> None:
        self._capture = capture
        limit = MAX_SEGMENT
        if capture.snap_length:
            limit = capture.snap_length - header_length(local)

        def cutter(skip: int) -> Cutter:
            return Cutter(digests, limit, skip=skip, show_chap=capture.show_chap)

        self._out = _Way(local, remote, pcapng.OUTBOUND, cutter(skip_sent))
        self._in = _Way(remote, local, pcapng.INBOUND, cutter(skip_received))
        self._is_open = True

    def begin(self) -> None:
        """Make up the handshake, behind which the next bytes come."""
        for way in self._out, self._in:
            way.cutter.skip_rest()
            way.acknowledged = way.sequence
        self._packet(self._out, _HANDSHAKE, sequence=self._out.sequence - 1, acknowledge=False)
        self._packet(self._in, _HANDSHAKE | TcpFlag.ACK, sequence=self._in.sequence - 1)
        self._packet(self._out, TcpFlag.ACK)

    def sent(self, buffers: Sequence[bytes | bytearray | memoryview], count: int) -> None:
        """Take note of the first *count* bytes of *buffers*, which were sent."""
        for buffer in () if self._capture.is_over else buffers:
            if count <= 0:
                return
            piece = memoryview(buffer).cast("B")[:count]
            count -= len(piece)
            self._add(self._out, self._in, self._out.cutter.feed(piece))

    def received(self, data: bytes | memoryview) -> None:
        """Take note of bytes that were received."""
        if not self._capture.is_over:
            self._add(self._in, self._out, self._in.cutter.feed(data))

    def closed(self, *, reset: bool = False) -> None:
        """Note the end of the connection, with *reset* an abrupt one; once is enough."""
        if not self._is_open or self._capture.is_over:
            return
        self._is_open = False
        for way, other in (self._out, self._in), (self._in, self._out):
            self._add(way, other, way.cutter.flush())
        if reset:
            self._packet(self._out, TcpFlag.RST | TcpFlag.ACK)
        else:
            for way in self._out, self._in:
                self._packet(way, TcpFlag.FIN | TcpFlag.ACK)
                way.sequence += 1
            self._packet(self._out, TcpFlag.ACK)
        self._capture.forget(self)

    def _add(self, way: _Way, other: _Way, segments: Iterable[Segment]) -> None:
        try:
            for segment in segments:
                self._packet(way, _DATA, segment)
                way.sequence += segment.length
                if way.sequence - way.acknowledged > _UNACKNOWLEDGED:
                    self._packet(other, TcpFlag.ACK)
        except MemoryError:  # the connection has its bytes all the same
            self._capture.end("there is no memory for a packet")

    def _packet(
        self,
        way: _Way,
        flags: int,
        segment: Segment | None = None,
        *,
        sequence: int | None = None,
        acknowledge: bool = True,
    ) -> None:
        data, length = segment or (b"", 0)
        other = self._in if way is self._out else self._out
        number = way.sequence if sequence is None else sequence
        whole = frame(
            way.source,
            way.destination,
            flags,
            number,
            other.sequence if acknowledge else 0,
            data,
            length,
        )
        if acknowledge:
            other.acknowledged = other.sequence
        capture = self._capture
        size = len(whole) - len(data) + length
        kept = whole[: capture.snap_length] if capture.snap_length else whole
        capture.emit(pcapng.packet(kept, size, capture.clock(), way.direction))
