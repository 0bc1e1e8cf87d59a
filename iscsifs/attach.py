"""From hosts to logical units: every host is asked for its targets, and those wanted are logged in to."""

import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import trio

from iscsifs.config import Config, Host
from iscsifs.errors import IscsifsError, LoginTimeout, printable
from iscsifs.fs.storage import Storage
from iscsifs.fs.tree import TargetDescription, UnitDescription
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.names import Portal, TargetAddress
from iscsifs.limits import ATTACH_TIMEOUT, LOGINS_AT_ONCE, MAX_TARGETS
from iscsifs.transport.lookup import look_up
from iscsifs.transport.polling import Poller
from iscsifs.transport.waiting import explained

_R = TypeVar("_R")


class LogicalUnit(Protocol):
    """What is used of a logical unit."""

    @property
    def label(self) -> str:
        """The number, as text."""

    @property
    def device_type(self) -> int:
        """The peripheral device type."""

    @property
    def type_name(self) -> str:
        """The same as a word."""

    @property
    def vendor(self) -> str:
        """The vendor."""

    @property
    def product(self) -> str:
        """The product."""

    @property
    def revision(self) -> str:
        """The product revision level."""

    @property
    def serial(self) -> str | None:
        """The serial number."""

    @property
    def wwid(self) -> str | None:
        """The worldwide name."""

    @property
    def storage(self) -> Storage | None:
        """The unit as a range of bytes, where it has any."""


class Target(Protocol):
    """What is used of a target that was logged in to: its name, and where it was reached."""

    target_name: str
    on_change: Callable[[], None]
    """Called when a unit has come, gone, or changed."""
    on_return: Callable[[Any], None]
    """Called with a unit that was found to be the same after a new login or a reset."""

    @property
    def portal(self) -> Portal:
        """Where it was reached."""

    @property
    def address(self) -> str:
        """The same as a numeric address."""

    @property
    def tag(self) -> int | None:
        """The tag of its portal group."""

    @property
    def units(self) -> Sequence[LogicalUnit]:
        """The logical units."""


class DiscoveredTarget(Protocol):
    """A target that SendTargets told of."""

    @property
    def name(self) -> str:
        """The target."""

    @property
    def addresses(self) -> Sequence[TargetAddress]:
        """Its portals."""


class Initiator(Protocol):
    """What is used of an initiator."""

    async def login(self, target_name: str, portals: Sequence[Portal]) -> Target:
        """Log in to *target_name* by the first of *portals* where that succeeds."""


class Network(Protocol):
    """The module `iscsifs.service`, or what stands in for it."""

    async def discover(self, portal: Portal, options: InitiatorOptions) -> Sequence[DiscoveredTarget]:
        """Ask *portal* for its targets."""

    def open_initiator(
        self, options: InitiatorOptions, poller: Poller
    ) -> AbstractAsyncContextManager[Initiator]:
        """Return an initiator, which logs out of everything when it is left; connections use *poller*."""


