"""Asks the sources which targets are wanted."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import trio

from iscsifs.config import Config, Host
from iscsifs.discovery.sendtargets import SendTargets
from iscsifs.discovery.source import Source, Wanted
from iscsifs.discovery.static import StaticTarget
from iscsifs.errors import IscsifsError, NoTargetError, TransportError, printable
from iscsifs.hosts import NameServer
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.limits import LOGINS_AT_ONCE
from iscsifs.monitor.events import Events
from iscsifs.service.attach import Failure, Login, each
from iscsifs.service.name_servers import isns_source, teller, trouble
from iscsifs.service.network import Network
from iscsifs.service.retries import delays, may_pass

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """A *source*, and the *options* by which its targets are logged in to.

    *place* is the name of the directory of its targets, where that is not to be made of their host's name.
    """

    source: Source
    options: InitiatorOptions
    place: bytes = b""


def origins_of(config: Config, network: Network, events: Events | None = None) -> list[Origin]:
    """Return the sources that *config* names, the hosts first, in their order."""
    return origins(config.hosts, config.name_servers, config, network, events)


def origins(
    hosts: Iterable[Host],
    name_servers: Iterable[NameServer],
    config: Config,
    network: Network,
    events: Events | None,
) -> list[Origin]:
    """Return the sources of the targets of *hosts* and of those that *name_servers* tell of; what these
    are at is told to *events*, or only to who wants to know more where nothing is mounted."""
    say = log.info if events is None else teller(events)
    return [origin_of(host, config, network) for host in hosts] + [
        Origin(isns_source(server, config.wants, say), server.options) for server in name_servers
    ]


def origin_of(host: Host, config: Config, network: Network) -> Origin:
    """Return the source of the targets of *host*."""
    return Origin(_source_of(host, config, network), host.options)


def _source_of(host: Host, config: Config, network: Network) -> Source:
    spec, options = host.spec, host.options
    if spec.target is not None:
        return StaticTarget(spec.portal, options.family, spec.target, spec.lun)
    discover = partial(network.discover, spec.portal, options)
    return SendTargets(spec.portal, options.family, options.initiator_name, discover, config.wants)


class Follower:
    """Runs the source of *origin*, and keeps what it has reported last in `wanted`.

    *changed* is called after each report but the first one. With *retries*, a source that has failed for a
    reason that may pass is run again, later and later.
    """

    def __init__(self, origin: Origin, changed: Callable[[], None], *, retries: bool = False) -> None:
        self.origin = origin
        self.wanted: tuple[Wanted, ...] = ()
        self.failure: IscsifsError | None = None
        """Why nothing was reported at all so far."""
        self.is_over = False
        """Whether it will report nothing more."""
        self._changed = changed
        self._retries = retries
        self._reported = trio.Event()
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Run the source until there is nothing more to be told, or until `stop`."""
        with self._scope:
            for delay in delays():
                try:
                    await self.origin.source.run(self._report)
                except IscsifsError as exc:
                    if self._failed(exc):
                        await trio.sleep(delay)
                        continue
                break
        self.is_over = True
        self._reported.set()

    def _failed(self, error: IscsifsError) -> bool:
        """Take note that the source has failed; return whether to run it again."""
        has_told = self._reported.is_set() and self.failure is None
        again = self._retries and may_pass(error)
        if has_told:
            log.warning("%s: %s; what it has told stays", self.origin.source.name, error)
        elif self.failure is not None and str(self.failure) != str(error):
            log.warning("%s", Failure(self.origin.source.name, error))
        if not has_told:
            self.failure = error
        self._reported.set()
        return again

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
        return [Login(wanted, self.origin.options, self.origin.place) for wanted in self.wanted]

    def _report(self, wanted: Sequence[Wanted]) -> None:
        self.wanted = tuple(wanted)
        self.failure = None
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
            result[known] = replace(result[known], wanted=result[known].wanted.merged_with(wanted))
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
    if not config.hosts or not config.patterns or found or failures:
        return []
    patterns = " ".join(printable(pattern) for pattern in config.patterns)
    return [Failure(patterns, NoTargetError("no target has a name like this; list them with -D"))]
