"""mkdir(2), rmdir(2) and control files in memory: the tree, the errno and the events."""

import errno
import json
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from pyfuse3 import FUSEError
from trio.testing import MockClock, wait_all_tasks_blocked

from iscsifs.config import Config, Host, HostSpec
from iscsifs.errors import (
    AuthenticationError,
    DataError,
    IscsifsError,
    LoginRefused,
    LoginTimeout,
    ProtocolError,
    TransportError,
    UnknownHost,
)
from iscsifs.fs.nodes import Directory, TreeOptions
from iscsifs.fs.operations import Operations
from iscsifs.fs.tree import ROOT_INODE, Tree
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.names import Portal
from iscsifs.limits import MAX_HOSTS
from iscsifs.monitor.events import Events
from iscsifs.mount_options import MountOptions
from iscsifs.service.about import show_config
from iscsifs.service.autohost import may_be_host
from iscsifs.service.control import take_commands
from iscsifs.service.find import origins_of
from iscsifs.service.living import LivingSet, open_living_set
from iscsifs.transport.polling import NO_POLLER
from support.fake_network import FakeNetwork, FakeTarget, FakeUnit
from support.memory_operations import NOBODY, errno_of, fields, walk

IQN = "iqn.2001-04.com.example:"
OPTIONS = InitiatorOptions("iqn.2001-04.com.example:host")
HERE = Portal("127.0.0.1")
HOST = "127.0.0.1"


def disk(name: str, portal: Portal = HERE) -> FakeTarget:
    return FakeTarget(IQN + name, [FakeUnit(name=f"disk {name}")], portal)


class Site:
    """A mount in memory, as the kernel asks it."""

    def __init__(self, network: FakeNetwork, living: LivingSet, operations: Operations) -> None:
        self.network, self.living, self.operations = network, living, operations

    async def mkdir(self, path: str) -> None:
        parent, name = await self._parent(path)
        await self.operations.mkdir(parent, name, 0o755, NOBODY)

    async def rmdir(self, path: str) -> None:
        parent, name = await self._parent(path)
        await self.operations.rmdir(parent, name, NOBODY)

    async def _parent(self, path: str) -> tuple[int, bytes]:
        parent, _, name = path.rpartition("/")
        return (await walk(self.operations, parent)).st_ino if parent else ROOT_INODE, name.encode()

    async def write(self, path: str, data: bytes = b"1\n") -> None:
        file = await self.open(path, os.O_WRONLY)
        try:
            assert await self.operations.write(file, 0, data) == len(data)
        finally:
            await self.operations.flush(file)
            await self.operations.release(file)

    async def open(self, path: str, flags: int = os.O_RDWR) -> int:
        return (await self.operations.open((await walk(self.operations, path)).st_ino, flags, NOBODY)).fh

    def ls(self, path: str = "") -> list[str]:
        node = self.living.tree.root
        for name in path.encode().split(b"/") if path else ():
            entry = node.entries[name]
            assert isinstance(entry, Directory)
            node = entry
        return [name.decode() for name in node.entries]

    @property
    def hosts(self) -> list[str]:
        return [name for name in self.ls() if name not in ("by-id", ".iscsifs")]

    @property
    def events(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.living.events.current.data.splitlines()]

    def last(self, kind: str) -> dict[str, str]:
        return [event for event in self.events if event["event"] == kind][-1]


@pytest.fixture
def network() -> FakeNetwork:
    network = FakeNetwork()
    network.offer(HERE, disk("a"), disk("b"))
    return network


