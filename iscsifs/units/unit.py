"""A logical unit, of whatever kind: what it is, what it is called, and the queue of its commands.

A disk is a `block.BlockUnit`; units of other kinds have their own module, and are shown without bytes until
then.
"""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from iscsifs.errors import DataLostError, IscsifsError, UnitError
from iscsifs.scsi.luns import lun_label
from iscsifs.scsi.sense import Condition, Sense
from iscsifs.units.identity import Description, Name, describe
from iscsifs.units.queue import Queue
from iscsifs.units.statistics import Statistics

if TYPE_CHECKING:
    from iscsifs.units.block import BlockUnit

log = logging.getLogger(__name__)


class LogicalUnit:
    """The unit of the 64-bit *lun*, which is what *description* says. Its commands go by *queue*."""

    def __init__(self, lun: int, queue: Queue, description: Description) -> None:
        self.lun = lun
        self.label = lun_label(lun)
        self.name = queue.name
        self.queue = queue
        self.description = description

    @property
    def failure(self) -> IscsifsError | None:
        """Why the unit cannot be used any more."""
        return self.queue.failure

    @property
    def statistics(self) -> Statistics:
        """What was done with the unit; a unit that takes its place begins anew."""
        return self.queue.statistics

    @property
    def is_away(self) -> bool:
        """Whether there is no session with the target: what is asked for waits for its return."""
        return self.queue.path.is_away

    @property
    def is_block(self) -> bool:
        """Whether the unit has bytes to read, and is a `block.BlockUnit`."""
        return False

    @property
    def storage(self) -> "BlockUnit | None":
        """The unit as a range of bytes, while it `is_block`."""
        return None

    @property
    def device_type(self) -> int:
        """The peripheral device type (SPC-3 section 6.4.2)."""
        return self.description.inquiry.device_type

    @property
    def type_name(self) -> str:
        """The peripheral device type as a word."""
        return self.description.inquiry.device_type.label

    @property
    def vendor(self) -> str:
        """The T10 vendor identification."""
        return self.description.inquiry.vendor

    @property
    def product(self) -> str:
        """The product identification."""
        return self.description.inquiry.product

    @property
    def revision(self) -> str:
        """The product revision level."""
        return self.description.inquiry.revision

    @property
    def serial(self) -> str | None:
        """The unit serial number (VPD page 80h), where there is one."""
        return self.description.serial or None

    @property
    def wwid(self) -> str | None:
        """The worldwide name (VPD page 83h), where there is one."""
        return self.description.wwid

    @property
    def read_only(self) -> bool:
        """Whether the unit takes no writes."""
        return self.description.write_protected

    # What happens to the unit.

    def notice(self, condition: Condition, sense: Sense) -> None:
        """Draw the consequences of what the unit reports."""
        log.info("%s: %s", self.name, sense, extra={"kind": f"{self.name}: {sense.kind}"})

    async def check(self, probes: Queue, *, resized: bool = False) -> bool:
        """Ask the unit by *probes* whether it is still the same, and take over what has changed.

        *resized*: it has reported that its size is another. Raises what `describe` raises.
        """
        now = await describe(probes)
        now = replace(now, shared_names=self.description.shared_names & now.names)
        if not self._is_same_unit(now, resized):
            return False
        self._take(now)
        return True

    def _is_same_unit(self, now: Description, resized: bool) -> bool:
        return self.description.is_same_unit(now, resized=resized)

    def _take(self, now: Description) -> None:
        """From now on the unit is what it says *now*."""
        self.description = now

    def share_names(self, names: frozenset[Name]) -> None:
        """These of its names are those of other units of the target as well (`Description.shared_names`)."""
        self.description = replace(self.description, shared_names=names)

    def disown(self) -> None:
        """It is not known whether this is the unit that was written to: nothing of what was begun before may
        be written (again)."""
        reason = f"it may be another unit now, as {self.description.unidentified}"
        failure = DataLostError(f"{self.name}: {reason}; what was not synchronised is not written to it")
        # The data first: a command that ends lets others be sent.
        self._disown_data(failure)
        self.queue.disown(failure)

    def _disown_data(self, failure: IscsifsError) -> None:
        """Forget because of *failure* what was accepted and is not synchronised, where anything is kept."""

    def lose(self, reason: str) -> UnitError:
        """From now on there is no such unit: everything fails with what is returned."""
        failure = UnitError(f"{self.name}: {reason}")
        log.error("%s", failure)
        self.queue.fail(failure)
        return failure
