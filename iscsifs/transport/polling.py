"""What a link needs of a busy-poller: an answer that comes soon is received without a turn of the event loop.

The poller is not the link's own: it knows all descriptors that the event loop waits for. Without a poller a
link uses the event loop alone.
"""

from collections.abc import Callable
from typing import Final, Protocol


class Watched(Protocol):
    """A descriptor that a poller watches."""

    callback: Callable[[], None] | None
    """Receives from the descriptor while another one is polled; None: it needs a turn of the event loop."""

    def poll(self) -> bool:
        """Block the event loop briefly; return whether the descriptor is readable by then."""

    def close(self) -> None:
        """Watch the descriptor no more; a second time does nothing."""


class Poller(Protocol):
    """Watches descriptors."""

    def watch(self, fd: int) -> Watched:
        """Watch *fd*, a descriptor to read from, until `Watched.close`."""


class _Unwatched:
    """A descriptor that is left to the event loop."""

    callback: Callable[[], None] | None = None

    def poll(self) -> bool:
        return False

    def close(self) -> None:
        self.callback = None


class _NoPoller:
    """Never polls."""

    def watch(self, fd: int) -> _Unwatched:
        return _Unwatched()


NO_POLLER: Final[Poller] = _NoPoller()
"""Leaves everything to the event loop."""
