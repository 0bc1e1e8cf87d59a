"""What a connection tells the layer above: requests that have ended, and what the target says by itself.

A request is handed out when it is made and comes back as an event when it has its answer. So does a SCSI
command, `task.Task`.
"""

from dataclasses import dataclass, field

from iscsifs.errors import CommandError, TaskAborted
from iscsifs.iscsi.login import Redirect
from iscsifs.iscsi.pdu import LogoutReason, TaskFunction, TaskResponse
from iscsifs.iscsi.task import Task
from iscsifs.iscsi.text import Pair, TextCollector


@dataclass(slots=True, eq=False)
class Management:
    """A task management function on *tasks* of *lun* (section 11.5), with its answer (section 11.6.1).

    The tasks that it ended have failed with *failure*. *refused_for_now* says that the target rejected the
    request for want of room (section 11.17.1, reason 06h): it may be sent again later.
    """

    function: TaskFunction
    lun: int
    tasks: list[Task]
    failure: CommandError = field(default_factory=lambda: TaskAborted("the command was aborted"))
    response: int | None = None
    refused_for_now: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether the tasks that it was about are gone."""
        return self.response == TaskResponse.COMPLETE or (
            self.response == TaskResponse.NO_SUCH_TASK and self.function == TaskFunction.ABORT_TASK
        )


@dataclass(slots=True, eq=False)
class Text:
    """A text exchange (section 11.10); *pairs* are the answer, None where the target rejected the request."""

    collector: TextCollector
    immediate: bool
    pairs: list[Pair] | None = None


@dataclass(slots=True, eq=False)
class Ping:
    """A NOP-Out that asked for an echo (section 11.18)."""


@dataclass(slots=True, eq=False)
class Logout:
    """A logout (section 11.14) with its answer (11.15.1); *time2wait* is in seconds."""

    reason: LogoutReason
    response: int | None = None
    time2wait: int = 0


Request = Task | Management | Text | Ping | Logout
"""What has an Initiator Task Tag."""


@dataclass(slots=True)
class LoggedIn:
    """The login is done: commands may be submitted."""


@dataclass(slots=True)
class LogoutRequested:
    """The target wants to be logged out of within *seconds* (asynchronous event 1, or reject reason 0Ch)."""

    seconds: int


@dataclass(slots=True)
class ConnectionDropped:
    """The target drops the connection; the next login has to wait *time2wait* seconds (events 2 and 3)."""

    time2wait: int


@dataclass(slots=True)
class SenseReported:
    """What a logical unit reports by *sense* data, as an asynchronous SCSI event (event 0) for instance.

    *lun* is None where all units of the target do.
    """

    lun: int | None
    sense: bytes


@dataclass(slots=True)
class Noted:
    """Something for the log that needs no action; *text* is fit to be printed."""

    text: str


Event = Request | LoggedIn | Redirect | LogoutRequested | ConnectionDropped | SenseReported | Noted
