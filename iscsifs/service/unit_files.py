"""The files of a unit's directory that tell what was done with it: ``statistics`` and ``latency``."""

from typing import Final

from iscsifs.fs.storage import Storage
from iscsifs.fs.tree import Tree, UnitDirectory
from iscsifs.units.block import BlockUnit
from iscsifs.units.statistics import LATENCY_BOUNDS, OperationStatistics, Statistics

KINDS: Final = ("read", "write", "flush")
"""The kinds of operations that are counted."""

_PLURALS: Final = ("reads", "writes", "flushes")


def show_counts(tree: Tree, directory: UnitDirectory) -> None:
    """Give *directory* the files of the counts of its disk, if it has one."""
    if counted(directory.unit.storage) is None:
        return

    def statistics() -> str:
        unit = counted(directory.unit.storage)
        return "" if unit is None else statistics_text(unit)

    def latency() -> str:
        unit = counted(directory.unit.storage)
        return "" if unit is None else latency_text(unit.statistics)

    tree.add_text(directory, b"statistics", statistics)
    tree.add_text(directory, b"latency", latency)


def counted(storage: Storage | None) -> BlockUnit | None:
    """Return *storage* as a unit that counts what is done with it, None where it is none."""
    return storage if isinstance(storage, BlockUnit) else None


def operations(statistics: Statistics) -> tuple[OperationStatistics, ...]:
    """Return the counts of each of KINDS."""
    return statistics.reads, statistics.writes, statistics.flushes


def statistics_text(unit: BlockUnit) -> str:
    """Return a line of a name and a number for each count."""
    statistics = unit.statistics
    lines: list[str] = []
    for kind, plural, done in zip(KINDS, _PLURALS, operations(statistics), strict=True):
        lines.append(f"{plural} {done.operations}")
        if kind != "flush":
            lines.append(f"{kind}_bytes {done.bytes}")
        lines += [f"{kind}_errors {done.errors}", f"{kind}_seconds {done.seconds:.6f}"]
    lines += [
        f"repeats {statistics.repeats}",
        f"depth {statistics.depth}",
        f"deepest {statistics.deepest}",
        f"dirty_bytes {unit.unwritten}",
        f"unsynchronised_bytes {unit.unsynchronised}",
        f"losses {unit.failures}",
    ]
    return "".join(f"{line}\n" for line in lines)


def latency_text(statistics: Statistics) -> str:
    """Return a line for each kind of operation: how many took at most so many seconds, and more than the
    bound before."""
    bounds = [*map(str, LATENCY_BOUNDS), "+Inf"]
    lines = []
    for kind, done in zip(KINDS, operations(statistics), strict=True):
        counts = zip(bounds, done.latencies, strict=True)
        lines.append(" ".join([kind, *(f"{bound}:{count}" for bound, count in counts)]))
    return "".join(f"{line}\n" for line in lines)
