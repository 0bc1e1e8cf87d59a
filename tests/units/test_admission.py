"""Arrivals that overlap go one after the other, in their order; a drain waits for those before it;
and writers wait for room."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from iscsifs.errors import DataLostError
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


async def test_the_admission_is_closed_while_anything_has_arrived_or_there_is_no_room(
    nursery: trio.Nursery,
) -> None:
    extents = ExtentMap()
    admission = Admission(extents, max_unwritten=1)
    assert admission.is_open
    (writer,) = await start(nursery, admission, (0, 10))
    assert not admission.is_open
    await writer.leave()
    assert admission.is_open
    extents.insert(0, memoryview(b"a"), acknowledged=True, sync=False)
    assert not admission.is_open


async def test_one_writer_goes_on_for_each_room_that_is_made(nursery: trio.Nursery) -> None:
    extents = ExtentMap()
    admission = Admission(extents, max_unwritten=1)
    extent = extents.insert(0, memoryview(b"a"), acknowledged=True, sync=False)
    gone_on: list[int] = []

    async def write(number: int) -> None:
        async with admission.turn(10 * number, 10 * number + 1):
            await admission.room()
            extents.insert(10 * number, memoryview(b"a"), acknowledged=True, sync=False)
            gone_on.append(number)

    for number in 1, 2:
        nursery.start_soon(write, number)
        await wait_all_tasks_blocked()
    extents.remove([extent])
    admission.make_room()
    await wait_all_tasks_blocked()
    assert gone_on == [1]
    extents.remove(list(extents))
    admission.make_room()
    await wait_all_tasks_blocked()
    assert gone_on == [1, 2]


async def test_arrivals_of_before_are_disowned_and_later_ones_are_not(nursery: trio.Nursery) -> None:
    admission = an_admission()
    failure = DataLostError("it may be another unit")
    async with admission.turn(0, 10) as before:
        admission.disown(failure)
        with pytest.raises(DataLostError):
            before.check()
    async with admission.turn(0, 10) as later:
        later.check()
