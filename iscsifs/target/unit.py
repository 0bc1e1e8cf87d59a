"""A logical unit with its device server: what every SCSI device answers (SPC-3), and how tests disturb it.

A command takes two steps. `LogicalUnit.prepare` checks the CDB and says how many bytes the command wants from
the initiator; `Operation.run` carries it out once they are there. Neither waits for anything: what may block
comes back in `Result.sync`, for the caller to run in a thread.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from iscsifs.iscsi.framing import Buffer
from iscsifs.scsi import cdb as commands
from iscsifs.scsi import mode, vpd
from iscsifs.scsi.cdb import OperationCode
from iscsifs.scsi.inquiry import DeviceType, InquiryData
from iscsifs.scsi.sense import Sense, SenseKey
from iscsifs.scsi.status import Status

NO_SENSE: Final = Sense(SenseKey.NO_SENSE)
STOPPED: Final = Sense(SenseKey.NOT_READY, 0x04, 0x02)
NO_MEDIUM: Final = Sense(SenseKey.NOT_READY, 0x3A, 0x00)
WRITE_ERROR: Final = Sense(SenseKey.MEDIUM_ERROR, 0x0C, 0x00)
READ_ERROR: Final = Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00)
PARAMETER_LIST_LENGTH_ERROR: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x1A, 0x00)
INVALID_OPERATION_CODE: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x20, 0x00)
LBA_OUT_OF_RANGE: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x21, 0x00)
INVALID_FIELD_IN_CDB: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00)
LUN_NOT_SUPPORTED: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x25, 0x00)
INTERNAL_TARGET_FAILURE: Final = Sense(SenseKey.HARDWARE_ERROR, 0x44, 0x00)
INVALID_FIELD_IN_PARAMETERS: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x26, 0x00)
SAVING_NOT_SUPPORTED: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x39, 0x00)
MEDIUM_CHANGED: Final = Sense(SenseKey.UNIT_ATTENTION, 0x28, 0x00)
POWER_ON: Final = Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x00)
BUS_DEVICE_RESET: Final = Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x03)
MODE_CHANGED: Final = Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x01)
CAPACITY_CHANGED: Final = Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x09)
COMMANDS_CLEARED: Final = Sense(SenseKey.UNIT_ATTENTION, 0x2F, 0x00)
INQUIRY_CHANGED: Final = Sense(SenseKey.UNIT_ATTENTION, 0x3F, 0x03)
LUNS_CHANGED: Final = Sense(SenseKey.UNIT_ATTENTION, 0x3F, 0x0E)
WRITE_PROTECTED: Final = Sense(SenseKey.DATA_PROTECT, 0x27, 0x00)
SPACE_ALLOCATION_FAILED: Final = Sense(SenseKey.DATA_PROTECT, 0x27, 0x07)

# These answer whatever the state of the unit is (SPC-3 sections 6.4, 6.21, 6.27; SAM-5 section 5.14).
_ALWAYS_ANSWERED: Final = frozenset(
    {OperationCode.INQUIRY, OperationCode.REPORT_LUNS, OperationCode.REQUEST_SENSE}
)


class Nexus:
    """The relation between one initiator's session and the target: who a unit attention is for (SAM-5)."""


