"""The tree of files that shows targets and their logical units::

    <host>/<target>/   hostname ip port targetname     symlinks: where it is
                       vendor product version serial   symlinks: what it is
                       storage                         the disk
                       lun0/ lun1/ ...                 all of them, with wwid type blocksize as well
    by-id/<wwid> -> ../<host>/<target>/lunN
    by-id/<wwid>@<host>,<target>,lunN    of units that have one name

Nothing here knows of FUSE or of iSCSI. A tree is built from descriptions, and its names depend on these
only, not on the order in which they came. An inode lives as long as what it stands for is there; its number
is never given to anything else.
"""

import hashlib
import logging
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import ClassVar, Final, TypeVar

from iscsifs.fs.storage import Storage
from iscsifs.limits import NOTES_A_LIST

log = logging.getLogger(__name__)

ROOT_INODE: Final = 1
"""The inode of the root directory (FUSE_ROOT_ID)."""

MAX_NAME: Final = 255
"""Bytes of a path component (NAME_MAX)."""

DIRECT_ACCESS: Final = 0x00
"""The peripheral device type of a disk (SPC-4 table 138)."""

_BY_ID: Final = b"by-id"
_OF_TARGET: Final = frozenset({b"vendor", b"product", b"version", b"serial"})
_ALLOWED: Final = frozenset((string.ascii_letters + string.digits + " +,-.:=@_").encode())
_FIRST: Final = frozenset((string.ascii_letters + string.digits + "_").encode())
_DIGITS: Final = re.compile(rb"(\d+)")


@dataclass(frozen=True, slots=True)
class UnitDescription:
    """A logical unit, *label* being its number as text. A text that is empty or None has no link.

    *storage* is None where the unit cannot be read by block. Whatever came from the network stands here as it
    came.
    """

    label: str
    device_type: int
    type_name: str
    vendor: str = ""
    product: str = ""
    version: str = ""
    serial: str | None = None
    wwid: str | None = None
    block_size: int | None = None
    storage: Storage | None = None


@dataclass(frozen=True, slots=True)
class TargetDescription:
    """A target; *host* is its host's name, *address* (a numeric one) and *port* are where it was reached."""

    host: str
    address: str
    port: int
    name: str
    units: tuple[UnitDescription, ...] = ()


def safe_name(text: str) -> bytes:
    """Return *text* from the network as a path component: the one allow-list for all of them.

    ASCII letters, digits and `` +,-.:=@_`` stay, the first character being a letter, a digit or "_"; every
    other byte of its UTF-8 becomes ``%XX``. So the result is never empty, "." or "..", no option to a
    command, and different for different texts. What is longer than 255 bytes ends in a hash of the whole.
    """
    raw = text.encode("utf-8", "surrogatepass")
    name = b"".join(
        bytes((byte,)) if byte in (_ALLOWED if i else _FIRST) else b"%%%02X" % byte
        for i, byte in enumerate(raw)
    )
    if len(name) > MAX_NAME:
        digest = hashlib.sha256(raw).hexdigest()[:16].encode()
        name = name[: MAX_NAME - 1 - len(digest)] + b"~" + digest
    return name or b"%"


@dataclass(slots=True, eq=False)
class Link:
    """A symbolic link."""

    inode: int
    target: bytes
    nlink: ClassVar[int] = 1


@dataclass(slots=True, eq=False)
class File:
    """A `storage` file: the bytes of one logical unit."""

    inode: int
    storage: Storage
    nlink: int = 1


class Directory:
    """A directory, *path* being its place below the root; *entries* maps names to nodes."""

    __slots__ = ("entries", "inode", "path")

    def __init__(self, inode: int, path: bytes) -> None:
        self.inode = inode
        self.path = path
        self.entries: dict[bytes, Node] = {}

    @property
    def nlink(self) -> int:
        """Return 2 and one more for each directory in this one, as find(1) expects."""
        return 2 + sum(isinstance(node, Directory) for node in self.entries.values())

    def listing(self) -> "list[tuple[bytes, Node]]":
        """Return the entries in the order of their names, numbers by value: lun2 before lun10."""
        return sorted(self.entries.items(), key=lambda entry: _natural(entry[0]))


