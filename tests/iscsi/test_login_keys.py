"""The keys of a login, one after the other (RFC 7143 sections 6.2 and 13)."""

import pytest

from iscsifs.errors import ConfigError, NegotiationError, ProtocolError
from iscsifs.iscsi.keys import INITIATOR_OFFER, Value
from iscsifs.iscsi.pdu import LoginFlag, Stage
from support.dialogue import MUTUAL, Dialogue, operational, settle

ENDED = (ProtocolError, NegotiationError)
T = LoginFlag.TRANSIT
OPERATIONAL_CSG = Stage.OPERATIONAL << 2


# Operational keys, one after the other.


@pytest.mark.conformance("LOGIN-9.1", "LOGIN-16.3")
def test_the_default_offer() -> None:
    dialogue = Dialogue(credentials=MUTUAL)
    assert not {"HeaderDigest", "DataDigest"} & dict(dialogue.pairs).keys()
    offer = dict(operational().pairs)
    assert offer["HeaderDigest"] == offer["DataDigest"] == "None,CRC32C"
    assert 512 <= int(offer["FirstBurstLength"]) <= int(offer["MaxBurstLength"]) <= 2**24 - 1
    assert offer["ErrorRecoveryLevel"] == "0"
    assert offer["MaxConnections"] == "1"
    assert not [key for key in offer if key.startswith(("IFMark", "OFMark", "X"))]


@pytest.mark.conformance("LOGIN-9.1", "LOGIN-7.2")
@pytest.mark.parametrize("digests", [("CRC32C",), ("CRC32C", "None"), ("None", "CRC32C"), ("None",)])
def test_digests_are_offered_in_the_order_of_preference(digests: tuple[str, ...]) -> None:
    dialogue = operational(offer={"HeaderDigest": digests})
    assert dialogue.pairs == [("HeaderDigest", ",".join(digests))]


@pytest.mark.conformance("LOGIN-9.2")
@pytest.mark.parametrize("pick", ["CRC32C", "None"])
def test_the_target_picks_a_digest(pick: str) -> None:
    parameters = settle(HeaderDigest=pick).login.parameters
    assert parameters.header_digest == (pick == "CRC32C")
    assert not parameters.data_digest
    assert settle(DataDigest=pick).login.parameters.data_digest == (pick == "CRC32C")


@pytest.mark.conformance("LOGIN-9.2")
@pytest.mark.parametrize("pick", ["CRC32", "crc32c", "CRC32C,None", "None,CRC32C", ""])
def test_a_digest_that_was_not_offered_ends_the_login(pick: str) -> None:
    with pytest.raises(ENDED, match="HeaderDigest"):
        settle(HeaderDigest=pick)
    with pytest.raises(ProtocolError, match="not offered"):
        settle({"DataDigest": ("None",)}, DataDigest="CRC32C")


@pytest.mark.conformance("LOGIN-10.1")
def test_max_connections() -> None:
    assert settle({"MaxConnections": 4}, MaxConnections="2").login.parameters.max_connections == 2
    assert settle({"MaxConnections": 4}, MaxConnections="4").login.parameters.max_connections == 4
    for value in ("5", "0"):
        with pytest.raises(NegotiationError, match="MaxConnections"):
            settle({"MaxConnections": 4}, MaxConnections=value)


@pytest.mark.conformance("LOGIN-13.1")
@pytest.mark.parametrize("offered", [True, False])
@pytest.mark.parametrize("answered", [True, False])
def test_booleans_are_settled_by_their_function(offered: bool, answered: bool) -> None:
    answer = "Yes" if answered else "No"
    if answered or not offered:
        parameters = settle({"InitialR2T": offered}, InitialR2T=answer).login.parameters
        assert parameters.initial_r2t == (offered or answered)
    if offered or not answered:
        parameters = settle({"ImmediateData": offered}, ImmediateData=answer).login.parameters
        assert parameters.immediate_data == (offered and answered)


@pytest.mark.conformance("LOGIN-13.2")
def test_a_boolean_that_the_offer_decides_needs_no_answer() -> None:
    dialogue = operational(offer={"InitialR2T": True, "ImmediateData": False}).answer()
    assert dialogue.login.parameters.initial_r2t
    assert not dialogue.login.parameters.immediate_data


