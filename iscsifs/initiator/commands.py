"""SCSI commands to one logical unit, with the patience that SCSI asks for: what is worth repeating is
repeated."""

import logging
import math
import random
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from typing import Final

import trio

from iscsifs.errors import (
    BusyError,
    CommandError,
    CommandTimeout,
    IscsifsError,
    MediumError,
    NoMediumError,
    ReservationError,
    SpaceError,
    StatusError,
    TaskAborted,
    TransportError,
    WriteProtectedError,
)
from iscsifs.initiator.session import Session
from iscsifs.iscsi.framing import Buffer
from iscsifs.iscsi.task import NOTHING, Task
from iscsifs.limits import MAX_ABORTS, MAX_REPEATS
from iscsifs.scsi.cdb import changes_blocks, command_name, describe
from iscsifs.scsi.sense import Condition, Sense
from iscsifs.scsi.status import Status

log = logging.getLogger(__name__)

FIRST_DELAY: Final = 0.02
"""Seconds before a busy unit is asked again; the delay doubles each time, up to LONGEST_DELAY."""

LONGEST_DELAY: Final = 2.0
"""Seconds at most between two attempts at a busy unit."""

_BUSY: Final = frozenset({Status.BUSY, Status.TASK_SET_FULL, Status.TASK_ABORTED, Status.ACA_ACTIVE})


class Unsupported(StatusError):
    """The unit does not know the command, or a field in it."""


class Repeat(Enum):
    """Whether a command that failed is worth another attempt."""

    NEVER = auto()
    AT_ONCE = auto()
    LATER = auto()


_ERRORS: Final[dict[Condition, type[StatusError]]] = {
    Condition.MEDIUM_ERROR: MediumError,
    Condition.WRITE_PROTECTED: WriteProtectedError,
    Condition.NO_SPACE: SpaceError,
    Condition.NO_MEDIUM: NoMediumError,
    Condition.NOT_READY: NoMediumError,
    Condition.BECOMING_READY: NoMediumError,
    Condition.UNSUPPORTED: Unsupported,
}


