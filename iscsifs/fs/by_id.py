"""The names of ``by-id/``: units and partitions by their worldwide names, the same at every mount."""

import logging
from collections.abc import Iterable
from typing import NamedTuple

from iscsifs.fs.names import safe_name
from iscsifs.limits import NOTES_A_LIST

log = logging.getLogger(__name__)


class Named(NamedTuple):
    """A unit with a worldwide name: the *path* of its directory, and the names of its *partitions*."""

    wwid: str
    path: bytes
    is_storage: bool
    partitions: list[bytes]


class Namesakes:
    """Says which units have one name, once, and again when others have it as well."""

    def __init__(self) -> None:
        self._told: dict[str, set[bytes]] = {}  # the paths of those that were warned of, by their name

    def look(self, units: Iterable[Named]) -> None:
        """Warn of those of *units* that have bytes and one name."""
        paths_of: dict[str, list[bytes]] = {}
        for unit in units:
            if unit.is_storage:
                paths_of.setdefault(unit.wwid, []).append(unit.path)
        paths_of = {wwid: paths for wwid, paths in paths_of.items() if len(paths) > 1}
        news = [wwid for wwid, paths in paths_of.items() if not self._told.get(wwid, set()) >= {*paths}]
        self._told = {wwid: {*paths} for wwid, paths in paths_of.items()}
        for wwid in news[:NOTES_A_LIST]:
            first, second, *others = (path.decode() for path in sorted(paths_of[wwid]))
            log.warning(
                "%s and %s%s have the same worldwide name %s: they may be one disk; write to one of them"
                " only, as each has a write buffer of its own",
                first,
                second,
                f" and {len(others)} more" if others else "",
                wwid,
            )
        if len(news) > NOTES_A_LIST:
            log.warning("%d more worldwide names are those of several units", len(news) - NOTES_A_LIST)


def links(units: Iterable[Named]) -> dict[bytes, bytes]:
    """Return the links for *units*, each with its name.

    Units of one name are told apart by their paths: none of them has the plain name, so that nobody takes one
    for the other. A partition never has a name that is a unit's.
    """
    of_name: dict[str, list[Named]] = {}
    for unit in units:
        of_name.setdefault(unit.wwid, []).append(unit)
    found: dict[bytes, bytes] = {}
    parts: dict[bytes, bytes] = {}
    for wwid, namesakes in of_name.items():
        for unit in namesakes:
            name = wwid if len(namesakes) == 1 else wwid + "@" + unit.path.decode().replace("/", ",")
            found[safe_name(name)] = b"../" + unit.path
            for part in unit.partitions:
                parts[safe_name(f"{name}-{part.decode()}")] = b"../" + unit.path + b"/" + part
    return parts | found
