"""The real targets serve what the fixtures say, as seen by a small initiator that is here for this alone.

It uses nothing of iscsifs: when a test of iscsifs fails, these tell whether the target is to blame.
"""

import hashlib
import itertools
import os
import signal
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from support.targets import Chap, Daemon, Istgt, Serve, Target, Tgt, Unit, make_image

NAME = "iqn.2026-01.example:disk"
CHAP = Chap("alice", "secret of alice", "the-target", "secret of target")

pytestmark = pytest.mark.real


class Initiator:
    """Logs in at *address*, in plain Python: no digests, one command at a time.

    *keys* go with the first request; with *chap* the target is asked for CHAP_A=5 (MD5).
    """

    def __init__(
        self, address: tuple[str, int], keys: Mapping[str, str], chap: Chap | None = None, timeout: float = 5
    ) -> None:
        self._socket = socket.create_connection(address, timeout)
        self._tags = itertools.count(1)
        # Another for each session, so that none takes the place of one before it.
        self._isid = b"\x80" + os.urandom(5)
        self._exp_stat_sn = 0
        try:
            self.settled = self._log_in({"InitiatorName": "iqn.2026-01.example:me", **keys}, chap)
        except BaseException:
            self._socket.close()
            raise

    def text(self, **keys: str) -> list[tuple[str, str]]:
        """Send one Text Request and return the pairs of its answer, in their order."""
        header, answer = self._exchange(0x44, 0x80, _encode(keys), struct.pack(">I", 0xFFFFFFFF))
        assert header[0] == 0x24
        return _decode(answer)

    def command(self, lun: int, cdb: str, length: int = 255) -> bytes:
        """Send a command that reads up to *length* bytes and return them; its status has to be GOOD.

        The first command of a session may be answered with a unit attention (sense key 6); it is sent again.
        """
        for _ in range(2):
            fields = struct.pack(">I", length)
            header, data = self._exchange(0x41, 0xC1, b"", fields, bytes([0, lun]), bytes.fromhex(cdb))
            sense = data
            if header[0] == 0x25 and not header[1] & 0x01:
                header, sense = self._receive()
            if header[3] == 0:
                return data
            if sense[4] & 0x0F != 6:
                break
        raise AssertionError(f"status {header[3]:02x}h, sense data {sense.hex()}")

    def _log_in(self, keys: Mapping[str, str], chap: Chap | None) -> dict[str, str]:
        if chap is None:
            return dict(self._login_request(0x87, keys))
        self._login_request(0x00, {**keys, "AuthMethod": "CHAP"})
        asked = dict(self._login_request(0x00, {"CHAP_A": "5"}))
        challenge = bytes.fromhex(asked["CHAP_C"][2:])
        response = hashlib.md5(bytes([int(asked["CHAP_I"])]) + chap.secret.encode() + challenge)
        answer = {"CHAP_N": chap.user, "CHAP_R": "0x" + response.hexdigest()}
        if chap.target_user:
            answer |= {"CHAP_I": "7", "CHAP_C": "0x" + bytes(range(16)).hex()}
        return dict(self._login_request(0x83, answer))

    def _login_request(self, stages: int, keys: Mapping[str, str]) -> list[tuple[str, str]]:
        header, answer = self._exchange(0x43, stages, _encode(keys), bytes(4), self._isid + bytes(2))
        if header[36]:
            raise PermissionError(header[36:38].hex())
        return _decode(answer)

    def _exchange(
        self, opcode: int, flags: int, data: bytes, word20: bytes, lun: bytes = b"", tail: bytes = b""
    ) -> tuple[bytes, bytes]:
        tag = next(self._tags) if opcode != 0x43 else 0
        header = struct.pack(
            ">BB2xI8sI4sII16s", opcode, flags, len(data), lun, tag, word20, 1, self._exp_stat_sn, tail
        )
        self._socket.sendall(header + data + bytes(-len(data) % 4))
        return self._receive()

    def _receive(self) -> tuple[bytes, bytes]:
        header = self._read(48)
        length = int.from_bytes(header[5:8])
        data = self._read(length + -length % 4)[:length]
        self._exp_stat_sn = (int.from_bytes(header[24:28]) + 1) % 2**32
        return header, data

    def _read(self, length: int) -> bytes:
        data = self._socket.recv(length, socket.MSG_WAITALL) if length else b""
        if len(data) < length:
            raise ConnectionResetError("the target closed the connection")
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


def _encode(keys: Mapping[str, str]) -> bytes:
    return b"".join(f"{key}={value}\0".encode() for key, value in keys.items())


def _decode(data: bytes) -> list[tuple[str, str]]:
    return [
        (key, value) for key, _, value in (pair.partition("=") for pair in data.decode().split("\0")[:-1])
    ]


