"""A SCSI task by itself: RFC 7143 sections 11.2.2.3, 11.3 and 11.7."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import ProtocolError, TaskAborted
from iscsifs.iscsi.bhs import BHS_LENGTH, pack
from iscsifs.iscsi.keys import Parameters
from iscsifs.iscsi.pdu import (
    FINAL,
    R2T,
    RESERVED_TAG,
    CommandFlag,
    DataOut,
    ResponseFlag,
    ScsiResponse,
)
from iscsifs.iscsi.task import Task, read_sense
from support.memory_target import LUN, pattern


def r2t(offset: int, length: int, number: int = 0) -> R2T:
    return R2T(LUN, 7, 0x1000 + number, 0, 0, 0, number, offset, length)


@given(
    size=st.integers(1, 20_000),
    mrdsl=st.integers(512, 9000),
    first_burst=st.integers(512, 9000),
    immediate_data=st.booleans(),
    initial_r2t=st.booleans(),
)
def test_what_a_write_sends_by_itself(
    size: int, mrdsl: int, first_burst: int, immediate_data: bool, initial_r2t: bool
) -> None:
    parameters = Parameters(
        max_send_data_segment_length=mrdsl,
        first_burst_length=first_burst,
        immediate_data=immediate_data,
        initial_r2t=initial_r2t,
    )
    data = pattern(size)
    task = Task(LUN, bytes(6), data_out=memoryview(data))
    command, ahs, immediate, burst = task.start(parameters, 7, 8, 9)
    pdu, unsolicited = (burst.last, burst.data) if burst else (None, b"")
    limit = min(first_burst, size)
    assert len(immediate) <= min(mrdsl, limit)
    assert bool(immediate) == immediate_data
    assert bool(unsolicited) == (not initial_r2t and len(immediate) < limit)
    if unsolicited or not initial_r2t:
        assert len(immediate) + len(unsolicited) == limit
    assert immediate.tobytes() + bytes(unsolicited) == data[: task.sent]
    assert bool(command.flags & FINAL) == (not burst)
    assert ahs == b""
    if burst:
        assert pdu == DataOut(FINAL, 0, 7, RESERVED_TAG, 9, 0, len(immediate))
        assert len(immediate) % 4 == 0


@given(size=st.integers(17, 260))
def test_a_long_cdb_is_put_together_again(size: int) -> None:
    cdb = pattern(size)
    command, ahs, _, _ = Task(LUN, cdb).start(Parameters(), 1, 1, 1)
    length = int.from_bytes(ahs[:2], "big")
    assert ahs[2:4] == b"\x01\x00"
    assert len(ahs) % 4 == 0
    assert len(pack(command, 0, len(ahs))) == BHS_LENGTH
    assert command.cdb + ahs[4 : 3 + length] == cdb
    assert not any(ahs[3 + length :])


def test_what_an_r2t_asks_for_is_cut_short_once_the_task_is_about_to_end() -> None:
    parameters = Parameters(immediate_data=False, max_send_data_segment_length=512)
    task = Task(LUN, bytes(6), data_out=memoryview(pattern(4096)))
    task.start(parameters, 7, 1, 1)
    first = task.solicited(r2t(0, 2048), parameters, 1)
    assert first is not None
    assert len(first.data) == 2048
    task.r2ts_unsent = 0
    task.aborting = True
    second = task.solicited(r2t(2048, 2048, 1), parameters, 1)
    assert second is not None
    pdu, data = second.last, second.data
    assert (pdu.flags, pdu.buffer_offset, len(data)) == (FINAL, 2048, 512)


@pytest.mark.parametrize(("flags", "residual"), [(0, 0), (ResponseFlag.UNDERFLOW, 1536)])
def test_a_write_that_was_cut_short_is_not_done_whatever_the_target_says(flags: int, residual: int) -> None:
    """The target may have refused the reset for which it was cut: then the write is to be repeated."""
    parameters = Parameters(immediate_data=False, max_send_data_segment_length=512)
    task = Task(LUN, bytes(6), data_out=memoryview(pattern(2048)))
    task.start(parameters, 7, 1, 1)
    task.aborting = True
    assert task.solicited(r2t(0, 2048), parameters, 1) is not None
    task.aborting = False
    task.response_arrived(ScsiResponse(flags, 0, 0, 7, residual_count=residual), memoryview(b""))
    assert isinstance(task.failure, TaskAborted)


def test_directions() -> None:
    flags = CommandFlag.READ | CommandFlag.WRITE
    read = Task(LUN, bytes(6), data_in=memoryview(bytearray(4))).start(Parameters(), 1, 1, 1)[0]
    write = Task(LUN, bytes(6), data_out=memoryview(b"1234")).start(Parameters(), 1, 1, 1)[0]
    neither = Task(LUN, bytes(6)).start(Parameters(), 1, 1, 1)[0]
    assert [one.flags & flags for one in (read, write, neither)] == [CommandFlag.READ, CommandFlag.WRITE, 0]


@pytest.mark.parametrize(("data", "sense"), [(b"", b""), (b"\0\0", b""), (b"\0\2abc", b"ab")])
def test_sense_data(data: bytes, sense: bytes) -> None:
    assert read_sense(memoryview(data), "SCSI_RESPONSE") == sense


@pytest.mark.parametrize("data", [b"\0", b"\0\1", b"\0\3ab"])
def test_sense_data_that_are_cut(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="SCSI_RESPONSE: SenseLength"):
        read_sense(memoryview(data), "SCSI_RESPONSE")
