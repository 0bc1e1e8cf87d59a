"""Durability as programs ask for it, on real mounts: synchronous writes, and losses that must be told."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from iscsifs.iscsi.pdu import ScsiCommand
from iscsifs.scsi.cdb import parse_rw
from iscsifs.scsi.sense import Sense
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.server import Server
from iscsifs.target.unit import (
    INVALID_FIELD_IN_CDB,
    MODE_CHANGED,
    SYNCHRONIZE_CODES,
    WRITE_CODES,
    WRITE_ERROR,
    Fault,
)
from support.descriptors import error_of, opened
from support.mounting import Mounted, MountHosts, run, wait_until
from support.proxy import Connection, Proxy, running
from support.proxy import Unit as WireUnit
from support.served import served
from support.targets import Daemon, Serve, Target, Unit, make_image

MIB = 1 << 20
PAGE = 4096
NAME = "iqn.2026-01.example:disk"
WRITES = 4

pytestmark = pytest.mark.mount


class Commands:
    """A fault of the proxy that only looks: the writes of the initiator and what makes them safe."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def __call__(self, connection: Connection, unit: WireUnit) -> bool:
        if isinstance(unit.pdu, ScsiCommand):
            if unit.pdu.cdb[0] in WRITE_CODES:
                self.log.append("WRITE FUA" if parse_rw(unit.pdu.cdb).fua else "WRITE")
            elif unit.pdu.cdb[0] in SYNCHRONIZE_CODES:
                self.log.append("SYNCHRONIZE CACHE")
        return True

    def take(self) -> list[str]:
        """Return the log up to now, and begin it anew."""
        log, self.log = self.log, []
        return log


def pwrite(flags: int, path: Path) -> None:
    with opened(path, os.O_WRONLY | flags) as descriptor:
        for number in range(WRITES):
            os.pwrite(descriptor, b"p" * PAGE, number * 4 * PAGE)


def pwrite_parts(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_DSYNC) as descriptor:
        for number in range(WRITES):
            os.pwrite(descriptor, b"part", number * 4 * PAGE + 100)


def fio(engine: str, direct: int, path: Path) -> None:
    job = f"--name=sync --filename={path} --ioengine={engine} --direct={direct} --sync=dsync --rw=write:12k"
    run(
        "fio",
        *job.split(),
        "--bs=4k",
        "--iodepth=1",
        f"--number_ios={WRITES}",
        "--size=64k",
        "--allow_file_create=0",
    )


WAYS: dict[str, Callable[[Path], None]] = {
    "O_DSYNC": partial(pwrite, os.O_DSYNC),
    "O_SYNC": partial(pwrite, os.O_SYNC),
    "parts of blocks": pwrite_parts,
    "psync O_DIRECT": partial(fio, "psync", 1),
    "libaio O_DIRECT": partial(fio, "libaio", 1),
    "io_uring O_DIRECT": partial(fio, "io_uring", 1),
    "io_uring": partial(fio, "io_uring", 0),
}


@pytest.mark.real
@pytest.mark.parametrize("options", ["rw", "direct_io", "writebehind=0", "direct_io,writebehind=0"])
def test_each_synchronous_write_is_on_stable_storage_when_it_returns(
    any_target: type[Daemon],
    options: str,
    tmp_path: Path,
    serve: Serve,
    mount_hosts: MountHosts,
    require: Callable[..., None],
) -> None:
    require("fio")
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(make_image(tmp_path / "disk.img", MIB))])))
    with running(partial(Proxy, daemon.port)) as (proxy, _):
        proxy.fault = commands = Commands()
        mounted = mount_hosts(f"-o{options}", f"iscsi://{proxy.portal}/{NAME}")
        for way, write in WAYS.items():
            commands.take()
            write(mounted.storage())
            log = commands.take()
            writes = log.count("WRITE FUA") + log.count("WRITE")
            assert writes == WRITES, (way, log)
            for place, command in enumerate(log):
                if command == "WRITE":  # the next one is sent when this one has returned
                    assert log[place + 1 : place + 2] == ["SYNCHRONIZE CACHE"], (way, log)
        pwrite(0, mounted.storage())
        assert "WRITE FUA" not in commands.take()
        mounted.unmount()


@pytest.mark.parametrize("options", ["sync", "sync,direct_io"])
def test_a_mount_with_sync_makes_every_write_synchronous(mount_hosts: MountHosts, options: str) -> None:
    with served() as (disk, url):
        mounted = mount_hosts(f"-o{options}", url)
        with opened(mounted.storage()) as descriptor:
            os.pwrite(descriptor, b"s" * PAGE, 0)
            disk.drop_cache()
            assert disk.store.read(0, PAGE) == b"s" * PAGE
        mounted.unmount()


