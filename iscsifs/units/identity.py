"""What a target has and what a logical unit is: REPORT LUNS, INQUIRY, VPD pages, capacity, mode pages.

All commands here are probes: they are also sent to a unit that may be another now.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from iscsifs.errors import (
    BusyError,
    CommandError,
    CommandTimeout,
    NoMediumError,
    TaskAborted,
    TransportError,
    UnitError,
)
from iscsifs.limits import MAX_DESIGNATORS
from iscsifs.scsi import cdb, mode
from iscsifs.scsi.capacity import Capacity
from iscsifs.scsi.inquiry import DeviceType, InquiryData
from iscsifs.scsi.luns import is_well_known, lun_from_number, parse_luns
from iscsifs.scsi.vpd import (
    Association,
    BlockLimits,
    Designator,
    Page,
    Provisioning,
    distinguishes,
    is_placeholder,
    parse_designators,
    parse_serial,
    parse_supported_pages,
    wwid,
)
from iscsifs.units.queue import Queue

log = logging.getLogger(__name__)

Name = str | Designator
"""A serial number, or a designator."""

INQUIRY_LENGTH: Final = 96
VPD_LENGTH: Final = 1024
FIRST_LUNS_LENGTH: Final = 8 + 8 * 256
"""Bytes of the first REPORT LUNS; a target with more units is asked again."""

SEQUENTIAL_LUNS: Final = 8
"""LUNs that are asked one by one where the target knows no REPORT LUNS: what SCSI-2 could address."""

_NO_ANSWER: Final = (BusyError, CommandTimeout, TaskAborted, TransportError)
"""Failures that say nothing about what a unit has or knows."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a logical unit says of itself.

    *capacity* is None where the unit cannot be read by block, *no_storage* then says why. *volatile_cache* is
    None where the unit does not say whether it has one. *designators* are those of the unit itself.
    *dpo_fua*: it honours FUA.
    """

    inquiry: InquiryData
    serial: str
    designators: tuple[Designator, ...]
    capacity: Capacity | None
    no_storage: str
    limits: BlockLimits
    provisioning: Provisioning
    write_protected: bool
    volatile_cache: bool | None
    dpo_fua: bool = False
    raw_inquiry: bytes = b""
    """The INQUIRY data as they came."""
    shared_names: frozenset[Name] = frozenset()
    """Those `names` that other units of the target have as well; `Target` knows them."""

    @property
    def wwid(self) -> str | None:
        """The worldwide name (VPD page 83h), where the unit has one."""
        return wwid(self.designators)

    @property
    def names(self) -> frozenset[Name]:
        """What tells the unit from others: the serial number, unless it is a placeholder, and the designators
        that distinguish units (`vpd.distinguishes`)."""
        found: set[Name] = set()
        if not is_placeholder(self.serial):
            found.add(self.serial)
        product = self.inquiry.product
        found.update(designator for designator in self.designators if distinguishes(designator, product))
        return frozenset(found)

    @property
    def unidentified(self) -> str:
        """Why the unit cannot be told from another that takes its place; empty where it can.

        Three things have to be given. It has a name (`names`). Not every name of it is that of another unit
        of the target as well: such a name is the target's or its maker's, and does not tell which of the two
        is there. And its medium is not removable: the names are those of the drive, not of what is in it.
        """
        if not self.names:
            return "it has no serial number and no worldwide name"
        if self.names <= self.shared_names:
            return "another unit of the target has the same serial number and names"
        if self.inquiry.removable:
            return "its medium is removable, and nothing names that"
        return ""

    @property
    def identified(self) -> bool:
        """Whether the unit can be told from another that takes its place; `unidentified` has the reasons."""
        return not self.unidentified

    def is_same_unit(self, other: "Description", *, resized: bool = False) -> bool:
        """Whether *other* is this unit at another time.

        Device type, vendor, product, serial number and designators have to be the same and, where both have a
        medium, the block size. That is all there is to compare where a name tells the unit from others: its
        size and its revision may change. Where no name does, all of the INQUIRY data and the capacity have to
        be the same as well; *resized*: but for the capacity, which the unit itself has reported to have
        changed.
        """

        def identity(unit: Description) -> object:
            inquiry = unit.inquiry
            return inquiry.device_type, inquiry.vendor, inquiry.product, unit.serial, unit.designators

        if identity(self) != identity(other):
            return False
        capacities = [unit.capacity for unit in (self, other) if unit.capacity is not None]
        if len({capacity.block_size for capacity in capacities}) > 1:
            return False
        if self.names - self.shared_names:
            return True
        return self.raw_inquiry == other.raw_inquiry and (resized or len(set(capacities)) < 2)


async def report_luns(probes: Callable[[int], Queue]) -> list[int]:
    """Return the LUNs of a target, by *probes*, a queue for each LUN (SPC-3 section 6.21).

    Where REPORT LUNS is unknown, the first few LUNs are asked for INQUIRY data one by one. Raises
    CommandError.
    """
    first, length = probes(0), FIRST_LUNS_LENGTH
    try:
        answer = parse_luns(await first.ask(cdb.report_luns(length), length))
        if answer.cut and answer.allocation_length > length:
            length = answer.allocation_length
            answer = parse_luns(await first.ask(cdb.report_luns(length), length))
    except _NO_ANSWER:
        raise
    except CommandError as error:
        log.info("%s; asking unit by unit", error)
        return await _sequential_luns(probes)
    if answer.reported > len(answer.luns):
        log.warning("%s: %d of the %d logical units are used", first.name, len(answer.luns), answer.reported)
    return [lun for lun in answer.luns if not is_well_known(lun)]


async def _sequential_luns(probes: Callable[[int], Queue]) -> list[int]:
    luns = []
    for lun in map(lun_from_number, range(SEQUENTIAL_LUNS)):
        try:
            data = await probes(lun).ask(cdb.inquiry(INQUIRY_LENGTH), INQUIRY_LENGTH)
            if InquiryData.parse(data).connected:
                luns.append(lun)
        except (CommandTimeout, TransportError):
            raise
        except (BusyError, TaskAborted):
            luns.append(lun)  # somebody is there
        except (CommandError, UnitError):
            continue
    return luns


async def take_reports(probes: Queue) -> None:
    """Have a logical unit report what has happened to it (unit attentions, SAM-5 section 5.14): what it is
    asked for then is as it is since.

    Raises CommandError where it does not answer; that it has nothing good to say is no error.
    """
    try:
        await probes.run(cdb.test_unit_ready())
    except _NO_ANSWER:
        raise
    except CommandError as error:
        log.info("%s", error)


async def describe(probes: Queue) -> Description:
    """Ask a logical unit what it is.

    Raises CommandError where it does not answer, UnitError where the LUN has no device.
    """
    raw_inquiry = await probes.ask(cdb.inquiry(INQUIRY_LENGTH), INQUIRY_LENGTH)
    inquiry = InquiryData.parse(raw_inquiry)
    if not inquiry.connected:
        raise UnitError(f"{probes.name}: there is no device")

    async def optional(command: bytes, length: int) -> bytes:
        """Return the data of a command that not every unit knows; nothing if it does not."""
        try:
            return await probes.ask(command, length)
        except _NO_ANSWER:
            raise
        except CommandError:
            return b""

    pages = parse_supported_pages(await optional(cdb.inquiry(VPD_LENGTH, Page.SUPPORTED_PAGES), VPD_LENGTH))

    async def vpd(page: Page) -> bytes:
        return await optional(cdb.inquiry(VPD_LENGTH, page), VPD_LENGTH) if page in pages else b""

    serial = parse_serial(await vpd(Page.UNIT_SERIAL_NUMBER))
    designators = tuple(
        designator
        for designator in parse_designators(await vpd(Page.DEVICE_IDENTIFICATION))
        if designator.association == Association.LOGICAL_UNIT
    )[:MAX_DESIGNATORS]
    capacity: Capacity | None = None
    no_storage = "its type is not read by block"
    limits, provisioning, modes = BlockLimits(), Provisioning(), mode.ModeData()
    if inquiry.device_type.addressed_by_block:
        try:
            capacity = await _capacity(probes, inquiry)
        except (NoMediumError, UnitError) as error:
            no_storage = str(error)
            log.warning("%s: no storage: %s", probes.name, error)
        else:
            limits = BlockLimits.parse(await vpd(Page.BLOCK_LIMITS))
            provisioning = Provisioning.parse(await vpd(Page.LOGICAL_BLOCK_PROVISIONING))
            modes = mode.parse_6(await optional(cdb.mode_sense_6(mode.CACHING_PAGE), 255))
            if not modes.pages:
                modes = mode.parse_6(await optional(cdb.mode_sense_6(mode.ALL_PAGES), 255))
    return Description(
        inquiry=inquiry,
        serial=serial,
        designators=designators,
        capacity=capacity,
        no_storage=no_storage,
        limits=limits,
        provisioning=provisioning,
        write_protected=modes.write_protected or inquiry.device_type == DeviceType.CD_DVD,
        volatile_cache=None if modes.caching is None else modes.caching.wce,
        dpo_fua=modes.dpo_fua,
        raw_inquiry=raw_inquiry,
    )


async def _capacity(probes: Queue, inquiry: InquiryData) -> Capacity:
    """Wait until the unit is ready and return its capacity; raises UnitError for one that cannot be used."""
    await probes.run(cdb.test_unit_ready())
    if inquiry.device_type == DeviceType.DISK:
        try:
            return Capacity.parse_16(await probes.ask(cdb.read_capacity_16(), 32))
        except (NoMediumError, *_NO_ANSWER):
            raise
        except CommandError as error:
            log.info("%s; asking for the short form", error)
    capacity = Capacity.parse_10(await probes.ask(cdb.read_capacity_10(), 8))
    if capacity is None:
        capacity = Capacity.parse_16(await probes.ask(cdb.read_capacity_16(), 32))
    return capacity
