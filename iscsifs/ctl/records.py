"""``iscsifsctl import``: from the records of open-iscsi to a configuration file of iscsifs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iscsifs.conffile.files import DEFAULT_FILE, save
from iscsifs.conffile.model import Entry
from iscsifs.conffile.records import DIRECTORIES
from iscsifs.conffile.records import import_records as read
from iscsifs.ctl import tables


@dataclass(frozen=True, slots=True)
class Imported:
    """What was written. *notes* tell what was not taken, a line each; *unreadable* counts files."""

    entries: Sequence[Entry]
    notes: Sequence[str]
    unreadable: int

    def lines(self) -> list[str]:
        """Return the table of the entries: what there is to discover from has no target."""
        headings = ("NICKNAME", "ADDRESS", "TARGET", "ATTACHED")
        rows = [
            (entry.nickname, entry.address.portal, entry.target_name, entry.enabled) for entry in self.entries
        ]
        return tables.table(headings, rows) if rows else []


def import_records(file: Path | None = None, directory: Path | None = None) -> Imported:
    """Put what open-iscsi knows into the configuration *file*, beside what is there. Raises ConfigError.

    Without *directory* it is read from where open-iscsi keeps it; without *file* it is /etc/iscsi.conf.
    The name of the initiator goes into every entry that has none of its own.
    """
    found = read(DIRECTORIES if directory is None else (directory,))
    entries = [
        replace(entry, endpoint=replace(entry.endpoint, name=entry.endpoint.name or found.initiator_name))
        for entry in found.entries
    ]
    notes = found.notes + [
        f"the name server {portal} is not imported; attach it with: iscsifsctl add isns://{portal}"
        for portal in found.isns
    ]
    if entries:
        save(file or DEFAULT_FILE, entries)
    return Imported(entries, notes, found.unreadable)
