"""An iSNS server in memory, which keeps a log of what it is asked, and a client that talks to it."""

import struct
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address

from iscsifs.isns.attributes import Attribute, NodeType, Scn, Tag, Value, pack, unpack
from iscsifs.isns.client import Client, ClientConfig, Close, Event, Note, TargetsChanged
from iscsifs.isns.messages import DELIMITER
from iscsifs.isns.pdu import Function, Message, Receiver, Status
from iscsifs.isns.targets import IsnsTarget, wire_address

ME = "iqn.2001-04.com.example:me"
HERE = IPv4Address("192.0.2.10")
PORT = 40000

Portal = tuple[str, int, int | None]
"""Address, port and portal group tag of a target's portal."""


def attributes(*pairs: tuple[int, Value]) -> list[Attribute]:
    return [Attribute(tag, value) for tag, value in pairs]


def pdu(payload: bytes, function: int = 0x8002, flags: int = 0x4C00, xid: int = 1, seq: int = 0) -> bytes:
    """A PDU as the header says it."""
    return struct.pack(">HHHHHH", 1, function, len(payload), flags, xid, seq) + payload


def response(request: Message, status: int, attributes: Sequence[Attribute] = ()) -> bytes:
    """A response as a server sends it: in several PDUs, where it is too long for one."""
    payload = struct.pack(">I", status) + pack(attributes)
    pieces = [payload[start : start + 65532] for start in range(0, len(payload), 65532)]
    flags = [0x4000 for _ in pieces]
    flags[0] |= 0x0400
    flags[-1] |= 0x0800
    function, xid = request.function | 0x8000, request.transaction_id
    whole = zip(pieces, flags, strict=True)
    return b"".join(pdu(piece, function, flag, xid, seq) for seq, (piece, flag) in enumerate(whole))


def scn(*changes: tuple[int, str], to: str = ME, xid: int = 7) -> Message:
    """A state change notification."""
    groups = [pair for event, name in changes for pair in ((35, event), (32, name))]
    return Message(Function.SCN, xid, pack(attributes((32, to), (4, 1234), *groups)))


def esi(xid: int = 9) -> Message:
    """An entity status inquiry."""
    payload = attributes((4, 99), (1, "isns.entity.0001"), (16, wire_address(HERE)), (17, PORT))
    return Message(Function.ESI, xid, pack(payload))


@dataclass(frozen=True)
class Asked:
    """A request as the server has taken it."""

    message: Message
    source: str
    key: list[Attribute]
    operating: list[Attribute]

    @property
    def function(self) -> int:
        return self.message.function

    def value(self, tag: int) -> Value:
        return next((a.value for a in self.operating if a.tag == tag), None)

    @classmethod
    def read(cls, message: Message) -> "Asked":
        source, *rest = unpack(message.payload)
        assert source.tag == Tag.ISCSI_NAME
        assert isinstance(source.value, str)
        cut = rest.index(DELIMITER)
        return cls(message, source.value, rest[:cut], rest[cut + 1 :])


