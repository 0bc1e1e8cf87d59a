"""The answers to FUSE's requests, without a mount."""

import errno
import logging
import os
import stat
import threading
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import cast

import pyfuse3
import pytest
import trio
from memory_unit import Memory
from pyfuse3 import EntryAttributes, FUSEError, RequestContext, SetattrFields
from trio.testing import MockClock, wait_all_tasks_blocked

from iscsifs import errors
from iscsifs.fs.operations import Operations, error_number
from iscsifs.fs.tree import ROOT_INODE, File, Storage, TargetDescription, Tree, UnitDescription

SIZE = 10_000
STATUS = 2  # CHECK CONDITION
NOBODY = cast(RequestContext, None)  # who asks makes no difference: the kernel checks permissions


@pytest.fixture
def storage() -> Memory:
    return Memory(SIZE)


def unit(storage: Storage | None, label: str = "0") -> UnitDescription:
    return UnitDescription(label, 0, "disk", vendor="NetBSD", block_size=512, storage=storage)


def serve(
    *storages: Storage,
    read_only: bool = False,
    direct_io: bool = False,
    sync: bool = False,
    exclusive: bool = False,
) -> Operations:
    tree = Tree()
    units = tuple(unit(storage, str(number)) for number, storage in enumerate(storages))
    tree.add_targets([TargetDescription("host", "10.4.0.42", 3260, "iqn.2001-04.com.example:disk", units)])
    return Operations(
        tree, uid=1000, gid=100, read_only=read_only, direct_io=direct_io, sync=sync, exclusive=exclusive
    )


async def walk(operations: Operations, path: str) -> EntryAttributes:
    inode = ROOT_INODE
    attributes = await operations.getattr(inode, NOBODY)
    for name in path.split("/"):
        attributes = await operations.lookup(inode, name.encode(), NOBODY)
        inode = attributes.st_ino
    return attributes


async def open_storage(operations: Operations, flags: int = os.O_RDWR) -> int:
    inode = (await walk(operations, "host/disk/storage")).st_ino
    return (await operations.open(inode, flags, NOBODY)).fh


async def errno_of(request: Awaitable[object]) -> int:
    with pytest.raises(FUSEError) as caught:
        await request
    return caught.value.errno


async def test_storage_has_the_attributes_of_a_disk(storage: Memory) -> None:
    attributes = await walk(serve(storage), "host/disk/storage")
    assert stat.S_ISREG(attributes.st_mode)
    assert stat.S_IMODE(attributes.st_mode) == 0o600
    assert attributes.st_size == SIZE
    assert attributes.st_blocks == SIZE // 512
    assert attributes.st_blksize == 16  # of its 10,000 bytes
    assert attributes.st_nlink == 2
    assert (attributes.st_uid, attributes.st_gid) == (1000, 100)


async def test_both_names_of_storage_are_one_inode(storage: Memory) -> None:
    operations = serve(storage)
    one, other = await walk(operations, "host/disk/storage"), await walk(operations, "host/disk/lun0/storage")
    assert one.st_ino == other.st_ino


async def test_directories_and_links_have_their_attributes(storage: Memory) -> None:
    operations = serve(storage)
    directory = await walk(operations, "host/disk")
    assert directory.st_mode == stat.S_IFDIR | 0o555
    assert directory.st_nlink == 3
    link = await walk(operations, "host/disk/vendor")
    assert link.st_mode == stat.S_IFLNK | 0o777
    assert link.st_size == len("NetBSD")
    assert await operations.readlink(link.st_ino, NOBODY) == b"NetBSD"


async def test_what_is_not_there_is_not_found(storage: Memory) -> None:
    operations = serve(storage)
    link = await walk(operations, "host/disk/vendor")
    file = await walk(operations, "host/disk/storage")
    assert await errno_of(operations.lookup(ROOT_INODE, b"nothing", NOBODY)) == errno.ENOENT
    assert await errno_of(operations.lookup(ROOT_INODE, b"\xff", NOBODY)) == errno.ENOENT
    assert await errno_of(operations.lookup(file.st_ino, b"x", NOBODY)) == errno.ENOTDIR
    assert await errno_of(operations.getattr(9999, NOBODY)) == errno.ESTALE
    assert await errno_of(operations.readlink(file.st_ino, NOBODY)) == errno.EINVAL
    assert await errno_of(operations.opendir(file.st_ino, NOBODY)) == errno.ENOTDIR
    assert await errno_of(operations.open(ROOT_INODE, os.O_RDONLY, NOBODY)) == errno.EISDIR
    assert await errno_of(operations.open(link.st_ino, os.O_RDONLY, NOBODY)) == errno.ELOOP


