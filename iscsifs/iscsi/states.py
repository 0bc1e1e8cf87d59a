"""The states of connections and sessions (RFC 7143 section 8), as tables.

Section 8.1.3 draws the states of a connection for an initiator, with the standard's numbers of states and
transitions::

                    T1              T4              T5
    S1 FREE --------> S2 XPT_WAIT --> S4 IN_LOGIN ---> S5 LOGGED_IN
      ^                  | T2            | T7            |    |    |
      +------------------+---------------+               |    |    |
      |                                  T11             |    |    | T15
      |          S7 LOGOUT_REQUESTED <-------------------+    |    |
      |            (T12: again)  |    |                       | T9 |
      |                      T10 |    | T16                   |    |
      |   T13                    v    |                       |    |
      +------------ S6 IN_LOGOUT <----|-----------------------+    |
      |             (T14: asked again)|                            |
      |                   | T17       v                            |
      |                   +-------> S8 CLEANUP_WAIT <--------------+
      |   M1, M4                      |
      +-------------------------------+

A connection carries commands in S5 only. S5, S6 and S7 are its full feature phase. In S8 it is lost, and
there may be tasks without a status. At ErrorRecoveryLevel 0 nothing on this connection can end them: the
initiator takes them back, which is its cleanup (section 8.2), and reinstates the session.

Section 8.3.1 draws the states of a session::

    Q1 FREE <--- N1 / N3 ---> Q3 LOGGED_IN --- N5 ---> Q4 FAILED --- N6 ---> Q1 FREE

A session is LOGGED_IN while a connection of it is in its full feature phase. A logout that succeeds ends it
gracefully (N3), everything else makes it FAILED (N5). A login with the same ISID and TSIH 0 clears the failed
instance (N6), and begins a new one (N1).

Section 8.1.4 draws those of a target. They differ before the login, and where a new login takes the place of
a session (T8, T13 and T18)::

               T3            T4              T5
    S1 FREE ------> S3 XPT_UP --> S4 IN_LOGIN --> S5 LOGGED_IN
      ^ ^              | T6           | T7          |  |  |
      | +--------------+--------------+             |  |  | T15
      |         T8                                  |  |  |
      +---------------------------------------------+  |  |
      |  T18                                T11        |  |
      +------- S7 LOGOUT_REQUESTED <-------------------+  |
      |          (T12: again) | T10     | T16          |  |
      |  T13                  v         |           T9 |  |
      +----------------- S6 IN_LOGOUT <-|--------------+  |
      |                       | T17     v                 |
      |                       +------> S8 CLEANUP_WAIT <--+
      |  M1                             |
      +---------------------------------+

With one connection, and at ErrorRecoveryLevel 0, the state of a target's session (section 8.3.2) follows from
that of its connection: `TARGET_SESSION_STATES`.

What is left out needs a second connection: T8 and T18 for an initiator; T2, T7, T8, T13 and T18 for a logout
on another connection; and the state R2 IN_CLEANUP for cleaning up from there. Or it needs more than
ErrorRecoveryLevel 0: N4, N7, N8, N10 and N11, the continuation of a session.
"""

from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Final, TypeVar

from iscsifs.errors import ProtocolError


class ConnectionState(Enum):
    """The state of a connection, with the standard's number (section 8.1.1)."""

    FREE = "S1"
    """There is no connection."""
    XPT_WAIT = "S2"
    """It waits for the transport connection; only for an initiator."""
    XPT_UP = "S3"
    """It waits for the login; only for a target."""
    IN_LOGIN = "S4"
    """It waits for the end of the login."""
    LOGGED_IN = "S5"
    """It carries commands."""
    IN_LOGOUT = "S6"
    """It waits for the Logout Response."""
    LOGOUT_REQUESTED = "S7"
    """The target has asked for a logout, and no Logout Request has been sent."""
    CLEANUP_WAIT = "S8"
    """It is lost, and tasks without a status may be left."""


