"""iscsifs beside its peer: the same LUN, the same fio jobs, in turns."""

import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from support.targets import Daemon, Istgt, Target, Tgt, Unit, make_image

from . import relay, servers
from .jobs import JOBS, MIB, Job, JobFailed, Result, run

IMAGE_SIZE = 1024 * MIB
ROUND_TRIP = 0.001  # seconds that the relay adds
PLAIN = "iqn.2026-01.example:plain"
DIGESTS = "iqn.2026-01.example:digests"

Side = str
PEER, OURS, OURS_DIGESTS = "peer", "iscsifs", "iscsifs, CRC32C"
Server = Callable[[servers.Lun, Path], AbstractContextManager[Path]]
SIDES: dict[Side, Server] = {
    PEER: servers.peer,
    OURS: servers.iscsifs,
    OURS_DIGESTS: partial(servers.iscsifs, digest="all"),
}


@dataclass(frozen=True)
class Place:
    """Where the LUN is: which daemon serves it, and whether the wire is long."""

    daemon: type[Daemon]
    far: bool

    def __str__(self) -> str:
        name = "tgt" if self.daemon is Tgt else "istgt"
        return f"{name}, {ROUND_TRIP * 1000:g} ms" if self.far else name


PLACES = tuple(Place(daemon, far) for far in (False, True) for daemon in (Tgt, Istgt))


@dataclass
class Cell:
    """What one side did in one row: the figure of each round, or why there is none."""

    results: list[Result] = field(default_factory=list)
    failure: str = ""

    @property
    def rate(self) -> float | None:
        """The median, or None where nothing was measured."""
        return median(result.rate for result in self.results) if self.results else None

    @property
    def wrong_blocks(self) -> int:
        """Blocks that were not in the image as they were written, over all rounds."""
        return sum(result.wrong_blocks for result in self.results)


Results = dict[tuple[Place, Job], dict[Side, Cell]]


def compare(sides: list[Side], rounds: int, *, quick: bool) -> Results:
    """Run every job on every side in every place, *rounds* times; what fails is noted and left out."""
    results: Results = defaultdict(lambda: defaultdict(Cell))
    with tempfile.TemporaryDirectory(prefix="iscsifs-bench.", dir="/dev/shm") as directory:
        image = _filled_image(Path(directory))
        for place in PLACES:
            print(place, end=" ", file=sys.stderr, flush=True)
            with _serve(place, Path(directory), image) as luns:
                for _ in range(rounds):
                    with ExitStack() as stack:
                        files = _open(sides, luns, Path(directory), stack)
                        for job in JOBS:
                            print(".", end="", file=sys.stderr, flush=True)
                            for side in sides:
                                if side != OURS_DIGESTS or (job.sequential and not place.far):
                                    _measure(job, files[side], image, place, quick, results[place, job][side])
            print(file=sys.stderr)
    return results


def _open(
    sides: list[Side], luns: dict[str, servers.Lun], directory: Path, stack: ExitStack
) -> dict[Side, Path | Exception]:
    """Start each side and give the file it shows, or why it shows none."""
    files: dict[Side, Path | Exception] = {}
    for side in sides:
        home = Path(tempfile.mkdtemp(dir=directory))
        try:
            files[side] = stack.enter_context(
                SIDES[side](luns[DIGESTS if side == OURS_DIGESTS else PLAIN], home)
            )
        except (OSError, subprocess.SubprocessError, StopIteration) as error:
            files[side] = error
    return files


def _measure(job: Job, storage: Path | Exception, image: Path, place: Place, quick: bool, cell: Cell) -> None:
    try:
        if isinstance(storage, Exception):
            raise JobFailed(str(storage) or type(storage).__name__)
        cell.results.append(run(job, storage, image, far=place.far, quick=quick))
    except JobFailed as error:
        cell.failure = str(error)


def _filled_image(directory: Path) -> Path:
    """Make an image that is no hole, on tmpfs, so that no disk is measured."""
    image = make_image(directory / "disk.img", IMAGE_SIZE)
    with image.open("r+b") as file:
        for _ in range(IMAGE_SIZE // MIB):
            file.write(os.urandom(4096) * (MIB // 4096))
    return image


@contextmanager
def _serve(place: Place, directory: Path, image: Path) -> Iterator[dict[str, servers.Lun]]:
    """Serve *image* as two targets, one of them with digests on, and give where each is."""
    digests = (
        {"UseDigest": "Header Data"}
        if place.daemon is Istgt
        else {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}
    )
    units = [Unit(image)]
    targets = (Target(PLAIN, units), Target(DIGESTS, units, parameters=digests))
    with ExitStack() as stack:
        daemon = stack.enter_context(place.daemon(directory, *targets))
        port = stack.enter_context(relay.relay(daemon.port, ROUND_TRIP)) if place.far else daemon.port
        yield {target.name: servers.Lun(port, target.name, daemon.first_lun) for target in targets}