def test_synchronous_writes_survive_a_loss_of_power_and_others_are_made_up_for(
    mount_hosts: MountHosts,
) -> None:
    with served() as (disk, url):
        mounted = mount_hosts("-odirect_io", url)
        with (
            opened(mounted.storage()) as plain,
            opened(mounted.storage(), os.O_RDWR | os.O_DSYNC) as sync,
        ):
            for number in range(4):
                os.pwrite(plain, b"p" * PAGE, number * PAGE)
                os.pwrite(sync, b"s" * PAGE, number * PAGE + 512)
                disk.drop_cache()
                assert disk.store.read(number * PAGE + 512, PAGE) == b"s" * PAGE
            os.fsync(plain)
            assert disk.store.read(0, 512) == b"p" * 512
        # A loss of the cache has a process of ours open the disk for a moment; see `fs.platform.pages`.
        wait_until(lambda: run("fusermount3", "-u", mounted.path, check=False) == "", "it is not in use")
        mounted.wait()


class WithFua(Fault):
    """Has every WRITE with FUA refused, by a unit that says DPOFUA."""

    refused = 0

    def applies(self, cdb: bytes) -> bool:
        refuses = cdb[0] in WRITE_CODES and parse_rw(cdb).fua
        self.refused += refuses
        return refuses


def test_a_unit_that_refuses_fua_is_synchronised_instead(mount_hosts: MountHosts) -> None:
    with served() as (disk, url):
        disk.faults.append(fault := WithFua(INVALID_FIELD_IN_CDB))
        mounted = mount_hosts("-odirect_io", url, foreground=True)
        with opened(mounted.storage(), os.O_RDWR | os.O_DSYNC) as sync:
            for number in range(4):
                os.pwrite(sync, b"s" * PAGE, number * PAGE)
                disk.drop_cache()
                assert disk.store.read(number * PAGE, PAGE) == b"s" * PAGE
        assert fault.refused == 1
        unmount(mounted)
        assert mounted.status() == 0


@pytest.mark.parametrize("codes", [WRITE_CODES, SYNCHRONIZE_CODES], ids=["write", "flush"])
def test_a_synchronous_write_that_fails_fails_to_its_caller(
    mount_hosts: MountHosts, codes: frozenset[int]
) -> None:
    with served() as (disk, url):
        disk.faults.append(WithFua(INVALID_FIELD_IN_CDB))
        disk.faults.append(fault := Fault(WRITE_ERROR, codes=codes))
        mounted = mount_hosts("-odirect_io", url, foreground=True)
        with opened(mounted.storage(), os.O_RDWR | os.O_DSYNC) as sync:
            assert error_of(lambda: os.pwrite(sync, b"s" * PAGE, 0)) == "EIO"
            disk.faults.remove(fault)
            os.fsync(sync)
        unmount(mounted)
        assert mounted.status() == 0  # the writer was told


@contextmanager
def lossy(mount_hosts: MountHosts, *, sense: Sense = WRITE_ERROR) -> Iterator[tuple[Disk, Mounted]]:
    """Give a mounted disk that loses what is written to its first page."""
    with served() as (disk, url):
        disk.faults.append(Fault(sense, codes=WRITE_CODES, blocks=range(8)))
        yield disk, mount_hosts(url, foreground=True)


def unmount(mounted: Mounted) -> None:
    """Unmount; for a moment after the mount the program itself is in there, to raise the kernel's limits."""

    def is_done() -> bool:
        return subprocess.run(["fusermount3", "-u", mounted.path], check=False).returncode == 0

    wait_until(is_done, "it is unmounted", 10)


def lose(mounted: Mounted, descriptor: int) -> None:
    """Write what will be lost, and return when it is."""
    os.pwrite(descriptor, b"n" * PAGE, 0)
    assert mounted.process is not None
    assert mounted.process.stderr is not None
    assert "acknowledged writes are lost" in mounted.process.stderr.readline()


def sync(path: Path) -> bool:
    """Run sync(1) on *path*, which opens it to be read; return whether it says that all is well."""
    return subprocess.run(["sync", path], check=False, stderr=subprocess.DEVNULL).returncode == 0


def close_a_duplicate(descriptor: int, path: Path) -> None:
    assert error_of(lambda: os.close(os.dup(descriptor))) == "EIO"


def end_a_child(descriptor: int, path: Path) -> None:
    if not (pid := os.fork()):
        os._exit(0)
    os.waitpid(pid, 0)


def run_a_program(descriptor: int, path: Path) -> None:
    subprocess.run([sys.executable, "-c", ""], check=True, pass_fds=[descriptor])


def read_it(descriptor: int, path: Path) -> None:
    with open(path, "rb") as file:
        file.read(1)


def write_elsewhere(descriptor: int, path: Path) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.seek(MIB)
        file.write(b"x")
        assert error_of(file.close) == "EIO"  # to a writer that did nothing wrong, but nobody has seen it yet


TAKERS = [close_a_duplicate, end_a_child, run_a_program, read_it, write_elsewhere]


