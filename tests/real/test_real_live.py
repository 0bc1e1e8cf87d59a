"""Hosts and targets that come and go by mkdir(2) and rmdir(2) in a real mount, with our own target."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from iscsifs.iscsi.names import Portal
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.server import Server
from support.mounting import Mounted, MountHosts, iscsifs, run, wait_until
from support.proxy import running

NAME = "iqn.2026-01.example:"
MIB = 1 << 20

pytestmark = [pytest.mark.real, pytest.mark.mount]


@pytest.fixture
def host() -> Iterator[str]:
    """A portal with two targets of one disk each."""
    devices = [Device(NAME + name, {0: Disk.in_memory(MIB, name)}) for name in ("disk", "other")]
    with running(partial(Server, devices)) as (server, _):
        yield str(server.portals[0])
    for device in devices:
        device.close()


@pytest.fixture
def empty(mount_hosts: MountHosts) -> Mounted:
    """A mount without a host."""
    mounted = mount_hosts()
    assert (mounted.said.returncode, mounted.said.stderr) == (0, "")
    return mounted


def events(mounted: Mounted) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (mounted.path / ".iscsifs/events").read_text().splitlines()]


def refused(call: Any) -> int:
    try:
        call()
    except OSError as exc:
        return exc.errno or 0
    pytest.fail("it was not refused")


def test_a_host_is_added_used_and_removed(empty: Mounted, host: str) -> None:
    path = empty.path / host
    assert run("ls", empty.path) == "by-id\n"
    path.mkdir()
    assert run("ls", path) == "disk\nother\n"
    data = os.urandom(MIB)
    (path / "disk/storage").write_bytes(data)
    assert (path / "disk/storage").read_bytes() == data
    with (path / "disk/storage").open("rb"):
        assert refused(path.rmdir) == errno.EBUSY
        assert refused((path / "disk").rmdir) == errno.EBUSY
        assert "it is open" in events(empty)[-1]["text"]
    assert refused(path.mkdir) == errno.EEXIST
    wait_until(lambda: run("rmdir", path, check=False) == "", "the kernel has told of the close")
    assert not path.exists()
    assert run("ls", empty.path) == "by-id\n"
    kinds = [event["event"] for event in events(empty)]
    assert kinds[:3] == ["login", "login", "source_added"]
    assert kinds[-3:] == ["logout", "logout", "source_removed"]
    run("mkdir", path)
    assert (path / "disk/storage").read_bytes() == data


@pytest.mark.conformance("CONTROL-1.7", "CONTROL-1.13")
def test_what_fails_is_an_errno_and_a_sentence(empty: Mounted, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
    assert refused((empty.path / f"127.0.0.1:{port}").mkdir) == errno.ECONNREFUSED
    assert "is a target running there" in events(empty)[-1]["text"]
    assert refused((empty.path / "no-such-host.invalid").mkdir) == errno.ENXIO
    assert refused((empty.path / "alice@host").mkdir) == errno.EINVAL
    assert refused((empty.path / ".hidden").mkdir) == errno.EINVAL
    assert refused((empty.path / ".iscsifs/x").mkdir) == errno.EPERM
    assert refused((empty.path / ".iscsifs").rmdir) == errno.EPERM
    assert refused((empty.path / "by-id").rmdir) == errno.EPERM
    assert not (empty.path / host).exists()
    done = run("mkdir", empty.path / host)
    assert done == ""
    assert (empty.path / host / "disk").exists()
    assert refused((empty.path / host / "disk/lun0").rmdir) == errno.EPERM


def test_one_target_goes_and_comes(empty: Mounted, host: str) -> None:
    path = empty.path / host
    path.mkdir()
    (path / "disk").rmdir()
    assert run("ls", path) == "other\n"
    (path / "disk").mkdir()
    assert run("ls", path) == "disk\nother\n"
    run("sh", "-c", f"echo 1 > {path}/disk/logout")
    assert run("ls", path) == "other\n"
    assert refused((path / "nothing").mkdir) == errno.ENODEV


@pytest.mark.conformance("CONTROL-1.4", "CONTROL-1.5", "CONTROL-1.6")
def test_control_files_take_what_shells_write(empty: Mounted, host: str) -> None:
    path = empty.path / host
    path.mkdir()
    for place in path / "disk", path / "disk/lun0":
        for file in place / "rescan", place / "reset":
            before = len(events(empty))
            run("sh", "-c", f"echo 1 >{file}; printf 1 >{file}; echo 1 >>{file}; : >{file}")
            assert run("sh", "-c", f"printf 1 | dd of={file} bs=1 2>&1 | tail -n 1").startswith("1 byte")
            new = events(empty)[before:]
            assert [event["event"] for event in new if event["event"].startswith("control")] == [
                "control"
            ] * 4
            assert "Invalid argument" in run("sh", "-c", f"/bin/echo 2 >{file}", check=False)
            assert str(file.relative_to(empty.path)) in events(empty)[-1]["text"]
            assert refused(partial(file.write_bytes, bytes(8192))) == errno.E2BIG
    assert refused((path / "disk/rescan").read_bytes) == errno.EACCES if os.geteuid() else True
    (path / "disk/storage").write_bytes(b"x" * MIB)
    assert (path / "disk/storage").read_bytes() == b"x" * MIB


def test_a_reset_in_the_middle_of_writes_loses_nothing(empty: Mounted, host: str) -> None:
    path = empty.path / host
    path.mkdir()
    data = os.urandom(MIB)
    with (path / "disk/storage").open("r+b", buffering=0) as disk:
        for reset in path / "disk/reset", path / "disk/lun0/reset":
            thread = threading.Thread(target=reset.write_bytes, args=(b"1",))
            thread.start()
            for position in range(0, MIB, 4096):
                assert os.pwrite(disk.fileno(), data[position : position + 4096], position) == 4096
            thread.join()
            os.fsync(disk)
            assert os.pread(disk.fileno(), MIB, 0) == data


@pytest.mark.conformance("CONTROL-1.9")
def test_rm_and_its_like_change_nothing(empty: Mounted, host: str) -> None:
    path = empty.path / host
    path.mkdir()
    (path / "disk/storage").write_bytes(b"x" * MIB)
    storage = path / "disk/storage"
    assert "Operation not permitted" in run("rm", "-rf", path, check=False)
    assert run("ls", path) == "disk\nother\n"
    for call in (
        storage.unlink,
        partial(storage.rename, path / "disk/y"),
        partial(os.link, storage, path / "disk/y"),
        partial(os.symlink, storage, path / "disk/y"),
        partial(os.mkfifo, path / "disk/y"),
        partial((path / "disk/y").write_bytes, b""),
        partial(storage.chmod, 0o777),
        partial(os.utime, path / "disk/rescan", (0, 0)),
        partial((path / "disk").rename, path / "y"),
        partial(path.rename, empty.path / "y"),
    ):
        assert refused(call) == errno.EPERM
    assert refused(partial(os.setxattr, storage, "user.x", b"1")) in (errno.EOPNOTSUPP, errno.ENOSYS)
    assert storage.read_bytes() == b"x" * MIB
    assert "logout" not in {event["event"] for event in events(empty)}


@pytest.mark.conformance("CONTROL-1.15", "CONTROL-1.1")
def test_who_walks_over_the_mount_triggers_nothing(empty: Mounted, host: str, tmp_path: Path) -> None:
    (empty.path / host).mkdir()
    before = events(empty)
    run("find", empty.path, "-ls")
    run("du", "-sx", empty.path)
    run("grep", "-rq", "nothing of this kind", empty.path, "--devices=skip", check=False)
    run("tar", "-cf", "/dev/null", "-C", empty.path, "--exclude=storage", ".", check=False)
    for name in "version", "config", "events":
        file = empty.path / ".iscsifs" / name
        content = file.read_bytes()
        assert run("cat", file) == content.decode()
        assert run("wc", "-c", file).split()[0] == str(len(content)) == str(file.stat().st_size)
        run("cp", file, tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    assert events(empty) == before


@pytest.mark.conformance("CONTROL-1.3", "CONTROL-1.17")
def test_tail_follows_the_events(empty: Mounted, host: str, tmp_path: Path) -> None:
    file = empty.path / ".iscsifs/events"
    outputs = [tmp_path / "f", tmp_path / "F"]
    tails = []
    for output, option in zip(outputs, ["-f", "-F"], strict=True):
        with output.open("wb") as out:
            tails.append(subprocess.Popen(["tail", "-n", "+1", option, file], stdout=out, stderr=out))
    try:
        (empty.path / host).mkdir()
        for output in outputs:
            wait_until(lambda output=output: output.read_bytes() == file.read_bytes(), "tail has it", 3.0)  # type: ignore[misc]
        (empty.path / host).rmdir()
        for output in outputs:
            wait_until(lambda output=output: output.read_bytes() == file.read_bytes(), "tail has it", 3.0)  # type: ignore[misc]
    finally:
        for tail in tails:
            tail.terminate()
            tail.wait()


@pytest.mark.conformance("CONTROL-1.12")
def test_who_had_looked_sees_it_go_and_come(empty: Mounted, host: str) -> None:
    path = empty.path / host
    path.mkdir()
    assert (path / "disk/storage").stat().st_size == MIB
    started = time.monotonic()
    run("rmdir", path / "disk")
    wait_until(lambda: not (path / "disk/storage").exists(), "it is gone", 1.0)
    run("mkdir", path / "disk")
    wait_until(lambda: (path / "disk/storage").exists(), "it is back", 1.0)
    assert time.monotonic() - started < 5


@pytest.mark.conformance("CONTROL-1.10")
def test_another_user_reads_and_changes_nothing(mount_hosts: MountHosts, host: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    mounted = mount_hosts("-o", "allow_other", host)
    nobody = ("env", "-C", mounted.path, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    assert "login" in run(*nobody, "cat", ".iscsifs/events")
    disk = "127.0.0.1/disk"
    assert "Permission denied" in run(*nobody, "sh", "-c", f"echo 1 >{disk}/rescan", check=False)
    assert "Permission denied" in run(*nobody, "mkdir", host, check=False)
    assert "Permission denied" in run(*nobody, "rmdir", disk, check=False)
    assert (mounted.path / disk).exists()


@pytest.mark.conformance("CONTROL-1.7")
def test_a_read_only_mount_changes_nothing(mount_hosts: MountHosts, host: str) -> None:
    mounted = mount_hosts("-r", host)
    assert refused((mounted.path / "x.example").mkdir) == errno.EROFS


@pytest.mark.conformance("CONTROL-1.11")
def test_other_hosts_answer_while_a_login_hangs(mount_hosts: MountHosts, host: str) -> None:
    mounted = mount_hosts("-o", "login_timeout=3", host)
    storage = mounted.storage("disk")
    assert storage.stat().st_size == MIB
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        path = mounted.path / f"127.0.0.1:{port}"
        maker = subprocess.Popen(["mkdir", path], stderr=subprocess.PIPE, text=True)
        time.sleep(0.5)
        started = time.monotonic()
        assert storage.read_bytes() == bytes(MIB)
        assert time.monotonic() - started < 1
        maker.send_signal(2)
        _, said = maker.communicate(timeout=20)
    wait_until(lambda: events(mounted)[-1]["event"] == "control_failed", "it is over", 5.0)
    assert not path.exists()
    assert "timed out" in said or maker.returncode == -2


@pytest.mark.conformance("CONTROL-1.16")
def test_two_shells_change_the_same_host_at_once(empty: Mounted, host: str) -> None:
    loop = (
        f"cd {empty.path}; for i in $(seq 40); do mkdir {host}; echo 1 >{host}/disk/rescan;"
        f" rmdir {host}/disk; echo 1 >{host}/other/logout; mkdir {host}/disk; rmdir {host}; done 2>/dev/null"
    )
    shells = [subprocess.Popen(["sh", "-c", loop]) for _ in range(2)]
    for shell in shells:
        shell.wait(timeout=60)
    run("rmdir", empty.path / host, check=False)
    (empty.path / host).mkdir()
    assert run("ls", empty.path / host) == "disk\nother\n"


@contextmanager
def served_at(port: int, *disks: Disk) -> Iterator[Device]:
    device = Device(NAME + "disk", dict(enumerate(disks)))
    with running(partial(Server, [device], portals=[Portal("127.0.0.1", port)])):
        yield device
    device.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def test_with_retry_a_host_that_is_missing_comes_when_it_is_there(mount_hosts: MountHosts) -> None:
    port = free_port()
    mounted = mount_hosts("-o", "retry", f"127.0.0.1:{port}", status=6)
    assert "Connection refused" in mounted.said.stderr
    assert run("ls", mounted.path) == "by-id\n"
    with served_at(port, Disk.in_memory(MIB, "late")):
        wait_until(lambda: mounted.storage().exists(), "it has come", 20.0)
        mounted.unmount()


def test_what_is_missing_beside_another_comes_unless_that_is_not_wanted(
    mount_hosts: MountHosts, host: str
) -> None:
    port = free_port()
    late = f"iscsi://127.0.0.1:{port}/{NAME}disk"
    waiting = mount_hosts(host, late, status=6)
    strict = mount_hosts("-o", "noretry", host, late, status=6)
    for mounted in waiting, strict:
        assert "Connection refused" in mounted.said.stderr
    with served_at(port, Disk.in_memory(MIB, "late")):
        wait_until(lambda: len(os.listdir(waiting.path / "127.0.0.1")) == 3, "it has come", 20.0)
        time.sleep(2)
        assert len(os.listdir(strict.path / "127.0.0.1")) == 2
        waiting.unmount()


@pytest.mark.parametrize("options", ["ro", "retry", "noretry"])
def test_what_cannot_succeed_ends_the_command_at_once(tmp_path: Path, host: str, options: str) -> None:
    target = f"iscsi://{host}/{NAME}nothing"
    done = iscsifs("-o", options if options != "retry" else "ro", target, tmp_path)
    assert done.returncode == 5
    done = iscsifs("-o", options, "no-such-host.invalid", tmp_path)
    assert done.returncode == 3
    assert not os.path.ismount(tmp_path)


def test_units_that_come_and_grow_without_a_report_are_found(mount_hosts: MountHosts) -> None:
    port = free_port()
    first = Disk.in_memory(MIB, "first")
    with served_at(port, first) as device:
        mounted = mount_hosts("-o", "poll=1", f"127.0.0.1:{port}")
        device._units[1] = Disk.in_memory(MIB, "second")
        first.store.resize(2 * MIB)
        wait_until(lambda: (mounted.target() / "lun1/storage").exists(), "it has come", 5.0)
        wait_until(lambda: mounted.storage().stat().st_size == 2 * MIB, "it has grown", 5.0)
        mounted.unmount()


@pytest.mark.conformance("CONTROL-1.14")
def test_a_look_attaches_a_host(mount_hosts: MountHosts, host: str) -> None:
    mounted = mount_hosts("-o", "autohost")
    assert not (mounted.path / ".git").exists()
    assert not (mounted.path / "autorun.inf").exists()
    assert run("ls", mounted.path) == "by-id\n"
    assert (mounted.path / host / "disk/storage").stat().st_size == MIB
    assert run("ls", mounted.path) == f"{host}\nby-id\n"
    assert not (mounted.path / f"127.0.0.1:{free_port()}").exists()
    run("rmdir", mounted.path / host)
    added = run(sys.executable, "-m", "iscsifs.ctl", "-m", mounted.path, "add", host)
    assert len(added.splitlines()) == 2
    assert run(sys.executable, "-m", "iscsifs.ctl", "-m", mounted.path, "add", host, check=False) == (
        f"iscsifsctl: {host}: is there already\n"
    )


@pytest.mark.conformance("CONTROL-1.3")
def test_tail_reads_each_line_once_also_when_the_file_is_turned(
    empty: Mounted, host: str, tmp_path: Path
) -> None:
    (empty.path / host).mkdir()
    output, control = tmp_path / "F", empty.path / host / "disk/rescan"
    file = empty.path / ".iscsifs/events"
    with output.open("wb") as out:
        tail = subprocess.Popen(["tail", "-n", "+1", "-s", "0.1", "-F", file], stdout=out, stderr=out)
    try:
        wait_until(lambda: output.stat().st_size > 0, "tail has begun", 3.0)
        descriptor = os.open(control, os.O_WRONLY)
        count = 0
        while not (empty.path / ".iscsifs/events.1").exists():
            for _ in range(50):
                assert refused(partial(os.write, descriptor, b"2")) == errno.EINVAL
                count += 1
            assert count < 20_000
        for _ in range(10):
            assert refused(partial(os.write, descriptor, b"2")) == errno.EINVAL
        os.close(descriptor)
        last = events(empty)[-1]["id"]

        def seen() -> list[int]:
            whole, _, _ = output.read_text().rpartition("\n")  # tail may be in the middle of a line
            return [json.loads(line)["id"] for line in whole.splitlines() if line.startswith("{")]

        wait_until(lambda: seen()[-1:] == [last], "tail has it all", 5.0)
        assert seen() == list(range(1, last + 1))
        assert set(os.listdir(file.parent)) >= {"events", "events.1"}
    finally:
        tail.terminate()
        tail.wait()


@pytest.mark.conformance("CONTROL-1.16")
def test_a_mount_that_ends_does_not_wait_for_a_login(mount_hosts: MountHosts) -> None:
    mounted = mount_hosts("-o", "login_timeout=60")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        path = mounted.path / f"127.0.0.1:{silent.getsockname()[1]}"
        maker = subprocess.Popen(["mkdir", path], stderr=subprocess.PIPE, text=True)
        time.sleep(0.5)
        started = time.monotonic()
        mounted.signal(signal.SIGTERM)
        _, said = maker.communicate(timeout=20)
        mounted.wait()
        assert time.monotonic() - started < 10
        assert maker.returncode == 1
        assert said
