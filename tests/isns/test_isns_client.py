"""A client and its server in memory: registration, refreshing, errors, the end."""

from collections.abc import Iterable
from itertools import pairwise

import pytest

from iscsifs.isns.attributes import Attribute, Tag, Value
from iscsifs.isns.messages import SCN_BITMAP
from iscsifs.isns.pdu import Function, Message, Receiver, Status
from iscsifs.isns.states import State
from iscsifs.isns.targets import wire_address
from iscsifs.limits import ISNS_POLL_INTERVAL, ISNS_REFUSED_PAUSE, ISNS_RESPONSE_TIMEOUT
from support.memory_isns import HERE, ME, PORT, Asked, Portal, Server, Talk, attributes, esi, pdu, scn

A, B, C = (f"iqn.2001-04.com.example:{letter}" for letter in "abc")
REG, QRY, NEXT, DEREG, SCN_REG, SCN_DEREG = (Function(number) for number in (1, 2, 3, 4, 5, 6))
DISK: tuple[Portal, ...] = (("192.0.2.1", 3260, 1),)


def asked(talk: Talk, function: int) -> list[Asked]:
    return [asked for asked in talk.server.asked if asked.function == function]


def pairs(given: Iterable[Attribute]) -> list[tuple[int, Value]]:
    return [(attribute.tag, attribute.value) for attribute in given]


# Registration.


@pytest.mark.conformance("ISNS-3.1", "ISNS-3.3")
def test_the_first_registration() -> None:
    talk = Talk(esi_interval=60).connect()
    first = talk.server.asked[0]
    assert first.function == Function.DEV_ATTR_REG
    assert first.source == ME
    assert first.key == []
    address = wire_address(HERE)
    portal = [(16, address), (17, PORT), (19, 60), (20, PORT), (23, PORT)]
    assert pairs(first.operating) == [(1, None), (2, 2), *portal, (32, ME), (33, 2)]
    assert not first.message.replace
    assert talk.client.state is State.REGISTERED


@pytest.mark.conformance("ISNS-3.1")
def test_a_registration_in_an_entity_of_our_own_without_inquiries() -> None:
    talk = Talk(entity_id="lab", esi_interval=None).connect()
    first = talk.server.asked[0]
    assert pairs(first.key) == [(1, "lab")]
    assert [tag for tag, _ in pairs(first.operating)] == [1, 2, 16, 17, 23, 32, 33]
    assert talk.client.entity_id == "lab"


@pytest.mark.conformance("ISNS-3.2")
def test_the_entity_that_the_server_assigns_is_used() -> None:
    talk = Talk(Server(entity="isns:0815")).connect()
    assert talk.client.entity_id == "isns:0815"
    talk.client.leave(talk.now)
    talk.settle()
    assert pairs(asked(talk, DEREG)[-1].operating) == [(1, "isns:0815")]


@pytest.mark.conformance("ISNS-3.4")
@pytest.mark.parametrize("port", [PORT, 39999])
def test_what_a_run_of_before_has_left_is_replaced(port: int) -> None:
    server = Server()
    server.portals[wire_address(HERE), port] = ME
    server.statuses[REG].append(Status.INVALID_REGISTRATION)
    talk = Talk(server).connect()  # nobody listens at the port of before
    first, second = asked(talk, REG)
    assert (first.message.replace, second.message.replace) == (False, True)
    assert pairs(second.key) == [(1, server.entity)]
    assert talk.client.state is State.REGISTERED
    assert list(server.portals) == [(wire_address(HERE), PORT)]


@pytest.mark.conformance("ISNS-3.4")
@pytest.mark.parametrize("how", ["served", "elsewhere", "other node"])
def test_a_registration_that_others_use_is_left_alone(how: str) -> None:
    server = Server({A: [*DISK]})
    address = wire_address(HERE) if how != "elsewhere" else wire_address(type(HERE)("192.0.2.99"))
    server.portals[address, 39999] = ME
    server.statuses[REG].append(Status.INVALID_REGISTRATION)
    if how == "other node":
        server.others = attributes((32, B))
    talk = Talk(server)
    if how == "served":
        talk.served.add((address, 39999))
    talk.connect()
    assert talk.client.state is State.UNREGISTERED
    assert f'"{ME}" is registered in the entity "{server.entity}", which others use' in talk.notes
    assert talk.names == [A]
    talk.wait(ISNS_POLL_INTERVAL * 3)
    assert server.count(REG) == 1
    assert server.count(QRY) == 2 + 4  # of the entity, and of the targets
    assert not {SCN_REG, DEREG} & set(server.functions())


