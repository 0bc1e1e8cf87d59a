"""A session: commands in, answers out, whatever happens to the connection in between (RFC 7143 section
7.1.4.4).

A session has one connection at a time. When that is lost, the session logs in again with the same ISID,
which makes the target forget the old one (section 6.3.5), lets its owner check that the units are still the
same, and sends what was not answered again. Callers notice only that it takes longer, until the replacement
time-out is over.
"""

import logging
import math
import random
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Final

import trio

from iscsifs.errors import CommandTimeout, IscsifsError, TransportError
from iscsifs.initiator.link import Link
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.events import (
    ConnectionDropped,
    Event,
    Logout,
    LogoutRequested,
    Management,
    Noted,
    SenseReported,
)
from iscsifs.iscsi.pdu import LogoutResponseCode, TaskFunction
from iscsifs.iscsi.task import Task
from iscsifs.scsi.cdb import describe

log = logging.getLogger(__name__)

TICK: Final = 1.0
"""Seconds between two looks at all the time-outs of a session."""

MANAGEMENT_TIMEOUT: Final = 10.0
"""Seconds that a task management function may take before the connection is given up."""

LOGOUT_TIMEOUT: Final = 5.0
"""Seconds that a logout may take before the connection is closed without it."""

MAX_ATTEMPTS: Final = 5
"""Sessions in which one command is tried: one that ends every session is not worth more."""

FIRST_DELAY: Final = 0.25
"""Seconds before the second attempt to log in again; the first comes at once."""

LONGEST_DELAY: Final = 5.0
"""Seconds at most between two attempts."""


class State(Enum):
    """What a session can do with a command."""

    UP = auto()
    """Send it."""
    CHECKING = auto()
    """Keep it, until the units were looked at after a new login."""
    DOWN = auto()
    """Keep it, until there is a connection again."""
    GIVEN_UP = auto()
    """Fail it: the replacement time-out is over. Logins are still being tried."""
    CLOSED = auto()
    """Fail it, for good."""


