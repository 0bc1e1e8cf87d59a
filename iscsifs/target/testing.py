"""A target for the tests of other programs, in a thread of its own: no event loop is needed to use it.

::

    with TestTarget(size=64 << 20) as target:
        start_my_program(target.url)
        target.disk.fail("write", times=1)
        ...
        assert target.disk.read(0, 5) == b"hello"

It listens at a free port of loopback and keeps its disks in memory. pytest has the same as the fixture
`iscsi_target`. Everything here may be called from any thread, and takes effect before it returns.
"""

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Final, Literal, Self, TypeVar

import trio

from iscsifs.errors import ConfigError
from iscsifs.iscsi.names import check_name
from iscsifs.scsi.cdb import OperationCode
from iscsifs.scsi.sense import Sense, SenseKey
from iscsifs.scsi.status import Status
from iscsifs.target import compare, unit
from iscsifs.target.command_log import CommandLog, LoggedCommand
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.login import TargetConfig
from iscsifs.target.server import ANY_PORT, Server
from iscsifs.target.session import Session
from iscsifs.target.store import Store
from iscsifs.target.unit import Fault, Identity, Nexus, Operation, Result

__all__ = ["Codes", "LoggedCommand", "ServedDisk", "TestTarget"]

T = TypeVar("T")

DEFAULT_NAME: Final = "iqn.2001-04.com.example:test"
DEFAULT_SIZE: Final = 64 << 20

MEDIUM_ERROR: Final = Sense(SenseKey.MEDIUM_ERROR)
"""With no additional sense code `ServedDisk.fail` chooses the one for reading, or for writing."""

_GROUPS: Final[dict[str, frozenset[int] | None]] = {
    "read": frozenset(unit.READ_CODES | compare.VERIFY_CODES),
    "write": frozenset(
        unit.WRITE_CODES
        | unit.WRITE_SAME_CODES
        | compare.WRITE_AND_VERIFY_CODES
        | {OperationCode.COMPARE_AND_WRITE, OperationCode.ORWRITE_16}
    ),
    "flush": frozenset(unit.SYNCHRONIZE_CODES),
    "unmap": frozenset({OperationCode.UNMAP}),
    "any": None,
}
_NOT_FOR_ANY: Final = frozenset(
    {OperationCode.INQUIRY, OperationCode.REPORT_LUNS, OperationCode.REQUEST_SENSE}
)

Codes = Literal["read", "write", "flush", "unmap", "any"] | Collection[int]
"""Which commands: a group of them, or operation codes. "any" is all but INQUIRY, REPORT LUNS and
REQUEST SENSE."""

_START_TIMEOUT: Final = 10.0


@dataclass(slots=True)
class _Rule:
    """What happens to commands with one of *codes* (None: any), *times* (None: for ever)."""

    codes: frozenset[int] | None
    times: int | None
    act: Callable[[Nexus, Operation], Operation]

    def applies(self, cdb: bytes) -> bool:
        if self.times == 0 or (cdb[0] in _NOT_FOR_ANY if self.codes is None else cdb[0] not in self.codes):
            return False
        if self.times is not None:
            self.times -= 1
        return True


class _Disk(Disk):
    """A disk that logs what is done to it, and has rules."""

    lun = 0
    log: CommandLog

    def __init__(self, size: int, *, block_size: int, write_cache: bool, dpo_fua: bool) -> None:
        super().__init__(
            Store.memory(size),
            Identity.unique(),
            block_size=block_size,
            write_cache=write_cache,
            dpo_fua=dpo_fua,
            droppable=True,
        )
        self.rules: list[_Rule] = []

    def prepare(self, nexus: Nexus, cdb: bytes) -> Operation:
        """Check *cdb*, find out what is to happen to it, and have it logged when it is carried out."""
        operation = super().prepare(nexus, cdb)
        for rule in self.rules:
            if rule.applies(cdb):
                operation = rule.act(nexus, operation)
                break
        inner = operation

        def action(data: memoryview) -> Result:
            result = inner.run(data)
            self.log.append(LoggedCommand(self.lun, cdb, bytes(data), result.status, result.sense))
            return result

        return replace(operation, action=action)


