"""Pings, text, asynchronous messages and logouts of a connection: RFC 7143 sections 11.9 to 11.19."""

import pytest

from iscsifs.errors import TransportError
from iscsifs.iscsi import requests
from iscsifs.iscsi.events import ConnectionDropped, LogoutRequested, Noted, SenseReported, Text
from iscsifs.iscsi.pdu import (
    FINAL,
    R2T,
    RESERVED_TAG,
    DataIn,
    DataOut,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    NopOut,
    ScsiCommand,
    ScsiResponse,
    TaskFunction,
    TextFlag,
    TextRequest,
    TextResponse,
)
from iscsifs.limits import MAX_ANSWER_LENGTH, MAX_ANSWER_PIECES, MAX_UNSENT_ANSWERS
from support.memory_target import LUN, MemoryTarget, Sent, config, connect, feed, plain_task

FIRST_VENDOR_EVENT = 248


@pytest.mark.conformance("FFP-15.1")
@pytest.mark.parametrize("tag", [0, 7, 0x80000000, 0xFFFFFFFE])
def test_a_ping_is_answered_once(tag: int) -> None:
    target = MemoryTarget()
    target.submit(plain_task())
    target.received(ScsiCommand)
    target.ping(tag, lun=0x4003_0000_0000_0000)
    (sent,) = target.received(NopOut)
    assert sent.pdu == NopOut(0x4003_0000_0000_0000, RESERVED_TAG, tag, 2, target.stat_sn, immediate=True)
    assert sent.data == b""
    target.send(NopIn)
    assert target.nothing_received()
    assert target.events() == []


@pytest.mark.conformance("HOSTILE-30")
def test_pings_that_cannot_be() -> None:
    target = MemoryTarget()
    task = target.read(512)
    with target.drop("11.19"):  # both tags
        target.ping(7, initiator_task_tag=task.initiator_task_tag)
    target = MemoryTarget()
    target.connection.requests.ping()
    (sent,) = target.received(NopOut)
    with target.drop("11.19"):  # both tags, and the first is that of a ping
        target.ping(7, initiator_task_tag=sent.pdu.initiator_task_tag)
    target = MemoryTarget()
    with target.drop("11.19"):
        target.send(NopIn, b"ping", target_transfer_tag=7)
    target = MemoryTarget()
    with target.drop("4.2.5.3"):
        target.send(NopIn, initiator_task_tag=0x5555)
    target = MemoryTarget()
    task = target.read(512)
    with target.drop("4.2.5.3"):  # an echo of a command
        target.send(NopIn, initiator_task_tag=task.initiator_task_tag)


@pytest.mark.conformance("HOSTILE-26")
def test_a_flood_of_pings_is_answered_within_bounds() -> None:
    target = MemoryTarget()
    for _ in range(3):  # answers that are taken are not counted
        target.send_bytes(
            b"".join(target.bytes_of(NopIn, target_transfer_tag=7) for _ in range(MAX_UNSENT_ANSWERS))
        )
        target.received(*[NopOut] * MAX_UNSENT_ANSWERS)
    with target.drop("11.18"):
        target.send_bytes(
            b"".join(target.bytes_of(NopIn, target_transfer_tag=7) for _ in range(MAX_UNSENT_ANSWERS + 1))
        )


# Asynchronous messages.


@pytest.mark.conformance("FFP-14.1")
def test_a_target_asks_to_be_logged_out_of() -> None:
    target = MemoryTarget(window=1, cid=3)
    task = target.read(512)
    waiting = target.read(512)
    target.received(ScsiCommand)
    target.window = 8  # a window that opens at the same time changes nothing
    target.report(1, parameter3=5)
    assert target.events() == [LogoutRequested(5)]
    target.submit(plain_task())
    target.send(NopIn)
    assert target.nothing_received()
    logout = target.connection.requests.log_out()
    (sent,) = target.received(LogoutRequest)
    assert sent.pdu.reason == 0
    assert sent.pdu.cid == 3
    assert sent.pdu.immediate
    assert sent.pdu.exp_stat_sn == target.stat_sn
    assert (sent.data, sent.ahs) == (b"", b"")
    target.log_out(sent)
    assert target.events() == [logout]
    assert list(target.connection.tasks())[:2] == [task, waiting]


@pytest.mark.conformance("HOSTILE-28")
def test_a_flood_of_messages_leads_to_one_logout() -> None:
    target = MemoryTarget()
    for _ in range(200):
        target.report(1, parameter3=3)
        target.report(255)
        for event in target.events():
            if isinstance(event, LogoutRequested):
                target.connection.requests.log_out()
    target.received(LogoutRequest)


