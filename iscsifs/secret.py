"""Secrets of CHAP, from files that nobody else can read, in a process that nobody else can read."""

import ctypes
import os
import stat
from pathlib import Path
from typing import Final

from iscsifs.errors import ConfigError

_MAX_SECRET_FILE: Final = 4096
_OWNER_ONLY: Final = 0o600
_PR_SET_DUMPABLE: Final = 4  # prctl(2)


def forbid_core_dumps() -> None:
    """Let nobody find secrets in a core dump, or read them in the memory of the process (PR_SET_DUMPABLE).

    To be called before the first secret is read.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, *map(ctypes.c_ulong, (0, 0, 0, 0))) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def read_secret(path: Path) -> bytes:
    """Return the line in the file *path*, which has to belong to us or root, and be nobody else's to read.

    Raises ConfigError.
    """
    try:
        with open(path, "rb") as file:
            _check_owner_only(path, os.fstat(file.fileno()))
            content = file.read(_MAX_SECRET_FILE + 1)
    except OSError as exc:
        raise ConfigError(f"secret file {path}: {exc.strerror}") from None
    secret, _, rest = content.partition(b"\n")
    secret = secret.removesuffix(b"\r")
    if not secret or rest.strip() or len(content) > _MAX_SECRET_FILE:
        raise ConfigError(f"secret file {path}: it has to hold the secret alone, in one line")
    return secret


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
            f"secret file {path}: others may use it (mode {mode:04o}); protect it with: chmod 600 {path}"
        )
