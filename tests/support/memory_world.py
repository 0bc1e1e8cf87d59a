"""A target in memory whose units come, change and go, and the initiator that is logged in to it."""

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from iscsifs.errors import TransportError
from iscsifs.fs.platform.busy_poll import BusyPoller
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.initiator.session import Session
from iscsifs.iscsi.chap import ChallengeMemory
from iscsifs.iscsi.connection import Connection
from iscsifs.iscsi.framing import Buffer
from iscsifs.iscsi.keys import INITIATOR_OFFER
from iscsifs.iscsi.login import InitiatorLogin, LoginConfig
from iscsifs.iscsi.names import Portal
from iscsifs.iscsi.pdu import Pdu, ScsiCommand, TargetPdu
from iscsifs.service import ManagedTarget
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.script import Script
from iscsifs.target.server import Server
from iscsifs.target.session import Session as TargetSession
from iscsifs.transport.link import Link
from iscsifs.units.block import BlockUnit

INITIATOR = "iqn.2001-04.com.example:initiator"
TARGET = "iqn.2001-04.com.example:target"
KIB = 1024


class Counter(Script):
    """A target that behaves, and takes note of the operation codes of all commands.

    `on_command` is called with each before it is carried out; where it is false the command gets no answer.
    """

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.on_command: Callable[[int], bool] = lambda _: True

    async def request(self, session: TargetSession, pdu: Pdu, data: memoryview) -> bool:
        if not isinstance(pdu, ScsiCommand):
            return True
        self.codes.append(pdu.cdb[0])
        return self.on_command(pdu.cdb[0])

    async def response(self, session: TargetSession, pdu: TargetPdu, data: Buffer) -> None:
        await session.wire.send(pdu, data)


class World:
    """A server, and a dialler that reaches it without a network."""

    portal = Portal("192.0.2.1", 3260)
    peer_address = "192.0.2.1"

    def __init__(self, device: Device, nursery: trio.Nursery, options: InitiatorOptions) -> None:
        self.device = device
        self.script = Counter()
        self.server = Server([device], script=self.script)
        self.reachable = True
        self.calls = 0
        """How often it was said that something may have changed."""
        self.changes = 0
        """How often it had."""
        self.target: ManagedTarget
        self._nursery = nursery
        self._options = options
        self._poller = BusyPoller()

    async def __call__(self) -> Link:
        await trio.lowlevel.checkpoint()
        if not self.reachable:
            raise TransportError("192.0.2.1:3260: Connection refused")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._nursery.start_soon(self.server.serve, theirs)
        config = LoginConfig(
            initiator_name=INITIATOR,
            target_name=TARGET,
            isid=bytes.fromhex("800102030405"),
            offer={**INITIATOR_OFFER, "DefaultTime2Wait": 0},
        )
        login = InitiatorLogin(config, random_bytes=os.urandom, memory=ChallengeMemory())
        link = Link(ours, Connection(login), self._poller)
        try:
            await link.log_in()
        except BaseException:
            link.close()
            raise
        return link

    async def log_in(self) -> None:
        session = Session(TARGET, self, self._options, await self())
        self._nursery.start_soon(session.run)
        self.target = ManagedTarget(TARGET, self, session, self._options, self._nursery)  # type: ignore[arg-type]
        self.target.on_change = self._changed
        await self.target.find_units()
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
        await the_world.log_in()
        yield the_world
        await the_world.target.session.close()
        nursery.cancel_scope.cancel()


def disk(serial: str = "S-0", size: int = 64 * KIB, **options: Any) -> Disk:
    return Disk.in_memory(size, serial, **options)