async def test_a_directory_is_listed_in_pieces_and_as_it_was_when_opened(
    storage: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = serve(storage)
    listed: list[bytes] = []
    room = 0

    def reply(token: object, name: bytes, attributes: EntryAttributes, next_id: int) -> bool:
        nonlocal room
        if room == 0:
            return False
        room -= 1
        listed.append(name)
        assert next_id == len(listed)
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    directory = (await walk(operations, "host/disk/lun0")).st_ino
    handle = await operations.opendir(directory, NOBODY)
    for _ in range(4):
        room = 2
        await operations.readdir(handle, len(listed), pyfuse3.ReaddirToken())
    assert listed == [b"blocksize", b"storage", b"type", b"vendor"]
    await operations.releasedir(handle)
    await operations.fsyncdir(handle, False)


async def test_reads_stop_at_the_end(storage: Memory) -> None:
    operations = serve(storage)
    storage.content[:] = bytes(n % 251 for n in range(SIZE))
    handle = await open_storage(operations)
    assert await operations.read(handle, 0, 100) == storage.content[:100]
    assert await operations.read(handle, SIZE - 10, 100) == storage.content[-10:]
    assert await operations.read(handle, SIZE, 100) == b""
    assert await operations.read(handle, SIZE + 1, 100) == b""


async def test_missing_bytes_are_an_error_and_not_the_end() -> None:
    class Short(Memory):
        async def read(self, offset: int, size: int) -> memoryview:
            return (await super().read(offset, size))[:-1]

    operations = serve(Short(SIZE))
    handle = await open_storage(operations)
    assert await errno_of(operations.read(handle, 0, 512)) == errno.EIO


async def test_a_write_past_the_end_finds_no_space(storage: Memory) -> None:
    operations = serve(storage)
    handle = await open_storage(operations)
    assert await operations.write(handle, 0, b"abc") == 3
    assert await operations.write(handle, SIZE - 2, b"abc") == 2
    assert storage.content[:3] == b"abc"
    assert storage.content[-2:] == b"ab"
    assert await errno_of(operations.write(handle, SIZE, b"x")) == errno.ENOSPC
    assert await errno_of(operations.write(handle, SIZE + 512, b"x")) == errno.ENOSPC


def fields(**wanted: bool) -> SetattrFields:
    """What to set; the real class can be filled in by pyfuse3 only."""

    class Fields:
        update_atime = update_mtime = update_ctime = False
        update_mode = update_uid = update_gid = update_size = False

    result = Fields()
    for name, value in wanted.items():
        setattr(result, name, value)
    return cast(SetattrFields, result)


OPENER, OTHER = (cast(RequestContext, SimpleNamespace(pid=pid)) for pid in (100, 200))


async def truncate(
    operations: Operations, size: int, fh: int | None = None, by: RequestContext = OPENER
) -> EntryAttributes:
    """Truncate as ftruncate(2) does with *fh*, and as truncate(2) and open(2) with O_TRUNC do without."""
    inode = (await walk(operations, "host/disk/storage")).st_ino
    wanted = EntryAttributes()
    wanted.st_size = size
    return await operations.setattr(inode, wanted, fields(update_size=True), fh, by)


async def open_by(operations: Operations, by: RequestContext, flags: int = os.O_WRONLY) -> int:
    inode = (await walk(operations, "host/disk/storage")).st_ino
    return (await operations.open(inode, flags, by)).fh


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


async def test_times_move_on_once_when_somebody_else_may_have_written(storage: Memory) -> None:
    dropped: list[bytes] = []
    operations = serve(storage)
    operations.drop_pages = dropped.append
    operations.may_have_changed(storage)  # which nobody knows
    before = await times_of(operations)
    operations.may_have_changed(storage)
    after = await times_of(operations)
    assert after > before
    assert await times_of(operations) == after
    assert not dropped  # the next open does that
    await open_storage(operations, os.O_RDONLY)
    operations.may_have_changed(storage)
    assert await times_of(operations) > after
    assert dropped == [b"host/disk/lun0/storage"]


async def test_another_unit_under_a_name_has_times_of_its_own(storage: Memory) -> None:
    operations = serve(storage)
    before = await times_of(operations)
    for file in operations._tree.files():
        file.storage = Memory(SIZE)
    assert await times_of(operations) > before


async def test_owner_and_mode_can_be_what_they_are(storage: Memory) -> None:
    operations = serve(storage)
    now = await walk(operations, "host/disk/storage")
    wanted = fields(update_mode=True, update_uid=True, update_gid=True)
    got = await operations.setattr(now.st_ino, now, wanted, None, NOBODY)
    assert (got.st_mode, got.st_uid, got.st_gid) == (now.st_mode, now.st_uid, now.st_gid)


@pytest.mark.parametrize(
    ("size", "preferred", "expected"),
    [
        (16 << 20, 1 << 20, 1 << 20),
        ((16 << 20) + 1536, 1 << 20, 512),
        ((16 << 20) + 4096, 1 << 20, 4096),
        (16 << 20, 96 << 10, 64 << 10),
        (16 << 20, 4 << 20, 4 << 20),
        (0, 1 << 20, 512),
    ],
)
async def test_the_preferred_size_divides_the_disk(size: int, preferred: int, expected: int) -> None:
    attributes = await walk(serve(Memory(size, preferred_size=preferred)), "host/disk/storage")
    assert attributes.st_blksize == expected
    assert size % expected == 0


async def test_a_direct_write_across_the_end_is_written_and_finds_no_space(storage: Memory) -> None:
    operations = serve(storage)
    handle = await open_storage(operations, os.O_RDWR | os.O_DIRECT)
    assert await operations.write(handle, SIZE - 4, b"abcd") == 4
    assert await errno_of(operations.write(handle, SIZE - 2, b"xyz")) == errno.ENOSPC
    assert storage.content[-4:] == b"abxy"


async def test_there_are_no_extended_attributes(storage: Memory) -> None:
    assert list(await serve(storage).listxattr(ROOT_INODE, NOBODY)) == []


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
    assert sum(file.writes for file in operations._files) == 1


async def test_o_trunc_that_would_disturb_others_is_refused(
    storage: Memory, autojump_clock: MockClock
) -> None:
    operations = serve(storage)  # as the kernel asks where FUSE_INIT was not amended
    inode = (await walk(operations, "host/disk/storage")).st_ino
    reader = await open_storage(operations, os.O_RDONLY)
    assert await errno_of(operations.open(inode, os.O_WRONLY | os.O_TRUNC, NOBODY)) == errno.EBUSY
    await operations.release(reader)
    await operations.open(inode, os.O_WRONLY | os.O_TRUNC, NOBODY)


@pytest.mark.parametrize("field", ["update_mode", "update_uid", "update_gid"])
async def test_owner_and_mode_cannot_be_changed(storage: Memory, field: str) -> None:
    operations = serve(storage)
    inode = (await walk(operations, "host/disk/storage")).st_ino
    request = operations.setattr(inode, EntryAttributes(), fields(**{field: True}), None, NOBODY)
    assert await errno_of(request) == errno.EPERM


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("create", (ROOT_INODE, b"x", 0o600, os.O_RDWR, NOBODY)),
        ("mknod", (ROOT_INODE, b"x", 0o600, 0, NOBODY)),
        ("mkdir", (ROOT_INODE, b"x", 0o700, NOBODY)),
        ("symlink", (ROOT_INODE, b"x", b"y", NOBODY)),
        ("link", (2, ROOT_INODE, b"x", NOBODY)),
        ("rename", (ROOT_INODE, b"x", ROOT_INODE, b"y", 0, NOBODY)),
        ("unlink", (ROOT_INODE, b"x", NOBODY)),
        ("rmdir", (ROOT_INODE, b"x", NOBODY)),
    ],
)
async def test_the_tree_cannot_be_changed(
    storage: Memory, operation: str, arguments: tuple[object, ...]
) -> None:
    assert await errno_of(getattr(serve(storage), operation)(*arguments)) == errno.EPERM


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


