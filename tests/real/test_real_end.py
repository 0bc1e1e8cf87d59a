"""The end of a mount, in every way there is: all is written, logged out of, unmounted and gone."""

import os
import random
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.mounting import ENVIRONMENT, ISCSIFS, TIME, Mounted, MountHosts, iscsifs, run, wait_until
from support.targets import Daemon, Istgt, Serve, Target, Tgt, Unit

NAME = "iqn.2026-01.example:disk"
NOBODY = 65534
MIB = 1 << 20

pytestmark = [pytest.mark.real, pytest.mark.mount]

END: dict[str, Callable[[Mounted], object]] = {
    "fusermount3": lambda mounted: run("fusermount3", "-u", mounted.path),
    "umount": lambda mounted: run("umount", mounted.path),
    "SIGINT": lambda mounted: mounted.signal(signal.SIGINT),
    "SIGTERM": lambda mounted: mounted.signal(signal.SIGTERM),
}


def write(storage: Path) -> bytes:
    """Write something at the beginning and at the end of a disk, without synchronising it."""
    content = random.Random(1).randbytes(MIB + 77)
    with open(storage, "r+b", buffering=0) as file:
        file.write(content)
        file.seek(-len(content), os.SEEK_END)
        file.write(content)
    return content


def check(daemon: Daemon, image: Path, content: bytes) -> None:
    """All that was written is there, and nobody is logged in."""
    with image.open("rb") as file:
        assert file.read(len(content)) == content
        file.seek(-len(content), os.SEEK_END)
        assert file.read() == content
    assert connections(daemon.port) == []
    if isinstance(daemon, Tgt):
        for target in daemon.targets:
            assert daemon.adm(op="show", mode="conn", tid=daemon.tid(target)) == ""
        assert "I_T nexus:" not in daemon.adm(op="show", mode="target")
    if isinstance(daemon, Istgt):
        # It flushes its log by and by, and then says who had gone without a logout.
        assert "drop" not in daemon.log_text()


def connections(port: int) -> list[str]:
    """Return the lines of the connections to *port* that are open."""
    rows = Path("/proc/net/tcp").read_text().splitlines()
    return [row for row in rows if row.split()[2].endswith(f":{port:04X}") and row.split()[3] == "01"]


@pytest.mark.parametrize("end", END)
def test_a_mount_in_the_foreground_ends(
    any_target: type[Daemon],
    end: str,
    serve: Serve,
    mount_hosts: MountHosts,
    require_root: None,
    image: Path,
    tmp_path: Path,
) -> None:
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(image)])))
    mounted = mount_hosts(f"iscsi://{daemon.portal}/{NAME}", foreground=True)
    content = write(mounted.storage())
    assert len(connections(daemon.port)) == 1
    END[end](mounted)
    assert mounted.status() == 0
    assert not mounted.is_mounted()
    check(daemon, image, content)
    assert mounted.process is not None
    assert mounted.process.communicate() == (f"127.0.0.1: {daemon.portal},1 {NAME}\n", "")


@pytest.mark.parametrize("end", END)
def test_a_mount_in_the_background_ends(
    end: str, serve: Serve, mount_hosts: MountHosts, require_root: None, image: Path, tmp_path: Path
) -> None:
    tgt = serve(Tgt(tmp_path, Target(NAME, [Unit(image)])))
    mounted = mount_hosts(tgt.portal)
    content = write(mounted.storage())
    assert len(mounted.pids) == 1
    END[end](mounted)
    mounted.wait()
    check(tgt, image, content)


def test_who_sees_it_unmounted_by_a_signal_knows_that_all_is_done(
    serve: Serve, mount_hosts: MountHosts, image: Path, tmp_path: Path
) -> None:
    tgt = serve(Tgt(tmp_path, Target(NAME, [Unit(image)])))
    mounted = mount_hosts(tgt.portal)
    content = write(mounted.storage())
    mounted.signal(signal.SIGTERM)
    wait_until(lambda: not mounted.is_mounted(), "unmounted")
    check(tgt, image, content)
    mounted.wait()


def test_a_busy_mount_is_not_unmounted(
    serve: Serve, mount_hosts: MountHosts, image: Path, tmp_path: Path
) -> None:
    tgt = serve(Tgt(tmp_path, Target(NAME, [Unit(image)])))
    mounted = mount_hosts(tgt.portal)
    with open(mounted.storage(), "r+b", buffering=0) as file:
        assert "busy" in run("fusermount3", "-u", mounted.path, check=False).lower()
        file.write(b"still there")
    mounted.unmount()
    assert image.read_bytes()[:11] == b"still there"


def test_it_goes_to_the_background_only_once_it_is_mounted(
    either: type[Daemon], serve: Serve, image: Path, tmp_path: Path
) -> None:
    daemon = serve(either(tmp_path, Target(NAME, [Unit(image)])))
    path = tmp_path / "mnt"
    path.mkdir()
    mounted = Mounted(path)
    daemon.freeze()
    command = [*ISCSIFS, daemon.portal, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=os.environ | ENVIRONMENT)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        assert not mounted.is_mounted()
        daemon.thaw()
        assert process.wait(TIME) == 0
        assert mounted.is_mounted()
        (pid,) = mounted.pids
        assert pid != process.pid
        assert os.getsid(pid) not in (os.getsid(0), process.pid)
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)} == {"/dev/null"}
        mounted.unmount()
    finally:
        daemon.thaw()
        process.kill()
        process.wait()
        mounted.close()


def test_the_same_place_can_be_mounted_again(
    either: type[Daemon], serve: Serve, image: Path, tmp_path: Path
) -> None:
    """At once after umount(8) has come back, and even while the old process is still at its logout."""
    daemon = serve(either(tmp_path, Target(NAME, [Unit(image)])))
    path = tmp_path / "mnt"
    path.mkdir()
    mounted = Mounted(path)
    try:
        for number in range(3):
            done = iscsifs(f"iscsi://{daemon.portal}/{NAME}", path)
            assert (done.returncode, done.stderr) == (0, "")
            with open(mounted.storage(), "r+b", buffering=0) as file:
                assert file.read(1) == bytes([number])
                file.seek(0)
                file.write(bytes([number + 1]))
            run("fusermount3", "-u", path)
            if number:
                mounted.wait()
            else:
                wait_until(lambda: image.read_bytes()[0] == 1, "written")
        mounted.wait()
    finally:
        mounted.close()


def as_nobody(*command: object) -> str:
    return run("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command)


def test_an_ordinary_user_mounts_uses_and_unmounts(
    any_target: type[Daemon],
    serve: Serve,
    mount_hosts: MountHosts,
    require_root: None,
    image: Path,
    tmp_path: Path,
) -> None:
    if not os.stat("/dev/fuse").st_mode & stat.S_IWOTH:
        pytest.skip("/dev/fuse is for root only: chmod 666 /dev/fuse")
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(image)])))
    mounted = mount_hosts(daemon.portal, user=NOBODY)
    storage = mounted.storage()
    assert as_nobody("stat", "-c", "%u %g %a", storage) == f"{NOBODY} {NOBODY} 600\n"
    as_nobody("sh", "-c", f"printf 'by nobody' >{storage}")
    assert as_nobody("head", "-c", "9", storage) == "by nobody"
    as_nobody("fusermount3", "-u", mounted.path)
    mounted.wait()
    assert image.read_bytes()[:9] == b"by nobody"
    assert connections(daemon.port) == []
