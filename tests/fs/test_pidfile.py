"""The file with the number of the process, by itself; how the command uses it is in test_mounted_unmount."""

import os
from pathlib import Path

import pytest

from iscsifs.errors import ConfigError
from iscsifs.fs.pidfile import pid_file


def test_it_is_there_meanwhile_and_replaces_what_was_left(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("1234567890 of a process that was killed\n")
    with pid_file(path):
        assert path.read_text() == f"{os.getpid()}\n"
        assert path.stat().st_mode & 0o022 == 0
    assert not path.exists()


@pytest.mark.parametrize("later", [b"4711\n", b"\xff"])
def test_what_a_later_process_has_put_there_stays(tmp_path: Path, later: bytes) -> None:
    path = tmp_path / "pid"
    with pid_file(path):
        path.write_bytes(later)
    assert path.read_bytes() == later


def test_it_may_have_been_removed(tmp_path: Path) -> None:
    with pid_file(tmp_path / "pid"):
        (tmp_path / "pid").unlink()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Root may write anywhere; who may write to the directory only, may not have it do so."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "pid").symlink_to(tmp_path / "victim")
    with pytest.raises(ConfigError, match="PID file .*/pid: "), pid_file(tmp_path / "pid"):
        pass
    assert (tmp_path / "victim").read_text() == "precious"
