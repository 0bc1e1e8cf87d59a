"""The files of control and monitoring of a mount, as plain files in a directory."""

import json
import os
from pathlib import Path

from iscsifs.ctl.mounted import Mount
from iscsifs.errors import ConfigError

HOST, TARGET = "192.0.2.1", "disk"
NAME = "iqn.2001-04.com.example:disk"
WWID = "naa.6000000000000001"
MIB = 1 << 20

_LINKS = {
    "type": "disk",
    "vendor": "IET",
    "product": "VIRTUAL-DISK",
    "version": "0001",
    "serial": "beaf11",
    "wwid": WWID,
    "blocksize": "512",
}
_SESSION = {
    "state": "LOGGED_IN",
    "since": "2026-11-21T12:00:00Z",
    "isid": "0x800000000001",
    "tsih": "0x0007",
    "target_portal_group": "1",
    "parameters": "HeaderDigest=None\nMaxBurstLength=262144\nMaxConnections=1",
    "connections": "0 192.0.2.9:40000 -> 192.0.2.1:3260 LOGGED_IN",
    "reconnects": "2",
    "last_error": "",
}


class ControlTree:
    """A mount at *path* that is none: what it shows are plain files, and commands stay in theirs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[dict[str, object]] = []
        self.turned = 0
        (path / ".iscsifs").mkdir(parents=True)
        (path / "by-id").mkdir()
        self.write("iscsifs 1.2.3", ".iscsifs", "version")
        self.write("user = alice\nread_only = no", ".iscsifs", "config")
        self.write("off", ".iscsifs", "trace")
        for name in "attach", "save":
            self.write("", ".iscsifs", name)
        self.event("started", "serving")

    @property
    def mount(self) -> Mount:
        """It, as the commands have it."""
        return Mount(self.path, os.getuid())

    def find(self, path: Path | None) -> Mount:
        """Stand in for `iscsifs.ctl.mounted.find_mount`."""
        if path is not None and not path.is_relative_to(self.path):
            raise ConfigError(f"{path}: iscsifs has mounted nothing there")
        return self.mount

    def add_target(self, host: str = HOST, target: str = TARGET, name: str = NAME, **session: str) -> Path:
        """Add a target without units; return its directory."""
        directory = self.path / host / target
        (directory / "session").mkdir(parents=True)
        links = {"hostname": host, "ip": "192.0.2.1", "port": "3260", "targetname": name}
        for link, text in links.items():
            (directory / link).symlink_to(text)
        for file, text in (_SESSION | session).items():
            self.write(text, host, target, "session", file)
        for file in "rescan", "reset", "logout":
            self.write("", host, target, file)
        return directory

    def add_unit(self, target: Path, number: int = 0, size: int = 64 * MIB, **links: str) -> Path:
        """Add a unit to the directory of a target; return its own."""
        directory = target / f"lun{number}"
        directory.mkdir()
        for link, text in (_LINKS | links).items():
            (directory / link).symlink_to(text)
        with open(directory / "storage", "wb") as file:
            file.truncate(size)
        names = directory.relative_to(self.path).parts
        for name in "rescan", "reset", "loop":
            self.write("", *names, name)
        self.count(directory)
        by_id = self.path / "by-id" / links.get("wwid", WWID)
        if not by_id.is_symlink():
            by_id.symlink_to(Path("..", *names))
        return directory

    def count(
        self,
        unit: Path,
        reads: int = 0,
        writes: int = 0,
        size: int = 4096,
        seconds: float = 0.001,
        dirty: int = 0,
        depth: int = 0,
    ) -> None:
        """Let *unit* have done these operations of *size* bytes, each in *seconds*."""
        names = unit.relative_to(self.path).parts
        values = {
            "reads": reads,
            "read_bytes": reads * size,
            "read_errors": 0,
            "read_seconds": reads * seconds,
            "writes": writes,
            "write_bytes": writes * size,
            "write_errors": 0,
            "write_seconds": writes * seconds,
            "flushes": 1,
            "flush_errors": 0,
            "flush_seconds": 0.5,
            "repeats": 3,
            "depth": depth,
            "deepest": 32,
            "dirty_bytes": dirty,
            "unsynchronised_bytes": 0,
            "losses": 0,
        }
        self.write("\n".join(f"{name} {value}" for name, value in values.items()), *names, "statistics")
        lines = []
        for kind, count in ("read", reads), ("write", writes), ("flush", 1):
            counts = {"0.001": 0, "0.01": 0, "1.0": 0, "+Inf": 0}
            place = next(bound for bound in counts if (seconds if kind != "flush" else 0.5) <= float(bound))
            counts[place] = count
            lines.append(" ".join([kind, *(f"{bound}:{number}" for bound, number in counts.items())]))
        self.write("\n".join(lines), *names, "latency")

    def write(self, text: str, *names: str) -> None:
        """Write a file of text, all of it at once: a mount shows nothing half."""
        new = self.path.parent / "new"
        new.write_text(f"{text}\n" if text else "")
        new.replace(self.path.joinpath(*names))

    def command(self, *names: str) -> str:
        """Return the command that was written to a control file, and forget it."""
        file = self.path.joinpath(*names)
        text = file.read_text()
        file.write_text("")
        return text

    def event(self, kind: str, text: str, **where: object) -> None:
        """Add an event."""
        self.events.append({"id": len(self.events) + 1, "time": "2026-11-21T12:00:00.000Z", "event": kind})
        self.events[-1] |= where | {"text": text}
        self.write("\n".join(map(json.dumps, self.events[self.turned :])), ".iscsifs", "events")

    def turn_events(self) -> None:
        """Begin a new file of events; the one of now is the previous one."""
        events = self.path / ".iscsifs" / "events"
        events.rename(events.with_name("events.1"))
        events.touch()
        self.turned = len(self.events)
