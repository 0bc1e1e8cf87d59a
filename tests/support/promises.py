"""The page of promises: which tests hold each of them, and, after a run of all tests, whether those ran.

A cell of the page names files, patterns or directories below its own, ``fs/test_tree.py``, or one test of a
file, ``fs/test_tree.py::test_names``; or numbers of scenarios behind ``faults``, as in the names of tests:
test_11_and_12_x has two, test_3_x one.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest

from support import TESTS
from support.machine import EVERYTHING

PAGE = TESTS / "README.rst"
SCENARIOS = range(1, 26)
_NUMBERED = re.compile(r"test_((?:\d+_|and_)+)")


def promises(page: Path = PAGE) -> dict[str, str]:
    """Return what holds each promise of *page*: the cell beside it."""
    _, _, table, *_ = re.split(r"^=+  =+$", page.read_text(), flags=re.MULTILINE)
    return dict(re.split(r" {2,}", row, maxsplit=1) for row in table.strip().splitlines())


def numbers_in(test: str) -> set[int]:
    """Return the numbers of scenarios in the name of a test."""
    found = _NUMBERED.match(test)
    return {int(number) for number in re.findall(r"\d+", found[1])} if found else set()


@dataclass
class Holders:
    """What a cell names: places, which are files, patterns or directories, tests in files, and scenarios."""

    places: list[str] = field(default_factory=list)
    tests: list[tuple[str, str]] = field(default_factory=list)
    scenarios: set[int] = field(default_factory=set)

    @classmethod
    def parse(cls, cell: str) -> "Holders":
        """Read a cell of the page."""
        holders = cls()
        for name in re.findall(r"``([^`]+)``", cell):
            if name.startswith("World."):  # a part of the scenarios' stand-in
                continue
            place, found, test = name.partition("::")
            if found:
                holders.tests.append((place, test))
            else:
                holders.places.append(place)
        plain = re.sub(r"``[^`]+``", "", cell)
        for first, last in re.findall(r"\b(\d+)(?: to (\d+))?", plain):
            holders.scenarios |= {*range(int(first), int(last or first) + 1)}
        return holders

    def missing(self, ran: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Return what of it is not among the tests that *ran*, which are pairs of a file and a name."""
        ran = list(ran)
        numbers = {number for file, name in ran if file.startswith("faults/") for number in numbers_in(name)}
        for place in self.places:
            if not any(fnmatch(file, place) or file.startswith(f"{place}/") for file, _ in ran):
                yield place
        for file, test in self.tests:
            if (file, test) not in ran:
                yield f"{file}::{test}"
        for number in sorted(self.scenarios - numbers):
            yield f"faults {number}"


def not_held(page: Path, ran: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line for each promise of *page* of which something did not run."""
    ran = list(ran)
    return [
        f"{promise}: {', '.join(missing)}"
        for promise, cell in promises(page).items()
        if (missing := list(Holders.parse(cell).missing(ran)))
    ]


class Held:
    """Fails a run of all tests in which a test that holds a promise of *page* did not run.

    On a machine that lacks something, tests that are skipped count as well: see `support.machine`.
    """

    def __init__(self, page: Path, *, skipped_counts: bool) -> None:
        self._page = page
        self._skipped_counts = skipped_counts
        self._ran: set[tuple[str, str]] = set()
        self._not_held: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of a test that ran."""
        if (report.when == "call" and not report.skipped) or (report.skipped and self._skipped_counts):
            file, _, name = report.nodeid.partition("::")
            path = (self._root / file).resolve()
            if path.is_relative_to(self._page.parent):
                self._ran.add((str(path.relative_to(self._page.parent)), name.partition("[")[0]))

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Know what the names of tests begin at."""
        self._root = session.config.rootpath

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run; one that was ended before all tests had their turn has proved nothing yet."""
        if is_whole(session):
            self._not_held = not_held(self._page, self._ran)
            if self._not_held and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say which promises are not held."""
        if self._not_held:
            terminalreporter.section(f"promises of {self._page.name} whose tests did not run", red=True)
            for line in self._not_held:
                terminalreporter.line(line)


def is_whole(session: pytest.Session) -> bool:
    """Whether all tests were asked for, and had their turn."""
    option = session.config.option
    chosen = (option.keyword, option.markexpr, option.deselect, option.ignore, option.ignore_glob)
    everything = (
        session.config.args_source is not pytest.Config.ArgsSource.ARGS
        and not any(chosen)
        and not getattr(option, "lf", False)
    )
    return everything and not (option.collectonly or session.shouldstop or session.shouldfail)


def pytest_configure(config: pytest.Config) -> None:
    """Check a run of all tests."""
    config.pluginmanager.register(Held(PAGE, skipped_counts=not EVERYTHING), "promises")
