"""32-bit serial number arithmetic (RFC 1982), for CmdSN, StatSN and DataSN (RFC 7143 section 4.2.2).

All numbers are unsigned and below 2**32. Of two numbers exactly 2**31 apart neither is the smaller one.
"""

from typing import Final

MASK: Final = 0xFFFFFFFF
"""The bits of a number."""

HALF: Final = 0x80000000
"""The distance from which on a number does not come before another one."""


def add(number: int, count: int) -> int:
    """Return the number *count* after *number* (before it, where *count* is negative)."""
    return (number + count) & MASK


def lt(left: int, right: int) -> bool:
    """Tell whether *left* comes before *right*."""
    return 0 < ((right - left) & MASK) < HALF


def le(left: int, right: int) -> bool:
    """Tell whether *left* comes before *right* or is equal to it."""
    return ((right - left) & MASK) < HALF
