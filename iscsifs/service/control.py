"""What a user does to a mount by mkdir(2) and rmdir(2): hosts and targets come and go.

``mkdir MNT/HOST[:PORT]`` asks this host for its targets and logs in to them, ``rmdir MNT/HOST`` logs out of
all of them; in ``MNT/HOST`` the same holds for one target. What fails is an errno, with its sentence in the
events.
"""

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from iscsifs.config import Config
from iscsifs.errors import (
    ConfigError,
    InUseError,
    IscsifsError,
    LoginError,
    LoginRefused,
    LoginTimeout,
    NoTargetError,
    TransportError,
    UnknownHost,
    printable,
)
from iscsifs.fs.names import safe_name
from iscsifs.fs.nodes import Directory, Refusal, Refused
from iscsifs.fs.tree import short_name
from iscsifs.limits import MAX_HOSTS
from iscsifs.monitor.events import MAX_TEXT
from iscsifs.service.autohost import AutoHost
from iscsifs.service.commands import Commands
from iscsifs.service.find import Origin, origin_of
from iscsifs.service.living import LivingSet
from iscsifs.service.network import Network

log = logging.getLogger(__name__)

OriginOf = Callable[[str], Origin]
"""Makes the source for the text of a host; raises ConfigError where it is none."""

_REFUSALS: Final[dict[type[IscsifsError], Refusal]] = {
    ConfigError: Refusal.INVALID,
    UnknownHost: Refusal.NO_HOST,
    LoginTimeout: Refusal.NO_ANSWER,
    LoginError: Refusal.NOT_LET_IN,
    NoTargetError: Refusal.NO_TARGET,
    InUseError: Refusal.IN_USE,
}
"""What a failure is answered with; what is not here, and has no base here, is EIO."""

_BY_NUMBER: Final = {
    errno.ENXIO: Refusal.NO_HOST,
    errno.ECONNREFUSED: Refusal.HOST_REFUSES,
    errno.ETIMEDOUT: Refusal.NO_ANSWER,
    errno.EHOSTUNREACH: Refusal.NO_ROUTE,
    errno.ENETUNREACH: Refusal.NO_ROUTE,
}
"""The same for a TransportError with this errno."""

_NOT_FOUND: Final = ((2, 3), (2, 7))
"""The statuses of a login that say that there is no such target (RFC 7143 section 11.13.5)."""


def refusal_of(error: IscsifsError) -> Refusal | None:
    """Return what a mkdir(2) or rmdir(2) is answered with that fails with *error*, None for EIO."""
    if isinstance(error, TransportError) and error.number in _BY_NUMBER:
        return _BY_NUMBER[error.number]
    if isinstance(error, LoginRefused) and (error.status_class, error.status_detail) in _NOT_FOUND:
        return Refusal.NO_TARGET
    return next((_REFUSALS[kind] for kind in type(error).__mro__ if kind in _REFUSALS), None)


def take_commands(living: LivingSet, config: Config, network: Network) -> None:
    """Let the owner of a mount change *living*: by mkdir(2), rmdir(2) and control files."""
    Commands(living)
    control = Control(living, lambda text: origin_of(config.host(text), config, network))
    if config.mount_options.autohost:
        living.tree.root.on_lookup = AutoHost(control.add_host).look_up


