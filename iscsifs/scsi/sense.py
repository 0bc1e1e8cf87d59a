"""Sense data: what went wrong, in words and as a class of conditions (SPC-3 section 4.5).

Two tables do the work: `_TEXTS` has the words for additional sense codes, `_CONDITIONS` what they mean to an
initiator. Both were chosen from T10's list of assigned codes for what a disk over iSCSI sends.
"""

import struct
from dataclasses import dataclass, replace
from enum import Enum, IntEnum, auto


class SenseKey(IntEnum):
    """The kind of a condition (SPC-3 section 4.5.6)."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    VENDOR_SPECIFIC = 0x9
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    EQUAL = 0xC
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE
    COMPLETED = 0xF


class Condition(Enum):
    """What sense data mean to an initiator. Unless said otherwise the command had no effect."""

    RECOVERED = auto()
    """The command succeeded; the sense data are a warning."""
    RETRY = auto()
    """The same command sent again, as a new task, can succeed."""
    BECOMING_READY = auto()
    """The same command can succeed in seconds."""
    RESET = auto()
    """The unit was reset or lost power: its volatile cache may be gone. Then as RETRY."""
    COMMANDS_CLEARED = auto()
    """Commands without an answer were dropped; the cache was not. Then as RETRY."""
    DEFERRED_ERROR = auto()
    """An earlier command that ended with GOOD has failed after all: what it wrote may be lost.
    Then as RETRY."""
    CAPACITY_CHANGED = auto()
    """READ CAPACITY gives something else now. Then as RETRY."""
    LUNS_CHANGED = auto()
    """REPORT LUNS gives something else now. Then as RETRY."""
    INQUIRY_CHANGED = auto()
    """INQUIRY gives something else now: it may be another unit. Then as RETRY."""
    MODE_CHANGED = auto()
    """MODE SENSE gives something else now, such as write protection or the cache's state. Then as RETRY."""
    MEDIUM_CHANGED = auto()
    """Another medium may be in the unit: everything known of it is void. Then as RETRY."""
    NOT_READY = auto()
    """The unit cannot work until somebody acts."""
    NO_MEDIUM = auto()
    """There is no medium in the unit."""
    MEDIUM_ERROR = auto()
    """These blocks cannot be read or written; others can. An earlier part may have been transferred."""
    WRITE_PROTECTED = auto()
    """The unit, or this part of it, cannot be written."""
    NO_SPACE = auto()
    """A thinly provisioned unit has no room for the blocks."""
    UNSUPPORTED = auto()
    """The unit does not know the command, or a field in it."""
    OUT_OF_RANGE = auto()
    """The command goes past the end of the unit, which may have shrunk."""
    NO_UNIT = auto()
    """There is no logical unit under this LUN (any more); it, or another one, may come (back)."""
    MISCOMPARE = auto()
    """The blocks do not hold what the command expected."""
    FAILED = auto()
    """It failed, and nothing is known that would help."""

    @property
    def repeatable(self) -> bool:
        """True for RETRY and every condition that ends "then as RETRY"."""
        return self in _REPEATABLE


_REPEATABLE = frozenset(
    {
        Condition.RETRY,
        Condition.BECOMING_READY,
        Condition.RESET,
        Condition.COMMANDS_CLEARED,
        Condition.DEFERRED_ERROR,
        Condition.CAPACITY_CHANGED,
        Condition.LUNS_CHANGED,
        Condition.INQUIRY_CHANGED,
        Condition.MODE_CHANGED,
        Condition.MEDIUM_CHANGED,
    }
)


