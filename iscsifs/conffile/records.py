"""Finds the records of open-iscsi, and makes entries of them: what ``iscsifsctl import`` reads."""

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from iscsifs.conffile.model import Entry
from iscsifs.conffile.open_iscsi import (
    Import,
    Record,
    discovery,
    initiator_name,
    node,
    parse_record,
    portal_of,
)
from iscsifs.errors import ConfigError, printable, reason
from iscsifs.secret import forbid_core_dumps

DIRECTORIES: Final = (Path("/etc/iscsi"), Path("/var/lib/iscsi"))
"""Where open-iscsi keeps its files: the first is Debian's for all of them."""

_MAX_RECORD: Final = 1 << 16
_MAX_RECORDS: Final = 1 << 16
_ISNS_PORT: Final = 3205


def import_records(directories: Sequence[Path] = DIRECTORIES) -> Import:
    """Read everything of open-iscsi below *directories*. Core dumps are forbidden from here on.

    What cannot be read or used is counted, and told in the notes. Raises ConfigError where there is nothing
    of open-iscsi at all.
    """
    forbid_core_dumps()
    reader = _Reader()
    for directory in directories:
        reader.read(directory)
    if not reader.found_any:
        raise ConfigError(f"there is nothing of open-iscsi in {' or '.join(map(str, directories))}")
    return reader.result


class _Reader:
    def __init__(self) -> None:
        self.result = Import()
        self.found_any = False
        self._seen: dict[tuple[str | None, str], str] = {}  # target and portal: the record
        self._nicknames: set[str] = set()

    def read(self, directory: Path) -> None:
        """Read the files below one directory."""
        defaults: Record = {}
        name_file = directory / "initiatorname.iscsi"
        if name_file.exists() and (text := self._text(name_file)) is not None:
            try:
                self.result.initiator_name = initiator_name(text) or self.result.initiator_name
            except ConfigError as error:
                self._refuse(name_file, error)
        if (conf := directory / "iscsid.conf").exists() and (text := self._text(conf)) is not None:
            defaults = {
                key: value
                for key, value in parse_record(text, str(conf), self.result.notes).items()
                if key.startswith("node.")
            }
        for path in _files(directory / "nodes"):
            self._each(path, partial(self._node, path, defaults))
        for path in _files(directory / "send_targets"):
            # The directory has links to the nodes that were found so, beside the record itself.
            if path.name == "st_config" or path.parent.name == "send_targets":
                self._each(path, partial(self._discovery, path))
        for path in _files(directory / "isns"):
            if path.name == "isns_config" or path.parent.name == "isns":
                self._each(path, partial(self._isns, path))

    def _each(self, path: Path, use: Callable[[Record], None]) -> None:
        if (text := self._text(path)) is None:
            return
        try:
            use(parse_record(text, str(path), self.result.notes))
        except ConfigError as error:
            self._refuse(path, error)

    def _node(self, path: Path, defaults: Record, record: Record) -> None:
        record = {**defaults, **record}
        entry = node(record, self._nickname(record.get("node.name", "")), str(path), self.result.notes)
        self._add(entry, path)

    def _discovery(self, path: Path, record: Record) -> None:
        address = record.get("discovery.sendtargets.address", "")
        self._add(discovery(record, self._nickname(address), str(path), self.result.notes), path)

    def _isns(self, path: Path, record: Record) -> None:
        portal = portal_of(record, str(path), _ISNS_PORT)
        if portal not in self.result.isns:
            self.result.isns.append(portal)

    def _add(self, entry: Entry, path: Path) -> None:
        """Add an entry, unless the same target at the same portal is there, over another interface."""
        key = entry.target_name, str(entry.address.portal)
        if (first := self._seen.setdefault(key, str(path))) != str(path):
            self.result.notes.append(
                f"{printable(str(path))}: it is the target and portal of {printable(first)}"
            )
            return
        self._nicknames.add(entry.nickname.lower())
        self.result.entries.append(entry)

    def _nickname(self, name: str) -> str:
        """Return a nickname for a target or a portal that no other entry has."""
        last = re.sub("[^A-Za-z0-9._-]+", "-", name.rpartition(":")[2] or name).strip("-")[:64] or "target"
        choices = (last, *(f"{last}-{number}" for number in range(2, _MAX_RECORDS)))
        return next(choice for choice in choices if choice.lower() not in self._nicknames)

    def _text(self, path: Path) -> str | None:
        """Return the text of a file, None where it cannot be read, which is told."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            with open(descriptor, "rb") as file:
                content = file.read(_MAX_RECORD)
        except OSError as error:
            self._refuse(path, ConfigError(f"{printable(str(path))}: {reason(error)}"))
            return None
        self.found_any = True
        return content.decode(errors="surrogateescape")

    def _refuse(self, path: Path, error: ConfigError) -> None:
        self.found_any = True
        self.result.unreadable += 1
        words = str(error)
        shown = printable(str(path))
        self.result.notes.append(words if words.startswith(shown) else f"{shown}: {words}")


def _files(directory: Path) -> list[Path]:
    """Return the files below *directory*, in order; directories that are links are left out."""
    return sorted(Path(root, name) for root, _, names in os.walk(directory) for name in names)
