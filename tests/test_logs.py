"""What becomes of messages on their way to the log."""

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from iscsifs.limits import LINES_A_MINUTE
from iscsifs.logs import log_to_syslog, log_to_terminal

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


# The background has no terminal.


@pytest.fixture
def syslog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "log"
    monkeypatch.setattr("iscsifs.logs._SYSLOG", str(path))
    logging.getLogger().setLevel(logging.WARNING)
    log_to_syslog()
    yield path
    log_to_terminal(logging.WARNING)  # which closes the socket


def test_in_the_background_messages_go_to_the_system_s_log(syslog: Path) -> None:
    """Whoever restarts it; their priorities are those of syslog(3), of a daemon."""
    log.error("nobody is there yet")
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system:
            system.bind(str(syslog))
            log.error("data may be lost")
            log.warning("logging in again")
            log.info("not told without -v")
            lines = [system.recv(1000).decode() for _ in range(2)]
        syslog.unlink()
        assert lines == [
            f"<27>iscsifs[{os.getpid()}]: data may be lost",
            f"<28>iscsifs[{os.getpid()}]: logging in again",
        ]


def test_a_log_that_nobody_reads_holds_nobody_up(syslog: Path) -> None:
    """Its reader may be waiting for one of our disks."""

    def fill() -> None:
        for line in range(2000):
            log.handle(log.makeRecord(log.name, logging.ERROR, "place.py", line, "complaint", (), None))

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system:
        system.bind(str(syslog))
        filling = Thread(target=fill, daemon=True)
        filling.start()
        filling.join(10)
        assert not filling.is_alive()
        assert system.recv(1000).endswith(b": complaint")
