"""The target over loopback: logins, sessions, portals, and a script that makes it misbehave."""

import errno
import logging
import math
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from iscsifs.errors import ConfigError, DigestError, LoginRefused
from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.framing import Buffer, frame
from iscsifs.iscsi.keys import Value
from iscsifs.iscsi.names import Portal
from iscsifs.iscsi.pdu import (
    FINAL,
    R2T,
    RESERVED_TAG,
    AsyncEvent,
    AsyncMessage,
    DataIn,
    DataOut,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    NopOut,
    Pdu,
    Reject,
    RejectReason,
    ScsiCommand,
    ScsiResponse,
    TargetPdu,
    TaskFunction,
    TaskManagementRequest,
    TaskManagementResponse,
    TextFlag,
    TextRequest,
    TextResponse,
)
from iscsifs.limits import MAX_KINDS_OF_LINES, REPEATS_INTERVAL
from iscsifs.scsi import cdb as commands
from iscsifs.scsi.luns import lun_from_number
from iscsifs.scsi.sense import Sense
from iscsifs.scsi.status import Status
from iscsifs.target import unit as units
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.login import TARGET_OFFER, TargetConfig
from iscsifs.target.repeats import Repeats
from iscsifs.target.script import Script
from iscsifs.target.server import Server
from iscsifs.target.session import Session
from iscsifs.target.store import Store
from iscsifs.target.unit import Identity
from support.raw_initiator import INITIATOR, ISID, Closed, RawInitiator, raw_initiator

NAME = "iqn.2001-04.com.example:target"
BLOCK = 512
DATA = bytes(range(256)) * 2


@pytest.fixture
def device() -> Device:
    return Device(NAME, {0: Disk.in_memory(1 << 20, "S0", droppable=True), 1: Disk.in_memory(1 << 20, "S1")})


@pytest.fixture
async def server(device: Device) -> AsyncIterator[Server]:
    async with Server([device]) as server:
        yield server


async def ready(initiator: RawInitiator, **config: Any) -> None:
    """Log in and hear of the power-on."""
    await initiator.login(NAME, **config)
    status, _, sense = await initiator.execute(commands.test_unit_ready())
    assert (status, Sense.parse(sense)) == (2, units.POWER_ON)


async def test_what_is_written_is_read(server: Server) -> None:
    async with raw_initiator(server.portals[0]) as initiator:
        await ready(initiator)
        assert await initiator.execute(commands.write_16(3, 1), DATA) == (0, b"", b"")
        assert await initiator.execute(commands.read_16(2, 3), read=3 * BLOCK) == (
            0,
            bytes(BLOCK) + DATA + bytes(BLOCK),
            b"",
        )


@pytest.mark.parametrize("header", ["None", "CRC32C"])
@pytest.mark.parametrize("data", ["None", "CRC32C"])
async def test_digests(server: Server, header: str, data: str) -> None:
    offer: dict[str, Value] = {"HeaderDigest": (header,), "DataDigest": (data,)}
    async with raw_initiator(server.portals[0]) as initiator:
        await ready(initiator, offer=offer)
        assert initiator.parameters.header_digest == (header == "CRC32C")
        await initiator.execute(commands.write_16(0, 1), DATA)
        assert (await initiator.execute(commands.read_16(0, 1), read=BLOCK))[1] == DATA


async def test_a_large_write_is_asked_for_by_r2ts(device: Device) -> None:
    config = TargetConfig(
        target_names=frozenset(),
        offer={**TARGET_OFFER, "InitialR2T": True, "MaxBurstLength": 4096, "FirstBurstLength": 512},
    )
    data = bytes(i * 7 & 0xFF for i in range(20 * BLOCK))
    async with Server([device], config=config) as server, raw_initiator(server.portals[0]) as initiator:
        await ready(initiator, offer={"FirstBurstLength": 512, "ImmediateData": False})
        await initiator.send(initiator.command(commands.write_16(0, 20), write=len(data)))
        for _ in range(3):
            r2t = await initiator.expect(R2T)
            start, end = r2t.buffer_offset, r2t.buffer_offset + r2t.desired_data_transfer_length
            pdu = DataOut(FINAL, r2t.lun, r2t.initiator_task_tag, r2t.target_transfer_tag, 0, 0, start)
            await initiator.send(pdu, data[start:end])
        assert await initiator.finish() == (0, b"", b"")
        assert (await initiator.execute(commands.read_16(0, 20), read=len(data)))[1] == data