def connect(
    daemon: Daemon, name: str = NAME, chap: Chap | None = None, keys: Mapping[str, str] | None = None
) -> Initiator:
    """Log in to the target *name*."""
    return Initiator(
        (daemon.addresses[0], daemon.port),
        {"SessionType": "Normal", "TargetName": name, **(keys or {})},
        chap,
    )


def discover(daemon: Daemon, address: str = "127.0.0.1", chap: Chap | None = None) -> list[tuple[str, str]]:
    """Return the answer to SendTargets=All."""
    with Initiator((address, daemon.port), {"SessionType": "Discovery"}, chap) as initiator:
        return initiator.text(SendTargets="All")


def inquiry(daemon: Daemon, lun: int, name: str = NAME) -> bytes:
    """Return the standard INQUIRY data of a unit."""
    with connect(daemon, name) as initiator:
        return initiator.command(lun, "12000000ff00")


def test_a_disk_is_served(either: type[Daemon], serve: Serve, image: Path, tmp_path: Path) -> None:
    daemon = serve(either(tmp_path, Target(NAME, [Unit(image)])))
    assert [pair for pair in discover(daemon) if pair[0] == "TargetName"] == [("TargetName", NAME)]
    assert inquiry(daemon, daemon.first_lun)[0] == 0x00


def test_several_targets_with_several_units(
    either: type[Daemon], serve: Serve, image: Path, tmp_path: Path
) -> None:
    names = [f"{NAME}{number}" for number in range(5)]
    daemon = serve(either(tmp_path, *(Target(name, [Unit(image)] * 3) for name in names)))
    assert [value for key, value in discover(daemon) if key == "TargetName"] == names
    for lun in range(daemon.first_lun, daemon.first_lun + 3):
        assert inquiry(daemon, lun, names[-1])[0] == 0x00


def test_ipv4_and_ipv6_portals(either: type[Daemon], serve: Serve, image: Path, tmp_path: Path) -> None:
    daemon = serve(either(tmp_path, Target(NAME, [Unit(image)]), addresses=["127.0.0.1", "::1"]))
    for address, portal in zip(daemon.addresses, daemon.portals, strict=True):
        assert ("TargetAddress", f"{portal},1") in discover(daemon, address)


def test_two_daemons_of_a_kind_do_not_meet(
    either: type[Daemon], serve: Serve, image: Path, tmp_path: Path
) -> None:
    first = serve(either(tmp_path, Target(NAME + "1", [Unit(image)])))
    second = serve(either(tmp_path, Target(NAME + "2", [Unit(image)])))
    assert ("TargetName", NAME + "1") in discover(first)
    assert ("TargetName", NAME + "2") in discover(second)


@pytest.mark.parametrize("mutual", [False, True], ids=["one-way", "mutual"])
def test_chap(either: type[Daemon], serve: Serve, image: Path, tmp_path: Path, mutual: bool) -> None:
    chap = CHAP if mutual else Chap(CHAP.user, CHAP.secret)
    daemon = serve(either(tmp_path, Target(NAME, [Unit(image)], chap)))
    with connect(daemon, chap=chap) as initiator:
        assert bool(initiator.settled.get("CHAP_R")) == mutual
        if mutual:
            proof = hashlib.md5(b"\x07" + CHAP.target_secret.encode() + bytes(range(16)))
            assert int(initiator.settled["CHAP_R"], 16) == int(proof.hexdigest(), 16)
            assert initiator.settled["CHAP_N"] == CHAP.target_user
    with pytest.raises(PermissionError, match="0201"):
        connect(daemon, chap=Chap(CHAP.user, "not this secret"))
    with pytest.raises(PermissionError, match="02"):
        connect(daemon)


def test_discovery_asks_for_its_own_credentials(
    either: type[Daemon], serve: Serve, image: Path, tmp_path: Path
) -> None:
    chap = Chap(CHAP.user, CHAP.secret)
    daemon = serve(either(tmp_path, Target(NAME, [Unit(image)]), discovery=chap))
    assert ("TargetName", NAME) in discover(daemon, chap=chap)
    with pytest.raises(PermissionError, match="02"):
        discover(daemon)


@pytest.mark.parametrize(
    ("key", "offer", "setting"),
    [
        ("FirstBurstLength", "262144", "4096"),
        ("MaxBurstLength", "262144", "8192"),
        ("HeaderDigest", "CRC32C", ""),
    ],
)
def test_parameters_are_negotiated(
    serve: Serve, image: Path, tmp_path: Path, key: str, offer: str, setting: str
) -> None:
    tgt = serve(Tgt(tmp_path, Target(NAME, [Unit(image)], parameters={key: setting or offer})))
    settings = (
        {"UseDigest": "Header Data"} if key == "HeaderDigest" else {"FirstBurstLength": "4096", key: setting}
    )
    istgt = serve(Istgt(tmp_path, Target(NAME, [Unit(image)], parameters=settings)))
    for daemon in (tgt, istgt):
        with connect(daemon, keys={key: offer}) as initiator:
            assert initiator.settled[key] == (setting or offer)


