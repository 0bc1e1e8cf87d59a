"""Targets with their units, from the login to the logout: sessions below, units above.

Here the two meet that know nothing of each other: a session tells of new logins and of what units report, the
inventory of units asks for paths.
"""

import itertools
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from iscsifs.errors import IscsifsError, TaskAborted, TransportError, UnitError
from iscsifs.initiator import discover as discovery
from iscsifs.initiator.dial import NO_POLLER, Connect, Dialler, Poller
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.initiator.report import SessionReport, report
from iscsifs.initiator.session import Session
from iscsifs.initiator.target import Target
from iscsifs.iscsi.chap import ChallengeMemory
from iscsifs.iscsi.discovery import DiscoveredTarget
from iscsifs.iscsi.events import SenseReported
from iscsifs.iscsi.names import Portal, TargetAddress
from iscsifs.iscsi.pdu import TaskFunction
from iscsifs.transport.tap import MakeRecorder
from iscsifs.units.inventory import Inventory, Settings
from iscsifs.units.unit import LogicalUnit

log = logging.getLogger(__name__)

# What all logins of a process share: no challenge is used twice, and no two sessions have the same ISID.
_challenges = ChallengeMemory()
_process = os.urandom(3)
_qualifiers = itertools.count()


def new_isid() -> bytes:
    """Return an ISID of the random format (RFC 7143 section 11.12.5) that no other session here has."""
    return b"\x80" + _process + (next(_qualifiers) & 0xFFFF).to_bytes(2, "big")


class ManagedTarget:
    """A target that was logged in to, and its units, which are kept up to date."""

    def __init__(
        self, name: str, dialler: Dialler, session: Session, options: InitiatorOptions, nursery: trio.Nursery
    ) -> None:
        self.target_name = name
        self.session = session
        self._target = Target(name, dialler, session)
        settings = Settings(
            options.command_timeout,
            options.replacement_timeout,
            write_behind=options.write_behind,
            trust_unidentified=options.trust_unidentified,
        )
        self._polling = trio.CancelScope()
        self.inventory = Inventory(self._target, settings, nursery)
        session.on_login = self.inventory.logged_in
        session.on_sense = self._reported
        session.on_note = lambda kind, text: self.on_note(kind, text)
        self.on_note: Callable[[str, str], None] = lambda kind, text: None
        """Called with the kind and the sentence of an event of the session."""

    def _reported(self, report: SenseReported) -> None:
        luns = [unit.lun for unit in self.units] if report.lun is None else [report.lun]
        for lun in luns:
            self.inventory.reported(lun, report.sense)

    async def find_units(self) -> None:
        """Ask the target for its units, and each of them what it is; those that do not answer are left out.

        Raises CommandError where the target does not answer at all.
        """
        await self.inventory.find_units()

    def record(self, make: MakeRecorder) -> bool:
        """Have *make* choose who records the connection, from here on; False: try again, it is in a header.

        True as well while there is no connection: the next one is asked for when it is made.
        """
        return self.session.is_away or self.session.link.record(make)

    async def rescan(self, label: str | None = None) -> None:
        """Find the units that have come and gone, and those of another size; with *label* look at this unit
        only. Raises an `IscsifsError`, at once where the target is away: it is asked when it is back."""
        if self.session.is_away:
            raise TransportError(f"{self.target_name}: the target is away; it is looked at when it is back")
        log.info("%s: rescan", self.target_name)
        if label is None:
            await self.inventory.rescan()
        else:
            await self.inventory.ask(self._lun_of(label))

    async def reset(self, label: str | None = None) -> None:
        """Reset the unit of this number, else the target: by TARGET WARM RESET, or where the target does not
        support that, unit by unit. Raises an `IscsifsError`."""
        if label is not None:
            await self.session.reset(TaskFunction.LOGICAL_UNIT_RESET, self._lun_of(label))
            return
        try:
            await self.session.reset(TaskFunction.TARGET_WARM_RESET)
        except TaskAborted as exc:
            log.info("%s; resetting its units one by one", exc)
            for unit in self.units:
                await self.session.reset(TaskFunction.LOGICAL_UNIT_RESET, unit.lun)

    def _lun_of(self, label: str) -> int:
        for unit in self.units:
            if unit.label == label:
                return unit.lun
        raise UnitError(f"{self.target_name} LUN {label}: it is not there any more")

    def report(self) -> SessionReport:
        """Return the session as it is now."""
        return report(self.session)

    async def poll(self, interval: float) -> None:
        """Rescan every *interval* seconds, as not every target reports what has changed; 0: never."""
        with self._polling:
            while interval:
                await trio.sleep(interval)
                if not self.session.is_away:
                    try:
                        await self.inventory.rescan()
                    except IscsifsError as exc:
                        log.info("%s: %s", self.target_name, exc, extra={"kind": exc.kind})

    async def close(self) -> None:
        """Log out, in bounded time."""
        self._polling.cancel()
        await self.session.close()

    @property
    def units(self) -> list[LogicalUnit]:
        """The logical units in the order of their numbers."""
        return self.inventory.units

    @property
    def on_change(self) -> Callable[[], None]:
        """Called when a unit has come, gone or changed, and after a new login (other portal?)."""
        return self.inventory.on_change

    @on_change.setter
    def on_change(self, changed: Callable[[], None]) -> None:
        self.inventory.on_change = changed

    @property
    def on_return(self) -> Callable[[LogicalUnit], None]:
        """Called when a unit was found to be the same after a new login or a reset."""
        return self.inventory.on_return

    @on_return.setter
    def on_return(self, returned: Callable[[LogicalUnit], None]) -> None:
        self.inventory.on_return = returned

    @property
    def portal(self) -> Portal:
        """The portal that was asked for the session, or the one that it was sent to."""
        return self._target.portal

    @property
    def address(self) -> str:
        """The numeric address of the portal."""
        return self._target.address

    @property
    def tag(self) -> int | None:
        """The portal group tag, None where the target did not say it."""
        return self._target.tag


