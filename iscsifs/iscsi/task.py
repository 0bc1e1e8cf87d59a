"""A SCSI task on the initiator's side: its data, both ways, and how it ends (RFC 7143 sections 11.3 to 11.8).

A task knows the rules for its own Data-In, Data-Out, R2T and status. What it shares with other tasks, the
windows and the tags, belongs to `connection.Connection`.
"""

from collections.abc import Callable
from typing import Final

from iscsifs.errors import DataError, IscsifsError, ProtocolError, TaskAborted
from iscsifs.iscsi.framing import DataSequence
from iscsifs.iscsi.keys import Parameters
from iscsifs.iscsi.pdu import (
    FINAL,
    R2T,
    RESERVED_TAG,
    CommandFlag,
    DataIn,
    DataInFlag,
    DataOut,
    ResponseFlag,
    ScsiCommand,
    ScsiResponse,
)
from iscsifs.limits import MAX_SENSE_LENGTH

GOOD = 0x00
CHECK_CONDITION = 0x02
COMMAND_COMPLETED_AT_TARGET = 0x00
TARGET_FAILURE = 0x01

NOTHING = memoryview(b"")

# As plain numbers, which are faster to work with than members of an enumeration.
DATA_IN_STATUS: Final = int(DataInFlag.STATUS)
_UNDERFLOW: Final = int(ResponseFlag.UNDERFLOW)  # in a Data-In as well
_OVERFLOW: Final = int(ResponseFlag.OVERFLOW)
_NO_DATA: Final = FINAL | CommandFlag.SIMPLE
_READ: Final = _NO_DATA | CommandFlag.READ
_WRITE: Final = CommandFlag.SIMPLE | CommandFlag.WRITE


