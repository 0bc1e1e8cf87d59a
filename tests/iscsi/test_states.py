"""The states of connections and sessions: RFC 7143 section 8."""

from itertools import product

import pytest

from iscsifs.errors import ProtocolError
from iscsifs.iscsi.states import (
    CONNECTION_TRANSITIONS,
    SESSION_TRANSITIONS,
    ConnectionEvent,
    ConnectionState,
    SessionEvent,
    SessionState,
    advance,
    advance_session,
)

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

SESSION_TABLE = """
        Q1   Q3   Q4
    Q1  -    N1   -
    Q3  N3   -    N5
    Q4  N6   -    -
"""
"""Section 8.3.1, without N4, the continuation of a session."""

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


def read(table: str) -> dict[tuple[str, object], str]:
    """Return the transitions of a *table* of the standard, by the number of the state and the event."""
    heading, *rows = [line.split() for line in table.strip().splitlines()]
    return {
        (start, event): end
        for start, *cells in rows
        for end, cell in zip(heading, cells, strict=True)
        if cell != "-"
        for event in CAUSES[cell]
    }


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
    assert {state for state, _ in CONNECTION_TRANSITIONS} == set(ConnectionState)
    assert set(CONNECTION_TRANSITIONS.values()) == set(ConnectionState)
    assert {state for state, _ in SESSION_TRANSITIONS} == set(SessionState)
    assert set(SESSION_TRANSITIONS.values()) == set(SessionState)
