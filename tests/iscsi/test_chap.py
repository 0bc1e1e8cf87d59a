"""CHAP from the initiator's side, against a scripted target (RFC 7143 sections 9.2.1 and 12.1.3)."""

import hashlib
from base64 import b64encode
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import (
    AuthenticationError,
    ConfigError,
    ConnectionClosed,
    IscsifsError,
    LoginRefused,
    NegotiationError,
    ProtocolError,
    TransportError,
)
from iscsifs.iscsi.chap import ALGORITHMS, ChallengeMemory, ChapTarget, Credentials, response
from iscsifs.iscsi.login import another_try
from iscsifs.iscsi.pdu import LoginFlag, Stage
from iscsifs.iscsi.text import Pair, parse_binary
from support.dialogue import MUTUAL, ONE_WAY, SECRET, TARGET_SECRET, Dialogue

CHALLENGE = bytes(range(16))


def chap(**config: Any) -> Dialogue:
    """A login that has offered its algorithms."""
    dialogue = Dialogue(**{"credentials": ONE_WAY} | config).answer(("AuthMethod", "CHAP"))
    assert dialogue.asked == (Stage.SECURITY, None)
    return dialogue


def challenge(algorithm: str = "5", identifier: str = "7", data: str = "0x" + CHALLENGE.hex()) -> list[Pair]:
    return [("CHAP_A", algorithm), ("CHAP_I", identifier), ("CHAP_C", data)]


def challenged(algorithm: int = 5, **config: Any) -> Dialogue:
    """A login that has answered the challenge, and asks for the next stage."""
    dialogue = chap(**config).answer(*challenge(str(algorithm)))
    assert dialogue.asked == (Stage.SECURITY, Stage.OPERATIONAL)
    return dialogue


def proof(dialogue: Dialogue, algorithm: int = 5, secret: bytes = TARGET_SECRET) -> bytes:
    """What a target that knows *secret* answers to the initiator's challenge."""
    asked = dict(dialogue.pairs)
    return response(algorithm, int(asked["CHAP_I"]), secret, parse_binary(asked["CHAP_C"]))


def aborts(dialogue: Dialogue, key: str, *pairs: Pair, **fields: Any) -> None:
    """Answer with *pairs*, and look for an authentication error that names *key*."""
    with pytest.raises(AuthenticationError, match=key) as caught:
        dialogue.answer(*pairs, **fields)
    assert caught.value.key == key
    assert str(caught.value).isprintable()


# The algorithms.


@pytest.mark.parametrize(
    ("algorithm", "digest"),
    [
        # MD5 is the published example of hashcat's mode 4800, the others are of "openssl dgst".
        (5, "afd09efdd6f8ca9f18ec77c5869788c3"),
        (6, "a6af6b9429a56f1352d5e2aec8e12439ac852e62"),
        (7, "fb13b90d12089b413f6dbffee9690b0979aeed1ea8c9bfc5152047cb6eb39143"),
        (8, "327e1539adeb9c5c2425d36238ffb9492c4246e308ce1b827be6392a250df6cc"),
    ],
)
def test_known_responses(algorithm: int, digest: str) -> None:
    data = bytes.fromhex("01020304050607080910111213141516")
    assert response(algorithm, 1, b"hashcat", data).hex() == digest


@pytest.mark.conformance("CHAP-1.1")
@pytest.mark.parametrize("written", ["5", "0x5", "0X05"])
def test_the_algorithms_are_offered_in_order_of_preference(written: str) -> None:
    dialogue = chap()
    assert dialogue.pairs == [("CHAP_A", "8,7,6,5")]
    dialogue.answer(*challenge(written))
    expected = hashlib.md5(b"\x07" + SECRET + CHALLENGE).hexdigest()
    assert dialogue.pairs == [("CHAP_N", "alice"), ("CHAP_R", "0x" + expected)]
    assert dialogue.asked == (Stage.SECURITY, Stage.OPERATIONAL)
    assert dialogue.answer().agree().done


