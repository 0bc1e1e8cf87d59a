"""Connections that are lost, and targets that are away: nothing that was written is lost with them."""

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from iscsifs.iscsi.framing import Buffer
from iscsifs.iscsi.pdu import DataIn, DataOut, Pdu, ScsiCommand, ScsiResponse, TargetPdu
from iscsifs.scsi.cdb import OperationCode
from iscsifs.target.session import Session
from support.memory_site import (
    BEHIND,
    PAGE,
    Once,
    Says,
    close,
    errno_of,
    nothing_was_lost,
    open_world,
    page,
    reset,
)

NAME = "iqn.2026-01.example:site"
TIME2WAIT = 2.0  # seconds; what both sides agree on by default: so long a lost connection is left alone
PING = 5.0 + 5.0  # the interval of pings, and the wait for their answers
TICK = 1.0  # of the session's clock: every time-out may come that much later
LOGIN = 15.0  # one login may take so long
REPLACEMENT = 120.0


@BEHIND
@pytest.mark.parametrize("cut", [reset, close], ids=["RST", "FIN"])
async def test_1_a_connection_cut_during_data_out_costs_time_and_nothing_else(
    autojump_clock: MockClock, says: Says, behind: bool, cut: Callable[..., None]
) -> None:
    async with open_world(write_behind=behind) as world:
        world.trouble.on_request = once = Once(DataOut, cut)
        started = trio.current_time()
        async with world.meanwhile(world.other):
            await world.file.write(0, page("n", 256))
            await nothing_was_lost(world, page("n", 256))
        assert once.done
        assert world.site.connections == 2
        assert TIME2WAIT <= trio.current_time() - started <= TIME2WAIT + TICK
        (line,) = says()
        assert line.startswith(f"{NAME}: ")
        assert line.endswith("; logging in again")


@pytest.mark.parametrize("length", [1, 20, 47, 48, 49, 48 + PAGE - 1])
async def test_2_an_answer_that_ends_in_the_middle_is_never_taken_for_data(
    autojump_clock: MockClock, says: Says, length: int
) -> None:
    async def send_part(session: Session, pdu: TargetPdu, data: Buffer) -> None:
        await session.wire.send_part(length, pdu, data)
        session.wire.close()

    async with open_world() as world:
        world.disk.store.write(0, page("x"))
        world.trouble.on_response = once = Once(DataIn, send_part)  # type: ignore[arg-type]
        async with world.meanwhile(world.other):
            assert await world.file.read() == page("x")
        assert once.done
        assert world.site.connections == 2
        (line,) = says()
        assert "closed" in line


