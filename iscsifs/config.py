"""What the user wants: the hosts, the mount options, the secrets and our own name, checked."""

import argparse
import hashlib
import hmac
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Self

from iscsifs.errors import ConfigError, printable
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.names import DEFAULT_PORT, Portal, check_name, check_zone, name_fault
from iscsifs.mount_options import MountOptions
from iscsifs.secret import SecretFile, forbid_core_dumps, read_secret

INITIATOR_NAME_FILE: Final = Path("/etc/iscsi/initiatorname.iscsi")
"""Where this machine's initiator name stands, as open-iscsi has it."""

MACHINE_ID_FILE: Final = Path("/etc/machine-id")

_SCHEME: Final = "iscsi://"
_LUN: Final = re.compile("[0-9]{1,8}|0x(?:[0-9a-fA-F]{4}|[0-9a-fA-F]{16})")


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
        if not static and (hint := _meant(rest)):
            raise ConfigError(f'"{printable(text)}" is not a host; did you mean {printable(hint)}?')
        portal = Portal.parse(address)
        check_zone(portal.host)
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


def _meant(text: str) -> str | None:
    """Return what *text* may stand for that other programs take, but is not a host here."""
    if re.match(r"(iqn|eui|naa)\.", text) and "@" not in text:
        return f"iscsi://HOST/{text}"
    if match := re.fullmatch(r"(.+:\d+),\d+", text):  # as discovery prints it
        return match[1]
    if match := re.match(r"(?:\w+:)?/*([^/]+)/((?:iqn|eui|naa)\..*)", text):
        return f"iscsi://{match[1]}/{match[2]}"
    if match := re.match(r"[A-Za-z]+:/+([^/]+)|iscsi:([^/\d].*)", text):
        return match[1] or match[2]
    return None


def _label(lun: str) -> str:
    """Return a number as it is in the name of a unit's directory."""
    return lun.lower() if lun.startswith("0x") else str(int(lun))


def _has_port(address: str) -> bool:
    """Say whether a portal that `Portal.parse` has taken names its port."""
    if address.startswith("["):
        return not address.endswith("]")
    return address.count(":") == 1


