"""Record seeds from real conversations: with tgt and istgt over TCP, and with the embedded target in memory.

Writes what it hears in the form that the harnesses of `support.fuzz` read, under names that begin with who
said it; the seeds that were made by hand stay as they are.
"""

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fuzzlib.campaign import SEEDS
from iscsifs.errors import IscsifsError, LoginError
from iscsifs.iscsi import serial
from iscsifs.iscsi.bhs import pack, unpack
from iscsifs.iscsi.connection import Connection
from iscsifs.iscsi.events import Text
from iscsifs.iscsi.framing import Receiver, frame
from iscsifs.iscsi.login import InitiatorLogin, LoginConfig, Outgoing, Redirect
from iscsifs.iscsi.task import Task
from iscsifs.iscsi.text import encode_pairs
from iscsifs.scsi import cdb
from iscsifs.scsi.luns import lun_from_number
from support import cdbs
from support.fuzz import wire
from support.fuzz.initiator import (
    LOGIN_CONFIGS,
    TARGET,
    WINDOW,
    FinishedLogin,
    Initiator,
    Setting,
    difference,
    due_response,
    finish_login,
    finished_logins,
    login_of,
)
from support.fuzz.parsers import SECRET, STEP, TARGET_SECRET, USER
from support.fuzz.target import Target as EmbeddedTarget
from support.fuzz.target import TargetSetting, finished_login, target_login
from support.fuzz.wire import WITHOUT_PAYLOAD, Written, counts_command, counts_status
from support.targets import Chap, Daemon, Istgt, Target, Tgt, Unit, make_image

SILENCE = 1.0
"""Seconds without a byte after which a target has said what it has to say."""

PATIENCE = 10.0
"""Seconds that an answer may take: istgt needs some until it accepts its first connection."""

SETTINGS = (
    Setting(),
    Setting(unsolicited=True),
    Setting(unsolicited=True, aborting=True, resetting=True),
    Setting(immediate_text=True, logging_out=True),
)


def save(harness: str, name: str, data: bytes) -> None:
    """Write one seed, unless there is one like it under another name."""
    directory = SEEDS / harness
    if all(seed.name == name or seed.read_bytes() != data for seed in directory.iterdir()):
        (directory / name).write_bytes(data)


class Pdus:
    """Cuts a stream without digests into PDUs."""

    def __init__(self) -> None:
        self.arrived: list[Written] = []
        self._receiver = Receiver(
            lambda *_: None,
            lambda pdu, ahs, data: self.arrived.append(
                Written(pack(pdu, len(data), len(ahs)), ahs, bytes(data))
            ),
            max_data_segment_length=1 << 24,
            ahs_allowed=True,
        )

    def add(self, stream: bytes) -> None:
        """Take what came."""
        wire.feed(self._receiver.get_buffer, self._receiver.buffer_updated, stream, len(stream))


def written_down(pdus: list[Written], *, status: bool, due: int) -> bytes:
    """Return *pdus* as the harnesses read them: numbers from those that are due, no payload."""
    counts = counts_status if status else counts_command
    stream = b""
    for header, ahs, data in pdus:
        number = serial.add(int.from_bytes(header[24:28], "big"), -due)
        if counts(header):
            due = serial.add(due, 1)
        stream += header[:24] + number.to_bytes(4, "big") + header[28:] + ahs
        if header[0] & 0x3F not in WITHOUT_PAYLOAD:
            stream += data + bytes(-len(data) % 4)
    return stream


class Line:
    """A TCP connection to *daemon*; `heard` is what came from it."""

    def __init__(self, daemon: Daemon) -> None:
        self._socket = socket.create_connection((daemon.addresses[0], daemon.port), timeout=PATIENCE)
        self.heard = Pdus()

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def receive(self) -> bytes:
        """Return what arrives next; nothing at the end, or where the wait is too long."""
        with contextlib.suppress(TimeoutError, ConnectionError):
            data = self._socket.recv(1 << 16)
            self.heard.add(data)
            return data
        return b""

    def log_in(self, config: LoginConfig) -> tuple[InitiatorLogin, bytes]:
        """Log in as far as it goes; return the login, and the responses as `initiator_login` reads them."""
        login = login_of(config)
        responses = b""
        with contextlib.suppress(LoginError):
            outcome: Outgoing | Redirect | None = login.start()
            while isinstance(outcome, tuple):
                request = outcome[0]
                due = due_response(request, len(self.heard.arrived))
                count = len(self.heard.arrived) + 1
                self._socket.sendall(b"".join(frame(*outcome)))
                while len(self.heard.arrived) < count:
                    if not self.receive():
                        return login, responses
                header, _, data = self.heard.arrived[-1]
                changes = difference(header, due)
                responses += changes[:4] + header[4:8] + changes[8:] + data + bytes(-len(data) % 4)
                outcome = login.receive(unpack(header), data)
        return login, responses

    def converse(self, connection: Connection) -> None:
        """Let *connection* have what it asks for, until there is silence."""
        self._socket.settimeout(SILENCE)
        with contextlib.suppress(IscsifsError, ConnectionError):
            while True:
                self._send(connection)
                stream = self.receive()
                if not stream:
                    return
                wire.feed(connection.get_buffer, connection.buffer_updated, stream, len(stream))

    def _send(self, connection: Connection) -> None:
        while buffers := connection.data_to_send():
            self._socket.sendall(b"".join(buffers))

    def run(self, connection: Connection, task: Task) -> Task:
        """Carry out one command."""
        connection.submit(task)
        while not task.ended:
            self._send(connection)
            stream = self.receive()
            assert stream, "no answer"
            wire.feed(connection.get_buffer, connection.buffer_updated, stream, len(stream))
        return task


