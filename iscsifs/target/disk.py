"""Units with blocks: a disk (SBC-3), and a CD or DVD as far as it is read by block (MMC)."""

import struct
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from iscsifs.errors import ConfigError, UnitError
from iscsifs.limits import MAX_TRANSFER, MAX_UNMAP_DESCRIPTORS
from iscsifs.scsi import cdb as commands
from iscsifs.scsi import mode, vpd
from iscsifs.scsi.capacity import Capacity
from iscsifs.scsi.cdb import OperationCode
from iscsifs.scsi.inquiry import DeviceType
from iscsifs.target.store import Store, UndoLog
from iscsifs.target.unit import (
    CAPACITY_CHANGED,
    INVALID_FIELD_IN_CDB,
    LBA_OUT_OF_RANGE,
    NO_MEDIUM,
    PARAMETER_LIST_LENGTH_ERROR,
    POWER_ON,
    READ_CODES,
    STOPPED,
    SYNCHRONIZE_CODES,
    WRITE_CODES,
    WRITE_ERROR,
    WRITE_PROTECTED,
    WRITE_SAME_CODES,
    CheckCondition,
    Handler,
    Identity,
    LogicalUnit,
    Nexus,
    Operation,
    Result,
    data_in,
    ended,
    mode_sense,
    sense_of,
)

_PROTECT: Final = 0xE0  # RDPROTECT and WRPROTECT in byte 1: protection information, which there is none of
_DPO_FUA: Final = 0x18  # DPO and FUA in byte 1
_FIRST_10: Final = 0x20  # the first operation code of a CDB of 10 bytes; those before have 6
_ANCHOR: Final = 0x10  # WRITE SAME
_START: Final = 0x01  # START STOP UNIT
_LOAD_EJECT: Final = 0x02
_MAPPED: Final = 0
_DEALLOCATED: Final = 1
_CD_BLOCK_SIZE: Final = 2048

# Parameter data length, then one descriptor: LBA, blocks, provisioning status (SBC-3, GET LBA STATUS).
_LBA_STATUS: Final = struct.Struct(">I4xQIB3x")


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

    def mode_data(self) -> mode.ModeData:
        """What MODE SENSE answers."""
        raise NotImplementedError

    def _require_medium(self) -> None:
        if not self.started:
            raise CheckCondition(NO_MEDIUM if self.removable else STOPPED)

    def _check_range(self, lba: int, blocks: int) -> None:
        """Check a range that a command addresses (SBC-3 section 4.15)."""
        self._require_medium()
        total = self.capacity.blocks
        if lba >= total or blocks > total - lba:
            raise CheckCondition(LBA_OUT_OF_RANGE)

    def _check_transfer(self, cdb: bytes) -> commands.ReadWrite:
        """Check what READ and WRITE commands have in common, and take *cdb* apart."""
        request = commands.parse_rw(cdb)
        six_bytes = cdb[0] < _FIRST_10
        if (not six_bytes and cdb[1] & _PROTECT) or request.blocks * self.block_size > MAX_TRANSFER:
            raise CheckCondition(INVALID_FIELD_IN_CDB)
        self._check_range(request.lba, request.blocks)
        return request

    def _read(self, _nexus: Nexus, cdb: bytes) -> Operation:
        request = self._check_transfer(cdb)
        offset, length = request.lba * self.block_size, request.blocks * self.block_size
        return Operation(lambda _: Result(data=self.store.read(offset, length)))

    def _test_unit_ready(self, _nexus: Nexus, _cdb: bytes) -> Operation:
        self._require_medium()
        return ended(Result())

    def _start_stop_unit(self, _nexus: Nexus, cdb: bytes) -> Operation:
        if cdb[4] >> 4 == 0:  # otherwise a power condition is asked for, none of which there are
            if cdb[4] & _LOAD_EJECT and not self.removable:
                raise CheckCondition(INVALID_FIELD_IN_CDB)
            self.started = bool(cdb[4] & _START)
        return ended(Result())

    def _read_capacity_10(self, _nexus: Nexus, cdb: bytes) -> Operation:
        self._require_medium()
        if not cdb[8] & 1 and any(cdb[2:6]):  # an LBA means something with PMI only
            raise CheckCondition(INVALID_FIELD_IN_CDB)
        return ended(Result(data=self.capacity.pack_10()))

    def _mode_sense(self, _nexus: Nexus, cdb: bytes) -> Operation:
        return mode_sense(cdb, self.mode_data())


class Cd(BlockUnit):
    """A CD or DVD drive with a medium that is only read; it knows no 16-byte commands."""

    def __init__(self, store: Store, identity: Identity) -> None:
        super().__init__(store, identity, DeviceType.CD_DVD, _CD_BLOCK_SIZE)
        self.removable = True

    def mode_data(self) -> mode.ModeData:
        """What MODE SENSE answers: the read-write error recovery page of MMC, all zeros."""
        return mode.ModeData(pages={(0x01, 0): bytes(10)})


