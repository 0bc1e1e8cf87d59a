"""`open_initiator`: logging in to targets and out of them, over loopback, against the embedded target."""

import logging
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from iscsifs.errors import ConfigError, LoginRefused, TransportError
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.names import Portal
from iscsifs.iscsi.pdu import LoginRequest, LogoutRequest, Pdu, ScsiCommand
from iscsifs.limits import LAST_LOGOUT_TIMEOUT
from iscsifs.service import discover, new_isid, open_initiator
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.script import Script
from iscsifs.target.server import Server
from iscsifs.target.session import Session as TargetSession
from support.disks import disks

INITIATOR = "iqn.2001-04.com.example:initiator"
NAMES = [f"iqn.2001-04.com.example:disk{number}" for number in range(3)]
OPTIONS = InitiatorOptions(initiator_name=INITIATOR, write_behind=False, offer={"DefaultTime2Wait": 0})


@pytest.fixture
def clock() -> MockClock:
    """A clock that jumps, but leaves the kernel the time that loopback needs."""
    return MockClock(autojump_threshold=0.05)


class Recorder(Script):
    """A target that behaves, but for what a test asks it to leave out."""

    def __init__(self) -> None:
        self.logins: list[LoginRequest] = []
        self.logouts = 0
        self.silent_logouts = False
        self.silent_commands = False

    async def request(self, session: TargetSession, pdu: Pdu, data: memoryview) -> bool:
        if isinstance(pdu, LoginRequest) and pdu.flags >> 2 & 3 == 0:
            self.logins.append(pdu)
        self.logouts += isinstance(pdu, LogoutRequest)
        silent = self.silent_commands * (ScsiCommand,) + self.silent_logouts * (LogoutRequest,)
        return not isinstance(pdu, silent)


def server(script: Script | None = None) -> Server:
    return Server([Device(name, {0: Disk.in_memory(65536, name)}) for name in NAMES], script=script)


async def test_targets_are_found_used_and_logged_out_of() -> None:
    script = Recorder()
    async with server(script) as target:
        portal = target.portals[0]
        found = await discover(portal, OPTIONS)
        assert [discovered.name for discovered in found] == NAMES
        async with open_initiator(OPTIONS) as initiator:
            for discovered in found:
                session = await initiator.login(
                    discovered.name, [address.portal for address in discovered.addresses]
                )
                assert (session.portal, session.address) == (portal, "127.0.0.1")
                (unit,) = disks(session.units)
                await unit.write(512, b"w" * 512)
                assert bytes(await unit.read(0, 1024)) == bytes(512) + b"w" * 512
        assert script.logouts == 1 + len(NAMES)


@pytest.mark.conformance("ERR-16")
async def test_sessions_have_isids_of_their_own_which_stay_over_reconnects() -> None:
    script = Recorder()
    async with server(script) as target, open_initiator(OPTIONS) as initiator:
        sessions = [await initiator.login(NAMES[0], target.portals) for _ in range(2)]
        isids = [login.isid for login in script.logins]
        assert len(set(isids)) == 2
        assert all(isid[0] >> 6 == 2 for isid in isids)  # the random format
        target.drop_connections(reset=True)
        for session in sessions:
            await disks(session.units)[0].read(0, 512)
        assert sorted(login.isid for login in script.logins[2:]) == sorted(isids)
        assert {login.tsih for login in script.logins} == {0}


def test_isids_do_not_repeat_soon() -> None:
    assert len({new_isid() for _ in range(10_000)}) == 10_000


async def test_a_login_that_fails_leaves_nothing_behind() -> None:
    script = Recorder()
    async with server(script) as target, open_initiator(OPTIONS) as initiator:
        with pytest.raises(LoginRefused, match="not found"):
            await initiator.login("iqn.2001-04.com.example:none", target.portals)
        with pytest.raises(TransportError):
            await initiator.login(NAMES[0], [Portal("127.0.0.1", 1)])
        for session in list(target.sessions):  # the target needs a moment to see that we have gone
            await session.ended.wait()


async def test_a_target_that_is_lost_while_its_units_are_looked_at(clock: MockClock) -> None:
    script = Recorder()
    script.silent_commands = True
    options = InitiatorOptions(initiator_name=INITIATOR, command_timeout=3.0)
    async with server(script) as target, open_initiator(options) as initiator:
        with trio.move_on_after(2.0) as scope:
            await initiator.login(NAMES[0], target.portals)
        assert scope.cancelled_caught
        assert script.logouts == 1  # nothing goes on behind our back
        await trio.sleep(10.0)
        assert len(script.logins) == 1


async def test_leaving_takes_bounded_time_for_all_targets_together(
    clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    script = Recorder()
    script.silent_logouts = True
    async with server(script) as target:
        async with open_initiator(OPTIONS) as initiator:
            for name in NAMES:
                await initiator.login(name, target.portals)
            started = trio.current_time()
        assert trio.current_time() - started == pytest.approx(LAST_LOGOUT_TIMEOUT, abs=0.5)
        assert script.logouts == len(NAMES)
        assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == len(NAMES)


async def test_what_goes_wrong_inside_comes_out_as_it_is() -> None:
    async def use(portals: Sequence[Portal]) -> None:
        async with open_initiator(OPTIONS) as initiator:
            await initiator.login(NAMES[0], portals)
            raise ConfigError("not this way")

    script = Recorder()
    async with server(script) as target:
        with pytest.raises(ConfigError, match="not this way"):
            await use(target.portals)
        assert script.logouts == 1


async def test_cancellation_logs_out_as_well() -> None:
    script = Recorder()
    async with server(script) as target:
        with trio.CancelScope() as scope:
            async with open_initiator(OPTIONS) as initiator:
                await initiator.login(NAMES[0], target.portals)
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert script.logouts == 1
