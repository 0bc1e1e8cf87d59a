"""Discovery sessions, over loopback."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from iscsifs.errors import (
    AuthenticationError,
    IscsifsError,
    LoginDropped,
    LoginError,
    LoginRefused,
    ProtocolError,
    TransportError,
)
from iscsifs.initiator.discover import discover
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.chap import ChallengeMemory, Credentials
from iscsifs.iscsi.discovery import DiscoveredTarget
from iscsifs.iscsi.names import Portal, TargetAddress
from iscsifs.iscsi.pdu import (
    FINAL,
    R2T,
    RESERVED_TAG,
    AsyncEvent,
    LoginFlag,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    NopOut,
    RejectReason,
    ScsiResponse,
    Stage,
    TextFlag,
    TextRequest,
    TextResponse,
)
from iscsifs.iscsi.text import Pair, encode_pairs
from iscsifs.limits import ANSWER_TIMEOUT, LAST_LOGOUT_TIMEOUT
from support.peer import Closed, Peer, scripted_peer

INITIATOR = "iqn.2001-04.com.example:initiator"
ISID = bytes.fromhex("800102030405")
NAME = "iqn.2001-04.com.example:disk"
ANSWER = f"TargetName={NAME}\0TargetAddress=192.0.2.1:3260,1\0".encode()
FOUND = [DiscoveredTarget(NAME, (TargetAddress(Portal("192.0.2.1", 3260), 1),))]


@pytest.fixture
def clock() -> MockClock:
    """A clock that jumps, but leaves the kernel the time that loopback needs."""
    return MockClock(autojump_threshold=0.05)


class Outcome:
    """What a discovery has found, or why it has not."""

    targets: list[DiscoveredTarget] | None = None
    failure: IscsifsError | None = None
    seconds = 0.0

    async def run(self, portal: Portal, **options: Any) -> None:
        started = trio.current_time()
        config = InitiatorOptions(INITIATOR, **options)
        try:
            self.targets = await discover(portal, config, ChallengeMemory(), ISID)
        except IscsifsError as error:
            self.failure = error
        self.seconds = trio.current_time() - started


@asynccontextmanager
async def discovering(**options: Any) -> AsyncIterator[tuple[Peer, Outcome]]:
    """Discover while the body plays the portal; at the end it is over."""
    outcome = Outcome()
    with trio.fail_after(1000.0):
        async with scripted_peer() as peer, trio.open_nursery() as nursery:
            nursery.start_soon(partial(outcome.run, peer.portal, **options))
            yield peer, outcome


@asynccontextmanager
async def asked() -> AsyncIterator[tuple[Peer, TextRequest, Outcome]]:
    """The same, from the moment at which SendTargets has come."""
    async with discovering() as (peer, outcome):
        await peer.login()
        yield peer, await peer.expect(TextRequest), outcome


async def leave(peer: Peer) -> None:
    """Take the logout."""
    await peer.logged_out(await peer.expect(LogoutRequest))
    await peer.closed()


@pytest.mark.conformance("DISC-9")
async def test_a_discovery_session_from_the_login_to_the_logout() -> None:
    async with asked() as (peer, request, outcome):
        assert peer.offered["SessionType"] == "Discovery"
        assert peer.offered["InitiatorName"] == INITIATOR
        assert "TargetName" not in peer.offered
        assert peer.offered.get("ErrorRecoveryLevel", "0") == "0"
        assert not [key for key in peer.offered if key.startswith(("X-", "X#"))]
        assert peer.data == b"SendTargets=All\0"
        assert (request.flags, request.target_transfer_tag) == (FINAL, RESERVED_TAG)
        await peer.text(request, ANSWER)
        logout = await peer.expect(LogoutRequest)
        assert logout.reason == 0
        await peer.logged_out(logout)
        await peer.closed()
    assert outcome.targets == FOUND
    kinds = {type(pdu) for pdu, _ in peer.received}
    assert kinds == {LoginRequest, TextRequest, LogoutRequest}


@pytest.mark.conformance("DISC-8")
async def test_a_portal_without_targets() -> None:
    async with asked() as (peer, request, outcome):
        await peer.text(request, b"")
        await leave(peer)
    assert outcome.targets == []


@pytest.mark.conformance("DISC-10")
async def test_a_ping_is_answered() -> None:
    async with asked() as (peer, request, outcome):
        await peer.ping()
        assert (await peer.expect(NopOut)).target_transfer_tag == 0x77
        await peer.text(request, ANSWER)
        await leave(peer)
    assert outcome.targets == FOUND


@pytest.mark.conformance("DISC-10")
async def test_a_logout_that_is_asked_for_instead_of_an_answer() -> None:
    async with asked() as (peer, _, outcome):
        await peer.async_message(AsyncEvent.LOGOUT_REQUESTED, parameter3=5)
        await leave(peer)
    assert isinstance(outcome.failure, TransportError)
    assert str(outcome.failure) == f"{peer.portal}: the target wants no discovery now"


@pytest.mark.conformance("DISC-10")
async def test_a_logout_that_is_asked_for_behind_the_answer() -> None:
    async with asked() as (peer, request, outcome):
        await peer.text(request, ANSWER)
        await peer.async_message(AsyncEvent.LOGOUT_REQUESTED, parameter3=5)
        await leave(peer)
    assert outcome.targets == FOUND


@pytest.mark.conformance("DISC-10")
@pytest.mark.parametrize("kind", ["R2T", "SCSI_RESPONSE"])
async def test_scsi_has_no_place_in_discovery(kind: str) -> None:
    async with asked() as (peer, request, outcome):
        tag = request.initiator_task_tag
        if kind == "R2T":
            await peer.send(
                R2T(0, tag, 1, **peer.numbers, r2t_sn=0, buffer_offset=0, desired_data_transfer_length=4)
            )
        else:
            await peer.send(ScsiResponse(FINAL, 0, 0, tag, **peer.counted()))
        await peer.closed()
    assert isinstance(outcome.failure, ProtocolError)
    assert outcome.failure.pdu == kind


@pytest.mark.conformance("DISC-10")
@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_that_ends_behind_the_answer_costs_nothing(reset: bool) -> None:
    async with asked() as (peer, request, outcome):
        await peer.text(request, ANSWER)
        await peer.expect(LogoutRequest)
        await (peer.reset() if reset else peer.close())
    assert outcome.targets == FOUND


async def test_a_broken_rule_behind_the_answer_costs_nothing() -> None:
    async with asked() as (peer, request, outcome):
        response = TextResponse(FINAL, 0, request.initiator_task_tag, **peer.counted())
        await peer.send_bytes(peer.encode(response, ANSWER) + b"\x3c" + bytes(47))
        await peer.closed()
    assert outcome.targets == FOUND


async def test_a_connection_that_ends_before_the_answer() -> None:
    async with asked() as (peer, _, outcome):
        await peer.close()
    assert isinstance(outcome.failure, TransportError)


async def test_a_portal_that_rejects_the_question() -> None:
    async with asked() as (peer, request, outcome):
        await peer.reject(RejectReason.COMMAND_NOT_SUPPORTED, request)
        await leave(peer)
    assert str(outcome.failure) == f"{peer.portal}: the target rejected SendTargets"


@pytest.mark.conformance("DISC-11")
async def test_a_logout_without_an_answer_is_waited_for_in_bounded_time(clock: MockClock) -> None:
    async with asked() as (peer, request, outcome):
        await peer.text(request, ANSWER)
        await peer.expect(LogoutRequest)
        await peer.closed()
    assert outcome.targets == FOUND
    assert outcome.seconds == pytest.approx(LAST_LOGOUT_TIMEOUT, abs=0.5)


async def test_silence_instead_of_an_answer(clock: MockClock) -> None:
    async with asked() as (peer, _, outcome):
        await peer.expect(LogoutRequest)
        await peer.closed()
    assert isinstance(outcome.failure, TransportError)
    assert "no answer to SendTargets in 30 s" in str(outcome.failure)
    assert outcome.seconds == pytest.approx(ANSWER_TIMEOUT + LAST_LOGOUT_TIMEOUT, abs=0.5)


async def test_a_portal_that_refuses_discovery() -> None:
    async with scripted_peer() as peer:
        await peer.stop_listening()
        outcome = Outcome()
        await outcome.run(peer.portal)
        assert isinstance(outcome.failure, TransportError)
        assert not isinstance(outcome.failure, LoginError)


async def answer_in_pieces(peer: Peer, request: TextRequest, answer: bytes, size: int) -> None:
    """Answer as tgt does: F=0 with a tag, cut anywhere."""
    for start in range(0, len(answer), size):
        last = start + size >= len(answer)
        piece = answer[start : start + size]
        if last:
            await peer.text(request, piece)
        else:
            await peer.text(request, piece, flags=0, target_transfer_tag=5)
            following = await peer.expect(TextRequest)
            assert following.initiator_task_tag == request.initiator_task_tag
            assert (following.target_transfer_tag, following.flags, peer.data) == (5, FINAL, b"")


@pytest.mark.conformance("HOSTILE-34", "DISC-1")
async def test_a_hundred_thousand_targets() -> None:
    """All are found, in a time that grows with their number and not faster."""

    def entry(number: int) -> bytes:
        return f"TargetName={NAME}{number}\0TargetAddress=192.0.2.1:3260,1\0".encode()

    async with asked() as (peer, request, outcome):
        started = time.perf_counter()
        await answer_in_pieces(peer, request, b"".join(map(entry, range(100_000))), 8192)
        await leave(peer)
    assert outcome.targets is not None
    assert len(outcome.targets) == 100_000
    assert outcome.targets[99_999].name == f"{NAME}99999"
    assert time.perf_counter() - started < 60.0


@pytest.mark.conformance("HOSTILE-25")
@pytest.mark.parametrize("piece", [b"", b"x" * 200_000])
async def test_an_answer_without_end_is_given_up(piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iscsifs.iscsi.requests.MAX_ANSWER_PIECES", 500)
    async with asked() as (peer, request, outcome):
        with suppress(Closed, trio.BrokenResourceError):
            while True:
                await peer.text(request, piece, flags=TextFlag.CONTINUE, target_transfer_tag=5)
                await peer.expect(TextRequest)
    assert isinstance(outcome.failure, ProtocolError)


# Authentication, as real targets answer it.

ALICE = Credentials("alice", b"the secret of Alice")
BOTH = Credentials("alice", b"the secret of Alice", None, b"the secret of Storage")


async def respond(peer: Peer, request: LoginRequest, *pairs: Pair, **fields: Any) -> None:
    """Answer *request* with its flags, unless *fields* say otherwise."""
    final = bool(request.flags & LoginFlag.TRANSIT) and request.flags & 3 == Stage.FULL_FEATURE
    response = LoginResponse(
        flags=request.flags,
        version_max=0,
        version_active=0,
        isid=request.isid,
        tsih=1 if final else 0,
        initiator_task_tag=request.initiator_task_tag,
        **peer.counted(),
    )
    peer.exp_cmd_sn = request.cmd_sn
    await peer.send(response._replace(**fields), encode_pairs(pairs))


async def tell(peer: Peer) -> None:
    """Take the last Login Request, answer SendTargets and take the logout."""
    await respond(peer, await peer.expect(LoginRequest))
    await peer.text(await peer.expect(TextRequest), ANSWER)
    await leave(peer)


@pytest.mark.parametrize("method", ["CHAP", "None"])
async def test_lio_takes_a_method_of_the_list_and_goes_on_without_it(method: str) -> None:
    async with discovering(credentials=ALICE) as (peer, outcome):
        await peer.accept()
        request = await peer.expect(LoginRequest)
        assert b"AuthMethod=CHAP,None\0" in peer.data
        await respond(peer, request, ("AuthMethod", method))
        await tell(peer)
    # In an open discovery it refuses the exchange of CHAP, and a request without a text (0201h).
    requests = [(pdu.flags >> 2 & 3, data) for pdu, data in peer.received if isinstance(pdu, LoginRequest)]
    assert [stage for stage, _ in requests] == [Stage.SECURITY, Stage.OPERATIONAL]
    assert outcome.targets == FOUND


async def test_lio_refuses_chap_alone_in_an_open_discovery() -> None:
    async with discovering(credentials=ALICE, discovery_auth="chap") as (peer, outcome):
        await peer.accept()
        request = await peer.expect(LoginRequest)
        assert b"AuthMethod=CHAP\0" in peer.data
        await respond(peer, request, status_class=2, status_detail=1)
        await peer.closed()
    assert isinstance(outcome.failure, LoginRefused)
    assert str(outcome.failure).endswith("it may take no CHAP: leave out --discovery-auth chap (0201h)")


@pytest.mark.parametrize("discovery_auth", ["auto", "chap"])
async def test_lio_without_a_secret_to_prove_itself_by(discovery_auth: str) -> None:
    """It leaves CHAP_N and CHAP_R out of the last step. Only who insists on a proof minds."""
    async with discovering(credentials=BOTH, discovery_auth=discovery_auth) as (peer, outcome):
        await peer.accept()
        await respond(peer, await peer.expect(LoginRequest), ("AuthMethod", "CHAP"), flags=0)
        challenge = [("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "0x" + "5a" * 16)]
        await respond(peer, await peer.expect(LoginRequest), *challenge, flags=0)
        request = await peer.expect(LoginRequest)
        assert b"CHAP_C=" in peer.data
        await respond(peer, request)
        if discovery_auth == "auto":
            await tell(peer)
        else:
            await peer.closed()
    if discovery_auth == "auto":
        assert outcome.targets == FOUND
    else:
        assert isinstance(outcome.failure, AuthenticationError)
        assert str(outcome.failure).startswith("CHAP_N: the target does not prove itself; ")


async def test_lio_closes_the_connection_where_no_user_was_given() -> None:
    async with discovering() as (peer, outcome):
        await peer.accept()
        await peer.expect(LoginRequest)
        await peer.close()
    assert isinstance(outcome.failure, LoginDropped)
    assert str(outcome.failure) == (
        f"{peer.portal}: the target closed the connection (SECURITY stage of the login); "
        "it may ask for a user: give -u USER"
    )


@pytest.mark.parametrize("credentials", [None, ALICE])
async def test_gotgt_reads_the_type_of_the_session_in_the_operational_stage_only(
    credentials: Credentials | None,
) -> None:
    async with discovering(credentials=credentials) as (peer, outcome):
        await peer.accept()
        request = await peer.expect(LoginRequest)
        flags = LoginFlag.TRANSIT | Stage.OPERATIONAL
        await respond(peer, request, isid=bytes(6), flags=flags)
        await peer.expect(LoginRequest)
        assert b"SessionType" not in peer.data
        await peer.close()
        await peer.accept()
        request = await peer.expect(LoginRequest)
        assert request.flags == LoginFlag.TRANSIT | Stage.OPERATIONAL << 2 | Stage.FULL_FEATURE
        keys = [pair.split(b"=")[0] for pair in peer.data.split(b"\0")]
        assert keys[:2] == [b"InitiatorName", b"SessionType"]
        assert len(set(keys)) == len(keys)
        await respond(peer, request, isid=bytes(6), tsih=0)
        await peer.text(await peer.expect(TextRequest), ANSWER)
        await leave(peer)
    assert outcome.targets == FOUND
