"""A file with the number of the process, for those who look after it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from iscsifs.errors import ConfigError, reason


@contextmanager
def pid_file(path: Path | None) -> Iterator[None]:
    """Keep the number of this process in the file *path* meanwhile, if that is not None.

    What an earlier process has left there is replaced; what a later one has put there stays. Raises
    ConfigError.
    """
    if path is None:
        yield
        return
    content = f"{os.getpid()}\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        with open(descriptor, "w") as file:
            file.write(content)
    except OSError as exc:
        raise ConfigError(f"PID file {path}: {reason(exc)}") from None
    try:
        yield
    finally:
        with suppress(OSError):
            if path.read_bytes() == content.encode():
                path.unlink()
