"""What users find under the mount point, with real targets."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from support.mounting import Mounted, MountHosts, iscsifs, run
from support.targets import Daemon, Istgt, Serve, Target, Tgt, Unit, make_image

NAME = "iqn.2026-01.example:disk"
MIB = 1 << 20

pytestmark = [pytest.mark.real, pytest.mark.mount]

real_only = pytest.mark.parametrize("kind", [Tgt, Istgt])


def links(directory: Path) -> dict[str, str]:
    return {entry.name: os.readlink(entry) for entry in directory.iterdir() if entry.is_symlink()}


def directories(directory: Path) -> list[str]:
    """Return the names of directories, without those that have only what the program tells of itself."""
    found = [entry.name for entry in directory.iterdir() if entry.is_dir() and not entry.is_symlink()]
    return sorted(name for name in found if name not in (".iscsifs", "session"))


def images(directory: Path, *sizes: int) -> list[Unit]:
    """Make disks that begin with their own number."""
    units = []
    for number, size in enumerate(sizes):
        path = make_image(directory / f"image{len(list(directory.glob('image*')))}", size)
        with path.open("r+b") as file:
            file.write(b"disk %d" % number)
        units.append(Unit(path))
    return units


def test_a_target_is_a_directory_and_a_disk_a_file(
    any_target: type[Daemon], serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    daemon = serve(any_target(tmp_path, Target(NAME, images(tmp_path, 3 * MIB, 2 * MIB, MIB))))
    mounted = mount_hosts(daemon.portal)
    assert directories(mounted.path) == ["127.0.0.1", "by-id"]
    assert directories(mounted.path / "127.0.0.1") == ["disk"]
    assert mounted.said.stdout == f"127.0.0.1: {daemon.portal},1 {NAME}\n"
    assert mounted.said.stderr == ""

    target = mounted.target()
    first = daemon.first_lun
    assert directories(target) == [f"lun{number}" for number in range(first + 3)]
    of_target = links(target)
    assert of_target["hostname"] == of_target["ip"] == "127.0.0.1"
    assert of_target["port"] == str(daemon.port)
    assert of_target["targetname"] == NAME
    disk = target / f"lun{first}"
    for link in ("vendor", "product", "version", "serial"):
        assert of_target[link] == os.readlink(disk / link) != ""
    assert links(disk)["type"] == "disk"
    assert links(disk)["blocksize"] == "512"

    wwids = links(mounted.path / "by-id")
    for number in range(3):
        unit = target / f"lun{first + number}"
        assert wwids[os.readlink(unit / "wwid")] == f"../127.0.0.1/disk/{unit.name}"
        status = (unit / "storage").stat()
        assert status.st_size == (3 - number) * MIB
        assert status.st_nlink == (2 if number == 0 else 1)
        assert stat.filemode(status.st_mode) == "-rw-------"
        assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
        assert status.st_blksize >= 4096
        with open(unit / "storage", "rb") as file:
            assert file.read(6) == b"disk %d" % number
    assert (target / "storage").samefile(disk / "storage")


def test_the_usual_programs_look_at_it(
    any_target: type[Daemon],
    serve: Serve,
    mount_hosts: MountHosts,
    require: Callable[..., None],
    tmp_path: Path,
) -> None:
    require("file", "blkid", "mkfs.ext4", "findmnt")
    units = images(tmp_path, 8 * MIB, MIB)
    run("mkfs.ext4", "-q", "-L", "the-label", units[0].image)
    daemon = serve(any_target(tmp_path, Target(NAME, units)))
    mounted = mount_hosts(daemon.portal)
    target = mounted.target()
    first = target / f"lun{daemon.first_lun}"
    found = run("find", mounted.path, "-type", "f", "-size", "+1", "-name", "storage").split()
    assert sorted(found) == sorted(map(str, [*target.glob("lun*/storage"), target / "storage"]))
    assert run("find", mounted.path, "-samefile", first / "storage").count("\n") == 2
    assert run("stat", "-c", "%F %s %h %a", mounted.storage()) == f"regular file {8 * MIB} 2 600\n"
    wwid = os.readlink(first / "wwid")
    by_id = mounted.path / "by-id" / wwid
    assert run("readlink", by_id) == f"../127.0.0.1/disk/{first.name}\n"
    assert run("readlink", "-f", by_id) == f"{first}\n"
    assert 'LABEL="the-label"' in run("blkid", "-p", mounted.storage())
    assert "ext4 filesystem" in run("file", "-s", mounted.storage())
    # A tree of devices has no room of its own: no disk is full, and nothing alarms.
    assert run("df", "-B1", "--output=source,size,avail,pcent", mounted.path).split()[-4:] == [
        *(daemon.portal, "0", "0", "-"),
    ]
    shown = run("findmnt", "-n", "-o", "SOURCE,FSTYPE", mounted.path).split()
    assert shown == [str(daemon.portal), "fuse.iscsifs"]
    with pytest.raises(PermissionError):
        (target / "new").touch()
    with pytest.raises(PermissionError):
        mounted.storage().unlink()


@real_only
def test_several_targets_of_one_host(
    kind: type[Daemon], serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    first, second, third = images(tmp_path, MIB, 2 * MIB, 3 * MIB)
    names = [NAME, "iqn.2026-01.example:tape", "iqn.2026-02.example.other:disk"]
    daemon = serve(
        kind(
            tmp_path,
            *(Target(name, [unit]) for name, unit in zip(names, (first, second, third), strict=True)),
        )
    )
    host = mount_hosts(daemon.portal).path / "127.0.0.1"
    # Two have the same name behind the last colon, so these have their whole names.
    assert directories(host) == [names[0], names[2], "tape"]
    assert (host / names[0] / "storage").stat().st_size == MIB
    assert (host / "tape/storage").stat().st_size == 2 * MIB
    assert (host / names[2] / "storage").stat().st_size == 3 * MIB


def test_many_targets_of_a_host_that_is_slow_to_log_in_to(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    """istgt is busy with each login for a second, and lets the others wait."""
    (unit,) = images(tmp_path, MIB)
    istgt = serve(Istgt(tmp_path, *(Target(f"{NAME}{number}", [unit]) for number in range(16))))
    mounted = mount_hosts(istgt.portal)
    assert len(directories(mounted.path / "127.0.0.1")) == 16


@real_only
def test_patterns_choose_targets(
    kind: type[Daemon], serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    (unit,) = images(tmp_path, MIB)
    names = [f"iqn.2026-01.example:{name}" for name in ("disk1", "disk2", "disk10", "other")]
    daemon = serve(kind(tmp_path, *(Target(name, [unit]) for name in names)))
    mounted = mount_hosts("-t", "*:disk?", "-t", names[3], daemon.portal)
    assert directories(mounted.path / "127.0.0.1") == ["disk1", "disk2", "other"]
    assert len(mounted.said.stdout.splitlines()) == 3
    listed = iscsifs("-D", "-t", "*:disk?", daemon.portal)
    assert listed.stdout.splitlines() == [f"127.0.0.1: {daemon.portal},1 {name}" for name in names[:2]]


@real_only
def test_several_hosts_in_one_mount(
    kind: type[Daemon], serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    daemons = [
        serve(kind(tmp_path, Target(f"iqn.2026-01.example:{name}", images(tmp_path, size))))
        for name, size in (("one", MIB), ("two", 2 * MIB))
    ]
    mounted = mount_hosts(*(daemon.portal for daemon in daemons))
    assert directories(mounted.path / "127.0.0.1") == ["one", "two"]
    assert [mounted.storage(name).stat().st_size for name in ("one", "two")] == [MIB, 2 * MIB]
    assert [os.readlink(mounted.target(name) / "port") for name in ("one", "two")] == [
        str(daemon.port) for daemon in daemons
    ]


def test_a_host_that_fails_does_not_keep_the_others_away(
    any_target: type[Daemon], serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    daemon = serve(any_target(tmp_path, Target(NAME, images(tmp_path, MIB))))
    mounted = mount_hosts("127.0.0.1:1", daemon.portal, status=6)
    (complaint,) = mounted.said.stderr.splitlines()
    assert complaint.startswith("iscsifs: 127.0.0.1:1: ")
    assert "Connection refused" in complaint
    assert mounted.storage().read_bytes()[:6] == b"disk 0"
    mounted.unmount()


@real_only
def test_discovery_prints_a_line_for_each_portal(kind: type[Daemon], serve: Serve, tmp_path: Path) -> None:
    units = images(tmp_path, MIB)
    names = [NAME, "iqn.2026-01.example:other"]
    targets = [Target(name, units) for name in names]
    daemon = serve(kind(tmp_path, *targets, addresses=["127.0.0.1", "::1"]))
    port = daemon.port

    def lines(host: str, *portals: str) -> list[str]:
        return [f"{host}: {portal},1 {name}" for name in names for portal in portals]

    v4, v6 = daemon.portals
    # The portal that was asked comes first; tgt tells only of those of the same address family.
    from_v4, from_v6 = ([v4], [v6]) if kind is Tgt else ([v4, v6], [v6, v4])
    done = iscsifs("-D", v4)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, lines("127.0.0.1", *from_v4), "")
    done = iscsifs("-D", "-p", port, "[::1]", "127.0.0.1", "-t", "*:disk")
    assert (done.returncode, done.stderr) == (0, "")
    of_disk = [line for line in lines("::1", *from_v6) + lines("127.0.0.1", *from_v4) if line.endswith(NAME)]
    assert done.stdout.splitlines() == of_disk
    done = iscsifs("-D", "-4", "-p", port, "localhost")
    assert (done.returncode, done.stdout.splitlines()) == (0, lines("localhost", *from_v4))


@real_only
@pytest.mark.parametrize("how", ["discovery", "static"])
def test_ipv6(kind: type[Daemon], serve: Serve, mount_hosts: MountHosts, tmp_path: Path, how: str) -> None:
    daemon = serve(kind(tmp_path, Target(NAME, images(tmp_path, MIB)), addresses=["::1"]))
    portal = f"[::1]:{daemon.port}"
    mounted = mount_hosts(portal if how == "discovery" else f"iscsi://{portal}/{NAME}")
    assert mounted.said.stdout == f"::1: {portal},1 {NAME}\n"
    (host,) = [name for name in directories(mounted.path) if name != "by-id"]
    assert links(mounted.path / host / "disk")["ip"] == "::1"
    assert mounted.storage(host=host).read_bytes()[:6] == b"disk 0"


def test_a_host_may_have_a_name(
    any_target: type[Daemon], serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    daemon = serve(any_target(tmp_path, Target(NAME, images(tmp_path, MIB))))
    mounted = mount_hosts("-4", "-p", daemon.port, "localhost")
    assert directories(mounted.path) == ["by-id", "localhost"]
    assert links(mounted.target(host="localhost"))["hostname"] == "localhost"
    assert links(mounted.target(host="localhost"))["ip"] == "127.0.0.1"


def test_a_target_may_be_given_without_discovery(
    any_target: type[Daemon], serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    daemon = serve(any_target(tmp_path, Target(NAME, images(tmp_path, MIB, 2 * MIB))))
    url = f"iscsi://{daemon.portal}/{NAME}"
    every = mount_hosts(url)
    assert directories(every.target()) == [f"lun{number}" for number in range(daemon.first_lun + 2)]
    every.unmount()
    one = mount_hosts(f"{url}/{daemon.first_lun + 1}")
    assert directories(one.target()) == [f"lun{daemon.first_lun + 1}"]
    assert one.storage().stat().st_size == 2 * MIB


def test_a_unit_of_4096_byte_blocks(
    any_target: type[Daemon], serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    image = make_image(tmp_path / "image", 4 * MIB)
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(image, block_size=4096)])))
    mounted = mount_hosts(daemon.portal)
    assert links(mounted.target() / f"lun{daemon.first_lun}")["blocksize"] == "4096"
    assert mounted.storage().stat().st_size == 4 * MIB
    with open(mounted.storage(), "r+b", buffering=0) as file:
        file.seek(4096 + 77)
        file.write(b"within a block")
    mounted.unmount()
    assert image.read_bytes() == bytes(4096 + 77) + b"within a block" + bytes(4 * MIB - 4096 - 77 - 14)


def cannot_be_written(mounted: Mounted) -> None:
    storage = mounted.storage()
    assert stat.S_IMODE(storage.stat().st_mode) == 0o400
    with pytest.raises(OSError, match="Read-only file system"):
        os.open(storage, os.O_RDWR)
    assert storage.read_bytes()[:6] == b"disk 0"


@pytest.mark.parametrize("option", ["-r", "-oro"])
def test_a_mount_may_be_read_only(
    any_target: type[Daemon], serve: Serve, mount_hosts: MountHosts, tmp_path: Path, option: str
) -> None:
    daemon = serve(any_target(tmp_path, Target(NAME, images(tmp_path, MIB))))
    mounted = mount_hosts(option, daemon.portal)
    cannot_be_written(mounted)
    assert "ro" in run("findmnt", "-n", "-o", "OPTIONS", mounted.path).split(",")


def test_a_unit_may_be_write_protected(
    any_target: type[Daemon], serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    (unit,) = images(tmp_path, MIB)
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(unit.image, read_only=True)])))
    mounted = mount_hosts(daemon.portal)
    cannot_be_written(mounted)
    mounted.unmount()


@real_only
def test_a_dvd_is_read(kind: type[Daemon], serve: Serve, mount_hosts: MountHosts, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(2 * MIB))
    daemon = serve(kind(tmp_path, Target(NAME, [Unit(image, "dvd", read_only=True, block_size=2048)])))
    mounted = mount_hosts(daemon.portal)
    drive = mounted.target() / f"lun{daemon.first_lun}"
    assert links(drive)["type"] == "cd-dvd"
    assert links(drive)["blocksize"] == "2048"
    assert stat.S_IMODE((drive / "storage").stat().st_mode) == 0o400
    assert (drive / "storage").stat().st_size == 2 * MIB
    assert (drive / "storage").read_bytes() == image.read_bytes()
    with open(drive / "storage", "rb", buffering=0) as file:
        file.seek(1234)
        assert file.read(3000) == image.read_bytes()[1234:4234]
    with pytest.raises(OSError, match="Read-only file system"):
        os.open(drive / "storage", os.O_WRONLY)
    assert not mounted.storage().exists()  # a target's own storage is a disk


def test_a_tape_is_a_directory_without_storage(serve: Serve, mount_hosts: MountHosts, tmp_path: Path) -> None:
    istgt = serve(Istgt(tmp_path, Target(NAME, [Unit(tmp_path / "tape", "tape")])))
    mounted = mount_hosts(istgt.portal)
    tape = mounted.target() / "lun0"
    assert links(tape)["type"] == "tape"
    assert links(tape)["product"] != ""
    assert not (tape / "storage").exists()
    assert not mounted.storage().exists()
    mounted.unmount()


@pytest.mark.parametrize("how", ["discovery", "static"])
def test_a_redirection_is_followed(serve: Serve, mount_hosts: MountHosts, tmp_path: Path, how: str) -> None:
    where, here = images(tmp_path, MIB, MIB)
    other = serve(Tgt(tmp_path, Target(NAME, [here]), addresses=["127.0.0.2"]))
    to_other = {
        "RedirectAddress": "127.0.0.2",
        "RedirectPort": str(other.port),
        "RedirectReason": "Temporary",
    }
    tgt = serve(Tgt(tmp_path, Target(NAME, [where], parameters=to_other)))
    mounted = mount_hosts(tgt.portal if how == "discovery" else f"iscsi://{tgt.portal}/{NAME}")
    assert mounted.said.stdout == f"127.0.0.1: 127.0.0.2:{other.port},1 {NAME}\n"
    assert links(mounted.target())["ip"] == "127.0.0.2"
    assert links(mounted.target())["port"] == str(other.port)
    assert links(mounted.target())["hostname"] == "127.0.0.1"
    assert mounted.storage().read_bytes()[:6] == b"disk 1"


def test_a_redirection_in_a_circle_is_told(serve: Serve, tmp_path: Path) -> None:
    disk = Target(NAME, images(tmp_path, MIB))
    tgt = serve(Tgt(tmp_path, disk, addresses=["127.0.0.1", "127.0.0.2"]))
    tgt.update(disk, "RedirectAddress", "127.0.0.2")
    tgt.update(disk, "RedirectPort", str(tgt.port))
    tgt.update(disk, "RedirectReason", "Temporary")
    (tmp_path / "mnt").mkdir()
    done = iscsifs(f"iscsi://{tgt.portal}/{NAME}", tmp_path / "mnt")
    assert done.returncode == 4
    (complaint,) = done.stderr.splitlines()
    assert "circle" in complaint
    assert f"127.0.0.2:{tgt.port}" in complaint
    assert not os.path.ismount(tmp_path / "mnt")


def test_names_are_the_same_at_every_mount(serve: Serve, mount_hosts: MountHosts, tmp_path: Path) -> None:
    names = [f"iqn.2026-01.example:{name}" for name in ("b", "a", "c")]
    tgt = serve(Tgt(tmp_path, *(Target(name, images(tmp_path, MIB, MIB, MIB)) for name in names)))
    listings = []
    for _ in range(3):
        mounted = mount_hosts(tgt.portal)
        listings.append(run("find", mounted.path, "-printf", "%P %l %i\\n"))
        mounted.unmount()
    assert listings[0] == listings[1] == listings[2]
    assert listings[0].count("by-id/") == 12
