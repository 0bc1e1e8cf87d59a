"""Which bytes a truncation makes zeros, without any I/O."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from iscsifs.units.holes import Holes, RangeSet

SIZE = 40
ranges = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE))


@given(st.lists(st.tuples(st.booleans(), ranges)), ranges)
def test_ranges_are_sets_of_bytes(changes: list[tuple[bool, tuple[int, int]]], part: tuple[int, int]) -> None:
    found, expected = RangeSet(), set[int]()
    for adds, (start, end) in changes:
        if adds:
            found.add(start, end)
            expected |= set(range(start, end))
        else:
            found.remove(start, end)
            expected -= set(range(start, end))
        pairs = list(found)
        assert all(start < end for start, end in pairs)
        assert all(left[1] < right[0] for left, right in pairwise(pairs))
        assert {byte for start, end in pairs for byte in range(start, end)} == expected
        assert found.size == len(expected)
        assert len(found) == len(pairs)
        assert bool(found) == bool(expected)
    within = found.within(*part)
    assert {byte for start, end in within for byte in range(start, end)} == expected & set(range(*part))


def pending(holes: Holes) -> list[tuple[int, int]]:
    return list(holes.pending)


def test_only_what_comes_inside_the_end_again_is_zeros() -> None:
    holes = Holes()
    holes.whole.truncate(10, SIZE)
    assert not holes.is_owed
    holes.wrote(20, 25, SIZE)
    assert pending(holes) == [(10, 20)]
    holes.wrote(12, 14, SIZE)
    holes.whole.truncate(30, SIZE)
    assert pending(holes) == [(10, 12), (14, 20), (25, 30)]
    holes.whole.truncate(26, SIZE)
    assert pending(holes) == [(10, 12), (14, 20), (25, 26)]


def test_without_a_truncation_nothing_is_kept() -> None:
    holes = Holes()
    holes.wrote(20, 25, SIZE)
    holes.whole.truncate(SIZE, SIZE)
    assert not holes.is_active


def test_an_end_that_reaches_the_capacity_is_none() -> None:
    holes = Holes()
    holes.whole.truncate(0, SIZE)
    holes.wrote(0, SIZE, SIZE)
    assert not holes.is_active


def test_after_the_last_close_only_a_truncation_goes_on_from_the_end() -> None:
    for use in ("read", "wrote"):
        holes = Holes()
        holes.whole.truncate(0, SIZE)
        holes.whole.release()
        getattr(holes, use)(20, 25, SIZE)
        assert not holes.is_active
        holes.whole.truncate(SIZE, SIZE)
        assert not holes.is_owed
    holes = Holes()
    holes.whole.truncate(0, SIZE)
    holes.whole.release()
    holes.whole.truncate(SIZE, SIZE)
    assert pending(holes) == [(0, SIZE)]


def test_after_the_last_close_nothing_goes_on_from_an_end_behind_which_was_written() -> None:
    """Two dd to two places of a disk keep what is between them."""
    holes = Holes()
    holes.whole.truncate(5, SIZE)
    holes.wrote(5, 10, SIZE)
    holes.whole.release()
    holes.whole.truncate(20, SIZE)
    holes.wrote(20, 25, SIZE)
    assert not holes.is_owed


def test_what_was_zeroed_is_owed_until_it_is_synchronised() -> None:
    holes = Holes()
    holes.whole.truncate(0, SIZE)
    holes.whole.truncate(SIZE, SIZE)
    holes.zeroed(0, 10)
    holes.wrote(4, 6, SIZE)
    holes.lost()
    assert pending(holes) == [(0, 4), (6, SIZE)]
    holes.zeroed(0, SIZE)
    before = holes.mark()
    holes.wrote(0, 1, SIZE)
    holes.synchronised(before)
    assert not holes.is_active


def test_zeros_that_were_lost_are_owed_wherever_the_end_is() -> None:
    """They were on the disk, so old bytes must not come back there."""
    holes = Holes()
    holes.whole.truncate(0, SIZE)
    holes.whole.truncate(SIZE, SIZE)
    holes.zeroed(0, SIZE)
    holes.whole.truncate(0, SIZE)
    holes.whole.truncate(SIZE, SIZE)
    holes.whole.truncate(5, SIZE)
    holes.lost()
    holes.whole.truncate(0, SIZE)
    assert pending(holes) == [(0, SIZE)]


def test_a_synchronisation_proves_nothing_for_what_is_zeroed_meanwhile() -> None:
    holes = Holes()
    holes.whole.truncate(0, SIZE)
    holes.whole.truncate(SIZE, SIZE)
    before = holes.mark()
    holes.zeroed(0, SIZE)
    holes.synchronised(before)
    holes.lost()
    assert pending(holes) == [(0, SIZE)]


def test_copies_are_stale_where_old_bytes_were_shown() -> None:
    holes = Holes()
    holes.whole.truncate(10, SIZE)
    holes.wrote(20, 22, SIZE)  # what was read before the truncation
    assert holes.whole.stale
    holes.whole.stale = False
    holes.wrote(24, 26, SIZE)
    assert not holes.whole.stale  # nobody has read what is behind the end since then
    holes.read(24, 30, SIZE)
    holes.wrote(26, 27, SIZE)
    assert not holes.whole.stale  # it was written, and no hole was made
    holes.wrote(32, 33, SIZE)
    assert holes.whole.stale


def test_what_is_forgotten_stays_so_when_the_unit_is_looked_at_anew() -> None:
    """As after each login: a dormant end must not wake up, or the next write makes zeros of a disk."""
    holes = Holes()
    holes.whole.truncate(0, SIZE)
    holes.whole.release()
    holes.clip(SIZE)
    holes.wrote(20, 25, SIZE)
    assert not holes.is_owed


def test_a_unit_that_shrinks_has_no_holes_behind_its_end() -> None:
    holes = Holes()
    holes.whole.truncate(0, SIZE)
    holes.whole.truncate(30, SIZE)
    holes.clip(20)
    assert pending(holes) == [(0, 20)]
    assert holes.whole.end is None
