"""The states of connections and sessions: RFC 7143 section 8."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product

import pytest

from iscsifs.errors import ConnectionClosed, LoginRefused, ProtocolError
from iscsifs.iscsi.exchange import Exchange
from iscsifs.iscsi.framing import frame
from iscsifs.iscsi.login import Redirect
from iscsifs.iscsi.pdu import (
    AsyncEvent,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    NopOut,
    RejectReason,
)
from iscsifs.iscsi.states import (
    CONNECTION_TRANSITIONS,
    SESSION_TRANSITIONS,
    TARGET_CONNECTION_TRANSITIONS,
    TARGET_SESSION_STATES,
    ConnectionEvent,
    ConnectionState,
    SessionEvent,
    SessionState,
    advance,
    advance_session,
    advance_target,
)
from support.memory_target import MemoryTarget, plain_task

# The standard's own tables: each row is a state, each cell the transition to the state of the column.

CONNECTION_TABLE = """
        S1   S2   S4   S5   S6   S7   S8
    S1  -    T1   -    -    -    -    -
    S2  T2   -    T4   -    -    -    -
    S4  T7   -    -    T5   -    -    -
    S5  -    -    -    -    T9   T11  T15
    S6  T13  -    -    -    T14  -    T17
    S7  -    -    -    -    T10  T12  T16
    S8  M    -    -    -    -    -    -
"""
"""Section 8.1.3, with the cleanup of section 8.2 as M, without T8 and T18, which need a second connection."""

TARGET_CONNECTION_TABLE = """
        S1   S3   S4   S5   S6   S7   S8
    S1  -    T3   -    -    -    -    -
    S3  T6   -    T4   -    -    -    -
    S4  T7   -    -    T5   -    -    -
    S5  T8   -    -    -    T9   T11  T15
    S6  T13  -    -    -    -    -    T17
    S7  T18  -    -    -    T10  T12  T16
    S8  M    -    -    -    -    -    -
"""
"""Section 8.1.4, with the cleanup of section 8.2 as M."""

SESSION_TABLE = """
        Q1   Q3   Q4
    Q1  -    N1   -
    Q3  N3   -    N5
    Q4  N6   -    -
"""
"""Section 8.3.1, without N4, the continuation of a session."""

TARGET_SESSION_TABLE = """
        Q1   Q2   Q3   Q4
    Q1  -    N1   -    -
    Q2  N9   -    N2   -
    Q3  N3   -    -    N5
    Q4  N6   -    -    -
