"""A process to be flooded: it talks to a hostile target, and reads from a good one meanwhile.

    python -m support.flooded discovery|read|write|units GOOD-PORT HOSTILE-PORT

Both are on loopback. When it is over, one line of JSON says what it has cost; see `Cost`.
"""

import gc
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from iscsifs.errors import IscsifsError
from iscsifs.fs.platform.busy_poll import BusyPoller
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.names import Portal
from iscsifs.limits import MAX_UNWRITTEN
from iscsifs.logs import log_to_terminal
from iscsifs.service import Initiator, ManagedTarget, discover
from iscsifs.units.block import BlockUnit

GOOD = "iqn.2026-01.example:good"
HOSTILE = "iqn.2026-01.example:hostile"
OPTIONS = InitiatorOptions("iqn.2026-01.example:initiator")
MIB = 1 << 20


@dataclass
class Cost:
    """What a flood has cost, and how it ended."""

    grown: float
    """MiB between the resident size before and the largest one since."""
    seconds: float
    failure: str
    """The kind of error that it ended with; empty where the flood was absorbed."""
    message: str
    units: int
    reads: int
    """How often the good target was read meanwhile."""
    longest: float
    """Seconds that the longest of these reads took, with the pause before it."""
    lines: int
    """How many lines were logged; it is the parent that counts them."""


class Neighbour:
    """Reads from the good target all the time."""

    def __init__(self, unit: BlockUnit) -> None:
        self.reads = 0
        self._longest = 0.0
        self._unit = unit
        self._started = trio.current_time()
        self._read = trio.Event()

    @property
    def longest(self) -> float:
        """Seconds that the longest read took, or has taken so far."""
        return max(self._longest, trio.current_time() - self._started)

    async def read_again(self) -> None:
        """Wait until it has read once more, from beginning to end."""
        for _ in range(2):
            self._read = trio.Event()
            await self._read.wait()

    async def run(self) -> None:
        while True:
            self._started = trio.current_time()
            await trio.sleep(0.005)
            assert len(await self._unit.read(0, 4096)) == 4096
            self.reads += 1
            self._longest = self.longest
            self._read.set()


async def discovery(initiator: Initiator, portal: Portal) -> int:
    """Ask for the targets."""
    await discover(portal, OPTIONS)
    return 0


async def find_units(initiator: Initiator, portal: Portal) -> int:
    """Log in and see what is there."""
    return len((await initiator.login(HOSTILE, [portal])).units)


async def read(initiator: Initiator, portal: Portal) -> int:
    """Read the first MiB of the first unit."""
    return await _use(initiator, portal, _read)


async def write(initiator: Initiator, portal: Portal) -> int:
    """Write as much as can be on its way at once to the first unit."""
    return await _use(initiator, portal, _write)


def _disk(target: ManagedTarget) -> BlockUnit:
    (unit,) = [unit for unit in target.units if isinstance(unit, BlockUnit)][:1]
    return unit


async def _read(unit: BlockUnit) -> None:
    assert len(await unit.read(0, MIB)) == MIB


async def _write(unit: BlockUnit) -> None:
    data = bytes(MIB)  # the same for all, so that their own size does not count
    for offset in range(0, MAX_UNWRITTEN, MIB):
        await unit.write(offset, data)
    await unit.flush()


async def _use(initiator: Initiator, portal: Portal, work: Callable[[BlockUnit], Awaitable[None]]) -> int:
    """Do *work* with the first unit; raises what the connection ends with, if it does."""
    target = await initiator.login(HOSTILE, [portal])
    link = target.session.link

    failure: IscsifsError | None = None
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while link.failure is None:  # noqa: ASYNC110 - a link has no event for it
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            await work(_disk(target))
        except IscsifsError as error:
            failure = error
        nursery.cancel_scope.cancel()
    failure = link.failure or failure
    if failure is not None:
        raise failure
    return len(target.units)


def resident(which: str) -> int:
    """Return a line of /proc/self/status in KiB: VmRSS, or VmHWM, the largest that it ever was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{which}:"):
            return int(line.split()[1])
    raise LookupError(which)


async def main(what: str, good: int, hostile: int) -> None:
    """Be flooded."""
    log_to_terminal(logging.INFO)
    async with trio.open_nursery() as nursery:
        initiator = Initiator(OPTIONS, nursery, BusyPoller())
        target = await initiator.login(GOOD, [Portal("127.0.0.1", good)])
        await discover(Portal("127.0.0.1", good), OPTIONS)  # whatever that takes the first time
        neighbour = Neighbour(_disk(target))
        failure, message, units = "", "", 0
        gc.collect()
        before, started = resident("VmRSS"), trio.current_time()
        nursery.start_soon(neighbour.run)
        try:
            units = await FLOODED[what](initiator, Portal("127.0.0.1", hostile))
        except IscsifsError as error:
            failure, message = type(error).__name__, str(error)
        seconds = trio.current_time() - started
        await neighbour.read_again()
        cost = {
            "grown": (resident("VmHWM") - before) / 1024,
            "seconds": seconds,
            "failure": failure,
            "message": message,
            "units": units,
            "reads": neighbour.reads,
            "longest": neighbour.longest,
        }
        nursery.cancel_scope.cancel()
    print(json.dumps(cost))


FLOODED = {"discovery": discovery, "read": read, "write": write, "units": find_units}

if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