Node = Directory | Link | File
AnyNode = TypeVar("AnyNode", bound=Node)


class UnitDirectory(Directory):
    """The directory of one logical unit."""

    __slots__ = ("unit",)

    def __init__(self, inode: int, path: bytes, unit: UnitDescription) -> None:
        super().__init__(inode, path)
        self.unit = unit


class TargetDirectory(Directory):
    """The directory of one target; *main* is the unit that it shows as its own, None where there is none."""

    __slots__ = ("main", "target")

    def __init__(self, inode: int, path: bytes, target: TargetDescription) -> None:
        super().__init__(inode, path)
        self.target = target
        self.main: UnitDirectory | None = None

    def units(self) -> list[UnitDirectory]:
        """Return the directories of the logical units, the lowest number first."""
        return [node for _, node in self.listing() if isinstance(node, UnitDirectory)]


class Tree:
    """All the nodes, by inode number."""

    def __init__(self) -> None:
        self._inodes = count(ROOT_INODE)
        self.nodes: dict[int, Node] = {}
        self.root = self._add(Directory(next(self._inodes), b""))
        self._by_id = self._add(Directory(next(self._inodes), _BY_ID))
        self.root.entries[_BY_ID] = self._by_id
        self._targets: list[TargetDirectory] = []
        self._namesakes: dict[str, set[bytes]] = {}  # the paths of those that were warned of, by their name

    def add_targets(self, targets: Sequence[TargetDescription]) -> list[TargetDirectory]:
        """Add *targets* and return their directories.

        Targets of one host that would have the same short name, all within this call, have their whole names.
        What is in the tree already keeps its name.
        """
        short_names = Counter((target.host, _short(target.name)) for target in targets)
        directories: dict[int, TargetDirectory] = {}
        for index, target in sorted(enumerate(targets), key=lambda item: _target_order(item[1])):
            host = self._host(target.host)
            unique = short_names[target.host, _short(target.name)] == 1
            name = next(name for name in _names(target, unique) if name not in host.entries)
            directory = self._add(TargetDirectory(next(self._inodes), host.path + b"/" + name, target))
            host.entries[name] = directory
            self._set_links(directory, _links_of_target(target))
            self._set_units(directory, target.units)
            self._targets.append(directory)
            directories[index] = directory
        self._name_by_id()
        return [directories[index] for index in range(len(targets))]

    def update(self, directory: TargetDirectory, target: TargetDescription) -> "list[File | Link]":
        """Let *directory* show *target* as it is now: where it is reached, and its logical units; return what
        `replace_units` does. Its name stays."""
        directory.target = target
        changed = self._set_links(directory, _links_of_target(target))
        return [*changed, *self.replace_units(directory, target.units)]

    def replace_units(
        self, directory: TargetDirectory, units: Sequence[UnitDescription]
    ) -> "list[File | Link]":
        """Let *directory* have these logical units, and return their files, and links that are different now.

        A unit that was there keeps its inodes; one with the same number but another identity does not.
        """
        changed = self._set_units(directory, units)
        self._name_by_id()
        entries = [entry for unit in directory.units() for entry in unit.entries.values()]
        return [*changed, *(entry for entry in entries if isinstance(entry, File))]

    def files(self) -> Iterator[File]:
        """Yield every storage file, once."""
        return (node for node in self.nodes.values() if isinstance(node, File))

    def path_of(self, inode: int) -> bytes | None:
        """Return the path below the root of the storage file with this *inode*, None where there is none."""
        for node in self.nodes.values():
            if isinstance(node, UnitDirectory):
                for name, entry in node.entries.items():
                    if entry.inode == inode:
                        return node.path + b"/" + name
        return None

    def _add(self, node: AnyNode) -> AnyNode:
        self.nodes[node.inode] = node
        return node

    def _host(self, host: str) -> Directory:
        """Return the directory of *host*, a new one if need be."""
        name = safe_name(host)
        if name == _BY_ID:
            name = name.replace(b"-", b"%2D")
        node = self.root.entries.get(name)
        if not isinstance(node, Directory):
            node = self.root.entries[name] = self._add(Directory(next(self._inodes), name))
        return node

    def _set_links(self, directory: Directory, links: "dict[bytes, bytes | None]") -> "list[File | Link]":
        """Let *directory* have these *links*, none where the target is None; return those that were there and
        lead elsewhere now."""
        changed: list[File | Link] = []
        for name, target in links.items():
            node = directory.entries.get(name)
            if not target:
                if node is not None:
                    self._remove(directory.entries.pop(name))
            elif not isinstance(node, Link):
                directory.entries[name] = self._add(Link(next(self._inodes), target))
            elif node.target != target:
                node.target = target
                changed.append(node)
        return changed

    def _set_units(self, directory: TargetDirectory, units: Sequence[UnitDescription]) -> "list[File | Link]":
        changed: list[File | Link] = []
        wanted = {_unit_name(unit): unit for unit in sorted(units, key=_unit_order)}
        for old in directory.units():
            name = _unit_name(old.unit)
            new = wanted.get(name)
            if new is not None and _is_same(old.unit, new):
                del wanted[name]
                changed += self._renew(old, new)
                if directory.main is old:
                    changed += self._set_links(directory, _links_of_main(new))
            else:
                self._remove(directory.entries.pop(name))
                if directory.main is old:
                    self._show_as_main(directory, None)
        for name, unit in wanted.items():
            directory.entries[name] = self._unit(directory.path + b"/" + name, unit)
        if directory.main is None or not _is_disk(directory.main):
            self._show_as_main(directory, _main_unit(directory.units()))
        return changed

    def _unit(self, path: bytes, unit: UnitDescription) -> UnitDirectory:
        directory = self._add(UnitDirectory(next(self._inodes), path, unit))
        self._set_links(directory, _links_of_unit(unit))
        if unit.storage is not None:
            directory.entries[b"storage"] = self._add(File(next(self._inodes), unit.storage))
        return directory

    def _renew(self, directory: UnitDirectory, unit: UnitDescription) -> "list[File | Link]":
        """Give the *directory* of a unit that stayed the storage and the texts of its new description."""
        directory.unit = unit
        file = directory.entries.get(b"storage")
        if isinstance(file, File) and unit.storage is not None:
            file.storage = unit.storage
        return self._set_links(directory, _links_of_unit(unit))

    def _remove(self, node: Node) -> None:
        if isinstance(node, Directory):
            for entry in node.entries.values():
                self._remove(entry)
        del self.nodes[node.inode]

    def _show_as_main(self, directory: TargetDirectory, unit: UnitDirectory | None) -> None:
        """Let *directory* show what *unit* has as its own."""
        if directory.main is not None:
            for name in _OF_TARGET & directory.entries.keys():
                self._remove(directory.entries.pop(name))
            directory.entries.pop(b"storage", None)
        directory.main = unit
        if unit is not None:
            self._set_links(directory, _links_of_main(unit.unit))
            node = unit.entries.get(b"storage")
            if isinstance(node, File) and _is_disk(unit):
                directory.entries[b"storage"] = node
                node.nlink = 2

    def _name_by_id(self) -> None:
        """Make by-id anew. Units of one name are told apart by their paths, which are the same at every
        mount: none of them has the plain name, so that nobody takes one for the other."""
        namesakes: dict[str, list[bytes]] = {}
        storages: dict[str, list[bytes]] = {}
        for directory in self._targets:
            for unit in directory.units():
                if unit.unit.wwid:
                    namesakes.setdefault(unit.unit.wwid, []).append(unit.path)
                    if unit.unit.storage is not None:
                        storages.setdefault(unit.unit.wwid, []).append(unit.path)
        links: dict[bytes, bytes] = {}
        for wwid, paths in namesakes.items():
            for path in paths:
                place = "" if len(paths) == 1 else "@" + path.decode().replace("/", ",")
                links[safe_name(wwid + place)] = b"../" + path
        for name, node in list(self._by_id.entries.items()):
            if isinstance(node, Link) and links.get(name) != node.target:
                self._remove(self._by_id.entries.pop(name))
        for name, target in links.items():
            if name not in self._by_id.entries:
                self._by_id.entries[name] = self._add(Link(next(self._inodes), target))
        self._warn_of_namesakes({wwid: paths for wwid, paths in storages.items() if len(paths) > 1})

    def _warn_of_namesakes(self, namesakes: dict[str, list[bytes]]) -> None:
        """Say which units have one name, once, and again when others have it as well."""
        news = [wwid for wwid, paths in namesakes.items() if not self._namesakes.get(wwid, set()) >= {*paths}]
        self._namesakes = {wwid: {*paths} for wwid, paths in namesakes.items()}
        for wwid in news[:NOTES_A_LIST]:
            first, second, *others = (path.decode() for path in sorted(namesakes[wwid]))
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


