"""From a portal to a session: addresses, failures at each step, redirections. Over loopback, for real."""

import errno
import gc
import os
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from iscsifs.errors import (
    AuthenticationError,
    IscsifsError,
    LoginDropped,
    LoginRefused,
    ProtocolError,
    RedirectionError,
    TransportError,
)
from iscsifs.initiator.dial import Dialler, connect
from iscsifs.initiator.options import DiscoveryAuth, InitiatorOptions
from iscsifs.iscsi.chap import ChallengeMemory, Credentials
from iscsifs.iscsi.names import Portal, TargetAddress
from iscsifs.iscsi.pdu import LoginFlag, LoginRequest, LoginResponse, Stage
from iscsifs.iscsi.text import decode_pairs, encode_pairs
from iscsifs.limits import MAX_REDIRECTIONS
from iscsifs.transport.link import Link
from iscsifs.transport.lookup import look_up
from support.peer import Closed, Peer, scripted_peer

INITIATOR = "iqn.2001-04.com.example:initiator"
TARGET = "iqn.2001-04.com.example:target"
ISID = bytes.fromhex("800102030405")
ALICE = Credentials("alice", b"the secret of Alice")
IPV4 = socket.AF_INET


@pytest.fixture
def clock() -> MockClock:
    """A clock that jumps, but leaves the kernel the time that loopback needs."""
    return MockClock(autojump_threshold=0.05)


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Any:
    def sockets() -> set[str]:
        links = set()
        for name in os.listdir("/proc/self/fd"):
            try:
                links.add(os.readlink(f"/proc/self/fd/{name}"))
            except OSError:
                continue
        return {link for link in links if link.startswith("socket:")}

    gc.collect()
    before = sockets()
    yield
    assert sockets() <= before


def dialler(
    *portals: Portal | TargetAddress, credentials: Credentials | None = None, **options: Any
) -> Dialler:
    addresses = [portal if isinstance(portal, TargetAddress) else TargetAddress(portal) for portal in portals]
    config: dict[str, Any] = {"initiator_name": INITIATOR, "credentials": credentials} | options
    return Dialler(InitiatorOptions(**config), ChallengeMemory(), TARGET, addresses, ISID)


class Outcome:
    """What became of a dialling in the background."""

    failure: IscsifsError | None = None

    async def dial(self, dial: Dialler) -> None:
        try:
            link = await dial()
        except IscsifsError as error:
            self.failure = error
        else:
            link.close()


@asynccontextmanager
async def dialling(dial: Dialler) -> AsyncIterator[Outcome]:
    """Dial while the body plays the target; at the end it is over."""
    outcome = Outcome()
    with trio.fail_after(100.0):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome.dial, dial)
            yield outcome


def unused_port() -> Portal:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return Portal(*server.getsockname())


async def respond(peer: Peer, request: LoginRequest, text: bytes = b"", **fields: Any) -> None:
    """Answer *request* by one with its flags, unless *fields* say otherwise."""
    response = LoginResponse(
        flags=request.flags,
        version_max=0,
        version_active=0,
        isid=request.isid,
        tsih=0,
        initiator_task_tag=request.initiator_task_tag,
        **peer.counted(),
    )
    await peer.send(response._replace(**fields), text)


async def redirect(peer: Peer, *addresses: str, detail: int = 1) -> LoginRequest:
    """Accept a connection and send it to *addresses*; return its first request."""
    await peer.accept()
    request = await peer.expect(LoginRequest)
    pairs = [("TargetAddress", address) for address in addresses]
    await respond(peer, request, encode_pairs(pairs), status_class=1, status_detail=detail)
    await peer.closed()
    return request


# Where nobody answers.


async def test_a_refused_port_is_reported_with_what_to_look_at() -> None:
    portal = unused_port()
    with pytest.raises(TransportError, match=f"^{re.escape(str(portal))}: Connection refused; is a target"):
        await dialler(portal)()


async def test_a_host_that_is_not_known() -> None:
    with pytest.raises(TransportError, match="^no-such-host.invalid:3260: the name cannot be looked up"):
        await dialler(Portal("no-such-host.invalid"))()


async def test_the_wanted_family_only() -> None:
    with pytest.raises(TransportError):
        await dialler(Portal("127.0.0.1", 3260), family=socket.AF_INET6)()


async def test_out_of_file_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("iscsifs.initiator.dial.socket.socket", no_socket)
    with pytest.raises(TransportError, match="Too many open files; .*ulimit -n"):
        await connect(Portal("127.0.0.1", 3260), IPV4)


