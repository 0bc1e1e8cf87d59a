"""Truncations, times, and who may have a unit open beside another, without a mount."""

import errno
import os
import threading

import pyfuse3
import pytest
import trio
from pyfuse3 import EntryAttributes, RequestContext
from trio.testing import MockClock, wait_all_tasks_blocked

from iscsifs import errors
from iscsifs.fs.operations import Operations
from iscsifs.fs.tree import ROOT_INODE
from support.memory_operations import (
    NOBODY,
    OPENER,
    OTHER,
    SIZE,
    STATUS,
    errno_of,
    fields,
    open_by,
    open_storage,
    serve,
    walk,
)
from support.memory_unit import Memory


@pytest.fixture
def storage() -> Memory:
    return Memory(SIZE)


async def truncate(
    operations: Operations, size: int, fh: int | None = None, by: RequestContext = OPENER
) -> EntryAttributes:
    """Truncate as ftruncate(2) does with *fh*, and as truncate(2) and open(2) with O_TRUNC do without."""
    inode = (await walk(operations, "host/disk/storage")).st_ino
    wanted = EntryAttributes()
    wanted.st_size = size
    return await operations.setattr(inode, wanted, fields(update_size=True), fh, by)


def truncations(storage: Memory) -> list[int]:
    return [size for operation, _, size in storage.requests if operation == "truncate"]


async def test_a_truncation_sets_the_end_and_the_size_stays(storage: Memory) -> None:
    operations = serve(storage)
    handle = await open_by(operations, OPENER)
    assert (await truncate(operations, 100, handle)).st_size == SIZE
    await open_by(operations, OTHER, os.O_RDONLY)  # readers do not mind
    await truncate(operations, 0, handle)
    await truncate(operations, SIZE, handle)
    assert truncations(storage) == [100, 0, SIZE]
    assert await errno_of(truncate(operations, SIZE + 1, handle)) == errno.EFBIG
    assert truncations(storage) == [100, 0, SIZE]


@pytest.mark.parametrize("atomic", [True, False])
async def test_o_trunc_truncates_whether_the_kernel_tells_of_it_at_once_or_next(
    storage: Memory, atomic: bool
) -> None:
    operations = serve(storage)
    await open_by(operations, OPENER, os.O_WRONLY | (os.O_TRUNC if atomic else 0))
    if not atomic:
        await truncate(operations, 0)
    assert storage.requests == [("truncate", 0, 0)]  # it is not the last writer who has closed


@pytest.mark.parametrize("way", ["ftruncate", "truncate", "O_TRUNC", "O_TRUNC, then SETATTR"])
async def test_while_others_write_it_is_not_truncated(storage: Memory, way: str) -> None:
    operations = serve(storage)
    await open_by(operations, OTHER)  # a loop device for instance
    if way == "O_TRUNC":
        request = open_by(operations, OPENER, os.O_WRONLY | os.O_TRUNC)
        assert await errno_of(request) == errno.EBUSY
    elif way == "truncate":
        assert await errno_of(truncate(operations, 0)) == errno.EBUSY
    else:
        handle = await open_by(operations, OPENER)
        fh = handle if way == "ftruncate" else None
        assert await errno_of(truncate(operations, 0, fh)) == errno.EBUSY
        await truncate(operations, SIZE, fh)  # which shrinks nothing
    assert 0 not in truncations(storage)


