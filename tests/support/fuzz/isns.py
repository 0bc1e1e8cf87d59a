"""Fuzz harnesses for what an iSNS server sends: RFC 4171."""

from ipaddress import IPv4Address

from iscsifs.errors import IsnsProtocolError
from iscsifs.isns.attributes import FORMS, Attribute, Tag, pack, unpack
from iscsifs.isns.client import Client, ClientConfig, Close, Note, TargetsChanged
from iscsifs.isns.messages import Answer, Entity, Notification
from iscsifs.isns.pdu import MAX_REQUEST_LENGTH, Receiver
from iscsifs.isns.targets import read_targets
from iscsifs.limits import MAX_ADDRESSES, MAX_TARGETS
from support.fuzz.checks import allowed, is_line

ME = "iqn.2001-04.com.example:me"


def isns_payload(data: bytes) -> None:
    """The payload of a message: attributes, an answer, a notification, an entity, targets."""
    found: list[Attribute] = []
    with allowed(IsnsProtocolError):
        found = list(unpack(data))
        answer = Answer.read(0, data)
        assert len(answer.key) + len(answer.operating) in (len(found), len(found) - 1)
        Entity.read(answer)
    with allowed(IsnsProtocolError):
        notification = Notification.read(data)
        assert len(notification.changes) * 12 <= len(data)
    assert all(attribute.tag in FORMS or attribute.tag == Tag.DELIMITER for attribute in found)
    notes: list[str] = []
    targets = read_targets(found, notes.append)
    assert len(targets) <= MAX_TARGETS
    assert all(map(is_line, notes))
    for name, target in targets.items():
        assert name == target.name
        assert len(target.portals) <= MAX_ADDRESSES
        assert all(0 < portal.port < 1 << 16 and 0 <= portal.tag < 1 << 16 for portal in target.portals)
    assert list(unpack(pack(found))) == found


def isns_stream(data: bytes) -> None:
    """What a server sends, in pieces: on the connection for queries, and then to our port."""
    size, stream = (data[0] % 64 + 1, data[1:]) if data else (1, b"")
    client = Client(ClientConfig(ME), lambda: 0.5)
    client.connected(0.0, IPv4Address("192.0.2.10"), 40000)
    now, is_open = 0.0, True
    for start in range(0, len(stream), size):
        now += 0.01
        if is_open:
            client.receive(stream[start : start + size], now)
            is_open = _settle(client, now)
    if is_open:
        client.tick(now + 5.0)
        _settle(client, now + 5.0)
    receiver = Receiver()
    with allowed(IsnsProtocolError):
        for message in receiver.receive(stream, now):
            response = client.inquire(message, now)
            assert response is None or response.transaction_id == message.transaction_id
            _settle(client, now)
    client.leave(now + 6.0)
    _settle(client, now + 6.0)


def _settle(client: Client, now: float) -> bool:
    """Check what comes out of *client*; return whether the connection stays open."""
    is_open = True
    while True:
        for event in client.take_events():
            if isinstance(event, TargetsChanged):
                assert len(event.targets) <= MAX_TARGETS
            elif isinstance(event, Note):
                assert is_line(event.sentence), event.sentence
            elif isinstance(event, Close):
                assert is_line(event.reason), event.reason
                is_open = False
        if client.probe is not None:
            client.probed(False, now)
        elif data := client.data_to_send():
            for message in Receiver().receive(data, now):
                assert len(message.payload) + 12 <= MAX_REQUEST_LENGTH or message.is_response
        else:
            return is_open
