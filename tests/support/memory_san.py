"""One target with one disk, and the whole initiator, joined by socket pairs; and what may go wrong there."""

import os
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import trio

from iscsifs.errors import TransportError
from iscsifs.fs.platform.busy_poll import BusyPoller
from iscsifs.initiator.dial import Dialler
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.initiator.session import Session as InitiatorSession
from iscsifs.iscsi import serial
from iscsifs.iscsi.chap import ChallengeMemory
from iscsifs.iscsi.connection import Connection
from iscsifs.iscsi.framing import Buffer
from iscsifs.iscsi.keys import INITIATOR_OFFER
from iscsifs.iscsi.login import InitiatorLogin, LoginConfig
from iscsifs.iscsi.names import Portal
from iscsifs.iscsi.pdu import (
    DataIn,
    DataInFlag,
    Pdu,
    ScsiCommand,
    ScsiResponse,
    TargetPdu,
    TaskManagementRequest,
)
from iscsifs.scsi.cdb import OperationCode
from iscsifs.scsi.sense import Sense
from iscsifs.scsi.vpd import Page
from iscsifs.service import ManagedTarget
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.login import TargetConfig
from iscsifs.target.script import Script
from iscsifs.target.server import Server
from iscsifs.target.session import Session
from iscsifs.target.store import Store
from iscsifs.target.unit import (
    COMMANDS_CLEARED,
    SYNCHRONIZE_CODES,
    WRITE_CODES,
    WRITE_SAME_CODES,
    Identity,
    Nexus,
)
from iscsifs.transport.link import Link
from iscsifs.units.block import BlockUnit

TARGET = "iqn.2001-04.com.example:disk"
CHANGING_CODES = WRITE_CODES | WRITE_SAME_CODES | SYNCHRONIZE_CODES | {OperationCode.UNMAP}
OPTIONS = InitiatorOptions("iqn.2001-04.com.example:initiator")


class Anonymous(Disk):
    """A disk with neither serial number nor designators."""

    def _vpd_pages(self) -> Mapping[int, Callable[[], bytes]]:
        pages = dict(super()._vpd_pages())
        del pages[Page.UNIT_SERIAL_NUMBER], pages[Page.DEVICE_IDENTIFICATION]
        return pages


class Stranger(Disk):
    """A disk that takes the place of another while the target runs, and reports that as *report*."""

    report: Sense
    reports = 0

    def report_once_more(self) -> None:
        """Have one more command answered with the report."""
        self.reports += 1
        for attentions in self._attentions.values():
            attentions.append(self.report)

    def _attentions_of(self, nexus: Nexus) -> list[Sense]:
        return self._attentions.setdefault(nexus, [self.report] * max(self.reports, 1))


class AnonymousStranger(Stranger, Anonymous):
    """One that cannot be told from an anonymous disk of its size."""


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
        self.stranger: Stranger | None = None
        """The disk that is there now in the place of the one that the initiator knows. Every command that was
        sent before the initiator had seen its report is answered with the report."""
        self.came_too_late: list[bytes] = []
        """The CDBs that would change the stranger, and were sent after that."""
        self._reported: dict[Session, int | None] = {}  # the sessions from before, with the report's StatSN
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
            if self.stranger is not None:
                self._take_for(self.stranger, session, pdu)
        return not session.wire.closed  # a new session has taken the place of this one

    def exchange(self, stranger: Stranger, sessions: Iterable[Session]) -> None:
        """Have *stranger* in the place of the disk from now on; the initiator has these *sessions*."""
        self.stranger = stranger
        self._reported = dict.fromkeys(sessions)

    def _take_for(self, stranger: Stranger, session: Session, command: ScsiCommand) -> None:
        stat_sn = self._reported.get(session)
        if session in self._reported and (stat_sn is None or not serial.lt(stat_sn, command.exp_stat_sn)):
            stranger.report_once_more()
        elif command.cdb[0] in CHANGING_CODES:
            self.came_too_late.append(command.cdb)

    async def response(self, session: Session, pdu: TargetPdu, data: Buffer) -> None:
        if self.stranger is not None and isinstance(pdu, ScsiResponse):
            is_report = bytes(data[2:]) == self.stranger.report.pack()
            if is_report and self._reported.get(session, 0) is None:
                self._reported[session] = pdu.stat_sn
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

    unit: BlockUnit
    portal = Portal("192.0.2.1", 3260)
    peer_address = "192.0.2.1"

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
        self._device = Device(TARGET, {0: disk})
        self.server = Server([self._device], config=config, script=self.trouble)
        self._nursery = nursery
        self._memory = ChallengeMemory()
        self._poller = BusyPoller()
        self._options = InitiatorOptions(OPTIONS.initiator_name, write_behind=write_behind)

    async def log_in(self) -> None:
        """Log in and find the unit."""
        self._session = InitiatorSession(TARGET, self._dial, self._options, await self._dial())
        self._nursery.start_soon(self._session.run)
        target = ManagedTarget(TARGET, cast(Dialler, self), self._session, self._options, self._nursery)
        await target.find_units()
        (unit,) = target.units
        assert isinstance(unit, BlockUnit)
        self.unit = unit

    async def log_out(self) -> None:
        """End the session."""
        await self._session.close()

    @property
    def is_up(self) -> bool:
        """Whether commands are sent as they come."""
        return not self._session.is_away and not self.unit.queue.is_suspended

    def exchange(self, report: Sense) -> None:
        """Put an empty disk in the place of the disk, and have *report* be all that tells of it."""
        size, block_size = self.disk.capacity.size, self.disk.block_size
        kind = AnonymousStranger if isinstance(self.disk, Anonymous) else Stranger
        write_cache = self.disk.write_cache
        stranger = kind(
            Store.memory(size), Identity("stranger"), block_size=block_size, write_cache=write_cache
        )
        stranger.report = report
        self._device._put(0, stranger)
        self.trouble.exchange(stranger, self.server.sessions)

    def vanish(self) -> None:
        """Take the disk away, without a word."""
        self._device._units.pop(0, None)

    def come_back(self) -> None:
        """Undo `vanish`."""
        if self.trouble.stranger is None:
            self._device._put(0, self.disk)

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
        link = Link(ours, Connection(login), self._poller)
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
