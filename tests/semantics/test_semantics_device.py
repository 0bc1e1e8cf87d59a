"""`storage` beside a loop device: the same program on both, the same result, or a difference with a reason.

Each row runs on the device, on a mount with the page cache and on one with direct_io.
"""

import ctypes
import fcntl
import mmap
import os
import select
from collections.abc import Callable
from typing import Final

import pytest

from support.subjects import MIB, OLD, SIZE, Program, Row, Subject, opened, outcome

pytestmark = [pytest.mark.mount, pytest.mark.real]

RW: Final = os.O_RDWR
PAGE: Final = 4096


def on(flags: int, work: Callable[[int], object]) -> Program:
    """Return the program that opens the disk with *flags* and does *work* on the descriptor."""

    def program(subject: Subject) -> object:
        with opened(subject.path, flags) as fd:
            return work(fd)

    return program


def page(fill: bytes = b"n", size: int = PAGE) -> mmap.mmap:
    """Return memory that O_DIRECT takes."""
    memory = mmap.mmap(-1, size)
    memory.write(fill * size)
    return memory


def twice(fd: int) -> list[object]:
    """Write across the end, then go on behind it."""
    os.lseek(fd, SIZE - 1000, os.SEEK_SET)
    results: list[object] = [os.write(fd, b"n" * 4000)]
    try:
        results.append(os.write(fd, b"n"))
    except OSError as error:
        results.append(error.errno)
    os.fsync(fd)
    results.append(os.lseek(fd, 0, os.SEEK_END))
    return results


def writes_seen(write: int, read: int) -> Program:
    """Return the program that writes a page with the flags *write* and reads it with *read* elsewhere."""

    def program(subject: Subject) -> object:
        with opened(subject.path, RW | write) as writer, opened(subject.path, os.O_RDONLY | read) as reader:
            before, after = page(), page()
            os.preadv(reader, [before], MIB)
            os.pwritev(writer, [page()], MIB)
            os.preadv(reader, [after], MIB)
            return before[:] == OLD[MIB : MIB + PAGE], after[:] == b"n" * PAGE

    return program


def mapped(kind: int, work: Callable[[int, mmap.mmap], object]) -> Program:
    """Return the program that maps the disk and does *work*."""

    def program(subject: Subject) -> object:
        with opened(subject.path, RW) as fd, mmap.mmap(fd, 2 * MIB, kind) as mapping:
            return work(fd, mapping)

    return program


def map_and_read_back(fd: int, mapping: mmap.mmap) -> object:
    mapping[MIB : MIB + 3] = b"new"
    mapping.flush()
    return os.pread(fd, 5, MIB) == b"new" + OLD[MIB + 3 : MIB + 5]


def map_sees_writes(fd: int, mapping: mmap.mmap) -> object:
    before = mapping[MIB : MIB + 3]
    os.pwrite(fd, b"new", MIB)
    return before == OLD[MIB : MIB + 3], mapping[MIB : MIB + 3]


