"""Requests taken from FUSE several at a time.

pyfuse3's workers wait for the descriptor of FUSE under a lock, so that one request is taken in each turn of
trio's loop; with many small requests the turns cost more than the requests. pyfuse3 reaches trio through an
attribute of its module (its asyncio support puts something else there), and so can be given another way to
wait: one worker, the leader, waits for the descriptor, and when it is readable as many others are woken
with it as there were requests to take the last time. Each of them looks before it reads, as a read must
never block, and there has to be memory for what is read.
"""

import itertools
import logging
import select
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import pyfuse3
import trio

from iscsifs.fs.platform.busy_poll import BusyPoller, Watched
from iscsifs.fs.platform.init_reply import AmendedInit

log = logging.getLogger(__name__)

MAX_BURST: Final = 16
"""Workers that are woken together, and requests that one takes in a row without letting others run."""

_PAUSE: Final = 0.05
"""Seconds between two checks for free memory while there is none."""


LOOK_INTERVAL: Final = 0.5
"""Seconds between two checks whether the kernel still takes answers."""


class _Done:
    """An awaitable that is done, without a coroutine: it has nothing to wait for."""

    __await__ = ().__iter__


_nothing: Final = itertools.repeat(_Done()).__next__


class _NoLock:
    """Takes the place of the lock under which pyfuse3's workers wait one by one.

    Every request enters and leaves it, so both are built-in functions.
    """

    __aenter__ = staticmethod(_nothing)

    @staticmethod
    def __aexit__(*_: object) -> _Done:
        return _nothing()


class Readiness:
    """Waits until the descriptor of FUSE is readable, for many workers at once, and until *has_room*.

    The next request of a burst is busy-polled for by *poller*.
    """

    def __init__(self, has_room: Callable[[], bool], poller: BusyPoller) -> None:
        self._has_room = has_room
        self._poller = poller
        self._poll: select.poll | None = None
        self._watched: Watched | None = None
        self._has_leader = False
        self._parked: deque[trio.lowlevel.Task] = deque()
        self._dismissed: set[trio.lowlevel.Task] = set()
        self._woken = 0  # that did not get their turn yet
        self._taken = 0  # since the leader was woken
        self._in_a_row = 0
        self._closed = False

    async def disconnected(self) -> None:
        """Return when the kernel takes no more answers: after an unmount or an abort of the connection."""
        while True:  # a worker that has no answer yet does not notice it
            await trio.sleep(LOOK_INTERVAL)
            if self._is_over():
                return

    async def wait_readable(self, fd: int) -> None:
        """Return when there is a request to read from *fd*, which the caller then does without a pause."""
        if self._poll is None or self._watched is None:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
            self._watched = self._poller.watch(fd)
        if self._in_a_row >= MAX_BURST:
            self._in_a_row = 0
            await trio.lowlevel.checkpoint()
        while not self._closed:
            is_ready = self._poll.poll(0) or (self._in_a_row and self._watched.poll())
            if is_ready and (self._has_room() or self._is_over()):
                self._in_a_row += 1
                self._taken += 1
                if not self._has_leader and not self._woken:
                    self._wake(1)
                return
            self._in_a_row = 0
            if self._has_leader:
                await self._park()
                continue
            self._has_leader = True
            try:
                if is_ready:
                    self.dismiss_idle()
                    await trio.sleep(_PAUSE)
                else:
                    await trio.lowlevel.wait_readable(fd)
            finally:
                self._has_leader = False
            burst, self._taken = self._taken, 0
            self._wake(min(burst, MAX_BURST) - 1)
        raise trio.ClosedResourceError

    def notify_closing(self, fd: int) -> None:
        """End all waits for *fd* with ClosedResourceError."""
        self._closed = True
        if self._watched is not None:
            self._watched.close()
        trio.lowlevel.notify_closing(fd)
        self._wake(len(self._parked))

    def dismiss_idle(self) -> None:
        """End all idle workers but one, which frees a buffer of 1 MiB each.

        pyfuse3 starts new ones when it needs them.
        """
        self._dismissed.update(self._parked)
        self._wake(len(self._parked))

    def _is_over(self) -> bool:
        """Return whether the descriptor reports the end of the connection and no request."""
        return self._poll is not None and any(not event & select.POLLIN for _, event in self._poll.poll(0))

    async def _park(self) -> None:
        task = trio.lowlevel.current_task()
        self._parked.append(task)

        def leave(_: object) -> trio.lowlevel.Abort:
            self._parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)
        self._woken -= 1
        if task in self._dismissed:
            self._dismissed.remove(task)
            raise trio.ClosedResourceError

    def _wake(self, count: int) -> None:
        while count > 0 and self._parked:
            trio.lowlevel.reschedule(self._parked.popleft())
            self._woken += 1
            count -= 1


class _LowLevel:
    """`trio.lowlevel` with another way to wait for FUSE.

    pyfuse3 waits for the first time before FUSE_INIT, with one worker, and for the second time when libfuse
    has answered that.
    """

    def __init__(self, readiness: Readiness, init: AmendedInit) -> None:
        self._readiness = readiness
        self._init = init
        self.wait_readable = self._wait_for_init
        self.notify_closing = readiness.notify_closing

    async def _wait_for_init(self, fd: int) -> None:
        await trio.lowlevel.wait_readable(fd)
        self._init.begin(fd)
        self.wait_readable = self._wait_after_init

    async def _wait_after_init(self, fd: int) -> None:
        self._init.end()
        self.wait_readable = self._readiness.wait_readable
        await self.wait_readable(fd)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)


class _Trio:
    """`trio` as pyfuse3 is to see it."""

    Lock = _NoLock

    def __init__(self, readiness: Readiness, init: AmendedInit) -> None:
        self.lowlevel = _LowLevel(readiness, init)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def take_requests_in_bursts(
    has_room: Callable[[], bool], init: AmendedInit, poller: BusyPoller
) -> Readiness | None:
    """Let the next main loop of pyfuse3 take its requests several at a time, and only if *has_room*, and have
    the answer to the first one amended by *init*; return what its workers wait by, None where pyfuse3 is not
    made as expected."""
    if getattr(pyfuse3, "trio", None) is not trio and not isinstance(getattr(pyfuse3, "trio", None), _Trio):
        log.warning("this version of pyfuse3 takes requests one by one, and FUSE_INIT is not amended")
        return None
    readiness = Readiness(has_room, poller)
    pyfuse3.trio = _Trio(readiness, init)  # type: ignore[attr-defined]
    return readiness
