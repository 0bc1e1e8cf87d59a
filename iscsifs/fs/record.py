"""The record of a mount: a file by which others find the process that serves it, and learn how it ended.

The file is locked (flock(2)) as long as the process lives; the kernel drops the lock of one that is killed.
So a record that is not locked has no process; the next reader removes it. Its lines are JSON: first what the
mount is, then the messages during its end, and last the exit status. A process that ends removes its file, so
a reader that waits for the end opens it before.

Root also reads the records of other users, who may have written anything. So a record is believed only about
the mounts of its owner, lines are read up to LONGEST_LINE, and control characters are escaped.
"""

import fcntl
import json
import logging
import os
import re
import select
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeGuard

from iscsifs.errors import reason

log = logging.getLogger(__name__)

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_LOOK_INTERVAL: Final = 0.05
_QUIET: Final = 3.0
_LAST_STEPS: Final = 2.0
"""Seconds from the exit status in the record to the end of the process."""

_MAX_PID: Final = (1 << 31) - 1
_MAX_STATUS: Final = 255

LONGEST_LINE: Final = 64 * 1024
"""Bytes of one line of a record that are read; this program writes no longer ones."""


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A mounted file system as proc(5) lists it; *owner* is the user who mounted it, for one of FUSE."""

    identity: str
    device: str
    path: Path
    fstype: str
    owner: int


def mounts() -> Iterator[MountEntry]:
    """Yield what is mounted, as proc(5) lists it: of several on one path the uppermost comes last."""
    for line in _MOUNTINFO.read_bytes().splitlines():
        words = line.split(b" ")
        behind = words[words.index(b"-") + 1 :]
        target = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), words[4])
        owner = re.search(rb"(?:^|,)user_id=(\d+)", behind[2])
        fstype = behind[0].decode(errors="replace")
        path = Path(os.fsdecode(target))
        yield MountEntry(words[0].decode(), words[2].decode(), path, fstype, int(owner[1]) if owner else 0)


def mount_at(path: Path) -> MountEntry | None:
    """Return what is mounted on *path*, the uppermost of several, without touching it."""
    found = None
    for entry in mounts():
        if entry.path == path:
            found = entry
    return found


def _directories(user: int) -> list[Path]:
    """Return where records of *user* may be. /run/user goes when its user logs out, a mount may stay."""
    shared = [Path("/run/iscsifs")] if user == 0 else []
    return [*shared, Path(f"/tmp/iscsifs-{user}")]


@contextmanager
def _opened(directory: Path, user: int) -> Iterator[int]:
    """Open *directory*; raises OSError where it is not one that only *user* can write to."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != user or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"{directory} belongs to another user")
        yield descriptor
    finally:
        os.close(descriptor)


