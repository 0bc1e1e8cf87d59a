"""open-isns' server as an ordinary process on loopback, with files of its own in a directory of the test."""

import random
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from support.targets import PORTS, START_TIME

ADMIN = "iqn.2001-04.com.example:admin"
CONTROL = "iqn.2001-04.com.example:control"


class Isnsd:
    """An iSNS server at a port of 127.0.0.1; *settings* are those of isnsd.conf.

    As a context manager it is started on entry and killed on exit. The database and the port stay the same
    over a restart, unless it is `forget`-ful.
    """

    def __init__(self, directory: Path, **settings: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="isnsd.", dir=directory))
        self._control = Path(tempfile.mkdtemp(prefix="isnsd."))  # a Unix socket's path has to be short
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._forgotten = 0
        self._settings = {
            "SourceName": "iqn.2001-04.com.example:isns",
            "Security": "0",
            "SLPRegister": "0",
            "DefaultDiscoveryDomain": "1",
            "RegistrationPeriod": "10m",
            # Else what was lost on its way is sent again after a minute only.
            "SCNTimeout": "2",
            "PIDFile": str(self.home / "pid"),
            **settings,
        }

    @property
    def portal(self) -> str:
        """Where it is, as HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    @property
    def log_text(self) -> str:
        """What it has logged."""
        return (self.home / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, and return when it serves; after the first time, at the same port again."""
        for port in [self.port] if self.port else random.sample(PORTS, 3):
            self.port = port
            self._write_configuration()
            with (self.home / "log").open("ab") as log:
                words = ["isnsd", "-f", "-4", "-c", str(self.home / "isnsd.conf"), "-d", "scn", "-d", "esi"]
                self._process = subprocess.Popen(words, stdout=log, stderr=log, cwd=self.home)
            if self._listens():
                return
            self.kill()
        raise RuntimeError(f"isnsd does not listen; its log:\n{self.log_text}")

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(START_TIME)
            self._process = None

    def forget(self) -> None:
        """Begin with an empty database at the next start."""
        self._forgotten += 1

    def admin(self, *words: str, control: bool = False) -> str:
        """Run isnsadm with *words*, as a control node where *control*; raises RuntimeError."""
        source = CONTROL if control else ADMIN
        path = self.home / f"{source.rpartition(':')[2]}.conf"
        path.write_text(f"SourceName = {source}\nServerAddress = {self.portal}\nSecurity = 0\n")
        done = subprocess.run(
            ["isnsadm", "-c", str(path), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_TIME,
        )
        if done.returncode:
            raise RuntimeError(f"isnsadm {' '.join(words)}: {done.stdout} {done.stderr}")
        return done.stdout

    def register(self, entity: str, name: str, portal: str) -> None:
        """Register the target *name* at *portal*."""
        self.admin("--register", f"entity={entity}", f"target={name}", f"portal={portal}")

    def deregister(self, attribute: str) -> None:
        """Deregister an object, as in ``iscsi-name=NAME`` or ``eid=ENTITY``."""
        self.admin("--deregister", attribute)

    def nodes(self) -> str:
        """Return what it says of its nodes."""
        return self.admin("--list", "nodes")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._control)

    def _write_configuration(self) -> None:
        settings = self._settings | {
            "BindAddress": self.portal,
            "Database": str(self.home / f"database{self._forgotten}"),
            "ControlSocket": str(self._control / "socket"),
        }
        text = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self.home / "isnsd.conf").write_text(text)

    def _listens(self) -> bool:
        """Wait until it listens; False where it ends instead."""
        assert self._process is not None
        end = time.monotonic() + START_TIME
        while time.monotonic() < end and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return True
            time.sleep(0.02)
        return False