def _target_order(target: TargetDescription) -> tuple[str, str, int, str]:
    return target.host, target.name, target.port, target.address


def _short(name: str) -> str:
    return name.rpartition(":")[2] or name


def _names(target: TargetDescription, unique: bool) -> Iterator[bytes]:
    """Yield the names that the directory of *target* may have, the best first, without an end."""
    if unique:
        yield safe_name(_short(target.name))
    yield safe_name(target.name)
    yield safe_name(f"{target.name},{target.port}")
    for number in count(1):
        yield safe_name(f"{target.name},{target.port},{number}")


def _unit_name(unit: UnitDescription) -> bytes:
    return safe_name("lun" + unit.label)


def _unit_order(unit: UnitDescription) -> list[bytes | int]:
    return _natural(_unit_name(unit))


def _is_same(old: UnitDescription, new: UnitDescription) -> bool:
    """Return whether *new* is the unit *old*, the number of which it has: it is the same storage, whatever
    its texts are now, or all texts are the same."""
    if old.storage is not None and old.storage is new.storage:
        return True
    texts_are_the_same = replace(old, storage=None) == replace(new, storage=None)
    return texts_are_the_same and (old.storage is None) == (new.storage is None)


def _links_of_target(target: TargetDescription) -> dict[bytes, bytes | None]:
    return {
        b"hostname": _link_target(target.host),
        b"port": _link_target(str(target.port)),
        b"targetname": _link_target(target.name),
        # Numeric, from the socket: not the network's text, and the "%" of a zone belongs to it.
        b"ip": target.address.encode(),
    }


