"""Requests and answers on the connection to a server.

What a client does is written as procedures: generators that yield requests, or a portal to be probed, and are
sent the answers. So a sequence of requests reads as one, and there is still no I/O in it.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from iscsifs.errors import IsnsError
from iscsifs.isns.messages import Answer, OwnPortal, Request
from iscsifs.isns.pdu import Function, Message, Receiver
from iscsifs.limits import ISNS_RESPONSE_TIMEOUT, MAX_ISNS_REQUESTS

Step = Sequence[Request] | OwnPortal
"""Requests, of which several are without an answer at once; or a portal, is anybody listening there?"""

Reply = Sequence[Answer] | bool
"""The answers in the order of the requests; or whether anybody listens."""

Procedure = Generator[Step, Reply, None]


def ask(request: Request) -> Generator[Step, Reply, Answer]:
    """Return the answer to *request*, for ``yield from`` in a procedure."""
    (answer,) = yield from ask_all([request])
    return answer


def ask_all(requests: Sequence[Request]) -> Generator[Step, Reply, Sequence[Answer]]:
    """Return the answers to *requests*."""
    if not requests:
        return ()
    reply = yield requests
    assert not isinstance(reply, bool)
    return reply


def is_served(portal: OwnPortal) -> Generator[Step, Reply, bool]:
    """Return whether anybody listens at *portal*."""
    reply = yield portal
    return reply is True


@dataclass(slots=True)
class _Pending:
    """A request without an answer: its *place* in the step, and until when it may be so."""

    place: int
    function: Function
    deadline: float


class Conversation:
    """One connection to a server, and the procedure that has it at the moment.

    `probe` is the portal that the procedure wants probed. *note* is given a sentence about what is dropped.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._receiver = Receiver()
        self._outgoing = bytearray()
        self._last_id = 0
        self._pending: dict[int, _Pending] = {}
        self._unsent: deque[tuple[int, Request]] = deque()
        self._answers: dict[int, Answer] = {}
        self._procedure: Procedure | None = None
        self.probe: OwnPortal | None = None

    @property
    def is_idle(self) -> bool:
        """Whether there is no procedure."""
        return self._procedure is None

    @property
    def deadline(self) -> float | None:
        """When the first answer is overdue, or the rest of a message."""
        deadlines = [pending.deadline for pending in self._pending.values()]
        if self._receiver.deadline is not None:
            deadlines.append(self._receiver.deadline)
        return min(deadlines, default=None)

    def data_to_send(self) -> bytes:
        """Return, once, what is to be sent."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def send(self, message: Message) -> None:
        """Send a response."""
        self._outgoing += message.pack()

    def run(self, procedure: Procedure, now: float) -> None:
        """Begin *procedure*, and end the one before; answers to the old one will be dropped in silence."""
        self.stop()
        self._procedure = procedure
        self._advance(lambda: next(procedure), now)

    def stop(self) -> None:
        """End the procedure where it is."""
        if self._procedure is not None:
            self._procedure.close()
        self._procedure, self.probe = None, None
        self._answers = {}
        self._unsent.clear()
        for pending in self._pending.values():
            pending.place = -1

    def receive(self, data: bytes, now: float) -> list[Message]:
        """Take *data* of the stream; return the requests of the server in it.

        Raises IsnsProtocolError for what makes the stream useless.
        """
        requests = []
        for message in self._receiver.receive(data, now):
            if message.is_response:
                self._answered(message, now)
            else:
                requests.append(message)
        return requests

    def probed(self, is_alive: bool, now: float) -> None:
        """Tell whether anybody listens at `probe`."""
        procedure, self.probe = self._procedure, None
        if procedure is not None:
            self._advance(lambda: procedure.send(is_alive), now)

    def check(self, now: float) -> None:
        """Raise IsnsError where a deadline has passed."""
        if self._receiver.deadline is not None and now >= self._receiver.deadline:
            raise IsnsError("a message has not been complete in time")
        for pending in self._pending.values():
            if now >= pending.deadline:
                raise IsnsError(f"no answer to {pending.function.name} in {ISNS_RESPONSE_TIMEOUT:g} s")

    def _answered(self, message: Message, now: float) -> None:
        """Match a response with its request, by transaction id and function (section 5.1.5)."""
        pending = self._pending.get(message.transaction_id)
        if pending is None or message.function & 0x7FFF != pending.function:
            self._note("a response to no request of ours was dropped")
            return
        del self._pending[message.transaction_id]
        procedure = self._procedure
        if procedure is None or pending.place < 0:
            return
        assert message.status is not None
        try:
            self._answers[pending.place] = Answer.read(message.status, message.payload)
        except IsnsError as error:
            self._give_up(procedure, error, now)
            return
        self._send_more(now)
        if not self._pending_here() and not self._unsent:
            answers = [self._answers[place] for place in sorted(self._answers)]
            self._advance(lambda: procedure.send(answers), now)

    def _pending_here(self) -> bool:
        return any(pending.place >= 0 for pending in self._pending.values())

    def _give_up(self, procedure: Procedure, error: IsnsError, now: float) -> None:
        """Tell the procedure of an answer that cannot be read; what else it has asked is of no use."""
        self._unsent.clear()
        for pending in self._pending.values():
            pending.place = -1
        self._advance(lambda: procedure.throw(error), now)

    def _advance(self, resume: Callable[[], Step], now: float) -> None:
        """Resume the procedure, and do the next step of it."""
        self._answers = {}
        try:
            step = resume()
        except StopIteration:
            self._procedure = None
            return
        if isinstance(step, OwnPortal):
            self.probe = step
        else:
            self._unsent.extend(enumerate(step))
            self._send_more(now)

    def _send_more(self, now: float) -> None:
        """Send requests as long as few enough are without an answer."""
        while self._unsent and len(self._pending) < MAX_ISNS_REQUESTS:
            place, request = self._unsent.popleft()
            self._last_id = self._last_id % 0xFFFF + 1
            while self._last_id in self._pending:
                self._last_id = self._last_id % 0xFFFF + 1
            self._pending[self._last_id] = _Pending(place, request.function, now + ISNS_RESPONSE_TIMEOUT)
            message = Message(request.function, self._last_id, request.payload, None, request.replace)
            self._outgoing += message.pack()
