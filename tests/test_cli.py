"""The command, with a network that is made up; and once from end to end."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyfuse3
import pytest
import trio

from iscsifs.cli import ExitStatus, main
from iscsifs.errors import (
    AuthenticationError,
    ConfigError,
    DataError,
    LoginRefused,
    ProtocolError,
    TransportError,
)
from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.discovery import DiscoveredTarget
from iscsifs.iscsi.names import Portal, TargetAddress
from support.fake_network import FakeNetwork, FakeTarget, FakeUnit

HERE = Portal("127.0.0.1")
OTHER = Portal("127.0.0.1", 3261)
IQN = "iqn.2001-04.com.example:"
SECRET = b"a secret of some length"
MIB = 1 << 20


def disk(name: str = "disk1", portal: Portal = HERE, units: list[FakeUnit] | None = None) -> FakeTarget:
    return FakeTarget(IQN + name, [FakeUnit()] if units is None else units, portal)


@pytest.fixture
def network() -> FakeNetwork:
    return FakeNetwork()


@pytest.fixture
def mount_point(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_bytes(SECRET)
    return path


def no_terminal(whose: str) -> bytes:
    raise ConfigError(f"no secret for {whose}")


def run(network: FakeNetwork, *arguments: object, ask: Callable[[str], bytes] = no_terminal) -> int:
    return main([str(argument) for argument in arguments], network=network, ask=ask)


def discovering(network: FakeNetwork, *arguments: object, ask: Callable[[str], bytes] = no_terminal) -> int:
    """Run ``iscsifs -D``, and return its exit status."""
    return run(network, "-D", *arguments, ask=ask)


# Discovery.


def test_targets_are_listed_in_the_form_of_the_ancestor(
    network: FakeNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    v6 = TargetAddress(Portal("2001:db8::1"), 2)
    network.hosts[HERE] = [
        DiscoveredTarget(IQN + "b", (TargetAddress(HERE, 1),)),
        DiscoveredTarget(IQN + "a", (v6, TargetAddress(HERE, 1), TargetAddress(OTHER))),
    ]
    assert discovering(network, "127.0.0.1") == ExitStatus.OK
    assert capsys.readouterr().out.splitlines() == [
        f"127.0.0.1: 127.0.0.1:3260,1 {IQN}a",
        f"127.0.0.1: [2001:db8::1]:3260,2 {IQN}a",
        f"127.0.0.1: 127.0.0.1:3261 {IQN}a",
        f"127.0.0.1: 127.0.0.1:3260,1 {IQN}b",
    ]
    assert network.logins == []


def test_a_name_is_shown_in_its_canonical_form(
    network: FakeNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    network.offer(Portal("localhost"), disk())
    assert discovering(network, "-4", "LOCALHOST") == ExitStatus.OK
    assert capsys.readouterr().out.startswith("localhost: 127.0.0.1:3260,1 ")


def test_patterns_choose_targets(network: FakeNetwork, capsys: pytest.CaptureFixture[str]) -> None:
    network.offer(HERE, disk("disk1"), disk("disk2"), disk("tape"), disk("x"))
    assert discovering(network, "-t", "*:disk?", "-t", "*x", HERE) == ExitStatus.OK
    assert [line.split(":")[-1] for line in capsys.readouterr().out.splitlines()] == ["disk1", "disk2", "x"]


def test_a_pattern_that_nothing_matches_is_named(
    network: FakeNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    network.offer(HERE, disk("disk1"))
    assert discovering(network, "-t", "*:nothing", HERE) == ExitStatus.NO_TARGET
    assert "*:nothing: no target has a name like this" in capsys.readouterr().err


def test_text_from_the_network_is_escaped(network: FakeNetwork, capsys: pytest.CaptureFixture[str]) -> None:
    network.hosts[HERE] = [DiscoveredTarget(IQN + "\x1b[2J\n", (TargetAddress(HERE, 1),))]
    assert discovering(network, HERE) == ExitStatus.OK
    assert capsys.readouterr().out == f"127.0.0.1: 127.0.0.1:3260,1 {IQN}\\x1b[2J\\n\n"


def test_a_host_given_twice_is_listed_once(network: FakeNetwork, capsys: pytest.CaptureFixture[str]) -> None:
    both = (TargetAddress(HERE, 1), TargetAddress(OTHER, 2))
    network.hosts[HERE] = network.hosts[OTHER] = [DiscoveredTarget(IQN + "a", both)]
    assert discovering(network, HERE, OTHER) == ExitStatus.OK
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (TransportError("refused"), ExitStatus.UNREACHABLE),
        (AuthenticationError("CHAP_R", "wrong"), ExitStatus.REFUSED),
        (LoginRefused(2, 1, "authentication failure"), ExitStatus.REFUSED),
        (LoginRefused(2, 3, "not found"), ExitStatus.NO_TARGET),
        (ProtocolError("a rule", section="1"), ExitStatus.FAILED),
        ([], ExitStatus.NO_TARGET),
    ],
)
def test_a_host_that_fails_is_named_and_its_reason_is_the_status(
    network: FakeNetwork,
    capsys: pytest.CaptureFixture[str],
    failure: Exception | list[DiscoveredTarget],
    status: ExitStatus,
) -> None:
    network.hosts[HERE] = failure
    assert discovering(network, HERE) == status
    (complaint,) = capsys.readouterr().err.splitlines()
    assert complaint.startswith("iscsifs: 127.0.0.1:3260: ")
    assert str(failure) in complaint or failure == []


def test_the_hosts_that_work_are_listed_all_the_same(
    network: FakeNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    network.hosts[HERE] = TransportError("refused")
    network.offer(OTHER, disk(portal=OTHER))
    assert discovering(network, HERE, OTHER) == ExitStatus.PARTIAL
    output = capsys.readouterr()
    assert output.out == f"127.0.0.1: 127.0.0.1:3261,1 {IQN}disk1\n"
    assert output.err == "iscsifs: 127.0.0.1:3260: refused\n"


def test_a_name_that_does_not_resolve_is_unreachable(
    network: FakeNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    assert discovering(network, "-6", "127.0.0.1") == ExitStatus.UNREACHABLE
    assert "iscsifs: 127.0.0.1:3260: the name cannot be looked up: " in capsys.readouterr().err


def test_a_name_for_which_there_is_no_thread_is_a_host_that_failed(
    network: FakeNetwork, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_thread(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.socket, "getaddrinfo", no_thread)
    assert discovering(network, HERE) == ExitStatus.UNREACHABLE
    assert capsys.readouterr().err == (
        "iscsifs: 127.0.0.1:3260: the name cannot be looked up: can't start new thread\n"
    )


# What is asked of the initiator.


def test_options_reach_the_initiator(network: FakeNetwork) -> None:
    network.offer(Portal("127.0.0.1", 5), disk())
    name = "iqn.2001-04.com.example:me"
    assert discovering(network, "-p", 5, "-4", "--digest", "all", "-i", name, "127.0.0.1") == ExitStatus.OK
    ((portal, options),) = network.discoveries
    assert portal == Portal("127.0.0.1", 5)
    assert options.initiator_name == name
    assert options.digests == "all"
    assert options.family == socket.AF_INET
    assert options.credentials is None
    assert options.write_behind


def test_options_may_stand_behind_the_operands(network: FakeNetwork) -> None:
    network.offer(HERE, disk())
    assert run(network, "127.0.0.1", "-D", "-o", "writebehind=0") == ExitStatus.OK
    assert not network.discoveries[0][1].write_behind


def test_the_secret_comes_from_a_file(network: FakeNetwork, secret_file: Path) -> None:
    network.offer(HERE, disk())
    assert discovering(network, "-u", "alice", "--secret-file", secret_file, HERE) == ExitStatus.OK
    assert network.discoveries[0][1].credentials == Credentials("alice", SECRET)


def test_or_it_is_asked_for_once_for_each_user(network: FakeNetwork) -> None:
    for port in 1, 2, 3:
        network.offer(Portal("127.0.0.1", port), disk(f"d{port}"))
    asked: list[str] = []

    def ask(whose: str) -> bytes:
        asked.append(whose)
        return SECRET + whose.encode()

    hosts = ["alice@127.0.0.1:1", "127.0.0.1:2", "alice@127.0.0.1:3"]
    assert discovering(network, "-u", "bob", *hosts, ask=ask) == ExitStatus.OK
    assert asked == ['user "alice"', 'user "bob"']
    users = {portal.port: options.credentials for portal, options in network.discoveries}
    assert [users[port].user for port in (1, 2, 3) if users[port]] == ["alice", "bob", "alice"]  # type: ignore[union-attr]


def test_mount_options_say_what_flags_say_before_a_secret_is_asked_for(
    network: FakeNetwork, secret_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.touch(0o600)
    other.write_bytes(b"the secret of the target")
    network.offer(Portal("127.0.0.1", 5), disk("a"), disk("b"))
    name = "iqn.2001-04.com.example:me"
    options = f"user=alice,secret_file={secret_file},port=5,pattern=*:a,initiator={name},rw,relatime"
    more = (
        f"digest=header,auth=chap,target_user=array,target_secret_file={other},x-systemd.automount,comment=x"
    )
    assert discovering(network, "-o", options, "-o", more, "127.0.0.1") == ExitStatus.OK
    ((portal, used),) = network.discoveries
    assert portal.port == 5
    assert used.initiator_name == name
    assert used.digests == "header"
    assert used.credentials == Credentials("alice", SECRET, "array", b"the secret of the target")


@pytest.mark.parametrize(
    "arguments",
    [
        ["-u", "alice", "-o", "user=bob"],
        ["--digest", "all", "-o", "digest=none"],
        ["-p", "1", "-o", "port=2"],
    ],
)
def test_a_flag_and_a_mount_option_that_differ_are_refused(
    network: FakeNetwork, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert discovering(network, *arguments, HERE) == ExitStatus.USAGE
    assert "contradict each other; leave one of them out" in capsys.readouterr().err
    assert network.discoveries == []


def test_a_flag_and_a_mount_option_may_say_the_same(network: FakeNetwork) -> None:
    network.offer(HERE, disk("a"), disk("b"))
    arguments = ["-p", "3260", "-o", "port=3260", "-t", "*:a", "-o", "pattern=*:b", "--digest=all", "-o"]
    assert discovering(network, *arguments, "digest=all", "127.0.0.1") == ExitStatus.OK
    assert network.discoveries[0][1].digests == "all"


def test_each_host_gets_the_secret_of_its_user(network: FakeNetwork, secret_file: Path) -> None:
    """Also from a pipe, which can be read only once."""
    for port in 1, 2:
        network.offer(Portal("127.0.0.1", port), disk(f"d{port}"))
    table = b"alice the secret of alice\nbob the secret of bob\n"
    reader, writer = os.pipe()
    os.write(writer, table)
    os.close(writer)
    try:
        hosts = ["alice@127.0.0.1:1", "bob@127.0.0.1:2"]
        assert discovering(network, "--secret-file", f"/dev/fd/{reader}", *hosts) == ExitStatus.OK
    finally:
        os.close(reader)
    found = {portal.port: options.credentials for portal, options in network.discoveries}
    assert found == {
        1: Credentials("alice", b"the secret of alice"),
        2: Credentials("bob", b"the secret of bob"),
    }


def test_mutual_chap(network: FakeNetwork, secret_file: Path, tmp_path: Path) -> None:
    network.offer(HERE, disk())
    other = tmp_path / "other"
    other.touch(0o600)
    other.write_bytes(b"the secret of the target")
    arguments = ["-u", "alice", "--secret-file", secret_file, "--target-user", "array"]
    assert discovering(network, *arguments, "--target-secret-file", other, HERE) == ExitStatus.OK
    expected = Credentials("alice", SECRET, "array", b"the secret of the target")
    assert network.discoveries[0][1].credentials == expected


@pytest.mark.parametrize("how", ["auto", "chap", "none"])
def test_how_discovery_authenticates(network: FakeNetwork, secret_file: Path, how: str) -> None:
    network.offer(HERE, disk())
    alice = ["-u", "alice", "--secret-file", secret_file]
    assert discovering(network, *alice, "--discovery-auth", how, HERE) == ExitStatus.OK
    assert discovering(network, *alice, HERE) == ExitStatus.OK
    assert [options.discovery_auth for _, options in network.discoveries] == [how, "auto"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-a", "chap"], "CHAP needs a user"),
        (["--discovery-auth", "chap"], "CHAP needs a user"),
        (["--target-user", "array"], "CHAP needs a user"),
        (["--secret-file", "SECRET"], "CHAP needs a user"),
        (["-a", "none", "-u", "alice"], "no use for a user"),
        (["-u", "alice"], 'no secret for user "alice"'),
        (["-u", "alice", "--secret-file", "SECRET", "--target-user", "x"], 'no secret for target "x"'),
        (["-u", "alice", "--secret-file", "/nothing"], "/nothing: No such file"),
        (["-u", "alice", "--secret-file", "SHORT"], "at least 12"),
        (
            [
                "-u",
                "alice",
                "--secret-file",
                "SECRET",
                "--target-user",
                "x",
                "--target-secret-file",
                "SECRET",
            ],
            "same for both directions",
        ),
        (["-u", "alice", "--secret-file", "OPEN"], "if it holds nothing else, protect it with: chmod 600"),
        (["--unmount"], "-D and --unmount contradict each other"),
        (["-i", "me"], 'initiator name "me"'),
        (["-o", "nonsense"], "-o nonsense"),
        (["iscsi://127.0.0.1/iqn.2001-04.com.example:x"], "without a target name"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(
    network: FakeNetwork,
    secret_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    network.offer(HERE, disk())
    for name, content, mode in ("SHORT", b"12345678901", 0o600), ("OPEN", SECRET, 0o644):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(mode)
    files = {"SECRET": secret_file, "SHORT": tmp_path / "SHORT", "OPEN": tmp_path / "OPEN"}
    real = [files.get(argument, argument) for argument in arguments]
    assert discovering(network, *real, "127.0.0.1") == ExitStatus.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("iscsifs: ")
    assert complaint in line
    assert network.discoveries == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["-p", "0", "x"],
        ["-p"],
        ["-4", "-6", "x"],
        ["-a", "x", "h"],
        ["--dig", "all", "h", "m"],
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == ExitStatus.USAGE
    (complaint,) = capsys.readouterr().err.splitlines()
    assert complaint.startswith("iscsifs: ")
    assert complaint.endswith("see iscsifs -h")


def test_an_option_that_was_mistyped_is_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--unmout", "mnt"])
    assert "unrecognized arguments: --unmout; did you mean --unmount?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["host"], ["-D"]])
def test_a_missing_operand_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == ExitStatus.USAGE
    assert "give a host" in capsys.readouterr().err


def test_help_tells_how_to_unmount(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["-h"])
    assert caught.value.code == 0
    assert "iscsifs --unmount MOUNTPOINT" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["-V"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("iscsifs ")


def test_a_portal_is_not_named_twice(network: FakeNetwork, capsys: pytest.CaptureFixture[str]) -> None:
    network.hosts[HERE] = TransportError("127.0.0.1:3260: Connection refused")
    assert discovering(network, HERE) == ExitStatus.UNREACHABLE
    assert capsys.readouterr().err == "iscsifs: 127.0.0.1:3260: Connection refused\n"


# Mounting.


@pytest.mark.parametrize(
    ("prepare", "complaint"),
    [
        (lambda path: path.rmdir(), "no such directory"),
        (lambda path: (path / "x").touch(), "not empty"),
    ],
)
def test_the_mount_point_is_looked_at_first(
    network: FakeNetwork,
    mount_point: Path,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Path], None],
    complaint: str,
) -> None:
    prepare(mount_point)
    assert run(network, "-f", HERE, mount_point) == ExitStatus.USAGE
    assert f"iscsifs: {mount_point}: " in (error := capsys.readouterr().err)
    assert complaint in error
    assert network.discoveries == []


def test_nothing_is_mounted_where_no_login_succeeds(
    network: FakeNetwork, mount_point: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network.offer(HERE, disk("a"), disk("b"))
    network.targets = dict.fromkeys((IQN + "a", IQN + "b"), LoginRefused(2, 1, "authentication failure"))
    assert run(network, "-f", HERE, mount_point) == ExitStatus.REFUSED
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert not os.path.ismount(mount_point)
    assert network.logouts == 1


def mounted(network: FakeNetwork, mount_point: Path, *arguments: object, then: Callable[[], None]) -> int:
    """Mount, do *then*, unmount, and return the exit status."""

    def visit() -> None:
        deadline = time.monotonic() + 10
        while not os.path.ismount(mount_point):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            then()
        finally:
            # For a moment after the mount the program itself is in there, to raise the kernel's limits.
            while (
                os.path.ismount(mount_point)
                and subprocess.run(["fusermount3", "-u", mount_point], stderr=subprocess.DEVNULL).returncode
            ):
                assert time.monotonic() < deadline
                time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        visiting = pool.submit(visit)
        status = run(network, "-f", *arguments, mount_point)
        visiting.result()
    return status


def write(storage: Path) -> None:
    with open(storage, "r+b", buffering=0) as file:
        file.write(bytes(512))


class StuckUnit(FakeUnit):
    """A unit whose target has fallen silent."""

    reads = 0

    async def read(self, offset: int, size: int) -> bytes:
        self.reads += 1
        await trio.sleep_forever()
        raise AssertionError

    async def flush(self) -> None:
        self.flushes += 1
        await trio.sleep_forever()


def listing(path: Path) -> str:
    return subprocess.run(["ls", path], capture_output=True, text=True, check=True).stdout


@pytest.mark.mount
def test_targets_are_mounted_told_of_and_logged_out_of(
    network: FakeNetwork, mount_point: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unit = FakeUnit()
    network.offer(HERE, disk("b", units=[unit]), disk("a", units=[FakeUnit(wwid="naa.1")]))
    seen: list[str] = []

    def then() -> None:
        seen.append(listing(mount_point / "127.0.0.1"))
        seen.append(listing(mount_point / "by-id"))
        subprocess.run(["cp", "/dev/stdin", mount_point / "127.0.0.1/b/storage"], input=b"abc", check=True)

    assert mounted(network, mount_point, HERE, then=then) == ExitStatus.OK
    assert seen == ["a\nb\n", "naa.1\n"]
    assert capsys.readouterr().out.splitlines() == [
        f"127.0.0.1: 127.0.0.1:3260,1 {IQN}a",
        f"127.0.0.1: 127.0.0.1:3260,1 {IQN}b",
    ]
    assert unit.content[:3] == b"abc"
    assert unit.flushes == 1
    assert network.logouts == 1


@pytest.mark.mount
def test_what_fails_is_told_and_the_others_are_mounted(
    network: FakeNetwork, mount_point: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network.offer(HERE, disk("a"), disk("b"))
    network.targets[IQN + "a"] = AuthenticationError("AuthMethod", "the target does not ask for CHAP")
    network.hosts[OTHER] = TransportError("connection refused")
    seen: list[str] = []
    status = mounted(
        network, mount_point, HERE, OTHER, then=lambda: seen.append(listing(mount_point / "127.0.0.1"))
    )
    assert status == ExitStatus.PARTIAL
    assert seen == ["b\n"]
    assert capsys.readouterr().err.splitlines() == [
        "iscsifs: 127.0.0.1:3261: connection refused",
        f"iscsifs: 127.0.0.1: {IQN}a: AuthMethod: the target does not ask for CHAP",
    ]


@pytest.mark.mount
def test_a_static_target_needs_no_discovery(network: FakeNetwork, mount_point: Path) -> None:
    network.targets[IQN + "a"] = disk("a", units=[FakeUnit("0"), FakeUnit("3"), FakeUnit("4")])
    urls = [f"iscsi://127.0.0.1/{IQN}a/{lun}" for lun in (3, 0)]
    seen: list[str] = []
    mounted(network, mount_point, *urls, then=lambda: seen.append(listing(mount_point / "127.0.0.1/a")))
    assert [name for name in seen[0].split() if name.startswith("lun")] == ["lun0", "lun3"]
    assert network.discoveries == []
    assert [(name, portals) for name, portals, _ in network.logins] == [(IQN + "a", [HERE])]


def test_a_logical_unit_that_is_not_there_is_named(
    network: FakeNetwork, mount_point: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network.targets[IQN + "a"] = disk("a")
    assert run(network, "-f", f"iscsi://127.0.0.1/{IQN}a/7", mount_point) == ExitStatus.NO_TARGET
    assert "no logical unit 7" in capsys.readouterr().err


@pytest.mark.mount
def test_the_portal_that_answered_is_tried_first(network: FakeNetwork, mount_point: Path) -> None:
    away = Portal("192.0.2.1")
    network.offer(HERE, disk("a"))
    network.hosts[HERE] = [DiscoveredTarget(IQN + "a", (TargetAddress(away), TargetAddress(HERE)))]
    mounted(network, mount_point, HERE, then=lambda: None)
    assert network.logins[0][1] == [HERE, away]


@pytest.mark.mount
def test_units_that_come_and_grow_are_seen(network: FakeNetwork, mount_point: Path) -> None:
    target = disk("a", units=[FakeUnit("0", MIB)])
    network.offer(HERE, target)
    directory = mount_point / "127.0.0.1/a"

    def size(name: str) -> int:
        return int(subprocess.check_output(["stat", "-c", "%s", directory / name / "storage"]))

    def then() -> None:
        assert size("lun0") == MIB
        (unit,) = target.units
        assert isinstance(unit, FakeUnit)
        unit.size = 2 * MIB
        target.units = [unit, FakeUnit("1", 3 * MIB)]
        target.on_change()
        assert size("lun0") == 2 * MIB
        assert size("lun1") == 3 * MIB

    assert mounted(network, mount_point, HERE, then=then) == ExitStatus.OK


@pytest.mark.mount
def test_a_new_session_moves_the_times_of_its_disks(network: FakeNetwork, mount_point: Path) -> None:
    target = disk("a", units=[FakeUnit("0"), FakeUnit("1")])
    network.offer(HERE, target)

    def times() -> list[bytes]:
        paths = [mount_point / f"127.0.0.1/a/lun{lun}/storage" for lun in (0, 1)]
        return subprocess.check_output(["stat", "-c", "%.9Y %.9Z", *paths]).splitlines()

    def then() -> None:
        before = times()
        assert times() == before
        target.on_return(target.units[1])
        after = times()
        assert after[0] == before[0]
        assert after[1] > before[1]
        assert times() == after

    assert mounted(network, mount_point, HERE, then=then) == ExitStatus.OK


@pytest.mark.mount
def test_an_exclusive_mount_refuses_a_second_writer(network: FakeNetwork, mount_point: Path) -> None:
    network.offer(HERE, disk("a"))
    write = [
        "sh",
        "-c",
        ': >>"$1" && exec 3>>"$1" && : >>"$1"',
        "sh",
        str(mount_point / "127.0.0.1/a/storage"),
    ]

    def then() -> None:
        done = subprocess.run(write, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "busy" in done.stderr

    assert mounted(network, mount_point, "-o", "exclusive", HERE, then=then) == ExitStatus.OK


@pytest.mark.mount
def test_data_that_cannot_be_written_at_the_end_are_told(
    network: FakeNetwork, mount_point: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = FakeUnit("0", flush_failure=DataError("SYNCHRONIZE CACHE failed"))
    good = FakeUnit("1")
    network.offer(HERE, disk("a", units=[bad, good]))

    def then() -> None:
        for lun in 0, 1:
            write(mount_point / f"127.0.0.1/a/lun{lun}/storage")

    assert mounted(network, mount_point, HERE, then=then) == ExitStatus.NOT_WRITTEN
    assert capsys.readouterr().err.splitlines() == [
        "iscsifs: data may be lost: SYNCHRONIZE CACHE failed",
        "iscsifs: disk LUN 0: data may be lost: what was written last may be in the target's cache only",
    ]
    assert good.flushes == 1


@pytest.mark.mount
def test_data_that_cannot_be_written_in_time_are_told(
    network: FakeNetwork,
    mount_point: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("iscsifs.fs.mount.END_TIMEOUT", 1.5)
    unit = StuckUnit()
    network.offer(HERE, disk("a", units=[unit]))

    def then() -> None:
        write(mount_point / "127.0.0.1/a/storage")
        unit.unwritten = 4096

    assert mounted(network, mount_point, HERE, then=then) == ExitStatus.NOT_WRITTEN
    waiting, lost = capsys.readouterr().err.splitlines()
    assert waiting.startswith(
        "iscsifs: disk LUN 0: not all that was written is on stable storage; trying for "
    )
    assert lost == "iscsifs: disk LUN 0: data may be lost: 4096 bytes were not written"
    assert network.logouts == 1


@pytest.mark.mount
def test_a_mistake_of_ours_does_not_end_it_before_all_is_written(
    network: FakeNetwork,
    mount_point: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unit = FakeUnit()
    network.offer(HERE, disk("a", units=[unit]))
    mistake = trio.Event()
    answer = pyfuse3.main

    async def main(*arguments: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(answer, *arguments))
            await mistake.wait()
            raise ZeroDivisionError

    def then() -> None:
        write(mount_point / "127.0.0.1/a/storage")
        trio.from_thread.run_sync(mistake.set, trio_token=pyfuse3.trio_token)
        while os.path.ismount(mount_point):
            time.sleep(0.01)

    monkeypatch.setattr(pyfuse3, "main", main)
    assert mounted(network, mount_point, HERE, then=then) == ExitStatus.FAILED
    assert "unexpected error, please report it: ZeroDivisionError()" in capsys.readouterr().err
    assert unit.flushes == 1


@pytest.mark.mount
def test_a_loss_of_which_nobody_was_told_is_the_status(network: FakeNetwork, mount_point: Path) -> None:
    unit = FakeUnit()
    network.offer(HERE, disk("a", units=[unit]))

    def then() -> None:
        write(mount_point / "127.0.0.1/a/storage")
        unit.failures += 1

    assert mounted(network, mount_point, HERE, then=then) == ExitStatus.NOT_WRITTEN


@pytest.mark.mount
def test_what_is_on_stable_storage_is_not_flushed_again(network: FakeNetwork, mount_point: Path) -> None:
    unit, other = StuckUnit("0"), StuckUnit("1")
    network.offer(HERE, disk("a", units=[unit, other]))

    def then() -> None:
        write(mount_point / "127.0.0.1/a/storage")
        unit.needs_flush = False

    assert mounted(network, mount_point, HERE, then=then) == ExitStatus.OK
    assert unit.flushes == other.flushes == 0


@pytest.mark.mount
def test_a_read_that_nobody_waits_for_any_more_is_given_up(network: FakeNetwork, mount_point: Path) -> None:
    unit = StuckUnit()
    network.offer(HERE, disk("a", units=[unit]))

    def then() -> None:
        with open(mount_point / "127.0.0.1/a/storage", "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, MIB, os.POSIX_FADV_WILLNEED)  # in the background

    began = time.monotonic()
    assert mounted(network, mount_point, HERE, then=then) == ExitStatus.OK
    assert unit.reads > 0
    assert time.monotonic() - began < 10


@pytest.mark.mount
@pytest.mark.parametrize("is_away", [True, False])
def test_after_a_signal_a_read_is_waited_for_unless_its_target_is_away(
    network: FakeNetwork, mount_point: Path, monkeypatch: pytest.MonkeyPatch, is_away: bool
) -> None:
    monkeypatch.setattr("iscsifs.fs.mount.END_TIMEOUT", 2.0)
    unit = StuckUnit(is_away=is_away)
    network.offer(HERE, disk("a", units=[unit]))
    began = 0.0

    def then() -> None:
        nonlocal began
        # The file cannot be closed properly when its mount has ended.
        with contextlib.suppress(OSError), open(mount_point / "127.0.0.1/a/storage", "rb") as file:
            os.posix_fadvise(file.fileno(), 0, MIB, os.POSIX_FADV_WILLNEED)
            while not unit.reads:
                time.sleep(0.01)
            began = time.monotonic()
            os.kill(os.getpid(), signal.SIGTERM)
            while os.path.ismount(mount_point):
                time.sleep(0.01)

    assert mounted(network, mount_point, HERE, then=then) == ExitStatus.OK
    assert unit.reads > 0
    assert (time.monotonic() - began < 1.5) == is_away


@pytest.mark.mount
def test_a_second_signal_ends_it_at_once_and_what_was_lost_is_told(
    network: FakeNetwork, mount_point: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unit = StuckUnit()
    network.offer(HERE, disk("a", units=[unit]))

    def then() -> None:
        write(mount_point / "127.0.0.1/a/storage")
        os.kill(os.getpid(), signal.SIGTERM)
        while not unit.flushes:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        while os.path.ismount(mount_point):
            time.sleep(0.01)

    began = time.monotonic()
    assert mounted(network, mount_point, HERE, then=then) == ExitStatus.NOT_WRITTEN
    assert time.monotonic() - began < 10
    assert "disk LUN 0: data may be lost: " in capsys.readouterr().err
    assert network.logouts == 1


@pytest.mark.mount
def test_a_read_only_mount_flushes_nothing(network: FakeNetwork, mount_point: Path) -> None:
    unit = FakeUnit()
    network.offer(HERE, disk("a", units=[unit]))
    assert mounted(network, mount_point, "-r", HERE, then=lambda: None) == ExitStatus.OK
    assert unit.flushes == 0


@pytest.mark.mount
def test_a_mistake_of_ours_is_one_line_without_a_traceback(
    network: FakeNetwork, mount_point: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network.offer(HERE, disk("a"))
    network.targets[IQN + "a"] = ZeroDivisionError("a mistake")
    assert run(network, "-f", HERE, mount_point) == ExitStatus.FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "iscsifs: unexpected error, please report it: ZeroDivisionError('a mistake') (-d shows where)"
    )
    assert not os.path.ismount(mount_point)


@pytest.mark.mount
@pytest.mark.parametrize("arguments", [["-f"], []])
def test_what_the_kernel_ends_before_it_can_be_used_is_a_failure(
    portal: str, mount_point: Path, arguments: list[str]
) -> None:
    """max_read, which is not for us to set, makes libfuse end the connection at once."""
    patch = "import iscsifs.mount_options as m; m.FUSE_OPTIONS |= {'max_read='}; "
    call = f"import sys; {patch}from iscsifs.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", call, *arguments, "-o", "max_read=65536", portal, str(mount_point)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == ExitStatus.FAILED
    assert f"iscsifs: {mount_point}: mounted, but the kernel ended it; unmounting\n" in done.stderr
    assert not os.path.ismount(mount_point)


def test_a_host_that_does_not_answer_is_waited_for_aloud(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = "{}:{}".format(*silent.getsockname())
        assert main(["-D", "-o", "login_timeout=3", host]) == ExitStatus.UNREACHABLE
    assert capsys.readouterr().err.splitlines() == [
        f"iscsifs: waiting for {host}: no login yet, trying for 3 s in all",
        f"iscsifs: {host}: no login within 3 s (SECURITY stage of the login);"
        " does a target answer there? -o login_timeout=SECONDS waits longer",
    ]


@pytest.mark.mount
def test_a_file_gets_the_messages_with_the_time_also_in_the_background(
    portal: str, mount_point: Path, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    path.write_text("what was there\n")
    away = "127.0.0.1:1"
    with start("iscsifs.cli", "--log", path, "-v", portal, away, mount_point) as command:
        _, complaints = command.communicate(timeout=20)
    assert command.returncode == ExitStatus.PARTIAL
    assert f"iscsifs: {away}: " in complaints
    storage = mount_point / "127.0.0.1/disk1/storage"
    assert storage.exists()
    assert main(["-U", str(mount_point)]) == ExitStatus.OK
    first, *lines = path.read_text().splitlines()
    assert first == "what was there"
    assert any(re.fullmatch(rf"{_STAMP} iscsifs\[\d+\]: ERROR: {away}: .*", line) for line in lines)
    assert all(re.match(rf"{_STAMP} iscsifs\[\d+\]: [A-Z]+: ", line) for line in lines)


def test_a_log_that_cannot_be_written_is_named(
    network: FakeNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert discovering(network, "--log", tmp_path, HERE) == ExitStatus.USAGE
    assert capsys.readouterr().err == f"iscsifs: log file {tmp_path}: Is a directory\n"


_STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"


@pytest.mark.mount
def test_everything_that_is_said_on_the_wire_is_shown_but_no_secrets(
    image: Path, mount_point: Path, secret_file: Path
) -> None:
    arguments = ["--port", 0, "--user", "alice", "--secret-file", secret_file, "--name", IQN + "disk1", image]
    with start("iscsifs.target.cli", *arguments) as target:
        assert target.stdout is not None
        portal = target.stdout.readline().split(",")[0]
        words = ["-d", "-u", "alice", "--secret-file", secret_file, portal, mount_point]
        with start("iscsifs.cli", *words) as command:
            assert command.stdout is not None
            command.stdout.readline()
            write(mount_point / "127.0.0.1/disk1/storage")
            command.send_signal(signal.SIGTERM)
            _, said = command.communicate(timeout=20)
        target.terminate()
        target.communicate(timeout=20)
    for pattern in (
        r"SECURITY stage -> AuthMethod=CHAP\b.*",
        r"SECURITY stage -> CHAP_N=alice",
        r"SECURITY stage -> CHAP_R=\(\d+ characters\)",
        r"SECURITY stage <- CHAP_C=\(\d+ characters\)",
        r"OPERATIONAL stage -> ImmediateData=Yes",
        r"OPERATIONAL stage <- ImmediateData=Yes",
        r"agreed: immediate_data=True",
        rf"{portal} -> LOGIN_REQUEST T OPERATIONAL->FULL_FEATURE .* CmdSN=1 .*",
        rf"{portal} -> SCSI_COMMAND FW LUN=0 ITT=\w+h transfer=512 CmdSN=\d+ .*"
        r"\[WRITE\(10\) LBA 0, 1 block\] data=512",
        rf"{portal} <- SCSI_RESPONSE - response=0 GOOD ITT=\w+h StatSN=\d+ .* data=0",
        rf"{portal} -> LOGOUT_REQUEST .*",
    ):
        assert re.search(rf"^iscsifs: {_STAMP} {pattern}$", said, re.MULTILINE), pattern
    assert SECRET.decode() not in said
    for value in re.findall(r"CHAP_[RC]=(.*)", said):
        assert re.fullmatch(r"\(\d+ characters\)", value)


# End to end, with the target of this project.


def start(module: str, *arguments: object) -> subprocess.Popen[str]:
    call = f"import sys; from {module} import main; sys.exit(main())"
    command = [sys.executable, "-c", call, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(MIB))
    return path


@pytest.fixture
def portal(image: Path) -> Iterator[str]:
    """Where a real target serves *image*."""
    with start("iscsifs.target.cli", "--port", 0, "--name", IQN + "disk1", image) as target:
        try:
            assert target.stdout is not None
            yield target.stdout.readline().split(",")[0]
        finally:
            target.terminate()
            target.communicate(timeout=20)


@pytest.mark.mount
def test_it_goes_to_the_background_when_all_is_mounted(portal: str, image: Path, mount_point: Path) -> None:
    with start("iscsifs.cli", portal, mount_point) as command:
        output, complaints = command.communicate(timeout=20)
    assert (command.returncode, complaints) == (ExitStatus.OK, "")
    assert output == f"127.0.0.1: {portal},1 {IQN}disk1\n"
    with open(mount_point / "127.0.0.1/disk1/storage", "r+b", buffering=0) as file:
        file.write(b"hello")
        os.fsync(file.fileno())
    assert image.read_bytes()[:5] == b"hello"
    subprocess.run(["fusermount3", "-u", mount_point], check=True)
    assert not os.path.ismount(mount_point)


@pytest.mark.mount
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_writes_back_and_unmounts(
    portal: str, image: Path, mount_point: Path, number: signal.Signals
) -> None:
    with start("iscsifs.cli", "-f", portal, mount_point) as command:
        assert command.stdout is not None
        assert command.stdout.readline() != ""
        storage = os.open(mount_point / "127.0.0.1/disk1/storage", os.O_RDWR)
        os.write(storage, b"hello")
        command.send_signal(number)
        _, complaints = command.communicate(timeout=20)
    with contextlib.suppress(OSError):
        os.close(storage)
    assert (command.returncode, complaints) == (ExitStatus.OK, "")
    assert not os.path.ismount(mount_point)
    assert image.read_bytes()[:5] == b"hello"


@pytest.mark.mount
@pytest.mark.parametrize("arguments", [[], ["-f"]])
def test_a_signal_before_anything_is_mounted_ends_it(mount_point: Path, arguments: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        host = "{}:{}".format(*silent.getsockname())
        with start("iscsifs.cli", *arguments, host, mount_point) as command:
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(48) != b""  # the login, which is not answered
                command.send_signal(signal.SIGTERM)
                output, _ = command.communicate(timeout=20)
    assert (command.returncode, output) == (ExitStatus.FAILED, "")
    assert not os.path.ismount(mount_point)
