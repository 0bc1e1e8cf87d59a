"""Resets that a user asks for (RFC 7143 section 11.5): whoever asks waits for the answer."""

import trio

from iscsifs.errors import TaskAborted, TransportError
from iscsifs.iscsi.events import Management
from iscsifs.limits import MANAGEMENT_TIMEOUT


class Resets:
    """The resets that a user waits for, each with what to set at its end."""

    def __init__(self) -> None:
        self._waiting: dict[Management, _Waiting] = {}

    async def wait(self, name: str, management: Management) -> None:
        """Wait for the answer to *management*; raises TransportError without one, TaskAborted where it is
        no."""
        waiting = self._waiting[management] = _Waiting(management)
        try:
            await waiting.over.wait()
        finally:
            self._waiting.pop(waiting.management, None)
        what = f"{name}: {management.function.name}"
        response = waiting.management.response
        if waiting.is_lost:
            raise TransportError(f"{what}: the connection was lost")
        if response is None:
            raise TransportError(f"{what}: no answer in {MANAGEMENT_TIMEOUT:g} s")
        if not waiting.management.succeeded:
            raise TaskAborted(f"{what}: the target refuses it (response {response})")

    def repeated(self, management: Management, again: Management) -> Management:
        """Take note that *again* was sent in the place of *management*; return it."""
        if (waiting := self._waiting.pop(management, None)) is not None:
            waiting.management = again
            self._waiting[again] = waiting
        return again

    def ended(self, management: Management) -> bool:
        """Take note that *management* is over; return whether a user waits for it."""
        waiting = self._waiting.get(management)
        if waiting is not None:
            waiting.over.set()
        return waiting is not None

    def refused(self, management: Management) -> bool:
        """Take note that *management* was not carried out; return whether a user has asked for it.

        Then nothing stronger follows: the commands that it was about go on.
        """
        is_asked_for = self.ended(management)
        if is_asked_for:
            for task in management.tasks:
                task.aborting = False
        return is_asked_for

    def lost(self) -> None:
        """Take note that the connection is lost, and every answer with it."""
        for waiting in self._waiting.values():
            waiting.is_lost = True
            waiting.over.set()


class _Waiting:
    """Somebody who waits for the end of *management*."""

    __slots__ = ("is_lost", "management", "over")

    def __init__(self, management: Management) -> None:
        self.management = management
        self.over = trio.Event()
        self.is_lost = False
