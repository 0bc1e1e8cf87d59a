"""The target's side of a connection, with PDUs made by hand: numbers, windows, data both ways, the rest."""

from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import DigestError, ProtocolError
from iscsifs.iscsi import serial
from iscsifs.iscsi.bhs import pack
from iscsifs.iscsi.chap import ChallengeMemory
from iscsifs.iscsi.keys import Parameters
from iscsifs.iscsi.pdu import (
    FINAL,
    R2T,
    RESERVED_TAG,
    AsyncEvent,
    AsyncMessage,
    CommandFlag,
    DataIn,
    DataInFlag,
    DataOut,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    NopOut,
    Pdu,
    Reject,
    RejectReason,
    ResponseFlag,
    ScsiCommand,
    ScsiResponse,
    SnackRequest,
    TargetPdu,
    TaskFunction,
    TaskManagementRequest,
    TaskManagementResponse,
    TaskResponse,
    TextFlag,
    TextRequest,
    TextResponse,
)
from iscsifs.iscsi.text import Pair
from iscsifs.limits import MAX_DATA_SEGMENT_LENGTH, MAX_HELD_LENGTH, MAX_HELD_PDUS, MAX_IMMEDIATE
from iscsifs.scsi.sense import Sense
from iscsifs.target.connection import Connection
from iscsifs.target.login import TargetConfig, TargetLogin
from iscsifs.target.task import Task
from iscsifs.target.unit import READ_ERROR, Operation, Result, ended, failed

P = TypeVar("P", bound=Pdu)

LUN = 1 << 48
READ, WRITE, NOTHING = b"\x28", b"\x2a", b"\x00"


class Desk:
    """A connection in the full feature phase, and what it serves.

    A CDB is one byte, the operation, and the number of bytes that it is about. Commands that are ready are
    carried out by `answer`; what was written is in `written`.
    """

    def __init__(self, *, cmd_sn: int = 1, stat_sn: int = 1, window: int = 8, **parameters: Any) -> None:
        login = TargetLogin(
            TargetConfig(target_names=frozenset(), command_window=window),
            tsih=1,
            random_bytes=bytes,
            memory=ChallengeMemory(),
        )
        login.done = True
        login.parameters = replace(Parameters(), **parameters)
        login.statuses.stat_sn, login.commands.exp_cmd_sn = stat_sn, cmd_sn
        self.connection = Connection(login, self)
        self.connection.start_full_feature_phase()
        self.cmd_sn = cmd_sn
        self.tag = 100
        self.written: list[bytes] = []
        self.managed: list[tuple[TaskFunction, int]] = []
        self.management_result = TaskResponse.COMPLETE
        self.targets: list[Pair] = []
        self.data: list[bytes] = []

    # What the connection asks for.

    def logged_in(self) -> None:
        raise AssertionError("it was logged in from the start")

    def prepare(self, lun: int, cdb: bytes) -> Operation:
        length = int.from_bytes(cdb[1:5], "big")
        if cdb[:1] == READ:
            return ended(Result(data=bytes(i & 0xFF for i in range(length))))
        if cdb[:1] == WRITE:
            return Operation(self._write, length)
        if cdb[:1] == NOTHING:
            return ended(Result())
        return ended(failed(READ_ERROR))

    def manage(self, function: TaskFunction, lun: int) -> TaskResponse:
        self.managed.append((function, lun))
        return self.management_result

    def send_targets(self, value: str) -> list[Pair]:
        return [("TargetName", value), *self.targets]

    def _write(self, data: memoryview) -> Result:
        self.written.append(bytes(data))
        return Result()

    # What the initiator does.

    def send(self, pdu: Pdu, data: bytes = b"", ahs: bytes = b"") -> None:
        place = self.connection.header_arrived(pdu, ahs, len(data))
        if place is None:
            place = memoryview(bytearray(len(data)))
        place[:] = data
        self.connection.pdu_arrived(pdu, ahs, place)

    def command(
        self,
        operation: bytes,
        length: int = 0,
        data: bytes = b"",
        *,
        expected: int | None = None,
        flags: int | None = None,
        **fields: Any,
    ) -> ScsiCommand:
        """Send a command; its flags and EDTL fit the operation unless they are given."""
        if flags is None:
            flags = FINAL | (operation == READ) * CommandFlag.READ | (operation == WRITE) * CommandFlag.WRITE
        pdu = ScsiCommand(
            flags,
            LUN,
            self.next_tag(),
            length if expected is None else expected,
            self.cmd_sn,
            0,
            (operation + length.to_bytes(4, "big")).ljust(16, b"\0"),
        )._replace(**fields)
        if not pdu.immediate and "cmd_sn" not in fields:
            self.cmd_sn = serial.add(self.cmd_sn, 1)
        self.send(pdu, data)
        return pdu

    def next_tag(self) -> int:
        self.tag += 1
        return self.tag

    def data_out(
        self, to: ScsiCommand | R2T, offset: int, data: bytes, data_sn: int = 0, *, final: bool
    ) -> None:
        if isinstance(to, R2T):
            tag, lun = to.target_transfer_tag, to.lun
        else:
            tag, lun = RESERVED_TAG, 0
        pdu = DataOut(FINAL if final else 0, lun, to.initiator_task_tag, tag, 0, data_sn, offset)
        self.send(pdu, data)

    # What the target does.

    def answer(self) -> int:
        """Carry out what is ready, and return how many commands that were."""
        tasks = self.connection.tasks()
        for task in tasks:
            self.connection.complete(task, task.operation.run(task.data))
        return len(tasks)

    def responses(self) -> list[TargetPdu]:
        out = self.connection.pdus_to_send()
        self.data = [bytes(data) for _, data in out]
        return [pdu for pdu, _ in out]

    def response(self, kind: type[P]) -> P:
        (pdu,) = self.responses()
        assert isinstance(pdu, kind)
        return pdu


