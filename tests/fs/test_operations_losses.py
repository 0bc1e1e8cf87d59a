"""FLUSH, fsync and synchronous writes: what is waited for, and who is told of a loss, without a mount."""

import errno
import os

import pytest
import trio
from trio.testing import MockClock

from iscsifs import errors
from iscsifs.fs.nodes import TreeOptions
from iscsifs.fs.operations import Operations
from iscsifs.fs.tree import TargetDescription, Tree
from support.memory_operations import NOBODY, SIZE, STATUS, errno_of, open_storage, serve, unit, walk
from support.memory_unit import Memory


@pytest.fixture
def storage() -> Memory:
    return Memory(SIZE)


LOST = errors.MediumError("LBA 5 cannot be written", status=STATUS)


async def test_fsync_flushes_and_close_does_not(storage: Memory) -> None:
    operations = serve(storage)
    handle = await open_storage(operations)
    await operations.flush(handle)
    assert storage.flushes == 0
    await operations.fsync(handle, True)
    assert storage.flushes == 1
    await operations.flush(handle)
    await operations.release(handle)
    assert storage.flushes == 1


async def test_a_close_waits_until_writes_have_left(storage: Memory) -> None:
    operations = serve(storage)
    handle = await open_storage(operations)
    await operations.write(handle, 0, b"abc")
    await operations.flush(handle)
    assert [operation for operation, _, _ in storage.requests] == ["write", "zero", "drain"]


