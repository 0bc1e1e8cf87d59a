"""The standard streams of the commands: closed, full, or without a reader."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from iscsifs.exit_status import ExitStatus
from iscsifs.target.testing import TestTarget
from support.mounting import ENVIRONMENT, Mounted

_LINE = "127.0.0.1: "
_FULL = "standard output: No space left on device\n"


def typed(command: str, *words: object, module: str = "iscsifs") -> tuple[int, str, str]:
    """Type *command* in bash, where $CMD is *module* with *words*; return its status and what it said."""
    text = " ".join([f"{sys.executable} -m {module}", *map(str, words)])
    done = subprocess.run(
        ["bash", "-c", command.replace("$CMD", text)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | ENVIRONMENT,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("module", ["iscsifs", "iscsifs.target"])
@pytest.mark.parametrize("option", ["-h", "-V"])
def test_a_summary_that_cannot_be_printed_is_one_line_of_why(module: str, option: str) -> None:
    name = module.replace(".", "-")
    assert typed("$CMD >/dev/full", option, module=module) == (1, "", f"{name}: {_FULL}")
    assert typed("$CMD 2>&1 >&- | cat", option, module=module) == (0, "", "")
    assert typed("$CMD | true; exit ${PIPESTATUS[0]}", option, module=module)[2] == ""


@pytest.mark.parametrize("streams", [">&- 2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_an_error_that_cannot_be_printed_keeps_its_exit_status(streams: str) -> None:
    assert typed(f"$CMD {streams}", "-D", "127.0.0.1:1") == (ExitStatus.UNREACHABLE, "", "")
    assert typed(f"$CMD {streams}", "--nonsense") == (ExitStatus.USAGE, "", "")


def test_a_list_that_cannot_be_printed_is_a_failure(iscsi_target: TestTarget) -> None:
    words = ["-D", f"{iscsi_target.host}:{iscsi_target.port}"]
    assert typed("$CMD >/dev/full", *words) == (ExitStatus.FAILED, "", f"iscsifs: {_FULL}")
    status, said, error = typed("$CMD | head -c 5", *words)
    assert (status, said, error) == (0, _LINE[:5], "")
    # Nobody wants to hear of a reader that has gone.
    assert typed("$CMD | true; exit ${PIPESTATUS[0]}", *words) == (ExitStatus.FAILED, "", "")


@pytest.mark.mount
@pytest.mark.parametrize("streams", [">/dev/full", "2>/dev/full", ">&-", "<&- >&- 2>&-", "| true"])
def test_a_mount_does_not_depend_on_who_reads_its_lines(
    streams: str, iscsi_target: TestTarget, tmp_path: Path
) -> None:
    mounted = Mounted(tmp_path)
    try:
        status, _, error = typed(f"$CMD {streams}", iscsi_target.url, tmp_path)
        assert (status, error) == (0, f"iscsifs: {_FULL}" if streams == ">/dev/full" else "")
        assert mounted.is_mounted()
        (pid,) = mounted.pids
        assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)} == {"/dev/null"}
        mounted.unmount()
    finally:
        mounted.close()