@pytest.mark.conformance("CHAP-1.1")
@pytest.mark.parametrize("algorithms", [(), (8, 7), (5, 4), (5, 9)])
def test_md5_is_always_among_the_algorithms(algorithms: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="5 always among them"):
        chap(algorithms=algorithms)


@pytest.mark.conformance("CHAP-R.7")
@pytest.mark.parametrize("algorithm", [5, 6, 7, 8])
def test_each_algorithm_in_both_directions(algorithm: int) -> None:
    dialogue = challenged(algorithm, credentials=MUTUAL)
    name = {5: "md5", 6: "sha1", 7: "sha256", 8: "sha3_256"}[algorithm]
    asked = dict(dialogue.pairs)
    assert asked["CHAP_R"] == "0x" + hashlib.new(name, b"\x07" + SECRET + CHALLENGE).hexdigest()
    answer = bytes([int(asked["CHAP_I"])]) + TARGET_SECRET + parse_binary(asked["CHAP_C"])
    dialogue.answer(("CHAP_N", "storage"), ("CHAP_R", "0x" + hashlib.new(name, answer).hexdigest()))
    assert dialogue.agree().done
    assert dialogue.login.chap is not None
    assert dialogue.login.chap.algorithm == algorithm


@pytest.mark.conformance("CHAP-1.2.1", "CHAP-1.2.2")
@pytest.mark.parametrize("value", ["4", "9", "129", "8", "MD5", "5x", "", "5,7", "-5", "05", "0"])
def test_an_algorithm_that_was_not_offered_or_is_none(value: str) -> None:
    aborts(chap(algorithms=(7, 5)), "CHAP_A", *challenge(value))


@pytest.mark.conformance("CHAP-1.3")
def test_the_choice_of_the_algorithm_at_the_wrong_time() -> None:
    aborts(Dialogue(credentials=ONE_WAY), "CHAP_A", ("AuthMethod", "CHAP"), ("CHAP_A", "5"))
    aborts(Dialogue(credentials=ONE_WAY), "CHAP_A", ("CHAP_A", "5"))
    aborts(challenged(), "CHAP_A", ("CHAP_A", "5"))
    dialogue = challenged(credentials=MUTUAL)
    pairs = [("CHAP_N", "storage"), ("CHAP_R", "0x" + proof(dialogue).hex())]
    aborts(dialogue, "CHAP_A", *pairs, ("CHAP_A", "5"))
    aborts(chap(), "CHAP_A", *challenge(), ("CHAP_A", "5"))


# The identifier.


@pytest.mark.conformance("CHAP-2.1")
@pytest.mark.parametrize(("written", "octet"), [("0", 0), ("1", 1), ("255", 255), ("0xff", 255)])
def test_the_identifier_is_one_octet_of_the_hash(written: str, octet: int) -> None:
    dialogue = chap().answer(*challenge(identifier=written))
    expected = hashlib.md5(bytes([octet]) + SECRET + CHALLENGE).hexdigest()
    assert dict(dialogue.pairs)["CHAP_R"] == "0x" + expected


@pytest.mark.conformance("CHAP-2.2")
@pytest.mark.parametrize("value", ["256", "-1", "abc", ""])
def test_what_is_no_identifier(value: str) -> None:
    aborts(chap(), "CHAP_I", *challenge(identifier=value))


@pytest.mark.conformance("CHAP-2.3")
def test_an_identifier_in_another_step_or_not_at_all() -> None:
    algorithm, identifier, data = challenge()
    aborts(chap(), "CHAP_I", algorithm, data)
    aborts(chap(), "CHAP_C", algorithm, identifier)
    aborts(Dialogue(credentials=ONE_WAY), "CHAP_I", ("AuthMethod", "CHAP"), identifier)
    aborts(challenged(), "CHAP_I", identifier)


@pytest.mark.conformance("CHAP-2.4")
def test_the_target_may_repeat_its_identifier_and_ours_changes() -> None:
    memory = ChallengeMemory()
    ours = []
    for number in range(600):
        dialogue = chap(credentials=MUTUAL, memory=memory)
        dialogue.answer(*challenge(data=f"0x{number + 1:08x}"))
        ours.append(int(dict(dialogue.pairs)["CHAP_I"]))
        assert dict(dialogue.pairs)["CHAP_N"] == "alice"
    assert all(0 <= identifier <= 255 for identifier in ours)
    assert all(first != second for first, second in pairwise(ours))


