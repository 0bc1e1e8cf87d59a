"""Serial number arithmetic: RFC 1982 section 5, and what CmdSN needs of it (RFC 7143 section 4.2.2.1)."""

from hypothesis import given
from hypothesis import strategies as st

from iscsifs.iscsi import serial

numbers = st.integers(0, 2**32 - 1)
steps = st.integers(-(2**31) + 1, 2**31 - 1)


def test_numbers_wrap_at_32_bits() -> None:
    assert serial.add(0xFFFFFFFF, 1) == 0
    assert serial.add(0, -1) == 0xFFFFFFFF
    assert serial.lt(0xFFFFFFFF, 0)
    assert not serial.lt(0, 0xFFFFFFFF)


def test_neither_of_two_opposite_numbers_is_the_smaller() -> None:
    assert not serial.lt(0, 2**31)
    assert not serial.lt(2**31, 0)


@given(numbers, steps)
def test_a_step_leads_forwards_or_backwards(start: int, step: int) -> None:
    end = serial.add(start, step)
    assert 0 <= end < 2**32
    assert serial.add(end, -step) == start
    assert serial.lt(start, end) == (step > 0)
    assert serial.le(start, end) == (step >= 0)