def test_thin_provisioning_of_tgt(serve: Serve, image: Path, tmp_path: Path) -> None:
    units = [Unit(image), Unit(image, options={"thin_provisioning": "1"})]
    tgt = serve(Tgt(tmp_path, Target(NAME, units)))
    with connect(tgt) as initiator:
        discards = [initiator.command(lun, "9e10" + "00" * 11 + "20" + "0000", 32)[14] >> 7 for lun in (1, 2)]
    assert discards == [0, 1]


def test_a_unit_that_is_read_only_and_one_of_4096_byte_blocks(
    either: type[Daemon], serve: Serve, image: Path, tmp_path: Path
) -> None:
    targets = [
        Target(NAME + "r", [Unit(image, read_only=True)]),
        Target(NAME + "b", [Unit(image, block_size=4096)]),
    ]
    daemon = serve(either(tmp_path, *targets))
    with connect(daemon, NAME + "r") as initiator:
        mode_page = initiator.command(daemon.first_lun, "1a083f00ff00")
        assert mode_page[2] & 0x80, "the WP bit"
    with connect(daemon, NAME + "b") as initiator:
        last_block, block_length = struct.unpack(
            ">II", initiator.command(daemon.first_lun, "25" + "00" * 9, 8)
        )
        assert (last_block + 1, block_length) == ((64 << 20) // 4096, 4096)


def test_a_dvd(either: type[Daemon], serve: Serve, image: Path, tmp_path: Path) -> None:
    daemon = serve(either(tmp_path, Target(NAME, [Unit(image, "dvd")])))
    assert inquiry(daemon, daemon.first_lun)[0] == 0x05


def test_a_tape_of_istgt(serve: Serve, tmp_path: Path) -> None:
    istgt = serve(Istgt(tmp_path, Target(NAME, [Unit(tmp_path / "tape", "tape")])))
    assert inquiry(istgt, 0)[0] == 0x01


def test_tgt_changes_while_it_runs(serve: Serve, image: Path, tmp_path: Path) -> None:
    disk = Target(NAME, [Unit(image)])
    tgt = serve(Tgt(tmp_path, disk))
    tgt.add_unit(disk, 5, Unit(image))
    assert inquiry(tgt, 5)[0] == 0x00
    tgt.remove_unit(disk, 5)
    assert inquiry(tgt, 5)[0] == 0x7F
    tgt.add_target(Target(NAME + "2", [Unit(image)]))
    assert ("TargetName", NAME + "2") in discover(tgt)


def test_a_frozen_daemon_answers_when_it_thaws(
    either: type[Daemon], serve: Serve, image: Path, tmp_path: Path
) -> None:
    daemon = serve(either(tmp_path, Target(NAME, [Unit(image)])))
    daemon.freeze()
    with pytest.raises(TimeoutError):
        Initiator(("127.0.0.1", daemon.port), {"SessionType": "Normal", "TargetName": NAME}, timeout=0.2)
    daemon.thaw()
    assert inquiry(daemon, daemon.first_lun)


@pytest.mark.parametrize("end", [Daemon.kill, Daemon.stop])
def test_a_daemon_comes_back_with_its_port_and_data(
    either: type[Daemon], serve: Serve, image: Path, tmp_path: Path, end: Callable[[Daemon], None]
) -> None:
    daemon = serve(either(tmp_path, Target(NAME, [Unit(image)])))
    port = daemon.port
    with connect(daemon) as initiator:
        end(daemon)
        with pytest.raises(ConnectionError):
            initiator.command(daemon.first_lun, "12000000ff00")
    image.write_bytes(b"after the restart".ljust(64 << 20, b"\0"))
    daemon.start()
    assert daemon.port == port
    with connect(daemon) as initiator:
        initiator.command(daemon.first_lun, "12000000ff00")
        assert b"after the restart" in initiator.command(daemon.first_lun, "28" + "00" * 7 + "0100", 512)


def test_a_daemon_that_ended_by_itself_is_an_error(tmp_path: Path, image: Path) -> None:
    daemon = Istgt(tmp_path, Target(NAME, [Unit(image)]))
    daemon.start()
    os.kill(daemon.process.pid, signal.SIGABRT)
    os.waitid(os.P_PID, daemon.process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(RuntimeError, match=r"(?s)istgt ended with status -6.*istgt version"):
        daemon.kill()


def test_a_configuration_that_is_refused_shows_the_log(tmp_path: Path) -> None:
    bad = Unit(make_image(tmp_path / "empty", 0))
    with pytest.raises(RuntimeError, match="its log"), Istgt(tmp_path, Target(NAME, [bad])):
        pass
    with pytest.raises(RuntimeError, match="tgtadm"), Tgt(tmp_path, Target(NAME, [Unit(tmp_path / "none")])):
        pass
