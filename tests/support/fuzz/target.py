"""Fuzz harness for what an initiator sends to the embedded target."""

import random
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from iscsifs.errors import ProtocolError
from iscsifs.iscsi.bhs import unpack
from iscsifs.iscsi.chap import ChallengeMemory
from iscsifs.iscsi.framing import Receiver, frame
from iscsifs.iscsi.login import Outgoing, Redirect
from iscsifs.iscsi.pdu import (
    TaskFunction,
    TaskResponse,
)
from iscsifs.iscsi.text import Pair
from iscsifs.target.connection import TARGET_RESETS, Connection
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.login import TARGET_OFFER, TargetConfig, TargetLogin
from iscsifs.target.unit import Nexus, Operation
from support.fuzz.checks import is_line
from support.fuzz.initiator import BLOCK, TARGET, WINDOW, Setting, login_of
from support.fuzz.parsers import SECRET, TARGET_SECRET, USER, check_parameters
from support.fuzz.wire import SEGMENT, counts_command, feed, numbered, on_the_wire

DISK = 64 * BLOCK


class TargetSetting(NamedTuple):
    """The first byte of a stream to the target, bit by bit from the lowest."""

    header_digest: bool = False
    data_digest: bool = False
    discovery: bool = False
    authenticating: bool = False
    """The target demands CHAP, and the stream begins with the login."""

    @classmethod
    def of(cls, byte: int) -> "TargetSetting":
        return cls(*(bool(byte & 1 << bit) for bit in range(len(cls._fields))))

    @property
    def byte(self) -> int:
        return sum(on << bit for bit, on in enumerate(self))


def target_login(setting: TargetSetting) -> TargetLogin:
    """A login whose random numbers are the same in every run."""
    return TargetLogin(
        TargetConfig(
            target_names=frozenset({TARGET}),
            offer={**TARGET_OFFER, "MaxRecvDataSegmentLength": SEGMENT},
            command_window=WINDOW,
            secrets={USER: SECRET} if setting.authenticating else None,
            own=("storage", TARGET_SECRET),
        ),
        tsih=1,
        random_bytes=random.Random(7143).randbytes,
        memory=ChallengeMemory(),
    )


@cache
def finished_login(setting: TargetSetting) -> TargetLogin:
    """Return the target's side of a login that has been gone through."""
    target = target_login(setting)
    digests = Setting(setting.header_digest, setting.data_digest, unsolicited=True)
    config = digests.login_config()
    initiator = login_of(replace(config, target_name=None) if setting.discovery else config)
    outcome: Outgoing | Redirect | None = initiator.start()
    while outcome is not None:
        assert isinstance(outcome, tuple)
        outcome = initiator.receive(*target.receive(*outcome))
    return target


class Target(Nexus):
    """The embedded target with one small disk and one connection, as a session of it runs."""

    def __init__(self, login: TargetLogin) -> None:
        self.device = Device(TARGET, {0: Disk.in_memory(DISK)})
        self.connection = Connection(login, self)
        self._receiver = Receiver(
            self.connection.header_arrived, self.connection.pdu_arrived, ahs_allowed=True
        )
        if login.done:
            self.connection.start_full_feature_phase()
            self.logged_in()

    # What the connection asks for.

    def logged_in(self) -> None:
        parameters = self.connection.login.parameters
        check_parameters(parameters)
        self._receiver.header_digest = parameters.header_digest
        self._receiver.data_digest = parameters.data_digest
        self._receiver.max_data_segment_length = parameters.max_recv_data_segment_length

    def prepare(self, lun: int, cdb: bytes) -> Operation:
        return self.device.prepare(self, lun, cdb)

    def manage(self, function: TaskFunction, lun: int) -> TaskResponse:
        known = function in TARGET_RESETS or self.device.unit(lun) is not None
        return TaskResponse.COMPLETE if known else TaskResponse.NO_SUCH_LUN

    def send_targets(self, value: str) -> list[Pair]:
        return [("TargetName", TARGET)] if value in ("All", TARGET, "") else []

    # What a session does.

    def receive(self, stream: bytes, piece: int) -> None:
        """Let *stream* arrive in pieces, up to the end of the connection."""
        for position in range(0, len(stream), piece):
            part = stream[position : position + piece]
            try:
                feed(self._receiver.get_buffer, self._receiver.buffer_updated, part, piece)
            except ProtocolError as error:
                message = str(error)
                self.connection.fail(error)
                assert is_line(message), ascii(message)
            self._carry_out()
            self._respond()
            if self.connection.closing:
                return

    def _carry_out(self) -> None:
        for task in self.connection.tasks():
            assert len(task.data) <= DISK
            result = task.operation.run(task.data)
            if result.sync is not None:
                result.sync()
            self.connection.complete(task, result)

    def _respond(self) -> None:
        limit = self.connection.login.parameters.max_send_data_segment_length
        for pdu, data in self.connection.pdus_to_send():
            assert len(data) <= limit
            assert unpack(frame(pdu, data)[0]) == pdu


def target_stream(data: bytes) -> None:
    """A stream to the embedded target: its login, or what comes behind it, all at once and in pieces.

    The first byte is the `TargetSetting`, the second one less than the length of the pieces.
    """
    if len(data) < 2:
        return
    setting, piece = TargetSetting.of(data[0]), data[1] + 1
    for length in 1 << 16, piece:
        login = target_login(setting) if setting.authenticating else finished_login(setting)
        target = Target(login)
        try:
            stream = b"".join(
                on_the_wire(
                    written,
                    header_digest=login.parameters.header_digest,
                    data_digest=login.parameters.data_digest,
                )
                for written in numbered(data[2:], counts_command, login.commands.exp_cmd_sn)
            )
            target.receive(stream, length)
            target.connection.abort()
        finally:
            target.device.close()
