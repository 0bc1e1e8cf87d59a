"""No test goes on for ever, and a run leaves neither processes nor mounts behind.

A process beside the tests is told when each begins and ends. It is a process, since nothing in Python runs
while a request to FUSE is not answered, which no signal ends either: so what serves the mounts of this run is
killed, and a signal fails the test that waits. ISCSIFS_TEST_LONGEST is the bound in seconds.
"""

import contextlib
import faulthandler
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Final

import pytest

LONGEST: Final = float(os.environ.get("ISCSIFS_TEST_LONGEST", "180"))
"""Seconds that a test may take. The longest takes a tenth of it, and on a busy machine a third."""

TIME_TO_END: Final = min(10.0, LONGEST / 2)
"""Seconds that processes may take to end when the last test is over."""

_MARK: Final = "ISCSIFS_TEST_RUN"
"""The variable by which all processes of a run are known: the number of its pytest."""


def processes(run: int) -> dict[int, str]:
    """Return the command lines of the processes of pytest number *run* that are still there."""
    mark = f"{_MARK}={run}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                found[int(entry.name)] = b" ".join(words).decode(errors="backslashreplace")
    return found


def mounts(directory: Path) -> list[str]:
    """Return what is mounted somewhere below *directory*."""
    points = (line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines())
    return [point for point in points if point.startswith(f"{directory}/")]


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def watch(run: int, longest: float) -> None:
    """Kill what pytest number *run* has started when it says nothing for *longest* seconds in a test.

    It sends ``+`` when a test begins and ``-`` when it is over, to standard input.
    """
    in_test = False
    while True:
        if not select.select([sys.stdin], [], [], longest if in_test else None)[0]:
            os.kill(run, signal.SIGALRM)  # it comes when a request to FUSE has ended, and not later
            _kill(processes(run))
        elif said := os.read(sys.stdin.fileno(), 4096):
            in_test = said.endswith(b"+")
        else:
            return


def _too_long(number: int, frame: FrameType | None) -> None:
    faulthandler.dump_traceback(2)  # of all threads
    pytest.fail(f"not over after {LONGEST:g} s")


class Watch:
    """The process that watches, from the first test to the last."""

    def __init__(self) -> None:
        words = [sys.executable, __file__, str(os.getpid()), str(LONGEST)]
        environment = {name: value for name, value in os.environ.items() if name != _MARK}
        self._process = subprocess.Popen(
            words, bufsize=0, stdin=subprocess.PIPE, env=environment, start_new_session=True
        )
        os.environ[_MARK] = str(os.getpid())
        signal.signal(signal.SIGALRM, _too_long)

    def _say(self, what: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(what)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        self._say(b"+")
        try:
            return (yield)
        finally:
            self._say(b"-")

    def pytest_unconfigure(self) -> None:
        self._process.communicate()


def pytest_configure(config: pytest.Config) -> None:
    """Watch the tests, unless somebody looks at one that has stopped, or runs one for hours."""
    if not config.getoption("usepdb") and "ISCSIFS_MODEL_RUNS" not in os.environ:
        config.pluginmanager.register(Watch(), "watch")


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail, at the last test, for what the run has left behind; and take it away."""
    yield  # it is the first fixture, and so the last one that is taken down
    directory = tmp_path_factory.getbasetemp()
    deadline = time.monotonic() + TIME_TO_END
    while (left := processes(os.getpid())) and time.monotonic() < deadline:
        time.sleep(0.05)
    _kill(left)
    mounted = mounts(directory)
    for point in mounted:
        subprocess.run(["fusermount3", "-u", "-z", point], check=False, timeout=TIME_TO_END)
    if left or mounted:
        pytest.fail(f"left behind: {[*left.values(), *mounted]}", pytrace=False)


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]))
