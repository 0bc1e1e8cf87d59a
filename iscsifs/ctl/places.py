"""Where hosts, targets and logical units are in a mount, and what a user may call them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from iscsifs.ctl.mounted import CONTROL, ControlError, Mount
from iscsifs.errors import ConfigError, printable
from iscsifs.exit_status import ExitStatus

BY_ID: Final = "by-id"
_UNIT: Final = "lun"
_SHOWN: Final = 5
"""So many are named of those that a word may mean."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A host, a target of it or a unit of that, by the names of their directories; empty is not given."""

    host: str
    target: str = ""
    unit: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The directories that lead there."""
        return tuple(name for name in (self.host, self.target, self.unit) if name)

    def __str__(self) -> str:
        return "/".join(self.names)

    def contains(self, other: "Place") -> bool:
        """Say whether *other* is this or below it."""
        return other.names[: len(self.names)] == self.names


def hosts(mount: Mount) -> list[Place]:
    """Return the hosts of a mount."""
    return [Place(name) for name in mount.directories() if name not in (CONTROL, BY_ID)]


def targets(mount: Mount) -> list[Place]:
    """Return the targets of all hosts."""
    return [replace(host, target=name) for host in hosts(mount) for name in mount.directories(*host.names)]


def units_of(mount: Mount, target: Place) -> list[Place]:
    """Return the logical units of *target*."""
    names = mount.directories(*target.names)
    return [replace(target, unit=name) for name in names if name.startswith(_UNIT)]


def all_places(mount: Mount) -> Iterator[Place]:
    """Yield hosts, targets and units, each in front of those below it."""
    for host in hosts(mount):
        yield host
        for name in mount.directories(*host.names):
            target = replace(host, target=name)
            yield target
            yield from units_of(mount, target)


def find(mount: Mount, word: str) -> Place:
    """Return what a user calls *word*: a path in the mount with or without its beginning, TARGET[/lunN] where
    one host has such a target only, the iSCSI name of a target, or the worldwide name of a unit.

    Raises ControlError for what is not there, ConfigError for what may be several.
    """
    path = _relative(mount, word)
    names = path.split("/")
    places = list(all_places(mount))
    found = [place for place in places if place.names == tuple(names)]
    found = found or [place for place in places if place.target and place.names[1:] == tuple(names)]
    found = found or list(_by_name(mount, places, names))
    if not found and (names[0] == BY_ID or len(names) == 1):
        found = [place for place in _by_id(mount, names[-1]) if place in places]
    if not found:
        raise ControlError(
            f"{printable(word)}: no such host, target or unit in {printable(str(mount.path))};"
            " see iscsifsctl list",
            ExitStatus.NO_TARGET,
        )
    if len(found) > 1:
        raise ConfigError(f"{printable(word)}: may be {_list(found)}; give the whole path")
    return found[0]


def _relative(mount: Mount, word: str) -> str:
    """Return *word* as a path below the mount, without a file that stands for its directory."""
    path = Path(word)
    if path.is_absolute():
        if not path.is_relative_to(mount.path):
            raise ConfigError(f"{printable(word)}: is not in {printable(str(mount.path))}; see -m")
        path = path.relative_to(mount.path)
    text = str(path)
    return text.removesuffix("/storage") if text != "." else ""


def _by_name(mount: Mount, places: Sequence[Place], names: Sequence[str]) -> Iterator[Place]:
    """Yield what *names* mean where the first is the iSCSI name of a target; case does not count in those."""
    wanted = names[0].lower()
    for place in places:
        if place.target and not place.unit:
            name = mount.link(*place.names, "targetname")
            if name is not None and unquote(name).lower() == wanted:
                yield from (other for other in places if other.names == (*place.names, *names[1:]))


def _by_id(mount: Mount, wwid: str) -> Iterator[Place]:
    """Yield the place to which the link *wwid* below by-id leads."""
    leads_to = mount.link(BY_ID, wwid)
    if leads_to is not None:
        host, _, rest = leads_to.removeprefix("../").partition("/")
        target, _, unit = rest.partition("/")
        yield Place(host, target, unit)


def _list(places: Sequence[Place]) -> str:
    names = [printable(str(place)) for place in places[:_SHOWN]]
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return ", ".join(names) + more
