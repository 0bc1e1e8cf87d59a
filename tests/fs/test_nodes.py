"""Texts that are made at open, control files, and directories that can be changed, without a mount."""

import errno
import os
import stat

import pytest
from pyfuse3 import EntryAttributes

from iscsifs.errors import CommandTimeout, InUseError
from iscsifs.fs.nodes import Directory, Refusal
from iscsifs.fs.operations import REFUSALS, Operations
from iscsifs.fs.tree import ROOT_INODE
from support.memory_operations import NOBODY, SIZE, errno_of, fields, serve, walk
from support.memory_unit import Memory


class Texts:
    """What a text file shows, and a control file does."""

    def __init__(self) -> None:
        self.text = "one\n"
        self.commands = 0
        self.failure: Exception | None = None

    async def command(self) -> None:
        self.commands += 1
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def texts() -> Texts:
    return Texts()


@pytest.fixture
def operations(texts: Texts) -> Operations:
    operations = serve(Memory(SIZE))
    directory = operations.tree.add_directory(operations.tree.root, b".own")
    operations.tree.add_text(directory, b"text", lambda: texts.text)
    operations.tree.add_command(directory, b"control", texts.command)
    return operations


async def open_file(operations: Operations, path: str, flags: int) -> int:
    inode = (await walk(operations, path)).st_ino
    return (await operations.open(inode, flags, NOBODY)).fh


async def test_a_text_has_the_size_that_it_has_now(operations: Operations, texts: Texts) -> None:
    attributes = await walk(operations, ".own/text")
    assert attributes.st_mode == stat.S_IFREG | 0o444
    assert attributes.st_size == len("one\n")
    assert attributes.attr_timeout == 0
    before = attributes.st_mtime_ns
    assert (await walk(operations, ".own/text")).st_mtime_ns == before
    texts.text = "zwölf\n"
    attributes = await walk(operations, ".own/text")
    assert attributes.st_size == len("zwölf\n".encode())
    assert attributes.st_mtime_ns > before


@pytest.mark.conformance("CONTROL-1.2")
async def test_an_open_text_is_that_of_its_open(operations: Operations, texts: Texts) -> None:
    first = await open_file(operations, ".own/text", os.O_RDONLY)
    texts.text = "two, longer\n"
    second = await open_file(operations, ".own/text", os.O_RDONLY)
    assert await operations.read(first, 0, 4096) == b"one\n"
    assert await operations.read(first, 2, 4096) == b"e\n"
    assert await operations.read(first, 4, 4096) == b""
    assert b"".join([await operations.read(second, offset, 1) for offset in range(20)]) == b"two, longer\n"
    assert await operations.read(second, 0, 3) == b"two"
    await operations.fsync(first, False)
    await operations.flush(first)
    await operations.release(first)
    info = await operations.open((await walk(operations, ".own/text")).st_ino, os.O_RDONLY, NOBODY)
    assert info.direct_io  # the kernel would cut it at the size that it has seen last


async def test_nobody_writes_to_a_text(operations: Operations) -> None:
    inode = (await walk(operations, ".own/text")).st_ino
    assert await errno_of(operations.open(inode, os.O_WRONLY, NOBODY)) == errno.EPERM
    truncation = operations.setattr(inode, EntryAttributes(), fields(update_size=True), None, NOBODY)
    assert await errno_of(truncation) == errno.EPERM
    touch = operations.setattr(inode, EntryAttributes(), fields(update_mtime=True), None, NOBODY)
    assert await errno_of(touch) == errno.EPERM
    handle = await open_file(operations, ".own/text", os.O_RDONLY)
    assert await errno_of(operations.write(handle, 0, b"x")) == errno.EPERM


@pytest.mark.parametrize("data", [b"1", b"1\n"])
async def test_a_one_is_a_command(operations: Operations, texts: Texts, data: bytes) -> None:
    attributes = await walk(operations, ".own/control")
    assert attributes.st_mode == stat.S_IFREG | 0o200
    handle = await open_file(operations, ".own/control", os.O_WRONLY)
    # As a shell does it: FUSE_INIT is amended, so that O_TRUNC comes as a truncation.
    await operations.setattr(attributes.st_ino, EntryAttributes(), fields(update_size=True), handle, NOBODY)
    assert texts.commands == 0
    assert await operations.write(handle, 0, data) == len(data)
    assert texts.commands == 1
    await operations.flush(handle)
    await operations.release(handle)


@pytest.mark.parametrize("data", [b"0\n", b"11", b"1\n\n", b" 1", b"yes\n", b"\0", b"1" * 4096])
async def test_nothing_else_is(operations: Operations, texts: Texts, data: bytes) -> None:
    handle = await open_file(operations, ".own/control", os.O_WRONLY)
    assert await errno_of(operations.write(handle, 0, data)) == errno.EINVAL
    assert texts.commands == 0


@pytest.mark.parametrize(
    ("failure", "number"), [(CommandTimeout("no answer"), errno.EIO), (InUseError("in use"), errno.EBUSY)]
)
async def test_a_command_that_fails_fails_the_write_and_not_the_close(
    operations: Operations, texts: Texts, failure: Exception, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    texts.failure = failure
    handle = await open_file(operations, ".own/control", os.O_WRONLY)
    assert await errno_of(operations.write(handle, 0, b"1")) == number
    assert str(failure) in caplog.text
    await operations.flush(handle)
    await operations.fsync(handle, False)


async def test_a_control_file_is_empty_for_who_may_read_it(operations: Operations) -> None:
    """Root, for whom the mode is no hindrance: copying everything goes on."""
    handle = await open_file(operations, ".own/control", os.O_RDONLY)
    assert await operations.read(handle, 0, 4096) == b""


async def test_directories_are_made_and_removed_where_that_has_a_meaning(operations: Operations) -> None:
    tree = operations.tree
    removed: list[bytes] = []

    async def make(name: bytes) -> None:
        tree.add_directory(tree.root, name)

    async def remove(name: bytes) -> None:
        removed.append(name)

    assert (await operations.getattr(ROOT_INODE, NOBODY)).st_mode == stat.S_IFDIR | 0o555
    assert await errno_of(operations.mkdir(ROOT_INODE, b"new", 0o700, NOBODY)) == errno.EPERM
    tree.root.on_mkdir, tree.root.on_rmdir = make, remove
    assert (await operations.getattr(ROOT_INODE, NOBODY)).st_mode == stat.S_IFDIR | 0o755
    made = await operations.mkdir(ROOT_INODE, b"new", 0o700, NOBODY)
    assert made.st_ino == (await walk(operations, "new")).st_ino
    assert isinstance(tree.nodes[made.st_ino], Directory)
    await operations.rmdir(ROOT_INODE, b"new", NOBODY)
    assert removed == [b"new"]
    assert await errno_of(operations.rmdir(ROOT_INODE, b"nothing", NOBODY)) == errno.ENOENT
    own = (await walk(operations, ".own")).st_ino
    tree.nodes[own].on_rmdir = remove  # type: ignore[attr-defined]
    assert await errno_of(operations.rmdir(own, b"text", NOBODY)) == errno.ENOTDIR
    assert await errno_of(operations.rmdir(tree.root.inode, b"x", NOBODY)) == errno.ENOENT


def test_every_refusal_has_an_errno() -> None:
    assert set(REFUSALS) == set(Refusal)
