"""An iSNS server as a source of targets: connections, our port, the end. In memory, at trio's own time."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address

import pytest
import trio

from iscsifs.discovery.isns import IsnsSource, parse_server
from iscsifs.discovery.isns_network import Address, Line
from iscsifs.discovery.source import Source, Wanted
from iscsifs.errors import ConfigError, TransportError
from iscsifs.iscsi.names import Portal
from iscsifs.isns.attributes import Scn
from iscsifs.isns.client import Client, ClientConfig
from iscsifs.isns.pdu import Function, Message, Receiver, Status
from iscsifs.isns.states import State
from iscsifs.isns.targets import wire_address
from iscsifs.limits import (
    ISNS_CONNECT_TIMEOUT,
    ISNS_FIRST_TIMEOUT,
    ISNS_LEAVE_TIMEOUT,
    ISNS_MESSAGE_TIMEOUT,
    ISNS_POLL_INTERVAL,
    ISNS_RESPONSE_TIMEOUT,
    ISNS_SHARE,
    MAX_ISNS_CONNECTIONS,
)
from support.memory_isns import ME, Server, attributes, esi, pdu, scn

A, B = "iqn.2001-04.com.example:a", "iqn.2001-04.com.example:b"
HOST, OTHER, HERE = IPv4Address("192.0.2.5"), IPv4Address("192.0.2.66"), IPv4Address("192.0.2.10")
SERVER = Portal(str(HOST), 3205)
NEVER = attributes((6, 1_000_000))


async def trickle(stream: trio.abc.Stream, data: bytes) -> None:
    """Send a byte a second."""
    for byte in data:
        await stream.send_all(bytes([byte]))
        await trio.sleep(1)


@dataclass
class MemoryNetwork:
    """The network of a client, with an iSNS server at its other end."""

    server: Server
    nursery: trio.Nursery
    is_down: bool = False
    connections: int = 0
    line: trio.abc.Stream | None = None
    serve: Callable[[Line], Awaitable[None]] | None = None
    ports: list[int] = field(default_factory=list)
    probed: list[int] = field(default_factory=list)

    async def connect(self, server: Portal) -> Line:
        self.connections += 1
        if self.is_down:
            raise TransportError(f"{server}: Connection refused")
        ours, self.line = trio.testing.memory_stream_pair()
        self.server.__post_init__()
        self.nursery.start_soon(self._serve, self.line)
        return Line(ours, HERE, HOST)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        try:
            async for data in stream:
                if answers := self.server.take(bytes(data)):
                    await stream.send_all(answers)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def listen(
        self, nursery: trio.Nursery, address: Address, port: int, serve: Callable[[Line], Awaitable[None]]
    ) -> int:
        assert address == HERE
        self.serve = serve
        self.ports.append(port)
        return port or 41000

    async def is_served(self, address: Address, port: int) -> bool:
        self.probed.append(port)
        return False

    def call(self, peer: IPv4Address = HOST) -> trio.abc.Stream:
        """Connect to the port of the client."""
        assert self.serve is not None
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.serve, Line(theirs, HERE, peer))
        return ours

    async def tell(self, message: Message) -> Message:
        """Send *message* over a connection of its own, as open-isns does."""
        stream = self.call()
        await stream.send_all(message.pack())
        (answer,) = Receiver().receive(bytes(await stream.receive_some(65536)), 0.0)
        await stream.aclose()
        return answer

    async def close(self) -> None:
        """Close the connection, as a server that ends."""
        assert self.line is not None
        await self.line.aclose()


@dataclass
class Run:
    """A source that runs, and what it has said."""

    source: IsnsSource
    network: MemoryNetwork
    scope: trio.CancelScope
    reports: list[Sequence[Wanted]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    ended: trio.Event = field(default_factory=trio.Event)

    @property
    def server(self) -> Server:
        return self.network.server

    @property
    def names(self) -> list[str]:
        return [target.name for target in self.reports[-1]]


@asynccontextmanager
async def running(
    server: Server, *, is_down: bool = False, wants: Callable[[str], bool] = lambda name: True
) -> AsyncIterator[Run]:
    """Run a source, and end it."""
    async with trio.open_nursery() as nursery:
        network = MemoryNetwork(server, nursery, is_down)
        said: list[str] = []
        source = IsnsSource(SERVER, ClientConfig(ME), said.append, wants, network, lambda: 0.5)
        run = Run(source, network, trio.CancelScope(), said=said)

        async def work() -> None:
            with run.scope:
                await source.run(run.reports.append)
            run.ended.set()

        nursery.start_soon(work)
        await trio.sleep(0.1)
        yield run
        run.scope.cancel()
        await run.ended.wait()
        nursery.cancel_scope.cancel()


@pytest.mark.conformance("ISNS-4.5", "ISNS-3.3")
async def test_the_targets_with_their_portals_are_reported(autojump_clock: object) -> None:
    server = Server({A: [("192.0.2.1", 3260, 5), ("2001:db8::1", 860, 5), ("192.0.2.3", 3260, 6)]})
    async with running(server) as run:
        ((target,),) = run.reports
        assert target.name == A
        assert list(map(str, target.addresses)) == [
            "192.0.2.1:3260,5",
            "[2001:db8::1]:860,5",
            "192.0.2.3:3260,6",
        ]
        assert (run.source.state, run.source.entity_id) == (State.REGISTERED, "isns.entity.0001")
        assert run.said == []
        assert server.asked[0].value(23) == 41000
        assert server.asked[0].value(16) == ip_address("::ffff:192.0.2.10")


async def test_a_target_keeps_its_host_when_portals_come_and_the_unwanted_are_left_out(
    autojump_clock: object,
) -> None:
    server = Server({A: [("2001:db8::1", 3260, 1), ("192.0.2.3", 3260, 1)], B: [("192.0.2.3", 3260, 1)]})
    async with running(server, wants=lambda name: name == A) as run:
        source: Source = run.source
        assert source.name == f"iSNS server {SERVER}"
        assert [(wanted.host_name, wanted.name) for wanted in run.reports[-1]] == [("192.0.2.3", A)]
        server.targets[A].append(("192.0.2.1", 3260, 1))
        await run.network.tell(scn((Scn.UPDATED, A)))
        await trio.sleep(2)
        assert [(wanted.host_name, len(wanted.addresses)) for wanted in run.reports[-1]] == [("192.0.2.3", 3)]


@pytest.mark.conformance("ISNS-5.3", "ISNS-5.4")
async def test_a_target_comes_and_goes_by_notifications(autojump_clock: object) -> None:
    async with running(Server({A: [("192.0.2.1", 3260, 1)]}, granted=NEVER)) as run:
        await trio.sleep(3)
        run.server.targets[B] = [("192.0.2.2", 3260, 1)]
        answer = await run.network.tell(scn((0x0C, B), xid=99))
        assert (answer.function, answer.transaction_id, answer.status) == (0x8008, 99, 0)
        await trio.sleep(1)
        assert run.names == [A, B]
        del run.server.targets[A]
        assert run.network.line is not None
        await run.network.line.send_all(scn((Scn.REMOVED, A)).pack())  # this one on the query connection
        await trio.sleep(2)
        assert run.names == [B]


@pytest.mark.conformance("ISNS-6.1", "ISNS-6.2")
async def test_inquiries_are_answered_within_a_second_for_as_long_as_they_come(
    autojump_clock: object,
) -> None:
    async with running(Server()) as run:
        for number in range(5):
            begun = trio.current_time()
            answer = await run.network.tell(esi(number))
            assert trio.current_time() - begun < 1
            assert answer == Message(0x800D, number, esi().payload, 0)
            await trio.sleep(60)


@pytest.mark.conformance("ISNS-3.8")
async def test_the_end_deregisters(autojump_clock: object) -> None:
    server = Server()
    async with running(server) as run:
        assert server.is_registered
        run.scope.cancel()
        begun = trio.current_time()
        await run.ended.wait()
        assert trio.current_time() - begun < 0.5
        assert not server.is_registered
        assert run.source.state is State.LEFT
        assert server.functions()[-2:] == [Function.SCN_DEREG, Function.DEV_DEREG]


@pytest.mark.conformance("ISNS-3.8")
async def test_the_end_does_not_wait_for_a_silent_server(autojump_clock: object) -> None:
    async with running(Server()) as run:
        run.server.is_silent = True
        run.scope.cancel()
        begun = trio.current_time()
        await run.ended.wait()
        assert trio.current_time() - begun == pytest.approx(ISNS_LEAVE_TIMEOUT, abs=0.1)


async def test_the_end_while_the_server_is_away_is_the_end(autojump_clock: object) -> None:
    async with running(Server(), is_down=True) as run:
        run.scope.cancel()
        begun = trio.current_time()
        await run.ended.wait()
        assert trio.current_time() == begun


@pytest.mark.conformance("ISNS-7.3")
async def test_targets_stay_while_the_server_is_away_and_it_is_tried_again(autojump_clock: object) -> None:
    async with running(Server({A: [("192.0.2.1", 3260, 1)]})) as run:
        run.network.is_down = True
        await run.network.close()
        await trio.sleep(600)
        assert run.names == [A]
        assert run.source.state is State.AWAY
        assert run.said == [
            f"iSNS server {SERVER}: the connection was closed by the server; "
            "its targets stay, and it is tried again"
        ]
        assert 8 < run.network.connections < 20
        run.network.is_down = False
        seen = len(run.server.asked)
        await trio.sleep(61)
        assert run.server.functions()[seen : seen + 4] == [1, 2, 5, 2]
        assert run.network.ports == [0, 41000]  # the server finds us where we were
        assert len(run.reports) == 1


async def test_a_server_that_is_away_at_the_start_is_tried_until_it_is_there(autojump_clock: object) -> None:
    async with running(Server({A: [("192.0.2.1", 3260, 1)]}), is_down=True) as run:
        await trio.sleep(30)
        assert run.reports == [[]]  # nobody waits for it
        assert run.said == [
            f"iSNS server {SERVER}: Connection refused; its targets stay, and it is tried again"
        ]
        run.network.is_down = False
        await trio.sleep(60)
        assert run.names == [A]


@pytest.mark.conformance("ISNS-5.6")
async def test_who_is_not_the_server_is_not_heard(autojump_clock: object) -> None:
    async with running(Server()) as run:
        stream = run.network.call(OTHER)
        with pytest.raises(trio.BrokenResourceError):
            await trickle(stream, scn((Scn.ADDED, A)).pack() * 10)
        assert run.said == [
            f"iSNS server {SERVER}: a connection from 192.0.2.66, which is not the server, was closed"
        ]
        assert run.source.state is State.REGISTERED


@pytest.mark.conformance("ISNS-8.1")
async def test_a_trickle_on_our_port_ends_with_its_time(autojump_clock: object) -> None:
    async with running(Server()) as run:
        stream = run.network.call()
        begun = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            await trickle(stream, pdu(bytes(65532), Function.SCN))
        assert trio.current_time() - begun == pytest.approx(ISNS_MESSAGE_TIMEOUT, abs=1.5)


@pytest.mark.conformance("ISNS-8.1")
async def test_silent_connections_to_our_port_end_and_are_not_many(autojump_clock: object) -> None:
    async with running(Server()) as run:
        streams = [run.network.call() for _ in range(MAX_ISNS_CONNECTIONS)]
        await trio.sleep(1)
        assert await run.network.call().receive_some() == b""  # one too many
        assert f"there are {MAX_ISNS_CONNECTIONS} already" in run.said[0]
        await trio.sleep(ISNS_POLL_INTERVAL)
        assert [await stream.receive_some() for stream in streams] == [b""] * MAX_ISNS_CONNECTIONS
        assert (await run.network.tell(esi())).status == 0


@pytest.mark.conformance("ISNS-8.1", "ISNS-5.6")
async def test_reading_takes_a_quarter_of_the_time_at_most(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Server()) as run:
        watch = itertools.count()  # a second passes between any two looks at it
        monkeypatch.setattr("iscsifs.discovery.isns.time.perf_counter", lambda: float(next(watch)))
        stream, begun = run.network.call(), trio.current_time()
        for number in range(10):
            await stream.send_all(esi(number).pack())
            await stream.receive_some()
        assert trio.current_time() - begun >= 9 * (1 / ISNS_SHARE - 1)


@pytest.mark.conformance("ISNS-8.1", "ISNS-7.3")
async def test_a_server_that_falls_silent_is_left_and_comes_back(autojump_clock: object) -> None:
    async with running(Server({A: [("192.0.2.1", 3260, 1)]})) as run:
        run.server.is_silent = True
        await trio.sleep(ISNS_POLL_INTERVAL + ISNS_RESPONSE_TIMEOUT)
        assert "no answer to DEV_ATTR_QRY in 15 s" in run.said[0]
        run.server.is_silent = False
        await trio.sleep(120)
        assert run.source.state is State.REGISTERED
        assert run.names == [A]


@pytest.mark.conformance("ISNS-7.3")
async def test_a_message_that_breaks_the_rules_ends_the_connection_with_its_name(
    autojump_clock: object,
) -> None:
    async with running(Server()) as run:
        assert run.network.line is not None
        await run.network.line.send_all(b"\0\2" + bytes(10))
        await trio.sleep(0.5)
        assert run.said == [
            f"iSNS server {SERVER}: version 2 (RFC 4171 section 5.1.1); "
            "its targets stay, and it is tried again"
        ]
        await trio.sleep(2)
        assert run.source.state is State.REGISTERED


@pytest.mark.conformance("ISNS-8.2")
async def test_names_that_are_none_are_left_out_and_printed_safely(autojump_clock: object) -> None:
    names = ["iqn.2001-04.com.example:a/b", "..", "iqn.2001-04.com.example:\x1b[31m", "n" * 223, A]
    server = Server({name: [("192.0.2.1", 3260, 1)] for name in names})
    server.targets[B] = []
    async with running(server) as run:
        assert run.names == [A]
        assert len(run.said) == 5
        assert all(sentence.isprintable() and sentence.isascii() for sentence in run.said)
        assert f'iSNS server {SERVER}: left out target "{B}": it has no portal' in run.said


@pytest.mark.conformance("ISNS-8.2")
async def test_a_thousand_names_that_are_none_are_counted(autojump_clock: object) -> None:
    async with running(Server({f"x{number}": [("192.0.2.1", 3260, 1)] for number in range(1000)})) as run:
        assert run.names == []
        assert len(run.said) == 21
        assert run.said[-1].endswith("left out 980 more")


@pytest.mark.conformance("ISNS-8.1")
async def test_nobody_waits_for_the_first_targets_of_a_server_that_has_no_answer(
    autojump_clock: object,
) -> None:
    server = Server({A: [("192.0.2.1", 3260, 1)]}, is_silent=True)
    async with running(server) as run:
        await trio.sleep(ISNS_FIRST_TIMEOUT - 1)
        assert run.reports == []
        await trio.sleep(1)
        assert run.reports == [[]]
        server.is_silent = False
        await trio.sleep(60)
        assert run.names == [A]


async def test_an_unexpected_error_closes_the_connection_and_ends_nothing(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(Server({A: [("192.0.2.1", 3260, 1)]})) as run:
        with monkeypatch.context() as patch:
            patch.setattr(Client, "inquire", lambda *_: 1 / 0)
            assert run.network.line is not None
            await run.network.line.send_all(esi().pack())
            stream = run.network.call()
            await stream.send_all(esi().pack())
            assert await stream.receive_some() == b""
            await trio.sleep(0.5)
        assert caplog.text.count("unexpected error, please report it") == 2
        await trio.sleep(10)
        assert run.source.state is State.REGISTERED


async def test_a_portal_of_before_is_probed_here_only(autojump_clock: object) -> None:
    server = Server()
    server.portals[wire_address(HERE), 39999] = ME
    server.portals[wire_address(OTHER), 38888] = ME
    async with running(server) as run:
        assert run.network.probed == [39999]
        assert [port for _, port in server.portals] == [38888, 41000]


async def test_a_refused_registration_is_said_once(autojump_clock: object) -> None:
    server = Server({A: [("192.0.2.1", 3260, 1)]})
    server.statuses[Function.DEV_ATTR_REG].append(Status.SOURCE_UNAUTHORIZED)
    async with running(server) as run:
        await trio.sleep(300)
        assert run.said == [
            f"iSNS server {SERVER}: the server refuses the registration: status 8 (source unauthorized); "
            "its targets are asked for every 60 s"
        ]
        assert run.names == [A]


@pytest.mark.conformance("ISNS-8.3")
def test_servers_as_a_user_names_them() -> None:
    for text, portal in {
        "isns.example.com": Portal("isns.example.com", 3205),
        "192.0.2.5:4000": Portal("192.0.2.5", 4000),
        "2001:db8::5": Portal("2001:db8::5", 3205),
        "[2001:db8::5]": Portal("2001:db8::5", 3205),
        "[2001:db8::5]:860": Portal("2001:db8::5", 860),
        "host:3260": Portal("host", 3260),
    }.items():
        assert parse_server(text) == portal
    for text in "", "a b", "host:port", "host:0", "[::]", "::ffff:1:2:3:4:5:6:7:8":
        with pytest.raises(ConfigError):
            parse_server(text)


def test_time_outs_are_in_order() -> None:
    """A message that trickles is ended by its own time, before that of the answer."""
    assert ISNS_MESSAGE_TIMEOUT < ISNS_RESPONSE_TIMEOUT
    assert ISNS_CONNECT_TIMEOUT < ISNS_POLL_INTERVAL
