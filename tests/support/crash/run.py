"""Crash consistency of file systems on `storage`.

A file system on a loop device on `storage` of a mounted iscsifs is worked upon, while the target logs what it
is told to write and to flush. Then the power fails at one moment of that log after the other: what was
flushed is there, and what was not is there, lost or torn. Each time the file system has to come up, to pass
its fsck, and to hold every file that was fsynced by then.
"""

import argparse
import contextlib
import itertools
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.server import Server
from support.crash import workload
from support.crash.medium import FAILURES, Entry, Flush, Medium, copy_sparse, everything, logged_disk
from support.mounting import Mounted, run, wait_until
from support.proxy import Call, running

NAME: Final = "iqn.2026-01.example:disk"
TMPFS: Final = "/dev/shm"
WORKERS: Final = 3
CALM: Final = (0.02, 1.0)
"""Seconds between two troubles; after a lost connection iscsifs waits two for the target to notice it."""


@dataclass(frozen=True)
class FileSystem:
    """How a file system is made on a file of *size* bytes, and checked after it was unmounted.

    *atom* is how many sectors it trusts a disk to write as a whole: its superblock has to survive.
    """

    name: str
    size: int
    atom: int
    make: Sequence[str]
    check: Sequence[str]


EXT4: Final = FileSystem(
    "ext4",
    64 << 20,
    2,
    ("mkfs.ext4", "-q", "-F", "-J", "size=4", "-E", "lazy_itable_init=0"),
    ("e2fsck", "-f", "-n"),
)
XFS: Final = FileSystem("xfs", 300 << 20, 1, ("mkfs.xfs", "-q"), ("xfs_repair", "-n"))
FILE_SYSTEMS: Final = {kind.name: kind for kind in (EXT4, XFS)}


@dataclass
class Recording:
    """What happened: the log of the disk that began as *image*, and the history of each file below *root*."""

    kind: FileSystem
    image: Path
    root: Path
    entries: list[Entry] = field(default_factory=list)
    start: int = 0
    """The position at which the file system was mounted and the workload began."""
    histories: dict[Path, workload.History] = field(default_factory=dict)
    troubles: int = 0
    """How often a connection was cut or the cache was lost meanwhile."""

    def flushes(self) -> list[int]:
        """The positions at which a flush was just carried out."""
        return [
            number
            for number, entry in enumerate(self.entries, 1)
            if isinstance(entry, Flush) and number > self.start
        ]


@dataclass
class Verdict:
    """What was found: how many moments of each kind, and what was wrong at which."""

    cuts: Counter[str] = field(default_factory=Counter)
    files: int = 0
    """Files that were compared, over all moments."""
    complaints: list[str] = field(default_factory=list)


def record(
    kind: FileSystem,
    directory: Path,
    operations: int,
    rng: random.Random,
    options: Sequence[str] = (),
    *,
    troubled: bool = False,
) -> Recording:
    """Let the workload do *operations*, with iscsifs mounted with *options*; needs root.

    With *troubled* connections are cut, and the target loses its cache, all the time.
    """
    image = directory / f"{kind.name}.img"
    with image.open("xb") as file:
        file.truncate(kind.size)
    run(*kind.make, image)
    run("fallocate", "--dig-holes", image)
    before = directory / f"{kind.name}-before.img"
    copy_sparse(image, before)
    recording = Recording(kind, before, directory / kind.name)
    entries = recording.entries
    recording.root.mkdir()
    with ExitStack() as stack:
        disk = logged_disk(image, entries)
        stack.callback(disk.close)
        device = Device(NAME, {0: disk})
        server, call = stack.enter_context(running(lambda: Server([device])))
        mounted = Mounted(directory / f"{kind.name}-mnt")
        mounted.path.mkdir()
        stack.callback(mounted.close)
        mounted.start(*options, f"iscsi://{server.portals[0]}/{NAME}/0")
        assert mounted.said.returncode == 0, mounted.said
        with _loop(mounted.storage(), "--direct-io=on") as loop, _mounted(loop, recording.root):
            workers = [
                workload.Worker(
                    recording.root / f"worker{number}", lambda: len(entries), random.Random(rng.random())
                )
                for number in range(WORKERS)
            ]
            for worker in workers:
                worker.prepare()
                recording.histories |= worker.histories
            recording.start = len(entries)
            with _trouble(recording, server, disk, call) if troubled else contextlib.nullcontext():
                workload.run(workers, operations)
            for worker in workers:
                recording.histories |= worker.histories
        mounted.unmount()
    image.unlink()
    return recording


