"""The counts of a logical unit."""

from hypothesis import given
from hypothesis import strategies as st

from iscsifs.units.statistics import LATENCY_BOUNDS, OperationStatistics


def test_an_operation_counts_once_with_its_bytes_and_its_time() -> None:
    reads = OperationStatistics()
    reads.ended(0.0001, 4096)
    reads.ended(0.5, 512)
    reads.failed(200.0)
    assert (reads.operations, reads.bytes, reads.errors) == (3, 4608, 1)
    assert reads.seconds == 200.5001
    assert reads.latencies[0] == reads.latencies[LATENCY_BOUNDS.index(0.5)] == reads.latencies[-1] == 1


@given(st.lists(st.floats(0, 1000), max_size=30))
def test_each_time_is_in_the_first_bucket_that_reaches_it(times: list[float]) -> None:
    statistics = OperationStatistics()
    for seconds in times:
        statistics.ended(seconds, 1)
    cumulative = 0
    for bound, count in zip((*LATENCY_BOUNDS, float("inf")), statistics.latencies, strict=True):
        cumulative += count
        assert cumulative == sum(seconds <= bound for seconds in times)
