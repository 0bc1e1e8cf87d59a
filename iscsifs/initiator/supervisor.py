"""The time-outs of one connection, and what is done about commands without an answer.

A command without an answer is aborted after the command time-out. Where that does not help within
MANAGEMENT_TIMEOUT its unit is reset, and after as long again the connection is given up. One clock serves all
of them, so that a command costs no timer of its own.
"""

import logging
import math
from collections.abc import Callable
from typing import Final

import trio

from iscsifs.errors import TransportError
from iscsifs.initiator.keepalive import Keepalive
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.initiator.resets import Resets
from iscsifs.iscsi.events import Management, SenseReported
from iscsifs.iscsi.pdu import TaskFunction
from iscsifs.iscsi.task import Task
from iscsifs.limits import MANAGEMENT_TIMEOUT
from iscsifs.scsi.cdb import describe
from iscsifs.scsi.sense import Sense, SenseKey
from iscsifs.transport.link import Link

log = logging.getLogger(__name__)

TICK: Final = 1.0
"""Seconds between two checks of the time-outs of a session."""

_RESET: Final = Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x03).pack()
"""The sense data of a unit that was reset (SPC-3 section 4.5.6)."""


class Supervisor:
    """Times the commands and task management functions on *link*, and its silence. *name* is for the log.

    *reported* is called for a unit that was reset.
    """

    def __init__(
        self, name: str, link: Link, options: InitiatorOptions, reported: Callable[[SenseReported], None]
    ) -> None:
        self._name = name
        self._link = link
        self._options = options
        self._reported = reported
        self._keepalive = Keepalive(link, options, trio.current_time())
        self._managements: dict[Management, float] = {}
        self._resets = Resets()  # those that a user has asked for
        self._stuck_ticks = 0

    def check(self, now: float) -> None:
        """Ask for what is missing: signs of life, and the status of commands and task management requests.

        To be called every TICK.
        """
        self._keepalive.check(now)
        self._check_commands()
        self._check_managements(now)
        self._link.flush()

    def abort(self, task: Task) -> None:
        """Send ABORT TASK for *task*, unless that has been done."""
        if not any(task in management.tasks for management in self._managements):
            self._sent(self._link.abort_task(task))

    async def reset(self, function: TaskFunction, lun: int) -> None:
        """Have the target carry out a reset; raises TransportError, or TaskAborted where it refuses."""
        self._sent(management := self._link.reset(function, lun))
        await self._resets.wait(self._name, management)

    def ended(self, management: Management) -> None:
        """Take the answer to a task management function, also to one that the connection asked for itself."""
        since = self._managements.pop(management, trio.current_time())
        lun = {TaskFunction.LOGICAL_UNIT_RESET: management.lun, TaskFunction.TARGET_WARM_RESET: None}
        if management.succeeded and management.function in lun:
            # The unit reports it to all other I_T nexuses, not to this one (SAM-5 section 7.7).
            self._reported(SenseReported(lun[management.function], _RESET))
        if management.refused_for_now:
            self._managements[management] = since  # `check` repeats it
        elif management.succeeded:
            self._resets.ended(management)
        else:
            self._escalate(management, f"response {management.response}")

    def lost(self) -> None:
        """Take note that the connection has ended."""
        self._managements.clear()
        self._resets.lost()

    def _check_commands(self) -> None:
        """Abort what has waited too long for its status, and give up a window that is never opened."""
        connection = self._link.connection
        limit = math.ceil(self._options.command_timeout / TICK)
        unsent = False
        for task in list(connection.tasks()):
            if not task.on_the_wire:
                unsent = True  # and so are all behind it
                break
            task.ticks += 1
            if task.ticks == limit + 1:  # the first tick comes less than TICK after the command
                seconds = self._options.command_timeout
                log.warning(
                    "%s: no answer to %s in %g s; aborting it",
                    self._name,
                    describe(task.cdb),
                    seconds,
                    extra={"kind": f"{self._name} {task.lun}"},
                )
                self.abort(task)
        self._stuck_ticks = self._stuck_ticks + 1 if unsent and not connection.tasks_on_the_wire else 0
        if self._stuck_ticks > limit:
            self._link.fail(TransportError("the command window stays closed"))

    def _check_managements(self, now: float) -> None:
        for management, since in list(self._managements.items()):
            if now - since >= MANAGEMENT_TIMEOUT:
                del self._managements[management]
                self._escalate(management, "no answer")
            elif management.refused_for_now:
                del self._managements[management]
                again = self._link.repeat(management)
                self._managements[self._resets.repeated(management, again)] = since

    def _sent(self, management: Management) -> None:
        self._managements[management] = trio.current_time()

    def _escalate(self, management: Management, reason: str) -> None:
        """Escalate after a function that failed: from ABORT TASK to LOGICAL UNIT RESET to a new session."""
        if self._resets.refused(management):
            return
        function, lun = management.function, management.lun
        if all(task.ended for task in management.tasks):
            return
        if function is not TaskFunction.ABORT_TASK:
            self._link.fail(TransportError(f"{function.name} did not help ({reason})"))
        elif not any(other.function is not function and other.lun == lun for other in self._managements):
            log.warning("%s: ABORT TASK did not help (%s); resetting the unit", self._name, reason)
            self._sent(self._link.reset(TaskFunction.LOGICAL_UNIT_RESET, lun))