class Task:
    """One SCSI command, from the queue to its end.

    *lun* is the 64-bit LUN, *cdb* at least 6 bytes; what is longer than 16 travels in an AHS. *data_in* is
    the memory that a read fills, *data_out* what a write sends; at most one of them is not empty.

    *on_end* is called once when the task has ended; *owner* may recall the task. When the task has `ended`,
    `failure` says why there is no status, or is None. Then `status` and `sense` are the target's, `received`
    counts the bytes in *data_in*, and `residual` those that the target did not transfer out of the expected
    ones (section 11.4.5); negative means that it had more.
    """

    __slots__ = (
        "aborting",
        "cdb",
        "cmd_sn",
        "cut_short",
        "data_in",
        "data_out",
        "ended",
        "failure",
        "initiator_task_tag",
        "lun",
        "next_data_sn",
        "next_r2t_sn",
        "on_end",
        "owner",
        "r2ts_unsent",
        "received",
        "residual",
        "sense",
        "sent",
        "sequence_end",
        "status",
        "ticks",
    )

    def __init__(
        self,
        lun: int,
        cdb: bytes,
        *,
        data_in: memoryview = NOTHING,
        data_out: memoryview = NOTHING,
        on_end: "Callable[[Task], None] | None" = None,
        owner: object = None,
    ) -> None:
        self.lun = lun
        self.cdb = cdb
        self.data_in = data_in
        self.data_out = data_out
        self.on_end = on_end
        self.owner = owner
        self.initiator_task_tag = RESERVED_TAG
        self.cmd_sn = 0
        self.ticks = 0
        self.received = 0
        self.next_data_sn = 0
        self.sent = 0  # bytes of Data-Out and immediate data
        self.sequence_end = 0  # the offset behind the last sequence of them
        self.next_r2t_sn = 0
        self.r2ts_unsent = 0
        self.aborting = False  # what R2Ts ask for is cut short (section 11.5.1)
        self.cut_short = False
        self.ended = False
        self.failure: IscsifsError | None = None
        self.status = GOOD
        self.sense = b""
        self.residual = 0

    @property
    def on_the_wire(self) -> bool:
        """Whether the target may know of this task."""
        return self.initiator_task_tag != RESERVED_TAG and not self.ended

    def tell(self) -> None:
        """Call `on_end`, once."""
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(self)

    @property
    def residual_is_odd(self) -> bool:
        """Whether a read has a residual although all of its data arrived. Of a write it is not known here how
        much the target has used."""
        return (
            self.residual > 0
            and self.status == GOOD
            and bool(self.data_in)
            and (self.received == len(self.data_in))
        )

    def fail(self, failure: IscsifsError) -> None:
        """End the task without a status."""
        self.failure = failure
        self.ended = True

    # Sending: the command with its unsolicited data, then what R2Ts ask for.

    def start(
        self, parameters: Parameters, tag: int, cmd_sn: int, exp_stat_sn: int
    ) -> tuple[ScsiCommand, bytes, memoryview, DataSequence | None]:
        """Return the command, its AHS and immediate data, and the unsolicited data behind it (section
        4.2.5.2)."""
        self.initiator_task_tag = tag
        self.cmd_sn = cmd_sn
        flags: int
        burst = None
        if self.data_out:
            flags = _WRITE
            longest = parameters.max_send_data_segment_length
            first_burst = min(parameters.first_burst_length, len(self.data_out))
            immediate = unsolicited = 0
            if parameters.immediate_data:
                # In whole words if more is to follow (section 11.7.7).
                immediate = first_burst if first_burst <= longest else longest & ~3
            if not parameters.initial_r2t:
                unsolicited = first_burst - immediate
            if unsolicited:
                pdu = DataOut(FINAL, 0, tag, RESERVED_TAG, exp_stat_sn, 0, immediate)
                burst = DataSequence(pdu, self.data_out[immediate:first_burst], longest)
            else:
                flags |= FINAL
            self.sent = self.sequence_end = immediate + unsolicited
            expected, data = len(self.data_out), self.data_out[:immediate]
        else:
            flags = _READ if self.data_in else _NO_DATA
            expected, data = len(self.data_in), NOTHING
        cdb = self.cdb
        command = ScsiCommand(flags, self.lun, tag, expected, cmd_sn, exp_stat_sn, cdb[:16])
        return command, _extended_cdb(cdb) if len(cdb) > 16 else b"", data, burst

    def solicited(self, r2t: R2T, parameters: Parameters, exp_stat_sn: int) -> DataSequence | None:
        """Check *r2t* and return the data that answer it (section 11.8); None for a repeated one.

        Raises ProtocolError before anything is sent for an R2T that breaks a rule.
        """
        if r2t.lun != self.lun:
            raise _broken("R2T", "it names another LUN than the command", "11.8")
        if not self.data_out:
            raise _broken("R2T", "the command writes no data", "4.2.5.2")
        if r2t.r2t_sn != self.next_r2t_sn:
            if r2t.r2t_sn < self.next_r2t_sn:
                return None
            raise _broken("R2T", f"R2TSN {r2t.r2t_sn} where {self.next_r2t_sn} was due", "11.8.2")
        if r2t.target_transfer_tag == RESERVED_TAG:
            raise _broken("R2T", "its Target Transfer Tag is the reserved one", "11.8.5")
        offset, length = r2t.buffer_offset, r2t.desired_data_transfer_length
        if not 0 < length <= parameters.max_burst_length:
            raise _broken(
                "R2T",
                f"it asks for {length} bytes; MaxBurstLength is {parameters.max_burst_length}",
                "11.8.4",
            )
        if offset + length > len(self.data_out):
            raise _broken(
                "R2T", f"it asks for bytes {offset} to {offset + length} of {len(self.data_out)}", "4.2.5.2"
            )
        if parameters.data_sequence_in_order and offset < self.sequence_end:
            raise _broken(
                "R2T", f"offset {offset} below {self.sequence_end} with DataSequenceInOrder=Yes", "13.19"
            )
        self.r2ts_unsent += 1
        if self.r2ts_unsent > parameters.max_outstanding_r2t:
            raise _broken(
                "R2T", f"more than MaxOutstandingR2T ({parameters.max_outstanding_r2t}) at once", "13.17"
            )
        self.next_r2t_sn += 1
        if self.aborting and length > parameters.max_send_data_segment_length:
            length = parameters.max_send_data_segment_length
            self.cut_short = True
        self.sent += length
        self.sequence_end = offset + length
        tag, transfer_tag = self.initiator_task_tag, r2t.target_transfer_tag
        pdu = DataOut(FINAL, self.lun, tag, transfer_tag, exp_stat_sn, 0, offset)
        data = self.data_out[offset : offset + length]
        return DataSequence(pdu, data, parameters.max_send_data_segment_length, self._r2t_answered)

    def _r2t_answered(self) -> None:
        self.r2ts_unsent -= 1

    # Receiving: Data-In, then the status in the last of them or in a SCSI Response.

    def data_in_announced(self, pdu: DataIn, length: int) -> memoryview | None:
        """Check the header of a Data-In and return where its *length* bytes belong (section 11.7).

        None means that the PDU repeats an earlier one, and that its bytes are to be thrown away.
        """

        if not self.data_in:
            raise _broken("DATA_IN", "the command reads no data", "4.2.5.3")
        if pdu.data_sn != self.next_data_sn:
            if pdu.data_sn < self.next_data_sn and not pdu.flags & DATA_IN_STATUS:
                return None
            raise _broken("DATA_IN", f"DataSN {pdu.data_sn} where {self.next_data_sn} was due", "7.9")
        if pdu.buffer_offset + length > len(self.data_in):
            raise _broken(
                "DATA_IN",
                f"{length} bytes at offset {pdu.buffer_offset} go beyond the {len(self.data_in)} expected",
                "11.7.6",
            )
        # DataPDUInOrder=Yes and DataSequenceInOrder=Yes is all that is ever agreed to for reads.
        if pdu.buffer_offset != self.received:
            raise _broken("DATA_IN", f"offset {pdu.buffer_offset} where {self.received} was due", "11.7.6")
        if pdu.flags & DATA_IN_STATUS:
            if not pdu.flags & FINAL:
                raise _broken("DATA_IN", "S=1 without F=1", "11.7.3")
            if pdu.status == CHECK_CONDITION:
                raise _broken("DATA_IN", "a status with sense data cannot come in a Data-In", "11.7.3")
        return self.data_in[self.received : self.received + length]

    def data_in_arrived(self, pdu: DataIn, length: int) -> None:
        """Count the *length* bytes of a Data-In that is now in place; end the task if it carries the
        status."""
        self.next_data_sn += 1
        self.received += length
        flags = pdu.flags
        if flags & DATA_IN_STATUS:
            self.status = pdu.status
            self._end(flags & _UNDERFLOW, flags & _OVERFLOW, pdu.residual_count, "DATA_IN")

    def response_arrived(self, pdu: ScsiResponse, data: memoryview) -> None:
        """End the task with a SCSI Response and its data segment (section 11.4)."""

        if pdu.response != COMMAND_COMPLETED_AT_TARGET:
            if pdu.response != TARGET_FAILURE and pdu.response < 0x80:
                raise _broken("SCSI_RESPONSE", f"response {pdu.response:02x}h is reserved", "11.4.3")
            self.fail(TaskAborted(f"the target gave up the command (response {pdu.response:02x}h)"))
            return
        # tgt does not count the Data-In that it sends before it fails a command that it does not know.
        if self.data_in and pdu.status == GOOD and pdu.exp_data_sn != self.next_data_sn:
            raise _broken(
                "SCSI_RESPONSE", f"ExpDataSN {pdu.exp_data_sn} after {self.next_data_sn} Data-In", "11.4.8"
            )
        if pdu.flags & ResponseFlag.BIDI_UNDERFLOW and pdu.flags & ResponseFlag.BIDI_OVERFLOW:
            raise _broken("SCSI_RESPONSE", "u and o are both set", "11.4.1")
        self.status = pdu.status
        if data:
            self.sense = read_sense(data, "SCSI_RESPONSE")
        self._end(
            pdu.flags & _UNDERFLOW,
            pdu.flags & _OVERFLOW,
            pdu.residual_count,
            "SCSI_RESPONSE",
        )

    def _end(self, underflow: int, overflow: int, residual_count: int, pdu: str) -> None:
        """End the task with its status; check the residual count by what was transferred (section 11.4.5)."""
        if underflow and overflow:
            raise ProtocolError("U and O are both set", section="11.4.1", pdu=pdu)
        self.ended = True
        self.residual = -residual_count if overflow else residual_count if underflow else 0
        if self.status != GOOD:
            return
        if self.cut_short:  # the target has refused to abort it, and may take it for complete
            self.failure = TaskAborted("its data were cut short, as it was to be aborted")
            return
        expected = len(self.data_in) or len(self.data_out)
        transferred = self.received + self.sent
        if max(self.residual, 0) != expected - transferred and not self.residual_is_odd:
            self.failure = DataError(
                f"{transferred} of {expected} bytes moved, with GOOD status and residual {self.residual}"
            )


def _broken(pdu: str, rule: str, section: str) -> ProtocolError:
    return ProtocolError(rule, section=section, pdu=pdu)


def read_sense(data: memoryview, pdu: str) -> bytes:
    """Return the first MAX_SENSE_LENGTH bytes of the sense data of a data segment (section 11.4.7).

    They are empty where there are none: istgt sends none with some errors.

    Raises ProtocolError where SenseLength goes beyond the segment.
    """
    if not data:
        return b""
    length = int.from_bytes(data[:2], "big")
    if 2 + length > len(data):
        rule = f"SenseLength {length} in a data segment of {len(data)} bytes"
        raise ProtocolError(rule, section="11.4.7", pdu=pdu)
    return bytes(data[2 : 2 + min(length, MAX_SENSE_LENGTH)])


def _extended_cdb(cdb: bytes) -> bytes:
    """Return the Extended CDB AHS for a *cdb* of more than 16 bytes (section 11.2.2.3)."""
    rest = cdb[16:]
    return (len(rest) + 1).to_bytes(2, "big") + b"\x01\x00" + rest + bytes(-len(rest) % 4)
