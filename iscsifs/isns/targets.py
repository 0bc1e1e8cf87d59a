"""Which targets an answer tells of, and by which portals each can be reached (sections 3.4 and 5.6.5.2).

The answer repeats, for each node, the portals of its entity. Whether a node can be reached by a portal, and
with which portal group tag, is said by a portal group object: it names both, or stands beside the portal.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from iscsifs.errors import printable
from iscsifs.isns.attributes import UDP, Attribute, NodeType, Tag
from iscsifs.limits import MAX_ADDRESSES, MAX_TARGETS

ISCSI_PORT: Final = 3260
"""What the port 0 stands for in an entity of iSCSI (section 6.3.2)."""

DEFAULT_TAG: Final = 1
"""The portal group tag of a pair without a portal group object (section 5.6.5.1)."""

_PORTAL_GROUP: Final = frozenset({Tag.PG_ISCSI_NAME, Tag.PG_PORTAL_ADDRESS, Tag.PG_PORTAL_PORT, Tag.PG_TAG})

_Address = IPv4Address | IPv6Address
_PortalKey = tuple[IPv6Address, int]


@dataclass(frozen=True, slots=True)
class IsnsPortal:
    """A portal of a target, and the tag of its portal group."""

    address: _Address
    port: int
    tag: int


@dataclass(frozen=True, slots=True)
class IsnsTarget:
    """A target by its name, which nobody has checked, and its portals in the order of the answer."""

    name: str
    portals: tuple[IsnsPortal, ...]


@dataclass(slots=True)
class _Node:
    """A node while the answer is read."""

    type: int = 0
    portals: dict[_PortalKey, None] = field(default_factory=dict)


class _Reader:
    """Takes the attributes of an answer one after the other."""

    def __init__(self) -> None:
        self.nodes: dict[str, _Node] = {}
        self.tags: dict[str, dict[_PortalKey, int | None]] = {}
        self.more = False  # than MAX_TARGETS
        self._name: str | None = None
        self._node = _Node()  # that of attributes before the first name
        self._address: IPv6Address | None = None
        self._portal: _PortalKey | None = None
        self._group: dict[int, Attribute] = {}

    def take(self, attribute: Attribute) -> None:
        """Take the next attribute."""
        value = attribute.value
        if attribute.tag in _PORTAL_GROUP:
            if attribute.tag in self._group:
                self.end_group()
            self._group[attribute.tag] = attribute
            return
        self.end_group()
        if attribute.tag == Tag.ISCSI_NAME and isinstance(value, str):
            self._begin_node(value)
        elif attribute.tag == Tag.ISCSI_NODE_TYPE and isinstance(value, int):
            self._node.type = value
        elif attribute.tag == Tag.PORTAL_ADDRESS:
            self._address = value if isinstance(value, IPv6Address) else None
        elif attribute.tag == Tag.PORTAL_PORT and self._address is not None:
            self._portal = self._address, value if isinstance(value, int) else 0
            self._node.portals[self._portal] = None

    def end_group(self) -> None:
        """Note the portal group object whose attributes have come: they may be in any order."""
        group, self._group = self._group, {}
        if not group:
            return
        named = group.get(Tag.PG_ISCSI_NAME)
        name = named.value if named is not None else self._name
        address, port = group.get(Tag.PG_PORTAL_ADDRESS), group.get(Tag.PG_PORTAL_PORT)
        portal = self._portal
        if address is not None and isinstance(address.value, IPv6Address):
            number = port.value if port is not None and isinstance(port.value, int) else 0
            portal = address.value, number
        if not isinstance(name, str) or portal is None:
            return
        tag = group[Tag.PG_TAG].value if Tag.PG_TAG in group else None
        self.tags.setdefault(name, {})[portal] = tag & 0xFFFF if isinstance(tag, int) else None

    def _begin_node(self, name: str) -> None:
        """Go on with the node *name*; no portal of the one before is its own."""
        self._name, self._address, self._portal = name, None, None
        known = self.nodes.get(name)
        if known is None:
            known = _Node()
            if len(self.nodes) < MAX_TARGETS:
                self.nodes[name] = known
            else:
                self.more = True
        self._node = known


def read_targets(attributes: Iterable[Attribute], note: Callable[[str], None]) -> dict[str, IsnsTarget]:
    """Return the targets that the operating *attributes* of an answer tell of, by name.

    What cannot be used is left out, and *note* is given a sentence about it.
    """
    reader = _Reader()
    for attribute in attributes:
        reader.take(attribute)
    reader.end_group()
    if reader.more:
        note(f"it names more than {MAX_TARGETS} targets; the others are left out")
    targets = {}
    for name, node in reader.nodes.items():
        if node.type & NodeType.TARGET:
            portals = _portals(name, node, reader.tags.get(name, {}), note)
            targets[name] = IsnsTarget(name, portals)
    return targets


def _portals(
    name: str, node: _Node, tags: dict[_PortalKey, int | None], note: Callable[[str], None]
) -> tuple[IsnsPortal, ...]:
    """Return the portals of one node: those beside it, and those that portal group objects give it."""
    found: dict[IsnsPortal, None] = {}
    for key in {**node.portals, **dict.fromkeys(tags)}:
        tag = tags.get(key, DEFAULT_TAG)
        if tag is None:
            continue  # a portal group object without a tag: no relationship (section 3.4)
        if len(found) == MAX_ADDRESSES:
            note(f'"{printable(name)}" has more than {MAX_ADDRESSES} portals; the others are left out')
            break
        address, port = usable_address(key[0]), key[1]
        if address is None:
            note(f'a portal of "{printable(name)}" is left out: nothing can be reached at {key[0]}')
        elif port & UDP:
            note(f'a portal of "{printable(name)}" is left out: its port is one of UDP')
        else:
            found[IsnsPortal(address, port & 0xFFFF or ISCSI_PORT, tag)] = None
    return tuple(found)


def usable_address(address: IPv6Address) -> _Address | None:
    """Return what *address* stands for, None where nobody can connect to it.

    IPv4 addresses are mapped (::ffff:a.b.c.d, section 6.3.1), or compatible (::a.b.c.d): isnsadm registers
    those.
    """
    real: _Address = address
    if address.ipv4_mapped is not None:
        real = address.ipv4_mapped
    elif 1 << 24 <= int(address) < 1 << 32:
        real = IPv4Address(int(address))
    if real.is_unspecified or real.is_multicast or (isinstance(real, IPv6Address) and real.is_link_local):
        return None
    return real


def wire_address(address: _Address) -> IPv6Address:
    """Return *address* as it is sent: an IPv4 address is mapped (section 6.3.1)."""
    if isinstance(address, IPv4Address):
        return IPv6Address(bytes(10) + b"\xff\xff" + address.packed)
    return IPv6Address(address.packed)
