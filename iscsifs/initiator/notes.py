"""What a target does by itself, for the log, which it must not fill."""

import logging

from iscsifs.limits import NOTES_A_MINUTE

log = logging.getLogger(__name__)


class Notes:
    """The notes on the target of the session *name*."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0

    def add(self, text: str) -> None:
        """Log *text*, but at most NOTES_A_MINUTE of them."""
        self._count += 1
        if self._count <= NOTES_A_MINUTE:
            more = "; more of these are left out" if self._count == NOTES_A_MINUTE else ""
            log.warning("%s: %s%s", self._name, text, more)

    def begin_minute(self) -> None:
        """Take note that another minute has begun."""
        self._count = 0
