"""Fuzz harnesses for what a target sends to an initiator: in the full feature phase, and during login."""

import random
from functools import cache
from typing import Any, NamedTuple

from iscsifs.errors import LoginError, ProtocolError, TransportError
from iscsifs.iscsi import serial
from iscsifs.iscsi.bhs import pack, unpack
from iscsifs.iscsi.chap import ChallengeMemory, Credentials
from iscsifs.iscsi.connection import Connection
from iscsifs.iscsi.events import Event, LogoutRequested, Management, Noted, Text
from iscsifs.iscsi.framing import Receiver
from iscsifs.iscsi.keys import INITIATOR_OFFER, Value
from iscsifs.iscsi.login import LOGIN_SEGMENT_LENGTH, InitiatorLogin, LoginConfig, Outgoing, Redirect
from iscsifs.iscsi.pdu import (
    DataOut,
    InitiatorPdu,
    LoginFlag,
    LoginRequest,
    LoginResponse,
    Pdu,
    Stage,
    TaskFunction,
    TaskResponse,
)
from iscsifs.iscsi.states import ConnectionState
from iscsifs.iscsi.task import Task
from iscsifs.limits import MAX_LOGIN_EXCHANGES
from iscsifs.scsi import cdb
from iscsifs.target.login import TARGET_OFFER, TargetConfig, TargetLogin
from support.fuzz.checks import allowed, is_line
from support.fuzz.parsers import SECRET, TARGET_SECRET, USER, check_parameters
from support.fuzz.wire import SEGMENT, Written, counts_status, feed, numbered, on_the_wire, pattern, split

INITIATOR = "iqn.2001-04.com.example:initiator"
TARGET = "iqn.2001-04.com.example:target"
ISID = bytes.fromhex("800102030405")
BLOCK = 512

WINDOW = 4
"""Commands that the target takes at once."""


def config(**changes: Any) -> LoginConfig:
    """What the initiator logs in with, but for *changes*."""
    return LoginConfig(**{"initiator_name": INITIATOR, "target_name": TARGET, "isid": ISID} | changes)


def login_of(login_config: LoginConfig) -> InitiatorLogin:
    """A login whose random numbers are the same in every run."""
    return InitiatorLogin(login_config, random_bytes=random.Random(7143).randbytes, memory=ChallengeMemory())


# The full feature phase.


class Setting(NamedTuple):
    """The first byte of a stream to the initiator, bit by bit from the lowest."""

    header_digest: bool = False
    data_digest: bool = False
    unsolicited: bool = False
    """Data are sent without an R2T too."""
    aborting: bool = False
    resetting: bool = False
    immediate_text: bool = False
    logging_out: bool = False

    @classmethod
    def of(cls, byte: int) -> "Setting":
        return cls(*(bool(byte & 1 << bit) for bit in range(len(cls._fields))))

    @property
    def byte(self) -> int:
        return sum(on << bit for bit, on in enumerate(self))

    def login_config(self) -> LoginConfig:
        offer: dict[str, Value] = {
            **INITIATOR_OFFER,
            "HeaderDigest": ("CRC32C" if self.header_digest else "None",),
            "DataDigest": ("CRC32C" if self.data_digest else "None",),
            "MaxRecvDataSegmentLength": SEGMENT,
            "InitialR2T": not self.unsolicited,
            "ImmediateData": self.unsolicited,
            "FirstBurstLength": SEGMENT,
            "MaxBurstLength": 2 * SEGMENT,
            "MaxOutstandingR2T": 2,
        }
        return config(offer=offer)


@cache
def finished_logins(setting: Setting) -> tuple[InitiatorLogin, TargetLogin]:
    """Return both sides of a login with these settings that has been gone through."""
    target = TargetLogin(
        TargetConfig(
            target_names=frozenset({TARGET}),
            offer={**TARGET_OFFER, "MaxRecvDataSegmentLength": SEGMENT},
            command_window=WINDOW,
        ),
        tsih=1,
        random_bytes=random.Random(7143).randbytes,
        memory=ChallengeMemory(),
    )
    login = login_of(setting.login_config())
    outcome: Outgoing | Redirect | None = login.start()
    while outcome is not None:
        assert isinstance(outcome, tuple)
        outcome = login.receive(*target.receive(*outcome))
    return login, target


