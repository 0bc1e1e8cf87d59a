"""A path in memory, as `units.path.Path` wants one: it answers commands as a test says."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import trio

from iscsifs.errors import IscsifsError, PathLost
from iscsifs.scsi.sense import Sense
from iscsifs.scsi.status import Status
from iscsifs.units.path import Attempt
from iscsifs.units.queue import Queue

Answer = bytes | int | Sense | IscsifsError
"""What a command is answered with: data and GOOD, a status, sense data, or no status for a reason."""


@dataclass(eq=False)
class MemoryAttempt:
    """An attempt that has `ended`."""

    ended: bool = True
    failure: IscsifsError | None = None
    status: int = Status.GOOD
    sense: bytes = b""
    received: int = 0


class MemoryPath:
    """Answers each command by *answer*, which gets the CDB, after as many seconds as *delay* says.

    `times` are when the commands came, `asked` are their CDBs. With a `window` that is not open, commands
    are taken and not sent. `lose`, `fail_attempt`, `restore` and `close` are what may happen to a path.
    """

    def __init__(
        self, answer: Callable[[bytes], Answer], delay: Callable[[bytes], float] = lambda _: 0.0
    ) -> None:
        self._answer = answer
        self._delay = delay
        self.times: list[float] = []
        self.asked: list[bytes] = []
        self.is_away = False
        self.is_closed = False
        self.window = True
        self.patience = -math.inf
        """How many seconds an attempt to restore the path may take; -inf: there is none."""
        self.wanted = 0
        """How often somebody asked for the path."""
        self.cancelled: list[Attempt] = []
        self._lost_at = 0.0
        self._listeners: list[Callable[[], None]] = []
        self._unsent: dict[MemoryAttempt, Callable[[Attempt], None]] = {}
        self._sent: dict[MemoryAttempt, Callable[[Attempt], None]] = {}

    # What happens to the path.

    def lose(self) -> None:
        """The connection is lost."""
        self.is_away, self._lost_at = True, trio.current_time()
        self._hand_back(self._sent, sent=True)
        self._hand_back(self._unsent, sent=False)

    def fail_attempt(self) -> None:
        """An attempt to restore the path has failed."""
        self._tell()

    def restore(self, first: Callable[[], None] = lambda: None) -> None:
        """The path is up again; *first* is what the owner of its units does before anything is sent."""
        first()
        self.is_away = False
        self._tell()

    def close(self) -> None:
        """The path is closed for good."""
        self.is_closed = True
        self.lose()
        self._tell()

    def _tell(self) -> None:
        listeners, self._listeners = self._listeners, []
        for changed in listeners:
            changed()

    def _hand_back(self, attempts: "dict[MemoryAttempt, Callable[[Attempt], None]]", *, sent: bool) -> None:
        for attempt, on_end in list(attempts.items()):
            del attempts[attempt]
            attempt.failure, attempt.ended = PathLost(sent=sent), True
            on_end(attempt)

    # What a path is asked for.

    @property
    def down_since(self) -> float:
        return self._lost_at if self.is_away else trio.current_time()

    def send(
        self, cdb: bytes, data_in: memoryview, data_out: memoryview, on_end: Callable[[Attempt], None]
    ) -> Attempt:
        if self.is_away:
            raise PathLost(sent=False)
        attempt = MemoryAttempt(ended=False)
        if not self.window:
            self._unsent[attempt] = on_end
            return attempt
        self.times.append(trio.current_time())
        self.asked.append(cdb)
        self._sent[attempt] = on_end

        def end() -> None:
            if self._sent.pop(attempt, None) is None:
                return
            answer = self._answer(cdb)
            if isinstance(answer, IscsifsError):
                attempt.failure = answer
            elif isinstance(answer, Sense):
                attempt.status, attempt.sense = Status.CHECK_CONDITION, answer.pack()
            elif isinstance(answer, int):
                attempt.status = answer
                attempt.received = len(data_in) if answer == Status.GOOD else 0
            else:
                attempt.received = min(len(answer), len(data_in))
                if attempt.received:
                    data_in[: attempt.received] = answer[: attempt.received]
            attempt.ended = True
            on_end(attempt)

        async def end_later(seconds: float) -> None:
            await trio.sleep(seconds)
            end()

        if seconds := self._delay(cdb):
            trio.lowlevel.spawn_system_task(end_later, seconds)
        else:
            end()
        return attempt

    def cancel(self, attempt: Attempt) -> None:
        self.cancelled.append(attempt)

    def recall(self) -> None:
        self._hand_back(self._unsent, sent=False)

    def listen(self, changed: Callable[[], None]) -> None:
        self._listeners.append(changed)

    def want(self) -> float:
        self.wanted += 1
        return trio.current_time() + self.patience

    def busy_poll(self) -> None:
        pass


def queue_of(
    path: MemoryPath,
    nursery: trio.Nursery,
    *,
    name: str = "disk LUN 0",
    patience: float = 30.0,
    replacement_timeout: float = 120.0,
    probes: bool = False,
) -> Queue:
    """Return a queue on *path*."""
    return Queue(
        name, path, nursery, patience=patience, replacement_timeout=replacement_timeout, probes=probes
    )
