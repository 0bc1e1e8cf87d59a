"""The scripted peer of the initiator's tests, tried with an initiator that writes its PDUs by hand."""

import pytest
import trio

from iscsifs.iscsi.pdu import (
    FINAL,
    R2T,
    RESERVED_TAG,
    AsyncEvent,
    AsyncMessage,
    DataOut,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    Reject,
    RejectReason,
    ScsiCommand,
    TaskManagementRequest,
    TaskManagementResponse,
    TextRequest,
    TextResponse,
)
from iscsifs.scsi import cdb as commands
from support.peer import Peer, scripted_peer
from support.raw_initiator import RawInitiator, raw_initiator

NAME = "iqn.2001-04.com.example:target"


async def logged_in(peer: Peer, initiator: RawInitiator, **keys: str | None) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.login, keys)
        await initiator.login(NAME)


async def test_the_login_settles_what_the_test_wants() -> None:
    async with scripted_peer() as peer, raw_initiator(peer.portal) as initiator:
        await logged_in(peer, initiator, MaxBurstLength="1024", FirstBurstLength="0x200", InitialR2T="Yes")
        assert initiator.parameters.max_burst_length == 1024
        assert initiator.parameters.first_burst_length == 512
        assert initiator.parameters.initial_r2t
        assert peer.offered["InitialR2T"] == "No"
        assert peer.offered["TargetName"] == NAME


async def test_commands_with_digests() -> None:
    async with scripted_peer() as peer, raw_initiator(peer.portal) as initiator:
        await logged_in(peer, initiator, HeaderDigest="CRC32C", DataDigest="CRC32C")
        await initiator.send(initiator.command(commands.read_16(0, 1), read=512))
        command = await peer.expect(ScsiCommand)
        await peer.data_in(command, bytes(512))
        assert await initiator.finish() == (0, bytes(512), b"")
        await initiator.send(initiator.command(commands.write_16(0, 1), write=512))
        command = await peer.expect(ScsiCommand)
        await peer.r2t(command, offset=0, length=512, target_transfer_tag=5)
        r2t = await initiator.expect(R2T)
        data_out = DataOut(FINAL, 0, r2t.initiator_task_tag, r2t.target_transfer_tag, 0, 0, 0)
        await initiator.send(data_out, b"x" * 512)
        assert await peer.expect(DataOut) == data_out
        assert peer.data == b"x" * 512
        await peer.status(command, 2, b"sense")
        assert await initiator.finish() == (2, b"", b"sense")
        assert [type(pdu) for pdu, _ in peer.received[-3:]] == [ScsiCommand, ScsiCommand, DataOut]
        assert peer.exp_cmd_sn == initiator.cmd_sn


async def test_the_other_responses() -> None:
    async with scripted_peer() as peer, raw_initiator(peer.portal) as initiator:
        await logged_in(peer, initiator)
        stat_sn = peer.stat_sn
        await peer.managed(TaskManagementRequest(1, 0, 5), 1)
        assert (await initiator.expect(TaskManagementResponse)).response == 1
        await peer.logged_out(LogoutRequest(0, 6), time2wait=3)
        assert (await initiator.expect(LogoutResponse)).time2wait == 3
        await peer.text(TextRequest(FINAL, 0, 7), b"text")
        assert (await initiator.expect(TextResponse)).target_transfer_tag == RESERVED_TAG
        assert initiator.data == b"text"
        await peer.async_message(AsyncEvent.LOGOUT_REQUESTED, parameter3=4)
        assert (await initiator.expect(AsyncMessage)).parameter3 == 4
        await peer.reject(RejectReason.PROTOCOL_ERROR, TextRequest(FINAL, 0, 8))
        assert len((await initiator.expect(Reject), initiator.data)[1]) == 48
        await peer.ping(b"data")
        assert (await initiator.expect(NopIn)).stat_sn == stat_sn + 5


async def test_ends() -> None:
    async with scripted_peer() as peer, raw_initiator(peer.portal) as initiator:
        await logged_in(peer, initiator)
        await initiator.stream.aclose()
        await peer.closed()
    async with scripted_peer() as peer, raw_initiator(peer.portal) as initiator:
        await logged_in(peer, initiator)
        await initiator.send(initiator.command(commands.test_unit_ready()))
        with pytest.raises(AssertionError, match="not closed, but ScsiCommand"):
            await peer.closed()
        await peer.reset()
        with pytest.raises(ConnectionResetError):
            await initiator.stream.socket.recv(1)
    async with scripted_peer() as peer, raw_initiator(peer.portal) as initiator:
        await peer.accept()
        await peer.close()
        assert await initiator.stream.socket.recv(1) == b""
        with pytest.raises(trio.ClosedResourceError):
            await peer.receive()
        await peer.stop_listening()
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(peer.portal.host, peer.portal.port)


async def test_silence(autojump_clock: trio.testing.MockClock) -> None:
    async with scripted_peer() as peer, raw_initiator(peer.portal) as initiator:
        await logged_in(peer, initiator)
        await peer.nothing(100)
        await initiator.send(initiator.command(commands.test_unit_ready()))
        with pytest.raises(AssertionError, match="nothing was due"):
            await peer.nothing(100)
