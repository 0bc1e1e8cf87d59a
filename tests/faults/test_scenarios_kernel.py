"""Faults of a disk as programs and file systems above the kernel see them."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iscsifs.scsi.sense import Sense
from iscsifs.target.unit import (
    READ_CODES,
    READ_ERROR,
    SPACE_ALLOCATION_FAILED,
    SYNCHRONIZE_CODES,
    WRITE_CODES,
    WRITE_ERROR,
    WRITE_PROTECTED,
    Fault,
)
from support.descriptors import error_of, opened
from support.memory_site import FailedFlush
from support.mounting import Mounted, MountHosts, run, wait_until
from support.served import served
from support.targets import Serve, Target, Tgt, Unit, make_image

MIB = 1 << 20
PAGE = 4096
SIZE = 16 * MIB
NAME = "iqn.2026-01.example:disk"

pytestmark = pytest.mark.mount

BEHIND = pytest.mark.parametrize("behind", [1, 0], ids=["behind", "through"])


def sibling_is_served(mounted: Mounted) -> None:
    with opened(mounted.target() / "lun1/storage") as descriptor:
        mark = os.urandom(PAGE)
        os.pwrite(descriptor, mark, 0)
        os.fsync(descriptor)
        assert os.pread(descriptor, PAGE, 0) == mark


def test_13_missing_data_are_eio_and_not_zeros(mount_hosts: MountHosts) -> None:
    with served() as (disk, url):
        disk.store.write(0, b"x" * SIZE)
        mounted = mount_hosts(url)
        disk.faults.append(Fault(status=0, codes=READ_CODES, cut=PAGE))
        with opened(mounted.storage()) as descriptor:
            assert error_of(lambda: os.pread(descriptor, PAGE, 0)) == "EIO"
            sibling_is_served(mounted)
            disk.faults.clear()
            assert os.pread(descriptor, PAGE, 0) == b"x" * PAGE
        mounted.unmount()


def test_17_one_block_that_cannot_be_read_costs_one_page(mount_hosts: MountHosts) -> None:
    with served() as (disk, url):
        disk.store.write(0, b"x" * SIZE)
        mounted = mount_hosts(url, foreground=True)
        bad = 100
        disk.faults.append(Fault(READ_ERROR, codes=READ_CODES, blocks=range(bad * 8 + 3, bad * 8 + 4)))
        with opened(mounted.storage()) as descriptor:
            # The kernel reads ahead, and so over the bad block.
            for page in range(256):
                if page == bad:
                    assert error_of(lambda: os.pread(descriptor, PAGE, bad * PAGE)) == "EIO"
                else:
                    assert os.pread(descriptor, PAGE, page * PAGE) == b"x" * PAGE
        sibling_is_served(mounted)
        mounted.unmount()
        assert mounted.process is not None
        assert mounted.process.stderr is not None
        assert f"unrecovered read error, LBA {bad * 8 + 3}" in mounted.process.stderr.read()


@pytest.mark.parametrize(
    ("sense", "name", "behind"),
    [
        (SPACE_ALLOCATION_FAILED, "ENOSPC", 1),
        (WRITE_PROTECTED, "EROFS", 0),
        (WRITE_PROTECTED, "EROFS", 1),
        (WRITE_ERROR, "EIO", 0),
    ],
    ids=["ENOSPC-behind", "EROFS-through", "EROFS-behind", "EIO-through"],
)
def test_17_18_19_a_write_that_fails_has_the_errno_of_its_reason(
    mount_hosts: MountHosts, sense: Sense, name: str, behind: int
) -> None:
    with served() as (disk, url):
        disk.store.write(0, b"o" * PAGE)
        mounted = mount_hosts(f"-owritebehind={behind}", url)
        disk.faults.append(Fault(sense, codes=WRITE_CODES, blocks=range(8)))
        with opened(mounted.storage()) as one, opened(mounted.storage()) as other:
            if behind:
                os.pwrite(one, b"n" * PAGE, 0)
                assert error_of(lambda: os.fsync(one)) == name
                assert error_of(lambda: os.fsync(other)) == name
            else:
                assert error_of(lambda: os.pwrite(one, b"n" * PAGE, 0)) == name
            os.fsync(one)
            os.fsync(other)
            sibling_is_served(mounted)
            disk.faults.clear()
            os.pwrite(one, b"s" * PAGE, PAGE)
            os.fsync(one)
        assert disk.store.read(0, 2 * PAGE) == b"o" * PAGE + b"s" * PAGE
        with opened(mounted.storage(), os.O_RDONLY) as descriptor:
            assert os.pread(descriptor, PAGE, 0) == b"o" * PAGE
        mounted.unmount()


def test_22_an_fsync_that_fails_is_eio_and_the_next_one_makes_up_for_it(mount_hosts: MountHosts) -> None:
    with served() as (disk, url):
        mounted = mount_hosts(url)
        with opened(mounted.storage()) as descriptor:
            os.pwrite(descriptor, b"n" * PAGE, 0)
            disk.faults.append(FailedFlush(disk))
            assert error_of(lambda: os.fsync(descriptor)) == "EIO"
            os.fsync(descriptor)
            assert disk.store.read(0, PAGE) == b"n" * PAGE
        mounted.unmount()


@contextmanager
def on_loop(backing: Path, mount_point: Path, kind: str, *options: str) -> Iterator[Path]:
    """Mount the file system in *backing* through a loop device; give the device."""
    mount_point.mkdir(exist_ok=True)
    device = run("losetup", "--find", "--show", backing).strip()
    try:
        run("mount", "-t", kind, *options, device, mount_point)
        try:
            yield Path(device)
        finally:
            run("umount", mount_point, check=False)
    finally:
        run("losetup", "--detach", device)
        # Others may have it by now.
        wait_until(lambda: str(backing) not in run("losetup", "-lnO", "BACK-FILE"), "it is detached", 10)


@pytest.mark.parametrize(
    ("make", "size"), [("mkfs.ext4", 32 * MIB), ("mkfs.xfs", 320 * MIB)], ids=["ext4", "xfs"]
)
def test_22_a_file_system_notices_one_flush_that_fails(
    mount_hosts: MountHosts,
    require: Callable[..., None],
    require_root: None,
    tmp_path: Path,
    make: str,
    size: int,
) -> None:
    require(make, "losetup")
    kind = make.removeprefix("mkfs.")
    with served(size) as (disk, url):
        mounted = mount_hosts(url)
        run(make, "-q", mounted.storage())
        files = tmp_path / "files"
        with on_loop(mounted.storage(), files, kind):
            (files / "safe").write_bytes(b"safe" * 1000)
            with opened(files / "safe") as descriptor:
                os.fsync(descriptor)
            with opened(files / "new", os.O_CREAT | os.O_RDWR) as descriptor:
                os.write(descriptor, b"new" * 1000)
                fault = Fault(WRITE_ERROR, codes=SYNCHRONIZE_CODES, times=1)
                disk.faults.append(fault)
                assert error_of(lambda: os.fsync(descriptor)) == "EIO"
                assert fault.times == 0
        # The file system has stopped itself or not; what was safe before is safe.
        with on_loop(mounted.storage(), files, kind):
            assert (files / "safe").read_bytes() == b"safe" * 1000
        mounted.unmount()


@pytest.mark.real
@BEHIND
def test_24_a_writer_that_is_killed_leaves_old_or_new_blocks_and_nothing_in_the_way(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path, behind: int
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"o" * SIZE)
    tgt = serve(Tgt(tmp_path, Target(NAME, [Unit(image)])))
    mounted = mount_hosts(f"-owritebehind={behind}", f"iscsi://{tgt.portal}/{NAME}/1")
    source = tmp_path / "source"
    source.write_bytes(b"n" * SIZE)
    for delay in 0.0, 0.01, 0.03:
        words = ["dd", f"if={source}", f"of={mounted.storage()}", "bs=64k", "conv=notrunc", "status=none"]
        writer = subprocess.Popen(words)
        wait_until(lambda: image.read_bytes()[:512] == b"n" * 512, "it has begun")
        time.sleep(delay)
        writer.kill()
        assert writer.wait(10) in (-signal.SIGKILL, 0)
    with opened(mounted.storage()) as descriptor:
        os.pwrite(descriptor, b"s" * PAGE, PAGE)
        os.fsync(descriptor)
        contents = os.pread(descriptor, SIZE, 0)
    assert image.read_bytes() == contents
    assert contents[PAGE : 2 * PAGE] == b"s" * PAGE
    blocks = {contents[start : start + 512] for start in range(0, SIZE, 512)}
    assert blocks <= {b"o" * 512, b"n" * 512, b"s" * 512}
    mounted.unmount()


@pytest.mark.real
@BEHIND
def test_25_a_daemon_that_is_killed_leaves_a_file_system_that_can_be_repaired(
    serve: Serve,
    mount_hosts: MountHosts,
    require: Callable[..., None],
    require_root: None,
    tmp_path: Path,
    behind: int,
) -> None:
    require("mkfs.ext4", "e2fsck", "losetup")
    image = make_image(tmp_path / "image", 64 * MIB)
    tgt = serve(Tgt(tmp_path, Target(NAME, [Unit(image)])))
    mounted = mount_hosts(f"-owritebehind={behind}", f"iscsi://{tgt.portal}/{NAME}/1")
    run("mkfs.ext4", "-q", mounted.storage())
    files = tmp_path / "files"
    safe = {f"safe{number}": os.urandom(100_000) for number in range(8)}
    with on_loop(mounted.storage(), files, "ext4"):
        for name, contents in safe.items():
            (files / name).write_bytes(contents)
            with opened(files / name) as descriptor:
                os.fsync(descriptor)
        with opened(files, os.O_RDONLY) as descriptor:
            os.fsync(descriptor)
        for number in range(50):
            (files / f"unsafe{number}").write_bytes(os.urandom(50_000))
        mounted.signal(signal.SIGKILL)
        wait_until(lambda: not mounted.pids, "it is dead")
        assert error_of(lambda: os.listdir(mounted.path)) in ("ENOTCONN", "ECONNABORTED")
    # A journal that is replayed is what 1 stands for; the second look finds nothing.
    assert subprocess.run(["e2fsck", "-fy", image], capture_output=True, check=False).returncode in (0, 1)
    assert subprocess.run(["e2fsck", "-fn", image], capture_output=True, check=False).returncode == 0
    with on_loop(image, files, "ext4"):
        for name, contents in safe.items():
            assert (files / name).read_bytes() == contents
    run("fusermount3", "-u", "-z", mounted.path)
    again = mount_hosts(f"iscsi://{tgt.portal}/{NAME}/1")
    with on_loop(again.storage(), files, "ext4"):
        assert (files / "safe0").read_bytes() == safe["safe0"]
    again.unmount()
