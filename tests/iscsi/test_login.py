"""The initiator's login phase against a scripted target (RFC 7143 sections 6, 11.12, 11.13 and 13)."""

import struct
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import (
    AuthenticationError,
    ConfigError,
    ConnectionClosed,
    LoginError,
    LoginRefused,
    NegotiationError,
    ProtocolError,
    RedirectionError,
)
from iscsifs.iscsi import pdu
from iscsifs.iscsi.bhs import pack, unpack
from iscsifs.iscsi.keys import INITIATOR_OFFER
from iscsifs.iscsi.login import STATUS, LoginConfig, Redirect, Redirections, another_try, dropped
from iscsifs.iscsi.names import Portal
from iscsifs.iscsi.pdu import (
    LoginFlag,
    LoginResponse,
    Stage,
)
from iscsifs.iscsi.text import encode_pairs
from iscsifs.limits import MAX_LOGIN_EXCHANGES, MAX_REDIRECTIONS, MAX_TEXT_LENGTH
from support.dialogue import INITIATOR, ISID, MUTUAL, ONE_WAY, TARGET, Dialogue, operational

ENDED = (ProtocolError, NegotiationError, AuthenticationError)
T, C = LoginFlag.TRANSIT, LoginFlag.CONTINUE
OPERATIONAL_CSG = Stage.OPERATIONAL << 2


# The phase and its stages.


@pytest.mark.conformance("LOGIN-1.1", "LOGIN-2.1", "LOGIN-6.1", "LOGIN-7.1")
def test_a_login_of_many_exchanges_keeps_its_header_and_repeats_no_key() -> None:
    dialogue = operational(cmd_sn=123, cid=5)
    for _ in range(3):
        dialogue.answer(flags=OPERATIONAL_CSG)
    assert dialogue.answer().done
    requests = [request for request, _ in dialogue.history]
    assert all(type(request) is pdu.LoginRequest for request in requests)
    for request in requests:
        header = pack(request, 0)
        assert header[0] == 0x43
        assert header[2:4] == bytes(2)
        assert header[4] == 0
        assert header[20:24] == struct.pack(">HH", 5, 0)
        assert header[32:] == bytes(16)
        assert request.flags & 0x30 == 0
        assert (request.initiator_task_tag, request.isid, request.tsih) == (0x1234, ISID, 0)
        assert (request.cid, request.cmd_sn) == (5, 123)
    keys = Counter(pair.split(b"=")[0] for _, text in dialogue.history for pair in text.split(b"\0") if pair)
    assert set(keys.values()) == {1}


@pytest.mark.conformance("LOGIN-7.1")
def test_an_isid_of_the_reserved_format_is_refused() -> None:
    for isid in (bytes.fromhex("c00000000000"), bytes(5)):
        with pytest.raises(ConfigError, match="ISID"):
            Dialogue(isid=isid)


@pytest.mark.conformance("LOGIN-2.2")
def test_a_new_session_without_a_handle_is_tolerated() -> None:
    dialogue = operational().agree()
    assert dialogue.login.tsih == 0x77
    assert dialogue.login.oddities == []
    dialogue = operational().answer(tsih=0)  # gotgt
    assert dialogue.done
    assert dialogue.login.tsih == 0
    assert dialogue.login.oddities == ["the TSIH of its sessions is 0"]


def test_the_numbers_of_the_final_response_are_those_of_the_session() -> None:
    dialogue = operational(cmd_sn=0xFFFFFFFF).answer(exp_cmd_sn=0xFFFFFFFF, max_cmd_sn=0x1E)
    assert dialogue.done
    login = dialogue.login
    assert (login.exp_cmd_sn, login.max_cmd_sn, login.exp_stat_sn) == (0xFFFFFFFF, 0x1E, 2)


@pytest.mark.conformance("LOGIN-3.1")
def test_the_stages_of_logins_with_and_without_security() -> None:
    dialogue = Dialogue()
    assert dialogue.asked == (Stage.SECURITY, Stage.OPERATIONAL)
    dialogue.skip_security()
    assert dialogue.asked == (Stage.OPERATIONAL, Stage.FULL_FEATURE)
    assert dialogue.agree().done

    dialogue = Dialogue(first_stage=Stage.OPERATIONAL)
    assert dialogue.asked == (Stage.OPERATIONAL, Stage.FULL_FEATURE)
    assert dialogue.pairs[0] == ("InitiatorName", INITIATOR)
    assert "AuthMethod" not in dict(dialogue.pairs)
    assert dialogue.agree().done

    dialogue = Dialogue(credentials=ONE_WAY)
    assert dialogue.asked == (Stage.SECURITY, None)
    assert dialogue.request.flags == 0


