"""From the name of a host to its addresses."""

import errno
import socket
from typing import Any, Final

import trio

from iscsifs.errors import TransportError, UnknownHost, reason
from iscsifs.iscsi.names import Portal

_CHECK_NAME: Final = "check it, and the DNS"
_CHECK_FAMILY: Final = "has it addresses of the kind that is asked for (-4, -6)?"
_REMEDIES: Final = {
    socket.EAI_NONAME: _CHECK_NAME,
    socket.EAI_FAIL: _CHECK_NAME,
    socket.EAI_AGAIN: "can a DNS server be reached?",
    socket.EAI_NODATA: _CHECK_FAMILY,
    socket.EAI_ADDRFAMILY: _CHECK_FAMILY,
}


async def look_up(portal: Portal, family: socket.AddressFamily, flags: int = 0) -> list[tuple[Any, ...]]:
    """Return what getaddrinfo(3) with *flags* finds for connections to *portal*; at least one entry.

    Raises TransportError, which names the portal, the reason and the remedy: UnknownHost where there is no
    such name, and to ask again does not help.
    """
    kind = TransportError
    number = 0
    try:
        found = await trio.socket.getaddrinfo(portal.host, portal.port, family, socket.SOCK_STREAM, 0, flags)
    except socket.gaierror as error:
        remedy = _REMEDIES.get(error.errno or 0)
        why = f"{error.strerror}; {remedy}" if remedy else error.strerror
        kind = TransportError if error.errno == socket.EAI_AGAIN else UnknownHost
        number = errno.ENXIO
    except OSError as error:
        why = reason(error)
    except RuntimeError as error:  # no thread for it
        why = str(error)
    else:
        return list(found)
    raise kind(f"{portal}: the name cannot be looked up: {why}", number=number)
