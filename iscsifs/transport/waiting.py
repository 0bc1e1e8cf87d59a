"""What is said to a user who waits."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

log = logging.getLogger(__name__)

PATIENCE: Final = 2.0
"""Seconds after which somebody who waits is told for what."""


@contextmanager
def explained(what: Callable[[], str]) -> Iterator[None]:
    """Say ``waiting for WHAT`` when this takes longer than PATIENCE."""
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
