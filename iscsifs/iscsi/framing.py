"""PDUs on a byte stream (RFC 7143 section 11.2): headers, digests, padding, and payloads put in their place.

`Receiver` cuts what arrives into PDUs. Small PDUs are received into one scratch buffer, so that one system
call may bring many of them; once the header of a large data segment is known, the rest of the segment is
received directly where it belongs. `Sender` is the other direction: it gives the buffers of the PDUs to be
sent, for `sendmsg`, and cuts a sequence of Data-Outs into PDUs only when these are taken.
"""

from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import Final

from crc32c import crc32c

from iscsifs.errors import DigestError, ProtocolError
from iscsifs.iscsi.bhs import BHS_LENGTH, opcode_of, pack, unpack
from iscsifs.iscsi.pdu import DataOut, Pdu
from iscsifs.limits import MAX_DATA_OUTS

Buffer = bytes | bytearray | memoryview

DIGEST_LENGTH: Final = 4
"""Bytes of a CRC32C digest (section 11.2.3)."""

SCRATCH_LENGTH: Final = 12 * 1024
"""Bytes of the buffer for headers and small data segments: one read brings no more than 256 PDUs in it."""

FIRST_SCRATCH_LENGTH: Final = 4 * 1024
"""Bytes of that buffer until it is full for the first time: an idle connection takes little memory."""

_PADDING: Final = tuple(bytes(-n % 4) for n in range(4))
_LONGEST_PIECE: Final = BHS_LENGTH + 255 * 4 + DIGEST_LENGTH
_NO_DATA: Final = memoryview(b"")
_SN_AND_OFFSET: Final = Struct(">II4x")  # the end of a Data-Out's header


def digest(*pieces: Buffer) -> bytes:
    """Return the CRC32C of *pieces* one after the other, in the byte order of the wire (section 13.1)."""
    crc = 0
    for piece in pieces:
        crc = crc32c(piece, crc)
    return crc.to_bytes(DIGEST_LENGTH, "little")


def frame(
    pdu: Pdu, data: Buffer = b"", ahs: bytes = b"", *, header_digest: bool = False, data_digest: bool = False
) -> list[Buffer]:
    """Return the buffers that carry *pdu*, its AHS and data segment; *data* is among them, not copied."""
    length = len(data)
    header = pack(pdu, length, len(ahs)) + ahs
    if header_digest:
        header += digest(header)
    if not length:
        return [header]
    padding = _PADDING[length & 3]
    if data_digest:
        return [header, data, padding + digest(data, padding)]
    return [header, data, padding] if padding else [header, data]


