"""Where messages go: to the terminal in the foreground, to syslog in the background."""

import logging
import logging.handlers
from typing import Final

_SYSLOG: Final = "/dev/log"


class _TerminalFormatter(logging.Formatter):
    """One line for each message; *tracebacks* adds those that a message comes with."""

    def __init__(self, tracebacks: bool) -> None:
        super().__init__("iscsifs: %(message)s")
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


def log_to_terminal(level: int) -> None:
    """Log messages of *level* and above to the standard error; with tracebacks where that is DEBUG."""
    handler = logging.StreamHandler()
    handler.setFormatter(_TerminalFormatter(tracebacks=level <= logging.DEBUG))
    _replace_handlers(handler, level)


def log_to_syslog() -> None:
    """Log to the system's log from now on, or nowhere on a machine that has none."""
    handler: logging.Handler
    try:
        handler = logging.handlers.SysLogHandler(_SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
    except OSError:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("iscsifs[%(process)d]: %(message)s"))
    _replace_handlers(handler, logging.getLogger().level)


def _replace_handlers(handler: logging.Handler, level: int) -> None:
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level)
