"""The tree of files that shows targets and their logical units::

    <host>/<target>/   hostname ip port targetname     symlinks: where it is
                       vendor product version serial   symlinks: what it is
                       storage                         the disk
                       lun0/ lun1/ ...                 all of them, with wwid type blocksize as well
                           part1 part2 ...             the partitions of the disk
    by-id/<wwid> -> ../<host>/<target>/lunN
    by-id/<wwid>-partN -> ../<host>/<target>/lunN/partN
    by-id/<wwid>@<host>,<target>,lunN    of units that have one name

Nothing here knows of FUSE or of iSCSI. A tree is built from descriptions, and its names depend on these
only, not on the order in which they came. An inode lives as long as what it stands for is there; its number
is never given to anything else.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Final, TypeVar

from iscsifs.fs.by_id import Named, Namesakes, links
from iscsifs.fs.names import safe_name
from iscsifs.fs.nodes import ControlFile, Directory, Link, Node, TextFile, TreeOptions, natural_order
from iscsifs.fs.storage import Storage
from iscsifs.fs.storage_file import StorageFile
from iscsifs.fs.storages import Storages
from iscsifs.limits import MAX_TARGETS

ROOT_INODE: Final = 1
"""The inode of the root directory (FUSE_ROOT_ID)."""

DIRECT_ACCESS: Final = 0x00
"""The peripheral device type of a disk (SPC-4 table 138)."""

_BY_ID: Final = b"by-id"
_OF_TARGET: Final = frozenset({b"vendor", b"product", b"version", b"serial"})


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
    """A target; *host* is its host's name, *address* (a numeric one) and *port* are where it was reached.

    *place* is the name of its host's directory where that is not the one that the host's name makes.
    """

    host: str
    address: str
    port: int
    name: str
    units: tuple[UnitDescription, ...] = ()
    place: bytes = b""


AnyNode = TypeVar("AnyNode", bound=Node)


class UnitDirectory(Directory):
    """The directory of one logical unit."""

    __slots__ = ("unit",)

    def __init__(self, inode: int, path: bytes, unit: UnitDescription) -> None:
        super().__init__(inode, path)
        self.unit = unit

    def partitions(self) -> list[bytes]:
        """Return the names of the files that are partitions of the disk."""
        return [
            name
            for name, node in self.entries.items()
            if isinstance(node, StorageFile) and name != b"storage"
        ]


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
    """All the nodes, by inode number; `storages` is what the files of the disks share."""

    def __init__(self, options: TreeOptions) -> None:
        self._inodes = count(ROOT_INODE)
        self.nodes: dict[int, Node] = {}
        self.storages = Storages(options, self._has, self.path_of)
        self.root = self._add(Directory(next(self._inodes), b""))
        self._by_id = self.add_directory(self.root, _BY_ID)
        self._targets: dict[TargetDirectory, None] = {}
        self._names: dict[tuple[bytes, str, int], bytes] = {}  # which targets had, also those that are gone
        self._namesakes = Namesakes()
        self.on_host: list[Callable[[Directory], None]] = []
        """Called with the directory of each host that comes."""
        self.on_unit: list[Callable[[TargetDirectory, UnitDirectory], None]] = []
        """Called with the directory of each logical unit that comes, and that of its target."""

    def add_targets(self, targets: Sequence[TargetDescription], name: bytes = b"") -> list[TargetDirectory]:
        """Add *targets* and return their directories; *name* is what the only one is to be called.

        Targets of one host that would have the same short name, all within this call, have their whole names.
        What is in the tree already keeps its name. A target that was there before has the name that it had,
        if that is free.
        """
        if name:
            (target,) = targets
            self._remember(target, name)
        short_names = Counter((place_of(target), _short(target.name)) for target in targets)
        short_names.update((place_of(target), _short(target.name)) for target in self._present())
        directories: dict[int, TargetDirectory] = {}
        for index, target in sorted(enumerate(targets), key=lambda item: _target_order(item[1])):
            host = self._host(place_of(target))
            unique = short_names[host.path, _short(target.name)] == 1
            before = self._names.get(_key(target))
            names = _names(target, unique) if before is None else chain([before], _names(target, unique))
            name = next(name for name in names if name not in host.entries)
            self._remember(target, name)
            directory = self._add(TargetDirectory(next(self._inodes), host.path + b"/" + name, target))
            self._enter(host, name, directory)
            self._set_links(directory, _links_of_target(target))
            self._set_units(directory, target.units)
            self._targets[directory] = None
            directories[index] = directory
        self._name_by_id()
        return [directories[index] for index in range(len(targets))]

    def remove_target(self, directory: TargetDirectory) -> None:
        """Remove the *directory* of a target; that of its host stays, see `remove_host`."""
        del self._targets[directory]
        host_name, _, name = directory.path.partition(b"/")
        host = self.root.entries[host_name]
        assert isinstance(host, Directory)
        self._remove_entry(host, name)
        self._name_by_id()

    def remove_host(self, name: bytes) -> None:
        """Remove the directory of a host if there is one without targets."""
        host = self.root.entries.get(name)
        if isinstance(host, Directory) and not host.entries:
            self._remove_entry(self.root, name)

    def update(self, directory: TargetDirectory, target: TargetDescription) -> None:
        """Let *directory* show *target* as it is now: where it is reached, and its logical units. Its name
        stays."""
        directory.target = target
        self._set_links(directory, _links_of_target(target))
        self.replace_units(directory, target.units)

    def replace_units(self, directory: TargetDirectory, units: Sequence[UnitDescription]) -> None:
        """Let *directory* have these logical units, which may have changed.

        A unit that was there keeps its inodes; one with the same number but another identity does not.
        """
        self._set_units(directory, units)
        self._name_by_id()
        for unit in directory.units():
            for entry in unit.entries.values():
                if isinstance(entry, StorageFile):
                    self.storages.kernel.forget_attributes(entry.inode)

    def set_partitions(self, directory: UnitDirectory, partitions: Mapping[int, Storage]) -> None:
        """Let the *directory* of a disk show these partitions, each by its number.

        The file of a partition stays as long as its bytes are the same part of the same disk.
        """
        wanted = {b"part%d" % number: part for number, part in partitions.items()}
        changed = False
        for name, node in list(directory.entries.items()):
            if isinstance(node, StorageFile) and name != b"storage":
                part = wanted.get(name)
                if part is not node.storage:
                    self._remove_entry(directory, name)
                    changed = True
                else:
                    del wanted[name]
                    self.storages.kernel.forget_attributes(node.inode)
        for name, part in wanted.items():
            self._enter(directory, name, self._add(StorageFile(next(self._inodes), part, self.storages)))
        if changed or wanted:
            self._name_by_id()

    def add_directory(self, parent: Directory, name: bytes) -> Directory:
        """Make the directory *name* in *parent*, and return it."""
        path = parent.path + b"/" + name if parent.path else name
        directory = self._add(Directory(next(self._inodes), path))
        self._enter(parent, name, directory)
        return directory

    def add_text(self, parent: Directory, name: bytes, text: Callable[[], str]) -> None:
        """Make the file *name* in *parent*, whose content is made by *text* at each open."""
        self.add_node(parent, name, lambda inode: TextFile(inode, text))

    def add_command(
        self,
        parent: Directory,
        name: bytes,
        command: Callable[[], Awaitable[None]],
        misused: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the file *name* in *parent*, to which its owner writes 1 to have *command* carried out;
        *misused* is called where something else is written."""
        self.add_node(parent, name, lambda inode: ControlFile(inode, command, misused))

    def add_node(self, parent: Directory, name: bytes, make: Callable[[int], AnyNode]) -> AnyNode:
        """Give *parent* the node *name*, which *make* makes with its inode; return it."""
        node = self._add(make(next(self._inodes)))
        self._enter(parent, name, node)
        return node

    def rename(self, parent: Directory, name: bytes, new_name: bytes) -> None:
        """Give a file of *parent* another name, and remove what had that."""
        if new_name in parent.entries:
            self._remove_entry(parent, new_name)
        self._enter(parent, new_name, self._leave(parent, name))

    def files(self) -> Iterator[StorageFile]:
        """Yield every storage file, once."""
        return (node for node in self.nodes.values() if isinstance(node, StorageFile))

    def path_of(self, inode: int) -> bytes | None:
        """Return the path below the root of the storage file with this *inode*, None where there is none."""
        for node in self.nodes.values():
            if isinstance(node, UnitDirectory):
                for name, entry in node.entries.items():
                    if entry.inode == inode:
                        return node.path + b"/" + name
        return None

    def relieve(self) -> None:
        """Have all disks let go of what they need not keep: memory is short."""
        for file in self.files():
            file.storage.relieve()

    def _has(self, storage: Storage) -> bool:
        return any(file.storage is storage for file in self.files())

    def _present(self) -> Iterator[TargetDescription]:
        return (directory.target for directory in self._targets)

    def _remember(self, target: TargetDescription, name: bytes) -> None:
        """Keep *name* for *target*; of more than MAX_TARGETS the oldest is forgotten."""
        self._names.pop(_key(target), None)
        self._names[_key(target)] = name
        if len(self._names) > MAX_TARGETS:
            del self._names[next(iter(self._names))]

    def _add(self, node: AnyNode) -> AnyNode:
        self.nodes[node.inode] = node
        return node

    def _enter(self, directory: Directory, name: bytes, node: Node) -> None:
        """Give *node* the *name* in *directory*."""
        directory.entries[name] = node
        if isinstance(node, Directory):  # it counts in the number of links
            self.storages.kernel.forget_attributes(directory.inode)

    def _leave(self, directory: Directory, name: bytes) -> Node:
        """Take the *name* out of *directory*; return the node that it led to."""
        node = directory.entries.pop(name)
        self.storages.kernel.forget_entry(directory.inode, name)
        if isinstance(node, Directory):
            self.storages.kernel.forget_attributes(directory.inode)
        return node

    def _remove_entry(self, directory: Directory, name: bytes) -> None:
        """Take the *name* out of *directory*, and what is there out of the tree."""
        self._remove(self._leave(directory, name))

    def _remove(self, node: Node) -> None:
        if isinstance(node, Directory):
            for entry in {*node.entries.values()}:
                self._remove(entry)
        self.nodes.pop(node.inode, None)  # a target and its unit have the file of a disk in common

    def _host(self, name: bytes) -> Directory:
        """Return the directory of a host, a new one if need be."""
        node = self.root.entries.get(name)
        if isinstance(node, Directory):
            return node
        host = self.add_directory(self.root, name)
        for arrange in self.on_host:
            arrange(host)
        return host

    def _set_links(self, directory: Directory, links: "dict[bytes, bytes | None]") -> None:
        """Let *directory* have these *links*, none where the target is None."""
        for name, target in links.items():
            node = directory.entries.get(name)
            if not target:
                if node is not None:
                    self._remove_entry(directory, name)
            elif not isinstance(node, Link):
                self._enter(directory, name, self._add(Link(next(self._inodes), target)))
            elif node.target != target:
                node.target = target
                self.storages.kernel.forget_attributes(node.inode)

    def _set_units(self, directory: TargetDirectory, units: Sequence[UnitDescription]) -> None:
        wanted = {_unit_name(unit): unit for unit in sorted(units, key=_unit_order)}
        for old in directory.units():
            name = _unit_name(old.unit)
            new = wanted.get(name)
            if new is not None and _is_same(old.unit, new):
                del wanted[name]
                self._renew(old, new)
                if directory.main is old:
                    self._set_links(directory, _links_of_main(new))
            else:
                self._remove_entry(directory, name)
                if directory.main is old:
                    self._show_as_main(directory, None)
        for name, unit in wanted.items():
            added = self._unit(directory.path + b"/" + name, unit)
            self._enter(directory, name, added)
            for arrange in self.on_unit:
                arrange(directory, added)
        if directory.main is None or not _is_disk(directory.main):
            self._show_as_main(directory, _main_unit(directory.units()))

    def _unit(self, path: bytes, unit: UnitDescription) -> UnitDirectory:
        directory = self._add(UnitDirectory(next(self._inodes), path, unit))
        self._set_links(directory, _links_of_unit(unit))
        if unit.storage is not None:
            file = StorageFile(next(self._inodes), unit.storage, self.storages)
            self._enter(directory, b"storage", self._add(file))
        return directory

    def _renew(self, directory: UnitDirectory, unit: UnitDescription) -> None:
        """Give the *directory* of a unit that stayed the storage and the texts of its new description."""
        directory.unit = unit
        file = directory.entries.get(b"storage")
        if isinstance(file, StorageFile) and unit.storage is not None:
            file.storage = unit.storage
        self._set_links(directory, _links_of_unit(unit))

    def _show_as_main(self, directory: TargetDirectory, unit: UnitDirectory | None) -> None:
        """Let *directory* show what *unit* has as its own."""
        if directory.main is not None:
            for name in _OF_TARGET & directory.entries.keys():
                self._remove_entry(directory, name)
            if b"storage" in directory.entries:
                self._leave(directory, b"storage")
        directory.main = unit
        if unit is not None:
            self._set_links(directory, _links_of_main(unit.unit))
            node = unit.entries.get(b"storage")
            if isinstance(node, StorageFile) and _is_disk(unit):
                self._enter(directory, b"storage", node)
                node.nlink = 2

    def _name_by_id(self) -> None:
        """Make by-id anew."""
        named = [
            Named(unit.unit.wwid, unit.path, unit.unit.storage is not None, unit.partitions())
            for directory in self._targets
            for unit in directory.units()
            if unit.unit.wwid
        ]
        wanted = links(named)
        for name, node in list(self._by_id.entries.items()):
            if isinstance(node, Link) and wanted.get(name) != node.target:
                self._remove_entry(self._by_id, name)
        for name, target in wanted.items():
            if name not in self._by_id.entries:
                self._enter(self._by_id, name, self._add(Link(next(self._inodes), target)))
        self._namesakes.look(named)


def place_of(target: TargetDescription) -> bytes:
    """Return the name of the directory of a target's host."""
    name = target.place or safe_name(target.host)
    return name.replace(b"-", b"%2D") if name == _BY_ID else name


def short_name(target_name: str) -> bytes:
    """Return the name of a target's directory where no other of its host has the same."""
    return safe_name(_short(target_name))


def _key(target: TargetDescription) -> tuple[bytes, str, int]:
    return place_of(target), target.name, target.port


def _target_order(target: TargetDescription) -> tuple[str, str, int, str]:
    return target.host, target.name, target.port, target.address


def _short(name: str) -> str:
    return name.rpartition(":")[2] or name


def _names(target: TargetDescription, unique: bool) -> Iterator[bytes]:
    """Yield the names that the directory of *target* may have, the best first, without an end."""
    if unique:
        yield short_name(target.name)
    yield safe_name(target.name)
    yield safe_name(f"{target.name},{target.port}")
    for number in count(1):
        yield safe_name(f"{target.name},{target.port},{number}")


def _unit_name(unit: UnitDescription) -> bytes:
    return safe_name("lun" + unit.label)


def _unit_order(unit: UnitDescription) -> list[bytes | int]:
    return natural_order(_unit_name(unit))


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
