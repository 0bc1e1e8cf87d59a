"""The queue of a logical unit: its commands until they are answered, whatever happens to the path.

A command goes to the path at once as long as the unit is ready. It waits here

- while the path is down;
- while the queue is suspended, because it is not known whether the unit is still the same;
- for a moment, where the unit is busy.

A command that a lost path left unanswered is sent again when the unit is ready again, in its old place.
A command that failed for a passing reason is repeated, for a bounded number of times and seconds. Nothing
here knows of sockets, sessions or numbers.
"""

import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import trio

from iscsifs.errors import CommandTimeout, IscsifsError, PathLost, TaskAborted, TransportError
from iscsifs.limits import MAX_ABORTS, MAX_ATTEMPTS, MAX_REPEATS
from iscsifs.scsi.cdb import changes_blocks, command_name, describe
from iscsifs.scsi.status import Status
from iscsifs.units.answers import Repeat, judge
from iscsifs.units.path import NOTHING, Attempt, Path
from iscsifs.units.statistics import Statistics

log = logging.getLogger(__name__)

FIRST_DELAY: Final = 0.02
"""Seconds before a busy unit is asked again; the delay doubles each time, up to LONGEST_DELAY."""

LONGEST_DELAY: Final = 2.0
"""Seconds at most between two attempts at a busy unit."""

GOOD: Final = int(Status.GOOD)

Ended = Callable[["Command"], None]


class Command:
    """A SCSI command of a unit, from its caller to its end. Each attempt at it is one of the path.

    When it has `ended`, `failure` says why it failed, or is None; `attempt` is the last one, and `received`
    counts the bytes that it has brought. `waiter` is the task that waits for the end.
    """

    __slots__ = (
        "aborts",
        "attempt",
        "busy_until",
        "cdb",
        "data_in",
        "data_out",
        "delay",
        "doubts",
        "ended",
        "failure",
        "idempotent",
        "losses",
        "number",
        "on_end",
        "queue",
        "received",
        "repeats",
        "waiter",
    )

    def __init__(
        self,
        queue: "Queue",
        number: int,
        cdb: bytes,
        data_in: memoryview,
        data_out: memoryview,
        idempotent: bool,
        on_end: Ended | None,
    ) -> None:
        self.queue = queue
        self.number = number
        self.doubts = queue.doubts
        self.cdb = cdb
        self.data_in = data_in
        self.data_out = data_out
        self.idempotent = idempotent
        self.on_end = on_end
        self.waiter: trio.lowlevel.Task | None = None
        self.attempt: Attempt | None = None
        self.received = 0
        self.ended = False
        self.failure: Exception | None = None
        self.losses = self.repeats = self.aborts = 0
        self.delay = FIRST_DELAY
        self.busy_until = math.inf
        statistics = queue.statistics
        statistics.depth += 1
        if statistics.depth > statistics.deepest:
            statistics.deepest = statistics.depth

    def answered(self, attempt: Attempt) -> None:
        """Take the end of an *attempt*."""
        if self.ended:
            return  # the caller was cancelled
        self.attempt = attempt
        self.received = attempt.received
        if attempt.failure is None and attempt.status == GOOD:
            self.end(None)
            return
        try:
            self.queue.attempt_failed(self, attempt)
        except MemoryError as error:
            if not self.ended:
                self.end(error)

    def end(self, failure: Exception | None) -> None:
        """End the command, because of *failure* unless that is None."""
        self.failure = failure
        self.ended = True
        self.queue.statistics.depth -= 1
        if self.waiter is not None:
            trio.lowlevel.reschedule(self.waiter)
            self.waiter = None
        elif self.on_end is not None:
            self.on_end(self)

    def give_up(self, _: object) -> trio.lowlevel.Abort:
        """Take the command back: its waiter is cancelled."""
        self.ended = True
        self.waiter = None
        self.queue.statistics.depth -= 1
        self.queue.take_back(self)
        return trio.lowlevel.Abort.SUCCEEDED


def copy_of(failure: IscsifsError) -> IscsifsError:
    """Return an exception like *failure*: each command that fails has one of its own, with its traceback."""
    return type(failure)(str(failure)).counted_as(failure.kind)


