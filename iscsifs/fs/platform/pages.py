"""Cached pages of a file that somebody else may have changed.

The kernel drops them at each open (keep_cache=False), or when it is told to (FUSE_NOTIFY_INVAL_INODE). Both
wait for pages that are being read, that is for this program. A thread of ours that waits so cannot be killed,
and it holds our descriptors: after a SIGKILL the connection to the kernel would stay, and the thread with it.
So another process opens the file. When our end closes the connection, it ends as well.
"""

import logging
import os
import subprocess
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_OPEN: Final = ("/bin/sh", "-c", ': <"$1"', "iscsifs-open")


class PageDropper:
    """Drops pages of the files of what is mounted on *mount_point*, without waiting for that."""

    def __init__(self, mount_point: Path) -> None:
        self._mount_point = os.fsencode(mount_point)
        self._openers: dict[bytes, subprocess.Popen[bytes]] = {}

    def drop(self, path: bytes) -> None:
        """Have the pages of the file at *path*, below the mount point, dropped soon."""
        self._openers = {path: opener for path, opener in self._openers.items() if opener.poll() is None}
        if path in self._openers:
            return
        try:
            self._openers[path] = subprocess.Popen(
                [*_OPEN, self._mount_point + b"/" + path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, MemoryError) as exc:
            log.info("%s: what is cached stays until the next open (%s)", os.fsdecode(path), exc)
