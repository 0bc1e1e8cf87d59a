"""What the units of a mount do right now: one sample for each interval, as rows of a table."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from iscsifs.ctl import tables
from iscsifs.ctl.mounted import Mount
from iscsifs.ctl.places import Place, targets, units_of
from iscsifs.ctl.statistics import Rates, Statistics, rates, read_statistics

HEADINGS: Final = ("UNIT", "STATE", "R/S", "W/S", "RMB/S", "WMB/S", "MEAN", "P99", "DIRTY", "DEPTH")
NUMBERS: Final = HEADINGS[2:]


@dataclass(frozen=True, slots=True)
class Sample:
    """A unit at the end of an interval, or a target without any: *state* is that of its session; what is new
    has no rates."""

    place: Place
    state: str | None
    rates: Rates | None

    def row(self) -> Sequence[object]:
        """Return the values of HEADINGS."""
        if self.rates is None:
            return (self.place, self.state, *(None for _ in NUMBERS))
        found, both = self.rates, self.rates.transfers
        return (
            self.place,
            self.state,
            *(tables.rate(found.each_second(kind.count)) for kind in (found.reads, found.writes)),
            *(tables.megabytes(found.each_second(kind.bytes)) for kind in (found.reads, found.writes)),
            tables.duration(both.mean),
            bound(both.p99),
            tables.size(found.now.dirty_bytes),
            found.now.depth,
        )


class Sampler:
    """Takes samples of all units of a mount, or of those in *wanted*."""

    def __init__(
        self, mount: Mount, wanted: Sequence[Place] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._mount = mount
        self._wanted = wanted
        self._clock = clock
        self._before: dict[Place, Statistics] = {}

    def take(self) -> list[Sample]:
        """Return a sample of each unit, since the time before; the first ones have no rates."""
        samples: list[Sample] = []
        counts: dict[Place, Statistics] = {}
        for target in targets(self._mount):
            state = self._mount.value(*target.names, "session", "state")
            units = units_of(self._mount, target)
            if not units and not self._wanted:
                samples.append(Sample(target, state, None))
            for unit in units:
                if self._wanted and not any(place.contains(unit) for place in self._wanted):
                    continue
                found = read_statistics(self._mount, unit, self._clock)
                before = self._before.get(unit)
                if found is not None:
                    counts[unit] = found
                since = rates(before, found) if before is not None and found is not None else None
                samples.append(Sample(unit, state, since))
        self._before = counts
        return samples


def rate_table(samples: Iterable[Sample]) -> list[str]:
    """Return the table of *samples*."""
    return tables.table(HEADINGS, (sample.row() for sample in samples), NUMBERS)


def bound(seconds: float | None) -> str:
    """Return the upper bound of a bucket of the histogram."""
    return tables.NOTHING if seconds is None else f"<{tables.duration(seconds)}"
