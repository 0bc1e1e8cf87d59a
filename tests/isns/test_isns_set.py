"""A client and its server in memory: the set of targets, and how it changes."""

import pytest

from iscsifs.isns.attributes import Attribute, Scn, Tag
from iscsifs.isns.pdu import Function, Status
from iscsifs.limits import (
    ISNS_COALESCE,
    ISNS_POLL_INTERVAL,
    ISNS_SETTLE,
    ISNS_SLOW_POLL_INTERVAL,
    MAX_TARGETS,
)
from support.memory_isns import ME, PORT, Asked, Portal, Server, Talk, attributes, esi, scn

A, B, C = (f"iqn.2001-04.com.example:{letter}" for letter in "abc")
QRY, NEXT, SCN_REG = Function.DEV_ATTR_QRY, Function.DEV_GET_NEXT, Function.SCN_REG
DISK: tuple[Portal, ...] = (("192.0.2.1", 3260, 1),)
NEVER = attributes((6, 1_000_000))
"""A registration period in which nothing is refreshed, so that only queries of targets are counted."""


def queries(talk: Talk) -> list[Attribute]:
    """The keys of the queries of targets so far."""
    keys = [asked.key[0] for asked in talk.server.asked if asked.function == QRY]
    return [key for key in keys if key.tag != Tag.ENTITY_ID and key.value != ME]


@pytest.mark.conformance("ISNS-4.1")
def test_the_query_of_targets() -> None:
    talk = Talk(Server({A: [*DISK]})).connect()
    query: Asked = talk.server.asked[-1]
    assert (query.function, query.source) == (QRY, ME)
    assert query.key == [Attribute(33, 1)]
    assert query.operating == [Attribute(tag) for tag in (32, 33, 34, 16, 17, 49, 50, 51)]
    assert talk.names == [A]
    talk.settle()
    assert len(talk.reports) == 1


@pytest.mark.conformance("ISNS-4.6")
@pytest.mark.parametrize("status", [Status.SUCCESSFUL, Status.NO_SUCH_ENTRY])
def test_no_target_is_an_empty_set_and_no_error(status: int) -> None:
    server = Server()
    talk = Talk(server)
    if status:
        server.statuses[QRY].extend([0, status])
        server.replies[QRY].extend([[], []])
    talk.connect()
    assert talk.names == []
    talk.wait(ISNS_POLL_INTERVAL - 1)
    assert len(queries(talk)) == 1
    assert talk.notes == []


@pytest.mark.conformance("ISNS-4.7")
def test_an_answer_that_is_too_long_for_the_server_comes_in_many() -> None:
    names = [f"iqn.2001-04.com.example:disk{number:03}" for number in range(500)]
    talk = Talk(Server({name: [*DISK] for name in names}, longest=8192)).connect()
    assert talk.names == names
    assert talk.server.count(NEXT) == 501
    walk = [asked for asked in talk.server.asked if asked.function == NEXT]
    assert walk[0].key == [Attribute(32)]
    assert walk[1].key == [Attribute(32, names[0])]
    assert all(asked.operating == [Attribute(33, 1)] for asked in walk)
    assert talk.notes == []


@pytest.mark.conformance("ISNS-4.8")
def test_a_walk_in_a_circle_ends_and_takes_nothing_away() -> None:
    talk = Talk(Server({A: [*DISK], B: [*DISK], C: [*DISK]}, granted=NEVER)).connect()
    assert talk.names == [A, B, C]
    talk.server.statuses[QRY].append(Status.INTERNAL_ERROR)
    talk.server.replies[NEXT].extend(attributes((32, name), (0, None)) for name in (A, B, A))
    talk.wait(ISNS_POLL_INTERVAL)
    assert talk.server.count(NEXT) == 3
    assert talk.notes == ["it names a target twice where it has to name each once; some may be missing"]
    assert talk.names == [A, B, C]


def test_a_walk_without_a_name_is_an_error() -> None:
    talk = Talk(Server({A: [*DISK]}, longest=1)).connect()
    assert "the server refuses" in talk.notes[0]
    talk = Talk(Server({A: [*DISK]}))
    talk.server.statuses[QRY].extend([0, Status.INTERNAL_ERROR])
    talk.server.replies[NEXT].append(attributes((0, None)))
    talk.connect()
    assert talk.notes == [
        "an answer to DevGetNext without a name (RFC 4171 section 5.7.5.3); the next attempt is in 1 s"
    ]


@pytest.mark.conformance("ISNS-8.2")
def test_a_walk_of_a_million_targets_is_cut() -> None:
    class Endless(Server):
        number = 0

        def _next(self, asked: Asked) -> tuple[int, list[Attribute]]:
            self.number += 1
            return 0, attributes((32, f"iqn.2001-04.com.example:{self.number}"), (0, None))

    server = Endless()
    talk = Talk(server)
    server.statuses[QRY].extend([0, Status.INTERNAL_ERROR])
    talk.connect()
    assert server.number == MAX_TARGETS + 1
    assert talk.notes == [f"it names more than {MAX_TARGETS} targets; the others are left out"]


