"""The record of a mount: found while its process lives, and by nobody later."""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from iscsifs.fs import record
from iscsifs.fs.record import LONGEST_LINE, MountEntry, Record, Watch, mount_at

PATH = Path("/mnt/a b")
ENTRY = MountEntry("77", "0:52", PATH, "fuse.iscsifs", os.geteuid())


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "records"
    monkeypatch.setattr(record, "_directories", lambda user: [path])
    return path


def test_it_is_found_by_device_or_when_unmounted_by_path_and_tells_the_end(directory: Path) -> None:
    with Record(ENTRY) as mine:
        assert directory.stat().st_mode & 0o777 == 0o700
        by_device, by_path = Watch.find(Path("/elsewhere"), ENTRY), Watch.find(PATH, None)
        assert Watch.find(Path("/elsewhere"), None) is None
        logging.getLogger().error("before the end")
        mine.begin_end()
        logging.getLogger().error("lost: %d", 5)
        mine.status = 7
    logging.getLogger().error("behind the end")
    assert list(directory.iterdir()) == []
    assert Watch.find(PATH, None) is None
    for watch in by_device, by_path:
        said: list[str] = []
        assert watch is not None
        watch._process = None  # which is this one, and goes on
        assert watch.wait(said.append) == 7
        assert said == ["lost: 5"]


def test_what_a_killed_process_leaves_is_nobody_s_and_is_removed(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    left = directory / "4711-x"
    left.write_text('{"pid": 4711, "device": "0:52", "mount_point": "/mnt/a b"}\n')
    assert Watch.find(PATH, ENTRY) is None
    assert not left.exists()
    left.write_text("x")
    with Record(ENTRY):
        assert not left.exists()


def test_a_killed_process_tells_no_status() -> None:
    mine = Record(ENTRY)
    watch = Watch.find(PATH, ENTRY)
    assert watch is not None
    watch._process = None
    assert mine._descriptor is not None
    os.close(mine._descriptor)  # as the kernel does
    mine._descriptor = None
    assert watch.wait(lambda message: None) is None


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_directory_that_others_can_write_to_is_not_used(
    directory: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    directory.mkdir()
    directory.chmod(mode)
    with Record(ENTRY):
        assert list(directory.iterdir()) == []
    assert "iscsifs --unmount will not wait for the end" in caplog.text
    assert Watch.find(PATH, ENTRY) is None


def test_a_link_is_not_followed(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir(mode=0o700)
    directory.symlink_to(tmp_path / "other")
    with Record(ENTRY):
        assert list((tmp_path / "other").iterdir()) == []


def test_the_directory_of_another_user_is_not_believed() -> None:
    somebody_else = replace(ENTRY, owner=os.geteuid() + 1)
    with Record(ENTRY):
        assert Watch.find(PATH, ENTRY) is not None
        assert Watch.find(PATH, somebody_else) is None


@pytest.fixture
def lie(directory: Path) -> Iterator[Callable[[bytes], None]]:
    """Write a record as a process that lives, and wants to harm who reads it."""
    with ExitStack() as stack:

        def write(content: bytes) -> None:
            directory.mkdir(mode=0o700, exist_ok=True)
            file = stack.enter_context(open(directory / "lie", "wb", buffering=0))
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(content)

        yield write


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"\xff\n",
        b"[" * 5000 + b"\n",
        b"[1]\n",
        b'{"device": "0:52"}\n',
        b'{"device": "0:52", "pid": "x"}\n',
        b'{"device": "0:52", "pid": 1e400}\n',
        b'{"device": "0:52", "pid": 18446744073709551616}\n',
        b'{"device": "0:52", "pid": 1, "x": "' + b"x" * LONGEST_LINE + b'"}\n',
    ],
    ids=lambda line: repr(line[:40]),
)
def test_a_record_that_is_none_is_left_alone(lie: Callable[[bytes], None], first: bytes) -> None:
    lie(first)
    assert Watch.find(PATH, ENTRY) is None


def test_what_another_user_has_written_cannot_harm_who_waits(
    lie: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lie(
        b'{"pid": 2147483647, "device": "0:52", "ending": true}\n'
        b'{"message": "a\\u001b[2Jb\\u202ec \\u00e9"}\nnonsense\n[]\n'
        b'{"status": "7"}\n{"status": 4}\n{"status": 256}\n' + b"x" * 3 * LONGEST_LINE + b'\n{"status'
    )
    watch = Watch.find(PATH, ENTRY)
    assert watch is not None
    monkeypatch.setattr(record, "_is_locked", lambda descriptor: False)
    said: list[str] = []
    assert watch.wait(said.append) == 4
    assert said == ["a\\x1b[2Jb\\u202ec \u00e9"]


def test_mounts_are_read_as_proc_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "77 20 0:52 / /mnt/a\\040b rw shared:1 - fuse.iscsifs a,b rw,user_id=1000,group_id=5\n"
        "78 77 0:53 / /mnt/a\\040b rw - fuse.sshfs x rw,user_id=0,group_id=0\n"
        "79 20 0:52 / /mnt/c rw - fuse.iscsifs a rw,user_id=1000\n"
    )
    monkeypatch.setattr(record, "_MOUNTINFO", table)
    assert mount_at(PATH) == MountEntry("78", "0:53", PATH, "fuse.sshfs", 0)
    assert mount_at(Path("/mnt/c")) == MountEntry("79", "0:52", Path("/mnt/c"), "fuse.iscsifs", 1000)
    assert mount_at(Path("/mnt")) is None