class FinishedLogin(InitiatorLogin):
    """A login that was gone through before, and ends with the first response: to log in takes its time."""

    def __init__(self, login: InitiatorLogin) -> None:
        self.__dict__ |= login.__dict__

    def start(self) -> Outgoing:
        return self._request, b""

    def receive(self, response: Pdu, text: bytes) -> None:
        return None


def finish_login(connection: Connection) -> None:
    """Let the response arrive that ends the `FinishedLogin` of *connection*."""
    response = pack(LoginResponse(0, 0, 0, ISID, 1, 0))
    feed(connection.get_buffer, connection.buffer_updated, response, len(response))
    assert connection.state is ConnectionState.LOGGED_IN
    connection.events()
    connection.data_to_send()


class Initiator:
    """A *connection* that is logged in, and asks for something of every kind on *lun*."""

    GUARD = b"\x5a" * 64
    """Stands before and behind the memory of a read, and must stay."""

    def __init__(self, setting: Setting, connection: Connection, lun: int = 0) -> None:
        self.setting = setting
        self.connection = connection
        self.error = ""
        self.events: list[Event] = []
        self.sent = b""
        self._memory = [bytearray(self.GUARD + bytes(length) + self.GUARD) for length in (BLOCK, 4 * BLOCK)]
        places = [memoryview(memory)[len(self.GUARD) : -len(self.GUARD)] for memory in self._memory]
        # The window has room for four of them.
        self.tasks = [
            Task(lun, cdb.read_10(0, 1), data_in=places[0]),
            Task(lun, cdb.write_10(0, 8), data_out=memoryview(pattern(8 * BLOCK))),
            Task(lun, cdb.test_unit_ready()),
            Task(lun, cdb.read_10(8, 4), data_in=places[1]),
            Task(lun, cdb.write_10(8, 1), data_out=memoryview(pattern(BLOCK))),
        ]

    @classmethod
    def logged_in(cls, setting: Setting) -> "Initiator":
        """Return one whose requests are on the wire."""
        connection = Connection(FinishedLogin(finished_logins(setting)[0]))
        finish_login(connection)
        initiator = cls(setting, connection)
        initiator.ask()
        return initiator

    def ask(self) -> None:
        """Make the requests; their task tags count from 1."""
        connection, setting = self.connection, self.setting
        for task in self.tasks:
            connection.submit(task)
        connection.requests.ping()
        connection.requests.send_text([("SendTargets", "")], immediate=setting.immediate_text)
        if setting.aborting:
            connection.requests.abort_task(self.tasks[0])
        if setting.resetting:
            connection.requests.reset(TaskFunction.LOGICAL_UNIT_RESET, self.tasks[0].lun)
        if setting.logging_out:
            connection.requests.log_out()

    def receive(self, stream: bytes, piece: int) -> None:
        """Let *stream* arrive, unless there was an error before."""
        if self.error:
            return
        try:
            feed(self.connection.get_buffer, self.connection.buffer_updated, stream, piece)
        except ProtocolError as error:
            self.error = str(error)
        if self.error:
            assert is_line(self.error), ascii(self.error)
            assert not self.connection.data_to_send()

    def look(self) -> list[Event]:
        """Take what has happened and what is to be sent; return what has happened."""
        events = self.connection.events()
        self.events += events
        while buffers := self.connection.data_to_send():
            self.sent += b"".join(buffers)
        return events

    def react(self, event: Event) -> None:
        """Do what a session would do."""
        if self.error:
            return
        match event:
            case Management(refused_for_now=True, function=TaskFunction.ABORT_TASK):
                if event.tasks[0].on_the_wire:
                    self.connection.requests.repeat(event)
            case Management(refused_for_now=True):
                self.connection.requests.repeat(event)
            case Management(response=TaskResponse.REJECTED):
                self.connection.requests.reset(TaskFunction.TARGET_WARM_RESET)
            case LogoutRequested():
                self.connection.requests.log_out()

    def end(self) -> tuple[object, ...]:
        """End the stream; return all that can be seen of it from outside."""
        self.look()
        with allowed(TransportError):
            self.connection.receive_eof()
        unfinished = self.connection.take_unfinished()
        assert not list(self.connection.tasks())
        self._check_tasks(unfinished)
        self._check_sent()
        tasks = [(_described(task), bytes(task.data_in)) for task in self.tasks]
        return self.error, [_described(event) for event in self.events], tasks, self.sent

    def _check_tasks(self, unfinished: list[Task]) -> None:
        """Every task has ended once or is unfinished, and no byte went where it does not belong."""
        ended = [event for event in self.events if isinstance(event, Task)]
        assert sorted(map(id, ended + unfinished)) == sorted(map(id, self.tasks))
        for memory in self._memory:
            assert memory.startswith(self.GUARD)
            assert memory.endswith(self.GUARD)
        for task in self.tasks:
            assert task.received <= len(task.data_in)
            assert not task.ended or task in ended
        for task in ended:
            if task.failure is None and task.status == 0:
                expected = len(task.data_in) or len(task.data_out)
                assert task.received + task.sent == expected - max(task.residual, 0)
        for event in self.events:
            assert not isinstance(event, Noted) or is_line(event.text)

    def _check_sent(self) -> None:
        """Read what the initiator sent as a target does: whole PDUs, and no data but those of the command."""
        arrived: list[tuple[Pdu, bytes]] = []
        receiver = Receiver(
            lambda *_: None,
            lambda pdu, _, data: arrived.append((pdu, bytes(data))),
            max_data_segment_length=SEGMENT,
        )
        receiver.header_digest = self.setting.header_digest
        receiver.data_digest = self.setting.data_digest
        feed(receiver.get_buffer, receiver.buffer_updated, self.sent, len(self.sent))
        assert not receiver.in_pdu
        writes = {task.initiator_task_tag: task.data_out for task in self.tasks}
        for pdu, data in arrived:
            assert isinstance(pdu, InitiatorPdu)
            if isinstance(pdu, DataOut):
                start = pdu.buffer_offset
                assert data
                assert data == writes[pdu.initiator_task_tag][start : start + len(data)]