async def test_no_memory_for_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    async def log_in(_: Link) -> None:
        await trio.lowlevel.checkpoint()
        raise MemoryError

    monkeypatch.setattr(Link, "log_in", log_in)
    async with scripted_peer() as peer:
        with pytest.raises(TransportError, match="no memory for a login"):
            await dialler(peer.portal)()


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (socket.gaierror(socket.EAI_NONAME, "not known"), "not known; check it, and the DNS"),
        (socket.gaierror(socket.EAI_AGAIN, "for now"), "for now; can a DNS server be reached?"),
        (socket.gaierror(socket.EAI_NODATA, "no address"), "no address; has it addresses of the kind"),
        (socket.gaierror(socket.EAI_SERVICE, "no service"), "no service"),
        # What is no gaierror stands for EAI_SYSTEM, or for a thread that there is not.
        (OSError(errno.EMFILE, "too many files"), "too many files; raise the limit with: ulimit -n"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
    ],
)
async def test_why_a_name_cannot_be_looked_up(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, why: str
) -> None:
    async def fail(*_: object) -> list[Any]:
        await trio.lowlevel.checkpoint()
        raise failure

    monkeypatch.setattr(trio.socket, "getaddrinfo", fail)
    with pytest.raises(TransportError) as caught:
        await look_up(Portal("array.example", 3260), IPV4)
    assert str(caught.value).startswith(f"array.example:3260: the name cannot be looked up: {why}")


