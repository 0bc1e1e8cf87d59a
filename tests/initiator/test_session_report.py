"""What a session tells of itself, over its life."""

from dataclasses import fields, replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from iscsifs.errors import TransportError
from iscsifs.initiator.history import KEPT, History
from iscsifs.initiator.report import report
from iscsifs.initiator.session import Session
from iscsifs.iscsi.keys import INITIATOR_OFFER, Parameters, agreed
from iscsifs.iscsi.states import SessionState
from support.memory_line import pair
from support.network import ADDRESS, ISID, OWN_ADDRESS

AWAY = TransportError("192.0.2.1:3260: Connection refused")


def follow_clock(session: Session) -> None:
    """Have *session* tell the time by trio's clock."""
    session.history = History(lambda: round(trio.current_time() * 10**9))


async def test_a_session_that_is_up(autojump_clock: MockClock) -> None:
    keys = {"MaxBurstLength": "524288", "ImmediateData": "No", "TargetPortalGroupTag": "7"}
    async with pair(keys=keys) as line:
        shown = report(line.session)
        assert shown.state is SessionState.LOGGED_IN
        assert shown.isid == int.from_bytes(ISID)
        assert shown.tsih == 1
        assert shown.target_portal_group_tag == 7
        assert shown.parameters["MaxBurstLength"] == "524288"
        assert shown.parameters["ImmediateData"] == "No"
        assert shown.parameters["AuthMethod"] == "None"
        (connection,) = shown.connections
        assert (connection.cid, connection.state) == (0, "LOGGED_IN")
        assert connection.local.startswith(f"{OWN_ADDRESS}:")
        assert connection.remote == f"{ADDRESS}:3260"
        assert (shown.reconnects, shown.losses, shown.last_error) == (0, (), "")


async def test_a_loss_is_told_with_its_reason_and_its_time(autojump_clock: MockClock) -> None:
    async with pair() as line:
        follow_clock(line.session)
        await trio.sleep(5.0)
        line.line.failure = AWAY
        lost_ns = round(trio.current_time() * 10**9)
        await line.peer.close()
        await trio.sleep(20.0)
        shown = report(line.session)
        assert shown.state is SessionState.FAILED
        assert shown.since_ns == lost_ns
        assert shown.connections == ()
        assert shown.reconnects == 0
        ((when, why),) = shown.losses
        assert (when, why) == (lost_ns, "the target closed the connection")
        assert shown.last_error == str(AWAY)
        line.line.failure = None
        await line.peer.login()
        await wait_all_tasks_blocked()
        shown = report(line.session)
        assert shown.state is SessionState.LOGGED_IN
        assert shown.since_ns > lost_ns + 20 * 10**9
        assert (shown.reconnects, len(shown.losses), len(shown.connections)) == (1, 1, 1)
        assert shown.last_error == str(AWAY)


async def test_a_session_that_was_logged_out_of_is_free(autojump_clock: MockClock) -> None:
    async with pair() as line:
        line.scope.cancel()
        await wait_all_tasks_blocked()
        shown = report(line.session)
        assert shown.state is SessionState.FREE
        assert shown.connections == ()
        assert shown.losses == ()


def test_only_the_last_losses_are_kept() -> None:
    history = History()
    for number in range(3 * KEPT):
        history.lost(str(number))
    assert [why for _, why in history.losses] == [str(number) for number in range(2 * KEPT, 3 * KEPT)]


def test_every_key_of_the_offer_is_shown() -> None:
    assert set(agreed(Parameters())) >= {*INITIATOR_OFFER}


OTHER_VALUES: dict[type, Any] = {bool: True, int: 4242, str: "other"}


@pytest.mark.parametrize(
    "name", [field.name for field in fields(Parameters) if field.name != "target_portal_group_tag"]
)
def test_every_parameter_is_shown(name: str) -> None:
    parameters = Parameters()
    before = getattr(parameters, name)
    value: Any = not before if isinstance(before, bool) else OTHER_VALUES[type(before)]
    changed = agreed(replace(parameters, **{name: value})).items() - agreed(parameters).items()
    assert len(changed) == 1
