"""Unmounting that waits for the process behind a mount: iscsifs --unmount, and the helper of umount(8)."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Timer

import pytest

from iscsifs.exit_status import ExitStatus
from iscsifs.fs.record import mount_at
from support.mounting import ENVIRONMENT, ISCSIFS, TIME, Mounted, MountHosts, iscsifs, run, wait_until
from support.targets import Serve, Target, Tgt, Unit

NAME = "iqn.2026-01.example:disk"
NOBODY = 65534

pytestmark = [pytest.mark.real, pytest.mark.mount]

_HELPER = "import sys; from iscsifs.unmount import helper; sys.exit(helper())"


@pytest.fixture
def tgt(serve: Serve, tmp_path: Path, image: Path) -> Tgt:
    return serve(Tgt(tmp_path, Target(NAME, [Unit(image)]), io_threads=2))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def unmount(mounted: Mounted, user: int | None = None) -> subprocess.CompletedProcess[str]:
    return iscsifs("--unmount", mounted.path, user=user)


def umount(mounted: Mounted, *options: str) -> subprocess.CompletedProcess[str]:
    """Call the helper as umount(8) does."""
    words = [sys.executable, "-c", _HELPER, str(mounted.path), *options, "-t", "fuse.iscsifs"]
    environment = os.environ | ENVIRONMENT
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=TIME, env=environment)


def write(storage: Path) -> None:
    """Write and close; what is written may still be in the target's cache only."""
    with open(storage, "r+b", buffering=0) as file:
        file.write(b"x" * 4096)


def ended(mounted: Mounted) -> bool:
    return not mounted.pids and not mounted.is_mounted()


def records() -> list[str]:
    """The records of root, but not those of other mounts of this machine."""
    directory = Path("/run/iscsifs")
    return [path.read_text() for path in directory.iterdir()] if directory.exists() else []


def waits(future: "Future[subprocess.CompletedProcess[str]]", mounted: Mounted) -> None:
    """Have the mount gone, and *future* still wait."""
    wait_until(lambda: not mounted.is_mounted(), "it is unmounted")
    time.sleep(1.5)  # after which the process says what it waits for
    assert not future.done()


@pytest.mark.parametrize("command", [unmount, umount])
def test_it_waits_until_everything_is_written(
    command: object, tgt: Tgt, mount_hosts: MountHosts, pool: ThreadPoolExecutor
) -> None:
    assert callable(command)
    mounted = mount_hosts(tgt.portal)
    write(mounted.storage())
    tgt.freeze()
    waiting = pool.submit(command, mounted)
    waits(waiting, mounted)
    tgt.thaw()
    done = waiting.result()
    assert ended(mounted)
    assert (done.returncode, done.stdout) == (ExitStatus.OK, "")
    assert "not all that was written is on stable storage; trying for 30 seconds in all" in done.stderr
    assert not any(str(mounted.path) in record for record in records())


def test_what_was_unmounted_in_another_way_is_waited_for_by_everybody(
    tgt: Tgt, mount_hosts: MountHosts, pool: ThreadPoolExecutor
) -> None:
    mounted = mount_hosts(tgt.portal)
    write(mounted.storage())
    tgt.freeze()
    run("fusermount3", "-u", mounted.path)
    assert mounted.pids  # that does not wait
    waiting = [pool.submit(unmount, mounted) for _ in range(2)]
    waits(waiting[0], mounted)
    assert not waiting[1].done()
    tgt.thaw()
    assert [future.result().returncode for future in waiting] == [ExitStatus.OK] * 2
    assert ended(mounted)


def test_what_was_lost_is_printed_and_is_the_exit_status(
    tgt: Tgt, mount_hosts: MountHosts, pool: ThreadPoolExecutor
) -> None:
    mounted = mount_hosts(tgt.portal)
    write(mounted.storage())
    (pid,) = mounted.pids
    tgt.freeze()
    waiting = pool.submit(unmount, mounted)
    waits(waiting, mounted)
    for _ in range(2):
        os.kill(pid, signal.SIGTERM)  # so that it does not take its 30 seconds
        time.sleep(0.2)
    done = waiting.result()
    assert done.returncode == ExitStatus.NOT_WRITTEN
    assert f"iscsifs: {NAME} LUN 1: data may be lost: " in done.stderr
    assert ended(mounted)


def test_a_process_that_is_killed_meanwhile_is_a_loss(
    tgt: Tgt, mount_hosts: MountHosts, pool: ThreadPoolExecutor
) -> None:
    mounted = mount_hosts(tgt.portal)
    write(mounted.storage())
    (pid,) = mounted.pids
    tgt.freeze()
    waiting = pool.submit(unmount, mounted)
    waits(waiting, mounted)
    os.kill(pid, signal.SIGKILL)
    done = waiting.result()
    assert done.returncode == ExitStatus.NOT_WRITTEN
    assert "its process was killed; what it had not written is lost" in done.stderr


