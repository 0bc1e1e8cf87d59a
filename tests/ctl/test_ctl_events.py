"""iscsifsctl events: each event once, whole, and in its order."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iscsifs.ctl.cli import main
from iscsifs.ctl.events import Follower, parse, read
from iscsifs.ctl.mounted import GoneError
from support.control_tree import ControlTree
from support.mounting import ENVIRONMENT, TIME, wait_until


@pytest.fixture
def tree(tmp_path: Path) -> ControlTree:
    tree = ControlTree(tmp_path / "mnt")
    for number in range(2, 6):
        tree.event("login", f"number {number}", host="192.0.2.1", target="disk", lun=0)
    return tree


@pytest.fixture
def said(tree: ControlTree, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    def run(*words: str) -> list[str]:
        assert main(("events", *words), find_mount=tree.find) == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_each_is_a_line_with_time_kind_place_and_text(said: Callable[..., list[str]]) -> None:
    first, second, *_ = said()
    assert first == "2026-11-21T12:00:00.000Z  started  serving"
    assert second == "2026-11-21T12:00:00.000Z  login  192.0.2.1/disk/lun0  number 2"
    assert [json.loads(line)["id"] for line in said("--json")] == [1, 2, 3, 4, 5]


def test_those_of_before_come_first_and_the_latest_can_be_asked_for(
    tree: ControlTree, said: Callable[..., list[str]]
) -> None:
    tree.turn_events()
    tree.event("login", "number 6")
    assert [json.loads(line)["id"] for line in said("--json")] == [1, 2, 3, 4, 5, 6]
    assert [json.loads(line)["id"] for line in said("--json", "-n", "2")] == [5, 6]
    assert said("-n", "0") == []
    assert len(said("-n", "100")) == 6


def test_a_line_that_is_none_is_left_out(tree: ControlTree) -> None:
    assert not [*parse('{"id": 1\n[]\n{"id": "1"}\n{"id": true}\nnonsense\n\n' + "[" * 100_000)]
    (tree.path / ".iscsifs" / "events").unlink()
    assert read(tree.mount) == []


def test_a_follower_tells_each_once_over_any_turns(tree: ControlTree) -> None:
    follower = Follower(tree.mount)
    told = [event.number for event in follower.look()]
    for step in range(40):
        for number in range(step % 4):
            tree.event("login", "x" * (step % 7) + str(number))
        if step % 5 == 0:
            tree.turn_events()
        told += [event.number for event in follower.look()]
        assert follower.look() == []
    assert told == [*range(1, told[-1] + 1)]
    assert told[-1] > 50


def test_nothing_is_read_while_nothing_comes(tree: ControlTree, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = Follower(tree.mount)
    follower.look()
    monkeypatch.setattr("iscsifs.ctl.events.read", lambda mount: pytest.fail("read again"))
    assert follower.look() == []


def test_the_end_of_the_mount_is_the_end(tree: ControlTree) -> None:
    follower = Follower(tree.mount)
    follower.look()
    tree.path.rename(tree.path.with_name("gone"))
    with pytest.raises(GoneError, match="was unmounted"):
        follower.look()


_RUN = """import sys; from pathlib import Path; from iscsifs.ctl.cli import main
from iscsifs.ctl.mounted import Mount
sys.exit(main(sys.argv[2:], find_mount=lambda path: Mount(Path(sys.argv[1]), 0)))"""


@pytest.fixture
def following(tree: ControlTree) -> Iterator["subprocess.Popen[str]"]:
    words = [sys.executable, "-c", _RUN, str(tree.path), "events", "-f", "--json"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT
    )
    yield process
    process.kill()
    process.communicate()


def test_following_shows_what_comes_holds_nothing_and_ends_with_the_mount(
    tree: ControlTree, following: "subprocess.Popen[str]"
) -> None:
    assert following.stdout is not None
    assert [json.loads(following.stdout.readline())["id"] for _ in range(5)] == [1, 2, 3, 4, 5]
    begun = time.monotonic()
    tree.event("logout", "number 6")
    assert json.loads(following.stdout.readline())["text"] == "number 6"
    assert time.monotonic() - begun < 5
    wait_until(lambda: not _held(following.pid, tree.path), "nothing is held open")
    tree.path.rename(tree.path.with_name("gone"))
    assert following.wait(TIME) == 0
    assert following.stderr is not None
    assert following.stderr.read() == f"iscsifsctl: {tree.path}: was unmounted\n"


def _held(pid: int, path: Path) -> list[str]:
    """Return what a process has open below *path*: that would keep it mounted."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    return [link for link in links if link.startswith(str(path))]


def test_an_interrupt_ends_it_at_once(following: "subprocess.Popen[str]") -> None:
    assert following.stdout is not None
    following.stdout.readline()
    following.send_signal(2)
    assert following.wait(TIME) == -2
    assert following.stderr is not None
    assert following.stderr.read() == ""
