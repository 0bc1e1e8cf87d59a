"""What goes wrong at a target in memory, as a script of the embedded one."""

from collections.abc import Awaitable, Callable

import trio

from iscsifs.iscsi.framing import Buffer
from iscsifs.iscsi.pdu import LoginRequest, Pdu, ScsiCommand, TargetPdu
from iscsifs.scsi.luns import lun_number
from iscsifs.target.script import Script
from iscsifs.target.session import Session


async def behave(*_: object) -> bool:
    """Let requests and responses go on as they are."""
    return True


class Trouble(Script):
    """Takes note of what comes; nothing goes wrong until a test says so.

    Each request goes through `on_request`, each response through `on_response`, which return False for what
    they have taken care of. `on_command` is asked with the operation code of each command; where it is false
    the command gets no answer.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[Session, ScsiCommand]] = []
        """All commands that came, in their order."""
        self.commands: list[bytes] = []
        """Their CDBs."""
        self.logins: list[LoginRequest] = []
        self.on_command: Callable[[int], bool] = lambda _: True
        self.on_request: Callable[[Session, Pdu], Awaitable[bool]] = behave
        self.on_response: Callable[[Session, TargetPdu, Buffer], Awaitable[bool]] = behave
        self._going = trio.Event()
        self._going.set()

    def stall(self) -> None:
        """Take nothing that arrives and answer nothing from now on, as after SIGSTOP."""
        if self._going.is_set():
            self._going = trio.Event()

    def go_on(self) -> None:
        """End the stalling."""
        self._going.set()

    @property
    def codes(self) -> list[int]:
        """The operation codes of all commands that came."""
        return [cdb[0] for cdb in self.commands]

    def sent(self, *codes: int, lun: int = 0) -> list[ScsiCommand]:
        """Return the commands with these operation codes that came for *lun*."""
        return [
            command
            for _, command in self.requests
            if command.cdb[0] in codes and lun_number(command.lun) == lun
        ]

    async def connected(self, session: Session) -> None:
        await self._going.wait()

    async def request(self, session: Session, pdu: Pdu, data: memoryview) -> bool:
        await self._going.wait()
        if isinstance(pdu, ScsiCommand):
            self.requests.append((session, pdu))
            self.commands.append(pdu.cdb)
            if not self.on_command(pdu.cdb[0]):
                return False
        elif isinstance(pdu, LoginRequest):
            self.logins.append(pdu)
        return await self.on_request(session, pdu)

    async def response(self, session: Session, pdu: TargetPdu, data: Buffer) -> None:
        await self._going.wait()
        if await self.on_response(session, pdu, data):
            await session.wire.send(pdu, data)
