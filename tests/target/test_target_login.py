"""The target's login phase: wired to our initiator, and asked by one that breaks the rules (section 6.3)."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import AuthenticationError, LoginRefused, ProtocolError
from iscsifs.iscsi import pdu
from iscsifs.iscsi.chap import ALGORITHMS, ChallengeMemory, Credentials, response
from iscsifs.iscsi.keys import INITIATOR_OFFER, Value
from iscsifs.iscsi.login import InitiatorLogin, LoginConfig, Redirect
from iscsifs.iscsi.names import Portal
from iscsifs.iscsi.pdu import LoginFlag, LoginRequest, LoginResponse, Stage
from iscsifs.iscsi.text import Pair, decode_pairs, encode_pairs, parse_binary
from iscsifs.target.login import TARGET_OFFER, Outgoing, TargetConfig, TargetLogin

INITIATOR = "iqn.2001-04.com.example:initiator"
TARGET = "iqn.2001-04.com.example:target"
SECRET, TARGET_SECRET = b"the secret of Alice", b"the secret of Storage"
ONE_WAY = Credentials("alice", SECRET)
MUTUAL = Credentials("alice", SECRET, "storage", TARGET_SECRET)
CHAP: dict[str, Any] = {"secrets": {"alice": SECRET}, "own": ("storage", TARGET_SECRET)}
NAMES = [("InitiatorName", INITIATOR), ("TargetName", TARGET)]
T, C = LoginFlag.TRANSIT, LoginFlag.CONTINUE
RANDOM = random.Random(1994)


def initiator(**config: Any) -> InitiatorLogin:
    config = {"initiator_name": INITIATOR, "target_name": TARGET, "isid": bytes(6)} | config
    return InitiatorLogin(LoginConfig(**config), random_bytes=RANDOM.randbytes, memory=ChallengeMemory())


def target(
    rewrite: Callable[[LoginResponse, list[Pair]], Outgoing] = lambda response, pairs: (response, pairs),
    stat_sn: int = 0,
    **config: Any,
) -> TargetLogin:
    return TargetLogin(
        TargetConfig(**{"target_names": frozenset([TARGET])} | config),
        tsih=7,
        random_bytes=RANDOM.randbytes,
        memory=ChallengeMemory(),
        stat_sn=stat_sn,
        rewrite=rewrite,
    )


def log_in(one: InitiatorLogin, other: TargetLogin) -> int:
    """Wire both ends together until the login is complete; return how many requests it took."""
    exchanges = 0
    request: Any = one.start()
    while request is not None:
        assert not isinstance(request, Redirect)
        exchanges += 1
        request = one.receive(*other.receive(*request))
    assert other.done
    return exchanges


def test_a_plain_login() -> None:
    one, other = initiator(cmd_sn=5), target(stat_sn=0xFFFFFFFF, target_alias="Bob-s Disk")
    assert log_in(one, other) == 2
    assert (one.tsih, one.exp_cmd_sn, one.max_cmd_sn) == (7, 5, 132)
    assert one.exp_stat_sn == other.statuses.stat_sn == 1
    assert other.commands.exp_cmd_sn == 5
    assert (other.initiator_name, other.target_name, other.discovery) == (INITIATOR, TARGET, False)
    assert one.parameters.target_portal_group_tag == 1
    assert one.parameters.target_alias == "Bob-s Disk"


def test_a_login_without_a_security_stage() -> None:
    assert log_in(initiator(first_stage=Stage.OPERATIONAL), target()) == 1
    with pytest.raises(LoginRefused, match="authentication failure"):
        log_in(initiator(first_stage=Stage.OPERATIONAL), target(**CHAP))


def test_a_discovery_session() -> None:
    one, other = initiator(target_name=None), target(target_alias="Bob-s Disk")
    log_in(one, other)
    assert other.discovery
    assert other.target_name is None
    assert one.parameters.target_alias == ""


@pytest.mark.parametrize("credentials", [ONE_WAY, MUTUAL, Credentials("alice", SECRET, None, TARGET_SECRET)])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_authentication_one_way_and_mutual_with_each_algorithm(
    credentials: Credentials, algorithm: int
) -> None:
    one, other = initiator(credentials=credentials), target(**CHAP, algorithms=(algorithm,))
    log_in(one, other)
    assert one.chap is not None
    assert one.chap.algorithm == algorithm
    assert one.chap.target_user == ("storage" if credentials.target_secret else None)


def test_authentication_that_fails() -> None:
    with pytest.raises(LoginRefused, match="authentication failure"):
        log_in(initiator(credentials=Credentials("alice", b"x" * 12)), target(**CHAP))
    with pytest.raises(LoginRefused, match="authentication failure"):
        log_in(initiator(credentials=Credentials("mallory", SECRET)), target(**CHAP))
    with pytest.raises(LoginRefused, match="authentication failure"):
        log_in(initiator(), target(**CHAP))
    with pytest.raises(LoginRefused, match="authentication failure"):
        log_in(initiator(credentials=MUTUAL), target(secrets={"alice": SECRET}))
    with pytest.raises(AuthenticationError, match="CHAP_R"):
        log_in(initiator(credentials=MUTUAL), target(**CHAP | {"own": ("storage", b"y" * 12)}))


def test_a_target_that_wants_no_authentication() -> None:
    log_in(initiator(credentials=ONE_WAY, allow_none=True), target())


values: dict[str, st.SearchStrategy[Value]] = {
    "HeaderDigest": st.permutations(["None", "CRC32C"]).map(tuple),
    "DataDigest": st.permutations(["None", "CRC32C"]).map(tuple),
    "MaxRecvDataSegmentLength": st.integers(512, 2**24 - 1),
    "DefaultTime2Wait": st.integers(0, 3600),
    "DefaultTime2Retain": st.integers(0, 3600),
    "ErrorRecoveryLevel": st.integers(0, 2),
    "MaxConnections": st.integers(1, 65535),
    "InitialR2T": st.booleans(),
    "ImmediateData": st.booleans(),
    "MaxBurstLength": st.integers(2**20, 2**24 - 1),
    "FirstBurstLength": st.integers(512, 2**20),
    "MaxOutstandingR2T": st.integers(1, 65535),
    "DataPDUInOrder": st.booleans(),
    "DataSequenceInOrder": st.booleans(),
}
offers = st.fixed_dictionaries(values)


@given(offers, offers)
def test_both_sides_come_to_the_same_parameters(mine: dict[str, Any], yours: dict[str, Any]) -> None:
    one, other = initiator(offer=mine), target(offer=yours)
    log_in(one, other)
    left, right = one.parameters, other.parameters
    assert (
        left.max_send_data_segment_length
        == right.max_recv_data_segment_length
        == yours["MaxRecvDataSegmentLength"]
    )
    assert (
        right.max_send_data_segment_length
        == left.max_recv_data_segment_length
        == mine["MaxRecvDataSegmentLength"]
    )
    assert left.header_digest == right.header_digest == (mine["HeaderDigest"][0] == "CRC32C")
    assert left.data_digest == right.data_digest == (mine["DataDigest"][0] == "CRC32C")
    assert (
        left.default_time2wait
        == right.default_time2wait
        == max(mine["DefaultTime2Wait"], yours["DefaultTime2Wait"])
    )
    for key, attribute in {
        "DefaultTime2Retain": "default_time2retain",
        "ErrorRecoveryLevel": "error_recovery_level",
        "MaxConnections": "max_connections",
        "MaxBurstLength": "max_burst_length",
        "FirstBurstLength": "first_burst_length",
        "MaxOutstandingR2T": "max_outstanding_r2t",
    }.items():
        assert getattr(left, attribute) == getattr(right, attribute) == min(mine[key], yours[key])
    assert left.initial_r2t == right.initial_r2t == (mine["InitialR2T"] or yours["InitialR2T"])
    assert left.immediate_data == right.immediate_data == (mine["ImmediateData"] and yours["ImmediateData"])
    assert left.data_pdu_in_order == right.data_pdu_in_order
    assert left.data_sequence_in_order == right.data_sequence_in_order


def test_the_usual_offers() -> None:
    one, other = initiator(), target()
    log_in(one, other)
    for parameters in (one.parameters, other.parameters):
        assert not parameters.initial_r2t
        assert parameters.immediate_data
        assert (
            parameters.max_burst_length == TARGET_OFFER["MaxBurstLength"] == INITIATOR_OFFER["MaxBurstLength"]
        )
        assert (parameters.default_time2wait, parameters.default_time2retain) == (2, 0)


# A test makes the target misbehave.


def test_a_rewritten_response_is_what_is_sent_and_where_the_login_stands() -> None:
    late = iter([True, True, False])

    def rewrite(response: LoginResponse, pairs: list[Pair]) -> Outgoing:
        if response.flags & T and next(late, False):
            return response._replace(flags=response.flags & 0xC), pairs
        return response, [*pairs, ("X-com.example.seen", "1")] if response.flags & 4 else pairs

    one, other = initiator(), target(rewrite)
    assert log_in(one, other) == 4


def test_a_redirection_by_rewriting() -> None:
    one = initiator()
    other = target(
        lambda response, _: (
            response._replace(status_class=1, status_detail=1),
            [("TargetAddress", "10.0.0.2:3261")],
        )
    )
    outcome = one.receive(*other.receive(*one.start()))
    assert outcome == Redirect((Portal("10.0.0.2", 3261),), permanent=False)
    assert not other.done


def test_a_long_answer_is_cut() -> None:
    many = [("TargetAddress", "storage.example.com:3260")] * 500

    def rewrite(response: LoginResponse, pairs: list[Pair]) -> Outgoing:
        if many and response.flags & 0xC == Stage.OPERATIONAL << 2:
            pairs, many[:] = pairs + many, []
        return response, pairs

    # Three pieces, which cannot have T set, and one more response that has it.
    assert log_in(initiator(), target(rewrite)) == 1 + 3 + 1


# An initiator that breaks the rules.


class Asker:
    """An initiator by hand: sends what it is told, and shows the status and the pairs of the answer."""

    def __init__(self, **config: Any) -> None:
        self.login = target(**config)
        self.first = LoginRequest(0, 0, 0, bytes(6), 0, 1, 0, 1)

    def ask(
        self, *pairs: Pair, flags: int = 0, data: bytes | None = None, **fields: Any
    ) -> tuple[tuple[int, int], list[Pair]]:
        request = self.first._replace(**{"flags": flags, "exp_stat_sn": self.login.statuses.stat_sn} | fields)
        text = encode_pairs(pairs) if data is None else data
        self.response, answer = self.login.receive(request, text)
        return (self.response.status_class, self.response.status_detail), decode_pairs(answer, pdu="")

    def status(self, *pairs: Pair, **fields: Any) -> tuple[int, int]:
        return self.ask(*pairs, **fields)[0]


OPERATIONAL = Stage.OPERATIONAL << 2


@pytest.mark.parametrize(
    ("pairs", "fields", "status"),
    [
        (NAMES, {"version_min": 1, "version_max": 1}, (2, 5)),
        (NAMES, {"tsih": 3}, (2, 0x0A)),
        (NAMES[:1], {}, (2, 7)),
        (NAMES[1:], {}, (2, 7)),
        ([], {}, (2, 7)),
        ([NAMES[0], ("TargetName", TARGET + "2")], {}, (2, 3)),
        ([*NAMES, NAMES[0]], {}, (2, 0)),
        ([*NAMES, ("SessionType", "Weird")], {}, (2, 0)),
        ([NAMES[1], ("InitiatorName", "me")], {}, (2, 0)),
        ([*NAMES, ("TargetAlias", "mine")], {}, (2, 0)),
        ([*NAMES, ("MaxBurstLength", "65536")], {}, (2, 0)),
        (
            [*NAMES, ("MaxBurstLength", "65536"), ("FirstBurstLength", "65537")],
            {"flags": T | OPERATIONAL | 3},
            (2, 0),
        ),
        ([*NAMES, ("MaxBurstLength", "many")], {"flags": OPERATIONAL}, (2, 0)),
        ([*NAMES, ("AuthMethod", "None")], {"flags": OPERATIONAL}, (2, 0)),
        ([*NAMES, ("CHAP_A", "5")], {}, (2, 0)),
        (NAMES, {"flags": T | C | 1}, (2, 0)),
        (NAMES, {"flags": T | 2}, (2, 0)),
        (NAMES, {"flags": T | 0}, (2, 0)),
        (NAMES, {"flags": 2 << 2}, (2, 0)),
        (NAMES, {"flags": T | 3 << 2 | 3}, (2, 0)),
        (NAMES, {"immediate": False}, (2, 0)),
        ([], {"data": b"rubbish"}, (2, 0)),
        ([], {"data": b"\xff\0"}, (2, 0)),
    ],
    ids=str,
)
def test_a_first_request_that_is_refused(
    pairs: list[Pair], fields: dict[str, Any], status: tuple[int, int]
) -> None:
    asker = Asker()
    assert asker.status(*pairs, **fields) == status
    assert not asker.login.done
    assert not asker.response.flags & T


@pytest.mark.parametrize(
    "fields",
    [
        {"initiator_task_tag": 2},
        {"isid": b"\1" * 6},
        {"tsih": 7},
        {"cid": 1},
        {"cmd_sn": 2},
        {"exp_stat_sn": 9},
        {"version_max": 1},
        {"flags": OPERATIONAL},
    ],
    ids=str,
)
def test_a_second_request_that_differs_from_the_first(fields: dict[str, Any]) -> None:
    asker = Asker()
    assert asker.status(*NAMES) == (0, 0)
    assert asker.status(**fields) == (2, 0)


def test_anything_but_a_login_request_is_refused() -> None:
    response, _ = target().receive(pdu.NopOut(initiator_task_tag=5), b"")
    assert (response.status_class, response.status_detail) == (2, 0x0B)
    assert response.initiator_task_tag == 5


def test_each_piece_is_answered_with_nothing() -> None:
    asker = Asker()
    text = encode_pairs(NAMES)
    assert asker.ask(data=text[:10], flags=C) == ((0, 0), [])
    assert not asker.response.flags & (T | C)
    assert asker.ask(data=text[10:]) == ((0, 0), [("TargetPortalGroupTag", "1")])


def test_data_where_the_target_has_more_to_say_is_refused() -> None:
    asker = Asker(
        rewrite=lambda response, pairs: (response, [*pairs, *[(f"X-{n}", "x" * 90) for n in range(100)]])
    )
    request = asker.first._replace(flags=0)
    response, _ = asker.login.receive(request, encode_pairs(NAMES))
    assert response.flags & C
    assert asker.login.receive(request._replace(exp_stat_sn=1), b"X=1\0")[0].status_class == 2


def test_the_first_whole_answer_has_the_portal_group_and_the_keys_of_the_initiator_are_answered() -> None:
    asker = Asker()
    status, pairs = asker.ask(
        *NAMES,
        ("MaxConnections", "0"),
        ("HeaderDigest", "X-new"),
        ("IFMarker", "Yes"),
        ("X-com.example.foo", "1"),
        ("iSCSIProtocolLevel", "2"),
        flags=OPERATIONAL,
    )
    assert status == (0, 0)
    assert pairs == [
        ("TargetPortalGroupTag", "1"),
        ("MaxConnections", "Reject"),
        ("HeaderDigest", "Reject"),
        ("IFMarker", "Reject"),
        ("X-com.example.foo", "NotUnderstood"),
        ("iSCSIProtocolLevel", "1"),
        ("MaxRecvDataSegmentLength", "1048576"),
    ]


class TestAuthentication:
    """Every step of CHAP has its keys; what is wrong with them has its status (section 9.2)."""

    def challenged(self) -> tuple[Asker, dict[str, str]]:
        asker = Asker(**CHAP)
        assert asker.ask(*NAMES, ("AuthMethod", "KRB5,CHAP,None"))[1][-1] == ("AuthMethod", "CHAP")
        status, pairs = asker.ask(("CHAP_A", "5"), flags=T | 1)
        assert status == (0, 0)
        assert not asker.response.flags & T
        return asker, dict(pairs)

    def proof(self, asked: dict[str, str]) -> list[Pair]:
        answer = response(5, int(asked["CHAP_I"]), SECRET, parse_binary(asked["CHAP_C"]))
        return [("CHAP_N", "alice"), ("CHAP_R", "0x" + answer.hex())]

    def test_the_right_proof(self) -> None:
        asker, asked = self.challenged()
        assert asker.ask(*self.proof(asked), flags=T | 1) == ((0, 0), [])
        assert asker.response.flags == T | 1
        assert asker.status(flags=T | OPERATIONAL | 3) == (0, 0)
        assert asker.login.done
        assert asker.response.tsih == 7

    @pytest.mark.parametrize("missing", [0, 1])
    def test_a_missing_key(self, missing: int) -> None:
        asker, asked = self.challenged()
        pairs = self.proof(asked)
        del pairs[missing]
        assert asker.status(*pairs, ("CHAP_I", "1"), ("CHAP_C", asked["CHAP_C"])) == (2, 7)

    def test_no_key_at_all(self) -> None:
        asker, _ = self.challenged()
        assert asker.status(flags=T | 1) == (2, 7)

    def test_a_malformed_key(self) -> None:
        asker, asked = self.challenged()
        assert asker.status(("CHAP_N", "alice"), ("CHAP_R", "rubbish")) == (2, 0)
        asker, asked = self.challenged()
        assert asker.status(*self.proof(asked), ("CHAP_A", "5")) == (2, 0)
        asker, asked = self.challenged()
        assert asker.status(*self.proof(asked), ("CHAP_I", "5")) == (2, 0)

    def test_a_wrong_proof(self) -> None:
        asker, _ = self.challenged()
        assert asker.status(("CHAP_N", "alice"), ("CHAP_R", "0x" + "00" * 16)) == (2, 1)

    def test_a_reflected_challenge(self) -> None:
        asker, asked = self.challenged()
        assert asker.status(*self.proof(asked), ("CHAP_I", "1"), ("CHAP_C", asked["CHAP_C"])) == (2, 1)

    def test_a_way_around_it(self) -> None:
        assert Asker(**CHAP).status(*NAMES, flags=T | 1) == (2, 1)
        assert Asker(**CHAP).status(*NAMES, flags=T | 3) == (2, 1)
        assert Asker(**CHAP).status(*NAMES, flags=OPERATIONAL) == (2, 1)
        assert Asker(**CHAP).status(*NAMES, ("AuthMethod", "None"), flags=T | 1) == (2, 1)
        asker = Asker(**CHAP)
        assert asker.status(*NAMES, ("AuthMethod", "CHAP"), flags=T | 3) == (0, 0)
        assert not asker.login.done
        assert asker.response.flags == 0


@given(st.binary(), st.integers(0, 255), st.binary(), st.integers(0, 255))
def test_any_requests_have_an_answer(first: bytes, flags: int, second: bytes, more: int) -> None:
    configs: list[dict[str, Any]] = [{}, CHAP]
    for config in configs:
        login = target(**config)
        request = LoginRequest(flags, 0, 0, bytes(6), 0, 1)
        for text, byte in ((encode_pairs(NAMES) + first, flags), (second, more)):
            answer, _ = login.receive(request._replace(flags=byte, exp_stat_sn=login.statuses.stat_sn), text)
            assert answer.status_class in (0, 2)
            if answer.status_class or login.done:
                break


def test_an_initiator_sees_what_the_target_makes_of_it() -> None:
    with pytest.raises(LoginRefused, match="no target of this name"):
        log_in(initiator(target_name=TARGET + "2"), target())
    with pytest.raises(ProtocolError, match="Version-active"):
        log_in(initiator(), target(lambda response, pairs: (response._replace(version_active=1), pairs)))