class Queue:
    """The commands to the unit *name* by *path*.

    *patience* is how many seconds the unit may be busy. *replacement_timeout* is how many seconds
    commands wait for a path that is down, or for a unit that is not verified; then all of them fail, and
    new ones fail at once. Once there is a `failure` everything fails with it: there is no such unit any
    more. A queue for *probes* asks what the unit is, and does not hurry the path. Delays run in
    *nursery*.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        nursery: trio.Nursery,
        *,
        patience: float,
        replacement_timeout: float,
        probes: bool = False,
    ) -> None:
        self.name = name
        self.path = path
        self.failure: IscsifsError | None = None
        self.statistics = Statistics()
        self.doubts = 0
        """How often the commands of before were disowned."""
        self._doubt: IscsifsError | None = None
        self._nursery = nursery
        self._patience = patience
        self._replacement_timeout = replacement_timeout
        self._probes = probes
        self._last_number = 0
        self._waiting: dict[int, Command] = {}  # by number
        self._suspended_since: float | None = None
        self._attempt_until = -math.inf  # after the replacement time-out: how long to wait for the path
        self._listening = False
        self._watching = False

    async def run(
        self,
        cdb: bytes,
        *,
        data_in: memoryview = NOTHING,
        data_out: memoryview = NOTHING,
        idempotent: bool = True,
    ) -> Command:
        """Run *cdb*, with repeats, until it has succeeded or failed; return the command.

        A command that is not *idempotent* is not sent again where the target may have carried it out.

        Raises StatusError or one of its children, TaskAborted, DataError or CommandTimeout; the queue's
        `failure` where the unit is gone; TransportError where the path is closed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._last_number += 1
        command = Command(self, self._last_number, cdb, data_in, data_out, idempotent, None)
        self._send(command)
        if not command.ended:
            self.path.busy_poll()
            if not command.ended:
                command.waiter = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(command.give_up)
        if command.failure is not None:
            raise command.failure
        return command

    async def ask(self, cdb: bytes, length: int) -> bytes:
        """Run *cdb*, which returns up to *length* bytes, and return what came; raises what `run` raises."""
        buffer = bytearray(length)
        command = await self.run(cdb, data_in=memoryview(buffer))
        return bytes(buffer[: command.received])

    def start(
        self,
        cdb: bytes,
        on_end: Ended | None = None,
        *,
        data_in: memoryview = NOTHING,
        data_out: memoryview = NOTHING,
        idempotent: bool = True,
    ) -> Command:
        """Run *cdb* as `run` does, but do not wait: *on_end* is called when the command has ended,
        perhaps before this returns."""
        self._last_number += 1
        command = Command(self, self._last_number, cdb, data_in, data_out, idempotent, on_end)
        self._send(command)
        return command

    # The unit is not what it was, or may not be.

    def suspend(self) -> None:
        """Queue commands from now on; the path hands back those that are not sent yet.

        What the target has already goes on: it cannot be called back.
        """
        now, lost, timeout = trio.current_time(), self.path.down_since, self._replacement_timeout
        since = self._suspended_since
        # After a long absence it begins anew: what comes now has time until it is known what the unit is.
        if since is None or (self.path.is_away and now >= since + timeout):
            self._suspended_since = lost if now < lost + timeout else now
        self.path.recall()

    @property
    def is_suspended(self) -> bool:
        """Whether it is not known what the unit is."""
        return self._suspended_since is not None

    def disown(self, failure: IscsifsError) -> None:
        """From now on fail with *failure* what changes blocks and was begun before, instead of sending it
        (again).

        What the target has already ends with its answer.
        """
        self.doubts += 1
        self._doubt = failure
        self.path.recall()
        for number, command in sorted(self._waiting.items()):
            if number in self._waiting and changes_blocks(command.cdb):
                del self._waiting[number]
                command.end(copy_of(failure))

    def _disowned(self, command: Command) -> IscsifsError | None:
        """Return what *command* fails with if it was disowned, else None."""
        if command.doubts == self.doubts or self._doubt is None or not changes_blocks(command.cdb):
            return None
        return copy_of(self._doubt)

    def resume(self) -> None:
        """Send what waits, and what comes: the unit is what it was."""
        self._suspended_since = None
        self._send_waiting()

    def fail(self, failure: IscsifsError) -> None:
        """Fail what waits, and what comes: the unit is gone.

        What the target has already ends with its answer. Without one it is not sent again.
        """
        self.failure = failure
        self.suspend()  # so that also what is not sent yet waits
        self._suspended_since = None
        self._fail_waiting(lambda: copy_of(failure))

    # Attempts.

    def _send(self, command: Command) -> None:
        """Send *command*, or queue it until the unit is ready; without memory for that, fail it."""
        try:
            if self.failure is not None:
                command.end(copy_of(self.failure))
                return
            if command.doubts != self.doubts and (doubt := self._disowned(command)) is not None:
                command.end(doubt)
                return
            if self._suspended_since is None:
                try:
                    attempt = self.path.send(command.cdb, command.data_in, command.data_out, command.answered)
                    if not attempt.ended:
                        command.attempt = attempt
                    return
                except PathLost:
                    pass
            self._wait(command)
        except MemoryError as error:
            if not command.ended:
                command.end(error)

    def attempt_failed(self, command: Command, attempt: Attempt) -> None:
        """Repeat *command* after an *attempt* that failed, or end it."""
        failure = attempt.failure
        if isinstance(failure, PathLost):
            self._lost(command, sent=failure.sent)
        elif failure is None:
            verdict = judge(
                self.name, command.cdb, attempt.status, attempt.sense, self._patience, probe=self._probes
            )
            if verdict is None:
                command.end(None)
            else:
                self._repeat(command, *verdict)
        elif isinstance(failure, TaskAborted) and command.aborts < MAX_ABORTS:
            command.aborts += 1
            command.busy_until, command.delay = math.inf, FIRST_DELAY  # it was not busy all the time
            self._send_again(command)
        else:
            error = type(failure)(f"{self.name}: {describe(command.cdb)}: {failure}")
            error.counted_as(f"{self.name}: {command_name(command.cdb)}: {failure.kind}")
            self._repeat(command, error, Repeat.NEVER)

    def _repeat(self, command: Command, error: IscsifsError, repeat: Repeat) -> None:
        """Repeat *command* as *repeat* says, or end it because of *error*."""
        now = trio.current_time()
        if repeat is Repeat.AT_ONCE and command.repeats < MAX_REPEATS:
            command.repeats += 1
            self._send_again(command)
        elif repeat is Repeat.LATER and now < command.busy_until:
            if command.busy_until is math.inf:
                command.busy_until = now + self._patience
            self._in_background(self._send_later, command)
        else:
            log.info("%s", error, extra={"kind": error.kind})  # the caller says what it means
            command.end(error)

    async def _send_later(self, command: Command) -> None:
        """Send *command* to a unit that was busy."""
        delay = command.delay * random.uniform(0.5, 1.0)
        command.delay = min(2 * command.delay, LONGEST_DELAY)
        try:
            await trio.sleep(delay)
        except trio.Cancelled:
            if not command.ended:
                command.end(TransportError(f"{self.name}: the initiator was stopped"))
            raise
        if not command.ended:
            self._send_again(command)

    def _send_again(self, command: Command) -> None:
        self.statistics.repeats += 1
        self._send(command)

    def _lost(self, command: Command, *, sent: bool) -> None:
        """Queue *command*, which has no answer from a lost path, to be sent again, unless it must not be."""
        command.losses += sent
        what = f"{self.name}: {describe(command.cdb)}"
        if self.failure is not None:
            command.end(copy_of(self.failure))
        elif (doubt := self._disowned(command)) is not None:
            command.end(doubt)
        elif sent and not command.idempotent:
            command.end(TaskAborted(f"{what}: the connection was lost; it may have been carried out"))
        elif command.losses >= MAX_ATTEMPTS:
            command.end(CommandTimeout(f"{what}: {command.losses} sessions were lost with it"))
        else:
            self.statistics.repeats += sent
            self._wait(command)

    # Waiting.

    def _wait(self, command: Command) -> None:
        """Queue *command* until the unit is ready, or the replacement time-out is over."""
        if self.path.is_closed:
            command.end(self._closed())
            return
        if not self._probes and (self._suspended_since is None or self.path.is_away):
            self._attempt_until = self.path.want()
        if trio.current_time() >= self._give_up_at():
            command.end(self._expired())
            return
        if not self._watching:
            self._in_background(self._watch)
            self._watching = True
        self._listen()
        # Last: what there is no memory for has ended, and must not be sent later.
        self._waiting[command.number] = command
        command.busy_until -= trio.current_time()  # while it waits: what is left of that time

    def take_back(self, command: Command) -> None:
        """Drop *command*, whose caller was cancelled: forget, withdraw or abort it."""
        if self._waiting.pop(command.number, None) is None and command.attempt is not None:
            self.path.cancel(command.attempt)

    def _path_changed(self) -> None:
        self._listening = False
        if self.path.is_closed:
            self._fail_waiting(self._closed)
        elif self.path.is_away:
            self._attempt_until = -math.inf
            if trio.current_time() >= self._give_up_at():
                self._fail_waiting(self._expired)
        elif self._suspended_since is None:
            self._send_waiting()
        if self._waiting:
            self._listen()

    def _listen(self) -> None:
        if not self._listening:
            self.path.listen(self._path_changed)
            self._listening = True

    def _take_waiting(self) -> Iterator[Command]:
        """Take what waits, in its order, and one by one: what is done with one may end another."""
        for number in sorted(self._waiting):
            command = self._waiting.pop(number, None)
            if command is not None:
                yield command

    def _send_waiting(self) -> None:
        now = trio.current_time()
        for command in self._take_waiting():
            command.busy_until += now
            self._send(command)

    def _fail_waiting(self, failure: Callable[[], IscsifsError]) -> None:
        """Fail what waits, each command with an exception of its own."""
        for command in self._take_waiting():
            command.end(failure())

    async def _watch(self) -> None:
        """Fail what has waited for as long as the replacement time-out."""
        try:
            while self._waiting:
                left = self._give_up_at() - trio.current_time()
                if left > 0:
                    await trio.sleep(left)
                else:
                    self._fail_waiting(self._expired)
        finally:
            self._watching = False

    def _give_up_at(self) -> float:
        since = self.path.down_since if self._suspended_since is None else self._suspended_since
        return max(since + self._replacement_timeout, self._attempt_until)

    def _in_background(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        self._nursery.start_soon(work, *arguments)

    # Why commands fail.

    def _closed(self) -> TransportError:
        return TransportError(f"{self.name}: the session is closed")

    def _expired(self) -> CommandTimeout:
        seconds = f"{self._replacement_timeout:g} seconds"
        if self._suspended_since is None:
            return CommandTimeout(f"{self.name}: the target has been away for more than {seconds}")
        return CommandTimeout(f"{self.name}: it is not known for {seconds} whether it is still the same")
