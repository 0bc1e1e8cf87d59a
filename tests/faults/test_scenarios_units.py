"""Units that are not what they were, and targets that mean harm."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from iscsifs.iscsi.bhs import pack
from iscsifs.iscsi.framing import Buffer
from iscsifs.iscsi.pdu import (
    RESERVED_TAG,
    AsyncEvent,
    AsyncMessage,
    DataIn,
    LoginResponse,
    NopIn,
    TargetPdu,
)
from iscsifs.limits import UNIT_GRACE
from iscsifs.target.disk import Disk
from iscsifs.target.session import Session
from support.memory_site import (
    BEHIND,
    PAGE,
    SIZE,
    File,
    Says,
    World,
    errno_of,
    nothing_was_lost,
    open_world,
    page,
)
from support.trouble import behave

NAME = "iqn.2026-01.example:site LUN 0"


async def outage(world: World, change: Callable[[], object], *writes: tuple[int, bytes]) -> None:
    """Have the target away for 5 s, in which *change* happens and *writes* are asked for."""
    async with world.meanwhile(world.other), trio.open_nursery() as nursery:
        world.site.kill()

        async def write(offset: int, data: bytes) -> None:
            await world.file.write(offset, data)

        for offset, data in writes:
            nursery.start_soon(write, offset, data)
        await trio.sleep(5)
        change()
        world.site.restart()
        await trio.sleep(5)


@BEHIND
async def test_20_a_unit_that_has_grown_is_larger_and_keeps_what_was_written(
    autojump_clock: MockClock, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        await world.file.write(0, page("s"))
        await outage(world, lambda: world.disk.store.resize(2 * SIZE), (PAGE, page("n")))
        assert await world.file.size() == 2 * SIZE
        await world.file.write(2 * SIZE - PAGE, page("e"))
        assert await errno_of(world.file.write(2 * SIZE, b"x")) == "ENOSPC"
        await world.file.fsync()
        assert world.stored(2 * SIZE - PAGE) == page("e")
        await nothing_was_lost(world, page("s") + page("n"))


async def test_20_a_unit_that_grows_while_it_is_in_use_is_larger_soon(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        await world.file.write(0, page("s"))
        world.disk.resize(2 * SIZE // 512)
        assert await world.file.read() == page("s")
        await trio.sleep(5)
        assert await world.file.size() == 2 * SIZE
        await nothing_was_lost(world, page("s"))


@BEHIND
async def test_20_a_unit_that_has_shrunk_fails_the_writes_that_it_has_no_place_for(
    autojump_clock: MockClock, says: Says, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        await world.file.write(0, page("s"))
        await world.file.fsync()
        failed = trio.Event()

        async def beyond() -> None:
            if behind:
                await world.file.write(SIZE - PAGE, page("x"))
                assert await errno_of(world.file.fsync()) == "EIO"
            else:
                assert await errno_of(world.file.write(SIZE - PAGE, page("x"))) == "EIO"
            failed.set()

        async with trio.open_nursery() as nursery:
            world.site.kill()
            nursery.start_soon(beyond)
            await trio.sleep(1)
            world.site.restart()
            world.disk.store.resize(SIZE // 2)
            with trio.fail_after(10):
                await failed.wait()
        assert any("21/00" in line and "LBA 8184" in line for line in says())
        await trio.sleep(5)
        assert await world.file.size() == SIZE // 2
        assert await world.file.read(SIZE // 2) == b""
        assert await errno_of(world.file.write(SIZE // 2, b"x")) == "ENOSPC"
        await world.file.write(PAGE, page("n"))
        await nothing_was_lost(world, page("s") + page("n"))


@BEHIND
async def test_21_another_unit_in_its_place_gets_none_of_its_writes(
    autojump_clock: MockClock, says: Says, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        await world.file.write(0, page("s"))
        await world.file.fsync()
        await world.file.write(PAGE, page("w"))  # perhaps in the target's cache only
        stranger = Disk.in_memory(SIZE, "stranger")
        world.site.disks.append(stranger)

        async def attempt() -> None:
            if behind:
                await world.file.write(2 * PAGE, page("x"))
                assert await errno_of(world.file.fsync()) == "EIO"
            else:
                assert await errno_of(world.file.write(2 * PAGE, page("x"))) == "EIO"
                assert await errno_of(world.file.fsync()) == "EIO"

        async with world.meanwhile(world.other), trio.open_nursery() as nursery:
            world.site.kill()
            nursery.start_soon(attempt)
            await trio.sleep(5)
            world.site.exchange(0, stranger)
            world.site.restart()
        assert any(line == f"{NAME}: there is another unit under this number now" for line in says())
        assert await errno_of(world.file.read()) == "EIO"
        assert await errno_of(world.file.write(0, page("y"))) == "EIO"
        # Its neighbour under the same target has stayed what it was.
        await world.sibling.write(0, page("b"))
        await world.sibling.fsync()
        await trio.sleep(10)
        assert bytes(stranger.store.read(0, SIZE)) == bytes(SIZE)
        # The stranger is to be had under its own name.
        new = await world.open(world.site)
        assert new.inode != world.file.inode
        await new.write(0, page("z"))
        await new.close()
        assert await errno_of(world.file.read()) == "EIO"
        assert world.stored() == page("s")


@BEHIND
async def test_21_another_unit_in_its_place_gets_no_writes_while_the_session_lives(
    autojump_clock: MockClock, says: Says, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        await world.file.write(0, page("s"))
        await world.file.fsync()
        await world.file.write(PAGE, page("w"))  # perhaps in the target's cache only
        await world.sent()  # what is on its way when the exchange is reported cannot be called back
        stranger = Disk.in_memory(SIZE, "stranger")
        world.site.disks.append(stranger)
        world.site.device.attach(0, stranger)
        async with world.meanwhile(world.other):
            if behind:
                await world.file.write(2 * PAGE, page("x"))
            else:
                assert await errno_of(world.file.write(2 * PAGE, page("x"))) == "EIO"
            assert await errno_of(world.file.fsync()) == "EIO"
        assert any(line == f"{NAME}: there is another unit under this number now" for line in says())
        await world.sibling.write(0, page("b"))
        await world.sibling.fsync()
        await trio.sleep(10)
        assert bytes(stranger.store.read(0, SIZE)) == bytes(SIZE)
        assert world.stored() == page("s")


async def test_21_a_unit_that_comes_back_after_another_was_in_its_place_can_be_opened_again(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        await world.file.write(0, page("s"))
        await world.file.fsync()
        stranger = Disk.in_memory(SIZE, "stranger")
        world.site.disks.append(stranger)
        await outage(world, lambda: world.site.exchange(0, stranger))
        assert await errno_of(world.file.read()) == "EIO"
        await outage(world, lambda: world.site.exchange(0, world.disk))
        again = await world.open(world.site)
        assert await again.read() == page("s")


@BEHIND
async def test_21_a_unit_that_was_taken_away_is_an_error_and_its_sibling_stays(
    autojump_clock: MockClock, says: Says, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world:
        world.site.device.detach(0)
        async with world.meanwhile(world.sibling, world.other):
            started = trio.current_time()
            if behind:
                await world.file.write(0, page("n"))
                assert await errno_of(world.file.fsync()) == "EIO"
            else:
                assert await errno_of(world.file.write(0, page("n"))) == "EIO"
            assert UNIT_GRACE <= trio.current_time() - started <= UNIT_GRACE + 3
            assert await errno_of(world.file.read()) in ("EIO", "ENXIO")
            await trio.sleep(5)
        assert any(line.startswith(f"{NAME}: gone: ") for line in says())


@BEHIND
async def test_21_a_unit_that_is_taken_away_and_comes_back_gets_all_that_was_written(
    autojump_clock: MockClock, says: Says, behind: bool
) -> None:
    async with open_world(write_behind=behind) as world, trio.open_nursery() as nursery:
        disk = world.site.device.detach(0)
        async with world.meanwhile(world.sibling, world.other):
            nursery.start_soon(world.file.write, 0, page("n"))
            await trio.sleep(UNIT_GRACE / 2)
            world.site.device.attach(0, disk)
            await trio.sleep(5)
        await world.file.fsync()
        assert world.stored() == page("n")
        assert not any("lost" in line for line in says())


# Hostile targets: what they send after the login, again and again.

Attack = Callable[[Session], Awaitable[None]]


async def garbage(session: Session) -> None:
    await session.wire.send_buffers([bytes(range(256)) * 64])


async def endless_segment(session: Session) -> None:
    header = bytearray(pack(NopIn(0, RESERVED_TAG, 1, 0, 0, 0)))
    header[5:8] = b"\xff\xff\xff"
    await session.wire.send_buffers([bytes(header), bytes(1 << 16)])


async def unasked_data(session: Session) -> None:
    await session.wire.send(DataIn(0x81, 0, 0, 0x7777, RESERVED_TAG, 1, 1, 100, 0, 1 << 31), bytes(512))


async def drops_everything(session: Session) -> None:
    message = AsyncMessage(0, RESERVED_TAG, 1, 1, 100, AsyncEvent.ALL_CONNECTIONS_DROPPED)
    await session.wire.send(message)


async def hangs_up(session: Session) -> None:
    session.wire.close()


async def says_nothing(session: Session) -> None:
    await trio.sleep_forever()


ATTACKS = [garbage, endless_segment, unasked_data, drops_everything, hangs_up, says_nothing]


@BEHIND
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_a_hostile_target_harms_only_itself(
    autojump_clock: MockClock, says: Says, behind: bool, attack: Attack
) -> None:
    async with open_world(write_behind=behind) as world:
        await world.file.write(0, page("s"))
        await world.file.fsync()
        logged_in: set[Session] = set()

        async def misbehave(session: Session, pdu: TargetPdu, data: Buffer) -> bool:
            if session.device is None or isinstance(pdu, LoginResponse):
                return True
            logged_in.add(session)
            await attack(session)
            return False

        world.trouble.on_response = misbehave
        started = trio.current_time()
        async with world.meanwhile(world.other):
            assert await errno_of(world.file.read()) == "EIO"
        assert trio.current_time() - started <= 120 + 60 + 10
        # It is not hammered with logins, and the log is not flooded.
        assert len(logged_in) <= 60
        assert len(says()) <= 3 * len(logged_in) + 10
        world.trouble.on_response = behave
        world.site.server.drop_connections()
        await trio.sleep(10)
        await world.file.write(PAGE, page("n"))
        await nothing_was_lost(world, page("s") + page("n"))


async def test_a_flood_of_pings_leaves_time_for_others(autojump_clock: MockClock, says: Says) -> None:
    """The clock stands still while there is work: this is about turns, not about time."""
    async with open_world() as world:
        sent = 0
        done = trio.Event()

        async def flood() -> None:
            nonlocal sent
            (session,) = world.site.server.sessions
            ping = session.wire.frame(NopIn(0, RESERVED_TAG, 0x77, 0, 1, 100))[0]
            while not done.is_set() and sent < 200_000:
                await session.wire.send_buffers([bytes(ping) * 50])
                await trio.lowlevel.checkpoint()
                sent += 50

        async def use(file: File) -> None:
            for number in range(20):
                await file.write(number * PAGE, page("n"))
                await file.fsync()
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            nursery.start_soon(use, world.other)
        assert 0 < sent < 200_000
