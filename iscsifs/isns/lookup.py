"""Asks a server for its targets: all at once, one after the other where that is too much for it, or one."""

from collections.abc import Callable, Generator

from iscsifs.errors import IsnsError, IsnsProtocolError
from iscsifs.isns import messages
from iscsifs.isns.attributes import Tag
from iscsifs.isns.conversation import Reply, Step, ask, ask_all
from iscsifs.isns.messages import Answer
from iscsifs.isns.pdu import Status, status_text
from iscsifs.isns.targets import IsnsTarget, read_targets
from iscsifs.limits import MAX_TARGETS

Note = Callable[[str], None]


class Refused(IsnsError):
    """A request was answered with *status*."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(f"the server refuses {what}: {status_text(status)}")
        self.status = status


def find_all(
    source: str, note: Note, *, walks: bool = False
) -> Generator[Step, Reply, tuple[dict[str, IsnsTarget], bool]]:
    """Return the targets that *source* may see, and whether that is all of them; raises IsnsError.

    With *walks* they are asked for one after the other.
    """
    if walks:
        return (yield from _walk(source, note))
    answer = yield from ask(messages.query_all_targets(source))
    if answer.status == Status.INTERNAL_ERROR:  # the answer would be longer than the server can send
        return (yield from _walk(source, note))
    return _read(answer, note), True


def find_one(source: str, name: str, note: Note) -> Generator[Step, Reply, IsnsTarget | None]:
    """Return the target *name*, None where *source* cannot see it; raises IsnsError."""
    answer = yield from ask(messages.query_target(source, name))
    return _read(answer, note).get(name)


def _read(answer: Answer, note: Note) -> dict[str, IsnsTarget]:
    """Return the targets of an answer; "no such entry" and nothing at all mean that there is none."""
    if answer.status == Status.NO_SUCH_ENTRY:
        return {}
    if answer.status:
        raise Refused("the query of targets", answer.status)
    return read_targets(answer.operating, note)


def _walk(source: str, note: Note) -> Generator[Step, Reply, tuple[dict[str, IsnsTarget], bool]]:
    """Return the targets by DevGetNext for the names, and a query for each (section 5.6.5.3)."""
    names: dict[str, None] = {}
    is_whole = True
    last: str | None = None
    while True:
        answer = yield from ask(messages.next_target(source, last))
        if answer.status == Status.NO_SUCH_ENTRY:
            break
        if answer.status:
            raise Refused("the query of the next target", answer.status)
        last = next(
            (a.value for a in answer.key if a.tag == Tag.ISCSI_NAME and isinstance(a.value, str)), None
        )
        if last is None:
            raise IsnsProtocolError("an answer to DevGetNext without a name", section="5.7.5.3")
        if last in names:
            note("it names a target twice where it has to name each once; some may be missing")
            is_whole = False
            break
        if len(names) == MAX_TARGETS:
            note(f"it names more than {MAX_TARGETS} targets; the others are left out")
            break
        names[last] = None
    found: dict[str, IsnsTarget] = {}
    answers = yield from ask_all([messages.query_target(source, name) for name in names])
    for name, answer in zip(names, answers, strict=True):
        target = _read(answer, note).get(name)
        if target is not None:
            found[name] = target
    return found, is_whole
