"""What the status of a command means for its caller, and whether to repeat the command (SAM-5, SPC-4)."""

import logging
from enum import Enum, auto
from typing import Final

from iscsifs.errors import (
    BusyError,
    CommandError,
    MediumError,
    NoMediumError,
    ReservationError,
    SpaceError,
    StatusError,
    WriteProtectedError,
)
from iscsifs.scsi.cdb import command_name, describe
from iscsifs.scsi.sense import Condition, Sense
from iscsifs.scsi.status import Status

log = logging.getLogger(__name__)

_BUSY: Final = frozenset({Status.BUSY, Status.TASK_SET_FULL, Status.TASK_ABORTED, Status.ACA_ACTIVE})


class Unsupported(StatusError):
    """The unit does not know the command, or a field in it."""


class Repeat(Enum):
    """Whether to repeat a command that failed."""

    NEVER = auto()
    AT_ONCE = auto()
    LATER = auto()


ERRORS: Final[dict[Condition, type[StatusError]]] = {
    Condition.MEDIUM_ERROR: MediumError,
    Condition.WRITE_PROTECTED: WriteProtectedError,
    Condition.NO_SPACE: SpaceError,
    Condition.NO_MEDIUM: NoMediumError,
    Condition.NOT_READY: NoMediumError,
    Condition.BECOMING_READY: NoMediumError,
    Condition.UNSUPPORTED: Unsupported,
}
"""The error of each condition; StatusError for those that are not here."""


def judge(
    name: str, cdb: bytes, status: int, sense_data: bytes, patience: float, *, probe: bool
) -> tuple[CommandError, Repeat] | None:
    """Return the error of a command *cdb* to the unit *name* and whether to repeat it; None for a success.

    *status* is not GOOD, *sense_data* belong to CHECK CONDITION. A busy unit is given *patience* seconds. A
    unit that is not there may come back: a command that is no *probe* is repeated, for which the owner of the
    queue suspends it first.
    """
    if status == Status.CONDITION_MET:
        return None

    def error(kind: type[StatusError], reason: str, of_kind: str = "") -> StatusError:
        failure = kind(f"{name}: {describe(cdb)}: {reason}", status=status, sense=sense_data)
        return failure.counted_as(f"{name}: {command_name(cdb)}: {of_kind or reason}")

    if status == Status.CHECK_CONDITION:
        sense = Sense.parse(sense_data)
        condition = sense.condition
        if condition is Condition.RECOVERED:
            log.info("%s: %s: %s", name, describe(cdb), sense, extra={"kind": f"{name}: {sense.kind}"})
            return None
        failure = error(ERRORS.get(condition, StatusError), str(sense), sense.kind)
        if condition is Condition.BECOMING_READY:
            return failure, Repeat.LATER
        at_once = condition.repeatable or (condition is Condition.NO_UNIT and not probe)
        return failure, Repeat.AT_ONCE if at_once else Repeat.NEVER
    if status in _BUSY:
        return error(BusyError, f"{Status(status).name} for {patience:g} s"), Repeat.LATER
    if status == Status.RESERVATION_CONFLICT:
        return error(ReservationError, "another initiator has reserved the unit"), Repeat.NEVER
    return error(StatusError, f"status {status:02x}h"), Repeat.NEVER
