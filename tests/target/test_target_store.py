"""Where the bytes are: files and memory, and the log that makes a volatile cache of them."""

import ctypes
import errno
import gc
import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import ConfigError
from iscsifs.scsi import cdb
from iscsifs.target.disk import Disk
from iscsifs.target.store import Store, UndoLog
from iscsifs.target.unit import SPACE_ALLOCATION_FAILED, Identity, Nexus

BLOCK = 512
BLOCKS = 8


def memories() -> set[int]:
    """Return the descriptors of this process that are the memory of a store."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # it was the directory itself
            if "memfd:iscsifs-target" in os.readlink(f"/proc/self/fd/{name}"):
                found.add(int(name))
    return found


def test_memory_is_zeros_until_it_is_written() -> None:
    store = Store.memory(1 << 40)
    store.write((1 << 40) - 3, b"end")
    assert store.read((1 << 40) - 6, 6) == b"\0\0\0end"
    assert store.read(0, 16) == bytes(16)
    store.close()


def test_what_the_kernel_takes_and_gives_in_pieces_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with more than 2 GiB at once."""
    pwritev, preadv = os.pwritev, os.preadv
    monkeypatch.setattr(os, "pwritev", lambda fd, views, offset: pwritev(fd, [views[0][:3]], offset))
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: preadv(fd, [views[0][:5]], offset))
    store = Store.memory(64)
    assert not store.made
    store.write(7, bytes(range(1, 33)))
    assert store.read(0, 64) == bytes(7) + bytes(range(1, 33)) + bytes(25)


def test_a_store_is_closed_once_and_with_the_last_reference_to_it() -> None:
    gc.collect()  # what other tests have left is closed now, and not in between
    before = memories()
    store = Store.memory(BLOCK)
    (fd,) = memories() - before
    store.close()
    assert memories() == before
    other = os.open(os.devnull, os.O_RDONLY)
    assert other == fd
    store.close()
    del store
    os.close(other)  # the number was somebody else's by then
    store = Store.memory(BLOCK)
    assert memories() == before | {fd}
    del store
    assert memories() == before


def test_a_file_that_does_not_exist_is_made_sparse_with_the_given_size(tmp_path: Path) -> None:
    path = tmp_path / "image"
    store = Store.open(path, size=1 << 30)
    assert store.size == 1 << 30
    assert path.stat().st_blocks == 0
    assert path.stat().st_mode & 0o777 == 0o600
    store.write(5, b"x")
    store.close()
    assert Store.open(path).read(4, 3) == b"\0x\0"


def test_a_file_keeps_its_size(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"abc")
    store = Store.open(path, size=1 << 20)
    assert store.size == 3
    assert store.read(0, 3) == b"abc"
    store.close()


def test_what_a_file_has_lost_is_an_error_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"abcdef")
    store = Store.open(path)
    os.truncate(path, 3)
    assert store.read(0, 3) == b"abc"
    store.write(1, b"BC")
    for _ in range(2):
        with pytest.raises(OSError, match="cut while it was served"):
            store.read(0, 6)
        with pytest.raises(OSError, match="cut while it was served"):
            store.write(4, b"e")
        with pytest.raises(OSError, match="cut while it was served"):
            store.discard(2, 2)
        with pytest.raises(OSError, match="cut while it was served"):
            store.sync()  # what was written there is not on the medium
    assert path.read_bytes() == b"aBC"
    (said,) = caplog.messages
    assert said.startswith(f"image {path}: it was cut to 3 bytes while it is served as 6: ")
    store.close()


def test_an_error_of_the_file_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"abc")
    store = Store.open(path, read_only=True)
    for _ in range(2):
        with pytest.raises(OSError, match="Bad file descriptor"):
            store.write(0, b"x")
    assert caplog.messages == [f"image {path}: it cannot be written: Bad file descriptor"]
    store.close()


def test_what_could_not_be_synchronised_once_never_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"abc")
    store = Store.open(path)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            store.sync()
    with pytest.raises(OSError, match="Input/output error"):
        store.sync()  # the kernel would say that all is well
    assert caplog.messages == [f"image {path}: it cannot be synchronised: Input/output error"]
    store.close()


@pytest.mark.parametrize(
    ("first", "second", "allowed"),
    [
        ({}, {}, False),
        ({}, {"shared": True}, False),
        ({"shared": True}, {}, False),
        ({"shared": True}, {"shared": True}, True),
        ({}, {"read_only": True}, False),
        ({"read_only": True}, {}, False),
        ({"read_only": True}, {"read_only": True}, True),
        ({"read_only": True}, {"shared": True}, True),
    ],
)
def test_an_image_is_served_once_under_any_name(
    tmp_path: Path, first: dict[str, bool], second: dict[str, bool], allowed: bool
) -> None:
    path, link = tmp_path / "image", tmp_path / "link"
    path.write_bytes(b"abc")
    link.hardlink_to(path)
    store = Store.open(path, **first)
    if allowed:
        Store.open(link, **second).close()
    else:
        with pytest.raises(ConfigError, match=f"image {link}: it is served already"):
            Store.open(link, **second)
    store.close()
    Store.open(link, **second).close()