class Disk(BlockUnit):
    """A disk of blocks of *block_size* bytes, thinly provisioned.

    *write_cache*: written data are on the medium only after SYNCHRONIZE CACHE or with FUA, and MODE SENSE
    says so; without it, every write waits for the medium. *dpo_fua*: FUA is honoured, and MODE SENSE says so
    (DPOFUA); without it, a command with FUA or DPO is refused. *droppable*: keep what writes replace, so that
    `drop_cache` can lose them.
    """

    def __init__(
        self,
        store: Store,
        identity: Identity,
        *,
        block_size: int = 512,
        read_only: bool = False,
        write_cache: bool = True,
        dpo_fua: bool = True,
        droppable: bool = False,
    ) -> None:
        super().__init__(store, identity, DeviceType.DISK, block_size)
        self.dpo_fua = dpo_fua
        self.write_cache = write_cache
        self.read_only = read_only
        self.undo_log = UndoLog(store, block_size) if droppable else None
        own: tuple[tuple[frozenset[OperationCode], Handler], ...] = (
            (READ_CODES, self._read),
            (WRITE_CODES, self._write),
            (WRITE_SAME_CODES, self._write_same),
            (SYNCHRONIZE_CODES, self._synchronize_cache),
            (frozenset({OperationCode.UNMAP}), self._unmap),
            (frozenset({OperationCode.SERVICE_ACTION_IN_16}), self._service_action_in),
        )
        self._handlers |= {code: handler for codes, handler in own for code in codes}
        try:
            Capacity(1, block_size)  # the size of a block, before anything is divided by it
            _ = self.capacity
        except UnitError as exc:
            raise ConfigError(f"disk {identity.serial}: {exc}") from None

    @classmethod
    def in_memory(cls, size: int, serial: str | None = None, **options: bool | int) -> "Disk":
        """Return a disk of *size* zero bytes, with a serial number of its own unless *serial* is given.

        The *options* are those of the class.
        """
        identity = Identity.unique() if serial is None else Identity(serial)
        return cls(Store.memory(size), identity, **options)  # type: ignore[arg-type]

    @property
    def capacity(self) -> Capacity:
        """The size of the disk."""
        blocks = self.store.size // self.block_size
        physical = max(self.block_size, 4096)
        return Capacity(blocks, self.block_size, physical, lbpme=True, lbprz=True)

    def resize(self, blocks: int) -> None:
        """Make the disk *blocks* long and tell every initiator."""
        self.store.resize(blocks * self.block_size)
        self.establish_attention(CAPACITY_CHANGED)

    def drop_cache(self) -> None:
        """Lose all that was written and not synchronised, as a power failure does, and report the power-on.

        The disk must be droppable.
        """
        assert self.undo_log is not None, "the disk was not made droppable"
        self.undo_log.undo()
        self.establish_attention(POWER_ON)

    def mode_data(self) -> mode.ModeData:
        """What MODE SENSE answers: write protection, the Caching page, and a Control page of zeros."""
        return mode.ModeData(
            write_protected=self.read_only,
            dpo_fua=self.dpo_fua,
            pages={
                (mode.CACHING_PAGE, 0): mode.Caching(wce=self.write_cache).pack(),
                (0x0A, 0): bytes(10),
            },
        )

    def _check_transfer(self, cdb: bytes) -> commands.ReadWrite:
        if not self.dpo_fua and cdb[0] >= _FIRST_10 and cdb[1] & _DPO_FUA:
            raise CheckCondition(INVALID_FIELD_IN_CDB)
        return super()._check_transfer(cdb)

    def _read(self, _nexus: Nexus, cdb: bytes) -> Operation:
        lba, blocks, fua = self._check_transfer(cdb)

        def read(_: memoryview) -> Result:
            # With FUA what the cache holds goes to the medium first (SBC-3 section 5.11).
            result = self._synchronised(lba, blocks) if fua else Result()
            result.data = self.store.read(lba * self.block_size, blocks * self.block_size)
            return result

        return Operation(read)

    # Writing. Every change of the store goes through `_change` and ends with `_written`.

    def _check_writable(self) -> None:
        if self.read_only:
            raise CheckCondition(WRITE_PROTECTED)

    def _change(self, lba: int, blocks: int, change: Callable[[], None]) -> None:
        try:
            if self.undo_log is not None:
                self.undo_log.remember(lba, blocks)
            change()
        except OSError as exc:
            raise CheckCondition(sense_of(exc, WRITE_ERROR)) from None

    def _written(self, lba: int, blocks: int, *, fua: bool = False) -> Result:
        """End a write; it waits for the medium with *fua* and when there is no write cache."""
        return self._synchronised(lba, blocks) if fua or not self.write_cache else Result()

    def _synchronised(self, lba: int, blocks: int) -> Result:
        """Return the result of a command that is over when *blocks* from *lba* are on the medium."""
        if self.undo_log is not None:
            self.undo_log.forget(lba, blocks)
        return Result(sync=None if self.store.in_memory else self.store.sync)

    def _write(self, _nexus: Nexus, cdb: bytes) -> Operation:
        self._check_writable()
        lba, blocks, fua = self._check_transfer(cdb)

        def write(data: memoryview) -> Result:
            whole = len(data) // self.block_size
            block_data = data[: whole * self.block_size]
            self._change(lba, whole, partial(self.store.write, lba * self.block_size, block_data))
            return self._written(lba, whole, fua=fua)

        return Operation(write, blocks * self.block_size)

    def _write_same(self, _nexus: Nexus, cdb: bytes) -> Operation:
        self._check_writable()
        request = commands.parse_write_same(cdb)
        if cdb[1] & (_PROTECT | _ANCHOR):
            raise CheckCondition(INVALID_FIELD_IN_CDB)
        lba, blocks = request.lba, request.blocks
        self._check_range(lba, blocks)
        offset, length = lba * self.block_size, blocks * self.block_size
        if not 0 < length <= MAX_TRANSFER:  # 0 would be "to the end", which WSNZ says there is not
            raise CheckCondition(INVALID_FIELD_IN_CDB)

        def write(data: memoryview) -> Result:
            if not request.ndob and len(data) < self.block_size:
                raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
            pattern = bytes(data[: self.block_size])

            def change() -> None:
                if any(pattern):
                    self.store.write(offset, pattern * blocks)
                elif request.unmap:
                    self.store.discard(offset, length)
                else:
                    self.store.write(offset, bytes(length))

            self._change(lba, blocks, change)
            return self._written(lba, blocks)

        return Operation(write, 0 if request.ndob else self.block_size)

    def _unmap(self, _nexus: Nexus, cdb: bytes) -> Operation:
        self._check_writable()
        self._require_medium()
        if cdb[1] & 1:  # ANCHOR
            raise CheckCondition(INVALID_FIELD_IN_CDB)
        length = commands.allocation_length(cdb)

        def unmap(data: memoryview) -> Result:
            try:
                ranges = commands.parse_unmap_parameters(bytes(data))
            except ValueError:
                raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR) from None
            if any(lba + blocks > self.capacity.blocks for lba, blocks in ranges):
                raise CheckCondition(LBA_OUT_OF_RANGE)
            result = Result()
            for lba, blocks in ranges:
                discard = partial(self.store.discard, lba * self.block_size, blocks * self.block_size)
                self._change(lba, blocks, discard)
                result = self._written(lba, blocks)
            return result

        return Operation(unmap, length) if length else ended(Result())

    def _synchronize_cache(self, _nexus: Nexus, cdb: bytes) -> Operation:
        lba, blocks, _ = commands.parse_synchronize_cache(cdb)
        self._check_range(lba, blocks)
        count = blocks or self.capacity.blocks - lba
        return Operation(lambda _: self._synchronised(lba, count))

    def _service_action_in(self, _nexus: Nexus, cdb: bytes) -> Operation:
        match cdb[1] & 0x1F:
            case commands.READ_CAPACITY_16:
                self._require_medium()
                answer = self.capacity.pack_16()
            case 0x12:  # GET LBA STATUS
                answer = self._lba_status(int.from_bytes(cdb[2:10], "big"))
            case _:
                raise CheckCondition(INVALID_FIELD_IN_CDB)
        return data_in(answer, commands.allocation_length(cdb))

    def _lba_status(self, lba: int) -> bytes:
        """The parameter data of GET LBA STATUS with one descriptor, for the range that *lba* begins."""
        self._check_range(lba, 1)
        size = self.block_size
        mapped, end = self.store.extent(lba * size)
        # A block of which a part is mapped is mapped.
        blocks = (-(-end // size) if mapped else max(end // size, lba + 1)) - lba
        provisioning = _MAPPED if mapped or end < (lba + 1) * size else _DEALLOCATED
        return _LBA_STATUS.pack(_LBA_STATUS.size - 4, lba, min(blocks, 0xFFFFFFFF), provisioning)

    def _vpd_pages(self) -> Mapping[int, Callable[[], bytes]]:
        return {
            **super()._vpd_pages(),
            vpd.Page.BLOCK_LIMITS: self._block_limits().pack,
            vpd.Page.LOGICAL_BLOCK_PROVISIONING: vpd.Provisioning(
                lbpu=True, lbpws=True, lbpws10=True, lbprz=True, provisioning_type=vpd.ProvisioningType.THIN
            ).pack,
        }

    def _block_limits(self) -> vpd.BlockLimits:
        most = MAX_TRANSFER // self.block_size
        return vpd.BlockLimits(
            optimal_granularity=max(4096 // self.block_size, 1),
            max_transfer_length=most,
            optimal_transfer_length=min((1 << 20) // self.block_size, most),
            max_unmap_blocks=0xFFFFFFFF,
            max_unmap_descriptors=MAX_UNMAP_DESCRIPTORS,
            unmap_granularity=max(4096 // self.block_size, 1),
            max_write_same_length=most,
            write_same_non_zero=True,
        )
