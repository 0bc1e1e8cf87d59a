"""Hosts and targets as a user names them: in words, in iscsi.conf(5), in the table of the firmware.

The words are ``HOST``, ``iscsi://HOST/TARGETNAME/LUN``, a root path (RFC 4173), ``isns://SERVER``, ``ibft:``
and ``/FILE#NICKNAME``.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from iscsifs.conffile import files
from iscsifs.conffile.model import Configuration, Entry
from iscsifs.conffile.options import initiator_options
from iscsifs.errors import ConfigError, NoTargetError, printable
from iscsifs.ibft import search
from iscsifs.ibft.model import Ibft
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.names import DEFAULT_PORT, Portal, check_name, check_zone, name_fault
from iscsifs.iscsi.root_path import RootPath, is_root_path, without_secrets
from iscsifs.scsi.luns import lun_label
from iscsifs.secret import forbid_core_dumps, hide_argument

log = logging.getLogger(__name__)

_ISNS: Final = "isns://"
_ISNS_PORT: Final = 3205
_IBFT: Final = "ibft:"

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
class NameServer:
    """An iSNS server, and what it takes to log in to the targets that it tells of.

    With *target* only this one is wanted, and of its units only *lun* where that is not None.
    """

    portal: Portal
    options: InitiatorOptions
    target: str | None = None
    lun: str | None = None


@dataclass(slots=True)
class Named:
    """What a user has named. *ibft* is a table to be shown."""

    hosts: list[Host] = field(default_factory=list)
    name_servers: list[NameServer] = field(default_factory=list)
    ibft: Ibft | None = None

    def add(self, other: "Named") -> None:
        """Add what *other* has."""
        self.hosts += other.hosts
        self.name_servers += other.name_servers
        self.ibft = other.ibft or self.ibft


def is_host(text: str) -> bool:
    """Say whether *text* is ``HOST`` or our URL, and none of the other words."""
    return not (is_file(text) or text.startswith((_ISNS, _IBFT)) or is_root_path(text))


def is_file(text: str) -> bool:
    """Say whether *text* is a configuration file, perhaps with a nickname."""
    return text.startswith("/") and not text.startswith("//")


def shown(text: str) -> str:
    """Return what a user has typed, without the secrets that a root path may have."""
    return without_secrets(text) if is_root_path(text) else text


def name_server(text: str) -> Portal:
    """Read ``SERVER[:PORT]`` of an iSNS server; raises ConfigError."""
    portal = Portal.parse(text.removeprefix(_ISNS).rstrip("/"), _ISNS_PORT)
    check_zone(portal.host)
    return portal


class Reader:
    """Reads what a user names; *options* hold for all of it, with the credentials of hosts without a user.

    *credentials* are those of users, *port* is that of hosts without one. *name_servers* are asked for
    targets that are named without a host. A file is read once. With *is_named* our name was given by the
    user, and that of the firmware's table is not taken.
    """

    def __init__(
        self,
        options: InitiatorOptions,
        credentials: Mapping[str | None, Credentials | None],
        port: int = DEFAULT_PORT,
        name_servers: Sequence[Portal] = (),
        *,
        is_named: bool = False,
    ) -> None:
        self._options = options
        self._credentials = credentials
        self._port = port
        self._name_servers = name_servers
        self._is_named = is_named
        self._files: dict[Path, Configuration] = {}

    def read(self, text: str) -> Named:
        """Read one of the words. Raises ConfigError, whose message has no secret in it, and NoTargetError."""
        if is_root_path(text):
            return self._root_path(text)
        if text.startswith(_ISNS):
            return Named(name_servers=[NameServer(name_server(text), self._options)])
        if text.startswith(_IBFT):
            file = text.removeprefix(_IBFT)
            return self.firmware(Path(file) if file else None)
        if is_file(text):
            file, hash_, nickname = text.partition("#")
            return self.file(Path(file), [nickname] if hash_ else [])
        return Named([self._host(HostSpec.parse(text, self._port))])

    def read_later(self, text: str) -> Named:
        """Read one of the words while mounted; a nickname of a file that was read stands for itself too."""
        for path, found in self._files.items():
            if found.find(text) is not None:
                return self.file(path, [text])
        return self.read(text)

    def _host(self, spec: HostSpec) -> Host:
        if spec.user is None:
            return Host(spec, self._options)
        if spec.user not in self._credentials:
            raise ConfigError(
                f'there is no secret for user "{printable(spec.user)}"; name the user at the mount'
            )
        return Host(spec, replace(self._options, credentials=self._credentials[spec.user]))

    def _root_path(self, text: str) -> Named:
        path = RootPath.parse(text)
        options = self._options
        if path.credentials is not None:
            hide_argument(text, without_secrets(text))
            forbid_core_dumps()
            options = replace(options, credentials=path.credentials)
        _tell(path.notes)
        lun = lun_label(path.lun)
        if path.portal is not None:
            return Named([Host(HostSpec(path.portal, None, path.target_name, lun), options)])
        if not self._name_servers:
            raise ConfigError(
                f'root path "{printable(without_secrets(text))}" has no server;'
                " give one, or an iSNS server that knows the target (--isns SERVER)"
            )
        servers = [NameServer(portal, options, path.target_name, lun) for portal in self._name_servers]
        return Named(name_servers=servers)

    def file(self, path: Path, nicknames: Sequence[str] = ()) -> Named:
        """Return what a configuration file has under *nicknames*; without these, all that is enabled."""
        if path not in self._files:
            self._files[path] = files.load(path)
            _tell(self._files[path].notes)
        found = self._files[path]
        entries = [_entry(found, path, nickname) for nickname in nicknames]
        if not nicknames:
            entries = [entry for entry in found.entries if entry.enabled]
            if not entries:
                reason = (
                    "no target in it is enabled; choose one with -n"
                    if found.entries
                    else "it names no target"
                )
                raise NoTargetError(f"{path}: {reason}")
        return Named([_host_of(entry, self._options) for entry in entries])

    def firmware(self, file: Path | None = None) -> Named:
        """Return what the firmware has booted from, or what the table in *file* says."""
        forbid_core_dumps()
        ibft = search.find(file)
        _tell(f"iBFT: {note}" for note in ibft.notes)
        if ibft.initiator is not None and ibft.initiator.isns is not None:
            log.info("iBFT: there is an iSNS server %s, which --isns asks", ibft.initiator.isns)
        if not ibft.targets:
            raise NoTargetError("iBFT: there is no target in it that can be used")
        options = self._options
        if ibft.initiator_name is not None and not self._is_named:
            options = replace(options, initiator_name=ibft.initiator_name)
        hosts = []
        for target in ibft.by_preference():
            lun = None if target.lun is None else lun_label(target.lun)
            credentials = target.credentials or options.credentials
            spec = HostSpec(target.portal, None, target.name, lun)
            hosts.append(Host(spec, replace(options, credentials=credentials)))
        return Named(hosts, ibft=ibft)


def _entry(found: Configuration, path: Path, nickname: str) -> Entry:
    entry = found.find(nickname)
    if entry is None:
        known = ", ".join(printable(entry.nickname) for entry in found.entries[:10]) or "none"
        raise ConfigError(f'{path}: there is no nickname "{printable(nickname)}"; there is: {known}')
    return entry


def _host_of(entry: Entry, options: InitiatorOptions) -> Host:
    spec = HostSpec(entry.address.portal, None, entry.target_name, entry.lun)
    return Host(spec, initiator_options(entry, options))


def _tell(notes: Iterable[str]) -> None:
    for note in notes:
        log.warning("%s", note)