class Record:
    """The record of this process, from the mount to the end: a context manager, of which `status` is told."""

    def __init__(self, entry: MountEntry) -> None:
        """Record that this process serves *entry*; where that cannot be done, log why, and go on without."""
        self.status = 1
        """The exit status, until then that of a failure."""
        self._descriptor: int | None = None
        self._handler: logging.Handler | None = None
        failure: OSError | None = None
        user = os.geteuid()
        for directory in _directories(user):
            try:
                with suppress(FileExistsError):
                    directory.mkdir(mode=0o700)
                with _opened(directory, user) as place:
                    _remove_dead(place)
                    self._descriptor, self._path = _locked_file(directory, place)
                break
            except OSError as exc:
                failure = exc
        else:
            assert failure is not None
            log.warning("%s: iscsifs --unmount will not wait for the end: %s", entry.path, reason(failure))
        self._write(pid=os.getpid(), device=entry.device, mount_point=os.fsdecode(entry.path))

    def begin_end(self) -> None:
        """Tell from now on that the end has begun, and every warning and error that is logged."""
        if self._handler is None:
            self._handler = _Teller(lambda message: self._write(message=message))
            logging.getLogger().addHandler(self._handler)
            self._write(ending=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Tell the status and remove the record: all is done."""
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
        if self._descriptor is not None:
            self._write(status=int(self.status))
            with suppress(OSError):
                os.unlink(self._path)
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, **fields: object) -> None:
        """Append a line; where there is no room for it, the lock still tells the end."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.write(self._descriptor, json.dumps(fields).encode() + b"\n")


class _Teller(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Tell *record* without its traceback."""
        self._tell(record.getMessage())


def _locked_file(directory: Path, place: int) -> tuple[int, Path]:
    """Create a file of a new name in *directory*, open as *place*, and lock it."""
    while True:
        name = f"{os.getpid()}-{os.urandom(4).hex()}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
        descriptor = os.open(name, flags, 0o600, dir_fd=place)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # no reader has removed it before it was locked
            return descriptor, directory / name
        os.close(descriptor)


def _remove_dead(place: int) -> None:
    for _, descriptor in _living(place):
        os.close(descriptor)


def _living(place: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the fields and the descriptors of the records of living processes; remove all other records."""
    for name in os.listdir(place):
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
        except OSError:
            continue
        if _is_locked(descriptor):
            with suppress(OSError):
                fields = _fields(os.pread(descriptor, LONGEST_LINE, 0).partition(b"\n")[0])
                if _is_number(fields.get("pid"), _MAX_PID):
                    yield fields, descriptor
                    continue
        elif stat.S_ISREG(os.fstat(descriptor).st_mode):
            with suppress(OSError):
                os.unlink(name, dir_fd=place)
        os.close(descriptor)


def _fields(line: bytes) -> dict[str, Any]:
    """Return the fields of a line; none where this program did not write it."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _is_number(value: object, maximum: int) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value <= maximum


def _shown(text: str) -> str:
    """Return *text* with all control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


class Watch:
    """The record of another process that lives, to be waited for."""

    def __init__(self, fields: dict[str, Any], descriptor: int) -> None:
        self._descriptor = descriptor
        self.pid: int = fields["pid"]
        self._process: int | None = None
        with suppress(OSError):  # it may be in another namespace of processes
            self._process = os.pidfd_open(self.pid)

    @classmethod
    def find(cls, path: Path, entry: MountEntry | None) -> Self | None:
        """Return a watch on the process that serves *entry*, or that did serve what was mounted on *path*."""
        user = os.geteuid() if entry is None else entry.owner
        found: Self | None = None
        for directory in _directories(user):
            with suppress(OSError), _opened(directory, user) as place:
                for fields, descriptor in _living(place):
                    is_it = (
                        fields.get("mount_point") == os.fsdecode(path)
                        if entry is None
                        else fields.get("device") == entry.device
                    )
                    if found is None and is_it:
                        found = cls(fields, descriptor)
                    else:
                        os.close(descriptor)
        return found

    def wait(self, say: Callable[[str], None]) -> int | None:
        """Wait for the end of the process, pass its messages to *say*, and return its exit status.

        Return None where the record has no exit status: the process was killed.
        """
        began, is_ending, status = time.monotonic(), False, None
        with open(self._descriptor, "rb") as file:
            file.seek(0)
            begun = b""
            while True:
                over = not _is_locked(file.fileno())
                while chunk := file.read(LONGEST_LINE):
                    *lines, begun = (begun[:LONGEST_LINE] + chunk).split(b"\n")
                    for fields in map(_fields, lines):
                        is_ending = is_ending or "ending" in fields
                        if _is_number(told := fields.get("status"), _MAX_STATUS):
                            status = told
                        if "message" in fields:
                            say(_shown(str(fields["message"])))
                if over:
                    break
                if not is_ending and time.monotonic() - began > _QUIET:
                    is_ending = True
                    say(
                        f"process {self.pid} still serves it: files are open, or it is mounted elsewhere too;"
                        " waiting"
                    )
                time.sleep(_LOOK_INTERVAL)
        if self._process is not None:
            poll = select.poll()
            poll.register(self._process, select.POLLIN)
            poll.poll(_LAST_STEPS * 1000)
            os.close(self._process)
        return status