def pattern(length: int, start: int = 0) -> bytes:
    return bytes(i & 0xFF for i in range(start, start + length))


# Numbers (section 4.2.2).


def test_commands_are_carried_out_in_the_order_of_cmd_sn() -> None:
    desk = Desk(cmd_sn=0xFFFFFFFE)
    tags = {}
    for cmd_sn in 0, 0xFFFFFFFF, 1, 0xFFFFFFFE:
        tags[cmd_sn] = desk.command(NOTHING, cmd_sn=cmd_sn).initiator_task_tag
    order = [task.tag for task in desk.connection.tasks()]
    assert order == [tags[0xFFFFFFFE], tags[0xFFFFFFFF], tags[0], tags[1]]


def test_commands_outside_of_the_window_and_repeated_ones_are_ignored() -> None:
    desk = Desk(cmd_sn=10, window=4)
    for cmd_sn in 9, 14, 12, 12:
        desk.command(NOTHING, cmd_sn=cmd_sn)
    assert desk.answer() == 0
    desk.command(NOTHING, cmd_sn=10)
    desk.command(NOTHING, cmd_sn=11)
    desk.command(NOTHING, cmd_sn=11)
    assert desk.answer() == 3


def test_the_window_closes_with_commands_and_opens_with_answers() -> None:
    desk = Desk(cmd_sn=5, window=2)
    first, second = desk.command(WRITE, 10), desk.command(WRITE, 10)
    r2ts = [pdu for pdu in desk.responses() if isinstance(pdu, R2T)]
    assert [(r2t.exp_cmd_sn, r2t.max_cmd_sn) for r2t in r2ts] == [(6, 6), (7, 6)]
    desk.command(NOTHING)  # outside
    desk.data_out(r2ts[0], 0, bytes(10), final=True)
    assert desk.answer() == 1
    response = desk.response(ScsiResponse)
    assert response.initiator_task_tag == first.initiator_task_tag
    assert (response.exp_cmd_sn, response.max_cmd_sn) == (7, 7)
    assert [task.tag for task in desk.connection.outstanding] == [second.initiator_task_tag]


def test_immediate_commands_take_no_place_in_the_order() -> None:
    desk = Desk(cmd_sn=5)
    desk.command(NOTHING, immediate=True)
    desk.command(NOTHING, immediate=True, cmd_sn=77)
    desk.command(NOTHING)
    assert desk.answer() == 3
    assert {pdu.exp_cmd_sn for pdu in desk.responses() if isinstance(pdu, ScsiResponse)} == {6}


def test_too_many_immediate_commands_are_rejected() -> None:
    desk = Desk()
    for _ in range(MAX_IMMEDIATE):
        desk.command(WRITE, 10, immediate=True)
    desk.responses()
    rejected = desk.command(WRITE, 10, immediate=True)
    assert desk.response(Reject).reason == RejectReason.TOO_MANY_IMMEDIATE_COMMANDS
    assert desk.data == [pack(rejected)]