"""
"""Section 8.3.2, without Q5, the continuation of a session."""

CAUSES: dict[str, set[ConnectionEvent] | set[SessionEvent]] = {
    "T1": {ConnectionEvent.CONNECT},
    "T2": {ConnectionEvent.LOST},
    "T4": {ConnectionEvent.CONNECTED},
    "T5": {ConnectionEvent.LOGGED_IN},
    "T7": {ConnectionEvent.LOGIN_FAILED, ConnectionEvent.LOST},
    "T9": {ConnectionEvent.LOGOUT_SENT},
    "T10": {ConnectionEvent.LOGOUT_SENT},
    "T11": {ConnectionEvent.LOGOUT_REQUESTED},
    "T12": {ConnectionEvent.LOGOUT_REQUESTED},
    "T13": {ConnectionEvent.LOGOUT_SUCCEEDED},
    "T14": {ConnectionEvent.LOGOUT_REQUESTED},
    "T15": {ConnectionEvent.LOST},
    "T16": {ConnectionEvent.LOST},
    "T17": {ConnectionEvent.LOGOUT_FAILED, ConnectionEvent.LOST},
    "M": {ConnectionEvent.CLEANED_UP},
    "N1": {SessionEvent.LOGGED_IN},
    "N3": {SessionEvent.CLOSED},
    "N5": {SessionEvent.FAILED},
    "N6": {SessionEvent.CLEARED},
}
"""The events that sections 8.1.2 and 8.3.4 name for each transition."""

TARGET_CAUSES: dict[str, set[ConnectionEvent]] = {
    "T3": {ConnectionEvent.CONNECTED},
    "T4": {ConnectionEvent.LOGIN_STARTED},
    "T5": {ConnectionEvent.LOGGED_IN},
    "T6": {ConnectionEvent.LOST},
    "T7": {ConnectionEvent.LOGIN_FAILED, ConnectionEvent.LOST},
    "T8": {ConnectionEvent.REINSTATED},
    "T9": {ConnectionEvent.LOGOUT_RECEIVED},
    "T10": {ConnectionEvent.LOGOUT_RECEIVED},
    "T11": {ConnectionEvent.LOGOUT_REQUESTED},
    "T12": {ConnectionEvent.LOGOUT_REQUESTED},
    "T13": {ConnectionEvent.LOGOUT_SUCCEEDED, ConnectionEvent.REINSTATED},
    "T15": {ConnectionEvent.LOST},
    "T16": {ConnectionEvent.LOST},
    "T17": {ConnectionEvent.LOGOUT_FAILED, ConnectionEvent.LOST},
    "T18": {ConnectionEvent.REINSTATED},
    "M": {ConnectionEvent.CLEANED_UP},
}
"""The same for a target."""


def cells_of(table: str) -> Iterator[tuple[str, str, str]]:
    """Yield the number of a state, a transition, and the number of the state behind it, for a *table*."""
    heading, *rows = [line.split() for line in table.strip().splitlines()]
    for start, *cells in rows:
        for end, cell in zip(heading, cells, strict=True):
            if cell != "-":
                yield start, cell, end


def read(table: str, causes: Mapping[str, Iterable[object]] = CAUSES) -> dict[tuple[str, object], str]:
    """Return the transitions of a *table* of the standard, by the number of the state and the event."""
    return {(start, event): end for start, cell, end in cells_of(table) for event in causes[cell]}


@pytest.mark.parametrize(
    ("state", "event"), [*product(ConnectionState, ConnectionEvent)], ids=lambda value: value.name
)
def test_every_event_in_every_state_of_a_connection(state: ConnectionState, event: ConnectionEvent) -> None:
    expected = read(CONNECTION_TABLE).get((state.value, event))
    if expected is None:
        with pytest.raises(ProtocolError, match=rf"{event.name} in state {state.value} .*8\.1\.3"):
            advance(state, event)
    else:
        assert advance(state, event) is ConnectionState(expected)


@pytest.mark.parametrize(
    ("state", "event"), [*product(ConnectionState, ConnectionEvent)], ids=lambda value: value.name
)
def test_every_event_in_every_state_of_a_target_s_connection(
    state: ConnectionState, event: ConnectionEvent
) -> None:
    expected = read(TARGET_CONNECTION_TABLE, TARGET_CAUSES).get((state.value, event))
    if expected is None:
        with pytest.raises(ProtocolError, match=rf"{event.name} in state {state.value} .*8\.1\.4"):
            advance_target(state, event)
    else:
        assert advance_target(state, event) is ConnectionState(expected)


def test_a_target_s_session_goes_the_ways_of_the_standard_with_its_connection() -> None:
    allowed = {(start, end) for start, _, end in cells_of(TARGET_SESSION_TABLE)}
    gone = {
        (TARGET_SESSION_STATES[before].value, TARGET_SESSION_STATES[after].value)
        for (before, _), after in TARGET_CONNECTION_TRANSITIONS.items()
    }
    assert {(before, after) for before, after in gone if before != after} == allowed


@pytest.mark.parametrize(
    ("state", "event"), [*product(SessionState, SessionEvent)], ids=lambda value: value.name
)
def test_every_event_in_every_state_of_a_session(state: SessionState, event: SessionEvent) -> None:
    expected = read(SESSION_TABLE).get((state.value, event))
    if expected is None:
        with pytest.raises(ProtocolError, match=rf"{event.name} in state {state.value} .*8\.3\.1"):
            advance_session(state, event)
    else:
        assert advance_session(state, event) is SessionState(expected)


def test_every_state_is_reached_and_left() -> None:
    for table, other_role in (
        (CONNECTION_TRANSITIONS, ConnectionState.XPT_UP),
        (TARGET_CONNECTION_TRANSITIONS, ConnectionState.XPT_WAIT),
    ):
        assert {state for state, _ in table} == {*table.values()} == {*ConnectionState} - {other_role}
    of_initiator = {*SessionState} - {SessionState.ACTIVE}
    assert {state for state, _ in SESSION_TRANSITIONS} == {*SESSION_TRANSITIONS.values()} == of_initiator
    assert {*TARGET_SESSION_STATES.values()} == {*SessionState}


# A connection goes through them.


class Watched(Exchange):
    """An exchange that keeps each state that it comes into, with the standard's number."""

    passed: list[str]

    def __setattr__(self, name: str, value: object) -> None:
        if name == "state":
            assert isinstance(value, ConnectionState)
            self.__dict__.setdefault("passed", []).append(value.value)
        super().__setattr__(name, value)


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iscsifs.iscsi.connection.Exchange", Watched)


def passed(target: MemoryTarget) -> list[str]:
    """The states of the initiator's connection so far."""
    assert isinstance(target.connection.exchange, Watched)
    return target.connection.exchange.passed


def login_response(target: MemoryTarget, status_class: int, text: bytes = b"") -> None:
    """Answer the Login Request that has come with a status."""
    (request,) = target.received(LoginRequest)
    response = LoginResponse(request.pdu.flags, 0, 0, request.pdu.isid, 0, request.pdu.initiator_task_tag)
    target.send_bytes(b"".join(frame(response._replace(status_class=status_class, status_detail=1), text)))


def test_a_login_and_a_logout() -> None:
    target = MemoryTarget()
    assert passed(target) == ["S4", "S5"]
    target.connection.requests.log_out()
    assert passed(target) == ["S4", "S5", "S6"]
    (request,) = target.received(LogoutRequest)
    target.log_out(request)
    assert passed(target) == ["S4", "S5", "S6", "S1"]
    target.connection.receive_eof()
    target.connection.connection_lost()
    assert passed(target) == ["S4", "S5", "S6", "S1"]


