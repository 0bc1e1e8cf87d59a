"""What the kernel keeps of a mount, and how it is told to forget that."""

import logging
from collections import deque
from typing import Protocol

import pyfuse3
import trio

log = logging.getLogger(__name__)


class Kernel(Protocol):
    """What the tree tells the kernel, which keeps names and attributes."""

    def forget_attributes(self, inode: int) -> None:
        """Have the kernel ask again for the attributes of *inode*."""

    def forget_entry(self, parent: int, name: bytes) -> None:
        """Have the kernel look up *name* again in the directory *parent*, soon."""


class NoKernel:
    """Stands for the kernel where nothing is mounted: it keeps nothing."""

    def forget_attributes(self, inode: int) -> None:
        """Do nothing."""

    def forget_entry(self, parent: int, name: bytes) -> None:
        """Do nothing."""


class FuseKernel:
    """Tells the kernel by FUSE's notifications.

    The notification for a name waits until the kernel has an answer to every request that holds the
    directory, perhaps the one whose handler sends it. So `run` sends these from a thread.
    """

    def __init__(self) -> None:
        self.is_thread_waiting = False
        """Whether a thread waits in the kernel: until it returns the process cannot end."""
        self._entries: deque[tuple[int, bytes]] = deque()
        self._has_entries = trio.Event()

    async def run(self) -> None:
        """Send what `forget_entry` was told, until cancelled.

        What cannot be sent is no loss: the kernel keeps a name for a second only.
        """
        while True:
            await self._has_entries.wait()
            self._has_entries = trio.Event()
            while self._entries:
                parent, name = self._entries.popleft()
                try:
                    self.is_thread_waiting = True
                    await trio.to_thread.run_sync(self._send, parent, name, abandon_on_cancel=True)
                except RuntimeError as exc:
                    self.is_thread_waiting = False
                    log.debug("inode %d: %r: %s", parent, name, exc)
                except OSError as exc:  # not known to the kernel
                    log.debug("inode %d: %r: %s", parent, name, exc)

    def forget_attributes(self, inode: int) -> None:
        """Send FUSE_NOTIFY_INVAL_INODE for the attributes, which never waits."""
        try:
            pyfuse3.invalidate_inode(inode, attr_only=True)
        except OSError as exc:
            log.debug("inode %d: %s", inode, exc)  # not known to the kernel, or unmounted

    def forget_entry(self, parent: int, name: bytes) -> None:
        """Have `run` send FUSE_NOTIFY_INVAL_ENTRY."""
        self._entries.append((parent, name))
        self._has_entries.set()

    def _send(self, parent: int, name: bytes) -> None:
        """Send FUSE_NOTIFY_INVAL_ENTRY; raises OSError where the kernel does not know it."""
        try:
            pyfuse3.invalidate_entry(parent, name)
        finally:
            self.is_thread_waiting = False


def drop_cached_pages(inode: int) -> None:
    """Have the kernel drop the pages of *inode*, and wait for those that are being read; raises OSError."""
    pyfuse3.invalidate_inode(inode, attr_only=False)