# What a code means: (key, ASC, ASCQ) first, then (key, ASC), then (key).
_CONDITIONS: dict[tuple[int, ...], Condition] = {
    (SenseKey.NO_SENSE,): Condition.FAILED,
    (SenseKey.RECOVERED_ERROR,): Condition.RECOVERED,
    (SenseKey.COMPLETED,): Condition.RECOVERED,
    (SenseKey.NOT_READY,): Condition.NOT_READY,
    (SenseKey.NOT_READY, 0x04, 0x01): Condition.BECOMING_READY,
    (SenseKey.NOT_READY, 0x04, 0x07): Condition.BECOMING_READY,
    (SenseKey.NOT_READY, 0x04, 0x08): Condition.BECOMING_READY,
    (SenseKey.NOT_READY, 0x04, 0x09): Condition.BECOMING_READY,
    (SenseKey.NOT_READY, 0x04, 0x0A): Condition.BECOMING_READY,
    (SenseKey.NOT_READY, 0x04, 0x11): Condition.BECOMING_READY,
    (SenseKey.NOT_READY, 0x04, 0x14): Condition.BECOMING_READY,
    (SenseKey.NOT_READY, 0x04, 0x1A): Condition.BECOMING_READY,
    (SenseKey.NOT_READY, 0x04, 0x1C): Condition.BECOMING_READY,
    (SenseKey.NOT_READY, 0x04, 0x1D): Condition.BECOMING_READY,
    (SenseKey.NOT_READY, 0x3A): Condition.NO_MEDIUM,
    (SenseKey.NOT_READY, 0x3E, 0x00): Condition.BECOMING_READY,
    (SenseKey.MEDIUM_ERROR,): Condition.MEDIUM_ERROR,
    (SenseKey.BLANK_CHECK,): Condition.MEDIUM_ERROR,
    (SenseKey.ILLEGAL_REQUEST, 0x1A): Condition.UNSUPPORTED,
    (SenseKey.ILLEGAL_REQUEST, 0x20, 0x00): Condition.UNSUPPORTED,
    (SenseKey.ILLEGAL_REQUEST, 0x21): Condition.OUT_OF_RANGE,
    (SenseKey.ILLEGAL_REQUEST, 0x24): Condition.UNSUPPORTED,
    (SenseKey.ILLEGAL_REQUEST, 0x25): Condition.NO_UNIT,
    (SenseKey.ILLEGAL_REQUEST, 0x26): Condition.UNSUPPORTED,
    (SenseKey.ILLEGAL_REQUEST, 0x27): Condition.WRITE_PROTECTED,
    (SenseKey.ILLEGAL_REQUEST, 0x27, 0x07): Condition.NO_SPACE,
    (SenseKey.ILLEGAL_REQUEST, 0x39): Condition.UNSUPPORTED,
    (SenseKey.ILLEGAL_REQUEST, 0x3A): Condition.NO_MEDIUM,
    (SenseKey.UNIT_ATTENTION,): Condition.RETRY,
    (SenseKey.UNIT_ATTENTION, 0x28): Condition.MEDIUM_CHANGED,
    # A code for a reset that is not in the list is taken for the worst: the cache is gone.
    (SenseKey.UNIT_ATTENTION, 0x29): Condition.RESET,
    (SenseKey.UNIT_ATTENTION, 0x29, 0x05): Condition.RETRY,
    (SenseKey.UNIT_ATTENTION, 0x29, 0x06): Condition.RETRY,
    (SenseKey.UNIT_ATTENTION, 0x29, 0x07): Condition.COMMANDS_CLEARED,
    (SenseKey.UNIT_ATTENTION, 0x2A, 0x00): Condition.MODE_CHANGED,
    (SenseKey.UNIT_ATTENTION, 0x2A, 0x01): Condition.MODE_CHANGED,
    (SenseKey.UNIT_ATTENTION, 0x2A, 0x09): Condition.CAPACITY_CHANGED,
    (SenseKey.UNIT_ATTENTION, 0x2F): Condition.COMMANDS_CLEARED,
    (SenseKey.UNIT_ATTENTION, 0x2F, 0x01): Condition.RESET,
    (SenseKey.UNIT_ATTENTION, 0x3F, 0x01): Condition.INQUIRY_CHANGED,
    (SenseKey.UNIT_ATTENTION, 0x3F, 0x02): Condition.INQUIRY_CHANGED,
    (SenseKey.UNIT_ATTENTION, 0x3F, 0x03): Condition.INQUIRY_CHANGED,
    (SenseKey.UNIT_ATTENTION, 0x3F, 0x05): Condition.INQUIRY_CHANGED,
    # The controller of an array has put another volume behind the LUN (SCC-2).
    (SenseKey.UNIT_ATTENTION, 0x3F, 0x0A): Condition.INQUIRY_CHANGED,
    (SenseKey.UNIT_ATTENTION, 0x3F, 0x0B): Condition.INQUIRY_CHANGED,
    (SenseKey.UNIT_ATTENTION, 0x3F, 0x0C): Condition.INQUIRY_CHANGED,
    (SenseKey.UNIT_ATTENTION, 0x3F, 0x0D): Condition.INQUIRY_CHANGED,
    (SenseKey.UNIT_ATTENTION, 0x3F, 0x0E): Condition.LUNS_CHANGED,
    (SenseKey.UNIT_ATTENTION, 0x47, 0x7F): Condition.COMMANDS_CLEARED,
    (SenseKey.UNIT_ATTENTION, 0x5A, 0x02): Condition.MODE_CHANGED,
    (SenseKey.UNIT_ATTENTION, 0x5A, 0x03): Condition.MODE_CHANGED,
    (SenseKey.DATA_PROTECT,): Condition.WRITE_PROTECTED,
    (SenseKey.DATA_PROTECT, 0x27, 0x07): Condition.NO_SPACE,
    # Access denied is no write protection: reads fail as well.
    (SenseKey.DATA_PROTECT, 0x20): Condition.FAILED,
    (SenseKey.DATA_PROTECT, 0x74): Condition.FAILED,
    (SenseKey.ABORTED_COMMAND,): Condition.RETRY,
    # Protection information did not match: the next attempt would write or read the same data.
    (SenseKey.ABORTED_COMMAND, 0x10): Condition.FAILED,
    (SenseKey.MISCOMPARE,): Condition.MISCOMPARE,
}