async def test_units_are_told_apart(server: Server) -> None:
    async with raw_initiator(server.portals[0]) as initiator:
        await initiator.login(NAME)
        serials = [
            (await initiator.execute(commands.inquiry(255, 0x80), read=255, lun=lun_from_number(n)))[1][4:]
            for n in (0, 1)
        ]
        assert serials == [b"S0", b"S1"]
        status, _, sense = await initiator.execute(commands.test_unit_ready(), lun=lun_from_number(2))
        assert (status, Sense.parse(sense)) == (2, units.LUN_NOT_SUPPORTED)


async def test_a_write_through_waits_for_the_medium(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "image", size=1 << 20)
    device = Device(NAME, {0: Disk(store, Identity("S"), write_cache=False)})
    async with Server([device]) as server, raw_initiator(server.portals[0]) as initiator:
        await ready(initiator)
        assert await initiator.execute(commands.write_16(0, 1), DATA) == (0, b"", b"")
        assert await initiator.execute(commands.synchronize_cache_16()) == (0, b"", b"")
        assert (tmp_path / "image").read_bytes()[:BLOCK] == DATA
        store.close()
        status, _, sense = await initiator.execute(commands.synchronize_cache_16())
        assert (status, Sense.parse(sense)) == (2, units.WRITE_ERROR)


# Sessions.


async def test_a_login_of_the_same_name_takes_the_old_sessions_place(server: Server) -> None:
    async with raw_initiator(server.portals[0]) as old, raw_initiator(server.portals[0]) as new:
        await ready(old)
        await ready(new)
        with pytest.raises(Closed):
            await old.receive()
        assert len(server.sessions) == 1
        assert (await new.execute(commands.test_unit_ready()))[0] == 0


async def test_another_isid_is_another_session(server: Server) -> None:
    async with raw_initiator(server.portals[0]) as first, raw_initiator(server.portals[0]) as second:
        await ready(first)
        await ready(second, isid=ISID[:5] + b"\x77")
        assert (await first.execute(commands.test_unit_ready()))[0] == 0
        assert len(server.sessions) == 2


async def test_a_name_that_is_not_served(server: Server) -> None:
    async with raw_initiator(server.portals[0]) as initiator:
        with pytest.raises(LoginRefused) as caught:
            await initiator.login("iqn.2001-04.com.example:other")
        assert (caught.value.status_class, caught.value.status_detail) == (2, 3)
        with pytest.raises(Closed):
            await initiator.receive()


async def test_chap_both_ways(device: Device) -> None:
    config = TargetConfig(
        target_names=frozenset(),
        secrets={"alice": b"the secret of Alice"},
        own=("storage", b"the secret of Storage"),
    )
    good = Credentials("alice", b"the secret of Alice", "storage", b"the secret of Storage")
    bad = Credentials("alice", b"a secret of another")
    async with Server([device], config=config) as server:
        async with raw_initiator(server.portals[0]) as initiator:
            await ready(initiator, credentials=good)
        for credentials in None, bad:
            async with raw_initiator(server.portals[0]) as initiator:
                with pytest.raises(LoginRefused):
                    await initiator.login(NAME, credentials=credentials)


