"""The initiator: it discovers targets, logs in to them, and logs out of all of them at the end."""

import itertools
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from iscsifs.initiator import discover as discovery
from iscsifs.initiator.dial import Dialler
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.initiator.session import Session
from iscsifs.initiator.target import Target
from iscsifs.iscsi.chap import ChallengeMemory
from iscsifs.iscsi.discovery import DiscoveredTarget
from iscsifs.iscsi.names import Portal, TargetAddress

# What all logins of a process share: no challenge is used twice, and no two sessions have the same ISID.
_challenges = ChallengeMemory()
_process = os.urandom(3)
_qualifiers = itertools.count()


def new_isid() -> bytes:
    """Return an ISID of the random format (RFC 7143 section 11.12.5) that no other session here has."""
    return b"\x80" + _process + (next(_qualifiers) & 0xFFFF).to_bytes(2, "big")


class Initiator:
    """Sessions with targets, as the initiator that *options* describe; see `open_initiator`."""

    def __init__(self, options: InitiatorOptions, nursery: trio.Nursery) -> None:
        self._options = options
        self._nursery = nursery
        self._sessions: list[Session] = []

    async def login(self, target_name: str, portals: Sequence[Portal]) -> Target:
        """Log in to *target_name* at the first of *portals* where that succeeds, and find its units.

        Raises TransportError, ProtocolError, LoginError or CommandError; nothing is left behind then.
        """
        addresses = [TargetAddress(portal) for portal in portals]
        dialler = Dialler(self._options, _challenges, target_name, addresses, new_isid())
        session = Session(target_name, dialler, self._options, await dialler())
        self._nursery.start_soon(session.run)
        self._sessions.append(session)
        target = Target(target_name, dialler, session, self._options, self._nursery)
        try:
            await target.find_units()
        except BaseException:
            self._sessions.remove(session)
            with trio.CancelScope(shield=True):
                await session.close()
            raise
        return target

    async def close(self) -> None:
        """Log out of all targets, in parallel and in bounded time."""
        async with trio.open_nursery() as nursery:
            for session in self._sessions:
                nursery.start_soon(session.close)


@asynccontextmanager
async def open_initiator(options: InitiatorOptions) -> AsyncIterator[Initiator]:
    """Give an initiator; leaving the context, also by cancellation, logs out of all its targets."""
    manager = trio.open_nursery()
    outer = await manager.__aenter__()
    try:
        nursery: trio.Nursery = await outer.start(_shelter)
        initiator = Initiator(options, nursery)
        try:
            yield initiator
        finally:
            with trio.CancelScope(shield=True):
                await initiator.close()
            nursery.cancel_scope.cancel()
    finally:
        # Not told of the body's exception, the nursery does not wrap it up in a group.
        await manager.__aexit__(None, None, None)


async def _shelter(task_status: trio.TaskStatus[trio.Nursery]) -> None:
    """Give a nursery in which sessions live on while their user is being cancelled, so that they can log
    out."""
    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            task_status.started(nursery)
            await trio.sleep_forever()


async def discover(portal: Portal, options: InitiatorOptions) -> list[DiscoveredTarget]:
    """Ask *portal* for its targets (SendTargets); raises TransportError, LoginError or ProtocolError."""
    return await discovery.discover(portal, options, _challenges, new_isid())