@pytest.mark.conformance("CHAP-2.5")
def test_the_target_may_use_our_identifier() -> None:
    memory = ChallengeMemory()
    dialogue = chap(credentials=MUTUAL, memory=memory).answer(*challenge())
    identifier = dict(dialogue.pairs)["CHAP_I"]
    again = chap(credentials=MUTUAL, memory=memory).answer(*challenge(identifier=identifier, data="0xaa"))
    expected = hashlib.md5(bytes([int(identifier)]) + SECRET + b"\xaa").hexdigest()
    assert dict(again.pairs)["CHAP_R"] == "0x" + expected


@pytest.mark.conformance("CHAP-2.6")
def test_each_direction_has_its_own_identifier() -> None:
    dialogue = chap(credentials=MUTUAL)
    dialogue.answer(*challenge(identifier="200"))
    asked = dict(dialogue.pairs)
    assert asked["CHAP_I"] != "200"
    assert asked["CHAP_R"] == "0x" + hashlib.md5(bytes([200]) + SECRET + CHALLENGE).hexdigest()
    with_theirs = response(5, 200, TARGET_SECRET, parse_binary(asked["CHAP_C"]))
    with_ours = proof(dialogue)
    assert with_theirs != with_ours
    dialogue.answer(("CHAP_N", "storage"), ("CHAP_R", "0x" + with_ours.hex()))
    assert dialogue.asked == (Stage.OPERATIONAL, Stage.FULL_FEATURE)


# The challenge.


@pytest.mark.conformance("CHAP-3.1", "CHAP-3.2")
@pytest.mark.parametrize("length", [1, 1024])
def test_challenges_of_any_length(length: int) -> None:
    data = bytes(number % 256 for number in range(length))
    expected = "0x" + hashlib.md5(b"\x07" + SECRET + data).hexdigest()
    for written in ("0x" + data.hex(), "0b" + b64encode(data).decode()):
        assert dict(chap().answer(*challenge(data=written)).pairs)["CHAP_R"] == expected


@pytest.mark.conformance("CHAP-3.2")
def test_our_challenges_are_random_and_long() -> None:
    asked: list[int] = []

    def random_bytes(size: int) -> bytes:
        asked.append(size)
        return bytes([0xC5]) * size

    dialogue = challenged(credentials=MUTUAL, random_bytes=random_bytes)
    ours = parse_binary(dict(dialogue.pairs)["CHAP_C"])
    assert len(ours) >= 16
    assert ours == b"\xc5" * len(ours)
    assert len(ours) in asked


@pytest.mark.conformance("CHAP-3.3", "CHAP-3.4")
@pytest.mark.parametrize(
    "value", ["0x" + "00" * 1025, "0b" + b64encode(bytes(1025)).decode(), "0x", "0b", ""]
)
def test_a_challenge_that_is_too_long_or_empty(value: str) -> None:
    aborts(chap(), "CHAP_C", *challenge(data=value))


@pytest.mark.conformance("CHAP-3.5")
def test_a_challenge_at_the_wrong_time() -> None:
    data = challenge()[2]
    aborts(Dialogue(credentials=ONE_WAY), "CHAP_C", ("AuthMethod", "CHAP"), data)
    aborts(chap(), "CHAP_A", challenge()[1], data)
    aborts(challenged(), "CHAP_C", data)
    dialogue = challenged(credentials=MUTUAL)
    aborts(dialogue, "CHAP_C", ("CHAP_N", "storage"), ("CHAP_R", "0x" + proof(dialogue).hex()), data)


