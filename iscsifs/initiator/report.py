"""A session as it is at one moment, in values that can be shown."""

from dataclasses import dataclass

from iscsifs.initiator.session import Session
from iscsifs.iscsi.keys import agreed
from iscsifs.iscsi.states import SessionState


@dataclass(frozen=True, slots=True)
class ConnectionReport:
    """A connection: its CID, the addresses of its ends as ``host:port``, and its state of section 8.1."""

    cid: int
    local: str
    remote: str
    state: str


@dataclass(frozen=True, slots=True)
class SessionReport:
    """A session. Times are nanoseconds since 1970; texts may come from the network as they are."""

    state: SessionState
    since_ns: int
    isid: int
    tsih: int
    target_portal_group_tag: int | None
    """None where the target did not say it."""
    parameters: dict[str, str]
    """What the last login agreed on, by key."""
    connections: tuple[ConnectionReport, ...]
    reconnects: int
    """How many logins there were after the first one."""
    losses: tuple[tuple[int, str], ...]
    """The last losses of the connection: when, and why."""
    last_error: str


def report(session: Session) -> SessionReport:
    """Return *session* as it is now."""
    link, history = session.link, session.history
    connection = link.connection
    login = connection.login
    ends = link.ends
    connections: tuple[ConnectionReport, ...] = ()
    if ends is not None:
        local, remote = ends
        connections = (ConnectionReport(login.config.cid, local, remote, connection.state.name),)
    return SessionReport(
        state=session.state,
        since_ns=history.since_ns,
        isid=int.from_bytes(login.config.isid),
        tsih=login.tsih,
        target_portal_group_tag=connection.parameters.target_portal_group_tag,
        parameters={"AuthMethod": "CHAP" if login.chap else "None"} | agreed(connection.parameters),
        connections=connections,
        reconnects=session.logins - 1,
        losses=tuple(history.losses),
        last_error=history.last_error,
    )
