"""The living set in memory: sources that report other targets, logins and logouts, and the tree."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from iscsifs.discovery.source import Report, Wanted
from iscsifs.errors import DataError, InUseError, LoginRefused, TransportError
from iscsifs.fs.nodes import Directory, TreeOptions
from iscsifs.fs.storage_file import OpenStorage
from iscsifs.fs.tree import Tree
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.names import Portal, TargetAddress
from iscsifs.service.attach import Attached, Login
from iscsifs.service.find import Origin
from iscsifs.service.living import LivingSet, open_living_set
from iscsifs.transport.polling import NO_POLLER
from support.fake_network import FakeNetwork, FakeTarget, FakeUnit

PORTAL = Portal("192.0.2.1")
IQN = "iqn.2001-04.com.example:"
OPTIONS = InitiatorOptions("iqn.2001-04.com.example:host")


@dataclass(eq=False)
class Changing:
    """A source that reports what a test tells it to."""

    first: Sequence[str] = ()
    failure: Exception | None = None
    name: str = "changing"
    reports: list[Report] = field(default_factory=list)
    stopped: bool = False

    async def run(self, report: Report) -> None:
        if self.failure is not None:
            raise self.failure
        self.reports.append(report)
        self.tell(*self.first)
        try:
            await trio.sleep_forever()
        finally:
            self.stopped = True

    def tell(self, *names: str) -> None:
        self.reports[0]([wanted(name) for name in names])


def wanted(name: str) -> Wanted:
    return Wanted("host", IQN + name, (TargetAddress(PORTAL),))


def origin(*names: str) -> tuple[Changing, Origin]:
    source = Changing(names)
    return source, Origin(source, OPTIONS)


@pytest.fixture
def network() -> FakeNetwork:
    network = FakeNetwork()
    for name in "abc":
        network.targets[IQN + name] = FakeTarget(IQN + name, [FakeUnit(name=f"disk {name}")], PORTAL)
    return network


@asynccontextmanager
async def living_set(network: FakeNetwork) -> AsyncIterator[LivingSet]:
    tree = Tree(TreeOptions(uid=0, gid=0))
    async with open_living_set(tree, network, NO_POLLER) as living, trio.open_nursery() as nursery:
        nursery.start_soon(living.follow)
        yield living
        nursery.cancel_scope.cancel()


def shown(living: LivingSet) -> list[str]:
    host = living.tree.root.entries.get(b"host")
    return [] if not isinstance(host, Directory) else [name.decode() for name, _ in host.listing()]


def unit_of(network: FakeNetwork, name: str) -> FakeUnit:
    target = network.targets[IQN + name]
    assert isinstance(target, FakeTarget)
    (unit,) = target.units
    assert isinstance(unit, FakeUnit)
    return unit


def attached_of(living: LivingSet, name: str) -> Attached:
    return next(each for each in living.targets if each.target.target_name == IQN + name)


async def open_disk(living: LivingSet, network: FakeNetwork, name: str) -> OpenStorage:
    unit = unit_of(network, name)
    file = next(file for file in living.tree.files() if file.storage is unit)
    return await file.open(os.O_RDWR, 1)


async def test_a_set_that_grows_and_shrinks_is_what_the_tree_shows(network: FakeNetwork) -> None:
    source, of_it = origin("a")
    async with living_set(network) as living:
        attached, failures = await living.add_source(of_it)
        assert ([each.target.target_name for each in attached], failures) == ([IQN + "a"], [])
        assert shown(living) == ["a"]
        source.tell("a", "b", "c")
        await wait_all_tasks_blocked()
        assert shown(living) == ["a", "b", "c"]
        source.tell("c")
        await wait_all_tasks_blocked()
        assert shown(living) == ["c"]
        assert network.left == [IQN + "a", IQN + "b"]
        source.tell()
        await wait_all_tasks_blocked()
        assert "host" not in {name.decode() for name in living.tree.root.entries}
        assert len(living.tree.nodes) == 2  # nothing is left of them
        source.tell("a")
        await wait_all_tasks_blocked()
        assert shown(living) == ["a"]
    assert source.stopped
    assert network.logouts == 1


async def test_a_target_that_two_sources_want_stays_until_neither_does(network: FakeNetwork) -> None:
    one, of_one = origin("a", "b")
    other, of_other = origin("a")
    async with living_set(network) as living:
        await living.add_source(of_one)
        await living.add_source(of_other)
        assert [name for name, _, _ in network.logins] == [IQN + "a", IQN + "b"]
        await living.remove_source(of_one)
        await wait_all_tasks_blocked()
        assert one.stopped
        assert shown(living) == ["a"]
        other.tell()
        await wait_all_tasks_blocked()
        assert shown(living) == []


async def test_a_target_that_is_not_wanted_any_more_leaves_when_it_is_closed(
    network: FakeNetwork, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    source, of_it = origin("a", "b")
    async with living_set(network) as living:
        await living.add_source(of_it)
        file = await open_disk(living, network, "a")
        source.tell()
        await trio.sleep(1)
        assert shown(living) == ["a"]
        assert "disk a: not logged out: it is open" in caplog.text
        file.release()
        await trio.sleep(20)
        assert shown(living) == []


async def test_a_target_in_use_is_not_logged_out_of(network: FakeNetwork) -> None:
    _, of_it = origin("a", "b")
    async with living_set(network) as living:
        await living.add_source(of_it)
        file = await open_disk(living, network, "a")
        with pytest.raises(InUseError):
            await living.log_out(attached_of(living, "a"))
        with pytest.raises(InUseError):
            await living.remove_source(of_it)  # neither of the one that nobody uses
        assert shown(living) == ["a", "b"]
        assert network.left == []
        file.release()
        await living.remove_source(of_it)
        assert sorted(network.left) == [IQN + "a", IQN + "b"]


async def test_what_was_written_is_flushed_before_a_logout(network: FakeNetwork) -> None:
    _, of_it = origin("a")
    unit = unit_of(network, "a")
    async with living_set(network) as living:
        await living.add_source(of_it)
        file = await open_disk(living, network, "a")
        await file.write(0, b"abc")
        file.release()
        unit.flush_failure = DataError("lost")
        with pytest.raises(DataError):
            await living.log_out(attached_of(living, "a"))
        assert shown(living) == ["a"]
        unit.flush_failure, unit.is_away = None, True
        with pytest.raises(InUseError, match="away"):
            await living.log_out(attached_of(living, "a"))
        unit.is_away = False
        await living.log_out(attached_of(living, "a"))
        assert unit.flushes == 2
        assert not unit.needs_flush
        assert living.tree.storages.written == []


async def test_a_target_that_is_opened_while_it_is_drained_stays(network: FakeNetwork) -> None:
    _, of_it = origin("a")
    unit = unit_of(network, "a")
    async with living_set(network) as living:
        await living.add_source(of_it)
        file = await open_disk(living, network, "a")
        await file.write(0, b"abc")
        file.release()

        async def flush() -> None:
            unit.needs_flush = False
            await open_disk(living, network, "a")

        unit.flush = flush  # type: ignore[method-assign]
        with pytest.raises(InUseError):
            await living.log_out(attached_of(living, "a"))
        assert shown(living) == ["a"]


async def test_what_its_user_has_logged_out_of_stays_out_until_the_user_logs_in(network: FakeNetwork) -> None:
    source, of_it = origin("a", "b")
    async with living_set(network) as living:
        await living.add_source(of_it)
        before = living.tree.root.entries[b"host"]
        attached = attached_of(living, "a")
        await living.log_out(attached)
        with pytest.raises(InUseError):
            await living.log_out(attached)
        source.tell("a", "b", "c")
        await wait_all_tasks_blocked()
        assert shown(living) == ["b", "c"]
        await living.log_in(attached.login)
        with pytest.raises(InUseError):
            await living.log_in(attached.login)
        assert shown(living) == ["a", "b", "c"]
        assert living.tree.root.entries[b"host"] is before
        source.tell("b")
        await wait_all_tasks_blocked()
        assert shown(living) == ["b"]


async def test_failures_change_nothing(network: FakeNetwork, caplog: pytest.LogCaptureFixture) -> None:
    network.targets[IQN + "b"] = LoginRefused(2, 1, "authentication failure")
    source, of_it = origin("a", "b")
    async with living_set(network) as living:
        attached, failures = await living.add_source(of_it)
        assert len(attached) == 1
        assert [str(failure) for failure in failures] == [f"host: {IQN}b: {network.targets[IQN + 'b']}"]
        assert shown(living) == ["a"]
        source.tell("a", "b")
        await wait_all_tasks_blocked()
        assert "authentication failure" in caplog.text
        with pytest.raises(LoginRefused):
            await living.log_in(Login(wanted("b"), OPTIONS))
        broken = Origin(Changing(failure=TransportError("refused")), OPTIONS)
        _, failures = await living.add_source(broken)
        assert [str(failure) for failure in failures] == ["changing: refused"]
        assert shown(living) == ["a"]


async def test_units_that_come_are_shown_only_while_the_target_is(network: FakeNetwork) -> None:
    _, of_it = origin("a")
    target = network.targets[IQN + "a"]
    assert isinstance(target, FakeTarget)
    async with living_set(network) as living:
        await living.add_source(of_it)
        target.units = [*target.units, FakeUnit("1")]
        target.on_change()
        assert len([*living.tree.files()]) == 2
        await living.log_out(attached_of(living, "a"))
        target.on_change()
        assert [*living.tree.files()] == []


async def test_initiators_are_for_options_and_not_for_sources(network: FakeNetwork) -> None:
    other = InitiatorOptions("iqn.2001-04.com.example:other")
    async with living_set(network) as living:
        for number, options in enumerate((OPTIONS, other, OPTIONS)):
            await living.add_source(Origin(Changing(["abc"[number]]), options))
        assert [options for _, _, options in network.logins] == [OPTIONS, other, OPTIONS]
        assert network.logouts == 0
    assert network.logouts == 2
