"""The page of promises names tests that there are, and every scenario of faults has its test."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SCENARIOS = range(1, 26)


def promises() -> dict[str, str]:
    """Return what holds each promise of README.rst."""
    _, _, table, _ = re.split(r"^=+  =+$", (TESTS / "README.rst").read_text(), flags=re.MULTILINE)
    return dict(re.split(r" {2,}", row, maxsplit=1) for row in table.strip().splitlines())


def scenarios() -> set[int]:
    """Return the numbers in the names of the tests of faults: test_11_and_12_x has two, test_3_x one."""
    names = [
        name
        for path in (TESTS / "faults").glob("test_scenarios_*.py")
        for name in re.findall(r"def test_((?:\d+_|and_)+)", path.read_text())
    ]
    return {int(number) for name in names for number in re.findall(r"\d+", name)}


def test_every_scenario_has_a_test() -> None:
    assert scenarios() == set(SCENARIOS)


@pytest.mark.parametrize("promise", promises())
def test_what_holds_a_promise_is_there(promise: str) -> None:
    held_by = promises()[promise]
    paths = [path for path in re.findall(r"``([^`]+)``", held_by) if not path.startswith("World.")]
    assert paths
    for path in paths:
        found = list(TESTS.glob(path))
        assert found, path
        assert any(entry.is_file() or list(entry.glob("test_*.py")) for entry in found), path
    for first, last in re.findall(r"\b(\d+)(?: to (\d+))?", re.sub(r"``[^`]+``", "", held_by)):
        assert {*range(int(first), int(last or first) + 1)} <= scenarios()
