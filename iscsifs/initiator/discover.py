"""A discovery session: log in, SendTargets, log out (RFC 7143 section 4.3)."""

import errno

import trio

from iscsifs.errors import TransportError
from iscsifs.initiator.dial import Dialler
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.chap import ChallengeMemory
from iscsifs.iscsi.discovery import DiscoveredTarget, read_targets
from iscsifs.iscsi.events import Event, Logout, LogoutRequested, Text
from iscsifs.iscsi.names import Portal, TargetAddress
from iscsifs.limits import ANSWER_TIMEOUT, LAST_LOGOUT_TIMEOUT
from iscsifs.transport.waiting import explained


async def discover(
    portal: Portal, options: InitiatorOptions, memory: ChallengeMemory, isid: bytes
) -> list[DiscoveredTarget]:
    """Ask *portal* for its targets.

    Raises TransportError, LoginError or ProtocolError. An answer that is whole counts, whatever happens
    behind it.
    """
    link = await Dialler(options, memory, None, [TargetAddress(portal)], isid)()
    answered, logged_out = trio.Event(), trio.Event()
    reason = f"no answer to SendTargets in {ANSWER_TIMEOUT:g} s"

    def on_event(event: Event) -> None:
        nonlocal reason
        if isinstance(event, Text | LogoutRequested):
            rejected = isinstance(event, Text)
            reason = "the target rejected SendTargets" if rejected else "the target wants no discovery now"
            answered.set()
        elif isinstance(event, Logout):
            logged_out.set()

    async def run() -> None:
        await link.run(on_event)
        answered.set()
        logged_out.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        text = link.send_text([("SendTargets", "All")])
        what = f"the list of targets of {portal}, for up to {ANSWER_TIMEOUT:g} s"
        with trio.move_on_after(ANSWER_TIMEOUT), explained(lambda: what):
            await answered.wait()
        failure = link.failure
        link.log_out()
        with trio.move_on_after(LAST_LOGOUT_TIMEOUT):
            await logged_out.wait()
        link.close()
    if text.pairs is None:
        number = 0 if answered.is_set() else errno.ETIMEDOUT
        raise failure or TransportError(f"{portal}: {reason}", number=number)
    zone = portal.host.partition("%")[2] or None
    return read_targets(text.pairs, portal, zone)