_TEXTS: dict[tuple[int, int], str] = {
    (0x00, 0x00): "no additional sense information",
    (0x00, 0x16): "operation in progress",
    (0x02, 0x00): "no seek complete",
    (0x03, 0x00): "peripheral device write fault",
    (0x04, 0x00): "logical unit not ready, cause not reportable",
    (0x04, 0x01): "logical unit is in process of becoming ready",
    (0x04, 0x02): "logical unit not ready, initializing command required",
    (0x04, 0x03): "logical unit not ready, manual intervention required",
    (0x04, 0x04): "logical unit not ready, format in progress",
    (0x04, 0x05): "logical unit not ready, rebuild in progress",
    (0x04, 0x06): "logical unit not ready, recalculation in progress",
    (0x04, 0x07): "logical unit not ready, operation in progress",
    (0x04, 0x08): "logical unit not ready, long write in progress",
    (0x04, 0x09): "logical unit not ready, self-test in progress",
    (0x04, 0x0A): "logical unit not accessible, asymmetric access state transition",
    (0x04, 0x0B): "logical unit not accessible, target port in standby state",
    (0x04, 0x0C): "logical unit not accessible, target port in unavailable state",
    (0x04, 0x11): "logical unit not ready, notify (enable spinup) required",
    (0x04, 0x12): "logical unit not ready, offline",
    (0x04, 0x14): "logical unit not ready, space allocation in progress",
    (0x04, 0x1A): "logical unit not ready, start stop unit command in progress",
    (0x04, 0x1B): "logical unit not ready, sanitize in progress",
    (0x04, 0x1C): "logical unit not ready, additional power use not yet granted",
    (0x04, 0x1D): "logical unit not ready, configuration in progress",
    (0x05, 0x00): "logical unit does not respond to selection",
    (0x08, 0x00): "logical unit communication failure",
    (0x08, 0x01): "logical unit communication time-out",
    (0x0B, 0x00): "warning",
    (0x0B, 0x01): "warning, specified temperature exceeded",
    (0x0B, 0x06): "warning, non-volatile cache now volatile",
    (0x0C, 0x00): "write error",
    (0x0C, 0x02): "write error, auto reallocation failed",
    (0x0C, 0x03): "write error, recommend reassignment",
    (0x0C, 0x0C): "write error, unexpected unsolicited data",
    (0x0C, 0x0D): "write error, not enough unsolicited data",
    (0x10, 0x00): "ID CRC or ECC error",
    (0x10, 0x01): "logical block guard check failed",
    (0x10, 0x02): "logical block application tag check failed",
    (0x10, 0x03): "logical block reference tag check failed",
    (0x11, 0x00): "unrecovered read error",
    (0x11, 0x01): "read retries exhausted",
    (0x11, 0x02): "error too long to correct",
    (0x11, 0x03): "multiple read errors",
    (0x11, 0x04): "unrecovered read error, auto reallocate failed",
    (0x11, 0x0B): "unrecovered read error, recommend reassignment",
    (0x11, 0x0C): "unrecovered read error, recommend rewrite the data",
    (0x11, 0x13): "read error, failed retransmission request",
    (0x11, 0x14): "read error, LBA marked bad by application client",
    (0x14, 0x00): "recorded entity not found",
    (0x14, 0x01): "record not found",
    (0x15, 0x00): "random positioning error",
    (0x17, 0x00): "recovered data with no error correction applied",
    (0x17, 0x01): "recovered data with retries",
    (0x18, 0x00): "recovered data with error correction applied",
    (0x18, 0x02): "recovered data, data auto-reallocated",
    (0x1A, 0x00): "parameter list length error",
    (0x1D, 0x00): "miscompare during verify operation",
    (0x20, 0x00): "invalid command operation code",
    (0x20, 0x02): "access denied, no access rights",
    (0x21, 0x00): "logical block address out of range",
    (0x21, 0x04): "unaligned write command",
    (0x24, 0x00): "invalid field in CDB",
    (0x25, 0x00): "logical unit not supported",
    (0x26, 0x00): "invalid field in parameter list",
    (0x26, 0x01): "parameter not supported",
    (0x26, 0x02): "parameter value invalid",
    (0x27, 0x00): "write protected",
    (0x27, 0x01): "hardware write protected",
    (0x27, 0x02): "logical unit software write protected",
    (0x27, 0x03): "associated write protect",
    (0x27, 0x04): "persistent write protect",
    (0x27, 0x05): "permanent write protect",
    (0x27, 0x06): "conditional write protect",
    (0x27, 0x07): "space allocation failed write protect",
    (0x28, 0x00): "not ready to ready change, medium may have changed",
    (0x29, 0x00): "power on, reset, or bus device reset occurred",
    (0x29, 0x01): "power on occurred",
    (0x29, 0x02): "SCSI bus reset occurred",
    (0x29, 0x03): "bus device reset function occurred",
    (0x29, 0x04): "device internal reset",
    (0x29, 0x07): "I_T nexus loss occurred",
    (0x2A, 0x00): "parameters changed",
    (0x2A, 0x01): "mode parameters changed",
    (0x2A, 0x02): "log parameters changed",
    (0x2A, 0x03): "reservations preempted",
    (0x2A, 0x04): "reservations released",
    (0x2A, 0x05): "registrations preempted",
    (0x2A, 0x06): "asymmetric access state changed",
    (0x2A, 0x09): "capacity data has changed",
    (0x2C, 0x00): "command sequence error",
    (0x2F, 0x00): "commands cleared by another initiator",
    (0x2F, 0x01): "commands cleared by power loss notification",
    (0x2F, 0x02): "commands cleared by device server",
    (0x30, 0x00): "incompatible medium installed",
    (0x31, 0x00): "medium format corrupted",
    (0x32, 0x00): "no defect spare location available",
    (0x38, 0x07): "thin provisioning soft threshold reached",
    (0x39, 0x00): "saving parameters not supported",
    (0x3A, 0x00): "medium not present",
    (0x3A, 0x01): "medium not present, tray closed",
    (0x3A, 0x02): "medium not present, tray open",
    (0x3E, 0x00): "logical unit has not self-configured yet",
    (0x3E, 0x01): "logical unit failure",
    (0x3E, 0x02): "timeout on logical unit",
    (0x3F, 0x00): "target operating conditions have changed",
    (0x3F, 0x01): "microcode has been changed",
    (0x3F, 0x02): "changed operating definition",
    (0x3F, 0x03): "inquiry data has changed",
    (0x3F, 0x05): "device identifier changed",
    (0x3F, 0x0A): "volume set created or modified",
    (0x3F, 0x0B): "volume set deleted",
    (0x3F, 0x0C): "volume set deassigned",
    (0x3F, 0x0D): "volume set reassigned",
    (0x3F, 0x0E): "reported LUNs data has changed",
    (0x44, 0x00): "internal target failure",
    (0x47, 0x05): "protocol service CRC error",
    (0x47, 0x7F): "some commands cleared by iSCSI protocol event",
    (0x49, 0x00): "invalid message error",
    (0x4B, 0x00): "data phase error",
    (0x4E, 0x00): "overlapped commands attempted",
    (0x53, 0x02): "medium removal prevented",
    (0x55, 0x00): "system resource failure",
    (0x55, 0x01): "system buffer full",
    (0x55, 0x03): "insufficient resources",
    (0x5A, 0x01): "operator medium removal request",
    (0x5A, 0x02): "operator selected write protect",
    (0x5A, 0x03): "operator selected write permit",
    (0x5D, 0x00): "failure prediction threshold exceeded",
    (0x74, 0x71): "logical unit access not authorized",
}