class Control:
    """Makes and removes the directories of hosts and targets of *living*; *origin_of* makes their sources."""

    def __init__(self, living: LivingSet, origin_of: OriginOf) -> None:
        self._living = living
        self._tree = living.tree
        self._origin_of = origin_of
        self._removed: dict[bytes, Origin] = {}  # the sources of hosts that were removed, with their options
        self._busy: set[bytes] = set()  # the paths that are being made or removed
        self._reserved = frozenset(self._tree.root.entries)
        self._tree.root.on_mkdir = self.add_host
        self._tree.root.on_rmdir = self._remove_host
        self._tree.on_host.append(self._take_over)

    def _take_over(self, directory: Directory) -> None:
        """Let targets be made and removed in the *directory* of a host."""

        async def make(name: bytes) -> None:
            await self._add_target(directory.path, name)

        async def remove(name: bytes) -> None:
            await self._remove_target(directory.path, name)

        directory.on_mkdir, directory.on_rmdir = make, remove

    @contextmanager
    def _working_on(self, path: bytes, otherwise: Refusal) -> Iterator[None]:
        """Refuse *otherwise* while *path*, its host or a target of it is being made or removed.

        What fails in the body is told, and answered with its errno.
        """
        host = path.partition(b"/")[0]
        if path in self._busy or host in self._busy or any(p.startswith(path + b"/") for p in self._busy):
            raise Refused(otherwise)
        self._busy.add(path)
        try:
            yield
        except IscsifsError as exc:
            refusal = refusal_of(exc)
            self._tell_failure(path, str(exc))
            if refusal is None:
                raise
            raise Refused(refusal) from None
        finally:
            self._busy.remove(path)

    # Hosts.

    async def add_host(self, name: bytes) -> None:
        """Ask the host *name* for its targets, and log in to them; raises Refused or an `IscsifsError`."""
        if name in self._tree.root.entries:
            raise Refused(Refusal.EXISTS)
        with self._working_on(name, Refusal.EXISTS):
            origin = self._removed.get(name) or self._new_origin(name)
            hosts = len(self._tree.root.entries) - len(self._reserved)
            if hosts + sum(b"/" not in path for path in self._busy) > MAX_HOSTS:
                self._tell_failure(name, f"there are {hosts} hosts, and no more are taken")
                raise Refused(Refusal.NO_SPACE)
            attached, failures = await self._living.add_source(origin)
            for failure in failures:
                log.warning("%s", failure)
            if attached:
                self._removed.pop(name, None)
                self._living.events.add("source_added", f"targets: {len(attached)}", host=printable(name))
                return
            is_known = not failures and origin in self._living.origins and self._living.wanted_by(origin)
            self._living.drop_source(origin)
            if failures:
                raise failures[0].error
            if is_known:
                self._tell_failure(name, "its targets are attached already, under the name of another host")
                raise Refused(Refusal.EXISTS)
            raise NoTargetError("no target has a name that this mount wants")

    def _new_origin(self, name: bytes) -> Origin:
        """Return the source for what a user has typed; raises ConfigError."""
        try:
            text = name.decode("ascii")
        except UnicodeDecodeError:
            raise ConfigError("it is not the name of a host") from None
        return replace(self._origin_of(text), place=name)

    async def _remove_host(self, name: bytes) -> None:
        """Log out of all targets of a host."""
        if name in self._reserved:
            raise Refused(Refusal.NOT_PERMITTED)
        with self._working_on(name, Refusal.IN_USE):
            living = self._living
            sources = [origin for origin in living.origins if self._is_of(origin, name)]
            await living.log_out_of_host(name)
            for origin in sources:
                self._removed[name] = origin
                living.drop_source(origin)
            self._tree.remove_host(name)
            living.events.add("source_removed", "the host was removed by its user", host=printable(name))

    def _is_of(self, origin: Origin, name: bytes) -> bool:
        """Say whether all that a source wants is in the directory *name*."""
        hosts = {login.host for login in self._living.wanted_by(origin)}
        return hosts == {name} or origin.place == name

    # Targets.

    async def _add_target(self, host: bytes, name: bytes) -> None:
        """Log in to a target that a source tells of, and that is not there."""
        with self._working_on(host + b"/" + name, Refusal.EXISTS):
            if self._living.at(host + b"/" + name):
                raise Refused(Refusal.EXISTS)
            for login, before in self._living.absent(host):
                if name in (before, short_name(login.wanted.name), safe_name(login.wanted.name)):
                    await self._living.log_in(login, name)
                    return
            raise NoTargetError(
                "no source tells of this target; to ask the host again, remove its directory and make it"
            )

    async def _remove_target(self, host: bytes, name: bytes) -> None:
        """Log out of one target."""
        path = host + b"/" + name
        with self._working_on(path, Refusal.IN_USE):
            for attached in self._living.at(path):
                await self._living.log_out(attached)

    def _tell_failure(self, path: bytes, text: str) -> None:
        """Say why *path* was not made or removed, to the log and as an event."""
        sentence = printable(f"{printable(path)}: {text}", MAX_TEXT)
        log.warning("%s", sentence)
        where = dict(zip(("host", "target"), printable(path).split("/"), strict=False))
        self._living.events.add("control_failed", sentence, **where)
