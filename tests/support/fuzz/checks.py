"""What every fuzz harness demands of errors and texts."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from iscsifs.errors import IscsifsError

T = TypeVar("T")

LONGEST_MESSAGE = 4096
"""Characters of an error's message; `printable` may make ten of one."""


def is_line(text: str) -> bool:
    """Whether *text* is one line fit for a terminal and a log."""
    return text.isascii() and text.isprintable() and len(text) <= LONGEST_MESSAGE


@contextmanager
def allowed(*kinds: type[IscsifsError]) -> Iterator[None]:
    """Let errors of *kinds* pass, if their message is one printable line; all others are findings."""
    try:
        yield
    except kinds as error:
        message = str(error)
    else:
        return
    assert is_line(message), ascii(message)


def value_or_none(parse: Callable[[str], T], value: str) -> T | None:
    """Return what *parse* makes of *value*, or None where it raises ValueError as it may."""
    try:
        return parse(value)
    except UnicodeEncodeError:  # a ValueError as well: what is no UTF-8 comes from SendTargets only
        return None
    except ValueError as error:
        message = str(error)
    assert is_line(message), ascii(message)
    return None


class LogCheck(logging.Handler):
    """Demands of every message in the log that it is a line."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        assert is_line(message), ascii(message)
