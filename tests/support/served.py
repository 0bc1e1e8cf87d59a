"""A disk in memory for real mounts: our own target in a thread."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.server import Server
from support.proxy import running

NAME = "iqn.2026-01.example:disk"
SIZE = 16 << 20


@contextmanager
def served(size: int = SIZE) -> Iterator[tuple[Disk, str]]:
    """Serve a disk in memory with our own target; give it and what mounts it."""
    disk, sibling = Disk.in_memory(size, "first", droppable=True), Disk.in_memory(SIZE, "second")
    device = Device(NAME, {0: disk, 1: sibling})
    with running(partial(Server, [device])) as (server, _):
        yield disk, f"iscsi://{server.portals[0]}/{NAME}"
    device.close()
