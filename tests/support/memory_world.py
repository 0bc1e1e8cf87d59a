"""A target in memory whose units come, change and go, and the initiator that is logged in to it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from iscsifs.initiator.options import InitiatorOptions
from iscsifs.service import ManagedTarget
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.units.block import BlockUnit
from support.network import Network, Site

INITIATOR = "iqn.2001-04.com.example:initiator"
TARGET = "iqn.2001-04.com.example:target"
KIB = 1024


class World(Site):
    """A target with any units, to which an initiator with *options* logs in."""

    def __init__(self, device: Device, nursery: trio.Nursery, options: InitiatorOptions) -> None:
        super().__init__(device, Network(), nursery)
        self.calls = 0
        """How often it was said that something may have changed."""
        self.changes = 0
        """How often it had."""
        self.target: ManagedTarget
        self._options = options

    async def find(self) -> None:
        """Log in and find the units."""
        self.target = await self.log_in(self._options)
        self.target.on_change = self._changed
        self._known = self._shown()

    def _changed(self) -> None:
        self.calls += 1
        now = self._shown()
        self.changes += now != self._known
        self._known = now

    def _shown(self) -> list[object]:
        """What a user can see of the target."""
        place: list[object] = [self.target.portal, self.target.address]
        return place + [(unit, unit.description) for unit in self.target.units]

    @property
    def labels(self) -> list[str]:
        return [unit.label for unit in self.target.units]

    def unit(self, number: int) -> BlockUnit:
        unit = next(unit for unit in self.target.units if unit.label == str(number))
        assert isinstance(unit, BlockUnit)
        return unit

    def cut(self) -> None:
        self.server.drop_connections()


@asynccontextmanager
async def world(units: dict[int, Any], **options: Any) -> AsyncIterator[World]:
    """Give a target with *units* that was logged in to."""
    config: dict[str, Any] = {"initiator_name": INITIATOR, "write_behind": False} | options
    async with trio.open_nursery() as nursery:
        the_world = World(Device(TARGET, units), nursery, InitiatorOptions(**config))
        await the_world.find()
        yield the_world
        await the_world.target.session.close()
        nursery.cancel_scope.cancel()


def disk(serial: str = "S-0", size: int = 64 * KIB, **options: Any) -> Disk:
    return Disk.in_memory(size, serial, **options)
