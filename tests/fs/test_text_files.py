"""Files whose text is made when they are opened, as programs read them: without a mount."""

import os

import pytest

from iscsifs.fs.operations import Operations
from support.memory_operations import NOBODY, SIZE, serve, walk
from support.memory_unit import Memory


class Counter:
    """A text that is another one each time."""

    def __init__(self) -> None:
        self.made = 0
        self.length = 1

    def text(self) -> str:
        self.made += 1
        return f"{self.made} ".ljust(self.length, "x") + "\n"


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def operations(counter: Counter) -> Operations:
    operations = serve(Memory(SIZE))
    operations.tree.add_text(operations.tree.root, b"text", counter.text)
    return operations


async def open_text(operations: Operations) -> int:
    inode = (await walk(operations, "text")).st_ino
    return (await operations.open(inode, os.O_RDONLY, NOBODY)).fh


@pytest.mark.conformance("CONTROL-1.2")
async def test_steps_of_one_byte_are_one_text(operations: Operations) -> None:
    handle = await open_text(operations)
    whole = bytes(await operations.read(handle, 0, 4096))
    again = await open_text(operations)
    steps = b"".join([bytes(await operations.read(again, place, 1)) for place in range(10)])
    assert steps.split() != whole.split()
    assert steps.endswith(b"\n")
    assert len(steps.split()) == 1


@pytest.mark.conformance("CONTROL-1.2")
async def test_the_beginning_read_again_is_a_new_text(operations: Operations) -> None:
    handle = await open_text(operations)
    first = bytes(await operations.read(handle, 0, 4096))
    assert bytes(await operations.read(handle, 2, 4096)) == first[2:]
    second = bytes(await operations.read(handle, 0, 4096))
    assert second != first
    assert bytes(await operations.read(handle, 1, 4096)) == second[1:]


@pytest.mark.conformance("CONTROL-1.1")
@pytest.mark.parametrize("change", [-500, 500])
async def test_the_size_is_that_of_the_text_that_was_opened(
    operations: Operations, counter: Counter, change: int
) -> None:
    """So a program that goes by fstat(2), as ``tail -n1`` and ``wc -c`` do, has the end of its text."""
    counter.length = 1000
    handle = await open_text(operations)
    counter.length += change
    attributes = await walk(operations, "text")
    assert attributes.st_size == len(bytes(await operations.read(handle, 0, 4096))) == 1001
    await operations.release(handle)
    assert (await walk(operations, "text")).st_size == 1001 + change


async def test_it_is_the_last_opening_that_counts(operations: Operations, counter: Counter) -> None:
    first = await open_text(operations)
    counter.length = 100
    second = await open_text(operations)
    assert (await walk(operations, "text")).st_size == 101
    await operations.release(first)
    assert (await walk(operations, "text")).st_size == 101
    counter.length = 7
    await operations.release(second)
    assert (await walk(operations, "text")).st_size == 8
