"""The embedded target in a thread, for what has to look at it while programs use it."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from iscsifs.iscsi.names import Portal
from iscsifs.target.device import Device
from iscsifs.target.server import Server

START_TIME = 10.0  # seconds


@dataclass(frozen=True)
class Served:
    """A device that is served at *portal*."""

    portal: Portal


@contextmanager
def serving(device: Device) -> Iterator[Served]:
    """Serve *device* on loopback, and close it at the end."""
    started: queue.SimpleQueue[tuple[trio.lowlevel.TrioToken, trio.CancelScope, Portal]] = queue.SimpleQueue()

    async def serve() -> None:
        with trio.CancelScope() as scope:
            async with Server([device]) as server:
                started.put((trio.lowlevel.current_trio_token(), scope, server.portals[0]))
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    token, scope, portal = started.get(timeout=START_TIME)
    try:
        yield Served(portal)
    finally:
        trio.from_thread.run_sync(scope.cancel, trio_token=token)
        thread.join()
        device.close()
