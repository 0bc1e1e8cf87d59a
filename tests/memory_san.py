"""One target with one disk, and the whole initiator, joined by socket pairs; and what may go wrong there."""

import os
import socket
from typing import cast

import trio

from iscsifs.errors import TransportError
from iscsifs.initiator.dial import Dialler
from iscsifs.initiator.link import Link
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.initiator.session import Session as InitiatorSession
from iscsifs.initiator.session import State
from iscsifs.initiator.target import Target
from iscsifs.initiator.unit import LogicalUnit
from iscsifs.iscsi.chap import ChallengeMemory
from iscsifs.iscsi.connection import Connection
from iscsifs.iscsi.framing import Buffer
from iscsifs.iscsi.keys import INITIATOR_OFFER
from iscsifs.iscsi.login import InitiatorLogin, LoginConfig
from iscsifs.iscsi.pdu import (
    DataIn,
    DataInFlag,
    Pdu,
    ScsiCommand,
    ScsiResponse,
    TargetPdu,
    TaskManagementRequest,
)
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.login import TargetConfig
from iscsifs.target.script import Script
from iscsifs.target.server import Server
from iscsifs.target.session import Session
from iscsifs.target.unit import COMMANDS_CLEARED

TARGET = "iqn.2001-04.com.example:disk"
OPTIONS = InitiatorOptions("iqn.2001-04.com.example:initiator")


class Trouble(Script):
    """What the network and the target do wrong, until `end`."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []
        """The CDBs of all commands that came."""
        self.refusing = False
        """Whether nobody listens."""
        self.commands_to_ignore = 0
        """How many of the next commands get no answer."""
        self.answers_to_lose = 0
        """How many of the next commands are carried out, after which the connection breaks."""
        self._going = trio.Event()
        self._going.set()

    def stall(self) -> None:
        """Take nothing that arrives."""
        if self._going.is_set():
            self._going = trio.Event()

    def go_on(self) -> None:
        """End the stalling."""
        self._going.set()

    def end(self) -> None:
        """End all of it."""
        self.refusing = False
        self.commands_to_ignore = self.answers_to_lose = 0
        self.go_on()

    async def request(self, session: Session, pdu: Pdu, data: memoryview) -> bool:
        await self._going.wait()
        if isinstance(pdu, TaskManagementRequest) and session.device is not None:
            # A unit attention that was the answer to a command goes with it when that is aborted. Nobody but
            # the target can know that, so this one reports it again.
            for unit in session.device.units.values():
                unit.establish_attention(COMMANDS_CLEARED)
        if isinstance(pdu, ScsiCommand):
            self.commands.append(pdu.cdb)
            if self.commands_to_ignore:
                self.commands_to_ignore -= 1
                return False
        return not session.wire.closed  # a new session has taken the place of this one

    async def response(self, session: Session, pdu: TargetPdu, data: Buffer) -> None:
        is_answer = isinstance(pdu, ScsiResponse) or (
            isinstance(pdu, DataIn) and pdu.flags & DataInFlag.STATUS
        )
        if is_answer and self.answers_to_lose:
            self.answers_to_lose -= 1
            session.wire.close()
        else:
            await session.wire.send(pdu, data)


class San:
    """A *disk* as the only unit of a target that *config* describes, and an initiator that is logged in.

    `unit` is the disk from the initiator's side.
    """

    unit: LogicalUnit

    def __init__(
        self,
        nursery: trio.Nursery,
        disk: Disk,
        config: TargetConfig = TargetConfig(target_names=frozenset()),  # noqa: B008 - it is frozen
        *,
        write_behind: bool = True,
    ) -> None:
        self.disk = disk
        self.trouble = Trouble()
        self.server = Server([Device(TARGET, {0: disk})], config=config, script=self.trouble)
        self._nursery = nursery
        self._memory = ChallengeMemory()
        self._options = InitiatorOptions(OPTIONS.initiator_name, write_behind=write_behind)

    async def log_in(self) -> None:
        """Log in and find the unit."""
        self._session = InitiatorSession(TARGET, self._dial, self._options, await self._dial())
        self._nursery.start_soon(self._session.run)
        target = Target(TARGET, cast(Dialler, None), self._session, self._options, self._nursery)
        await target.find_units()
        (self.unit,) = target.units

    async def log_out(self) -> None:
        """End the session."""
        await self._session.close()

    @property
    def is_up(self) -> bool:
        """Whether commands are sent as they come."""
        return self._session.state is State.UP

    def medium(self) -> bytes:
        """Return what a power failure would leave of the disk."""
        size = self.disk.block_size
        data = self.disk.store.read(0, self.disk.capacity.size)
        assert self.disk.undo_log is not None
        for lba, old in self.disk.undo_log._old.items():
            data[lba * size : (lba + 1) * size] = old
        return bytes(data)

    async def _dial(self) -> Link:
        await trio.lowlevel.checkpoint()
        if self.trouble.refusing:
            raise TransportError("nobody listens")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._nursery.start_soon(self.server.serve, theirs)
        config = LoginConfig(
            initiator_name=self._options.initiator_name,
            target_name=TARGET,
            isid=bytes.fromhex("800102030405"),
            offer={
                **INITIATOR_OFFER,
                "HeaderDigest": ("CRC32C", "None"),
                "DataDigest": ("CRC32C", "None"),
                "DefaultTime2Wait": 0,
            },
        )
        login = InitiatorLogin(config, random_bytes=os.urandom, memory=self._memory)
        link = Link(ours, Connection(login))
        try:
            with trio.fail_after(self._options.login_timeout):
                await link.log_in()
        except trio.TooSlowError:
            link.close()
            raise TransportError("no login in time") from None
        except BaseException:
            link.close()
            raise
        return link