@pytest.mark.conformance("ISNS-3.4", "ISNS-3.8")
def test_a_name_that_two_programs_share_is_not_deregistered_by_one() -> None:
    server = Server()
    other = wire_address(HERE), 39999
    server.portals[other] = ME
    talk = Talk(server)
    talk.served.add(other)
    talk.connect()
    assert (
        f'another program is registered as "{ME}" as well; its targets are asked for every 60 s' in talk.notes
    )
    talk.client.leave(talk.now)
    talk.settle()
    assert [pairs(request.operating) for request in asked(talk, DEREG)] == [
        [(16, wire_address(HERE)), (17, PORT)]
    ]
    assert list(server.portals) == [other]
    assert talk.client.state is State.LEFT


def test_a_dead_portal_of_before_is_deregistered() -> None:
    server = Server()
    server.portals[wire_address(HERE), 39999] = ME
    Talk(server).connect()
    assert list(server.portals) == [(wire_address(HERE), PORT)]


@pytest.mark.conformance("ISNS-3.5")
def test_the_values_of_the_server_are_used() -> None:
    talk = Talk(Server(granted=attributes((6, 3600), (19, 300)))).connect()
    before = talk.server.count(QRY)
    talk.tell(esi())  # so that it is not polled often
    talk.wait(1150)
    own = [request for request in asked(talk, QRY)[before:] if pairs(request.key) == [(32, ME)]]
    assert own == []
    talk.wait(60)
    own = [request for request in asked(talk, QRY)[before:] if pairs(request.key) == [(32, ME)]]
    assert len(own) == 1


@pytest.mark.conformance("ISNS-3.6")
def test_the_registration_is_refreshed_at_every_third_of_its_period() -> None:
    talk = Talk(Server(granted=attributes((6, 30)))).connect()
    talk.tell(esi())
    begun = len(talk.server.asked)
    for _ in range(15):
        seen = len(talk.server.asked)
        talk.wait(10.0)
        assert len(talk.server.asked) > seen
        assert all(request.source == ME for request in talk.server.asked[seen:])
    assert {request.function for request in talk.server.asked[begun:]} == {QRY}
    assert talk.client.state is State.REGISTERED


@pytest.mark.conformance("ISNS-3.7")
@pytest.mark.parametrize("status", [Status.NO_SUCH_ENTRY, Status.SUCCESSFUL])
def test_a_registration_that_is_gone_is_made_again(status: int) -> None:
    server = Server({A: [*DISK]}, granted=attributes((6, 30)))
    talk = Talk(server).connect()
    server.forget()
    if status:
        server.statuses[QRY].append(status)
    server.asked.clear()
    talk.wait(11)
    assert server.functions()[1:] == [REG, QRY, SCN_REG, QRY]
    assert talk.client.state is State.REGISTERED
    assert talk.names == [A]
    assert len(talk.reports) == 1


@pytest.mark.conformance("ISNS-3.7", "ISNS-7.4")
def test_a_server_that_has_forgotten_us_is_not_believed_that_the_targets_are_gone() -> None:
    server = Server({A: [*DISK]}, granted=attributes((6, 30)))
    talk = Talk(server).connect()
    server.forget()
    server.targets.clear()
    talk.wait(11)
    assert server.is_registered
    assert talk.names == [A]
    talk.wait(ISNS_POLL_INTERVAL)
    assert talk.names == []


@pytest.mark.conformance("ISNS-3.8")
def test_the_end_deregisters_the_entity() -> None:
    talk = Talk().connect()
    talk.server.asked.clear()
    talk.client.leave(talk.now)
    talk.settle()
    assert talk.server.functions() == [QRY, SCN_DEREG, DEREG]
    assert pairs(talk.server.asked[1].key) == [(32, ME)]
    assert pairs(talk.server.asked[2].operating) == [(1, talk.server.entity)]
    assert talk.client.state is State.LEFT
    assert talk.client.deadline is None


@pytest.mark.conformance("ISNS-3.8")
@pytest.mark.parametrize("status", [Status.NO_SUCH_ENTRY, Status.SOURCE_UNKNOWN, Status.INTERNAL_ERROR])
def test_whatever_a_deregistration_is_answered_it_is_the_end(status: int) -> None:
    talk = Talk().connect()
    for function in QRY, SCN_DEREG, DEREG:
        talk.server.statuses[function].append(status)
    talk.client.leave(talk.now)
    talk.settle()
    assert talk.client.state is State.LEFT
    assert talk.notes == []


