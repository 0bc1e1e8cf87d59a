"""The living set: what the sources want is logged in to and shown in the tree, and leaves it again.

A source that reports another set of targets, a login and a logout change the tree while it is served. A
target is logged out of only while nobody has a disk of it open, and when everything that was written to it is
on stable storage. What is missing is tried again, and each change is an event.
"""

import logging
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from iscsifs.errors import InUseError, IscsifsError, printable
from iscsifs.fs.storage import Storage
from iscsifs.fs.tree import TargetDirectory, Tree
from iscsifs.limits import LOGINS_AT_ONCE
from iscsifs.monitor.events import Events
from iscsifs.service.attach import Attached, Failure, Login, attach
from iscsifs.service.changes import LossWatch, UnitChanges
from iscsifs.service.find import Follower, Origin, first_reports, merged
from iscsifs.service.initiators import Initiators
from iscsifs.service.network import LogicalUnit, Network
from iscsifs.service.partitions import Partitions
from iscsifs.service.retries import delays, may_pass
from iscsifs.transport.polling import Poller

log = logging.getLogger(__name__)

RETRY_INTERVAL: Final = 10.0
"""Seconds between two attempts to log out of a target that no source wants any more, and that is in use."""

_ATTEMPTS: Final = 5
"""How often a target is drained for a logout while programs write to it and close it again."""