@pytest.mark.conformance("CHAP-3.6.1", "CHAP-3.6.2")
@pytest.mark.parametrize("parallel", [True, False])
def test_a_challenge_that_comes_again_is_answered_and_logged(
    parallel: bool, caplog: pytest.LogCaptureFixture
) -> None:
    memory = ChallengeMemory()
    if parallel:
        first, second = chap(memory=memory), chap(memory=memory)
        first.answer(*challenge())
    else:
        first = chap(memory=memory).answer(*challenge()).answer().agree()
        assert first.done
        second = chap(memory=memory)
    assert "CHAP" not in caplog.text
    second.answer(*challenge())
    assert "CHAP_R" in dict(second.pairs)
    assert "the same challenge again" in caplog.text


@pytest.mark.conformance("CHAP-3.6.3", "CHAP-3.6.4")
@pytest.mark.parametrize("parallel", [True, False])
def test_we_never_use_a_challenge_twice(parallel: bool) -> None:
    # A source that gives every number three times: the memory, not luck, has to keep them apart.
    numbers = count()
    memory = ChallengeMemory()

    def random_bytes(size: int) -> bytes:
        return (next(numbers) // 3).to_bytes(size, "big") if size > 1 else b"\0"

    logins = [chap(credentials=MUTUAL, memory=memory, random_bytes=random_bytes) for _ in range(1000)]
    seen = set()
    for number, dialogue in enumerate(logins):
        if not parallel:
            dialogue = chap(credentials=MUTUAL, memory=memory, random_bytes=random_bytes)
        dialogue.answer(*challenge(data=f"0x{number:08x}"))
        seen.add(dict(dialogue.pairs)["CHAP_C"])
    assert len(seen) == 1000


def test_a_source_that_gives_nothing_new_ends_the_login() -> None:
    memory = ChallengeMemory()
    challenged(credentials=MUTUAL, memory=memory, random_bytes=bytes)
    with pytest.raises(AuthenticationError, match="random numbers"):
        chap(credentials=MUTUAL, memory=memory, random_bytes=bytes).answer(*challenge())


def test_the_memory_is_bounded() -> None:
    memory = ChallengeMemory()
    numbers = count(1)
    first = memory.issue(lambda size: next(numbers).to_bytes(size, "big"))[1]
    assert memory.is_ours(first)
    for _ in range(5000):
        memory.issue(lambda size: next(numbers).to_bytes(size, "big"))
    assert not memory.is_ours(first)


@pytest.mark.conformance("CHAP-3.7")
def test_the_targets_own_challenge_is_never_sent_back() -> None:
    theirs = bytes(range(32))
    draws = iter([theirs, theirs, b"\x55" * 32, b"\0"])
    dialogue = chap(credentials=MUTUAL, random_bytes=lambda size: next(draws)[:size])
    dialogue.answer(*challenge(data="0x" + theirs.hex()))
    assert dict(dialogue.pairs)["CHAP_C"] == "0x" + "55" * 32


@pytest.mark.conformance("CHAP-3.8")
@pytest.mark.parametrize("base64", [True, False])
def test_a_challenge_that_is_reflected(base64: bool) -> None:
    memory = ChallengeMemory()
    one, other = chap(credentials=MUTUAL, memory=memory), chap(credentials=MUTUAL, memory=memory)
    one.answer(*challenge())
    ours = dict(one.pairs)["CHAP_C"]
    if base64:
        ours = "0b" + b64encode(parse_binary(ours)).decode()
    aborts(other, "CHAP_C", *challenge(data=ours))  # on a parallel login
    one.answer(("CHAP_N", "storage"), ("CHAP_R", "0x" + proof(one).hex())).agree()
    assert one.done
    aborts(chap(memory=memory), "CHAP_C", *challenge(data=ours))  # on the next one
    assert b"CHAP_R" not in other.history[-1][1]


# Names.


@pytest.mark.conformance("CHAP-4.1", "CHAP-4.2", "CHAP-4.3", "CHAP-4.7")
@pytest.mark.parametrize("name", ["storage", "s" * 255, "s", "\u00e4" * 127, "a b=c"])
def test_the_target_proves_itself_by_the_configured_name(name: str) -> None:
    credentials = Credentials("alice", SECRET, name, TARGET_SECRET)
    memory = ChallengeMemory()
    for _ in range(2):
        dialogue = challenged(credentials=credentials, memory=memory)
        dialogue.answer(("CHAP_N", name), ("CHAP_R", "0x" + proof(dialogue).hex())).agree()
        assert dialogue.done
        assert dialogue.login.chap is not None
        assert dialogue.login.chap.target_user == name


@pytest.mark.conformance("CHAP-4.4", "CHAP-4.6", "CHAP-4.8")
@pytest.mark.parametrize("name", ["s" * 256, "s" * 8000, "", "alice", "Storage", "storage2", "\x1b[2J"])
@pytest.mark.parametrize("configured", ["storage", None])
def test_another_name_than_the_configured_one(name: str, configured: str | None) -> None:
    dialogue = challenged(credentials=Credentials("alice", SECRET, configured, TARGET_SECRET))
    pairs = [("CHAP_N", name), ("CHAP_R", "0x" + proof(dialogue).hex())]
    if configured is None and name in ("Storage", "storage2", "\x1b[2J"):
        # The first login of a session: any name that goes with the secret.
        assert dialogue.answer(*pairs).agree().done
    else:
        aborts(dialogue, "CHAP_N", *pairs)


@pytest.mark.conformance("CHAP-4.5", "CHAP-5.3")
def test_a_proof_without_its_half_or_in_an_earlier_step() -> None:
    dialogue = challenged(credentials=MUTUAL)
    aborts(dialogue, "CHAP_R", ("CHAP_N", "storage"))
    dialogue = challenged(credentials=MUTUAL)
    aborts(dialogue, "CHAP_N", ("CHAP_R", "0x" + proof(dialogue).hex()))
    aborts(chap(credentials=MUTUAL), "CHAP_N", *challenge(), ("CHAP_N", "storage"))
    aborts(challenged(), "CHAP_N", ("CHAP_N", "storage"))


# The proof of the target.


@pytest.mark.conformance("CHAP-5.1", "CHAP-R.6")
@pytest.mark.parametrize("secret", [b"another secret", SECRET])
def test_a_wrong_proof(secret: bytes) -> None:
    dialogue = challenged(credentials=MUTUAL)
    sent = len(dialogue.history)
    aborts(dialogue, "CHAP_R", ("CHAP_N", "storage"), ("CHAP_R", "0x" + proof(dialogue, secret=secret).hex()))
    assert len(dialogue.history) == sent


def test_a_proof_with_our_own_secret_is_called_a_reflection() -> None:
    dialogue = challenged(credentials=MUTUAL)
    with pytest.raises(AuthenticationError, match="reflection"):
        dialogue.answer(("CHAP_N", "storage"), ("CHAP_R", "0x" + proof(dialogue, secret=SECRET).hex()))


@pytest.mark.conformance("CHAP-5.2", "CHAP-5.3")
@pytest.mark.parametrize("algorithm", [5, 6, 7, 8])
@pytest.mark.parametrize("length", [0, 1, -1, +1, 1024, 1025])
def test_a_proof_of_another_length_than_the_hash(algorithm: int, length: int) -> None:
    dialogue = challenged(algorithm, credentials=MUTUAL)
    good = proof(dialogue, algorithm)
    bad = {-1: good[:-1], +1: good + b"\0", 0: b""}.get(length, good * 40)[: length if length > 1 else None]
    aborts(dialogue, "CHAP_R", ("CHAP_N", "storage"), ("CHAP_R", "0x" + bad.hex()))


@pytest.mark.conformance("CHAP-R.1", "CHAP-R.2")
def test_the_ways_to_write_binary_values() -> None:
    data = bytes.fromhex("0abcdef0123456789abcdef012345678")
    digits = data.hex()
    mixed = "".join(c.upper() if i % 3 else c for i, c in enumerate(digits))
    hexadecimal = [p + d for p in ("0x", "0X") for d in (digits, digits.upper(), mixed, digits[1:])]
    for written in hexadecimal:
        dialogue = chap().answer(*challenge(data=written))
        expected = hashlib.md5(b"\x07" + SECRET + data).hexdigest()
        assert dict(dialogue.pairs)["CHAP_R"] == "0x" + expected
    for prefix in ("0b", "0B"):
        for size in (16, 17, 18):
            long = bytes(range(size))
            dialogue = chap().answer(*challenge(data=prefix + b64encode(long).decode()))
            expected = hashlib.md5(b"\x07" + SECRET + long).hexdigest()
            assert dict(dialogue.pairs)["CHAP_R"] == "0x" + expected
    for algorithm in ALGORITHMS:
        for write in (
            lambda answer: "0X" + answer.hex().upper(),
            lambda answer: "0b" + b64encode(answer).decode(),
            lambda answer: "0B" + b64encode(answer).decode(),
        ):
            dialogue = challenged(algorithm, credentials=MUTUAL)
            answer = write(proof(dialogue, algorithm))
            assert dialogue.answer(("CHAP_N", "storage"), ("CHAP_R", answer)).agree().done


@pytest.mark.conformance("CHAP-R.3")
def test_binary_values_are_read_strictly() -> None:
    plain = "0123456789abcdef0123456789abcdef"
    bad = [f"0x{plain} ", f" 0x{plain}", f"0x {plain}", "0x0123 4567", "0x01_23", f"0x{plain}g", "0x\uff11"]
    bad += [
        plain,
        "1234567890",
        "0bAAAAA",
        "0bAAA",
        "0bAA=",
        "0bA===",
        "0bAAAA=",
        "0bAA AA",
        "0bAA_A",
        "0bAA-A",
    ]
    for value in bad:
        aborts(chap(), "CHAP_C", *challenge(data=value))
        aborts(challenged(credentials=MUTUAL), "CHAP_R", ("CHAP_N", "storage"), ("CHAP_R", value))


@pytest.mark.conformance("CHAP-R.10")
@pytest.mark.parametrize("flags", [0, LoginFlag.TRANSIT | Stage.OPERATIONAL])
def test_a_target_that_has_not_proved_itself(flags: int) -> None:
    aborts(challenged(credentials=MUTUAL), "CHAP_N", flags=flags)
    with pytest.raises(ProtocolError):
        challenged(credentials=MUTUAL).answer(flags=LoginFlag.TRANSIT | Stage.FULL_FEATURE)


def test_a_target_may_take_its_time_after_its_proof() -> None:
    dialogue = challenged(credentials=MUTUAL)
    dialogue.answer(("CHAP_N", "storage"), ("CHAP_R", "0x" + proof(dialogue).hex()), flags=0)
    assert dialogue.asked == (Stage.SECURITY, Stage.OPERATIONAL)
    assert dialogue.text == b""
    aborts(dialogue, "CHAP_R", ("CHAP_R", "0x00"))


# Configuration.


@pytest.mark.conformance("CHAP-R.4")
def test_secrets_have_96_bits() -> None:
    with pytest.raises(ConfigError, match="11 bytes; give at least 12"):
        Credentials("alice", b"x" * 11)
    with pytest.raises(ConfigError, match="target secret has 11 bytes"):
        Credentials("alice", b"x" * 12, "storage", b"y" * 11)
    for length in (12, 16, 64):
        dialogue = challenged(credentials=Credentials("alice", b"x" * length))
        expected = hashlib.md5(b"\x07" + b"x" * length + CHALLENGE).hexdigest()
        assert dict(dialogue.pairs)["CHAP_R"] == "0x" + expected


@pytest.mark.conformance("CHAP-R.5")
def test_one_secret_for_both_directions_is_refused() -> None:
    with pytest.raises(ConfigError, match="the same for both directions"):
        Credentials("alice", SECRET, "storage", SECRET)
    with pytest.raises(ConfigError, match="the same for both directions"):
        Credentials("alice", SECRET, "alice", TARGET_SECRET)


@pytest.mark.parametrize("user", ["", "a" * 256, "\u00e4" * 128])
def test_a_user_has_1_to_255_bytes(user: str) -> None:
    with pytest.raises(ConfigError, match="CHAP user"):
        Credentials(user, SECRET)
    with pytest.raises(ConfigError, match="CHAP target user"):
        Credentials("alice", SECRET, user, TARGET_SECRET)


def test_a_target_user_needs_a_secret() -> None:
    with pytest.raises(ConfigError, match="no target secret"):
        Credentials("alice", SECRET, "storage")


def test_secrets_are_not_printed() -> None:
    text = repr(MUTUAL)
    assert SECRET.decode() not in text
    assert TARGET_SECRET.decode() not in text


@pytest.mark.conformance("CHAP-R.8")
@pytest.mark.parametrize("detail", [0, 1])
@pytest.mark.parametrize("algorithm", [6, 7, 8])
def test_md5_gets_one_try_after_another_algorithm_failed(algorithm: int, detail: int) -> None:
    dialogue = challenged(algorithm)
    with pytest.raises(LoginRefused) as caught:
        dialogue.answer(status_class=2, status_detail=detail)
    retry = another_try(dialogue.login, caught.value)
    assert retry is not None
    assert retry.algorithms == (5,)

    again = chap(algorithms=retry.algorithms)
    assert again.pairs == [("CHAP_A", "5")]
    again.answer(*challenge("5"))
    with pytest.raises(LoginRefused) as caught:
        again.answer(status_class=2, status_detail=detail)
    assert another_try(again.login, caught.value) is None


@pytest.mark.conformance("CHAP-R.8")
def test_nothing_else_is_tried_again() -> None:
    before_any_offer = Dialogue(credentials=ONE_WAY)
    assert another_try(before_any_offer.login, LoginRefused(2, 1, "")) is None
    for refused in (LoginRefused(2, 3, "not found"), LoginRefused(3, 1, "unavailable")):
        assert another_try(challenged(7).login, refused) is None
    assert another_try(challenged(5).login, LoginRefused(2, 1, "")) is None
    assert another_try(challenged(7).login, TransportError("no route to host")) is None


@pytest.mark.conformance("CHAP-R.8")
@pytest.mark.parametrize(
    "ending", [ConnectionClosed("closed"), LoginRefused(2, 0, ""), LoginRefused(2, 1, "")]
)
def test_md5_gets_one_try_alone_where_the_target_chooses_none_of_a_list(ending: IscsifsError) -> None:
    offered = chap()
    assert offered.pairs == [("CHAP_A", "8,7,6,5")]
    retry = another_try(offered.login, ending)
    assert retry is not None
    assert retry.algorithms == (5,)
    assert retry.credentials == ONE_WAY
    again = chap(algorithms=retry.algorithms)
    assert another_try(again.login, ending) is None


@pytest.mark.conformance("CHAP-R.8", "CHAP-R.10")
@pytest.mark.parametrize(
    "ending", [ConnectionClosed("closed"), LoginRefused(2, 0, ""), LoginRefused(2, 1, "")]
)
def test_what_need_not_prove_itself_gets_a_try_without_a_challenge(ending: IscsifsError) -> None:
    """A target, which has to, does not."""
    discovery = Dialogue(credentials=MUTUAL, target_name=None, allow_none=True)
    discovery.answer(("AuthMethod", "CHAP"), flags=0)
    retry = another_try(discovery.answer(*challenge("5")).login, ending)
    assert retry is not None
    assert retry.credentials == ONE_WAY
    assert retry.allow_none
    target = chap(credentials=MUTUAL).answer(*challenge("5"))
    assert another_try(target.login, ending) is None
    target = chap(credentials=MUTUAL).answer(*challenge("7"))
    retry = another_try(target.login, ending)
    assert retry is not None
    assert retry.credentials == MUTUAL


@pytest.mark.conformance("CHAP-R.10")
def test_a_target_without_a_secret_to_prove_itself_by() -> None:
    """LIO leaves CHAP_N and CHAP_R out of the last step."""
    with pytest.raises(AuthenticationError, match="the target does not prove itself"):
        chap(credentials=MUTUAL).answer(*challenge("5")).answer()
    discovery = Dialogue(credentials=MUTUAL, target_name=None, allow_none=True)
    discovery.answer(("AuthMethod", "CHAP"), flags=0)
    discovery.answer(*challenge("5")).answer()
    assert discovery.asked == (Stage.OPERATIONAL, Stage.FULL_FEATURE)
    assert discovery.agree().done


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R", "SRP_U"]),
            st.sampled_from(["5", "8", "0", "0x00", "0bAAAA", "0x", "storage", ""])
            | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
        ),
        max_size=6,
    )
)
def test_any_step_goes_on_or_is_an_authentication_error(pairs: list[Pair]) -> None:
    for dialogue in (chap(credentials=MUTUAL), challenged(credentials=MUTUAL)):
        error = None
        try:
            dialogue.answer(*pairs)
        except AuthenticationError as exc:
            error = str(exc)
        assert error is None or error.isprintable()
        assert dialogue.asked[0] is Stage.SECURITY