def test_a_process_that_was_killed_before_leaves_nothing_in_the_way(
    tgt: Tgt, mount_hosts: MountHosts
) -> None:
    mounted = mount_hosts(tgt.portal)
    mounted.signal(signal.SIGKILL)
    wait_until(lambda: not mounted.pids, "it is dead")
    done = unmount(mounted)
    assert done.returncode == ExitStatus.NOT_WRITTEN
    assert done.stderr == f"iscsifs: {mounted.path}: its process had died; what it had not written is lost\n"
    assert ended(mounted)
    mounted.start(tgt.portal)
    assert mounted.said.returncode == 0
    done = unmount(mounted)
    assert (done.returncode, done.stderr) == (ExitStatus.OK, "")


@pytest.mark.parametrize("command", [unmount, umount])
def test_what_is_in_use_stays_and_its_users_are_named(
    command: object, tgt: Tgt, mount_hosts: MountHosts
) -> None:
    assert callable(command)
    mounted = mount_hosts(tgt.portal)
    with mounted.storage().open("rb"):
        done = command(mounted)
    assert done.returncode == ExitStatus.FAILED
    assert re.fullmatch(
        rf"iscsifs: {mounted.path}: target is busy: in use by \S+ \({os.getpid()}\); nothing was unmounted\n",
        done.stderr,
    )
    assert mounted.is_mounted()
    assert unmount(mounted).returncode == ExitStatus.OK


@pytest.mark.parametrize("command", [unmount, umount])
def test_a_mount_that_is_busy_for_a_moment_is_unmounted_then(
    command: object, tgt: Tgt, mount_hosts: MountHosts
) -> None:
    """Its own process opens files for moments. Here a descriptor that is under way keeps it busy."""
    assert callable(command)
    mounted = mount_hosts(tgt.portal)
    near, far = socket.socketpair()
    with near, far:
        descriptor = os.open(mounted.storage(), os.O_RDONLY)
        socket.send_fds(near, [b"x"], [descriptor])
        os.close(descriptor)
        timer = Timer(0.7, far.close)  # with it goes what is under way
        timer.start()
        done = command(mounted)
        timer.join()
    assert (done.returncode, done.stderr) == (ExitStatus.OK, "")
    assert ended(mounted)


def test_a_loop_device_that_uses_it_is_named(tgt: Tgt, mount_hosts: MountHosts, require_root: None) -> None:
    mounted = mount_hosts(tgt.portal)
    device = run("losetup", "--find", "--show", mounted.storage()).strip()
    try:
        assert f"in use by {device}; nothing" in unmount(mounted).stderr
    finally:
        run("losetup", "-d", device)


def test_detaching_does_not_wait_and_can_be_waited_for_later(
    tgt: Tgt, mount_hosts: MountHosts, pool: ThreadPoolExecutor, require_root: None
) -> None:
    mounted = mount_hosts(tgt.portal)
    with mounted.storage().open("rb"):
        assert umount(mounted, "-l").returncode == ExitStatus.OK
        assert not mounted.is_mounted()
        words = [*ISCSIFS, "--unmount", str(mounted.path)]
        waiting = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT)
        assert waiting.stderr is not None
        said = pool.submit(waiting.stderr.readline).result(TIME)
        assert "still serves it: files are open, or it is mounted elsewhere too; waiting" in said
        assert waiting.poll() is None
    waiting.communicate(timeout=TIME)
    assert waiting.returncode == ExitStatus.OK
    assert ended(mounted)


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    done = iscsifs("--unmount", tmp_path)
    assert done.returncode == ExitStatus.USAGE
    assert f"{tmp_path}: nothing is mounted there" in done.stderr
    done = iscsifs("-U", "/proc")
    assert done.returncode == ExitStatus.USAGE
    assert done.stderr == "iscsifs: /proc: is not ours but of type proc; unmount with: umount /proc\n"
    assert mount_at(Path("/proc")) is not None


def test_an_ordinary_user_waits_too_and_so_does_root_for_that_user(
    tgt: Tgt, mount_hosts: MountHosts, pool: ThreadPoolExecutor, require_root: None
) -> None:
    for waiter in NOBODY, None:
        mounted = mount_hosts(tgt.portal, user=NOBODY)
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        run(*user, "dd", "if=/dev/zero", f"of={mounted.storage()}", "count=1", "conv=notrunc")
        tgt.freeze()
        waiting = pool.submit(unmount, mounted, waiter)
        waits(waiting, mounted)
        tgt.thaw()
        assert waiting.result().returncode == ExitStatus.OK
        assert ended(mounted)


def test_the_number_of_the_process_is_kept_in_a_file(
    tgt: Tgt, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    path = tmp_path / "pid"
    path.write_text("1\n")  # what a process that was killed has left
    mounted = mount_hosts("--pid-file", path, tgt.portal)
    assert [int(path.read_text())] == mounted.pids
    assert unmount(mounted).returncode == ExitStatus.OK
    assert not path.exists()


def test_a_file_for_the_number_that_cannot_be_written_is_named(
    tgt: Tgt, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    mounted = mount_hosts(tgt.portal)  # for a directory to mount on
    unmount(mounted)
    mounted.start("-o", f"pid_file={tmp_path}/no/pid", tgt.portal)
    assert mounted.said.returncode == ExitStatus.USAGE
    assert mounted.said.stderr == f"iscsifs: PID file {tmp_path}/no/pid: No such file or directory\n"
    assert not mounted.is_mounted()
