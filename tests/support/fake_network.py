"""What stands in for the network under the command: hosts that offer targets, or fail."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from iscsifs.initiator.dial import Poller
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.initiator.report import SessionReport
from iscsifs.iscsi.discovery import DiscoveredTarget
from iscsifs.iscsi.names import Portal, TargetAddress
from iscsifs.iscsi.states import SessionState
from iscsifs.service.network import LogicalUnit
from iscsifs.transport.tap import MakeRecorder


@dataclass(eq=False)
class FakeUnit:
    """A logical unit in memory."""

    label: str = "0"
    size: int = 1 << 20
    flush_failure: Exception | None = None
    is_block: bool = True
    device_type: int = 0
    type_name: str = "disk"
    vendor: str = "ACME"
    product: str = "Disk"
    revision: str = "1.0"
    serial: str | None = "s1"
    wwid: str | None = None
    block_size: int = 512
    preferred_size: int = 4096
    read_only: bool = False
    failures: int = 0
    last_failure: Exception | None = None
    flushes: int = 0
    name: str = "disk LUN 0"
    is_away: bool = False
    unwritten: int = 0
    needs_flush: bool = False

    def __post_init__(self) -> None:
        self.content = bytearray(self.size)

    @property
    def storage(self) -> "FakeUnit | None":
        return self if self.is_block else None

    def shrinks(self, size: int) -> bool:
        return size < self.size

    async def truncate(self, size: int) -> None:
        pass

    async def zero(self) -> None:
        pass

    def release(self) -> None:
        pass

    @property
    def whole(self) -> "FakeUnit":
        return self

    @property
    def start(self) -> int:
        return 0

    @property
    def parts(self) -> tuple[()]:
        return ()

    def take_stale(self) -> bool:
        return False

    async def read(self, offset: int, size: int) -> bytes:
        return bytes(self.content[offset : offset + size])

    async def write(self, offset: int, data: bytes, sync: bool = False) -> None:
        self.content[offset : offset + len(data)] = data
        self.needs_flush = True

    def relieve(self) -> None:
        pass

    async def drain(self) -> None:
        pass

    async def flush(self) -> None:
        self.flushes += 1
        if self.flush_failure is not None:
            raise self.flush_failure
        self.needs_flush = False


@dataclass(eq=False)
class FakeTarget:
    """A target as it is when logged in to."""

    target_name: str
    units: Sequence[LogicalUnit]
    portal: Portal
    tag: int | None = 1

    def __post_init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.on_return: Callable[[object], None] = lambda unit: None
        self.on_note: Callable[[str, str], None] = lambda kind, text: None
        self.rescans = 0
        self.resets: list[str | None] = []
        self.failure: Exception | None = None
        """Why it does nothing any more."""

    def record(self, make: MakeRecorder) -> bool:
        return make(("127.0.0.1", 1), (self.address, self.portal.port)) is not None

    async def rescan(self, label: str | None = None) -> None:
        self._check()
        self.rescans += 1

    def report(self) -> SessionReport:
        return SessionReport(SessionState.LOGGED_IN, 0, 0x800000000001, 1, self.tag, {}, (), 0, (), "")

    async def reset(self, label: str | None = None) -> None:
        self._check()
        self.resets.append(label)

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    @property
    def address(self) -> str:
        return self.portal.host


@dataclass
class FakeNetwork:
    """*hosts* maps what is discovered at, *targets* what is logged in to; both may fail."""

    hosts: dict[Portal, list[DiscoveredTarget] | Exception] = field(default_factory=dict)
    targets: dict[str, FakeTarget | Exception] = field(default_factory=dict)
    discoveries: list[tuple[Portal, InitiatorOptions]] = field(default_factory=list)
    logins: list[tuple[str, list[Portal], InitiatorOptions]] = field(default_factory=list)
    logouts: int = 0
    left: list[str] = field(default_factory=list)
    """The targets that were logged out of one by one."""
    pause: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    """What every answer takes."""

    def offer(self, portal: Portal, *targets: FakeTarget) -> None:
        """Let *portal* offer *targets* at itself."""
        self.hosts[portal] = [
            DiscoveredTarget(target.target_name, (TargetAddress(target.portal, target.tag),))
            for target in targets
        ]
        self.targets |= {target.target_name: target for target in targets}

    async def discover(self, portal: Portal, options: InitiatorOptions) -> list[DiscoveredTarget]:
        self.discoveries.append((portal, options))
        await self.pause()
        found = self.hosts[portal]
        if isinstance(found, Exception):
            raise found
        return found

    @asynccontextmanager
    async def open_initiator(
        self, options: InitiatorOptions, poller: Poller
    ) -> AsyncIterator["FakeInitiator"]:
        yield FakeInitiator(self, options)
        self.logouts += 1


@dataclass
class FakeInitiator:
    """Logs in to the targets of a `FakeNetwork`."""

    network: FakeNetwork
    options: InitiatorOptions

    async def login(self, target_name: str, portals: Sequence[Portal]) -> FakeTarget:
        self.network.logins.append((target_name, list(portals), self.options))
        await self.network.pause()
        target = self.network.targets[target_name]
        if isinstance(target, Exception):
            raise target
        return target

    async def logout(self, target: FakeTarget) -> None:
        self.network.left.append(target.target_name)
        await self.network.pause()