class LivingSet:
    """The targets that are attached, and the *tree* that shows them; see `open_living_set`.

    Sources and attempts to log in again run in *nursery*.
    """

    def __init__(
        self, tree: Tree, initiators: Initiators, nursery: trio.Nursery, events: Events, *, retries: bool
    ) -> None:
        self.tree = tree
        self.events = events
        self._initiators = initiators
        self._nursery = nursery
        self.partitions: Final = Partitions(tree, nursery)
        self._retries = retries
        self._attempts = trio.CapacityLimiter(LOGINS_AT_ONCE)  # of logins that have failed before
        self._followers: dict[Origin, Follower] = {}
        self._targets: dict[Attached, TargetDirectory] = {}
        self._under_way: list[Login] = []  # which are being logged in to
        self._kept_out: dict[Login, bytes] = {}  # logged out of by their user, and the names that they had
        self._reports = trio.Event()  # a new one for each comparison
        self.on_target: list[Callable[[TargetDirectory], None]] = []
        """Called with the directory of each target that comes."""

    @property
    def targets(self) -> list[Attached]:
        """The targets that are in the tree."""
        return list(self._targets)

    @property
    def origins(self) -> list[Origin]:
        """The sources that are asked."""
        return list(self._followers)

    def directory_of(self, attached: Attached) -> TargetDirectory:
        """Return the directory of a target that is in the tree."""
        return self._targets[attached]

    def at(self, path: bytes) -> list[Attached]:
        """Return the target of the directory *path*, or all targets of the host with this directory."""
        return [
            attached
            for attached, directory in self._targets.items()
            if path in (directory.path, directory.path.partition(b"/")[0])
        ]

    # Sources.

    async def find(self, origins: Sequence[Origin]) -> tuple[list[Login], list[Failure]]:
        """Add sources; return what all of them want first, and those that failed.

        Nothing is logged in to yet; what they report later is followed.
        """
        self._followers |= {
            origin: Follower(origin, self._reported, retries=self._retries) for origin in origins
        }
        followers = [self._followers[origin] for origin in origins]
        found, failures = await first_reports(followers, self._nursery)
        for failure in failures:
            self.events.add("source_failed", str(failure))
        return found, failures

    async def add_source(self, origin: Origin) -> tuple[list[Attached], list[Failure]]:
        """Add a source, and attach what it wants; return that, and what failed.

        A source that fails before its first report is not kept.
        """
        try:
            found, failures = await self.find([origin])
        except BaseException:
            self._followers.pop(origin).stop()
            raise
        if failures:
            self._followers.pop(origin).stop()
        attached, refused = await self.attach(found)
        self.retry(refused)
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
            await self._log_out(attached, "its source was removed")
        self.drop_source(origin)

    def drop_source(self, origin: Origin) -> None:
        """Ask a source for nothing any more; what it wants stays, until the next report of another one."""
        follower = self._followers.pop(origin, None)
        if follower is not None:
            follower.stop()
            self._prune(self._wanted())

    def wanted_by(self, origin: Origin) -> list[Login]:
        """Return what a source wants now."""
        return self._followers[origin].logins()

    async def follow(self) -> None:
        """Attach and log out of what the sources report from now on, and tell of losses, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(LossWatch(self.tree.storages, self._lost).run)
            await self._follow()

    async def _follow(self) -> None:
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
        wanted = self._wanted()
        self._prune(wanted)
        _, failures = await self.attach([login for login in wanted if not _has(self._kept_out, login)])
        for failure in failures:
            log.warning("%s", failure)
        self.retry(failures)
        is_left = False
        for attached in self._unwanted_by(list(self._followers.values())):
            try:
                await self._log_out(attached, "no source tells of it any more")
            except IscsifsError as exc:
                is_left = True
                log.warning("%s; it is logged out of later", exc, extra={"kind": exc.kind})
        return is_left

    def _wanted(self) -> list[Login]:
        """Return what the sources want now."""
        return merged(login for follower in self._followers.values() for login in follower.logins())

    def _prune(self, wanted: Sequence[Login]) -> None:
        """Forget what its user has logged out of and is not *wanted* any more, and hosts without targets."""
        for login in [login for login in self._kept_out if not _has(wanted, login)]:
            self._forget(login)

    def _forget(self, login: Login) -> None:
        self._remove_host(self._kept_out.pop(login))

    def _remove_host(self, path: bytes) -> None:
        """Remove the host of *path* where nothing is in its directory, and nothing may come back there."""
        host = path.partition(b"/")[0]
        if not any(kept.startswith(host + b"/") for kept in self._kept_out.values()):
            self.tree.remove_host(host)

    def _unwanted_by(self, followers: Sequence[Follower]) -> list[Attached]:
        wanted = [login for follower in followers for login in follower.logins()]
        return [attached for attached in self._targets if not _has(wanted, attached.login)]

    # Targets.

    async def attach(
        self, logins: Sequence[Login], name: bytes = b""
    ) -> tuple[list[Attached], list[Failure]]:
        """Log in to many targets, and show them in the tree; return them, and what failed.

        A target that is there, or that is being logged in to, is left out. *name* is what the directory of
        the only one is to be called.
        """
        known = [*self._under_way, *(attached.login for attached in self._targets)]
        logins = [login for login in logins if not _has(known, login)]
        self._under_way += logins
        try:
            initiators = {login.options: await self._initiators.get(login.options) for login in logins}
            attached, failures = await attach(logins, initiators)
        finally:
            self._under_way = [login for login in self._under_way if login not in logins]
        for failure in failures:
            self._tell("login_failed", failure.login, str(failure))
        directories = self.tree.add_targets([each.describe() for each in attached], name if attached else b"")
        for each, directory in zip(attached, directories, strict=True):
            self._show(each, directory)
        await self.partitions.settle()
        return attached, failures

    def retry(self, failures: Iterable[Failure]) -> None:
        """Go on with the logins that have failed for a reason that may pass."""
        for failure in failures:
            if self._retries and failure.login is not None and may_pass(failure.error):
                self._nursery.start_soon(self._try_again, failure)

    async def _try_again(self, failure: Failure) -> None:
        """Try a login later and later, as long as it is wanted and may succeed."""
        login = failure.login
        assert login is not None
        for delay in delays():
            await trio.sleep(delay)
            if not _has(self._wanted(), login) or _has(self._kept_out, login):
                return
            async with self._attempts:
                _, failures = await self.attach([login])
            if not failures:
                return
            if str(failures[0]) != str(failure):
                (failure,) = failures
                log.warning("%s", failure)
            if not may_pass(failure.error):
                return

    async def log_in(self, login: Login, name: bytes = b"") -> Attached:
        """Log in to one target that a source wants, or that was logged out of; raises an `IscsifsError`.

        *name* is what its directory is to be called.
        """
        attached, failures = await self.attach([login], name)
        if failures:
            raise failures[0].error
        if not attached:
            raise InUseError(f"{printable(login.wanted.name)}: it is logged in to already")
        self._kept_out = {each: path for each, path in self._kept_out.items() if not each.is_same(login)}
        return attached[0]

    def absent(self, host: bytes) -> Iterator[tuple[Login, bytes]]:
        """Yield what sources want of the host with this directory and is not there, with the name that it had
        there, which is empty where it had none."""
        for login in self._wanted():
            if login.host == host and not _has([attached.login for attached in self._targets], login):
                kept = next((path for each, path in self._kept_out.items() if each.is_same(login)), b"")
                yield login, kept.partition(b"/")[2]

    async def log_out(self, attached: Attached) -> None:
        """Log out of one target, and take it out of the tree; it stays out until `log_in`.

        Raises InUseError while a disk of it is open, or owes writes that cannot be written now, and what
        these writes fail with: then nothing has changed.
        """
        await self._log_out(
            attached, "its user has logged out", keep_out=_has(self._wanted(), attached.login)
        )

    async def log_out_of_host(self, name: bytes) -> None:
        """Log out of all targets of the host with this directory, and remove it; raises what `log_out` does.

        While one of them is in use, or cannot be put on stable storage, nobody is logged out of.
        """
        targets = self.at(name)
        for attached in targets:
            self._require_unused(attached)
        for attached in targets:
            await self._drain(attached)
        for attached in targets:
            await self.log_out(attached)

    async def _log_out(self, attached: Attached, why: str, *, keep_out: bool = False) -> None:
        await self._drain(attached)
        directory = self._targets.pop(attached)
        if keep_out:
            self._kept_out[attached.login] = directory.path
        storages = self._storages_of(directory)
        attached.target.on_change = lambda: None
        attached.target.on_return = lambda unit: None
        attached.target.on_note = lambda kind, text: None
        self.tree.remove_target(directory)
        self._remove_host(directory.path)
        self.tree.storages.forget(storages)
        self.partitions.forget(directory)
        log.info("%s: logging out", attached.target.target_name)
        self._tell("logout", attached.login, f"logged out: {why}")
        await attached.initiator.logout(attached.target)

    async def _drain(self, attached: Attached) -> None:
        """Have everything on stable storage while nobody has a disk open; raises what prevents that."""
        for _ in range(_ATTEMPTS):
            self._require_unused(attached)
            if not (unsafe := [storage for storage in self._storages(attached) if storage.needs_flush]):
                return
            for storage in unsafe:
                if storage.is_away:
                    raise InUseError(f"{storage.name}: not logged out: not all was written, and it is away")
                await storage.flush()
        raise InUseError(f"{attached.target.target_name}: not logged out: it is written to all the time")

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
        """Keep *directory* as the target is."""

        def tell(kind: str, label: str, text: str) -> None:
            self._tell(kind, attached.login, text, lun=label)

        def note(kind: str, text: str) -> None:
            self._tell(kind, attached.login, text)

        def refresh() -> None:
            description = attached.describe()
            changes.look(description.units)
            self.tree.update(directory, description)
            self.partitions.follow(directory)

        def returned(unit: LogicalUnit) -> None:
            if (storage := unit.storage) is not None:
                self.tree.storages.may_have_changed(storage)
                self.partitions.look(storage)

        self._targets[attached] = directory
        units = directory.target.units
        changes = UnitChanges(units, tell)
        attached.target.on_change = refresh
        attached.target.on_return = returned
        attached.target.on_note = note
        for arrange in self.on_target:
            arrange(directory)
        self.partitions.follow(directory)
        self._tell(
            "login", attached.login, f"logged in at {attached.target.portal}; logical units: {len(units)}"
        )

    def _lost(self, storage: Storage, text: str) -> None:
        """Tell of a loss; its target may be gone by now."""
        for attached, directory in self._targets.items():
            for unit in directory.units():
                if unit.unit.storage is storage:
                    self._tell("losses", attached.login, text, lun=unit.unit.label)
                    return
        self.events.add("losses", f"{storage.name}: {text}")

    def _tell(self, kind: str, login: Login | None, text: str, **where: str) -> None:
        """Add an event about a target; *where* may say which unit."""
        if login is not None:
            where = {"host": login.host.decode(), "target": login.wanted.name, **where}
        self.events.add(kind, text, **where)


def _has(logins: Iterable[Login], login: Login) -> bool:
    return any(login.is_same(other) for other in logins)


@asynccontextmanager
async def open_living_set(
    tree: Tree, network: Network, poller: Poller, events: Events | None = None, *, retries: bool = False
) -> AsyncIterator[LivingSet]:
    """Give a living set; leaving the context logs out of all targets, whatever they owe.

    With *retries*, what is missing is tried again for as long as it is wanted.
    """
    async with trio.open_nursery() as outer:
        initiators = Initiators(network, poller, outer)
        async with trio.open_nursery() as sources:
            try:
                yield LivingSet(tree, initiators, sources, events or Events(), retries=retries)
            finally:
                sources.cancel_scope.cancel()
        initiators.close()