async def test_who_does_not_log_in_is_sent_away(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    async with Server([device], login_timeout=0.05) as server, raw_initiator(server.portals[0]) as initiator:
        with pytest.raises(Closed):
            await initiator.receive()
    closed = "connection 0 from 127.0.0.1 closed (before the login): no login within 0.05 s"
    assert said(caplog) == [closed]


async def test_logout_ends_the_connection(server: Server) -> None:
    async with raw_initiator(server.portals[0]) as initiator:
        await ready(initiator)
        await initiator.send(LogoutRequest(0, 50, cmd_sn=initiator.cmd_sn))
        assert (await initiator.expect(LogoutResponse)).response == 0
        with pytest.raises(Closed):
            await initiator.receive()
        assert server.sessions == []


async def test_a_cold_reset_ends_all_connections(server: Server) -> None:
    async with raw_initiator(server.portals[0]) as first, raw_initiator(server.portals[0]) as second:
        await ready(first)
        await ready(second, isid=ISID[:5] + b"\x77")
        await first.send(TaskManagementRequest(TaskFunction.TARGET_COLD_RESET, 0, 9, cmd_sn=first.cmd_sn))
        await first.expect(TaskManagementResponse)
        for initiator in first, second:
            with pytest.raises(Closed):
                await initiator.receive()


@pytest.mark.parametrize(
    ("function", "sense"),
    [
        (TaskFunction.LOGICAL_UNIT_RESET, units.BUS_DEVICE_RESET),
        (TaskFunction.TARGET_WARM_RESET, units.BUS_DEVICE_RESET),
        (TaskFunction.CLEAR_TASK_SET, units.COMMANDS_CLEARED),
    ],
)
async def test_what_one_initiator_ends_the_others_hear_of(
    server: Server, function: TaskFunction, sense: Sense
) -> None:
    async with raw_initiator(server.portals[0]) as first, raw_initiator(server.portals[0]) as second:
        await ready(first)
        await ready(second, isid=ISID[:5] + b"\x77")
        await second.send(second.command(commands.write_16(0, 1), write=BLOCK))
        r2t = await second.expect(R2T)
        await first.send(TaskManagementRequest(function, 0, 9, cmd_sn=first.cmd_sn))
        assert (await first.expect(TaskManagementResponse)).response == 0
        pdu = DataOut(FINAL, r2t.lun, r2t.initiator_task_tag, r2t.target_transfer_tag, 0, 0, 0)
        await second.send(pdu, DATA)
        status, _, received = await second.execute(commands.test_unit_ready())
        assert (status, Sense.parse(received)) == (2, sense)
        assert (await second.execute(commands.read_16(0, 1), read=BLOCK))[1] == bytes(BLOCK)


async def test_async_messages_and_pings_from_outside(server: Server) -> None:
    async with raw_initiator(server.portals[0]) as initiator:
        await ready(initiator)
        (session,) = server.sessions
        session.connection.send_async(AsyncEvent.LOGOUT_REQUESTED, parameters=(0, 0, 3))
        session.connection.ping(b"there?")
        await session.flush()
        assert (await initiator.expect(AsyncMessage)).parameter3 == 3
        ping = await initiator.expect(NopIn)
        assert initiator.data == b"there?"
        await initiator.send(NopOut(target_transfer_tag=ping.target_transfer_tag, immediate=True), b"here")
        await initiator.execute(commands.test_unit_ready())
        assert session.connection.pongs == [b"here"]


# Portals.


async def test_discovery_of_many_targets() -> None:
    devices = [Device(f"{NAME}{number:03}", {}) for number in range(300)]
    async with Server(devices) as server, raw_initiator(server.portals[0]) as initiator:
        await initiator.login(None, offer={"MaxRecvDataSegmentLength": 512})
        text = b""
        request = TextRequest(FINAL, 0, 9, immediate=True, cmd_sn=initiator.cmd_sn)
        await initiator.send(request, b"SendTargets=All\0")
        while True:
            response = await initiator.expect(TextResponse)
            text += initiator.data
            if not response.flags & TextFlag.CONTINUE:
                break
            await initiator.send(request._replace(target_transfer_tag=response.target_transfer_tag))
        portal = f"127.0.0.1:{server.portals[0].port},1"
        assert text.decode() == "".join(
            f"TargetName={device.name}\0TargetAddress={portal}\0" for device in devices
        )


async def send_targets(initiator: RawInitiator, value: str) -> bytes:
    request = TextRequest(FINAL, 0, 9, immediate=True, cmd_sn=initiator.cmd_sn)
    await initiator.send(request, f"SendTargets={value}\0".encode())
    await initiator.expect(TextResponse)
    return initiator.data


async def test_send_targets_shows_what_it_may() -> None:
    other = f"{NAME}2"
    async with Server([Device(NAME, {}), Device(other, {})]) as server:
        portal = f"TargetAddress=127.0.0.1:{server.portals[0].port},1\0".encode()
        record = {name: b"TargetName=" + name.encode() + b"\0" + portal for name in (NAME, other)}
        async with raw_initiator(server.portals[0]) as discovery:
            await discovery.login(None)
            assert await send_targets(discovery, "All") == record[NAME] + record[other]
            assert await send_targets(discovery, other) == record[other]
            assert await send_targets(discovery, "iqn.2001-04.com.example:no") == b""
        async with raw_initiator(server.portals[0]) as normal:
            await normal.login(NAME)
            assert await send_targets(normal, "") == record[NAME]
            assert await send_targets(normal, NAME) == record[NAME]
            assert await send_targets(normal, other) == b""
            assert await send_targets(normal, "All") == b""


async def test_several_portals_and_a_wildcard(device: Device) -> None:
    async with Server([device], portals=[Portal("127.0.0.1", 0), Portal("::", 0)]) as server:
        first, second = server.portals
        async with raw_initiator(Portal("::1", second.port)) as initiator:
            await initiator.login(None)
            text = (await send_targets(initiator, "All")).decode().split("\0")
            assert text[1] == f"TargetAddress=127.0.0.1:{first.port},1"
            assert text[2] == f"TargetAddress=[::1]:{second.port},1"


async def test_stop_and_start_keep_ports_and_data(server: Server) -> None:
    portal = server.portals[0]
    async with raw_initiator(portal) as initiator:
        await ready(initiator)
        await initiator.execute(commands.write_16(0, 1), DATA)
        await server.stop()
        with pytest.raises(Closed):
            await initiator.receive()
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(portal.host, portal.port)
    server.start()
    assert server.portals == (portal,)
    async with raw_initiator(portal) as initiator:
        await ready(initiator)
        assert (await initiator.execute(commands.read_16(0, 1), read=BLOCK))[1] == DATA


@pytest.mark.parametrize("reset", [False, True])
async def test_connections_are_dropped_on_demand(server: Server, reset: bool) -> None:
    async with raw_initiator(server.portals[0]) as initiator:
        await ready(initiator)
        server.drop_connections(reset=reset)
        if reset:
            with pytest.raises(ConnectionResetError):
                await initiator.stream.socket.recv(1)
        else:
            assert await initiator.stream.socket.recv(1) == b""
    async with raw_initiator(server.portals[0]) as initiator:
        await ready(initiator)


# What connects costs no more than it may.


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "iscsifs.target.server"]