class Session:
    """The commands of one initiator to one target.

    *dial* connects and logs in, with the same ISID each time. *name* is for the log. `run` must be running
    for anything to happen.
    """

    def __init__(
        self, name: str, dial: Callable[[], Awaitable[Link]], options: InitiatorOptions, link: Link
    ) -> None:
        self.name = name
        self.state = State.UP
        self.after_login: Callable[[], Awaitable[None]] | None = None
        """Called after each new login, before the kept commands are sent: are the units still what they
        were?"""
        self.on_sense: Callable[[SenseReported], None] | None = None
        """Called for what units report by themselves."""
        self._dial = dial
        self._options = options
        self._link = link
        self._kept: dict[Task, None] = {}
        self._managements: dict[Management, float] = {}
        self._down_since = 0.0
        self._time2wait = 0.0
        self._silent_since = 0.0
        self._pinged_at: float | None = None
        self._closing = False
        self._leaving = False
        self._logged_out = trio.Event()
        self._wanted = trio.Event()
        self._dialling = trio.CancelScope()

    @property
    def link(self) -> Link:
        """The connection, or the last one that there was."""
        return self._link

    async def execute(self, task: Task, *, probe: bool = False) -> None:
        """Send *task* and wait until it has ended with a status; a *probe* is also sent while CHECKING.

        Raises TaskAborted where it was not carried out to its end, DataError where not all data were
        transferred, CommandTimeout where the session was away for too long, TransportError once it is closed.
        """
        if self.state is State.CLOSED:
            raise TransportError(f"{self.name}: the session is closed")
        if self.state is State.GIVEN_UP:
            self._wanted.set()
            raise self._given_up()
        task.owner = trio.lowlevel.current_task()
        if self.state is State.UP or (probe and self.state is State.CHECKING):
            self._submit(task)
        else:
            self._kept[task] = None
            self._wanted.set()

        def give_up(_: object) -> trio.lowlevel.Abort:
            self._abandon(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)
        if task.failure is not None:
            raise task.failure

    def _submit(self, task: Task) -> None:
        task.attempts += 1
        self._link.connection.submit(task)
        self._link.kick()

    def _abandon(self, task: Task) -> None:
        """See to it that a task whose caller has gone does no harm: its buffer is the target's until it
        ends."""
        task.owner = None
        if task in self._kept:
            del self._kept[task]
        elif not self._link.connection.withdraw(task) and self._link.failure is None:
            self._manage(self._link.connection.abort_task(task))

    def _finish(self, task: Task) -> None:
        """Wake the caller of a task that has ended."""
        owner, task.owner = task.owner, None
        if isinstance(owner, trio.lowlevel.Task):
            trio.lowlevel.reschedule(owner)

    def _given_up(self) -> CommandTimeout:
        seconds = self._options.replacement_timeout
        return CommandTimeout(f"{self.name}: the target has been away for more than {seconds:g} seconds")

    # The life of the session.

    async def run(self) -> None:
        """Keep the session alive until `close`, or until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._clock)
            try:
                while True:
                    await self._serve()
                    if self._closing:
                        break
                    await self._log_in_again()
            finally:
                self.state = State.CLOSED
                self._fail_all(TransportError(f"{self.name}: the session is closed"))
                nursery.cancel_scope.cancel()

    async def close(self) -> None:
        """Log out (section 11.14), in bounded time, and end `run`; commands still under way fail."""
        self._closing = True
        if self.state in (State.UP, State.CHECKING):
            with trio.move_on_after(LOGOUT_TIMEOUT) as scope:
                await self._log_out()
            if scope.cancelled_caught:
                log.warning("%s: no answer to the logout in %g seconds", self.name, LOGOUT_TIMEOUT)
        self.state = State.CLOSED
        self._link.close()
        self._dialling.cancel()

    async def _log_out(self) -> None:
        self._link.connection.log_out()
        self._link.kick()
        await self._logged_out.wait()

    async def _serve(self) -> None:
        """Serve the connection until it ends; keep what it left unanswered."""
        self._silent_since = trio.current_time()
        self._pinged_at = None
        self._leaving = False
        self._logged_out = trio.Event()
        async with trio.open_nursery() as nursery:
            if self.state is not State.UP:
                nursery.start_soon(self._resume)
            await self._link.run(self._on_event)
            nursery.cancel_scope.cancel()
        self._logged_out.set()  # the end of the connection answers a logout as well
        unfinished = self._link.connection.take_unfinished()
        self._managements.clear()
        if self.state is State.UP:
            self._down_since = trio.current_time()
        self.state = State.DOWN
        kept, self._kept = self._kept, {}
        for task in (*unfinished, *kept):
            if task.owner is None:
                continue
            if task.attempts >= MAX_ATTEMPTS:
                task.fail(CommandTimeout(f"{self.name}: given up after {task.attempts} sessions"))
                self._finish(task)
            else:
                task.reset()
                self._kept[task] = None
        if not self._closing:
            log.warning("%s: %s; logging in again", self.name, self._link.failure)

    async def _resume(self) -> None:
        """After a new login: let the owner look at the units, then send what was kept, in its order."""
        if self.after_login is not None:
            await self.after_login()
        kept, self._kept = self._kept, {}
        self.state = State.UP
        log.info("%s: back after %.1f s", self.name, trio.current_time() - self._down_since)
        for task in kept:
            self._submit(task)

    async def _log_in_again(self) -> None:
        """Dial until it works or the session is closed, with growing delays (section 7.5)."""
        delay, self._time2wait = self._time2wait, 0.0
        backoff = 0.0
        with self._dialling:
            while True:
                await trio.sleep(delay)
                with trio.move_on_after(backoff):
                    await self._wanted.wait()  # a new command cuts the back-off short
                self._wanted = trio.Event()
                try:
                    self._link = await self._dial()
                except IscsifsError as error:
                    log.info("%s: %s", self.name, error)
                    delay = FIRST_DELAY * random.uniform(0.75, 1.25)
                    backoff = min(2 * backoff + delay, LONGEST_DELAY)
                else:
                    self.state = State.CHECKING
                    return

    # Time-outs: one clock for all of them, so that a command costs no timer of its own.

    async def _clock(self) -> None:
        while True:
            await trio.sleep(TICK)
            if self.state in (State.UP, State.CHECKING) and self._link.failure is None:
                self._watch_silence()
                self._watch_commands()
                self._link.kick()
                continue
            away = trio.current_time() - self._down_since
            if self._leaving and away >= LOGOUT_TIMEOUT:
                self._link.fail(TransportError(f"no answer to the logout in {LOGOUT_TIMEOUT:g} s"))
            if self.state is State.DOWN and away >= self._options.replacement_timeout:
                log.error("%s; still trying", self._given_up())
                self.state = State.GIVEN_UP
                self._fail_all(self._given_up())

    def _watch_silence(self) -> None:
        """Ping a silent target, and give up one that stays silent; any byte counts as a sign of life."""
        connection, now, options = self._link.connection, trio.current_time(), self._options
        if connection.heard:
            connection.heard = False
            self._silent_since = now
            self._pinged_at = None
        elif self._pinged_at is not None:
            if now - self._pinged_at >= options.ping_timeout:
                silence = now - self._silent_since
                self._link.fail(TransportError(f"no answer to a ping, and nothing else for {silence:.0f} s"))
        elif options.ping_interval and now - self._silent_since >= options.ping_interval:
            self._pinged_at = now
            connection.ping()

    def _watch_commands(self) -> None:
        """Abort what has waited too long for its status; then reset the unit, then drop the session."""
        connection = self._link.connection
        limit = math.ceil(self._options.command_timeout / TICK)
        for task in list(connection.tasks()):
            task.ticks += 1
            if task.ticks == limit and task.on_the_wire:
                log.warning("%s: no answer to %s in %g s; aborting it", self.name, describe(task.cdb), limit)
                self._manage(connection.abort_task(task))
            elif task.ticks > limit and not connection.tasks_on_the_wire:
                self._link.fail(TransportError("the command window stays closed"))
        for management, since in list(self._managements.items()):
            if management.refused_for_now:
                del self._managements[management]
                self._manage(connection.repeat(management), since)
            elif trio.current_time() - since >= MANAGEMENT_TIMEOUT:
                self._link.fail(TransportError(f"no answer to {management.function.name}"))

    def _manage(self, management: Management, since: float | None = None) -> None:
        """Keep an eye on a task management function that was queued just now."""
        self._managements[management] = trio.current_time() if since is None else since
        self._link.kick()

    def _managed(self, management: Management) -> None:
        """Take the answer to a task management function; what did not help is followed by something
        stronger."""
        if management.refused_for_now:
            return  # the clock repeats it
        del self._managements[management]
        if management.succeeded:
            return
        if management.function is TaskFunction.ABORT_TASK and not management.tasks[0].ended:
            lun = management.tasks[0].lun
            log.warning("%s: ABORT TASK failed (%s); resetting the unit", self.name, management.response)
            self._manage(self._link.connection.reset(TaskFunction.LOGICAL_UNIT_RESET, lun))
        elif management.function is not TaskFunction.ABORT_TASK:
            self._link.fail(TransportError(f"{management.function.name} failed ({management.response})"))

    # What the connection tells.

    def _on_event(self, event: Event) -> None:
        match event:
            case Task():
                self._finish(event)
            case Management():
                self._managed(event)
            case LogoutRequested():
                self._leave(event.seconds)
            case Logout():
                self._logged_out_by(event)
            case ConnectionDropped():
                self._time2wait = float(event.time2wait)
                self._link.fail(TransportError("the target has given the connection up"))
            case SenseReported():
                if self.on_sense is not None:
                    self.on_sense(event)
            case Noted():
                log.warning("%s: %s", self.name, event.text)
            case _:
                pass  # an echo is a sign of life like any other byte; nobody here sends text

    def _leave(self, seconds: int) -> None:
        """Log out because the target asks for it (section 11.9.1); what is unanswered goes to the next
        session."""
        log.warning("%s: the target asks for a logout within %d s", self.name, seconds)
        if not self._leaving:
            self._leaving = True
            self.state = State.DOWN
            self._down_since = trio.current_time()
            self._link.connection.log_out()

    def _logged_out_by(self, logout: Logout) -> None:
        if logout.response in (LogoutResponseCode.RECOVERY_UNSUPPORTED, LogoutResponseCode.CLEANUP_FAILED):
            self._time2wait = float(logout.time2wait)
        if logout.response != LogoutResponseCode.CLOSED:
            log.warning("%s: the logout ended with response %s", self.name, logout.response)
        self._logged_out.set()
        if not self._closing:
            self._link.fail(TransportError("logged out, as the target had asked for"))

    def _fail_all(self, failure: IscsifsError) -> None:
        """Fail every command that waits for a session."""
        kept, self._kept = self._kept, {}
        for task in kept:
            task.fail(failure)
            self._finish(task)

    def fail_kept(self, lun: int, failure: IscsifsError) -> None:
        """Fail the commands for *lun* that wait for a session: there is no such unit any more."""
        for task in [task for task in self._kept if task.lun == lun]:
            del self._kept[task]
            task.fail(failure)
            self._finish(task)
