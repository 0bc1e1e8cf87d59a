"""A session: one way to one target, over one connection at a time (RFC 7143 section 4.2.1).

A session logs in, numbers and times commands, and stays alive: when its connection is lost it logs in
again with the same ISID, which makes the target forget the old session (section 6.3.5). It keeps no
command. What a lost connection leaves unanswered it hands back with `PathLost`, in the order of sending;
the queue of the unit decides whether and when that is sent again.

`Session.state` is the standard's (`iscsi.states`). Two things are not the standard's: a session is *away* as
long as it hands commands back, which begins with a logout that the target asks for; and it is *closed* for
good.
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from iscsifs.errors import IscsifsError, PathLost, TransportError
from iscsifs.initiator.history import History
from iscsifs.initiator.notes import Notes
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.initiator.redial import Redial
from iscsifs.initiator.supervisor import TICK, Supervisor
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
from iscsifs.iscsi.states import ConnectionState, SessionEvent, SessionState, advance_session
from iscsifs.iscsi.task import CHECK_CONDITION, Task
from iscsifs.limits import (
    LAST_LOGOUT_TIMEOUT,
    LOGOUT_TIMEOUT,
)
from iscsifs.transport.link import Link

log = logging.getLogger(__name__)


class Session:
    """The commands of one initiator to one target; `run` has to run for anything to happen.

    *dial* connects and logs in, with the same ISID each time. *name* is for the log.
    """

    def __init__(
        self, name: str, dial: Callable[[], Awaitable[Link]], options: InitiatorOptions, link: Link
    ) -> None:
        self.name = name
        self.link = link
        """The connection, or the last one that there was."""
        self.open_link: Link | None = link
        """The connection that commands are sent on; None while the session is away or closed."""
        self.state = advance_session(SessionState.FREE, SessionEvent.LOGGED_IN)
        """The state of section 8.3; between two sessions it is FAILED, or FREE after a logout."""
        self.history = History()
        self.logins = 1
        """How many logins there were."""
        self.on_login: Callable[[], None] | None = None
        """Called after each new login, before anything is sent: the owner suspends here what may have
        changed."""
        self.on_sense: Callable[[SenseReported], None] | None = None
        """Called for what units report, by themselves or with the status of a command, as soon as it arrives:
        before any command that is answered later counts as done."""
        self.on_note: Callable[[str, str], None] = lambda kind, text: None
        """Called with the kind and the sentence of an event: a loss, an attempt in vain, a new login."""
        self._options = options
        self._redial = Redial(name, dial, self._login_failed)
        self._supervisor = Supervisor(name, link, options, self._sense_reported)
        self._listeners: list[Callable[[], None]] = []
        self._away_since: float | None = None
        self._told_of_absence = False
        self._notes = Notes(name)
        self._closing = False
        self._logged_out = trio.Event()

    # Commands.

    @property
    def is_away(self) -> bool:
        """Whether there is no connection to send anything on."""
        return self._away_since is not None

    @property
    def is_closed(self) -> bool:
        """Whether the session is closed for good, or is being closed."""
        return self._closing

    @property
    def down_since(self) -> float:
        """When the connection was lost, by trio's clock; now, while there is one."""
        return trio.current_time() if self._away_since is None else self._away_since

    def cancel(self, task: Task) -> None:
        """Withdraw *task* if it is not sent yet, else abort it: its buffer is the target's until it ends."""
        task.on_end = None
        if not self.link.connection.withdraw(task) and not task.ended and self.link.failure is None:
            try:
                self._supervisor.abort(task)
            except MemoryError:  # trio, which calls this for a caller that is cancelled, has no use for it
                self.link.fail(TransportError("no memory to abort a command"))

    def recall(self, owner: object) -> None:
        """Hand back the commands of *owner* that are not sent yet."""
        self._hand_back(self.link.connection.withdraw_if(lambda task: task.owner is owner))

    def listen(self, changed: Callable[[], None]) -> None:
        """Call *changed* once: when the session is up again or closed, or an attempt to log in has failed."""
        self._listeners.append(changed)

    def want(self) -> float:
        """Cut the back-off short, as there is a command to send; return until when an attempt to log in
        may help."""
        expired = trio.current_time() >= self.down_since + self._options.replacement_timeout
        return self._redial.want(is_expired=expired)

    def _tell_listeners(self) -> None:
        listeners, self._listeners = self._listeners, []
        for changed in listeners:
            try:
                changed()
            except MemoryError:  # it is told of the next change, which comes soon
                self._listeners.append(changed)
                if not self.is_away:
                    self.link.fail(TransportError("no memory to go on after the login"))

    def _hand_back(self, tasks: list[Task]) -> None:
        """End *tasks*, which have no status, with PathLost."""
        for task in tasks:
            if not task.ended:
                task.fail(PathLost(sent=task.on_the_wire))
            task.tell()

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
                self._close()
                self._end()
                self._tell_listeners()
                nursery.cancel_scope.cancel()

    async def close(self) -> None:
        """Log out (section 11.14), in bounded time, and end `run`; commands still under way fail."""
        self._close()
        if self._away_since is None:
            with trio.move_on_after(LAST_LOGOUT_TIMEOUT) as scope:
                self.link.log_out()
                await self._logged_out.wait()
            if scope.cancelled_caught:
                log.warning("%s: no answer to the logout in %g seconds", self.name, LAST_LOGOUT_TIMEOUT)
        self._end()
        self._redial.stop()

    def _close(self) -> None:
        """Take no command from now on."""
        self._closing = True
        self.open_link = None

    def _end(self) -> None:
        """End the session for good: what is left of it is discarded."""
        self._fail()
        self._discard()
        self.link.close()

    async def _serve(self) -> None:
        """Serve the connection until it ends; keep what it left unanswered."""
        link, started = self.link, trio.current_time()
        self._logged_out = trio.Event()
        try:
            if self._away_since is not None:
                self._resume(self._away_since)
            await link.run(self._on_event)
        except MemoryError:  # the units may not be suspended: nothing is sent before the next login
            link.fail(TransportError("no memory to begin a session"))
            link.close()
        finally:
            self._logged_out.set()  # the end of the connection answers a logout as well
            self._fail()
            self._supervisor.lost()
            self._hand_back(link.connection.take_unfinished())
        self._redial.connected(trio.current_time() - started)
        if not self._closing:
            self.history.lost(str(link.failure))
            kind = {"kind": f"{self.name}: {type(link.failure)}"}
            log.warning("%s: %s; logging in again", self.name, link.failure, extra=kind)
            self.on_note("connection_lost", f"{link.failure}; logging in again")

    def _go_away(self) -> None:
        """Hand commands back from now on."""
        if self._away_since is None:
            self._away_since = trio.current_time()
            self.open_link = None

    def _fail(self) -> None:
        """The connection has ended. After a logout the session is closed already."""
        self._go_away()
        if self.state is SessionState.LOGGED_IN:
            self._advance(SessionEvent.FAILED)

    def _advance(self, event: SessionEvent) -> None:
        self.state = advance_session(self.state, event)
        self.history.state_changed()

    def _discard(self) -> None:
        if self.state is SessionState.FAILED:
            self._advance(SessionEvent.CLEARED)

    def _resume(self, away_since: float) -> None:
        """Go on after a new login, which has cleared what was left of the old session (section 6.3.5)."""
        self.logins += 1
        if self.on_login is not None:
            self.on_login()
        self._discard()
        self._advance(SessionEvent.LOGGED_IN)
        self._away_since = None
        self.open_link = self.link
        self._told_of_absence = False
        seconds = trio.current_time() - away_since
        log.info("%s: back after %.1f s", self.name, seconds, extra={"kind": self.name})
        self.on_note("login", f"back after {seconds:.1f} s")
        self._tell_listeners()

    async def _log_in_again(self) -> None:
        """Dial until it works or the session is closed."""
        link = await self._redial(float(self.link.connection.parameters.default_time2wait))
        if link is None:
            return
        if self._closing:
            link.close()
            return
        self.link = link
        self._supervisor = Supervisor(self.name, link, self._options, self._sense_reported)

    def _login_failed(self, error: IscsifsError, is_new: bool) -> None:
        """Log why, once for each reason in a row."""
        self.history.last_error = str(error)
        self._tell_listeners()
        if is_new:
            log.warning("%s: %s; still trying", self.name, error)
            self.on_note("login_failed", f"{error}; still trying")

    # Time-outs.

    async def _clock(self) -> None:
        ticks = 0
        while True:
            await trio.sleep(TICK)
            ticks += 1
            if ticks % 60 == 0:
                self._notes.begin_minute()
            now, away_since = trio.current_time(), self._away_since
            if away_since is not None:
                leaving = self.link.connection.state is ConnectionState.IN_LOGOUT
                if leaving and now - away_since >= LOGOUT_TIMEOUT:
                    self.link.fail(TransportError(f"no answer to the logout in {LOGOUT_TIMEOUT:g} s"))
                if not self._closing and now - away_since >= self._options.replacement_timeout:
                    self._tell_of_absence()
            elif self.link.failure is None:
                try:
                    self._supervisor.check(now)
                except MemoryError:
                    self.link.fail(TransportError("no memory to ask the target"))

    def _tell_of_absence(self) -> None:
        if not self._told_of_absence:
            self._told_of_absence = True
            seconds = self._options.replacement_timeout
            log.error(
                "%s: the target has been away for more than %g seconds; still trying", self.name, seconds
            )

    async def reset(self, function: TaskFunction, lun: int = 0) -> None:
        """Have the target carry out a reset; raises TransportError, or TaskAborted where it refuses."""
        if self.open_link is None:
            raise TransportError(f"{self.name}: {function.name}: the target is away")
        await self._supervisor.reset(function, lun)

    def _sense_reported(self, report: SenseReported) -> None:
        if self.on_sense is not None:
            self.on_sense(report)

    # What the connection tells.

    def _on_event(self, event: Event) -> None:
        match event:
            case Task():
                if event.status == CHECK_CONDITION and self.on_sense is not None:
                    try:
                        self.on_sense(SenseReported(event.lun, event.sense))
                    except MemoryError:
                        # It must not be repeated as if nothing had been reported: the next login asks anew.
                        self.link.fail(TransportError("no memory for what a unit reports"))
                        event.fail(PathLost(sent=True))
                on_end, event.on_end = event.on_end, None
                if on_end is not None:
                    on_end(event)
            case Management():
                self._supervisor.ended(event)
            case LogoutRequested():
                self._leave(event.seconds)
            case Logout():
                self._logged_out_by(event)
            case ConnectionDropped():
                self._redial.time2wait = float(event.time2wait)
                self.link.fail(TransportError("the target has given the connection up"))
            case SenseReported():
                self._sense_reported(event)
            case Noted():
                self._notes.add(event.text)
            case _:
                pass  # the answer to a ping was counted with its bytes; no text is sent in a normal session

    def _leave(self, seconds: int) -> None:
        """Log out because the target asks for it (section 11.9.1); what is unanswered goes to the next
        session."""
        if self._away_since is None and not self._closing:
            log.warning("%s: the target asks for a logout within %d s", self.name, seconds)
            self._go_away()
            self.link.log_out()

    def _logged_out_by(self, logout: Logout) -> None:
        if logout.response == LogoutResponseCode.CLOSED:
            self._advance(SessionEvent.CLOSED)
            self._redial.time2wait = 0.0
        else:
            log.warning("%s: the logout ended with response %s", self.name, logout.response)
            if logout.response in (
                LogoutResponseCode.RECOVERY_UNSUPPORTED,
                LogoutResponseCode.CLEANUP_FAILED,
            ):
                self._redial.time2wait = float(logout.time2wait)
        self._logged_out.set()
        if not self._closing:
            self.link.fail(TransportError("logged out, as the target had asked for"))
