"""iscsifsctl: the commands that change a mount, and why they fail."""

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from iscsifs.ctl.cli import main
from iscsifs.exit_status import ExitStatus
from support.control_tree import HOST, ControlTree

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tree(tmp_path: Path) -> ControlTree:
    return ControlTree(tmp_path / "mnt")


@pytest.fixture
def unit(tree: ControlTree) -> Path:
    return tree.add_unit(tree.add_target())


@pytest.fixture
def run(tree: ControlTree, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; return its status and what it said."""

    def run(*words: str) -> tuple[int, str, str]:
        status = main(words, find_mount=tree.find)
        return status, *capsys.readouterr()

    return run


def failing(
    monkeypatch: pytest.MonkeyPatch, name: str, number: int, before: Callable[[], None] = lambda: None
) -> None:
    """Have the system call *name* fail as in a mount that has done *before*."""

    def fail(*_: object, **__: object) -> None:
        before()
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fail)


# add, remove, login, logout


@pytest.mark.parametrize("host", ["192.0.2.7", "array.example.com:3261", "[2001:db8::1]:3260", "2001:db8::1"])
def test_a_host_is_attached_by_a_directory(host: str, tree: ControlTree, run: Run) -> None:
    assert run("add", host) == (0, "", "")
    assert (tree.path / host).is_dir()
    assert tree.command(".iscsifs", "attach") == ""


@pytest.mark.parametrize(
    "source",
    [
        "iscsi://alice@192.0.2.7/iqn.2001-04.com.example:disk1/0",
        "iscsi:192.0.2.7::::iqn.2001-04.com.example:disk1",
        "isns://192.0.2.7",
        "alice@192.0.2.7",
        ".hidden",
    ],
)
def test_what_is_no_name_of_a_host_is_a_command(source: str, tree: ControlTree, run: Run) -> None:
    before = os.listdir(tree.path)
    assert run("add", source) == (0, "", "")
    assert tree.command(".iscsifs", "attach") == f"{source}\n"
    assert os.listdir(tree.path) == before


def test_a_nickname_is_a_command_too(tree: ControlTree, run: Run) -> None:
    assert run("add", "-n", "backup") == (0, "", "")
    assert tree.command(".iscsifs", "attach") == "backup\n"
    assert not (tree.path / "backup").exists()


def test_targets_that_came_are_told_and_those_that_did_not(
    tree: ControlTree, unit: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attach(path: Path) -> None:
        tree.add_target(path.name, "one")
        tree.add_target(path.name, "two")
        tree.event("login_failed", "three: the target refused the login", host=path.name, target="three")
        tree.event("login_failed", "of somewhere else", host="192.0.2.99")

    real = os.mkdir

    def attach_really(path: Path, *rest: int) -> None:
        real(path, *rest)
        if Path(path) == tree.path / "192.0.2.7":
            attach(Path(path))

    monkeypatch.setattr(os, "mkdir", attach_really)
    status, out, error = run("add", "192.0.2.7")
    assert status == ExitStatus.PARTIAL
    assert out.splitlines() == [f"{tree.path}/192.0.2.7/one", f"{tree.path}/192.0.2.7/two"]
    assert error == "iscsifsctl: three: the target refused the login\n"


@pytest.mark.parametrize("source", ["", "a\nb", "a\0b", "\x1b[2J", "x" * 4096])
def test_a_source_that_is_no_line_is_refused(source: str, tree: ControlTree, run: Run) -> None:
    before = os.listdir(tree.path)
    status, _, error = run("add", source)
    assert (status, error.count("\n"), error.isascii()) == (ExitStatus.USAGE, 1, True)
    assert "\x1b" not in error
    assert os.listdir(tree.path) == before
    assert tree.command(".iscsifs", "attach") == ""


@pytest.mark.parametrize("path", ["iscsi:ann:hush@h::::iqn.x", "iscsi:ann:hush:bob:hush@h::::iqn.x"])
def test_a_secret_in_a_root_path_is_not_printed_and_can_come_from_a_file(
    path: str, tree: ControlTree, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO(f"{path}\nanother line\n"))
        assert run("add", "-") == (0, "", "")
    assert tree.command(".iscsifs", "attach") == f"{path}\n"
    assert run("add", path + "\0")[2].startswith('iscsifsctl: source "iscsi:ann:***@h::::iqn.x\\x00": give')
    failing(monkeypatch, "write", errno.EINVAL)
    assert run("add", path) == (2, "", "iscsifsctl: iscsi:ann:***@h::::iqn.x: cannot be understood\n")
    assert run("add", "iscsi://ann@h/iqn.x")[2] == "iscsifsctl: iscsi://ann@h/iqn.x: cannot be understood\n"


def test_login_and_logout_are_a_directory(tree: ControlTree, unit: Path, run: Run) -> None:
    assert run("login", f"{HOST}/other") == (0, "", "")
    assert (tree.path / HOST / "other").is_dir()
    assert run("logout", f"{HOST}/other") == (0, "", "")
    assert not (tree.path / HOST / "other").exists()
    assert run("login", f"{tree.path}/{HOST}/other/") == (0, "", "")
    assert run("logout", f"{tree.path}/{HOST}/other/") == (0, "", "")
    (tree.path / "192.0.2.7").mkdir()
    assert run("remove", "192.0.2.7") == (0, "", "")
    assert not (tree.path / "192.0.2.7").exists()


@pytest.mark.parametrize(
    ("words", "status", "what"),
    [
        (("login", "disk"), ExitStatus.USAGE, "give HOST/TARGET"),
        (("login", f"{HOST}/disk/lun0"), ExitStatus.USAGE, "give HOST/TARGET"),
        (("login", "../x"), ExitStatus.USAGE, "give HOST/TARGET"),
        (("login", "/etc/x"), ExitStatus.USAGE, "has mounted nothing there"),
        (("login", "192.0.2.7/disk"), ExitStatus.NO_TARGET, "no such host"),
        (("login", f"{HOST}/disk"), ExitStatus.FAILED, "is there already"),
        (("add", HOST), ExitStatus.FAILED, "is there already"),
        (("logout", HOST), ExitStatus.USAGE, "is no target"),
        (("logout", f"{HOST}/disk/lun0"), ExitStatus.USAGE, "is no target"),
        (("logout", "nonsense"), ExitStatus.NO_TARGET, "no such host, target or unit"),
        (("remove", "disk"), ExitStatus.USAGE, "is no host"),
        (("remove", ".iscsifs"), ExitStatus.NO_TARGET, "no such host, target or unit"),
        (("remove", "by-id"), ExitStatus.NO_TARGET, "no such host, target or unit"),
        (("loop", HOST), ExitStatus.USAGE, "is no unit"),
        (("loop", "-d"), ExitStatus.USAGE, "give the unit"),
        (("trace", "start"), ExitStatus.USAGE, "give the file"),
        (("trace", "stop", "x"), ExitStatus.USAGE, "takes no file"),
        (("trace", "start", "a b"), ExitStatus.USAGE, "cannot have blanks"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_done(
    words: tuple[str, ...], status: ExitStatus, what: str, tree: ControlTree, unit: Path, run: Run
) -> None:
    def everything() -> list[str]:
        return sorted(f"{path} {path.lstat().st_mtime_ns}" for path in tree.path.rglob("*"))

    before = everything()
    found, out, error = run(*words)
    assert (found, out) == (status, "")
    assert error.startswith("iscsifsctl: ")
    assert what in error
    assert error.count("\n") == 1
    assert everything() == before


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [
        (errno.ENXIO, ExitStatus.UNREACHABLE, "the host is not known"),
        (errno.ECONNREFUSED, ExitStatus.UNREACHABLE, "is a target running there"),
        (errno.ETIMEDOUT, ExitStatus.UNREACHABLE, "is the host up"),
        (errno.EACCES, ExitStatus.REFUSED, "the login was refused"),
        (errno.ENOSPC, ExitStatus.FAILED, "as many targets as there may be"),
        (errno.EINVAL, ExitStatus.USAGE, "cannot be understood"),
        (errno.EEXIST, ExitStatus.FAILED, "is there already"),
        (errno.EPERM, ExitStatus.FAILED, "cannot be done there"),
        (errno.EROFS, ExitStatus.FAILED, "the mount is read-only"),
    ],
)
def test_each_errno_of_mkdir_has_its_words_and_status(
    number: int, status: ExitStatus, words: str, tree: ControlTree, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "mkdir", number)
    found, out, error = run("add", "192.0.2.7")
    assert (found, out) == (status, "")
    assert error.startswith("iscsifsctl: 192.0.2.7: ")
    assert words in error
    assert error.count("\n") == 1


def test_the_sentence_of_the_mount_comes_before_the_errno(
    tree: ControlTree, unit: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one, and not what others have failed with meanwhile."""
    tree.event("login_failed", "an old story", host="192.0.2.7")

    def happen() -> None:
        tree.event("login_failed", "192.0.2.7: wrong secret \x1b[2J", host="192.0.2.7", target="disk")
        tree.event("source_added", "192.0.2.7: looked up", host="192.0.2.7")
        tree.event("login_failed", "of somewhere else", host="192.0.2.99")

    failing(monkeypatch, "mkdir", errno.EACCES, happen)
    assert run("add", "192.0.2.7:3261") == (
        ExitStatus.REFUSED,
        "",
        "iscsifsctl: 192.0.2.7: wrong secret \\x1b[2J\n",
    )
    failing(monkeypatch, "rmdir", errno.EBUSY)
    status, _, error = run("logout", "disk")
    assert (status, error) == (
        ExitStatus.FAILED,
        f"iscsifsctl: {HOST}/disk: is in use; close its files, detach its loop devices and try again\n",
    )


def test_the_sentence_is_found_where_the_events_are_turned_meanwhile(
    tree: ControlTree, unit: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def happen() -> None:
        tree.event("login_failed", "the reason", host=HOST)
        tree.turn_events()

    failing(monkeypatch, "mkdir", errno.EACCES, happen)
    assert run("login", f"{HOST}/x")[2] == "iscsifsctl: the reason\n"


# rescan


def test_rescan_asks_every_target_or_those_that_are_named(tree: ControlTree, unit: Path, run: Run) -> None:
    other = tree.add_target("192.0.2.2", "other")

    def asked() -> list[str]:
        files = [path for path in tree.path.rglob("rescan") if path.read_text()]
        found = [str(path.parent.relative_to(tree.path)) for path in files]
        assert all(tree.command(*path.relative_to(tree.path).parts) == "1\n" for path in files)
        return sorted(found)

    for words, places in (
        ((), [f"{HOST}/disk", "192.0.2.2/other"]),
        ((str(tree.path),), [f"{HOST}/disk", "192.0.2.2/other"]),
        (("disk",), [f"{HOST}/disk"]),
        (("192.0.2.2",), ["192.0.2.2/other"]),
        ((str(other),), ["192.0.2.2/other"]),
        (("disk/lun0",), [f"{HOST}/disk/lun0"]),
    ):
        assert run("rescan", *words) == (0, "", "")
        assert asked() == sorted(places)


def test_rescan_tells_what_has_changed(
    tree: ControlTree, unit: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tree.add_unit(unit.parent, 1, wwid="naa.1")
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        gone.rename(tree.path.parent / "gone")
        tree.add_unit(unit.parent, 2, 512, wwid="naa.2")
        os.truncate(unit / "storage", 128 << 20)
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    status, out, error = run("rescan", "disk")
    assert (status, error) == (0, "")
    assert out.splitlines() == [
        f"{HOST}/disk/lun0: {64 << 20} bytes before, now {128 << 20}",
        f"{HOST}/disk/lun1: gone",
        f"{HOST}/disk/lun2: new, 512 bytes",
    ]


def test_a_target_that_fails_keeps_no_other_from_being_asked(tree: ControlTree, unit: Path, run: Run) -> None:
    tree.add_target("192.0.2.2", "other")
    (unit.parent / "rescan").unlink()
    status, _, error = run("rescan")
    assert status == ExitStatus.PARTIAL
    assert f"{HOST}/disk/rescan: is not there" in error
    assert tree.command("192.0.2.2", "other", "rescan") == "1\n"
    assert run("rescan", "disk")[0] == ExitStatus.FAILED


# loop, save, trace


def test_loop_attaches_and_tells_the_device(
    tree: ControlTree, unit: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        (unit / "device").symlink_to("/dev/loop7") if data == b"1\n" else (unit / "device").unlink()
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    assert run("loop", "disk") == (0, "/dev/loop7\n", "")
    assert tree.command(HOST, "disk", "lun0", "loop") == "1\n"
    (row,) = run("loop")[1].splitlines()[1:]
    assert row.split() == [f"{HOST}/disk/lun0", "64M", "/dev/loop7"]
    (shown,) = json.loads(run("loop", "--json")[1])
    assert shown["device"] == "/dev/loop7"
    assert run("loop", "-d", "disk/lun0") == (0, "", "")
    assert tree.command(HOST, "disk", "lun0", "loop") == "0\n"


def test_a_target_of_several_units_is_no_unit(tree: ControlTree, unit: Path, run: Run) -> None:
    tree.add_unit(unit.parent, 1, wwid="naa.1")
    status, _, error = run("loop", "disk")
    assert (status, error) == (
        ExitStatus.USAGE,
        f"iscsifsctl: disk: is no unit; give one of them, as in: {HOST}/disk/lun0\n",
    )


def test_files_are_given_as_whole_paths(
    tree: ControlTree, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process behind the mount has another directory."""
    monkeypatch.chdir(tmp_path)
    assert run("save", "a b.conf") == (0, "", "")
    assert tree.command(".iscsifs", "save") == f"{tmp_path}/a b.conf\n"
    assert run("trace", "start", "../x.pcapng", "--snaplen", "128") == (0, "", "")
    assert tree.command(".iscsifs", "trace") == f"{tmp_path.parent}/x.pcapng 128\n"
    assert run("trace", "start", "x.pcapng") == (0, "", "")
    assert tree.command(".iscsifs", "trace") == f"{tmp_path}/x.pcapng\n"
    assert run("trace", "stop") == (0, "", "")
    assert tree.command(".iscsifs", "trace") == "stop\n"


def test_a_command_is_one_write(tree: ControlTree, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []

    def write(_: int, data: bytes) -> int:
        written.append(data)
        return len(data)

    monkeypatch.setattr(os, "write", write)
    run("save", "/x")
    assert written == [b"/x\n"]


def test_a_mount_that_does_not_know_the_command_says_so(tree: ControlTree, unit: Path, run: Run) -> None:
    (unit / "loop").unlink()
    status, _, error = run("loop", "disk")
    assert (status, error) == (
        ExitStatus.FAILED,
        f"iscsifsctl: {unit}/loop: is not there: the iscsifs that serves the mount does not know this\n",
    )
    assert not (unit / "loop").exists()