@pytest.mark.conformance("HOSTILE-28", "ERR-27")
def test_a_flood_of_wishes_to_negotiate_leads_to_one_exchange_at_a_time() -> None:
    target = MemoryTarget()
    for _ in range(200):
        target.report(4, parameter3=3)
    (sent,) = target.received(TextRequest)
    target.send(TextResponse, initiator_task_tag=sent.pdu.initiator_task_tag)
    target.report(4, parameter3=3)
    target.received(TextRequest)


@pytest.mark.conformance("ERR-26")
@pytest.mark.parametrize("event", [2, 3])
def test_a_target_gives_the_connection_up(event: int) -> None:
    target = MemoryTarget(cid=9, window=1)
    target.read(512)
    target.read(512)
    target.received(ScsiCommand)
    target.window = 8
    target.report(event, parameter1=9, parameter2=1, parameter3=2)
    assert target.events() == [ConnectionDropped(time2wait=1)]
    target.send(NopIn)
    assert target.nothing_received()


@pytest.mark.conformance("ERR-26")
def test_a_target_gives_up_a_connection_that_is_not_ours() -> None:
    target = MemoryTarget(cid=9)
    target.report(2, parameter1=8, parameter2=1)
    (event,) = target.events()
    assert isinstance(event, Noted)
    target.submit(plain_task())
    target.received(ScsiCommand)


@pytest.mark.conformance("ERR-27")
def test_a_target_wants_to_negotiate() -> None:
    target = MemoryTarget()
    target.submit(plain_task())
    target.received(ScsiCommand)
    target.report(4, parameter3=3)
    (sent,) = target.received(TextRequest)
    assert sent.pdu == TextRequest(
        FINAL, 0, sent.pdu.initiator_task_tag, RESERVED_TAG, 2, target.stat_sn, immediate=True
    )
    assert sent.data == b""
    before = target.parameters
    target.send(TextResponse, initiator_task_tag=sent.pdu.initiator_task_tag)
    (text,) = target.events()
    assert isinstance(text, Text)
    assert text.pairs == []
    assert target.parameters is before


@pytest.mark.conformance("ERR-28")
@pytest.mark.parametrize("event", [0, FIRST_VENDOR_EVENT, 251, 255])
def test_events_that_need_no_action(event: int) -> None:
    target = MemoryTarget()
    sense = bytes(range(18))
    data = b"\0\x12" + sense + b"and what a vendor adds"
    target.report(event, data, lun=LUN)
    (told,) = target.events()
    assert told == SenseReported(LUN, sense) if event == 0 else isinstance(told, Noted)
    task = target.submit(plain_task())
    (command,) = target.received(ScsiCommand)
    assert command.pdu.exp_stat_sn == target.stat_sn  # it counts
    target.respond(task)
    assert target.events() == [task]


@pytest.mark.conformance("ERR-28")
@pytest.mark.parametrize("event", [5, 6, 7, 100, FIRST_VENDOR_EVENT - 1])
def test_events_that_were_not_agreed_on(event: int) -> None:
    target = MemoryTarget()
    target.read(512)
    with target.drop("11.9.1"):
        target.report(event)


def test_sense_of_a_message_that_ends_behind_its_segment() -> None:
    target = MemoryTarget()
    with target.drop("11.4.7"):
        target.report(0, b"\0\x13" + bytes(18))


# Text.


def ask(target: MemoryTarget, *, immediate: bool = False) -> tuple[Text, Sent]:
    text = target.connection.requests.send_text([("SendTargets", "All")], immediate=immediate)
    (sent,) = target.received(TextRequest)
    return text, sent


@pytest.mark.conformance("DISC-1", "DISC-2", "DISC-3", "FFP-2.1")
@pytest.mark.parametrize("flags", [0, TextFlag.CONTINUE])
@pytest.mark.parametrize("size", [1, 7, 512])
@pytest.mark.parametrize("immediate", [False, True])
def test_an_answer_in_many_pieces_is_joined(flags: int, size: int, immediate: bool) -> None:
    target = MemoryTarget()
    text, sent = ask(target, immediate=immediate)
    assert sent.data == b"SendTargets=All\0"
    first = sent.pdu
    answer = b"TargetName=iqn.2001-04.com.example:disk\0TargetAddress=192.0.2.1:3260,1\0" * 3
    pieces = [answer[start : start + size] for start in range(0, len(answer), size)]
    for number, piece in enumerate(pieces[:-1]):
        target.send(
            TextResponse,
            piece,
            flags=flags,
            lun=number << 48,
            initiator_task_tag=first.initiator_task_tag,
            target_transfer_tag=number,
        )
        assert target.events() == []
        (sent,) = target.received(TextRequest)
        assert sent.data == b""
        cmd_sn = first.cmd_sn + (0 if immediate else number + 1)
        assert sent.pdu == first._replace(
            lun=number << 48, target_transfer_tag=number, cmd_sn=cmd_sn, exp_stat_sn=target.stat_sn
        )
        assert sent.pdu.flags == FINAL
    # With F=1 the tag means nothing.
    target.send(
        TextResponse, pieces[-1], initiator_task_tag=first.initiator_task_tag, target_transfer_tag=0x77
    )
    assert target.events() == [text]
    assert (
        text.pairs
        == [
            ("TargetName", "iqn.2001-04.com.example:disk"),
            ("TargetAddress", "192.0.2.1:3260,1"),
        ]
        * 3
    )
    assert target.nothing_received()


