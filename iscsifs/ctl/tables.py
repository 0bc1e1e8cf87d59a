"""Tables and figures for people; everything that is printed passes `iscsifs.errors.printable`."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Final

from iscsifs.errors import printable

NOTHING: Final = "-"
"""Stands for what is not known."""

_BINARY: Final = "KMGTPE"
_GAP: Final = "  "
_LONGEST: Final = 1000
"""Characters of one value."""


def table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], numbers: Iterable[str] = ()
) -> list[str]:
    """Return the lines of a table; the columns with the headings *numbers* are set flush right."""
    cells = [list(headings), *([shown(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = {index for index, heading in enumerate(headings) if heading in set(numbers)}
    return [
        _GAP.join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def fields(pairs: Iterable[tuple[str, object]]) -> list[str]:
    """Return a line for each of *pairs* but those with None: the name, and the value at one column."""
    known = [(shown(name), shown(value)) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in known), default=0)
    return [f"{name + ':':{width + 1}} {value}".rstrip() for name, value in known]


def shown(value: object) -> str:
    """Return *value* as it is printed in one place of a line."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(str(value), _LONGEST)


def json_line(value: object) -> str:
    """Return *value* as JSON in one line of printable ASCII: `json` leaves DEL as it is."""
    return json.dumps(value).replace("\x7f", "\\u007f")


def size(count: int | None) -> str:
    """Return a number of bytes as ls -h has it: 64M, 1.5G."""
    if count is None:
        return NOTHING
    power = min((max(count, 1).bit_length() - 1) // 10, len(_BINARY))
    if power == 0:
        return str(count)
    value = count / (1 << 10 * power)
    if value >= 1023.5 and power < len(_BINARY):
        value, power = value / 1024, power + 1
    digits = 0 if value >= 9.95 or value == int(value) else 1
    return f"{value:.{digits}f}{_BINARY[power - 1]}"


def duration(seconds: float | None) -> str:
    """Return a time with its unit in three digits: 85us, 1.25ms, 3.5s."""
    if seconds is None:
        return NOTHING
    if math.isinf(seconds):
        return "inf"
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if seconds * factor < 999.5:
            return f"{seconds * factor:.3g}{unit}"
    return f"{seconds:.3g}s" if seconds < 999.5 else f"{seconds:.0f}s"


def rate(value: float) -> str:
    """Return a number for one second: one digit behind the point where it is small."""
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def megabytes(value: float) -> str:
    """Return bytes for one second as MB/s (10^6 bytes)."""
    return rate(value / 1e6)
