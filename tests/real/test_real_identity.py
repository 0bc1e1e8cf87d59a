"""What becomes of units that are exchanged, go and come back while they are in use."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from support.mounting import ENVIRONMENT, Mounted, MountHosts, iscsifs, run, wait_until
from support.targets import Serve, Target, Tgt, Unit, make_image

NAME = "iqn.2026-01.example:disk"
MIB = 1 << 20

pytestmark = [pytest.mark.real, pytest.mark.mount]


def drop_sessions(tgt: Tgt, target: Target) -> None:
    """Have tgt close the connections of *target*."""
    tid = tgt.tid(target)
    session = connection = None
    for line in tgt.adm(op="show", mode="conn", tid=tid).splitlines():
        words = line.split()
        if words[:1] == ["Session:"]:
            session = words[1]
        elif words[:1] == ["Connection:"]:
            connection = words[1]
            assert session is not None
            tgt.adm(op="delete", mode="conn", tid=tid, sid=session, cid=connection)


def again(action: Callable[[], object]) -> None:
    """Do *action* until it succeeds: tgt refuses while commands are in work."""
    for _ in range(200):
        try:
            action()
            return
        except RuntimeError:
            time.sleep(0.01)
    action()


def access(mounted: Mounted) -> None:
    """Have the initiator send a command, past every cache."""
    with open(mounted.storage(), "rb", buffering=0) as storage:
        os.posix_fadvise(storage.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        storage.read(4096)


def fails() -> pytest.RaisesExc[OSError]:
    """What is done in this context has to fail with EIO."""
    return pytest.raises(OSError, match=os.strerror(errno.EIO))


def log_of(mounted: Mounted) -> list[str]:
    """Unmount, and return what the process in the foreground has said."""
    assert mounted.process is not None
    run("fusermount3", "-u", mounted.path)
    _, said = mounted.process.communicate(timeout=60)
    return str(said).splitlines()


def test_a_unit_that_is_deleted_and_made_again_under_load(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path, require: Callable[..., None]
) -> None:
    require("fio")
    image = make_image(tmp_path / "image", 64 * MIB)
    target = Target(NAME, [Unit(image)])
    tgt = serve(Tgt(tmp_path, target))
    mounted = mount_hosts(tgt.portal, foreground=True)
    fio = subprocess.Popen(
        [
            *("fio", "--name=load", f"--filename={mounted.storage()}", "--rw=randwrite", "--bs=4k"),
            *("--size=64M", "--ioengine=psync", "--numjobs=1", "--time_based", "--runtime=8", "--fsync=64"),
            *("--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_backlog=4096"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for _ in range(2):
        time.sleep(1.5)
        again(lambda: tgt.remove_unit(target, 1))
        time.sleep(1.5)
        tgt.add_unit(target, 1, target.units[0])
    output, _ = fio.communicate(timeout=60)
    assert fio.returncode == 0, output
    assert "err= 0" in output
    log = log_of(mounted)
    assert any("its commands wait until it is known what is there" in line for line in log)
    assert not [line for line in log if "lost" in line and "acknowledged" in line]
    assert len(log) <= 6, log
    assert mounted.status() == 0


def test_a_unit_that_is_deleted_for_good_is_few_lines_and_an_error(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    image = make_image(tmp_path / "image", 64 * MIB)
    target = Target(NAME, [Unit(image)])
    tgt = serve(Tgt(tmp_path, target))
    mounted = mount_hosts(tgt.portal, foreground=True)
    with open(mounted.storage(), "r+b", buffering=0) as storage:
        again(lambda: tgt.remove_unit(target, 1))
        for block in range(0, 400, 2):
            os.pwrite(storage.fileno(), b"w" * 4096, block * 4096)
        began = time.monotonic()
        with fails():
            os.fsync(storage.fileno())
        assert 8 < time.monotonic() - began < 15
    wait_until(lambda: not mounted.storage().exists(), "the unit is not shown any more")
    log = log_of(mounted)
    assert len(log) <= 6, log
    assert any("acknowledged writes are lost" in line for line in log), log


def test_a_dead_disk_costs_few_lines(serve: Serve, mount_hosts: MountHosts, tmp_path: Path) -> None:
    tgt = serve(Tgt(tmp_path, Target(NAME, [Unit(make_image(tmp_path / "image", 8 * MIB))])))
    mounted = mount_hosts("-o", "replacement_timeout=1,direct_io", tgt.portal, foreground=True)
    with open(mounted.storage(), "rb", buffering=0) as storage:
        tgt.kill()
        for block in range(200):
            with fails():
                os.pread(storage.fileno(), 4096, block * 4096)
    log = log_of(mounted)
    assert len(log) <= 8, log
    assert any("more like this in the last" in line for line in log), log


def test_what_a_login_and_unit_attentions_tell_is_shown_at_once(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    image, second = make_image(tmp_path / "image", 8 * MIB), make_image(tmp_path / "second", MIB)
    target = Target(NAME, [Unit(image, options={"product_rev": "1"})])
    tgt = serve(Tgt(tmp_path, target))
    mounted = mount_hosts(tgt.portal)
    storage, version = mounted.storage(), mounted.target() / "version"
    assert os.readlink(version) == "1"
    inode = storage.stat().st_ino

    def soon(condition: Callable[[], bool], what: str) -> None:
        access(mounted)
        wait_until(condition, what, 5)

    with open(storage, "rb", buffering=0) as opened:
        tgt.adm(op="update", mode="logicalunit", tid=1, lun=1, params="product_rev=2222,readonly=1")
        drop_sessions(tgt, target)
        soon(lambda: os.readlink(version) == "2222", "the revision")
        soon(lambda: storage.stat().st_mode & 0o777 == 0o400, "write protection")
        assert version.lstat().st_size == 4
        assert os.fstat(opened.fileno()).st_ino == storage.stat().st_ino == inode

        tgt.add_unit(target, 7, Unit(second))
        soon((mounted.target() / "lun7/storage").exists, "a new unit")

        os.truncate(image, 16 * MIB)
        again(lambda: tgt.remove_unit(target, 1))
        # Not the unit that was exchanged, but the others report that to tgt's initiators: it has to be used.
        reader = Thread(target=access, args=(mounted,))
        reader.start()
        time.sleep(0.5)
        tgt.add_unit(target, 1, Unit(image, options={"product_rev": "2222"}))
        reader.join(10)
        soon(lambda: storage.stat().st_size == 16 * MIB, "a new size")
        soon(lambda: storage.stat().st_mode & 0o777 == 0o600, "no write protection")
        assert os.fstat(opened.fileno()).st_size == 16 * MIB
    tgt.remove_unit(target, 7)
    access(mounted)
    wait_until(lambda: not (mounted.target() / "lun7").exists(), "a unit that has gone", 20)


def test_the_portal_of_the_session_in_force_is_shown(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    image = make_image(tmp_path / "image", MIB)
    target = Target(NAME, [Unit(image)])
    other = serve(Tgt(tmp_path, target, addresses=["127.0.0.2"]))  # it has the same disk
    tgt = serve(Tgt(tmp_path, target))
    mounted = mount_hosts(tgt.portal)
    ip, port = mounted.target() / "ip", mounted.target() / "port"
    assert (os.readlink(ip), os.readlink(port)) == ("127.0.0.1", str(tgt.port))
    assert mounted.storage().stat().st_size == MIB
    inode = mounted.storage().stat().st_ino
    tgt.update(target, "RedirectAddress", "127.0.0.2")
    tgt.update(target, "RedirectPort", str(other.port))
    tgt.update(target, "RedirectReason", "Temporary")
    drop_sessions(tgt, target)
    wait_until(lambda: os.readlink(ip) == "127.0.0.2", "where we were sent to", 8)
    assert os.readlink(port) == str(other.port)
    assert mounted.storage().stat().st_ino == inode
    access(mounted)


def test_two_ways_to_one_disk_are_said_and_told_apart(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    tgt = serve(
        Tgt(
            tmp_path,
            Target(NAME, [Unit(make_image(tmp_path / "image", MIB))]),
            addresses=["127.0.0.1", "127.0.0.2"],
        )
    )
    one, two = (f"iscsi://{portal}/{NAME}" for portal in tgt.portals)
    mounted = mount_hosts(one, two)
    names = sorted(os.listdir(mounted.path / "by-id"))
    places = [name.rpartition("@")[2] for name in names]  # LUN 0 is tgt's controller
    assert sorted(places) == [f"127.0.0.{host},disk,lun{lun}" for host in (1, 2) for lun in (0, 1)]
    (line,) = mounted.said.stderr.splitlines()
    assert "127.0.0.1/disk/lun1 and 127.0.0.2/disk/lun1 have the same worldwide name" in line


def test_after_a_long_absence_the_next_access_succeeds_when_the_target_is_back(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    tgt = serve(Tgt(tmp_path, Target(NAME, [Unit(make_image(tmp_path / "image", 8 * MIB))])))
    mounted = mount_hosts("-o", "replacement_timeout=2,direct_io", tgt.portal)
    with open(mounted.storage(), "rb", buffering=0) as storage:
        assert len(os.pread(storage.fileno(), 4096, 0)) == 4096
        tgt.kill()
        with fails():
            os.pread(storage.fileno(), 4096, 4096)
        time.sleep(12)  # the back-off is at its longest
        began = time.monotonic()
        with fails():
            os.pread(storage.fileno(), 4096, 4096)
        assert time.monotonic() - began < 5
        tgt.start()
        time.sleep(1.1)
        assert len(os.pread(storage.fileno(), 4096, 8192)) == 4096


ANONYMOUS = """
import sys, trio
from iscsifs.iscsi.names import Portal
from iscsifs.scsi.vpd import Page
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.server import Server

