"""Where a test puts its script of misbehaviour.

A `Script` sees every PDU of a server's connections and may do with it what it likes. Derived from it::

    class LosesTheFirstStatus(Script):
        async def response(self, session, pdu, data):
            if isinstance(pdu, ScsiResponse) and session.number == 0:
                session.wire.reset()
            else:
                await session.wire.send(pdu, data)
"""

from typing import TYPE_CHECKING

from iscsifs.iscsi.framing import Buffer
from iscsifs.iscsi.pdu import Pdu, TargetPdu

if TYPE_CHECKING:
    from iscsifs.target.session import Session


class Script:
    """A target that behaves; what is overridden does not.

    `session.number` counts the connections of a server from 0, `session.wire` has the means to send anything,
    and to close. Requests are seen one after the other, and so are responses; neither waits for the other.
    """

    async def connected(self, session: "Session") -> None:
        """See a new connection, before anything is received."""

    async def request(self, session: "Session", pdu: Pdu, data: memoryview) -> bool:
        """See a request; return False to have it ignored."""
        return True

    async def response(self, session: "Session", pdu: TargetPdu, data: Buffer) -> None:
        """Send a response: as it is, late, altered, in part, together with others, or not at all."""
        await session.wire.send(pdu, data)
