"""Every fuzz harness over its seeds, and over what Hypothesis makes up."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.fuzz.checks import LogCheck
from support.fuzz.harnesses import HARNESSES

SEEDS = Path(__file__).with_name("seeds")

harness_names = pytest.mark.parametrize("name", HARNESSES)


@pytest.fixture(autouse=True)
def _log_check() -> Iterator[None]:
    """Hold what is logged to the same rules as what is raised."""
    log, check = logging.getLogger("iscsifs"), LogCheck()
    log.addHandler(check)
    yield
    log.removeHandler(check)


def seeds(name: str) -> list[bytes]:
    return [seed.read_bytes() for seed in sorted((SEEDS / name).iterdir())]


def test_every_directory_of_seeds_has_a_harness() -> None:
    assert {directory.name for directory in SEEDS.iterdir()} == HARNESSES.keys()


@harness_names
def test_seeds(name: str) -> None:
    function, longest = HARNESSES[name]
    inputs = seeds(name)
    assert inputs
    for data in inputs:
        assert len(data) <= longest
        function(data)


@pytest.mark.parametrize("name", ["initiator_stream", "target_stream"])
def test_streams_with_digests_in_pieces_of_any_length(name: str) -> None:
    function, _ = HARNESSES[name]
    for data in seeds(name):
        for number, piece in enumerate((2, 47, 48, 49, 63)):
            function(bytes([data[0] ^ number & 3, piece - 1]) + data[2:])


@harness_names
def test_seeds_cut_short(name: str) -> None:
    function, _ = HARNESSES[name]
    for data in seeds(name):
        for part in 1, 2, 3:
            function(data[: len(data) * part // 4])


@harness_names
def test_seeds_changed(name: str) -> None:
    """A few bytes of a seed are others."""
    function, _ = HARNESSES[name]
    inputs = seeds(name)

    @settings(max_examples=50)
    @given(
        st.sampled_from(inputs),
        st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(0, 255)), min_size=1, max_size=4),
    )
    def run(seed: bytes, changes: list[tuple[int, int]]) -> None:
        data = bytearray(seed)
        for position, value in changes:
            if data:
                data[position % len(data)] = value
        function(bytes(data))

    run()


@harness_names
def test_anything(name: str) -> None:
    function, _ = HARNESSES[name]

    @settings(max_examples=50)
    @given(
        st.one_of(
            st.binary(max_size=200),
            st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
        )
    )
    def run(data: bytes) -> None:
        function(data)

    run()