def frame_sequence(
    last: DataOut, data: memoryview, longest: int, *, header_digest: bool, data_digest: bool
) -> list[Buffer]:
    """Return the buffers that carry *data* in a sequence of Data-Outs, none longer than *longest* bytes
    (section 11.7).

    *last* is what the last of them says of itself, but with the DataSN and the Buffer Offset of the first.
    A target that takes 8 KiB at a time has 128 of them for 1 MiB, which differ in these two fields only.
    """
    length = longest & ~3  # whole words, where more is to follow (section 11.7.7)
    count = max(-((longest - len(data)) // length), 0)
    common = pack(last._replace(flags=0), length)[: -_SN_AND_OFFSET.size]
    data_sn, offset = last.data_sn, last.buffer_offset
    buffers: list[Buffer] = []
    for start in range(0, count * length, length):
        header = common + _SN_AND_OFFSET.pack(data_sn, offset + start)
        piece = data[start : start + length]
        buffers.append(header + digest(header) if header_digest else header)
        buffers.append(piece)
        if data_digest:
            buffers.append(digest(piece))
        data_sn += 1
    start = count * length
    buffers += frame(
        last._replace(data_sn=data_sn, buffer_offset=offset + start),
        data[start:],
        header_digest=header_digest,
        data_digest=data_digest,
    )
    return buffers


Observer = Callable[[bool, Pdu, int], None]
"""Is called with each PDU for a log: whether it is sent, and the length of its data segment."""


class DataSequence:
    """What is not sent yet of a sequence of Data-Outs: unsolicited data, or the answer to one R2T.

    *last*, *data* and *longest* are those of `frame_sequence`. *all_taken* is called when the last PDU is
    taken.
    """

    __slots__ = ("all_taken", "data", "last", "longest")

    def __init__(
        self, last: DataOut, data: memoryview, longest: int, all_taken: Callable[[], None] | None = None
    ) -> None:
        self.last = last
        self.data = data
        self.longest = longest
        self.all_taken = all_taken

    def take(self, most: int) -> tuple[int, DataOut, memoryview]:
        """Remove up to *most* Data-Outs; return how many, and the arguments of `frame_sequence` for them."""
        last, data, length = self.last, self.data, self.longest & ~3
        size = most * length
        if len(data) <= size + (self.longest & 3):  # the last one of all need not be whole words
            self.data = data[:0]
            return max(-((self.longest - len(data)) // length), 0) + 1, last, data
        self.data = data[size:]
        self.last = last._replace(data_sn=last.data_sn + most, buffer_offset=last.buffer_offset + size)
        return most, last._replace(flags=0), data[:size]


class Sender:
    """The PDUs to be sent, in their order.

    `framed` holds the buffers that can be sent, `waiting` the sequences of Data-Outs that are not cut into
    PDUs yet, and the buffers of what is to be sent behind them.
    """

    def __init__(self, observer: Observer | None = None) -> None:
        self.header_digest = False
        self.data_digest = False
        self.waiting: deque[DataSequence | list[Buffer]] = deque()
        self.framed: list[Buffer] = []
        self._observer = observer

    def send(self, pdu: Pdu, data: Buffer = b"", ahs: bytes = b"") -> None:
        """Queue one PDU."""
        if self._observer is not None:
            self._observer(True, pdu, len(data))
        buffers = frame(pdu, data, ahs, header_digest=self.header_digest, data_digest=self.data_digest)
        if self.waiting:
            self.waiting.append(buffers)
        else:
            self.framed += buffers

    def send_sequence(self, sequence: DataSequence) -> None:
        """Queue a sequence of Data-Outs."""
        self.waiting.append(sequence)

    def frame_waiting(self, buffers: list[Buffer]) -> int:
        """Add to *buffers* what waits, up to MAX_DATA_OUTS Data-Outs; return how many Data-Outs that are."""
        made = 0
        while self.waiting and made < MAX_DATA_OUTS:
            first = self.waiting[0]
            if isinstance(first, DataSequence):
                count, last, data = first.take(MAX_DATA_OUTS - made)
                made += count
                self._frame_sequence(buffers, last, data, first.longest)
                if first.data:
                    break
                if first.all_taken is not None:
                    first.all_taken()
            else:
                buffers += first
            self.waiting.popleft()
        return made

    def _frame_sequence(self, out: list[Buffer], last: DataOut, data: memoryview, longest: int) -> None:
        length = longest & ~3
        if self._observer is not None:
            pdu, left = last, len(data)
            while left > longest:
                self._observer(True, pdu._replace(flags=0), length)
                pdu = pdu._replace(data_sn=pdu.data_sn + 1, buffer_offset=pdu.buffer_offset + length)
                left -= length
            self._observer(True, pdu, left)
        out += frame_sequence(
            last, data, longest, header_digest=self.header_digest, data_digest=self.data_digest
        )

    def clear(self) -> None:
        """Drop everything."""
        self.framed.clear()
        self.waiting.clear()


HeaderArrived = Callable[[Pdu, bytes, int], memoryview | None]
PduArrived = Callable[[Pdu, bytes, memoryview], None]


class Receiver:
    """Cuts a byte stream into PDUs.

    *header_arrived(pdu, ahs, data_length)* is called as soon as a header is whole and its digest right. It
    returns the memory, *data_length* bytes of it, that the data segment is to be received into, or None for
    a buffer of its own. *pdu_arrived(pdu, ahs, data)* is called when the data segment is there as well and
    its digest right. Both may raise ProtocolError, which `buffer_updated` passes on; after an error the
    receiver is not to be used.

    The two digest flags and `max_data_segment_length` (bytes, our own declaration, section 13.12) may be
    changed by *pdu_arrived*; they hold from the next PDU on.

    """

    def __init__(
        self,
        header_arrived: HeaderArrived,
        pdu_arrived: PduArrived,
        *,
        max_data_segment_length: int = 8192,
        ahs_allowed: bool = False,
    ) -> None:
        self.max_data_segment_length = max_data_segment_length
        self.header_digest = False
        self.data_digest = False
        self._header_arrived = header_arrived
        self._pdu_arrived = pdu_arrived
        self._ahs_allowed = ahs_allowed
        self._scratch = memoryview(bytearray(FIRST_SCRATCH_LENGTH))
        self._start = 0  # of the bytes in the scratch buffer that are not parsed yet
        self._end = 0
        self._pdu: Pdu | None = None  # the PDU whose data segment is on its way
        self._ahs = b""
        self._data = _NO_DATA
        self._filled = 0  # bytes of the data segment that are in place
        self._tail = 0  # bytes of padding and digest behind it

    @property
    def in_pdu(self) -> bool:
        """Whether a part of a PDU has arrived: the end of the stream now would cut it."""
        return self._pdu is not None or self._start != self._end

    @property
    def bytes_left(self) -> int | None:
        """How many bytes of the PDU that is arriving are to come; None while its header is not whole."""
        waiting = self._end - self._start
        if self._pdu is None:
            return None if waiting else 0
        left = len(self._data) - self._filled + self._tail - waiting
        return left if left >= 0 else None

    def get_buffer(self) -> memoryview:
        """Return the memory that the next bytes belong into; never empty."""
        if self._pdu is not None and self._filled < len(self._data):
            return self._data[self._filled :]
        length = len(self._scratch)
        if length < SCRATCH_LENGTH and self._end == length:
            left = self._scratch[self._start :]
            self._scratch = memoryview(bytearray(SCRATCH_LENGTH))
            self._scratch[: len(left)] = left
            self._start, self._end = 0, len(left)
        elif self._start == self._end:
            self._start = self._end = 0
        elif length - self._start < _LONGEST_PIECE:
            left = self._scratch[self._start : self._end]
            self._scratch[: len(left)] = bytes(left)
            self._start, self._end = 0, len(left)
        return self._scratch[self._end :]

    def buffer_updated(self, count: int) -> None:
        """Parse *count* bytes that were received into what `get_buffer` returned.

        Raises ProtocolError (with DigestError for a wrong CRC) when the peer broke a rule.
        """
        if self._pdu is not None and self._filled < len(self._data):
            self._filled += count
        else:
            self._end += count
        while True:
            if self._pdu is not None:
                if not self._data_segment():
                    return
            elif self._end - self._start < BHS_LENGTH or not self._header():
                return

    def _header(self) -> bool:
        """Parse the next header, whose BHS is in the scratch buffer; return False if its AHS or digest is
        missing."""
        start = self._start
        available = self._end - start
        scratch = self._scratch
        ahs_length = scratch[start + 4] * 4
        if ahs_length and not self._ahs_allowed:
            raise ProtocolError("an additional header segment is not allowed here", section="11.2.1.5")
        end = start + BHS_LENGTH + ahs_length
        if self.header_digest:
            if available < BHS_LENGTH + ahs_length + DIGEST_LENGTH:
                return False
            if digest(scratch[start:end]) != scratch[end : end + DIGEST_LENGTH]:
                raise DigestError("the header digest is wrong", section="7.8")
        elif self._end < end:
            return False
        pdu = unpack(scratch, start)
        length = scratch[start + 5] << 16 | scratch[start + 6] << 8 | scratch[start + 7]
        if length > self.max_data_segment_length:
            raise ProtocolError(
                f"a data segment of {length} bytes where {self.max_data_segment_length} were declared",
                section="13.12",
                pdu=pdu_name(pdu),
            )
        self._ahs = bytes(scratch[start + BHS_LENGTH : end]) if ahs_length else b""
        self._start = end + DIGEST_LENGTH if self.header_digest else end
        place = self._header_arrived(pdu, self._ahs, length)
        if not length:
            self._pdu_arrived(pdu, self._ahs, _NO_DATA)
            return True
        self._pdu = pdu
        self._data = memoryview(bytearray(length)) if place is None else place
        self._filled = 0
        self._tail = -length % 4 + (DIGEST_LENGTH if self.data_digest else 0)
        return True

    def _data_segment(self) -> bool:
        """Take the data segment's bytes out of the scratch buffer; return False if it is not whole yet."""
        data = self._data
        missing = len(data) - self._filled
        if missing:
            count = min(missing, self._end - self._start)
            data[self._filled : self._filled + count] = self._scratch[self._start : self._start + count]
            self._filled += count
            self._start += count
            if count < missing:
                return False
        tail = self._tail
        if tail:
            if self._end - self._start < tail:
                return False
            behind = self._scratch[self._start : self._start + tail]
            self._start += tail
            if self.data_digest and digest(data, behind[:-DIGEST_LENGTH]) != behind[-DIGEST_LENGTH:]:
                assert self._pdu is not None
                raise DigestError("the data digest is wrong", section="7.8", pdu=pdu_name(self._pdu))
        pdu, self._pdu = self._pdu, None
        self._data = _NO_DATA
        assert pdu is not None
        self._pdu_arrived(pdu, self._ahs, data)
        return True


def pdu_name(pdu: Pdu) -> str:
    """Return the name of *pdu* as messages give it, such as `DATA_IN`."""
    return opcode_of(pdu).name