@pytest.mark.conformance("ISNS-3.8")
def test_a_node_in_an_entity_with_other_nodes_leaves_alone() -> None:
    talk = Talk(Server(others=attributes((32, B))), entity_id="lab").connect()
    talk.client.leave(talk.now)
    talk.settle()
    assert pairs(asked(talk, DEREG)[0].operating) == [(16, wire_address(HERE)), (17, PORT), (32, ME)]


def test_the_end_while_the_registration_has_no_answer_deregisters_what_may_be_there() -> None:
    talk = Talk(Server(is_silent=True)).connect()
    talk.server.is_silent = False
    talk.server.portals[wire_address(HERE), PORT] = ME  # it was done
    talk.client.leave(talk.now)
    talk.settle()
    assert pairs(asked(talk, DEREG)[0].operating) == [(1, talk.server.entity)]
    assert talk.client.state is State.LEFT


def test_the_end_without_a_connection_is_the_end() -> None:
    talk = Talk()
    talk.client.leave(talk.now)
    assert talk.client.state is State.LEFT


# Status codes.


@pytest.mark.conformance("ISNS-6.3")
def test_without_inquiries_where_the_server_has_none() -> None:
    server = Server(granted=attributes((6, 30)))
    server.statuses[REG].append(Status.ESI_NOT_AVAILABLE)
    talk = Talk(server).connect()
    first, second = asked(talk, REG)
    assert {19, 20} <= {tag for tag, _ in pairs(first.operating)}
    assert not {19, 20} & {tag for tag, _ in pairs(second.operating)}
    assert talk.client.state is State.REGISTERED
    seen = server.count(QRY)
    talk.wait(10)
    assert server.count(QRY) == seen + 1  # refreshed by the period


@pytest.mark.conformance("ISNS-7.1")
@pytest.mark.parametrize(
    ("named", "left"), [([(23, None)], {16, 17, 19, 20}), ([], {16, 17}), ([(2, 2)], {16, 17})]
)
def test_an_attribute_that_is_not_implemented_is_left_out_once(
    named: list[tuple[int, Value]], left: set[int]
) -> None:
    server = Server()
    server.statuses[REG].append(Status.ATTRIBUTE_NOT_IMPLEMENTED)
    server.replies[REG].append(attributes((0, None), *named))
    talk = Talk(server).connect()
    _, second = asked(talk, REG)
    assert {tag for tag, _ in pairs(second.operating)} & {16, 17, 19, 20, 23} == left
    assert talk.client.state is State.REGISTERED


@pytest.mark.conformance("ISNS-7.1", "ISNS-7.2")
@pytest.mark.parametrize("status", [1, 2, 5, 7, 8, 10, 18, 22, 23, 24])
def test_a_registration_that_is_refused_is_named_and_not_repeated(status: int) -> None:
    server = Server({A: [*DISK]})
    server.statuses[REG].extend([status] * 9)
    talk = Talk(server).connect()
    (note,) = talk.notes
    assert f"the server refuses the registration: status {status} (" in note
    assert talk.client.state is State.UNREGISTERED
    assert talk.names == [A]
    talk.wait(ISNS_REFUSED_PAUSE - 1)
    payloads = [request.message.payload for request in asked(talk, REG)]
    assert len(payloads) == len(set(payloads)) == (2 if status == 18 else 1)
    assert talk.notes == [note]


@pytest.mark.conformance("ISNS-7.1", "ISNS-7.2")
@pytest.mark.parametrize("status", [1, 2, 5, 7, 8, 10, 18, 22, 23, 24])
def test_a_query_that_is_refused_is_named_and_not_repeated(status: int) -> None:
    server = Server({A: [*DISK]}, granted=attributes((6, 3600)))
    talk = Talk(server).connect()
    server.statuses[QRY].append(status)
    talk.wait(ISNS_POLL_INTERVAL)
    (note,) = talk.notes
    assert f"status {status} (" in note
    assert "the next attempt is in 600 s" in note
    assert talk.names == [A]
    queries = [request for request in asked(talk, QRY) if pairs(request.key) == [(33, 1)]]
    talk.wait(ISNS_REFUSED_PAUSE - ISNS_POLL_INTERVAL)
    assert [request for request in asked(talk, QRY) if pairs(request.key) == [(33, 1)]] == queries