def examine(recording: Recording, cuts: int, rng: random.Random) -> Verdict:
    """Let the power fail at *cuts* moments.

    Half of them are flushes, a quarter the moments when an fsync returned, the others anywhere between.
    """
    verdict = Verdict()
    flushes = recording.flushes()
    at_flush = sorted(rng.sample(flushes, min(len(flushes), cuts // 2)))
    promises = sorted(
        position for history in recording.histories.values() for position in history.acknowledgements
    )
    between = rng.choices(promises, k=cuts // 4)
    between += rng.choices(
        range(recording.start, len(recording.entries) + 1), k=cuts - len(at_flush + between)
    )
    medium = Medium(recording.image, recording.entries)
    scratch = recording.image.with_suffix(".scratch")
    moments = [(position, everything) for position in at_flush]
    moments += [(position, rng.choice(FAILURES)) for position in between]
    for position, failure in sorted(moments, key=lambda moment: moment[0]):
        medium.advance(position)
        medium.fail(failure(medium.cached, recording.kind.atom, rng), scratch)
        name = failure.__name__ if medium.cached else "at a flush"
        verdict.cuts[name] += 1
        verdict.files += len(recording.histories)
        verdict.complaints += [
            f"{recording.kind.name}, entry {position} of {len(recording.entries)} ({name}): {complaint}"
            for complaint in _come_up(recording, scratch, position)
        ]
    scratch.unlink()
    return verdict


def _come_up(recording: Recording, image: Path, position: int) -> Iterator[str]:
    """Mount *image*, which replays its journal; compare the files, unmount, and check the file system."""
    root = image.with_suffix(".root")
    root.mkdir(exist_ok=True)
    # With "-o loop" mount(8) may take the device of the last moment, which is not gone yet, and with it the
    # blocks that are cached of that: no journal is replayed then.
    with _loop(image) as device:
        done = _try("mount", device, root)
        if done.returncode:
            yield f"it does not mount: {done.stdout.strip()}"
            return
        try:
            yield from workload.complaints(recording.root, recording.histories, root, position)
        finally:
            run("umount", root)
    done = _try(*recording.kind.check, image)
    if done.returncode:
        yield f"{recording.kind.check[0]} ends with {done.returncode}: {done.stdout.strip()}"


def _try(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@contextlib.contextmanager
def _trouble(recording: Recording, server: Server, disk: Disk, call: Call) -> Iterator[None]:
    """Cut the connections, lose the cache, or both, again and again."""
    rng = random.Random(recording.start)
    over = threading.Event()

    def trouble() -> None:
        for number in itertools.count():
            if number % 3 != 0:
                call(disk.drop_cache)
            if number % 3 != 1:
                call(partial(server.drop_connections, reset=rng.random() < 0.5))
            recording.troubles += 1
            if over.wait(rng.uniform(*CALM)):
                return

    thread = threading.Thread(target=trouble)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _loop(file: Path, *options: str) -> Iterator[str]:
    device = run("losetup", *options, "-f", "--show", file).strip()
    try:
        yield device
    finally:
        run("losetup", "-d", device)
        wait_until(lambda: not run("losetup", "-j", file), f"{device} is free")


@contextlib.contextmanager
def _mounted(device: str, root: Path) -> Iterator[None]:
    run("mount", device, root)
    try:
        yield
    finally:
        run("umount", root)


def main() -> int:
    """Run it as the command line asks, print a table, and return 1 where anything was lost."""
    parser = argparse.ArgumentParser(prog="contrib/crash", description=__doc__)
    parser.add_argument("--cuts", type=int, default=1000, help="moments for each row (%(default)s)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of everything that is random")
    parser.add_argument("--fs", choices=FILE_SYSTEMS, action="append", help="only this one")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    kinds = ("at a flush", *(failure.__name__ for failure in FAILURES))
    columns = (
        "file system",
        "write-behind",
        "troubles",
        "log entries",
        *kinds,
        "cuts",
        "files",
        "complaints",
        "seconds",
    )
    print("| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * (len(columns) - 2), sep="\n", flush=True)
    complaints = []
    for name in arguments.fs or FILE_SYSTEMS:
        for behind, troubled in itertools.product(("1", "0"), (False, True)):
            rng = random.Random(f"{arguments.seed} {name} {behind} {troubled}")
            started = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="iscsifs-crash.", dir=TMPFS) as directory:
                options = ["-o", f"writebehind={behind}"]
                recording = record(
                    FILE_SYSTEMS[name], Path(directory), arguments.cuts, rng, options, troubled=troubled
                )
                verdict = examine(recording, arguments.cuts, rng)
            row = [name, "on" if behind == "1" else "off", recording.troubles, len(recording.entries)]
            row += [verdict.cuts[kind] for kind in kinds]
            row += [verdict.cuts.total(), verdict.files, len(verdict.complaints)]
            row += [f"{time.monotonic() - started:.0f}"]
            print("| " + " | ".join(map(str, row)) + " |", flush=True)
            complaints += verdict.complaints
    for complaint in complaints:
        print(complaint)
    return 1 if complaints else 0


if __name__ == "__main__":
    missing = [program for program in ("mkfs.ext4", "mkfs.xfs", "losetup") if shutil.which(program) is None]
    sys.exit(f"not installed: {' '.join(missing)}" if missing else main())