@pytest.mark.parametrize("size", [0, 1, MAX_DATA_SEGMENT_LENGTH])
def test_what_waits_for_a_missing_command_is_bounded(size: int) -> None:
    desk = Desk(cmd_sn=1, initial_r2t=False, first_burst_length=1 << 24)
    early = desk.command(WRITE, 1 << 24, cmd_sn=2, flags=CommandFlag.WRITE)
    room = min(MAX_HELD_LENGTH // max(size, 1), MAX_HELD_PDUS - 1)  # the command is one of them
    for number in range(room):
        desk.data_out(early, number * size, bytes(size), number, final=False)
    with pytest.raises(ProtocolError, match="CmdSN 1 .*4.2.2.1") as caught:
        desk.data_out(early, room * size, bytes(size), room, final=False)
    desk.connection.fail(caught.value)
    assert desk.connection.closing
    assert desk.response(Reject).reason == RejectReason.PROTOCOL_ERROR


def test_so_are_the_commands_themselves() -> None:
    desk = Desk(cmd_sn=1, window=128, first_burst_length=1 << 20)
    whole = bytes(MAX_DATA_SEGMENT_LENGTH)
    for number in range(MAX_HELD_LENGTH // len(whole)):
        desk.command(WRITE, len(whole), whole, cmd_sn=2 + number)
    with pytest.raises(ProtocolError, match="CmdSN 1 .*4.2.2.1"):
        desk.command(WRITE, len(whole), whole, cmd_sn=99)


def test_what_had_waited_leaves_its_room_to_others() -> None:
    desk = Desk(cmd_sn=1, initial_r2t=False, first_burst_length=MAX_HELD_LENGTH)
    for gap in range(1, 10, 3):
        early = desk.command(WRITE, MAX_HELD_LENGTH, cmd_sn=gap + 1, flags=CommandFlag.WRITE)
        half = MAX_HELD_LENGTH // 2
        desk.data_out(early, 0, bytes(half), 0, final=False)
        desk.data_out(early, half, bytes(half), 1, final=True)
        if gap == 4:  # the waiting command itself is aborted, the next time what it waits for
            manage(desk, TaskFunction.ABORT_TASK, referenced_task_tag=99, ref_cmd_sn=gap + 1, cmd_sn=gap + 2)
        desk.command(NOTHING, cmd_sn=gap)
        desk.command(NOTHING, cmd_sn=gap + 2)
        desk.answer()
    assert [len(data) for data in desk.written] == [MAX_HELD_LENGTH] * 2


def test_stat_sn_counts_answers_and_nothing_else() -> None:
    desk = Desk(stat_sn=0xFFFFFFFF, max_send_data_segment_length=512)
    desk.command(READ, 1024)
    desk.command(NOTHING)
    desk.command(WRITE, 10)
    desk.answer()
    desk.connection.ping()
    responses = desk.responses()
    assert [type(pdu) for pdu in responses] == [R2T, DataIn, DataIn, ScsiResponse, NopIn]
    assert [pdu.stat_sn for pdu in responses] == [0xFFFFFFFF, 0, 0xFFFFFFFF, 0, 1]


def test_a_task_tag_in_use_is_a_protocol_error() -> None:
    desk = Desk()
    desk.command(WRITE, 10, initiator_task_tag=7)
    with pytest.raises(ProtocolError, match="00000007h is in use"):
        desk.command(WRITE, 10, initiator_task_tag=7)


# Reading.


@given(
    length=st.integers(1, 20000),
    segment=st.integers(512, 9000),
    burst=st.integers(512, 9000),
    status_in_data=st.booleans(),
)
def test_data_in_keeps_the_limits(length: int, segment: int, burst: int, status_in_data: bool) -> None:
    desk = Desk(max_send_data_segment_length=segment, max_burst_length=burst)
    desk.connection.status_in_data = status_in_data
    command = desk.command(READ, length)
    desk.answer()
    *data_ins, last = desk.responses()
    if status_in_data:
        data_ins.append(last)
    else:
        assert isinstance(last, ScsiResponse)
        assert last.exp_data_sn == len(data_ins)
        desk.data.pop()
    offset = in_burst = 0
    for number, (pdu, data) in enumerate(zip(data_ins, desk.data, strict=True)):
        assert isinstance(pdu, DataIn)
        assert pdu.initiator_task_tag == command.initiator_task_tag
        assert (pdu.data_sn, pdu.buffer_offset) == (number, offset)
        assert 0 < len(data) <= segment
        offset += len(data)
        in_burst += len(data)
        assert in_burst <= burst
        if pdu.flags & DataInFlag.FINAL:
            in_burst = 0
        assert bool(pdu.flags & DataInFlag.STATUS) == (status_in_data and pdu is last)
    assert in_burst == 0
    assert b"".join(desk.data) == pattern(length)


@pytest.mark.parametrize(
    ("length", "expected", "flag", "count"),
    [
        (1000, 1000, 0, 0),
        (1000, 1024, ResponseFlag.UNDERFLOW, 24),
        (1000, 512, ResponseFlag.OVERFLOW, 488),
        (0, 512, ResponseFlag.UNDERFLOW, 512),
        (0, 0, 0, 0),
    ],
)
def test_residuals_of_reads(length: int, expected: int, flag: int, count: int) -> None:
    desk = Desk()
    desk.command(READ, length, expected=expected)
    desk.answer()
    (pdu,) = desk.responses()
    assert isinstance(pdu, DataIn | ScsiResponse)
    assert pdu.flags & (ResponseFlag.UNDERFLOW | ResponseFlag.OVERFLOW) == flag
    assert pdu.residual_count == count
    assert b"".join(desk.data) == pattern(min(length, expected))


def test_a_read_without_the_r_bit_gets_no_data() -> None:
    desk = Desk()
    desk.command(READ, 512, expected=0, flags=FINAL)
    desk.answer()
    response = desk.response(ScsiResponse)
    assert (response.flags, response.residual_count) == (FINAL | ResponseFlag.OVERFLOW, 512)


def test_sense_data_come_behind_their_length() -> None:
    desk = Desk()
    desk.command(b"\xff", expected=512, flags=FINAL | CommandFlag.READ)
    desk.answer()
    response = desk.response(ScsiResponse)
    assert (response.status, response.residual_count) == (2, 512)
    (data,) = desk.data
    assert int.from_bytes(data[:2], "big") == len(data) - 2
    assert Sense.parse(data[2:]) == READ_ERROR


# Writing.


def test_all_at_once_as_immediate_data() -> None:
    desk = Desk()
    desk.command(WRITE, 100, pattern(100))
    assert desk.answer() == 1
    assert desk.written == [pattern(100)]
    assert desk.response(ScsiResponse).exp_data_sn == 0


def test_a_first_burst_then_r2ts_within_the_limits() -> None:
    desk = Desk(initial_r2t=False, first_burst_length=1024, max_burst_length=2048, max_outstanding_r2t=2)
    data = pattern(8000)
    command = desk.command(WRITE, 8000, data[:512], flags=CommandFlag.WRITE)
    assert desk.responses() == []
    desk.data_out(command, 512, data[512:1024], final=True)
    sent = 1024
    r2t_sn = 0
    outstanding: list[R2T] = []
    while True:
        outstanding += [pdu for pdu in desk.responses() if isinstance(pdu, R2T)]
        if not outstanding:
            break
        assert len(outstanding) <= 2
        r2t = outstanding.pop(0)
        assert (r2t.r2t_sn, r2t.buffer_offset) == (r2t_sn, sent)
        assert r2t.lun == LUN
        end = sent + r2t.desired_data_transfer_length
        assert end == min(sent + 2048, 8000)
        middle = sent + 512
        desk.data_out(r2t, sent, data[sent:middle], 0, final=False)
        desk.data_out(r2t, middle, data[middle:end], 1, final=True)
        sent = end
        r2t_sn += 1
    assert desk.answer() == 1
    assert desk.written == [data]
    assert desk.response(ScsiResponse).exp_data_sn == 4


@given(
    length=st.integers(1, 5000),
    expected=st.integers(0, 6000),
    immediate=st.integers(0, 700),
    first_burst=st.integers(512, 2000),
    segment=st.integers(512, 1500),
)
def test_whatever_the_lengths_the_data_arrive(
    length: int, expected: int, immediate: int, first_burst: int, segment: int
) -> None:
    desk = Desk(initial_r2t=False, first_burst_length=first_burst, max_burst_length=2048)
    data = pattern(expected)
    first = min(first_burst, expected)
    immediate = min(immediate, first)
    flags = CommandFlag.WRITE | (FINAL if immediate == first else 0)
    command = desk.command(WRITE, length, data[:immediate], expected=expected, flags=flags)

    def send(to: ScsiCommand | R2T, start: int, end: int) -> None:
        for number, offset in enumerate(range(start, end, segment)):
            behind = min(offset + segment, end)
            desk.data_out(to, offset, data[offset:behind], number, final=behind == end)

    if immediate < first:
        send(command, immediate, first)
    while r2ts := [pdu for pdu in desk.responses() if isinstance(pdu, R2T)]:
        for r2t in r2ts:
            start = r2t.buffer_offset
            send(r2t, start, start + r2t.desired_data_transfer_length)
    assert desk.answer() == 1
    assert desk.written == [data[:length]]
    response = desk.response(ScsiResponse)
    residual = length - expected
    wanted = (residual > 0) * ResponseFlag.OVERFLOW | (residual < 0) * ResponseFlag.UNDERFLOW
    assert (response.flags, response.residual_count) == (FINAL | wanted, abs(residual))


def test_unsolicited_data_of_a_command_that_waits_for_its_turn_wait_with_it() -> None:
    desk = Desk(initial_r2t=False)
    second = desk.command(WRITE, 100, flags=CommandFlag.WRITE, cmd_sn=2)
    desk.data_out(second, 0, pattern(100), final=True)
    assert desk.answer() == 0
    desk.command(NOTHING, cmd_sn=1)
    assert desk.answer() == 2
    assert desk.written == [pattern(100)]


def test_a_write_that_fails_at_once_still_takes_its_unsolicited_data() -> None:
    desk = Desk(initial_r2t=False)
    command = desk.command(b"\xff", expected=100, flags=CommandFlag.WRITE)
    assert desk.answer() == 0
    desk.data_out(command, 0, pattern(100), final=True)
    assert desk.answer() == 1
    assert desk.response(ScsiResponse).residual_count == 100


def test_a_long_cdb_comes_in_an_ahs() -> None:
    desk = Desk()
    command = desk.command(NOTHING)
    desk.connection.tasks()
    for rest in b"r", b"rest", b"rest of it":
        ahs = (len(rest) + 1).to_bytes(2, "big") + b"\x01\0" + rest + bytes(-len(rest) % 4)
        pdu = command._replace(initiator_task_tag=desk.next_tag(), cmd_sn=desk.cmd_sn)
        desk.cmd_sn += 1
        desk.send(pdu, ahs=ahs)
        (task,) = desk.connection.tasks()
        assert task.cdb == command.cdb + rest
    with pytest.raises(ProtocolError, match="AHS"):
        desk.send(command._replace(initiator_task_tag=1, cmd_sn=desk.cmd_sn), ahs=b"\0\x20\x01\0abcd")


BROKEN_COMMANDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "immediate data, but ImmediateData=No": (
        {"immediate_data": False},
        {"operation": WRITE, "length": 10, "data": bytes(10)},
    ),
    "unsolicited data are announced, but InitialR2T=Yes": (
        {},
        {"operation": WRITE, "length": 10, "flags": CommandFlag.WRITE},
    ),
    "unsolicited data are announced where there can be none": (
        {"initial_r2t": False},
        {"operation": WRITE, "length": 10, "data": bytes(10), "flags": CommandFlag.WRITE},
    ),
    "600 bytes of immediate data are too much": (
        {"first_burst_length": 512},
        {"operation": WRITE, "length": 1000, "data": bytes(600)},
    ),
    "11 bytes of immediate data are too much": ({}, {"operation": WRITE, "length": 10, "data": bytes(11)}),
    "immediate data in a command that writes nothing": (
        {},
        {"operation": READ, "length": 10, "data": bytes(10)},
    ),
    "neither W nor F is set": ({}, {"operation": NOTHING, "flags": 0}),
}


@pytest.mark.parametrize("rule", BROKEN_COMMANDS)
def test_commands_that_break_a_rule(rule: str) -> None:
    parameters, command = BROKEN_COMMANDS[rule]
    desk = Desk(**parameters)
    with pytest.raises(ProtocolError, match=rule):
        desk.command(**command)


BROKEN_DATA_OUT: dict[str, dict[str, Any]] = {
    "Target Transfer Tag 00001234h is not in use": {"target_transfer_tag": 0x1234},
    "it names another LUN than the R2T": {"lun": 2 << 48},
    "DataSN 1 where 0 was due": {"data_sn": 1},
    "offset 4 where 0 was due": {"buffer_offset": 4},
    "F is set exactly in the last PDU of a sequence": {"flags": 0},
}


@pytest.mark.parametrize("rule", BROKEN_DATA_OUT)
def test_data_out_that_breaks_a_rule(rule: str) -> None:
    desk = Desk()
    desk.command(WRITE, 10)
    r2t = desk.response(R2T)
    pdu = DataOut(FINAL, r2t.lun, r2t.initiator_task_tag, r2t.target_transfer_tag, 0, 0, 0)
    with pytest.raises(ProtocolError, match=rule):
        desk.send(pdu._replace(**BROKEN_DATA_OUT[rule]), bytes(10))


def test_more_data_than_were_asked_for() -> None:
    desk = Desk()
    desk.command(WRITE, 10)
    with pytest.raises(ProtocolError, match="2 bytes more than were asked for"):
        desk.data_out(desk.response(R2T), 0, bytes(12), final=True)


def test_data_for_an_unknown_task_are_thrown_away() -> None:
    desk = Desk()
    desk.send(DataOut(FINAL, LUN, 9, 9, 0, 0, 0), bytes(512))
    assert desk.responses() == []


# Task management (sections 4.2.3, 11.5 and 11.6).


def manage(desk: Desk, function: int, **fields: Any) -> TaskManagementRequest:
    request = TaskManagementRequest(function, LUN, desk.next_tag(), cmd_sn=desk.cmd_sn)._replace(**fields)
    desk.send(request)
    return request


def test_abort_task_ends_it_without_a_response() -> None:
    desk = Desk()
    command = desk.command(NOTHING)
    (task,) = desk.connection.tasks()
    request = manage(
        desk,
        TaskFunction.ABORT_TASK,
        referenced_task_tag=command.initiator_task_tag,
        ref_cmd_sn=command.cmd_sn,
    )
    response = desk.response(TaskManagementResponse)
    assert (response.response, response.initiator_task_tag) == (0, request.initiator_task_tag)
    desk.connection.complete(task, Result())
    assert desk.responses() == []


def test_abort_of_a_task_that_is_not_there() -> None:
    desk = Desk()
    command = desk.command(NOTHING)
    desk.answer()
    desk.responses()
    manage(
        desk,
        TaskFunction.ABORT_TASK,
        referenced_task_tag=command.initiator_task_tag,
        ref_cmd_sn=command.cmd_sn,
    )
    assert desk.response(TaskManagementResponse).response == TaskResponse.NO_SUCH_TASK


def test_abort_of_a_task_that_never_came_fills_the_gap() -> None:
    desk = Desk(cmd_sn=1)
    late = desk.command(NOTHING, cmd_sn=2)
    manage(desk, TaskFunction.ABORT_TASK, referenced_task_tag=99, ref_cmd_sn=1, cmd_sn=3)
    response = desk.response(TaskManagementResponse)
    assert (response.response, response.exp_cmd_sn) == (TaskResponse.COMPLETE, 3)
    assert [task.tag for task in desk.connection.tasks()] == [late.initiator_task_tag]


@pytest.mark.parametrize(
    "function",
    [TaskFunction.ABORT_TASK, TaskFunction.ABORT_TASK_SET, TaskFunction.LOGICAL_UNIT_RESET],
)
def test_the_answer_waits_for_the_data_that_were_asked_for(function: TaskFunction) -> None:
    desk = Desk()
    command = desk.command(WRITE, 1000)
    r2t = desk.response(R2T)
    manage(desk, function, referenced_task_tag=command.initiator_task_tag, ref_cmd_sn=command.cmd_sn)
    assert desk.responses() == []
    desk.data_out(r2t, 0, bytes(500), 0, final=False)
    assert desk.responses() == []
    desk.data_out(r2t, 500, bytes(500), 1, final=True)
    assert desk.response(TaskManagementResponse).response == TaskResponse.COMPLETE
    assert desk.answer() == 0
    assert desk.written == []


def test_requests_that_wait_for_that_are_bounded() -> None:
    desk = Desk()
    command = desk.command(WRITE, 1000)
    r2t = desk.response(R2T)
    manage(desk, TaskFunction.LOGICAL_UNIT_RESET, immediate=True)
    for _ in range(MAX_IMMEDIATE - 1):
        manage(desk, TaskFunction.ABORT_TASK, referenced_task_tag=command.initiator_task_tag, immediate=True)
    assert desk.responses() == []
    manage(desk, TaskFunction.LOGICAL_UNIT_RESET, immediate=True)
    assert desk.response(Reject).reason == RejectReason.TOO_MANY_IMMEDIATE_COMMANDS
    desk.data_out(r2t, 0, bytes(1000), final=True)
    assert len(desk.responses()) == MAX_IMMEDIATE


def test_a_task_set_is_that_of_one_lun() -> None:
    desk = Desk()
    desk.command(NOTHING)
    other = desk.command(NOTHING, lun=2 << 48)
    tasks = desk.connection.tasks()
    manage(desk, TaskFunction.ABORT_TASK_SET)
    desk.responses()
    for task in tasks:
        desk.connection.complete(task, Result())
    assert desk.response(ScsiResponse).initiator_task_tag == other.initiator_task_tag
    assert desk.managed == [(TaskFunction.ABORT_TASK_SET, LUN)]


def test_a_target_reset_is_for_all_luns_and_a_cold_one_ends_the_connection() -> None:
    for function in TaskFunction.TARGET_WARM_RESET, TaskFunction.TARGET_COLD_RESET:
        desk = Desk()
        desk.command(NOTHING, lun=2 << 48)
        manage(desk, function, lun=0)
        assert desk.response(TaskManagementResponse).response == TaskResponse.COMPLETE
        assert not desk.connection.outstanding
        assert desk.connection.closing == (function is TaskFunction.TARGET_COLD_RESET)


def test_a_lun_that_is_not_there_keeps_its_tasks() -> None:
    desk = Desk()
    desk.management_result = TaskResponse.NO_SUCH_LUN
    desk.command(NOTHING)
    manage(desk, TaskFunction.LOGICAL_UNIT_RESET)
    assert desk.response(TaskManagementResponse).response == TaskResponse.NO_SUCH_LUN
    assert len(desk.connection.outstanding) == 1


@pytest.mark.parametrize(
    ("function", "response"),
    [
        (TaskFunction.CLEAR_ACA, TaskResponse.FUNCTION_UNSUPPORTED),
        (TaskFunction.TASK_REASSIGN, TaskResponse.REASSIGNMENT_UNSUPPORTED),
        (0x55, TaskResponse.FUNCTION_UNSUPPORTED),
    ],
)
def test_functions_that_are_not_there(function: int, response: TaskResponse) -> None:
    desk = Desk()
    manage(desk, function)
    assert desk.response(TaskManagementResponse).response == response


# NOP, text, logout, the rest.


def test_a_ping_is_echoed() -> None:
    desk = Desk(max_send_data_segment_length=512)
    desk.send(NopOut(initiator_task_tag=5, cmd_sn=1), pattern(600))
    echo = desk.response(NopIn)
    assert (echo.initiator_task_tag, echo.target_transfer_tag, echo.exp_cmd_sn) == (5, RESERVED_TAG, 2)
    assert desk.data == [pattern(512)]


def test_our_ping_is_answered() -> None:
    desk = Desk()
    desk.connection.ping(b"hello")
    ping = desk.response(NopIn)
    assert desk.data == [b"hello"]
    desk.send(NopOut(target_transfer_tag=ping.target_transfer_tag, immediate=True), b"hello")
    assert desk.connection.pongs == [b"hello"]
    assert desk.responses() == []
    with pytest.raises(ProtocolError, match="answers no ping"):
        desk.send(NopOut(target_transfer_tag=ping.target_transfer_tag, immediate=True))


@pytest.mark.parametrize(
    ("nop", "rule"),
    [
        (NopOut(cmd_sn=1), "it must be immediate"),
        (NopOut(initiator_task_tag=1, target_transfer_tag=1, immediate=True), "two tags"),
    ],
)
def test_nop_outs_that_break_a_rule(nop: NopOut, rule: str) -> None:
    with pytest.raises(ProtocolError, match=rule):
        Desk().send(nop)


def test_send_targets_in_one_piece() -> None:
    desk = Desk()
    desk.send(TextRequest(FINAL, LUN, 5, immediate=True), b"SendTargets=All\0")
    response = desk.response(TextResponse)
    assert (response.flags, response.initiator_task_tag) == (FINAL, 5)
    assert response.target_transfer_tag == RESERVED_TAG
    assert desk.data == [b"TargetName=All\0"]


def test_send_targets_in_many_pieces() -> None:
    desk = Desk(max_send_data_segment_length=512)
    desk.targets = [("TargetAddress", f"10.0.0.{i}:3260,1") for i in range(100)]
    tag = RESERVED_TAG
    text = b"SendTargets=All\0"
    received = b""
    while True:
        desk.send(TextRequest(FINAL, 0, 5, tag, immediate=True), text)
        response = desk.response(TextResponse)
        received += desk.data[0]
        assert len(desk.data[0]) <= 512
        if response.flags & FINAL:
            break
        assert response.flags == TextFlag.CONTINUE
        tag, text = response.target_transfer_tag, b""
        assert tag != RESERVED_TAG
    assert received.count(b"TargetAddress=") == 100
    assert response.target_transfer_tag == RESERVED_TAG


def test_a_request_in_pieces() -> None:
    desk = Desk()
    desk.send(TextRequest(TextFlag.CONTINUE, 0, 5, immediate=True), b"SendTar")
    response = desk.response(TextResponse)
    assert (response.flags, desk.data) == (0, [b""])
    desk.send(TextRequest(FINAL, 0, 5, response.target_transfer_tag, immediate=True), b"gets=x\0")
    assert desk.response(TextResponse).flags == FINAL
    assert desk.data == [b"TargetName=x\0"]


def test_unknown_keys_are_not_understood_and_a_negotiation_must_have_been_begun() -> None:
    desk = Desk()
    desk.send(TextRequest(FINAL, 0, 5, immediate=True), b"X-com.example.a=1\0")
    assert desk.response(TextResponse).flags == FINAL
    assert desk.data == [b"X-com.example.a=NotUnderstood\0"]
    desk.send(TextRequest(FINAL, 0, 5, 1234, immediate=True), b"")
    assert desk.response(Reject).reason == RejectReason.PROTOCOL_ERROR


def test_discovery_sessions_have_send_targets_and_logout_only() -> None:
    desk = Desk()
    desk.connection.login.discovery = True
    desk.send(TextRequest(FINAL, 0, 1, immediate=True), b"SendTargets=All\0")
    desk.response(TextResponse)
    desk.send(TextRequest(FINAL, 0, 2, immediate=True), b"X-com.example.a=1\0")
    desk.response(Reject)
    desk.command(NOTHING)
    desk.response(Reject)
    manage(desk, TaskFunction.LOGICAL_UNIT_RESET)
    desk.response(Reject)
    desk.send(LogoutRequest(0, 3, cmd_sn=desk.cmd_sn))
    assert desk.response(LogoutResponse).response == 0


@pytest.mark.parametrize(
    ("reason", "cid", "response", "closing"),
    [(0, 9, 0, True), (1, 0, 0, True), (1, 9, 1, False), (2, 0, 2, False)],
)
def test_logout(reason: int, cid: int, response: int, closing: bool) -> None:
    desk = Desk()
    desk.command(NOTHING)
    desk.send(LogoutRequest(reason, 5, cid, cmd_sn=desk.cmd_sn))
    assert desk.response(LogoutResponse).response == response
    assert desk.connection.closing is closing
    assert len(desk.connection.outstanding) == (0 if closing else 1)
    if closing:
        with pytest.raises(ProtocolError, match="nothing may follow a logout"):
            desk.command(NOTHING)
    with pytest.raises(ProtocolError):
        Desk().send(LogoutRequest(3, 6, cmd_sn=desk.cmd_sn))


def test_asynchronous_messages_count() -> None:
    desk = Desk(stat_sn=7)
    desk.connection.send_async(AsyncEvent.LOGOUT_REQUESTED, parameters=(0, 0, 5))
    message = desk.response(AsyncMessage)
    assert (message.stat_sn, message.async_event, message.parameter3) == (7, 1, 5)
    desk.connection.send_async(AsyncEvent.SCSI, lun=LUN, data=b"sense")
    assert desk.response(AsyncMessage).stat_sn == 8
    assert desk.data == [b"sense"]


def test_snack_is_rejected() -> None:
    desk = Desk()
    desk.send(SnackRequest(0, LUN, 1, RESERVED_TAG, 0, 0, 0))
    assert desk.response(Reject).reason == RejectReason.SNACK_REJECT


def test_a_targets_pdu_has_no_place_here() -> None:
    with pytest.raises(ProtocolError, match="no place"):
        Desk().send(NopIn(0, 0, 0, 0, 0, 0))


def test_the_initiators_acknowledgement_is_kept() -> None:
    desk = Desk()
    desk.command(NOTHING, exp_stat_sn=0x1234)
    assert desk.connection.statuses.acknowledged == 0x1234


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ProtocolError("broken", section="1"), RejectReason.PROTOCOL_ERROR),
        (DigestError("wrong", section="7.8", pdu="SCSI_COMMAND"), RejectReason.DATA_DIGEST_ERROR),
    ],
)
def test_the_end_is_a_reject_of_the_pdu_to_blame(error: ProtocolError, reason: RejectReason) -> None:
    desk = Desk()
    command = ScsiCommand(FINAL, LUN, 5, 0, 1, 0, bytes(16))
    desk.connection.header_arrived(command, b"", 512)
    desk.connection.fail(error)
    assert desk.response(Reject).reason == reason
    assert desk.data == [pack(command, 512)]
    assert desk.connection.closing


def test_there_is_no_reject_where_no_pdu_is_to_blame() -> None:
    desk = Desk()
    desk.command(NOTHING)
    desk.connection.fail(DigestError("the header digest is wrong", section="7.8"))
    assert desk.responses() == []
    assert desk.connection.closing


def test_a_completed_task_is_completed_once() -> None:
    desk = Desk()
    desk.command(NOTHING)
    (task,) = desk.connection.tasks()
    assert isinstance(task, Task)
    for _ in range(2):
        desk.connection.complete(task, Result())
    desk.response(ScsiResponse)