def test_no_request_is_sent_before_the_end_of_the_login() -> None:
    target = MemoryTarget(log_in=False)
    target.submit(plain_task())
    target.connection.requests.ping()
    target.connection.requests.send_text([("SendTargets", "All")])
    target.received(LoginRequest)
    assert target.nothing_received()


def test_a_login_that_is_refused() -> None:
    target = MemoryTarget(log_in=False)
    with pytest.raises(LoginRefused):
        login_response(target, 2)
    assert passed(target) == ["S4", "S1"]


def test_a_login_that_breaks_a_rule() -> None:
    target = MemoryTarget(log_in=False)
    target.received(LoginRequest)
    with pytest.raises(ProtocolError):
        target.send(NopIn, initiator_task_tag=0)
    assert passed(target) == ["S4", "S1"]


def test_a_login_that_is_redirected() -> None:
    target = MemoryTarget(log_in=False)
    login_response(target, 1, b"TargetAddress=192.0.2.1\0")
    (outcome,) = target.events()
    assert isinstance(outcome, Redirect)
    assert passed(target) == ["S4", "S1"]


def test_a_connection_that_is_closed_in_the_login() -> None:
    target = MemoryTarget(log_in=False)
    with pytest.raises(ConnectionClosed):
        target.connection.receive_eof()
    assert passed(target) == ["S4", "S1"]


@pytest.mark.parametrize("times", [1, 2])
def test_a_logout_that_the_target_asks_for(times: int) -> None:
    target = MemoryTarget()
    for _ in range(times):
        target.report(AsyncEvent.LOGOUT_REQUESTED, parameter3=5)
    assert passed(target) == ["S4", "S5", *["S7"] * times]
    target.submit(plain_task())
    assert target.nothing_received()  # commands need S5
    target.connection.requests.ping()
    target.received(NopOut)
    target.connection.requests.log_out()
    target.report(AsyncEvent.LOGOUT_REQUESTED, parameter3=5)
    assert passed(target)[-2:] == ["S6", "S6"]
    (request,) = target.received(LogoutRequest)
    target.log_out(request)
    assert passed(target)[-1] == "S1"


def test_a_rejected_command_asks_for_a_logout_as_well() -> None:
    target = MemoryTarget()
    target.read()
    (command,) = target.received()
    target.reject(command, RejectReason.WAITING_FOR_LOGOUT)
    assert passed(target) == ["S4", "S5", "S7"]


@pytest.mark.parametrize("response", [1, 2, 3])
def test_a_logout_that_fails(response: int) -> None:
    target = MemoryTarget()
    target.connection.requests.log_out()
    (request,) = target.received(LogoutRequest)
    target.log_out(request, response)
    assert passed(target) == ["S4", "S5", "S6", "S8"]


def test_a_logout_that_is_rejected() -> None:
    target = MemoryTarget()
    target.connection.requests.log_out()
    (request,) = target.received(LogoutRequest)
    target.reject(request, RejectReason.PROTOCOL_ERROR)
    assert passed(target) == ["S4", "S5", "S6", "S8"]


@pytest.mark.parametrize("event", [AsyncEvent.CONNECTION_DROPPED, AsyncEvent.ALL_CONNECTIONS_DROPPED])
@pytest.mark.parametrize("before", ["S5", "S6", "S7"])
def test_a_connection_that_the_target_drops(event: AsyncEvent, before: str) -> None:
    target = MemoryTarget()
    task = target.read()
    if before == "S6":
        target.connection.requests.log_out()
    elif before == "S7":
        target.report(AsyncEvent.LOGOUT_REQUESTED)
    target.received()
    assert passed(target)[-1] == before
    target.report(event)
    assert passed(target)[-1] == "S8"
    target.report(AsyncEvent.LOGOUT_REQUESTED)  # it is too late for that
    target.connection.requests.log_out()
    target.connection.requests.ping()
    assert target.nothing_received()
    with pytest.raises(ConnectionClosed):
        target.connection.receive_eof()
    assert passed(target)[-1] == "S8"
    assert target.connection.take_unfinished() == [task]
    assert passed(target)[-2:] == ["S8", "S1"]


@pytest.mark.parametrize("before", ["S5", "S6", "S7"])
def test_a_connection_that_is_closed(before: str) -> None:
    target = MemoryTarget()
    if before == "S6":
        target.connection.requests.log_out()
        target.connection.receive_eof()  # as good as an answer
    else:
        if before == "S7":
            target.report(AsyncEvent.LOGOUT_REQUESTED)
        with pytest.raises(ConnectionClosed):
            target.connection.receive_eof()
    assert passed(target)[-2:] == [before, "S8"]


def test_a_broken_rule_loses_the_connection() -> None:
    target = MemoryTarget()
    task = target.read()
    with target.drop("4.2.5.3"):
        target.send(LogoutResponse, initiator_task_tag=task.initiator_task_tag)
    assert passed(target) == ["S4", "S5", "S8", "S1"]  # the last is that its tasks were taken back