LOST = errors.MediumError("LBA 5 cannot be written", status=STATUS)


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
    assert [losses.storages for losses in operations.untold] == [[storage]]
    assert await errno_of(operations.fsync(handle, False)) == errno.EIO
    await operations.flush(handle)
    assert operations.untold == []


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
    assert operations.untold == []
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
    tree = Tree()
    target = TargetDescription("host", "10.4.0.42", 3260, "iqn.2001-04.com.example:disk", (unit(storage),))
    (directory,) = tree.add_targets([target])
    operations = Operations(tree, uid=0, gid=0, read_only=False, direct_io=False)
    old = await open_storage(operations)
    storage.lose(LOST)
    tree.replace_units(directory, ())
    assert operations.written == [storage]
    assert operations.untold
    tree.replace_units(directory, (unit(Memory(SIZE, name="another")), unit(Memory(SIZE), "1")))
    await operations.fsync(await open_storage(operations), False)
    inode = (await walk(operations, "host/disk/lun1/storage")).st_ino
    new = (await operations.open(inode, os.O_RDONLY, NOBODY)).fh
    assert await errno_of(operations.fsync(new, False)) == errno.EIO
    await operations.fsync(new, False)
    assert operations.untold == []
    assert await errno_of(operations.fsync(old, False)) == errno.EIO


