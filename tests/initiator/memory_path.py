"""A path in memory, as `units.path.Path` wants one: it answers commands as a test says."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import trio

from iscsifs.errors import IscsifsError
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

    `times` are when the commands came, `asked` are their CDBs.
    """

    is_away = False
    is_closed = False

    def __init__(
        self, answer: Callable[[bytes], Answer], delay: Callable[[bytes], float] = lambda _: 0.0
    ) -> None:
        self._answer = answer
        self._delay = delay
        self.times: list[float] = []
        self.asked: list[bytes] = []

    @property
    def down_since(self) -> float:
        return trio.current_time()

    def send(
        self, cdb: bytes, data_in: memoryview, data_out: memoryview, on_end: Callable[[Attempt], None]
    ) -> Attempt:
        self.times.append(trio.current_time())
        self.asked.append(cdb)
        attempt = MemoryAttempt(ended=False)

        def end() -> None:
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
        raise NotImplementedError

    def recall(self) -> None:
        pass

    def listen(self, changed: Callable[[], None]) -> None:
        pass

    def want(self) -> float:
        return -math.inf

    def linger(self) -> None:
        pass


def queue_of(
    path: MemoryPath,
    nursery: trio.Nursery,
    *,
    name: str = "disk LUN 0",
    patience: float = 30.0,
    probes: bool = False,
) -> Queue:
    """Return a queue on *path*."""
    return Queue(name, path, nursery, patience=patience, replacement_timeout=120.0, probes=probes)
