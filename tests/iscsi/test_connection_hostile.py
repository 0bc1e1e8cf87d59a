"""Targets that keep to nothing: digests, lengths, opcodes, PDUs in the wrong phase, and garbage."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import DigestError, IscsifsError, ProtocolError
from iscsifs.iscsi.bhs import BHS_LENGTH, pack
from iscsifs.iscsi.connection import Connection
from iscsifs.iscsi.framing import digest, frame
from iscsifs.iscsi.pdu import (
    FINAL,
    R2T,
    AsyncMessage,
    DataIn,
    LoginResponse,
    LogoutResponse,
    NopIn,
    NopOut,
    Reject,
    ScsiResponse,
    TargetPdu,
    TaskFunction,
    TaskManagementResponse,
    TextResponse,
)
from iscsifs.iscsi.states import ConnectionState
from iscsifs.iscsi.task import Task
from support.memory_target import LUN, MemoryTarget, config, connect, feed, pattern

DIGESTS: dict[str, Any] = {"HeaderDigest": ("CRC32C",), "DataDigest": ("CRC32C",)}
KINDS: list[type[Any]] = [
    NopIn,
    ScsiResponse,
    TaskManagementResponse,
    TextResponse,
    DataIn,
    LogoutResponse,
    R2T,
    AsyncMessage,
    Reject,
]


def with_digests(window: int = 32) -> MemoryTarget:
    return MemoryTarget(initiator=DIGESTS, target=DIGESTS, window=window)


@pytest.mark.conformance("ERR-1")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_pdu_with_a_wrong_header_digest_is_used(kind: type[Any]) -> None:
    for position in [*range(4), *range(5, BHS_LENGTH + 4)]:  # byte 4 says where the digest is
        target = with_digests()
        task = target.read(512)
        stream = bytearray(target.bytes_of(kind, initiator_task_tag=task.initiator_task_tag))
        stream[position] ^= 0x04
        with target.drop("7.8", DigestError):
            target.send_bytes(bytes(stream))
        assert target.events() == []


@pytest.mark.conformance("ERR-2")
def test_the_data_of_a_data_in_with_a_wrong_digest_are_not_delivered() -> None:
    for position in range(BHS_LENGTH + 4, BHS_LENGTH + 4 + 512 + 4):
        target = with_digests()
        task = target.read(512)
        tag = task.initiator_task_tag
        stream = bytearray(
            target.bytes_of(
                DataIn, pattern(512), flags=0x81, initiator_task_tag=tag, data_sn=0, buffer_offset=0
            )
        )
        stream[position] ^= 0x40
        with target.drop("7.8", DigestError):
            target.send_bytes(bytes(stream))
        assert (task.received, task.ended) == (0, False)


def _event(target: MemoryTarget, task: Task) -> bytes:
    return target.bytes_of(AsyncMessage, b"\0\4sense", async_event=0)


def _status(target: MemoryTarget, task: Task) -> bytes:
    return target.bytes_of(ScsiResponse, b"\0\1s", status=2, initiator_task_tag=task.initiator_task_tag)


def _reject(target: MemoryTarget, task: Task) -> bytes:
    return target.bytes_of(Reject, pack(NopOut(0, 0x5555)), reason=4)


def _text(target: MemoryTarget, task: Task) -> bytes:
    return target.bytes_of(TextResponse, b"TargetName=a\0", initiator_task_tag=task.initiator_task_tag)


@pytest.mark.conformance("ERR-3")
@pytest.mark.parametrize("make", [_event, _status, _reject, _text])
def test_nothing_of_a_pdu_with_a_wrong_data_digest_is_used(
    make: Callable[[MemoryTarget, Task], bytes],
) -> None:
    target = with_digests(window=1)
    task = target.read(512)
    waiting = target.read(512)
    target.window = 8
    stream = bytearray(make(target, task))
    stream[-1] ^= 1
    with target.drop("7.8", DigestError):
        target.send_bytes(bytes(stream))
    assert target.events() == []
    assert not waiting.on_the_wire  # had the window been taken, it would be


@pytest.mark.conformance("ERR-3")
def test_task_management_has_a_header_digest_only() -> None:
    target = with_digests()
    task = target.read(512)
    management = target.connection.requests.abort_task(task)
    _, sent = target.received()
    stream = bytearray(
        target.bytes_of(TaskManagementResponse, initiator_task_tag=sent.pdu.initiator_task_tag)
    )
    stream[-1] ^= 1
    with target.drop("7.8", DigestError):
        target.send_bytes(bytes(stream))
    assert management.response is None


@pytest.mark.conformance("HOSTILE-3")
@pytest.mark.parametrize("immediate", [0, 0x40])
@pytest.mark.parametrize("length", [0, 512])
def test_opcodes_that_no_target_sends(length: int, immediate: int) -> None:
    theirs = {0x20, 0x21, 0x22, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3F}
    for opcode in set(range(0x40)) - theirs:
        target = MemoryTarget()
        target.read(512)
        header = bytes([opcode | immediate, FINAL, 0, 0, 0]) + length.to_bytes(3, "big") + bytes(40)
        target.received()
        with pytest.raises(ProtocolError) as caught:
            target.send_bytes(header + bytes(length))
        assert caught.value.section in ("11.2.1.2", "7.13")
        assert target.nothing_received()
        assert target.events() == []


@pytest.mark.conformance("HOSTILE-4")
@pytest.mark.parametrize("words", [1, 255])
@pytest.mark.parametrize("kind", KINDS)
def test_an_ahs_is_refused_at_the_header(kind: type[Any], words: int) -> None:
    target = MemoryTarget()
    task = target.read(512)
    stream = target.bytes_of(kind, ahs=bytes(words * 4), initiator_task_tag=task.initiator_task_tag)
    with target.drop("11.2.1.5"):
        target.send_bytes(stream[:BHS_LENGTH])


@pytest.mark.conformance("HOSTILE-4")
@pytest.mark.parametrize("kind", [R2T, TaskManagementResponse, LogoutResponse])
def test_data_where_there_are_none_are_refused_at_the_header(kind: type[Any]) -> None:
    target = MemoryTarget()
    task = target.write()
    stream = target.bytes_of(kind, b"1234", initiator_task_tag=task.initiator_task_tag)
    with target.drop("11.2.1.6"):
        target.send_bytes(stream[:BHS_LENGTH])


@pytest.mark.conformance("HOSTILE-5")
@pytest.mark.parametrize("declared", [512, 8192, 1 << 20])
@pytest.mark.parametrize("kind", KINDS)
def test_a_segment_above_what_was_declared_is_refused_at_the_header(kind: type[Any], declared: int) -> None:
    for length in (declared + 1, 2**24 - 1):
        target = MemoryTarget(initiator={"MaxRecvDataSegmentLength": declared})
        task = target.read(1 << 21)
        header = bytearray(target.bytes_of(kind, initiator_task_tag=task.initiator_task_tag))
        header[5:8] = length.to_bytes(3, "big")
        with target.drop("13.12"):
            target.send_bytes(bytes(header))


@pytest.mark.conformance("HOSTILE-5")
@pytest.mark.parametrize("length", [8193, 2**24 - 1])
def test_a_segment_above_8192_during_login_is_refused_at_the_header(length: int) -> None:
    connection = connect(config())
    header = pack(LoginResponse(0, 0, 0, config().isid, 0, 0), length)
    with pytest.raises(ProtocolError, match="13.12"):
        feed(connection, header)


@pytest.mark.conformance("HOSTILE-29")
@pytest.mark.parametrize("kind", KINDS)
def test_a_pdu_of_the_full_feature_phase_during_login(kind: type[Any]) -> None:
    target = MemoryTarget(log_in=False)
    target.received()
    with pytest.raises(ProtocolError, match=r"4\.2\.4"):
        target.send(kind, initiator_task_tag=0)
    assert target.events() == []
    assert target.nothing_received()
    # Also where it is glued behind an answer after which the login goes on.
    target = MemoryTarget(log_in=False)
    stream = b"".join(frame(kind(*[0] * len(kind._fields))))
    with pytest.raises(ProtocolError, match=r"4\.2\.4"):
        target.answer_login(behind=stream)
    assert target.connection.state is ConnectionState.FREE
    assert target.events() == []
    assert target.nothing_received()


@pytest.mark.conformance("HOSTILE-29")
def test_what_is_glued_behind_the_last_answer_of_the_login_counts() -> None:
    target = MemoryTarget(log_in=False, initiator=DIGESTS, target=DIGESTS)
    target.answer_login()
    ping = pack(NopIn(LUN, 0xFFFFFFFF, 7, 2, 1, 32))
    target.answer_login(behind=ping + digest(ping))
    assert target.connection.state is ConnectionState.LOGGED_IN
    (sent,) = target.received(NopOut)
    assert sent.pdu.target_transfer_tag == 7


@pytest.mark.conformance("HOSTILE-3")
def test_a_login_response_after_the_login() -> None:
    target = MemoryTarget()
    target.read(512)
    header = pack(LoginResponse(0x87, 0, 0, bytes(6), 1, 0, 5))
    with target.drop("7.13"):
        target.send_bytes(header)


# Whatever comes, the only thing that is raised is a ProtocolError.


def busy() -> tuple[MemoryTarget, dict[int, Task]]:
    """A target with an outstanding request of every kind, and one that was aborted."""
    target = MemoryTarget(
        initiator={"InitialR2T": True, "ImmediateData": False, "MaxRecvDataSegmentLength": 65536}
    )
    connection = target.connection
    aborted = target.read(512)
    target.received()
    connection.requests.abort_task(aborted)
    (abort,) = target.received()
    target.manage(abort)
    tasks = [target.read(4096), target.write(pattern(65536)), target.submit(Task(LUN, bytes(6)))]
    partly = target.read(4096)
    target.data_in(partly, 0, pattern(512), 0)
    started = target.write(pattern(65536))
    target.r2t(started, 8192, 512)
    connection.requests.ping()
    connection.requests.abort_task(tasks[0])
    connection.requests.reset(TaskFunction.LOGICAL_UNIT_RESET, LUN)
    connection.requests.send_text([("SendTargets", "All")])
    target.received()
    target.events()
    return target, {task.initiator_task_tag: task for task in (*tasks, partly, started)}


def near(*values: int, bits: int = 32) -> st.SearchStrategy[int]:
    """Numbers of which many are, or nearly are, one of *values*."""
    return st.one_of(
        st.sampled_from([value & (1 << bits) - 1 for value in values]), st.integers(0, (1 << bits) - 1)
    )


SMALL = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0xFFFFFFFF]
FIELDS = {
    "flags": near(0, FINAL, 0x81, 0x83, 0xC0, 0x40, bits=8),
    "response": near(0, 1, 2, 255, bits=8),
    "status": near(0, 2, 8, bits=8),
    "reason": near(*range(13), bits=8),
    "lun": near(LUN, 0, bits=64),
    "initiator_task_tag": near(*SMALL),
    "target_transfer_tag": near(0, 0xFFFFFFFF),
    "stat_sn": near(2, 3, 4, 5),
    "exp_cmd_sn": near(*SMALL),
    "max_cmd_sn": near(*SMALL, 100),
    "exp_data_sn": near(0, 1, 2),
    "data_sn": near(0, 1, 2),
    "r2t_sn": near(0, 1, 2),
    "buffer_offset": near(0, 512, 4096, 8192, 0xFFFFFFFF),
    "desired_data_transfer_length": near(0, 512, 65536),
    "residual_count": near(0, 512, 4096, 65536),
    "bidirectional_residual_count": near(0),
    "snack_tag": near(0),
    "async_event": near(*range(6), 248, 255, bits=8),
    "async_vcode": near(0, bits=8),
    "parameter1": near(0, 1, bits=16),
    "parameter2": near(0, 1, bits=16),
    "parameter3": near(0, 1, bits=16),
    "time2wait": near(0, 1, bits=16),
    "time2retain": near(0, 1, bits=16),
}


@st.composite
def pdus(draw: st.DrawFn, kinds: list[type[Any]]) -> tuple[TargetPdu, bytes]:
    kind = draw(st.sampled_from(kinds))
    pdu = kind(**{name: draw(FIELDS[name]) for name in kind._fields})
    rejected = st.builds(
        lambda opcode, tag: bytes([opcode]) + bytes(15) + tag.to_bytes(4, "big") + bytes(28),
        st.integers(0, 255),
        near(*SMALL),
    )
    data = draw(
        st.one_of(
            st.just(b""),
            st.binary(max_size=60),
            st.sampled_from(
                [bytes(512), bytes(4096), b"TargetName=iqn.2001-04.com.example:a\0", b"\0\x12" + bytes(18)]
            ),
            rejected,
        )
    )
    return pdu, data


def survives(target: MemoryTarget, stream: bytes, tasks: dict[int, Task], pieces: int | None) -> None:
    """Let *stream* arrive; all that may happen is that the connection ends, or that requests do."""
    memory = {tag: bytes(task.data_out) for tag, task in tasks.items()}
    try:
        feed(target.connection, stream, None if pieces is None else itertools.repeat(pieces))
    except ProtocolError:
        assert not target.connection.data_to_send()
    else:
        with pytest.raises(IscsifsError):
            target.connection.receive_eof()
    ended = [event for event in target.events() if isinstance(event, Task)]
    left = target.connection.take_unfinished()
    assert sorted(map(id, [*ended, *left])) == sorted(map(id, tasks.values()))
    for task in ended:
        assert task.ended
        length = len(task.data_in)
        assert task.failure or task.status or task.received in (length, length - max(task.residual, 0))
    assert {tag: bytes(task.data_out) for tag, task in tasks.items()} == memory


@given(st.lists(pdus(KINDS), min_size=1, max_size=4), st.sampled_from([None, 1, 7, 48]))
def test_random_pdus_of_every_kind_end_the_connection_or_do_no_harm(
    sent: list[tuple[TargetPdu, bytes]], pieces: int | None
) -> None:
    target, tasks = busy()
    survives(target, b"".join(b"".join(frame(pdu, data)) for pdu, data in sent), tasks, pieces)


@given(st.binary(max_size=200), st.sampled_from([None, 1]))
def test_garbage_after_the_login_ends_the_connection_or_does_no_harm(
    garbage: bytes, pieces: int | None
) -> None:
    target, tasks = busy()
    survives(target, garbage, tasks, pieces)


@given(st.sampled_from(KINDS), st.binary(min_size=44, max_size=44), st.booleans())
def test_headers_with_random_fields_end_the_connection_or_do_no_harm(
    kind: type[Any], fields: bytes, tagged: bool
) -> None:
    target, tasks = busy()
    opcode = pack(kind(*[0] * len(kind._fields)))[0]
    header = bytearray(bytes([opcode]) + fields[:3] + bytes(4) + fields[4:])
    if tagged:
        header[16:20] = random.Random(fields).choice([*tasks]).to_bytes(4, "big")
    survives(target, bytes(header), tasks, None)


@given(st.binary(max_size=200), st.integers(0, 60))
def test_garbage_during_the_login_is_an_error_of_ours(garbage: bytes, cut: int) -> None:
    def answer(connection: Connection) -> bytes:
        header = connection.data_to_send()[0]
        return pack(LoginResponse(header[1], 0, 0, config().isid, 0, 0), len(garbage))

    connection = connect(config())
    stream = answer(connection)
    try:
        feed(connection, stream[:cut] + garbage + bytes(-len(garbage) % 4))
    except IscsifsError:
        assert not connection.data_to_send()
    assert connection.state in (ConnectionState.IN_LOGIN, ConnectionState.FREE)


# How the bytes are cut makes no difference.


def conversation(target: MemoryTarget) -> None:
    """Some of everything that an honest target does."""
    connection = target.connection
    read, write, other = target.read(5000), target.write(pattern(300_000)), target.submit(Task(LUN, bytes(6)))
    target.ping()
    target.data_in(read, 0, pattern(4096), 0, flags=0)
    target.r2t(write, 1 << 18, 300_000 - (1 << 18))
    target.data_in(read, 4096, pattern(904), 1, flags=0x81)
    target.respond(other, b"\0\x03abc", status=2)
    target.respond(write)
    target.report(255, b"vendor")
    connection.requests.ping()
    text = connection.requests.send_text([("SendTargets", "All")])
    late = target.read(512)
    connection.requests.abort_task(late)
    sent = {type(one.pdu).__name__: one for one in target.received()}
    target.send(NopIn, initiator_task_tag=sent["NopOut"].pdu.initiator_task_tag)
    tag = sent["TextRequest"].pdu.initiator_task_tag
    target.send(TextResponse, b"TargetNa", flags=0, initiator_task_tag=tag, target_transfer_tag=3)
    target.send(TextResponse, b"me=iqn.2001-04.com.example:a\0", initiator_task_tag=tag)
    assert text.pairs
    target.manage(sent["TaskManagementRequest"])
    target.respond(late, b"\0\1")
    connection.requests.log_out()
    (logout,) = [one for one in target.received() if type(one.pdu).__name__ == "LogoutRequest"]
    target.log_out(logout)


def tell(target: MemoryTarget) -> list[Any]:
    """The events, in a form that can be compared."""
    return [
        (
            type(event).__name__,
            *(str(getattr(event, name, None)) for name in ("status", "sense", "failure", "pairs")),
        )
        if not isinstance(event, Task)
        else (event.status, event.sense, str(event.failure), event.data_in.tobytes())
        for event in target.events()
    ]


@given(
    st.one_of(
        st.integers(1, 60).map(itertools.repeat),
        st.lists(st.integers(1, 6000), min_size=1, max_size=30).map(itertools.cycle),
    ),
    st.booleans(),
)
def test_any_cut_of_a_conversation_gives_the_same_events_and_answers(pieces: Any, digests: bool) -> None:
    offer: dict[str, Any] = DIGESTS if digests else {}
    whole, cut = [MemoryTarget(initiator=offer, target=offer) for _ in range(2)]
    cut.pieces = pieces
    results = []
    for target in (whole, cut):
        said: list[bytes] = []
        drain = target.connection.data_to_send

        def heard(drain: Any = drain, said: list[bytes] = said) -> Any:
            out = drain()
            said.append(b"".join(out))
            return out

        target.connection.data_to_send = heard  # type: ignore[method-assign]
        conversation(target)
        results.append((tell(target), b"".join(said), bytes(target.stream)))
    assert results[0] == results[1]
    assert len(results[0][0]) == 9
