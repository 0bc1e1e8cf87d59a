"""A moment's wait ends as soon as there is something, and is not spent in vain time and again."""

import os
import threading
from collections.abc import Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from iscsifs.moment import BRIEF, IN_A_ROW, MAX_WATCHED, PENANCE, Moment


class Wire:
    """A pipe with a moment for its reading end."""

    def __init__(self) -> None:
        self.out_end, self.in_end = os.pipe()
        self.moment = Moment(self.out_end)

    def send(self) -> None:
        os.write(self.in_end, b".")

    def receive(self) -> None:
        os.read(self.out_end, 1)

    def close(self) -> None:
        self.moment.close()
        os.close(self.out_end)
        os.close(self.in_end)


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Wire]]:
    monkeypatch.setattr("iscsifs.moment._watched", {})  # not what other tests have left
    wires = [Wire(), Wire()]
    yield wires
    for wire in wires:
        wire.close()


async def test_what_is_there_is_seen(wires: list[Wire]) -> None:
    wires[0].send()
    assert wires[0].moment.wait()


async def test_what_others_wait_for_ends_the_moment(wires: list[Wire]) -> None:
    wires[1].send()
    assert not wires[0].moment.wait()
    wires[0].send()
    assert wires[0].moment.wait()  # that was no wait in vain


async def test_who_can_be_served_in_the_meantime_is(wires: list[Wire]) -> None:
    served = []

    def serve() -> None:
        wires[1].receive()
        served.append(1)
        if len(served) == 3:
            wires[0].send()

    wires[1].moment.serve = serve
    for _ in range(3):
        wires[1].send()
    assert wires[0].moment.wait()
    assert len(served) == 3


async def test_the_wait_ends_when_serving_others_has_woken_somebody(wires: list[Wire]) -> None:
    woken = trio.Event()

    async def sleeper() -> None:
        await woken.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper)
        await wait_all_tasks_blocked()
        wires[1].moment.serve = woken.set
        wires[1].send()
        assert not wires[0].moment.wait()
        wires[1].receive()


async def test_while_nobody_else_can_run_a_moment_is_longer(wires: list[Wire]) -> None:
    """As long as a near network takes to answer."""
    answer = threading.Timer(10 * BRIEF, wires[0].send)
    answer.start()
    assert wires[0].moment.wait()
    answer.join()


async def test_serving_others_has_an_end(wires: list[Wire]) -> None:
    served = []
    wires[1].moment.serve = lambda: served.append(1)
    wires[1].send()
    assert not wires[0].moment.wait()
    assert len(served) == IN_A_ROW


async def test_who_is_closed_is_served_no_more(wires: list[Wire]) -> None:
    wires[1].moment.serve = lambda: pytest.fail("served")
    wires[1].send()
    wires[1].moment.close()
    wires[0].send()
    assert wires[0].moment.wait()


async def test_after_a_wait_in_vain_nobody_waits_for_some_time(wires: list[Wire]) -> None:
    wire = wires[0]
    assert not wire.moment.wait()
    wire.send()
    assert [wire.moment.wait() for _ in range(PENANCE)] == [False] * PENANCE
    assert wire.moment.wait()


async def test_the_loop_has_its_turn_now_and_then(wires: list[Wire]) -> None:
    wires[0].send()
    assert [wires[0].moment.wait() for _ in range(IN_A_ROW + 2)] == [True] * IN_A_ROW + [False, True]


async def test_among_many_nobody_waits(wires: list[Wire]) -> None:
    crowd = [Wire() for _ in range(MAX_WATCHED)]
    wires[0].send()
    assert not wires[0].moment.wait()
    for wire in crowd:
        wire.close()
    assert wires[0].moment.wait()


async def test_what_was_closed_without_a_word_is_in_nobody_s_way(wires: list[Wire]) -> None:
    careless = Wire()
    os.close(careless.out_end)
    wires[0].send()
    assert not wires[0].moment.wait()
    assert wires[0].moment.wait()
    os.close(careless.in_end)


async def test_a_second_close_is_not_that_of_who_has_the_number_now(wires: list[Wire]) -> None:
    wires[1].moment.close()
    second = Moment(wires[1].out_end)
    wires[1].moment.close()
    wires[1].send()
    assert second.wait()


async def test_who_is_closed_waits_for_nothing(wires: list[Wire]) -> None:
    for wire in wires:
        wire.moment.close()
    assert not wires[0].moment.wait()
