"""Secrets of CHAP, from files that nobody else can read, in a process that nobody else can read.

A file with one line holds one secret: the whole line, spaces too. A file with several holds a table, a line
``USER SECRET`` for each user: the name ends at the first space or tab, and the secret begins behind the last
one of these that follow.
"""

import ctypes
import logging
import os
import stat
from pathlib import Path
from typing import Final

from iscsifs.errors import ConfigError, printable

log = logging.getLogger(__name__)

_MAX_SECRET_FILE: Final = 64 * 1024
_OWNER_ONLY: Final = 0o600
_PR_SET_DUMPABLE: Final = 4  # prctl(2)
_ARG_START: Final = 45  # of the fields behind the name in /proc/PID/stat, see proc(5)


def forbid_core_dumps() -> None:
    """Forbid core dumps, and reading the memory of the process (PR_SET_DUMPABLE): both hold secrets.

    To be called before the first secret is read.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, *map(ctypes.c_ulong, (0, 0, 0, 0))) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class SecretFile:
    """The secrets in the file *path*, which has to belong to us or root, and be nobody else's to read.

    It is read once, so it may be a pipe. Raises ConfigError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with open(path, "rb") as file:
                _check_owner_only(path, os.fstat(file.fileno()))
                content = file.read(_MAX_SECRET_FILE + 1)
        except OSError as exc:
            raise ConfigError(f"secret file {path}: {exc.strerror}") from None
        lines = (line.removesuffix(b"\r") for line in content.split(b"\n"))
        self._lines = [line for line in lines if line]
        if not self._lines or len(content) > _MAX_SECRET_FILE:
            raise ConfigError(f"secret file {path}: give it a secret in one line, or lines USER SECRET")

    def secret_of(self, user: str | None) -> bytes:
        """Return the secret of *user*; a table has none for None. Raises ConfigError."""
        name = b"" if user is None else user.encode(errors="surrogateescape")
        if len(self._lines) == 1:
            (line,) = self._lines
            if user is not None and line.startswith((name + b" ", name + b"\t")):
                log.warning(
                    "secret file %s: its only line is taken as one secret, with the user's name in it;"
                    " to name users it takes a second line USER SECRET",
                    self._path,
                )
            return line
        if user is None:
            raise ConfigError(f"secret file {self._path}: give it the secret alone, in one line")
        rows = [line.split(None, 1) for line in self._lines]
        found = [row[1] for row in rows if len(row) == 2 and row[0] == name]
        if len(found) != 1:
            what = "several lines are" if found else "no line is"
            raise ConfigError(
                f'secret file {self._path}: {what} for user "{printable(user)}"; give one line USER SECRET'
            )
        return found[0]


def read_secret(path: Path, user: str | None = None) -> bytes:
    """Return the secret of *user* in the file *path*; raises ConfigError."""
    return SecretFile(path).secret_of(user)


def _check_owner_only(path: Path, status: os.stat_result) -> None:
    # A pipe is what a shell's <(command) gives.
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
        raise ConfigError(f"secret file {path}: it is not a file")
    if status.st_uid not in (os.getuid(), 0):
        raise ConfigError(
            f"secret file {path}: it belongs to another user (uid {status.st_uid}); make a copy of your own"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & ~_OWNER_ONLY:
        raise ConfigError(
            f"secret file {path}: others may use it (mode {mode:04o});"
            f" if it holds nothing else, protect it with: chmod 600 {path}"
        )


def hide_argument(argument: str, shown: str) -> None:
    """Have ps(1) show *shown*, which is no longer, for the *argument* of this process with a secret in it.

    What others have read before cannot be taken back. Where there is no such argument nothing changes.
    """
    old, new = os.fsencode(argument), os.fsencode(shown)
    try:
        with open("/proc/self/stat", "rb") as file:
            start = int(file.read().rpartition(b")")[2].split()[_ARG_START])
        with open("/proc/self/cmdline", "rb") as file:
            words = file.read()
    except (OSError, ValueError, IndexError):
        return
    place = words.find(b"\0" + old + b"\0") + 1
    if start and place and len(new) <= len(old):
        ctypes.memmove(start + place, new.ljust(len(old)), len(old))