@pytest.mark.conformance("LOGIN-13.3")
@pytest.mark.parametrize(
    ("key", "offered", "answer"),
    [
        ("InitialR2T", True, "No"),
        ("ImmediateData", False, "Yes"),
        ("DataPDUInOrder", True, "No"),
        ("DataSequenceInOrder", True, "No"),
    ],
)
def test_an_answer_that_its_function_cannot_give_ends_the_login(key: str, offered: bool, answer: str) -> None:
    with pytest.raises(NegotiationError, match=key):
        settle({key: offered}, **{key: answer})


@pytest.mark.conformance("LOGIN-7.5")
@pytest.mark.parametrize("value", ["Maybe", "yes", ""])
def test_what_is_no_boolean_ends_the_login(value: str) -> None:
    with pytest.raises(NegotiationError, match="ImmediateData"):
        settle(ImmediateData=value)


@pytest.mark.conformance("LOGIN-14.1")
def test_each_side_has_its_own_max_recv_data_segment_length() -> None:
    for value, expected in ("512", 512), (str(2**24 - 1), 2**24 - 1):
        parameters = settle(MaxRecvDataSegmentLength=value).login.parameters
        assert parameters.max_send_data_segment_length == expected
        assert parameters.max_recv_data_segment_length == 1 << 20
    parameters = operational().agree(without=("MaxRecvDataSegmentLength",)).login.parameters
    assert parameters.max_send_data_segment_length == 8192
    for value in ("0", "511", str(2**24)):
        with pytest.raises(NegotiationError, match="MaxRecvDataSegmentLength"):
            settle(MaxRecvDataSegmentLength=value)


MINIMUM = [
    ("MaxBurstLength", "max_burst_length", 1 << 20, [("262144", 262144), (str(1 << 20), 1 << 20)]),
    ("FirstBurstLength", "first_burst_length", 65536, [("512", 512), ("65536", 65536)]),
    ("DefaultTime2Retain", "default_time2retain", 20, [("0", 0), ("20", 20)]),
    ("MaxOutstandingR2T", "max_outstanding_r2t", 8, [("1", 1), ("8", 8)]),
    ("ErrorRecoveryLevel", "error_recovery_level", 0, [("0", 0)]),
]
TOO_HIGH = [
    pytest.param(
        "MaxBurstLength", 1 << 20, [str((1 << 20) + 1), "511"], marks=pytest.mark.conformance("LOGIN-15.1")
    ),
    pytest.param("FirstBurstLength", 65536, ["65537", "511"], marks=pytest.mark.conformance("LOGIN-7.4")),
    pytest.param("DefaultTime2Retain", 20, ["21", "3601"], marks=pytest.mark.conformance("LOGIN-17.1")),
    pytest.param("MaxOutstandingR2T", 8, ["9", "0"], marks=pytest.mark.conformance("LOGIN-19.1")),
    pytest.param("ErrorRecoveryLevel", 0, ["1", "2", "3"], marks=pytest.mark.conformance("LOGIN-20.1")),
    pytest.param("ErrorRecoveryLevel", 2, ["3"], marks=pytest.mark.conformance("LOGIN-20.1")),
]


@pytest.mark.conformance("LOGIN-15.1", "LOGIN-16.1", "LOGIN-17.1", "LOGIN-19.1", "LOGIN-20.1")
@pytest.mark.parametrize(("key", "attribute", "offered", "answers"), MINIMUM)
def test_a_number_up_to_the_offer_is_taken(
    key: str, attribute: str, offered: int, answers: list[tuple[str, int]]
) -> None:
    for answer, expected in answers:
        parameters = settle({key: offered}, **{key: answer}).login.parameters
        assert getattr(parameters, attribute) == expected


@pytest.mark.parametrize(("key", "offered", "answers"), TOO_HIGH)
def test_a_number_above_the_offer_or_out_of_range_ends_the_login(
    key: str, offered: int, answers: list[str]
) -> None:
    for answer in answers:
        with pytest.raises(NegotiationError, match=key):
            settle({key: offered}, **{key: answer})