class CheckCondition(Exception):
    """Ends a command with CHECK CONDITION; never leaves the device server."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(str(sense))
        self.sense = sense


@dataclass(slots=True)
class Result:
    """How a command ended: its status, the data for the initiator, the sense data of a CHECK CONDITION.

    *sync*, where there is one, is to be called before the status is sent. It may block, and raises OSError.
    """

    status: int = Status.GOOD
    data: Buffer = b""
    sense: Sense | None = None
    sync: Callable[[], None] | None = None

    @property
    def sense_data(self) -> bytes:
        """The sense data in fixed format, or in descriptor format where an LBA does not fit it."""
        if self.sense is None:
            return b""
        return self.sense.pack(descriptor=(self.sense.information or 0) > 0xFFFFFFFF)


_SENSE_OF_ERROR: Final = {
    errno.ENOSPC: SPACE_ALLOCATION_FAILED,
    errno.EDQUOT: SPACE_ALLOCATION_FAILED,
    errno.EROFS: WRITE_PROTECTED,
    errno.ENODEV: INTERNAL_TARGET_FAILURE,
    errno.ENXIO: INTERNAL_TARGET_FAILURE,
    errno.ENOMEM: INTERNAL_TARGET_FAILURE,
}


def sense_of(error: OSError, otherwise: Sense) -> Sense:
    """Return what an *error* of the system is to an initiator, *otherwise* being what most are."""
    return _SENSE_OF_ERROR.get(error.errno or 0, otherwise)


def failed(sense: Sense) -> Result:
    """Return the result of a command that ends with *sense*."""
    return Result(Status.CHECK_CONDITION, sense=sense)


@dataclass(frozen=True, slots=True)
class Operation:
    """A command that passed its checks; it wants *data_out_length* bytes from the initiator."""

    action: Callable[[memoryview], Result]
    data_out_length: int = 0

    def run(self, data: memoryview) -> Result:
        """Carry the command out with *data*, fewer bytes than wanted if the initiator has no more."""
        try:
            return self.action(data)
        except CheckCondition as exc:
            return failed(exc.sense)
        except OSError as exc:
            return failed(sense_of(exc, WRITE_ERROR if self.data_out_length else READ_ERROR))


def ended(result: Result) -> Operation:
    """Return the operation of a command that is over before it began."""
    return Operation(lambda _: result)


def data_in(data: Buffer, allocation_length: int) -> Operation:
    """Return the operation that answers *data*, cut to what the initiator has room for (SPC-3 4.3.4.6)."""
    return ended(Result(data=memoryview(data)[:allocation_length]))


@dataclass(slots=True)
class Fault:
    """An error on purpose, for tests: commands that it matches end with *status* and *sense*.

    *codes* are the operation codes it is for, all but INQUIRY, REPORT LUNS and REQUEST SENSE by default;
    *blocks* the LBAs that a command must touch, the first of which the sense data then name. After *times*
    commands it is over; None is for ever. With a *cut* the command succeeds, but its data lack that many
    bytes at their end.
    """

    sense: Sense | None = None
    status: int = Status.CHECK_CONDITION
    codes: frozenset[int] | None = None
    blocks: range | None = None
    times: int | None = None
    cut: int = 0

    def applies(self, cdb: bytes) -> bool:
        """Tell whether *cdb* is to fail, and count it."""
        if self.times == 0 or not self._matches(cdb):
            return False
        if self.times is not None:
            self.times -= 1
        return True

    def apply(self, cdb: bytes, operation: Operation) -> Operation:
        """Return what takes the place of *operation*."""
        if self.cut:

            def short(data: memoryview) -> Result:
                result = operation.run(data)
                result.data = memoryview(result.data)[: -self.cut]
                return result

            return Operation(short, operation.data_out_length)
        sense = self.sense
        if sense is not None and self.blocks is not None:
            lba = max(self.blocks.start, commands.parse_rw(cdb).lba)
            sense = Sense(sense.key, sense.asc, sense.ascq, information=lba)
        return ended(Result(self.status, sense=sense))

    def _matches(self, cdb: bytes) -> bool:
        code = cdb[0]
        if code in _ALWAYS_ANSWERED if self.codes is None else code not in self.codes:
            return False
        if self.blocks is None:
            return True
        if code not in BLOCK_CODES:
            return False
        lba, blocks, _ = commands.parse_rw(cdb)
        return lba < self.blocks.stop and self.blocks.start < lba + blocks


READ_CODES: Final = frozenset(
    {OperationCode.READ_6, OperationCode.READ_10, OperationCode.READ_12, OperationCode.READ_16}
)
WRITE_CODES: Final = frozenset(
    {OperationCode.WRITE_6, OperationCode.WRITE_10, OperationCode.WRITE_12, OperationCode.WRITE_16}
)
WRITE_SAME_CODES: Final = frozenset({OperationCode.WRITE_SAME_10, OperationCode.WRITE_SAME_16})
SYNCHRONIZE_CODES: Final = frozenset({OperationCode.SYNCHRONIZE_CACHE_10, OperationCode.SYNCHRONIZE_CACHE_16})
BLOCK_CODES: Final = READ_CODES | WRITE_CODES | WRITE_SAME_CODES


Handler = Callable[[Nexus, bytes], Operation]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a unit calls itself. *serial* is ASCII and unique; all designators of the unit come from it."""

    serial: str
    vendor: str = "iscsifs"
    product: str = ""
    revision: str = "1"
    designators: tuple[vpd.Designator, ...] = field(default=())

    @classmethod
    def unique(cls) -> "Identity":
        """Return an identity that no other unit has, for one that nothing identifies."""
        return cls(os.urandom(8).hex())

    def device_identification(self) -> tuple[vpd.Designator, ...]:
        """The designators of VPD page 83h: those given, or a T10 vendor name and a locally assigned NAA."""
        if self.designators:
            return self.designators
        locally_assigned = bytearray(hashlib.sha256(self.serial.encode("ascii")).digest()[:8])
        locally_assigned[0] = 0x30 | locally_assigned[0] & 0x0F
        return (
            vpd.Designator(
                vpd.DesignatorType.T10_VENDOR_ID,
                vpd.CodeSet.ASCII,
                f"{self.vendor:8.8}{self.serial}".encode("ascii"),
            ),
            vpd.Designator(vpd.DesignatorType.NAA, vpd.CodeSet.BINARY, bytes(locally_assigned)),
        )


