"""Targets that answer, but not with what was asked for."""

import os
from itertools import count

import pytest
import trio
from trio.testing import MockClock

from iscsifs.iscsi.framing import Buffer
from iscsifs.iscsi.pdu import DataIn, ScsiResponse, TargetPdu
from iscsifs.scsi.cdb import OperationCode
from iscsifs.scsi.sense import Sense, SenseKey
from iscsifs.scsi.status import Status
from iscsifs.target.session import Session
from iscsifs.target.unit import (
    MODE_CHANGED,
    READ_CODES,
    READ_ERROR,
    SPACE_ALLOCATION_FAILED,
    SYNCHRONIZE_CODES,
    WRITE_CODES,
    WRITE_ERROR,
    Fault,
)
from support.memory_site import (
    BEHIND,
    KERNEL,
    PAGE,
    FailedFlush,
    Once,
    Says,
    World,
    errno_of,
    nothing_was_lost,
    open_world,
    page,
    spoil_data,
    spoil_header,
)
from support.trouble import behave

NAME = "iqn.2026-01.example:site LUN 0"
COMMAND_TIMEOUT = 30.0
LONGEST_DELAY = 2.0  # between two attempts at a busy unit


async def write_fails(world: World, behind: bool, name: str) -> None:
    """Write a page at offset 0 and hold that its writer is told *name*: at once, or by fsync."""
    if behind:
        await world.file.write(0, page("n"))
        assert await errno_of(world.file.fsync()) == name
    else:
        assert await errno_of(world.file.write(0, page("n"))) == name


async def test_11_data_with_a_wrong_digest_are_read_again(autojump_clock: MockClock, says: Says) -> None:
    async with open_world(digests="all") as world:
        world.disk.store.write(0, page("x"))
        world.trouble.on_response = once = Once(DataIn, spoil_data)
        async with world.meanwhile(world.other):
            assert await world.file.read() == page("x")
        assert once.done
        (line,) = says()
        assert "DATA_IN: the data digest is wrong (RFC 7143 section 7.8)" in line


@BEHIND
async def test_12_a_header_with_a_wrong_digest_is_not_believed(
    autojump_clock: MockClock, says: Says, behind: bool
) -> None:
    async with open_world(digests="all", write_behind=behind) as world:
        world.trouble.on_response = once = Once(ScsiResponse, spoil_header)
        async with world.meanwhile(world.other):
            await world.file.write(0, page("n"))
            await nothing_was_lost(world, page("n"))
        assert once.done
        (line,) = says()
        assert "the header digest is wrong (RFC 7143 section 7.8)" in line


@pytest.mark.parametrize("spoil", [spoil_data, spoil_header])
async def test_11_and_12_digests_that_are_always_wrong_end_with_an_error(
    autojump_clock: MockClock, says: Says, spoil: object
) -> None:
    async def always(session: Session, pdu: TargetPdu, data: Buffer) -> bool:
        if isinstance(pdu, DataIn) and len(data) == PAGE:
            await spoil(session, pdu, data)  # type: ignore[operator]
            return False
        return True

    async with open_world(digests="all") as world:
        world.trouble.on_response = always
        started = trio.current_time()
        async with world.meanwhile(world.other):
            assert await errno_of(world.file.read()) == "EIO"
        assert trio.current_time() - started < 60
        assert any("5 sessions were lost with it" in line for line in says())


@pytest.mark.parametrize("missing", [1, 512, PAGE - 1, PAGE])
async def test_13_missing_data_are_an_error_and_not_zeros(
    autojump_clock: MockClock, says: Says, missing: int
) -> None:
    async with open_world() as world:
        world.disk.store.write(0, page("x"))
        world.disk.faults.append(Fault(status=Status.GOOD, codes=READ_CODES, cut=missing, times=1))
        async with world.meanwhile(world.other, world.sibling):
            assert await errno_of(world.file.read()) == "EIO"
            assert await world.file.read() == page("x")
        assert f"{PAGE - missing} of {PAGE} bytes" in says()[0]
        assert world.site.connections == 1