@dataclass(frozen=True, slots=True)
class Host:
    """A host with all that it takes to log in there."""

    spec: HostSpec
    options: InitiatorOptions


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that the command line said.

    *mount_point* is None where targets are only listed. Of the targets that a host offers those are wanted
    whose names match one of *patterns*, all where there are none. *options* are those of hosts that come
    later. *source* is what is mounted, as it was
    given. *pid_file* is to hold the number of the process.
    """

    hosts: tuple[Host, ...]
    mount_point: Path | None
    mount_options: MountOptions
    options: InitiatorOptions
    patterns: tuple[str, ...] = ()
    foreground: bool = False
    source: str = "iscsifs"
    pid_file: Path | None = None
    port: int = DEFAULT_PORT
    """That of hosts that come later and name none."""

    def host(self, text: str) -> Host:
        """Return the host that *text* names, with the options of this mount; raises ConfigError."""
        spec = HostSpec.parse(text, self.port)
        if spec.user is not None or spec.target is not None:
            raise ConfigError(f'"{printable(text)}": give HOST or HOST:PORT; the options of the mount hold')
        return Host(spec, self.options)

    def wants(self, target_name: str) -> bool:
        """Say whether a discovered target is to be logged in to."""
        return not self.patterns or any(fnmatchcase(target_name, pattern) for pattern in self.patterns)


def configure(args: argparse.Namespace, ask: Callable[[str], bytes]) -> Config:
    """Return what *args* mean, a command line that was parsed; they are changed by that. Raises ConfigError.

    *ask* returns a secret from the terminal, and gets the words for whose it is. Before the first secret is
    read core dumps are forbidden.
    """
    operands: list[str] = args.operands
    mount_point = None
    if not args.discover:
        if not operands or (len(operands) == 1 and not os.path.isdir(operands[0])):
            raise ConfigError(
                "give a host and a mount point, or an existing directory alone, to which hosts are added"
                " later; or -D and a host; see iscsifs -h"
            )
        # Absolute, because the background has another working directory.
        mount_point = Path(os.path.abspath(operands.pop()))
    elif not operands:
        raise ConfigError("give a host to list the targets of; see iscsifs -h")
    mount_options = MountOptions.parse(args.options, read_only=args.read_only)
    _merge(args, mount_options.command)
    specs = [HostSpec.parse(operand, args.port or DEFAULT_PORT) for operand in operands]
    if args.discover and any(spec.target for spec in specs):
        raise ConfigError("-D lists what a host has; give it without a target name")
    users = dict.fromkeys([*(spec.user or args.user for spec in specs), *([] if specs else [args.user])])
    if any(users):
        forbid_core_dumps()
    credentials = dict(zip(users, _credentials(args, list(users), ask), strict=True))
    options = replace(
        InitiatorOptions(
            initiator_name(args.initiator),
            discovery_auth=args.discovery_auth or "auto",
            digests=args.digest or "none",
            family=socket.AddressFamily(args.family),
        ),
        **mount_options.session,
    )
    return Config(
        tuple(
            Host(spec, replace(options, credentials=credentials[spec.user or args.user])) for spec in specs
        ),
        mount_point,
        mount_options,
        replace(options, credentials=_of_later_hosts(credentials, args.user)),
        tuple(args.patterns or ()),
        args.foreground or args.debug,
        ",".join(operands) or "iscsifs",
        args.pid_file,
        args.port or DEFAULT_PORT,
    )


def _of_later_hosts(
    credentials: Mapping[str | None, Credentials | None], user: str | None
) -> Credentials | None:
    """Return the credentials for hosts that are added while mounted: those of *user*, else the only ones."""
    if user in credentials:
        return credentials[user]
    return next(iter(credentials.values())) if len(credentials) == 1 else None


def _merge(args: argparse.Namespace, options: Mapping[str, object]) -> None:
    """Put into *args* what the *options* of -o say. Raises ConfigError where a flag says something else."""
    for name, value in options.items():
        given = getattr(args, name)
        if isinstance(value, list):
            value = (given or []) + value
        elif given not in (None, value):
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} and -o {name}= contradict each other; leave one of them out")
        setattr(args, name, value)


def _credentials(
    args: argparse.Namespace, users: list[str | None], ask: Callable[[str], bytes]
) -> list[Credentials | None]:
    """Return the credentials of each of *users*, None for None."""
    mutual = args.target_user is not None or args.target_secret_file is not None
    chap = "chap" in (args.auth, args.discovery_auth)
    if None in users and (chap or mutual or args.secret_file is not None):
        raise ConfigError("CHAP needs a user; give -u USER or USER@HOST")
    if args.auth == "none":
        if users != [None]:
            raise ConfigError("-a none has no use for a user; leave one of the two out")
        return [None]
    secret_of = (
        SecretFile(args.secret_file).secret_of if args.secret_file else lambda user: ask(f'user "{user}"')
    )
    secrets = [None if user is None else secret_of(user) for user in users]
    target_secret = None
    if args.target_secret_file is not None:
        target_secret = read_secret(args.target_secret_file, args.target_user)
    elif mutual:
        target_secret = ask(f'target "{args.target_user}"')
    return [
        None if user is None or secret is None else Credentials(user, secret, args.target_user, target_secret)
        for user, secret in zip(users, secrets, strict=True)
    ]


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
    """Return a name of the type naa., format 3 (locally assigned): it needs no domain of its own.

    machine-id(5) wants its content kept from the network, so only a hash of it goes there.
    """
    try:
        identity = machine_id.read_bytes().strip()
    except OSError:
        identity = b""
    digest = hmac.new(identity or socket.gethostname().encode(), b"iscsifs initiator name", hashlib.sha256)
    return f"naa.3{digest.hexdigest()[:15]}"
