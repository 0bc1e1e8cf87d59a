"""Overlapping writes go one after the other, in their order; a drain waits for those before it."""

import trio
from trio.testing import wait_all_tasks_blocked

from iscsifs.units.admission import Admission
from iscsifs.units.extents import ExtentMap


def an_admission() -> Admission:
    return Admission(ExtentMap(), max_unwritten=1)


class Writer:
    """Somebody who enters *start* to *end*, and leaves when told."""

    def __init__(self, admission: Admission, start: int, end: int) -> None:
        self.inside = False
        self.scope = trio.CancelScope()
        self._admission = admission
        self._range = start, end
        self._leave = trio.Event()

    async def run(self) -> None:
        with self.scope:
            async with self._admission.turn(*self._range):
                self.inside = True
                await self._leave.wait()

    async def leave(self) -> None:
        self._leave.set()
        await wait_all_tasks_blocked()


async def start(nursery: trio.Nursery, admission: Admission, *spans: tuple[int, int]) -> list[Writer]:
    """Start one writer after the other."""
    writers = []
    for span in spans:
        writers.append(Writer(admission, *span))
        nursery.start_soon(writers[-1].run)
        await wait_all_tasks_blocked()
    return writers


async def begin_to_drain(nursery: trio.Nursery, admission: Admission) -> trio.Event:
    """Start a drain; the event is set when it has ended."""
    drained = trio.Event()

    async def drain() -> None:
        await admission.drain()
        drained.set()

    nursery.start_soon(drain)
    await wait_all_tasks_blocked()
    return drained


async def test_neighbours_do_not_wait_for_each_other(nursery: trio.Nursery) -> None:
    first, second = await start(nursery, an_admission(), (0, 10), (10, 20))
    assert first.inside
    assert second.inside
    await first.leave()
    await second.leave()


async def test_overlapping_ones_go_in_the_order_of_their_arrival(nursery: trio.Nursery) -> None:
    first, second, third = await start(nursery, an_admission(), (0, 10), (5, 15), (12, 20))
    assert not second.inside
    assert not third.inside  # although the first does not touch it
    await first.leave()
    assert second.inside
    assert not third.inside
    await second.leave()
    assert third.inside
    await third.leave()


async def test_one_that_gives_up_is_waited_for_no_more(nursery: trio.Nursery) -> None:
    first, second, third = await start(nursery, an_admission(), (0, 10), (5, 15), (12, 20))
    second.scope.cancel()
    await wait_all_tasks_blocked()
    assert third.inside
    assert first.inside
    await first.leave()
    await third.leave()


async def test_a_drain_waits_for_all_that_came_before_it(nursery: trio.Nursery) -> None:
    admission = an_admission()
    first, second = await start(nursery, admission, (0, 10), (5, 15))
    drained = await begin_to_drain(nursery, admission)
    (late,) = await start(nursery, admission, (20, 30))
    await first.leave()
    assert not drained.is_set()
    await second.leave()
    assert drained.is_set()
    await late.leave()


async def test_a_drain_does_not_wait_for_what_ended_while_it_waited_for_another(
    nursery: trio.Nursery,
) -> None:
    admission = an_admission()
    first, second = await start(nursery, admission, (0, 10), (20, 30))
    drained = await begin_to_drain(nursery, admission)
    await second.leave()
    await first.leave()
    assert drained.is_set()
