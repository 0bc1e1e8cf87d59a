"""A disk far away: how much of what the wire allows one program gets that reads or writes on and on.

The measure is what many requests at once get. And after all that, how much memory is left in use.
"""

import os
import tempfile
import time
from pathlib import Path
from statistics import median

from support.targets import Istgt, Target, Tgt, Unit, make_image

from . import relay, servers
from .jobs import DEPTH_1, DEPTH_32, DIRECT, END, MIB, Job, run

ROUND_TRIP = 0.020  # seconds
IMAGE_SIZE = 1024 * MIB
NAME = "iqn.2026-01.example:far"
ROUNDS = 3
QUIET = 12.0  # seconds after which memory is given back

PAIRS = (
    (
        Job("read 1M, buffered", ("--rw=read", *DEPTH_1)),
        Job("read 1M, O_DIRECT, depth 32", ("--rw=read", *DEPTH_32, *DIRECT)),
    ),
    (
        Job("write 1M, buffered", ("--rw=write", *DEPTH_1, *END), 512, 512),
        Job("write 1M, O_DIRECT, depth 32", ("--rw=write", *DEPTH_32, *DIRECT, *END), 512, 512),
    ),
)


def table() -> str:
    """Measure behind a round trip of ROUND_TRIP, and return the table in Markdown."""
    lines = ["", f"| {ROUND_TRIP * 1000:g} ms | one by one | 32 at once | share |", "|---|---:|---:|---:|"]
    memory: list[str] = []
    for daemon in (Tgt, Istgt):
        name = daemon.__name__.lower()
        with tempfile.TemporaryDirectory(prefix="iscsifs-bench.", dir="/dev/shm") as directory:
            image = make_image(Path(directory) / "disk.img", IMAGE_SIZE)
            with (
                daemon(Path(directory), Target(NAME, [Unit(image)])) as served,
                relay.relay(served.port, ROUND_TRIP) as port,
                servers.iscsifs(servers.Lun(port, NAME, served.first_lun), Path(directory)) as storage,
            ):
                before = _resident(directory)
                for alone, together in PAIRS:
                    rates = [
                        median(run(job, storage, image, far=True, quick=False).rate for _ in range(ROUNDS))
                        for job in (alone, together)
                    ]
                    share = rates[0] / rates[1]
                    lines.append(
                        f"| {name}: {alone.name} | {rates[0]:.2f} GB/s | {rates[1]:.2f} GB/s | {share:.0%} |"
                    )
                busy = _resident(directory)
                time.sleep(QUIET)
                memory.append(
                    f"- resident memory, {name}: {before:.0f} MiB when mounted, {busy:.0f} MiB at the end, "
                    f"{_resident(directory):.0f} MiB {QUIET:g} s later"
                )
    return "\n".join([*lines, "", *memory])


def _resident(directory: str) -> float:
    """Return the resident MiB of the iscsifs that has mounted below *directory*."""
    (pid,) = servers.pids(f"{directory}/mnt")
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB
