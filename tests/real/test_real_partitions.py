"""Partitions as files, through real mounts of real disks: the bytes of the image are compared."""

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.mounting import Mounted, MountHosts, run, wait_until
from support.targets import Serve, Target, Tgt, Unit, make_image

NAME = "iqn.2001-04.com.example:disk"
MIB = 1 << 20
SIZE = 32 * MIB
TABLE = "label: gpt\nstart=1MiB, size=8MiB, name=first\nstart=9MiB, size=12MiB\n"
START, LENGTH = MIB, 8 * MIB
"""The first partition."""

pytestmark = [pytest.mark.real, pytest.mark.mount]


def sfdisk(path: Path, table: str) -> None:
    done = subprocess.run(
        ["sfdisk", "--quiet", path], input=table, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


class PartitionedDisk:
    """A disk of old bytes with two partitions, mounted."""

    def __init__(self, image: Path, mounted: Mounted) -> None:
        self.image = image
        self.mounted = mounted
        self.directory = mounted.target() / "lun1"
        self.before = image.read_bytes()

    def part(self, number: int) -> Path:
        return self.directory / f"part{number}"

    @property
    def names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.directory) if name.startswith("part"))

    def check_others(self) -> None:
        """Whatever was done to the first partition, nothing else has changed."""
        now = self.image.read_bytes()
        assert now[:START] == self.before[:START]
        assert now[START + LENGTH :] == self.before[START + LENGTH :]

    def content(self) -> bytes:
        return self.image.read_bytes()[START : START + LENGTH]


