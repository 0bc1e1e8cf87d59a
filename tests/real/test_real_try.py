"""contrib/try, a newcomer's first command."""

import os
import subprocess
from pathlib import Path

import pytest

from support.machine import absent
from support.mounting import run

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.real, pytest.mark.mount]


def test_it_shows_everything_and_leaves_nothing_behind(tmp_path: Path) -> None:
    if not (ROOT / ".venv").exists():
        absent("contrib/try would have to make .venv first, which takes a minute; contrib/test does so")
    done = subprocess.run(
        [ROOT / "contrib/try"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "as it was written" in done.stdout or "as they were written" in done.stdout
    # Whoever follows it has seen how to mount, and how to take it all down.
    commands = [line for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert any(command.startswith("$ iscsifs 127.0.0.1:") for command in commands)
    assert commands[-1].startswith("$ iscsifs --unmount ")
    assert list(tmp_path.iterdir()) == []
    for listing in (Path("/proc/mounts").read_text(), run("losetup", "-a"), run("ps", "-eo", "args")):
        assert str(tmp_path) not in listing
