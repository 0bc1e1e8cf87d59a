"""Where the bytes are: files and memory, and the log that makes a volatile cache of them."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import ConfigError
from iscsifs.target.store import Store, UndoLog

BLOCK = 512
BLOCKS = 8


def test_memory_is_zeros_until_it_is_written() -> None:
    store = Store.memory(1 << 40)
    store.write((1 << 40) - 3, b"end")
    assert store.read((1 << 40) - 6, 6) == b"\0\0\0end"
    assert store.read(0, 16) == bytes(16)
    store.close()


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
