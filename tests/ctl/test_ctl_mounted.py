"""iscsifsctl finds the mount, and says why it cannot be used."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsifs.ctl import mounted
from iscsifs.ctl.mounted import CONTROL, Mount, find_mount
from iscsifs.errors import ConfigError
from iscsifs.exit_status import ExitStatus
from iscsifs.fs.record import MountEntry
from iscsifs.target.testing import TestTarget
from support.control_tree import ControlTree
from support.mounting import ENVIRONMENT, TIME, MountHosts, run, wait_until

NOBODY = 65534
AS_USER = """import os, sys; from iscsifs.ctl.cli import main; user = int(sys.argv.pop(1))
os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user); sys.exit(main())"""


def control(*words: object, user: int | None = None) -> tuple[int, str, str]:
    """Run the command as a user does; return its status and what it said."""
    command = ["-m", "iscsifs.ctl"] if user is None else ["-c", AS_USER, str(user)]
    done = subprocess.run(
        [sys.executable, *command, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIME,
        env=os.environ | ENVIRONMENT,
    )
    assert done.stderr.count("\n") <= 1, done.stderr
    return done.returncode, done.stdout, done.stderr


# Which mount


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> list[MountEntry]:
    """What is mounted; the test adds to it."""
    entries: list[MountEntry] = []
    monkeypatch.setattr(mounted, "mounts", lambda: iter(entries))
    return entries


def entry(path: str, owner: int | None = None, fstype: str = "fuse.iscsifs", device: str = "") -> MountEntry:
    return MountEntry("1", device or path, Path(path), fstype, os.geteuid() if owner is None else owner)


def test_without_any_mount_there_is_a_line(table: list[MountEntry]) -> None:
    table.append(entry("/mnt/other", fstype="fuse.sshfs"))
    with pytest.raises(ConfigError, match="^iscsifs has mounted nothing; mount targets with: iscsifs HOST"):
        find_mount(None)
    with pytest.raises(ConfigError, match="^/mnt/other: iscsifs has mounted nothing there"):
        find_mount(Path("/mnt/other"))


def test_the_only_one_is_it_and_our_own_before_those_of_others(table: list[MountEntry]) -> None:
    table.append(entry("/mnt/theirs", owner=os.geteuid() + 1))
    assert find_mount(None) == Mount(Path("/mnt/theirs"), os.geteuid() + 1)
    table.append(entry("/mnt/ours"))
    assert find_mount(None) == Mount(Path("/mnt/ours"), os.geteuid())
    table.append(entry("/srv/ours", device="/mnt/ours"))  # the same, bound to another place
    assert find_mount(None).path == Path("/mnt/ours")
    table.append(entry("/mnt/more \x1b"))
    with pytest.raises(ConfigError) as caught:
        find_mount(None)
    assert str(caught.value) == (
        "iscsifs has mounted 2 file systems: /mnt/more \\x1b, /mnt/ours; choose one with -m"
    )


def test_a_path_in_it_is_it(table: list[MountEntry], tmp_path: Path) -> None:
    table.extend([entry(str(tmp_path / "a")), entry(str(tmp_path / "a/b"))])
    (tmp_path / "link").symlink_to("a")
    for path, found in (("a", "a"), ("a/x/storage", "a"), ("a/b/x", "a/b"), ("link/x", "a"), ("a/../a", "a")):
        assert find_mount(tmp_path / path).path == tmp_path / found
    with pytest.raises(ConfigError):
        find_mount(tmp_path / "ab")


def test_what_is_hidden_by_another_mount_is_not_there(table: list[MountEntry]) -> None:
    table.extend([entry("/mnt/a"), entry("/mnt/a", fstype="ext4")])
    with pytest.raises(ConfigError):
        find_mount(None)


# What may be wrong with it


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ECONNABORTED])
def test_a_process_that_dies_in_the_middle_is_told(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from iscsifs.ctl.cli import main

    tree = ControlTree(tmp_path / "mnt")
    tree.add_target()

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    for call, words in (("rmdir", ("logout", "disk")), ("mkdir", ("add", "h")), ("readlink", ("list",))):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            assert main(words, find_mount=tree.find) == ExitStatus.FAILED
        said = capsys.readouterr().err
        assert said == (
            f"iscsifsctl: {tree.path}: the process that served it has died;"
            f" clear it with: iscsifsctl unmount {tree.path}\n"
        )


@pytest.mark.mount
def test_the_mount_of_a_dead_process_is_told_and_can_be_cleared(
    iscsi_target: TestTarget, mount_hosts: MountHosts
) -> None:
    mounted = mount_hosts(f"{iscsi_target.host}:{iscsi_target.port}")
    mounted.signal(signal.SIGKILL)
    wait_until(lambda: not mounted.pids, "it is dead")
    for words in (("list",), ("events", "-f"), ("top",), ("add", "192.0.2.1"), ("trace", "stop")):
        status, out, error = control(*words, "-m", mounted.path)
        assert (status, out) == (ExitStatus.FAILED, "")
        assert "the process that served it has died" in error
    status, out, error = control("unmount", mounted.path)
    assert (status, out) == (ExitStatus.NOT_WRITTEN, "")
    assert "what it had not written is lost" in error
    assert not mounted.is_mounted()


@pytest.mark.mount
@pytest.mark.usefixtures("require_root")
def test_a_mount_of_somebody_else_is_told(iscsi_target: TestTarget, mount_hosts: MountHosts) -> None:
    theirs = mount_hosts(f"{iscsi_target.host}:{iscsi_target.port}", user=NOBODY)
    for words in (
        ("list",),
        ("show", f"{theirs.path}/x"),
        ("logout", f"{theirs.path}/h/t"),
        ("save", "/tmp/x"),
    ):
        status, out, error = control("-m", theirs.path, *words)
        assert (status, out) == (ExitStatus.FAILED, "")
        assert error == (
            f"iscsifsctl: {theirs.path}: belongs to nobody; only that user can do this: sudo -u nobody ...\n"
        )


@pytest.mark.mount
def test_unmount_waits_and_takes_the_mount_in_any_form(
    iscsi_target: TestTarget, mount_hosts: MountHosts
) -> None:
    host = f"{iscsi_target.host}:{iscsi_target.port}"
    for words in (["unmount", "MNT"], ["-m", "MNT", "unmount"], ["unmount", "-m", "MNT"]):
        mounted = mount_hosts(host)
        assert control(*(word.replace("MNT", str(mounted.path)) for word in words)) == (0, "", "")
        assert not mounted.is_mounted()
        assert not mounted.pids
    status, _, error = control("unmount", mounted.path)
    assert status == ExitStatus.USAGE
    assert "nothing is mounted there" in error
    assert control("unmount", "-m", "/x", "/y")[0] == ExitStatus.USAGE


OLD = """import os, stat, sys
import pyfuse3, trio
class Empty(pyfuse3.Operations):
    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode, entry.st_uid = inode, stat.S_IFDIR | 0o755, os.getuid()
        return entry
    async def lookup(self, parent, name, ctx=None):
        raise pyfuse3.FUSEError(2)
