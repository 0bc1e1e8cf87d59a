"""The registration of an initiator, with one portal for what the server has to tell (section 5.6.5.1)."""

from collections.abc import Callable, Generator
from typing import Final

from iscsifs.errors import printable
from iscsifs.isns import messages
from iscsifs.isns.attributes import Attribute, Tag
from iscsifs.isns.conversation import Reply, Step, ask, ask_all, is_served
from iscsifs.isns.messages import Answer, Entity, OwnPortal
from iscsifs.isns.pdu import Status, status_text
from iscsifs.isns.targets import usable_address
from iscsifs.limits import (
    ISNS_POLL_INTERVAL,
    ISNS_SLOW_POLL_INTERVAL,
    MAX_ISNS_REGISTRATIONS,
    MAX_ISNS_REQUESTS,
)

DEFAULT_PERIOD: Final = 180.0
"""Seconds of the registration period, where a server names none."""

_POLLED: Final = f"its targets are asked for every {ISNS_POLL_INTERVAL:.0f} s"


class Registration:
    """What is registered of us, and what the server made of it.

    `period` is how long the server keeps the registration without a message, in seconds. `was_reached`: a
    message of the server has come to our port, so notifications will.
    """

    def __init__(
        self, source: str, entity_id: str | None, esi_interval: int | None, note: Callable[[str], None]
    ) -> None:
        self._source = source
        self._own_entity_id = entity_id
        self._esi_interval = esi_interval
        self._note = note
        self._portal = OwnPortal(messages.NO_ADDRESS, 0)
        self._former = self._portal  # which the server may still know
        self.entity_id: str | None = None
        self.period = DEFAULT_PERIOD
        self.was_reached = False
        self.has_been_sent = False
        self.has_been_granted = False
        self._is_notified = False
        self._is_shared = False

    @property
    def poll_interval(self) -> float:
        """Seconds between two queries of all targets: few are needed where notifications come."""
        has_notice = self._is_notified and self.was_reached and not self._is_shared
        return ISNS_SLOW_POLL_INTERVAL if has_notice else ISNS_POLL_INTERVAL

    def begin(self, portal: OwnPortal) -> None:
        """A new connection: the server is to find us at *portal*."""
        if self.has_been_sent and portal != self._portal:
            self._former = self._portal
        self._portal = portal
        self._reset()
        self.was_reached = False
        self.has_been_sent = False

    def forgotten(self) -> None:
        """The server does not know us any more; the inquiries may have been the reason."""
        if self.entity_id is not None and self._esi_interval is not None and not self.was_reached:
            self._note("the server cannot reach us; it is not asked for entity status inquiries any more")
            self._esi_interval = None
        self._reset()

    def _reset(self) -> None:
        self.entity_id, self.period = None, DEFAULT_PERIOD
        self._is_notified = self._is_shared = False

    def register(self) -> Generator[Step, Reply, int]:
        """Register, in another form where the server does not take one; return the last status."""
        entity_id, replace, without = self._own_entity_id, False, frozenset[int]()
        status: int = Status.UNKNOWN_ERROR
        for _ in range(MAX_ISNS_REGISTRATIONS):
            self.has_been_sent = True
            answer = yield from ask(
                messages.registration(
                    self._source,
                    self._portal,
                    entity_id=entity_id,
                    esi_interval=self._esi_interval,
                    without=without,
                    replace=replace,
                )
            )
            status = answer.status
            if status == Status.SUCCESSFUL:
                self._granted(answer, entity_id)
                return status
            if status == Status.ESI_NOT_AVAILABLE and self._esi_interval is not None:
                self._esi_interval = None
            elif status == Status.ATTRIBUTE_NOT_IMPLEMENTED and (more := _rejected(answer) - without):
                without |= more
            elif status == Status.INVALID_REGISTRATION and not replace:
                entity_id = yield from self._entity_left_over()
                if entity_id is None:
                    break
                replace = True
            else:
                break
        self._note(f"the server refuses the registration: {status_text(status)}; {_POLLED}")
        return status

    def _granted(self, answer: Answer, entity_id: str | None) -> None:
        """Take what the server has chosen: the entity, the period (section 5.7.5.1)."""
        self.has_been_granted = True
        self.entity_id = answer.text(Tag.ENTITY_ID) or entity_id
        self.refreshed(answer)

    def refreshed(self, answer: Answer) -> None:
        """Take the registration period of *answer*, where there is one; 0 means that there is none."""
        period = answer.number(Tag.REGISTRATION_PERIOD)
        if period:
            self.period = float(period)

    def subscribe(self) -> Generator[Step, Reply, None]:
        """Ask for notifications."""
        answer = yield from ask(messages.scn_registration(self._source))
        self._is_notified = answer.status == Status.SUCCESSFUL
        if not self._is_notified:
            self._note(f"the server does not notify us: {status_text(answer.status)}; {_POLLED}")

    def look_around(self) -> Generator[Step, Reply, None]:
        """See what else is in our entity: what a run of before has left there is deregistered."""
        entity = yield from self._contents(self.entity_id)
        if entity is None:
            return
        others = entity.portals - {self._portal}
        dead = yield from self._left_over(others)
        self._is_shared = bool(others - dead)
        if self._is_shared:
            self._note(f'another program is registered as "{printable(self._source)}" as well; {_POLLED}')
        yield from ask_all([messages.deregistration(self._source, portal.key()) for portal in dead])

    def leave(self) -> Generator[Step, Reply, None]:
        """Deregister what is ours: the entity, or less where others are in it (section 5.6.5.4)."""
        if self.entity_id is None:  # the answer to the registration has not come yet
            answer = yield from ask(messages.query_own_node(self._source))
            self.entity_id = answer.text(Tag.ENTITY_ID)
        entity = yield from self._contents(self.entity_id)
        node = Attribute(Tag.ISCSI_NAME, self._source)
        others = entity.portals - {self._portal} if entity is not None else frozenset()
        if others:
            yield from ask(messages.deregistration(self._source, self._portal.key()))
            return
        is_ours = self.entity_id is not None and (entity is None or entity.names <= {self._source})
        objects = [Attribute(Tag.ENTITY_ID, self.entity_id)] if is_ours else [*self._portal.key(), node]
        yield from ask_all(
            [messages.scn_deregistration(self._source), messages.deregistration(self._source, objects)]
        )

    def _entity_left_over(self) -> Generator[Step, Reply, str | None]:
        """Return the entity that has our name, if a run of before has left it; None if it is in use."""
        answer = yield from ask(messages.query_own_node(self._source))
        entity_id = answer.text(Tag.ENTITY_ID)
        entity = yield from self._contents(entity_id)
        if entity is None:
            return None
        others = entity.portals - {self._portal}
        dead = yield from self._left_over(others)
        if others == dead and entity.names <= {self._source}:
            return entity_id
        name, where = printable(self._source), printable(entity_id or "")
        self._note(f'"{name}" is registered in the entity "{where}", which others use')
        return None

    def _contents(self, entity_id: str | None) -> Generator[Step, Reply, Entity | None]:
        """Return what is registered in an entity, None where the server does not say."""
        if entity_id is None:
            return None
        answer = yield from ask(messages.query_entity(self._source, entity_id))
        return Entity.read(answer) if not answer.status and answer.operating else None

    def _left_over(self, portals: frozenset[OwnPortal]) -> Generator[Step, Reply, frozenset[OwnPortal]]:
        """Return those of *portals* that are of this host, and that nobody serves any more."""
        dead: set[OwnPortal] = set()
        dead |= portals & {self._former}
        here = usable_address(self._portal.address)
        local = [portal for portal in portals if usable_address(portal.address) == here]
        for portal in sorted(local, key=lambda portal: portal.port)[:MAX_ISNS_REQUESTS]:
            if not (yield from is_served(portal)):
                dead.add(portal)
        return frozenset(dead)


def _rejected(answer: Answer) -> frozenset[int]:
    """Return the optional attributes that the server has named as not implemented, or all of them."""
    named = {attribute.tag for attribute in answer.operating} & messages.OPTIONAL
    return frozenset(named) or messages.OPTIONAL
