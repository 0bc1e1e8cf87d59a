"""A busy-poll ends as soon as there is something, and skips polls after one without a result."""

import os
import threading
from collections.abc import Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from iscsifs.fs.platform.busy_poll import MAX_BUSY, MAX_IN_A_ROW, MAX_WATCHED, POLLS_SKIPPED, BusyPoller
from iscsifs.fs.platform.platform import NoPlatform
from iscsifs.fs.platform.tuning import Limits


class Wire:
    """A pipe whose reading end is watched."""

    def __init__(self, poller: BusyPoller) -> None:
        self.out_end, self.in_end = os.pipe()
        self.watched = poller.watch(self.out_end)

    def send(self) -> None:
        os.write(self.in_end, b".")

    def receive(self) -> None:
        os.read(self.out_end, 1)

    def close(self) -> None:
        self.watched.close()
        os.close(self.out_end)
        os.close(self.in_end)


@pytest.fixture
def poller() -> BusyPoller:
    return BusyPoller()


@pytest.fixture
def wires(poller: BusyPoller) -> Iterator[list[Wire]]:
    wires = [Wire(poller), Wire(poller)]
    yield wires
    for wire in wires:
        wire.close()


async def test_a_readable_descriptor_is_seen(wires: list[Wire]) -> None:
    wires[0].send()
    assert wires[0].watched.poll()


async def test_a_ready_descriptor_without_callback_ends_a_poll(wires: list[Wire]) -> None:
    wires[1].send()
    assert not wires[0].watched.poll()
    wires[0].send()
    assert wires[0].watched.poll()  # no poll is skipped


async def test_callbacks_of_ready_descriptors_are_run(wires: list[Wire]) -> None:
    served = []

    def serve() -> None:
        wires[1].receive()
        served.append(1)
        if len(served) == 3:
            wires[0].send()

    wires[1].watched.callback = serve
    for _ in range(3):
        wires[1].send()
    assert wires[0].watched.poll()
    assert len(served) == 3


async def test_a_poll_ends_when_a_callback_has_woken_a_task(wires: list[Wire]) -> None:
    woken = trio.Event()

    async def sleeper() -> None:
        await woken.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper)
        await wait_all_tasks_blocked()
        wires[1].watched.callback = woken.set
        wires[1].send()
        assert not wires[0].watched.poll()
        wires[1].receive()


async def test_while_no_task_can_run_a_poll_is_longer(wires: list[Wire]) -> None:
    """As long as a near network takes to answer."""
    answer = threading.Timer(10 * MAX_BUSY, wires[0].send)
    answer.start()
    assert wires[0].watched.poll()
    answer.join()


async def test_callbacks_in_a_row_have_an_end(wires: list[Wire]) -> None:
    served = []
    wires[1].watched.callback = lambda: served.append(1)
    wires[1].send()
    assert not wires[0].watched.poll()
    assert len(served) == MAX_IN_A_ROW


async def test_the_callback_of_a_closed_descriptor_is_not_run(wires: list[Wire]) -> None:
    wires[1].watched.callback = lambda: pytest.fail("served")
    wires[1].send()
    wires[1].watched.close()
    wires[0].send()
    assert wires[0].watched.poll()


async def test_after_a_poll_without_result_polls_are_skipped(wires: list[Wire]) -> None:
    wire = wires[0]
    assert not wire.watched.poll()
    wire.send()
    assert [wire.watched.poll() for _ in range(POLLS_SKIPPED)] == [False] * POLLS_SKIPPED
    assert wire.watched.poll()


async def test_the_event_loop_has_its_turn_after_many_results(wires: list[Wire]) -> None:
    wires[0].send()
    assert [wires[0].watched.poll() for _ in range(MAX_IN_A_ROW + 2)] == [True] * MAX_IN_A_ROW + [False, True]


async def test_among_many_descriptors_nothing_is_polled(wires: list[Wire], poller: BusyPoller) -> None:
    crowd = [Wire(poller) for _ in range(MAX_WATCHED)]
    wires[0].send()
    assert not wires[0].watched.poll()
    for wire in crowd:
        wire.close()
    assert wires[0].watched.poll()


async def test_a_descriptor_that_was_closed_without_a_word_is_forgotten(
    wires: list[Wire], poller: BusyPoller
) -> None:
    careless = Wire(poller)
    os.close(careless.out_end)
    wires[0].send()
    assert not wires[0].watched.poll()
    assert wires[0].watched.poll()
    os.close(careless.in_end)


async def test_a_second_close_spares_the_next_descriptor_of_that_number(
    wires: list[Wire], poller: BusyPoller
) -> None:
    wires[1].watched.close()
    second = poller.watch(wires[1].out_end)
    wires[1].watched.close()
    wires[1].send()
    assert second.poll()


async def test_a_closed_descriptor_is_not_polled(wires: list[Wire]) -> None:
    for wire in wires:
        wire.watched.close()
    assert not wires[0].watched.poll()


async def test_without_a_platform_nothing_is_polled() -> None:
    wire = Wire(NoPlatform(Limits()).poller)
    wire.send()
    assert not wire.watched.poll()
    wire.close()
