"""What the commands have in common: standard streams, which may be closed, full or without a reader, and the
parser of the command line."""

import argparse
import errno
import os
import re
import sys
from contextlib import suppress
from difflib import get_close_matches
from typing import IO, Final, NoReturn

from iscsifs.errors import IscsifsError, reason

_FAILED: Final = 1
_USAGE: Final = 2


class OutputError(IscsifsError):
    """The standard output cannot be written; *is_left*: its reader has gone, and that is not reported."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {reason(error)}")
        self.is_left = error.errno == errno.EPIPE


def open_standard_streams() -> None:
    """Open the null device as each standard stream that is closed.

    Otherwise the next file that is opened, perhaps /dev/fuse, gets its number, and what is printed.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # takes the lowest number, which is this one
            os.set_inheritable(null, True)
            mode = "w" if descriptor else "r"
            setattr(sys, name, os.fdopen(null, mode, closefd=False, encoding="utf-8"))


def say(text: str, end: str = "\n") -> None:
    """Print *text* on the standard output at once. Raises OutputError, once."""
    try:
        print(text, end=end, flush=True)
    except OSError as exc:
        _drop(sys.stdout)
        raise OutputError(exc) from None


def complain(text: str, end: str = "\n") -> None:
    """Print *text* on the standard error, if that is possible."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        _drop(sys.stderr)


def drop_errors() -> None:
    """Redirect the standard error, which cannot be written any more, to the null device."""
    _drop(sys.stderr)


def _drop(stream: IO[str]) -> None:
    """Redirect *stream* to the null device: writing its buffer would fail again at the exit."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, and for an unknown option which one may have been meant."""

    def error(self, message: str) -> NoReturn:
        """Say *message*, and exit."""
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown is not None:
            known = [option for action in self._actions for option in action.option_strings]
            if meant := get_close_matches(unknown[1], known, 1):
                message = f"{message}; did you mean {meant[0]}?"
        self.exit(_USAGE, f"{self.prog}: {message}; see {self.prog} -h\n")

    def _print_message(self, message: str, file: object = None) -> None:
        if file is not sys.stdout:
            complain(message, end="")
            return
        try:
            say(message, end="")
        except OutputError as exc:
            if not exc.is_left:
                complain(f"{self.prog}: {exc}")
            sys.exit(_FAILED)


def whole_number(text: str) -> int:
    """Read the value of an option as a number; raises ArgumentTypeError, which tells what to give."""
    if not re.fullmatch("[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f'"{text}" is not a whole number')
    return int(text)
