"""What the user wants: the hosts, the mount options, the secrets and our own name, checked."""

import hashlib
import hmac
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, Self

from iscsifs.errors import ConfigError, printable
from iscsifs.fs.tuning import MAX_BACKGROUND, READ_AHEAD_KIB
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.names import DEFAULT_PORT, Portal, check_name, name_fault

INITIATOR_NAME_FILE: Final = Path("/etc/iscsi/initiatorname.iscsi")
"""Where this machine's initiator name stands, as open-iscsi has it."""

MACHINE_ID_FILE: Final = Path("/etc/machine-id")

_FSNAME: Final = "fsname=iscsifs"
_SCHEME: Final = "iscsi://"
_LUN: Final = re.compile("[0-9]{1,8}|0x(?:[0-9a-fA-F]{4}|[0-9a-fA-F]{16})")

FUSE_OPTIONS: Final = frozenset(
    (
        *("allow_other", "allow_root", "auto_unmount", "dev", "nodev", "suid", "nosuid", "exec", "noexec"),
        *("atime", "noatime", "sync", "async", "dirsync", "fsname=", "max_read=", "context="),
    )
)
"""Options of mount.fuse3(8) that are handed on; a name that ends in "=" has a value."""

_FSTAB_OPTIONS: Final = frozenset(
    ("rw", "defaults", "auto", "noauto", "nofail", "user", "nouser", "users", "owner", "group", "_netdev")
)
"""Options of fstab(5) that mean nothing to the file system itself, nor do those that begin with "x-"."""


@dataclass(frozen=True, slots=True)
class HostSpec:
    """A host of the command line: a portal to discover targets from or, with *target*, the one to log in to.

    *lun* is the only logical unit wanted. *user* is None where the host has no ``USER@``.
    """

    portal: Portal
    user: str | None = None
    target: str | None = None
    lun: str | None = None

    @classmethod
    def parse(cls, text: str, default_port: int = DEFAULT_PORT) -> Self:
        """Read ``[USER@]HOST[:PORT]`` or ``iscsi://[USER@]HOST[:PORT]/TARGETNAME[/LUN]``.

        Raises ConfigError.
        """
        static = text.startswith(_SCHEME)
        rest = text.removeprefix(_SCHEME)
        host, slash, path = rest.partition("/") if static else (rest, "", "")
        user, at, address = host.rpartition("@")
        if at and not user:
            raise ConfigError(f'"{printable(text)}": no user before the "@"')
        # Other programs take a secret here (user:secret@, user%secret@); but a user may be called iqn.x:y.
        if re.search("[:%]", user) and name_fault(user):
            raise ConfigError(
                f'"{printable(address)}": everybody can see a secret on the command line;'
                " give USER@HOST, and the secret with --secret-file"
            )
        portal = Portal.parse(address)
        if not _has_port(address):
            portal = replace(portal, port=default_port)
        if not static:
            return cls(portal, user or None)
        target, slash, lun = path.partition("/")
        if not target:
            raise ConfigError(
                f'"{printable(text)}": no target name; give iscsi://HOST/TARGETNAME, or only HOST'
            )
        check_name(target, "target")
        if slash and not _LUN.fullmatch(lun):
            raise ConfigError(f'"{printable(text)}": "{printable(lun)}" is not the number of a logical unit')
        return cls(portal, user or None, target, _label(lun) if slash else None)


def _label(lun: str) -> str:
    """Return a number as it is in the name of a unit's directory."""
    return lun.lower() if lun.startswith("0x") else str(int(lun))


def _has_port(address: str) -> bool:
    """Say whether a portal that `Portal.parse` has taken names its port."""
    if address.startswith("["):
        return not address.endswith("]")
    return address.count(":") == 1


def _id(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) >= 2**32 - 1:
        raise ValueError('give a number, as "id" prints it')
    return int(text)


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("give 0 or 1")
    return text == "1"


def _between(low: int, high: int, unit: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,10}", text) or not low <= int(text) <= high:
            raise ValueError(f"give {unit}, {low} to {high}")
        return int(text)

    return read


_SWITCHES: Final = ("direct_io", "exclusive")
"""Our own options without a value, fields of MountOptions."""

