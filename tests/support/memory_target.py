"""The target's end of a connection in memory: a test says which PDUs it sends, and sees those that come."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from iscsifs.errors import ProtocolError
from iscsifs.iscsi import serial
from iscsifs.iscsi.bhs import pack
from iscsifs.iscsi.chap import ChallengeMemory
from iscsifs.iscsi.connection import Connection
from iscsifs.iscsi.events import Event, LoggedIn
from iscsifs.iscsi.framing import Buffer, Receiver, frame
from iscsifs.iscsi.keys import INITIATOR_OFFER, Parameters, Value
from iscsifs.iscsi.login import InitiatorLogin, LoginConfig
from iscsifs.iscsi.pdu import (
    FINAL,
    R2T,
    RESERVED_TAG,
    AsyncMessage,
    DataIn,
    DataInFlag,
    DataOut,
    InitiatorPdu,
    LoginRequest,
    LogoutResponse,
    NopIn,
    Pdu,
    Reject,
    RejectReason,
    ScsiResponse,
    SnackRequest,
    TargetPdu,
    TaskManagementResponse,
    TextResponse,
)
from iscsifs.iscsi.task import Task
from iscsifs.target.login import TARGET_OFFER, TargetConfig, TargetLogin
from support.dialogue import INITIATOR, ISID, TARGET

LUN = 1 << 48
CDB = bytes(range(1, 17))
NOTHING: Mapping[str, Value] = MappingProxyType({})


class Sent(NamedTuple):
    """A PDU from the initiator."""

    pdu: Any
    ahs: bytes
    data: bytes


def config(**changes: Any) -> LoginConfig:
    """What the initiators of the tests log in with, but for *changes*."""
    return LoginConfig(**{"initiator_name": INITIATOR, "target_name": TARGET, "isid": ISID} | changes)


def connect(login_config: LoginConfig) -> Connection:
    """A connection that has its first Login Request to send."""
    return Connection(
        InitiatorLogin(login_config, random_bytes=random.Random(7143).randbytes, memory=ChallengeMemory())
    )


def feed(connection: Connection, stream: bytes, pieces: Iterator[int] | None = None) -> None:
    """Let *stream* arrive, in pieces of at most those lengths, or in as large ones as are asked for."""
    position = 0
    while position < len(stream):
        place = connection.get_buffer()
        size = len(place) if pieces is None else next(pieces)
        count = min(size, len(place), len(stream) - position)
        place[:count] = stream[position : position + count]
        position += count
        connection.buffer_updated(count)


class MemoryTarget:
    """A target that has let the initiator in, unless told otherwise.

    *initiator* and *target* are what the two sides offer on top of the usual; *window* is how many commands
    it takes at once. It sends each PDU with the numbers that are due, unless `send` gives others. All that
    the initiator sends is looked at for what holds for every PDU of it.
    """

    def __init__(
        self,
        *,
        initiator: Mapping[str, Value] = NOTHING,
        target: Mapping[str, Value] = NOTHING,
        window: int = 32,
        stat_sn: int = 0,
        log_in: bool = True,
        **changes: Any,
    ) -> None:
        self.config = config(offer={**INITIATOR_OFFER, **initiator}, **changes)
        self.connection = connect(self.config)
        self.window = window
        self.stat_sn = self._acknowledged = stat_sn
        self.exp_cmd_sn = self.config.cmd_sn
        self.pieces: Iterator[int] | None = None
        self.stream = bytearray()
        """All that was sent to the initiator so far."""
        self._login = TargetLogin(
            TargetConfig(
                target_names=frozenset({TARGET}), offer={**TARGET_OFFER, **target}, command_window=window
            ),
            tsih=1,
            random_bytes=random.Random(7143).randbytes,
            memory=ChallengeMemory(),
            stat_sn=stat_sn,
        )
        self._arrived: list[Sent] = []
        self._receiver = Receiver(
            lambda *_: None, self._pdu_arrived, max_data_segment_length=8192, ahs_allowed=True
        )
        if log_in:
            while not self._login.done:
                self.answer_login()
            assert [type(event) for event in self.events()] == [LoggedIn]

    @property
    def parameters(self) -> Parameters:
        return self.connection.parameters

    # The login.

    def answer_login(self, behind: bytes = b"") -> None:
        """Answer the Login Request that has come; *behind* are bytes that arrive together with the answer."""
        (request,) = self.received()
        response, text = self._login.receive(request.pdu, request.data)
        feed(self.connection, b"".join(frame(response, text)) + behind)
        if self._login.done:
            self.stat_sn = self._acknowledged = self._login.statuses.stat_sn
            self._receiver.header_digest = self.parameters.header_digest
            self._receiver.data_digest = self.parameters.data_digest
            self._receiver.max_data_segment_length = self.parameters.max_send_data_segment_length

    def agree(self, **changes: Any) -> None:
        """Let the login have settled something else, of what no login settles."""
        self.connection.login.parameters = replace(self.parameters, **changes)

    # What the initiator sends.

    def _pdu_arrived(self, pdu: Pdu, ahs: bytes, data: memoryview) -> None:
        assert not isinstance(pdu, SnackRequest), "there is no SNACK at ErrorRecoveryLevel 0"
        if not isinstance(pdu, LoginRequest):
            assert isinstance(pdu, InitiatorPdu)
            assert serial.le(self._acknowledged, pdu.exp_stat_sn)
            assert serial.le(pdu.exp_stat_sn, self.stat_sn)
            if not isinstance(pdu, DataOut):
                assert pdu.cmd_sn == self.exp_cmd_sn
                if not pdu.immediate:
                    self.exp_cmd_sn = serial.add(self.exp_cmd_sn, 1)
        self._arrived.append(Sent(pdu, ahs, bytes(data)))

    def received(self, *kinds: type[Pdu]) -> list[Sent]:
        """What came since the last call; all of it is of these *kinds* in this order, if any are given."""
        self._drain()
        arrived, self._arrived = self._arrived, []
        if kinds:
            assert [type(sent.pdu) for sent in arrived] == [*kinds]
        return arrived

    def _drain(self) -> None:
        """Receive what the initiator has to send."""
        while buffers := self.connection.data_to_send():
            for data in buffers:
                position = 0
                while position < len(data):
                    place = self._receiver.get_buffer()
                    count = min(len(place), len(data) - position)
                    place[:count] = data[position : position + count]
                    position += count
                    self._receiver.buffer_updated(count)
        assert not self._receiver.in_pdu
        self._acknowledged = self.stat_sn

    def nothing_received(self) -> bool:
        return not self.received()

    # What the target sends.

    def bytes_of(self, kind: type[TargetPdu], data: bytes = b"", *, ahs: bytes = b"", **fields: Any) -> bytes:
        """The bytes of a PDU with the numbers that are due, and *fields*; all others are 0, or the reserved
        tag."""
        self._drain()
        known = kind._fields
        values: dict[str, Any] = dict.fromkeys(known, 0)
        values |= {name: RESERVED_TAG for name in known if name.endswith("_tag") and name != "snack_tag"}
        flags = FINAL if kind in (ScsiResponse, TextResponse) else 0
        numbers = {
            "flags": flags,
            "stat_sn": self.stat_sn,
            "exp_cmd_sn": self.exp_cmd_sn,
            "max_cmd_sn": serial.add(self.exp_cmd_sn, self.window - 1),
        }
        values |= {name: value for name, value in numbers.items() if name in known} | fields
        pdu = kind(**values)
        if self._counts(pdu) and values["stat_sn"] == self.stat_sn:
            self.stat_sn = serial.add(self.stat_sn, 1)
        digests = {
            "header_digest": self.parameters.header_digest,
            "data_digest": self.parameters.data_digest,
        }
        return b"".join(frame(pdu, data, ahs, **digests))

    def _counts(self, pdu: TargetPdu) -> bool:
        """Whether *pdu* has a StatSN of its own (section 4.2.2.2)."""
        match pdu:
            case DataIn():
                return bool(pdu.flags & DataInFlag.STATUS)
            case NopIn():
                return pdu.initiator_task_tag != RESERVED_TAG
            case _:
                return not isinstance(pdu, R2T)

    def send(self, kind: type[TargetPdu], data: bytes = b"", **fields: Any) -> None:
        """Send a PDU as `bytes_of` makes it."""
        self._feed(self.bytes_of(kind, data, **fields))

    def send_bytes(self, stream: bytes) -> None:
        """Send bytes as they are."""
        self._feed(stream)

    def _feed(self, stream: bytes) -> None:
        self.stream += stream
        feed(self.connection, stream, self.pieces)
        self._drain()

    def data_in(self, task: Task, offset: int, data: bytes, data_sn: int, **fields: Any) -> None:
        """Send a Data-In of *task*; the last one of a sequence unless *fields* say otherwise."""
        fields = {"flags": FINAL, **fields}
        tag = task.initiator_task_tag
        self.send(DataIn, data, initiator_task_tag=tag, buffer_offset=offset, data_sn=data_sn, **fields)

    def respond(self, task: Task, data: bytes = b"", **fields: Any) -> None:
        """Send the SCSI Response of *task*: GOOD status unless *fields* say otherwise."""
        self.send(ScsiResponse, data, **{"initiator_task_tag": task.initiator_task_tag, **fields})

    def r2t(self, task: Task, offset: int, length: int, r2t_sn: int = 0, **fields: Any) -> None:
        """Ask for a part of the data of *task*."""
        values = {
            "lun": task.lun,
            "initiator_task_tag": task.initiator_task_tag,
            "target_transfer_tag": 0x1000 + r2t_sn,
            "buffer_offset": offset,
            "desired_data_transfer_length": length,
            "r2t_sn": r2t_sn,
        }
        self.send(R2T, **(values | fields))

    def ping(self, target_transfer_tag: int = 7, lun: int = LUN, **fields: Any) -> None:
        self.send(NopIn, target_transfer_tag=target_transfer_tag, lun=lun, **fields)

    def report(self, event: int, data: bytes = b"", **fields: Any) -> None:
        """Send an Asynchronous Message."""
        self.send(AsyncMessage, data, async_event=event, **fields)

    def manage(self, request: Sent, response: int = 0) -> None:
        """Answer a task management function."""
        tag = request.pdu.initiator_task_tag
        self.send(TaskManagementResponse, response=response, initiator_task_tag=tag)

    def reject(self, rejected: Sent | bytes, reason: RejectReason | int) -> None:
        """Reject a PDU that came; the rejected command has not happened for CmdSN (section 7.3)."""
        if isinstance(rejected, Sent):
            rejected = pack(rejected.pdu, len(rejected.data), len(rejected.ahs))
        self.send(Reject, rejected, reason=reason)

    def log_out(self, request: Sent, response: int = 0, **fields: Any) -> None:
        """Answer a logout."""
        tag = request.pdu.initiator_task_tag
        self.send(LogoutResponse, response=response, initiator_task_tag=tag, **fields)

    # What the layer above the connection does.

    def events(self) -> list[Event]:
        return self.connection.events()

    def submit(self, task: Task) -> Task:
        self.connection.submit(task)
        self._drain()
        return task

    def read(self, length: int = 4096, **changes: Any) -> Task:
        """Submit a read."""
        return self.submit(read_task(length, **changes))

    def write(self, data: Buffer = bytes(range(256)) * 16, **changes: Any) -> Task:
        """Submit a write."""
        return self.submit(write_task(data, **changes))

    @contextmanager
    def drop(self, section: str, kind: type[ProtocolError] = ProtocolError) -> Iterator[None]:
        """What happens inside ends the connection because *section* is broken; nothing is sent, no task ends.

        The tasks are those that the layer above has to send again.
        """
        self.received()
        before = list(self.connection.tasks())
        with pytest.raises(kind) as caught:
            yield
        assert caught.value.section == section, caught.value
        assert self.nothing_received()
        assert not any(isinstance(event, Task) for event in self.events())
        assert self.connection.take_unfinished() == before


def read_task(length: int = 4096, lun: int = LUN, cdb: bytes = CDB) -> Task:
    return Task(lun, cdb, data_in=memoryview(bytearray(length)))


def write_task(data: Buffer = bytes(range(256)) * 16, lun: int = LUN, cdb: bytes = CDB) -> Task:
    return Task(lun, cdb, data_out=memoryview(data))


def plain_task(lun: int = LUN, cdb: bytes = CDB[:6]) -> Task:
    return Task(lun, cdb)


def pattern(length: int, seed: int = 0) -> bytes:
    """Bytes of which no two stretches are alike."""
    return random.Random(seed).randbytes(length)