def _links_of_unit(unit: UnitDescription) -> dict[bytes, bytes | None]:
    return {
        b"vendor": _link_target(unit.vendor),
        b"product": _link_target(unit.product),
        b"version": _link_target(unit.version),
        b"serial": _link_target(unit.serial),
        b"wwid": _link_target(unit.wwid),
        b"type": _link_target(unit.type_name),
        b"blocksize": _link_target(str(unit.block_size) if unit.block_size else None),
    }


def _links_of_main(unit: UnitDescription) -> dict[bytes, bytes | None]:
    """What a target shows of *unit* as its own."""
    return {name: target for name, target in _links_of_unit(unit).items() if name in _OF_TARGET}


def _link_target(text: str | None) -> bytes | None:
    return safe_name(text) if text else None


def _is_disk(unit: UnitDirectory) -> bool:
    return unit.unit.device_type == DIRECT_ACCESS


def _main_unit(units: list[UnitDirectory]) -> UnitDirectory | None:
    """Choose the lowest-numbered disk, even one that cannot be used: no other must appear in its place."""
    return next(iter([unit for unit in units if _is_disk(unit)] or units), None)


def _natural(name: bytes) -> list[bytes | int]:
    """Return a key that sorts numbers in *name* by value."""
    return [int(part) if i % 2 else part for i, part in enumerate(_DIGITS.split(name))]
