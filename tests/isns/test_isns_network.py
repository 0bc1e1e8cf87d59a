"""The sockets of an iSNS client, on loopback."""

import socket
from ipaddress import ip_address

import pytest
import trio

from iscsifs.discovery.isns_network import Line, Tcp
from iscsifs.errors import TransportError
from iscsifs.iscsi.names import Portal


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_both_ends_of_a_connection_have_their_addresses(nursery: trio.Nursery, host: str) -> None:
    network, here = Tcp(), ip_address(host)
    lines: list[Line] = []
    done = trio.Event()

    async def serve(line: Line) -> None:
        lines.append(line)
        await line.stream.send_all(await line.stream.receive_some())
        done.set()

    port = await network.listen(nursery, here, 0, serve)
    line = await network.connect(Portal(host, port))
    assert (line.local, line.peer) == (here, here)
    await line.stream.send_all(b"there and back")
    assert await line.stream.receive_some() == b"there and back"
    await done.wait()
    assert (lines[0].local, lines[0].peer) == (here, here)
    assert await line.stream.receive_some() == b""  # closed when it is served
    await line.stream.aclose()


async def test_the_port_of_before_is_taken_again_or_another_one(nursery: trio.Nursery) -> None:
    network, here = Tcp(), ip_address("127.0.0.1")

    async def serve(line: Line) -> None:
        pass

    async with trio.open_nursery() as first:
        port = await network.listen(first, here, 0, serve)
        first.cancel_scope.cancel()
    assert await network.listen(nursery, here, port, serve) == port
    other = await network.listen(nursery, here, port, serve)
    assert other not in (0, port)
    assert await network.is_served(here, port)
    with pytest.raises(TransportError, match=r"192\.0\.2\.1: no port to listen at: Cannot assign"):
        await network.listen(nursery, ip_address("192.0.2.1"), 0, serve)


async def test_a_port_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    network = Tcp()
    assert not await network.is_served(ip_address("127.0.0.1"), port)
    with pytest.raises(TransportError) as raised:
        await network.connect(Portal("127.0.0.1", port))
    assert str(raised.value) == (
        f"127.0.0.1:{port}: Connection refused; is an iSNS server running there, and is the port right?"
    )


async def test_a_host_of_another_family_has_no_address() -> None:
    with pytest.raises(TransportError, match="the name cannot be looked up"):
        await Tcp(socket.AF_INET6).connect(Portal("127.0.0.1", 3205))


async def test_a_silent_host_is_given_up(monkeypatch: pytest.MonkeyPatch, autojump_clock: object) -> None:
    async def connect(*_: object) -> None:
        await trio.sleep_forever()

    with trio.socket.socket() as sample:
        monkeypatch.setattr(type(sample), "connect", connect)

    async def look_up(*_: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("192.0.2.1", 3205))] * 2

    monkeypatch.setattr("iscsifs.discovery.isns_network.look_up", look_up)
    begun = trio.current_time()
    with pytest.raises(TransportError, match=r"no connection within 10 s; is the host up\?"):
        await Tcp().connect(Portal("192.0.2.1", 3205))
    assert trio.current_time() - begun == pytest.approx(20, abs=0.1)
