"""The requests of a client, and what is in the server's messages (RFC 4171 sections 5.6 and 5.7)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

from iscsifs.errors import IsnsProtocolError
from iscsifs.isns.attributes import ENTITY_PROTOCOL_ISCSI, Attribute, NodeType, Scn, Tag, pack, unpack
from iscsifs.isns.pdu import Function

DELIMITER: Final = Attribute(Tag.DELIMITER)

NO_ADDRESS: Final = IPv6Address(0)

SCN_BITMAP: Final = Scn.TARGET_AND_SELF | Scn.REMOVED | Scn.ADDED | Scn.UPDATED
"""What we ask to be notified of: changes of targets, and of ourselves. Never MANAGEMENT, which is for control
nodes (section 6.4.4)."""

TARGET_ATTRIBUTES: Final = (
    *(Tag.ISCSI_NAME, Tag.ISCSI_NODE_TYPE, Tag.ISCSI_ALIAS),
    *(Tag.PORTAL_ADDRESS, Tag.PORTAL_PORT),
    *(Tag.PG_PORTAL_ADDRESS, Tag.PG_PORTAL_PORT, Tag.PG_TAG),
)
"""What a query asks for of each target."""

OPTIONAL: Final = frozenset[int]({Tag.ESI_INTERVAL, Tag.ESI_PORT, Tag.SCN_PORT})
"""Attributes of a registration that may be left out, where a server does not take them."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request without its transaction id."""

    function: Function
    payload: bytes
    replace: bool = False


@dataclass(frozen=True, slots=True)
class OwnPortal:
    """Where the server finds us: the address of the connection to it, and the *port* that we listen at."""

    address: IPv6Address
    port: int

    def key(self) -> tuple[Attribute, Attribute]:
        """Return the attributes that name the portal; the address comes right before the port."""
        return Attribute(Tag.PORTAL_ADDRESS, self.address), Attribute(Tag.PORTAL_PORT, self.port)


def _request(
    function: Function,
    source: str,
    key: Iterable[Attribute],
    operating: Iterable[Attribute] = (),
    replace: bool = False,
) -> Request:
    """Return a request in the form of section 5.6: source, message key, delimiter, operating attributes."""
    whole = [Attribute(Tag.ISCSI_NAME, source), *key, DELIMITER, *operating]
    return Request(function, pack(whole), replace)


def registration(
    source: str,
    portal: OwnPortal,
    *,
    entity_id: str | None = None,
    esi_interval: int | None = None,
    without: Iterable[int] = (),
    replace: bool = False,
) -> Request:
    """Return the DevAttrReg of an initiator with one portal (sections 5.6.4 and 5.6.5.1).

    Without *entity_id* the server chooses one. *esi_interval* in seconds asks for entity status inquiries.
    *without* are OPTIONAL tags to be left out. With *replace* what is registered in the entity goes.
    """
    entity = Attribute(Tag.ENTITY_ID, entity_id)
    portal_attributes = [*portal.key()]
    if esi_interval is not None:
        portal_attributes.append(Attribute(Tag.ESI_INTERVAL, esi_interval))
        portal_attributes.append(Attribute(Tag.ESI_PORT, portal.port))
    portal_attributes.append(Attribute(Tag.SCN_PORT, portal.port))
    operating = [
        entity,
        Attribute(Tag.ENTITY_PROTOCOL, ENTITY_PROTOCOL_ISCSI),
        *(attribute for attribute in portal_attributes if attribute.tag not in without),
        Attribute(Tag.ISCSI_NAME, source),
        Attribute(Tag.ISCSI_NODE_TYPE, NodeType.INITIATOR),
    ]
    key = [entity] if entity_id is not None else []
    return _request(Function.DEV_ATTR_REG, source, key, operating, replace)


def scn_registration(source: str) -> Request:
    """Return the SCNReg for ourselves (section 5.6.5.5)."""
    key = [Attribute(Tag.ISCSI_NAME, source)]
    return _request(Function.SCN_REG, source, key, [Attribute(Tag.ISCSI_SCN_BITMAP, SCN_BITMAP)])


def scn_deregistration(source: str) -> Request:
    """Return the SCNDereg for ourselves (section 5.6.5.6)."""
    return _request(Function.SCN_DEREG, source, [Attribute(Tag.ISCSI_NAME, source)])


def deregistration(source: str, objects: Iterable[Attribute]) -> Request:
    """Return the DevDereg of *objects*, which are named by their keys (section 5.6.5.4)."""
    return _request(Function.DEV_DEREG, source, (), objects)


def query_all_targets(source: str) -> Request:
    """Return the DevAttrQry for every target that *source* may see (section 5.6.5.2)."""
    key = [Attribute(Tag.ISCSI_NODE_TYPE, NodeType.TARGET)]
    return _request(Function.DEV_ATTR_QRY, source, key, map(Attribute, TARGET_ATTRIBUTES))