@dataclass
class Server:
    """What it knows, and how it misbehaves: *statuses* are those of the next answers to a function."""

    targets: dict[str, list[Portal]] = field(default_factory=dict)
    entity: str = "isns.entity.0001"
    others: list[Attribute] = field(default_factory=list)
    granted: list[Attribute] = field(default_factory=list)
    statuses: defaultdict[int, deque[int]] = field(default_factory=lambda: defaultdict(deque))
    replies: defaultdict[int, deque[list[Attribute]]] = field(default_factory=lambda: defaultdict(deque))
    longest: int = 1 << 30
    is_silent: bool = False
    asked: list[Asked] = field(default_factory=list)
    portals: dict[tuple[Value, Value], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._receiver = Receiver()

    @property
    def is_registered(self) -> bool:
        return bool(self.portals)

    def functions(self) -> list[int]:
        return [asked.function for asked in self.asked]

    def count(self, function: int) -> int:
        return self.functions().count(function)

    def forget(self) -> None:
        """Begin anew, as after a restart with an empty database."""
        self.portals.clear()

    def take(self, data: bytes) -> bytes:
        """Take a piece of the stream, and return the answers."""
        answers = b""
        for message in self._receiver.receive(data, 0.0):
            if message.is_response:
                continue
            assert len(message.pack()) <= 8192
            asked = Asked.read(message)
            self.asked.append(asked)
            if not self.is_silent:
                answers += self._answer(asked)
        return answers

    def _answer(self, asked: Asked) -> bytes:
        status: int = self.statuses[asked.function].popleft() if self.statuses[asked.function] else 0
        if status or self.replies[asked.function]:
            replies = self.replies[asked.function]
            return response(asked.message, status, replies.popleft() if replies else ())
        handler: dict[int, Callable[[Asked], tuple[int, list[Attribute]]]] = {
            Function.DEV_ATTR_REG: self._register,
            Function.DEV_ATTR_QRY: self._query,
            Function.DEV_GET_NEXT: self._next,
            Function.DEV_DEREG: self._deregister,
        }
        if asked.function not in handler:
            return response(asked.message, 0)
        status, found = handler[asked.function](asked)
        answer = response(asked.message, status, found)
        return answer if len(answer) <= self.longest else response(asked.message, Status.INTERNAL_ERROR)

    def _register(self, asked: Asked) -> tuple[int, list[Attribute]]:
        if asked.message.replace:
            self.portals.clear()
        self.portals[asked.value(16), asked.value(17)] = asked.source
        if isinstance(named := asked.value(1), str):
            self.entity = named
        entity = Attribute(Tag.ENTITY_ID, self.entity)
        return 0, [entity, DELIMITER, entity, *self.granted]

    def _deregister(self, asked: Asked) -> tuple[int, list[Attribute]]:
        if asked.value(1) is not None:
            self.portals.clear()
        self.portals.pop((asked.value(16), asked.value(17)), None)
        return 0, []

    def _query(self, asked: Asked) -> tuple[int, list[Attribute]]:
        (key,) = asked.key
        found: list[Attribute] = []
        if key.tag == Tag.ISCSI_NODE_TYPE:
            for name in self.targets:
                found += self.describe(name)
        elif key.tag == Tag.ENTITY_ID:
            for address, port in self.portals:
                found += attributes((16, address), (17, port))
            found += [*attributes(*((32, name) for name in set(self.portals.values()))), *self.others]
        elif key.value == asked.source:
            if self.is_registered:
                found = [*attributes((1, self.entity)), *self.granted]
        elif isinstance(key.value, str) and key.value in self.targets:
            found = self.describe(key.value)
        return 0, [key, DELIMITER, *found]

    def _next(self, asked: Asked) -> tuple[int, list[Attribute]]:
        (key,) = asked.key
        names = sorted(name for name in self.targets if key.value is None or name > str(key.value))
        return (0, attributes((32, names[0]), (0, None))) if names else (Status.NO_SUCH_ENTRY, [])

    def describe(self, name: str) -> list[Attribute]:
        """The attributes of a target, in the order of the query."""
        found = attributes((32, name), (33, NodeType.TARGET))
        for address, port, tag in self.targets[name]:
            real = wire_address(ip_address(address))
            found += attributes((16, real), (17, port), (49, real), (50, port), (51, tag))
        return found


class Talk:
    """A client and its server, at a time that the test moves."""

    def __init__(self, server: Server | None = None, **config: object) -> None:
        self.server = server or Server()
        self.now = 1000.0
        self.client = Client(ClientConfig(ME, **config), lambda: 0.5)  # type: ignore[arg-type]
        self.events: list[Event] = []
        self.served: set[tuple[IPv6Address, int]] = set()

    def connect(self, port: int = PORT, address: str = str(HERE)) -> "Talk":
        self.server.__post_init__()
        self.client.connected(self.now, ip_address(address), port)
        return self.settle()

    def disconnect(self) -> None:
        self.client.disconnected(self.now)
        self.settle()

    def settle(self) -> "Talk":
        """Let all be said that there is to say now."""
        while True:
            self.events += self.client.take_events()
            if (portal := self.client.probe) is not None:
                self.client.probed((portal.address, portal.port) in self.served, self.now)
            elif data := self.client.data_to_send():
                if answers := self.server.take(data):
                    self.client.receive(answers, self.now)
            else:
                return self

    def wait(self, seconds: float) -> "Talk":
        """Let time pass, with all that comes due."""
        end = self.now + seconds
        while (deadline := self.client.deadline) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.client.tick(self.now)
            self.settle()
            if any(isinstance(event, Close) for event in self.events):
                break
        self.now = max(self.now, end)
        return self

    def tell(self, message: Message) -> Message | None:
        """Let the server send *message* to the port of the client."""
        answer = self.client.inquire(message, self.now)
        self.settle()
        return answer

    def add(self, name: str, *portals: Portal, event: int = Scn.ADDED | Scn.UPDATED) -> None:
        """Register a target, and notify the client."""
        self.server.targets[name] = list(portals) or [("192.0.2.1", 3260, 1)]
        self.tell(scn((event, name)))

    def remove(self, name: str) -> None:
        del self.server.targets[name]
        self.tell(scn((Scn.REMOVED, name)))

    @property
    def reports(self) -> list[tuple[IsnsTarget, ...]]:
        return [event.targets for event in self.events if isinstance(event, TargetsChanged)]

    @property
    def names(self) -> list[str]:
        """The targets that the client has reported last."""
        return [target.name for target in self.reports[-1]]

    @property
    def notes(self) -> list[str]:
        return [event.sentence for event in self.events if isinstance(event, Note)]

    @property
    def closed(self) -> str | None:
        return next((event.reason for event in self.events if isinstance(event, Close)), None)