class ConnectionEvent(Enum):
    """What changes the state of a connection (section 8.1.2)."""

    CONNECT = auto()
    """The transport connection is asked for (T1); only for an initiator."""
    CONNECTED = auto()
    """The transport connection is established (T4; T3 for a target)."""
    LOGIN_STARTED = auto()
    """The first Login Request has arrived (T4); only for a target."""
    LOGGED_IN = auto()
    """The final Login Response with Status-Class 0 has arrived, or is sent (T5)."""
    LOGIN_FAILED = auto()
    """A Login Response with another Status-Class has arrived or is sent, or the login times out (T7 a, b)."""
    LOGOUT_REQUESTED = auto()
    """The target asks for a logout, perhaps again (T11, T12, T14)."""
    LOGOUT_SENT = auto()
    """A Logout Request is sent (T9, T10); only for an initiator."""
    LOGOUT_RECEIVED = auto()
    """A Logout Request for this connection has arrived (T9, T10); only for a target."""
    LOGOUT_SUCCEEDED = auto()
    """The Logout Response says that the logout has succeeded (T13)."""
    LOGOUT_FAILED = auto()
    """The Logout Response says that the logout has failed, or the request is rejected (T17 a)."""
    REINSTATED = auto()
    """A new login has taken the place of the session (T8, T13, T18); only for a target."""
    LOST = auto()
    """The transport connection is lost or given up, or the target drops it (T2, T6, T7, T15 to T17)."""
    CLEANED_UP = auto()
    """The tasks without a status are taken back, or ended by the target (M1, M4)."""


class SessionState(Enum):
    """The state of a session, with the standard's number (section 8.3.3)."""

    FREE = "Q1"
    """There is no session."""
    ACTIVE = "Q2"
    """Its connection is in the login; only for a target."""
    LOGGED_IN = "Q3"
    """It has a connection in the full feature phase."""
    FAILED = "Q4"
    """Its connection is lost; the target may still hold its tasks."""


class SessionEvent(Enum):
    """What changes the state of a session (section 8.3.4)."""

    LOGGED_IN = auto()
    """Its connection is logged in (N1)."""
    CLOSED = auto()
    """A logout has closed it (N3)."""
    FAILED = auto()
    """Its connection is lost, without a logout (N5)."""
    CLEARED = auto()
    """A login has reinstated the session, or it is given up (N6)."""


_State = TypeVar("_State", bound=Enum)
_Event = TypeVar("_Event", bound=Enum)

_S = ConnectionState
_E = ConnectionEvent
_Q = SessionState
_N = SessionEvent

CONNECTION_TRANSITIONS: Final[Mapping[tuple[ConnectionState, ConnectionEvent], ConnectionState]] = (
    MappingProxyType(
        {
            (_S.FREE, _E.CONNECT): _S.XPT_WAIT,  # T1
            (_S.XPT_WAIT, _E.LOST): _S.FREE,  # T2
            (_S.XPT_WAIT, _E.CONNECTED): _S.IN_LOGIN,  # T4
            (_S.IN_LOGIN, _E.LOGGED_IN): _S.LOGGED_IN,  # T5
            (_S.IN_LOGIN, _E.LOGIN_FAILED): _S.FREE,  # T7
            (_S.IN_LOGIN, _E.LOST): _S.FREE,  # T7
            (_S.LOGGED_IN, _E.LOGOUT_SENT): _S.IN_LOGOUT,  # T9
            (_S.LOGGED_IN, _E.LOGOUT_REQUESTED): _S.LOGOUT_REQUESTED,  # T11
            (_S.LOGGED_IN, _E.LOST): _S.CLEANUP_WAIT,  # T15
            (_S.LOGOUT_REQUESTED, _E.LOGOUT_SENT): _S.IN_LOGOUT,  # T10
            (_S.LOGOUT_REQUESTED, _E.LOGOUT_REQUESTED): _S.LOGOUT_REQUESTED,  # T12
            (_S.LOGOUT_REQUESTED, _E.LOST): _S.CLEANUP_WAIT,  # T16
            (_S.IN_LOGOUT, _E.LOGOUT_SUCCEEDED): _S.FREE,  # T13
            (_S.IN_LOGOUT, _E.LOGOUT_REQUESTED): _S.IN_LOGOUT,  # T14
            (_S.IN_LOGOUT, _E.LOGOUT_FAILED): _S.CLEANUP_WAIT,  # T17
            (_S.IN_LOGOUT, _E.LOST): _S.CLEANUP_WAIT,  # T17
            (_S.CLEANUP_WAIT, _E.CLEANED_UP): _S.FREE,  # M1, or M2 and M4
        }
    )
)
"""The table of section 8.1.3, for an initiator, by events. What is not in it cannot happen."""