class Anonymous(Disk):
    def _vpd_pages(self):
        wanted = (Page.UNIT_SERIAL_NUMBER, Page.DEVICE_IDENTIFICATION)
        return {page: make for page, make in super()._vpd_pages().items() if page not in wanted}

async def main(name, port, size):
    disk = Anonymous.in_memory(size)
    async with Server([Device(name, {0: disk})], portals=[Portal("127.0.0.1", port)]) as server:
        print(server.portals[0].port, flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline):
            print(any(disk.store.read(0, size)), flush=True)

trio.run(main, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
"""


class AnonymousTarget:
    """A process with a disk of *size* zeros that does not say which it is."""

    def __init__(self, port: int = 0, size: int = 8 * MIB) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", ANONYMOUS, NAME, str(port), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ENVIRONMENT,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def was_written(self) -> bool:
        """Say whether anything was ever written."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline() == "True\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("size", [8 * MIB, 16 * MIB])
def test_a_disk_that_nothing_identifies_is_exchanged_while_it_is_written_to(
    mount_hosts: MountHosts, size: int, trust: bool
) -> None:
    """It is the same for all that can be seen, where *size* is."""
    old = AnonymousTarget()
    other: AnonymousTarget | None = None
    try:
        options = ["-o", "trust_unidentified"] if trust else []
        mounted = mount_hosts(*options, f"iscsi://127.0.0.1:{old.port}/{NAME}")
        (line,) = mounted.said.stderr.splitlines()
        assert "LUN 0: cannot be identified: it has no serial number and no worldwide name" in line
        with open(mounted.storage(), "r+b", buffering=0) as storage:
            os.pwrite(storage.fileno(), b"w" * 65536, 0)
            old.kill()
            other = AnonymousTarget(old.port, size)
            if trust and size == 8 * MIB:
                os.fsync(storage.fileno())
                assert other.was_written()
                return
            with fails():
                os.fsync(storage.fileno())
            assert not other.was_written()
    finally:
        old.kill()
        if other is not None:
            other.kill()


def test_an_option_that_is_misspelt_is_refused(tmp_path: Path) -> None:
    assert iscsifs("-o", "trust_unidentifed", "localhost", tmp_path).returncode == 2
