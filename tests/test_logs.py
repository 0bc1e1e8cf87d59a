"""What becomes of messages on their way to the log."""

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from iscsifs.errors import MediumError
from iscsifs.limits import LINES_A_MINUTE, MAX_KINDS, REPEATS_INTERVAL
from iscsifs.logs import _Repeats, log_to_file, log_to_syslog, log_to_terminal, tell_repeats

log = logging.getLogger("iscsifs.test")


pytestmark = pytest.mark.usefixtures("own_log")


def complain(times: int, now: float = 0.0, first: int = 0) -> None:
    for number in range(first, first + times):
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
    complain(1, later / 2, first=1000)
    capsys.readouterr()
    complain(2, later)
    assert capsys.readouterr().err.splitlines() == [
        "iscsifs: complaint 0 (8 more like this were left out)",
        "iscsifs: complaint 1",
    ]


def repeat(
    times: int, text: str = "%s: LBA %d cannot be read", created: float = 0.0, **extra: object
) -> None:
    for number in range(times):
        record = log.makeRecord(
            log.name,
            logging.ERROR,
            "p.py",
            1,
            text,
            ("lun0", number) if "%" in text else (),
            None,
            extra=extra,
        )
        record.created = created
        log.handle(record)


def test_repeated_messages_are_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log_to_terminal(logging.WARNING)
    repeat(314, kind="lun0: cannot be read")
    repeat(1, kind="lun1: cannot be read")
    repeat(3, "the same words")
    assert capsys.readouterr().err.splitlines() == [
        "iscsifs: lun0: LBA 0 cannot be read",
        "iscsifs: lun0: LBA 0 cannot be read",
        "iscsifs: the same words",
    ]
    monkeypatch.setattr("iscsifs.logs.time.time", lambda: REPEATS_INTERVAL - 1)
    tell_repeats()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("iscsifs.logs.time.time", lambda: REPEATS_INTERVAL)
    tell_repeats()
    assert capsys.readouterr().err.splitlines() == [
        "iscsifs: lun0: LBA 313 cannot be read (313 more like this in the last 60 s)",
        "iscsifs: the same words (2 more like this in the last 60 s)",
    ]
    # What goes on is counted further; what had an end begins anew.
    repeat(2, kind="lun0: cannot be read", created=REPEATS_INTERVAL)
    repeat(1, kind="lun1: cannot be read", created=REPEATS_INTERVAL)
    assert capsys.readouterr().err.splitlines() == ["iscsifs: lun0: LBA 0 cannot be read"]
    tell_repeats(0)
    assert capsys.readouterr().err.splitlines() == [
        "iscsifs: lun0: LBA 1 cannot be read (2 more like this in the last 0 s)"
    ]


def test_so_many_kinds_are_counted_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_terminal(logging.WARNING)
    repeats = next(f for f in logging.getLogger().handlers[-1].filters if isinstance(f, _Repeats))
    for number in range(MAX_KINDS + 10):
        record = log.makeRecord(log.name, logging.ERROR, "p.py", 1, f"kind {number}", (), None)
        assert repeats.filter(record)
    assert len(repeats._kinds) == MAX_KINDS


def test_errors_of_one_kind_name_different_blocks() -> None:
    first, second = MediumError("lun0: LBA 1", status=2), MediumError("lun0: LBA 2", status=2)
    assert first.kind != second.kind
    assert first.counted_as("lun0").kind == second.counted_as("lun0").kind == "lun0"
    assert str(first) == "lun0: LBA 1"


def test_who_looks_for_a_bug_sees_everything(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_terminal(logging.DEBUG)
    complain(LINES_A_MINUTE + 7)
    assert len(capsys.readouterr().err.splitlines()) == LINES_A_MINUTE + 7


def test_a_terminal_and_a_file_get_the_same_lines(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is counted, is counted once, and told to both."""
    log_to_terminal(logging.WARNING)
    log_to_file(tmp_path / "log")

    def lines() -> tuple[list[str], list[str]]:
        shown = [line.removeprefix("iscsifs: ") for line in capsys.readouterr().err.splitlines()]
        kept = [line.partition(": ERROR: ")[2] for line in (tmp_path / "log").read_text().splitlines()]
        (tmp_path / "log").write_text("")
        return shown, kept

    repeat(3, kind="lun0: cannot be read")
    repeat(1, created=REPEATS_INTERVAL, kind="lun0: cannot be read")
    wanted = [
        "lun0: LBA 0 cannot be read",
        f"lun0: LBA 0 cannot be read (2 more like this in the last {REPEATS_INTERVAL:.0f} s)",
    ]
    assert lines() == (wanted, wanted)
    repeat(2, created=REPEATS_INTERVAL, kind="lun0: cannot be read")
    monkeypatch.setattr("iscsifs.logs.time.time", lambda: 2 * REPEATS_INTERVAL)
    tell_repeats()
    wanted = [f"lun0: LBA 1 cannot be read (2 more like this in the last {REPEATS_INTERVAL:.0f} s)"]
    assert lines() == (wanted, wanted)
    complain(LINES_A_MINUTE + 7, now=1000.0)
    lines()
    complain(1, now=1060.0)
    shown, _ = lines()
    assert shown == ["complaint 0 (7 more like this were left out)"]
    log_to_terminal(logging.WARNING)  # which closes the file


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
    for number in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system:
            system.bind(str(syslog))
            log.error("data may be lost: %d", number)
            log.warning("logging in again: %d", number)
            log.info("not told without -v")
            lines = [system.recv(1000).decode() for _ in range(2)]
        syslog.unlink()
        assert lines == [
            f"<27>iscsifs[{os.getpid()}]: data may be lost: {number}",
            f"<28>iscsifs[{os.getpid()}]: logging in again: {number}",
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
