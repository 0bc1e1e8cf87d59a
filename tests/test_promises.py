"""The page of promises names tests that there are and that run, and every scenario of faults has its test."""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from support import TESTS
from support.promises import PAGE, SCENARIOS, Holders, not_held, numbers_in, promises

PLUGIN = """
from pathlib import Path
from support.promises import Held
def pytest_configure(config):
    config.pluginmanager.register(Held(Path(__file__).with_name("README.rst"), skipped_counts=False))
"""
TABLE = """
=======  =========
promise  held by
=======  =========
It runs  ``test_it.py``
It is    {}
=======  =========
"""


@cache
def defined_tests() -> frozenset[tuple[str, str]]:
    """Return (file, name) of each test in the sources, whether it runs or not."""
    found = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):  # Hypothesis's machines: TestInMemory = InMemory.TestCase
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            else:
                names = []
            file = str(path.relative_to(TESTS))
            found |= {(file, name) for name in names if name.startswith(("test_", "Test"))}
    return frozenset(found)


def run(directory: Path, *words: str, held_by: str = "``test_it.py``", tests: str) -> tuple[int, str]:
    """Run pytest on *tests* with a page of promises; return its exit status and what it says."""
    (directory / "conftest.py").write_text(PLUGIN)
    (directory / "README.rst").write_text(TABLE.format(held_by))
    (directory / "test_it.py").write_text(f"import pytest\ndef test_runs(): pass\n{tests}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    done = subprocess.run(
        [*command, f"--rootdir={directory}", *words],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_page_names_the_stand_ins_that_there_are() -> None:
    named = re.findall(r"``(support/\w+\.py)``", PAGE.read_text())
    assert len(named) > 10
    assert [name for name in named if not (TESTS / name).is_file()] == []
    stand_ins = {str(path.relative_to(TESTS)) for path in TESTS.glob("support/memory_*.py")}
    programs_and_parts = {"support/memory_mount.py", "support/memory_operations.py"}
    assert stand_ins - programs_and_parts <= set(named)


def test_every_scenario_has_a_test() -> None:
    numbers = {number for file, name in defined_tests() for number in numbers_in(name)}
    assert numbers == set(SCENARIOS)


@pytest.mark.parametrize("promise", promises())
def test_what_holds_a_promise_is_there(promise: str) -> None:
    holders = Holders.parse(promises()[promise])
    assert holders.places or holders.tests
    assert list(holders.missing(defined_tests())) == []


@pytest.mark.parametrize(
    ("cell", "missing"),
    [
        ("``fs/test_tree.py``", []),
        ("``fs``, ``fs/test_t*.py``, ``faults`` 3", []),
        ("``fs/test_tree.py::test_names``", []),
        ("``fs/test_tree.py::test_others``", ["fs/test_tree.py::test_others"]),
        ("``fs/test_operations.py``, ``model``", ["fs/test_operations.py", "model"]),
        ("``faults`` 2 to 4", ["faults 2", "faults 4"]),
    ],
)
def test_what_did_not_run_is_missing(cell: str, missing: list[str]) -> None:
    ran = [("fs/test_tree.py", "test_names"), ("faults/test_scenarios.py", "test_3_and_5_x")]
    assert list(Holders.parse(cell).missing(ran)) == missing


def test_a_page_without_any_run_holds_nothing() -> None:
    assert len(not_held(PAGE, [])) == len(promises())


def test_a_run_of_everything_in_which_a_promise_was_skipped_fails(tmp_path: Path) -> None:
    status, said = run(
        tmp_path,
        held_by="``test_it.py::test_is``",
        tests="def test_is(): pytest.skip('never')",
    )
    assert "1 passed, 1 skipped" in said
    assert "It is: test_it.py::test_is" in said
    assert "It runs" not in said
    assert status == 1


def test_a_run_of_everything_in_which_all_promises_ran_passes(tmp_path: Path) -> None:
    tests = "@pytest.mark.parametrize('n', [1, 2])\ndef test_is(n): pass"
    status, said = run(tmp_path, held_by="``test_it.py::test_is``", tests=tests)
    assert "3 passed" in said
    assert status == 0


@pytest.mark.parametrize("words", [["test_it.py"], ["-k", "runs"], ["-m", "not slow"], ["--collect-only"]])
def test_a_run_of_some_tests_proves_nothing_of_promises(words: list[str], tmp_path: Path) -> None:
    status, said = run(tmp_path, *words, held_by="``elsewhere``", tests="")
    assert "promises" not in said
    assert status == 0