# The target's side.


def target(own: tuple[str, bytes] | None = ("storage", TARGET_SECRET)) -> ChapTarget:
    numbers = count(1)
    return ChapTarget(
        {"alice": SECRET},
        own,
        (5, 7),
        lambda size: (next(numbers) % 256 ** min(size, 2)).to_bytes(size, "big"),
        ChallengeMemory(),
    )


def test_the_target_takes_the_first_algorithm_that_it_has() -> None:
    assert dict(target().challenge([("CHAP_A", "8,7,6,5")]))["CHAP_A"] == "7"
    with pytest.raises(AuthenticationError, match="CHAP_A"):
        target().challenge([("CHAP_A", "8,6")])
    for pairs in ([("CHAP_A", "")], [("CHAP_A", "5,x")], [], [("CHAP_A", "5"), ("CHAP_N", "alice")]):
        with pytest.raises(NegotiationError):
            target().challenge(pairs)


def test_the_target_believes_the_secret_and_proves_its_own() -> None:
    peer = target()
    asked = dict(peer.challenge([("CHAP_A", "5")]))
    right = response(5, int(asked["CHAP_I"]), SECRET, parse_binary(asked["CHAP_C"]))
    ours = bytes(range(32))
    answer = peer.verify(
        [("CHAP_N", "alice"), ("CHAP_R", "0x" + right.hex()), ("CHAP_I", "9"), ("CHAP_C", "0x" + ours.hex())]
    )
    assert answer == [("CHAP_N", "storage"), ("CHAP_R", "0x" + response(5, 9, TARGET_SECRET, ours).hex())]
    assert peer.user == "alice"


