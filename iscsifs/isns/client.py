"""An iSNS client: registers an initiator, and keeps a set of targets as its server knows it (RFC 4171).

Bytes, time and random numbers come in; bytes, events and the next deadline go out. The one who does the I/O
calls the method that tells what happened, then sends `data_to_send`, takes `take_events`, and probes `probe`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from iscsifs.errors import IsnsError, IsnsProtocolError, printable
from iscsifs.isns import messages
from iscsifs.isns.attributes import Scn
from iscsifs.isns.backoff import BackOff
from iscsifs.isns.conversation import Conversation, Procedure, ask
from iscsifs.isns.known import KnownTargets
from iscsifs.isns.lookup import Refused, find_all, find_one
from iscsifs.isns.messages import Notification, OwnPortal
from iscsifs.isns.pdu import Function, Message, MessageTooLong, Status
from iscsifs.isns.registration import Registration
from iscsifs.isns.states import TRANSITIONS, Happening, State
from iscsifs.isns.targets import IsnsTarget, wire_address
from iscsifs.limits import (
    ISNS_COALESCE,
    ISNS_REFUSED_PAUSE,
    ISNS_SETTLE,
    MAX_ISNS_CHANGES,
    MAX_ISNS_INQUIRY_LENGTH,
    MAX_ISNS_NOTES,
    MIN_ISNS_PERIOD,
)

BUSY: Final = frozenset({Status.INTERNAL_ERROR, Status.BUSY})
"""Statuses after which the same request is sent again, later."""

_CHANGE: Final = Scn.REMOVED | Scn.ADDED | Scn.UPDATED | Scn.MEMBER_REMOVED | Scn.MEMBER_ADDED


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """The initiator's name; the entity to be registered in, None: the server chooses it; and the seconds
    between entity status inquiries that are asked for, None: the server is not to inquire."""

    name: str
    entity_id: str | None = None
    esi_interval: int | None = 60


@dataclass(frozen=True, slots=True)
class TargetsChanged:
    """The server knows these *targets* now."""

    targets: tuple[IsnsTarget, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """A *sentence* for the user."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Close:
    """The connection to the server has to be closed, because of *reason*."""

    reason: str


Event = TargetsChanged | Note | Close


class Duty(IntEnum):
    """What a client does at its times; the most important first, if several are due."""

    JOIN = 1  # register, and all that follows
    CHECK = 2  # ask for ourselves: the registration is refreshed, or found gone
    LOOK = 3  # ask for all targets
    FOLLOW = 4  # ask for what has changed