_MOUNT_SETTINGS: Final[dict[str, tuple[str, Callable[[str], int]]]] = {
    "uid": ("uid", _id),
    "gid": ("gid", _id),
    "max_background": ("max_background", _between(12, 65535, "a number of requests")),
    "readahead": ("read_ahead", _between(0, 1048576, "KiB")),
}
_SESSION_SETTINGS: Final[dict[str, tuple[str, Callable[[str], int]]]] = {
    "writebehind": ("write_behind", _switch),
    "login_timeout": ("login_timeout", _between(1, 3600, "seconds")),
    "command_timeout": ("command_timeout", _between(1, 3600, "seconds")),
    "ping_interval": ("ping_interval", _between(0, 3600, "seconds")),
    "ping_timeout": ("ping_timeout", _between(1, 3600, "seconds")),
    "replacement_timeout": ("replacement_timeout", _between(1, 86400, "seconds")),
}
"""Our own options with a value: the field of MountOptions or InitiatorOptions that they set, and how it is
read."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How the file system is mounted; *fuse* are options for FUSE, *uid* and *gid* own the files.

    With *exclusive* a unit has one writer at a time. *max_background* is a number of requests, *read_ahead*
    is in KiB. *session* are fields of InitiatorOptions.
    """

    uid: int
    gid: int
    read_only: bool = False
    direct_io: bool = False
    exclusive: bool = False
    max_background: int = MAX_BACKGROUND
    read_ahead: int = READ_AHEAD_KIB
    fuse: tuple[str, ...] = (_FSNAME,)
    session: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, options: Iterable[str], *, read_only: bool = False) -> Self:
        """Read the arguments of -o, each a list with commas; *read_only* is -r. Raises ConfigError."""
        switches: set[str] = set()
        fuse: list[str] = []
        mount: dict[str, int] = {"uid": os.getuid(), "gid": os.getgid()}
        session: dict[str, int] = {}
        for option in (option for argument in options for option in argument.split(",") if option):
            name, equals, value = option.partition("=")
            if option == "ro":
                read_only = True
            elif option in _SWITCHES:
                switches.add(option)
            elif equals and name in _MOUNT_SETTINGS:
                _set(mount, *_MOUNT_SETTINGS[name], name, value)
            elif equals and name in _SESSION_SETTINGS:
                _set(session, *_SESSION_SETTINGS[name], name, value)
            elif name + equals in FUSE_OPTIONS:
                fuse.append(option)
            elif option not in _FSTAB_OPTIONS and not option.startswith("x-"):
                raise ConfigError(
                    f'-o {printable(option)}: there is no such option; see "Mount options" in iscsifs(8)'
                )
        if read_only:
            fuse.append("ro")
        if not any(option.startswith("fsname=") for option in fuse):
            fuse.append(_FSNAME)
        return cls(
            **mount,
            read_only=read_only,
            direct_io="direct_io" in switches,
            exclusive="exclusive" in switches,
            fuse=tuple(fuse),
            session=session,
        )


def _set(fields: dict[str, int], field: str, read: Callable[[str], int], name: str, value: str) -> None:
    try:
        fields[field] = read(value)
    except ValueError as exc:
        raise ConfigError(f"-o {name}={printable(value)}: {exc}") from None


@dataclass(frozen=True, slots=True)
class Host:
    """A host with all that it takes to log in there."""

    spec: HostSpec
    options: InitiatorOptions


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that the command line said.

    *mount_point* is None where targets are only listed. Of the targets that a host offers those are wanted
    whose names match one of *patterns*, all where there are none.
    """

    hosts: tuple[Host, ...]
    mount_point: Path | None
    mount_options: MountOptions
    patterns: tuple[str, ...] = ()
    foreground: bool = False

    def wants(self, target_name: str) -> bool:
        """Say whether a discovered target is to be logged in to."""
        return not self.patterns or any(fnmatchcase(target_name, pattern) for pattern in self.patterns)


def initiator_name(
    given: str | None, name_file: Path = INITIATOR_NAME_FILE, machine_id: Path = MACHINE_ID_FILE
) -> str:
    """Return the name *given*, else the one in *name_file*, else one made of this machine's identity.

    Raises ConfigError for what is no iSCSI name.
    """
    if given is not None:
        check_name(given, "initiator name")
        return given
    if (found := _configured_name(name_file)) is not None:
        check_name(found, f"InitiatorName in {name_file}")
        return found
    return _derived_name(machine_id)


def _configured_name(name_file: Path) -> str | None:
    try:
        lines = name_file.read_text(errors="replace").splitlines()
    except OSError:  # absent, or for root only: an ordinary user has no say in this machine's name
        return None
    values = [line.partition("=")[2].strip() for line in lines if line.strip().startswith("InitiatorName=")]
    return values[-1] if values else None


def _derived_name(machine_id: Path) -> str:
    """Return a name of the type naa., format 3 (locally assigned): nobody's domain has to be borrowed for it.

    machine-id(5) wants its content kept from the network, so only a hash of it goes there.
    """
    try:
        identity = machine_id.read_bytes().strip()
    except OSError:
        identity = b""
    digest = hmac.new(identity or socket.gethostname().encode(), b"iscsifs initiator name", hashlib.sha256)
    return f"naa.3{digest.hexdigest()[:15]}"