async def test_a_silent_address_of_a_name_leaves_time_for_the_next(
    clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted_peer() as peer, silent_portal() as silent:

        async def getaddrinfo(*_: object) -> list[Any]:
            await trio.lowlevel.checkpoint()
            return [
                (IPV4, socket.SOCK_STREAM, 6, "", (portal.host, portal.port))
                for portal in (silent, peer.portal)
            ]

        monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
        dial = dialler(Portal("two.example", 3260), login_timeout=20.0)
        async with dialling(dial) as outcome:
            started = trio.current_time()
            await peer.login()
            assert 10.0 <= trio.current_time() - started < 11.0
        assert outcome.failure is None
        assert dial.peer_address == "127.0.0.1"


@asynccontextmanager
async def silent_portal() -> AsyncIterator[Portal]:
    """A portal whose queue of connections is full: one more is not answered."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = []
        try:
            for _ in range(4):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(address)
                fillers.append(filler)
            await trio.lowlevel.checkpoint()
            yield Portal(*address)
        finally:
            for filler in fillers:
                filler.close()


@pytest.mark.conformance("LOGIN-R.16")
async def test_silence_at_connect(clock: MockClock) -> None:
    async with silent_portal() as portal:
        started = trio.current_time()
        with pytest.raises(TransportError, match="no login within 15 s.*connecting|timed out"):
            await dialler(portal)()
        assert trio.current_time() - started == pytest.approx(15.0, abs=0.5)


async def test_a_dial_that_is_cancelled_while_a_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*_: object) -> list[Any]:
        scope.cancel()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return [(IPV4, socket.SOCK_STREAM, 6, "", (peer.portal.host, peer.portal.port))]

    async with scripted_peer() as peer:
        monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
        with trio.CancelScope() as scope:
            await dialler(peer.portal)()
        assert scope.cancelled_caught


@pytest.mark.conformance("ERR-9")
async def test_addresses_are_tried_in_their_order(caplog: pytest.LogCaptureFixture) -> None:
    refused = unused_port()
    async with scripted_peer() as first, scripted_peer() as second, scripted_peer() as third:
        dial = dialler(refused, first.portal, second.portal, third.portal)
        async with dialling(dial) as outcome:
            await first.accept()
            request = await first.expect(LoginRequest)
            await respond(first, request, status_class=3, status_detail=1)
            await first.closed()
            await second.login()
        assert outcome.failure is None
        assert dial.portal == second.portal
        assert third.received == []
        assert [str(refused) in record.message for record in caplog.records] == [True, False]


# A connection that ends, or falls silent, at each step.

ALL_STEPS = [0, 1, 2]


async def answer_steps(peer: Peer, count: int) -> None:
    """Accept a connection, answer *count* requests of its login and wait for the next."""
    await peer.accept()
    for step in range(count):
        request = await peer.expect(LoginRequest)
        text = encode_pairs([("AuthMethod", "None")]) if step == 0 else b""
        await respond(
            peer, request, text, flags=request.flags & ~LoginFlag.TRANSIT & ~3 if step else request.flags
        )
    await peer.expect(LoginRequest)


@pytest.mark.conformance("LOGIN-R.16", "HOSTILE-1")
@pytest.mark.parametrize("steps", ALL_STEPS)
@pytest.mark.parametrize("drip", [b"", b"\x23\x87" + bytes(20)])
async def test_silence_after_each_step_of_the_login(clock: MockClock, steps: int, drip: bytes) -> None:
    async with scripted_peer() as peer:
        async with dialling(dialler(peer.portal)) as outcome:
            started = trio.current_time()
            await answer_steps(peer, steps)
            for position in range(len(drip)):
                await peer.send_bytes(drip[position : position + 1])
                await trio.sleep(0.5)
            await peer.closed()
            assert trio.current_time() - started == pytest.approx(15.0, abs=1.0)
        stage = "OPERATIONAL" if steps else "SECURITY"
        assert isinstance(outcome.failure, TransportError)
        assert f"{peer.portal}: no login within 15 s ({stage} stage of the login)" == str(outcome.failure)


@pytest.mark.conformance("ERR-9")
@pytest.mark.parametrize("steps", ALL_STEPS)
@pytest.mark.parametrize("how", [Peer.close, Peer.reset])
async def test_a_connection_that_ends_after_each_step_of_the_login(
    steps: int, how: Callable[[Peer], Any]
) -> None:
    async with scripted_peer() as peer:
        async with dialling(dialler(peer.portal)) as outcome:
            await answer_steps(peer, steps)
            await how(peer)
        stage = "OPERATIONAL" if steps else "SECURITY"
        assert isinstance(outcome.failure, TransportError if steps else LoginDropped)
        assert str(outcome.failure).startswith(f"{peer.portal}: ")
        assert f"({stage} stage of the login)" in str(outcome.failure)
        assert ("it may ask for a user: give -u USER" in str(outcome.failure)) == (steps == 0)


@pytest.mark.conformance("ERR-9")
async def test_a_connection_that_ends_before_the_first_request_is_read() -> None:
    async with scripted_peer() as peer:
        async with dialling(dialler(peer.portal)) as outcome:
            await peer.accept()
            await peer.reset()
        assert isinstance(outcome.failure, LoginDropped | TransportError)  # or before all is connected


async def test_a_target_that_has_let_us_in_before_does_not_ask_for_a_user_now() -> None:
    async with scripted_peer() as peer:
        dial = dialler(peer.portal)
        async with dialling(dial) as outcome:
            await peer.login()
        assert outcome.failure is None
        async with dialling(dial) as outcome:
            await peer.accept()
            await peer.expect(LoginRequest)
            await peer.close()
        assert isinstance(outcome.failure, TransportError)
        assert "give -u USER" not in str(outcome.failure)


async def test_oddities_of_a_target_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted_peer() as peer:
        dial = dialler(peer.portal)
        for _ in range(3):
            async with dialling(dial) as outcome:
                await peer.accept()
                await respond(peer, await peer.expect(LoginRequest), isid=bytes(6))
                await respond(peer, await peer.expect(LoginRequest), isid=bytes(6), tsih=0)
            assert outcome.failure is None
    assert [record.getMessage() for record in caplog.records if "RFC 7143" in record.getMessage()] == [
        f"{peer.portal}: the ISID of its Login Responses is 0, against RFC 7143; going on",
        f"{peer.portal}: the TSIH of its sessions is 0, against RFC 7143; going on",
    ]


@pytest.mark.conformance("LOGIN-R.16")
async def test_empty_answers_without_end() -> None:
    async with scripted_peer() as peer:
        async with dialling(dialler(peer.portal)) as outcome:
            await peer.accept()
            exchanges = 0
            try:
                while True:
                    request = await peer.expect(LoginRequest)
                    text = encode_pairs([("AuthMethod", "None")]) if not exchanges else b""
                    exchanges += 1
                    await respond(peer, request, text, flags=request.flags & ~LoginFlag.TRANSIT & ~3)
            except Closed:
                pass
        assert 6 <= exchanges <= 1000
        assert isinstance(outcome.failure, ProtocolError)


@pytest.mark.conformance("LOGIN-R.9")
async def test_a_refused_login_is_not_repeated() -> None:
    async with scripted_peer() as peer:
        async with dialling(dialler(peer.portal)) as outcome:
            await peer.accept()
            await respond(peer, await peer.expect(LoginRequest), status_class=2, status_detail=3)
            await peer.closed()
        assert isinstance(outcome.failure, LoginRefused)
        assert len(peer.received) == 1


async def test_a_caller_that_is_cancelled_leaves_no_socket() -> None:
    async with scripted_peer() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(dialler(peer.portal))
        await answer_steps(peer, 1)
        nursery.cancel_scope.cancel()


# CHAP, once more with MD5 (tgt 1.0.85).


async def chap(peer: Peer, algorithm: str) -> None:
    """Accept a connection, choose *algorithm* and refuse the answer."""
    await peer.accept()
    request = await peer.expect(LoginRequest)
    await respond(peer, request, encode_pairs([("AuthMethod", "CHAP")]))
    request = await peer.expect(LoginRequest)
    offered = dict(decode_pairs(peer.data, pdu="LOGIN_REQUEST"))["CHAP_A"].split(",")
    assert algorithm in offered
    challenge = [("CHAP_A", algorithm), ("CHAP_I", "1"), ("CHAP_C", "0x" + "5a" * 16)]
    await respond(peer, request, encode_pairs(challenge))
    request = await peer.expect(LoginRequest)
    await respond(peer, request, status_class=2, status_detail=1)
    await peer.closed()


@pytest.mark.conformance("CHAP-R.8")
@pytest.mark.parametrize("second", ["5"])
async def test_another_algorithm_than_md5_gets_one_more_try_with_md5_alone(second: str) -> None:
    async with scripted_peer() as peer:
        async with dialling(dialler(peer.portal, credentials=ALICE)) as outcome:
            await chap(peer, "7")
            await chap(peer, second)
        assert isinstance(outcome.failure, LoginRefused)
        offers = [
            value
            for pdu, data in peer.received
            if isinstance(pdu, LoginRequest)
            for key, value in decode_pairs(data, pdu="LOGIN_REQUEST")
            if key == "CHAP_A"
        ]
        assert offers == ["8,7,6,5", "5"]


@pytest.mark.conformance("CHAP-R.8")
async def test_md5_that_was_refused_is_not_tried_again() -> None:
    async with scripted_peer() as peer:
        async with dialling(dialler(peer.portal, credentials=ALICE)) as outcome:
            await chap(peer, "5")
        assert isinstance(outcome.failure, LoginRefused)


@pytest.mark.conformance("CHAP-R.8")
@pytest.mark.parametrize("answered", [False, True])
async def test_a_closed_connection_gets_one_more_try_with_md5_alone(answered: bool) -> None:
    """NetBSD's iscsi-target closes on a list, before anything can count as a failed login."""
    async with scripted_peer() as peer:
        async with dialling(dialler(peer.portal, credentials=ALICE)) as outcome:
            await peer.accept()
            await respond(
                peer, await peer.expect(LoginRequest), encode_pairs([("AuthMethod", "CHAP")]), flags=0
            )
            request = await peer.expect(LoginRequest)
            assert peer.data == b"CHAP_A=8,7,6,5\0"
            if answered:
                challenge = [("CHAP_A", "7"), ("CHAP_I", "1"), ("CHAP_C", "0x" + "5a" * 16)]
                await respond(peer, request, encode_pairs(challenge))
                await peer.expect(LoginRequest)
            await peer.close()
            await chap(peer, "5")
        assert isinstance(outcome.failure, LoginRefused)
        assert "CHAP_A=5\0" in [data.decode() for _, data in peer.received]
        assert str(outcome.failure) == (
            "the target refused the login: authentication failure; "
            'check the user "alice" and the secret, and whether it demands mutual CHAP (0201h)'
        )


# Redirections.


@pytest.mark.conformance("LOGIN-R.1")
@pytest.mark.parametrize("detail", [1, 2])
async def test_a_redirection_is_followed(detail: int, caplog: pytest.LogCaptureFixture) -> None:
    async with scripted_peer() as old, scripted_peer() as new:
        dial = dialler(old.portal)
        async with dialling(dial) as outcome:
            asked = await redirect(old, str(new.portal), detail=detail)
            await new.login()
        assert outcome.failure is None
        assert dial.portal == new.portal
        first = new.received[0][0]
        assert isinstance(first, LoginRequest)
        assert (first.isid, first.tsih) == (asked.isid, 0)
        assert new.offered["TargetName"] == TARGET
        assert new.offered["InitiatorName"] == INITIATOR
        assert any("for good" in record.message for record in caplog.records) == (detail == 2)
        # The next session begins at the configured portal again.
        async with dialling(dial) as outcome:
            await old.login()
        assert outcome.failure is None
        assert dial.portal == old.portal


@pytest.mark.conformance("LOGIN-R.1")
async def test_of_several_addresses_the_next_is_taken_where_one_cannot_be_reached() -> None:
    gone = unused_port()
    async with scripted_peer() as old, scripted_peer() as new:
        async with dialling(dialler(old.portal)) as outcome:
            await redirect(old, str(gone), str(new.portal))
            await new.login()
        assert outcome.failure is None
        async with dialling(dialler(old.portal)) as outcome:
            await redirect(old, str(gone))
        assert isinstance(outcome.failure, TransportError)
        assert str(gone) in str(outcome.failure)


@pytest.mark.conformance("LOGIN-R.2")
async def test_a_redirection_before_authentication_does_not_spare_it() -> None:
    async with scripted_peer() as old, scripted_peer() as new:
        async with dialling(dialler(old.portal, credentials=ALICE)) as outcome:
            await redirect(old, str(new.portal))
            await new.accept()
            request = await new.expect(LoginRequest)
            assert dict(decode_pairs(new.data, pdu="LOGIN_REQUEST"))["AuthMethod"] == "CHAP"
            # It lets us in without: not with us.
            await respond(new, request, flags=LoginFlag.TRANSIT | Stage.SECURITY << 2 | Stage.OPERATIONAL)
            await new.closed()
        assert isinstance(outcome.failure, AuthenticationError | ProtocolError)


@pytest.mark.conformance("LOGIN-R.3")
async def test_a_circle_of_redirections_is_left() -> None:
    async with scripted_peer() as one, scripted_peer() as two:
        async with dialling(dialler(one.portal)) as outcome:
            await redirect(one, f"{two.portal},1")
            await redirect(two, f"{one.portal},1")
        assert isinstance(outcome.failure, RedirectionError)


@pytest.mark.conformance("LOGIN-R.3")
async def test_there_is_a_cap_on_redirections() -> None:
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(scripted_peer()) for _ in range(MAX_REDIRECTIONS + 2)]
        async with dialling(dialler(peers[0].portal)) as outcome:
            for peer, following in pairwise(peers):
                await redirect(peer, str(following.portal))
        assert isinstance(outcome.failure, RedirectionError)
        assert peers[-1].received == []


