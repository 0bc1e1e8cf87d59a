"""What a command costs, counted and not timed: system calls, copies of the data, and steps of the program."""

import sys
from collections.abc import Awaitable, Callable, Sequence
from types import FrameType
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from iscsifs.iscsi.framing import SCRATCH_LENGTH
from iscsifs.target.disk import Disk
from support.memory_san import San
from support.network import End

KIB = 1024
MIB = 1024 * KIB

HEADERS = 4 * KIB
"""Bytes around the data of a large command, all its PDUs together."""


class CountingSocket(End):
    """The initiator's socket: what it is asked for, and with which memory."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sends: list[list[memoryview]] = []
        self.receives: list[tuple[memoryview, int]] = []

    def sendmsg(self, buffers: Any, *rest: Any) -> int:
        self.sends.append([memoryview(buffer) for buffer in buffers])
        return super().sendmsg(buffers, *rest)

    def recv_into(self, buffer: Any, *rest: Any) -> int:
        count = super().recv_into(buffer, *rest)
        self.receives.append((memoryview(buffer), count))
        return count


@pytest.fixture
async def connected(nursery: trio.Nursery) -> tuple[San, CountingSocket]:
    """A disk of 4 MiB, and the socket that leads there."""
    san = San(nursery, Disk.in_memory(4 * MIB))
    san.network.end = CountingSocket
    await san.log_in()
    await san.unit.read(0, 8 * KIB)  # the first answer of this size makes room for all others
    await wait_all_tasks_blocked()
    line = san.network.ends[-1]
    assert isinstance(line, CountingSocket)
    line.sends.clear()
    line.receives.clear()
    return san, line


ROOMS = ("units", "initiator", "transport")
"""The rooms that only the initiator has: the embedded target, which answers here, shares the others."""


async def calls_of(rooms: Sequence[str], function: Callable[[], Awaitable[object]]) -> int:
    """Count the functions of *rooms* that are called while *function* runs."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        path = frame.f_code.co_filename
        count += event == "call" and any(f"iscsifs/{room}/" in path for room in rooms)

    sys.setprofile(profile)
    try:
        await function()
    finally:
        sys.setprofile(None)
    return count


async def test_a_small_read_is_one_send_and_one_receive(connected: tuple[San, CountingSocket]) -> None:
    san, line = connected
    for number in range(20):
        await san.unit.read(number * 4 * KIB, 4 * KIB)
    assert len(line.sends) == 20
    assert len(line.receives) == 20


async def test_a_small_write_is_one_send_and_one_receive(connected: tuple[San, CountingSocket]) -> None:
    san, line = connected
    for number in range(20):
        await san.unit.write(number * 8 * KIB, bytes(4 * KIB))
        await san.unit.drain()
    assert len(line.sends) == 20
    assert len(line.receives) == 20


async def test_what_comes_at_once_is_sent_at_once(
    connected: tuple[San, CountingSocket], nursery: trio.Nursery
) -> None:
    san, line = connected
    for number in range(32):
        nursery.start_soon(san.unit.read, number * 4 * KIB, 4 * KIB)
    await wait_all_tasks_blocked()
    assert len(line.sends) <= 4


async def test_small_writes_next_to_each_other_become_large_ones(
    connected: tuple[San, CountingSocket],
) -> None:
    san, line = connected
    for number in range(256):
        await san.unit.write(number * 4 * KIB, bytes(4 * KIB))
    await san.unit.drain()
    assert len(san.trouble.commands) <= 16
    assert len(line.sends) <= 16


async def test_what_is_read_is_received_in_its_place(connected: tuple[San, CountingSocket]) -> None:
    san, line = connected
    data = await san.unit.read(0, MIB)
    in_place = sum(count for buffer, count in line.receives if buffer.obj is data.obj)
    assert in_place >= MIB - SCRATCH_LENGTH


async def test_what_is_written_is_sent_from_its_place(connected: tuple[San, CountingSocket]) -> None:
    san, line = connected
    data = bytes(MIB)
    await san.unit.write(0, data)
    await san.unit.drain()
    others = [buffer for buffers in line.sends for buffer in buffers if buffer.obj is not data]
    assert sum(map(len, others)) <= HEADERS


async def test_the_steps_of_a_small_read(connected: tuple[San, CountingSocket]) -> None:
    san, _ = connected

    async def reads() -> None:
        for number in range(50):
            await san.unit.read(number * 4 * KIB, 4 * KIB)

    assert await calls_of(ROOMS, reads) / 50 <= 22