def _described(event: Event) -> tuple[object, ...]:
    """Return what two runs have to have in common of *event*."""
    match event:
        case Task():
            failure = str(event.failure)
            assert is_line(failure)
            counts = event.received, event.sent, event.residual
            return "Task", event.initiator_task_tag, event.ended, event.status, event.sense, failure, *counts
        case Management():
            return "Management", event.function, event.response, event.refused_for_now
        case Text():
            return "Text", event.pairs
    return type(event), getattr(event, "response", None), str(event) if isinstance(event, Noted) else ""


def initiator_stream(data: bytes) -> None:
    """A stream to a logged-in initiator that has asked for something of every kind.

    The first byte is the `Setting`, the second one less than the length of the pieces that it comes in: all
    at once and piece by piece must come to the same end. Then once more PDU by PDU, what there is to send
    being sent in between.
    """
    if len(data) < 2:
        return
    setting, piece = Setting.of(data[0]), data[1] + 1
    stat_sn = finished_logins(setting)[1].statuses.stat_sn
    pdus = [
        on_the_wire(written, header_digest=setting.header_digest, data_digest=setting.data_digest)
        for written in numbered(data[2:], counts_status, stat_sn)
    ]
    stream = b"".join(pdus)
    outcomes = []
    for length in len(stream) + 1, piece:
        initiator = Initiator.logged_in(setting)
        initiator.receive(stream, length)
        outcomes.append(initiator.end())
    assert outcomes[0] == outcomes[1]
    served = Initiator.logged_in(setting)
    served.look()
    for pdu in pdus:
        served.receive(pdu, len(pdu))
        for event in served.look():
            served.react(event)
    served.end()