@BEHIND
async def test_3_silence_of_30_s_is_sat_out_and_the_neighbour_does_not_notice(
    autojump_clock: MockClock, says: Says, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        await world.file.write(0, page("o"))
        await world.file.fsync()
        world.trouble.stall()
        started = trio.current_time()
        async with world.meanwhile(world.other), trio.open_nursery() as nursery:
            nursery.start_soon(world.file.write, 0, page("n"))
            await trio.sleep(30)
            assert world.stored() == page("o")
            world.trouble.go_on()
        await nothing_was_lost(world, page("n"))
        assert trio.current_time() - started <= 30 + LOGIN
        assert says()[0] == f"{NAME}: no answer to a ping, and nothing else for 10 s; logging in again"


async def test_3_silence_that_the_user_allows_does_not_even_cost_the_connection(
    autojump_clock: MockClock, says: Says
) -> None:
    async with open_world(ping_interval=0, command_timeout=60) as world:
        world.trouble.stall()
        async with world.meanwhile(world.other), trio.open_nursery() as nursery:
            nursery.start_soon(world.file.write, 0, page("n"))
            await trio.sleep(30)
            world.trouble.go_on()
        await nothing_was_lost(world, page("n"))
        assert world.site.connections == 1
        assert says() == []


@BEHIND
async def test_4_silence_beyond_the_deadline_is_an_error_for_all_that_waits_and_then_it_goes_on(
    autojump_clock: MockClock, says: Says, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        await world.file.write(0, page("s"))
        await world.file.fsync()
        world.trouble.stall()
        started = trio.current_time()
        ended: dict[str, float] = {}

        async def reading() -> None:
            assert await errno_of(world.file.read(5 * PAGE)) == "EIO"
            ended["read"] = trio.current_time() - started

        async def writing() -> None:
            if behind:
                await world.file.write(PAGE, page("n"))
                assert trio.current_time() == started
                assert await errno_of(world.file.fsync()) == "EIO"
            else:
                assert await errno_of(world.file.write(PAGE, page("n"))) == "EIO"
            ended["write"] = trio.current_time() - started

        async with world.meanwhile(world.other):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reading)
                nursery.start_soon(writing)
            for seconds in ended.values():
                assert REPLACEMENT <= seconds <= PING + REPLACEMENT + 4 * TICK
            # What comes now need not wait as long again.
            with trio.fail_after(0.1):
                assert await errno_of(world.file.read()) == "EIO"
            await trio.sleep(100)
            world.trouble.go_on()
            await trio.sleep(LOGIN + 5)
        assert f"{NAME}: the target has been away for more than 120 seconds; still trying" in says()
        with trio.fail_after(0.1):
            assert await world.file.read() == page("s")
            assert world.stored(PAGE) in (bytes(PAGE), page("n"))
            await world.file.write(PAGE, page("N"))
            await nothing_was_lost(world, page("s") + page("N"))


@BEHIND
async def test_4_a_loss_is_told_to_each_open_file_once(autojump_clock: MockClock, behind: bool) -> None:
    async with open_world(write_behind=behind) as world:
        another = await world.open(world.site)
        world.trouble.stall()
        if behind:
            await world.file.write(0, page("n"))
            assert await errno_of(world.file.fsync()) == "EIO"
            world.trouble.go_on()
            await trio.sleep(LOGIN + 5)
            assert await errno_of(another.fsync()) == "EIO"
        else:
            # Who wrote it knows already; for everybody else nothing has been acknowledged.
            assert await errno_of(world.file.write(0, page("n"))) == "EIO"
            world.trouble.go_on()
            await trio.sleep(LOGIN + 5)
        await another.fsync()
        await world.file.fsync()
        await (await world.open(world.site)).close()
        await another.close()
        await world.file.close()


@BEHIND
@pytest.mark.parametrize("seconds", [1.0, 4.0, 9.0, 11.0, 20.0, 60.0])
async def test_5_a_target_that_is_stopped_and_continued_has_everything_in_the_end(
    autojump_clock: MockClock, says: Says, behind: bool, seconds: float
) -> None:
    contents = b"".join(page(letter) for letter in "abcdefgh")
    async with open_world(write_behind=behind) as world:
        async with world.meanwhile(world.other), trio.open_nursery() as nursery:
            for number in range(8):
                if number == 3:
                    world.trouble.stall()
                start = number * PAGE
                nursery.start_soon(world.file.write, start, contents[start : start + PAGE])
            await trio.sleep(seconds)
            world.trouble.go_on()
        await nothing_was_lost(world, contents)
        assert (world.site.connections == 1) == (says() == []) == (seconds < PING)


@BEHIND
async def test_6_a_target_that_is_killed_and_restarted_with_its_data_goes_on(
    autojump_clock: MockClock, says: Says, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        await world.file.write(0, page("a"))
        async with world.meanwhile(world.other), trio.open_nursery() as nursery:
            world.site.kill()
            nursery.start_soon(world.file.write, PAGE, page("b"))
            await trio.sleep(20)
            world.site.restart()
            killed = trio.current_time()
        await nothing_was_lost(world, page("a") + page("b"))
        assert trio.current_time() - killed <= 5 + TICK  # the longest delay between two attempts
        assert says()[1] == f"{NAME}: site.example:3260: Connection refused; still trying"
        assert len(says()) == 2


@BEHIND
async def test_7_what_was_in_the_cache_of_a_target_that_was_killed_is_written_again(
    autojump_clock: MockClock, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        await world.file.write(0, page("s"))
        await world.file.fsync()
        await world.file.write(PAGE, page("n"))
        await world.sent()
        world.site.kill()
        world.disk.drop_cache()
        assert world.stored(0, 2 * PAGE) == page("s") + bytes(PAGE)
        async with world.meanwhile(world.other):
            await trio.sleep(5)
            world.site.restart()
            assert await world.file.read(0, 2 * PAGE) == page("s") + page("n")
        await nothing_was_lost(world, page("s") + page("n"))


@BEHIND
async def test_8_a_write_whose_status_was_lost_is_done_once_more(
    autojump_clock: MockClock, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        world.trouble.on_response = once = Once(ScsiResponse, reset)
        async with world.meanwhile(world.other), trio.open_nursery() as nursery:
            nursery.start_soon(world.file.write, 0, page("n"))
            await trio.sleep(0.1)
            assert once.done
            assert world.stored() == page("n")  # applied, and nobody knows
            world.disk.store.write(0, page("?"))  # to see the second time
        await nothing_was_lost(world, page("n"))
        assert len(world.trouble.sent(OperationCode.WRITE_10)) >= 2


@BEHIND
@pytest.mark.parametrize("where", ["before", "after"])
async def test_9_of_two_overlapping_writes_at_a_cut_the_later_one_wins(
    autojump_clock: MockClock, behind: bool, where: str
) -> None:
    async with open_world(write_behind=behind) as world:
        if where == "before":
            world.trouble.on_request = once = Once(ScsiCommand, reset)
        else:
            world.trouble.on_response = once = Once(ScsiResponse, reset)
        async with world.meanwhile(world.other), trio.open_nursery() as nursery:
            nursery.start_soon(world.file.write, 0, page("1", 2))
            await trio.lowlevel.checkpoint()
            nursery.start_soon(world.file.write, PAGE, page("2", 2))
        assert await world.file.read(0, 3 * PAGE) == page("1") + page("2", 2)
        await nothing_was_lost(world, page("1") + page("2", 2))
        assert once.done


@BEHIND
async def test_10_a_late_write_of_the_old_connection_does_not_undo_a_newer_one(
    autojump_clock: MockClock, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        late = trio.Event()

        async def delay(session: Session, pdu: Pdu) -> bool:
            if isinstance(pdu, ScsiCommand) and pdu.cdb[0] == OperationCode.WRITE_10 and session.number == 0:
                await late.wait()
            return True

        world.trouble.on_request = delay
        async with world.meanwhile(world.other):
            await world.file.write(0, page("1"))
            await world.file.write(0, page("2"))
            await world.file.fsync()
            assert world.stored() == page("2")
            late.set()
            await trio.sleep(1)
        # The same initiator port asks for a new session: that is what kills the tasks of the old one.
        assert world.site.connections == 2
        ((isid, tsih),) = {(login.isid, login.tsih) for login in world.trouble.logins}
        assert isid[0] == 0x80
        assert tsih == 0
        await nothing_was_lost(world, page("2"))


async def test_a_flush_that_is_under_way_at_a_cut_is_done_in_the_next_session(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        await world.file.write(0, page("n"))
        await world.file.fsync()
        world.trouble.on_response = once = Once(ScsiResponse, reset)
        await world.file.fsync()
        assert once.done
        assert len(world.trouble.sent(OperationCode.SYNCHRONIZE_CACHE_10)) >= 3
