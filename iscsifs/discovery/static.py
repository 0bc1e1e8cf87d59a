"""A target that its user names, with the host where it is."""

import socket

from iscsifs.discovery.resolve import resolve
from iscsifs.discovery.source import Report, Wanted
from iscsifs.iscsi.names import Portal, TargetAddress


class StaticTarget:
    """The target *target_name* at *portal*, of its units only *lun* where that is not None."""

    def __init__(
        self, portal: Portal, family: socket.AddressFamily, target_name: str, lun: str | None
    ) -> None:
        self._portal = portal
        self._family = family
        self._target_name = target_name
        self._luns = None if lun is None else frozenset({lun})

    @property
    def name(self) -> str:
        """The portal."""
        return str(self._portal)

    async def run(self, report: Report) -> None:
        """Report the target, once; raises TransportError where the host has no address."""
        host_name, addresses = await resolve(self._portal, self._family)
        portals = [Portal(address, self._portal.port) for address in sorted(addresses)]
        report([Wanted(host_name, self._target_name, tuple(map(TargetAddress, portals)), self._luns)])
