"""A path: one LUN through one session, as `units` wants a path to be."""

from collections.abc import Callable
from typing import Any

from iscsifs.errors import PathLost
from iscsifs.initiator.session import Session
from iscsifs.iscsi.task import Task


class LunPath:
    """The commands for *lun* by *session*."""

    __slots__ = ("_session", "lun")

    def __init__(self, session: Session, lun: int) -> None:
        self.lun = lun
        self._session = session

    @property
    def is_away(self) -> bool:
        """Whether there is no connection."""
        return self._session.is_away

    @property
    def is_closed(self) -> bool:
        """Whether the session is closed for good."""
        return self._session.is_closed

    @property
    def down_since(self) -> float:
        """When the connection was lost, by trio's clock; now, while there is one."""
        return self._session.down_since

    def send(
        self, cdb: bytes, data_in: memoryview, data_out: memoryview, on_end: Callable[[Any], None]
    ) -> Task:
        """Send a command as a task of the session; raises PathLost where there is no connection."""
        link = self._session.open_link
        if link is None:
            raise PathLost(sent=False)
        task = Task(self.lun, cdb, data_in=data_in, data_out=data_out, on_end=on_end, owner=self)
        link.submit(task)
        return task

    def cancel(self, attempt: object) -> None:
        """Withdraw *attempt* if it is not sent yet, else abort it."""
        assert isinstance(attempt, Task)
        self._session.cancel(attempt)

    def recall(self) -> None:
        """Hand back the commands of this path that are not sent yet, by `PathLost`."""
        self._session.recall(self)

    def listen(self, changed: Callable[[], None]) -> None:
        """Call *changed* once: when the session is up again or closed, or an attempt to log in has failed."""
        self._session.listen(changed)

    def want(self) -> float:
        """Cut the session's back-off short; return until when an attempt to log in may help."""
        return self._session.want()

    def busy_poll(self) -> None:
        """Busy-poll for answers."""
        self._session.link.busy_poll()
