"""Asks the sources which targets are wanted."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from iscsifs.config import Config, Host
from iscsifs.discovery.sendtargets import SendTargets
from iscsifs.discovery.source import Source, Wanted
from iscsifs.discovery.static import StaticTarget
from iscsifs.errors import IscsifsError, NoTargetError, TransportError, printable
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.limits import LOGINS_AT_ONCE
from iscsifs.service.attach import Failure, Login, each
from iscsifs.service.name_servers import isns_source, trouble
from iscsifs.service.network import Network

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """A *source*, and the *options* by which its targets are logged in to."""

    source: Source
    options: InitiatorOptions


def origins_of(config: Config, network: Network) -> list[Origin]:
    """Return the sources that *config* names, the hosts first, in their order."""
    hosts = [Origin(_source_of(host, config, network), host.options) for host in config.hosts]
    return hosts + [
        Origin(isns_source(server, config.wants), server.options) for server in config.name_servers
    ]


def _source_of(host: Host, config: Config, network: Network) -> Source:
    spec, options = host.spec, host.options
    if spec.target is not None:
        return StaticTarget(spec.portal, options.family, spec.target, spec.lun)
    discover = partial(network.discover, spec.portal, options)
    return SendTargets(spec.portal, options.family, options.initiator_name, discover, config.wants)


class Follower:
    """Runs the source of *origin*, and keeps what it has reported last in `wanted`.

    *changed* is called after each report but the first one.
    """

    def __init__(self, origin: Origin, changed: Callable[[], None]) -> None:
        self.origin = origin
        self.wanted: tuple[Wanted, ...] = ()
        self.failure: IscsifsError | None = None
        """Why nothing was reported at all."""
        self._changed = changed
        self._reported = trio.Event()
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Run the source until there is nothing more to be told, or until `stop`."""
        with self._scope:
            try:
                await self.origin.source.run(self._report)
            except IscsifsError as exc:
                if self._reported.is_set():
                    log.warning("%s: %s; what it has told stays", self.origin.source.name, exc)
                else:
                    self.failure = exc
        self._reported.set()

    def stop(self) -> None:
        """Stop the source; what it has reported is not wanted any more."""
        self._scope.cancel()
        self.wanted = ()

    async def first(self) -> list[Login]:
        """Wait for the first report, and return what is wanted; raises what prevented it."""
        await self._reported.wait()
        if self.failure is not None:
            raise self.failure
        return self.logins()

    def logins(self) -> list[Login]:
        """Return what is wanted now."""
        return [Login(wanted, self.origin.options) for wanted in self.wanted]

    def _report(self, wanted: Sequence[Wanted]) -> None:
        self.wanted = tuple(wanted)
        if self._reported.is_set():
            self._changed()
        self._reported.set()


async def first_reports(
    followers: Sequence[Follower], nursery: trio.Nursery
) -> tuple[list[Login], list[Failure]]:
    """Run *followers* in *nursery*, and return what they report first, in their order, and those that failed.

    At most LOGINS_AT_ONCE begin at the same time.
    """
    outcomes: dict[int, list[Login] | IscsifsError] = {}

    async def look(index: int) -> list[Login]:
        nursery.start_soon(followers[index].run)
        return await followers[index].first()

    await each(range(len(followers)), look, outcomes, LOGINS_AT_ONCE)
    found: list[Login] = []
    failures: list[Failure] = []
    for follower, (_, outcome) in zip(followers, sorted(outcomes.items()), strict=True):
        if isinstance(outcome, IscsifsError):
            failures.append(Failure(follower.origin.source.name, outcome))
        else:
            found += outcome
    return merged(found), failures


def merged(logins: Iterable[Login]) -> list[Login]:
    """Return *logins* with each target once: the same again was found in another way, by a host that was
    given twice for example."""
    result: list[Login] = []
    places: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for login in logins:
        wanted = login.wanted
        same_name = places[wanted.host_name, wanted.name]
        known = next((place for place in same_name if result[place].wanted.shares_portal_with(wanted)), None)
        if known is None:
            same_name.append(len(result))
            result.append(login)
        else:
            result[known] = Login(result[known].wanted.merged_with(wanted), result[known].options)
    return result


async def find_targets(config: Config, network: Network) -> tuple[list[Login], list[Failure]]:
    """Return the targets that *config* wants, in the order of its hosts, and the hosts that failed."""
    followers = [Follower(origin, lambda: None) for origin in origins_of(config, network)]
    async with trio.open_nursery() as nursery:
        wanted, failures = await first_reports(followers, nursery)
        for source in (follower.origin.source for follower in followers):
            if (why := trouble(source)) is not None:
                failures.append(Failure(source.name, TransportError(why)))
        nursery.cancel_scope.cancel()
    return wanted, failures + no_match(config, wanted, failures)


def no_match(config: Config, found: Sequence[Login], failures: Sequence[Failure]) -> list[Failure]:
    """Return the failure that no target has a name that is wanted, if that is so."""
    if not config.patterns or found or failures:
        return []
    patterns = " ".join(printable(pattern) for pattern in config.patterns)
    return [Failure(patterns, NoTargetError("no target has a name like this; list them with -D"))]
