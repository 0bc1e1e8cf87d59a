"""Many targets and many logical units: the time until all are listed, and the memory they take."""

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from support.targets import Target, Tgt, Unit, make_image

from . import servers

COUNT = 256
NAME = "iqn.2026-01.example:disk"


def table() -> str:
    """Mount one unit, 256 targets, and 256 units of one target, and return what each took in Markdown."""
    lines = ["", "| | listed after | resident memory |", "|---|---:|---:|"]
    with tempfile.TemporaryDirectory(prefix="iscsifs-bench.", dir="/dev/shm") as name:
        unit = Unit(make_image(Path(name) / "disk.img", 16 << 20))
        cases: dict[str, Sequence[Target]] = {
            "1 target": [Target(NAME, [unit])],
            f"{COUNT} targets": [Target(f"{NAME}{number}", [unit]) for number in range(COUNT)],
            f"{COUNT} LUNs of 1 target": [Target(NAME, [unit] * COUNT)],
        }
        for case, targets in cases.items():
            with Tgt(Path(name), *targets, io_threads=1) as tgt:
                seconds, memory = _measure(tgt.port, sum(len(target.units) for target in targets), Path(name))
            lines.append(f"| {case} | {seconds:.2f} s | {memory / 2**20:.1f} MiB |")
    return "\n".join(lines)


def _measure(port: int, units: int, directory: Path) -> tuple[float, int]:
    """Return the seconds from the start of iscsifs until *units* are listed, and its resident bytes then."""
    mountpoint = directory / "mnt"
    mountpoint.mkdir()
    start = time.monotonic()
    subprocess.run(["iscsifs", f"127.0.0.1:{port}", mountpoint], check=True)
    try:
        listed = list(mountpoint.glob("127.0.0.1*/*/lun*/storage"))
        seconds = time.monotonic() - start
        if len(listed) != units:
            raise SystemExit(f"{len(listed)} units are listed instead of {units}")
        pages = sum(
            int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in servers.pids(str(mountpoint))
        )
        return seconds, pages * os.sysconf("SC_PAGE_SIZE")
    finally:
        subprocess.run(["fusermount3", "-u", mountpoint], check=True)
        servers.wait_until(lambda: not servers.pids(str(mountpoint)), "iscsifs does not end")
        mountpoint.rmdir()