class Client:
    """One client of one server, over all its connections."""

    def __init__(self, config: ClientConfig, random: Callable[[], float]) -> None:
        self.state = State.AWAY
        self._config = config
        self._now = 0.0
        self._conversation = Conversation(self._note_once)
        self._registration = Registration(config.name, config.entity_id, config.esi_interval, self._note_once)
        self._known = KnownTargets()
        self._back_off = BackOff(random)
        self._due: dict[Duty, float] = {}
        self._changed: set[str] = set()
        self._walks = False  # asks for one target after the other: the answer for all is too long
        self._looked = float("-inf")  # when a query of targets began last
        self._events: list[Event] = []
        self._noted: set[str] = set()

    # What comes out.

    def data_to_send(self) -> bytes:
        """Return, once, what is to be sent on the connection to the server."""
        return self._conversation.data_to_send()

    def take_events(self) -> list[Event]:
        """Return, once, what has happened."""
        events, self._events = self._events, []
        return events

    @property
    def probe(self) -> OwnPortal | None:
        """The portal of this host of which is to be found out whether anybody listens there."""
        return self._conversation.probe

    @property
    def entity_id(self) -> str | None:
        """The entity that we are registered in."""
        return self._registration.entity_id

    @property
    def deadline(self) -> float | None:
        """When `tick` has to be called."""
        if self.state in (State.AWAY, State.LEFT):
            return None
        deadlines = [] if self._conversation.deadline is None else [self._conversation.deadline]
        if self._conversation.is_idle:
            deadlines += self._due.values()
        return min(deadlines, default=None)

    def reconnect_pause(self) -> float:
        """Return the seconds to wait before the next connection to the server."""
        return self._back_off.pause()

    # What goes in.

    def connected(self, now: float, address: IPv4Address | IPv6Address, port: int) -> None:
        """There is a connection, from our *address*; we listen at *port* of it."""
        self._now = now
        self._conversation = Conversation(self._note_once)
        self._noted.clear()
        self._changed.clear()
        if self._registration.has_been_granted:
            self._known.distrust()
        self._registration.begin(OwnPortal(wire_address(address), port))
        self._happens(Happening.CONNECTED)
        self._due = {Duty.JOIN: now}
        self._run_due()

    def disconnected(self, now: float) -> None:
        """The connection is lost, or was closed. The targets stay."""
        if self.state in (State.AWAY, State.LEFT):
            return
        self._now = now
        self._conversation.stop()
        self._due.clear()
        self._happens(Happening.LOST)

    def receive(self, data: bytes, now: float) -> None:
        """Take *data* from the connection to the server."""
        self._now = now
        try:
            requests = self._conversation.receive(data, now)
        except IsnsError as error:
            self._walks = self._walks or isinstance(error, MessageTooLong)
            self._events.append(Close(str(error)))
            return
        for request in requests:
            if (response := self.inquire(request, now)) is not None:
                self._conversation.send(response)
        self._run_due()

    def inquire(self, request: Message, now: float) -> Message | None:
        """Return the response to a message of the server, on whatever connection; None: there is none."""
        self._now = now
        if request.is_response:
            self._note_once("a response to no request of ours was dropped")
            return None
        try:
            if len(request.payload) > MAX_ISNS_INQUIRY_LENGTH:
                raise IsnsProtocolError(f"{len(request.payload)} bytes of attributes", section="5.6.5")
            if request.function == Function.ESI:
                self._registration.was_reached = True
                return request.answer(Status.SUCCESSFUL, request.payload)  # unchanged (section 5.7.5.13)
            if request.function == Function.SCN:
                return self._notified(request)
        except IsnsError as error:
            self._note_once(f"a message of the server was dropped: {error}")
            return request.answer(Status.MESSAGE_FORMAT_ERROR)
        return request.answer(Status.MESSAGE_NOT_SUPPORTED)

    def probed(self, is_alive: bool, now: float) -> None:
        """Tell whether anybody listens at `probe`."""
        self._now = now
        self._conversation.probed(is_alive, now)
        self._run_due()

    def tick(self, now: float) -> None:
        """Do what is due."""
        self._now = now
        try:
            self._conversation.check(now)
        except IsnsError as error:
            self._events.append(Close(str(error)))
            return
        self._run_due()

    def leave(self, now: float) -> None:
        """Deregister; the state is LEFT when that is done."""
        self._now = now
        self._due.clear()
        has_registered = self._registration.has_been_sent
        self._happens(Happening.STOPPED)
        if self.state is State.LEAVING:
            if has_registered:
                self._conversation.run(self._leave(), now)
            else:
                self._happens(Happening.DONE)

    # The duties.

    def _run_due(self) -> None:
        """Begin the most important of the duties that are due, unless one is under way."""
        if not self._conversation.is_idle or self.state in (State.LEAVING, State.LEFT, State.AWAY):
            return
        due = [duty for duty, when in self._due.items() if when <= self._now]
        if due:
            duty = min(due)
            del self._due[duty]
            self._conversation.run(self._carry_out(duty), self._now)

    def _carry_out(self, duty: Duty) -> Procedure:
        """Do one duty, and say when it is due again; nothing is raised."""
        work = {
            Duty.JOIN: self._join,
            Duty.CHECK: self._check,
            Duty.LOOK: self._look,
            Duty.FOLLOW: self._follow,
        }
        try:
            yield from work[duty]()
        except Refused as error:
            self._failed(duty, error, error.status)
        except IsnsError as error:
            self._failed(duty, error, Status.BUSY)

    def _failed(self, duty: Duty, error: IsnsError, status: int) -> None:
        """Say what went wrong, and when it is tried again: soon, from the start, or much later."""
        if status == Status.SOURCE_UNKNOWN and self.state is State.REGISTERED:
            self._rejoin(self._back_off.pause())
            return
        pause = self._back_off.pause() if status in BUSY else ISNS_REFUSED_PAUSE
        if duty is Duty.FOLLOW:
            duty = Duty.LOOK  # the names are gone
        self._note_once(f"{error}; the next attempt is in {pause:.0f} s")
        self._due[duty] = self._now + pause

    def _join(self) -> Procedure:
        """Register, ask for notifications, and for the targets."""
        if self.state is State.UNREGISTERED:
            self._happens(Happening.RETRIED)
        status = yield from self._registration.register()
        if status in BUSY:
            raise Refused("the registration", status)
        if status == Status.SUCCESSFUL:
            self._happens(Happening.GRANTED)
            yield from self._registration.look_around()
            yield from self._registration.subscribe()
            self._plan_check()
        else:
            self._happens(Happening.REFUSED)
            self._due[Duty.JOIN] = self._now + ISNS_REFUSED_PAUSE
        yield from self._carry_out(Duty.LOOK)

    def _check(self) -> Procedure:
        """Ask for our own entity: this refreshes the registration, or finds it gone (section 6.2.6)."""
        if self.state is not State.REGISTERED:
            return
        answer = yield from ask(messages.query_own_node(self._config.name))
        is_gone = answer.status == Status.NO_SUCH_ENTRY or not (answer.status or answer.operating)
        if is_gone:
            self._rejoin(0.0)
        elif answer.status:
            raise Refused("a query of ourselves", answer.status)
        else:
            self._registration.refreshed(answer)
            self._plan_check()

    def _plan_check(self) -> None:
        self._due[Duty.CHECK] = self._now + max(self._registration.period, MIN_ISNS_PERIOD) / 3

    def _rejoin(self, pause: float) -> None:
        """Register again, after *pause*; the targets stay."""
        self._note_once("the server has forgotten the registration; the initiator is registered again")
        self._registration.forgotten()
        self._known.distrust()
        self._happens(Happening.FORGOTTEN)
        self._due = {Duty.JOIN: self._now + pause}

    def _look(self) -> Procedure:
        """Ask for all targets."""
        self._looked, named = self._now, frozenset(self._changed)
        self._changed.clear()
        self._due.pop(Duty.FOLLOW, None)
        found, is_whole = yield from find_all(self._config.name, self._note_once, walks=self._walks)
        self._known.update(found, self._now, named=named, is_whole=is_whole)
        self._looked_well(self._registration.poll_interval)

    def _follow(self) -> Procedure:
        """Ask for what has changed: one target, or all."""
        names = self._changed
        if self._config.name in names or len(names) != 1:
            if self._config.name in names:
                self._due[Duty.CHECK] = self._now
            yield from self._look()
            return
        self._looked, self._changed = self._now, set()
        (name,) = names
        self._known.update_one(name, (yield from find_one(self._config.name, name, self._note_once)))
        self._looked_well(self._registration.poll_interval)

    def _looked_well(self, interval: float) -> None:
        """A query of targets has succeeded: report what has changed, and plan the next one."""
        self._back_off.reset()
        targets = self._known.take_change()
        if targets is not None:
            self._events.append(TargetsChanged(targets))
        recheck = self._known.recheck_at
        planned = self._now + interval
        self._due[Duty.LOOK] = planned if recheck is None else max(min(planned, recheck), self._now + 1.0)

    def _leave(self) -> Procedure:
        """Deregister; whatever the server answers, we go."""
        try:
            yield from self._registration.leave()
        except IsnsError as error:
            self._note_once(f"the deregistration fails: {error}")
        self._happens(Happening.DONE)

    # Notifications and notes.

    def _notified(self, request: Message) -> Message:
        """Take an SCN, and return the response to it (section 5.6.5.8)."""
        notification = Notification.read(request.payload)
        if notification.destination != self._config.name:
            name = printable(notification.destination)
            self._note_once(f'a notification for "{name}", which is not us, was refused')
            return request.answer(Status.SOURCE_UNKNOWN)
        self._registration.was_reached = True
        for event, name in notification.changes:
            if event & _CHANGE and len(self._changed) < MAX_ISNS_CHANGES:
                self._changed.add(name)
        if self._changed and self.state in (State.REGISTERED, State.UNREGISTERED):
            self._due.setdefault(Duty.FOLLOW, max(self._now + ISNS_SETTLE, self._looked + ISNS_COALESCE))
        return request.answer(Status.SUCCESSFUL, notification.acknowledgement())

    def _note_once(self, sentence: str) -> None:
        """Note *sentence*, unless it was noted since the connection began."""
        if sentence not in self._noted and len(self._noted) < MAX_ISNS_NOTES:
            self._noted.add(sentence)
            self._events.append(Note(sentence))

    def _happens(self, happening: Happening) -> None:
        self.state = TRANSITIONS[self.state, happening]
