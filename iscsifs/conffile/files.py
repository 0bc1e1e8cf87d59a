"""iscsi.conf(5) as a file: who may have written it, who may read it, and how it is replaced."""

import os
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from iscsifs.conffile.model import Configuration, Entry
from iscsifs.conffile.parser import parse
from iscsifs.conffile.writer import merge
from iscsifs.errors import ConfigError, reason
from iscsifs.secret import forbid_core_dumps

DEFAULT_FILE: Final = Path("/etc/iscsi.conf")

_MAX_LENGTH: Final = 1 << 20
_HEAD: Final = "# iscsi.conf(5), written by iscsifs\n"


def load(path: Path = DEFAULT_FILE) -> Configuration:
    """Read the file *path*; it may be a pipe. Raises ConfigError.

    It has to belong to us or to root, and others must not write it. With secrets in it nobody else may read
    it either; where it belongs to root its group may. Core dumps are forbidden from here on.
    """
    return _load(path)[1]


def save(path: Path, entries: Sequence[Entry]) -> None:
    """Put *entries* into the file *path*, beside what is there; see `merge`. Raises ConfigError.

    The file is replaced as a whole, or stays as it is. Afterwards only its owner may read it.
    """
    path = Path(os.path.realpath(path))
    old = _load(path)[0] if os.path.lexists(path) else ""
    new = merge(old or _HEAD, entries, str(path))
    if new != old:
        try:
            _replace(path, new)
        except OSError as error:
            raise ConfigError(f"{path}: it cannot be written: {reason(error)}") from None


def _load(path: Path) -> tuple[str, Configuration]:
    """Return the text of a file, and what it says."""
    forbid_core_dumps()
    try:
        # A pipe without a writer does not block, and is empty.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            _check_kind(path, status)
            os.set_blocking(descriptor, True)
            content = file.read(_MAX_LENGTH + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {reason(error)}") from None
    if len(content) > _MAX_LENGTH:
        raise ConfigError(f"{path}: it has more than {_MAX_LENGTH} bytes; is it a configuration file?")
    text = content.decode(errors="surrogateescape")
    found = parse(text, str(path))
    if found.has_secrets:
        _check_readers(path, status)
    return text, found


def _check_kind(path: Path, status: os.stat_result) -> None:
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
        raise ConfigError(f"{path}: it is not a file")
    if status.st_uid not in (os.getuid(), 0):
        raise ConfigError(
            f"{path}: it belongs to another user (uid {status.st_uid}); make a copy of your own"
        )
    if status.st_mode & stat.S_IWOTH:
        raise ConfigError(f"{path}: everybody may write it; protect it with: chmod o-w {path}")


def _check_readers(path: Path, status: os.stat_result) -> None:
    group = stat.S_IRGRP if status.st_uid == 0 else 0
    if stat.S_IMODE(status.st_mode) & ~(0o700 | group):
        raise ConfigError(
            f"{path}: it has secrets in it, and others may use it (mode {stat.S_IMODE(status.st_mode):04o});"
            f" protect it with: chmod 600 {path}"
        )


def _replace(path: Path, text: str) -> None:
    """Write a new file beside *path*, to stable storage, and give it the name; raises OSError."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # with mode 0600
    try:
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
