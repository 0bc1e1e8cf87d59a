"""Where messages go: to the terminal in the foreground, to syslog in the background, or to a file.

What a target or a load repeats is counted: the first message of a kind is logged at once, the others of the
next REPEATS_INTERVAL are one line more (`tell_repeats`). Messages from one place in the code are of one kind
if their texts are the same; where these contain what is different each time, such as an LBA, the caller names
the kind: ``log.error("%s", exc, extra={"kind": exc.kind})``.
"""

import logging
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from iscsifs.limits import LINES_A_MINUTE, MAX_KINDS, REPEATS_INTERVAL
from iscsifs.terminal import drop_errors

log = logging.getLogger(__name__)

_SYSLOG: Final = "/dev/log"
_FACILITY: Final = 3 << 3  # LOG_DAEMON of syslog(3)
_PRIORITIES: Final = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}
_DEBUG: Final = 7


class _TerminalFormatter(logging.Formatter):
    """One line for each message; *tracebacks* adds those that a message comes with."""

    def __init__(self, tracebacks: bool, layout: str = "iscsifs: %(message)s") -> None:
        super().__init__(layout, "%Y-%m-%d %H:%M:%S" if "asctime" in layout else None)
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """Return *record* as a line."""
        if record.exc_info is None or self._tracebacks:
            return super().format(record)
        brief = logging.makeLogRecord(record.__dict__ | {"exc_info": None, "exc_text": None})
        cause = record.exc_info[1]
        while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
            cause = cause.exceptions[0]  # the nurseries that it went through
        return f"{super().format(brief)}: {cause!r} (-d shows where)"


class _TerminalHandler(logging.StreamHandler[TextIO]):
    """Print on the standard error until that fails."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop *record* and all that follow: the terminal has gone."""
        if isinstance(sys.exception(), OSError):
            drop_errors()
        else:
            super().handleError(record)


class _FileHandler(logging.FileHandler):
    """Appends to a file; where that fails, the mount goes on without."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop *record*: the file cannot be written, for example on a full disk."""


class _SyslogHandler(logging.Handler):
    """Send to the system's log without blocking: the log daemon may be waiting for a disk of this mount."""

    def __init__(self) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        """Send *record*."""
        try:
            priority = _FACILITY | _PRIORITIES.get(record.levelno, _DEBUG)
            self._socket.sendto(f"<{priority}>{self.format(record)}".encode(), _SYSLOG)
        except OSError:
            pass  # there is none, for the moment perhaps, or it is full
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


@dataclass(slots=True)
class _Kind:
    """Messages of one kind: the level and the text of the latest, when they were last told of, and how many
    there were since. (Not the record itself: its arguments may keep much alive.)"""

    level: int
    text: str
    told: float
    more: int = 0

    def told_with(self, text: str, seconds: float) -> str:
        """Return *text* with the count of *seconds*."""
        return f"{text} ({self.more} more like this in the last {seconds:.0f} s)"


class _Repeats(logging.Filter):
    """Lets the first message of each kind pass, and counts the others."""

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[str, int, str], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether *record* may pass: it is the first of its kind, or the count of others is."""
        if isinstance(record, _Count):
            return True
        text = record.getMessage()
        key = record.pathname, record.lineno, getattr(record, "kind", text)
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) < MAX_KINDS:
                self._kinds[key] = _Kind(record.levelno, text, record.created)
            return True
        seconds = abs(record.created - kind.told)  # the clock may also be set back
        if seconds >= REPEATS_INTERVAL:
            if kind.more:
                record.msg, record.args = kind.told_with(text, seconds), None
            kind.told, kind.more = record.created, 0
            return True
        kind.level, kind.text = record.levelno, text
        kind.more += 1
        return False

    def counts(self, now: float, interval: float) -> "list[_Count]":
        """Return a message for each kind that was repeated, and last told of *interval* seconds ago; forget
        those that were not."""
        counts = []
        for (path, line, _), kind in list(self._kinds.items()):
            seconds = abs(now - kind.told)
            if kind.more and seconds >= interval:
                text = kind.told_with(kind.text, seconds)
                counts.append(_Count(log.name, kind.level, path, line, text, None, None))
                kind.told, kind.more = now, 0
        self._kinds = {key: kind for key, kind in self._kinds.items() if abs(now - kind.told) < interval}
        return counts


class _Count(logging.LogRecord):
    """A message that tells how often another was repeated."""


def tell_repeats(interval: float = REPEATS_INTERVAL) -> None:
    """Log how often messages were repeated that were last told of *interval* seconds ago.

    To be called now and then, and in the end with 0.
    """
    for handler in logging.getLogger().handlers:
        for repeats in handler.filters:
            if isinstance(repeats, _Repeats):
                for count in repeats.counts(time.time(), interval):
                    handler.handle(count)


class _Moderator(logging.Filter):
    """Lets LINES_A_MINUTE of each place in the code pass: what a peer repeats must not fill the disk."""

    def __init__(self) -> None:
        super().__init__()
        self._minutes: dict[tuple[str, int], tuple[float, int]] = {}  # when they began, and lines since then

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether *record* may pass; it then tells of those before it that might not."""
        place = record.pathname, record.lineno
        begun, lines = self._minutes.get(place, (record.created, 0))
        if abs(record.created - begun) >= 60.0:  # the clock may also be set back
            if lines > LINES_A_MINUTE:
                record.msg = f"{record.getMessage()} ({lines - LINES_A_MINUTE} more like this were left out)"
                record.args = None
            begun, lines = record.created, 0
        self._minutes[place] = begun, lines + 1
        return lines < LINES_A_MINUTE


