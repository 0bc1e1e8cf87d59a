"""Root paths (RFC 4173 section 5): what DHCP and boot firmware call a disk, and what dracut made of that.

    iscsi:[USER:SECRET[:TARGETUSER:TARGETSECRET]@]SERVER:PROTOCOL:PORT:[IFACE:NETDEV:]LUN:TARGETNAME

The standard has neither credentials nor interfaces; these are dracut's. Our own URL, ``iscsi://HOST/...``,
is none of these: `is_root_path` tells them apart.
"""

import re
from dataclasses import dataclass
from typing import Final, Self

from iscsifs.errors import ConfigError, printable
from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.names import DEFAULT_PORT, Portal, check_name, check_zone

_PREFIX: Final = re.compile(r"iscsi:(?!//)(?=.*[:@])", re.IGNORECASE | re.DOTALL)
_TCP: Final = "6"  # the protocol number of IANA
_NAME: Final = re.compile(r"(iqn|eui|naa)\.", re.IGNORECASE)
_LUN: Final = re.compile(r"[0-9a-fA-F]{1,4}(-[0-9a-fA-F]{1,4}){0,3}")
_COLONS: Final = 4  # behind the server, at least
_FORM: Final = "iscsi:SERVER:PROTOCOL:PORT:LUN:TARGETNAME"

_NO_SERVER: Final = "the server is neither a name nor an address (an IPv6 address stands in brackets)"


@dataclass(frozen=True, slots=True)
class RootPath:
    """A disk as a root path names it.

    *portal* is None where the path has no server: then the name service is to be asked for *target_name*.
    *lun* is the integer of its eight bytes, as in `scsi.luns`. *interface* and *network_device* are dracut's
    and say nothing to us. *notes* are lines that the user should see.
    """

    portal: Portal | None
    target_name: str
    lun: int = 0
    credentials: Credentials | None = None
    interface: str = ""
    network_device: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a root path. Raises ConfigError, whose message has no secret in it."""
        try:
            return cls._parse(text)
        except ValueError as error:
            raise ConfigError(
                f'root path "{printable(without_secrets(text))}": {error}; it has the form {_FORM}'
            ) from None

    @classmethod
    def _parse(cls, text: str) -> Self:
        match = _PREFIX.match(text)
        if match is None:
            raise ValueError('it does not begin with "iscsi:", or has nothing behind that')
        authentication, location = _split(text[match.end() :])
        credentials = _credentials(authentication)
        server, fields = _server(location)
        if len(fields) < _COLONS:
            raise ValueError(f"it has {len(fields)} fields behind the server, and needs {_COLONS}")
        protocol, port, *rest = fields
        if protocol not in ("", _TCP):
            raise ValueError(
                f'the protocol is "{printable(protocol)}"; only {_TCP} (TCP) or nothing is known'
            )
        number = _port(port)
        interface, device = "", ""
        if not _NAME.match(rest[1]) and len(rest) > 3 and _NAME.match(rest[3]):
            interface, device, *rest = rest
        lun, name = rest[0], ":".join(rest[1:])
        if not name:
            raise ValueError("the name of the target is missing")
        check_name(name, "target")
        return cls(
            None if server is None else Portal(server, number),
            name,
            parse_lun(lun),
            credentials,
            interface,
            device,
            tuple(_notes(lun, authentication)),
        )


def is_root_path(text: str) -> bool:
    """Say whether *text* is to be read as a root path, and not as our URL or a host called iscsi."""
    return _PREFIX.match(text) is not None


def without_secrets(text: str) -> str:
    """Return a root path as ``iscsi:USER:***@...``: for messages, state files and the mount table.

    What is no root path is not trusted either: all before the last "@" is left out.
    """
    match = _PREFIX.match(text)
    prefix = match[0] if match else ""
    end = text.rfind("@")
    user, colon, _ = text[len(prefix) : end].partition(":")
    if end <= len(prefix):
        return text
    return f"{prefix}{user + ':' if colon else ''}***{text[end:]}"


def parse_lun(text: str) -> int:
    """Read the LUN of a root path: up to four groups of hexadecimal digits, from the left; nothing is LUN 0.

    Raises ValueError.
    """
    if not text:
        return 0
    if not _LUN.fullmatch(text):
        raise ValueError(
            f'the LUN "{printable(text)}" is not one to four groups of hexadecimal digits, as 4752-3A4F'
        )
    groups = [int(group, 16) for group in text.split("-")]
    return sum(group << 48 - 16 * place for place, group in enumerate(groups))


def _split(rest: str) -> tuple[str | None, str]:
    """Split off what stands before the first "@", if all fields follow behind; None where there is no "@"."""
    authentication, at, location = rest.partition("@")
    return (authentication, location) if at and location.count(":") >= _COLONS else (None, rest)


def _server(location: str) -> tuple[str | None, list[str]]:
    """Return the server, checked, and the fields behind it; raise ValueError."""
    match = re.match(r"(\[[^\[\]]*\]|[^:\[\]]*):(.*)", location, re.DOTALL)
    if match is None:
        raise ValueError(_NO_SERVER)
    server, rest = match.groups()
    fields = rest.split(":")
    if not server:
        return None, fields
    try:
        host = Portal.parse(server).host
    except ConfigError:
        raise ValueError(_NO_SERVER) from None
    check_zone(host)
    return host, fields


def _port(text: str) -> int:
    if not text:
        return DEFAULT_PORT
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ValueError(f'the port "{printable(text)}" is not a number from 1 to 65535')
    return int(text)


def _credentials(authentication: str | None) -> Credentials | None:
    """Read ``USER:SECRET`` or ``USER:SECRET:TARGETUSER:TARGETSECRET``; raise ValueError."""
    if not authentication:
        return None
    parts = authentication.split(":")
    if len(parts) not in (2, 4):
        raise ValueError(
            f'there are {len(parts)} parts before the "@", and USER:SECRET or'
            " USER:SECRET:TARGETUSER:TARGETSECRET are read; a secret with a colon cannot be written here"
        )
    user, secret, *target = parts
    given = [part.encode(errors="surrogateescape") for part in (secret, *target[1:])]
    try:
        return Credentials(user, given[0], target[0] if target else None, given[1] if target else None)
    except (ConfigError, UnicodeEncodeError) as error:
        raise ValueError(
            str(error) if isinstance(error, ConfigError) else "a user's name is not UTF-8"
        ) from None


def _notes(lun: str, authentication: str | None) -> list[str]:
    notes = []
    if re.fullmatch("[0-9]{2,4}", lun) and int(lun) > 9:
        notes.append(f"LUN {lun} of the root path is hexadecimal (RFC 4173), so it is unit {int(lun, 16)}")
    if authentication:
        notes.append("the root path has a secret in it; everybody can read it where /proc/cmdline has it")
    return notes
