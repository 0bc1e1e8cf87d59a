"""What the user wants: the sources of targets, the mount options, the secrets and our own name, checked."""

import argparse
import hashlib
import hmac
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from iscsifs.conffile.files import DEFAULT_FILE
from iscsifs.errors import ConfigError, printable
from iscsifs.hosts import Host as Host
from iscsifs.hosts import HostSpec as HostSpec
from iscsifs.hosts import Named, NameServer, Reader, is_file, is_host, name_server, shown
from iscsifs.ibft.model import Ibft
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.names import DEFAULT_PORT, check_name
from iscsifs.mount_options import MountOptions
from iscsifs.secret import SecretFile, forbid_core_dumps, read_secret

INITIATOR_NAME_FILE: Final = Path("/etc/iscsi/initiatorname.iscsi")
"""Where this machine's initiator name stands, as open-iscsi has it."""

MACHINE_ID_FILE: Final = Path("/etc/machine-id")


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that the command line said.

    *mount_point* is None where targets are only listed. Of the targets that a host offers those are wanted
    whose names match one of *patterns*, all where there are none. *options* are those of hosts that come
    later. *source* is what is mounted, as it was given, without secrets. *pid_file* is to hold the number of
    the process. *ibft* is to be shown. *reader* reads what is named later.
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

    name_servers: tuple[NameServer, ...] = ()
    ibft: Ibft | None = None
    reader: Reader | None = None
    long: bool = False
    """Whether logical units are listed too."""
    json: bool = False
    """Whether the list is for programs."""

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
    mount_options = MountOptions.parse(args.options, read_only=args.read_only)
    _merge(args, mount_options.command)
    if mount_options.trace == Path("-") and (args.discover or not (args.foreground or args.debug)):
        raise ConfigError("-o trace=- is for a mount in the foreground; add -f, or give a file")
    others = _other_sources(args)
    operands: list[str] = args.operands
    mount_point = None
    if not args.discover:
        if not operands or (len(operands) == 1 and not others and not os.path.isdir(operands[0])):
            raise ConfigError(
                "give a host and a mount point, or an existing directory alone, to which hosts are added"
                " later; or -D and a host; see iscsifs -h"
            )
        # Absolute, because the background has another working directory.
        mount_point = Path(os.path.abspath(operands.pop()))
    elif not operands and not others:
        raise ConfigError("give a host to list the targets of; see iscsifs -h")
    is_nothing = operands == [_NOTHING] and (others or not args.discover)
    words = [] if is_nothing else _without_file(args, operands)
    specs = [HostSpec.parse(word, args.port or DEFAULT_PORT) for word in words if is_host(word)]
    if args.discover and not args.long and any(spec.target for spec in specs):
        raise ConfigError("-D lists what a host has; give it without a target name, or with -l")
    if not args.discover and (args.json or args.long):
        raise ConfigError(f"{'--json' if args.json else '--long'} is for -D only")
    users = dict.fromkeys(spec.user or args.user for spec in specs)
    if args.user is not None or not users:
        users.setdefault(args.user)
    if any(users):
        forbid_core_dumps()
    credentials = dict(zip(users, _credentials(args, list(users), ask), strict=True))
    options = replace(
        InitiatorOptions(
            initiator_name(args.initiator),
            credentials.get(args.user),
            discovery_auth=args.discovery_auth or "auto",
            digests=args.digest or "none",
            family=socket.AddressFamily(args.family),
        ),
        **mount_options.session,
    )
    reader = Reader(
        options,
        credentials,
        args.port or DEFAULT_PORT,
        [name_server(text) for text in args.isns or ()],
        is_named=args.initiator is not None,
    )
    named = _named(args, words, reader)
    return Config(
        tuple(named.hosts),
        mount_point,
        mount_options,
        replace(options, credentials=_of_later_hosts(credentials, args.user)),
        tuple(args.patterns or ()),
        args.foreground or args.debug,
        ",".join(map(shown, operands)) or ",".join(others) or "iscsifs",
        args.pid_file,
        args.port or DEFAULT_PORT,
        tuple(named.name_servers),
        named.ibft,
        reader,
        args.long,
        args.json,
    )


def _of_later_hosts(
    credentials: Mapping[str | None, Credentials | None], user: str | None
) -> Credentials | None:
    """Return the credentials for hosts that are added while mounted: those of *user*, else the only ones."""
    if user in credentials:
        return credentials[user]
    return next(iter(credentials.values())) if len(credentials) == 1 else None


_NOTHING: Final = "none"
"""What fstab(5) has as the source where the options say it, or hosts come later."""


def _other_sources(args: argparse.Namespace) -> list[str]:
    """Return the sources that options name, in words; `_named` reads what they say."""
    sources = []
    if args.conf is not None or args.nicknames:
        file = args.conf or DEFAULT_FILE
        sources += [f"{file}#{nickname}" for nickname in args.nicknames or ()] or [str(file)]
    if args.ibft or args.ibft_file is not None:
        sources.append(f"ibft:{args.ibft_file or ''}")
    return sources + [f"isns://{text}" for text in args.isns or ()]


def _without_file(args: argparse.Namespace, operands: list[str]) -> list[str]:
    """Return the operands without a file that nicknames are to be looked up in: that is put into *args*."""
    files = [word for word in operands if is_file(word) and "#" not in word]
    if not args.nicknames or args.conf is not None or len(files) != 1:
        return operands
    args.conf = Path(files[0])
    return [word for word in operands if word not in files]


def _named(args: argparse.Namespace, words: Iterable[str], reader: Reader) -> Named:
    """Return what the operands and the options name, each option once."""
    named = Named()
    for word in words:
        named.add(reader.read(word))
    asked_for_one = any(server.target is not None for server in named.name_servers)
    for source in _other_sources(args):
        if not (asked_for_one and source.startswith("isns://")):
            named.add(reader.read(source))
    return named


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
