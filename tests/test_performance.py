"""README's figures are rows of docs/performance.rst, which says how all of them were measured."""

import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
PAGE = TOP / "docs" / "performance.rst"
README = TOP / "README.rst"


def table(page: Path) -> list[str]:
    """Return the heading and the rows of the table of fio jobs in *page*."""
    found = re.search(r"^(=[= ]+)\n(fio job .*)\n\1\n(.*?)^\1\n", page.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return [found[2], *found[3].splitlines()]


def test_readme_has_six_rows_of_the_page() -> None:
    shown, measured = table(README), table(PAGE)
    assert len(shown) == 1 + 6
    assert [row for row in measured if row in shown] == shown


@pytest.mark.parametrize("row", table(PAGE)[1:], ids=lambda row: re.split(" {2,}", row)[0])
def test_each_ratio_is_that_of_its_figures(row: str) -> None:
    """As far as the two decimals of the figures allow."""
    for ours, theirs, ratio in re.findall(r"([\d.]+) : ([\d.]+)\*? = ([\d.]+)", row):
        least = (float(ours) - 0.005) / (float(theirs) + 0.005)
        most = (float(ours) + 0.005) / (float(theirs) - 0.005)
        assert least - 0.005 <= float(ratio) <= most + 0.005


def test_readme_says_of_which_version_the_figures_are() -> None:
    readme, page = (
        re.findall(r"measured on\s+(\S+)\s+with\s+commit\s+(\w+)", text.read_text())
        for text in (README, PAGE)
    )
    assert len(page) == 1
    assert readme == page
