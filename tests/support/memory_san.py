"""One target with one disk, and the whole initiator, in memory; and what may go wrong there."""

from collections.abc import Callable, Iterable, Mapping

import trio

from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi import serial
from iscsifs.iscsi.framing import Buffer
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
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.login import TargetConfig
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
from iscsifs.units.block import BlockUnit
from support.network import Listener, Network, Site
from support.trouble import Trouble

TARGET = "iqn.2001-04.com.example:disk"
CHANGING_CODES = WRITE_CODES | WRITE_SAME_CODES | SYNCHRONIZE_CODES | {OperationCode.UNMAP}
INITIATOR = "iqn.2001-04.com.example:initiator"


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


class SanTrouble(Trouble):
    """What the network and the target do wrong, until `end`."""

    listener: Listener

    def __init__(self) -> None:
        super().__init__()
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
        self.on_request = self._request
        self.on_response = self._response

    @property
    def refusing(self) -> bool:
        """Whether nobody listens."""
        return not self.listener.reachable

    @refusing.setter
    def refusing(self, refusing: bool) -> None:
        self.listener.reachable = not refusing

    def end(self) -> None:
        """End all of it."""
        self.refusing = False
        self.commands_to_ignore = self.answers_to_lose = 0
        self.go_on()

    async def _request(self, session: Session, pdu: Pdu) -> bool:
        if isinstance(pdu, TaskManagementRequest) and session.device is not None:
            # A unit attention that was the answer to a command goes with it when that is aborted. Nobody but
            # the target can know that, so this one reports it again.
            for unit in session.device.units.values():
                unit.establish_attention(COMMANDS_CLEARED)
        if isinstance(pdu, ScsiCommand):
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

    async def _response(self, session: Session, pdu: TargetPdu, data: Buffer) -> bool:
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
            return False
        return True


class San:
    """A *disk* as the only unit of a target that *config* describes, and an initiator that logs in to it.

    `unit` is the disk from the initiator's side.
    """

    unit: BlockUnit

    def __init__(
        self,
        nursery: trio.Nursery,
        disk: Disk,
        config: TargetConfig | None = None,
        *,
        write_behind: bool = True,
    ) -> None:
        self.disk = disk
        self.trouble = SanTrouble()
        self.network = Network()
        self._device = Device(TARGET, {0: disk})
        self._site = Site(self._device, self.network, nursery, trouble=self.trouble, config=config)
        self.server = self._site.server
        self.trouble.listener = self._site.listener
        self._options = InitiatorOptions(INITIATOR, digests="all", write_behind=write_behind)

    async def log_in(self) -> None:
        """Log in and find the unit."""
        target = await self._site.log_in(self._options)
        self._session = target.session
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