async def test_beyond_so_many_connections_others_are_closed_at_once(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    async with Server([device], max_connections=2) as server:
        portal = server.portals[0]
        async with raw_initiator(portal) as first, raw_initiator(portal) as second:
            await ready(first)
            await ready(second, isid=bytes.fromhex("800000000002"))
            for _ in range(5):
                async with raw_initiator(portal) as refused:
                    with pytest.raises(Closed):
                        await refused.receive()
            assert len(server.sessions) == 2
            assert said(caplog) == ["connections are refused for now: 2 connections are the most"]
            assert (await first.execute(commands.test_unit_ready()))[0] == 0
            sessions = list(server.sessions)
        for session in sessions:
            await session.ended.wait()
        async with raw_initiator(portal) as initiator:
            await ready(initiator)


async def test_it_may_end_before_it_has_begun_to_accept(device: Device) -> None:
    async with Server([device]):
        pass
    async with Server([device]) as server:
        await server.stop()
        server.start()
        await server.stop()


@contextmanager
def silent(portal: Portal, address: str = "127.0.0.1") -> Iterator[socket.socket]:
    """Connect from *address*, and say nothing."""
    with socket.create_connection((portal.host, portal.port), source_address=(address, 0)) as connection:
        yield connection


async def accepted(server: Server, count: int) -> None:
    """Wait until *count* connections have been accepted since the start."""
    with trio.fail_after(10):
        while not server.sessions or server.sessions[-1].number + 1 < count:
            await trio.lowlevel.checkpoint()


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True


async def test_who_says_nothing_makes_room_for_others_and_who_has_logged_in_never_does(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    async with Server([device], max_connections=4) as server:
        portal = server.portals[0]
        async with raw_initiator(portal) as first:
            await ready(first)
            with ExitStack() as stack:
                connections = []
                for number in range(20):
                    connections.append(stack.enter_context(silent(portal)))
                    await accepted(server, 2 + number)
                async with raw_initiator(portal) as late:
                    await ready(late, isid=bytes.fromhex("800000000002"))
                # The oldest went first; two of the four places are those of the logged in.
                assert [is_open(connection) for connection in connections] == [False] * 18 + [True] * 2
                assert len(server.sessions) <= 4
            assert (await first.execute(commands.test_unit_ready()))[0] == 0
    reason = "no login, and 4 connections are the most"
    assert said(caplog) == [
        f"connection 1 from 127.0.0.1 closed (before the login): {reason}",
        f"connection 1 from 127.0.0.1 closed (before the login): {reason} (17 more like this)",
    ]


async def test_discovery_sessions_make_room_when_all_have_logged_in(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    async with Server([device], max_connections=2) as server:
        portal = server.portals[0]
        async with raw_initiator(portal) as first, raw_initiator(portal) as discovery:
            await ready(first)
            await discovery.login(None)
            async with raw_initiator(portal) as late:
                await ready(late, isid=bytes.fromhex("800000000002"))
                with pytest.raises(Closed):
                    await discovery.receive()
                assert (await first.execute(commands.test_unit_ready()))[0] == 0
    assert said(caplog) == [
        f"connection 1 from 127.0.0.1 closed ({INITIATOR}): "
        "a discovery session, and 2 connections are the most"
    ]


async def test_who_opens_many_connections_gives_up_its_own(device: Device) -> None:
    async with Server([device], max_connections=4) as server:
        portal = server.portals[0]
        with silent(portal, "127.0.0.2") as patient, ExitStack() as stack:
            await accepted(server, 1)
            flood = []
            for number in range(10):
                flood.append(stack.enter_context(silent(portal)))
                await accepted(server, 2 + number)
            assert is_open(patient)
            assert [is_open(connection) for connection in flood] == [False] * 7 + [True] * 3


async def test_a_refused_login_is_logged_once_and_counted(
    device: Device, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    secrets = TargetConfig(target_names=frozenset(), secrets={"alice": b"the secret of Alice"})
    name = f"login of {INITIATOR} from 127.0.0.1 to {NAME} refused"
    async with Server([device], config=secrets, login_timeout=math.inf) as server:

        async def refused(times: int, target: str = NAME, **config: Any) -> None:
            for _ in range(times):
                async with raw_initiator(server.portals[0]) as initiator:
                    with pytest.raises(LoginRefused):
                        await initiator.login(target, **config)
            for session in list(server.sessions):
                await session.ended.wait()

        await refused(3)
        assert said(caplog) == [f"{name}: it does not offer CHAP"]
        await refused(2, credentials=Credentials("mallory", b"the secret of Mallory"))
        assert said(caplog)[1:] == [f'{name}: CHAP_R: "mallory" was not believed']
        await refused(1, target="iqn.2001-04.com.example:other")
        assert said(caplog)[2:] == [
            f"login of {INITIATOR} from 127.0.0.1 to iqn.2001-04.com.example:other refused: "
            "there is no such target here"
        ]
        await trio.sleep(REPEATS_INTERVAL)
        await refused(2)
        assert said(caplog)[3:] == [f"{name}: it does not offer CHAP (2 more like this)"]
    assert said(caplog)[4:] == [
        f"{name}: it does not offer CHAP (1 more like this)",
        f'{name}: CHAP_R: "mallory" was not believed (1 more like this)',
    ]


async def test_lines_of_many_kinds_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    repeats = Repeats(logging.getLogger("iscsifs.target.server"))
    for number in range(2 * MAX_KINDS_OF_LINES):
        repeats.warn(number, f"line {number}")
    repeats.close()
    assert len(said(caplog)) == MAX_KINDS_OF_LINES + 2
    assert said(caplog)[-1] == f"line {MAX_KINDS_OF_LINES} ({MAX_KINDS_OF_LINES - 1} more like this)"


async def test_out_of_file_descriptors_the_target_waits_for_better_times(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0
    accept = socket.socket.accept

    def no_file(listener: socket.socket) -> tuple[socket.socket, Any]:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(listener)

    monkeypatch.setattr("iscsifs.target.server._PAUSE", 0.01)
    monkeypatch.setattr(socket.socket, "accept", no_file)
    async with raw_initiator(server.portals[0]) as initiator:
        await ready(initiator)
    assert tries == 3  # and not as often as there was time for
    assert said(caplog) == [
        "connections are refused for now: Too many open files; raise the limit with: ulimit -n"
    ]


async def test_who_goes_before_being_accepted_keeps_nobody_waiting(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = socket.socket.accept
    aborted = iter([True] * 100)

    def abort(listener: socket.socket) -> tuple[socket.socket, Any]:
        if next(aborted, False):
            raise ConnectionAbortedError(errno.ECONNABORTED, "Software caused connection abort")
        return accept(listener)

    monkeypatch.setattr("iscsifs.target.server._PAUSE", math.inf)
    monkeypatch.setattr(socket.socket, "accept", abort)
    with trio.fail_after(10):
        async with raw_initiator(server.portals[0]) as initiator:
            await ready(initiator)
    assert said(caplog) == []


async def test_an_initiator_without_power_is_noticed(server: Server) -> None:
    async with raw_initiator(server.portals[0]) as initiator:
        await ready(initiator)
        (session,) = server.sessions
        sock = session.wire._sock
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, interval, count = (
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + interval * count <= 120


async def test_a_port_in_use_is_named(server: Server, device: Device) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen at {server.portals[0]}: Address already in use"):
        async with Server([device], portals=[Portal("127.0.0.1", 0), server.portals[0]]):
            raise AssertionError("it listens")


async def test_a_connection_can_be_handed_over(server: Server) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, theirs)
        with trio.socket.from_stdlib_socket(ours) as sock:
            await ready(RawInitiator(trio.SocketStream(sock)))


async def test_data_larger_than_the_socket_takes_at_once_arrive_whole(server: Server, device: Device) -> None:
    data = random.Random(7143).randbytes(256 * BLOCK)
    disk = device.units[0]
    assert isinstance(disk, Disk)
    disk.store.write(0, data)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, theirs)
        with trio.socket.from_stdlib_socket(ours) as sock:
            initiator = RawInitiator(trio.SocketStream(sock))
            await ready(initiator)
            status, received, _ = await initiator.execute(commands.read_10(0, 256), read=len(data))
            assert (status, received) == (Status.GOOD, data)


async def test_the_handle_of_a_session_is_never_0(server: Server) -> None:
    server._numbers = count(0xFFFE)
    handles = []
    for _ in range(2):
        async with raw_initiator(server.portals[0]) as initiator:
            await ready(initiator)
            (session,) = server.sessions
            handles.append(session.connection.login.tsih)
            await trio.aclose_forcefully(initiator.stream)
            await session.ended.wait()
    assert handles == [0xFFFF, 1]


# What breaks a rule ends the connection.


async def test_a_broken_rule_is_rejected_and_ends_the_connection(server: Server) -> None:
    async with raw_initiator(server.portals[0]) as initiator:
        await ready(initiator)
        (session,) = server.sessions
        await initiator.send(initiator.command(commands.write_16(0, 1), write=BLOCK), bytes(BLOCK + 1))
        assert (await initiator.expect(Reject)).reason == RejectReason.PROTOCOL_ERROR
        with pytest.raises(Closed):
            await initiator.receive()
        assert "too much" in str(session.failure)


@pytest.mark.parametrize("broken", ["header", "data"])
async def test_a_wrong_digest_ends_the_connection(server: Server, broken: str) -> None:
    async with raw_initiator(server.portals[0]) as initiator:
        await ready(initiator, offer={"HeaderDigest": ("CRC32C",), "DataDigest": ("CRC32C",)})
        (session,) = server.sessions
        command = initiator.command(commands.write_16(0, 1), write=BLOCK)
        raw = bytearray(b"".join(frame(command, DATA, header_digest=True, data_digest=True)))
        raw[20 if broken == "header" else 100] ^= 1
        await initiator.stream.send_all(raw)
        if broken == "data":
            assert (await initiator.expect(Reject)).reason == RejectReason.DATA_DIGEST_ERROR
        with pytest.raises(Closed):
            await initiator.receive()
        assert isinstance(session.failure, DigestError)


async def test_nothing_but_a_login_comes_first(server: Server) -> None:
    async with raw_initiator(server.portals[0]) as initiator:
        await initiator.send(initiator.command(commands.test_unit_ready()))
        with pytest.raises(Closed):
            await initiator.receive()


# The script.


async def test_a_script_that_does_nothing_changes_nothing(server: Server) -> None:
    server.script = Script()
    async with raw_initiator(server.portals[0]) as initiator:
        await ready(initiator)
        await initiator.execute(commands.write_16(0, 1), DATA)
        assert (await initiator.execute(commands.read_16(0, 1), read=BLOCK))[1] == DATA
        await initiator.send(LogoutRequest(0, 50, cmd_sn=initiator.cmd_sn))
        await initiator.expect(LogoutResponse)
        with pytest.raises(Closed):
            await initiator.receive()


class Recorder(Script):
    """Misbehaves at the first PDU of the class *at*, by what its subclass does in `misbehave`."""

    at: type[Pdu] = ScsiResponse

    def __init__(self) -> None:
        self.seen: list[Pdu] = []
        self.connections = 0

    async def connected(self, session: Session) -> None:
        self.connections += 1

    async def request(self, session: Session, pdu: Pdu, data: memoryview) -> bool:
        self.seen.append(pdu)
        return True

    async def response(self, session: Session, pdu: TargetPdu, data: Buffer) -> None:
        if isinstance(pdu, self.at) and session.number == 0:
            await self.misbehave(session, pdu, data)
        else:
            await session.wire.send(pdu, data)

    async def misbehave(self, session: Session, pdu: TargetPdu, data: Buffer) -> None:
        raise NotImplementedError


class CutsThePdu(Recorder):
    async def misbehave(self, session: Session, pdu: TargetPdu, data: Buffer) -> None:
        await session.wire.send_part(20, pdu, data)
        session.wire.close()


class Resets(Recorder):
    async def misbehave(self, session: Session, pdu: TargetPdu, data: Buffer) -> None:
        session.wire.reset()


class AddsAPing(Recorder):
    async def misbehave(self, session: Session, pdu: TargetPdu, data: Buffer) -> None:
        await session.wire.send(NopIn(0, RESERVED_TAG, RESERVED_TAG, 0, 0, 0))
        await session.wire.send(pdu, data)


class Alters(Recorder):
    async def misbehave(self, session: Session, pdu: TargetPdu, data: Buffer) -> None:
        assert isinstance(pdu, ScsiResponse)
        await session.wire.send(pdu._replace(status=0x08))


async def test_a_response_is_cut_short(server: Server) -> None:
    server.script = CutsThePdu()
    async with raw_initiator(server.portals[0]) as initiator:
        await initiator.login(NAME)
        await initiator.send(initiator.command(commands.test_unit_ready()))
        assert len(await initiator.stream.socket.recv(100)) == 20
        assert await initiator.stream.socket.recv(100) == b""
    async with raw_initiator(server.portals[0]) as initiator:
        await ready(initiator)
    assert server.script.connections == 2


async def test_the_connection_is_reset_instead_of_a_response(server: Server) -> None:
    server.script = Resets()
    async with raw_initiator(server.portals[0]) as initiator:
        await initiator.login(NAME)
        await initiator.send(initiator.command(commands.test_unit_ready()))
        with pytest.raises(ConnectionResetError):
            await initiator.stream.socket.recv(100)


async def test_a_response_is_added(server: Server) -> None:
    server.script = AddsAPing()
    async with raw_initiator(server.portals[0]) as initiator:
        await initiator.login(NAME)
        await initiator.send(initiator.command(commands.test_unit_ready()))
        await initiator.expect(NopIn)
        await initiator.expect(ScsiResponse)


async def test_a_status_is_altered(device: Device) -> None:
    async with (
        Server([device], script=Alters()) as server,
        raw_initiator(server.portals[0]) as initiator,
    ):
        await initiator.login(NAME)
        assert (await initiator.execute(commands.test_unit_ready()))[0] == 0x08


@pytest.mark.parametrize("part", ["header", "payload"])
async def test_a_digest_is_spoilt(server: Server, part: str) -> None:
    class Spoils(Recorder):
        at = DataIn

        async def misbehave(self, session: Session, pdu: TargetPdu, data: Buffer) -> None:
            await session.wire.send_spoilt(pdu, data, header=part == "header", payload=part == "payload")

    server.script = Spoils()
    async with raw_initiator(server.portals[0]) as initiator:
        await ready(initiator, offer={"HeaderDigest": ("CRC32C",), "DataDigest": ("CRC32C",)})
        with pytest.raises(DigestError):
            await initiator.execute(commands.read_16(0, 1), read=BLOCK)


async def test_requests_are_seen_and_swallowed(server: Server) -> None:
    class Deaf(Recorder):
        async def request(self, session: Session, pdu: Pdu, data: memoryview) -> bool:
            await super().request(session, pdu, data)
            return not isinstance(pdu, NopOut)

        async def misbehave(self, session: Session, pdu: TargetPdu, data: Buffer) -> None:
            await session.wire.send(pdu, data)

    script = server.script = Deaf()
    async with raw_initiator(server.portals[0]) as initiator:
        await initiator.login(NAME)
        await initiator.send(NopOut(initiator_task_tag=1, cmd_sn=initiator.cmd_sn, immediate=True))
        await initiator.execute(commands.test_unit_ready())
    assert [type(pdu) for pdu in script.seen[-2:]] == [NopOut, ScsiCommand]


async def test_a_late_response_does_not_keep_requests_waiting(
    device: Device, autojump_clock: trio.testing.MockClock
) -> None:
    class Late(Recorder):
        async def misbehave(self, session: Session, pdu: TargetPdu, data: Buffer) -> None:
            await trio.sleep(5)
            await session.wire.send(pdu, data)

    async with Server([device], script=Late()) as server, raw_initiator(server.portals[0]) as initiator:
        await initiator.login(NAME)
        start = trio.current_time()
        await initiator.send(initiator.command(commands.test_unit_ready()))
        await initiator.send(initiator.command(commands.test_unit_ready()))
        await initiator.expect(ScsiResponse)
        assert trio.current_time() - start == pytest.approx(5)
        assert [type(pdu) for pdu in server.script.seen[-2:]] == [ScsiCommand] * 2  # type: ignore[union-attr]
