"""A session: commands in, answers out, whatever happens to the connection in between (RFC 7143 section
7.1.4.4).

A session has one connection at a time. When that is lost, the session logs in again with the same ISID,
which makes the target forget the old one (section 6.3.5), and sends what was not answered again. Callers
notice only that it takes longer, until the replacement time-out is over.

Who owns the session may have it `hold` the commands for units that may be others now, after a new login or
because of what they report, until they were looked at. Probes, by which that is done, are never held.
"""

import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum, auto
from functools import partial
from typing import Final

import trio

from iscsifs.errors import CommandTimeout, IscsifsError, TransportError
from iscsifs.initiator.link import Link
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.initiator.pulse import Pulse
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
from iscsifs.iscsi.task import CHECK_CONDITION, Task
from iscsifs.limits import (
    LAST_LOGOUT_TIMEOUT,
    LOGOUT_TIMEOUT,
    MANAGEMENT_TIMEOUT,
    MAX_ATTEMPTS,
    NOTES_A_MINUTE,
)
from iscsifs.scsi.cdb import describe
from iscsifs.scsi.luns import lun_label
from iscsifs.scsi.sense import Sense, SenseKey

log = logging.getLogger(__name__)

TICK: Final = 1.0
"""Seconds between two looks at all the time-outs of a session."""

FIRST_DELAY: Final = 0.25
"""Seconds before the second attempt to log in again; the first comes at once, if Time2Wait allows it."""

LONGEST_DELAY: Final = 5.0
"""Seconds at most between two attempts; a session that lives as long has shown that it is no use waiting."""

_RESET: Final = Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x03).pack()
"""The sense data of a unit that was reset (SPC-3 section 4.5.6)."""


class State(Enum):
    """What a session can do with a command."""

    UP = auto()
    """Send it, unless its unit is held."""
    DOWN = auto()
    """Keep it, until there is a connection again."""
    CLOSED = auto()
    """Fail it, for good."""


