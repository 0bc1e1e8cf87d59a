"""Limits of the kernel that are set from outside of FUSE's protocol, where that has no place for them.

The read-ahead of 128 KiB is too little for a link with any delay; FUSE_INIT can only lower it.

Of the requests that read ahead or use O_DIRECT the kernel has 12 in work at once, for all files of a mount
together (max_background). That keeps queues short, and a single unit that does not answer takes all 12. The
answer to FUSE_INIT raises it (`iscsifs.fs.platform.init_reply`); where that was not possible it is done here.
"""

import ctypes
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

MAX_BACKGROUND: Final = 4096
"""Requests; more than there are processes, so that the requests for a unit that is away stop no others."""

READ_AHEAD_KIB: Final = 4096

_FUSECTL: Final = Path("/sys/fs/fuse/connections")
_FSOPEN: Final = 430  # system calls, numbered alike on every architecture
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_FSCONFIG_CMD_CREATE: Final = 6


@dataclass(frozen=True, slots=True)
class Limits:
    """What the kernel allows a mount: requests in work at once, and KiB that are read ahead."""

    max_background: int = MAX_BACKGROUND
    read_ahead: int = READ_AHEAD_KIB


def tune(device: str, limits: Limits, *, is_told: bool) -> None:
    """Set the *limits* of the mount of *device* ("major:minor"), as far as this user may.

    *is_told* says whether the answer to FUSE_INIT has told the kernel max_background. The read-ahead is for
    root.
    """
    if not is_told:
        _set_max_background(device.partition(":")[2], limits.max_background)
    try:
        _write(f"/sys/class/bdi/{device}/read_ahead_kb", limits.read_ahead)
    except OSError as exc:
        log.info("read_ahead_kb stays as it is (%s)", exc)


def _set_max_background(number: str, requests: int) -> None:
    """Set it for a connection, whose files in fusectl belong to who mounted it."""
    try:
        directory = _connection(number)
        try:
            _write("max_background", requests, directory)
            _write("congestion_threshold", requests * 3 // 4, directory)
        finally:
            os.close(directory)
    except OSError as exc:
        log.info("max_background stays as it is (%s); as root: mount -t fusectl fusectl %s", exc, _FUSECTL)


def _connection(number: str) -> int:
    """Open the connection's directory in fusectl, which root need not have mounted."""
    try:
        return os.open(_FUSECTL / number, os.O_RDONLY)
    except FileNotFoundError:
        fusectl = _mount_fusectl()
        try:
            return os.open(number, os.O_RDONLY, dir_fd=fusectl)
        finally:
            os.close(fusectl)


def _mount_fusectl() -> int:
    """Mount fusectl at no path, and return its descriptor; closing that unmounts it."""
    context = _syscall(_FSOPEN, b"fusectl", 0)
    try:
        _syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _syscall(_FSMOUNT, context, 0, 0)
    finally:
        os.close(context)


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    result: int = ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _write(path: str, value: int, directory: int | None = None) -> None:
    descriptor = os.open(path, os.O_WRONLY, dir_fd=directory)
    try:
        os.write(descriptor, b"%d" % value)
    finally:
        os.close(descriptor)
