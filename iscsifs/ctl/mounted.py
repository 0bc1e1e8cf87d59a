"""A mount of iscsifs, as another process sees it: where it is, and its files of text and of control."""

import errno
import os
import pwd
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from iscsifs.errors import ConfigError, IscsifsError, printable, reason
from iscsifs.exit_status import ExitStatus
from iscsifs.fs.record import MountEntry, mounts
from iscsifs.limits import MAX_STATE_FILE

CONTROL: Final = ".iscsifs"
"""The directory of what concerns the whole mount."""

_FSTYPE: Final = "fuse.iscsifs"
_DEAD: Final = (errno.ENOTCONN, errno.ECONNABORTED)
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_CHUNK: Final = 1 << 20

_STATUS: Final = {
    errno.ENXIO: ExitStatus.UNREACHABLE,
    errno.ECONNREFUSED: ExitStatus.UNREACHABLE,
    errno.ECONNRESET: ExitStatus.UNREACHABLE,
    errno.ETIMEDOUT: ExitStatus.UNREACHABLE,
    errno.EHOSTUNREACH: ExitStatus.UNREACHABLE,
    errno.ENETUNREACH: ExitStatus.UNREACHABLE,
    errno.EACCES: ExitStatus.REFUSED,
    errno.ENOENT: ExitStatus.NO_TARGET,
    errno.ENODEV: ExitStatus.NO_TARGET,
    errno.EINVAL: ExitStatus.USAGE,
    errno.E2BIG: ExitStatus.USAGE,
    errno.ENAMETOOLONG: ExitStatus.USAGE,
}
"""What an errno of the mount says of the hosts and targets, as an exit status; FAILED for all others."""


class ControlError(IscsifsError):
    """A command that failed; *status* is the exit status that stands for it."""

    def __init__(self, message: str, status: ExitStatus = ExitStatus.FAILED) -> None:
        super().__init__(message)
        self.status = status


class GoneError(ControlError):
    """A file, or what it belongs to, is not there, or not any more."""