class LogicalUnit:
    """A device of *device_type* that does no more than every device must; disks are made from it.

    Tests put into `faults` what is to go wrong; the first that applies to a command wins.
    """

    def __init__(self, identity: Identity, device_type: DeviceType = DeviceType.PROCESSOR) -> None:
        self.identity = identity
        self.device_type = device_type
        self.removable = False
        self.faults: list[Fault] = []
        self._attentions: WeakKeyDictionary[Nexus, list[Sense]] = WeakKeyDictionary()
        self._handlers: dict[int, Handler] = {
            OperationCode.TEST_UNIT_READY: self._test_unit_ready,
            OperationCode.REQUEST_SENSE: self._request_sense,
            OperationCode.INQUIRY: self._inquiry,
        }

    def prepare(self, nexus: Nexus, cdb: bytes) -> Operation:
        """Check *cdb*, which has at least 16 bytes, and return what it asks for (SAM-5 section 5.3.1)."""
        try:
            operation = self._prepare(nexus, cdb)
        except CheckCondition as exc:
            operation = ended(failed(exc.sense))
        return operation

    def establish_attention(self, sense: Sense, *, besides: Nexus | None = None) -> None:
        """Report *sense*, a unit attention, once to every initiator but *besides* (SAM-5 section 5.14)."""
        for nexus, attentions in self._attentions.items():
            if nexus is not besides and sense not in attentions:
                attentions.append(sense)

    def establish_attention_for(self, nexus: Nexus, sense: Sense) -> None:
        """Report *sense*, a unit attention, once to the initiator of *nexus*."""
        self._attentions_of(nexus).append(sense)

    def reset(self, nexus: Nexus | None = None) -> None:
        """Take LOGICAL UNIT RESET from *nexus* (SAM-5 section 7.7); its tasks are not the unit's business."""
        self.establish_attention(BUS_DEVICE_RESET, besides=nexus)

    def close(self) -> None:
        """Give back what the unit holds."""

    def _prepare(self, nexus: Nexus, cdb: bytes) -> Operation:
        code = cdb[0]
        if code not in _ALWAYS_ANSWERED and (attentions := self._attentions_of(nexus)):
            raise CheckCondition(attentions.pop(0))
        handler = self._handlers.get(code)
        if handler is None:
            raise CheckCondition(INVALID_OPERATION_CODE)
        operation = handler(nexus, cdb)
        for fault in self.faults:
            if fault.applies(cdb):
                return fault.apply(cdb, operation)
        return operation

    def _attentions_of(self, nexus: Nexus) -> list[Sense]:
        """The unit attentions that are due; a nexus never seen before has not heard of the power-on."""
        return self._attentions.setdefault(nexus, [POWER_ON])

    def _test_unit_ready(self, _nexus: Nexus, _cdb: bytes) -> Operation:
        return ended(Result())

    def _request_sense(self, nexus: Nexus, cdb: bytes) -> Operation:
        attentions = self._attentions_of(nexus)
        sense = attentions.pop(0) if attentions else NO_SENSE
        return data_in(sense.pack(descriptor=bool(cdb[1] & 1)), commands.allocation_length(cdb))

    def _inquiry(self, _nexus: Nexus, cdb: bytes) -> Operation:
        request = commands.parse_inquiry(cdb)
        if request.evpd:
            page = self._vpd_pages().get(request.page)
            if page is None:
                raise CheckCondition(INVALID_FIELD_IN_CDB)
            return data_in(page(), request.allocation_length)
        if request.page:
            raise CheckCondition(INVALID_FIELD_IN_CDB)
        identity = self.identity
        answer = InquiryData(
            self.device_type,
            removable=self.removable,
            version=5,
            vendor=identity.vendor,
            product=identity.product or self.device_type.label,
            revision=identity.revision,
        )
        return data_in(answer.pack(), request.allocation_length)

    def _vpd_pages(self) -> Mapping[int, Callable[[], bytes]]:
        """The VPD pages by their codes."""
        identity, device_type = self.identity, self.device_type
        return {
            vpd.Page.SUPPORTED_PAGES: lambda: vpd.pack_supported_pages(self._vpd_pages(), device_type),
            vpd.Page.UNIT_SERIAL_NUMBER: lambda: vpd.pack_serial(identity.serial, device_type),
            vpd.Page.DEVICE_IDENTIFICATION: lambda: vpd.pack_designators(
                identity.device_identification(), device_type
            ),
        }


def mode_sense(cdb: bytes, data: mode.ModeData) -> Operation:
    """Answer MODE SENSE(6) or (10) out of *data*, none of which can be changed (SPC-3 section 6.9)."""
    request = commands.parse_mode_sense(cdb)
    if request.page_control == 3:
        raise CheckCondition(SAVING_NOT_SUPPORTED)
    if request.page == mode.ALL_PAGES:
        pages = dict(data.pages)
    else:
        pages = {key: value for key, value in data.pages.items() if key[0] == request.page}
    if not pages or request.subpage not in (0, 0xFF):
        raise CheckCondition(INVALID_FIELD_IN_CDB)
    if request.page_control == 1:
        pages = {key: bytes(len(value)) for key, value in pages.items()}
    answer = mode.ModeData(data.write_protected, data.dpo_fua, pages)
    packed = answer.pack_6() if cdb[0] == OperationCode.MODE_SENSE_6 else answer.pack_10()
    return data_in(packed, request.allocation_length)