@pytest.mark.parametrize("taker", TAKERS)
def test_a_close_takes_the_report_from_nobody(
    mount_hosts: MountHosts, taker: Callable[[int, Path], None]
) -> None:
    with lossy(mount_hosts) as (_, mounted):
        with opened(mounted.storage()) as descriptor:
            lose(mounted, descriptor)
            taker(descriptor, mounted.storage())
            assert error_of(lambda: os.fsync(descriptor)) == "EIO"
            os.fsync(descriptor)
        unmount(mounted)
        assert mounted.status() == 0


@pytest.mark.parametrize("taker", TAKERS)
def test_a_close_is_not_told_in_the_eyes_of_the_exit_status(
    mount_hosts: MountHosts, taker: Callable[[int, Path], None]
) -> None:
    with lossy(mount_hosts) as (_, mounted):
        with opened(mounted.storage()) as descriptor:
            lose(mounted, descriptor)
            taker(descriptor, mounted.storage())
        unmount(mounted)
        assert mounted.status() == 7


def test_a_copy_and_then_sync_of_the_file_tells(mount_hosts: MountHosts) -> None:
    with lossy(mount_hosts) as (_, mounted):
        said = run(
            "dd", "if=/dev/zero", f"of={mounted.storage()}", "bs=4k", "count=1", "conv=notrunc", check=False
        )
        assert "Input/output error" in said  # by its close, which many programs do not look at
        assert not sync(mounted.storage())
        assert sync(mounted.storage())
        unmount(mounted)
        assert mounted.status() == 0


def test_the_losses_of_a_writer_that_was_killed_are_told_to_the_next_fsync(mount_hosts: MountHosts) -> None:
    program = "import os, sys, time; os.pwrite(os.open(sys.argv[1], 2), bytes(4096), 0); time.sleep(99)"
    with lossy(mount_hosts) as (_, mounted):
        with subprocess.Popen([sys.executable, "-c", program, mounted.storage()]) as writer:
            assert mounted.process is not None
            assert mounted.process.stderr is not None
            assert "acknowledged writes are lost" in mounted.process.stderr.readline()
            writer.kill()
        assert not sync(mounted.storage())
        assert sync(mounted.storage())
        unmount(mounted)
        assert mounted.status() == 0


@pytest.mark.parametrize("says_so", [True, False], ids=["2A/01", "27/00 alone"])
def test_a_unit_that_becomes_write_protected_owes_its_fsyncs(mount_hosts: MountHosts, says_so: bool) -> None:
    with served() as (disk, url):
        mounted = mount_hosts(url, foreground=True)
        storage = mounted.storage()
        with opened(storage) as descriptor:
            os.pwrite(descriptor, b"s" * PAGE, 0)
            os.fsync(descriptor)
            disk.read_only = True
            if says_so:
                disk.establish_attention(MODE_CHANGED)
            os.pwrite(descriptor, b"n" * PAGE, 0)
            if says_so:
                wait_until(lambda: storage.stat().st_mode & 0o777 == 0o400, "the mode is 0400", 10)
            for _ in range(2):
                assert error_of(lambda: os.fsync(descriptor)) == "EROFS"
                os.pwrite(descriptor, b"n" * PAGE, 0)
            # A process that is begun closes its copy of the descriptor, and waits for the target, which is in
            # this process.
            assert error_of(lambda: os.close(os.dup(descriptor))) == "EROFS"
            assert not sync(storage)
            assert sync(storage)
            assert error_of(lambda: os.fsync(descriptor)) == "EROFS"
            disk.read_only = False
            disk.establish_attention(MODE_CHANGED)
            os.pwrite(descriptor, b"w" * PAGE, 0)
            os.fsync(descriptor)
            wait_until(lambda: storage.stat().st_mode & 0o777 == 0o600, "the mode is 0600", 10)
        assert disk.store.read(0, PAGE) == b"w" * PAGE
        unmount(mounted)
        assert mounted.status() == 0


def test_a_unit_that_comes_back_write_protected_owes_its_fsyncs(mount_hosts: MountHosts) -> None:
    disk = Disk.in_memory(MIB)
    with running(partial(Server, [Device(NAME, {0: disk})])) as (server, call):
        mounted = mount_hosts(f"iscsi://{server.portals[0]}/{NAME}", foreground=True)
        with opened(mounted.storage()) as descriptor:

            def come_back() -> None:
                server.drop_connections()
                disk.read_only = True

            call(come_back)
            os.pwrite(descriptor, b"n" * PAGE, 0)
            wait_until(lambda: mounted.storage().stat().st_mode & 0o777 == 0o400, "the mode is 0400", 10)
            assert error_of(lambda: os.fsync(descriptor)) == "EROFS"
            os.fsync(descriptor)
        unmount(mounted)
        assert mounted.status() == 0