def query_target(source: str, name: str) -> Request:
    """Return the DevAttrQry for the target *name*."""
    key = [Attribute(Tag.ISCSI_NAME, name)]
    return _request(Function.DEV_ATTR_QRY, source, key, map(Attribute, TARGET_ATTRIBUTES))


def next_target(source: str, after: str | None) -> Request:
    """Return the DevGetNext for the name of the target *after* another one, or of the first (5.6.5.3)."""
    key = [Attribute(Tag.ISCSI_NAME, after)]
    scope = [Attribute(Tag.ISCSI_NODE_TYPE, NodeType.TARGET)]
    return _request(Function.DEV_GET_NEXT, source, key, scope)


def query_own_node(source: str) -> Request:
    """Return the DevAttrQry for our own entity, which refreshes the registration as well (section 6.2.6)."""
    tags = Tag.ENTITY_ID, Tag.REGISTRATION_PERIOD
    return _request(Function.DEV_ATTR_QRY, source, [Attribute(Tag.ISCSI_NAME, source)], map(Attribute, tags))


def query_entity(source: str, entity_id: str) -> Request:
    """Return the DevAttrQry for the portals and nodes of an entity."""
    tags = Tag.PORTAL_ADDRESS, Tag.PORTAL_PORT, Tag.ISCSI_NAME
    return _request(
        Function.DEV_ATTR_QRY, source, [Attribute(Tag.ENTITY_ID, entity_id)], map(Attribute, tags)
    )


# What the server says. Each raises IsnsProtocolError.


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: *key* stands before the delimiter, *operating* behind it."""

    status: int
    key: Sequence[Attribute] = ()
    operating: Sequence[Attribute] = ()

    @classmethod
    def read(cls, status: int, payload: bytes) -> "Answer":
        """Read a response; where it has no delimiter, all its attributes are of the key."""
        attributes = list(unpack(payload))
        if DELIMITER not in attributes:
            return cls(status, attributes)
        cut = attributes.index(DELIMITER)
        return cls(status, attributes[:cut], attributes[cut + 1 :])

    def number(self, tag: Tag) -> int | None:
        """Return the first value of *tag* among the operating attributes, which is a number."""
        return next((a.value for a in self.operating if a.tag == tag and isinstance(a.value, int)), None)

    def text(self, tag: Tag) -> str | None:
        """Return the first value of *tag*, of the key or behind it, which is a text."""
        both = (*self.key, *self.operating)
        return next((a.value for a in both if a.tag == tag and isinstance(a.value, str)), None)


@dataclass(frozen=True, slots=True)
class Entity:
    """What is registered in an entity."""

    portals: frozenset[OwnPortal]
    names: frozenset[str]

    @classmethod
    def read(cls, answer: Answer) -> "Entity":
        """Read the answer to `query_entity`."""
        portals, names = set(), set()
        address: IPv6Address | None = None
        for attribute in answer.operating:
            if attribute.tag == Tag.ISCSI_NAME and isinstance(attribute.value, str):
                names.add(attribute.value)
            elif attribute.tag == Tag.PORTAL_ADDRESS and isinstance(attribute.value, IPv6Address):
                address = attribute.value
            elif attribute.tag == Tag.PORTAL_PORT and isinstance(attribute.value, int) and address:
                portals.add(OwnPortal(address, attribute.value))
        return cls(frozenset(portals), frozenset(names))


@dataclass(frozen=True, slots=True)
class Notification:
    """An SCN: the node it is meant for, and (event, name) of each node that has changed (section 5.6.5.8)."""

    destination: str
    changes: Sequence[tuple[Scn, str]]

    @classmethod
    def read(cls, payload: bytes) -> "Notification":
        """Read the payload of an SCN."""
        attributes = unpack(payload)
        first = next(attributes, None)
        if first is None or first.tag != Tag.ISCSI_NAME or not isinstance(first.value, str):
            raise IsnsProtocolError("an SCN without a destination", section="5.6.5.8")
        changes: dict[tuple[Scn, str], None] = {}
        event: Scn | None = None
        for attribute in attributes:
            if attribute.tag == Tag.ISCSI_SCN_BITMAP and isinstance(attribute.value, int):
                event = Scn(attribute.value & 0xFF)
            elif attribute.tag == Tag.ISCSI_NAME and isinstance(attribute.value, str):
                if event is None:
                    raise IsnsProtocolError("an SCN that names a node before the event", section="5.6.5.8")
                changes[event, attribute.value] = None
        return cls(first.value, tuple(changes))

    def acknowledgement(self) -> bytes:
        """Return the payload of the response: the destination (section 5.7.5.8)."""
        return pack([Attribute(Tag.ISCSI_NAME, self.destination)])