class ServedDisk:
    """A disk of a `TestTarget`: its bytes, and what goes wrong with it. Offsets and lengths are in bytes.

    Everything that goes wrong does so *times* times, None being for ever; `heal` ends all of it.
    """

    def __init__(self, disk: _Disk, target: "TestTarget") -> None:
        self._disk = disk
        self._target = target

    @property
    def block_size(self) -> int:
        """The bytes of a block."""
        return self._disk.block_size

    @property
    def size(self) -> int:
        """The bytes of the disk."""
        return self._disk.store.size

    @property
    def commands(self) -> list[LoggedCommand]:
        """What the disk was told to do since the start, or the last `TestTarget.clear`."""
        return [command for command in self._target.commands if command.lun == self._disk.lun]

    def read(self, offset: int, length: int) -> bytes:
        """Return what the disk holds, with what is in its write cache."""
        return self._target._call(lambda: bytes(self._disk.store.read(offset, length)))

    def write(self, offset: int, data: bytes) -> None:
        """Put *data* on the disk behind the initiators' backs."""
        self._target._call(lambda: self._disk.store.write(offset, data))

    @property
    def unsynchronised(self) -> list[int]:
        """The LBAs of the blocks that are in the write cache only: what `lose_cache` would take back."""

        def blocks() -> list[int]:
            assert self._disk.undo_log is not None
            return sorted(self._disk.undo_log.blocks)

        return self._target._call(blocks)

    def fail(
        self,
        codes: Codes,
        *,
        sense: Sense = MEDIUM_ERROR,
        offset: int = 0,
        length: int | None = None,
        times: int | None = None,
    ) -> None:
        """End *codes* with CHECK CONDITION and *sense*.

        With *length* only where they touch the bytes from *offset*; the sense data then name the block.
        """
        matching = _codes(codes)
        if sense == MEDIUM_ERROR:
            reading = matching is not None and matching <= (_GROUPS["read"] or frozenset())
            sense = unit.READ_ERROR if reading else unit.WRITE_ERROR
        size = self.block_size
        blocks = None if length is None else range(offset // size, -(-(offset + length) // size))
        self._add(Fault(sense=sense, codes=matching, blocks=blocks, times=times))

    def answer(self, codes: Codes, status: Status, *, times: int | None = None) -> None:
        """End *codes* with another *status*: BUSY, TASK_SET_FULL, RESERVATION_CONFLICT."""
        self._add(Fault(status=status, codes=_codes(codes), times=times))

    def delay(self, codes: Codes, seconds: float, *, times: int | None = None) -> None:
        """Carry *codes* out at once, and answer *seconds* later."""

        def act(_nexus: Nexus, operation: Operation) -> Operation:
            def action(data: memoryview) -> Result:
                result = operation.run(data)
                sync = result.sync

                def wait() -> None:
                    self._target._ending.wait(seconds)
                    if sync is not None:
                        sync()

                return replace(result, sync=wait)

            return replace(operation, action=action)

        self._add(_Rule(_codes(codes), times, act))

    def disconnect(
        self, codes: Codes, *, carried_out: bool = True, reset: bool = False, times: int | None = 1
    ) -> None:
        """Close the connection instead of answering *codes*, with RST if *reset*.

        With *carried_out* the command was: what it wrote is there, and its initiator does not know.
        """

        def act(nexus: Nexus, operation: Operation) -> Operation:
            def action(data: memoryview) -> Result:
                result = operation.run(data) if carried_out else Result(Status.TASK_ABORTED)
                assert isinstance(nexus, Session)
                if reset:
                    nexus.wire.reset()
                else:
                    nexus.wire.close()
                return result

            return replace(operation, action=action)

        self._add(_Rule(_codes(codes), times, act))

    def heal(self) -> None:
        """End everything that goes wrong."""

        def clear() -> None:
            self._disk.faults.clear()
            self._disk.rules.clear()

        self._target._call(clear)

    def lose_cache(self) -> None:
        """Lose all that was written and not synchronised, as a power failure does, and report a power-on."""
        self._target._call(self._disk.drop_cache)

    def resize(self, size: int) -> None:
        """Make the disk *size* bytes long, whole blocks, and tell every initiator."""
        self._target._call(lambda: self._disk.resize(size // self.block_size))

    @property
    def read_only(self) -> bool:
        """Whether the disk refuses writes; a change is told to every initiator (MODE PARAMETERS CHANGED)."""
        return self._disk.read_only

    @read_only.setter
    def read_only(self, value: bool) -> None:
        def change() -> None:
            self._disk.read_only = value
            self._disk.establish_attention(unit.MODE_CHANGED)

        self._target._call(change)

    def attention(self, sense: Sense) -> None:
        """Report *sense*, a unit attention, once to every initiator."""
        self._target._call(lambda: self._disk.establish_attention(sense))

    def _add(self, what: Fault | _Rule) -> None:
        def add() -> None:
            if isinstance(what, Fault):
                self._disk.faults.append(what)
            else:
                self._disk.rules.append(what)

        self._target._call(add)


class TestTarget:
    """A target *name* with *disks* disks of *size* bytes, LUN 0 and up; it runs from `start` to `close`.

    With *user* and *secret* it lets in nobody else (CHAP). *write_cache* and *dpo_fua* are what the disks say
    of themselves: a volatile cache, which can be lost, and that they honour FUA.

    Raises ConfigError for what cannot be served.
    """

    __test__ = False  # no test of pytest's

    def __init__(
        self,
        *,
        name: str = DEFAULT_NAME,
        size: int = DEFAULT_SIZE,
        disks: int = 1,
        block_size: int = 512,
        write_cache: bool = True,
        dpo_fua: bool = True,
        user: str | None = None,
        secret: str | None = None,
    ) -> None:
        if (user is None) != (secret is None):
            raise ConfigError("user and secret belong together; give both or none")
        check_name(name, "target name")
        self.name = name
        self._log = CommandLog()
        self._ending = threading.Event()
        self._config = TargetConfig(
            target_names=frozenset(),
            secrets=None if user is None or secret is None else {user: secret.encode()},
        )
        self._disks = [
            _Disk(size, block_size=block_size, write_cache=write_cache, dpo_fua=dpo_fua) for _ in range(disks)
        ]
        for lun, disk in enumerate(self._disks):
            disk.lun, disk.log = lun, self._log
        self.disks = [ServedDisk(disk, self) for disk in self._disks]
        self._device = Device(name, dict(enumerate(self._disks)))
        self._server: Server | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._end: trio.Event | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self) -> None:
        """Serve; returns when initiators can log in."""
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name=self.name, daemon=True)
        self._thread.start()
        started.result(_START_TIMEOUT)

    def close(self) -> None:
        """End it, and free what its disks held; it cannot be started again."""
        self._ending.set()
        if self._thread is not None and self._thread.is_alive():
            self._call(self._the_end)
            self._thread.join()
        self._thread = None
        self._device.close()

    @property
    def disk(self) -> ServedDisk:
        """The first disk."""
        return self.disks[0]

    @property
    def host(self) -> str:
        """The address that it listens at."""
        return self._running.portals[0].host

    @property
    def port(self) -> int:
        """The port that it listens at."""
        return self._running.portals[0].port

    @property
    def portal(self) -> str:
        """The address and the port: ``127.0.0.1:40123``."""
        return str(self._running.portals[0])

    @property
    def url(self) -> str:
        """The URL of the first disk: ``iscsi://127.0.0.1:40123/NAME/0``."""
        return f"iscsi://{self.portal}/{self.name}/0"

    @property
    def initiators(self) -> list[str]:
        """The names of the initiators that are logged in to the disks, one for each session."""
        return self._call(
            lambda: [
                session.connection.login.initiator_name
                for session in self._running.sessions
                if session.device is not None and not session.wire.closed
            ]
        )

    @property
    def commands(self) -> list[LoggedCommand]:
        """The commands that were carried out, in order. Of very many the oldest are forgotten."""
        return self._log.copy()

    def clear(self) -> None:
        """Forget the commands so far."""
        self._log.clear()

    def wait_for(self, codes: Codes, *, timeout: float = 10.0) -> LoggedCommand:
        """Return the first logged command that is one of *codes*; wait for it up to *timeout* seconds.

        Raises TimeoutError.
        """
        matching = _codes(codes)
        return self._log.wait_for(lambda command: matching is None or command.cdb[0] in matching, timeout)

    def drop_connections(self, *, reset: bool = False) -> None:
        """Cut all connections, with RST if *reset*; new ones are welcome."""
        self._call(lambda: self._running.drop_connections(reset=reset))

    def stop_listening(self) -> None:
        """Cut all connections and close the port, as a target that is down; the disks keep what they hold."""

        def cut() -> None:
            self._running.drop_connections()
            self._running.close_portals()

        self._call(cut)

    def listen_again(self) -> None:
        """Listen at the same port again."""
        self._call(self._running.start)

    # In the thread of the target.

    def _run(self, started: "Future[None]") -> None:
        try:
            trio.run(self._serve, started)
        except BaseException as exc:
            if started.done():
                raise
            started.set_exception(exc)

    async def _serve(self, started: "Future[None]") -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._end = trio.Event()
        async with Server([self._device], portals=[ANY_PORT], config=self._config) as server:
            self._server = server
            started.set_result(None)
            await self._end.wait()

    def _the_end(self) -> None:
        assert self._end is not None
        self._end.set()

    # From any other thread.

    @property
    def _running(self) -> Server:
        if self._server is None:
            raise RuntimeError("the target was not started")
        return self._server

    def _call(self, function: Callable[[], T]) -> T:
        """Call *function* in the thread of the target, between two commands, and return what it returns."""
        if self._thread is None or self._token is None:
            return function()
        done: Future[T] = Future()

        def call() -> None:
            try:
                done.set_result(function())
            except BaseException as exc:
                done.set_exception(exc)

        self._token.run_sync_soon(call)
        return done.result(_START_TIMEOUT)


def _codes(codes: Codes) -> frozenset[int] | None:
    """Return the operation codes, None for any."""
    return _GROUPS[codes] if isinstance(codes, str) else frozenset(codes)
