"""Trio in steps, for Hypothesis's state machines: their rules are no coroutines, but what they test is.

::

    loop = Loop()
    unit = loop.run(open_unit, loop.nursery)
    ...  # nothing moves, and no time passes
    data = loop.run(unit.read, 0, 512)  # everything goes on until this has ended
    loop.close()

The time is virtual and jumps to the next deadline when nothing else is left to do; what is waited for must
either happen in this process or have a time-out. With pytest-trio the order of the tasks depends on nothing
but Hypothesis's seed, so that every example can be repeated.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

import outcome
import trio
import trio.testing

T = TypeVar("T")


class Loop:
    """One run of trio; `nursery` is for whatever goes on between the steps."""

    nursery: trio.Nursery

    def __init__(self) -> None:
        self._ticks: deque[Callable[[], object]] = deque()
        self._end: outcome.Outcome[None] | None = None
        self._jobs, self._waiting = trio.open_memory_channel[Callable[[], Awaitable[None]]](1)
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._ticks.append,
            done_callback=self._ended,
            host_uses_signal_set_wakeup_fd=True,
            clock=trio.testing.MockClock(autojump_threshold=0),
        )
        self.settle()

    def run(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Return what the coroutine *function* returns, or raise what it raises; all other tasks go on
        meanwhile."""
        results: list[outcome.Outcome[T]] = []

        async def job() -> None:
            results.append(await outcome.acapture(function, *args))

        self._jobs.send_nowait(job)
        while not results:
            if self._tick():
                raise RuntimeError("the loop is closed")
        return results[0].unwrap()

    def settle(self) -> None:
        """Let everything go on that can without time passing."""
        self.run(trio.testing.wait_all_tasks_blocked)

    def tick(self, count: int) -> None:
        """Let everything go on for *count* turns of the loop."""
        for _ in range(count):
            self._tick()

    def close(self) -> None:
        """Cancel everything, and raise what has gone wrong in any task."""
        self._jobs.close()
        while not self._tick():
            pass

    def _tick(self) -> bool:
        """Go on; return whether this was the end."""
        if self._end is None:
            self._ticks.popleft()()
        if self._end is None:
            return False
        end, self._end = self._end, outcome.Value(None)
        end.unwrap()
        return True

    def _ended(self, end: outcome.Outcome[None]) -> None:
        self._end = end

    async def _main(self) -> None:
        async with trio.open_nursery() as self.nursery:
            async for job in self._waiting:
                await job()
            self.nursery.cancel_scope.cancel()
