"""The end of a mount: everything that was written is put on stable storage, and what is not is told."""

import logging
from typing import Final

import trio

from iscsifs.errors import IscsifsError
from iscsifs.fs.storage import Storage
from iscsifs.fs.storages import Storages
from iscsifs.limits import END_TIMEOUT

log = logging.getLogger(__name__)

_A_WHILE: Final = 1.0
"""Seconds after which it is told what the end waits for."""


async def put_on_stable_storage(storages: Storages) -> None:
    """Have every unit put on stable storage what it was given; one that has done so already is not asked."""
    unsafe = [storage for storage in storages.written if storage.needs_flush]

    async def flush(storage: Storage) -> None:
        try:
            await storage.flush()
        except IscsifsError as exc:
            log.error("data may be lost: %s", exc)

    async def explain() -> None:
        await trio.sleep(_A_WHILE)
        for storage in unsafe:
            if storage.needs_flush:
                log.warning(
                    "%s: not all that was written is on stable storage; trying for %g seconds in all",
                    storage.name,
                    END_TIMEOUT,
                )

    async with trio.open_nursery() as outer:
        outer.start_soon(explain)
        async with trio.open_nursery() as nursery:
            for storage in unsafe:
                nursery.start_soon(flush, storage)
        outer.cancel_scope.cancel()


def all_is_safe(storages: Storages) -> bool:
    """Say of which units not all that was written is on stable storage, and return whether there are none.

    So count writes whose loss no program was told of; the log has had the reasons.
    """
    unsafe = [storage for storage in storages.written if storage.needs_flush]
    for storage in unsafe:
        if storage.unwritten:
            what = f"{storage.unwritten} bytes were not written"
        else:
            what = "what was written last may be in the target's cache only"
        log.error("%s: data may be lost: %s", storage.name, what)
    untold = storages.untold
    for losses in untold:
        log.error("%s: acknowledged writes are lost, and no fsync was told: %s", losses.name, losses.latest)
    return not unsafe and not untold
