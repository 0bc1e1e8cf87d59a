"""A target that was logged in to: its session and its logical units."""

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from iscsifs.errors import CommandError, IscsifsError, StatusError, TransportError, UnitError
from iscsifs.initiator.commands import Commands
from iscsifs.initiator.dial import Dialler
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.initiator.probe import describe, report_luns, take_reports
from iscsifs.initiator.session import Session
from iscsifs.initiator.unit import LogicalUnit
from iscsifs.iscsi.events import SenseReported
from iscsifs.iscsi.names import Portal
from iscsifs.limits import NOTES_A_LIST, PROBES_AT_ONCE, UNIT_GRACE
from iscsifs.scsi.luns import lun_label
from iscsifs.scsi.sense import Condition, Sense
from iscsifs.scsi.status import Status

log = logging.getLogger(__name__)

PAUSE: Final = 1.0
"""Seconds between two looks at a unit that does not answer, or that keeps changing."""

_SUSPICIOUS: Final = frozenset({Condition.INQUIRY_CHANGED, Condition.MEDIUM_CHANGED, Condition.RESET})
"""After these reports of a unit it may be another: a disk that is put in the place of one does not know that,
and reports only that it was powered on. (LUNS_CHANGED is about all units of the target.)"""

_STALE: Final = frozenset({Condition.CAPACITY_CHANGED, Condition.MODE_CHANGED})
"""After these it is asked anew what it is."""

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Suspicion:
    """That a unit may be another now: until when it may be missing, and whether the log has it."""

    give_up_at: float
    told: bool = False


