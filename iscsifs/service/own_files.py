"""The files of ``.iscsifs/`` that take commands: trace, save and attach."""

import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import trio

from iscsifs.conffile import files
from iscsifs.conffile.model import Entry
from iscsifs.conffile.options import entry_of
from iscsifs.config import Config
from iscsifs.errors import ConfigError, IscsifsError, printable
from iscsifs.fs.command_file import CommandFile
from iscsifs.fs.nodes import Directory, Refusal, Refused
from iscsifs.hosts import Named, shown
from iscsifs.iscsi.names import TargetAddress
from iscsifs.monitor.events import MAX_TEXT
from iscsifs.service.attach import Attached
from iscsifs.service.control import refusal_of
from iscsifs.service.find import Origin, origins
from iscsifs.service.living import LivingSet
from iscsifs.service.network import Network
from iscsifs.service.tracing import Tracing

log = logging.getLogger(__name__)


class OwnFiles:
    """Gives *living* the files by which the mount itself is told what to do."""

    def __init__(self, living: LivingSet, config: Config, network: Network, tracing: Tracing) -> None:
        self._living = living
        self._config = config
        self._network = network
        self._tracing = tracing
        self._saving = trio.Lock()
        directory = living.tree.root.find(b".iscsifs")
        assert isinstance(directory, Directory)
        for name, command, text in (
            ("trace", self._trace, tracing.text),
            ("save", self._save, None),
            ("attach", self._attach, None),
        ):
            carry_out = partial(self._carry_out, name, command)
            living.tree.add_node(directory, name.encode(), partial(CommandFile, command=carry_out, text=text))

    async def _carry_out(self, name: str, command: Callable[[str], Awaitable[None]], line: str) -> None:
        """Carry out *command*; what it fails with is told, and answered with its errno."""
        events = self._living.events
        try:
            await command(line)
        except IscsifsError as exc:
            events.add("control_failed", printable(f".iscsifs/{name}: {exc}", MAX_TEXT))
            log.warning("%s: %s", name, exc)
            if (refusal := refusal_of(exc)) is None:
                raise
            raise Refused(refusal) from None
        events.add("control", printable(f".iscsifs/{name}: done: {shown(line)}", MAX_TEXT))

    async def _trace(self, line: str) -> None:
        """Start a trace into ``FILE [SNAPLEN]``, or ``stop`` the one that there is."""
        if line == "stop":
            self._tracing.stop()
            return
        match = re.fullmatch(r"(/.*?)(?: +([0-9]{1,6}))?", line)
        if match is None:
            raise ConfigError("write the whole path of a file, and a snap length if you like, or: stop")
        mount_point = self._config.mount_point
        assert mount_point is not None, "it is mounted"
        targets = [attached.target for attached in self._living.targets]
        await self._tracing.start(Path(match[1]), int(match[2] or 0), targets, mount_point)

    async def _save(self, line: str) -> None:
        """Write what is attached now into the configuration file *line*."""
        path = Path(line)
        if not path.is_absolute():
            raise ConfigError(f"{printable(line)}: give the whole path of a file")
        entries = saved(self._living.targets)
        async with self._saving:
            # By another thread: the file may be on a disk of this mount.
            await trio.to_thread.run_sync(files.save, path, entries)

    def _origins(self, named: Named) -> list[Origin]:
        living = self._living
        return origins(named.hosts, named.name_servers, self._config, self._network, living.events)

    async def _attach(self, line: str) -> None:
        """Attach what *line* names, as on the command line."""
        reader = self._config.reader
        assert reader is not None, "a command line was read"
        named = await trio.to_thread.run_sync(reader.read_later, line)
        failures = []
        has_new = bool(named.name_servers)
        for origin in self._origins(named):
            attached, failed = await self._living.add_source(origin)
            has_new = has_new or bool(attached)
            failures += failed
            if attached:
                self._living.events.add("source_added", f"{shown(line)}: targets: {len(attached)}")
        for failure in failures:
            log.warning("%s", failure)
        if failures:
            raise failures[0].error
        if not has_new:
            raise Refused(Refusal.EXISTS)


def saved(targets: Sequence[Attached]) -> list[Entry]:
    """Return an entry for each target, or for each of its units where only some are wanted."""
    entries: list[Entry] = []
    nicknames: set[str] = set()
    for attached in targets:
        wanted, options = attached.wanted, attached.login.options
        portal = attached.target.portal
        for lun in sorted(wanted.luns) if wanted.luns is not None else [None]:
            nickname = _nickname(wanted.name, nicknames)
            entries.append(entry_of(nickname, TargetAddress(portal), wanted.name, options, lun))
    return entries


def _nickname(name: str, taken: set[str]) -> str:
    """Return a nickname for a target that no other entry has, and add it to those that are *taken*."""
    last = re.sub("[^A-Za-z0-9._-]+", "-", name.rpartition(":")[2] or name).strip("-")[:64] or "target"
    number, nickname = 1, last
    while nickname.lower() in taken:
        number += 1
        nickname = f"{last}-{number}"
    taken.add(nickname.lower())
    return nickname
