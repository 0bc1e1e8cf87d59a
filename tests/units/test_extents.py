"""The map of the write buffer alone: carving, joining, blocking, and who waits for what."""

from collections.abc import Callable

import pytest

from iscsifs.units.extents import Barrier, Extent, ExtentMap, State


def insert(extents: ExtentMap, start: int, data: bytes, **options: bool) -> Extent:
    return extents.insert(
        start,
        memoryview(data),
        acknowledged=options.get("acknowledged", True),
        sync=options.get("sync", False),
    )


def shown(extents: ExtentMap) -> list[tuple[int, bytes, State]]:
    return [(extent.start, b"".join(extent.chunks), extent.state) for extent in extents]


def land(extents: ExtentMap, extent: Extent) -> list[Extent]:
    """The target has *extent*; return what is newer."""
    sent, newer = extents.landed(extent.start, extent.end)
    for part in sent:
        extents.change(part, State.WRITTEN)
    return newer


def test_neighbours_are_joined_up_to_the_longest() -> None:
    extents = ExtentMap(4)
    for start, data in (2, b"c"), (0, b"ab"), (3, b"d"), (4, b"e"):
        insert(extents, start, data)
    assert shown(extents) == [(0, b"abcd", State.DIRTY), (4, b"e", State.DIRTY)]
    assert (extents.unwritten, extents.unsynchronised) == (5, 0)


def test_a_synchronous_write_joins_no_other() -> None:
    extents = ExtentMap(8)
    insert(extents, 0, b"a")
    insert(extents, 1, b"s", acknowledged=False, sync=True)
    insert(extents, 2, b"t", acknowledged=False, sync=True)
    assert [(extent.start, extent.end, extent.sync) for extent in extents] == [(0, 1, False), (1, 3, True)]


def test_new_data_are_cut_out_of_the_old() -> None:
    extents = ExtentMap()
    insert(extents, 0, b"aaaaaa")
    insert(extents, 2, b"bb")
    assert shown(extents) == [(0, b"aa", State.DIRTY), (2, b"bb", State.DIRTY), (4, b"aa", State.DIRTY)]
    assert extents.unwritten == 6
    assert [(start, bytes(data)) for start, data in extents.newer(1, 5)] == [(1, b"a"), (2, b"bb"), (4, b"a")]


def test_new_data_wait_for_what_is_under_way_for_the_same_bytes_and_for_nothing_else() -> None:
    extents = ExtentMap(4)
    first, second = insert(extents, 0, b"aaaa"), insert(extents, 4, b"bbbb")
    extents.send(first)
    extents.send(second)
    over_both = insert(extents, 3, b"cc")
    insert(extents, 8, b"dd")
    assert over_both.state is State.BLOCKED
    assert land(extents, first) == [over_both]
    assert over_both.state is State.BLOCKED
    assert land(extents, second) == [over_both]
    assert shown(extents) == [
        (0, b"aaa", State.WRITTEN),
        (3, b"cc", State.DIRTY),
        (5, b"bbb", State.WRITTEN),
        (8, b"dd", State.DIRTY),
    ]
    assert (extents.unwritten, extents.unsynchronised) == (4, 6)


def test_what_is_left_of_blocked_data_is_blocked_only_where_something_is_under_way() -> None:
    extents = ExtentMap()
    first = insert(extents, 0, b"aa")
    extents.send(first)
    insert(extents, 0, b"bbbbbb")
    insert(extents, 2, b"c")
    assert shown(extents) == [(0, b"bb", State.BLOCKED), (2, b"c", State.DIRTY), (3, b"bbb", State.DIRTY)]


@pytest.mark.parametrize("state", State)
def test_what_a_failure_of_new_data_means_depends_on_how_far_the_old_have_come(state: State) -> None:
    extents = ExtentMap()
    old = insert(extents, 0, b"a")
    if state is State.BLOCKED:
        extents.send(old)
        old = insert(extents, 0, b"b")
    elif state >= State.SENDING:
        extents.send(old)
    if state is State.WRITTEN:
        land(extents, old)
    assert old.state is state
    new = insert(extents, 0, b"n", acknowledged=False)
    is_sent = state >= State.SENDING
    assert (new.acknowledged, new.covers) == (not is_sent, is_sent or state is State.BLOCKED)
    new.stand_in()
    assert (new.acknowledged, new.covers) == (True, False)


def test_a_barrier_waits_for_what_takes_the_place_of_data() -> None:
    extents = ExtentMap(8)
    old, barrier = insert(extents, 0, b"aaaa"), Barrier()
    old.hold([barrier])
    old.hold([barrier])  # once is enough
    assert barrier.held == 1
    insert(extents, 1, b"b", sync=True)
    assert barrier.held == 3
    insert(extents, 0, b"cccccc")
    assert barrier.held == 1
    (new,) = extents
    extents.divide(new, [2, 4])
    assert barrier.held == 3
    extents.remove(list(extents))
    assert barrier.held == 0
    assert extents.unwritten == 0


def test_only_what_is_written_is_forgotten() -> None:
    extents = ExtentMap()
    written = insert(extents, 0, b"abcdef")
    extents.send(written)
    land(extents, written)
    insert(extents, 2, b"X")
    extents.forget(1, 5)
    assert shown(extents) == [(0, b"a", State.WRITTEN), (2, b"X", State.DIRTY), (5, b"f", State.WRITTEN)]
    assert (extents.unwritten, extents.unsynchronised) == (1, 2)


@pytest.mark.parametrize("act", [lambda extents: insert(extents, 2, b"XX"), lambda extents: divide(extents)])
def test_without_memory_nothing_changes(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[ExtentMap], None]
) -> None:
    extents = ExtentMap()
    insert(extents, 0, b"abcdef")
    before, sizes = shown(extents), (extents.unwritten, extents.unsynchronised)

    def no_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Extent, "part", no_memory)
        with pytest.raises(MemoryError):
            act(extents)
    assert shown(extents) == before
    assert (extents.unwritten, extents.unsynchronised) == sizes
    assert list(extents.dirty) == list(extents)


def divide(extents: ExtentMap) -> None:
    (extent,) = extents
    extents.divide(extent, [1, 2])