class Target:
    """A session with one target and its logical units."""

    def __init__(
        self, name: str, dialler: Dialler, session: Session, options: InitiatorOptions, nursery: trio.Nursery
    ) -> None:
        self.target_name = name
        self.session = session
        self.on_change: Callable[[], None] = lambda: None
        """Called when a unit has come, gone, or changed its size."""
        self.on_return: Callable[[LogicalUnit], None] = lambda unit: None
        """Called when a unit was found to be the same after a new login or a reset."""
        self._units: dict[int, LogicalUnit] = {}  # by LUN, in the order of the LUNs
        self._dialler = dialler
        self._options = options
        self._nursery = nursery
        self._suspects: dict[LogicalUnit, Suspicion] = {}
        self._grace_until = 0.0
        self._looks = trio.CapacityLimiter(PROBES_AT_ONCE)
        self._stale: set[LogicalUnit] = set()
        self._luns_stale = False
        self._updating = False
        session.on_login = self._logged_in
        session.on_sense = self._on_sense

    @property
    def units(self) -> list[LogicalUnit]:
        """The logical units in the order of their numbers."""
        return list(self._units.values())

    @property
    def portal(self) -> Portal:
        """The portal that was asked for the session, or the one that it was sent to."""
        return self._dialler.portal

    @property
    def address(self) -> str:
        """The numeric address of the portal."""
        return self._dialler.peer_address

    @property
    def tag(self) -> int | None:
        """The portal group tag, None where the target did not say it."""
        return self.session.link.connection.parameters.target_portal_group_tag

    async def find_units(self) -> None:
        """Ask the target for its units, and each of them what it is; those that do not answer are left out.

        Raises CommandError where the target does not answer at all.
        """
        self._units = await self._look_at(await report_luns(self._commands(0)))

    async def _look_at(self, luns: Iterable[int]) -> dict[int, LogicalUnit]:
        """Return the units of *luns* that answer."""
        found: dict[int, LogicalUnit] = {}
        left_out = 0

        async def look(lun: int) -> None:
            nonlocal left_out
            commands = self._commands(lun)
            try:
                link = None
                while link is not self.session.link:  # it may be another unit after a new login
                    link = self.session.link
                    description = await describe(commands)
            except (CommandError, UnitError, TransportError) as error:
                left_out += 1
                if left_out <= NOTES_A_LIST:
                    log.warning("left out: %s", error)
                return
            unit = LogicalUnit(commands, description, self._nursery, write_behind=self._options.write_behind)
            found[lun] = unit

        await _for_each(luns, look)
        if left_out > NOTES_A_LIST:
            log.warning("%s: left out %d more logical units", self.target_name, left_out - NOTES_A_LIST)
        return dict(sorted(found.items()))

    def _commands(self, lun: int) -> Commands:
        name = f"{self.target_name} LUN {lun_label(lun)}"
        return Commands(self.session, lun, name=name, patience=self._options.command_timeout)

    # Units that may be others now: after a new login, and when they report that something has happened.

    def _logged_in(self) -> None:
        self._grace_until = trio.current_time() + UNIT_GRACE
        self._suspect(self.units)
        self._luns_stale = True
        self._update_soon()

    def _suspect(self, units: Iterable[LogicalUnit]) -> None:
        """Hold the commands for *units* until it is known whether these are what they were."""
        units = [unit for unit in units if unit.failure is None]
        self.session.hold(unit.lun for unit in units)
        for unit in units:
            if unit not in self._suspects:
                self._nursery.start_soon(self._look_into, unit)
            self._suspects[unit] = Suspicion(trio.current_time() + UNIT_GRACE)

    async def _look_into(self, unit: LogicalUnit) -> None:
        """Check *unit* until the answer is newer than all that has made it a suspect."""
        answered = None
        try:
            while unit.failure is None and self._suspects[unit] is not answered:
                before = unit.description
                answered = await self._ask(unit)
                if unit.description != before:
                    log.info("%s has changed", unit.name)
                    self.on_change()
                if unit.failure is None:
                    if answered is not None:
                        self.on_return(unit)
                    await trio.sleep(PAUSE)
        except TransportError:
            return  # the session is closed
        finally:
            del self._suspects[unit]
        self._luns_stale = True  # what is there now in its place, or has come with it?
        self._update_soon()

    async def _ask(self, unit: LogicalUnit) -> Suspicion | None:
        """Check *unit* once, and return the suspicion that this has cleared."""
        suspicion = self._suspects[unit]
        try:
            async with self._looks:
                await take_reports(self._commands(unit.lun))
                suspicion = self._suspects[unit]  # what was reported just now is older than the answers
                same = await unit.check()
        except (CommandError, UnitError) as error:
            missing = isinstance(error, UnitError) or (
                isinstance(error, StatusError) and error.status == Status.CHECK_CONDITION
            )  # and not only busy, reserved, or without an answer
            if missing and trio.current_time() >= suspicion.give_up_at:
                self._lose(unit, f"gone: {error}")
            elif not suspicion.told:
                log.warning("%s; its commands wait until it is known what is there", error)
                suspicion.told = True
            return None
        if not same:
            self._lose(unit, "there is another unit under this number now")
            return None
        if suspicion is not self._suspects[unit] or unit.failure is not None:
            return None
        self.session.release(unit.lun)
        return suspicion

    def _lose(self, unit: LogicalUnit, reason: str) -> None:
        """From now on *unit* is gone, and what has its number is a unit of its own."""
        if unit.failure is None:
            self.session.hold([unit.lun])  # also what waits for the window
            self.session.fail_kept(unit.lun, unit.lose(reason))

    # What units report while they are in use.

    def _on_sense(self, report: SenseReported) -> None:
        """Take the report of a unit, whoever had sent the command that it came with.

        This comes before that command is repeated, and before anything else is sent.
        """
        sense = Sense.parse(report.sense)
        condition = sense.condition
        unit = self._units.get(report.lun)
        if unit is None or unit.failure is not None or not condition.repeatable:
            return  # what is not repeatable concerns one command only
        if condition is Condition.LUNS_CHANGED:
            self._luns_stale = True
            self._suspect(self.units)
        elif condition in _SUSPICIOUS:
            self._suspect([unit])
        elif condition in _STALE:
            self._stale.add(unit)
        unit.notice(condition, sense)  # after that: it may write again at once what may be lost
        if self._luns_stale or self._stale:
            self._update_soon()

    def _update_soon(self) -> None:
        """See to it that what is stale is looked at, in one task however many reports there are."""
        if not self._updating:
            self._updating = True
            self._nursery.start_soon(self._update)

    async def _update(self) -> None:
        try:
            while self._luns_stale or self._stale:
                stale, self._stale = self._stale, set()
                if self._luns_stale:
                    self._luns_stale = False
                    await self._rescan()
                await _for_each(stale.intersection(self._units.values()), self._refresh)
                await trio.sleep(PAUSE)
        except IscsifsError as error:
            log.warning("%s; what has changed is not known", error)
        finally:
            self._updating = False

    async def _rescan(self) -> None:
        """Take in the units that have come, and leave out those that have gone or were exchanged."""
        luns = dict.fromkeys(await report_luns(self._commands(0)))
        for lun, unit in self._units.items():
            if lun not in luns and trio.current_time() >= self._grace_until:
                self._lose(unit, "the target does not report it any more")
        units = {lun: unit for lun, unit in self._units.items() if unit.failure is None}
        units |= await self._look_at(lun for lun in luns if lun not in units)
        if units != self._units:
            self._units = dict(sorted(units.items()))
            self.on_change()

    async def _refresh(self, unit: LogicalUnit) -> None:
        """Ask *unit* anew what it is."""
        before = unit.description
        try:
            if not await unit.check():
                self._suspect([unit])
        except (CommandError, UnitError, TransportError) as error:
            log.warning("%s; what has changed about it is not known", error)
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