def map_sees_direct_writes(subject: Subject) -> object:
    with (
        opened(subject.path, RW | os.O_DIRECT) as writer,
        opened(subject.path, os.O_RDONLY) as fd,
        mmap.mmap(fd, 2 * MIB, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapping,
    ):
        before = mapping[MIB : MIB + 3]
        os.pwritev(writer, [page()], MIB)
        return before == OLD[MIB : MIB + 3], mapping[MIB : MIB + 3]


def map_closed_and_synchronised_by_another(subject: Subject) -> object:
    with opened(subject.path, RW) as fd, mmap.mmap(fd, 2 * MIB, mmap.MAP_SHARED) as mapping:
        mapping[MIB : MIB + 3] = b"new"
    with opened(subject.path, RW) as fd:
        os.fsync(fd)
    return subject.image.read_bytes()[MIB : MIB + 4]


def map_behind_the_end(subject: Subject) -> object:
    with opened(subject.path, RW) as fd, mmap.mmap(fd, SIZE, mmap.MAP_SHARED) as mapping:
        mapping[SIZE - 1] = 0
        mapping.flush()
    return subject.image.stat().st_size, subject.image.read_bytes()[-2:] == OLD[-2:-1] + b"\0"


def truncate_for_others(subject: Subject) -> object:
    """Open with O_TRUNC while another one reads, and has it mapped."""
    with (
        opened(subject.path, os.O_RDONLY) as fd,
        mmap.mmap(fd, 2 * MIB, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapping,
    ):
        os.close(os.open(subject.path, os.O_WRONLY | os.O_TRUNC))
        return (
            os.pread(fd, 4, MIB),
            os.lseek(fd, 0, os.SEEK_END),
            mapping[MIB : MIB + 4],
            os.pread(fd, 4, SIZE - 2),
        )


def written_with_o_trunc(flags: int) -> Program:
    def program(subject: Subject) -> object:
        with opened(subject.path, os.O_WRONLY | os.O_TRUNC | flags) as fd:
            os.writev(fd, [page()])
        return subject.content() == b"n" * PAGE + OLD[PAGE:]

    return program


def ftruncate(size: int) -> Program:
    def program(subject: Subject) -> object:
        with opened(subject.path, os.O_WRONLY) as fd:
            os.ftruncate(fd, size)
        return "ok"

    return program


def copied_within(subject: Subject) -> object:
    with opened(subject.path, RW) as fd:
        return os.copy_file_range(fd, fd, PAGE, 0, 8 * MIB), os.pread(fd, PAGE, 8 * MIB) == OLD[:PAGE]


def sent(subject: Subject) -> object:
    with opened(subject.path, RW) as fd, opened(subject.path, os.O_RDONLY) as source:
        os.lseek(fd, 5 * MIB, os.SEEK_SET)
        return os.sendfile(fd, source, 0, PAGE), os.pread(fd, PAGE, 5 * MIB) == OLD[:PAGE]


def shared_offset(subject: Subject) -> object:
    with opened(subject.path, os.O_RDONLY) as fd:
        other = os.dup(fd)
        os.read(fd, 100)
        position = os.lseek(other, 0, os.SEEK_CUR)
        os.close(other)
        with opened(subject.path.parent / subject.path.name, os.O_RDONLY) as again:
            return position, os.lseek(again, 0, os.SEEK_CUR)


def locked(subject: Subject) -> object:
    """flock(2) between two handles."""
    with opened(subject.path, RW) as one, opened(subject.path, RW) as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "locked"
        return "not locked"


def polled(subject: Subject) -> object:
    with opened(subject.path, RW) as fd:
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLOUT)
        return [events & (select.POLLIN | select.POLLOUT) for _, events in poll.poll(0)]


def attributes_set(subject: Subject) -> object:
    status = subject.path.stat()
    subject.path.chmod(status.st_mode & 0o7777)
    os.chown(subject.path, status.st_uid, status.st_gid)
    os.utime(subject.path, ns=(10**18, 10**18))
    return subject.path.stat().st_mtime_ns


def fallocated(subject: Subject) -> object:
    """posix_fallocate(3) of what is there must keep its bytes."""
    with opened(subject.path, RW) as fd:
        os.posix_fallocate(fd, 0, MIB)
    return subject.content() == OLD


def bad_address(subject: Subject) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    with opened(subject.path, RW) as fd:
        return libc.pwrite(fd, ctypes.c_void_p(1), 512, 0), ctypes.get_errno()


PREAD, PWRITE = os.pread, os.pwrite

ROWS: Final = [
    # Truncation, and O_TRUNC as others see it.
    Row("the same size", ftruncate(SIZE), "nothing changes", "ok", "ok"),
    Row("half the size", ftruncate(SIZE // 2), "it sets an end, see the manual", "ok", "ok"),
    Row("more than there is", ftruncate(SIZE + 1), "as for a file that is too large", "EFBIG", "EFBIG"),
    Row("O_TRUNC, and a page", written_with_o_trunc(0)),
    Row("O_TRUNC, and a page by O_DIRECT", written_with_o_trunc(os.O_DIRECT)),
    Row("O_TRUNC while others read and map", truncate_for_others),
    # The end.
    Row("a write across the end, and again", on(RW, twice)),
    Row("a write at the end", on(RW, lambda fd: PWRITE(fd, b"n", SIZE))),
    Row("a write 1 MiB behind the end", on(RW, lambda fd: PWRITE(fd, b"n", SIZE + MIB))),
    Row("a write 1 TiB behind the end", on(RW, lambda fd: PWRITE(fd, b"n", 1 << 40))),
    Row("nothing, written at the end", on(RW, lambda fd: PWRITE(fd, b"", SIZE))),
    Row("a read in front of the end", on(RW, lambda fd: PREAD(fd, 100, SIZE - 10))),
    Row("a read at the end", on(RW, lambda fd: PREAD(fd, 100, SIZE))),
    Row("a read behind the end", on(RW, lambda fd: PREAD(fd, 100, SIZE + MIB))),
    Row("a read at -1", on(RW, lambda fd: PREAD(fd, 100, -1))),
    Row(
        "a write of O_APPEND",
        on(RW | os.O_APPEND, lambda fd: os.write(fd, b"n")),
        "the device overwrites its beginning",
        "ENOSPC",
        "ENOSPC",
    ),
    # Reads and writes of every kind.
    Row("a buffered write of three bytes", on(RW, lambda fd: (PWRITE(fd, b"new", 700), PREAD(fd, 5, 699)))),
    Row("a buffered write is read", writes_seen(0, 0)),
    Row("a buffered write is read by O_DIRECT", writes_seen(0, os.O_DIRECT)),
    Row("a write of O_DIRECT is read", writes_seen(os.O_DIRECT, 0)),
    Row("a write of O_DIRECT is read by O_DIRECT", writes_seen(os.O_DIRECT, os.O_DIRECT)),
    Row("a write of O_SYNC", on(RW | os.O_SYNC, lambda fd: PWRITE(fd, b"new", 700))),
    Row("RWF_DSYNC", on(RW, lambda fd: os.pwritev(fd, [b"new"], 700, os.RWF_DSYNC))),
    Row("1024 parts", on(RW, lambda fd: os.pwritev(fd, [b"n"] * 1024, 0))),
    Row("1025 parts", on(RW, lambda fd: os.pwritev(fd, [b"n"] * 1025, 0))),
    Row("a bad address", bad_address),
    Row(
        "copy_file_range within",
        copied_within,
        "as for a regular file, which programs take it for",
        (PAGE, True),
        (PAGE, True),
    ),
    Row("sendfile", sent),
    Row("the offset is shared with a dup", shared_offset),
    Row("posix_fallocate", fallocated, "there is room for all bytes, and they stay", True, True),
    # Mappings.
    Row("a shared mapping is written", mapped(mmap.MAP_SHARED, map_and_read_back)),
    Row("a shared mapping sees writes", mapped(mmap.MAP_SHARED, map_sees_writes)),
    Row(
        "a private mapping sees writes of O_DIRECT",
        map_sees_direct_writes,
        "with direct_io the kernel keeps what was mapped",
        None,
        ...,
    ),
    Row("a mapping is closed, and synchronised by another", map_closed_and_synchronised_by_another),
    Row("a mapping of the last page", map_behind_the_end),
    # Locks, poll, attributes.
    Row("flock", locked),
    Row("poll", polled),
    Row("mode, owner and times are set to what they are", attributes_set),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_it_is_as_on_a_device(loop: Subject, disk: Subject, row: Row) -> None:
    found = outcome(row.program, disk)
    instead = row.instead_direct_io if disk.is_direct_io else row.instead
    if instead is ...:
        pytest.skip(row.why)
    expected = outcome(row.program, loop) if instead is None else instead
    assert found == expected
    if instead is not None:
        assert row.why