class _Distributor(logging.Handler):
    """Give a message that passes the filters to each of *outputs*.

    The filters count, and alter what they let pass, so a message must come by them once, however many outputs
    there are. At the level DEBUG there are none.
    """

    def __init__(self, outputs: Sequence[logging.Handler], level: int) -> None:
        super().__init__()
        self.outputs: Final = tuple(outputs)
        if level > logging.DEBUG:
            self.addFilter(_Repeats())
            self.addFilter(_Moderator())

    def emit(self, record: logging.LogRecord) -> None:
        """Give *record* to each output."""
        for output in self.outputs:
            output.handle(record)


def log_to_terminal(level: int) -> None:
    """Log messages of *level* and above to the standard error.

    Where that is DEBUG they come with the time and with tracebacks, and without an end.
    """
    handler = _TerminalHandler()
    is_debug = level <= logging.DEBUG
    layout = "iscsifs: %(asctime)s.%(msecs)03d %(message)s" if is_debug else "iscsifs: %(message)s"
    handler.setFormatter(_TerminalFormatter(is_debug, layout))
    _log_to([handler], level)


def log_to_file(path: Path) -> None:
    """Append to the file *path* what is logged from now on, whatever else it is logged to; raises OSError."""
    handler = _FileHandler(path, errors="backslashreplace")
    level = logging.getLogger().level
    layout = "%(asctime)s.%(msecs)03d iscsifs[%(process)d]: %(levelname)s: %(message)s"
    handler.setFormatter(_TerminalFormatter(level <= logging.DEBUG, layout))
    _log_to([*_outputs(), handler], level)


def log_to_file_too(message: str) -> None:
    """Log an error that the terminal was told to the file, where there is one."""
    for handler in _files():
        handler.handle(logging.LogRecord("iscsifs", logging.ERROR, __file__, 0, message, None, None))


def log_to_syslog() -> None:
    """Log to the file that there is, else to the system's log from now on, where and while there is one."""
    outputs: list[logging.Handler] = [*_files()]
    if not outputs:
        with suppress(OSError):
            outputs = [_SyslogHandler()]
            outputs[0].setFormatter(logging.Formatter("iscsifs[%(process)d]: %(message)s"))
    _log_to(outputs, logging.getLogger().level)


def _outputs() -> list[logging.Handler]:
    """Return where messages go now."""
    handlers = logging.getLogger().handlers
    return [output for handler in handlers if isinstance(handler, _Distributor) for output in handler.outputs]


def _files() -> list[_FileHandler]:
    return [output for output in _outputs() if isinstance(output, _FileHandler)]


def _log_to(outputs: Sequence[logging.Handler], level: int) -> None:
    """Log to *outputs* alone, what is of *level* and above; those that are not wanted any more are closed."""
    tell_repeats(0.0)
    root = logging.getLogger()
    for old in [*_outputs(), *root.handlers]:
        root.removeHandler(old)
        if old not in outputs:
            old.close()
    root.addHandler(_Distributor(outputs, level))
    root.setLevel(level)