@pytest.mark.conformance("LOGIN-R.3")
@pytest.mark.parametrize("addresses", [[], ["rubbish:address:x"], [""]])
async def test_a_redirection_to_nowhere(addresses: list[str]) -> None:
    async with scripted_peer() as peer:
        async with dialling(dialler(peer.portal)) as outcome:
            await redirect(peer, *addresses)
        assert isinstance(outcome.failure, RedirectionError)
        assert not isinstance(outcome.failure, AuthenticationError)


@pytest.mark.conformance("LOGIN-R.16")
async def test_all_redirections_together_have_the_time_of_one_login(clock: MockClock) -> None:
    async with scripted_peer() as old, scripted_peer() as new:
        async with dialling(dialler(old.portal, login_timeout=20.0)) as outcome:
            started = trio.current_time()
            await old.accept()
            request = await old.expect(LoginRequest)
            await trio.sleep(15.0)
            text = encode_pairs([("TargetAddress", str(new.portal))])
            await respond(old, request, text, status_class=1, status_detail=1)
            await old.closed()
            await new.accept()
            await new.expect(LoginRequest)
            await new.closed()
            assert trio.current_time() - started == pytest.approx(20.0, abs=0.5)
        assert isinstance(outcome.failure, TransportError)


async def test_digests_that_were_asked_for_and_are_not_there_are_said(
    clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted_peer() as peer, dialling(dialler(peer.portal, digests="all")) as outcome:
        await peer.login(HeaderDigest="CRC32C", DataDigest="None")
    assert outcome.failure is None
    (said,) = [record.getMessage() for record in caplog.records if "Digest" in record.getMessage()]
    assert said == f"{peer.portal}: without DataDigest; set DataDigest=CRC32C at the target"


# What is offered.


@pytest.mark.conformance("LOGIN-22.1")
@pytest.mark.parametrize(
    ("target_name", "discovery_auth", "offered"),
    [
        (None, "auto", "CHAP,None"),
        (None, "chap", "CHAP"),
        (None, "none", "None"),
        (TARGET, "auto", "CHAP"),
        (TARGET, "none", "CHAP"),
    ],
)
async def test_only_discovery_may_go_without_the_credentials(
    target_name: str | None, discovery_auth: DiscoveryAuth, offered: str
) -> None:
    options = InitiatorOptions(INITIATOR, ALICE, discovery_auth)
    async with scripted_peer() as peer:
        dial = Dialler(options, ChallengeMemory(), target_name, [TargetAddress(peer.portal)], ISID)
        async with dialling(dial) as outcome:
            if offered == "CHAP":
                await peer.accept()
                await peer.expect(LoginRequest)
                assert dict(decode_pairs(peer.data, pdu="LOGIN_REQUEST"))["AuthMethod"] == "CHAP"
                await peer.close()
            else:
                await peer.login()
                assert peer.offered["AuthMethod"] == offered
                assert outcome.failure is None
