"""The living set: what the sources want is logged in to and shown in the tree, and leaves it again.

A source that reports another set of targets, a login and a logout change the tree while it is served. A
target is logged out of only while nobody has a disk of it open, and when everything that was written to it is
on stable storage.
"""

import logging
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from iscsifs.errors import InUseError, IscsifsError, printable
from iscsifs.fs.storage import Storage
from iscsifs.fs.tree import TargetDirectory, Tree
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.service.attach import Attached, Failure, Login, attach
from iscsifs.service.find import Follower, Origin, first_reports, merged
from iscsifs.service.network import Initiator, LogicalUnit, Network
from iscsifs.service.partitions import Partitions
from iscsifs.transport.polling import Poller

log = logging.getLogger(__name__)

RETRY_INTERVAL: Final = 10.0
"""Seconds between two attempts to log out of a target that no source wants any more, and that is in use."""

_ATTEMPTS: Final = 5
"""How often a target is drained for a logout while programs write to it and close it again."""


class LivingSet:
    """The targets that are attached, and the *tree* that shows them; see `open_living_set`.

    Initiators run in the nursery *initiators*, sources in *sources*.
    """

    def __init__(
        self, tree: Tree, network: Network, poller: Poller, initiators: trio.Nursery, sources: trio.Nursery
    ) -> None:
        self.tree = tree
        self._network = network
        self._poller = poller
        self._initiators = initiators
        self._sources = sources
        self._by_options: dict[InitiatorOptions, Initiator] = {}
        self._partitions = Partitions(tree, sources)
        self._opening = trio.Lock()
        self._closing = trio.Event()
        self._followers: dict[Origin, Follower] = {}
        self._targets: dict[Attached, TargetDirectory] = {}
        self._under_way: list[Login] = []  # which are being logged in to
        self._kept_out: list[Login] = []  # which were logged out of by their user, though a source wants them
        self._reports = trio.Event()  # a new one for each comparison

    @property
    def targets(self) -> list[Attached]:
        """The targets that are in the tree."""
        return list(self._targets)

    # Sources.

    async def find(self, origins: Sequence[Origin]) -> tuple[list[Login], list[Failure]]:
        """Add sources; return what all of them want first, and those that failed.

        Nothing is logged in to yet; what they report later is followed.
        """
        self._followers |= {origin: Follower(origin, self._reported) for origin in origins}
        followers = [self._followers[origin] for origin in origins]
        return await first_reports(followers, self._sources)

    async def add_source(self, origin: Origin) -> tuple[list[Attached], list[Failure]]:
        """Add a source, and attach what it wants; return that, and what failed.

        A source that fails before its first report is not kept.
        """
        found, failures = await self.find([origin])
        if failures:
            del self._followers[origin]
        attached, refused = await self.attach(found)
        return attached, failures + refused

    async def remove_source(self, origin: Origin) -> None:
        """Remove a source, and log out of what only this one wants; raises what `log_out` does.

        While one of these targets is in use nothing is removed.
        """
        others = [follower for follower in self._followers.values() if follower.origin is not origin]
        unwanted = self._unwanted_by(others)
        for attached in unwanted:
            self._require_unused(attached)
        for attached in unwanted:
            await self._log_out(attached)
        self._followers.pop(origin).stop()

    async def follow(self) -> None:
        """Attach and log out of what the sources report from now on, until cancelled."""
        patience = math.inf
        while True:
            with trio.move_on_after(patience):
                await self._reports.wait()
            self._reports = trio.Event()
            try:
                is_left = await self._compare()
            except Exception:  # which must not end the mount
                log.exception("unexpected error, please report it")
                is_left = True
            patience = RETRY_INTERVAL if is_left else math.inf

    def _reported(self) -> None:
        self._reports.set()

    async def _compare(self) -> bool:
        """Attach what is wanted, log out of what is not; return whether a logout is left for a later time."""
        wanted = merged(login for follower in self._followers.values() for login in follower.logins())
        self._kept_out = [login for login in self._kept_out if _has(wanted, login)]
        _, failures = await self.attach([login for login in wanted if not _has(self._kept_out, login)])
        for failure in failures:
            log.warning("%s", failure)
        is_left = False
        for attached in self._unwanted_by(list(self._followers.values())):
            try:
                await self._log_out(attached)
            except IscsifsError as exc:
                is_left = True
                log.warning("%s; it is logged out of later", exc, extra={"kind": exc.kind})
        return is_left

    def _unwanted_by(self, followers: Sequence[Follower]) -> list[Attached]:
        wanted = [login for follower in followers for login in follower.logins()]
        return [attached for attached in self._targets if not _has(wanted, attached.login)]

    # Targets.

    async def attach(self, logins: Sequence[Login]) -> tuple[list[Attached], list[Failure]]:
        """Log in to many targets, and show them in the tree; return them, and what failed.

        A target that is there, or that is being logged in to, is left out.
        """
        known = [*self._under_way, *(attached.login for attached in self._targets)]
        logins = [login for login in logins if not _has(known, login)]
        self._under_way += logins
        try:
            initiators = {login.options: await self._initiator(login.options) for login in logins}
            attached, failures = await attach(logins, initiators)
        finally:
            self._under_way = [login for login in self._under_way if login not in logins]
        directories = self.tree.add_targets([each.describe() for each in attached])
        for each, directory in zip(attached, directories, strict=True):
            self._show(each, directory)
        await self._partitions.settle()
        return attached, failures

    async def log_in(self, login: Login) -> Attached:
        """Log in to one target that a source wants, or that was logged out of; raises an `IscsifsError`."""
        attached, failures = await self.attach([login])
        if failures:
            raise failures[0].error
        if not attached:
            raise InUseError(f"{printable(login.wanted.name)}: it is logged in to already")
        self._kept_out = [each for each in self._kept_out if not each.is_same(login)]
        return attached[0]

    async def log_out(self, attached: Attached) -> None:
        """Log out of one target, and take it out of the tree; it stays out until `log_in`.

        Raises InUseError while a disk of it is open, or owes writes that cannot be written now, and what
        these writes fail with: then nothing has changed.
        """
        await self._log_out(attached)
        self._kept_out.append(attached.login)

    async def _log_out(self, attached: Attached) -> None:
        for _ in range(_ATTEMPTS):
            self._require_unused(attached)
            if not (unsafe := [storage for storage in self._storages(attached) if storage.needs_flush]):
                break
            for storage in unsafe:
                if storage.is_away:
                    raise InUseError(f"{storage.name}: not logged out: not all was written, and it is away")
                await storage.flush()
        else:
            raise InUseError(f"{attached.target.target_name}: not logged out: it is written to all the time")
        directory = self._targets.pop(attached)
        storages = self._storages_of(directory)
        attached.target.on_change = lambda: None
        attached.target.on_return = lambda unit: None
        self.tree.remove_target(directory)
        self.tree.storages.forget(storages)
        self._partitions.forget(directory)
        log.info("%s: logging out", attached.target.target_name)
        await attached.initiator.logout(attached.target)

    def _require_unused(self, attached: Attached) -> None:
        """Raise InUseError while a disk of the target is open, or where it is not attached any more."""
        if attached not in self._targets:
            raise InUseError(f"{attached.target.target_name}: it is logged out of already")
        for storage in self._storages(attached):
            if files := self.tree.storages.files.touching(storage):
                raise InUseError(f"{storage.name}: not logged out: it is open, {len(files)} times")

    def _storages(self, attached: Attached) -> list[Storage]:
        return self._storages_of(self._targets[attached])

    def _storages_of(self, directory: TargetDirectory) -> list[Storage]:
        units = (unit.unit.storage for unit in directory.units())
        return [storage for storage in units if storage is not None]

    def _show(self, attached: Attached, directory: TargetDirectory) -> None:
        """Keep *directory* as the target is, with its commands."""

        def refresh() -> None:
            self.tree.update(directory, attached.describe())
            self._partitions.follow(directory)

        def returned(unit: LogicalUnit) -> None:
            if (storage := unit.storage) is not None:
                self.tree.storages.may_have_changed(storage)
                self._partitions.look(storage)

        async def rescan() -> None:
            await attached.target.rescan()
            await self._partitions.rescan(directory)

        self._targets[attached] = directory
        self.tree.add_command(directory, b"rescan", rescan)
        attached.target.on_change = refresh
        attached.target.on_return = returned
        self._partitions.follow(directory)

    # Initiators: credentials belong to one, and sources may differ in them.

    async def _initiator(self, options: InitiatorOptions) -> Initiator:
        async with self._opening:
            if options not in self._by_options:
                self._by_options[options] = await self._initiators.start(self._run_initiator, options)
            return self._by_options[options]

    async def _run_initiator(
        self, options: InitiatorOptions, *, task_status: trio.TaskStatus[Initiator]
    ) -> None:
        """Keep an initiator: what opens it has to close it, and whoever asks for one may be gone by then."""
        async with self._network.open_initiator(options, self._poller) as initiator:
            task_status.started(initiator)
            await self._closing.wait()

    def close(self) -> None:
        """Have all initiators log out of everything."""
        self._closing.set()


def _has(logins: Sequence[Login], login: Login) -> bool:
    return any(login.is_same(other) for other in logins)


@asynccontextmanager
async def open_living_set(tree: Tree, network: Network, poller: Poller) -> AsyncIterator[LivingSet]:
    """Give a living set; leaving the context logs out of all targets, whatever they owe."""
    async with trio.open_nursery() as initiators:
        async with trio.open_nursery() as sources:
            living = LivingSet(tree, network, poller, initiators, sources)
            try:
                yield living
            finally:
                sources.cancel_scope.cancel()
        living.close()
