"""A target that was logged in to: its session and its logical units."""

import logging
from collections.abc import Callable

import trio

from iscsifs.errors import CommandError, UnitError
from iscsifs.initiator.commands import Commands
from iscsifs.initiator.dial import Dialler
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.initiator.probe import describe, report_luns
from iscsifs.initiator.session import Session
from iscsifs.initiator.unit import LogicalUnit
from iscsifs.iscsi.names import Portal
from iscsifs.scsi.luns import lun_label

log = logging.getLogger(__name__)

PROBES_AT_ONCE = 16
"""Logical units of one target that are looked at in parallel."""


class Target:
    """A session with one target; `units` are its logical units in the order of their numbers."""

    def __init__(
        self, name: str, dialler: Dialler, session: Session, options: InitiatorOptions, nursery: trio.Nursery
    ) -> None:
        self.target_name = name
        self.session = session
        self.units: list[LogicalUnit] = []
        self.on_change: Callable[[], None] = lambda: None
        """Called when a unit has come, gone, or changed its size."""
        self._dialler = dialler
        self._options = options
        self._nursery = nursery
        session.after_login = self._check_units

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
        luns = await report_luns(self._commands(0))
        found: dict[int, LogicalUnit] = {}
        limit = trio.CapacityLimiter(PROBES_AT_ONCE)

        async def look(lun: int) -> None:
            async with limit:
                commands = self._commands(lun)
                try:
                    unit = LogicalUnit(
                        commands,
                        await describe(commands),
                        self._nursery,
                        write_behind=self._options.write_behind,
                    )
                except (CommandError, UnitError) as error:
                    log.warning("left out: %s", error)
                    return
                found[lun] = unit

        async with trio.open_nursery() as nursery:
            for lun in luns:
                nursery.start_soon(look, lun)
        self.units = [found[lun] for lun in sorted(found)]

    def _commands(self, lun: int) -> Commands:
        name = f"{self.target_name} LUN {lun_label(lun)}"
        return Commands(self.session, lun, name=name, patience=self._options.command_timeout)

    async def _check_units(self) -> None:
        """After a new login: is each unit what it was? Raises nothing."""
        limit = trio.CapacityLimiter(PROBES_AT_ONCE)

        async def check(unit: LogicalUnit) -> None:
            async with limit:
                await unit.check()
                if unit.failure is not None:
                    self.session.fail_kept(unit.lun, unit.failure)

        async with trio.open_nursery() as nursery:
            for unit in self.units:
                nursery.start_soon(check, unit)
