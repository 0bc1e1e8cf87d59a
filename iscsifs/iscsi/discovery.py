"""What a SendTargets answer says (RFC 7143 section 4.3 and appendix C)."""

import logging
from dataclasses import dataclass
from functools import lru_cache

from iscsifs.errors import ProtocolError, printable
from iscsifs.iscsi.names import Portal, TargetAddress, name_fault
from iscsifs.iscsi.text import Pair
from iscsifs.limits import MAX_ADDRESSES, NOTES_A_LIST

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DiscoveredTarget:
    """A target and where it can be reached, in the order of the answer; at least one address."""

    name: str
    addresses: tuple[TargetAddress, ...]


def read_targets(pairs: list[Pair], portal: Portal, zone: str | None = None) -> list[DiscoveredTarget]:
    """Read the *pairs* of an answer that came from *portal*, which serves the targets without an address.

    *zone* is the zone of the connection, for link-local addresses. A target whose name is none is left out,
    as are an address to which nobody can connect and those beyond MAX_ADDRESSES; the first NOTES_A_LIST of
    them are logged, each name once. A target of which no address is left is looked for at *portal* as well:
    some tell of 0.0.0.0. Raises ProtocolError for a key that does not belong there.
    """
    found: dict[str, dict[TargetAddress, None]] = {}
    bad_names: set[str] = set()
    left_out = 0

    def leave_out(what: str, name: str, reason: object) -> None:
        nonlocal left_out
        left_out += 1
        if left_out <= NOTES_A_LIST:
            log.warning('%s: left out %s "%s": %s', portal, what, printable(name), reason)

    @lru_cache(maxsize=64)  # most targets have the addresses of their neighbours
    def parse(value: str) -> TargetAddress:
        return TargetAddress.parse(value, zone=zone)

    name: str | None = None
    for key, value in pairs:
        if key == "TargetName":
            name = value
            if name in found or name in bad_names:
                continue
            if fault := name_fault(name):
                bad_names.add(name)
                leave_out("target", name, fault)
            else:
                found[name] = {}
        elif key == "TargetAddress":
            if name is None:
                raise ProtocolError("a TargetAddress before any TargetName", section="C", pdu="TEXT_RESPONSE")
            if name in bad_names:
                continue
            if len(found[name]) == MAX_ADDRESSES:
                leave_out("an address of", name, f"it has {MAX_ADDRESSES} already")
                continue
            try:
                found[name][parse(value)] = None
            except ProtocolError as error:
                leave_out("an address of", name, error)
        else:
            rule = f'"{printable(key)}" in an answer to SendTargets'
            raise ProtocolError(rule, section="C", pdu="TEXT_RESPONSE")
    if left_out > NOTES_A_LIST:
        log.warning("%s: left out %d more", portal, left_out - NOTES_A_LIST)
    here = TargetAddress(portal)
    return [DiscoveredTarget(name, tuple(addresses) or (here,)) for name, addresses in found.items()]
