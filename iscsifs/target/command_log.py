"""The commands that a target for tests has carried out, in order, for any thread to look at."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from iscsifs.limits import LOGGED_COMMANDS, LOGGED_DATA
from iscsifs.scsi import cdb as commands
from iscsifs.scsi.sense import Sense
from iscsifs.scsi.status import Status


@dataclass(frozen=True, slots=True)
class LoggedCommand:
    """A SCSI command that was carried out, or refused: its *cdb*, the *data* that came with it, its end."""

    lun: int
    cdb: bytes
    data: bytes
    status: int
    sense: Sense | None

    @property
    def name(self) -> str:
        """The name of the command: ``WRITE(10)``."""
        return commands.command_name(self.cdb)

    @property
    def lba(self) -> int | None:
        """The first block that it addresses, None for a command without blocks."""
        found = commands.block_range(self.cdb)
        return None if found is None else found[0]

    @property
    def blocks(self) -> int | None:
        """How many blocks it addresses, None for a command without blocks."""
        found = commands.block_range(self.cdb)
        return None if found is None else found[1]

    def __str__(self) -> str:
        return f"{commands.describe(self.cdb)}: {Status(self.status).name}"


class CommandLog:
    """The last commands, in order; the oldest go when there are too many, or too many data."""

    def __init__(self) -> None:
        self._commands: deque[LoggedCommand] = deque()
        self._length = 0
        self._changed = threading.Condition()

    def append(self, command: LoggedCommand) -> None:
        """Add *command*, and wake those who `wait_for` it."""
        with self._changed:
            self._commands.append(command)
            self._length += len(command.data)
            while len(self._commands) > LOGGED_COMMANDS or self._length > LOGGED_DATA:
                self._length -= len(self._commands.popleft().data)
            self._changed.notify_all()

    def copy(self) -> list[LoggedCommand]:
        """Return all commands."""
        with self._changed:
            return list(self._commands)

    def clear(self) -> None:
        """Forget all commands."""
        with self._changed:
            self._commands.clear()
            self._length = 0

    def wait_for(self, wanted: Callable[[LoggedCommand], bool], timeout: float) -> LoggedCommand:
        """Return the first command that is *wanted*, also one that comes within *timeout* seconds.

        Raises TimeoutError.
        """

        def find() -> LoggedCommand | None:
            return next((command for command in self._commands if wanted(command)), None)

        with self._changed:
            found = self._changed.wait_for(find, timeout)
        if found is None:
            raise TimeoutError(f"no such command within {timeout:g} s")
        return found