TARGET_CONNECTION_TRANSITIONS: Final[Mapping[tuple[ConnectionState, ConnectionEvent], ConnectionState]] = (
    MappingProxyType(
        {
            (_S.FREE, _E.CONNECTED): _S.XPT_UP,  # T3
            (_S.XPT_UP, _E.LOGIN_STARTED): _S.IN_LOGIN,  # T4
            (_S.XPT_UP, _E.LOST): _S.FREE,  # T6
            (_S.IN_LOGIN, _E.LOGGED_IN): _S.LOGGED_IN,  # T5
            (_S.IN_LOGIN, _E.LOGIN_FAILED): _S.FREE,  # T7
            (_S.IN_LOGIN, _E.LOST): _S.FREE,  # T7
            (_S.LOGGED_IN, _E.REINSTATED): _S.FREE,  # T8
            (_S.LOGGED_IN, _E.LOGOUT_RECEIVED): _S.IN_LOGOUT,  # T9
            (_S.LOGGED_IN, _E.LOGOUT_REQUESTED): _S.LOGOUT_REQUESTED,  # T11
            (_S.LOGGED_IN, _E.LOST): _S.CLEANUP_WAIT,  # T15
            (_S.LOGOUT_REQUESTED, _E.LOGOUT_RECEIVED): _S.IN_LOGOUT,  # T10
            (_S.LOGOUT_REQUESTED, _E.LOGOUT_REQUESTED): _S.LOGOUT_REQUESTED,  # T12
            (_S.LOGOUT_REQUESTED, _E.LOST): _S.CLEANUP_WAIT,  # T16
            (_S.LOGOUT_REQUESTED, _E.REINSTATED): _S.FREE,  # T18
            (_S.IN_LOGOUT, _E.LOGOUT_SUCCEEDED): _S.FREE,  # T13
            (_S.IN_LOGOUT, _E.REINSTATED): _S.FREE,  # T13
            (_S.IN_LOGOUT, _E.LOGOUT_FAILED): _S.CLEANUP_WAIT,  # T17
            (_S.IN_LOGOUT, _E.LOST): _S.CLEANUP_WAIT,  # T17
            (_S.CLEANUP_WAIT, _E.CLEANED_UP): _S.FREE,  # M1
        }
    )
)
"""The table of section 8.1.4, for a target, by events."""

SESSION_TRANSITIONS: Final[Mapping[tuple[SessionState, SessionEvent], SessionState]] = MappingProxyType(
    {
        (_Q.FREE, _N.LOGGED_IN): _Q.LOGGED_IN,  # N1
        (_Q.LOGGED_IN, _N.CLOSED): _Q.FREE,  # N3
        (_Q.LOGGED_IN, _N.FAILED): _Q.FAILED,  # N5
        (_Q.FAILED, _N.CLEARED): _Q.FREE,  # N6
    }
)
"""The table of section 8.3.1, for an initiator, by events."""

TARGET_SESSION_STATES: Final[Mapping[ConnectionState, SessionState]] = MappingProxyType(
    {
        _S.FREE: _Q.FREE,
        _S.XPT_UP: _Q.FREE,
        _S.IN_LOGIN: _Q.ACTIVE,
        _S.LOGGED_IN: _Q.LOGGED_IN,
        _S.IN_LOGOUT: _Q.LOGGED_IN,
        _S.LOGOUT_REQUESTED: _Q.LOGGED_IN,
        _S.CLEANUP_WAIT: _Q.FAILED,
    }
)
"""The state of a target's session (section 8.3.2) by that of its only connection."""

MAY_REQUEST: Final = frozenset({_S.LOGGED_IN, _S.LOGOUT_REQUESTED})
"""The states in which requests other than commands may be sent: commands need LOGGED_IN."""

OVER: Final = frozenset({_S.FREE, _S.CLEANUP_WAIT})
"""The states in which a connection that was made is closed, or has to be."""


def advance(state: ConnectionState, event: ConnectionEvent) -> ConnectionState:
    """Return the state of an initiator's connection that follows *state* after *event*.

    Raises ProtocolError where the table has no such transition.
    """
    return _following(CONNECTION_TRANSITIONS, state, event, "8.1.3")


def advance_target(state: ConnectionState, event: ConnectionEvent) -> ConnectionState:
    """Return the state of a target's connection that follows *state* after *event*.

    Raises ProtocolError where the table has no such transition.
    """
    return _following(TARGET_CONNECTION_TRANSITIONS, state, event, "8.1.4")


def advance_session(state: SessionState, event: SessionEvent) -> SessionState:
    """Return the state of an initiator's session that follows *state* after *event*.

    Raises ProtocolError where the table has no such transition.
    """
    return _following(SESSION_TRANSITIONS, state, event, "8.3.1")


def _following(
    table: Mapping[tuple[_State, _Event], _State], state: _State, event: _Event, section: str
) -> _State:
    try:
        return table[state, event]
    except KeyError:
        raise ProtocolError(f"{event.name} in state {state.value} {state.name}", section=section) from None