@asynccontextmanager
async def site(
    network: FakeNetwork,
    hosts: Sequence[str] = (),
    options: InitiatorOptions = OPTIONS,
    mount_options: MountOptions = MountOptions(0, 0),  # noqa: B008  # it is frozen
    retries: bool = False,
) -> AsyncIterator[Site]:
    config = Config(
        tuple(Host(HostSpec.parse(host), options) for host in hosts), None, mount_options, options
    )
    tree, events = Tree(TreeOptions(uid=0, gid=0)), Events()
    show_config(tree, config, events)
    async with (
        open_living_set(tree, network, NO_POLLER, events, retries=retries) as living,
        trio.open_nursery() as nursery,
    ):
        take_commands(living, config, network)
        found, _ = await living.find(origins_of(config, network))
        _, refused = await living.attach(found)
        living.retry(refused)
        nursery.start_soon(living.follow)
        yield Site(network, living, Operations(tree))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", [HOST, HOST + ":3260"])
async def test_a_host_comes_by_mkdir_and_goes_by_rmdir(network: FakeNetwork, name: str) -> None:
    async with site(network) as mount:
        assert mount.hosts == []
        for _ in range(2):
            await mount.mkdir(name)
            assert mount.hosts == [name]
            assert mount.ls(name) == ["a", "b"]
            assert mount.last("login") | {"host": name, "target": IQN + "b"} == mount.last("login")
            assert (
                await errno_of(mount.operations.mkdir(ROOT_INODE, name.encode(), 0, NOBODY)) == errno.EEXIST
            )
            await mount.rmdir(name)
            assert mount.hosts == []
            assert mount.last("logout")["host"] == name
        assert network.left == [IQN + "a", IQN + "b"] * 2
        assert [options for _, _, options in network.logins] == [OPTIONS] * 4


async def test_a_host_of_the_command_line_is_removed_and_comes_back_with_its_own_options(
    network: FakeNetwork,
) -> None:
    other = InitiatorOptions("iqn.2001-04.com.example:other")
    async with site(network, [HOST], other) as mount:
        await mount.rmdir(HOST)
        assert mount.hosts == []
        network.offer(HERE, disk("c"))
        await mount.mkdir(HOST)
        assert mount.ls(HOST) == ["c"]  # the host was asked again
        assert network.logins[-1][2] == other


async def test_one_target_goes_and_comes_back_and_its_host_stays(network: FakeNetwork) -> None:
    network.offer(HERE, disk("a"))
    async with site(network, [HOST]) as mount:
        await mount.rmdir(f"{HOST}/a")
        assert mount.ls(HOST) == []  # it is there, and empty
        await wait_all_tasks_blocked()
        assert mount.hosts == [HOST]
        await mount.mkdir(f"{HOST}/a")
        assert "storage" in mount.ls(f"{HOST}/a")
        assert await errno_of(mount.mkdir(f"{HOST}/a")) == errno.EEXIST
        await mount.rmdir(f"{HOST}/a")
        assert await errno_of(mount.mkdir(f"{HOST}/nothing")) == errno.ENODEV
        assert "no source tells of this target" in mount.last("control_failed")["text"]
        await mount.rmdir(HOST)
        assert mount.hosts == []


@pytest.mark.conformance("CONTROL-1.7")
@pytest.mark.parametrize(
    ("failure", "number"),
    [
        (UnknownHost("x: the name cannot be looked up", number=errno.ENXIO), errno.ENXIO),
        (TransportError("x: Connection refused", number=errno.ECONNREFUSED), errno.ECONNREFUSED),
        (TransportError("x: no login within 15 s", number=errno.ETIMEDOUT), errno.ETIMEDOUT),
        (LoginTimeout("x: no login within 15 s"), errno.ETIMEDOUT),
        (TransportError("x: No route to host", number=errno.EHOSTUNREACH), errno.EHOSTUNREACH),
        (LoginRefused(2, 1, "authentication failure"), errno.EACCES),
        (AuthenticationError("CHAP_R", "wrong"), errno.EACCES),
        (LoginRefused(2, 3, "not found"), errno.ENODEV),
        (ProtocolError("a rule", section="1"), errno.EIO),
    ],
)
@pytest.mark.parametrize("where", ["discovery", "login"])
async def test_a_host_that_cannot_be_added_is_an_errno_and_an_event(
    network: FakeNetwork, failure: IscsifsError, number: int, where: str
) -> None:
    if where == "discovery":
        network.hosts[HERE] = failure
    else:
        network.targets = dict.fromkeys(network.targets, failure)
    async with site(network) as mount:
        assert await errno_of(mount.mkdir(HOST)) == number
        assert mount.hosts == []
        assert str(failure) in mount.last("control_failed")["text"]
        assert mount.last("control_failed")["host"] == HOST
        assert mount.living.origins == []
        network.offer(HERE, disk("a"))
        await mount.mkdir(HOST)
        assert mount.ls(HOST) == ["a"]


