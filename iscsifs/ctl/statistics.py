"""The counts of a logical unit, and what they say of an interval: rates, means and percentiles.

The files ``statistics`` and ``latency`` of a unit count from the beginning of the mount. Two readings of them
make the rates between.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final

from iscsifs.ctl.mounted import ControlError, Mount
from iscsifs.ctl.places import Place
from iscsifs.errors import printable
from iscsifs.limits import MAX_LATENCY_BUCKETS

Buckets = tuple[tuple[float, int], ...]
"""A histogram: (upper bound in seconds, operations in the bucket), bounds rising, the last infinite."""

_PERCENTILE: Final = 0.99

_MOST: Final = 1 << 64
"""No count of a unit is as large."""


@dataclass(frozen=True, slots=True)
class Operations:
    """The operations of one kind, or some of them: those of an interval, or reads and writes together."""

    count: int
    bytes: int
    errors: int
    seconds: float
    """The times of all operations, added up."""
    latency: Buckets

    @property
    def mean(self) -> float | None:
        """The mean time of an operation in seconds; None where there was none."""
        return self.seconds / self.count if self.count else None

    @property
    def p99(self) -> float | None:
        """The upper bound of the bucket that the 99th percentile is in, in seconds; None for no operation."""
        counts = list(accumulate(count for _, count in self.latency))
        if not counts or not counts[-1]:
            return None
        wanted = _PERCENTILE * counts[-1]
        return next(bound for (bound, _), count in zip(self.latency, counts, strict=True) if count >= wanted)

    def __add__(self, other: "Operations") -> "Operations":
        return self._with(other, 1)

    def __sub__(self, other: "Operations") -> "Operations":
        return self._with(other, -1)

    def _with(self, other: "Operations", sign: int) -> "Operations":
        theirs = dict(other.latency)
        return Operations(
            self.count + sign * other.count,
            self.bytes + sign * other.bytes,
            self.errors + sign * other.errors,
            self.seconds + sign * other.seconds,
            tuple((bound, count + sign * theirs.get(bound, 0)) for bound, count in self.latency),
        )


@dataclass(frozen=True, slots=True)
class Statistics:
    """The counts of one unit, read at *moment* (of the monotonic clock)."""

    moment: float
    reads: Operations
    writes: Operations
    flushes: Operations
    repeats: int
    depth: int
    """Commands under way at that moment, and the most so far in *deepest*."""
    deepest: int
    dirty_bytes: int
    unsynchronised_bytes: int
    losses: int

    @property
    def transfers(self) -> Operations:
        """Reads and writes together."""
        return self.reads + self.writes


@dataclass(frozen=True, slots=True)
class Rates:
    """What a unit did in an interval of *seconds*, and how it stood at its end."""

    seconds: float
    reads: Operations
    writes: Operations
    flushes: Operations
    now: Statistics

    @property
    def transfers(self) -> Operations:
        """Reads and writes together."""
        return self.reads + self.writes

    def each_second(self, count: int) -> float:
        """Return *count* for one second."""
        return count / self.seconds


def rates(before: Statistics, now: Statistics) -> Rates | None:
    """Return the rates between two readings; None where a count has fallen: the unit is another one now."""
    found = Rates(
        now.moment - before.moment,
        now.reads - before.reads,
        now.writes - before.writes,
        now.flushes - before.flushes,
        now,
    )
    kinds = (found.reads, found.writes, found.flushes)
    has_fallen = any(min(kind.count, kind.bytes, kind.errors) < 0 for kind in kinds)
    return None if has_fallen or found.seconds <= 0 else found


def read_statistics(
    mount: Mount, place: Place, clock: Callable[[], float] = time.monotonic
) -> Statistics | None:
    """Return the counts of the unit at *place*, None where it has none; raises ControlError where they cannot
    be understood."""
    text = mount.value(*place.names, "statistics")
    moment = clock()
    latency = mount.value(*place.names, "latency")
    if text is None:
        return None
    try:
        return _statistics(moment, _values(text), _histograms(latency or ""))
    except (KeyError, ValueError) as exc:
        file = printable(f"{mount.path}/{place}/statistics")
        raise ControlError(
            f"{file}: cannot be understood ({printable(str(exc))}); is iscsifsctl of the same version as the"
            " iscsifs that serves it?"
        ) from None


def _statistics(moment: float, values: dict[str, float], histograms: dict[str, Buckets]) -> Statistics:
    def count(name: str) -> int:
        return int(values[name])

    def operations(kind: str, plural: str) -> Operations:
        moves = kind != "flush"
        return Operations(
            count(plural),
            count(f"{kind}_bytes") if moves else 0,
            count(f"{kind}_errors"),
            values[f"{kind}_seconds"],
            histograms.get(kind, ()),
        )

    return Statistics(
        moment,
        operations("read", "reads"),
        operations("write", "writes"),
        operations("flush", "flushes"),
        *map(count, ("repeats", "depth", "deepest", "dirty_bytes", "unsynchronised_bytes", "losses")),
    )


def _values(text: str) -> dict[str, float]:
    """Return what lines such as ``reads 12`` say."""
    values = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        values[name] = float(value)
        if not 0 <= values[name] < _MOST:
            raise ValueError(f"{name}: {value[:80]}")
    return values


def _histograms(text: str) -> dict[str, Buckets]:
    """Return what lines such as ``read 0.001:12 +Inf:0`` say."""
    found = {}
    for line in text.splitlines():
        kind, *words = line.split()
        pairs = [word.partition(":") for word in words[:MAX_LATENCY_BUCKETS]]
        buckets = tuple((float(bound), int(count)) for bound, _, count in pairs)
        bounds = [0.0, *(bound for bound, _ in buckets)]
        if not _is_rising(bounds) or any(not 0 <= count < _MOST for _, count in buckets):
            raise ValueError(f"latency: {line[:80]}")
        found[kind] = buckets
    return found


def _is_rising(bounds: Sequence[float]) -> bool:
    return all(first < second for first, second in pairwise(bounds))