class NoTargetError(IscsifsError):
    """What was asked for is not there: no target at all, no name that matches, no such logical unit."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be had, and why."""

    what: str
    error: IscsifsError

    def __str__(self) -> str:
        reason = str(self.error)
        if isinstance(self.error, LoginTimeout):
            reason += "; does a target answer there? -o login_timeout=SECONDS waits longer"
        return reason if reason.startswith(f"{self.what}: ") else f"{self.what}: {reason}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A target wanted, and of its logical units only *luns* if those are not None.

    *host_name* is the canonical name of its host, or the address where that has none.
    """

    host: Host
    host_name: str
    name: str
    addresses: tuple[TargetAddress, ...]
    luns: frozenset[str] | None = None

    def shares_portal_with(self, other: "Wanted") -> bool:
        """Say whether there is a portal at which both can be reached."""
        portals = {address.portal for address in self.addresses}
        return not portals.isdisjoint(address.portal for address in other.addresses)

    def merged_with(self, other: "Wanted") -> "Wanted":
        """Return this target with the logical units of *other* as well."""
        luns = None if self.luns is None or other.luns is None else self.luns | other.luns
        return replace(self, luns=luns)

    def lines(self) -> list[str]:
        """Return a line for each portal, as in ``host: 10.4.0.42:3260,1 iqn.2001-04.com.example:disk``."""
        return [line(self.host_name, address, self.name) for address in self.addresses]


@dataclass(frozen=True, slots=True)
class Attached:
    """A target that was logged in to as it was *wanted*."""

    wanted: Wanted
    target: Target

    def line(self) -> str:
        """Return the line for the portal that it was reached by."""
        address = TargetAddress(Portal(self.target.address, self.target.portal.port), self.target.tag)
        return line(self.wanted.host_name, address, self.target.target_name)

    def describe(self) -> TargetDescription:
        """Describe the target with the logical units that are there now."""
        luns = self.wanted.luns
        return TargetDescription(
            self.wanted.host_name,
            self.target.address,
            self.target.portal.port,
            self.target.target_name,
            tuple(_description(unit) for unit in self.target.units if luns is None or unit.label in luns),
        )


def line(host_name: str, address: TargetAddress, target_name: str) -> str:
    """Return what is printed for a portal of a target."""
    tag = "" if address.tag is None else f",{address.tag}"
    return f"{printable(host_name)}: {address.portal}{tag} {printable(target_name)}"


async def find_targets(config: Config, network: Network) -> tuple[list[Wanted], list[Failure]]:
    """Return the targets that *config* wants, in the order of its hosts, and the hosts that failed."""
    outcomes: dict[int, list[Wanted] | IscsifsError] = {}

    async def look(index: int) -> list[Wanted]:
        return await _targets_of(config.hosts[index], config, network)

    await _each(range(len(config.hosts)), look, outcomes, LOGINS_AT_ONCE)
    found: list[Wanted] = []
    failures: list[Failure] = []
    for host, (_, outcome) in zip(config.hosts, sorted(outcomes.items()), strict=True):
        if isinstance(outcome, IscsifsError):
            failures.append(Failure(str(host.spec.portal), outcome))
        else:
            found += outcome
    wanted: list[Wanted] = []
    places: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for target in found:
        # The same again was found in another way, by a host that was given twice for example.
        same_name = places[target.host_name, target.name]
        known = next((place for place in same_name if wanted[place].shares_portal_with(target)), None)
        if known is None:
            same_name.append(len(wanted))
            wanted.append(target)
        else:
            wanted[known] = wanted[known].merged_with(target)
    if config.patterns and not wanted and not failures:
        patterns = " ".join(printable(pattern) for pattern in config.patterns)
        failures.append(Failure(patterns, NoTargetError("no target has a name like this; list them with -D")))
    return wanted, failures


async def attach(
    targets: Sequence[Wanted], initiators: Mapping[InitiatorOptions, Initiator]
) -> tuple[list[Attached], list[Failure]]:
    """Log in to *targets*, each by the initiator for the options of its host.

    A login that timed out is repeated once, if any other login has succeeded: after all others of its host,
    and one at a time, as the target may take one login after the other.

    The number and the time are bounded: MAX_TARGETS of each host, LOGINS_AT_ONCE of them in parallel, for
    ATTACH_TIMEOUT and one login_timeout in all. The targets left out are one failure for each host.
    """
    outcomes: dict[int, Attached | IscsifsError] = {}
    of_host: defaultdict[str, list[int]] = defaultdict(list)
    for index, wanted in enumerate(targets):
        of_host[wanted.host_name].append(index)

    async def log_in(index: int) -> Attached:
        wanted = targets[index]
        initiator = initiators[wanted.host.options]
        target = await initiator.login(wanted.name, [address.portal for address in wanted.addresses])
        missing = (wanted.luns or frozenset()).difference(unit.label for unit in target.units)
        if missing:
            luns = ", ".join(sorted(missing))
            raise NoTargetError(f"no logical unit {luns}; leave the number out to have all that there are")
        return Attached(wanted, target)

    async def log_in_all(indices: list[int]) -> None:
        await _each(indices, log_in, outcomes, LOGINS_AT_ONCE)
        if any(isinstance(outcome, Attached) for outcome in outcomes.values()):
            late = [index for index in indices if isinstance(outcomes[index], LoginTimeout)]
            await _each(late, log_in, outcomes, 1)

    seconds = ATTACH_TIMEOUT + max((wanted.host.options.login_timeout for wanted in targets), default=0.0)
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for indices in of_host.values():
                nursery.start_soon(log_in_all, indices[:MAX_TARGETS])
    attached: list[Attached] = []
    failures: list[Failure] = []
    for index, outcome in sorted(outcomes.items()):
        if isinstance(outcome, Attached):
            attached.append(outcome)
        else:
            wanted = targets[index]
            failures.append(Failure(f"{printable(wanted.host_name)}: {printable(wanted.name)}", outcome))
    for host_name, indices in of_host.items():
        if left_out := [index for index in indices if index not in outcomes]:
            out_of_time = left_out[0] in indices[:MAX_TARGETS]
            bound = f"after {seconds:g} s" if out_of_time else f"beyond the first {MAX_TARGETS}"
            reason = f"targets left out {bound}: {len(left_out)}; choose fewer with -t PATTERN"
            failures.append(Failure(printable(host_name), IscsifsError(reason)))
    return attached, failures


async def _each(
    indices: Iterable[int],
    work: Callable[[int], Awaitable[_R]],
    outcomes: dict[int, _R | IscsifsError],
    at_once: int,
) -> None:
    """Do *work* for all *indices* in their order, for so many *at_once*; put what it returns or raises into
    *outcomes*."""
    remaining = iter(indices)

    async def one_by_one() -> None:
        for index in remaining:
            try:
                outcomes[index] = await work(index)
            except IscsifsError as exc:
                outcomes[index] = exc

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(one_by_one)


async def _targets_of(host: Host, config: Config, network: Network) -> list[Wanted]:
    spec = host.spec
    host_name, addresses = await _resolve(spec.portal, host.options.family)
    if spec.target is not None:
        portals = [Portal(address, spec.portal.port) for address in sorted(addresses)]
        luns = None if spec.lun is None else frozenset({spec.lun})
        return [Wanted(host, host_name, spec.target, tuple(map(TargetAddress, portals)), luns)]
    discovered = await network.discover(spec.portal, host.options)
    if not discovered:
        raise NoTargetError(f"no targets for {host.options.initiator_name}; allow this name on the host")

    def first(address: TargetAddress) -> bool:
        """Sort the portal that was asked, which can be reached, before the others."""
        return address.portal.host not in addresses or address.portal.port != spec.portal.port

    return [
        Wanted(host, host_name, target.name, tuple(sorted(target.addresses, key=first)))
        for target in sorted(discovered, key=lambda target: target.name)
        if config.wants(target.name)
    ]


async def _resolve(portal: Portal, family: socket.AddressFamily) -> tuple[str, frozenset[str]]:
    """Return the canonical name of a portal's host, or its address if that was given, and all its addresses.

    Raises TransportError.
    """
    with explained(lambda: f"the address of {portal.host}"):
        found = await look_up(portal, family, socket.AI_CANONNAME)
    addresses = frozenset(str(entry[4][0]) for entry in found)
    if portal.host in addresses or ":" in portal.host:
        return portal.host, addresses
    return (found[0][3] or portal.host).rstrip(".").lower(), addresses


def _description(unit: LogicalUnit) -> UnitDescription:
    storage = unit.storage
    return UnitDescription(
        label=unit.label,
        device_type=unit.device_type,
        type_name=unit.type_name,
        vendor=unit.vendor,
        product=unit.product,
        version=unit.revision,
        serial=unit.serial,
        wwid=unit.wwid,
        block_size=None if storage is None else storage.block_size,
        storage=storage,
    )
