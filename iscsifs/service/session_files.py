"""The files of a target's directory that tell of its session: ``session/``, one value in each."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from iscsifs.errors import printable
from iscsifs.fs.tree import TargetDirectory, Tree
from iscsifs.initiator.report import ConnectionReport, SessionReport

MAX_SENTENCE: Final = 1000
"""Characters of a reason at most; what is longer is cut."""

Report = Callable[[], SessionReport]


def show_session(tree: Tree, directory: TargetDirectory, report: Report) -> None:
    """Give *directory* the files that tell of the session that *report* returns as it is."""
    session = tree.add_directory(directory, b"session")
    for name, text in _TEXTS.items():
        tree.add_text(session, name, _text(report, text))


def _text(report: Report, text: Callable[[SessionReport], str]) -> Callable[[], str]:
    return lambda: f"{value}\n" if (value := text(report())) else ""


def moment(time_ns: int) -> str:
    """Return a time as RFC 3339 has it, in UTC and whole seconds."""
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _tag(report: SessionReport) -> str:
    tag = report.target_portal_group_tag
    return "" if tag is None else str(tag)


def _connection(connection: ConnectionReport) -> str:
    return f"{connection.cid} {connection.local} -> {connection.remote} {connection.state}"


_TEXTS: Final[dict[bytes, Callable[[SessionReport], str]]] = {
    b"state": lambda report: report.state.name,
    b"since": lambda report: moment(report.since_ns),
    b"isid": lambda report: f"0x{report.isid:012x}",
    b"tsih": lambda report: f"0x{report.tsih:04x}",
    b"target_portal_group": _tag,
    b"parameters": lambda report: "\n".join(
        f"{key}={printable(value)}" for key, value in report.parameters.items()
    ),
    b"connections": lambda report: "\n".join(map(_connection, report.connections)),
    b"reconnects": lambda report: str(report.reconnects),
    b"losses": lambda report: "\n".join(
        f"{moment(time_ns)} {printable(why, MAX_SENTENCE)}" for time_ns, why in report.losses
    ),
    b"last_error": lambda report: printable(report.last_error, MAX_SENTENCE),
}
"""The files, and what is in them."""
