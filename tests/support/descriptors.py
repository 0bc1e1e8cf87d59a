"""Descriptors of files whose mount may go, and the names of errors."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    """Open *path*; that it cannot be closed properly when its mount has ended is no error."""
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def error_of(function: Callable[[], object]) -> str:
    """Return the name of the error that *function* has to end with."""
    with pytest.raises(OSError, match=".") as caught:
        function()
    assert caught.value.errno is not None
    return errno.errorcode[caught.value.errno]
