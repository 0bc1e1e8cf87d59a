"""Verify what is read, for as long as you like, while the connections and the targets fail.

Each of four mounts (the embedded target and tgt, with write-behind and without) is written and read by fio,
buffered and direct, on `storage` and on ext4 on a loop device on it. None of the faults is one that a user
may notice, so that any error counts. Prints a line for each minute and a table; the exit status is 1 after
any mismatch, error or hang. Ctrl-C ends it earlier, when what is under way has been verified.
"""

import argparse
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from .lane import Lane, Plan
from .load import Tally
from .sides import Embedded, RealTgt

PLANS: Final = (
    Plan(Embedded, behind=True, digests=False),
    Plan(Embedded, behind=False, digests=True, block_size=4096),
    Plan(RealTgt, behind=True, digests=True),
    Plan(RealTgt, behind=False, digests=False),
)


def main() -> int:
    """Run it as the command line asks."""
    parser = argparse.ArgumentParser(
        prog="contrib/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30, help="how long (%(default)s)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of everything that is random")
    arguments = parser.parse_args()
    plans = [plan for plan in PLANS if plan.target is Embedded or shutil.which("tgtd")]
    logging.disable(logging.WARNING)  # the embedded target tells what is done to its connections
    print(f"seed {arguments.seed}", flush=True)
    if len(plans) < len(PLANS):
        print("tgt is not installed and left out", flush=True)
    with tempfile.TemporaryDirectory(prefix="iscsifs-soak.", dir="/dev/shm") as name:
        lanes = []
        for number, plan in enumerate(plans):
            (directory := Path(name) / f"lane{number}").mkdir()
            lanes.append(Lane(plan, directory, random.Random(f"{arguments.seed} {plan}")))
        trio.run(_run, lanes, arguments.minutes * 60)
        print(_table(lanes))
        said = [f"{lane.plan}: {line}" for lane in lanes for line in lane.said]
        lost = [
            f"{lane.plan}: {line}"
            for lane in lanes
            for line in lane.log.read_text(errors="replace").splitlines()
            if "may be lost" in line
        ]
        for line in said + lost:
            print(line)
    return 0 if all(lane.tally.is_clean for lane in lanes) else 1


async def _run(lanes: Sequence[Lane], seconds: float) -> None:
    start = trio.current_time()
    stop = trio.Event()

    async def listen() -> None:
        with trio.open_signal_receiver(signal.SIGINT) as interrupts:
            async for _ in interrupts:
                print("ending; what is under way is verified first", flush=True)
                stop.set()

    async def wait() -> None:
        await trio.sleep(seconds)
        stop.set()

    async def report() -> None:
        while True:
            await trio.sleep(60)
            for lane in lanes:
                lane.look()
            print(_line(lanes, trio.current_time() - start), flush=True)

    async with trio.open_nursery() as watching:
        for watcher in listen, wait, report:
            watching.start_soon(watcher)
        async with trio.open_nursery() as working:
            for lane in lanes:
                working.start_soon(lane.run, stop)
        watching.cancel_scope.cancel()


def _sum(lanes: Sequence[Lane]) -> Tally:
    total = Tally()
    for lane in lanes:
        total.add(lane.tally)
    return total


def _line(lanes: Sequence[Lane], seconds: float) -> str:
    total = _sum(lanes)
    memory = " ".join(f"{lane.memory[-1] >> 20}" for lane in lanes if lane.memory)
    return (
        f"{seconds / 60:5.1f} min  {total.operations} operations  {total.bytes / 1e9:.1f} GB  "
        f"{sum(lane.troubles.total() for lane in lanes)} faults  {total.mismatches} mismatches  "
        f"{total.errors} errors  {total.hangs} hangs  memory {memory} MiB"
    )


def _table(lanes: Sequence[Lane]) -> str:
    columns = ("mount", "rounds", "operations", "GB", "faults", "mismatches", "errors", "hangs", "memory MiB")
    lines = ["", "| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    for lane in lanes:
        tally, memory = lane.tally, [resident >> 20 for resident in lane.memory]
        cells: list[object] = [lane.plan, tally.rounds, tally.operations, f"{tally.bytes / 1e9:.1f}"]
        cells += [lane.troubles.total(), tally.mismatches, tally.errors, tally.hangs]
        cells += [f"{memory[0]} to {memory[-1]}, at most {max(memory)}" if memory else ""]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    faults = sum((lane.troubles for lane in lanes), Counter())
    lines += ["", "| fault | times |", "|---|---:|"]
    lines += [f"| {name} | {times} |" for name, times in faults.most_common()]
    total = _sum(lanes)
    lines.append(
        f"\n{total.operations} operations ({total.reads} reads, {total.writes} writes), "
        f"{faults.total()} faults, {total.mismatches} mismatches, {total.errors} errors, {total.hangs} hangs"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
