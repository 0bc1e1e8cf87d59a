"""Truncation: what programs take for zeros is zeros on the disk, and everything else stays.

A regular file is the model here, as programs treat `storage` as one. A device has no truncation.
"""

import mmap
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from support.mounting import run
from support.subjects import MIB, OLD, SIZE, Subject, opened, outcome

pytestmark = [pytest.mark.mount, pytest.mark.real]

WRITE, READ = os.O_WRONLY, os.O_RDONLY
TRUNCATE = os.O_WRONLY | os.O_TRUNC
HOLES = [(0, MIB), (3 * MIB + 4096, 4 * MIB), (7 * MIB, 9 * MIB)]
"""What is data in the sparse image, the rest of its 10 MiB being holes."""


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with holes, the last of which is at its end."""
    path = tmp_path_factory.mktemp("sparse") / "image"
    with path.open("xb") as image:
        for start, end in HOLES:
            image.seek(start)
            image.write(b"n" * (end - start))
        image.truncate(10 * MIB)
    assert path.stat().st_blocks * 512 < 6 * MIB, "it is not sparse"
    return path


def copy(source: Path) -> bytes:
    """What the disk has after *source* was copied to it."""
    data = source.read_bytes()
    return data + OLD[len(data) :]


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("cp {source} {disk}", "cp"),
        ("cp --sparse=always {source} {disk}", "cp"),
        ("cp --sparse=never {source} {disk}", "cp"),
        ("cat {source} > {disk}", "cat"),
        ("tee {disk} < {source} > /dev/null", "tee"),
        ("dd if={source} of={disk} bs=1M status=none", "dd"),
        ("dd if={source} of={disk} bs=1M oflag=direct conv=fsync status=none", "dd"),
        ("qemu-img convert -O raw {source} {disk}", "qemu-img"),
        ("qemu-img convert -W -m 8 -O raw {source} {disk}", "qemu-img"),
        ("qemu-img convert -n -O raw {source} {disk}", "qemu-img"),
        ("rsync --inplace --sparse {source} {disk}", "rsync"),
        ("rsync --inplace {source} {disk}", "rsync"),
        ("truncate -s 0 {disk}; truncate -s {size} {disk}; cp {source} {disk}", "truncate"),
    ],
)
def test_an_image_with_holes_is_copied(
    disk: Subject, sparse: Path, require: Callable[..., None], command: str, needed: str
) -> None:
    require(needed)
    disk.reset()
    run("sh", "-c", "set -e; " + command.format(source=sparse, disk=disk.path, size=SIZE))
    expected = copy(sparse)
    if "truncate" in command:
        expected = sparse.read_bytes() + bytes(SIZE - 10 * MIB)
    elif needed == "qemu-img" and "-n" not in command:
        assert disk.content()[: 10 * MIB] == expected[: 10 * MIB]
    assert disk.content() == expected
    assert disk.path.stat().st_size == SIZE


@pytest.mark.parametrize(
    ("command", "zeros"),
    [
        ("truncate -s 0 {disk}; truncate -s {size} {disk}", range(SIZE)),
        ("truncate -s 0 {disk}; truncate -s 5M {disk}", range(5 * MIB)),
        ("truncate -s 1M {disk}; truncate -s 1000001 {disk}; truncate -s 2M {disk}", range(1000001, 2 * MIB)),
        ("truncate -s 0 {disk}", range(0)),
        (": > {disk}", range(0)),
        ("truncate -s {size} {disk}", range(0)),
        ("truncate -s 5M {disk}", range(0)),
        # What comes after a close is a disk, of which nobody has said anything.
        ("truncate -s 0 {disk}; dd if={disk} of=/dev/null count=1; truncate -s {size} {disk}", range(0)),
    ],
)
def test_truncate_makes_zeros_of_what_comes_back(disk: Subject, command: str, zeros: range) -> None:
    disk.reset()
    run("sh", "-c", "set -e; " + command.format(disk=disk.path, size=SIZE))
    expected = bytearray(OLD)
    expected[zeros.start : zeros.stop] = bytes(len(zeros))
    assert disk.content() == expected
    assert disk.path.stat().st_size == SIZE


def test_what_is_truncated_by_name_is_zeros_at_once(disk: Subject) -> None:
    disk.reset()
    os.truncate(disk.path, 0)
    os.truncate(disk.path, 3 * MIB + 7)
    assert disk.content() == bytes(3 * MIB + 7) + OLD[3 * MIB + 7 :]


def test_dd_with_seek_writes_there_and_nowhere_else(disk: Subject) -> None:
    disk.reset()
    run("dd", "if=/dev/zero", f"of={disk.path}", "bs=1M", "seek=4", "count=1", "status=none")
    assert disk.content() == OLD[: 4 * MIB] + bytes(MIB) + OLD[5 * MIB :]


def test_dd_to_two_places_keeps_what_is_between_them(disk: Subject) -> None:
    disk.reset()
    for place in (1, 4):
        run("dd", "if=/dev/zero", f"of={disk.path}", "bs=1M", f"seek={place}", "count=1", "status=none")
    expected = bytearray(OLD)
    expected[MIB : 2 * MIB] = expected[4 * MIB : 5 * MIB] = bytes(MIB)
    assert disk.content() == expected


def test_dd_sparse_leaves_old_bytes_behind_the_last_data(disk: Subject, sparse: Path) -> None:
    """It sees that the file is longer, and does not truncate: nobody knows that it takes them for zeros."""
    disk.reset()
    run("dd", f"if={sparse}", f"of={disk.path}", "bs=64k", "conv=sparse", "status=none")
    assert disk.content() == sparse.read_bytes()[: 9 * MIB] + OLD[9 * MIB :]


def test_a_disk_that_was_truncated_and_closed_is_a_disk_again(disk: Subject) -> None:
    """What another program writes makes zeros of nothing: it may be a file system."""
    disk.reset()
    os.close(os.open(disk.path, TRUNCATE))
    with opened(disk.path, WRITE) as fd:
        os.pwrite(fd, b"new", 9 * MIB)
    assert disk.content() == OLD[: 9 * MIB] + b"new" + OLD[9 * MIB + 3 :]


@pytest.mark.parametrize("end", ["fsync", "close", "close of a dup"])
def test_holes_of_any_place_and_order_are_zeros_before_it_returns(disk: Subject, end: str) -> None:
    disk.reset()
    expected = bytearray(OLD)
    expected[: 8 * MIB + 3] = bytes(8 * MIB + 3)
    with opened(disk.path, TRUNCATE) as fd:
        for place in (5 * MIB + 100, 8 * MIB, 1, 2 * MIB + 511, 4096):
            os.pwrite(fd, b"new", place)
            expected[place : place + 3] = b"new"
        if end == "fsync":
            os.fsync(fd)
        elif end == "close of a dup":
            os.close(os.dup(fd))
        if end != "close":
            assert disk.image.read_bytes() == expected
    assert disk.image.read_bytes() == expected


@pytest.mark.parametrize("how", ["write", "truncate"])
@pytest.mark.parametrize("reader", ["buffered", "O_DIRECT", "private mapping", "shared mapping"])
def test_others_see_the_zeros_at_once(disk: Subject, how: str, reader: str) -> None:
    """Also those who have read the old bytes before, which the kernel keeps."""
    disk.reset()
    flags = READ | (os.O_DIRECT if reader == "O_DIRECT" else 0)
    with opened(disk.path, TRUNCATE) as fd, opened(disk.path, flags) as other:
        buffer = mmap.mmap(-1, MIB)
        kind = mmap.MAP_PRIVATE if reader == "private mapping" else mmap.MAP_SHARED
        mapping = mmap.mmap(other, 2 * MIB, kind, mmap.PROT_READ) if "mapping" in reader else None

        def see() -> bytes:
            if mapping is not None:
                return mapping[MIB : 2 * MIB]
            os.preadv(other, [buffer], MIB)
            return buffer[:]

        assert see() == OLD[MIB : 2 * MIB]
        if how == "truncate":
            os.ftruncate(fd, 3 * MIB)
            assert see() == bytes(MIB)
        else:
            os.pwrite(fd, b"new", 2 * MIB - 100)  # within a page
            assert see() == bytes(MIB - 100) + b"new" + OLD[2 * MIB - 97 : 2 * MIB]
        if mapping is not None:
            mapping.close()


@pytest.mark.parametrize("size", [SIZE + 1, SIZE * 2, 1 << 50])
def test_there_is_no_more_than_the_disk_has(disk: Subject, size: int) -> None:
    def program(subject: Subject) -> None:
        os.truncate(subject.path, size)

    assert outcome(program, disk) == "EFBIG"
    assert disk.content() == OLD


def test_while_another_writes_it_is_not_truncated(disk: Subject, require: Callable[..., None]) -> None:
    """A loop device would make zeros of its file system with the next write."""
    require("losetup", "mkfs.ext4")
    disk.reset()
    device = run("losetup", "--find", "--show", disk.path).strip()
    try:
        run("mkfs.ext4", "-q", "-F", device)
        for command in (f": > {disk.path}", f"truncate -s 0 {disk.path}", f"cp /etc/services {disk.path}"):
            done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
            assert done.returncode != 0
            assert "busy" in done.stderr.lower()
        run("dd", "if=/dev/zero", f"of={disk.path}", "bs=512", "count=1", "conv=notrunc", "status=none")
        run("e2fsck", "-f", "-n", device)
    finally:
        run("losetup", "--detach", device)


@pytest.mark.parametrize("direct", [False, True])
def test_who_reads_is_not_disturbed_by_truncations(disk: Subject, direct: bool) -> None:
    disk.reset()
    wrong: list[object] = []
    over = threading.Event()

    def read() -> None:
        with opened(disk.path, READ | (os.O_DIRECT if direct else 0)) as fd:
            buffer = mmap.mmap(-1, 4096)
            while not over.is_set():
                try:
                    count = os.preadv(fd, [buffer], 5 * MIB)
                except OSError as error:
                    wrong.append(error)
                    break
                if count != 4096 or buffer[:] != OLD[5 * MIB : 5 * MIB + 4096]:
                    wrong.append(count)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(300):
        os.close(os.open(disk.path, TRUNCATE))
    over.set()
    reader.join()
    assert wrong == []
