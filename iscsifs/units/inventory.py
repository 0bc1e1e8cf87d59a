"""The units of a target: which there are, what they are, and whether they are still what they were.

A unit may be another one after each new login, and whenever it reports something of that kind. Then its
queue is suspended, the unit is asked what it is (identity check), and its commands go on or fail. What
comes and goes is found by REPORT LUNS.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol, TypeVar
from weakref import WeakSet

import trio

from iscsifs.errors import CommandError, IscsifsError, StatusError, TransportError, UnitError
from iscsifs.limits import NOTES_A_LIST, PROBES_AT_ONCE, UNIT_GRACE
from iscsifs.scsi.luns import lun_label
from iscsifs.scsi.sense import Condition, Sense
from iscsifs.scsi.status import Status
from iscsifs.units.block import BlockUnit
from iscsifs.units.identity import Description, describe, report_luns, take_reports
from iscsifs.units.path import Path
from iscsifs.units.queue import Queue
from iscsifs.units.unit import LogicalUnit

log = logging.getLogger(__name__)

PAUSE: Final = 1.0
"""Seconds between two looks at a unit that does not answer, or that keeps changing."""


class Reaction(Enum):
    """What is done about a unit that reports something."""

    CHECK = auto()
    """It may be another unit, or none: its commands wait until its identity is checked, or it is given up."""
    CHECK_ALL = auto()
    """The same for all units of the target, one of which may have been exchanged."""
    REFRESH = auto()
    """It is the same, but not as it was: it is asked anew what it is, and used meanwhile."""


REACTIONS: Final[dict[Condition, Reaction]] = {
    Condition.INQUIRY_CHANGED: Reaction.CHECK,
    Condition.MEDIUM_CHANGED: Reaction.CHECK,
    # A disk that is put in the place of another does not know that, and reports that it was powered on.
    Condition.RESET: Reaction.CHECK,
    Condition.NO_UNIT: Reaction.CHECK,
    Condition.LUNS_CHANGED: Reaction.CHECK_ALL,
    Condition.CAPACITY_CHANGED: Reaction.REFRESH,
    Condition.MODE_CHANGED: Reaction.REFRESH,
    # Not every target reports that a unit has shrunk, or that it takes no writes any more.
    Condition.OUT_OF_RANGE: Reaction.REFRESH,
    Condition.WRITE_PROTECTED: Reaction.REFRESH,
}
"""What is done about what a unit reports. Whatever is not here says nothing about what the unit is: that a
command failed (MEDIUM_ERROR, NO_SPACE, UNSUPPORTED, MISCOMPARE, FAILED), is to be repeated (RETRY,
BECOMING_READY, COMMANDS_CLEARED, DEFERRED_ERROR), or that this unit cannot work (NOT_READY, NO_MEDIUM)."""

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class IdentityCheck:
    """A unit may be another now: until when it may be missing, and whether the log has it."""

    give_up_at: float
    told: bool = False


class Nexus(Protocol):
    """The way to a target, as its units see it (an I_T nexus)."""

    @property
    def name(self) -> str:
        """The target, for messages."""

    @property
    def logins(self) -> int:
        """How many logins there were; with each the units may be others."""

    def path(self, lun: int) -> Path:
        """Return a path to the unit of the 64-bit *lun*."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How units behave.

    *patience* is how many seconds a unit may be busy, *replacement_timeout* how many commands wait for a
    path. *write_behind*: writes are acknowledged as soon as they are kept. *trust_unidentified*: what was
    written before a new login goes also to a unit that cannot be identified.
    """

    patience: float
    replacement_timeout: float
    write_behind: bool = True
    trust_unidentified: bool = False


class Inventory:
    """The units of the target that *nexus* leads to. Background work runs in *nursery*."""

    def __init__(self, nexus: Nexus, settings: Settings, nursery: trio.Nursery) -> None:
        self.on_change: Callable[[], None] = lambda: None
        """Called when a unit has come, gone or changed."""
        self.on_return: Callable[[LogicalUnit], None] = lambda unit: None
        """Called when a unit was found to be the same after a new login or a reset."""
        self._nexus = nexus
        self._settings = settings
        self._nursery = nursery
        self._units: dict[int, LogicalUnit] = {}  # by LUN, in the order of the LUNs
        self._checks: dict[LogicalUnit, IdentityCheck] = {}
        self._introduced: WeakSet[LogicalUnit] = WeakSet()  # those that were told of
        self._missing: dict[LogicalUnit, float] = {}  # not reported by the target, and until when that may be
        self._looked_at: dict[LogicalUnit, int] = {}  # those that were found last, and after which login
        self._looks = trio.CapacityLimiter(PROBES_AT_ONCE)
        self._stale: set[LogicalUnit] = set()
        self._luns_stale = False
        self._renewed = False
        self._updating = False
        self._comparing = trio.Lock()  # with what the target reports; two of them would make a unit twice

    @property
    def units(self) -> list[LogicalUnit]:
        """The logical units in the order of their numbers."""
        return list(self._units.values())

    async def find_units(self) -> None:
        """Ask the target for its units, and each of them what it is; those that do not answer are left out.

        Raises CommandError where the target does not answer at all.
        """
        self._updating = True  # after a new login nobody else looks for the same units
        try:
            self._units = await self._look_at(await report_luns(self._probes))
        finally:
            self._updating = False
        self._check_identity(self._outdated())
        self._compare_names()
        if self._luns_stale:
            self._update_soon()

    def _compare_names(self) -> None:
        """Find out which names several units have, and say which units cannot be identified."""
        owners = Counter(name for unit in self._units.values() for name in unit.description.names)
        said = 0
        for unit in self._units.values():
            before = unit.description.unidentified if unit in self._introduced else ""
            self._introduced.add(unit)
            shared = frozenset(name for name in unit.description.names if owners[name] > 1)
            if shared != unit.description.shared_names:
                unit.share_names(shared)
            why = unit.description.unidentified
            if why and why != before and unit.is_block and not unit.read_only:
                said += 1
                if said <= NOTES_A_LIST:
                    self._warn_of(unit, why)
        if said > NOTES_A_LIST:
            log.warning(
                "%s: %d more logical units cannot be identified", self._nexus.name, said - NOTES_A_LIST
            )

    def _warn_of(self, unit: LogicalUnit, why: str) -> None:
        if self._settings.trust_unidentified:
            log.warning(
                "%s: cannot be identified: %s; after a lost connection what was written before goes to"
                " whatever is there (trust_unidentified)",
                unit.name,
                why,
            )
        else:
            log.warning(
                "%s: cannot be identified: %s; after a lost connection what was not synchronised is lost, and"
                " reported so (-o trust_unidentified writes it again)",
                unit.name,
                why,
            )

    async def _look_at(self, luns: Iterable[int]) -> dict[int, LogicalUnit]:
        """Return the units of *luns* that answer."""
        found: dict[int, LogicalUnit] = {}
        self._looked_at = {}
        left_out = 0

        async def look(lun: int) -> None:
            nonlocal left_out
            probes = self._probes(lun)
            try:
                logins = -1
                while logins != self._nexus.logins:  # it may be another unit after a new login
                    logins = self._nexus.logins
                    description = await describe(probes)
            except (CommandError, UnitError, TransportError) as error:
                left_out += 1
                if left_out <= NOTES_A_LIST:
                    log.warning("left out: %s", error, extra={"kind": error.kind})
                return
            found[lun] = unit = self._unit(lun, description)
            self._looked_at[unit] = logins

        await _for_each(luns, look)
        if left_out > NOTES_A_LIST:
            log.warning("%s: left out %d more logical units", self._nexus.name, left_out - NOTES_A_LIST)
        return dict(sorted(found.items()))

    def _unit(self, lun: int, description: Description) -> LogicalUnit:
        """Return a unit of the kind that *description* tells of."""
        if not description.inquiry.device_type.addressed_by_block:
            return LogicalUnit(lun, self._queue(lun), description)
        write_behind = self._settings.write_behind
        return BlockUnit(lun, self._queue(lun), description, self._nursery, write_behind=write_behind)

    def _outdated(self) -> list[LogicalUnit]:
        """Return those whose identity was checked before the last login."""
        return [unit for unit, logins in self._looked_at.items() if logins != self._nexus.logins]

    def _queue(self, lun: int, *, probes: bool = False) -> Queue:
        return Queue(
            f"{self._nexus.name} LUN {lun_label(lun)}",
            self._nexus.path(lun),
            self._nursery,
            patience=self._settings.patience,
            replacement_timeout=self._settings.replacement_timeout,
            probes=probes,
        )

    def _probes(self, lun: int) -> Queue:
        return self._queue(lun, probes=True)

    # Units that may be others now: after a new login, and when they report that something has happened.

    def logged_in(self) -> None:
        """Take note of a new login, before anything is sent."""
        self._check_identity(self.units)
        self._luns_stale = True
        self._renewed = True  # the portal may be another
        self._update_soon()

    def _check_identity(self, units: Iterable[LogicalUnit]) -> None:
        """Suspend the commands for *units* until their identity is checked."""
        units = [unit for unit in units if unit.failure is None]
        for unit in units:
            unit.queue.suspend()
            if unit not in self._checks:
                self._nursery.start_soon(self._check_until_known, unit)
            self._checks[unit] = IdentityCheck(trio.current_time() + UNIT_GRACE)

    async def _check_until_known(self, unit: LogicalUnit) -> None:
        """Check *unit* until the answer is newer than every reason to check it."""
        answered = None
        try:
            while unit.failure is None and self._checks[unit] is not answered:
                before = unit.description
                answered = await self._check_once(unit)
                if unit.description != before:
                    log.info("%s has changed", unit.name)
                    self.on_change()
                elif answered is not None:
                    self._renewed = True
                if unit.failure is None:
                    if answered is not None:
                        self.on_return(unit)
                    await trio.sleep(PAUSE)
        except TransportError:
            return  # the session is closed
        finally:
            del self._checks[unit]
        self._luns_stale = True  # what is there now in its place, or has come with it?
        self._update_soon()

    async def _check_once(self, unit: LogicalUnit) -> IdentityCheck | None:
        """Check *unit* once, and return the identity check that this has ended."""
        check = self._checks[unit]
        try:
            async with self._looks:
                probes = self._probes(unit.lun)
                await take_reports(probes)
                check = self._checks[unit]  # what was reported just now is older than the answers
                same = await unit.check(probes)
        except (CommandError, UnitError) as error:
            missing = isinstance(error, UnitError) or (
                isinstance(error, StatusError) and error.status == Status.CHECK_CONDITION
            )  # and not only busy, reserved, or without an answer
            if missing and trio.current_time() >= check.give_up_at:
                self._lose(unit, f"gone: {error}")
            elif not check.told:
                log.warning(
                    "%s; its commands wait until it is known what is there",
                    error,
                    extra={"kind": f"{unit.name} is missing"},
                )
                check.told = True
            return None
        if not same:
            self._lose(unit, "there is another unit under this number now")
            return None
        if check is not self._checks[unit] or unit.failure is not None:
            return None
        if not unit.description.identified and not self._settings.trust_unidentified:
            unit.disown()
        unit.queue.resume()
        return check

    def _lose(self, unit: LogicalUnit, reason: str) -> None:
        """From now on *unit* is gone, and what has its number is a unit of its own."""
        if unit.failure is None:
            unit.lose(reason)

    # What units report while they are in use.

    def reported(self, lun: int, sense_data: bytes) -> None:
        """Take the report of a unit, with whichever command it came.

        This comes before that command is repeated, and before anything else is sent.
        """
        sense = Sense.parse(sense_data)
        condition = sense.condition
        unit = self._units.get(lun)
        if condition is Condition.LUNS_CHANGED and (unit is None or unit.failure is not None):
            self._luns_stale = True  # LUN 0 reports for the target, also where it is no unit that is shown
            self._check_identity(self.units)
            self._update_soon()
        if unit is None or unit.failure is not None:
            return
        match REACTIONS.get(condition):
            case Reaction.CHECK_ALL:
                self._luns_stale = True
                self._check_identity(self.units)
            case Reaction.CHECK if condition is Condition.NO_UNIT:
                # The look that is under way hears it as well, and has had its time since it began.
                if not unit.queue.is_suspended:
                    self._check_identity([unit])
            case Reaction.CHECK:
                self._check_identity([unit])
            case Reaction.REFRESH if condition is not Condition.WRITE_PROTECTED or not unit.read_only:
                self._stale.add(unit)
        if condition.repeatable:
            unit.notice(condition, sense)  # after that: it may write again at once what may be lost
        if self._luns_stale or self._stale:
            self._update_soon()

    def _update_soon(self) -> None:
        """Ask anew what is stale, in one task for any number of reports."""
        if not self._updating:
            self._updating = True
            self._nursery.start_soon(self._update)

    async def _update(self) -> None:
        try:
            while self._luns_stale or self._stale or self._renewed:
                if self._renewed:
                    self._renewed = False
                    self.on_change()
                stale, self._stale = self._stale, set()
                try:
                    async with self._comparing:
                        if self._luns_stale:
                            self._luns_stale = False
                            await self._rescan()
                        await _for_each(stale.intersection(self._units.values()), self._refresh)
                except IscsifsError as error:  # and again, if there was another reason in the meantime
                    log.warning("%s; what has changed is not known", error, extra={"kind": error.kind})
                await trio.sleep(PAUSE)
        finally:
            self._updating = False

    async def rescan(self) -> None:
        """Ask the target for its units, and each of them what it is now, its size for instance.

        Raises CommandError or TransportError where the target does not answer.
        """
        async with self._comparing:
            await self._rescan()
            await _for_each(self.units, self._refresh)
        if self._luns_stale or self._stale:
            self._update_soon()

    async def ask(self, lun: int) -> None:
        """Ask one unit what it is now, its size for instance; raises UnitError where it is not there."""
        unit = self._units.get(lun)
        if unit is None or unit.failure is not None:
            raise UnitError(f"{self._nexus.name} LUN {lun_label(lun)}: it is not there any more")
        async with self._comparing:
            await self._refresh(unit)
        if self._stale:
            self._update_soon()

    async def _rescan(self) -> None:
        """Take in the units that have come, and leave out those that have gone or were exchanged."""
        luns = dict.fromkeys(await report_luns(self._probes))
        now = trio.current_time()
        # The identity check of one that does not answer gives it up a little earlier, with the reason.
        missing = [unit for lun, unit in self._units.items() if lun not in luns and unit.failure is None]
        self._missing = {unit: self._missing.get(unit, now + UNIT_GRACE + 2 * PAUSE) for unit in missing}
        for unit, give_up_at in self._missing.items():
            if now >= give_up_at:
                self._lose(unit, "the target does not report it any more")
            else:
                self._luns_stale = True  # look again
        units = {lun: unit for lun, unit in self._units.items() if unit.failure is None}
        units |= await self._look_at(lun for lun in luns if lun not in units)
        if units != self._units:
            self._units = dict(sorted(units.items()))
            self._check_identity(self._outdated())
            self._compare_names()
            self.on_change()

    async def _refresh(self, unit: LogicalUnit) -> None:
        """Ask *unit* anew what it is."""
        if unit.queue.is_suspended:
            self._stale.add(unit)  # it has to be known first whether it is still there
            return
        before = unit.description
        try:
            if not await unit.check(self._probes(unit.lun), resized=True):
                self._check_identity([unit])
        except (CommandError, UnitError, TransportError) as error:
            log.warning("%s; what has changed about it is not known", error, extra={"kind": error.kind})
        if unit.description != before:
            log.info("%s has changed", unit.name)
            self.on_change()


async def _for_each(things: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Do *work* for all *things*, PROBES_AT_ONCE of them at a time."""
    limit = trio.CapacityLimiter(PROBES_AT_ONCE)

    async def one(thing: T) -> None:
        async with limit:
            await work(thing)

    async with trio.open_nursery() as nursery:
        for thing in things:
            nursery.start_soon(one, thing)
