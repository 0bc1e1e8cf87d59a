"""A path to a logical unit, as the unit sees it.

A path sends a command once and tells how that ended. It numbers, frames and times commands; it repeats none
and keeps none. What a lost connection leaves unanswered comes back with `PathLost`.
"""

from collections.abc import Callable
from typing import Protocol

from iscsifs.errors import IscsifsError

NOTHING = memoryview(b"")
"""No data."""


class Attempt(Protocol):
    """A command that was sent by a path, once.

    When it has `ended`, `failure` says why there is no status, or is None; then `status` and `sense` are
    those of the target.
    """

    @property
    def ended(self) -> bool:
        """Whether the attempt is over."""

    @property
    def failure(self) -> IscsifsError | None:
        """Why there is no status; `errors.PathLost` where the connection was lost before it."""

    @property
    def status(self) -> int:
        """The SCSI status."""

    @property
    def sense(self) -> bytes:
        """The sense data; empty where there are none."""

    @property
    def received(self) -> int:
        """Bytes that arrived in the buffer of a read."""


class Path(Protocol):
    """A way to one logical unit."""

    @property
    def is_away(self) -> bool:
        """Whether commands cannot be sent."""

    @property
    def is_closed(self) -> bool:
        """Whether the path is closed for good."""

    @property
    def down_since(self) -> float:
        """When the path was lost, by trio's clock; now, while it is up."""

    def send(
        self, cdb: bytes, data_in: memoryview, data_out: memoryview, on_end: Callable[[Attempt], None]
    ) -> Attempt:
        """Send a command; *on_end* is called with the attempt when it has ended, perhaps before this returns.

        Raises PathLost where the path is down or closed.
        """

    def cancel(self, attempt: Attempt) -> None:
        """Withdraw *attempt* if it is not sent yet, else abort it at the target; its *on_end* may
        still be called."""

    def recall(self) -> None:
        """End all attempts that are not sent yet with `PathLost`."""

    def listen(self, changed: Callable[[], None]) -> None:
        """Call *changed* once: when the path is up again, is closed for good, or could not be restored."""

    def want(self) -> float:
        """Ask for an early attempt to restore the path; return until when that attempt may take."""

    def busy_poll(self) -> None:
        """Busy-poll for answers."""