def record_logins(daemon: Daemon, name: str, indexes: tuple[int, ...]) -> None:
    """Record the answers to `LOGIN_CONFIGS`."""
    for index in indexes:
        line = Line(daemon)
        _, responses = line.log_in(LOGIN_CONFIGS[index])
        save("initiator_login", f"{name}-{index}", bytes([index]) + responses)
        texts = [data for _, _, data in line.heard.arrived if data]
        for number, text in enumerate(texts):
            save("text", f"{name}-{index}-{number}", text)
        steps = [chap for chap in map(_chap_pairs, texts) if chap]
        if steps:
            save("chap", f"{name}-{index}", STEP.join(steps[-2:]))
        line.close()


def _chap_pairs(text: bytes) -> bytes:
    return b"".join(item + b"\0" for item in text.split(b"\0") if item.startswith(b"CHAP_"))


@contextlib.contextmanager
def logged_in(daemon: Daemon, setting: Setting, lun: int) -> Iterator[tuple[Line, Connection, int]]:
    """Log in and get the unit attentions out of the way; give the connection and the next CmdSN."""
    line = Line(daemon)
    login, _ = line.log_in(setting.login_config())
    connection = Connection(FinishedLogin(login))
    finish_login(connection)
    cmd_sn = login.config.cmd_sn
    status = -1
    while status != 0:
        task = line.run(connection, Task(lun, cdb.test_unit_ready()))
        status = task.status
        cmd_sn += 1
        if task.sense:
            save("sense", f"{daemon.program}-attention-{cmd_sn}", task.sense)
    yield line, connection, cmd_sn
    line.close()


def record_streams(daemon: Daemon, lun: int) -> None:
    """Record the answers to what `Initiator` asks for."""
    for setting in SETTINGS:
        with logged_in(daemon, setting, lun) as (line, connection, cmd_sn):
            # The same numbers and the same window as in the harness, so that the task tags are the same.
            login = connection.login
            login.config = replace(login.config, cmd_sn=cmd_sn)
            due = serial.add(login.exp_stat_sn, cmd_sn - 1)
            login.exp_stat_sn = due
            login.exp_cmd_sn, login.max_cmd_sn = cmd_sn, serial.add(cmd_sn, WINDOW - 1)
            fresh = Connection(FinishedLogin(login))
            finish_login(fresh)
            before = len(line.heard.arrived)
            initiator = Initiator(setting, fresh, lun)
            initiator.ask()
            line.converse(fresh)
            pdus = [_shifted(pdu, lun, cmd_sn - 1) for pdu in line.heard.arrived[before:]]
            stream = written_down(pdus, status=True, due=due)
            save(
                "initiator_stream", f"{daemon.program}-{setting.byte:02x}", bytes([setting.byte, 0]) + stream
            )
            for event in fresh.events():
                if isinstance(event, Text) and event.pairs:
                    save("addresses", f"{daemon.program}-normal", encode_pairs(event.pairs))


def _shifted(pdu: Written, lun: int, commands: int) -> Written:
    """Return *pdu* as one of LUN 0 and of a session that began *commands* later."""
    header = pdu.header
    if header[8:16] == lun.to_bytes(8, "big"):
        header = header[:8] + bytes(8) + header[16:]
    numbers = [serial.add(int.from_bytes(header[at : at + 4], "big"), -commands) for at in (28, 32)]
    header = header[:28] + b"".join(number.to_bytes(4, "big") for number in numbers) + header[36:]
    return pdu._replace(header=header)