class Initiator:
    """Sessions with targets, as the initiator that *options* describe; see `open_initiator`."""

    def __init__(
        self, options: InitiatorOptions, nursery: trio.Nursery, poller: Poller, connect: Connect | None = None
    ) -> None:
        self._options = options
        self._poller = poller
        self._connect = connect
        self._nursery = nursery
        self._sessions: list[Session] = []

    async def login(self, target_name: str, portals: Sequence[Portal]) -> ManagedTarget:
        """Log in to *target_name* at the first of *portals* where that succeeds, and find its units.

        Raises TransportError, ProtocolError, LoginError or CommandError; nothing is left behind then.
        """
        addresses = [TargetAddress(portal) for portal in portals]
        dialler = Dialler(
            self._options, _challenges, target_name, addresses, new_isid(), self._poller, self._connect
        )
        session = Session(target_name, dialler, self._options, await dialler())
        self._nursery.start_soon(session.run)
        self._sessions.append(session)
        target = ManagedTarget(target_name, dialler, session, self._options, self._nursery)
        try:
            await target.find_units()
        except BaseException:
            self._sessions.remove(session)
            with trio.CancelScope(shield=True):
                await session.close()
            raise
        self._nursery.start_soon(target.poll, self._options.poll)
        return target

    async def logout(self, target: ManagedTarget) -> None:
        """Log out of *target*, in bounded time; its commands fail."""
        self._sessions.remove(target.session)
        with trio.CancelScope(shield=True):
            await target.close()

    async def close(self) -> None:
        """Log out of all targets, in parallel and in bounded time."""
        async with trio.open_nursery() as nursery:
            for session in self._sessions:
                nursery.start_soon(session.close)


@asynccontextmanager
async def open_initiator(
    options: InitiatorOptions, poller: Poller = NO_POLLER, connect: Connect | None = None
) -> AsyncIterator[Initiator]:
    """Give an initiator; leaving the context, also by cancellation, logs out of all its targets.

    Its connections are those that *connect* gives, and busy-poll by *poller*.
    """
    manager = trio.open_nursery()
    outer = await manager.__aenter__()
    try:
        nursery: trio.Nursery = await outer.start(_shelter)
        initiator = Initiator(options, nursery, poller, connect)
        try:
            yield initiator
        finally:
            with trio.CancelScope(shield=True):
                await initiator.close()
            nursery.cancel_scope.cancel()
    finally:
        # Not told of the body's exception, the nursery does not wrap it up in a group.
        await manager.__aexit__(None, None, None)


async def _shelter(task_status: trio.TaskStatus[trio.Nursery]) -> None:
    """Give a nursery in which sessions live on while their user is being cancelled, so that they can log
    out."""
    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            task_status.started(nursery)
            await trio.sleep_forever()


async def discover(portal: Portal, options: InitiatorOptions) -> list[DiscoveredTarget]:
    """Ask *portal* for its targets (SendTargets); raises TransportError, LoginError or ProtocolError."""
    return await discovery.discover(portal, options, _challenges, new_isid())