@pytest.mark.conformance("LOGIN-18.1")
def test_default_time2wait_is_the_higher_one() -> None:
    assert settle({"DefaultTime2Wait": 2}, DefaultTime2Wait="5").login.parameters.default_time2wait == 5
    for value in ("1", "3601"):
        with pytest.raises(NegotiationError, match="DefaultTime2Wait"):
            settle({"DefaultTime2Wait": 2}, DefaultTime2Wait=value)


@pytest.mark.conformance("LOGIN-16.2")
def test_a_first_burst_above_the_burst_ends_the_login() -> None:
    with pytest.raises(NegotiationError, match="FirstBurstLength"):
        settle(MaxBurstLength="65536", FirstBurstLength="65537")
    # A default that nobody has settled is no contradiction, but keeps to the burst all the same.
    dialogue = operational(offer={"MaxBurstLength": 65536}).agree(MaxBurstLength="4096")
    assert dialogue.login.parameters.first_burst_length == 4096


@pytest.mark.conformance("LOGIN-16.3")
@pytest.mark.parametrize(
    ("offer", "reason"),
    [
        ({"MaxBurstLength": 65536, "FirstBurstLength": 65537}, "above MaxBurstLength"),
        ({"MaxBurstLength": 511}, "512"),
        ({"FirstBurstLength": 2**24}, "16777215"),
        ({"InitialR2T": 1}, "Yes or No"),
        ({"MaxConnections": True}, "a number"),
        ({"HeaderDigest": "CRC32C"}, "a list"),
        ({"HeaderDigest": ()}, "a list"),
        ({"AuthMethod": ("CHAP",)}, "not a key that can be offered"),
        ({"TargetAlias": "x"}, "not a key that can be offered"),
        ({"IFMarker": False}, "not a key that can be offered"),
    ],
    ids=str,
)
def test_an_offer_that_cannot_be_made_is_refused(offer: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Dialogue(offer=offer)


@pytest.mark.conformance("LOGIN-R.19", "LOGIN-R.20")
def test_numbers_are_read_strictly() -> None:
    for value in ("8192", "0x2000", "0X2000", "0x00002000"):
        assert settle(MaxRecvDataSegmentLength=value).login.parameters.max_send_data_segment_length == 8192
    for value in (
        "010",
        "+1",
        "-1",
        "8192 ",
        "8_192",
        "8e3",
        "0x",
        "",
        str(2**64),
        "\uff18\uff11\uff19\uff12",
    ):
        with pytest.raises(NegotiationError, match="MaxRecvDataSegmentLength"):
            settle(MaxRecvDataSegmentLength=value)


@pytest.mark.conformance("LOGIN-R.7")
def test_reject_and_irrelevant_leave_the_default() -> None:
    parameters = settle(HeaderDigest="Reject", MaxBurstLength="Reject").login.parameters
    assert not parameters.header_digest
    assert parameters.max_burst_length == 262144
    parameters = settle(InitialR2T="Yes", ImmediateData="No", FirstBurstLength="Irrelevant").login.parameters
    assert parameters.first_burst_length == 65536
    with pytest.raises(NegotiationError, match="HeaderDigest"):
        settle({"HeaderDigest": ("CRC32C",)}, HeaderDigest="Reject")


@pytest.mark.conformance("LOGIN-R.27")
def test_what_is_not_answered_keeps_its_default() -> None:
    offer = {
        **INITIATOR_OFFER,
        "MaxConnections": 4,
        "ErrorRecoveryLevel": 2,
        "DefaultTime2Wait": 10,
        "DataPDUInOrder": False,
        "DataSequenceInOrder": False,
    }
    parameters = operational(offer=offer).answer().login.parameters
    assert parameters.initial_r2t
    assert parameters.max_connections == 1
    assert parameters.error_recovery_level == 0
    assert (parameters.default_time2wait, parameters.default_time2retain) == (2, 20)
    assert (parameters.max_burst_length, parameters.first_burst_length) == (262144, 65536)
    assert parameters.max_outstanding_r2t == 1
    assert parameters.data_pdu_in_order
    assert parameters.data_sequence_in_order
    assert (parameters.max_send_data_segment_length, parameters.max_recv_data_segment_length) == (
        8192,
        1 << 20,
    )
    assert not parameters.header_digest
    with pytest.raises(NegotiationError, match="no agreement on CRC32C"):
        operational(offer={"DataDigest": ("CRC32C",)}).answer()


# Keys that the target sends by itself.


@pytest.mark.conformance("LOGIN-7.6", "LOGIN-R.22")
def test_unknown_keys_are_not_understood() -> None:
    keys = ("X-com.example.foo", "1"), ("NewKey", "x" * 300), ("K" * 63, "")
    for dialogue in (Dialogue(), operational()):
        stage = dialogue.asked[0]
        dialogue.answer(*keys, ("X#NodeArchitecture", "ExampleOS/v1234"), flags=stage << 2)
        assert dialogue.pairs == [(key, "NotUnderstood") for key, _ in keys]
        with pytest.raises(ProtocolError, match="not a key"):
            dialogue.answer(("K" * 64, ""), flags=stage << 2)
    # T=1 leaves no place for an answer, and nobody waits for one.
    assert operational().agree(*keys).done


@pytest.mark.conformance("LOGIN-7.6")
def test_the_architecture_of_the_target_changes_nothing() -> None:
    silent = operational().agree().login.parameters
    assert operational().agree(("X#NodeArchitecture", "ExampleOS/v1234")).login.parameters == silent


@pytest.mark.conformance("LOGIN-R.22")
def test_a_simple_value_has_255_bytes() -> None:
    dialogue = Dialogue().answer(("TargetAlias", "\u00e4" * 127 + "a"))
    assert dialogue.agree().login.parameters.target_alias == "\u00e4" * 127 + "a"
    with pytest.raises(NegotiationError, match="255 bytes"):
        Dialogue().answer(("TargetAlias", "\u00e4" * 128))
    dialogue = operational().answer(("TaskReporting", "RFC3720," + "x" * 255), flags=OPERATIONAL_CSG)
    assert dialogue.pairs == [("TaskReporting", "RFC3720")]
    with pytest.raises(NegotiationError, match="255 bytes"):
        operational().answer(("TaskReporting", "RFC3720," + "x" * 256), flags=OPERATIONAL_CSG)


@pytest.mark.conformance("LOGIN-12.1")
def test_markers_are_rejected() -> None:
    markers = [("IFMarker", "Yes"), ("OFMarker", "No"), ("IFMarkInt", "1~2"), ("OFMarkInt", "2048")]
    dialogue = operational().answer(*markers, flags=OPERATIONAL_CSG)
    assert dialogue.pairs == [(key, "Reject") for key, _ in markers]
    with pytest.raises(ProtocolError, match="needs an answer"):
        operational().answer(markers[0])


@pytest.mark.conformance("LOGIN-R.8")
@pytest.mark.parametrize("value", ["Reject", "Irrelevant", "NotUnderstood"])
def test_words_that_only_answer_cannot_be_proposed(value: str) -> None:
    for key in ("MaxConnections", "IFMarker", "TaskReporting", "X-com.example.foo", "TargetAlias"):
        with pytest.raises(ProtocolError, match="can only be an answer"):
            operational(offer={}).answer((key, value), flags=OPERATIONAL_CSG)


@pytest.mark.conformance("LOGIN-7.2", "LOGIN-R.24", "LOGIN-R.26")
@pytest.mark.parametrize(
    ("key", "proposed", "answer", "attribute", "result"),
    [
        ("HeaderDigest", "None,CRC32C", "None", "header_digest", False),
        ("HeaderDigest", "X-new,None", "None", "header_digest", False),
        ("HeaderDigest", "CRC32C", "Reject", "header_digest", False),
        ("TaskReporting", "FastAbort,RFC3720", "RFC3720", "task_reporting", "RFC3720"),
        ("InitialR2T", "No", "Yes", "initial_r2t", True),
        ("InitialR2T", "Yes", "Yes", "initial_r2t", True),
        ("ImmediateData", "Yes", "Yes", "immediate_data", True),
        ("ImmediateData", "No", "No", "immediate_data", False),
        ("MaxBurstLength", "16776192", "262144", "max_burst_length", 262144),
        ("MaxBurstLength", "65536", "65536", "max_burst_length", 65536),
        ("MaxBurstLength", "511", "Reject", "max_burst_length", 262144),
        ("DefaultTime2Wait", "60", "60", "default_time2wait", 60),
        ("DefaultTime2Wait", "0", "2", "default_time2wait", 2),
        ("DefaultTime2Wait", "3601", "Reject", "default_time2wait", 2),
        ("ErrorRecoveryLevel", "2", "0", "error_recovery_level", 0),
        ("iSCSIProtocolLevel", "1", "1", None, None),
        ("iSCSIProtocolLevel", "2", "1", None, None),
    ],
)
def test_proposals_of_the_target_are_answered_by_the_rule_of_their_key(
    key: str, proposed: str, answer: str, attribute: str | None, result: object
) -> None:
    dialogue = operational(offer={}).answer((key, proposed), flags=OPERATIONAL_CSG)
    assert dialogue.pairs == [(key, answer)]
    assert dialogue.asked == (Stage.OPERATIONAL, Stage.FULL_FEATURE)
    assert dialogue.answer().done
    if attribute:
        assert getattr(dialogue.login.parameters, attribute) == result


@pytest.mark.conformance("LOGIN-R.26")
def test_a_proposal_where_no_answer_can_be_given_ends_the_login() -> None:
    for proposal in ("MaxBurstLength", "65536"), ("InitialR2T", "No"), ("ImmediateData", "Yes"):
        with pytest.raises(ProtocolError, match="needs an answer"):
            operational(offer={}).answer(proposal)
    # Nothing is due where the proposal decides by itself.
    dialogue = operational(offer={}).answer(("ImmediateData", "No"), ("InitialR2T", "Yes"))
    assert dialogue.done
    assert not dialogue.login.parameters.immediate_data


@pytest.mark.conformance("LOGIN-R.26")
@pytest.mark.parametrize("key", ["MaxBurstLength", "MaxRecvDataSegmentLength", "HeaderDigest"])
def test_an_operational_key_in_the_security_stage_ends_the_login(key: str) -> None:
    for flags in (0, T | Stage.OPERATIONAL):
        with pytest.raises(ProtocolError, match=f"{key} in the security stage"):
            Dialogue().answer((key, "65536"), flags=flags)


def test_a_security_key_in_the_operational_stage_ends_the_login() -> None:
    with pytest.raises(ProtocolError, match="AuthMethod"):
        Dialogue(first_stage=Stage.OPERATIONAL).answer(("AuthMethod", "None"))
    with pytest.raises(ProtocolError, match="CHAP_A in the operational stage"):
        operational().answer(("CHAP_A", "5"))


@pytest.mark.conformance("LOGIN-R.6")
def test_a_key_of_the_standard_that_is_not_understood_ends_the_login() -> None:
    for key in (
        "HeaderDigest",
        "MaxBurstLength",
        "InitialR2T",
        "ErrorRecoveryLevel",
        "MaxRecvDataSegmentLength",
    ):
        with pytest.raises(ProtocolError, match=f"{key}=NotUnderstood"):
            settle(**{key: "NotUnderstood"})


@pytest.mark.conformance("LOGIN-R.6")
def test_a_later_key_that_is_not_understood_is_off() -> None:
    offer: dict[str, Value] = {"TaskReporting": ("ResponseFence", "RFC3720"), "iSCSIProtocolLevel": 1}
    parameters = settle(
        offer, TaskReporting="NotUnderstood", iSCSIProtocolLevel="NotUnderstood"
    ).login.parameters
    assert parameters.task_reporting == "RFC3720"


@pytest.mark.conformance("LOGIN-R.25")
def test_the_target_picks_how_it_reports_tasks() -> None:
    offer = {"TaskReporting": ("FastAbort", "ResponseFence", "RFC3720")}
    for value in ("FastAbort", "ResponseFence", "RFC3720"):
        assert settle(offer, TaskReporting=value).login.parameters.task_reporting == value
    with pytest.raises(ProtocolError, match="not offered"):
        settle(offer, TaskReporting="SlowAbort")
    with pytest.raises(ProtocolError, match="not offered"):
        settle({"TaskReporting": ("RFC3720", "ResponseFence")}, TaskReporting="FastAbort")
