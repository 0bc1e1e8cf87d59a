"""Units with blocks that are read: what disks (SBC-3) have in common with a CD or DVD drive (MMC)."""

from collections.abc import Mapping
from typing import Final
from weakref import WeakSet

from iscsifs.limits import MAX_TRANSFER
from iscsifs.scsi import cdb as commands
from iscsifs.scsi.capacity import Capacity
from iscsifs.scsi.cdb import OperationCode
from iscsifs.scsi.inquiry import DeviceType
from iscsifs.scsi.sense import Sense
from iscsifs.target.modes import Page, mode_sense
from iscsifs.target.store import Store
from iscsifs.target.unit import (
    INVALID_FIELD_IN_CDB,
    LBA_OUT_OF_RANGE,
    NO_MEDIUM,
    READ_ERROR,
    REMOVAL_PREVENTED,
    STOPPED,
    CheckCondition,
    Identity,
    LogicalUnit,
    Nexus,
    Operation,
    Result,
    ended,
    sense_of,
)

_START: Final = 0x01  # START STOP UNIT
_LOAD_EJECT: Final = 0x02
_CD_BLOCK_SIZE: Final = 2048
_READ_ERROR_RECOVERY_PAGE: Final = 0x01


class BlockUnit(LogicalUnit):
    """What disks and CDs have in common: blocks of *block_size* bytes that are read.

    *store* is owned by the unit. Bytes behind its last whole block are not shown.
    """

    def __init__(self, store: Store, identity: Identity, device_type: DeviceType, block_size: int) -> None:
        super().__init__(identity, device_type)
        self.store = store
        self.block_size = block_size
        self.started = True
        self._handlers |= {
            OperationCode.START_STOP_UNIT: self._start_stop_unit,
            OperationCode.READ_CAPACITY_10: self._read_capacity_10,
            OperationCode.READ_10: self._read,
            OperationCode.READ_12: self._read,
            OperationCode.MODE_SENSE_6: self._mode_sense,
            OperationCode.MODE_SENSE_10: self._mode_sense,
        }

    @property
    def capacity(self) -> Capacity:
        """The size of the unit, which `resize` of its store may have changed."""
        return Capacity(self.store.size // self.block_size, self.block_size)

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def mode_pages(self) -> Mapping[int, Page]:
        """Return the mode pages by their codes."""
        raise NotImplementedError

    # For the handlers of commands, here and in the modules of their families.

    def require_medium(self) -> None:
        """Raise CheckCondition unless the unit is started."""
        if not self.started:
            raise CheckCondition(NO_MEDIUM if self.removable else STOPPED)

    def check_range(self, lba: int, blocks: int) -> None:
        """Check a range that a command addresses (SBC-3 section 4.15)."""
        self.require_medium()
        total = self.capacity.blocks
        if lba >= total or blocks > total - lba:
            raise CheckCondition(LBA_OUT_OF_RANGE)

    def check_transfer(self, cdb: bytes) -> commands.ReadWrite:
        """Check what commands that move blocks have in common, and take *cdb* apart."""
        request = commands.parse_rw(cdb)
        if request.blocks * self.block_size > MAX_TRANSFER:
            raise CheckCondition(INVALID_FIELD_IN_CDB)
        self.check_range(request.lba, request.blocks)
        return request

    def load(self, lba: int, blocks: int) -> bytearray:
        """Return *blocks* from *lba*; the sense data of what cannot be read name the first such block."""
        try:
            return self.store.read(lba * self.block_size, blocks * self.block_size)
        except OSError as exc:
            sense = sense_of(exc, READ_ERROR)
            if sense is READ_ERROR:
                sense = Sense(sense.key, sense.asc, sense.ascq, information=self._first_bad(lba, blocks))
            raise CheckCondition(sense) from None

    def _first_bad(self, lba: int, blocks: int) -> int:
        """Return the first of *blocks* from *lba* that cannot be read alone; they cannot all be."""
        end = lba + blocks
        while lba + 1 < end:
            middle = (lba + end) // 2
            try:
                self.store.read(lba * self.block_size, (middle - lba) * self.block_size)
                lba = middle
            except OSError:
                end = middle
        return lba

    # What each of them answers.

    def _read(self, _nexus: Nexus, cdb: bytes) -> Operation:
        lba, blocks, _ = self.check_transfer(cdb)
        return Operation(lambda _: Result(data=self.load(lba, blocks)))

    def _test_unit_ready(self, _nexus: Nexus, _cdb: bytes) -> Operation:
        self.require_medium()
        return ended(Result())

    def _start_stop_unit(self, _nexus: Nexus, cdb: bytes) -> Operation:
        if cdb[4] >> 4 == 0:  # otherwise a power condition is asked for, none of which there are
            if cdb[4] & _LOAD_EJECT:
                self._check_load_eject()
            self.started = bool(cdb[4] & _START)
        return ended(Result())

    def _check_load_eject(self) -> None:
        raise CheckCondition(INVALID_FIELD_IN_CDB)

    def _read_capacity_10(self, _nexus: Nexus, cdb: bytes) -> Operation:
        self.require_medium()
        if not cdb[8] & 1 and any(cdb[2:6]):  # an LBA means something with PMI only
            raise CheckCondition(INVALID_FIELD_IN_CDB)
        return ended(Result(data=self.capacity.pack_10()))

    def _mode_sense(self, _nexus: Nexus, cdb: bytes) -> Operation:
        return mode_sense(cdb, self.mode_pages())


class Cd(BlockUnit):
    """A CD or DVD drive with a medium that is only read; it knows no 16-byte commands."""

    def __init__(self, store: Store, identity: Identity) -> None:
        super().__init__(store, identity, DeviceType.CD_DVD, _CD_BLOCK_SIZE)
        self.removable = True
        self._preventing: WeakSet[Nexus] = WeakSet()
        self._handlers[OperationCode.PREVENT_ALLOW_MEDIUM_REMOVAL] = self._prevent_allow

    def mode_pages(self) -> Mapping[int, Page]:
        """Return the mode pages: the read error recovery page of MMC, all zeros."""
        return {_READ_ERROR_RECOVERY_PAGE: Page.fixed(bytes(10))}

    def reset(self, nexus: Nexus | None = None) -> None:
        """Carry out LOGICAL UNIT RESET: no initiator prevents the removal of the medium any more."""
        self._preventing.clear()
        super().reset(nexus)

    def _prevent_allow(self, nexus: Nexus, cdb: bytes) -> Operation:
        """PREVENT ALLOW MEDIUM REMOVAL (SPC-3 section 6.13); the end of a session allows it again."""
        match cdb[4] & 3:
            case 0:
                self._preventing.discard(nexus)
            case 1:
                self._preventing.add(nexus)
            case _:
                raise CheckCondition(INVALID_FIELD_IN_CDB)
        return ended(Result())

    def _check_load_eject(self) -> None:
        if self._preventing:
            raise CheckCondition(REMOVAL_PREVENTED)