# The login.

CRC32C_FIRST = {**INITIATOR_OFFER, "HeaderDigest": ("CRC32C", "None"), "DataDigest": ("CRC32C", "None")}

LOGIN_CONFIGS = (
    config(),
    config(target_name=None, zone="eth0"),
    config(credentials=Credentials(USER, SECRET)),
    config(credentials=Credentials(USER, SECRET, "storage", TARGET_SECRET)),
    config(credentials=Credentials(USER, SECRET, None, TARGET_SECRET), allow_none=True),
    config(first_stage=Stage.OPERATIONAL, offer=CRC32C_FIRST, target_portal_group_tag=1),
    config(tsih=7, cid=1, algorithms=(5,)),
    config(credentials=Credentials(USER, SECRET, "storage", TARGET_SECRET), algorithms=(5,)),
)
"""What the initiator logs in with; the first byte of the input says which."""


def initiator_login(data: bytes) -> None:
    """A login that is answered with a sequence of Login Responses.

    The header of each is written down as its difference (XOR) from `due_response`: zeros are a good answer.
    """
    if not data:
        return
    login_config = LOGIN_CONFIGS[data[0] % len(LOGIN_CONFIGS)]
    login = login_of(login_config)
    request, _ = login.start()
    requests = 1
    for stat_sn, written in enumerate(split(data[1:])):
        if not isinstance(written, Written):
            return
        outcome: Outgoing | Redirect | None = None
        with allowed(LoginError, ProtocolError):
            response = unpack(difference(written.header, due_response(request, stat_sn)))
            outcome = login.receive(response, written.data)
            if outcome is None:
                _check_logged_in(login, login_config)
        if not isinstance(outcome, tuple):
            if isinstance(outcome, Redirect):
                assert outcome.portals
                assert all(is_line(str(portal)) for portal in outcome.portals)
            return
        request, text = outcome
        requests += 1
        assert requests <= MAX_LOGIN_EXCHANGES
        assert len(text) <= LOGIN_SEGMENT_LENGTH


def difference(header: bytes, response: LoginResponse) -> bytes:
    """Return the XOR of *header* and that of *response*, but for the lengths."""
    masked = header[:4] + bytes(4) + header[8:]
    return bytes(a ^ b for a, b in zip(masked, pack(response), strict=True))


def due_response(request: LoginRequest, stat_sn: int) -> LoginResponse:
    """Return the answer that goes on to the stage that *request* asks for."""
    flags = request.flags & ~LoginFlag.CONTINUE
    final = bool(flags & LoginFlag.TRANSIT) and flags & 3 == Stage.FULL_FEATURE
    return LoginResponse(
        flags=flags,
        version_max=0,
        version_active=0,
        isid=request.isid,
        tsih=(request.tsih or 1) if final else request.tsih,
        initiator_task_tag=request.initiator_task_tag,
        stat_sn=stat_sn,
        exp_cmd_sn=request.cmd_sn,
        max_cmd_sn=serial.add(request.cmd_sn, WINDOW - 1),
    )


def _check_logged_in(login: InitiatorLogin, login_config: LoginConfig) -> None:
    """Nobody gets in without the proof that was demanded, nor with parameters that were not offered."""
    check_parameters(login.parameters)
    assert login.tsih or login.oddities
    assert all(is_line(oddity) for oddity in login.oddities)
    for name, on in (
        ("HeaderDigest", login.parameters.header_digest),
        ("DataDigest", login.parameters.data_digest),
    ):
        offered = login_config.offer[name]
        assert isinstance(offered, tuple)
        assert ("CRC32C" if on else "None") in offered
    if login_config.credentials is None or (login_config.allow_none and login.chap is None):
        return
    assert login.chap is not None
    assert login.chap.algorithm in login_config.algorithms
    assert not login.chap.mutual or login.chap.target_user or login_config.allow_none
