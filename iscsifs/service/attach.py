"""Logs in to many targets at once."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from iscsifs.discovery.source import Wanted, line
from iscsifs.errors import IscsifsError, LoginTimeout, NoTargetError, printable
from iscsifs.fs.tree import TargetDescription, UnitDescription, place_of
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.names import Portal, TargetAddress
from iscsifs.limits import ATTACH_TIMEOUT, LOGINS_AT_ONCE, MAX_TARGETS
from iscsifs.service.network import Initiator, LogicalUnit, Target

_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be had, and why; *login* is the one that has failed, if it was one."""

    what: str
    error: IscsifsError
    login: "Login | None" = None

    def __str__(self) -> str:
        reason = str(self.error)
        if isinstance(self.error, LoginTimeout):
            reason += "; does a target answer there? -o login_timeout=SECONDS waits longer"
        return reason if reason.startswith(f"{self.what}: ") else f"{self.what}: {reason}"


@dataclass(frozen=True, slots=True)
class Login:
    """A target *wanted*, and the *options* by which its initiator logs in.

    *place* is the name of the directory of its host, where that is not made of the host's name.
    """

    wanted: Wanted
    options: InitiatorOptions
    place: bytes = b""

    @property
    def host(self) -> bytes:
        """The name of the directory of its host."""
        return place_of(TargetDescription(self.wanted.host_name, "", 0, self.wanted.name, place=self.place))

    def is_same(self, other: "Login") -> bool:
        """Say whether *other* is the same target, in whatever way it was found."""
        mine, theirs = self.wanted, other.wanted
        return (
            mine.name == theirs.name
            and mine.host_name == theirs.host_name
            and mine.shares_portal_with(theirs)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Attached:
    """A target that *initiator* has logged in to as *login* says."""

    login: Login
    initiator: Initiator
    target: Target

    @property
    def wanted(self) -> Wanted:
        """What a source wants of it."""
        return self.login.wanted

    def line(self) -> str:
        """Return the line for the portal that it was reached by."""
        address = TargetAddress(Portal(self.target.address, self.target.portal.port), self.target.tag)
        return line(self.wanted.host_name, address, self.target.target_name)

    def units(self) -> list[LogicalUnit]:
        """Return those of its logical units that are wanted."""
        luns = self.wanted.luns
        return [unit for unit in self.target.units if luns is None or unit.label in luns]

    def describe(self) -> TargetDescription:
        """Describe the target with the logical units that are there now."""
        return TargetDescription(
            self.wanted.host_name,
            self.target.address,
            self.target.portal.port,
            self.target.target_name,
            tuple(_description(unit) for unit in self.units()),
            self.login.place,
        )


async def log_in(login: Login, initiator: Initiator) -> Attached:
    """Log in to one target; raises NoTargetError where a logical unit that is wanted is missing, and what a
    login raises."""
    wanted = login.wanted
    target = await initiator.login(wanted.name, [address.portal for address in wanted.addresses])
    missing = (wanted.luns or frozenset()).difference(unit.label for unit in target.units)
    if missing:
        await initiator.logout(target)
        luns = ", ".join(sorted(missing))
        raise NoTargetError(f"no logical unit {luns}; leave the number out to have all that there are")
    return Attached(login, initiator, target)


async def attach(
    logins: Sequence[Login], initiators: Mapping[InitiatorOptions, Initiator]
) -> tuple[list[Attached], list[Failure]]:
    """Carry out *logins*, each by the initiator for its options.

    A login that timed out is repeated once, if any other login has succeeded: after all others of its host,
    and one at a time, as the target may take one login after the other.

    The number and the time are bounded: MAX_TARGETS of each host, LOGINS_AT_ONCE of them in parallel, for
    ATTACH_TIMEOUT and one login_timeout in all. The targets left out are one failure for each host.
    """
    outcomes: dict[int, Attached | IscsifsError] = {}
    of_host: defaultdict[str, list[int]] = defaultdict(list)
    for index, login in enumerate(logins):
        of_host[login.wanted.host_name].append(index)

    async def log_in_one(index: int) -> Attached:
        login = logins[index]
        return await log_in(login, initiators[login.options])

    async def log_in_all(indices: list[int]) -> None:
        await each(indices, log_in_one, outcomes, LOGINS_AT_ONCE)
        if any(isinstance(outcome, Attached) for outcome in outcomes.values()):
            late = [index for index in indices if isinstance(outcomes[index], LoginTimeout)]
            await each(late, log_in_one, outcomes, 1)

    seconds = ATTACH_TIMEOUT + max((login.options.login_timeout for login in logins), default=0.0)
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
            wanted = logins[index].wanted
            what = f"{printable(wanted.host_name)}: {printable(wanted.name)}"
            failures.append(Failure(what, outcome, logins[index]))
    for host_name, indices in of_host.items():
        if left_out := [index for index in indices if index not in outcomes]:
            out_of_time = left_out[0] in indices[:MAX_TARGETS]
            bound = f"after {seconds:g} s" if out_of_time else f"beyond the first {MAX_TARGETS}"
            reason = f"targets left out {bound}: {len(left_out)}; choose fewer with -t PATTERN"
            failures.append(Failure(printable(host_name), IscsifsError(reason)))
    return attached, failures


async def each(
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
