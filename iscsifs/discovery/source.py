"""What a source of targets is, and what it reports."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from iscsifs.errors import printable
from iscsifs.iscsi.names import TargetAddress


@dataclass(frozen=True, slots=True)
class Wanted:
    """A target wanted, and of its logical units only *luns* if those are not None.

    *host_name* is the canonical name of its host, or the address where that has none.
    """

    host_name: str
    name: str
    addresses: tuple[TargetAddress, ...]
    luns: frozenset[str] | None = None

    def shares_portal_with(self, other: "Wanted") -> bool:
        """Say whether there is a portal at which both can be reached."""
        portals = {address.portal for address in self.addresses}
        return not portals.isdisjoint(address.portal for address in other.addresses)

    def merged_with(self, other: "Wanted") -> "Wanted":
        """Return this target with the logical units of *other* as well."""
        luns = None if self.luns is None or other.luns is None else self.luns | other.luns
        return replace(self, luns=luns)

    def lines(self) -> list[str]:
        """Return a line for each portal, as in ``host: 10.4.0.42:3260,1 iqn.2001-04.com.example:disk``."""
        return [line(self.host_name, address, self.name) for address in self.addresses]


def line(host_name: str, address: TargetAddress, target_name: str) -> str:
    """Return what is printed for a portal of a target."""
    tag = "" if address.tag is None else f",{address.tag}"
    return f"{printable(host_name)}: {address.portal}{tag} {printable(target_name)}"


Report = Callable[[Sequence[Wanted]], None]
"""Takes all that a source wants attached now; what it does not name any more is to be logged out of."""


class Source(Protocol):
    """Tells which targets are wanted."""

    @property
    def name(self) -> str:
        """What messages call it."""

    async def run(self, report: Report) -> None:
        """Call *report* with the targets that are wanted, each time that they are others; return when they
        will be no others any more.

        Raises an `IscsifsError` where nothing more can be found out; what was reported stays wanted.
        """
