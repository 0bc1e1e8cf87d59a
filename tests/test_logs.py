"""What becomes of messages on their way to the log."""

import logging

import pytest

from iscsifs.limits import LINES_A_MINUTE
from iscsifs.logs import log_to_terminal

log = logging.getLogger("iscsifs.test")


pytestmark = pytest.mark.usefixtures("own_log")


def complain(times: int, now: float = 0.0) -> None:
    for number in range(times):
        record = log.makeRecord(log.name, logging.WARNING, "place.py", 1, "complaint %d", (number,), None)
        record.created = now
        log.handle(record)


def test_one_place_in_the_code_cannot_fill_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_terminal(logging.WARNING)
    complain(LINES_A_MINUTE + 7)
    log.warning("another place")
    *complaints, other = capsys.readouterr().err.splitlines()
    assert complaints == [f"iscsifs: complaint {number}" for number in range(LINES_A_MINUTE)]
    assert other == "iscsifs: another place"


@pytest.mark.parametrize("later", [60.0, -60.0])
def test_what_was_left_out_is_counted_when_there_is_room_again(
    later: float, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_terminal(logging.WARNING)
    complain(LINES_A_MINUTE + 7)
    complain(1, later / 2)
    capsys.readouterr()
    complain(2, later)
    assert capsys.readouterr().err.splitlines() == [
        "iscsifs: complaint 0 (8 more like this were left out)",
        "iscsifs: complaint 1",
    ]


def test_who_looks_for_a_bug_sees_everything(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_terminal(logging.DEBUG)
    complain(LINES_A_MINUTE + 7)
    assert len(capsys.readouterr().err.splitlines()) == LINES_A_MINUTE + 7
