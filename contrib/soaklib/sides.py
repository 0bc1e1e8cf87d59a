"""The two targets, and what can go wrong with each without data being lost."""

import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import trio

from iscsifs.scsi.sense import Sense, SenseKey
from iscsifs.scsi.status import Status
from iscsifs.target import unit as scsi
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.server import Server
from iscsifs.target.store import Store
from support.proxy import Connection, Fault, Proxy, Unit
from support.targets import Target, Tgt, make_image
from support.targets import Unit as Image

NAME: Final = "iqn.2026-01.example:disk"
SIZE: Final = 160 << 20

Trouble = Callable[[], Awaitable[bool]]
"""Disturbs a target and returns when that is over: whether anything came of it."""


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Return as soon as *condition* holds, or after *seconds*: whether it does."""
    with trio.move_on_after(seconds):
        while True:
            if condition():
                return True
            await trio.sleep(0.05)
    return False


class _Network:
    """What can go wrong between any initiator and any target."""

    def __init__(self, proxy: Proxy, rng: random.Random, *, digests: bool) -> None:
        self._proxy = proxy
        self._random = rng
        self._digests = digests

    def troubles(self) -> dict[str, Trouble]:
        """What can go wrong, by name."""
        troubles: dict[str, Trouble] = {
            "RST": lambda: self._once(lambda connection, unit: connection.cut(reset=True)),
            "FIN": lambda: self._once(lambda connection, unit: connection.cut(reset=False)),
            "FIN within a PDU": lambda: self._once(self._cut_within),
            "silence": lambda: self._silence(self._random.uniform(0.5, 6)),
            "silence that costs the connection": lambda: self._silence(self._random.uniform(21, 26)),
            "delays": self._delay,
        }
        if self._digests:
            troubles["bit error"] = lambda: self._once(_spoil, data=True)
        return troubles

    def _cut_within(self, connection: Connection, unit: Unit) -> None:
        connection.cut_within(unit, self._random.randrange(1, min(len(unit.raw), 1 << 14)))

    async def _once(self, what: Fault | Callable[[Connection, Unit], None], *, data: bool = False) -> bool:
        """Do *what* to one of the next PDUs, one with a data segment and its digest where *data*."""
        done = trio.Event()
        untouched = self._proxy.fault
        left = self._random.randrange(1, 50)

        def fault(connection: Connection, unit: Unit) -> bool:
            nonlocal left
            if done.is_set() or (data and not (unit.length and connection.data_digest)):
                return True
            left -= 1
            if left:
                return True
            done.set()
            return bool(what(connection, unit))

        self._proxy.fault = fault
        with trio.move_on_after(10):
            await done.wait()
        self._proxy.fault = untouched
        return done.is_set()

    async def _silence(self, seconds: float) -> bool:
        self._proxy.silence()
        try:
            await trio.sleep(seconds)
        finally:
            self._proxy.resume()
        return True

    async def _delay(self) -> bool:
        with trio.move_on_after(self._random.uniform(2, 6)):
            while True:
                await self._silence(self._random.uniform(0.02, 0.3))
                await trio.sleep(0.001)
        return True


def _spoil(_connection: Connection, unit: Unit) -> bool:
    unit.spoil_data()
    return True


class Embedded:
    """The target of iscsifs, in this process, with a volatile cache that it loses."""

    lun = 0

    def __init__(self, directory: Path, rng: random.Random, *, block_size: int) -> None:
        self.image = make_image(directory / "disk.img", SIZE)
        self._random = rng
        self._disk = Disk(
            Store.open(self.image), scsi.Identity(directory.name), block_size=block_size, droppable=True
        )

    async def start(self, stack: AsyncExitStack, *, digests: bool) -> None:
        """Serve until *stack* is left."""
        stack.callback(self._disk.close)
        self._server = await stack.enter_async_context(Server([Device(NAME, {self.lun: self._disk})]))
        self.proxy = await stack.enter_async_context(Proxy(self._server.portals[0].port))
        self._network = _Network(self.proxy, self._random, digests=digests)

    def troubles(self) -> Mapping[str, Trouble]:
        """What can go wrong, by name."""
        aborted = Sense(SenseKey.ABORTED_COMMAND, 0x47, 0x03)
        return self._network.troubles() | {
            "cache lost (29h/00h)": self._lose_cache,
            "restart without the cache": self._restart,
            "LOGICAL UNIT RESET (29h/03h)": self._reset,
            "BUSY": lambda: self._fail(Status.BUSY),
            "TASK SET FULL": lambda: self._fail(Status.TASK_SET_FULL),
            "ABORTED COMMAND": lambda: self._fail(Status.CHECK_CONDITION, aborted, times=1),
        }

    async def _lose_cache(self) -> bool:
        self._disk.drop_cache()
        return True

    async def _reset(self) -> bool:
        self._disk.reset()
        return True

    async def _restart(self) -> bool:
        await self._server.stop()
        try:
            self._disk.drop_cache()
            await trio.sleep(self._random.uniform(0, 5))
        finally:
            self._server.start()
        return True

    async def _fail(self, status: Status, sense: Sense | None = None, *, times: int | None = None) -> bool:
        asked = self._random.randint(1, 20) if times is None else times
        fault = scsi.Fault(status=status, sense=sense, times=asked, codes=scsi.BLOCK_CODES)
        self._disk.faults.append(fault)
        await until(lambda: not fault.times, 10)
        self._disk.faults.remove(fault)
        return fault.times != asked


class RealTgt:
    """Debian's tgt, a process that is stopped, and killed and started again with its data."""

    def __init__(self, directory: Path, rng: random.Random, *, digests: bool) -> None:
        self.image = make_image(directory / "disk.img", SIZE)
        self.lun = Tgt.first_lun
        self._random = rng
        keys = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"} if digests else {}
        self._tgt = Tgt(directory, Target(NAME, [Image(self.image)], parameters=keys))

    async def start(self, stack: AsyncExitStack, *, digests: bool) -> None:
        """Serve until *stack* is left."""
        await trio.to_thread.run_sync(self._tgt.start)
        stack.push(self._tgt.__exit__)
        self.proxy = await stack.enter_async_context(Proxy(self._tgt.port))
        self._network = _Network(self.proxy, self._random, digests=digests)

    def troubles(self) -> Mapping[str, Trouble]:
        """What can go wrong, by name."""
        return self._network.troubles() | {"SIGSTOP, SIGCONT": self._stop, "SIGKILL, restart": self._restart}

    async def _stop(self) -> bool:
        self._tgt.freeze()
        try:
            await trio.sleep(self._random.uniform(0.5, 15))
        finally:
            self._tgt.thaw()
        return True

    async def _restart(self) -> bool:
        with trio.CancelScope(shield=True):  # what is killed is started again, also at the end
            self._tgt.kill()
            await trio.sleep(self._random.uniform(0, 5))
            await trio.to_thread.run_sync(self._tgt.start)
        return True
