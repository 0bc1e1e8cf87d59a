"""iSCSI names (RFC 7143 section 4.2.7) and the addresses of portals (section 13.8)."""

import ipaddress
import re
import unicodedata
from dataclasses import dataclass
from typing import Final, Self, TypeVar

from iscsifs.errors import ConfigError, ProtocolError, printable
from iscsifs.iscsi.text import parse_number

_Address = TypeVar("_Address", ipaddress.IPv4Address, ipaddress.IPv6Address)

DEFAULT_PORT: Final = 3260
"""The port where a TargetAddress gives none (section 13.8)."""

MAX_NAME_LENGTH: Final = 223
"""Bytes of an iSCSI name in UTF-8 (section 4.2.7.2)."""

_FORMS: Final = {
    "iqn": (re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])\.[^.:][^:]*(:.*)?"), "iqn.yyyy-mm.reversed.domain[:text]"),
    "eui": (re.compile(r"[0-9A-Fa-f]{16}"), "eui. and 16 hexadecimal digits"),
    "naa": (re.compile(r"([0-9A-Fa-f]{16}){1,2}"), "naa. and 16 or 32 hexadecimal digits"),
}
_DNS_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
_NUMERIC_NAME: Final = re.compile(r"(.*\.)?(0[xX][0-9a-fA-F]*|[0-9]+)\.?")
_ADDRESS: Final = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::(.*))?", re.DOTALL)


def name_fault(name: str) -> str | None:
    """Return what keeps *name* from being an iSCSI name, or None.

    Capitals and "_" are let pass although RFC 3722 has neither: targets with such names exist, and tell the
    cases apart.
    """
    if len(name.encode(errors="replace")) > MAX_NAME_LENGTH:
        return f"it is longer than {MAX_NAME_LENGTH} bytes"
    for char in name:
        if not (char in "-.:_" or char.isalnum() or (char > "\x7f" and char.isprintable())):
            return f'"{printable(char)}" is not allowed in it'
    if unicodedata.normalize("NFC", name) != name:
        return "it is not in Unicode normalization form C"
    kind, _, rest = name.partition(".")
    if kind not in _FORMS:
        return "it does not begin with iqn., eui. or naa."
    pattern, form = _FORMS[kind]
    return None if pattern.fullmatch(rest) else f"it is not of the form {form}"


def check_name(name: str, what: str) -> None:
    """Raise ConfigError where *name*, given by the user as *what*, is not an iSCSI name."""
    if fault := name_fault(name):
        raise ConfigError(
            f'{what} "{printable(name)}": {fault}; a name looks like iqn.2001-04.com.example:disk1'
        )


def check_zone(host: str) -> None:
    """Raise ConfigError for a link-local address, given by the user, that does not say of which link."""
    if re.match("fe[89ab][0-9a-f]:", host, re.IGNORECASE) and "%" not in host:
        raise ConfigError(f"{host}: this address needs its interface, as in [{host}%eth0]")


@dataclass(frozen=True, slots=True)
class Portal:
    """Where to connect: a DNS name, an IPv4 or an IPv6 address, and a TCP port.

    An address is in its canonical form, and a name in small letters, so that equal portals compare equal. A
    link-local address has its zone behind it, as getaddrinfo() takes it: ``fe80::1%eth0``.
    """

    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, text: str, default_port: int = DEFAULT_PORT) -> Self:
        """Read what a user writes: ``host``, ``host:port``, ``[address]:port`` or an IPv6 address as it is.

        Where that has no port, it is *default_port*. Raises ConfigError.
        """
        try:
            if text.count(":") > 1 and not text.startswith("["):
                return cls(_ipv6(text), default_port)
            host, port = _host_and_port(text, default_port)
            return cls(host, port)
        except ValueError as exc:
            raise ConfigError(
                f'portal "{printable(text)}": {exc}; give host, host:port or [IPv6 address]:port'
            ) from None


@dataclass(frozen=True, slots=True)
class TargetAddress:
    """The value of TargetAddress: a portal and the tag of its portal group, None where it is not known."""

    portal: Portal
    tag: int | None = None

    def __str__(self) -> str:
        """Return the value as it is sent: no zone, which means nothing to the peer."""
        portal = Portal(self.portal.host.partition("%")[0], self.portal.port)
        return str(portal) if self.tag is None else f"{portal},{self.tag}"

    @classmethod
    def parse(cls, value: str, *, zone: str | None = None) -> Self:
        """Read a value from the network.

        *zone* is the zone of the connection over which it came, None where that has none: a link-local
        address is good in it only, whatever zone the peer may name (RFC 3986 knows none).

        Raises ProtocolError where the value is not well-formed, or no address to connect to.
        """
        try:
            address, comma, tag = value.partition(",")
            host, port = _host_and_port(address)
            if ":" in host:
                host = _in_zone(host, zone)
            return cls(Portal(host, port), _bounded(tag, 0, "tag") if comma else None)
        except ValueError as exc:
            raise ProtocolError(f'TargetAddress "{printable(value)}": {exc}', section="13.8") from None


def _host_and_port(text: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Split ``domainname[:port]``; raise ValueError."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError("it is not an address (an IPv6 address stands in brackets)")
    bracketed, plain, port = match.groups()
    host = _host(plain) if bracketed is None else _ipv6(bracketed)
    return host, default_port if port is None else _bounded(port, 1, "port")


def _host(text: str) -> str:
    """Check a DNS name or an IPv4 address; raise ValueError."""
    # inet_aton() takes "10.1", "0x7f.1" and "2130706433" for addresses: what ends in a number is an address.
    if _NUMERIC_NAME.fullmatch(text):
        return str(_reachable(ipaddress.IPv4Address, text))
    if len(text) > 255 or not _DNS_NAME.fullmatch(text):
        raise ValueError("it is not the name of a host")
    return text.lower()


def _ipv6(text: str) -> str:
    """Check an IPv6 address, perhaps with a zone; raise ValueError."""
    address = _reachable(ipaddress.IPv6Address, text)
    if address.scope_id and not address.is_link_local:
        raise ValueError("only a link-local address has a zone")
    return str(address)


def _reachable(kind: type[_Address], text: str) -> _Address:
    """Read an address of *kind* that one can connect to; raise ValueError."""
    try:
        address = kind(text)
    except ValueError:
        raise ValueError(f"it is not an {kind.__name__.removesuffix('Address')} address") from None
    if address.is_unspecified or address.is_multicast:
        raise ValueError("nothing can be reached at this address")
    return address


def _in_zone(host: str, zone: str | None) -> str:
    """Put a link-local *host* into *zone*, any other is returned as it is; raise ValueError."""
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if not address.is_link_local:
        return host
    if zone is None:
        raise ValueError("a link-local address, but this connection has no zone")
    return f"{address}%{zone}"


def _bounded(text: str, low: int, what: str) -> int:
    """Read a port or a tag, a number from *low* to 65535; raise ValueError."""
    number = parse_number(text)
    if not low <= number <= 65535:
        raise ValueError(f"{what} {number} is not between {low} and 65535")
    return number
