"""The tree of files: what is in it, under which names, and what stays when targets and units come and go."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.fs.names import MAX_NAME, safe_name
from iscsifs.fs.nodes import Directory, Link, Node, TreeOptions
from iscsifs.fs.storage_file import StorageFile
from iscsifs.fs.tree import TargetDescription, Tree, UnitDescription
from iscsifs.limits import NOTES_A_LIST
from support.memory_unit import Memory

HOST = "inspiron1300.wherever.co.uk"
NAME = "iqn.1994-04.org.netbsd.iscsi-target:target0"


def disk(label: str = "0", **changes: object) -> UnitDescription:
    unit = UnitDescription(
        label=label,
        device_type=0,
        type_name="disk",
        vendor="NetBSD",
        product="NetBSD iSCSI",
        version="0",
        serial=f"1000000{label}",
        wwid=f"naa.600140500000000{label}",
        block_size=512,
        storage=Memory(4096),
    )
    return replace(unit, **changes)  # type: ignore[arg-type]


def controller(label: str = "0") -> UnitDescription:
    return UnitDescription(label, 0x0C, "controller", "IET", "Controller", "0001")


def target(
    *units: UnitDescription, name: str = NAME, host: str = HOST, port: int = 3260
) -> TargetDescription:
    return TargetDescription(host, "10.4.0.42", port, name, units or (disk(),))


@dataclass
class RecordingKernel:
    """Stands for the kernel; keeps what it was told to forget."""

    attributes: list[int] = field(default_factory=list)
    entries: list[tuple[int, bytes]] = field(default_factory=list)

    def forget_attributes(self, inode: int) -> None:
        self.attributes.append(inode)

    def forget_entry(self, parent: int, name: bytes) -> None:
        self.entries.append((parent, name))


def empty() -> Tree:
    return Tree(TreeOptions(uid=0, gid=0))


def watched(tree: Tree) -> RecordingKernel:
    """Return what *tree* tells the kernel from now on."""
    kernel = tree.storages.kernel = RecordingKernel()
    return kernel


def build(*targets: TargetDescription) -> Tree:
    tree = empty()
    tree.add_targets(targets)
    return tree


def find(tree: Tree, path: str) -> Node:
    node: Node = tree.root
    for part in path.split("/"):
        assert isinstance(node, Directory)
        node = node.entries[part.encode()]
    return node


def names(tree: Tree, path: str = "") -> list[str]:
    node = find(tree, path) if path else tree.root
    assert isinstance(node, Directory)
    return [name.decode() for name, _ in node.listing()]


def links(tree: Tree, path: str) -> dict[str, str]:
    node = find(tree, path)
    assert isinstance(node, Directory)
    return {name.decode(): link.target.decode() for name, link in node.listing() if isinstance(link, Link)}


def test_a_target_looks_as_its_ancestor_did() -> None:
    tree = build(target())
    assert names(tree) == ["by-id", HOST]
    assert links(tree, f"{HOST}/target0") == {
        "hostname": HOST,
        "ip": "10.4.0.42",
        "port": "3260",
        "targetname": NAME,
        "vendor": "NetBSD",
        "product": "NetBSD iSCSI",
        "version": "0",
        "serial": "10000000",
    }
    assert {"storage", "lun0"} <= set(names(tree, f"{HOST}/target0"))


def test_every_logical_unit_has_a_directory() -> None:
    tree = build(target(controller("0"), disk("1"), disk("10"), disk("2")))
    luns = [name for name in names(tree, f"{HOST}/target0") if name.startswith("lun")]
    assert luns == ["lun0", "lun1", "lun2", "lun10"]
    assert links(tree, f"{HOST}/target0/lun1") == {
        "vendor": "NetBSD",
        "product": "NetBSD iSCSI",
        "version": "0",
        "serial": "10000001",
        "wwid": "naa.6001405000000001",
        "type": "disk",
        "blocksize": "512",
    }
    assert links(tree, f"{HOST}/target0/lun0") == {
        "vendor": "IET",
        "product": "Controller",
        "version": "0001",
        "type": "controller",
    }
    assert "storage" not in names(tree, f"{HOST}/target0/lun0")


def test_the_storage_of_the_target_is_that_of_its_lowest_numbered_disk() -> None:
    tree = build(target(disk("10"), disk("2"), controller("0")))
    storage = find(tree, f"{HOST}/target0/storage")
    assert storage is find(tree, f"{HOST}/target0/lun2/storage")
    assert isinstance(storage, StorageFile)
    assert storage.nlink == 2
    other = find(tree, f"{HOST}/target0/lun10/storage")
    assert isinstance(other, StorageFile)
    assert other.nlink == 1


def test_no_other_disk_takes_the_place_of_one_that_cannot_be_used() -> None:
    tree = build(target(disk("0", storage=None), disk("1")))
    assert "storage" not in names(tree, f"{HOST}/target0")
    assert "storage" in names(tree, f"{HOST}/target0/lun1")


def test_a_unit_that_is_no_disk_is_read_in_its_own_directory_only() -> None:
    tree = build(target(disk("0", device_type=5, type_name="cd-dvd")))
    assert "storage" not in names(tree, f"{HOST}/target0")
    assert "storage" in names(tree, f"{HOST}/target0/lun0")
    assert links(tree, f"{HOST}/target0")["vendor"] == "NetBSD"


def test_a_target_without_units_is_there() -> None:
    tree = empty()
    tree.add_targets([TargetDescription(HOST, "10.4.0.42", 3260, NAME)])
    assert names(tree, f"{HOST}/target0") == ["hostname", "ip", "port", "targetname"]


def test_what_a_unit_does_not_tell_has_no_link() -> None:
    tree = build(target(disk(vendor="", serial=None, wwid=None)))
    assert not {"vendor", "serial"} & set(names(tree, f"{HOST}/target0"))
    assert not {"vendor", "serial", "wwid"} & set(names(tree, f"{HOST}/target0/lun0"))
    assert names(tree, "by-id") == []


def test_units_are_found_by_their_worldwide_names() -> None:
    tree = build(target(disk("0"), disk("3")))
    assert links(tree, "by-id") == {
        "naa.6001405000000000": f"../{HOST}/target0/lun0",
        "naa.6001405000000003": f"../{HOST}/target0/lun3",
    }


def test_units_of_one_worldwide_name_are_told_apart_and_said(caplog: pytest.LogCaptureFixture) -> None:
    """One disk in two ways has two write buffers; of two disks none may be taken for the other."""
    wwid = "naa.6001405000000000"
    for order in ("a", "b"), ("b", "a"):
        caplog.clear()
        tree = build(*(target(host=host) for host in order))
        both = {f"{wwid}@a,target0,lun0": "../a/target0/lun0", f"{wwid}@b,target0,lun0": "../b/target0/lun0"}
        assert links(tree, "by-id") == both
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith(f"a/target0/lun0 and b/target0/lun0 have the same worldwide name {wwid}: ")
    caplog.clear()
    (late,) = tree.add_targets([target(host="c")])
    assert len(links(tree, "by-id")) == 3
    assert "a/target0/lun0 and b/target0/lun0 and 1 more have the same" in caplog.text
    caplog.clear()
    tree.replace_units(late, [])
    assert links(tree, "by-id") == both
    assert caplog.records == []  # that was said before


def test_a_name_by_id_is_plain_again_when_it_is_that_of_one_unit(caplog: pytest.LogCaptureFixture) -> None:
    tree = empty()
    (directory,) = tree.add_targets([target(disk("0"))])
    assert links(tree, "by-id") == {"naa.6001405000000000": f"../{HOST}/target0/lun0"}
    twin = disk("1", wwid="naa.6001405000000000")
    tree.replace_units(directory, [disk("0"), twin])
    assert set(links(tree, "by-id")) == {
        f"naa.6001405000000000@{HOST},target0,lun0",
        f"naa.6001405000000000@{HOST},target0,lun1",
    }
    assert "have the same worldwide name" in caplog.text
    tree.replace_units(directory, [disk("0")])
    assert links(tree, "by-id") == {"naa.6001405000000000": f"../{HOST}/target0/lun0"}


def test_many_worldwide_names_of_several_units_are_not_listed_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    units = [disk(str(number), wwid=f"naa.{number // 2}") for number in range(2 * (NOTES_A_LIST + 3))]
    build(target(*units))
    assert len(caplog.records) == NOTES_A_LIST + 1
    assert caplog.records[-1].getMessage() == "3 more worldwide names are those of several units"


def test_where_a_target_is_reached_now_is_shown_in_its_links() -> None:
    tree = empty()
    (directory,) = tree.add_targets([target(unit := disk("0"))])
    before = links(tree, f"{HOST}/target0")
    ip, port = find(tree, f"{HOST}/target0/ip"), find(tree, f"{HOST}/target0/port")
    kernel = watched(tree)
    tree.update(directory, replace(target(unit), address="2001:db8::1", port=3261))
    assert links(tree, f"{HOST}/target0") == before | {"ip": "2001:db8::1", "port": "3261"}
    assert set(kernel.attributes[:2]) == {ip.inode, port.inode}
    assert find(tree, f"{HOST}/target0/ip") is ip
    assert find(tree, f"{HOST}/target0/storage").inode in kernel.attributes
    kernel.attributes.clear()
    tree.update(directory, directory.target)
    assert not {ip.inode, port.inode} & set(kernel.attributes)


def test_a_unit_whose_texts_have_changed_keeps_its_inodes() -> None:
    """It is open, perhaps: its inode would be stale."""
    tree = empty()
    unit = disk("0")
    (directory,) = tree.add_targets([target(unit)])
    storage = find(tree, f"{HOST}/target0/storage")
    version = find(tree, f"{HOST}/target0/version")
    kernel = watched(tree)
    tree.replace_units(directory, [replace(unit, version="9", serial=None)])
    assert find(tree, f"{HOST}/target0/storage") is storage
    assert version.inode in kernel.attributes
    for place in f"{HOST}/target0", f"{HOST}/target0/lun0":
        assert links(tree, place)["version"] == "9"
        assert "serial" not in names(tree, place)
    tree.replace_units(directory, [unit])
    assert links(tree, f"{HOST}/target0")["serial"] == "10000000"


@pytest.mark.parametrize(
    ("target_name", "directory"),
    [
        ("iqn.2001-04.com.example:storage:disk1", "disk1"),
        ("iqn.2001-04.com.example", "iqn.2001-04.com.example"),
        ("eui.02004567A425678D", "eui.02004567A425678D"),
        ("iqn.2001-04.com.example:", "iqn.2001-04.com.example:"),
    ],
)
def test_a_target_is_called_by_the_last_part_of_its_name(target_name: str, directory: str) -> None:
    assert names(build(target(name=target_name)), HOST) == [directory]


def test_targets_that_would_collide_have_their_whole_names() -> None:
    tree = build(
        target(name="iqn.2001-04.a:x"), target(name="iqn.2001-04.b:x"), target(name="iqn.2001-04.a:y")
    )
    assert names(tree, HOST) == ["iqn.2001-04.a:x", "iqn.2001-04.b:x", "y"]


def test_one_name_on_two_hosts_is_no_collision() -> None:
    tree = build(target(host="a"), target(host="b"))
    assert names(tree, "a") == names(tree, "b") == ["target0"]


def test_the_same_name_at_several_ports_is_told_apart_by_the_port() -> None:
    tree = build(target(port=3261), target(port=3260), target(port=3260))
    assert names(tree, HOST) == [NAME, f"{NAME},3260", f"{NAME},3261"]


def test_a_target_that_comes_later_does_not_take_a_name_away() -> None:
    tree = build(target(name="iqn.2001-04.a:x"))
    before = find(tree, f"{HOST}/x").inode
    tree.add_targets([target(name="iqn.2001-04.b:x")])
    assert names(tree, HOST) == ["iqn.2001-04.b:x", "x"]
    assert find(tree, f"{HOST}/x").inode == before


def test_a_host_may_be_called_by_id() -> None:
    tree = build(target(host="by-id"))
    assert names(tree) == ["by%2Did", "by-id"]
    assert names(tree, "by%2Did") == ["target0"]
    assert links(tree, "by-id") == {"naa.6001405000000000": "../by%2Did/target0/lun0"}


@given(
    st.permutations([target(host=h, name=f"iqn.2001-04.{d}:x{i}") for h in "ab" for d in "cd" for i in "12"])
)
def test_names_and_inodes_do_not_depend_on_the_order_of_logins(targets: Sequence[TargetDescription]) -> None:
    def shape(tree: Tree) -> dict[int, tuple[str, ...]]:
        return {
            inode: tuple(names(tree, node.path.decode()))
            for inode, node in tree.nodes.items()
            if isinstance(node, Directory)
        }

    assert shape(build(*targets)) == shape(build(*sorted(targets, key=lambda t: (t.host, t.name))))


def test_units_come_and_go_and_the_others_keep_their_inodes() -> None:
    tree = empty()
    first, second, third = disk("0"), disk("1"), disk("2")
    (directory,) = tree.add_targets([target(first, second)])
    kept = find(tree, f"{HOST}/target0/lun1/storage")
    gone = find(tree, f"{HOST}/target0/lun0/storage")
    kernel = watched(tree)
    tree.replace_units(directory, [second, third])
    files = [find(tree, f"{HOST}/target0/lun{number}/storage") for number in (1, 2)]
    assert [node.storage for node in files if isinstance(node, StorageFile)] == [
        second.storage,
        third.storage,
    ]
    assert {node.inode for node in files} <= set(kernel.attributes)
    assert (directory.inode, b"lun0") in kernel.entries
    assert find(tree, f"{HOST}/target0/lun1/storage") is kept
    assert "lun0" not in names(tree, f"{HOST}/target0")
    assert gone.inode not in tree.nodes
    assert find(tree, f"{HOST}/target0/storage") is kept
    assert links(tree, f"{HOST}/target0")["serial"] == "10000001"
    assert links(tree, "by-id") == {
        "naa.6001405000000001": f"../{HOST}/target0/lun1",
        "naa.6001405000000002": f"../{HOST}/target0/lun2",
    }


def test_another_unit_under_the_same_number_is_another_inode() -> None:
    tree = empty()
    (directory,) = tree.add_targets([target(disk("0"))])
    before = find(tree, f"{HOST}/target0/storage")
    tree.replace_units(directory, [disk("0", wwid="naa.6001405000000009")])
    after = find(tree, f"{HOST}/target0/storage")
    assert after.inode != before.inode
    assert before.inode not in tree.nodes


def test_the_same_unit_in_a_new_session_keeps_its_inode_and_has_the_new_storage() -> None:
    tree = empty()
    (directory,) = tree.add_targets([target(disk("0"))])
    before = find(tree, f"{HOST}/target0/storage")
    storage = Memory(8192)
    tree.replace_units(directory, [disk("0", storage=storage)])
    after = find(tree, f"{HOST}/target0/storage")
    assert after is before
    assert isinstance(after, StorageFile)
    assert after.storage is storage


def test_a_unit_that_is_added_below_does_not_become_the_storage_of_the_target() -> None:
    tree = empty()
    one = disk("1")
    (directory,) = tree.add_targets([target(controller("0"), one)])
    storage = find(tree, f"{HOST}/target0/storage")
    tree.replace_units(directory, [disk("0"), one])
    assert find(tree, f"{HOST}/target0/storage") is storage


def test_the_first_disk_becomes_the_storage_of_a_target_that_had_none() -> None:
    tree = empty()
    (directory,) = tree.add_targets([target(controller("0"))])
    assert links(tree, f"{HOST}/target0")["vendor"] == "IET"
    tree.replace_units(directory, [controller("0"), disk("1")])
    assert find(tree, f"{HOST}/target0/storage") is find(tree, f"{HOST}/target0/lun1/storage")
    assert links(tree, f"{HOST}/target0")["vendor"] == "NetBSD"
    tree.replace_units(directory, [])
    assert names(tree, f"{HOST}/target0") == ["hostname", "ip", "port", "targetname"]


def test_nothing_is_left_of_what_was_removed() -> None:
    tree = empty()
    (directory,) = tree.add_targets([target(controller("0"), disk("1"))])
    before = len(tree.nodes)
    tree.replace_units(directory, [disk("5"), disk("6")])
    tree.replace_units(directory, [controller("0"), disk("1")])
    assert len(tree.nodes) == before


def test_directories_count_their_subdirectories() -> None:
    tree = build(target(disk("0"), disk("1")))
    directory = find(tree, f"{HOST}/target0")
    assert isinstance(directory, Directory)
    assert directory.nlink == 4


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("disk1", b"disk1"),
        ("NetBSD iSCSI", b"NetBSD iSCSI"),
        ("..", b"%2E."),
        (".", b"%2E"),
        ("", b"%"),
        ("a/../b", b"a%2F..%2Fb"),
        ("-rf", b"%2Drf"),
        ("50%", b"50%25"),
        ("\x1b[31mred", b"%1B%5B31mred"),
        ("a\nb\0c", b"a%0Ab%00c"),
        ("m\u00fcll", b"m%C3%BCll"),
        ("\u202etxt", b"%E2%80%AEtxt"),
        ("\udcff", b"%ED%B3%BF"),
    ],
)
def test_names_pass_an_allow_list(text: str, name: bytes) -> None:
    assert safe_name(text) == name


@given(st.text(st.characters(), max_size=400))
def test_every_text_becomes_a_harmless_component(text: str) -> None:
    name = safe_name(text)
    assert 1 <= len(name) <= MAX_NAME
    assert name not in (b".", b"..")
    assert set(name) <= set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 +,-.:=@_%~")
    assert name[:1] not in (b"-", b".", b" ")


@given(st.text(max_size=400), st.text(max_size=400))
def test_different_texts_become_different_components(one: str, other: str) -> None:
    assert (safe_name(one) == safe_name(other)) is (one == other)


def test_long_texts_that_begin_alike_stay_different() -> None:
    assert safe_name("x" * 300 + "1") != safe_name("x" * 300 + "2")
    assert len(safe_name("x" * 300)) == MAX_NAME


def test_hostile_text_reaches_no_name_and_no_link() -> None:
    evil = "../../etc/passwd\x1b[2J"
    unit = disk(vendor=evil, product=evil, version=evil, serial=evil, wwid=evil, type_name=evil)
    tree = build(target(unit, name=f"iqn.2001-04.com.example:{evil}", host=evil))
    for node in tree.nodes.values():
        if isinstance(node, Link):
            assert b"\x1b" not in node.target
            assert node.target.startswith(b"../%2E.%2F") or b"/" not in node.target
        elif isinstance(node, Directory):
            assert not any(b"/" in name or b"\x1b" in name for name in node.entries)
