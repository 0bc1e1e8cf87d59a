"""Real targets as ordinary processes on loopback: tgt and istgt, as Debian packages them.

What is served is said once, for either of them::

    with Tgt(directory, Target("iqn.2026-01.example:disk", [Unit(image)])) as tgt:
        ...                    # the disk is LUN `tgt.first_lun` at each of `tgt.portals`

Every daemon has its own port, control socket and log, so any number of them, in any number of test runs,
live side by side. None needs root: where the caller is an ordinary user tgtd runs in a user namespace,
because it obeys root only.
"""

import contextlib
import ipaddress
import itertools
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol, Self, TypeVar

START_TIME = 10.0  # seconds a daemon may take to listen, or to end
# Below the ports that the kernel hands out by itself, so that no client takes one between choice and use.
PORTS = range(20000, 32768)

Kind = Literal["disk", "dvd", "tape"]


@dataclass(frozen=True)
class Chap:
    """Credentials of CHAP: the initiator's, and for mutual CHAP the target's too (RFC 7143 section 12.1)."""

    user: str
    secret: str
    target_user: str = ""
    target_secret: str = ""


@dataclass(frozen=True)
class Unit:
    """A logical unit backed by the file *image*; *options* are the daemon's own, spelled as it spells them.

    A tape (istgt only) is a file that istgt makes: *image* must not exist at the first start.
    tgt knows vendor_id, product_id, product_rev, scsi_sn, scsi_id, thin_provisioning, online...;
    istgt knows Serial, RPM, FormFactor, ReadCache, WriteCache.
    """

    image: Path
    kind: Kind = "disk"
    read_only: bool = False
    block_size: int = 512
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A target called *name*, its units numbered from the daemon's `first_lun`.

    *parameters* are keys of RFC 7143, or of the daemon (tgt: nop_interval, nop_count, RedirectAddress...;
    istgt: QueueDepth, UseDigest, UnitInquiry...).
    """

    name: str
    units: Sequence[Unit]
    chap: Chap | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)


class Daemon(ABC):
    """A target daemon that serves *targets* at one port of each of *addresses*.

    *discovery* are the credentials that a discovery session needs. As a context manager it is started on
    entry and killed on exit. The images, the port and the targets stay the same over a restart.
    """

    program: ClassVar[str]
    first_lun: ClassVar[int]
    _ENVIRONMENT: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        directory: Path,
        *targets: Target,
        addresses: Sequence[str] = ("127.0.0.1",),
        discovery: Chap | None = None,
    ) -> None:
        self.targets = list(targets)
        self.addresses = addresses
        self.discovery = discovery
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.home = Path(tempfile.mkdtemp(prefix=f"{self.program}.", dir=directory))
        self.log = self.home / "log"

    @property
    def portals(self) -> list[str]:
        """Each portal as HOST:PORT, an IPv6 address in brackets."""
        return [f"[{a}]:{self.port}" if ":" in a else f"{a}:{self.port}" for a in self.addresses]

    @property
    def portal(self) -> str:
        """The first portal as HOST:PORT."""
        return self.portals[0]

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running daemon; RuntimeError when it does not run."""
        if self._process is None:
            raise RuntimeError(f"{self.program} is not running")
        return self._process

    def start(self) -> None:
        """Start the daemon and return when it serves; after the first time, at the same port again."""
        free = (port for port in random.sample(PORTS, len(PORTS)) if _is_free(port, self.addresses))
        for port in [self.port] if self.port else itertools.islice(free, 3):
            self.port = port
            if self._launch():
                break
        else:
            raise RuntimeError(
                f"{self.program} does not listen at {self.portals}; its log:\n{self.log_text()}"
            )
        try:
            self._configure()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End the daemon as its manual says; it closes its sessions."""
        self.thaw()
        self._shut_down()
        self.process.wait(START_TIME)
        self._process = None

    def kill(self) -> None:
        """End the daemon at once (SIGKILL); RuntimeError when it had ended by itself."""
        status = self.process.poll()
        self.process.kill()
        self.process.wait(START_TIME)
        self._process = None
        if status is not None:
            raise RuntimeError(f"{self.program} ended with status {status}; its log:\n{self.log_text()}")

    def freeze(self) -> None:
        """Stop the daemon in its tracks (SIGSTOP): the connections stay, nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen daemon go on (SIGCONT)."""
        self.process.send_signal(signal.SIGCONT)

    def log_text(self) -> str:
        """Return what the daemon has said so far."""
        return self.log.read_text(errors="backslashreplace") if self.log.exists() else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self.kill()

    def _launch(self) -> bool:
        """Start the process; False when it did not get its ports."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                env=os.environ | self._ENVIRONMENT,
                start_new_session=True,  # Ctrl-C is the test runner's, which then ends the daemon itself
            )
        deadline = time.monotonic() + START_TIME
        while time.monotonic() < deadline and self._process.poll() is None:
            if _listeners(self._process.pid, self.port) >= len(self.addresses):
                return True
            time.sleep(0.01)
        self._process.kill()
        self._process.wait(START_TIME)
        self._process = None
        return False

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _configure(self) -> None: ...

    @abstractmethod
    def _shut_down(self) -> None: ...