async def test_the_losses_of_two_units_of_one_name_are_told_apart(storage: Memory) -> None:
    other = Memory(SIZE)  # the same target name on another host
    operations = serve(storage, other)
    await open_storage(operations)
    storage.lose(LOST)
    inode = (await walk(operations, "host/disk/lun1/storage")).st_ino
    await operations.fsync((await operations.open(inode, os.O_RDWR, NOBODY)).fh, False)
    assert [losses.storages for losses in operations.untold] == [[storage]]


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
    assert operations.untold == []
    storage.failure = errors.SpaceError("no space", status=STATUS)
    storage.lose(LOST)
    assert await errno_of(operations.write(handle, 0, b"abc")) == errno.ENOSPC
    assert operations.untold  # that was another failure


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


class Slow(Memory):
    """A unit that reads when it is told to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.go_on = trio.Event()

    async def read(self, offset: int, size: int) -> memoryview:
        await self.go_on.wait()
        return await super().read(offset, size)


async def test_a_request_is_in_work_unless_its_target_is_away(nursery: trio.Nursery) -> None:
    slow = Slow(SIZE)
    operations = serve(slow)
    handle = await open_storage(operations)
    assert not operations.has_work()
    nursery.start_soon(operations.read, handle, 0, 10)
    await trio.testing.wait_all_tasks_blocked()
    assert operations.has_work()
    slow.is_away = True
    assert not operations.has_work()
    slow.is_away = False
    slow.go_on.set()
    await trio.testing.wait_all_tasks_blocked()
    assert not operations.has_work()


async def test_what_was_opened_to_be_written_is_remembered(storage: Memory) -> None:
    operations = serve(storage)
    await open_storage(operations, os.O_RDONLY)
    assert operations.written == []
    await open_storage(operations, os.O_WRONLY)
    assert operations.written == [storage]


@pytest.mark.parametrize("of_mount", [True, False])
async def test_read_only_units_are_not_written_to(of_mount: bool) -> None:
    storage = Memory(SIZE, read_only=not of_mount)
    operations = serve(storage, read_only=of_mount)
    attributes = await walk(operations, "host/disk/storage")
    assert stat.S_IMODE(attributes.st_mode) == 0o400
    for flags in os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC:
        assert await errno_of(operations.open(attributes.st_ino, flags, NOBODY)) == errno.EROFS
    truncation = operations.setattr(
        attributes.st_ino, EntryAttributes(), fields(update_size=True), None, NOBODY
    )
    assert await errno_of(truncation) == errno.EROFS
    handle = await open_storage(operations, os.O_RDONLY)
    assert await operations.read(handle, 0, 3) == bytes(3)
    await operations.fsync(handle, False)
    assert storage.flushes == 0


@pytest.mark.parametrize("direct_io", [False, True])
async def test_an_open_drops_what_was_cached(storage: Memory, direct_io: bool) -> None:
    operations = serve(storage, direct_io=direct_io)
    inode = (await walk(operations, "host/disk/storage")).st_ino
    info = await operations.open(inode, os.O_RDWR, NOBODY)
    assert not info.keep_cache
    assert info.direct_io == direct_io


async def test_df_shows_nothing_that_could_be_full() -> None:
    data = await serve(*[Memory(1 << 20) for _ in range(3)]).statfs(NOBODY)
    assert data.f_blocks == data.f_bfree == data.f_bavail == 0
    assert data.f_files == data.f_ffree == data.f_favail == 0
    assert data.f_namemax == 255


async def test_while_memory_is_short_every_unit_is_told(storage: Memory) -> None:
    other = Memory(1 << 20)
    serve(storage, other).relieve()
    assert storage.requests == other.requests == [("relieve", 0, 0)]


async def test_a_unit_that_has_grown_is_seen_as_it_is(
    storage: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, bool]] = []
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda inode, attr_only: told.append((inode, attr_only)))
    operations = serve(Memory(SIZE), storage)
    inode = (await walk(operations, "host/disk/lun1/storage")).st_ino
    storage.size *= 2
    operations.changed([File(inode, storage)])
    assert told == [(inode, True)]
    assert (await operations.getattr(inode, NOBODY)).st_size == SIZE * 2


async def test_a_unit_that_nobody_looked_at_may_change(
    storage: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(inode: int, attr_only: bool) -> None:
        raise FileNotFoundError(errno.ENOENT, "the kernel does not know this inode")

    monkeypatch.setattr(pyfuse3, "invalidate_inode", unknown)
    serve(storage).changed([File(5, storage)])


@pytest.mark.parametrize(
    ("failure", "number"),
    [
        (errors.MediumError("LBA 5 cannot be read", status=STATUS), errno.EIO),
        (errors.WriteProtectedError("write-protected", status=STATUS), errno.EROFS),
        (errors.SpaceError("no space", status=STATUS), errno.ENOSPC),
        (errors.NoMediumError("no medium", status=STATUS), errno.ENOMEDIUM),
        (errors.ReservationError("reserved", status=STATUS), errno.EBADE),
        (errors.StatusError("aborted", status=STATUS), errno.EIO),
        (errors.DataError("short"), errno.EIO),
        (errors.CommandTimeout("no answer"), errno.EIO),
        (errors.UnitError("another unit"), errno.EIO),
        (errors.TransportError("closed"), errno.EIO),
        (ValueError("a mistake"), errno.EIO),
        (ExceptionGroup("many", [ValueError()]), errno.EIO),
        (MemoryError(), errno.ENOMEM),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
async def test_every_failure_has_its_errno(
    storage: Memory, failure: Exception, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    operations = serve(storage)
    handle = await open_storage(operations)
    storage.failure = failure
    requests: list[Callable[[], Awaitable[object]]] = [
        lambda: operations.read(handle, 0, 512),
        lambda: operations.write(handle, 0, bytes(512)),
        lambda: operations.fsync(handle, False),
    ]
    for request in requests:
        caplog.clear()
        assert await errno_of(request()) == number
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        expected = isinstance(failure, errors.IscsifsError | MemoryError)
        assert (record.exc_info is None) is expected
        assert not expected or str(failure) in record.getMessage()


def test_every_exception_of_ours_has_an_errno() -> None:
    def all_of(kind: type[Exception]) -> list[type[Exception]]:
        return [kind, *(each for below in kind.__subclasses__() for each in all_of(below))]

    for kind in all_of(errors.IscsifsError):
        assert error_number(kind.__new__(kind)) in errno.errorcode


async def test_a_mistake_in_a_handler_does_not_end_the_mount(
    storage: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    operations = serve(storage)
    assert await errno_of(operations.read(12345, 0, 512)) == errno.EIO
    (record,) = caplog.records
    assert record.exc_info is not None


async def test_a_handler_can_be_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    class Stuck(Memory):
        async def read(self, offset: int, size: int) -> memoryview:
            await trio.sleep_forever()
            raise AssertionError

    operations = serve(Stuck(SIZE))
    handle = await open_storage(operations)
    with trio.move_on_after(1) as scope:
        await operations.read(handle, 0, 512)
    assert scope.cancelled_caught
