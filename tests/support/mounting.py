"""The command iscsifs as its users run it, and what it has mounted."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from support import TOP

TIME = 60.0  # seconds that any command may take

ISCSIFS = (sys.executable, "-m", "iscsifs")
# Root becomes somebody else, the first argument, only when all is imported: others may not read where it is.
AS_USER = """import encodings.idna, os, sys; from iscsifs.cli import main; user = int(sys.argv.pop(1))
os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user); sys.exit(main())"""
ENVIRONMENT = {"PYTHONPATH": str(TOP)}


def run(*command: object, check: bool = True) -> str:
    """Run *command* and return all that it says; it has to succeed where *check*."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=TIME,
    )
    assert not check or done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}"
    return done.stdout


def iscsifs(
    *arguments: object, user: int | None = None, limit: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command with *arguments*, as *user*, until it ends or goes to the background.

    *limit* is one that prlimit(1) knows, such as "nofile=20".
    """
    command = ISCSIFS if user is None else (sys.executable, "-c", AS_USER, str(user))
    if limit is not None:
        command = ("prlimit", f"--{limit}", *command)
    return subprocess.run(
        [*command, *(str(argument) for argument in arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIME,
        env=os.environ | ENVIRONMENT | environment,
        start_new_session=True,  # without a terminal to ask on
    )


class Mounted:
    """What a process of iscsifs has mounted at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process: subprocess.Popen[str] | None = None
        """The process, where it is in the foreground."""
        self.done: subprocess.CompletedProcess[str] | None = None
        """What ended when it went to the background."""

    def start(self, *arguments: object, user: int | None = None) -> None:
        """Run the command and return when it has mounted, or failed to."""
        self.done = iscsifs(*arguments, self.path, user=user)

    def start_in_foreground(self, *arguments: object) -> None:
        """Run the command with -f and return when it has mounted, or failed to."""
        self.process = subprocess.Popen(
            [*ISCSIFS, "-f", *(str(argument) for argument in arguments), str(self.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | ENVIRONMENT,
        )
        process = self.process
        wait_until(lambda: self.is_mounted() or process.poll() is not None, "it is mounted")

    def is_mounted(self) -> bool:
        """Say whether something is mounted at the path; the table knows that of other users' mounts too."""
        return f" {self.path} " in Path("/proc/self/mounts").read_text()

    @property
    def said(self) -> subprocess.CompletedProcess[str]:
        """What the command said before it went to the background, and its exit status."""
        assert self.done is not None, "it is in the foreground"
        return self.done

    @property
    def pids(self) -> list[int]:
        """The processes that serve the mount: one, or none."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else [b""]
                if (
                    words[0] == os.fsencode(sys.executable)
                    and bytes(self.path) in words
                    and not _is_zombie(entry)
                ):
                    found.append(int(entry.name))
        return found

    def target(self, name: str = "disk", host: str = "127.0.0.1") -> Path:
        """The directory of a target, *name* being the end of its name."""
        return self.path / host / name

    def storage(self, name: str = "disk", host: str = "127.0.0.1") -> Path:
        """The file that is the disk of a target."""
        return self.target(name, host) / "storage"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        (pid,) = self.pids
        os.kill(pid, number)

    def unmount(self) -> None:
        """Unmount, and wait for the end of the process.

        After a new login its own process opens files for moments (`iscsifs.fs.platform.pages`).
        """
        wait_until(lambda: run("fusermount3", "-u", self.path, check=False) == "", "it is not in use", 2.0)
        self.wait()

    def wait(self) -> None:
        """Wait for the end of the process, which has to leave nothing behind."""
        wait_until(lambda: not self.pids, "the process of iscsifs has ended")
        assert not self.is_mounted()

    def status(self) -> int:
        """Wait for the end of the process in the foreground; return its exit status."""
        assert self.process is not None, "it is in the background"
        return self.process.wait(TIME)

    def close(self) -> None:
        """Take everything down, whatever has happened."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.communicate()
        wait_until(lambda: not self.pids, "the process of iscsifs has been killed")
        if self.is_mounted():
            run("fusermount3", "-u", "-z", self.path)


class MountHosts(Protocol):
    """The fixture `mount_hosts`: run iscsifs with *arguments*, the mount point apart."""

    def __call__(
        self, *arguments: object, status: int = 0, foreground: bool = False, user: int | None = None
    ) -> Mounted: ...


def wait_until(condition: Callable[[], bool], what: str, seconds: float = TIME) -> None:
    """Return when *condition* holds; fail when it does not within *seconds*."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def drop_caches() -> None:
    """Have the kernel forget all pages and inodes that need not be written; needs root."""
    Path("/proc/sys/vm/drop_caches").write_text("3")


def _is_zombie(process: Path) -> bool:
    return (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