class Commands:
    """The commands of one initiator to logical unit *lun* of one target.

    *patience* is how many seconds a unit may be busy. Where there is a `failure`, all but probes fail with
    it: there is no such unit any more. After `disown` no command that changes blocks is repeated that was
    begun before.
    """

    def __init__(self, session: Session, lun: int, *, name: str, patience: float) -> None:
        self.session = session
        self.lun = lun
        self.name = name
        self.failure: IscsifsError | None = None
        self.doubts = 0
        """How often the commands were disowned."""
        self._doubt: IscsifsError | None = None
        self._patience = patience

    def at(self, lun: int) -> "Commands":
        """Return the commands to another unit of the same target."""
        return Commands(self.session, lun, name=self.name, patience=self._patience)

    def disown(self, failure: IscsifsError) -> None:
        """Fail with *failure* instead of repeating what changes blocks and was begun up to now."""
        self.doubts += 1
        self._doubt = failure
        self.session.fail_kept(self.lun, failure, lambda task: changes_blocks(task.cdb))

    def check_doubts(self, doubts: int) -> None:
        """Raise the failure where the commands were disowned since there were so many *doubts*."""
        if doubts != self.doubts and self._doubt is not None:
            raise self._doubt

    async def ask(self, cdb: bytes, length: int) -> bytes:
        """Run *cdb*, a probe that returns up to *length* bytes, and return what came. Raises CommandError."""
        buffer = bytearray(length)
        task = await self.run(cdb, data_in=memoryview(buffer), probe=True)
        return bytes(buffer[: task.received])

    def run(
        self, cdb: bytes, *, data_in: memoryview = NOTHING, data_out: Buffer = b"", probe: bool = False
    ) -> Coroutine[None, None, Task]:
        """Run *cdb* until it succeeds or is not worth repeating; return the task with its counts.

        It ends in bounded time: it is repeated MAX_REPEATS times for unit attentions, MAX_ABORTS times after
        it was aborted, and for as long as *patience* while the unit is busy; see `Session` for how long each
        attempt may take. A *probe* only asks what the unit is, and is sent also while that is not known.

        Raises StatusError or one of its children, TaskAborted, DataError or CommandTimeout; UnitError where
        there is another unit under the LUN now.
        """
        return self._carry_out(
            Task(self.lun, cdb, data_in=data_in, data_out=memoryview(data_out), probe=probe), self.doubts
        )

    def start(
        self,
        cdb: bytes,
        data_out: memoryview,
        done: Callable[[Exception | None], None],
        nursery: trio.Nursery,
    ) -> None:
        """Run *cdb* as `run` does, but do not wait: *done* is called with the failure, or with None.

        As long as nothing has to be repeated this takes no task of trio; else there is one in *nursery*.
        """
        doubts = self.doubts

        def ended(task: Task) -> None:
            if task.status == Status.GOOD and task.failure is None:
                done(None)
                return
            try:
                nursery.start_soon(self._go_on, task, doubts, done)
            except MemoryError as error:
                done(error)

        try:
            if self.failure is not None:
                raise self.failure
            task = Task(self.lun, cdb, data_out=data_out)
            task.on_end = ended
            self.session.start(task)
        except (IscsifsError, MemoryError) as error:
            done(error)

    def linger(self) -> None:
        """Receive an answer that comes within a moment, see `Link.linger`."""
        self.session.link.linger()

    async def _go_on(self, task: Task, doubts: int, done: Callable[[Exception | None], None]) -> None:
        """Do what is to be done about *task*, which did not succeed, and tell *done*."""
        failure: Exception | None = TransportError(f"{self.name}: the initiator was stopped")
        try:
            await self._carry_out(task, doubts)
            failure = None
        except Exception as error:
            failure = error
        finally:
            done(failure)

    async def _carry_out(self, task: Task, doubts: int) -> Task:
        """Do what `run` does with *task*, begun when there were so many *doubts*; it may have been tried
        already."""
        repeats = aborts = 0
        delay = FIRST_DELAY
        give_up_at = math.inf
        while True:
            if self.failure is not None and not task.probe:
                raise self.failure
            try:
                if not task.ended:
                    if doubts != self.doubts and changes_blocks(task.cdb):
                        self.check_doubts(doubts)
                    await self.session.execute(task)
                elif task.failure is not None:
                    raise task.failure
            except CommandTimeout:
                raise
            except CommandError as error:
                failure = type(error)(f"{self.name}: {describe(task.cdb)}: {error}")
                repeat = Repeat.NEVER
            else:
                if task.status == Status.GOOD:
                    return task
                verdict = self._judge(task)
                if verdict is None:
                    return task
                failure, repeat = verdict
            if isinstance(failure, TaskAborted) and aborts < MAX_ABORTS:
                aborts += 1
                give_up_at, delay = math.inf, FIRST_DELAY  # it was not busy all the time
            elif repeat is Repeat.AT_ONCE and repeats < MAX_REPEATS:
                repeats += 1
            elif repeat is Repeat.LATER and trio.current_time() < give_up_at:
                if give_up_at is math.inf:
                    give_up_at = trio.current_time() + self._patience
                await trio.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(2 * delay, LONGEST_DELAY)
            else:
                log.info("%s", failure, extra={"kind": failure.kind})  # who asked says what it means
                raise failure
            # The answer to an abort of the last attempt may be on its way: it must not end this one.
            task = Task(task.lun, task.cdb, data_in=task.data_in, data_out=task.data_out, probe=task.probe)

    def _judge(self, task: Task) -> tuple[CommandError, Repeat] | None:
        """Return how *task* failed by its status, and whether to repeat it; None where it did not fail."""
        status = task.status
        if status == Status.CONDITION_MET:
            return None
        if status == Status.CHECK_CONDITION:
            return self._check_condition(task, Sense.parse(task.sense))
        if status in _BUSY:
            return self._error(
                BusyError, task, f"{Status(status).name} for {self._patience:g} s"
            ), Repeat.LATER
        if status == Status.RESERVATION_CONFLICT:
            return self._error(
                ReservationError, task, "another initiator has reserved the unit"
            ), Repeat.NEVER
        return self._error(StatusError, task, f"status {status:02x}h"), Repeat.NEVER

    def _check_condition(self, task: Task, sense: Sense) -> tuple[CommandError, Repeat] | None:
        condition = sense.condition
        if condition is Condition.RECOVERED:
            kind = f"{self.name}: {sense.kind}"
            log.info("%s: %s: %s", self.name, describe(task.cdb), sense, extra={"kind": kind})
            return None
        error = self._error(_ERRORS.get(condition, StatusError), task, str(sense), sense.kind)
        if condition is Condition.BECOMING_READY:
            return error, Repeat.LATER
        # A unit that is not there may come back: who owns the session holds the command until that is known.
        at_once = condition.repeatable or (condition is Condition.NO_UNIT and not task.probe)
        return error, Repeat.AT_ONCE if at_once else Repeat.NEVER

    def _error(self, error: type[StatusError], task: Task, reason: str, kind: str = "") -> StatusError:
        message = f"{self.name}: {describe(task.cdb)}: {reason}"
        kind = f"{self.name}: {command_name(task.cdb)}: {kind or reason}"
        return error(message, status=task.status, sense=task.sense, kind=kind)