pyfuse3.init(Empty(), sys.argv[1], {"fsname=old", "subtype=iscsifs"})
print("mounted", flush=True)
trio.run(pyfuse3.main)
"""


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Path]:
    """A mount as those of before, which have no files of control."""
    path = tmp_path / "old"
    path.mkdir()
    process = subprocess.Popen([sys.executable, "-c", OLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "mounted\n"
        yield path
    finally:
        run("fusermount3", "-u", "-z", path, check=False)
        process.kill()
        process.communicate()


@pytest.mark.mount
def test_an_older_iscsifs_has_no_such_files(old: Path) -> None:
    for words in (("list",), ("stats", "-i", "1"), ("rescan",), ("add", "192.0.2.1")):
        assert control("-m", old, *words) == (
            ExitStatus.FAILED,
            "",
            f"iscsifsctl: {old}: has no {CONTROL}: it is served by an older iscsifs, which cannot be"
            " controlled; unmount it and mount it again\n",
        )
    assert not os.path.exists(old / "192.0.2.1")


# The command itself


@pytest.mark.parametrize("words", [["-V"], ["-h"], ["list", "-h"]])
def test_a_summary_that_cannot_be_printed_is_one_line_of_why(words: list[str]) -> None:
    command = f"{sys.executable} -m iscsifs.ctl {' '.join(words)}"
    for redirection, status, said in (
        (">/dev/full", 1, "standard output: No space left on device"),
        (">&-", 0, ""),
        ("| true; exit ${PIPESTATUS[0]}", None, ""),
    ):
        done = subprocess.run(
            ["bash", "-c", f"{command} {redirection}"],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | ENVIRONMENT,
            timeout=TIME,
        )
        assert status is None or done.returncode == status
        assert done.stderr.partition(": ")[2].strip() == said
        assert done.stderr.count("\n") <= 1


@pytest.mark.parametrize(
    "words", [[], ["nonsense"], ["list", "x"], ["--nonsense"], ["top", "-s", "x"], ["stats", "-c", "-1"]]
)
def test_a_wrong_command_line_is_one_line(words: list[str]) -> None:
    status, out, error = control(*words)
    assert (status, out) == (ExitStatus.USAGE, "")
    assert error.startswith("iscsifsctl")
    assert error.endswith("-h\n")
