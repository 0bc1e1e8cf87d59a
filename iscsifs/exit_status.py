"""What the commands end with."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """The exit statuses of iscsifs; iscsifs(8) has the list."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    NO_TARGET = 5
    PARTIAL = 6
    NOT_WRITTEN = 7
