"""open-isns' server as a source of targets."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from iscsifs import service
from iscsifs.discovery.isns import IsnsSource, parse_server
from iscsifs.discovery.source import Wanted
from iscsifs.fs.nodes import Directory, TreeOptions
from iscsifs.fs.tree import Tree
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.isns.client import ClientConfig
from iscsifs.isns.states import State
from iscsifs.service.find import Origin
from iscsifs.service.living import open_living_set
from iscsifs.transport.polling import NO_POLLER
from support.embedded import Embedded
from support.isnsd import Isnsd
from support.targets import Serve, Target, Unit

ME = "iqn.2001-04.com.example:mounted"
A, B = "iqn.2001-04.com.example:a", "iqn.2001-04.com.example:b"

pytestmark = pytest.mark.real

Start = Callable[..., Isnsd]


@pytest.fixture
def isnsd(tmp_path: Path, require: Callable[..., None]) -> Iterator[Start]:
    """Start servers, as in ``server = isnsd(ESIMinInterval="2s")``, and end them after the test."""
    require("isnsd", "isnsadm")
    with ExitStack() as stack:

        def start(**settings: str) -> Isnsd:
            server = Isnsd(tmp_path, **settings)
            stack.callback(lambda: print(f"isnsd:\n{server.log_text}"))
            return stack.enter_context(server)

        yield start


class Run:
    """A source that runs, with what it reports and says."""

    def __init__(self, server: Isnsd, name: str = ME, esi_interval: int | None = 60) -> None:
        config = ClientConfig(name, esi_interval=esi_interval)
        self.source = IsnsSource(parse_server(server.portal), config, self._say)
        self.targets: dict[str, list[str]] | None = None
        self.history: list[set[str]] = []
        self.said: list[str] = []
        self._changed = trio.Event()

    def _say(self, sentence: str) -> None:
        print(sentence)
        self.said.append(sentence)

    def report(self, targets: Sequence[Wanted]) -> None:
        self.targets = {target.name: list(map(str, target.addresses)) for target in targets}
        self.history.append(set(self.targets))
        self._changed.set()

    async def until(self, *names: str, seconds: float = 2.0) -> None:
        """Wait until these are the targets, for at most so many *seconds*."""
        with trio.fail_after(seconds):
            while self.targets is None or set(self.targets) != set(names):
                self._changed = trio.Event()
                await self._changed.wait()


@asynccontextmanager
async def running(run: Run) -> AsyncIterator[Run]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.source.run, run.report)
        yield run
        nursery.cancel_scope.cancel()


async def in_thread(function: Callable[..., object], *arguments: object) -> str:
    return str(await trio.to_thread.run_sync(function, *arguments))


@pytest.mark.conformance("ISNS-8.5", "ISNS-3.1", "ISNS-3.2", "ISNS-3.8", "ISNS-5.1", "ISNS-5.3", "ISNS-4.1")
async def test_a_target_comes_and_goes_and_we_are_registered_meanwhile(isnsd: Start) -> None:
    server = isnsd()
    run = Run(server)
    async with running(run):
        await run.until()
        assert run.source.entity_id == "isns.entity.0001"
        assert ME in await in_thread(server.nodes)
        await in_thread(server.register, "array", A, "127.0.0.1:3260")
        await run.until(A)
        assert run.targets == {A: ["127.0.0.1:3260,1"]}
        await in_thread(server.register, "other", B, "127.0.0.1:3261")
        await run.until(A, B)
        await in_thread(server.deregister, f"iscsi-name={A}")
        await run.until(B)
        await in_thread(server.deregister, "eid=other")
        await run.until()
        assert run.said == []
    assert ME not in await in_thread(server.nodes)
    assert run.source.state is State.LEFT


@pytest.mark.conformance("ISNS-8.4")
async def test_targets_in_no_common_discovery_domain_are_not_seen(isnsd: Start) -> None:
    server = isnsd(DefaultDiscoveryDomain="0")
    server.register("array", A, "127.0.0.1:3260")
    run = Run(server)
    async with running(run):
        await run.until()
        await trio.sleep(1.5)
        assert run.targets == {}
        domain = ("--dd-register", "dd-name=lab", f"member-name={A}", f"member-name={ME}")
        await in_thread(lambda: server.admin(*domain, control=True))
        await run.until(A)


@pytest.mark.conformance("ISNS-6.2", "ISNS-6.1", "ISNS-3.5")
async def test_inquiries_are_answered_and_keep_the_registration(isnsd: Start) -> None:
    server = isnsd(ESIMinInterval="2s", ESIRetries="2")
    run = Run(server, esi_interval=2)
    async with running(run):
        await run.until()
        await trio.sleep(11)  # five of them
        assert server.log_text.count("Good ESI response") >= 4
        assert ME in await in_thread(server.nodes)
        assert run.said == []


@pytest.mark.conformance("ISNS-6.3")
async def test_a_server_without_inquiries_takes_us_without(isnsd: Start) -> None:
    server = isnsd(ESIRetries="0")
    run = Run(server)
    async with running(run):
        await run.until()
        assert run.source.state is State.REGISTERED
        assert ME in await in_thread(server.nodes)


@pytest.mark.conformance("ISNS-3.6")
async def test_a_short_period_is_refreshed(isnsd: Start) -> None:
    server = isnsd(RegistrationPeriod="6s", ESIRetries="0")
    run = Run(server, esi_interval=None)
    async with running(run):
        await run.until()
        await trio.sleep(13)
        assert ME in await in_thread(server.nodes)
        assert run.said == []


@pytest.mark.conformance("ISNS-4.7", "ISNS-4.8")
async def test_five_hundred_targets_all_appear(isnsd: Start) -> None:
    server = isnsd()
    names = [f"iqn.2001-04.com.example:a-long-name-for-a-disk-{number:03}" for number in range(500)]
    for start in range(0, 500, 50):  # so many to a message
        words = [f"target={name}" for name in names[start : start + 50]]
        server.admin("--register", f"entity=array{start}", *words, f"portal=127.0.0.1:{4000 + start}")
    run = Run(server)
    async with running(run):
        await run.until(*names, seconds=30)
        assert run.targets is not None
        assert run.targets[names[120]] == ["127.0.0.1:4100,1"]
        assert run.said == []


@pytest.mark.conformance("ISNS-4.9", "ISNS-1.1")
async def test_names_of_the_greatest_length(isnsd: Start) -> None:
    server = isnsd()
    name = A + "x" * (223 - len(A))
    server.register("array", name, "127.0.0.1:3260")
    run = Run(server, name=ME + "y" * (223 - len(ME)))
    async with running(run):
        await run.until(name)


@pytest.mark.conformance("ISNS-7.3", "ISNS-7.4")
async def test_a_restart_of_the_server_takes_no_target_away(isnsd: Start) -> None:
    server = isnsd()
    server.register("array", A, "127.0.0.1:3260")
    run = Run(server)
    async with running(run):
        await run.until(A)
        server.kill()
        server.forget()
        await trio.sleep(0.5)
        server.start()
        await trio.sleep(5)
        assert ME in await in_thread(server.nodes)
        assert run.history == [{A}]
        assert len(run.said) == 1
        assert "its targets stay, and it is tried again" in run.said[0]
        await in_thread(server.register, "other", B, "127.0.0.1:3261")
        await run.until(A, B, seconds=4)


@pytest.mark.conformance("ISNS-3.4", "ISNS-3.8", "ISNS-3.3")
async def test_two_programs_of_one_name_do_not_harm_each_other(isnsd: Start) -> None:
    server = isnsd()
    server.register("array", A, "127.0.0.1:3260")
    first, second = Run(server), Run(server)
    async with running(first):
        await first.until(A)
        async with running(second):
            await second.until(A)
            assert "another program is registered as" in second.said[0]
        assert ME in await in_thread(server.nodes)
        await in_thread(server.register, "other", B, "127.0.0.1:3261")
        await first.until(A, B, seconds=10)  # the server tries the portal of the second one first
    assert ME not in await in_thread(server.nodes)


@pytest.mark.conformance("ISNS-3.4")
async def test_what_a_killed_run_has_left_is_cleared_away(isnsd: Start) -> None:
    server = isnsd()
    # A registration of ours at a port where nobody listens.
    words = "--register", "entity=isns.old", f"initiator={ME}", "portal=127.0.0.1:9"
    server.admin(*words)
    async with AsyncExitStack() as stack:
        run = await stack.enter_async_context(running(Run(server)))
        await run.until()
        assert run.source.state is State.REGISTERED
        await in_thread(server.register, "array", A, "127.0.0.1:3260")
        await run.until(A)
    assert ME not in await in_thread(server.nodes)


@pytest.mark.conformance("ISNS-8.5", "ISNS-5.5")
async def test_the_tree_follows_the_server(isnsd: Start, serve: Serve, image: Path, tmp_path: Path) -> None:
    """A disk of the target is in the tree soon after its registration, and leaves it."""
    server = isnsd()
    target = serve(Embedded(tmp_path, Target(A, [Unit(image)])))
    options = InitiatorOptions(ME)
    source = IsnsSource(parse_server(server.portal), ClientConfig(ME), print)
    tree = Tree(TreeOptions(uid=0, gid=0))

    def shown() -> list[str]:
        host = tree.root.entries.get(b"127.0.0.1")
        return [name.decode() for name, _ in host.listing()] if isinstance(host, Directory) else []

    async def until(*names: str) -> None:
        with trio.fail_after(4):
            while shown() != list(names):  # noqa: ASYNC110
                await trio.sleep(0.05)

    async with open_living_set(tree, service, NO_POLLER) as living, trio.open_nursery() as nursery:
        nursery.start_soon(living.follow)
        assert await living.add_source(Origin(source, options)) == ([], [])
        await in_thread(server.register, "array", A, target.portal)
        await until("a")
        await in_thread(server.deregister, f"iscsi-name={A}")
        await until()
        assert living.targets == []
        nursery.cancel_scope.cancel()
    assert ME not in await in_thread(server.nodes)