async def test_a_truncation_waits_for_a_writer_whose_close_the_kernel_tells_of_later(
    storage: Memory, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    operations = serve(storage)
    first = await open_by(operations, OTHER)
    await operations.flush(first)
    nursery.start_soon(open_by, operations, OPENER, os.O_WRONLY | os.O_TRUNC)
    await trio.testing.wait_all_tasks_blocked()
    assert truncations(storage) == []
    await operations.release(first)
    await trio.testing.wait_all_tasks_blocked()
    assert truncations(storage) == [0]


async def test_a_truncation_does_not_wait_long_for_one_who_may_have_closed(
    storage: Memory, autojump_clock: MockClock
) -> None:
    operations = serve(storage)
    await operations.flush(await open_by(operations, OTHER))
    before = trio.current_time()
    assert await errno_of(open_by(operations, OPENER, os.O_WRONLY | os.O_TRUNC)) == errno.EBUSY
    assert trio.current_time() - before <= 1.0


async def test_what_was_truncated_is_forgotten_with_the_last_writer(storage: Memory) -> None:
    operations = serve(storage)
    one, other = await open_by(operations, OPENER), await open_by(operations, OTHER)
    reader = await open_by(operations, OTHER, os.O_RDONLY)
    await operations.release(one)
    await operations.release(reader)
    assert ("release", 0, 0) not in storage.requests
    await operations.release(other)
    assert storage.requests[-1] == ("release", 0, 0)


async def test_a_truncation_that_nobody_will_close_has_its_zeros_at_once(storage: Memory) -> None:
    operations = serve(storage)
    await truncate(operations, 0)
    assert [operation for operation, _, _ in storage.requests] == ["truncate", "release", "zero", "drain"]


async def test_the_end_of_the_mount_asks_for_what_was_truncated_by_name(storage: Memory) -> None:
    operations = serve(storage)
    await truncate(operations, 0)
    assert operations.tree.storages.written == [storage]


async def test_zeros_of_a_truncation_by_name_that_are_lost_fail_it(
    storage: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drain() -> None:
        storage.lose(errors.MediumError("LBA 5 cannot be written", status=STATUS))

    monkeypatch.setattr(storage, "drain", drain)
    operations = serve(storage)
    assert await errno_of(truncate(operations, 0)) == errno.EIO
    assert [losses.unseen for losses in operations.tree.storages.untold] == [1]


async def test_zeros_are_written_before_a_writer_has_closed_and_a_reader_waits_for_none(
    storage: Memory,
) -> None:
    operations = serve(storage)
    await operations.flush(await open_storage(operations, os.O_RDONLY))
    assert storage.requests == []
    await operations.flush(await open_storage(operations, os.O_WRONLY))
    assert [operation for operation, _, _ in storage.requests] == ["zero", "drain"]


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inodes of which the kernel was told to drop the pages."""
    inodes: list[int] = []
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda inode, attr_only: inodes.append(inode))
    return inodes


async def test_when_old_bytes_become_zeros_the_kernel_drops_its_pages(
    storage: Memory, dropped: list[int]
) -> None:
    operations = serve(storage)
    handle = await open_by(operations, OPENER)
    await operations.write(handle, 0, b"x")
    await truncate(operations, SIZE, handle)
    assert dropped == []
    storage.stale = True
    await operations.write(handle, 4096, bytes(4096))
    storage.stale = True
    await truncate(operations, SIZE, handle)
    assert len(dropped) == 2


@pytest.mark.parametrize(("size", "seconds"), [(100, 0.2), (4096, 5.0)])
async def test_a_write_waits_for_the_pages_in_front_of_it_but_not_for_its_own(
    storage: Memory, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, size: int, seconds: float
) -> None:
    held = threading.Event()
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda inode, attr_only: held.wait(20))
    operations = serve(storage)
    handle = await open_by(operations, OPENER)
    storage.stale = True
    try:
        with trio.move_on_after(0.6) as scope:
            assert await operations.write(handle, 4096, bytes(size)) == size
        assert scope.cancelled_caught == (seconds > 0.6)
    finally:
        held.set()


async def test_a_truncation_fails_where_the_kernel_does_not_drop_its_pages(
    storage: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda inode, attr_only: held.wait(20))
    monkeypatch.setattr("iscsifs.fs.truncation.DROP_TIME", 0.01)
    operations = serve(storage)
    handle = await open_by(operations, OPENER)
    storage.stale = True
    try:
        assert await errno_of(truncate(operations, SIZE, handle)) == errno.EBUSY
    finally:
        held.set()


async def times_of(operations: Operations) -> tuple[int, int]:
    attributes = await walk(operations, "host/disk/lun0/storage")
    return attributes.st_mtime_ns, attributes.st_ctime_ns


async def test_times_that_are_set_are_kept(storage: Memory) -> None:
    operations = serve(storage)
    before = await walk(operations, "host/disk/storage")
    wanted = EntryAttributes()
    wanted.st_mtime_ns, wanted.st_atime_ns = 123456789, 987654321
    got = await operations.setattr(before.st_ino, wanted, fields(update_mtime=True), None, NOBODY)
    assert (got.st_mtime_ns, got.st_atime_ns) == (123456789, before.st_atime_ns)
    assert got.st_ctime_ns > before.st_ctime_ns
    got = await operations.setattr(before.st_ino, wanted, fields(update_atime=True), None, NOBODY)
    assert (got.st_mtime_ns, got.st_atime_ns) == (123456789, 987654321)
    assert await times_of(operations) == (123456789, got.st_ctime_ns)


async def test_times_of_what_is_no_disk_cannot_be_set(storage: Memory) -> None:
    operations = serve(storage)
    request = operations.setattr(ROOT_INODE, EntryAttributes(), fields(update_mtime=True), None, NOBODY)
    assert await errno_of(request) == errno.EPERM


@pytest.mark.parametrize("fails", [False, True])
async def test_times_follow_writes(storage: Memory, fails: bool) -> None:
    operations = serve(storage)
    handle = await open_storage(operations)
    before = await times_of(operations)
    assert await times_of(operations) == before
    if fails:  # part of it may have been written
        storage.failure = errors.MediumError("LBA 5 cannot be written", status=STATUS)
        assert await errno_of(operations.write(handle, 0, b"abc")) == errno.EIO
    else:
        await operations.write(handle, 0, b"abc")
    after = await times_of(operations)
    assert after[0] > before[0]
    assert after[1] > before[1]


async def test_times_move_on_once_when_somebody_else_may_have_written(
    storage: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[bytes] = []
    operations = serve(storage)
    storages = operations.tree.storages
    monkeypatch.setattr(storages.pages, "drop_soon", lambda inode, path: dropped.append(path))
    storages.may_have_changed(storage)  # which nobody knows
    before = await times_of(operations)
    storages.may_have_changed(storage)
    after = await times_of(operations)
    assert after > before
    assert await times_of(operations) == after
    assert not dropped  # the next open does that
    await open_storage(operations, os.O_RDONLY)
    storages.may_have_changed(storage)
    assert await times_of(operations) > after
    assert dropped == [b"host/disk/lun0/storage"]


async def test_another_unit_under_a_name_has_times_of_its_own(storage: Memory) -> None:
    operations = serve(storage)
    before = await times_of(operations)
    for file in operations.tree.files():
        file.storage = Memory(SIZE)
    assert await times_of(operations) > before


async def test_an_exclusive_disk_has_one_writer(storage: Memory, autojump_clock: MockClock) -> None:
    other = Memory(SIZE)
    operations = serve(storage, other, exclusive=True)
    inode = (await walk(operations, "host/disk/storage")).st_ino
    first = await open_storage(operations)
    await open_storage(operations, os.O_RDONLY)
    for flags in os.O_RDWR, os.O_WRONLY | os.O_DIRECT:
        assert await errno_of(operations.open(inode, flags, NOBODY)) == errno.EBUSY
    await operations.open((await walk(operations, "host/disk/lun1/storage")).st_ino, os.O_RDWR, NOBODY)
    await operations.release(first)
    await open_storage(operations)
    assert await errno_of(operations.open(inode, os.O_RDWR, NOBODY)) == errno.EBUSY


async def test_a_writer_that_was_just_closed_is_waited_for(
    storage: Memory, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    operations = serve(storage, exclusive=True)
    first = await open_storage(operations)
    nursery.start_soon(open_storage, operations)
    nursery.start_soon(open_storage, operations, os.O_RDONLY)
    await trio.sleep(0.5)  # the kernel tells of a close(2) later than it returns
    await operations.release(first)
    await wait_all_tasks_blocked()
    assert sum(file.writes for file in operations.tree.storages.files) == 1


async def test_o_trunc_that_would_disturb_others_is_refused(
    storage: Memory, autojump_clock: MockClock
) -> None:
    operations = serve(storage)  # as the kernel asks where FUSE_INIT was not amended
    inode = (await walk(operations, "host/disk/storage")).st_ino
    reader = await open_storage(operations, os.O_RDONLY)
    assert await errno_of(operations.open(inode, os.O_WRONLY | os.O_TRUNC, NOBODY)) == errno.EBUSY
    await operations.release(reader)
    await operations.open(inode, os.O_WRONLY | os.O_TRUNC, NOBODY)
