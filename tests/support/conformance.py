"""The conformance checklist: its rows, and the table of what covers them.

A row is one behaviour of an iSCSI initiator that a target can provoke. It is named by a group and a number:
LOGIN, CHAP and FFP after the titles of the UNH-IOL initiator suites, with an R what RFC 7143 adds to them;
ERR, errors and recovery; HOSTILE, targets that break the rules; DISC, discovery; ISNS, iSNS servers
(``isns/checklist.md`` says what each row is). ``sources.md`` has rows of what is around an initiator, and
says what each demands. A test names the rows that it covers:

    @pytest.mark.conformance("FFP-8.1")

As a plugin of pytest this writes the table after a run of the whole suite: ``--conformance-table FILE``.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

_NUMBERS: Final = {
    "LOGIN": (
        "1.1 2.1 2.2 2.3 3.1 3.2 4.1 4.2 5.1 6.1 6.2 6.3 7.1 7.2 7.3 7.4 7.5 7.6 8.1 9.1 9.2 9.3 "
        "10.1 11.1 12.1 13.1 13.2 13.3 14.1 15.1 16.1 16.2 16.3 17.1 18.1 19.1 20.1 21.1 22.1 "
        "R.1 R.2 R.3 R.4 R.5 R.6 R.7 R.8 R.9 R.10 R.11 R.12 R.13 R.14 R.15 R.16 R.17 R.18 R.19 "
        "R.20 R.21 R.22 R.23 R.24 R.25 R.26 R.27"
    ),
    "FFP": (
        "1.1 2.1 2.2 3.1 3.2 3.3 4.1 5.1 6.1 7.1 8.1 8.2 8.3 9.1 10.1 10.2 11.1.1 11.1.2 11.2.1 "
        "11.2.2 11.3 11.4 12.1 12.2 12.3 12.4 13.1 13.2 14.1 14.2 15.1 15.2 15.3 16.1.1 16.1.2"
    ),
    "CHAP": (
        "1.1 1.2.1 1.2.2 1.3 2.1 2.2 2.3 2.4 2.5 2.6 3.1 3.2 3.3 3.4 3.5 3.6.1 3.6.2 3.6.3 3.6.4 "
        "3.7 3.8 4.1 4.2 4.3 4.4 4.5 4.6 4.7 4.8 5.1 5.2 5.3 R.1 R.2 R.3 R.4 R.5 R.6 R.7 R.8 R.9 "
        "R.10"
    ),
    "ERR": ("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29"),
    "HOSTILE": (
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 "
        "33 34 35 36 37"
    ),
    "DISC": ("1 2 3 4 5 6 7 8 9 10 11"),
    "ISNS": (
        "1.1 1.2 1.3 1.4 1.5 1.6 1.7 2.1 2.2 2.3 2.4 2.5 2.6 3.1 3.2 3.3 3.4 3.5 3.6 3.7 3.8 "
        "4.1 4.2 4.3 4.4 4.5 4.6 4.7 4.8 4.9 5.1 5.2 5.3 5.4 5.5 5.6 6.1 6.2 6.3 7.1 7.2 7.3 7.4 "
        "8.1 8.2 8.3 8.4 8.5"
    ),
}

_SOURCES: Final = Path(__file__).parents[1] / "sources.md"

ROWS: Final = (
    *(f"{group}-{number}" for group, numbers in _NUMBERS.items() for number in numbers.split()),
    *re.findall(r"^\| ([A-Z]+-[0-9.]+) \|", _SOURCES.read_text(), flags=re.MULTILINE),
)
"""Every row, in the order of the checklist; then those of ``sources.md``, in its order."""

_ONE_CONNECTION: Final = "a session has one connection: MaxConnections=1 is all that is offered"
_LEVEL_0: Final = "ErrorRecoveryLevel 0 is all that is offered"

NOT_APPLICABLE: Final = {
    "LOGIN-2.3": _ONE_CONNECTION,
    "FFP-4.1": _LEVEL_0,
    "FFP-7.1": _LEVEL_0,
    "FFP-13.1": _LEVEL_0,
    "FFP-13.2": _LEVEL_0,
    "FFP-14.2": _ONE_CONNECTION,
}
"""Rows that ask for something that is not there, with the reason. What they demand without it may still be
tested."""


def rows_of(item: pytest.Item) -> Iterator[str]:
    """Return the rows that a test says it covers."""
    for marker in item.iter_markers("conformance"):
        yield from marker.args


class Table:
    """Collects which tests cover which rows, and how they ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tests: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._rows: dict[str, list[str]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Take note of the rows of every test."""
        self._rows = {item.nodeid: list(rows_of(item)) for item in session.items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of a result; for one test with many parameters the worst counts."""
        if report.when != "call" and not report.failed:
            return
        test = report.nodeid.partition("[")[0]
        for row in self._rows.get(report.nodeid, ()):
            if self._tests[row].get(test) != "failed":
                self._tests[row][test] = report.outcome

    def pytest_sessionfinish(self) -> None:
        """Write the table."""
        lines = ["# Conformance", "", "| row | tests | result |", "|---|---|---|"]
        for row in ROWS:
            tests = self._tests.get(row, {})
            names = "<br>".join(f"`{test}`" for test in tests)
            results = ", ".join(sorted(set(tests.values())))
            if row in NOT_APPLICABLE:
                results = f"{results}; not applicable: {NOT_APPLICABLE[row]}".removeprefix("; ")
            lines.append(f"| {row} | {names} | {results or 'not covered'} |")
        self._path.write_text("\n".join(lines) + "\n")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for the table."""
    parser.addoption("--conformance-table", type=Path, metavar="FILE", help="write the conformance table")


def pytest_configure(config: pytest.Config) -> None:
    """Collect what the table needs, if it is wanted."""
    if path := config.getoption("--conformance-table"):
        config.pluginmanager.register(Table(path))