class Tgt(Daemon):
    """tgt, which is set up and changed while it runs. Its LUN 0 is a controller; units start at 1.

    Each unit has *io_threads* threads of its own: give less than tgt's 16 where there are many units.
    """

    program = "tgtd"
    first_lun = 1
    # Relative, since the path of a test's directory is too long for the address of a Unix socket.
    _ENVIRONMENT: ClassVar[dict[str, str]] = {"TGT_IPC_SOCKET": "control"}
    _DEVICE_TYPES: ClassVar[dict[Kind, str]] = {"disk": "disk", "dvd": "cd"}

    def __init__(
        self,
        directory: Path,
        *targets: Target,
        addresses: Sequence[str] = ("127.0.0.1",),
        discovery: Chap | None = None,
        io_threads: int = 16,
    ) -> None:
        super().__init__(directory, *targets, addresses=addresses, discovery=discovery)
        self._io_threads = io_threads

    def adm(self, *arguments: str, **options: str | int) -> str:
        """Run tgtadm with *arguments*, and with ``--name value`` for each option, and return what it prints.

        Raises RuntimeError with its reason when it fails.
        """
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        done = subprocess.run(
            ["tgtadm", "--lld", "iscsi", *arguments, *flags],
            cwd=self.home,
            env=os.environ | self._ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_TIME,
        )
        if done.returncode:
            raise RuntimeError(f"tgtadm {' '.join([*arguments, *flags])}: {done.stderr.strip()}")
        return done.stdout

    def add_target(self, target: Target) -> None:
        """Serve one more target from now on."""
        self.targets.append(target)
        self._add_target(target)

    def add_unit(self, target: Target, lun: int, unit: Unit) -> None:
        """Serve *unit* as *lun* of *target* until the daemon ends."""
        tid = self.tid(target)
        self.adm(
            op="new",
            mode="logicalunit",
            tid=tid,
            lun=lun,
            backing_store=str(unit.image),
            blocksize=unit.block_size,
            device_type=self._DEVICE_TYPES[unit.kind],
        )
        options = {"readonly": str(int(unit.read_only)), **unit.options}
        parameters = ",".join(f"{name}={value}" for name, value in options.items())
        self.adm(op="update", mode="logicalunit", tid=tid, lun=lun, params=parameters)

    def remove_unit(self, target: Target, lun: int) -> None:
        """Take *lun* away from *target*; tgt refuses while the unit has commands in work."""
        self.adm(op="delete", mode="logicalunit", tid=self.tid(target), lun=lun)

    def update(self, target: Target, key: str, value: str) -> None:
        """Set a parameter of *target* for the logins to come."""
        self.adm(op="update", mode="target", tid=self.tid(target), name=key, value=value)

    def tid(self, target: Target) -> int:
        """Return the number by which tgtadm knows *target*."""
        return self.targets.index(target) + 1

    def _command(self) -> list[str]:
        portals = ",".join(f"portal={portal}" for portal in self.portals)
        as_root = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
        return [*as_root, "tgtd", "-f", "-t", str(self._io_threads), "--iscsi", portals]

    def _configure(self) -> None:
        self._accounts: set[str] = set()
        if self.discovery:
            self._add_chap(self.discovery)
        for target in self.targets:
            self._add_target(target)

    def _add_target(self, target: Target) -> None:
        tid = self.tid(target)
        self.adm(op="new", mode="target", tid=tid, targetname=target.name)
        for lun, unit in enumerate(target.units, self.first_lun):
            self.add_unit(target, lun, unit)
        for key, value in target.parameters.items():
            self.update(target, key, value)
        if target.chap:
            self._add_chap(target.chap, tid=tid)
        self.adm(op="bind", mode="target", tid=tid, initiator_address="ALL")

    def _add_chap(self, chap: Chap, **tid: int) -> None:
        """Ask for *chap* at the target *tid*, or for discovery when there is none."""
        self._add_account(chap.user, chap.secret)
        self.adm(op="bind", mode="account", user=chap.user, **tid)
        if chap.target_user:
            self._add_account(chap.target_user, chap.target_secret)
            self.adm("--outgoing", op="bind", mode="account", user=chap.target_user, **tid)

    def _add_account(self, user: str, secret: str) -> None:
        if user not in self._accounts:
            self.adm(op="new", mode="account", user=user, password=secret)
            self._accounts.add(user)

    def _shut_down(self) -> None:
        for target in self.targets:
            self.adm("--force", op="delete", mode="target", tid=self.tid(target))
        self.adm(op="delete", mode="system")


