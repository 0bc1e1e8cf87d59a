"""A logical unit as a range of bytes, against the embedded target: any offset, part blocks, and
what becomes of buffered writes when the unit changes or goes."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from iscsifs.errors import CommandTimeout, DataLostError, MediumError, StatusError, UnitError
from iscsifs.fs.platform.busy_poll import Watched
from iscsifs.iscsi.exchange import Exchange
from iscsifs.iscsi.task import Task
from iscsifs.scsi.cdb import OperationCode, parse_rw
from iscsifs.scsi.sense import Sense, SenseKey
from iscsifs.scsi.status import Status
from iscsifs.target.disk import Disk
from iscsifs.target.unit import MODE_CHANGED, NO_MEDIUM, WRITE_CODES, WRITE_ERROR, Fault
from iscsifs.units.identity import Description
from iscsifs.units.queue import Command, Queue
from support.memory_san import San
from support.stepwise import Loop

BLOCK = 512
SIZE = 64 * BLOCK

Open = Callable[..., Awaitable[San]]


@pytest.fixture
def connect(nursery: trio.Nursery) -> Open:
    """Log in to a disk of 64 blocks; *write_cache* is the disk's."""

    async def connect(*, write_behind: bool = True, write_cache: bool = True) -> San:
        disk = Disk.in_memory(SIZE, droppable=True, write_cache=write_cache)
        san = San(nursery, disk, write_behind=write_behind)
        await san.log_in()
        san.trouble.commands.clear()
        return san

    return connect


def codes(san: San) -> list[int]:
    """The operation codes of the commands that came."""
    return [cdb[0] for cdb in san.trouble.commands]


def stored(san: San, offset: int = 0, size: int = SIZE) -> bytes:
    """What the target has."""
    return bytes(san.disk.store.read(offset, size))


def without_memory(*_: object, **__: object) -> None:
    raise MemoryError


# Bytes.


@settings(max_examples=25)
@given(
    write_behind=st.booleans(),
    writes=st.lists(st.tuples(st.integers(0, SIZE - 1), st.binary(max_size=3 * BLOCK)), max_size=6),
)
def test_any_bytes_are_written_and_read(write_behind: bool, writes: list[tuple[int, bytes]]) -> None:
    loop = Loop()
    expected = bytearray(SIZE)
    san = San(loop.nursery, Disk.in_memory(SIZE, droppable=True), write_behind=write_behind)
    loop.run(san.log_in)
    for offset, data in writes:
        data = data[: SIZE - offset]
        loop.run(san.unit.write, offset, data)
        expected[offset : offset + len(data)] = data
        before = max(offset - 3, 0)
        assert loop.run(san.unit.read, before, len(data) + 6) == expected[before : before + len(data) + 6]
    loop.run(san.unit.flush)
    assert san.medium() == expected
    loop.close()


async def test_reads_stop_at_the_end(connect: Open) -> None:
    unit = (await connect()).unit
    assert len(await unit.read(SIZE - 10, 100)) == 10
    assert len(await unit.read(SIZE, 1)) == 0
    assert len(await unit.read(SIZE + 1000, 1)) == 0


async def test_nothing_is_written_without_a_command(connect: Open) -> None:
    san = await connect()
    await san.unit.write(100, b"")
    await san.unit.drain()
    assert codes(san) == []


async def test_both_ends_of_a_write_in_one_block_are_read_once(connect: Open) -> None:
    san = await connect(write_behind=False)
    await san.unit.write(10, b"abc")
    assert codes(san) == [OperationCode.READ_10, OperationCode.WRITE_10]
    assert stored(san, 9, 5) == b"\0abc\0"


