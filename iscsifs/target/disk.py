"""A disk (SBC-3): what it is, how its data come to the medium, and the commands of no other module."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from iscsifs.errors import ConfigError, UnitError
from iscsifs.limits import MAX_COMPARE_AND_WRITE, MAX_TRANSFER, MAX_UNMAP_DESCRIPTORS
from iscsifs.scsi import cdb as commands
from iscsifs.scsi import mode, vpd
from iscsifs.scsi.capacity import Capacity
from iscsifs.scsi.cdb import OperationCode
from iscsifs.scsi.inquiry import DeviceType
from iscsifs.target import compare, provisioning
from iscsifs.target.block import BlockUnit
from iscsifs.target.modes import Page, mode_select, mode_sense
from iscsifs.target.store import Store, UndoLog
from iscsifs.target.unit import (
    CAPACITY_CHANGED,
    INVALID_FIELD_IN_CDB,
    MODE_CHANGED,
    POWER_ON,
    READ_CODES,
    SYNCHRONIZE_CODES,
    WRITE_CODES,
    WRITE_ERROR,
    WRITE_PROTECTED,
    WRITE_SAME_CODES,
    CheckCondition,
    Handler,
    Identity,
    Nexus,
    Operation,
    Result,
    data_in,
    sense_of,
)

_DPO_FUA: Final = 0x18  # DPO and FUA in byte 1
_FIRST_10: Final = 0x20  # the first operation code of a CDB of 10 bytes; those before have 6

_CONTROL_PAGE: Final = 0x0A
_D_SENSE: Final = 0x04  # in byte 2 of the Control page, the first behind its header
_SWP: Final = 0x08  # in byte 4
_WCE: Final = 0x04  # in byte 2 of the Caching page

# READ DEFECT DATA (10) and (12): where its flags are, and the header of its data with their length.
_DEFECT_FLAGS_AT: Final = {OperationCode.READ_DEFECT_DATA_10: 2, OperationCode.READ_DEFECT_DATA_12: 1}
_DEFECT_HEADER_LENGTH: Final = {OperationCode.READ_DEFECT_DATA_10: 4, OperationCode.READ_DEFECT_DATA_12: 8}


class Disk(BlockUnit):
    """A disk of blocks of *block_size* bytes, thinly provisioned.

    *write_cache*: written data are on the medium only after SYNCHRONIZE CACHE or with FUA, and MODE SENSE
    says so; without it, every write waits for the medium. *dpo_fua*: FUA is honoured, and MODE SENSE says so
    (DPOFUA); without it, a command with FUA or DPO is refused. *droppable*: keep what writes replace, so that
    `drop_cache` can lose them.

    MODE SELECT changes `write_cache` (WCE), `write_protect` (SWP) and `descriptor_sense` (D_SENSE).
    """

    standards = (*BlockUnit.standards, 0x04C0)  # SBC-3

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
        self.write_protect = False
        """Software write protection (SWP of the Control mode page)."""
        self._default_write_cache = write_cache
        self.undo_log = UndoLog(store, block_size) if droppable else None
        own: tuple[tuple[frozenset[OperationCode], Handler], ...] = (
            (READ_CODES, self._read),
            (WRITE_CODES, self._write),
            (SYNCHRONIZE_CODES, self._synchronize_cache),
            (_PRE_FETCH_CODES, self._pre_fetch),
            (_MODE_SELECT_CODES, self._mode_select),
            (_DEFECT_CODES, self._read_defect_data),
            (compare.VERIFY_CODES, partial(compare.verify, self)),
            (compare.WRITE_AND_VERIFY_CODES, partial(compare.write_and_verify, self)),
            (frozenset({OperationCode.COMPARE_AND_WRITE}), partial(compare.compare_and_write, self)),
            (frozenset({OperationCode.ORWRITE_16}), partial(compare.or_write, self)),
            (WRITE_SAME_CODES, partial(provisioning.write_same, self)),
            (frozenset({OperationCode.UNMAP}), partial(provisioning.unmap, self)),
        )
        self._handlers |= {code: handler for codes, handler in own for code in codes}
        service_action_in = OperationCode.SERVICE_ACTION_IN_16 << 8
        self._handlers |= {
            service_action_in | commands.READ_CAPACITY_16: self._read_capacity_16,
            service_action_in | commands.GET_LBA_STATUS: partial(provisioning.get_lba_status, self),
        }
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

    def mode_pages(self) -> Mapping[int, Page]:
        """Return the mode pages: Caching, and Control."""

        def control(descriptor_sense: bool, write_protect: bool) -> bytes:
            bits = bytes((_D_SENSE if descriptor_sense else 0, 0, _SWP if write_protect else 0))
            return bits.ljust(10, b"\0")

        caching = mode.Caching(wce=self.write_cache).pack()
        return {
            mode.CACHING_PAGE: Page(
                current=caching,
                default=mode.Caching(wce=self._default_write_cache).pack(),
                changeable=bytes((_WCE,)).ljust(len(caching), b"\0"),
            ),
            _CONTROL_PAGE: Page(
                current=control(self.descriptor_sense, self.write_protect),
                default=control(False, False),
                changeable=control(True, True),
            ),
        }

    # For the families of commands. Every change of the store goes through `change` and ends with `written`.

    def check_writable(self) -> None:
        """Raise CheckCondition where the disk takes no writes."""
        if self.read_only or self.write_protect:
            raise CheckCondition(WRITE_PROTECTED)

    def check_transfer(self, cdb: bytes) -> commands.ReadWrite:
        """Check what commands that move blocks have in common, and take *cdb* apart."""
        if cdb[0] >= _FIRST_10 and cdb[0] not in compare.WITHOUT_FUA:
            self.check_fua(cdb)
        return super().check_transfer(cdb)

    def check_fua(self, cdb: bytes) -> None:
        """Refuse DPO and FUA where they are not supported."""
        if cdb[1] & _DPO_FUA and not self.dpo_fua:
            raise CheckCondition(INVALID_FIELD_IN_CDB)

    def change(self, lba: int, blocks: int, change: Callable[[], None]) -> None:
        """Have *change* write to *blocks* from *lba*, and map what goes wrong."""
        try:
            if self.undo_log is not None:
                self.undo_log.remember(lba, blocks)
            change()
        except OSError as exc:
            raise CheckCondition(sense_of(exc, WRITE_ERROR)) from None

    def put(self, lba: int, data: memoryview) -> int:
        """Write the whole blocks of *data* at *lba*, and return how many they were."""
        whole = len(data) // self.block_size
        content = data[: whole * self.block_size]
        self.change(lba, whole, partial(self.store.write, lba * self.block_size, content))
        return whole

    def written(self, lba: int, blocks: int, *, fua: bool = False) -> Result:
        """End a write; it waits for the medium with *fua* and when there is no write cache."""
        return self.synchronised(lba, blocks) if fua or not self.write_cache else Result()

    def synchronised(self, lba: int, blocks: int) -> Result:
        """Return the result of a command that is over when *blocks* from *lba* are on the medium."""
        if self.undo_log is not None:
            self.undo_log.forget(lba, blocks)
        return Result(sync=None if self.store.in_memory else self.store.sync)

    # What the disk itself answers.

    def _read(self, _nexus: Nexus, cdb: bytes) -> Operation:
        lba, blocks, fua = self.check_transfer(cdb)

        def read(_: memoryview) -> Result:
            data = self.load(lba, blocks)
            # With FUA what the cache holds goes to the medium first (SBC-3 section 5.11).
            result = self.synchronised(lba, blocks) if fua else Result()
            result.data = data
            return result

        return Operation(read)

    def _write(self, _nexus: Nexus, cdb: bytes) -> Operation:
        self.check_writable()
        lba, blocks, fua = self.check_transfer(cdb)
        return Operation(
            lambda data: self.written(lba, self.put(lba, data), fua=fua), blocks * self.block_size
        )

    def _synchronize_cache(self, _nexus: Nexus, cdb: bytes) -> Operation:
        lba, blocks, _ = commands.parse_synchronize_cache(cdb)
        self.check_range(lba, blocks)
        count = blocks or self.capacity.blocks - lba
        return Operation(lambda _: self.synchronised(lba, count))

    def _pre_fetch(self, _nexus: Nexus, cdb: bytes) -> Operation:
        """PRE-FETCH (SBC-3 section 5.8). GOOD says that not all of it needs to be in the cache."""
        lba, blocks, _ = commands.parse_synchronize_cache(cdb)
        self.check_range(lba, blocks)
        length = min((blocks or self.capacity.blocks - lba) * self.block_size, MAX_TRANSFER)

        def fetch(_: memoryview) -> Result:
            self.store.will_need(lba * self.block_size, length)
            return Result()

        return Operation(fetch)

    def _read_defect_data(self, _nexus: Nexus, cdb: bytes) -> Operation:
        """READ DEFECT DATA (SBC-3 section 5.17): both lists are there, and empty."""
        code = OperationCode(cdb[0])
        flags = cdb[_DEFECT_FLAGS_AT[code]] & 0x1F
        header = bytes((0, flags)).ljust(_DEFECT_HEADER_LENGTH[code], b"\0")
        return data_in(header, commands.allocation_length(cdb))

    def _read_capacity_16(self, _nexus: Nexus, cdb: bytes) -> Operation:
        self.require_medium()
        if not cdb[14] & 1 and any(cdb[2:10]):  # an LBA means something with PMI only
            raise CheckCondition(INVALID_FIELD_IN_CDB)
        return data_in(self.capacity.pack_16(), commands.allocation_length(cdb))

    def _mode_sense(self, _nexus: Nexus, cdb: bytes) -> Operation:
        protected = self.read_only or self.write_protect
        return mode_sense(cdb, self.mode_pages(), write_protected=protected, dpo_fua=self.dpo_fua)

    def _mode_select(self, nexus: Nexus, cdb: bytes) -> Operation:
        def change(pages: Mapping[int, bytes]) -> Result:
            before, result = self.mode_pages(), Result()
            if caching := pages.get(mode.CACHING_PAGE):
                self.write_cache = bool(caching[0] & _WCE)
                if not self.write_cache:  # what the cache holds has to go somewhere
                    result = self.synchronised(0, self.capacity.blocks)
            if control := pages.get(_CONTROL_PAGE):
                self.descriptor_sense = bool(control[0] & _D_SENSE)
                self.write_protect = bool(control[2] & _SWP)
            if self.mode_pages() != before:
                self.establish_attention(MODE_CHANGED, besides=nexus)
            return result

        return mode_select(cdb, self.mode_pages(), change)

    def _vpd_pages(self) -> Mapping[int, Callable[[], bytes]]:
        return {
            **super()._vpd_pages(),
            vpd.Page.BLOCK_LIMITS: self._block_limits().pack,
            vpd.Page.BLOCK_DEVICE_CHARACTERISTICS: vpd.pack_characteristics,
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
            max_compare_and_write=MAX_COMPARE_AND_WRITE,
        )


_PRE_FETCH_CODES: Final = frozenset({OperationCode.PRE_FETCH_10, OperationCode.PRE_FETCH_16})
_MODE_SELECT_CODES: Final = frozenset({OperationCode.MODE_SELECT_6, OperationCode.MODE_SELECT_10})
_DEFECT_CODES: Final = frozenset(_DEFECT_FLAGS_AT)
