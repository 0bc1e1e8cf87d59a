"""The name by which a host is shown, and its addresses."""

import socket

from iscsifs.iscsi.names import Portal
from iscsifs.transport.lookup import look_up
from iscsifs.transport.waiting import explained


async def resolve(portal: Portal, family: socket.AddressFamily) -> tuple[str, frozenset[str]]:
    """Return the canonical name of a portal's host, or its address if that was given, and all its addresses.

    Raises TransportError.
    """
    with explained(lambda: f"the address of {portal.host}"):
        found = await look_up(portal, family, socket.AI_CANONNAME)
    addresses = frozenset(str(entry[4][0]) for entry in found)
    if portal.host in addresses or ":" in portal.host:
        return portal.host, addresses
    return (found[0][3] or portal.host).rstrip(".").lower(), addresses
