"""Units in memory, mounted by a process of their own (see `support.memory_mount`), and fixtures for it."""

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from support import MODULES
from support.machine import absent
from support.mounting import run

NOBODY = 65534
MEMORY_MOUNT = (sys.executable, "-m", "support.memory_mount")


class Mounted:
    """A program that has mounted units in memory on *path*."""

    def __init__(self, path: Path, *arguments: str) -> None:
        self.path = path
        self.storage = path / "host/disk/storage"
        self._process = subprocess.Popen(
            [*MEMORY_MOUNT, path, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": MODULES},
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "mounted\n":
            self._process.wait()
            assert self._process.stderr is not None
            pytest.fail(self._process.stderr.read())

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> list[tuple[int, str]]:
        """Wait for the end; return for each unit how often it was flushed, and its first 16 bytes."""
        output, complaints = self._process.communicate(timeout=20)
        assert complaints == ""
        assert self._process.returncode == 0
        assert not os.path.ismount(self.path)
        return [
            (int(flushes), content) for flushes, content in (line.split() for line in output.splitlines())
        ]

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        with self._process:
            pass
        subprocess.run(["fusermount3", "-u", "-z", "-q", self.path], check=False, stderr=subprocess.DEVNULL)


class MountMemory(Protocol):
    def __call__(self, *arguments: str) -> Mounted: ...


def as_nobody(*command: object) -> str:
    return run("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[MountMemory]:
    path = tmp_path / "mnt"
    path.mkdir()
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> Mounted:
            mounted = Mounted(path, *arguments)
            stack.callback(mounted.close)
            return mounted

        yield start


@pytest.fixture
def for_nobody(tmp_path: Path, mount: MountMemory, require_root: None) -> Callable[..., Mounted]:
    """Mount as an ordinary user, on a directory of that user's."""
    if not os.stat("/dev/fuse").st_mode & stat.S_IWOTH:
        absent("/dev/fuse is for root only: chmod 666 /dev/fuse")
    os.chown(tmp_path / "mnt", NOBODY, NOBODY)
    for directory in [tmp_path, *tmp_path.parents[:2]]:  # what pytest has made, for root only
        directory.chmod(0o755)
    return lambda *arguments: mount(*arguments, f"user={NOBODY}")
