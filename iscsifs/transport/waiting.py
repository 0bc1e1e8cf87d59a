"""Messages to a user who waits for a host."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

log = logging.getLogger(__name__)

PATIENCE: Final = 2.0
"""Seconds of waiting before a message says for what."""


@contextmanager
def explained(what: Callable[[], str]) -> Iterator[None]:
    """Log ``waiting for WHAT`` when the body takes longer than PATIENCE; *what* is called then."""
    scope = trio.CancelScope()

    async def explain() -> None:
        with scope:
            await trio.sleep(PATIENCE)
            log.warning("waiting for %s", what())

    # Not in a nursery, which would put what is raised here into a group.
    trio.lowlevel.spawn_system_task(explain)
    try:
        yield
    finally:
        scope.cancel()