@pytest.mark.conformance("ISNS-8.2")
def test_a_million_targets_in_one_answer_end_the_connection_and_are_asked_for_one_by_one_then() -> None:
    names = [f"iqn.2001-04.com.example:{number:07}" for number in range(20_000)]
    server = Server({name: [*DISK] for name in names})
    talk = Talk(server).connect()
    assert talk.closed == "a message of more than 1048576 bytes (RFC 4171 section 5.2)"
    talk.disconnect()
    server.targets = {name: [*DISK] for name in names[:20]}
    talk.connect()
    assert server.count(NEXT) == 21
    assert talk.names == names[:20]


@pytest.mark.conformance("ISNS-8.2")
def test_notifications_of_ever_new_targets_are_cut_too() -> None:
    names = [f"iqn.2001-04.com.example:{number}" for number in range(MAX_TARGETS)]
    talk = Talk(Server({name: [*DISK] for name in names}, granted=NEVER)).connect()
    assert len(talk.names) == MAX_TARGETS
    for name in A, B:
        talk.add(name)
        talk.wait(2)
    assert len(talk.names) == MAX_TARGETS


# Notifications.


@pytest.mark.conformance("ISNS-5.4")
def test_one_change_is_one_query_of_that_target() -> None:
    talk = Talk(Server({A: [*DISK]}, granted=NEVER)).connect()
    talk.wait(2)
    talk.add(B, event=0x0C)
    talk.wait(ISNS_SETTLE)
    assert queries(talk)[1:] == [Attribute(32, B)]
    assert talk.names == [A, B]
    talk.wait(ISNS_COALESCE)
    talk.remove(A)
    talk.wait(ISNS_SETTLE)
    assert queries(talk)[2:] == [Attribute(32, A)]
    assert talk.names == [B]


@pytest.mark.conformance("ISNS-5.4")
def test_a_change_of_portals_is_a_change_of_the_set() -> None:
    talk = Talk(Server({A: [*DISK]}, granted=NEVER)).connect()
    talk.wait(2)
    talk.add(A, ("192.0.2.1", 3260, 1), ("192.0.2.2", 3260, 2), event=Scn.UPDATED)
    talk.wait(1)
    (target,) = talk.reports[-1]
    assert [(str(p.address), p.tag) for p in target.portals] == [("192.0.2.1", 1), ("192.0.2.2", 2)]
    talk.tell(scn((Scn.UPDATED, A)))
    talk.wait(2)
    assert len(talk.reports) == 2  # nothing has changed


@pytest.mark.conformance("ISNS-5.4")
def test_a_notification_of_several_groups() -> None:
    talk = Talk(Server({A: [*DISK]}, granted=NEVER)).connect()
    talk.wait(2)
    talk.server.targets.update({B: [*DISK], C: [*DISK]})
    del talk.server.targets[A]
    talk.tell(scn((0x0C, B), (0x10, A), (0x04, C)))
    talk.wait(1)
    assert queries(talk)[1:] == [Attribute(33, 1)]
    assert talk.names == [B, C]


@pytest.mark.conformance("ISNS-5.5")
@pytest.mark.parametrize("event", [Scn.REMOVED, Scn.ADDED, Scn.UPDATED, Scn.MEMBER_REMOVED])
def test_what_a_fresh_query_shows_counts_and_not_the_event(event: Scn) -> None:
    talk = Talk(Server({A: [*DISK], B: [*DISK]}, granted=NEVER)).connect()
    talk.wait(2)
    del talk.server.targets[A]  # it has left the discovery domain
    talk.tell(scn((event, A), (event, B)))
    talk.wait(2)
    assert talk.names == [B]


def test_a_notification_about_ourselves_is_a_query_of_all() -> None:
    talk = Talk(Server({A: [*DISK]}, granted=NEVER)).connect()
    talk.wait(2)
    del talk.server.targets[A]  # we have left the discovery domain
    talk.tell(scn((Scn.UPDATED, ME)))
    talk.wait(2)
    assert talk.names == []


@pytest.mark.conformance("ISNS-5.6")
def test_ten_thousand_notifications_in_a_second_are_one_query() -> None:
    talk = Talk(Server({A: [*DISK]}, granted=NEVER)).connect()
    talk.wait(2)
    before = len(queries(talk))
    for number in range(10_000):
        answer = talk.tell(scn((Scn.UPDATED, f"iqn.2001-04.com.example:{number}"), xid=number))
        assert answer is not None
        assert answer.status == 0
        talk.wait(0.0001)
    talk.wait(0.5)
    assert len(queries(talk)) - before <= 2
    talk.wait(5)
    assert len(queries(talk)) - before <= 3