@BEHIND
@pytest.mark.parametrize("status", [Status.BUSY, Status.TASK_SET_FULL], ids=lambda status: status.name)
async def test_14_a_unit_that_is_busy_for_5_s_is_asked_again(
    autojump_clock: MockClock, says: Says, behind: bool, status: Status
) -> None:
    async with open_world(write_behind=behind) as world:
        started = trio.current_time()
        world.disk.faults.append(Fault(status=status))
        async with world.meanwhile(world.sibling, world.other), trio.open_nursery() as nursery:
            nursery.start_soon(world.file.write, 0, page("n"))
            nursery.start_soon(world.file.read, 8 * PAGE)
            await trio.sleep(5)
            world.disk.faults.clear()
        await nothing_was_lost(world, page("n"))
        assert trio.current_time() - started <= 5 + LONGEST_DELAY
        assert len(world.trouble.sent(OperationCode.READ_10)) < 20  # with growing pauses, that is
        assert says() == []


@BEHIND
async def test_15_a_unit_that_is_busy_for_ever_is_given_up(
    autojump_clock: MockClock, says: Says, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        await world.file.write(0, page("s"))
        await world.file.fsync()
        world.disk.faults.append(Fault(status=Status.BUSY))
        started = trio.current_time()
        async with world.meanwhile(world.sibling, world.other), trio.open_nursery() as nursery:

            async def reading() -> None:
                assert await errno_of(world.file.read(PAGE)) == "EIO"

            nursery.start_soon(reading)
            await write_fails(world, behind, "EIO")
        # An fsync behind a write is two commands.
        elapsed = trio.current_time() - started
        assert COMMAND_TIMEOUT <= elapsed <= (1 + behind) * (COMMAND_TIMEOUT + LONGEST_DELAY)
        assert f"{NAME}: READ(10) LBA 8, 8 blocks: BUSY for 30 s" in "\n".join(says())
        world.disk.faults.clear()
        await world.file.write(PAGE, page("N"))
        await world.file.fsync()
        assert world.stored(PAGE) == page("N")
        assert world.stored() in (page("s"), page("n"))


@BEHIND
@pytest.mark.parametrize("step", [1, 2, 3, 5, 8])
async def test_16_a_power_failure_in_the_middle_of_load_loses_nothing(
    autojump_clock: MockClock, behind: bool, step: int
) -> None:
    """Eight writers with a flush of their own now and then; the cache goes with every 13th answer."""
    pages = 6
    written: dict[int, bytes] = {}
    safe: dict[int, bytes] = {}
    async with open_world(write_behind=behind) as world:
        answers = count(step)
        losses = 0

        async def power_fails(session: Session, pdu: TargetPdu, data: Buffer) -> bool:
            nonlocal losses
            await trio.sleep(0.001)
            if session.device is not None and next(answers) % 13 == 0 and losses < 10:
                losses += 1
                world.disk.drop_cache()
                for offset, contents in safe.items():
                    # What came after the flush may be there as well.
                    assert world.stored(offset) in (contents, written[offset])
            return True

        async def writer(number: int) -> None:
            mine = {}
            for turn in range(3):
                for index in range(pages):
                    offset = (number * pages + index) * PAGE
                    mine[offset] = written[offset] = page(chr(ord("A") + (number + turn * 8) % 26))
                    safe.pop(offset, None)  # between two flushes it may be either
                    await world.file.write(offset, written[offset])
                await world.file.fsync()
                safe.update(mine)

        world.trouble.on_response = power_fails
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(writer, number)
        assert losses > 2
        world.trouble.on_response = behave
        assert safe == written
        await nothing_was_lost(world, b"".join(written[offset] for offset in sorted(written)))


@BEHIND
async def test_16_a_write_that_was_answered_behind_the_report_of_the_power_failure_is_not_trusted(
    autojump_clock: MockClock, behind: bool
) -> None:
    """The target applies it, loses its cache, reports that for a read, and only then says GOOD."""
    async with open_world(write_behind=behind) as world:
        held: list[ScsiResponse] = []

        async def overtake(session: Session, pdu: TargetPdu, data: Buffer) -> bool:
            if isinstance(pdu, ScsiResponse) and pdu.status == Status.GOOD and not held:
                held.append(pdu)
                world.disk.drop_cache()
                return False
            if isinstance(pdu, ScsiResponse) and pdu.status == Status.CHECK_CONDITION:
                world.trouble.on_response = behave
                await session.wire.send(pdu._replace(stat_sn=held[0].stat_sn), data)
                await trio.sleep(0.01)
                await session.wire.send(held[0]._replace(stat_sn=pdu.stat_sn))
                return False
            return True

        world.trouble.on_response = overtake
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.file.write, 0, page("n"))
            await trio.sleep(0.1)
            assert held
            assert await world.file.read(PAGE) == bytes(PAGE)
        await nothing_was_lost(world, page("n"))


