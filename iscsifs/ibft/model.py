"""What an iBFT says, wherever it was read: the initiator, the network interfaces, the targets."""

import ipaddress
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Final

from iscsifs.errors import ConfigError, printable
from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.names import DEFAULT_PORT, Portal, name_fault

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

ORIGIN_DHCP: Final = 3
"""The origin of an interface's address that means DHCP."""


class Block(IntFlag):
    """Flags that every structure has."""

    VALID = 1
    BOOT_SELECTED = 2


class TargetFlag(IntFlag):
    """Flags of a target beyond those of `Block`."""

    RADIUS_CHAP = 4
    RADIUS_REVERSE_CHAP = 8


class ChapType(IntEnum):
    """How a target wants to be logged in to."""

    NONE = 0
    CHAP = 1
    MUTUAL = 2


@dataclass(frozen=True, slots=True)
class Initiator:
    """The initiator structure. The name servers are offered as sources, and used only where asked for."""

    name: str | None = None
    isns: Address | None = None
    slp: Address | None = None
    radius: tuple[Address | None, Address | None] = (None, None)
    flags: int = Block.VALID


@dataclass(frozen=True, slots=True)
class Nic:
    """A network interface as the firmware had it. *vlan* 0 is none; *device* is the PCI function, bb:dd.f."""

    index: int = 0
    address: Address | None = None
    prefix: int = 0
    origin: int = 0
    gateway: Address | None = None
    dns: tuple[Address | None, Address | None] = (None, None)
    dhcp: Address | None = None
    vlan: int = 0
    mac: str = ""
    device: str = ""
    host_name: str | None = None
    flags: int = Block.VALID


@dataclass(frozen=True, slots=True)
class Target:
    """A target that can be logged in to.

    *lun* is the integer of its eight bytes, as in `scsi.luns`; None where the source of the table does not
    tell it for certain. *nic* is the index of an interface.
    """

    index: int
    name: str
    portal: Portal
    lun: int | None = 0
    nic: int = 0
    chap_type: ChapType = ChapType.NONE
    credentials: Credentials | None = None
    flags: int = Block.VALID

    @property
    def is_selected(self) -> bool:
        """Whether the firmware booted from it."""
        return bool(self.flags & Block.BOOT_SELECTED)


@dataclass(frozen=True, slots=True)
class Ibft:
    """A table. *notes* say what was left out of it, and why, each in one line."""

    initiator: Initiator | None = None
    nics: tuple[Nic, ...] = ()
    targets: tuple[Target, ...] = ()
    oem_id: str = ""
    oem_table_id: str = ""
    notes: tuple[str, ...] = ()

    @property
    def initiator_name(self) -> str | None:
        """The InitiatorName to log in with, None where the table has none."""
        return self.initiator.name if self.initiator else None

    def by_preference(self) -> list[Target]:
        """Return the targets in the order to try them: what was booted from comes first."""
        return sorted(self.targets, key=lambda target: not target.is_selected)

    def nic_of(self, target: Target) -> Nic | None:
        """Return the interface that *target* is reached over, None where the table has no such."""
        return next((nic for nic in self.nics if nic.index == target.nic), None)


@dataclass(slots=True)
class TargetFields:
    """The fields of a target before they are checked; the secrets are bytes."""

    index: int
    flags: int
    address: Address | None
    port: int
    lun: int | None
    chap_type: int
    nic: int
    name: str | None
    chap_name: str | None = None
    chap_secret: bytes | None = field(default=None, repr=False)
    reverse_name: str | None = None
    reverse_secret: bytes | None = field(default=None, repr=False)

    def checked(self) -> Target:
        """Return the target; raises ValueError with the reason where it cannot be used."""
        if self.flags & (TargetFlag.RADIUS_CHAP | TargetFlag.RADIUS_REVERSE_CHAP):
            raise ValueError("it wants CHAP by a RADIUS server, which is not supported")
        if self.name is None:
            raise ValueError("it has no name")
        if fault := name_fault(self.name):
            raise ValueError(f'its name "{printable(self.name)}": {fault}')
        if self.address is None:
            raise ValueError("it has no address")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"its port is {self.port}")
        if self.chap_type not in tuple(ChapType):
            raise ValueError(f"its CHAP type is {self.chap_type}, which means nothing")
        try:
            portal = Portal.parse(f"[{self.address}]" if self.address.version == 6 else str(self.address))
            credentials = self._credentials(ChapType(self.chap_type))
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return Target(
            self.index,
            self.name,
            Portal(portal.host, self.port or DEFAULT_PORT),
            self.lun,
            self.nic,
            ChapType(self.chap_type),
            credentials,
            self.flags,
        )

    def _credentials(self, chap_type: ChapType) -> Credentials | None:
        if chap_type is ChapType.NONE:
            return None
        if self.chap_name is None or self.chap_secret is None:
            raise ValueError("it wants CHAP, and its user or its secret is missing")
        if chap_type is ChapType.CHAP:
            return Credentials(self.chap_name, self.chap_secret)
        if self.reverse_name is None or self.reverse_secret is None:
            raise ValueError("it wants mutual CHAP, and the user or the secret of the target is missing")
        return Credentials(self.chap_name, self.chap_secret, self.reverse_name, self.reverse_secret)


def address(octets: bytes) -> Address | None:
    """Read 16 bytes: an IPv6 address, an IPv4 address mapped into one, or nothing (all zero)."""
    six = ipaddress.IPv6Address(octets)
    four = six.ipv4_mapped
    found = six if four is None else four
    return None if found.is_unspecified else found


def text_address(text: str) -> Address | None:
    """Read an address in text; raises ValueError."""
    found = ipaddress.ip_address(text)
    return None if found.is_unspecified else found


def printable_text(octets: bytes) -> str:
    """Read a string of the table, up to its first NUL; raises ValueError for what no such string can be."""
    try:
        text = octets.partition(b"\0")[0].decode()
    except UnicodeDecodeError:
        raise ValueError("a string is not UTF-8") from None
    if not text.isprintable():
        raise ValueError(f'a string has control characters in it: "{printable(text)}"')
    return text


def assemble(
    initiator: Initiator | None,
    nics: list[Nic],
    targets: list[TargetFields],
    notes: list[str],
    *,
    oem_id: str = "",
    oem_table_id: str = "",
) -> Ibft:
    """Return the table of these structures; what cannot be used is left out with a note.

    A structure without a flag is ignored. Some firmware sets only the second one.
    """
    wanted = Block.VALID | Block.BOOT_SELECTED
    notes = list(notes)
    good: list[Target] = []
    if initiator is not None and not initiator.flags & wanted:
        initiator = None
    if initiator is not None and initiator.name is not None and (fault := name_fault(initiator.name)):
        notes.append(f'initiator: its name "{printable(initiator.name)}": {fault}; left out')
        initiator = None
    kept = [nic for nic in nics if nic.flags & wanted]
    for fields in targets:
        if not fields.flags & wanted:
            continue
        try:
            good.append(fields.checked())
        except ValueError as error:
            notes.append(f"target {fields.index}: {error}; left out")
            continue
        if fields.nic not in [nic.index for nic in kept]:
            notes.append(f"target {fields.index}: there is no network interface {fields.nic}")
        if fields.lun is None:
            notes.append(f"target {fields.index}: its LUN is not clear; all its units are shown")
    return Ibft(initiator, tuple(kept), tuple(good), oem_id, oem_table_id, tuple(notes))
