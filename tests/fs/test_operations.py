"""The answers to FUSE's requests, without a mount."""

import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable

import pyfuse3
import pytest
import trio
from pyfuse3 import EntryAttributes

from iscsifs import errors
from iscsifs.fs.operations import error_number
from iscsifs.fs.tree import ROOT_INODE, TargetDirectory
from support.memory_operations import NOBODY, SIZE, STATUS, errno_of, fields, open_storage, serve, unit, walk
from support.memory_unit import Memory


@pytest.fixture
def storage() -> Memory:
    return Memory(SIZE)


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
    assert not operations.tree.storages.has_work()
    nursery.start_soon(operations.read, handle, 0, 10)
    await trio.testing.wait_all_tasks_blocked()
    assert operations.tree.storages.has_work()
    slow.is_away = True
    assert not operations.tree.storages.has_work()
    slow.is_away = False
    slow.go_on.set()
    await trio.testing.wait_all_tasks_blocked()
    assert not operations.tree.storages.has_work()


async def test_what_was_opened_to_be_written_is_remembered(storage: Memory) -> None:
    operations = serve(storage)
    await open_storage(operations, os.O_RDONLY)
    assert operations.tree.storages.written == []
    await open_storage(operations, os.O_WRONLY)
    assert operations.tree.storages.written == [storage]


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
    serve(storage, other).tree.relieve()
    assert storage.requests == other.requests == [("relieve", 0, 0)]


async def test_a_unit_that_has_grown_is_seen_as_it_is(
    storage: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, bool]] = []
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda inode, attr_only: told.append((inode, attr_only)))
    first = Memory(SIZE)
    operations = serve(first, storage)
    inode = (await walk(operations, "host/disk/lun1/storage")).st_ino
    told.clear()
    storage.size *= 2
    directory = operations.tree.nodes[(await walk(operations, "host/disk")).st_ino]
    assert isinstance(directory, TargetDirectory)
    operations.tree.replace_units(directory, [unit(first), unit(storage, "1")])
    assert (inode, True) in told
    assert (await operations.getattr(inode, NOBODY)).st_size == SIZE * 2


async def test_a_unit_that_nobody_looked_at_may_change(
    storage: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(inode: int, attr_only: bool) -> None:
        raise FileNotFoundError(errno.ENOENT, "the kernel does not know this inode")

    monkeypatch.setattr(pyfuse3, "invalidate_inode", unknown)
    operations = serve(storage)
    directory = operations.tree.nodes[(await walk(operations, "host/disk")).st_ino]
    assert isinstance(directory, TargetDirectory)
    operations.tree.replace_units(directory, [unit(storage)])


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