@pytest.mark.conformance("DISC-3")
@pytest.mark.parametrize(
    ("flags", "tag", "section"),
    [
        (0, RESERVED_TAG, "11.11.4"),
        (TextFlag.CONTINUE, RESERVED_TAG, "11.11.4"),
        (FINAL | TextFlag.CONTINUE, 5, "11.11.2"),
        (FINAL | TextFlag.CONTINUE, RESERVED_TAG, "11.11.2"),
    ],
)
def test_flags_of_text_that_contradict_each_other(flags: int, tag: int, section: str) -> None:
    target = MemoryTarget()
    _, sent = ask(target)
    with target.drop(section):
        target.send(
            TextResponse,
            b"TargetName=iqn.2001-04.com.example:disk\0",
            flags=flags,
            initiator_task_tag=sent.pdu.initiator_task_tag,
            target_transfer_tag=tag,
        )


@pytest.mark.conformance("HOSTILE-25")
@pytest.mark.parametrize("flags", [0, TextFlag.CONTINUE])
@pytest.mark.parametrize("size", [0, 1 << 20])
def test_a_text_answer_that_never_ends(flags: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_ANSWER_PIECES * 512 == MAX_ANSWER_LENGTH
    monkeypatch.setattr(requests, "MAX_ANSWER_PIECES", 100)  # as many as there are take seconds
    target = MemoryTarget()
    _, sent = ask(target)
    tag = sent.pdu.initiator_task_tag
    allowed = MAX_ANSWER_LENGTH // size if size else 100
    piece = b"x" * size
    for _ in range(allowed):
        target.send(TextResponse, piece, flags=flags, initiator_task_tag=tag, target_transfer_tag=1)
        target.received(TextRequest)
    with target.drop("6.1" if size else "6.2"):
        target.send(TextResponse, piece, flags=flags, initiator_task_tag=tag, target_transfer_tag=1)


@pytest.mark.conformance("HOSTILE-7")
def test_text_that_was_not_asked_for() -> None:
    target = MemoryTarget()
    with target.drop("4.2.5.3"):
        target.send(TextResponse, initiator_task_tag=0x5555)
    target = MemoryTarget()
    task = target.read(512)
    with target.drop("4.2.5.3"):
        target.send(TextResponse, initiator_task_tag=task.initiator_task_tag)
    target = MemoryTarget()
    _, sent = ask(target)
    target.send(TextResponse, initiator_task_tag=sent.pdu.initiator_task_tag)
    target.events()
    with target.drop("4.2.5.3"):
        target.send(TextResponse, initiator_task_tag=sent.pdu.initiator_task_tag)


@pytest.mark.conformance("DISC-9", "DISC-10", "DISC-11")
def test_a_discovery_session() -> None:
    target = MemoryTarget(target_name=None)
    assert target.parameters.error_recovery_level == 0
    text, sent = ask(target)
    assert sent.data == b"SendTargets=All\0"
    target.ping()
    (answer,) = target.received(NopOut)
    assert answer.pdu.target_transfer_tag == 7
    target.send(TextResponse, initiator_task_tag=sent.pdu.initiator_task_tag)
    again, second = ask(target)
    assert second.pdu.initiator_task_tag != sent.pdu.initiator_task_tag
    target.report(1, parameter3=1)
    assert target.events() == [text, LogoutRequested(1)]
    logout = target.connection.requests.log_out()
    (request,) = target.received(LogoutRequest)
    assert request.pdu.reason == 0
    target.log_out(request)
    assert target.events() == [logout]
    assert again.pairs is None
    target.connection.receive_eof()


@pytest.mark.conformance("DISC-10")
def test_nothing_about_commands_belongs_in_discovery() -> None:
    for kind in (R2T, ScsiResponse):
        target = MemoryTarget(target_name=None)
        _, sent = ask(target)
        with target.drop("4.2.5.3"):
            target.send(kind, initiator_task_tag=sent.pdu.initiator_task_tag)


# Logout, and the end of the connection.


@pytest.mark.conformance("ERR-12")
def test_nothing_is_sent_behind_a_logout() -> None:
    target = MemoryTarget(cid=5)
    task = target.read(512)
    target.received(ScsiCommand)
    logout = target.connection.requests.log_out()
    (sent,) = target.received(LogoutRequest)
    assert (sent.pdu.reason, sent.pdu.cid, sent.pdu.immediate) == (0, 5, True)
    assert (sent.data, sent.ahs) == (b"", b"")
    target.submit(plain_task())
    target.connection.requests.ping()
    target.connection.requests.abort_task(task)
    target.connection.requests.reset(TaskFunction.LOGICAL_UNIT_RESET, LUN)
    target.connection.requests.send_text([("SendTargets", "All")])
    target.connection.requests.send_text([("SendTargets", "All")], immediate=True)
    target.connection.requests.log_out()
    target.send(NopIn)
    target.report(4)
    assert target.nothing_received()
    target.ping()
    target.received(NopOut)  # an answer is no new request
    target.log_out(sent, 0)
    assert target.events() == [logout]
    assert logout.response == 0
    target.connection.receive_eof()


@pytest.mark.conformance("ERR-13")
@pytest.mark.parametrize("response", [0, 1, 2, 3, 4])
def test_the_answer_to_a_logout_is_handed_on(response: int) -> None:
    target = MemoryTarget()
    logout = target.connection.requests.log_out()
    (sent,) = target.received(LogoutRequest)
    target.log_out(sent, response, time2wait=60, time2retain=90)
    assert target.events() == [logout]
    assert (logout.response, logout.time2wait) == (response, 60)


@pytest.mark.conformance("HOSTILE-7")
def test_an_answer_to_a_logout_that_there_was_not() -> None:
    target = MemoryTarget()
    with target.drop("4.2.5.3"):
        target.send(LogoutResponse, initiator_task_tag=0x5555)
    target = MemoryTarget()
    task = target.read(512)
    with target.drop("4.2.5.3"):
        target.send(LogoutResponse, initiator_task_tag=task.initiator_task_tag)
    target = MemoryTarget()
    target.connection.requests.log_out()
    (sent,) = target.received(LogoutRequest)
    target.log_out(sent)
    target.events()
    with target.drop("4.2.5.3"):
        target.log_out(sent)


@pytest.mark.conformance("ERR-10")
@pytest.mark.parametrize("where", ["idle", "in Data-In", "in Data-Out", "before the status"])
def test_the_target_closes_the_connection(where: str) -> None:
    target = MemoryTarget(initiator={"InitialR2T": True, "ImmediateData": False})
    tasks = []
    if where == "in Data-In":
        tasks = [target.read(1024)]
        target.data_in(tasks[0], 0, bytes(512), 0)
    elif where == "in Data-Out":
        tasks = [target.write(bytes(1024))]
        target.r2t(tasks[0], 0, 512)
        target.received(ScsiCommand, DataOut)
    elif where == "before the status":
        tasks = [target.read(512), target.write(bytes(512))]
        target.data_in(tasks[0], 0, bytes(512), 0)
    with pytest.raises(TransportError, match="^the target closed the connection$"):
        target.connection.receive_eof()
    assert target.events() == []
    assert target.connection.take_unfinished() == tasks
    assert not any(task.ended for task in tasks)


@pytest.mark.conformance("HOSTILE-1", "HOSTILE-2")
@pytest.mark.parametrize("digests", [False, True])
def test_the_target_closes_the_connection_in_the_middle_of_a_pdu(digests: bool) -> None:
    lists = ("CRC32C",) if digests else ("None",)
    offer = {"HeaderDigest": lists, "DataDigest": lists}
    whole = 48 + 5 + 3 + (8 if digests else 0)
    for length in range(1, whole):
        target = MemoryTarget(initiator=offer, target=offer)
        task = target.read(5)
        target.received(ScsiCommand)
        tag = task.initiator_task_tag
        stream = target.bytes_of(
            DataIn, b"12345", flags=0x81, data_sn=0, buffer_offset=0, initiator_task_tag=tag
        )
        assert len(stream) == whole
        target.send_bytes(stream[:length])
        assert target.events() == []
        with pytest.raises(TransportError, match="in the middle of a PDU"):
            target.connection.receive_eof()
        assert target.nothing_received()
        assert target.connection.take_unfinished() == [task]
        assert (task.received, task.ended) == (0, False)


def test_any_byte_is_a_sign_of_life() -> None:
    fresh = connect(config())
    assert not fresh.heard
    feed(fresh, b"#")
    assert fresh.heard
