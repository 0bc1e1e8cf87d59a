"""The targets that a host tells of (SendTargets, RFC 7143 section 4.3)."""

import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from iscsifs.discovery.resolve import resolve
from iscsifs.discovery.source import Report, Wanted
from iscsifs.errors import NoTargetError
from iscsifs.iscsi.names import Portal, TargetAddress


class Discovered(Protocol):
    """A target that SendTargets told of."""

    @property
    def name(self) -> str:
        """The target."""

    @property
    def addresses(self) -> Sequence[TargetAddress]:
        """Its portals."""


class SendTargets:
    """The targets of the host at *portal* whose names *wants* takes.

    *discover* holds a discovery session with it, as the initiator *initiator_name*.
    """

    def __init__(
        self,
        portal: Portal,
        family: socket.AddressFamily,
        initiator_name: str,
        discover: Callable[[], Awaitable[Sequence[Discovered]]],
        wants: Callable[[str], bool],
    ) -> None:
        self._portal = portal
        self._family = family
        self._initiator_name = initiator_name
        self._discover = discover
        self._wants = wants

    @property
    def name(self) -> str:
        """The portal."""
        return str(self._portal)

    async def run(self, report: Report) -> None:
        """Report the targets of one answer, as it does not tell of later ones.

        Raises NoTargetError where there are none, TransportError where the host has no address, and what
        *discover* raises.
        """
        host_name, addresses = await resolve(self._portal, self._family)
        discovered = await self._discover()
        if not discovered:
            raise NoTargetError(f"no targets for {self._initiator_name}; allow this name on the host")

        def first(address: TargetAddress) -> bool:
            """Sort the portal that was asked, which can be reached, before the others."""
            return address.portal.host not in addresses or address.portal.port != self._portal.port

        report(
            [
                Wanted(host_name, target.name, tuple(sorted(target.addresses, key=first)))
                for target in sorted(discovered, key=lambda target: target.name)
                if self._wants(target.name)
            ]
        )