# The INFORMATION field of these is an LBA (SBC-3, Sense data for direct access devices).
_INFORMATION_IS_LBA = frozenset(
    {
        SenseKey.RECOVERED_ERROR,
        SenseKey.MEDIUM_ERROR,
        SenseKey.HARDWARE_ERROR,
        SenseKey.BLANK_CHECK,
        SenseKey.ABORTED_COMMAND,
    }
)

_FIXED = 0x70
_DESCRIPTOR = 0x72
_VALID = 0x80
# Response code, key, INFORMATION, additional sense length, ASC, ASCQ.
_FIXED_FORMAT = struct.Struct(">BxBIB4xBBxxxx")
# Response code, key, ASC, ASCQ, additional sense length.
_DESCRIPTOR_HEADER = struct.Struct(">BBBB3xB")
# Type, additional length, VALID, INFORMATION.
_INFORMATION_DESCRIPTOR = struct.Struct(">BBBxQ")
_INFORMATION_TYPE = 0x00


@dataclass(frozen=True, slots=True)
class Sense:
    """Sense data. *information* is an LBA for most errors of a disk, None when the target did not say.

    *deferred*: the error belongs to an earlier command, and the one it came with was not carried out.
    """

    key: SenseKey
    asc: int = 0
    ascq: int = 0
    information: int | None = None
    deferred: bool = False

    @classmethod
    def parse(cls, data: bytes) -> "Sense":
        """Read sense data in fixed (70h, 71h) or descriptor format (72h, 73h), as far as they are there.

        Nothing, and what is in neither format, is NO SENSE.
        """
        code = data[0] & 0x7F if data else 0
        if len(data) > 7:
            data = data[: data[7] + 8]
        if code in (_FIXED, _FIXED + 1):
            return cls._parse_fixed(data)
        if code in (_DESCRIPTOR, _DESCRIPTOR + 1):
            return cls._parse_descriptor(data)
        return cls(SenseKey.NO_SENSE)

    @classmethod
    def _parse_fixed(cls, data: bytes) -> "Sense":
        return cls(
            key=SenseKey(data[2] & 0x0F if len(data) > 2 else 0),
            asc=data[12] if len(data) > 12 else 0,
            ascq=data[13] if len(data) > 13 else 0,
            information=int.from_bytes(data[3:7], "big") if data[0] & _VALID and len(data) >= 7 else None,
            deferred=data[0] & 0x7F == _FIXED + 1,
        )

    @classmethod
    def _parse_descriptor(cls, data: bytes) -> "Sense":
        information = None
        position = _DESCRIPTOR_HEADER.size
        while len(data) >= position + 2:
            if data[position] == _INFORMATION_TYPE and len(data) >= position + _INFORMATION_DESCRIPTOR.size:
                _, _, valid, value = _INFORMATION_DESCRIPTOR.unpack_from(data, position)
                information = value if valid & _VALID else None
                break
            position += 2 + data[position + 1]
        return cls(
            key=SenseKey(data[1] & 0x0F if len(data) > 1 else 0),
            asc=data[2] if len(data) > 2 else 0,
            ascq=data[3] if len(data) > 3 else 0,
            information=information,
            deferred=data[0] & 0x7F == _DESCRIPTOR + 1,
        )

    def pack(self, *, descriptor: bool = False) -> bytes:
        """Return the sense data in fixed or in descriptor format.

        Fixed format has no room for *information* above 32 bits, and then leaves it out.
        """
        if descriptor:
            descriptors = b""
            if self.information is not None:
                descriptors = _INFORMATION_DESCRIPTOR.pack(_INFORMATION_TYPE, 0x0A, _VALID, self.information)
            return (
                _DESCRIPTOR_HEADER.pack(
                    _DESCRIPTOR + self.deferred, self.key, self.asc, self.ascq, len(descriptors)
                )
                + descriptors
            )
        valid, information = 0, 0
        if self.information is not None and self.information <= 0xFFFFFFFF:
            valid, information = _VALID, self.information
        return _FIXED_FORMAT.pack(
            valid | _FIXED + self.deferred, self.key, information, _FIXED_FORMAT.size - 8, self.asc, self.ascq
        )

    @property
    def condition(self) -> Condition:
        """What the initiator has to make of it."""
        if self.deferred and self.key != SenseKey.UNIT_ATTENTION:
            # The command itself was not carried out, whatever the key says (SPC-3 section 4.5.5).
            harmless = self.key in (SenseKey.NO_SENSE, SenseKey.RECOVERED_ERROR, SenseKey.COMPLETED)
            return Condition.RETRY if harmless else Condition.DEFERRED_ERROR
        codes = (self.key, self.asc, self.ascq)
        for length in (3, 2, 1):
            if condition := _CONDITIONS.get(codes[:length]):
                return condition
        return Condition.FAILED

    @property
    def text(self) -> str:
        """The words for the additional sense code; empty where there are none here."""
        if self.asc == 0x40 and self.ascq >= 0x80:
            return f"diagnostic failure on component {self.ascq:02x}h"
        return _TEXTS.get((self.asc, self.ascq), "")

    @property
    def kind(self) -> str:
        """The text without INFORMATION, which may be different each time."""
        return str(replace(self, information=None))

    def __str__(self) -> str:
        parts = ["deferred " if self.deferred else "", self.key.name.replace("_", " ")]
        parts.append(f" {self.asc:02x}/{self.ascq:02x}")
        if self.text:
            parts.append(f": {self.text}")
        if self.information is not None and self.key in _INFORMATION_IS_LBA:
            parts.append(f", LBA {self.information}")
        return "".join(parts)
