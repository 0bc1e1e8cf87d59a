"""A SCSI target device: a name and the logical units behind it (SAM-5 section 4.6.4)."""

from typing import Final

from iscsifs.errors import ConfigError
from iscsifs.iscsi.names import check_name
from iscsifs.scsi import cdb as commands
from iscsifs.scsi.cdb import OperationCode
from iscsifs.scsi.inquiry import DeviceType, InquiryData
from iscsifs.scsi.luns import lun_from_number, lun_number, pack_luns
from iscsifs.target.unit import (
    INVALID_FIELD_IN_CDB,
    LUN_NOT_SUPPORTED,
    LUNS_CHANGED,
    LogicalUnit,
    Nexus,
    Operation,
    data_in,
    ended,
    failed,
)

_SHORTEST_LUN_LIST: Final = 16
_WELL_KNOWN_ONLY: Final = 1  # SELECT REPORT of REPORT LUNS
_ALL: Final = 2

_NO_DEVICE: Final = InquiryData(DeviceType.UNKNOWN, peripheral_qualifier=3, version=5).pack()


class Device:
    """The target *name* with its *units* by the number of their LUN, 0 to 2**24 - 1, each with any unit.

    Raises ConfigError for a name that is no iSCSI name and for a number out of range.
    """

    def __init__(self, name: str, units: dict[int, LogicalUnit]) -> None:
        check_name(name, "target name")
        self.name = name
        self._units: dict[int, LogicalUnit] = {}
        for number, unit in units.items():
            self._put(number, unit)

    @property
    def units(self) -> dict[int, LogicalUnit]:
        """The units by number, a copy."""
        return dict(self._units)

    def attach(self, number: int, unit: LogicalUnit) -> None:
        """Put *unit* at LUN *number*, in the place of the one that is there, and tell every initiator.

        A unit that is taken out is not closed.
        """
        self._put(number, unit)
        self._luns_changed()

    def detach(self, number: int) -> LogicalUnit:
        """Take out the unit at LUN *number*, tell every initiator, and return it."""
        unit = self._units.pop(number)
        self._luns_changed()
        return unit

    def unit(self, lun: int) -> LogicalUnit | None:
        """Return the unit that the 64-bit *lun* leads to (SAM-5 section 4.7)."""
        number = lun_number(lun)
        return None if number is None else self._units.get(number)

    def prepare(self, nexus: Nexus, lun: int, cdb: bytes) -> Operation:
        """Check a command for *lun*, which may lead nowhere, and return what it asks for."""
        if cdb[0] == OperationCode.REPORT_LUNS:
            return self._report_luns(cdb)
        unit = self.unit(lun)
        if unit is not None:
            return unit.prepare(nexus, cdb)
        # SPC-3 sections 6.4.2 and 6.27: these two are answered without a unit.
        if cdb[0] == OperationCode.INQUIRY and not cdb[1] & 1:
            return data_in(_NO_DEVICE, commands.allocation_length(cdb))
        if cdb[0] == OperationCode.REQUEST_SENSE:
            return data_in(LUN_NOT_SUPPORTED.pack(), commands.allocation_length(cdb))
        return ended(failed(LUN_NOT_SUPPORTED))

    def close(self) -> None:
        """Close the units."""
        for unit in self._units.values():
            unit.close()

    def _put(self, number: int, unit: LogicalUnit) -> None:
        try:
            lun_from_number(number)
        except ValueError as exc:
            raise ConfigError(f"target {self.name}: {exc}") from None
        self._units[number] = unit

    def _luns_changed(self) -> None:
        for unit in self._units.values():
            unit.establish_attention(LUNS_CHANGED)

    def _report_luns(self, cdb: bytes) -> Operation:
        length = commands.allocation_length(cdb)
        if length < _SHORTEST_LUN_LIST or cdb[2] > _ALL:
            return ended(failed(INVALID_FIELD_IN_CDB))
        numbers = [] if cdb[2] == _WELL_KNOWN_ONLY else sorted(self._units)
        return data_in(pack_luns(map(lun_from_number, numbers)), length)
