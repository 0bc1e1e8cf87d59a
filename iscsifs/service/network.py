"""What the living set asks of sessions, and of what is behind them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from iscsifs.discovery.sendtargets import Discovered
from iscsifs.fs.storage import Storage
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.initiator.report import SessionReport
from iscsifs.iscsi.names import Portal
from iscsifs.transport.polling import Poller
from iscsifs.transport.tap import MakeRecorder


class LogicalUnit(Protocol):
    """What is used of a logical unit."""

    @property
    def label(self) -> str:
        """The number, as text."""

    @property
    def device_type(self) -> int:
        """The peripheral device type."""

    @property
    def type_name(self) -> str:
        """The same as a word."""

    @property
    def vendor(self) -> str:
        """The vendor."""

    @property
    def product(self) -> str:
        """The product."""

    @property
    def revision(self) -> str:
        """The product revision level."""

    @property
    def serial(self) -> str | None:
        """The serial number."""

    @property
    def wwid(self) -> str | None:
        """The worldwide name."""

    @property
    def storage(self) -> Storage | None:
        """The unit as a range of bytes, where it has any."""


class Target(Protocol):
    """What is used of a target that was logged in to: its name, and where it was reached."""

    target_name: str
    on_change: Callable[[], None]
    """Called when a unit has come, gone, or changed."""
    on_return: Callable[[Any], None]
    """Called with a unit that was found to be the same after a new login or a reset."""
    on_note: Callable[[str, str], None]
    """Called with the kind and the sentence of an event of the session."""

    def record(self, make: MakeRecorder) -> bool:
        """Have *make* choose who records its connection; False where that has to be tried again."""

    async def rescan(self, label: str | None = None) -> None:
        """Find out which units there are now, and how large they are; or only what the one with this number
        is."""

    async def reset(self, label: str | None = None) -> None:
        """Reset the unit with this number, or all of the target."""

    @property
    def portal(self) -> Portal:
        """Where it was reached."""

    @property
    def address(self) -> str:
        """The same as a numeric address."""

    @property
    def tag(self) -> int | None:
        """The tag of its portal group."""

    def report(self) -> SessionReport:
        """Return the session as it is now."""

    @property
    def units(self) -> Sequence[LogicalUnit]:
        """The logical units."""


class Initiator(Protocol):
    """What is used of an initiator."""

    async def login(self, target_name: str, portals: Sequence[Portal]) -> Target:
        """Log in to *target_name* by the first of *portals* where that succeeds."""

    async def logout(self, target: Any) -> None:
        """Log out of *target*, which this initiator has logged in to."""


class Network(Protocol):
    """The module `iscsifs.service`, or what stands in for it."""

    async def discover(self, portal: Portal, options: InitiatorOptions) -> Sequence[Discovered]:
        """Ask *portal* for its targets."""

    def open_initiator(
        self, options: InitiatorOptions, poller: Poller
    ) -> AbstractAsyncContextManager[Initiator]:
        """Return an initiator, which logs out of everything when it is left; connections use *poller*."""