def record_data(daemon: Daemon, lun: int) -> None:
    """Record parameter data and sense data."""
    commands = {
        ("vital_product_data", "standard"): cdb.inquiry(96),
        **{
            ("vital_product_data", f"{page:02x}"): cdb.inquiry(255, page)
            for page in (0, 0x80, 0x83, 0xB0, 0xB2)
        },
        **{("mode_pages", f"6-{page:02x}"): cdb.mode_sense_6(page) for page in (0x08, 0x3F)},
        **{("mode_pages", f"10-{page:02x}"): cdbs.mode_sense_10(page) for page in (0x08, 0x3F)},
        ("luns", "luns"): cdb.report_luns(1024),
        ("capacity", "10"): cdb.read_capacity_10(),
        ("capacity", "16"): cdb.read_capacity_16(),
        ("sense", "out-of-range"): cdb.read_16(1 << 40, 1),
        ("sense", "invalid-code"): b"\xc0" + bytes(15),
        ("sense", "invalid-field"): cdb.inquiry(255, 0x7F),
        ("sense", "request-sense"): cdbs.request_sense(),
    }
    with logged_in(daemon, Setting(), lun) as (line, connection, _):
        for (harness, name), command in commands.items():
            memory = bytearray(1024)
            task = line.run(connection, Task(lun, command, data_in=memoryview(memory)))
            if task.sense:
                save("sense", f"{daemon.program}-{name}", task.sense)
            elif task.received:
                save(harness, f"{daemon.program}-{name}", bytes(memory[: task.received]))
        task = line.run(connection, Task(lun_from_number(99), cdb.test_unit_ready()))
        save("sense", f"{daemon.program}-no-unit", task.sense)


def record_discovery(daemon: Daemon) -> None:
    """Record an answer to SendTargets."""
    line = Line(daemon)
    login, _ = line.log_in(LOGIN_CONFIGS[1])
    connection = Connection(FinishedLogin(login))
    finish_login(connection)
    text = connection.requests.send_text([("SendTargets", "All")])
    line.converse(connection)
    assert text.pairs
    save("addresses", f"{daemon.program}-all", encode_pairs(text.pairs))
    save("text", f"{daemon.program}-all", encode_pairs(text.pairs))
    line.close()


class Embedded(EmbeddedTarget):
    """The embedded target with what it sends."""

    out = b""

    def _respond(self) -> None:
        for pdu, data in self.connection.pdus_to_send():
            self.out += b"".join(frame(pdu, data))


def record_embedded() -> None:
    """Record both sides of conversations with the embedded target."""
    for setting in SETTINGS:
        target_setting = TargetSetting()
        target = Embedded(finished_login(target_setting))
        target.prepare(0, cdb.test_unit_ready())  # takes the unit attention
        initiator = Initiator.logged_in(setting)
        heard, asked = Pdus(), Pdus()
        while True:
            initiator.look()
            request, initiator.sent = initiator.sent, b""
            if not request:
                break
            asked.add(request)
            target.receive(request, len(request))
            answer, target.out = target.out, b""
            heard.add(answer)
            initiator.receive(answer, len(answer) or 1)
        target.device.close()
        due = finished_logins(setting)[1].statuses.stat_sn
        save(
            "initiator_stream",
            f"iscsifs-{setting.byte:02x}",
            bytes([setting.byte, 0]) + written_down(heard.arrived, status=True, due=due),
        )
        save(
            "target_stream",
            f"initiator-{setting.byte:02x}",
            bytes([target_setting.byte, 0]) + written_down(asked.arrived, status=False, due=1),
        )
    for index in range(len(LOGIN_CONFIGS)):
        login, target_side = login_of(LOGIN_CONFIGS[index]), target_login(TargetSetting(authenticating=True))
        requests = Pdus()
        with contextlib.suppress(LoginError):
            outcome: Outgoing | Redirect | None = login.start()
            while isinstance(outcome, tuple):
                requests.add(b"".join(frame(*outcome)))
                outcome = login.receive(*target_side.receive(*outcome))
        stream = written_down(requests.arrived, status=False, due=0)
        save("target_stream", f"login-{index}", bytes([TargetSetting(authenticating=True).byte, 0]) + stream)
        chap = [chap for _, _, data in requests.arrived if (chap := _chap_pairs(data))]
        if chap:
            save("chap", f"initiator-{index}", STEP.join(chap[-2:]))


def main() -> None:
    """Record everything."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # where the daemons are
    record_embedded()
    one_way = Chap(USER, SECRET.decode())
    mutual = Chap(USER, SECRET.decode(), "storage", TARGET_SECRET.decode())
    for kind in Tgt, Istgt:
        with tempfile.TemporaryDirectory() as directory:
            home = Path(directory)
            unit = Unit(make_image(home / "disk.img", 1 << 20))
            lun = lun_from_number(kind.first_lun)
            with kind(home, Target(TARGET, [unit])) as daemon:
                record_logins(daemon, daemon.program, (0, 1, 5, 6))
                record_streams(daemon, lun)
                record_data(daemon, lun)
                record_discovery(daemon)
            with kind(home, Target("iqn.2001-04.com.example:another", [unit])) as daemon:
                record_logins(daemon, f"{daemon.program}-not-found", (0,))
            for chap, indexes in (one_way, (0, 2)), (mutual, (3, 4, 7)):
                with kind(home, Target(TARGET, [unit], chap=chap)) as daemon:
                    record_logins(daemon, f"{daemon.program}-chap", indexes)