async def test_part_writes_of_one_block_do_not_undo_each_other(connect: Open) -> None:
    san = await connect(write_behind=False)
    async with trio.open_nursery() as nursery:
        for position in range(0, BLOCK, 8):
            nursery.start_soon(san.unit.write, position, bytes([position // 8 + 1]) * 8)
    assert stored(san, 0, BLOCK) == b"".join(bytes([number]) * 8 for number in range(1, 65))


async def test_a_write_with_a_block_that_cannot_be_read_fails(connect: Open) -> None:
    san = await connect()
    san.disk.faults.append(Fault(WRITE_ERROR, blocks=range(1)))
    with pytest.raises(MediumError):
        await san.unit.write(10, b"abc")
    await san.unit.drain()
    assert san.unit.failures == 0  # it was never acknowledged


@pytest.mark.parametrize("data", [b"abc", b"a" * BLOCK])
async def test_a_flush_is_needed_from_the_beginning_of_a_write(connect: Open, data: bytes) -> None:
    san = await connect()
    assert not san.unit.needs_flush
    san.trouble.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(san.unit.write, 0, data)  # where a part of a block is written, it is read first
        await trio.testing.wait_all_tasks_blocked()
        assert san.unit.needs_flush
        san.trouble.go_on()
    assert san.unit.needs_flush
    await san.unit.flush()
    assert not san.unit.needs_flush
    assert san.unit.unwritten == 0


async def test_a_unit_is_away_as_long_as_its_session_is(connect: Open, autojump_clock: MockClock) -> None:
    san = await connect()
    assert not san.unit.is_away
    san.trouble.refusing = True
    san.server.drop_connections()
    await trio.testing.wait_all_tasks_blocked()
    assert san.unit.is_away
    san.trouble.refusing = False
    await san.unit.read(0, BLOCK)
    assert not san.unit.is_away


# Losses.


async def test_a_lost_cache_is_no_loss(connect: Open) -> None:
    san = await connect()
    await san.unit.write(0, b"a" * BLOCK)
    await san.unit.drain()
    san.disk.drop_cache()
    assert await san.unit.read(0, BLOCK) == b"a" * BLOCK
    await san.unit.flush()
    assert san.medium()[:BLOCK] == b"a" * BLOCK
    assert san.unit.failures == 0


@pytest.mark.parametrize("attempt", range(16))  # the order in which waiting tasks wake is random
async def test_a_lost_cache_that_was_reported_with_another_command_is_no_loss(
    connect: Open, attempt: int
) -> None:
    san = await connect()
    await san.unit.write(0, b"a" * BLOCK)
    await san.unit.drain()
    san.disk.drop_cache()
    san.trouble.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(san.unit.read, 10 * BLOCK, BLOCK)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(san.unit.flush)
        await trio.testing.wait_all_tasks_blocked()
        san.trouble.go_on()  # both answers arrive at once
    assert san.medium()[:BLOCK] == b"a" * BLOCK


@pytest.mark.conformance("ERR-24")
@pytest.mark.parametrize(
    "report",
    [
        Sense(SenseKey.MEDIUM_ERROR, 0x0C, deferred=True),
        Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x00),
        Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x07),
        Sense(SenseKey.UNIT_ATTENTION, 0x2F, 0x00),
        Sense(SenseKey.UNIT_ATTENTION, 0x47, 0x7F),
    ],
    ids=str,
)
async def test_what_a_report_says_may_be_lost_is_written_again(connect: Open, report: Sense) -> None:
    san = await connect()
    await san.unit.write(0, b"a" * BLOCK)
    await san.unit.drain()
    assert san.disk.undo_log is not None
    san.disk.undo_log.undo()
    san.disk.faults.append(Fault(report, times=1))
    await san.unit.flush()
    assert san.medium()[:BLOCK] == b"a" * BLOCK
    assert san.unit.failures == 0


async def test_a_write_that_fails_later_is_a_loss_where_there_is_no_cache(connect: Open) -> None:
    san = await connect(write_cache=False)
    await san.unit.write(0, b"a" * BLOCK)
    await san.unit.drain()
    san.disk.faults.append(Fault(Sense(SenseKey.MEDIUM_ERROR, 0x0C, deferred=True), times=1))
    await san.unit.flush()
    assert san.unit.failures == 1
    assert isinstance(san.unit.last_failure, DataLostError)


async def test_a_failed_write_is_reported_and_the_next_succeeds(connect: Open) -> None:
    san = await connect()
    san.disk.faults.append(Fault(WRITE_ERROR, codes=WRITE_CODES, times=1))
    await san.unit.write(0, b"a" * BLOCK)
    await san.unit.flush()
    assert san.unit.failures == 1
    assert isinstance(san.unit.last_failure, MediumError)
    await san.unit.write(0, b"b" * BLOCK)
    await san.unit.flush()
    assert san.unit.failures == 1
    assert san.medium()[:BLOCK] == b"b" * BLOCK


async def test_writes_are_lost_with_a_target_that_stays_away(
    connect: Open, autojump_clock: MockClock
) -> None:
    san = await connect()
    san.trouble.refusing = True
    san.server.drop_connections()
    await san.unit.write(0, b"a" * BLOCK)
    began = trio.current_time()
    await san.unit.drain()
    assert 119 <= trio.current_time() - began <= 130
    assert san.unit.failures == 1
    assert isinstance(san.unit.last_failure, CommandTimeout)


async def test_what_was_accepted_for_a_lost_unit_is_not_written_to_another(connect: Open) -> None:
    san = await connect()
    await san.unit.write(0, b"a" * BLOCK)
    await san.unit.write(0, b"b" * BLOCK)  # waits for the first, which cannot be called back
    san.unit.lose("there is another unit under this number now")
    await san.unit.drain()
    assert san.unit.failures == 1
    assert stored(san, 0, BLOCK) == b"a" * BLOCK
    for failing in san.unit.read(0, 1), san.unit.write(0, b"b"), san.unit.flush():
        with pytest.raises(UnitError, match="another unit"):
            await failing


@pytest.mark.parametrize("write_behind", [True, False])
async def test_a_write_behind_a_disowned_one_is_not_sent_in_its_place(
    connect: Open, nursery: trio.Nursery, write_behind: bool
) -> None:
    """The second waits for the first, which ends when it is disowned."""
    san = await connect(write_behind=write_behind)
    san.unit.queue.suspend()
    ended: list[type[Exception] | None] = []

    async def write(data: bytes) -> None:
        try:
            await san.unit.write(0, data)
        except DataLostError:
            ended.append(DataLostError)
        else:
            ended.append(None)

    for letter in b"ab":
        nursery.start_soon(write, bytes([letter]) * BLOCK)
        await wait_all_tasks_blocked()
    san.unit.disown()
    san.unit.queue.resume()
    await san.unit.drain()
    await wait_all_tasks_blocked()
    assert ended == [None if write_behind else DataLostError] * 2
    assert san.unit.failures == (1 if write_behind else 0)
    assert stored(san, 0, BLOCK) == bytes(BLOCK)


async def test_what_was_accepted_before_the_medium_was_away_goes_to_its_place(
    connect: Open, autojump_clock: MockClock
) -> None:
    """The target has come back, but the disk is not ready yet when it is looked at, and is right after it."""
    san = await connect()
    await san.unit.write(8 * BLOCK, b"a" * BLOCK)
    san.disk.faults.append(Fault(NO_MEDIUM, codes=frozenset({OperationCode.TEST_UNIT_READY}), times=2))
    san.server.drop_connections()
    await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(10)
    await san.unit.flush()
    assert san.disk.faults == [Fault(NO_MEDIUM, codes=frozenset({OperationCode.TEST_UNIT_READY}), times=0)]
    assert san.unit.failures == 0
    assert san.medium() == bytes(8 * BLOCK) + b"a" * BLOCK + bytes(SIZE - 9 * BLOCK)


async def test_a_medium_of_other_blocks_is_another_unit_also_after_a_time_without_one(
    connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = (await connect()).unit
    before = unit.description
    assert before.capacity is not None
    empty = replace(before, capacity=None)
    other = replace(before, capacity=replace(before.capacity, block_size=8 * BLOCK))
    answers = iter([empty, before, empty, other])

    async def describe(_: Queue) -> Description:
        return next(answers)

    monkeypatch.setattr("iscsifs.units.unit.describe", describe)
    assert [await unit.check(unit.queue) for _ in range(4)] == [True, True, True, False]


async def test_writes_past_the_end_of_a_unit_that_shrank_are_lost_alone(connect: Open) -> None:
    san = await connect()
    san.trouble.stall()
    await san.unit.write(0, b"a" * BLOCK)
    await san.unit.write(SIZE - BLOCK, b"z" * BLOCK)
    san.disk.resize(32)
    san.trouble.go_on()
    await san.unit.flush()
    assert san.unit.failures == 1
    assert isinstance(san.unit.last_failure, StatusError)
    assert stored(san, 0, BLOCK) == b"a" * BLOCK


async def test_a_flush_waits_for_a_part_write(connect: Open) -> None:
    san = await connect()
    san.trouble.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(san.unit.write, 10, b"abc")  # which has to read first
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(san.unit.flush)
        await trio.testing.wait_all_tasks_blocked()
        san.trouble.go_on()
    assert san.medium()[10:13] == b"abc"


@pytest.mark.parametrize("busy_polled", [False, True])
async def test_no_memory_for_what_comes_costs_the_connection_and_no_more(
    connect: Open,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    busy_polled: bool,
) -> None:
    san = await connect()
    await san.unit.read(0, BLOCK)
    polls = iter([busy_polled])
    monkeypatch.setattr(Watched, "poll", lambda _: next(polls, False))

    def fail(_: object = None) -> memoryview:
        raise MemoryError

    monkeypatch.setattr(san._session.link.connection, "get_buffer", fail)
    assert await san.unit.read(0, BLOCK) == bytes(BLOCK)
    assert "no memory for what comes; logging in again" in caplog.text
    assert list(polls) == []


async def test_a_write_that_there_is_no_memory_to_send_goes_to_the_next_session(
    connect: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    san = await connect()
    with monkeypatch.context() as patch:
        patch.setattr(Task, "start", without_memory)
        await san.unit.write(0, b"a" * BLOCK)
    await san.unit.flush()
    assert san.unit.failures == 0
    assert san.medium()[:BLOCK] == b"a" * BLOCK
    assert "no memory to send a command; logging in again" in caplog.text


async def test_without_memory_to_send_what_was_kept_the_session_lives_on(
    connect: Open, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    san = await connect()
    san.server.drop_connections()
    await trio.testing.wait_all_tasks_blocked()
    await san.unit.write(0, b"a" * BLOCK)
    new_tag = Exchange.new_tag

    def fail_once(exchange: Exchange, task: Task) -> int:
        monkeypatch.setattr(Exchange, "new_tag", new_tag)
        raise MemoryError

    monkeypatch.setattr(Exchange, "new_tag", fail_once)
    with trio.fail_after(1000):
        await san.unit.flush()
    assert san.unit.failures == 0
    assert san.medium()[:BLOCK] == b"a" * BLOCK


@pytest.mark.parametrize("where", ["start_soon", "judge"])
async def test_a_write_that_there_is_no_memory_to_repeat_is_sent_again_later(
    connect: Open, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, where: str
) -> None:
    san = await connect()
    san.disk.faults.append(Fault(status=Status.BUSY, codes=WRITE_CODES, times=1))
    await san.unit.write(0, b"a" * BLOCK)
    with monkeypatch.context() as patch:
        if where == "start_soon":
            start_soon = trio.Nursery.start_soon

            def start(nursery: trio.Nursery, function: Callable[..., Awaitable[None]], *args: object) -> None:
                if function.__name__ == "_send_later":
                    raise MemoryError
                start_soon(nursery, function, *args)

            patch.setattr(trio.Nursery, "start_soon", start)
        else:
            patch.setattr("iscsifs.units.queue.judge", without_memory)
        with trio.fail_after(1000):
            await san.unit.drain()
    assert san.unit.failures == 0
    await san.unit.flush()
    assert san.medium()[:BLOCK] == b"a" * BLOCK


# Synchronous writes.


@pytest.mark.parametrize("large", [False, True], ids=["WRITE(10)", "WRITE(16)"])
async def test_a_synchronous_write_has_fua_in_every_piece(
    connect: Open, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        monkeypatch.setattr("iscsifs.units.transfers.BLOCKS_IN_REACH_OF_10", 1)
    san = await connect()
    san.unit._transfers.longest = 2 * BLOCK
    await san.unit.write(BLOCK, b"s" * 5 * BLOCK, True)
    assert codes(san) == [OperationCode.WRITE_16 if large else OperationCode.WRITE_10] * 3
    assert all(parse_rw(cdb).fua for cdb in san.trouble.commands)
    assert san.medium()[BLOCK : 6 * BLOCK] == b"s" * 5 * BLOCK
    assert not san.unit.needs_flush


async def test_a_part_of_a_block_is_read_and_written_with_fua(connect: Open) -> None:
    san = await connect()
    await san.unit.write(BLOCK, b"o" * BLOCK)
    await san.unit.write(BLOCK + 10, b"new", True)
    san.disk.drop_cache()
    assert san.medium()[BLOCK : BLOCK + 20] == b"o" * 10 + b"new" + b"o" * 7


async def test_what_a_synchronous_write_makes_zeros_is_so_after_a_crash(connect: Open) -> None:
    san = await connect()
    await san.unit.write(0, b"o" * SIZE)
    await san.unit.flush()
    await san.unit.truncate(0)
    await san.unit.write(4 * BLOCK, b"n" * BLOCK, True)
    assert san.medium()[: 6 * BLOCK] == bytes(4 * BLOCK) + b"n" * BLOCK + b"o" * BLOCK


async def test_a_unit_says_at_each_look_whether_it_honours_fua(
    connect: Open, autojump_clock: MockClock
) -> None:
    san = await connect()
    for honours in False, True:
        san.disk.dpo_fua = honours
        san.disk.establish_attention(MODE_CHANGED)
        await san.unit.read(0, BLOCK)
        await trio.sleep(5)
        san.trouble.commands.clear()
        await san.unit.write(0, b"s" * BLOCK, True)
        expected = [OperationCode.WRITE_10] + [OperationCode.SYNCHRONIZE_CACHE_10] * (not honours)
        assert codes(san) == expected
        assert san.medium()[:BLOCK] == b"s" * BLOCK


async def test_a_piece_of_a_write_that_there_is_no_memory_to_send_is_sent_later(
    connect: Open, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """It ends after those under way: until then nothing newer is sent to the same blocks."""
    san = await connect(write_behind=False)
    san.unit._transfers.longest = BLOCK
    queue = san.unit.queue
    start = queue.start
    pieces = 0

    def fail_the_third(*args: object, **options: object) -> Command:
        nonlocal pieces
        pieces += 1
        if pieces == 3:
            raise MemoryError
        return start(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(queue, "start", fail_the_third)
    await san.unit.write(0, b"a" * 4 * BLOCK)
    assert stored(san, 0, 4 * BLOCK) == b"a" * 4 * BLOCK
    assert codes(san) == [OperationCode.WRITE_10] * 4
