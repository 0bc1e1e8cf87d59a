"""What a SendTargets answer says (RFC 7143 section 4.3 and appendix C)."""

import logging
from dataclasses import dataclass

from iscsifs.errors import ProtocolError, printable
from iscsifs.iscsi.names import Portal, TargetAddress, name_fault
from iscsifs.iscsi.text import Pair

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DiscoveredTarget:
    """A target and where it can be reached, in the order of the answer; at least one address."""

    name: str
    addresses: tuple[TargetAddress, ...]


def read_targets(pairs: list[Pair], portal: Portal, zone: str | None = None) -> list[DiscoveredTarget]:
    """Read the *pairs* of an answer that came from *portal*, which serves the targets without an address.

    *zone* is the zone of the connection, for link-local addresses. A target whose name is none is left out,
    as is an address to which nobody can connect; both are logged, each name once. A target of which no
    address is left is looked for at *portal* as well: some tell of 0.0.0.0. Raises ProtocolError for a key
    that does not belong there.
    """
    found: dict[str, list[TargetAddress]] = {}
    left_out: set[str] = set()
    name: str | None = None
    for key, value in pairs:
        if key == "TargetName":
            name = value
            if name in found or name in left_out:
                continue
            if fault := name_fault(name):
                left_out.add(name)
                log.warning('%s: left out target "%s": %s', portal, printable(name), fault)
            else:
                found[name] = []
        elif key == "TargetAddress":
            if name is None:
                raise ProtocolError("a TargetAddress before any TargetName", section="C", pdu="TEXT_RESPONSE")
            if name in left_out:
                continue
            try:
                found[name].append(TargetAddress.parse(value, zone=zone))
            except ProtocolError as error:
                log.warning('%s: left out an address of "%s": %s', portal, printable(name), error)
        else:
            rule = f'"{printable(key)}" in an answer to SendTargets'
            raise ProtocolError(rule, section="C", pdu="TEXT_RESPONSE")
    here = TargetAddress(portal)
    return [
        DiscoveredTarget(name, tuple(dict.fromkeys(addresses)) or (here,))
        for name, addresses in found.items()
    ]
