"""Files that show a state and take 0 or 1, without a mount."""

import errno
import os
import stat

import pytest

from iscsifs.errors import InUseError
from iscsifs.fs.nodes import MAX_COMMAND
from iscsifs.fs.operations import Operations
from iscsifs.fs.switch import SwitchFile
from support.memory_operations import NOBODY, SIZE, errno_of, serve, walk
from support.memory_unit import Memory


class Lamp:
    """Something that is on or off, and that may refuse to change."""

    def __init__(self) -> None:
        self.is_on = False
        self.failure: Exception | None = None

    def state(self) -> str:
        return "on" if self.is_on else "off"

    async def switch(self, on: bool) -> None:
        if self.failure is not None:
            raise self.failure
        self.is_on = on


@pytest.fixture
def lamp() -> Lamp:
    return Lamp()


@pytest.fixture
def operations(lamp: Lamp) -> Operations:
    operations = serve(Memory(SIZE))
    tree = operations.tree
    directory = tree.add_directory(tree.root, b".own")
    tree.add_node(directory, b"lamp", lambda inode: SwitchFile(inode, lamp.state, lamp.switch))
    return operations


async def write(operations: Operations, data: bytes) -> int:
    inode = (await walk(operations, ".own/lamp")).st_ino
    opened = await operations.open(inode, os.O_WRONLY | os.O_TRUNC, NOBODY)
    return await operations.write(opened.fh, 0, data)


async def text(operations: Operations) -> bytes:
    inode = (await walk(operations, ".own/lamp")).st_ino
    opened = await operations.open(inode, os.O_RDONLY, NOBODY)
    data = bytes(await operations.read(opened.fh, 0, 100))
    assert (await operations.getattr(inode, NOBODY)).st_size == len(data)
    return data


async def test_it_shows_its_state_and_takes_commands(operations: Operations, lamp: Lamp) -> None:
    assert await text(operations) == b"off\n"
    for command, after in ((b"1\n", b"on\n"), (b"1", b"on\n"), (b"0\n", b"off\n"), (b"0", b"off\n")):
        assert await write(operations, command) == len(command)
        assert await text(operations) == after


async def test_only_its_owner_may_use_it(operations: Operations) -> None:
    inode = (await walk(operations, ".own/lamp")).st_ino
    assert stat.S_IMODE((await operations.getattr(inode, NOBODY)).st_mode) == 0o600


@pytest.mark.parametrize("data", [b"", b"2", b"on", b"1\n\n", b" 1"])
async def test_nothing_else_is_a_command(operations: Operations, lamp: Lamp, data: bytes) -> None:
    lamp.is_on = True
    assert await errno_of(write(operations, data)) == errno.EINVAL
    assert lamp.is_on


async def test_what_is_too_long_is_said_to_be(operations: Operations) -> None:
    assert await errno_of(write(operations, b"1" * (MAX_COMMAND + 1))) == errno.E2BIG


async def test_what_cannot_be_done_fails_the_write(operations: Operations, lamp: Lamp) -> None:
    lamp.failure = InUseError("mounted")
    assert await errno_of(write(operations, b"1")) == errno.EBUSY
    assert await text(operations) == b"off\n"
