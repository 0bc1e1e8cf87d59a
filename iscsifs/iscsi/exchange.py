"""What commands and all other requests of one connection share: state, numbers, tags, PDUs, events."""

from iscsifs.errors import ProtocolError
from iscsifs.iscsi.events import Event, Noted, Request
from iscsifs.iscsi.framing import Observer, Sender, pdu_name
from iscsifs.iscsi.numbering import CommandNumbering, NumberedPdu, StatusNumbering
from iscsifs.iscsi.pdu import RESERVED_TAG, LogoutRequest, NopOut, Pdu, TaskManagementRequest, TextRequest
from iscsifs.iscsi.states import MAY_REQUEST, OVER, ConnectionEvent, ConnectionState, advance
from iscsifs.iscsi.task import Task
from iscsifs.limits import MAX_LATE_TAGS

_LAST_TAG = RESERVED_TAG - 1


class Exchange:
    """The exchange of PDUs on one connection, from the moment when it is established.

    `requests` are those without an answer, by their Initiator Task Tags, in the order of sending. `late_tags`
    are those of tasks that were aborted, with their LUNs: the target may still answer them.
    """

    def __init__(self, observer: Observer | None = None) -> None:
        self.state = advance(ConnectionState.XPT_WAIT, ConnectionEvent.CONNECTED)
        self.sender = Sender(observer)
        self.commands = CommandNumbering()  # of the session
        self.statuses = StatusNumbering(self._may_repeat)
        self.events: list[Event] = []
        self.requests: dict[int, Request] = {}
        self.late_tags: dict[int, int] = {}
        self._last_tag = 0
        self._oddities: set[str] = set()

    def logged_in(self, cmd_sn: int, max_cmd_sn: int, exp_stat_sn: int) -> None:
        """Begin the full feature phase with the numbers of the login."""
        self.commands = CommandNumbering(cmd_sn, max_cmd_sn)
        self.statuses = StatusNumbering(self._may_repeat, exp_stat_sn)
        self.move(ConnectionEvent.LOGGED_IN)

    def move(self, event: ConnectionEvent) -> None:
        """Change the state by *event*. What follows the end, in the same bytes, changes nothing."""
        if self.state not in OVER:
            self.state = advance(self.state, event)

    def send_request(
        self, pdu: NopOut | TaskManagementRequest | TextRequest | LogoutRequest, data: bytes = b""
    ) -> None:
        """Send a request with the current numbers, unless the state forbids it."""
        if self.state in MAY_REQUEST:
            cmd_sn, exp_stat_sn = self.commands.cmd_sn, self.statuses.exp_stat_sn
            self.sender.send(pdu._replace(cmd_sn=cmd_sn, exp_stat_sn=exp_stat_sn), data)

    # Tags.

    def new_tag(self, request: Request) -> int:
        """Reserve an Initiator Task Tag for *request* (section 11.2.1.8)."""
        tag = self._last_tag + 1
        while tag > _LAST_TAG or tag in self.requests or tag in self.late_tags:
            tag = tag + 1 if tag < _LAST_TAG else 0
        self._last_tag = tag
        self.requests[tag] = request
        return tag

    def end_request(self, tag: int, request: Request) -> None:
        """Free the *tag* of *request*, which has ended."""
        del self.requests[tag]
        self.events.append(request)

    def remember_late(self, task: Task) -> None:
        """Keep the tag of an aborted *task* reserved: the target may still answer it (section 4.2.3.3)."""
        self.late_tags[task.initiator_task_tag] = task.lun
        if len(self.late_tags) > MAX_LATE_TAGS:
            del self.late_tags[next(iter(self.late_tags))]

    def unknown_tag(self, tag: int, pdu: Pdu) -> ProtocolError:
        """Return the error for a *pdu* with a *tag* that no request of its kind has."""
        return ProtocolError(f"task tag {tag:08x}h is not in use", section="4.2.5.3", pdu=pdu_name(pdu))

    def _may_repeat(self, pdu: NumberedPdu) -> bool:
        """Say whether *pdu* may have a StatSN that was counted before: it answers a request that waits.

        NetBSD's iscsi-target counts so while several commands are under way. Without such a request it may
        be anything.
        """
        tag = pdu.initiator_task_tag
        if tag not in self.requests and tag not in self.late_tags:
            return False
        self.note_once("the StatSN of the target does not count up, against RFC 7143 section 4.2.2.2")
        return True

    # Events.

    def note(self, text: str) -> None:
        """Report something for the log."""
        self.events.append(Noted(text))

    def note_once(self, oddity: str) -> None:
        """Report a harmless *oddity* of the target, once for each connection."""
        if oddity not in self._oddities:
            self._oddities.add(oddity)
            self.note(f"{oddity}; going on")