@pytest.mark.conformance("CONTROL-1.7")
@pytest.mark.parametrize(
    "name", ["alice@host", "iscsi:host", "host:0", "host:port", "-x", ".x", "a b", "1.2.3", "[::1", "x" * 256]
)
async def test_what_is_no_host_is_refused_and_nothing_is_sent(network: FakeNetwork, name: str) -> None:
    async with site(network) as mount:
        assert await errno_of(mount.mkdir(name)) == errno.EINVAL
        assert mount.last("control_failed")["text"]
        assert network.discoveries == []


@pytest.mark.conformance("CONTROL-1.7")
async def test_hosts_are_bounded(network: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Portal(HOST, 3261)
    network.offer(other, disk("c", other))
    assert MAX_HOSTS >= 256
    monkeypatch.setattr("iscsifs.service.control.MAX_HOSTS", 1)
    async with site(network) as mount:
        await mount.mkdir(HOST)
        assert await errno_of(mount.mkdir(f"{HOST}:3261")) == errno.ENOSPC
        assert "no more are taken" in mount.last("control_failed")["text"]
        await mount.rmdir(HOST)
        await mount.mkdir(f"{HOST}:3261")


@pytest.mark.conformance("CONTROL-1.7", "CONTROL-1.8")
async def test_only_hosts_and_targets_are_made_and_removed(network: FakeNetwork) -> None:
    async with site(network, [HOST]) as mount:
        assert await errno_of(mount.mkdir(f"{HOST}/a/x")) == errno.EPERM
        assert await errno_of(mount.mkdir(f"{HOST}/a/lun0/x")) == errno.EPERM
        assert await errno_of(mount.mkdir("by-id/x")) == errno.EPERM
        assert await errno_of(mount.mkdir(".iscsifs/x")) == errno.EPERM
        assert await errno_of(mount.rmdir(f"{HOST}/a/lun0")) == errno.EPERM
        assert await errno_of(mount.rmdir("by-id")) == errno.EPERM
        assert await errno_of(mount.rmdir(".iscsifs")) == errno.EPERM
        assert await errno_of(mount.rmdir("nothing")) == errno.ENOENT
        assert await errno_of(mount.rmdir(f"{HOST}/nothing")) == errno.ENOENT
        assert mount.ls(HOST) == ["a", "b"]
        assert network.left == []


async def test_a_target_under_another_host_name_is_not_attached_twice(network: FakeNetwork) -> None:
    async with site(network, [HOST]) as mount:
        assert await errno_of(mount.mkdir(f"{HOST}:3260")) == errno.EEXIST
        assert mount.hosts == [HOST]
        assert "already" in mount.last("control_failed")["text"]
        await mount.rmdir(HOST)
        assert mount.hosts == []


@pytest.mark.conformance("CONTROL-1.8")
@pytest.mark.parametrize("path", [HOST, f"{HOST}/a"])
async def test_what_is_in_use_stays_and_so_does_all_of_its_host(network: FakeNetwork, path: str) -> None:
    async with site(network, [HOST]) as mount:
        file = await mount.open(f"{HOST}/a/storage")
        assert await errno_of(mount.rmdir(path)) == errno.EBUSY
        assert "disk a: not logged out: it is open" in mount.last("control_failed")["text"]
        assert mount.ls(HOST) == ["a", "b"]
        assert network.left == []
        await mount.operations.release(file)
        await mount.rmdir(path)


@pytest.mark.conformance("CONTROL-1.8")
async def test_what_was_written_is_flushed_or_nobody_is_logged_out(network: FakeNetwork) -> None:
    target = network.targets[IQN + "b"]
    assert isinstance(target, FakeTarget)
    (unit,) = target.units
    assert isinstance(unit, FakeUnit)
    async with site(network, [HOST]) as mount:
        file = await mount.open(f"{HOST}/b/storage")
        await mount.operations.write(file, 0, b"abc")
        await mount.operations.release(file)
        unit.flush_failure = DataError("the disk is full")
        assert await errno_of(mount.rmdir(HOST)) == errno.EIO
        assert "the disk is full" in mount.last("control_failed")["text"]
        assert mount.ls(HOST) == ["a", "b"]
        unit.flush_failure, unit.is_away = None, True
        assert await errno_of(mount.rmdir(HOST)) == errno.EBUSY
        unit.is_away = False
        await mount.rmdir(HOST)
        assert not unit.needs_flush


# Control files.


@pytest.mark.conformance("CONTROL-1.4", "CONTROL-1.5", "CONTROL-1.6")
async def test_control_files_do_what_they_say(network: FakeNetwork) -> None:
    target = network.targets[IQN + "a"]
    assert isinstance(target, FakeTarget)
    async with site(network, [HOST]) as mount:
        await mount.write(f"{HOST}/a/rescan")
        await mount.write(f"{HOST}/a/lun0/rescan", b"1")
        assert target.rescans == 2
        await mount.write(f"{HOST}/a/reset")
        await mount.write(f"{HOST}/a/lun0/reset")
        assert target.resets == [None, "0"]
        for data in b"2", b"", b"1 1", b"\0", b"logout\n":
            assert await errno_of(mount.write(f"{HOST}/a/logout", data)) == errno.EINVAL
            told = mount.last("control_failed")
            assert told["text"].startswith(f"{HOST}/a/logout: ")
            assert (told["host"], told["target"]) == (HOST, IQN + "a")
        assert await errno_of(mount.write(f"{HOST}/a/logout", b"1" * 4097)) == errno.E2BIG
        target.failure = TransportError("the target is away")
        assert await errno_of(mount.write(f"{HOST}/a/lun0/reset")) == errno.EIO
        assert mount.last("control_failed")["lun"] == "0"
        assert "the target is away" in mount.last("control_failed")["text"]
        assert network.left == []
        file = await mount.open(f"{HOST}/a/rescan", os.O_WRONLY)
        await mount.write(f"{HOST}/a/logout")
        assert network.left == [IQN + "a"]
        assert await errno_of(mount.operations.write(file, 0, b"1")) == errno.ENOTCONN
        await mount.mkdir(f"{HOST}/a")


async def test_changes_of_units_and_losses_are_events(
    network: FakeNetwork, autojump_clock: MockClock
) -> None:
    target = network.targets[IQN + "a"]
    assert isinstance(target, FakeTarget)
    first = target.units[0]
    assert isinstance(first, FakeUnit)
    async with site(network, [HOST]) as mount:
        second = FakeUnit("1", name="disk a LUN 1")
        target.units = [first, second]
        target.on_change()
        assert mount.last("unit_added") | {"host": HOST, "lun": "1"} == mount.last("unit_added")
        first.size *= 2
        target.on_change()
        assert str(first.size) in mount.last("unit_changed")["text"]
        target.units = [first]
        target.on_change()
        assert mount.last("unit_removed")["lun"] == "1"
        before = len(mount.events)
        target.on_change()
        assert len(mount.events) == before
        file = await mount.open(f"{HOST}/a/storage")
        first.failures, first.last_failure = 1, DataError("no power")
        await trio.sleep(2)
        assert "no power" in mount.last("losses")["text"]
        assert len([event for event in mount.events if event["event"] == "losses"]) == 1
        await mount.operations.release(file)
        target.on_note("connection_lost", "closed")
        assert mount.last("connection_lost")["target"] == IQN + "a"


@pytest.mark.conformance("CONTROL-1.16")
async def test_two_clients_may_change_everything_at_once(
    network: FakeNetwork, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    dice = random.Random(7)
    paths = [HOST, f"{HOST}/a", f"{HOST}/b"]
    expected = {errno.EEXIST, errno.EBUSY, errno.ENOTCONN, errno.ENOENT, errno.ENODEV, errno.ESTALE}

    async def pause() -> None:
        await trio.sleep(dice.random())

    network.pause = pause

    async def change(mount: Site) -> None:
        path = dice.choice(paths)
        action = dice.choice(["mkdir", "rmdir", "rescan", "logout"])
        try:
            if action in ("mkdir", "rmdir"):
                await getattr(mount, action)(path)
            else:
                await mount.write(f"{HOST}/{dice.choice('ab')}/{action}")
        except FUSEError as exc:
            if exc.errno not in expected:
                raise

    async with site(network) as mount:
        for _ in range(1000):
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(change, mount)
                    nursery.start_soon(change, mount)
        network.pause = trio.lowlevel.checkpoint
        if HOST in mount.hosts:
            await mount.rmdir(HOST)
        assert mount.hosts == []
        assert len(network.logins) == len(network.left) > 50
        await mount.mkdir(HOST)
        assert mount.ls(HOST) == ["a", "b"]


# Autohost.


@pytest.mark.conformance("CONTROL-1.14")
async def test_a_look_attaches_a_host_and_what_programs_look_for_does_not(
    network: FakeNetwork, autojump_clock: MockClock
) -> None:
    other = Portal(HOST, 3261)
    network.hosts[other] = TransportError("Connection refused", number=errno.ECONNREFUSED)
    async with site(network, mount_options=MountOptions(0, 0, autohost=True)) as mount:
        for name in (
            *(".git", "HEAD", ".Trash-1000", ".hidden", "autorun.inf", "desktop.ini", "libc.so", "by-id"),
            *("refs", "objects", "a b", "-x", "1.2.3", "libc.so.6", "Thumbs.db", "x" * 300, "core", "tls"),
        ):
            if name != "by-id":
                assert await errno_of(walk(mount.operations, name)) == errno.ENOENT
        assert network.discoveries == []
        assert mount.hosts == []
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(walk, mount.operations, f"{HOST}/a/storage")
        assert mount.hosts == [HOST]
        assert len(network.discoveries) == 1
        for _ in range(3):
            assert await errno_of(walk(mount.operations, f"{HOST}:3261")) == errno.ENOENT
        assert len(network.discoveries) == 2
        assert "Connection refused" in mount.last("control_failed")["text"]
        await trio.sleep(6)
        network.offer(other, disk("c", other))
        await walk(mount.operations, f"{HOST}:3261/c")


@pytest.mark.conformance("CONTROL-1.14")
def test_which_names_may_be_hosts(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# a comment\n192.0.2.1 array array.example.com # store\n")
    for name in (
        b"192.0.2.1",
        b"192.0.2.1:3261",
        b"array",
        b"san.example.com",
        b"san:3260",
        b"::1",
        b"[::1]:3260",
    ):
        assert may_be_host(name, hosts), name
    for name in (
        b"store",
        b"comment",
        b"Array",
        b"san.example.so",
        b"a_b.example",
        b"x@san.example",
        b"..",
        b"\xff",
    ):
        assert not may_be_host(name, hosts), name
    assert not may_be_host(b"array", tmp_path / "none")


# What is missing.


async def test_a_host_and_a_target_that_are_missing_come_later(
    network: FakeNetwork, autojump_clock: MockClock
) -> None:
    target = network.targets[IQN + "a"]
    offered = network.hosts[HERE]
    network.hosts[HERE] = TransportError("Connection refused", number=errno.ECONNREFUSED)
    network.targets[IQN + "a"] = LoginRefused(3, 1, "not available now")
    async with site(network, [HOST], retries=True) as mount:
        await trio.sleep(600)
        assert 10 < len(network.discoveries) < 30  # later and later
        network.hosts[HERE] = offered
        await trio.sleep(100)
        assert mount.ls(HOST) == ["b"]
        network.targets[IQN + "a"] = target
        await trio.sleep(100)
        assert mount.ls(HOST) == ["b", "a"]
        before = len(network.logins), len(network.discoveries)
        await trio.sleep(600)
        assert (len(network.logins), len(network.discoveries)) == before


@pytest.mark.parametrize(
    "failure", [LoginRefused(2, 1, "authentication failure"), UnknownHost("no such name")]
)
async def test_what_cannot_succeed_is_not_tried_again(
    network: FakeNetwork, autojump_clock: MockClock, failure: IscsifsError
) -> None:
    network.targets[IQN + "a"] = failure
    async with site(network, [HOST], retries=True) as mount:
        await trio.sleep(600)
        assert mount.ls(HOST) == ["b"]
        assert len(network.logins) == 2
    network.hosts[HERE] = failure
    discoveries = len(network.discoveries)
    async with site(network, [HOST], retries=True):
        await trio.sleep(600)
        assert len(network.discoveries) == discoveries + 1


async def test_without_retry_nothing_is_tried_again(network: FakeNetwork, autojump_clock: MockClock) -> None:
    network.targets[IQN + "a"] = TransportError("Connection refused", number=errno.ECONNREFUSED)
    async with site(network, [HOST]):
        await trio.sleep(600)
        assert len(network.logins) == 2


async def test_a_target_that_its_user_has_logged_out_of_is_not_tried_again(
    network: FakeNetwork, autojump_clock: MockClock
) -> None:
    target = network.targets[IQN + "a"]
    network.targets[IQN + "a"] = TransportError("Connection refused", number=errno.ECONNREFUSED)
    async with site(network, [HOST], retries=True) as mount:
        await trio.sleep(100)
        await mount.rmdir(HOST)
        network.targets[IQN + "a"] = target
        await trio.sleep(600)
        assert mount.hosts == []


# The file of events.


@pytest.mark.conformance("CONTROL-1.3")
async def test_events_grow_under_their_reader_and_turn(network: FakeNetwork) -> None:
    async with site(network) as mount:
        events, operations = mount.living.events, mount.operations
        file = await mount.open(".iscsifs/events", os.O_RDONLY)
        inode = (await walk(operations, ".iscsifs/events")).st_ino
        assert await operations.read(file, 0, 4096) == b""
        await mount.mkdir(HOST)
        text = bytes(events.current.data)
        assert await operations.read(file, 0, 1 << 20) == text
        attributes = await walk(operations, ".iscsifs/events")
        assert (attributes.st_size, attributes.attr_timeout) == (len(text), 0)
        assert attributes.st_mtime_ns == events.current.modified_ns
        events._bound = len(text) + 10
        events.add("test", "one more")
        assert (await walk(operations, ".iscsifs/events.1")).st_ino == inode
        assert (await walk(operations, ".iscsifs/events")).st_ino != inode
        assert await operations.read(file, 0, 1 << 20) == text  # who had it open goes on to its end
        assert b"one more" in await operations.read(await mount.open(".iscsifs/events", os.O_RDONLY), 0, 4096)
        events._bound = 0
        events.add("test", "the last")
        assert sorted(mount.ls(".iscsifs")) == ["config", "events", "events.1", "version"]
        assert await errno_of(mount.open(".iscsifs/events", os.O_RDWR)) == errno.EPERM
        touch = operations.setattr(inode, None, fields(update_size=True), None, NOBODY)  # type: ignore[arg-type]
        assert await errno_of(touch) in (errno.EPERM, errno.ESTALE)
