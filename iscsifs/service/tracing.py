"""The trace of a mount: which one is written now, and which connections are in it."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import trio

from iscsifs.discovery.sendtargets import Discovered
from iscsifs.errors import ConfigError, InUseError, reason
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.names import Portal
from iscsifs.monitor.events import Events
from iscsifs.monitor.trace import Trace
from iscsifs.mount_options import MountOptions
from iscsifs.service.network import Initiator, Network, Target
from iscsifs.transport.polling import Poller
from iscsifs.transport.tap import Address, Recorder

log = logging.getLogger(__name__)

_ATTEMPTS: Final = 100
_PAUSE: Final = 0.01
"""How often, and after how many seconds, a connection is tried again within a header."""


class Tracing:
    """Starts and stops the trace of a mount, which *events* tells of."""

    def __init__(self, events: Events, options: MountOptions) -> None:
        self._events = events
        self._options = options
        self._trace: Trace | None = None
        self._is_starting = False

    def record(
        self,
        local: Address,
        remote: Address,
        digests: tuple[bool, bool] | None = None,
        *,
        skip_sent: int = 0,
        skip_received: int = 0,
    ) -> Recorder | None:
        """Return who records a new connection now, None while there is no trace; see `MakeRecorder`."""
        if self._trace is None:
            return None
        return self._trace.stream(local, remote, digests, skip_sent=skip_sent, skip_received=skip_received)

    def open(self, path: Path, snap_length: int = 0) -> None:
        """Begin a trace of new connections; raises ConfigError, and InUseError while there is one."""
        if self.is_on:
            raise InUseError("there is a trace already; stop it first")
        self._trace = Trace(
            path,
            snap_length=snap_length or self._options.trace_snaplen,
            show_chap=self._options.trace_chap,
            max_bytes=self._options.trace_size,
            on_end=self._ended,
        )

    async def start(self, path: Path, snap_length: int, targets: Iterable[Target], mount_point: Path) -> None:
        """Begin a trace while mounted, with the connections that there are; raises what `open` does.

        The file is made by another thread, as it may be on a file system that is served from here. That is
        refused: nobody could write to it while it is waited for.
        """
        if self._is_starting:
            raise InUseError("a trace is being started")
        self._is_starting = True
        try:
            await trio.to_thread.run_sync(_require_elsewhere, path, mount_point)
            await trio.to_thread.run_sync(self.open, path, snap_length)
        finally:
            self._is_starting = False
        self._events.add("trace_started", f"trace {path}")
        async with trio.open_nursery() as nursery:
            for target in targets:
                nursery.start_soon(self._take_in, target)

    async def _take_in(self, target: Target) -> None:
        """Have the connection of *target* recorded; one that is lost is recorded from the next login on."""
        for _ in range(_ATTEMPTS):
            if target.record(self.record):
                return
            await trio.sleep(_PAUSE)

    def stop(self) -> None:
        """End the trace; nothing changes where there is none."""
        if self._trace is not None and self._trace.is_open:
            self._trace.close()
            self._events.add("trace_stopped", f"trace {self.text().rstrip()}")
        self._trace = None

    @property
    def is_on(self) -> bool:
        """Whether a trace is written now."""
        return self._trace is not None and self._trace.is_open

    def text(self) -> str:
        """Return ``off``, or the file and how many bytes and blocks it has, and how many were dropped."""
        trace = self._trace
        if trace is None:
            return "off\n"
        state = "" if trace.is_open else " ended"
        return f"{trace.path} {trace.bytes} {trace.blocks} {trace.dropped}{state}\n"

    def _ended(self, why: str) -> None:
        self._events.add("trace_ended", why)
        log.warning("%s", why)


def _require_elsewhere(path: Path, mount_point: Path) -> None:
    """Raise ConfigError where *path* is in the file system at *mount_point*."""
    try:
        if os.stat(path.parent).st_dev == os.stat(mount_point).st_dev:
            raise ConfigError(f"trace {path}: it cannot be in the mount that it is of")
    except OSError as error:
        raise ConfigError(f"trace {path}: {reason(error)}") from None


@contextmanager
def tracing(options: MountOptions, events: Events) -> Iterator[Tracing]:
    """Give a `Tracing`, which writes the trace that *options* ask for; the trace ends with the context.

    Raises ConfigError.
    """
    found = Tracing(events, options)
    if options.trace is not None:
        found.open(options.trace)
    try:
        yield found
    finally:
        found.stop()


class Traced:
    """A *network* whose connections *tracing* may record."""

    def __init__(self, network: Network, tracing: Tracing) -> None:
        self._network = network
        self._tracing = tracing

    async def discover(self, portal: Portal, options: InitiatorOptions) -> Sequence[Discovered]:
        """Ask *portal* for its targets."""
        return await self._network.discover(portal, self._recorded(options))

    def open_initiator(
        self, options: InitiatorOptions, poller: Poller
    ) -> AbstractAsyncContextManager[Initiator]:
        """Return an initiator, which logs out of everything when it is left."""
        return self._network.open_initiator(self._recorded(options), poller)

    def _recorded(self, options: InitiatorOptions) -> InitiatorOptions:
        return replace(options, record=self._tracing.record)
