"""The platform of a mount: one interface to what serves only speed or scarcity."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import trio

from iscsifs.fs.platform.busy_poll import BusyPoller
from iscsifs.fs.platform.headroom import Headroom
from iscsifs.fs.platform.init_reply import AmendedInit
from iscsifs.fs.platform.pages import Pages, PagesByChild, PagesByThread
from iscsifs.fs.platform.process import ProcessMemory
from iscsifs.fs.platform.requests import Readiness, take_requests_in_bursts
from iscsifs.fs.platform.tuning import Limits, tune

_LOOK_INTERVAL: Final = 5.0
"""Seconds between two looks at whether the process has become quiet."""

_TIME_TO_LEAVE: Final = 0.1
"""Seconds for idle workers to end."""

_QUIET: Final = 0.02
"""Share of the processor's time below which the process is quiet."""

_WORK: Final = 0.25
"""Seconds of the processor's time after which there may be memory to give back."""


class Platform(Protocol):
    """What a mount calls, in this order. Each method may do nothing, except for `pages`."""

    poller: BusyPoller
    """Polls for answers that may come soon."""

    def keep_in_memory(self) -> None:
        """Keep the process in memory, as far as permitted."""

    def reserve_memory(self, relieve: Callable[[], None]) -> None:
        """Reserve memory for requests, before there are any.

        *relieve* is called at each check while there is too little memory for a request. Raises OSError where
        there is not enough for the reserve.
        """

    def take_requests(self) -> None:
        """Prepare the main loop of pyfuse3: how it takes requests, and the answer to FUSE_INIT."""

    def requests_ended(self) -> None:
        """Clean up after the main loop."""

    def pages(self, mount_point: Path, invalidate: Callable[[int], None]) -> Pages:
        """Return what drops the cached pages of the files below *mount_point*.

        *invalidate(inode)* has the kernel drop those of a file, and waits for pages that are being read.
        """

    def tune(self, device: str) -> None:
        """Set the kernel's limits for the mount of *device* ("major:minor"), which answers already."""

    async def attend(self, disconnected: Callable[[], None]) -> None:
        """Work in the background until cancelled; call *disconnected* when the connection has ended."""


class NoPlatform:
    """Does nothing: pyfuse3 takes requests one by one, and libfuse and the kernel keep their defaults."""

    def __init__(self, limits: Limits) -> None:
        self.poller = BusyPoller(max_watched=0)  # which never polls

    def keep_in_memory(self) -> None:
        """Leave the process as it is."""

    def reserve_memory(self, relieve: Callable[[], None]) -> None:
        """Set nothing aside."""

    def take_requests(self) -> None:
        """Leave pyfuse3 as it is."""

    def requests_ended(self) -> None:
        """Do nothing."""

    def pages(self, mount_point: Path, invalidate: Callable[[int], None]) -> Pages:
        """Return the way of threads."""
        return PagesByThread(mount_point, invalidate)

    def tune(self, device: str) -> None:
        """Leave the limits as they are."""

    async def attend(self, disconnected: Callable[[], None]) -> None:
        """Do nothing: pyfuse3 sees the end of the connection when it takes the next request."""


class LinuxPlatform:
    """Does what Linux, libfuse 3 and glibc permit; *limits* are what the kernel is told."""

    def __init__(self, limits: Limits) -> None:
        self.poller = BusyPoller()
        self._limits = limits
        self._memory = ProcessMemory()
        self._init = AmendedInit(limits.max_background)
        self._has_room: Callable[[], bool] = lambda: True
        self._readiness: Readiness | None = None  # None where pyfuse3 takes requests one by one

    def keep_in_memory(self) -> None:
        """Lock the memory of the process, and have its allocations not wait for write-back."""
        self._memory.keep()

    def reserve_memory(self, relieve: Callable[[], None]) -> None:
        """Hold a reserve, and look for memory before a request is taken."""
        self._has_room = Headroom(relieve).has_room

    def take_requests(self) -> None:
        """Have requests taken in bursts, and only when there is memory; have the answer to FUSE_INIT
        amended."""
        self._readiness = take_requests_in_bursts(self._has_room, self._init, self.poller)

    def requests_ended(self) -> None:
        """Answer FUSE_INIT where libfuse has refused the kernel's version, and waits for nothing more."""
        self._init.end()

    def pages(self, mount_point: Path, invalidate: Callable[[int], None]) -> Pages:
        """Return the way of child processes; a thread gets the reserve where memory is short."""
        by_thread = PagesByThread(mount_point, invalidate, lambda: self._has_room())
        return PagesByChild(mount_point, by_thread)

    def tune(self, device: str) -> None:
        """Set max_background and the read-ahead."""
        tune(device, self._limits, is_told=self._init.is_in_force)

    async def attend(self, disconnected: Callable[[], None]) -> None:
        """Watch the connection, and give memory back whenever the process is quiet after some work."""
        async with trio.open_nursery() as nursery:
            if self._readiness is not None:
                nursery.start_soon(self._watch, self._readiness, disconnected)
            nursery.start_soon(self._tidy_up)

    async def _watch(self, readiness: Readiness, disconnected: Callable[[], None]) -> None:
        await readiness.disconnected()
        disconnected()

    async def _tidy_up(self) -> None:
        self._memory.keep_freed()
        last = tidied = time.process_time()
        while True:
            await trio.sleep(_LOOK_INTERVAL)
            used = time.process_time()
            if used - last < _QUIET * _LOOK_INTERVAL and used - tidied > _WORK:
                if self._readiness is not None:
                    self._readiness.dismiss_idle()
                    await trio.sleep(_TIME_TO_LEAVE)
                self._memory.give_back()
                tidied = time.process_time()
            last = used