class Session:
    """The commands of one initiator to one target.

    *dial* connects and logs in, with the same ISID each time. *name* is for the log. `run` must be running
    for anything to happen.

    A command without an answer is aborted after the command time-out; where that does not help within
    MANAGEMENT_TIMEOUT its unit is reset, and after as long again the connection is given up. What a lost
    connection leaves unanswered is sent again in the next one, MAX_ATTEMPTS times at most. While there is
    none, commands wait up to the replacement time-out, counted from the loss; then all fail, new ones at
    once, until a later attempt to log in has succeeded. Those for a unit that is held wait as long.
    """

    def __init__(
        self, name: str, dial: Callable[[], Awaitable[Link]], options: InitiatorOptions, link: Link
    ) -> None:
        self.name = name
        self.state = State.UP
        self.given_up = False
        """Whether the session has been away for longer than the replacement time-out."""
        self.on_login: Callable[[], None] | None = None
        """Called after each new login, before anything is sent: `hold` here what may have changed."""
        self.on_sense: Callable[[SenseReported], None] | None = None
        """Called for what units report, by themselves or with the status of a command, as soon as it arrives:
        before any command that is answered later counts as done."""
        self._dial = dial
        self._options = options
        self._link = link
        self._kept: dict[Task, None] = {}
        self._held: dict[int, float] = {}  # since when, by LUN
        self._managements: dict[Management, float] = {}
        self._down_since = 0.0
        self._time2wait: float | None = None  # None: what the login agreed on
        self._backoff = 0.0
        self._login_failure = ""
        self._pulse: Pulse | None = None  # once there is something to look at
        self._stuck_ticks = 0
        self._notes = 0
        self._closing = False
        self._leaving_since: float | None = None
        self._logged_out = trio.Event()
        self._wanted = trio.Event()
        self._dialling = trio.CancelScope()

    @property
    def link(self) -> Link:
        """The connection, or the last one that there was."""
        return self._link

    @property
    def is_away(self) -> bool:
        """Whether there is no connection to send anything on."""
        return self.state in (State.DOWN, State.CLOSED)

    async def execute(self, task: Task) -> None:
        """Send *task* and wait until it has ended with a status.

        Raises TaskAborted where it was not carried out to its end, DataError where not all data were
        transferred, CommandTimeout where the session was away or the unit held for too long, UnitError where
        there is another unit now, TransportError once the session is closed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self.start(task)
        self._link.linger()
        if not task.ended:
            caller = trio.lowlevel.current_task()

            def wake(_: Task) -> None:
                trio.lowlevel.reschedule(caller)

            def give_up(_: object) -> trio.lowlevel.Abort:
                self._abandon(task)
                return trio.lowlevel.Abort.SUCCEEDED

            task.on_end = wake
            await trio.lowlevel.wait_task_rescheduled(give_up)
        if task.failure is not None:
            raise task.failure

    def start(self, task: Task) -> None:
        """Send *task* as `execute` does, but do not wait: its `on_end` is called, unless it is None, with a
        status or with one of the failures that `execute` raises.

        Raises CommandTimeout or TransportError where it cannot be sent at all.
        """
        if self._closing:
            raise self._closed()
        # As `_passes`, but without a call for each command.
        if self.state is State.UP and (task.lun not in self._held or task.probe):
            self._submit(task)
            return
        if self.state is not State.UP:
            if not task.probe:
                self._wanted.set()
            if self.given_up:
                raise self._away()
        self._kept[task] = None

    def _passes(self, task: Task) -> bool:
        return task.lun not in self._held or task.probe

    def _submit(self, task: Task) -> None:
        """Send *task*; one that there is no memory for, and that may be sent in part, ends the connection."""
        connection = self._link.connection
        try:
            connection.submit(task)
            self._link.kick()
        except MemoryError:
            self._link.fail(TransportError("no memory to send a command"))
            if task not in connection.tasks():
                self._kept[task] = None

    def _abandon(self, task: Task) -> None:
        """See to it that a task whose caller has gone does no harm: its buffer is the target's until it
        ends."""
        task.on_end = None
        if task in self._kept:
            del self._kept[task]
        elif not self._link.connection.withdraw(task) and self._link.failure is None:
            self._abort(task)

    def _finish(self, task: Task) -> None:
        """Tell that *task* has ended."""
        on_end, task.on_end = task.on_end, None
        if on_end is not None:
            on_end(task)

    def _away(self) -> CommandTimeout:
        seconds = self._options.replacement_timeout
        return CommandTimeout(f"{self.name}: the target has been away for more than {seconds:g} seconds")

    def _unknown(self, lun: int) -> CommandTimeout:
        seconds = self._options.replacement_timeout
        unit = f"{self.name} LUN {lun_label(lun)}"
        return CommandTimeout(f"{unit}: it is not known for {seconds:g} seconds whether it is still the same")

    def _closed(self) -> TransportError:
        return TransportError(f"{self.name}: the session is closed")

    # The life of the session.

    async def run(self) -> None:
        """Keep the session alive until `close`, or until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._clock)
            try:
                while not self._closing:
                    await self._serve()
                    await self._log_in_again()
            finally:
                self._closing = True
                self.state = State.CLOSED
                self._link.close()
                self._fail_kept(self._kept, self._closed)
                nursery.cancel_scope.cancel()

    async def close(self) -> None:
        """Log out (section 11.14), in bounded time, and end `run`; commands still under way fail."""
        self._closing = True
        if self.state is State.UP:
            with trio.move_on_after(LAST_LOGOUT_TIMEOUT) as scope:
                await self._log_out()
            if scope.cancelled_caught:
                log.warning("%s: no answer to the logout in %g seconds", self.name, LAST_LOGOUT_TIMEOUT)
        self.state = State.CLOSED
        self._link.close()
        self._dialling.cancel()

    async def _log_out(self) -> None:
        self._link.connection.log_out()
        self._link.kick()
        await self._logged_out.wait()

    async def _serve(self) -> None:
        """Serve the connection until it ends; keep what it left unanswered."""
        link, started = self._link, trio.current_time()
        self._pulse = Pulse(link, self._options, started)
        self._stuck_ticks = 0
        self._leaving_since = None
        self._logged_out = trio.Event()
        if self.state is State.DOWN:
            self._resume()
        try:
            await link.run(self._on_event)
        finally:
            self._logged_out.set()  # the end of the connection answers a logout as well
            self._go_down()
            self._keep(link.connection.take_unfinished())
        if trio.current_time() - started >= LONGEST_DELAY:
            self._backoff = 0.0
        if not self._closing:
            log.warning("%s: %s; logging in again", self.name, link.failure)

    def _go_down(self) -> None:
        if self.state is State.UP:
            self._down_since = trio.current_time()
        if self.state is not State.CLOSED:
            self.state = State.DOWN

    def _keep(self, unfinished: Iterable[Task]) -> None:
        """Keep what a connection left *unfinished* for the next, in front of what has waited for that
        anyway."""
        self._managements.clear()
        kept, self._kept = self._kept, {}
        for task in unfinished:
            task.attempts += task.on_the_wire
            if task.on_end is None:
                continue
            if task.if_lost is not None:
                task.fail(task.if_lost)
                self._finish(task)
            elif task.attempts >= MAX_ATTEMPTS:
                command = describe(task.cdb)
                task.fail(
                    CommandTimeout(f"{self.name}: {command}: {task.attempts} sessions were lost with it")
                )
                self._finish(task)
            else:
                task.reset()
                self._kept[task] = None
        self._kept.update(kept)

    def _resume(self) -> None:
        """After a new login: send what was kept, in its order, but for what is held."""
        if self.on_login is not None:
            self.on_login()
        self.state = State.UP
        self.given_up = False
        log.info("%s: back after %.1f s", self.name, trio.current_time() - self._down_since)
        self._send_kept(filter(self._passes, self._kept))

    # Units that may be others now.

    def hold(self, luns: Iterable[int]) -> None:
        """From now on keep the commands for *luns*, but for probes, and those that wait for the window.

        What is on the wire already goes on: it cannot be called back.
        """
        waiting_already = self.state is State.DOWN and not self.given_up
        since = self._down_since if waiting_already else trio.current_time()
        for lun in luns:
            self._held.setdefault(lun, since)
        withdrawn = self._link.connection.withdraw_if(lambda task: not self._passes(task))
        self._kept |= dict.fromkeys(withdrawn)

    def release(self, lun: int) -> None:
        """Send what was kept for *lun*, and what comes: its unit is what it was."""
        self._held.pop(lun, None)
        if self.state is State.UP:
            self._send_kept(self._kept_for(lun))

    def is_held(self, lun: int) -> bool:
        """Say whether the commands for *lun* are kept."""
        return lun in self._held

    def fail_kept(
        self, lun: int, failure: IscsifsError, concerned: Callable[[Task], bool] = lambda _: True
    ) -> None:
        """Fail what was kept for *lun* and is *concerned*: there may be another unit now, or none.

        What is on the wire ends with its answer; without one it is not sent again.
        """
        self._held.pop(lun, None)
        kind, text = type(failure), str(failure)
        for task in self._link.connection.tasks():
            if task.lun == lun and not task.probe and concerned(task):
                task.if_lost = kind(text)
        self._fail_kept(filter(concerned, self._kept_for(lun)), lambda: kind(text))

    def _kept_for(self, lun: int) -> list[Task]:
        return [task for task in self._kept if task.lun == lun and not task.probe]

    def _send_kept(self, tasks: Iterable[Task]) -> None:
        for task in list(tasks):
            del self._kept[task]
            self._submit(task)

    def _fail_kept(self, tasks: Iterable[Task], failure: Callable[[], IscsifsError]) -> None:
        """Fail *tasks*, which are kept, each with an exception of its own."""
        for task in list(tasks):
            del self._kept[task]
            task.fail(failure())
            self._finish(task)

    async def _log_in_again(self) -> None:
        """Dial until it works or the session is closed, with growing delays (section 7.5).

        They also grow, over several calls, while sessions end as soon as they have begun.
        """
        if self._time2wait is None:
            self._time2wait = float(self._link.connection.parameters.default_time2wait)
        pause, self._time2wait = self._time2wait, None
        with trio.CancelScope() as self._dialling:
            while not self._closing:
                jittered = FIRST_DELAY * random.uniform(0.75, 1.25)
                await trio.sleep(max(pause, jittered) if self._backoff else pause)
                with trio.move_on_after(self._backoff):
                    await self._wanted.wait()  # a new command cuts the back-off short
                self._wanted = trio.Event()
                self._backoff = min(2 * self._backoff + jittered, LONGEST_DELAY)
                pause = 0.0
                try:
                    link = await self._dial()
                except IscsifsError as error:
                    self._login_failed(error)
                    continue
                self._login_failure = ""
                if self._closing:
                    link.close()
                else:
                    self._link = link
                return

    def _login_failed(self, error: IscsifsError) -> None:
        """Log why, once for each reason in a row."""
        if str(error) != self._login_failure:
            self._login_failure = str(error)
            log.warning("%s: %s; still trying", self.name, error)

    # Time-outs: one clock for all of them, so that a command costs no timer of its own.

    async def _clock(self) -> None:
        ticks = 0
        while True:
            await trio.sleep(TICK)
            ticks += 1
            if ticks % 60 == 0:
                self._notes = 0
            now = trio.current_time()
            if self._leaving_since is not None:
                if now - self._leaving_since >= LOGOUT_TIMEOUT:
                    self._link.fail(TransportError(f"no answer to the logout in {LOGOUT_TIMEOUT:g} s"))
            elif self.state is State.UP and self._link.failure is None:
                if self._pulse is not None:
                    self._pulse.look(now)
                self._watch_commands()
                self._watch_managements(now)
                self._link.kick()
            patience = self._options.replacement_timeout
            if self.state is State.DOWN and now - self._down_since >= patience:
                if not self.given_up:
                    log.error("%s; still trying", self._away())
                    self.given_up = True
                self._fail_kept(self._kept, self._away)
            for task in [task for task in self._kept if not self._passes(task)]:
                if now - self._held[task.lun] >= patience:
                    self._fail_kept([task], partial(self._unknown, task.lun))

    def _watch_commands(self) -> None:
        """Abort what has waited too long for its status, and give up a window that is never opened."""
        connection = self._link.connection
        limit = math.ceil(self._options.command_timeout / TICK)
        unsent = False
        for task in list(connection.tasks()):
            if not task.on_the_wire:
                unsent = True  # and so are all behind it
                break
            task.ticks += 1
            if task.ticks == limit + 1:  # the first tick comes less than TICK after the command
                seconds = self._options.command_timeout
                log.warning(
                    "%s: no answer to %s in %g s; aborting it", self.name, describe(task.cdb), seconds
                )
                self._abort(task)
        self._stuck_ticks = self._stuck_ticks + 1 if unsent and not connection.tasks_on_the_wire else 0
        if self._stuck_ticks > limit:
            self._link.fail(TransportError("the command window stays closed"))

    def _watch_managements(self, now: float) -> None:
        for management, since in list(self._managements.items()):
            if now - since >= MANAGEMENT_TIMEOUT:
                del self._managements[management]
                self._escalate(management, "no answer")
            elif management.refused_for_now:
                del self._managements[management]
                self._manage(self._link.connection.repeat(management), since)

    def _abort(self, task: Task) -> None:
        if not any(task in management.tasks for management in self._managements):
            self._manage(self._link.connection.abort_task(task))

    def _manage(self, management: Management, since: float | None = None) -> None:
        """Keep an eye on a task management function that was queued just now."""
        self._managements[management] = trio.current_time() if since is None else since
        self._link.kick()

    def _managed(self, management: Management) -> None:
        """Take the answer to a task management function, also to one that the connection asked for itself."""
        since = self._managements.pop(management, trio.current_time())
        is_reset = management.function is TaskFunction.LOGICAL_UNIT_RESET
        if is_reset and management.succeeded and self.on_sense is not None:
            # The unit reports it to everybody but who has asked for it (SAM-5 section 7.7).
            self.on_sense(SenseReported(management.lun, _RESET))
        if management.refused_for_now:
            self._managements[management] = since  # the clock repeats it
        elif not management.succeeded:
            self._escalate(management, f"response {management.response}")

    def _escalate(self, management: Management, reason: str) -> None:
        """Follow what did not help by something stronger: ABORT TASK, LOGICAL UNIT RESET, a new session."""
        function, lun = management.function, management.lun
        if all(task.ended for task in management.tasks):
            return
        if function is not TaskFunction.ABORT_TASK:
            self._link.fail(TransportError(f"{function.name} did not help ({reason})"))
        elif not any(other.function is not function and other.lun == lun for other in self._managements):
            log.warning("%s: ABORT TASK did not help (%s); resetting the unit", self.name, reason)
            self._manage(self._link.connection.reset(TaskFunction.LOGICAL_UNIT_RESET, lun))

    # What the connection tells.

    def _on_event(self, event: Event) -> None:
        match event:
            case Task():
                if event.status == CHECK_CONDITION and self.on_sense is not None:
                    self.on_sense(SenseReported(event.lun, event.sense))
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
                self._note(event.text)
            case _:
                pass  # an echo is a sign of life like any other byte; nobody here sends text

    def _note(self, text: str) -> None:
        """Log what the target does by itself, but not for ever."""
        self._notes += 1
        if self._notes <= NOTES_A_MINUTE:
            more = "; more of these are left out" if self._notes == NOTES_A_MINUTE else ""
            log.warning("%s: %s%s", self.name, text, more)

    def _leave(self, seconds: int) -> None:
        """Log out because the target asks for it (section 11.9.1); what is unanswered goes to the next
        session."""
        if self._leaving_since is None and not self._closing:
            log.warning("%s: the target asks for a logout within %d s", self.name, seconds)
            self._leaving_since = trio.current_time()
            self._go_down()
            self._link.connection.log_out()

    def _logged_out_by(self, logout: Logout) -> None:
        if logout.response == LogoutResponseCode.CLOSED:
            self._time2wait = 0.0
        else:
            log.warning("%s: the logout ended with response %s", self.name, logout.response)
            if logout.response in (
                LogoutResponseCode.RECOVERY_UNSUPPORTED,
                LogoutResponseCode.CLEANUP_FAILED,
            ):
                self._time2wait = float(logout.time2wait)
        self._logged_out.set()
        if not self._closing:
            self._link.fail(TransportError("logged out, as the target had asked for"))