@BEHIND
async def test_16_a_reset_by_another_initiator_is_no_reason_to_complain(
    autojump_clock: MockClock, says: Says, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        await world.file.write(0, page("n"))
        world.disk.reset()
        assert await world.file.read() == page("n")
        await nothing_was_lost(world, page("n"))
        assert says() == []


async def test_17_one_block_that_cannot_be_read_is_the_only_one(
    autojump_clock: MockClock, says: Says
) -> None:
    async with open_world() as world:
        world.disk.store.write(0, page("x", 16))
        world.disk.faults.append(Fault(READ_ERROR, codes=READ_CODES, blocks=range(37, 38)))
        async with world.meanwhile(world.sibling, world.other):
            for number in range(16):
                if number == 4:
                    assert await errno_of(world.file.read(number * PAGE)) == "EIO"
                else:
                    assert await world.file.read(number * PAGE) == page("x")
        assert f"{NAME}: READ(10) LBA 32, 8 blocks: MEDIUM ERROR 11/00" in says()[0]
        assert "LBA 37" in says()[0].partition("11/00")[2]


@BEHIND
async def test_17_one_block_that_cannot_be_written_takes_no_others_with_it(
    autojump_clock: MockClock, says: Says, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        await world.file.write(0, page("o", 16))
        await world.file.fsync()
        world.disk.faults.append(Fault(WRITE_ERROR, codes=WRITE_CODES, blocks=range(37, 38)))
        async with world.meanwhile(world.sibling, world.other):
            for number in range(16):
                if number == 4 and not behind:
                    assert await errno_of(world.file.write(number * PAGE, page("n"))) == "EIO"
                else:
                    await world.file.write(number * PAGE, page("n"))
            if behind:
                assert await errno_of(world.file.fsync()) == "EIO"
        await world.file.fsync()
        assert world.stored(0, 4 * PAGE) == page("n", 4)
        assert world.stored(5 * PAGE, 11 * PAGE) == page("n", 11)
        assert await world.file.read(4 * PAGE) == world.stored(4 * PAGE)
        assert world.stored(4 * PAGE) == page("o")
        assert any("MEDIUM ERROR 0c/00: write error, LBA 37" in line for line in says())


@BEHIND
async def test_18_a_thin_pool_that_is_full_is_no_space_and_nothing_else(
    autojump_clock: MockClock, says: Says, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        await world.file.write(PAGE, page("s"))
        await world.file.fsync()
        world.disk.faults.append(Fault(SPACE_ALLOCATION_FAILED, codes=WRITE_CODES))
        async with world.meanwhile(world.sibling, world.other):
            await write_fails(world, behind, "ENOSPC")
            await world.file.fsync()
        assert any("27/07: space allocation failed write protect" in line for line in says())
        assert await world.file.read(0, 2 * PAGE) == bytes(PAGE) + page("s")
        world.disk.faults.clear()
        await world.file.write(0, page("n"))
        await nothing_was_lost(world, page("n") + page("s"))


@BEHIND
async def test_19_write_protection_turned_on_is_a_read_only_file(
    autojump_clock: MockClock, says: Says, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        await world.file.write(PAGE, page("s"))
        await world.file.fsync()
        world.disk.read_only = True
        world.disk.establish_attention(MODE_CHANGED)
        async with world.meanwhile(world.sibling, world.other):
            await write_fails(world, behind, "EROFS")
            await trio.sleep(5)
        assert any("DATA PROTECT 27/00: write protected" in line for line in says())
        assert await world.file.read(0, 2 * PAGE) == bytes(PAGE) + page("s")
        assert await errno_of(world.operations.open(world.file.inode, os.O_RDWR, KERNEL)) == "EROFS"
        assert (await world.operations.getattr(world.file.inode, KERNEL)).st_mode & 0o777 == 0o400
        # And off again.
        world.disk.read_only = False
        world.disk.establish_attention(MODE_CHANGED)
        await world.file.read()
        await trio.sleep(5)
        again = await world.open(world.site)
        await again.write(0, page("n"))
        await again.close()
        await nothing_was_lost(world, page("n") + page("s"))


@BEHIND
@pytest.mark.parametrize(
    "sense",
    [WRITE_ERROR, Sense(SenseKey.HARDWARE_ERROR, 0x44), Sense(SenseKey.ABORTED_COMMAND, 0x10)],
    ids=str,
)
async def test_22_a_flush_that_fails_is_an_error_and_its_data_are_written_again_before_the_next(
    autojump_clock: MockClock, says: Says, behind: bool, sense: Sense
) -> None:
    async with open_world(write_behind=behind) as world:
        another = await world.open(world.site)
        await world.file.write(0, page("n"))
        # The target does not say what it has kept of its cache: here, nothing.
        world.disk.faults.append(FailedFlush(world.disk, sense))
        async with world.meanwhile(world.sibling, world.other):
            assert await errno_of(world.file.fsync()) == "EIO"
        assert any("SYNCHRONIZE CACHE(10)" in line for line in says())
        await another.fsync()
        assert world.stored() == page("n")
        await another.close()
        await nothing_was_lost(world, page("n"))


@BEHIND
async def test_22_flushes_fail_as_long_as_the_target_fails_them(
    autojump_clock: MockClock, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        another = await world.open(world.site)
        await world.file.write(0, page("n"))
        world.disk.faults.append(Fault(WRITE_ERROR, codes=SYNCHRONIZE_CODES))
        async with world.meanwhile(world.sibling, world.other):
            for _ in range(3):
                assert await errno_of(world.file.fsync()) == "EIO"
                assert await errno_of(another.fsync()) == "EIO"
        assert await world.file.read() == page("n")
        world.disk.faults.clear()
        await nothing_was_lost(world, page("n"))


@BEHIND
async def test_23_writers_of_parts_of_one_block_do_not_undo_each_other(
    autojump_clock: MockClock, behind: bool
) -> None:
    async def slow(session: Session, pdu: TargetPdu, data: Buffer) -> bool:
        await trio.sleep(0.01)
        return True

    async with open_world(write_behind=behind, disk={"block_size": 4096}) as world:
        world.disk.store.write(0, page("o", 3))
        world.trouble.on_response = slow
        expected = bytearray(page("o", 3))
        async with world.meanwhile(world.other), trio.open_nursery() as nursery:
            for number in range(20):
                start, length = 100 + 500 * number, 499
                piece = bytes([ord("A") + number]) * length
                expected[start : start + length] = piece
                nursery.start_soon(world.file.write, start, piece)
                if number % 5 == 0:
                    nursery.start_soon(world.file.fsync)
        await nothing_was_lost(world, bytes(expected))


@BEHIND
async def test_23_a_part_block_write_whose_read_fails_changes_nothing(
    autojump_clock: MockClock, says: Says, behind: bool
) -> None:
    async with open_world(write_behind=behind, disk={"block_size": 4096}) as world:
        world.disk.store.write(0, page("o", 2))
        world.disk.faults.append(Fault(READ_ERROR, codes=READ_CODES, times=1))
        assert await errno_of(world.file.write(100, b"never")) == "EIO"
        assert world.trouble.sent(*WRITE_CODES) == []
        await world.file.write(100, b"again")
        await nothing_was_lost(world, page("o")[:100] + b"again" + page("o", 2)[105:])


@BEHIND
async def test_24_a_caller_that_is_killed_in_the_middle_leaves_old_or_new_blocks_and_no_trap(
    autojump_clock: MockClock, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        await world.file.write(0, page("o", 256))
        await world.file.fsync()
        world.trouble.stall()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.file.write, 0, page("1", 256))
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        async with world.meanwhile(world.other), trio.open_nursery() as nursery:
            # What comes after the abandoned write comes after it on the disk, too.
            nursery.start_soon(world.file.write, PAGE, page("2"))
            await trio.sleep(1)
            world.trouble.go_on()
        await world.file.fsync()
        assert world.stored(PAGE) == page("2")
        for number in {0, *range(2, 256)}:
            assert world.stored(number * PAGE) in (page("o"), page("1"))
        await nothing_was_lost(world, world.stored(0, 256 * PAGE))


async def test_24_a_caller_that_is_killed_while_it_reads_gives_its_command_back(
    autojump_clock: MockClock, says: Says
) -> None:
    async with open_world(disk={"block_size": 4096}) as world:
        world.trouble.stall()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.file.read)
            nursery.start_soon(world.file.write, 10, b"part")
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        world.trouble.go_on()
        await trio.sleep(5)
        await world.file.write(0, page("n"))
        await nothing_was_lost(world, page("n"))
        assert world.site.connections == 1
        assert says() == []