def test_a_file_that_is_not_served_after_all_is_not_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with pytest.raises(ConfigError, match="File too large|Invalid argument"):
        Store.open(path, size=1 << 63 - 1)
    assert not path.exists()


@pytest.mark.parametrize("what", ["missing", "a directory", "not ours"])
def test_what_cannot_be_used_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "image"
    read_only = False
    if what == "a directory":
        path.mkdir()
        read_only = True
    elif what == "not ours":
        path = Path("/dev/null")
    with pytest.raises(ConfigError, match=f"image {path}: "):
        Store.open(path, read_only=read_only)


def test_a_read_only_store_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"abc")
    store = Store.open(path, read_only=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        store.write(0, b"x")
    store.close()


def test_discarded_bytes_are_zeros_and_give_their_space_back(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x" * (1 << 20))
    store = Store.open(path)
    store.discard(4096, 1 << 19)
    assert store.read(4095, 3) == b"x\0\0"
    assert store.read(4096 + (1 << 19) - 1, 2) == b"\0x"
    store.discard(0, 0)
    assert store.read(0, 1) == b"x"
    store.close()


def test_bytes_are_discarded_where_no_file_system_can_punch_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> int:
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr("iscsifs.target.store._fallocate", cannot)
    store = Store.memory(4 << 20)
    store.write(0, b"x" * (4 << 20))
    store.discard(1000, (5 << 19) + 1)  # two and a half MiB: more than one piece of zeros
    assert store.read(0, 4 << 20) == b"x" * 1000 + bytes((5 << 19) + 1) + b"x" * ((3 << 19) - 1001)


def test_an_extent_is_what_has_space() -> None:
    store = Store.memory(1 << 20)
    assert store.extent(0) == (False, 1 << 20)
    store.write(1 << 16, b"x" * 4096)
    assert store.extent(0) == (False, 1 << 16)
    assert store.extent(1 << 16) == (True, (1 << 16) + 4096)
    assert store.extent((1 << 16) + 4096) == (False, 1 << 20)
    store.close()


_ACTIONS = st.lists(
    st.tuples(st.sampled_from(["write", "sync", "undo"]), st.integers(0, BLOCKS - 1), st.integers(1, BLOCKS)),
    max_size=20,
)


@given(_ACTIONS)
def test_a_power_failure_takes_back_exactly_what_was_not_synchronised(
    actions: list[tuple[str, int, int]],
) -> None:
    store = Store.memory(BLOCK * BLOCKS)
    log = UndoLog(store, BLOCK)
    medium = [0] * BLOCKS  # what each block would hold after a power failure
    cached = [0] * BLOCKS
    for number, (action, lba, blocks) in enumerate(actions, start=1):
        end = min(lba + blocks, BLOCKS)
        match action:
            case "write":
                log.remember(lba, end - lba)
                store.write(lba * BLOCK, bytes([number]) * BLOCK * (end - lba))
                cached[lba:end] = [number] * (end - lba)
            case "sync":
                log.forget(lba, end - lba)
                medium[lba:end] = cached[lba:end]
            case _:
                log.undo()
                cached = medium.copy()
        assert store.read(0, store.size) == b"".join(bytes([value]) * BLOCK for value in cached)
        assert log.blocks >= {lba for lba in range(BLOCKS) if cached[lba] != medium[lba]}
    store.close()


@pytest.mark.usefixtures("require_root")
def test_a_block_device_in_use_is_refused(tmp_path: Path) -> None:
    image, mount_point = tmp_path / "image", tmp_path / "mnt"
    image.write_bytes(bytes(32 << 20))
    mount_point.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    found = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=True)
    device = Path(found.stdout.strip())
    try:
        Store.open(device).close()
        subprocess.run(["mount", device, mount_point], check=True)
        try:
            with pytest.raises(ConfigError, match="it is mounted, or served already"):
                Store.open(device)
            Store.open(device, read_only=True).close()
        finally:
            subprocess.run(["umount", mount_point], check=True)
        first = Store.open(device, shared=True)
        Store.open(device, shared=True).close()
        first.close()
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.usefixtures("require_root")
def test_a_file_system_without_room_is_a_disk_without_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        disk = Disk(Store.open(tmp_path / "image", size=4 << 20), Identity("full"))
        nexus = Nexus()
        disk.prepare(nexus, bytes(16))
        operation = disk.prepare(nexus, cdb.write_10(0, 4096).ljust(16, b"\0"))
        assert operation.run(memoryview(b"x" * (2 << 20))).sense == SPACE_ALLOCATION_FAILED
        assert caplog.messages == [
            f"image {tmp_path}/image: it cannot be written: {os.strerror(errno.ENOSPC)}"
        ]
        operation = disk.prepare(nexus, cdb.read_10(0, 8).ljust(16, b"\0"))
        assert operation.run(memoryview(b"")).data == b"x" * 4096
        disk.close()
    finally:
        subprocess.run(["umount", tmp_path], check=True)
