"""The states of a client, as one table; what is not in it cannot happen."""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final


class State(Enum):
    """What the client and its server have to do with each other."""

    AWAY = "there is no connection to the server"
    JOINING = "the client registers itself"
    REGISTERED = "the server knows the client"
    UNREGISTERED = "the server refuses the registration; its targets are asked for without one"
    LEAVING = "the client deregisters itself"
    LEFT = "the client is of no use any more"


class Happening(Enum):
    """What changes the state."""

    CONNECTED = auto()
    GRANTED = auto()
    REFUSED = auto()
    FORGOTTEN = auto()
    RETRIED = auto()
    LOST = auto()
    STOPPED = auto()
    DONE = auto()


TRANSITIONS: Final[Mapping[tuple[State, Happening], State]] = {
    (State.AWAY, Happening.CONNECTED): State.JOINING,
    (State.AWAY, Happening.STOPPED): State.LEFT,
    (State.JOINING, Happening.GRANTED): State.REGISTERED,
    (State.JOINING, Happening.REFUSED): State.UNREGISTERED,
    (State.JOINING, Happening.LOST): State.AWAY,
    (State.JOINING, Happening.STOPPED): State.LEAVING,
    (State.REGISTERED, Happening.FORGOTTEN): State.JOINING,
    (State.REGISTERED, Happening.LOST): State.AWAY,
    (State.REGISTERED, Happening.STOPPED): State.LEAVING,
    (State.UNREGISTERED, Happening.RETRIED): State.JOINING,
    (State.UNREGISTERED, Happening.LOST): State.AWAY,
    (State.UNREGISTERED, Happening.STOPPED): State.LEFT,
    (State.LEAVING, Happening.DONE): State.LEFT,
    (State.LEAVING, Happening.LOST): State.LEFT,
}
"""(state, what happens) and the next state. FORGOTTEN: the server does not know our registration any more.
RETRIED: a refused registration is tried again. STOPPED: the user ends the mount."""
