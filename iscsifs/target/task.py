"""A SCSI task on the target's side: how the data of a write come in, and how a command's end goes out.

A task knows the rules for its own Data-Out, R2T and Data-In (RFC 7143 sections 4.2.5.2 and 11.4 to 11.8). The
numbers that it shares with other tasks are put in by `connection.Connection`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from iscsifs.errors import ProtocolError
from iscsifs.iscsi.keys import Parameters
from iscsifs.iscsi.pdu import (
    FINAL,
    RESERVED_TAG,
    CommandFlag,
    DataInFlag,
    DataOut,
    ResponseFlag,
    ScsiCommand,
)
from iscsifs.scsi.status import Status
from iscsifs.target.unit import Operation, Result

_EXTENDED_CDB: Final = 1  # the AHSType of the rest of a long CDB (section 11.2.2.3)


@dataclass(slots=True)
class Burst:
    """A sequence of Data-Outs: bytes up to *end*, of which those below *offset* are there."""

    offset: int
    end: int
    data_sn: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """One Data-In: *flags* with the status in the last one where it goes along."""

    flags: int
    offset: int
    data: memoryview
    data_sn: int


class Task:
    """One command from its arrival in order to its end.

    `data` is what arrived for it, and `ready` whether that is all there is to wait for. `bursts` are the
    sequences under way by their Target Transfer Tags. Raises ProtocolError for a *command* whose flags or
    immediate data break a rule.
    """

    def __init__(
        self,
        command: ScsiCommand,
        cdb: bytes,
        immediate_data: memoryview,
        parameters: Parameters,
        prepare: Callable[[int, bytes], Operation],
    ) -> None:
        _check(command, len(immediate_data), parameters)
        self.command = command
        self.lun = command.lun
        self.tag = command.initiator_task_tag
        self.cdb = cdb
        self.aborted = False
        writes = bool(command.flags & CommandFlag.WRITE)
        self.expected = command.expected_data_transfer_length
        self.operation = prepare(command.lun, cdb).announced(self.expected if writes else 0)
        total = min(self.operation.data_out_length, self.expected) if writes else 0
        if len(immediate_data) >= total:
            self.data = immediate_data[:total]
        else:
            self.data = memoryview(bytearray(total))
            self.data[: len(immediate_data)] = immediate_data
        self.bursts: dict[int, Burst] = {}
        self._parameters = parameters
        self._solicited = len(immediate_data)  # the offset up to which data are there or asked for
        self._r2t_sn = 0
        if not command.flags & CommandFlag.FINAL:
            self._solicited = min(parameters.first_burst_length, self.expected)
            self.bursts[RESERVED_TAG] = Burst(len(immediate_data), self._solicited)

    @property
    def ready(self) -> bool:
        """Whether the command can be carried out."""
        return not self.bursts and self._solicited >= len(self.data)

    def place(self, pdu: DataOut, length: int) -> memoryview | None:
        """Return where the data segment of *pdu* belongs; None where it is not wanted, or not allowed."""
        end = pdu.buffer_offset + length
        burst = self.bursts.get(pdu.target_transfer_tag)
        if self.aborted or burst is None or end > min(burst.end, len(self.data)):
            return None
        return self.data[pdu.buffer_offset : end]

    def receive(self, pdu: DataOut, data: memoryview) -> None:
        """Take a Data-Out, whose *data* may be in place already; raises ProtocolError (section 11.7)."""

        def broken(rule: str, section: str) -> ProtocolError:
            return ProtocolError(rule, section=section, pdu="DATA_OUT")

        burst = self.bursts.get(pdu.target_transfer_tag)
        if burst is None:
            raise broken(f"Target Transfer Tag {pdu.target_transfer_tag:08x}h is not in use", "11.7.4")
        if pdu.target_transfer_tag != RESERVED_TAG and pdu.lun != self.lun:
            raise broken("it names another LUN than the R2T", "11.7.4")
        if pdu.data_sn != burst.data_sn:
            raise broken(f"DataSN {pdu.data_sn} where {burst.data_sn} was due", "11.7.5")
        if pdu.buffer_offset != burst.offset:
            raise broken(f"offset {pdu.buffer_offset} where {burst.offset} was due", "11.7.6")
        end = burst.offset + len(data)
        if end > burst.end:
            raise broken(f"{end - burst.end} bytes more than were asked for", "4.2.5.2")
        if (end == burst.end) != bool(pdu.flags & FINAL):
            raise broken("F is set exactly in the last PDU of a sequence", "11.7.1")
        if not self.aborted and (room := self.data[burst.offset : end]):
            room[:] = data[: len(room)]
        burst.data_sn += 1
        burst.offset = end
        if end == burst.end:
            del self.bursts[pdu.target_transfer_tag]

    def solicit(self, new_tag: Callable[[], int]) -> Iterator[tuple[int, int, int, int]]:
        """Ask for what is missing: give Target Transfer Tag, R2TSN, offset and length of each new R2T."""
        if RESERVED_TAG in self.bursts:
            return
        while self._solicited < len(self.data) and len(self.bursts) < self._parameters.max_outstanding_r2t:
            offset = self._solicited
            length = min(self._parameters.max_burst_length, len(self.data) - offset)
            self._solicited += length
            tag = new_tag()
            self.bursts[tag] = Burst(offset, offset + length)
            yield tag, self._r2t_sn, offset, length
            self._r2t_sn += 1

    def abort(self) -> None:
        """End the task without an answer; R2Ts that are out are still to be answered (section 4.2.3.3)."""
        self.aborted = True
        self._solicited = len(self.data)

    def data_in(self, result: Result, *, status_in_data: bool) -> Iterator[Piece]:
        """Cut the data of *result* into Data-Ins: none above the initiator's limit, F at the end of a burst.

        With *status_in_data* a GOOD status goes along with the last one.
        """
        data = memoryview(result.data)[: self.expected if self._reads else 0]
        size, burst = self._parameters.max_send_data_segment_length, self._parameters.max_burst_length
        offset = data_sn = 0
        while offset < len(data):
            end = min(offset + size, len(data), offset - offset % burst + burst)
            flags = 0
            if end == len(data) or end % burst == 0:
                flags |= DataInFlag.FINAL
            if end == len(data) and status_in_data and result.status == Status.GOOD:
                flags |= DataInFlag.STATUS
            yield Piece(flags, offset, data[offset:end], data_sn)
            offset = end
            data_sn += 1

    def sequence_count(self, data_ins: int) -> int:
        """Return the ExpDataSN of the response: Data-Ins, or R2Ts, that were sent (section 11.4.8)."""
        return data_ins if self._reads else self._r2t_sn

    def residual(self, result: Result) -> tuple[int, int]:
        """Return the flag and the count of what was not transferred (section 11.4.5)."""
        moved = len(result.data)
        if self.command.flags & CommandFlag.WRITE or not moved:
            moved = self.operation.data_out_length
        if moved > self.expected:
            return ResponseFlag.OVERFLOW, moved - self.expected
        if moved < self.expected:
            return ResponseFlag.UNDERFLOW, self.expected - moved
        return 0, 0

    @property
    def _reads(self) -> bool:
        return bool(self.command.flags & CommandFlag.READ)


def _check(command: ScsiCommand, immediate: int, parameters: Parameters) -> None:
    """Check the flags and the length of the immediate data of *command* (sections 11.3.1 and 13)."""

    def broken(rule: str, section: str) -> ProtocolError:
        return ProtocolError(rule, section=section, pdu="SCSI_COMMAND")

    writes, final = command.flags & CommandFlag.WRITE, command.flags & CommandFlag.FINAL
    expected = command.expected_data_transfer_length
    if not final and not writes:
        raise broken("neither W nor F is set", "11.3.1")
    if not final and parameters.initial_r2t:
        raise broken("unsolicited data are announced, but InitialR2T=Yes", "13.10")
    if not final and immediate >= min(parameters.first_burst_length, expected):
        raise broken("unsolicited data are announced where there can be none", "11.3.1")
    if immediate:
        if not writes:
            raise broken("immediate data in a command that writes nothing", "11.3.6")
        if not parameters.immediate_data:
            raise broken("immediate data, but ImmediateData=No", "13.11")
        if immediate > min(parameters.first_burst_length, expected):
            raise broken(f"{immediate} bytes of immediate data are too much", "13.14")


def rest_of_cdb(ahs: bytes) -> bytes:
    """Return what an Extended CDB AHS holds of a CDB (section 11.2.2.3). Raises ProtocolError."""
    rest = b""
    while ahs:
        length = int.from_bytes(ahs[:2], "big")
        if len(ahs) < 4 + length - 1 or ahs[2] != _EXTENDED_CDB or not length:
            raise ProtocolError("a malformed or unknown AHS", section="11.2.2", pdu="SCSI_COMMAND")
        rest += ahs[4 : 3 + length]
        ahs = ahs[3 + length + (1 - length) % 4 :]
    return rest
