"""iscsifsctl top on a terminal: a real one of the kernel, of any kind and size, or none."""

import errno
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.control_tree import HOST, ControlTree
from support.mounting import ENVIRONMENT, TIME, wait_until

_RUN = """import sys, time; from pathlib import Path; from iscsifs.ctl.cli import main
from iscsifs.ctl.mounted import Mount
from iscsifs.ctl.sample import Sampler
take = Sampler.take
def may_last(self):
    while Path(sys.argv[1], "../stop").resolve().exists():
        time.sleep(1)
    return take(self)
Sampler.take = may_last
sys.exit(main(sys.argv[2:], find_mount=lambda path: Mount(Path(sys.argv[1]), 0)))"""


class Terminal:
    """The command on a terminal; `text` is what it has printed and no test has waited for yet, control
    sequences too, and `seen` what was before that."""

    def __init__(self, tree: ControlTree, *words: str, kind: str, width: int = 100, height: int = 24) -> None:
        self._ours, theirs = pty.openpty()
        self.resize(width, height)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUN, str(tree.path), *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, **ENVIRONMENT, "TERM": kind},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self.text = ""
        self.seen = ""

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait_for(self, pattern: str) -> None:
        """Read until *pattern* comes, and forget all up to it."""
        deadline = time.monotonic() + TIME
        while (found := re.search(pattern, self.text)) is None:
            assert time.monotonic() < deadline, f"{pattern}: {self.text!r}"
            assert self._read(0.1) or self.process.poll() is None, f"{pattern}: {self.text!r}"
        self.seen += self.text[: found.end()]
        self.text = self.text[found.end() :]

    def end(self) -> int:
        """Return the exit status, when it has ended."""
        wait_until(lambda: not self._read(0.05) and self.process.poll() is not None, "it has ended")
        return self.process.wait()

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        try:
            self.text += os.read(self._ours, 1 << 16).decode(errors="replace")
        except OSError as exc:
            if exc.errno != errno.EIO:  # which says that nobody has the terminal any more
                raise
            return False
        return True

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


Start = Callable[..., Terminal]


@pytest.fixture
def tree(tmp_path: Path) -> ControlTree:
    tree = ControlTree(tmp_path / "mnt")
    tree.add_unit(tree.add_target())
    return tree


@pytest.fixture
def top(tree: ControlTree) -> Iterator[Start]:
    terminals: list[Terminal] = []

    def start(*words: str, kind: str = "vt100", width: int = 100, height: int = 24) -> Terminal:
        terminals.append(Terminal(tree, "top", *words, kind=kind, width=width, height=height))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


@pytest.mark.parametrize("kind", ["vt100", "xterm-256color", "linux", "screen"])
def test_it_shows_what_changes_until_q(kind: str, tree: ControlTree, top: Start) -> None:
    """In the colours that the terminal has."""
    terminal = top("-i", "0.1", kind=kind)
    terminal.wait_for("UNIT")
    assert not re.search(r"\x1b\[(\d+;)*[34]\d", terminal.seen)
    terminal.wait_for(f"{HOST}/disk/lun0")
    unit = tree.path / HOST / "disk" / "lun0"
    tree.count(unit, depth=87)
    terminal.wait_for("87")
    tree.write("FAILED", HOST, "disk", "session", "state")
    terminal.wait_for("FAILED")
    terminal.type("s")
    terminal.wait_for("iops")
    terminal.type("q")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 2), (20, 4), (79, 3), (300, 200)])
def test_no_window_is_too_small(width: int, height: int, top: Start) -> None:
    terminal = top("-i", "0.1", width=width, height=height)
    terminal.wait_for(r"\x1b\[")
    time.sleep(0.5)  # for some samples
    terminal.type("sr")
    for size in ((80, 24), (2, 2), (width, height)):
        terminal.resize(*size)
        terminal.process.send_signal(signal.SIGWINCH)
        time.sleep(0.2)
    terminal.type("q")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text


@pytest.mark.parametrize("kind", ["dumb", "nonsense", ""])
def test_a_terminal_that_cannot_do_so_gets_one_table(kind: str, top: Start) -> None:
    terminal = top("-i", "0.1", kind=kind)
    assert terminal.end() == 0
    lines = terminal.text.splitlines()
    assert [line.split()[0] for line in lines] == ["UNIT", f"{HOST}/disk/lun0"]
    assert "\x1b" not in terminal.text


@pytest.mark.parametrize("by", ["key", "signal"])
def test_an_interrupt_ends_it_and_gives_the_terminal_back(by: str, top: Start) -> None:
    terminal = top("-i", "0.1", kind="xterm")
    terminal.wait_for("LOGGED_IN")
    if by == "key":
        terminal.type("\x03")
    else:
        terminal.process.send_signal(signal.SIGTERM)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text
    assert "\x1b[?1049l" in terminal.text  # the screen of before


def test_a_mount_that_ends_is_the_end(tree: ControlTree, top: Start) -> None:
    terminal = top("-i", "0.1", kind="xterm")
    terminal.wait_for("LOGGED_IN")
    tree.path.rename(tree.path.with_name("gone"))
    assert terminal.end() == 1
    _, _, said = terminal.text.rpartition("\x1b")  # behind the last that gives the terminal back
    assert f"iscsifsctl: {tree.path}: was unmounted" in said


def test_a_mount_that_does_not_answer_leaves_the_keys(tree: ControlTree, top: Start) -> None:
    terminal = top("-i", "0.1", kind="xterm")
    terminal.wait_for("LOGGED_IN")
    (tree.path.parent / "stop").touch()
    terminal.wait_for(r"no answer for \d")
    terminal.type("s")
    terminal.wait_for("iops")
    terminal.type("q")
    assert terminal.end() == 0
