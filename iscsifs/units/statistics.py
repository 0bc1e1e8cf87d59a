"""What a logical unit has done: operations, bytes, errors and times, counted as they end.

These are the counts of a unit, not of its sessions: they never fall, whatever becomes of a connection.
"""

from bisect import bisect_left
from typing import Final

LATENCY_BOUNDS: Final = (
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
    30.0, 120.0,
)  # fmt: skip
"""The upper bounds of the latency histogram's buckets, in seconds; one more bucket has no bound."""


class OperationStatistics:
    """The operations of one kind: reads, writes or flushes."""

    __slots__ = ("bytes", "errors", "latencies", "operations", "seconds")

    def __init__(self) -> None:
        self.operations = 0
        """Those that have ended, well or not."""
        self.bytes = 0
        """Bytes that were read or taken; what failed does not count."""
        self.errors = 0
        self.seconds = 0.0
        """The times of all operations, added up."""
        self.latencies = [0] * (len(LATENCY_BOUNDS) + 1)
        """How many operations took so long; see LATENCY_BOUNDS. Not cumulative."""

    def ended(self, seconds: float, size: int) -> None:
        """Count an operation that has transferred *size* bytes in *seconds*."""
        self.operations += 1
        self.bytes += size
        self.seconds += seconds
        self.latencies[bisect_left(LATENCY_BOUNDS, seconds)] += 1

    def failed(self, seconds: float) -> None:
        """Count an operation that has failed after *seconds*."""
        self.errors += 1
        self.ended(seconds, 0)


class Statistics:
    """The counts of one logical unit."""

    __slots__ = ("deepest", "depth", "flushes", "reads", "repeats", "writes")

    def __init__(self) -> None:
        self.reads = OperationStatistics()
        self.writes = OperationStatistics()
        self.flushes = OperationStatistics()
        self.repeats = 0
        """Attempts at a command that were in vain and called for another: it was busy, aborted, or lost with
        its connection."""
        self.depth = 0
        """Commands that have not ended, those that wait included."""
        self.deepest = 0
        """The most of them at once."""
