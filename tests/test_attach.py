"""Several targets at once, one of which is slower than the others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import trio
from fake_network import FakeTarget, FakeUnit
from trio.testing import MockClock

from iscsifs.attach import Attached, Failure, Wanted, attach
from iscsifs.config import Host, HostSpec
from iscsifs.errors import LoginTimeout
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.names import Portal, TargetAddress

PORTAL = Portal("127.0.0.1")
LIMIT = 15.0


@dataclass
class SlowInitiator:
    """Takes *work* seconds of its only hand for each login; who waits longer than LIMIT has waited in vain.

    The hand goes to whoever came last, which is as unfair as can be. Where the work is infinite there is no
    answer, and no need of the hand.
    """

    work: dict[str, float]
    waiting: list[trio.Event] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    busy: bool = False

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
        return FakeTarget(target_name, [FakeUnit()], PORTAL)

    async def _turn(self) -> None:
        if not self.busy:
            self.busy = True
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
        self.busy = bool(self.waiting)
        if self.busy:
            self.waiting.pop().set()


async def log_in(initiator: SlowInitiator) -> tuple[list[Attached], list[Failure]]:
    options = InitiatorOptions("iqn.2001-04.com.example:host")
    host = Host(HostSpec(PORTAL), options)
    wanted = [Wanted(host, "127.0.0.1", name, (TargetAddress(PORTAL),)) for name in initiator.work]
    return await attach(wanted, {options: initiator})


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
    assert [str(failure) for failure in failures] == ["127.0.0.1: hung: no login within 15 s"]
    assert initiator.logins.count("hung") == attempts
    assert trio.current_time() <= attempts * LIMIT + 1
