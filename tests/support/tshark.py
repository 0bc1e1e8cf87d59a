"""What Wireshark's programs say of a capture."""

import subprocess
from collections.abc import Sequence
from pathlib import Path


def dissect(
    capture: Path, fields: Sequence[str], *, only: str = "", options: Sequence[str] = ()
) -> list[list[str]]:
    """Return the *fields* of each frame that passes the display filter *only*; several values have commas."""
    command = ["tshark", "-2", "-r", str(capture), "-T", "fields", *(f"-e{field}" for field in fields)]
    command += ["-E", "separator=/t", "-E", "aggregator=,"]
    command += [f"-o{option}" for option in options] + (["-Y", only] if only else [])
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def count(capture: Path, only: str, options: Sequence[str] = ()) -> int:
    """Return how many frames the display filter *only* lets pass."""
    return len(dissect(capture, ["frame.number"], only=only, options=options))


def capinfos(capture: Path) -> str:
    """Return what capinfos says; it fails where a file is damaged."""
    done = subprocess.run(["capinfos", str(capture)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.replace(
        'Running as user "root" and group "root". This could be dangerous.', ""
    ).strip()
    return done.stdout