@pytest.fixture
def disk(
    tmp_path: Path, serve: Serve, mount_hosts: MountHosts, require: Callable[..., None]
) -> PartitionedDisk:
    require("sfdisk")
    image = make_image(tmp_path / "disk.img", SIZE)
    image.write_bytes(b"old bytes." * (SIZE // 10) + b"old byte"[: SIZE % 10])
    sfdisk(image, TABLE)
    tgt = serve(Tgt(tmp_path, Target(NAME, [Unit(image)])))
    return PartitionedDisk(image, mount_hosts(tgt.portal))


def test_partitions_are_files_and_have_names(disk: PartitionedDisk) -> None:
    assert disk.names == ["part1", "part2"]
    assert disk.part(1).stat().st_size == LENGTH
    assert disk.part(2).stat().st_size == 12 * MIB
    assert disk.part(1).read_bytes() == disk.content()
    links = disk.mounted.path / "by-id"
    found = sorted(name for name in os.listdir(links) if name.endswith(("-part1", "-part2")))
    assert len(found) == 2
    assert (links / found[0]).stat().st_ino == disk.part(1).stat().st_ino


def test_an_image_is_written_into_a_partition(disk: PartitionedDisk, tmp_path: Path) -> None:
    source = tmp_path / "image"
    source.write_bytes(os.urandom(LENGTH))
    run("dd", f"if={source}", f"of={disk.part(1)}", "bs=1M", "conv=fsync")
    assert disk.content() == source.read_bytes()
    disk.check_others()


def test_holes_of_an_image_are_zeros_and_the_rest_stays(disk: PartitionedDisk, tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    with source.open("xb") as file:
        file.seek(MIB + 1000)
        file.write(b"new")
        file.truncate(5 * MIB + 100)
    run("cp", source, disk.part(1))
    run("sync", disk.part(1))
    old = disk.before[START + 5 * MIB + 100 : START + LENGTH]
    assert disk.content() == source.read_bytes() + old
    disk.check_others()


def test_a_write_that_does_not_fit_finds_no_space(disk: PartitionedDisk) -> None:
    said = run("dd", "if=/dev/zero", f"of={disk.part(1)}", "bs=1M", "conv=fsync", check=False)
    assert "No space left on device" in said
    assert disk.content() == bytes(LENGTH)
    disk.check_others()
    fd = os.open(disk.part(1), os.O_WRONLY)
    try:
        assert os.pwrite(fd, b"12345", LENGTH - 2) == 2
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            os.pwrite(fd, b"3", LENGTH)
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            os.ftruncate(fd, LENGTH + 1)
    finally:
        os.close(fd)
    disk.check_others()


def test_a_file_system_lives_in_a_partition(
    disk: PartitionedDisk, require: Callable[..., None], tmp_path: Path
) -> None:
    require("mkfs.ext4", "e2fsck", "debugfs")
    run("mkfs.ext4", "-q", disk.part(1))
    source = tmp_path / "hello"
    source.write_text("hello\n")
    run("debugfs", "-w", "-R", f"write {source} hello", disk.part(1))
    run("e2fsck", "-f", "-n", disk.part(1))
    copy = tmp_path / "copy"
    run("dd", f"if={disk.image}", f"of={copy}", "bs=1M", f"skip={START // MIB}", f"count={LENGTH // MIB}")
    assert run("debugfs", "-R", "cat hello", copy).endswith("hello\n")
    disk.check_others()


def test_a_new_table_brings_its_partitions_within_a_second(disk: PartitionedDisk) -> None:
    inode = disk.part(1).stat().st_ino
    sfdisk(
        disk.directory / "storage", "label: gpt\nstart=1MiB, size=4MiB\nstart=9MiB, size=8MiB\nsize=2MiB\n"
    )
    wait_until(lambda: disk.names == ["part1", "part2", "part3"], "they are listed", 1.0)
    wait_until(lambda: disk.part(1).stat().st_size == 4 * MIB, "its size is the new one", 1.0)
    assert disk.part(1).stat().st_ino == inode
    run("wipefs", "--all", "--force", disk.directory / "storage")
    wait_until(lambda: disk.names == [], "there is no table any more", 1.0)
    wait_until(lambda: not disk.part(1).exists(), "its name is gone", 1.5)


def test_a_partition_in_use_stays_as_it_is(disk: PartitionedDisk) -> None:
    with disk.part(2).open("r+b", buffering=0) as file:
        sfdisk(disk.directory / "storage", "label: gpt\nstart=1MiB, size=2MiB\nstart=5MiB, size=2MiB\n")
        wait_until(lambda: disk.part(1).stat().st_size == 2 * MIB, "the first one has changed", 1.0)
        assert disk.part(2).stat().st_size == 12 * MIB
        file.write(b"still here")
        os.fsync(file)
    assert disk.image.read_bytes()[9 * MIB :][:10] == b"still here"
    wait_until(lambda: disk.part(2).stat().st_size == 2 * MIB, "it has changed after the close", 2.0)
    with disk.part(2).open("rb") as now:
        assert now.read(10) == disk.image.read_bytes()[5 * MIB :][:10]


def test_another_view_that_is_open_to_write_keeps_a_truncation_away(disk: PartitionedDisk) -> None:
    storage = disk.directory / "storage"
    for open_one, other in ((storage, disk.part(1)), (disk.part(1), storage)):
        with open_one.open("r+b"), pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
            os.truncate(other, 0)
    with disk.part(2).open("r+b"):
        os.truncate(disk.part(1), 0)  # which do not overlap


def test_two_views_are_one_disk(disk: PartitionedDisk) -> None:
    storage = disk.directory / "storage"
    before = storage.stat().st_mtime_ns
    with disk.part(1).open("r+b") as file:
        file.write(b"by the partition")
    assert storage.stat().st_mtime_ns > before
    with storage.open("r+b") as file:
        file.seek(START)
        assert file.read(16) == b"by the partition"
        file.seek(START)
        file.write(b"by the disk as a")
    assert disk.part(1).read_bytes()[:16] == b"by the disk as a"


def test_an_exclusive_disk_has_one_writer_in_all_its_views(
    tmp_path: Path, serve: Serve, mount_hosts: MountHosts, require: Callable[..., None]
) -> None:
    require("sfdisk")
    image = make_image(tmp_path / "disk.img", SIZE)
    sfdisk(image, TABLE)
    tgt = serve(Tgt(tmp_path, Target(NAME, [Unit(image)])))
    unit = mount_hosts(tgt.portal, "-o", "exclusive").target() / "lun1"
    with (unit / "part1").open("r+b"):
        with pytest.raises(OSError, match=os.strerror(errno.EBUSY)), (unit / "storage").open("r+b"):
            pass
        with (unit / "part2").open("r+b"):
            pass


def test_a_disk_of_4096_byte_blocks(
    tmp_path: Path, serve: Serve, mount_hosts: MountHosts, require: Callable[..., None]
) -> None:
    require("fdisk")
    image = make_image(tmp_path / "disk.img", SIZE)
    subprocess.run(
        ["fdisk", "-b", "4096", image],
        input="g\nn\n1\n512\n+8M\nw\n",
        text=True,
        check=True,
        timeout=60,
        capture_output=True,
    )
    tgt = serve(Tgt(tmp_path, Target(NAME, [Unit(image, block_size=4096)])))
    unit = mount_hosts(tgt.portal).target() / "lun1"
    assert (unit / "part1").stat().st_size == 8 * MIB
    with (unit / "part1").open("r+b") as file:
        file.seek(4095)
        file.write(b"over the border")
    run("sync", unit / "part1")
    assert image.read_bytes()[512 * 4096 + 4095 :][:15] == b"over the border"


def test_fuse2fs_takes_a_partition_without_root(
    disk: PartitionedDisk, tmp_path: Path, require: Callable[..., None]
) -> None:
    require("fuse2fs", "mkfs.ext4")
    run("mkfs.ext4", "-q", disk.part(1))
    files = tmp_path / "files"
    files.mkdir()
    run("fuse2fs", "-o", "rw,fakeroot", disk.part(1), files)
    try:
        (files / "hello").write_text("hello\n")
    finally:
        run("fusermount3", "-u", files)
    wait_until(lambda: b"hello\n" in disk.content(), "it is written")
    disk.check_others()