class Away(Memory):
    """A unit whose target is away: nothing leaves this machine until it is `back`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.back = trio.Event()

    async def drain(self) -> None:
        await self.back.wait()
        await super().drain()


async def test_a_close_does_not_wait_for_a_target_that_is_away(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """So that a program with an open disk can start another one, which closes a copy of the handle."""
    storage = Away(SIZE)
    operations = serve(storage)
    handle = await open_storage(operations)
    await operations.write(handle, 0, b"abc")
    nursery.start_soon(operations.flush, handle)
    await trio.sleep(60)
    assert nursery.child_tasks  # it is only slow
    storage.is_away = True
    with trio.fail_after(2):
        while nursery.child_tasks:  # noqa: ASYNC110 - the time is virtual
            await trio.sleep(0.1)
    storage.lose(LOST)
    assert await errno_of(operations.fsync(handle, False)) == errno.EIO  # nothing was taken


async def test_a_lost_write_is_reported_to_every_open_handle_once(storage: Memory) -> None:
    operations = serve(storage)
    one, other = await open_storage(operations), await open_storage(operations)
    storage.lose(errors.SpaceError("no space", status=STATUS))
    assert await errno_of(operations.fsync(one, False)) == errno.ENOSPC
    await operations.fsync(one, False)
    late = await open_storage(operations)
    await operations.fsync(late, False)
    assert await errno_of(operations.fsync(other, False)) == errno.ENOSPC
    await operations.fsync(other, False)
    storage.lose(errors.MediumError("LBA 5 cannot be written", status=STATUS))
    for handle in one, other, late:
        assert await errno_of(operations.fsync(handle, False)) == errno.EIO
        await operations.fsync(handle, False)


async def test_a_close_shows_a_loss_and_takes_nothing_from_fsync(
    storage: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    operations = serve(storage)
    handle = await open_storage(operations)
    storage.lose(LOST)
    for _ in range(3):  # a fork, a dup, and a child that ends
        assert await errno_of(operations.flush(handle)) == errno.EIO
    assert caplog.records == []  # the log has had the loss, and needs no line for each close
    assert [losses.storages for losses in operations.tree.storages.untold] == [[storage]]
    assert await errno_of(operations.fsync(handle, False)) == errno.EIO
    await operations.flush(handle)
    assert operations.tree.storages.untold == []


async def test_a_loss_that_nobody_has_seen_is_reported_by_the_next_fsync(storage: Memory) -> None:
    operations = serve(storage)
    writer = await open_storage(operations, os.O_WRONLY)
    storage.lose(LOST)
    assert await errno_of(operations.flush(writer)) == errno.EIO
    await operations.release(writer)
    storage.lose(LOST)  # and once more with no file open
    reader = await open_storage(operations, os.O_RDONLY)
    await operations.flush(reader)
    await operations.release(reader)
    first, second = [await open_storage(operations, os.O_RDONLY) for _ in range(2)]
    assert await errno_of(operations.fsync(first, False)) == errno.EIO
    await operations.fsync(first, False)
    assert operations.tree.storages.untold == []
    assert await errno_of(operations.fsync(second, False)) == errno.EIO  # it was opened before
    await operations.fsync(await open_storage(operations), False)


async def test_a_reader_that_closes_waits_for_nobody_and_is_shown_nothing(storage: Memory) -> None:
    operations = serve(storage)
    reader = await open_storage(operations, os.O_RDONLY)
    await operations.write(await open_storage(operations), 0, b"abc")
    storage.lose(LOST)
    storage.requests.clear()
    await operations.flush(reader)
    assert storage.requests == []


async def test_what_nobody_has_seen_of_a_unit_that_is_gone_is_reported_by_the_one_in_its_place(
    storage: Memory,
) -> None:
    tree = Tree(TreeOptions(uid=0, gid=0))
    target = TargetDescription("host", "10.4.0.42", 3260, "iqn.2001-04.com.example:disk", (unit(storage),))
    (directory,) = tree.add_targets([target])
    operations = Operations(tree)
    old = await open_storage(operations)
    storage.lose(LOST)
    tree.replace_units(directory, ())
    assert operations.tree.storages.written == [storage]
    assert operations.tree.storages.untold
    tree.replace_units(directory, (unit(Memory(SIZE, name="another")), unit(Memory(SIZE), "1")))
    await operations.fsync(await open_storage(operations), False)
    inode = (await walk(operations, "host/disk/lun1/storage")).st_ino
    new = (await operations.open(inode, os.O_RDONLY, NOBODY)).fh
    assert await errno_of(operations.fsync(new, False)) == errno.EIO
    await operations.fsync(new, False)
    assert operations.tree.storages.untold == []
    assert await errno_of(operations.fsync(old, False)) == errno.EIO


async def test_the_losses_of_two_units_of_one_name_are_told_apart(storage: Memory) -> None:
    other = Memory(SIZE)  # the same target name on another host
    operations = serve(storage, other)
    await open_storage(operations)
    storage.lose(LOST)
    inode = (await walk(operations, "host/disk/lun1/storage")).st_ino
    await operations.fsync((await operations.open(inode, os.O_RDWR, NOBODY)).fh, False)
    assert [losses.storages for losses in operations.tree.storages.untold] == [[storage]]


@pytest.mark.parametrize(
    ("flags", "sync", "expected"),
    [
        (os.O_WRONLY, False, False),
        (os.O_RDWR | os.O_SYNC, False, True),
        (os.O_WRONLY | os.O_DSYNC, False, True),
        (os.O_RDWR | os.O_DIRECT | os.O_DSYNC, False, True),
        (os.O_RDWR, True, True),
    ],
)
async def test_what_open_asked_for_holds_for_each_write_of_that_handle(
    storage: Memory, flags: int, sync: bool, expected: bool
) -> None:
    operations = serve(storage, sync=sync)
    handle, plain = await open_storage(operations, flags), await open_storage(operations)
    for _ in range(2):
        await operations.write(handle, 0, b"abc")
    await operations.write(plain, 0, b"abc")
    assert storage.synchronous == [expected, expected, sync]


async def test_a_synchronous_write_reports_what_was_lost_and_counts_as_told(storage: Memory) -> None:
    operations = serve(storage)
    handle = await open_storage(operations, os.O_RDWR | os.O_DSYNC)
    storage.lose(LOST)
    assert await errno_of(operations.write(handle, 0, b"abc")) == errno.EIO
    assert await operations.write(handle, 0, b"abc") == 3
    assert operations.tree.storages.untold == []
    storage.failure = errors.SpaceError("no space", status=STATUS)
    storage.lose(LOST)
    assert await errno_of(operations.write(handle, 0, b"abc")) == errno.ENOSPC
    assert operations.tree.storages.untold  # that was another failure


@pytest.mark.parametrize("owes", ["data", "a report"])
@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDONLY])
async def test_a_unit_that_becomes_read_only_still_owes_its_fsyncs(
    storage: Memory, owes: str, flags: int
) -> None:
    operations = serve(storage)
    handle = await open_storage(operations, flags)
    await operations.write(await open_storage(operations), 0, b"abc")
    storage.read_only = True
    if owes == "data":
        storage.needs_flush = True
        storage.failure = errors.WriteProtectedError("write-protected", status=STATUS)
    else:
        storage.lose(errors.WriteProtectedError("write-protected", status=STATUS))
    assert await errno_of(operations.fsync(handle, False)) == errno.EROFS
    storage.failure = None
    await operations.fsync(handle, False)
    assert storage.flushes == (owes == "data")
    storage.read_only = False
    await operations.fsync(handle, False)
    assert storage.flushes == 1 + (owes == "data")


async def test_a_flush_that_fails_is_not_reported_twice() -> None:
    class Failing(Memory):
        async def flush(self) -> None:
            if not self.failures:
                self.lose(errors.DataError("lost"))
                raise errors.DataError("lost")

    operations = serve(Failing(SIZE))
    handle = await open_storage(operations)
    assert await errno_of(operations.fsync(handle, False)) == errno.EIO
    await operations.fsync(handle, False)