@pytest.mark.conformance("ISNS-7.2")
@pytest.mark.parametrize("status", [Status.INTERNAL_ERROR, Status.BUSY])
def test_a_busy_server_is_asked_again_with_growing_pauses(status: int) -> None:
    server = Server({A: [*DISK]})
    server.statuses[REG].extend([status] * 5)
    talk = Talk(server).connect()
    moments = [talk.now]
    while talk.client.state is not State.REGISTERED:
        seen = server.count(REG)
        while server.count(REG) == seen:
            talk.wait(0.1)
        moments.append(talk.now)
    pauses = [later - earlier for earlier, later in pairwise(moments)]
    assert pauses == pytest.approx([1, 2, 4, 8, 16], abs=0.2)  # times 0.5 to 1.5
    assert talk.names == [A]


@pytest.mark.conformance("ISNS-7.2")
def test_an_unknown_source_is_registered_first() -> None:
    server = Server({A: [*DISK]})
    talk = Talk(server).connect()
    server.statuses[QRY].append(Status.SOURCE_UNKNOWN)
    talk.wait(ISNS_POLL_INTERVAL)
    assert server.count(REG) == 1
    talk.wait(1.0)
    assert server.count(REG) == 2
    assert talk.names == [A]


@pytest.mark.conformance("ISNS-7.2")
def test_a_server_to_which_we_are_always_unknown_is_asked_less_and_less() -> None:
    server = Server()
    talk = Talk(server).connect()
    server.statuses[QRY].extend([Status.SOURCE_UNKNOWN] * 1000)
    talk.wait(600)
    assert server.count(REG) < 20


# Answers that are none.


@pytest.mark.conformance("ISNS-2.2")
def test_an_answer_of_a_wrong_format_is_dropped_and_asked_for_again() -> None:
    server = Server({A: [*DISK]}, granted=attributes((6, 3600)))
    talk = Talk(server).connect()
    del server.targets[A]
    take, seen = server.take, []

    def spoil(data: bytes) -> bytes:
        (message,) = Receiver().receive(data, 0.0)
        seen.append(message)
        return pdu(bytes(4) + b"\0\0\0\x10\0\0\0\4abcd", 0x8002, xid=message.transaction_id)

    server.take = spoil  # type: ignore[method-assign]
    talk.wait(ISNS_POLL_INTERVAL)
    assert len(seen) == 1
    assert talk.notes == ["attribute 16 of 4 bytes (RFC 4171 section 6.1); the next attempt is in 1 s"]
    assert talk.names == [A]
    server.take = take  # type: ignore[method-assign]
    talk.wait(1.0)
    assert talk.names == []


@pytest.mark.conformance("ISNS-1.4", "ISNS-8.1")
def test_a_message_that_does_not_end_in_time_ends_the_connection() -> None:
    talk = Talk().connect()
    for byte in pdu(bytes(65532))[:9]:  # a byte a second
        talk.client.receive(bytes([byte]), talk.now)
        talk.wait(1.0)
        assert talk.closed is None
    talk.client.receive(b"\0", talk.now)
    talk.wait(1.0)
    assert talk.closed == "a message has not been complete in time"


def test_a_request_without_an_answer_ends_the_connection() -> None:
    talk = Talk().connect()
    talk.server.is_silent = True
    talk.wait(ISNS_POLL_INTERVAL + ISNS_RESPONSE_TIMEOUT)
    assert talk.closed == "no answer to DEV_ATTR_QRY in 15 s"


def test_bytes_that_are_no_message_end_the_connection() -> None:
    talk = Talk().connect()
    talk.client.receive(b"HTTP/1.1 400 Bad Request\r\n", talk.now)
    talk.settle()
    assert talk.closed is not None
    assert "version 18516" in talk.closed


@pytest.mark.conformance("ISNS-1.2")
def test_responses_to_nothing_are_noted_once() -> None:
    talk = Talk().connect()
    for _ in range(100):
        talk.client.receive(pdu(bytes(4), xid=4711), talk.now)
    talk.settle()
    assert talk.notes == ["a response to no request of ours was dropped"]


# Notifications and inquiries as messages.


@pytest.mark.conformance("ISNS-5.1")
def test_notifications_are_asked_for_after_the_registration() -> None:
    talk = Talk().connect()
    assert talk.server.functions() == [REG, QRY, SCN_REG, QRY]
    (request,) = asked(talk, SCN_REG)
    assert (pairs(request.key), pairs(request.operating)) == ([(32, ME)], [(35, 0x5C)])
    assert SCN_BITMAP == 0x5C