@pytest.mark.conformance("ISNS-5.2")
@pytest.mark.parametrize("status", [Status.SCN_REGISTRATION_REJECTED, Status.MESSAGE_NOT_SUPPORTED])
def test_a_server_that_does_not_notify_us_is_asked_slowly(status: int) -> None:
    server = Server({A: [*DISK]}, granted=NEVER)
    server.statuses[SCN_REG].append(status)
    talk = Talk(server).connect()
    assert len(talk.notes) == 1
    assert f"the server does not notify us: status {status} " in talk.notes[0]
    talk.tell(esi())
    for count in range(1, 5):
        assert len(queries(talk)) == count
        talk.wait(ISNS_POLL_INTERVAL)
    server.targets[B] = [*DISK]
    talk.wait(ISNS_POLL_INTERVAL)
    assert talk.names == [A, B]
    assert len(talk.notes) == 1


@pytest.mark.conformance("ISNS-5.2")
def test_a_server_that_has_never_reached_us_is_asked_as_often_until_it_does() -> None:
    server = Server({A: [*DISK]}, granted=NEVER)
    talk = Talk(server).connect()
    talk.wait(ISNS_POLL_INTERVAL * 5)
    assert len(queries(talk)) == 6
    talk.tell(esi())
    talk.wait(ISNS_POLL_INTERVAL)
    before = len(queries(talk))
    talk.wait(ISNS_SLOW_POLL_INTERVAL * 2)
    assert len(queries(talk)) == before + 2


def test_a_server_that_forgets_us_and_cannot_reach_us_is_not_asked_for_inquiries() -> None:
    server = Server(granted=attributes((6, 30)))
    talk = Talk(server).connect()
    server.forget()
    talk.wait(11)
    first, second = (asked for asked in server.asked if asked.function == Function.DEV_ATTR_REG)
    assert first.value(Tag.ESI_PORT) == PORT
    assert second.value(Tag.ESI_PORT) is None
    assert "the server cannot reach us; it is not asked for entity status inquiries any more" in talk.notes


# A server that goes and comes.


@pytest.mark.conformance("ISNS-7.3")
def test_targets_stay_while_the_server_is_away() -> None:
    talk = Talk(Server({A: [*DISK], B: [*DISK]}, granted=NEVER)).connect()
    talk.disconnect()
    assert talk.client.deadline is None
    talk.now += 3600
    assert talk.names == [A, B]
    before = len(talk.server.asked)
    talk.connect()
    functions = talk.server.functions()[before:]
    assert functions == [Function.DEV_ATTR_REG, QRY, SCN_REG, QRY]
    assert len(talk.reports) == 1


@pytest.mark.conformance("ISNS-7.3")
def test_the_pauses_between_connections_grow_and_begin_anew_after_success() -> None:
    talk = Talk()
    assert [talk.client.reconnect_pause() for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    talk.connect()
    assert talk.client.reconnect_pause() == 1


@pytest.mark.conformance("ISNS-7.4")
def test_a_server_that_has_lost_its_memory_is_believed_after_a_while() -> None:
    server = Server({A: [*DISK], B: [*DISK]}, granted=NEVER)
    talk = Talk(server).connect()
    talk.disconnect()
    server.targets.clear()
    talk.connect()
    talk.tell(esi())
    talk.wait(ISNS_POLL_INTERVAL / 2)
    assert talk.names == [A, B]
    talk.add(B)  # registers itself again
    talk.wait(ISNS_POLL_INTERVAL / 2 - 1)
    assert talk.names == [A, B]
    talk.wait(2)
    assert talk.names == [B]
    talk.wait(10)
    talk.remove(B)  # the server is believed again
    talk.wait(2)
    assert talk.names == []


@pytest.mark.conformance("ISNS-7.4")
def test_a_notification_is_believed_at_once_by_whomever_it_comes() -> None:
    server = Server({A: [*DISK], B: [*DISK]}, granted=NEVER)
    talk = Talk(server).connect()
    talk.disconnect()
    server.targets.clear()
    talk.connect()
    assert talk.names == [A, B]
    talk.tell(scn((Scn.REMOVED, A), (Scn.UPDATED, C)))
    talk.wait(2)
    assert talk.names == [B]


def test_an_answer_that_lies_again_and_again_keeps_no_more_than_the_bound() -> None:
    server = Server({f"{A}{number}": [*DISK] for number in range(MAX_TARGETS)}, granted=NEVER)
    talk = Talk(server).connect()
    for turn in "xyz":
        talk.disconnect()
        server.targets = {f"{A}{turn}{number}": [*DISK] for number in range(MAX_TARGETS)}
        talk.connect()
        assert len(talk.names) == MAX_TARGETS
    assert all("z" in name for name in talk.names)
