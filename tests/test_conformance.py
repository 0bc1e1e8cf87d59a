"""Every row of the conformance checklist is covered by a test, or listed as not applicable."""

import re
from pathlib import Path

from support.conformance import NOT_APPLICABLE, ROWS

MARKER = re.compile(r"mark\.conformance\(([^)]*)\)")
TESTS = Path(__file__).parent


def covered() -> set[str]:
    sources = (path.read_text() for path in TESTS.rglob("test_*.py"))
    return {
        row
        for source in sources
        for arguments in MARKER.findall(source)
        for row in re.findall(r'"([^"]+)"', arguments)
    }


def test_the_checklist_is_whole() -> None:
    assert len(ROWS) == len(set(ROWS)) == 220 + 48 + 72


def test_no_test_names_a_row_that_there_is_not() -> None:
    assert covered() <= set(ROWS)


def test_every_row_is_covered_or_not_applicable() -> None:
    assert set(ROWS) - covered() - NOT_APPLICABLE.keys() == set()


def test_every_row_of_isns_is_described() -> None:
    page = (TESTS / "isns" / "checklist.md").read_text()
    assert re.findall(r"^\| (ISNS-[0-9.]+) \|", page, re.MULTILINE) == [row for row in ROWS if "ISNS" in row]
