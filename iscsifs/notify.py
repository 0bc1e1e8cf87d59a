"""What a service manager is told: the datagrams of sd_notify(3)."""

import os
import socket
from contextlib import suppress
from typing import Final

_TIMEOUT: Final = 1.0
"""Seconds that a manager whose queue is full can hold us up."""


def notify(*assignments: str, extend: float | None = None) -> None:
    """Send *assignments*, such as "READY=1", to the service manager; do nothing where there is none.

    *extend* are the seconds that the start or the end in progress may take from now on. Nothing is raised: a
    manager that cannot be told changes nothing about the disks.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if extend is not None:
        assignments += (f"EXTEND_TIMEOUT_USEC={extend * 1e6:.0f}",)
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(_TIMEOUT)
        # "@" stands for the zero byte of an abstract address.
        manager.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
        manager.send("\n".join(assignments).encode())