class Istgt(Daemon):
    """istgt, which reads its configuration once; units start at LUN 0, all of one kind in each target.

    *settings* are keys of its [Global] section.
    """

    program = "istgt"
    first_lun = 0
    _DEVICE_TYPES: ClassVar[dict[Kind, str]] = {"disk": "Disk", "dvd": "DVD", "tape": "Tape"}
    _GLOBAL: ClassVar[dict[str, str]] = {
        "NodeBase": "iqn.2026-01.example.istgt",
        "Timeout": "30",
        "NopInInterval": "20",
        "MaxSessions": "64",
        "MaxConnections": "4",
        "MaxR2T": "32",
        "MaxOutstandingR2T": "16",
        "DefaultTime2Wait": "2",
        "DefaultTime2Retain": "60",
        "FirstBurstLength": "262144",
        "MaxBurstLength": "1048576",
        "MaxRecvDataSegmentLength": "262144",
        "InitialR2T": "Yes",
        "ImmediateData": "Yes",
        "DataPDUInOrder": "Yes",
        "DataSequenceInOrder": "Yes",
        "ErrorRecoveryLevel": "0",
    }

    def __init__(
        self,
        directory: Path,
        *targets: Target,
        addresses: Sequence[str] = ("127.0.0.1",),
        discovery: Chap | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory, *targets, addresses=addresses, discovery=discovery)
        self.settings = settings or {}

    def _command(self) -> list[str]:
        auth = self.home / "auth.conf"
        auth.touch(mode=0o600)
        auth.write_text(self._auth_file())
        configuration = self.home / "istgt.conf"
        configuration.write_text(self._configuration_file())
        return ["istgt", "-D", "-c", str(configuration)]

    def _configure(self) -> None:
        """Nothing is left to do: the configuration was read at the start."""

    def _shut_down(self) -> None:
        self.process.terminate()

    def _auth_file(self) -> str:
        groups = [self.discovery, *(target.chap for target in self.targets)]
        return "".join(
            f'[AuthGroup{number}]\n  Auth "{chap.user}" "{chap.secret}"'
            + (f' "{chap.target_user}" "{chap.target_secret}"\n' if chap.target_user else "\n")
            for number, chap in enumerate(groups, 1)
            if chap
        )

    def _configuration_file(self) -> str:
        keys = {
            **self._GLOBAL,
            "PidFile": str(self.home / "pid"),
            "AuthFile": str(self.home / "auth.conf"),
            "MediaDirectory": str(self.home),
            "DiscoveryAuthMethod": _auth_method(self.discovery),
            "DiscoveryAuthGroup": "AuthGroup1" if self.discovery else "None",
            **self.settings,
        }
        lines = ["[Global]", *(f"{key} {value}" for key, value in keys.items())]
        lines += ["[UnitControl]", "AuthMethod None", "[PortalGroup1]"]
        lines += [f"Portal P{number} {portal}" for number, portal in enumerate(self.portals, 1)]
        lines += ["[InitiatorGroup1]", 'InitiatorName "ALL"', "Netmask ALL"]
        for number, target in enumerate(self.targets, 1):
            lines += self._unit_section(number, target)
        return "\n".join(lines) + "\n"

    def _unit_section(self, number: int, target: Target) -> list[str]:
        (kind,) = {unit.kind for unit in target.units}
        (block_size,) = {unit.block_size for unit in target.units}
        read_only = any(unit.read_only for unit in target.units)
        lines = [
            f"[LogicalUnit{number}]",
            f"TargetName {target.name}",
            "Mapping PortalGroup1 InitiatorGroup1",
            f"AuthMethod {_auth_method(target.chap)}",
            f"AuthGroup {f'AuthGroup{number + 1}' if target.chap else 'None'}",
            f"UnitType {self._DEVICE_TYPES[kind]}",
            f"ReadOnly {'Yes' if read_only else 'No'}",
            f"BlockLength {block_size}",
            *(f"{key} {value}" for key, value in target.parameters.items()),
        ]
        for lun, unit in enumerate(target.units, self.first_lun):
            access = "Storage" if kind == "disk" else f"Removable {'ro' if read_only else 'rw'}"
            lines.append(f"LUN{lun} {access} {unit.image} Auto")
            lines += [f"LUN{lun} Option {name} {value}" for name, value in unit.options.items()]
        return lines


D = TypeVar("D", bound=Daemon)


class Serve(Protocol):
    """The fixture `serve`: start a daemon for the length of the test, and return it."""

    def __call__(self, daemon: D) -> D: ...


def make_image(path: Path, size: int) -> Path:
    """Make a sparse file of *size* bytes and return its path."""
    with path.open("xb") as file:
        file.truncate(size)
    return path


def _auth_method(chap: Chap | None) -> str:
    if chap is None:
        return "None"
    return "CHAP Mutual" if chap.target_user else "CHAP"


def _is_free(port: int, addresses: Sequence[str]) -> bool:
    """Tell whether *port* can be bound at each address."""
    for address in addresses:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def _listeners(pid: int, port: int) -> int:
    """Return how many sockets process *pid* listens on at *port* (proc(5): /proc/net/tcp)."""
    own = set()
    with contextlib.suppress(OSError):  # a descriptor can go while we look
        own = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    tables = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    rows = [line.split() for line in tables.splitlines()]
    return sum(
        row[3] == "0A" and row[1].endswith(f":{port:04X}") and f"socket:[{row[9]}]" in own for row in rows
    )