@pytest.mark.parametrize(
    ("pairs", "key"),
    [
        ([("CHAP_N", "mallory")], "CHAP_R"),
        ([("CHAP_R", "0x" + "00" * 16)], "CHAP_R"),
        ([("CHAP_I", "9"), ("CHAP_C", "reflected")], "CHAP_C"),
    ],
)
def test_whom_the_target_does_not_believe(pairs: list[Pair], key: str) -> None:
    peer = target()
    asked = dict(peer.challenge([("CHAP_A", "5")]))
    right = response(5, int(asked["CHAP_I"]), SECRET, parse_binary(asked["CHAP_C"]))
    step = {"CHAP_N": "alice", "CHAP_R": "0x" + right.hex()} | dict(pairs)
    if step.get("CHAP_C"):
        step["CHAP_C"] = asked["CHAP_C"]
    with pytest.raises(AuthenticationError, match=key):
        peer.verify(list(step.items()))


def test_a_target_without_a_secret_of_its_own_cannot_prove_itself() -> None:
    peer = target(own=None)
    asked = dict(peer.challenge([("CHAP_A", "5")]))
    right = response(5, int(asked["CHAP_I"]), SECRET, parse_binary(asked["CHAP_C"]))
    with pytest.raises(AuthenticationError, match="no secret to prove itself"):
        peer.verify(
            [("CHAP_N", "alice"), ("CHAP_R", "0x" + right.hex()), ("CHAP_I", "9"), ("CHAP_C", "0xabcdef")]
        )
