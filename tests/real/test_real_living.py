"""Logging out of a target and in again while it is mounted, with a real one."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.mounting import ENVIRONMENT, TIME, run, wait_until
from support.targets import Serve, Target, Tgt, Unit, make_image

NAME = "iqn.2026-01.example:"
MIB = 1 << 20

pytestmark = [pytest.mark.real, pytest.mark.mount]


class Living:
    """A mount of two targets, `disk` and `other`, that can be told what to do."""

    def __init__(self, path: Path, tgt: Tgt) -> None:
        self.path = path
        self.host = path / "127.0.0.1"
        self.images = [unit.image for target in tgt.targets for unit in target.units]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.living_mount", str(path), tgt.portal],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ENVIRONMENT,
            cwd=Path(__file__).parents[1],
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "mounted\n"

    def tell(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def sessions(self, tgt: Tgt) -> int:
        return tgt.adm(op="show", mode="target").count("I_T nexus:")

    def close(self) -> None:
        run("fusermount3", "-u", self.path, check=False)
        self.process.communicate(timeout=TIME)
        assert self.process.returncode == 0


@pytest.fixture
def tgt(serve: Serve, tmp_path: Path) -> Tgt:
    return serve(
        Tgt(
            tmp_path,
            *(Target(NAME + name, [Unit(make_image(tmp_path / name, MIB))]) for name in ("disk", "other")),
        )
    )


@pytest.fixture
def living(tgt: Tgt, tmp_path: Path) -> Iterator[Living]:
    path = tmp_path / "living"
    path.mkdir()
    living = Living(path, tgt)
    yield living
    living.close()


@pytest.fixture
def shell(living: Living) -> Iterator[subprocess.Popen[str]]:
    """A shell that has looked at all there is, and so has the kernel."""
    shell = subprocess.Popen(
        ["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    ask(shell, f"cd {living.host}; ls -lR . >/dev/null; stat disk/storage >/dev/null")
    yield shell
    shell.communicate(timeout=TIME)


def ask(shell: subprocess.Popen[str], command: str) -> str:
    assert shell.stdin is not None
    assert shell.stdout is not None
    print(f"{command}\necho END", file=shell.stdin, flush=True)
    return "".join(iter(shell.stdout.readline, "END\n"))


@pytest.mark.parametrize("by", ["the service", "the directory"])
def test_a_shell_that_had_looked_sees_a_target_go_and_come(
    living: Living, tgt: Tgt, shell: subprocess.Popen[str], by: str
) -> None:
    before = (living.host / "disk").stat().st_ino
    assert ask(shell, "ls") == "disk\nother\n"
    assert living.sessions(tgt) == 2
    for _ in range(3):
        if by == "the service":
            assert living.tell("out disk") == "ok"
        else:
            (living.host / "disk").rmdir()
        wait_until(lambda: ask(shell, "test -e disk && echo there") == "", "its name is gone", 0.5)
        assert ask(shell, "ls") == "other\n"
        assert living.sessions(tgt) == 1
        assert all((living.path / "by-id" / name).exists() for name in os.listdir(living.path / "by-id"))
        if by == "the service":
            assert living.tell("in disk") == "ok"
        else:
            (living.host / "disk").mkdir()
        assert ask(shell, "ls") == "disk\nother\n"
        assert ask(shell, "stat -c %s disk/storage") == f"{MIB}\n"
        assert living.sessions(tgt) == 2
    assert (living.host / "disk").stat().st_ino != before


def test_a_target_whose_disk_is_open_stays(living: Living, tgt: Tgt) -> None:
    with (living.host / "disk" / "storage").open("r+b", buffering=0) as disk:
        assert living.tell("out disk") == "InUseError"
        with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
            (living.host / "disk").rmdir()
        disk.write(b"still here")
        os.fsync(disk)
        assert living.sessions(tgt) == 2
    wait_until(lambda: living.tell("out disk") == "ok", "the kernel has told of the close")
    assert living.images[0].read_bytes()[:10] == b"still here"


def test_what_was_written_is_at_the_target_when_the_logout_is_over(living: Living, tgt: Tgt) -> None:
    data = os.urandom(MIB)
    with (living.host / "disk" / "storage").open("r+b") as disk:
        disk.write(data)
    wait_until(lambda: living.tell("out disk") == "ok", "the kernel has told of the close")
    assert living.images[0].read_bytes() == data
    assert living.tell("in disk") == "ok"
    assert (living.host / "disk" / "storage").read_bytes() == data