@pytest.mark.conformance("ISNS-6.1")
def test_an_inquiry_is_answered_with_its_own_attributes() -> None:
    talk = Talk().connect()
    inquiry = esi(xid=77)
    answer = talk.tell(inquiry)
    assert answer == Message(0x800D, 77, inquiry.payload, 0)
    assert answer.pack()[12:] == bytes(4) + inquiry.payload


@pytest.mark.conformance("ISNS-5.3")
def test_messages_on_the_connection_for_queries_are_answered_there() -> None:
    talk = Talk().connect()
    talk.client.receive(scn((4, A), xid=5).pack() + esi(xid=6).pack(), talk.now)
    data = talk.client.data_to_send()
    first, second = Receiver().receive(data, 0.0)
    destination = (32).to_bytes(4, "big") + (28).to_bytes(4, "big") + ME.encode() + bytes(2)
    assert first == Message(0x8008, 5, destination, 0)
    assert (second.function, second.transaction_id, second.status) == (0x800D, 6, 0)


@pytest.mark.conformance("ISNS-5.6")
def test_a_notification_for_somebody_else_is_refused() -> None:
    talk = Talk().connect()
    answer = talk.tell(scn((8, A), to="iqn.2001-04.com.example:\x1bother"))
    assert answer is not None
    assert (answer.function, answer.status) == (0x8008, Status.SOURCE_UNKNOWN)
    assert talk.notes == [
        'a notification for "iqn.2001-04.com.example:\\x1bother", which is not us, was refused'
    ]


@pytest.mark.parametrize(
    "payload", [b"", b"\0\0\0\x20\0\0\0\4a\0\0\0\0\0\0\x20\0\0\0\4b\0\0\0", b"junk", bytes(12)]
)
def test_a_notification_that_is_none_is_answered_with_a_format_error(payload: bytes) -> None:
    talk = Talk().connect()
    answer = talk.tell(Message(Function.SCN, 1, payload))
    assert answer is not None
    assert answer.status == Status.MESSAGE_FORMAT_ERROR
    assert len(talk.notes) == 1


@pytest.mark.conformance("ISNS-8.1")
@pytest.mark.parametrize("function", [Function.SCN, Function.ESI])
def test_an_inquiry_of_a_megabyte_is_refused(function: Function) -> None:
    talk = Talk().connect()
    answer = talk.tell(Message(function, 1, bytes(1 << 20)))
    assert answer is not None
    assert answer.status == Status.MESSAGE_FORMAT_ERROR
    assert len(answer.pack()) == 16
    answer = talk.tell(Message(Function.ESI, 1, bytes(1 << 15)))
    assert answer is not None
    assert len(answer.pack()) == 16 + (1 << 15)


@pytest.mark.conformance("ISNS-8.2")
@pytest.mark.parametrize("text", ["\udcff" * 255, "\x1b" * 255, "\U0001f4be" * 63])
def test_an_entity_whose_name_is_none_is_used_as_it_is(text: str) -> None:
    talk = Talk(Server(entity=text)).connect()
    assert talk.client.state is State.REGISTERED
    talk.client.leave(talk.now)
    talk.settle()
    assert pairs(asked(talk, DEREG)[0].operating) == [(1, text)]


@pytest.mark.conformance("ISNS-8.2")
@pytest.mark.parametrize("name", ["\udcff" * 224, "n" * 224, "", "/../"])
def test_a_walk_over_names_that_are_none(name: str) -> None:
    talk = Talk(Server({name: [*DISK], "\udcff\udcff": [*DISK]}))
    talk.server.statuses[QRY].extend([0, Status.INTERNAL_ERROR])
    talk.connect()
    assert set(talk.names) == {name, "\udcff\udcff"}


def test_a_request_that_clients_do_not_take_is_answered() -> None:
    talk = Talk().connect()
    answer = talk.tell(Message(0x0009, 1))
    assert answer == Message(0x8009, 1, b"", Status.MESSAGE_NOT_SUPPORTED)
    assert talk.tell(Message(0x8001, 1, b"", 0)) is None


def test_the_registered_node_is_an_initiator() -> None:
    talk = Talk().connect()
    assert asked(talk, REG)[0].value(Tag.ISCSI_NODE_TYPE) == 2
