"""iscsifsctl on a mount of a real target."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import iscsifs
from iscsifs.exit_status import ExitStatus
from support.mounting import ENVIRONMENT, TIME, Mounted, MountHosts
from support.targets import Serve, Target, Tgt, Unit, make_image

NAME = "iqn.2026-01.example:disk"
MIB = 1 << 20

pytestmark = [pytest.mark.real, pytest.mark.mount]


@pytest.fixture
def tgt(serve: Serve, tmp_path: Path) -> Tgt:
    return serve(Tgt(tmp_path, Target(NAME, [Unit(make_image(tmp_path / "image", MIB))])))


@pytest.fixture
def mounted(tgt: Tgt, mount_hosts: MountHosts) -> Mounted:
    return mount_hosts("-o", "sync", tgt.portal)


def start(mounted: Mounted, *words: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "iscsifs.ctl", "-m", str(mounted.path), *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ENVIRONMENT,
    )


def control(mounted: Mounted, *words: object, status: int = 0) -> str:
    """Return what the command prints, as an error where *status* is one."""
    process = start(mounted, *words)
    out, error = process.communicate(timeout=TIME)
    assert (process.returncode, bool(error)) == (status, bool(status)), out + error
    return error if status else out


def words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_it_lists_and_shows_what_is_mounted(mounted: Mounted) -> None:
    (target,) = json.loads(control(mounted, "list", "--json"))["targets"]
    assert (target["place"], target["targetname"]) == ("127.0.0.1/disk", NAME)
    (unit,) = [unit for unit in target["units"] if unit["size"] is not None]
    assert (unit["place"], unit["size"], unit["vendor"]) == ("127.0.0.1/disk/lun1", MIB, "IET")
    assert ["wwid:", unit["wwid"]] in words(control(mounted, "show", unit["wwid"]))
    for word in (NAME, f"{mounted.path}/127.0.0.1/disk", "disk"):
        assert ["targetname:", NAME] in words(control(mounted, "show", word))
    config = dict(json.loads(control(mounted, "show", "--json"))["config"][0])
    assert config["sync"] == "yes"
    assert iscsifs.__version__ in control(mounted, "show")


def test_a_unit_that_comes_is_told_by_rescan(mounted: Mounted, tgt: Tgt, tmp_path: Path) -> None:
    tgt.add_unit(tgt.targets[0], 2, Unit(make_image(tmp_path / "second", 2 * MIB)))
    assert control(mounted, "rescan") == f"127.0.0.1/disk/lun2: new, {2 * MIB} bytes\n"
    assert control(mounted, "rescan", "disk") == ""


def test_what_is_not_there_is_told(mounted: Mounted) -> None:
    said = control(mounted, "show", "disk/lun7", status=ExitStatus.NO_TARGET)
    assert said.startswith("iscsifsctl: disk/lun7: no such host, target or unit")


def test_an_interrupt_ends_it_where_the_mount_does_not_answer(mounted: Mounted) -> None:
    """No request to a process that is stopped is ended by a signal which Python handles."""
    (pid,) = mounted.pids
    os.kill(pid, signal.SIGSTOP)
    try:
        process = start(mounted, "list")
        time.sleep(1.0)  # by then it has asked
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(10) == -signal.SIGINT
        finally:
            process.kill()
            process.communicate()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert control(mounted, "list")


def test_it_leaves_the_mount_free_and_unmounts_it(mounted: Mounted) -> None:
    control(mounted, "list")
    assert control(mounted, "unmount") == ""
    assert not mounted.is_mounted()
    assert not mounted.pids


def test_hosts_and_targets_come_and_go(mounted: Mounted, tgt: Tgt) -> None:
    host, place = "127.0.0.1", "127.0.0.1/disk"

    def places() -> list[str]:
        return [target["place"] for target in json.loads(control(mounted, "list", "--json"))["targets"]]

    control(mounted, "logout", "disk")
    assert places() == []
    control(mounted, "login", place)
    assert places() == [place]
    control(mounted, "remove", host)
    assert places() == []
    assert control(mounted, "add", tgt.portal) == f"{mounted.path}/{tgt.portal}/disk\n"
    assert places() == [f"{tgt.portal}/disk"]
    kinds = [json.loads(line)["event"] for line in control(mounted, "events", "--json").splitlines()]
    assert [kind for kind in kinds if kind in ("login", "logout")] == ["login", "logout"] * 2 + ["login"]


def test_what_fails_is_told_with_the_sentence_of_the_mount(mounted: Mounted) -> None:
    for words, status, sentence in (
        (("add", "127.0.0.1:1"), ExitStatus.UNREACHABLE, "Connection refused"),
        (("add", "host.invalid"), ExitStatus.UNREACHABLE, "cannot be looked up"),
        (("login", "127.0.0.1/other"), ExitStatus.NO_TARGET, "no source tells of this target"),
    ):
        assert sentence in control(mounted, *words, status=status)
    with open(mounted.storage(), "r+b"):
        assert "it is open" in control(mounted, "logout", "disk", status=ExitStatus.FAILED)
    assert json.loads(control(mounted, "list", "--json"))["targets"]
