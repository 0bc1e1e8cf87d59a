"""A power failure on the target takes nothing that was fsynced: on ext4 and xfs, and on what checks it."""

import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from support import mounting
from support.crash.medium import FAILURES, Flush, Medium, Write, interrupted, nothing, torn
from support.crash.run import EXT4, TMPFS, XFS, FileSystem, examine, record
from support.crash.workload import History

OPERATIONS: Final = 60
CUTS: Final = 50

BROKEN: Final = {
    "fsync does nothing": "BlockUnit.flush = nothing",
    "fsync does not wait for what is written behind": """
WriteBuffer.drain = nothing
write_now = BlockTransfers.send_write
async def write_late(self, *write):
    await trio.sleep(0.2)
    write_now(self, *write)
BlockTransfers.send_write = lambda self, *write: self._queue._nursery.start_soon(write_late, self, *write)
""",
    "fsync does not flush the target": "BlockTransfers.synchronise_cache = nothing",
}
PROGRAM: Final = """
import sys
import trio
from iscsifs.cli import main
from iscsifs.units.block import BlockUnit
from iscsifs.units.transfers import BlockTransfers
from iscsifs.units.writeback import WriteBuffer
async def nothing(self): pass
{}
sys.exit(main(sys.argv[2:]))
"""

mount = pytest.mark.mount


@pytest.fixture
def tmpfs(require_root: None) -> Iterator[Path]:
    """A directory in memory for the images; their loop devices need root."""
    with tempfile.TemporaryDirectory(prefix="iscsifs-crash.", dir=TMPFS) as directory:
        yield Path(directory)


@mount
@pytest.mark.parametrize(
    ("kind", "troubled"),
    [(EXT4, False), (EXT4, True), (XFS, False)],
    ids=["ext4", "ext4, connections cut and caches lost meanwhile", "xfs"],
)
def test_what_was_fsynced_survives_a_power_failure_at_any_moment(
    kind: FileSystem, troubled: bool, tmpfs: Path, require: Callable[..., None]
) -> None:
    require(kind.make[0], kind.check[0], "losetup")
    rng = random.Random(kind.name)
    recording = record(kind, tmpfs, OPERATIONS // 2 if troubled else OPERATIONS, rng, troubled=troubled)
    assert troubled == (recording.troubles > 0)
    verdict = examine(recording, CUTS, rng)
    assert verdict.complaints == []
    assert verdict.cuts.total() == CUTS
    assert verdict.cuts["at a flush"] >= min(CUTS // 2, len(recording.flushes()))
    assert verdict.files > CUTS


@mount
@pytest.mark.parametrize("patch", BROKEN.values(), ids=BROKEN)
def test_a_flush_that_is_none_is_found_out(
    patch: str, tmpfs: Path, require: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    require(EXT4.make[0], EXT4.check[0], "losetup")
    broken = (sys.executable, "-c", PROGRAM.format(patch), "iscsifs")
    monkeypatch.setattr(mounting, "ISCSIFS", broken)
    rng = random.Random(patch)
    complaints = examine(record(EXT4, tmpfs, OPERATIONS // 2, rng), CUTS, rng).complaints
    assert any("not there" in complaint or "were fsynced" in complaint for complaint in complaints)


def writes(*lbas: int) -> list[Write | Flush]:
    return [Write(lba, bytes([number]) * 1024) for number, lba in enumerate(lbas, 1)]


def sectors(image: Path) -> list[int]:
    return [image.read_bytes()[start] for start in range(0, image.stat().st_size, 512)]


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    """The medium before, all zeros, and what is left of it."""
    before = tmp_path / "before"
    before.write_bytes(bytes(4 * 512))
    return before, tmp_path / "after"


@pytest.mark.parametrize(
    ("flush", "medium", "cached"),
    [
        (Flush(0, 4), [1, 2, 2, 0], []),
        (Flush(0, 1), [1, 0, 0, 0], [(1, 1), (1, 2)]),
        (Flush(1, 1), [0, 2, 0, 0], [(0, 1), (2, 1)]),
    ],
    ids=["everything", "first sector", "sector written twice"],
)
def test_a_flush_puts_on_the_medium_what_it_names_and_no_older_write_comes_back(
    images: tuple[Path, Path], flush: Flush, medium: list[int], cached: list[tuple[int, int]]
) -> None:
    before, after = images
    log = Medium(before, [*writes(0, 1), flush])
    log.advance(2)
    log.fail([], after)
    assert sectors(after) == [0, 0, 0, 0]
    log.advance(3)
    log.fail([], after)
    assert sectors(after) == medium
    assert [(write.lba, len(write.data) // 512) for write in log.cached] == cached
    log.fail(log.cached, after)
    assert sectors(after) == [1, 2, 2, 0]


def test_what_a_power_failure_leaves_is_made_of_what_was_written() -> None:
    cached = [write for write in writes(0, 1, 2, 8) if isinstance(write, Write)]
    pieces = {(write.lba + number, write.data[0]) for write in cached for number in range(2)}
    kinds = set()
    for seed in range(200):
        for failure in FAILURES:
            left = failure(cached, 1, random.Random(seed))
            kinds.add((failure, len(left)))
            found = [
                (write.lba + number, write.data[0])
                for write in left
                for number in range(write.end - write.lba)
            ]
            assert pieces.issuperset(found)
            assert found == sorted(found, key=lambda piece: piece[1])
    assert (nothing, 0) in kinds
    assert {(torn, count) for count in range(9)} <= kinds
    assert all(len(write.data) == 1024 for write in torn(cached, 4, random.Random(1)))
    assert interrupted([], 1, random.Random(1)) == []


OLD, NEW = b"o" * 2000, b"n" * 2000


@pytest.mark.parametrize(
    ("found", "at", "complaint"),
    [
        (None, 5, ""),
        (OLD, 5, "it is there again"),
        (None, 15, ""),
        (b"", 15, ""),
        (OLD[:600], 15, ""),
        (bytes(512) + OLD[512:], 15, ""),
        (NEW, 15, "the sector at 0 is of none of its 2 possible states"),
        (OLD, 25, ""),
        (None, 25, "it is not there"),
        (OLD[:600], 25, "its contents are not those that were fsynced"),
        (OLD[:512] + NEW[512:], 35, ""),
        (OLD[:512] + bytes(512) + NEW[1024:], 35, "the sector at 512 is of none of its 2 possible states"),
        (OLD[:1999], 35, "it has 1999 bytes instead of 2000 to 2000"),
        (None, 35, "it is not there"),
        (NEW, 45, ""),
        (OLD, 45, "its contents are not those that were fsynced"),
        (NEW, 55, ""),
        (None, 55, ""),
        (None, 65, ""),
        (NEW, 65, "it is there again"),
    ],
)
def test_what_a_file_may_be_after_a_power_failure(found: bytes | None, at: int, complaint: str) -> None:
    now = 0
    history = History(lambda: now, atomic=False)
    for contents in (OLD, NEW, None):
        now += 10
        history.begin(contents)
        now += 10
        history.acknowledge()
    assert history.complaint(found, at) == complaint


@pytest.mark.parametrize(("found", "right"), [(OLD, True), (NEW, True), (OLD[:512] + NEW[512:], False)])
def test_a_file_that_is_replaced_is_never_a_mixture(found: bytes, right: bool) -> None:
    now = 0
    history = History(lambda: now, atomic=True)
    history.begin(OLD)
    history.acknowledge()
    now = 10
    history.begin(NEW)
    assert (history.complaint(found, 10) == "") == right