def status_of(number: int | None) -> ExitStatus:
    """Return the exit status that stands for the errno *number* of a command."""
    return _STATUS.get(number or 0, ExitStatus.FAILED)


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount at *path*, made by the user with the number *owner*."""

    path: Path
    owner: int

    def read(self, *names: str) -> str:
        """Return the text of the file at *names*; raises GoneError where there is none, ControlError."""
        with self._errors(names):
            # What is no file of text must not keep us waiting.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(self._place(names), flags), "rb", buffering=0) as file:
                chunks: list[bytes] = []
                while (chunk := file.read(_CHUNK)) and len(chunks) * _CHUNK < MAX_STATE_FILE:
                    chunks.append(chunk)
        return b"".join(chunks).decode(errors="replace")

    def value(self, *names: str) -> str | None:
        """Return the one value in the file of text at *names*, None where there is no such file."""
        with suppress(GoneError):
            return self.read(*names).rstrip("\n")
        return None

    def link(self, *names: str) -> str | None:
        """Return where the symbolic link at *names* leads, None where there is none."""
        with suppress(GoneError), self._errors(names):
            try:
                return os.readlink(self._place(names))
            except OSError as exc:
                if exc.errno != errno.EINVAL:  # which says that it is no link
                    raise
        return None

    def status(self, *names: str) -> os.stat_result | None:
        """Return the status of the file at *names*, None where there is none."""
        with suppress(GoneError), self._errors(names):
            return os.lstat(self._place(names))
        return None

    def directories(self, *names: str) -> list[str]:
        """Return the names of the directories at *names*, numbers by value; none where that is gone."""
        return self._entries(names, stat.S_IFDIR)

    def files(self, *names: str) -> list[str]:
        """Return the names of the regular files at *names*, in the same order."""
        return self._entries(names, stat.S_IFREG)

    def command(self, text: str, *names: str) -> None:
        """Write *text* to the control file at *names*, as one command; raises OSError with its errno."""
        descriptor = os.open(self._place(names), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.write(descriptor, os.fsencode(text) + b"\n")
        finally:
            os.close(descriptor)

    def make(self, *names: str) -> None:
        """Make the directory at *names*, which logs in; raises OSError with its errno."""
        os.mkdir(self._place(names))

    def remove(self, *names: str) -> None:
        """Remove the directory at *names*, which logs out; raises OSError with its errno."""
        os.rmdir(self._place(names))

    def check(self) -> None:
        """Raise ControlError where the mount has no files of control, or they are not for us."""
        if self.status(CONTROL) is None:
            raise ControlError(
                f"{printable(str(self.path))}: has no {CONTROL}: it is served by an older iscsifs, which"
                " cannot be controlled; unmount it and mount it again"
            )

    def check_again(self) -> None:
        """Raise GoneError where the mount that `check` has found was unmounted."""
        if self.status(CONTROL) is None:
            raise GoneError(f"{printable(str(self.path))}: was unmounted")

    def require(self, *names: str) -> None:
        """Raise ControlError where the file at *names*, which a command needs, is not there."""
        if self.status(*names) is None:
            file = printable(str(self._place(names)))
            raise ControlError(f"{file}: is not there: the iscsifs that serves the mount does not know this")

    def fault(self, error: OSError) -> ControlError | None:
        """Return what *error* says of the mount itself: its process is dead, or it is somebody else's."""
        path = printable(str(self.path))
        if error.errno in _DEAD:
            return ControlError(
                f"{path}: the process that served it has died; clear it with: iscsifsctl unmount {path}"
            )
        is_ours = os.geteuid() in (0, self.owner)
        if error.errno in (errno.EACCES, errno.EPERM) and (not is_ours or not self._is_visible()):
            user = _user(self.owner)
            return ControlError(f"{path}: belongs to {user}; only that user can do this: sudo -u {user} ...")
        return None

    def _is_visible(self) -> bool:
        """Say whether we are let in: FUSE keeps even root out without allow_other."""
        try:
            os.lstat(self.path)
        except PermissionError:
            return False
        return True

    def _entries(self, names: Sequence[str], kind: int) -> list[str]:
        is_kind = os.DirEntry.is_dir if kind == stat.S_IFDIR else os.DirEntry.is_file
        with suppress(GoneError), self._errors(names), os.scandir(self._place(names)) as entries:
            return sorted((e.name for e in entries if is_kind(e, follow_symlinks=False)), key=_natural)
        return []

    def _place(self, names: Sequence[str]) -> Path:
        return self.path.joinpath(*names)

    @contextmanager
    def _errors(self, names: Sequence[str]) -> Iterator[None]:
        """Raise GoneError or ControlError for an OSError."""
        try:
            yield
        except OSError as exc:
            if (fault := self.fault(exc)) is not None:
                raise fault from None
            message = f"{printable(str(self._place(names)))}: {reason(exc)}"
            if exc.errno in _GONE:
                raise GoneError(message, ExitStatus.NO_TARGET) from None
            raise ControlError(message) from None


def find_mount(path: Path | None) -> Mount:
    """Return the mount that *path* is or lies in, the only one where that is None.

    The user's own mounts come before those of others. Raises ConfigError.
    """
    entries = _entries()
    if path is not None:
        place = Path(os.path.realpath(path))
        for parent in (place, *place.parents):
            if parent in entries:
                return Mount(parent, entries[parent].owner)
        raise ConfigError(
            f"{printable(str(path))}: iscsifs has mounted nothing there; see findmnt -t {_FSTYPE}"
        )
    own = [entry for entry in entries.values() if entry.owner == os.geteuid()]
    # One file system may be mounted in several places.
    different = {entry.device: entry for entry in reversed(own or list(entries.values()))}
    if not different:
        raise ConfigError("iscsifs has mounted nothing; mount targets with: iscsifs HOST... MOUNTPOINT")
    if len(different) > 1:
        paths = ", ".join(sorted(printable(str(entry.path)) for entry in different.values()))
        raise ConfigError(f"iscsifs has mounted {len(different)} file systems: {paths}; choose one with -m")
    (entry,) = different.values()
    return Mount(entry.path, entry.owner)


def _entries() -> dict[Path, MountEntry]:
    """Return what iscsifs has mounted, by path; what is hidden by another mount is not there."""
    uppermost = {entry.path: entry for entry in mounts()}
    return {path: entry for path, entry in uppermost.items() if entry.fstype == _FSTYPE}


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _natural(name: str) -> list[str | int]:
    """Return a key that sorts lun2 before lun10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))]
