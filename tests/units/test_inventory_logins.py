"""Which units there are, while the target is lost and logged in to again in between."""

import math

import pytest
import trio
from trio.testing import MockClock

from iscsifs.errors import CommandTimeout
from iscsifs.scsi.capacity import Capacity
from iscsifs.scsi.cdb import OperationCode
from iscsifs.scsi.inquiry import DeviceType, InquiryData
from iscsifs.scsi.luns import lun_from_number, pack_luns
from iscsifs.scsi.sense import Sense, SenseKey
from iscsifs.scsi.status import Status
from iscsifs.units.inventory import Inventory, Settings
from iscsifs.units.unit import LogicalUnit
from support.disks import disks
from support.memory_path import Answer, MemoryPath

DISK = InquiryData(DeviceType.DISK, version=5, vendor="ACME", product="Disk", revision="1.0").pack()
UNSUPPORTED = Sense(SenseKey.ILLEGAL_REQUEST, 0x20, 0x00)


class Nexus:
    """A way to the units of `sizes` (blocks, by number), whose paths are lost and restored together."""

    name = "iqn.2001-04.com.example:disks"

    def __init__(self, *sizes: int) -> None:
        self.logins = 1
        self.sizes = dict(enumerate(sizes))
        self.slow: int | None = None
        """The unit that does not answer."""
        self.paths: list[MemoryPath] = []
        self.asked: list[OperationCode] = []
        self.busy = 0
        """How often REPORT LUNS is not answered."""

    def path(self, lun: int) -> MemoryPath:
        number = lun >> 48
        path = MemoryPath(
            lambda cdb: self._answer(number, cdb), lambda _: math.inf if number == self.slow else 0.0
        )
        self.paths.append(path)
        return path

    def _answer(self, number: int, cdb: bytes) -> Answer:
        code = OperationCode(cdb[0])
        self.asked.append(code)
        if code is OperationCode.REPORT_LUNS:
            if self.busy:
                self.busy -= 1
                return CommandTimeout("no answer")
            return pack_luns([lun_from_number(each) for each in self.sizes])
        if code is OperationCode.INQUIRY:
            if not cdb[1]:
                return DISK
            return UNSUPPORTED
        if code is OperationCode.TEST_UNIT_READY:
            return Status.GOOD
        if code is OperationCode.SERVICE_ACTION_IN_16:
            return Capacity(self.sizes[number], 512).pack_16()
        return UNSUPPORTED

    def log_in_again(self, inventory: Inventory) -> None:
        """Lose all paths, and restore them by a new login."""
        for path in self.paths:
            path.lose()
        self.logins += 1
        inventory.logged_in()
        for path in self.paths:
            path.restore()


def inventory_of(nexus: Nexus, nursery: trio.Nursery) -> Inventory:
    return Inventory(nexus, Settings(30.0, 120.0), nursery)


@pytest.mark.parametrize("again", [1, 2])
async def test_a_unit_that_is_exchanged_while_others_are_still_looked_at_is_looked_at_again(
    nursery: trio.Nursery, autojump_clock: MockClock, again: int
) -> None:
    """It has been described, but is not yet one of the units that are told of a new login."""
    nexus = Nexus(1000, 1000)
    nexus.slow = 1
    inventory = inventory_of(nexus, nursery)
    nursery.start_soon(inventory.find_units)
    await trio.sleep(1.0)
    assert inventory.units == []
    changes: list[list[LogicalUnit]] = []
    inventory.on_change = lambda: changes.append(inventory.units)
    nexus.sizes[0] = 500
    for _ in range(again):
        nexus.log_in_again(inventory)
    nexus.slow = None
    nexus.log_in_again(inventory)
    await trio.sleep(30.0)
    shown = {id(unit): unit for units in [*changes, inventory.units] for unit in units}
    assert all(unit in inventory.units or unit.failure for unit in shown.values())
    assert [unit.size for unit in disks(inventory.units)] == [500 * 512, 1000 * 512]
    assert [unit.failure for unit in inventory.units] == [None, None]
    assert not any(unit.queue.is_suspended for unit in inventory.units)


async def test_a_look_that_fails_does_not_keep_the_next_from_being_taken(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """There is a new login while the target is asked for its units, which then fails."""
    nexus = Nexus()
    inventory = inventory_of(nexus, nursery)
    await inventory.find_units()
    rescan = inventory._rescan
    nexus.sizes[0] = 1000
    failed: list[bool] = []

    async def fail_once() -> None:
        if not failed:
            failed.append(True)
            nexus.log_in_again(inventory)
            nexus.busy = 1
        await rescan()

    inventory._rescan = fail_once  # type: ignore[method-assign]
    nexus.log_in_again(inventory)
    await trio.sleep(30.0)
    assert [unit.label for unit in inventory.units] == ["0"]
