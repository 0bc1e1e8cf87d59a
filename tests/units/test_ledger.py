"""The ledger alone: what a flush makes safe, what is owed, let go, or lost."""

import pytest

from iscsifs.errors import DataLostError, MediumError
from iscsifs.limits import MAX_ROUNDS
from iscsifs.units.durability import Ledger
from iscsifs.units.extents import Extent, ExtentMap, State

BAD_BLOCK = MediumError("a bad block", status=2)


class Unit:
    """A map and its ledger, and writes that the target answers."""

    def __init__(self, *, volatile: bool = True, fua: bool = False, max_unsynchronised: int = 100) -> None:
        self.extents = ExtentMap()
        self.ledger = Ledger(
            "disk", self.extents, volatile=volatile, fua=fua, max_unsynchronised=max_unsynchronised
        )

    def send(self, start: int, data: bytes, *, acknowledged: bool = True) -> Extent:
        extent = self.extents.insert(start, memoryview(data), acknowledged=acknowledged, sync=False)
        self.extents.send(extent)
        return extent

    def write(self, start: int, data: bytes, *, fua: bool = False) -> bool:
        extent = self.send(start, data)
        sent, _ = self.extents.landed(extent.start, extent.end)
        return self.ledger.written(sent, fua=fua)

    def fail(self, extent: Extent) -> None:
        sent, _ = self.extents.landed(extent.start, extent.end)
        self.ledger.failed(sent, BAD_BLOCK)

    @property
    def kept(self) -> list[tuple[int, State]]:
        return [(extent.start, extent.state) for extent in self.extents]


def test_a_flush_makes_safe_what_was_answered_before_it_began() -> None:
    unit = Unit()
    unit.write(0, b"a")
    epoch = unit.ledger.begin_flush()
    unit.write(10, b"b")
    unit.ledger.flushed(epoch)
    assert unit.kept == [(10, State.WRITTEN)]
    assert unit.ledger.needs_flush
    unit.ledger.flushed(unit.ledger.begin_flush())
    assert unit.kept == []
    assert not unit.ledger.needs_flush


def test_an_older_flush_that_ends_last_takes_nothing_back() -> None:
    unit = Unit()
    unit.write(0, b"a")
    older = unit.ledger.begin_flush()
    newer = unit.ledger.begin_flush()
    unit.ledger.flushed(newer)
    unit.write(10, b"b")
    unit.ledger.flushed(older)
    assert unit.kept == [(10, State.WRITTEN)]
    assert unit.ledger.needs_flush


@pytest.mark.parametrize(("volatile", "fua"), [(True, True), (False, False), (False, True)])
def test_what_cannot_be_lost_is_not_kept(volatile: bool, fua: bool) -> None:
    unit = Unit(volatile=volatile)
    unit.write(0, b"a", fua=fua)
    assert unit.kept == []
    assert unit.ledger.needs_flush is not fua
    unit.ledger.lost_cache()
    assert unit.ledger.failures == 0


def test_a_lost_cache_makes_what_it_had_dirty_again() -> None:
    unit = Unit()
    unit.write(0, b"a")
    unit.ledger.lost_cache()
    assert unit.kept == [(0, State.DIRTY)]
    assert (unit.ledger.resets, unit.ledger.failures) == (1, 0)


def test_the_oldest_is_let_go_beyond_the_bound_and_counts_once_the_cache_is_lost() -> None:
    unit = Unit(max_unsynchronised=4)
    assert [unit.write(start, b"aa") for start in (0, 10, 20)] == [False, True, True]
    assert unit.kept == [(10, State.WRITTEN), (20, State.WRITTEN)]
    assert unit.ledger.failures == 0
    unit.ledger.lost_cache()
    assert isinstance(unit.ledger.failure, DataLostError)
    unit.ledger.lost_cache()
    assert unit.ledger.failures == 1


def test_what_was_let_go_is_safe_after_a_flush_that_began_later() -> None:
    unit = Unit(max_unsynchronised=0)
    epoch = unit.ledger.begin_flush()
    unit.write(0, b"a")
    unit.ledger.flushed(epoch)
    unit.ledger.lost_cache()
    assert unit.ledger.failures == 1
    unit.write(0, b"a")
    unit.ledger.flushed(unit.ledger.begin_flush())
    unit.ledger.lost_cache()
    assert unit.ledger.failures == 1


def test_only_acknowledged_data_are_a_loss() -> None:
    unit = Unit()
    unit.fail(unit.send(0, b"a", acknowledged=False))
    assert unit.ledger.failures == 0
    unit.fail(unit.send(0, b"a"))
    assert (unit.ledger.failures, unit.ledger.failure) == (1, BAD_BLOCK)


def test_a_failure_over_what_the_cache_has_is_a_loss_only_once_the_cache_is_lost() -> None:
    unit = Unit()
    unit.write(0, b"a")
    unit.fail(unit.send(0, b"b", acknowledged=False))
    assert unit.ledger.failures == 0
    unit.ledger.lost_cache()
    assert unit.ledger.failures == 1


def test_what_is_under_way_at_every_loss_of_the_cache_is_given_up() -> None:
    unit = Unit()
    extent = unit.send(0, b"a")
    for _ in range(MAX_ROUNDS):
        assert unit.ledger.lost_under_way([extent]) is None
    assert isinstance(unit.ledger.lost_under_way([extent]), DataLostError)


def test_fua_that_was_refused_is_not_used_again_whatever_the_unit_says() -> None:
    ledger = Unit(fua=True).ledger
    assert ledger.fua
    ledger.refuse_fua(BAD_BLOCK)
    assert not ledger.fua
    ledger.unit_says(volatile=True, fua=True)
    assert not ledger.fua


def test_giving_up_counts_everything_once_and_leaves_what_is_under_way() -> None:
    unit = Unit()
    unit.write(0, b"a")
    sending = unit.send(10, b"b")
    unit.ledger.give_up(BAD_BLOCK)
    assert unit.kept == [(10, State.SENDING)]
    assert unit.ledger.failures == 1
    unit.fail(sending)
    assert unit.ledger.failures == 1
