"""Several targets at once, one of which is slower than the others."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from iscsifs.config import Config, Host, HostSpec
from iscsifs.discovery.source import Wanted
from iscsifs.errors import LoginTimeout
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.names import Portal, TargetAddress
from iscsifs.limits import ATTACH_TIMEOUT, LOGINS_AT_ONCE, MAX_TARGETS
from iscsifs.mount_options import MountOptions
from iscsifs.service.attach import Attached, Failure, Login, attach
from iscsifs.service.find import find_targets
from support.fake_network import FakeNetwork, FakeTarget, FakeUnit

PORTAL = Portal("127.0.0.1")
LIMIT = 15.0
REMEDY = "; does a target answer there? -o login_timeout=SECONDS waits longer"


@dataclass
class SlowInitiator:
    """Takes *work* seconds of one of its *hands* for each login; who waits longer than LIMIT waits in vain.

    A free hand goes to whoever came last, which is as unfair as can be. Where the work is infinite there is
    no answer, and no need of a hand.
    """

    work: dict[str, float]
    waiting: list[trio.Event] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    hands: int = 1

    async def login(self, target_name: str, portals: Sequence[Portal]) -> FakeTarget:
        self.logins.append(target_name)
        try:
            with trio.fail_after(LIMIT):
                if self.work[target_name] == math.inf:
                    await trio.sleep_forever()
                await self._turn()
                try:
                    await trio.sleep(self.work[target_name])
                finally:
                    self._next()
        except trio.TooSlowError:
            raise LoginTimeout("no login within 15 s") from None
        return FakeTarget(target_name, [FakeUnit(size=512)], PORTAL)

    async def logout(self, target: FakeTarget) -> None:
        raise AssertionError

    async def _turn(self) -> None:
        if self.hands:
            self.hands -= 1
            return
        turn = trio.Event()
        self.waiting.append(turn)
        try:
            await turn.wait()
        except trio.Cancelled:
            if turn.is_set():
                self._next()
            else:
                self.waiting.remove(turn)
            raise

    def _next(self) -> None:
        if self.waiting:
            self.waiting.pop().set()
        else:
            self.hands += 1


OPTIONS = InitiatorOptions("iqn.2001-04.com.example:host", login_timeout=LIMIT)
HOST = Host(HostSpec(PORTAL), OPTIONS)


def wanted_of(host_name: str, names: Iterable[str]) -> list[Login]:
    return [Login(Wanted(host_name, name, (TargetAddress(PORTAL),)), OPTIONS) for name in names]


async def log_in(initiator: SlowInitiator) -> tuple[list[Attached], list[Failure]]:
    return await attach(wanted_of("127.0.0.1", initiator.work), {OPTIONS: initiator})


async def test_who_had_to_wait_too_long_for_others_gets_in_behind_them(autojump_clock: MockClock) -> None:
    initiator = SlowInitiator({f"disk{number}": 1.0 for number in range(30)})
    attached, failures = await log_in(initiator)
    assert [target.target.target_name for target in attached] == list(initiator.work)
    assert failures == []
    assert len(initiator.logins) > len(initiator.work)  # or the initiator was not slow at all


@pytest.mark.parametrize(("others", "attempts"), [(0, 1), (1, 2)])
async def test_who_does_not_get_in_at_all_is_told(
    autojump_clock: MockClock, others: int, attempts: int
) -> None:
    """With a second try where others got in: the target is alive."""
    initiator = SlowInitiator({"hung": math.inf} | {f"disk{number}": 0.0 for number in range(others)})
    attached, failures = await log_in(initiator)
    assert len(attached) == others
    assert [str(failure) for failure in failures] == [f"127.0.0.1: hung: no login within 15 s{REMEDY}"]
    assert initiator.logins.count("hung") == attempts
    assert trio.current_time() <= attempts * LIMIT + 1


async def test_a_second_try_keeps_nobody_of_the_host_waiting(autojump_clock: MockClock) -> None:
    hung = {f"hung{number}": math.inf for number in range(LOGINS_AT_ONCE)}
    initiator = SlowInitiator({"disk0": 1.0, **hung, "disk1": 1.0, "disk2": 1.0})
    attached, failures = await log_in(initiator)
    assert [target.target.target_name for target in attached] == ["disk0", "disk1", "disk2"]
    assert len(failures) == len(hung)
    assert initiator.logins[-len(hung) :] == list(hung)


# However many targets a host tells of, and whatever becomes of them, the start has an end.


async def test_thousands_of_targets_that_answer_are_all_attached(autojump_clock: MockClock) -> None:
    initiator = SlowInitiator({f"disk{number}": 0.05 for number in range(MAX_TARGETS)}, hands=8)
    attached, failures = await log_in(initiator)
    assert [target.target.target_name for target in attached] == list(initiator.work)
    assert failures == []


async def test_of_more_targets_than_are_taken_the_first_are(autojump_clock: MockClock) -> None:
    initiator = SlowInitiator({f"disk{number}": 0.0 for number in range(MAX_TARGETS + 2)})
    attached, failures = await log_in(initiator)
    assert [target.target.target_name for target in attached] == list(initiator.work)[:MAX_TARGETS]
    assert [str(failure) for failure in failures] == [
        "127.0.0.1: targets left out beyond the first 4096: 2; choose fewer with -t PATTERN"
    ]


async def test_a_host_is_named_without_what_the_dns_may_have_put_into_its_name(
    autojump_clock: MockClock,
) -> None:
    initiator = SlowInitiator({"hung": math.inf} | {f"disk{number}": 0.0 for number in range(MAX_TARGETS)})
    targets = wanted_of("evil\x1b[2J\n", initiator.work)
    _, failures = await attach(targets, {OPTIONS: initiator})
    hung, left_out = map(str, failures)
    assert hung.startswith("evil\\x1b[2J\\n: hung: ")
    assert left_out.startswith("evil\\x1b[2J\\n: targets left out ")


async def test_twenty_thousand_targets_that_are_not_there_take_bounded_time(
    autojump_clock: MockClock,
) -> None:
    """And nobody waits for them who is another host's."""
    nowhere = {f"nowhere{number}": math.inf for number in range(20_000)}
    initiator = SlowInitiator({"disk0": 0.1} | nowhere | {f"disk{number}": 0.1 for number in range(1, 300)})
    seen: dict[str, float] = {}
    login = initiator.login

    async def timed(target_name: str, portals: Sequence[Portal]) -> FakeTarget:
        target = await login(target_name, portals)
        seen[target_name] = trio.current_time() - started
        return target

    initiator.login = timed  # type: ignore[method-assign]
    started = trio.current_time()
    disks = [name for name in initiator.work if name not in nowhere]
    targets = [*wanted_of("hostile", nowhere), *wanted_of("good", disks)]
    attached, failures = await attach(targets, {OPTIONS: initiator})
    assert trio.current_time() - started == ATTACH_TIMEOUT + LIMIT
    assert [target.target.target_name for target in attached] == disks
    assert max(seen.values()) == pytest.approx(300 * 0.1, abs=1)
    *told, last = map(str, failures)
    left_out = 20_000 - len(told)
    assert last == f"hostile: targets left out after 315 s: {left_out}; choose fewer with -t PATTERN"
    assert len(told) == pytest.approx(LOGINS_AT_ONCE * ATTACH_TIMEOUT / LIMIT, abs=LOGINS_AT_ONCE)
    assert told == [f"hostile: {name}: no login within 15 s{REMEDY}" for name in list(nowhere)[: len(told)]]


async def test_a_host_twice_with_many_targets_is_not_compared_pair_by_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = FakeNetwork()
    other = Portal("127.0.0.1", 3261)
    for portal in PORTAL, other:
        network.offer(portal, *(FakeTarget(f"disk{number:04}", [], PORTAL) for number in range(1000)))
    compared = 0
    shares_portal_with = Wanted.shares_portal_with

    def count(wanted: Wanted, target: Wanted) -> bool:
        nonlocal compared
        compared += 1
        return shares_portal_with(wanted, target)

    monkeypatch.setattr(Wanted, "shares_portal_with", count)
    config = Config((HOST, Host(HostSpec(other), OPTIONS)), None, MountOptions(0, 0), OPTIONS)
    wanted, failures = await find_targets(config, network)
    assert ([login.wanted.name for login in wanted], failures) == ([f"disk{n:04}" for n in range(1000)], [])
    assert compared == 1000