def test_credentials_need_the_security_stage() -> None:
    with pytest.raises(ConfigError, match="security stage"):
        Dialogue(credentials=ONE_WAY, first_stage=Stage.OPERATIONAL)
    with pytest.raises(ConfigError, match="security stage"):
        Dialogue(first_stage=Stage.FULL_FEATURE)


@pytest.mark.conformance("LOGIN-3.2")
def test_a_target_that_is_not_ready_is_asked_again() -> None:
    dialogue = Dialogue()
    for _ in range(5):
        dialogue.answer(flags=0)
        assert dialogue.asked == (Stage.SECURITY, Stage.OPERATIONAL)
        assert dialogue.text == b""
    dialogue.answer()
    for _ in range(5):
        dialogue.answer(flags=OPERATIONAL_CSG)
        assert dialogue.asked == (Stage.OPERATIONAL, Stage.FULL_FEATURE)
        assert dialogue.text == b""
    assert dialogue.answer().done


@pytest.mark.conformance("LOGIN-4.1", "LOGIN-4.2", "LOGIN-5.1")
@pytest.mark.parametrize("stat_sn", [0, 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_the_target_chooses_where_stat_sn_starts(stat_sn: int) -> None:
    dialogue = Dialogue(stat_sn=stat_sn)
    assert dialogue.request.exp_stat_sn == 0
    dialogue.answer(flags=0)
    assert dialogue.request.exp_stat_sn == (stat_sn + 1) % 2**32
    dialogue.answer()
    assert dialogue.request.exp_stat_sn == (stat_sn + 2) % 2**32
    dialogue.agree()
    assert dialogue.login.exp_stat_sn == (stat_sn + 3) % 2**32


@pytest.mark.conformance("LOGIN-5.1")
@pytest.mark.parametrize("first", [0, 2**31 - 1, 2**32 - 2])
@pytest.mark.parametrize("step", [1, 2, 2**31 - 1, 2**31])
def test_a_stat_sn_that_is_skipped_ends_the_login(step: int, first: int) -> None:
    dialogue = Dialogue(stat_sn=first).answer(flags=0).answer(flags=0)
    with pytest.raises(ProtocolError, match="StatSN"):
        dialogue.answer(stat_sn=(dialogue.stat_sn + step) % 2**32)


@pytest.mark.parametrize("first", [0, 2**31 - 1, 2**32 - 2])
@pytest.mark.parametrize("step", [1, 2, 2**31 - 1])
def test_a_stat_sn_that_repeats_is_tolerated_as_nothing_is_missing(step: int, first: int) -> None:
    dialogue = Dialogue(stat_sn=first).answer(flags=0).answer(flags=0)
    due = dialogue.stat_sn
    dialogue.answer(stat_sn=(due - step) % 2**32, flags=0)
    assert dialogue.request.exp_stat_sn == due
    dialogue.stat_sn = due
    assert dialogue.answer().agree().done
    assert dialogue.login.oddities == ["the StatSN of its Login Responses does not count up"]
    assert dialogue.login.exp_stat_sn == (due + 2) % 2**32


@pytest.mark.conformance("LOGIN-8.1")
@pytest.mark.parametrize(
    "unexpected",
    [
        pdu.NopIn(0, 0xFFFFFFFF, 1, 0, 1, 1),
        pdu.ScsiResponse(0x80, 0, 0, 0x1234),
        pdu.AsyncMessage(0, 0xFFFFFFFF, 0, 1, 1, pdu.AsyncEvent.LOGOUT_REQUESTED),
        pdu.Reject(pdu.RejectReason.PROTOCOL_ERROR, 0xFFFFFFFF, 0, 1, 1),
    ],
)
def test_anything_but_a_login_response_is_a_protocol_error(unexpected: pdu.TargetPdu) -> None:
    with pytest.raises(ProtocolError, match=type(unexpected).__name__):
        Dialogue().login.receive(unexpected, b"")


@pytest.mark.conformance("LOGIN-R.12")
@pytest.mark.parametrize(
    ("dialogue", "flags"),
    [
        pytest.param(Dialogue(credentials=ONE_WAY), T | 1, id="T not asked for"),
        pytest.param(Dialogue(), T | 3, id="NSG 3 for 1"),
        pytest.param(Dialogue(), T | 2, id="NSG 2 for 1"),
        pytest.param(Dialogue(), T | 0, id="NSG 0"),
        pytest.param(operational(), T | 1 << 2 | 2, id="NSG 2 for 3"),
        pytest.param(operational(), T | 1 << 2 | 1, id="NSG is CSG"),
        pytest.param(operational(), T | 0 << 2 | 3, id="CSG 0 for 1"),
        pytest.param(Dialogue(), 1 << 2, id="CSG 1 for 0"),
        pytest.param(operational(), T | 2 << 2 | 3, id="CSG 2 for 1"),
    ],
)
def test_stages_that_were_not_asked_for_end_the_login(dialogue: Dialogue, flags: int) -> None:
    with pytest.raises(ENDED):
        dialogue.answer(flags=flags)


@pytest.mark.conformance("LOGIN-R.14")
@pytest.mark.parametrize(
    "field",
    [{"initiator_task_tag": 0x1235}, {"isid": bytes(5) + b"\1"}, {"version_active": 1}],
    ids=str,
)
def test_a_response_to_another_request_ends_the_login(field: dict[str, Any]) -> None:
    for dialogue in (Dialogue(), operational()):
        with pytest.raises(ProtocolError):
            dialogue.answer(**field)


@pytest.mark.conformance("LOGIN-R.14")
def test_responses_that_do_not_repeat_the_isid_are_tolerated() -> None:
    dialogue = Dialogue().answer(isid=bytes(6)).answer(isid=bytes(6))  # gotgt
    assert dialogue.done
    assert dialogue.login.oddities == ["the ISID of its Login Responses is 0"]


@pytest.mark.conformance("LOGIN-R.15")
def test_reserved_bits_are_ignored_and_never_set() -> None:
    dialogue = Dialogue()
    for pairs in ([("AuthMethod", "None")], [("ImmediateData", "Yes")]):
        request = dialogue.request
        assert request.flags & 0x30 == 0
        text = encode_pairs(pairs)
        response = LoginResponse(request.flags, 0, 0, request.isid, 0x77, 0x1234, dialogue.stat_sn, 1, 32)
        header = bytearray(pack(response, len(text)))
        header[0] |= 0xC0
        header[1] |= 0x30
        header[20:24] = b"\xff" * 4
        header[38:40] = b"\xff" * 2
        header[40:48] = b"\xff" * 8
        unpacked = unpack(bytes(header))
        assert isinstance(unpacked, LoginResponse)
        outcome = dialogue.login.receive(unpacked, text)
        dialogue.stat_sn += 1
        if isinstance(outcome, tuple):
            dialogue.request, dialogue.text = outcome
    assert outcome is None
    assert dialogue.login.tsih == 0x77


@pytest.mark.conformance("LOGIN-R.16")
def test_a_target_that_never_ends_the_login() -> None:
    assert MAX_LOGIN_EXCHANGES >= 6
    dialogue = operational()
    while len(dialogue.history) < MAX_LOGIN_EXCHANGES:
        dialogue.answer(flags=OPERATIONAL_CSG)
    with pytest.raises(ProtocolError, match="end"):
        dialogue.answer(flags=OPERATIONAL_CSG)


# Names, types of session, and what is declared.


@pytest.mark.conformance("LOGIN-11.1", "LOGIN-21.1")
def test_the_first_request_says_who_asks_for_whom() -> None:
    initiator = "iqn.2001-04.com.example:" + "i" * 199
    target = "iqn.2001-04.com.example:" + "t" * 199
    assert len(initiator) == len(target) == 223
    dialogue = Dialogue(initiator_name=initiator, target_name=target)
    assert dialogue.pairs == [
        ("InitiatorName", initiator),
        ("TargetName", target),
        ("SessionType", "Normal"),
        ("AuthMethod", "None"),
    ]
    dialogue.skip_security()
    assert not {"InitiatorName", "TargetName", "SessionType"} & dict(dialogue.pairs).keys()


@pytest.mark.conformance("LOGIN-11.1", "LOGIN-21.1", "LOGIN-R.23")
def test_a_discovery_session_says_so_at_once_and_offers_only_what_applies(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dialogue = Dialogue(target_name=None)
    assert dialogue.pairs == [
        ("InitiatorName", INITIATOR),
        ("SessionType", "Discovery"),
        ("AuthMethod", "None"),
    ]
    dialogue.answer(("AuthMethod", "None"))
    assert dict(dialogue.pairs) == {
        "HeaderDigest": "None,CRC32C",
        "DataDigest": "None,CRC32C",
        "MaxRecvDataSegmentLength": "1048576",
        "DefaultTime2Wait": "2",
        "DefaultTime2Retain": "0",
        "ErrorRecoveryLevel": "0",
    }
    # istgt gives no TargetPortalGroupTag here.
    assert dialogue.agree().done
    assert dialogue.login.parameters.max_connections == 1
    assert caplog.records == []


def test_a_discovery_session_calls_the_keys_of_normal_sessions_irrelevant() -> None:
    dialogue = Dialogue(target_name=None).answer()
    dialogue.answer(("MaxBurstLength", "65536"), ("InitialR2T", "Yes"), flags=OPERATIONAL_CSG)
    assert dialogue.pairs == [("MaxBurstLength", "Irrelevant"), ("InitialR2T", "Irrelevant")]


def test_a_further_connection_of_a_session_leaves_the_session_as_it_is() -> None:
    dialogue = Dialogue(tsih=9, cid=1)
    assert dialogue.request.tsih == 9
    assert "SessionType" not in dict(dialogue.pairs)
    dialogue.answer()
    assert dialogue.request.tsih == 9
    assert dict(dialogue.pairs).keys() == {"HeaderDigest", "DataDigest", "MaxRecvDataSegmentLength"}
    with pytest.raises(ProtocolError, match="TSIH"):
        dialogue.agree()
    assert Dialogue(tsih=9).answer().answer(tsih=9).done


@pytest.mark.conformance("LOGIN-21.1")
@pytest.mark.parametrize(
    "pair",
    [
        ("SessionType", "Normal"),
        ("InitiatorName", INITIATOR),
        ("InitiatorAlias", "a"),
        ("TargetName", TARGET),
        ("SendTargets", "All"),
    ],
    ids=str,
)
def test_a_target_may_not_send_what_is_the_initiators(pair: tuple[str, str]) -> None:
    for dialogue in (Dialogue(), operational()):
        with pytest.raises(ProtocolError, match=pair[0]):
            dialogue.answer(pair)


@pytest.mark.conformance("LOGIN-R.23")
@pytest.mark.parametrize(("value", "tag"), [("0", 0), ("65535", 65535), ("0x1", 1)])
def test_the_tag_of_the_portal_group(value: str, tag: int) -> None:
    dialogue = Dialogue().answer(("TargetPortalGroupTag", value)).agree()
    assert dialogue.login.parameters.target_portal_group_tag == tag


@pytest.mark.conformance("LOGIN-R.23")
@pytest.mark.parametrize("value", ["65536", "-1", "", "one"])
def test_a_bad_tag_ends_the_login(value: str) -> None:
    with pytest.raises(NegotiationError, match="TargetPortalGroupTag"):
        Dialogue().answer(("TargetPortalGroupTag", value))


@pytest.mark.conformance("LOGIN-R.23")
def test_no_tag_or_another_one_is_tolerated_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    dialogue = Dialogue().answer().agree()
    assert dialogue.login.parameters.target_portal_group_tag is None
    assert "does not say its TargetPortalGroupTag" in caplog.text
    caplog.clear()
    dialogue = operational(target_portal_group_tag=2).agree()
    assert dialogue.login.parameters.target_portal_group_tag == 1
    assert "portal group 1, where discovery said 2" in caplog.text
    caplog.clear()
    operational(target_portal_group_tag=1).agree()
    assert caplog.records == []


@pytest.mark.conformance("LOGIN-R.18", "LOGIN-6.2", "LOGIN-6.3")
@pytest.mark.parametrize(
    "pair",
    [("TargetPortalGroupTag", "1"), ("TargetAlias", "a"), ("ImmediateData", "Yes"), ("X-com.example.a", "1")],
    ids=str,
)
def test_a_key_for_the_second_time_ends_the_login(pair: tuple[str, str]) -> None:
    key, value = pair
    other = {"1": "2", "a": "b", "Yes": "No"}[value]
    for second in (value, other):
        dialogue = Dialogue().answer()
        with pytest.raises(ProtocolError, match=f"{key} for the second time"):
            dialogue.answer(pair, (key, second))
        dialogue = Dialogue().answer().answer(pair, flags=OPERATIONAL_CSG)
        with pytest.raises(ProtocolError, match=f"{key} for the second time"):
            dialogue.answer((key, second))


def test_the_alias_of_the_target_is_there_to_be_shown() -> None:
    dialogue = Dialogue().answer(("TargetAlias", "Bob-s Disk")).agree()
    assert dialogue.login.parameters.target_alias == "Bob-s Disk"


# The choice of the authentication; CHAP itself is in test_chap.


@pytest.mark.conformance("LOGIN-22.1")
def test_none_is_offered_only_where_it_is_acceptable() -> None:
    assert dict(Dialogue().pairs)["AuthMethod"] == "None"
    assert dict(Dialogue(credentials=ONE_WAY).pairs)["AuthMethod"] == "CHAP"
    dialogue = Dialogue(credentials=ONE_WAY, allow_none=True)
    assert dict(dialogue.pairs)["AuthMethod"] == "CHAP,None"
    dialogue.answer(("AuthMethod", "None"))
    assert dialogue.asked == (Stage.OPERATIONAL, Stage.FULL_FEATURE)
    assert dialogue.agree().done
    assert b"CHAP_" not in b"".join(text for _, text in dialogue.history)


@pytest.mark.conformance("LOGIN-7.3", "CHAP-R.9")
@pytest.mark.parametrize("method", ["KRB5", "SRP", "chap", "None", "CHAP,None", "", "Reject", "Irrelevant"])
def test_a_method_that_was_not_offered_ends_the_login(method: str) -> None:
    with pytest.raises(ENDED, match="AuthMethod"):
        Dialogue(credentials=ONE_WAY).answer(("AuthMethod", method))


@pytest.mark.conformance("LOGIN-7.3")
def test_a_login_without_credentials_cannot_be_made_to_use_chap() -> None:
    for answer in ("CHAP", "Reject"):
        with pytest.raises(AuthenticationError, match="AuthMethod: the target asks for .*; give -u USER"):
            Dialogue().answer(("AuthMethod", answer), flags=0)


@pytest.mark.conformance("CHAP-R.9")
@pytest.mark.parametrize(
    ("answer", "flags", "config", "reason"),
    [
        ("None", 0, {"credentials": ONE_WAY}, "does not ask for CHAP .* leave out the user"),
        ("None", T | 1, {"credentials": ONE_WAY}, "does not ask for CHAP .* leave out the user"),
        ("None", T | 1, {"credentials": MUTUAL}, "does not ask for CHAP .* leave out the user"),
        ("", T | 1, {"credentials": ONE_WAY}, "does not ask for CHAP .* leave out the user"),
        ("Reject", 0, {"credentials": ONE_WAY}, "takes no CHAP; leave out the user"),
        (
            "None",
            0,
            {"credentials": ONE_WAY, "target_name": None},
            "does not ask for CHAP .* leave out --discovery-auth chap",
        ),
        ("Reject", 0, {"credentials": ONE_WAY, "target_name": None}, "leave out --discovery-auth chap"),
    ],
)
def test_why_there_is_no_method_in_common(
    answer: str, flags: int, config: dict[str, Any], reason: str
) -> None:
    with pytest.raises(AuthenticationError, match=reason):
        Dialogue(**config).answer(*([("AuthMethod", answer)] if answer else []), flags=flags)


@pytest.mark.parametrize("answer", [(), (("AuthMethod", "None"),)])
def test_a_discovery_that_may_have_no_authentication_asks_for_the_next_stage_at_once(answer: Any) -> None:
    """LIO refuses a request without a text in the security stage, and gotgt gives no answer to AuthMethod."""
    dialogue = Dialogue(credentials=ONE_WAY, target_name=None, allow_none=True)
    assert dialogue.asked == (Stage.SECURITY, Stage.OPERATIONAL)
    dialogue.answer(*answer)
    assert dialogue.asked == (Stage.OPERATIONAL, Stage.FULL_FEATURE)
    assert dialogue.agree().done
    dialogue = Dialogue(credentials=ONE_WAY, target_name=None, allow_none=True)
    dialogue.answer(("AuthMethod", "CHAP"), flags=0)
    assert dialogue.asked == (Stage.SECURITY, None)
    assert dialogue.pairs == [("CHAP_A", "8,7,6,5")]


@pytest.mark.parametrize("credentials", [None, ONE_WAY])
def test_a_discovery_may_begin_in_the_operational_stage(credentials: Any) -> None:
    """gotgt reads SessionType there only, and closes the connection for want of a TargetName."""
    dialogue = Dialogue(credentials=credentials, target_name=None, allow_none=True)
    dialogue.answer(("AuthMethod", "None"))
    if dialogue.asked[0] is Stage.SECURITY:
        dialogue.answer()
    assert dialogue.asked[0] is Stage.OPERATIONAL
    closed = ConnectionClosed("the target closed the connection")
    config = another_try(dialogue.login, closed)
    assert config is not None
    again = Dialogue(
        **{name: getattr(config, name) for name in ("target_name", "credentials", "first_stage")}
    )
    assert again.asked == (Stage.OPERATIONAL, Stage.FULL_FEATURE)
    assert ("SessionType", "Discovery") in again.pairs
    assert "AuthMethod" not in dict(again.pairs)
    assert another_try(again.login, closed) is None


def test_what_does_not_begin_there() -> None:
    closed = ConnectionClosed("the target closed the connection")
    insisting = Dialogue(credentials=ONE_WAY, target_name=None)
    for login in (Dialogue().login, operational().login, Dialogue(target_name=None).login, insisting.login):
        assert another_try(login, closed) is None


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        ({}, "it may ask for a user: give -u USER"),
        ({"credentials": ONE_WAY}, "it may take no CHAP: leave out the user"),
        (
            {"credentials": ONE_WAY, "target_name": None},
            "it may take no CHAP: leave out --discovery-auth chap",
        ),
    ],
)
def test_what_to_do_where_the_target_refuses_without_a_reason(config: dict[str, Any], hint: str) -> None:
    login = Dialogue(**config).login
    said = str(dropped(login, ConnectionClosed("the target closed the connection")))
    assert said == f"the target closed the connection (SECURITY stage of the login); {hint}"
    with pytest.raises(LoginRefused) as caught:
        Dialogue(**config).answer(status_class=2, status_detail=1)
    assert str(caught.value) == f"the target refused the login: authentication failure; {hint} (0201h)"


def test_a_connection_that_is_closed_later_is_not_about_the_user() -> None:
    assert dropped(operational().login, ConnectionClosed("the target closed the connection")) is None


@pytest.mark.conformance("LOGIN-R.13", "CHAP-R.9")
@pytest.mark.parametrize("flags", [T | 1, T | 3])
def test_skipping_the_authentication_ends_the_login(flags: int) -> None:
    for allow_none in (False, True):
        dialogue = Dialogue(credentials=ONE_WAY, allow_none=allow_none)
        if allow_none and flags == T | 1:
            assert dialogue.answer(flags=flags).asked == (Stage.OPERATIONAL, Stage.FULL_FEATURE)
        else:
            with pytest.raises(ENDED):
                dialogue.answer(flags=flags)
        dialogue = Dialogue(credentials=ONE_WAY, allow_none=allow_none)
        if allow_none and flags == T | 1:  # LIO
            dialogue.answer(("AuthMethod", "CHAP"), flags=flags)
            assert dialogue.asked == (Stage.OPERATIONAL, Stage.FULL_FEATURE)
            assert dialogue.agree().done
            assert not dialogue.login.is_proven(ONE_WAY)
            assert dialogue.login.oddities == []
        else:
            with pytest.raises(ProtocolError):
                dialogue.answer(("AuthMethod", "CHAP"), flags=flags)
        dialogue = Dialogue(credentials=MUTUAL, allow_none=allow_none).answer(("AuthMethod", "CHAP"), flags=0)
        with pytest.raises(ProtocolError):
            dialogue.answer(("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "0x" + "00" * 16), flags=flags)


# Text in pieces.


@pytest.mark.conformance("LOGIN-R.4")
def test_a_long_answer_is_sent_in_pieces() -> None:
    unknown = [(f"X-com.example.{number:04}." + "x" * 40, "") for number in range(200)]
    dialogue = operational().answer(*unknown, flags=OPERATIONAL_CSG)
    pieces = []
    while dialogue.request.flags & C:
        assert dialogue.request.flags == C | OPERATIONAL_CSG
        assert len(dialogue.text) == 8192
        pieces.append(dialogue.text)
        dialogue.answer()
    pieces.append(dialogue.text)
    assert len(pieces) == 2
    assert dialogue.asked == (Stage.OPERATIONAL, Stage.FULL_FEATURE)
    assert b"".join(pieces) == encode_pairs([(key, "NotUnderstood") for key, _ in unknown])
    assert dialogue.answer().done


@pytest.mark.conformance("LOGIN-R.4")
def test_data_between_the_pieces_ends_the_login() -> None:
    unknown = [(f"X-com.example.{number:04}." + "x" * 40, "") for number in range(200)]
    for flags in (OPERATIONAL_CSG, OPERATIONAL_CSG | C):
        dialogue = operational().answer(*unknown, flags=OPERATIONAL_CSG)
        with pytest.raises(ProtocolError, match="C=1"):
            dialogue.answer(data=b"TargetAlias=a\0" if flags == OPERATIONAL_CSG else b"", flags=flags)


@pytest.mark.conformance("LOGIN-R.5")
@pytest.mark.parametrize("cuts", [[3], [11], [12], [14], [15], [19, 20], [3, 11, 12, 14, 15]], ids=str)
def test_pieces_are_joined_and_read_once(cuts: list[int]) -> None:
    text = b"TargetAlias=abc\0TargetPortalGroupTag=7\0"
    dialogue = Dialogue()
    for start, end in zip([0, *cuts], cuts, strict=False):
        dialogue.answer(data=text[start:end], flags=C)
        assert dialogue.text == b""
        assert not dialogue.request.flags & C
    dialogue.answer(data=text[cuts[-1] :])
    parameters = dialogue.agree().login.parameters
    assert (parameters.target_alias, parameters.target_portal_group_tag) == ("abc", 7)


@pytest.mark.conformance("LOGIN-R.5")
def test_more_to_come_and_the_next_stage_together_end_the_login() -> None:
    for dialogue in (Dialogue(), operational()):
        with pytest.raises(ProtocolError, match="both T and C"):
            dialogue.answer(flags=dialogue.request.flags | C)


@pytest.mark.conformance("LOGIN-R.17")
def test_text_is_taken_up_to_a_bound() -> None:
    # One unknown key with a value so long that the text has 8192 bytes.
    dialogue = operational().answer(("X-com.example.long", "x" * (8192 - 20)), flags=OPERATIONAL_CSG)
    assert dialogue.pairs == [("X-com.example.long", "NotUnderstood")]
    dialogue = operational()
    for _ in range(MAX_TEXT_LENGTH // 8192 - 1):
        dialogue.answer(data=b"x" * 8192, flags=OPERATIONAL_CSG | C)
    with pytest.raises(ProtocolError, match="more text"):
        dialogue.answer(data=b"x" * 8192, flags=OPERATIONAL_CSG | C)


@pytest.mark.conformance("LOGIN-R.21")
@pytest.mark.parametrize(
    "data",
    [
        b"HeaderDigest\0",
        b"=None\0",
        b"Header Digest=None\0",
        b"Header\x07=None\0",
        b"HeaderDigest=None",
        b"TargetAlias=\xff\0",
    ],
)
def test_text_that_is_not_well_formed_ends_the_login(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        operational().answer(data=data)
    assert caught.value.pdu == "Login Response"


# Statuses and redirections.


@pytest.mark.conformance("LOGIN-R.9")
@pytest.mark.parametrize("detail", [*range(0x0C), 0x0C, 0xFF])
def test_an_error_of_the_initiator_is_named(detail: int) -> None:
    for dialogue in (Dialogue(), operational()):
        with pytest.raises(LoginRefused) as caught:
            dialogue.answer(status_class=2, status_detail=detail)
        error = caught.value
        assert (error.status_class, error.status_detail) == (2, detail)
        assert STATUS.get((2, detail), "no name") in str(error)
        assert f"(02{detail:02x}h)" in str(error)


@pytest.mark.conformance("LOGIN-R.10")
@pytest.mark.parametrize("detail", [0, 1, 2, 3])
def test_an_error_of_the_target_is_named(detail: int) -> None:
    with pytest.raises(LoginRefused, match=STATUS.get((3, detail), "no name")) as caught:
        Dialogue().answer(status_class=3, status_detail=detail)
    assert caught.value.status_class == 3


@pytest.mark.conformance("LOGIN-R.10")
@pytest.mark.parametrize("status_class", [4, 0x80, 0xFF])
def test_a_class_that_does_not_exist_is_a_protocol_error(status_class: int) -> None:
    with pytest.raises(ProtocolError, match=f"Status-Class {status_class}"):
        Dialogue().answer(status_class=status_class)


@pytest.mark.conformance("LOGIN-R.11")
def test_the_status_is_looked_at_first() -> None:
    for dialogue in (Dialogue(), operational(), Dialogue(credentials=ONE_WAY)):
        with pytest.raises(LoginRefused, match="authentication failure"):
            dialogue.answer(
                data=b"rubbish",
                flags=0xFF,
                status_class=2,
                status_detail=1,
                stat_sn=0x12345678,
                version_active=9,
                isid=bytes(6),
            )


def test_the_table_of_statuses_is_that_of_the_standard() -> None:
    assert [key for key in STATUS if key[0] == 1] == [(1, 1), (1, 2)]
    assert [key for key in STATUS if key[0] == 2] == [(2, detail) for detail in range(0x0C)]
    assert [key for key in STATUS if key[0] == 3] == [(3, detail) for detail in range(3)]


def redirected(*addresses: str, detail: int = 1, dialogue: Dialogue | None = None, **config: Any) -> Redirect:
    dialogue = dialogue or Dialogue(**config)
    pairs = [("TargetAddress", address) for address in addresses]
    redirect = dialogue.answer(*pairs, status_class=1, status_detail=detail).outcome
    assert isinstance(redirect, Redirect)
    return redirect


@pytest.mark.conformance("LOGIN-R.1", "LOGIN-R.18")
def test_a_redirection_says_where_to_go(caplog: pytest.LogCaptureFixture) -> None:
    redirect = redirected("10.0.0.2:3261")
    assert redirect == Redirect((Portal("10.0.0.2", 3261),), permanent=False)
    assert caplog.records == []
    redirect = redirected("10.0.0.2:3261", "[2001:db8::2]", "other.example.com:1", detail=2)
    assert redirect.permanent
    assert redirect.portals == (
        Portal("10.0.0.2", 3261),
        Portal("2001:db8::2", 3260),
        Portal("other.example.com", 1),
    )
    assert f"{TARGET} has moved to 10.0.0.2:3261 for good" in caplog.text


@pytest.mark.conformance("LOGIN-R.2")
def test_a_redirection_is_followed_before_authentication_and_all_of_it_demanded_again() -> None:
    dialogue = Dialogue(credentials=MUTUAL).answer(("AuthMethod", "CHAP"))
    redirected("10.0.0.2", dialogue=dialogue)
    config = dialogue.login.config
    settings: dict[str, Any] = {name: getattr(config, name) for name in config.__slots__}
    again = Dialogue(**settings)
    assert again.history[0] == dialogue.history[0]
    assert dict(again.pairs)["AuthMethod"] == "CHAP"
    with pytest.raises(AuthenticationError):
        again.answer(("AuthMethod", "None"))


@pytest.mark.conformance("LOGIN-R.3")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"TargetAlias=somewhere\0",
        b"TargetAddress=\0",
        b"TargetAddress=10.0.0.2:0\0",
        b"TargetAddress=0.0.0.0\0TargetAddress=::1\0",
        b"TargetAddress=10.0.0.2",
        b"\xff\0",
    ],
)
def test_a_redirection_to_nowhere_is_a_redirection_error(data: bytes) -> None:
    with pytest.raises(RedirectionError, match=TARGET):
        Dialogue().answer(data=data, status_class=1, status_detail=1)


@pytest.mark.conformance("LOGIN-R.3")
def test_what_can_be_used_of_a_redirection_is_used() -> None:
    assert redirected("10.0.0.2,1").portals == (Portal("10.0.0.2", 3260),)
    assert redirected("rubbish:0", "10.0.0.2").portals == (Portal("10.0.0.2"),)
    assert redirected("[fe80::2]:3260", zone="eth0").portals == (Portal("fe80::2%eth0"),)


@pytest.mark.conformance("LOGIN-R.3")
def test_redirections_end() -> None:
    here, there, elsewhere = Portal("10.0.0.1"), Portal("10.0.0.2"), Portal("10.0.0.3")
    way = Redirections(here)
    assert way.follow(Redirect((there,), permanent=False)) == there
    with pytest.raises(RedirectionError, match="in a circle, back to 10.0.0.1:3260"):
        way.follow(Redirect((here,), permanent=False))

    way = Redirections(here)
    several = Redirect((here, there, elsewhere), permanent=False)
    assert way.follow(several) == there
    assert way.follow(several) == elsewhere
    with pytest.raises(RedirectionError):
        way.follow(several)

    way = Redirections(here)
    for number in range(MAX_REDIRECTIONS):
        way.follow(Redirect((Portal("10.0.1.1", 1 + number),), permanent=False))
    with pytest.raises(RedirectionError, match="still no login"):
        way.follow(Redirect((Portal("10.0.2.1"),), permanent=False))


# Anything at all.


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [*INITIATOR_OFFER, "AuthMethod", "CHAP_A", "CHAP_C", "TargetAlias", "X-a", "IFMarker"]
            ),
            st.sampled_from(
                [
                    "Yes",
                    "No",
                    "None",
                    "CRC32C",
                    "CHAP",
                    "0",
                    "1",
                    "65536",
                    "Reject",
                    "NotUnderstood",
                    "",
                    "0x",
                ]
            )
            | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
        )
    ),
    st.integers(0, 255),
    st.booleans(),
)
def test_any_answer_goes_on_or_raises_what_is_declared(
    pairs: list[tuple[str, str]], flags: int, authenticate: bool
) -> None:
    dialogue = Dialogue(credentials=MUTUAL if authenticate else None, allow_none=True)
    error = None
    for _ in range(3):
        if not dialogue.done and error is None:
            error = end_of(dialogue, encode_pairs(pairs), flags=flags)
    assert error is None or str(error).isprintable()


@given(st.binary(), st.integers(0, 5))
def test_any_bytes_are_answered_or_an_error(data: bytes, status_class: int) -> None:
    for dialogue in (Dialogue(), operational(), Dialogue(credentials=MUTUAL).answer(("AuthMethod", "CHAP"))):
        error = end_of(dialogue, data, status_class=status_class)
        assert error is None or str(error).isprintable()


def end_of(dialogue: Dialogue, data: bytes, **fields: int) -> Exception | None:
    """Answer, and return the error if there is one of the kinds that are declared."""
    try:
        dialogue.answer(data=data, **fields)
    except (ProtocolError, LoginError) as exc:
        return exc
    return None


def test_a_name_that_is_none_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ConfigError, match="initiator name"):
        LoginConfig(initiator_name="me", target_name=None, isid=ISID)
    with pytest.raises(ConfigError, match="target name"):
        LoginConfig(initiator_name=INITIATOR, target_name="disk1", isid=ISID)
