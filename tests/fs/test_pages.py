"""Cached pages are dropped by child processes: few at once, none left behind, and only in our own mount."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from iscsifs.fs.platform import pages as module
from iscsifs.fs.platform.pages import PagesByChild, PagesByThread
from iscsifs.target.testing import TestTarget
from support.mounting import MountHosts, run

INODE = 7
TIME = 10.0  # seconds


@pytest.fixture
def invalidated() -> list[int]:
    """The inodes that the kernel was told by a thread."""
    return []


@pytest.fixture
def pages(tmp_path: Path, invalidated: list[int]) -> PagesByChild:
    """The pages of files in a directory; opening a FIFO there waits until somebody writes to it."""
    return PagesByChild(tmp_path, PagesByThread(tmp_path, invalidated.append))


def fifo(directory: Path, name: str) -> Callable[[], None]:
    """Make a FIFO; return what lets its reader go on."""
    os.mkfifo(directory / name)

    def release() -> None:
        os.close(os.open(directory / name, os.O_WRONLY | os.O_NONBLOCK))

    return release


def children() -> list[str]:
    """Return the states of the processes that this one has started."""
    states = []
    for thread in Path("/proc/self/task").iterdir():
        for pid in (thread / "children").read_text().split():
            stat = Path(f"/proc/{pid}/stat").read_text()
            if "(sh)" in stat:
                states.append(stat.rpartition(")")[2].split()[0])
    return states


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(TIME):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


def seen_by_fuse(pages: PagesByChild, inode: int) -> None:
    """Have FUSE tell of what the one child opens."""
    (pid,) = pages._children
    pages.opened(inode, pid)


async def test_there_are_few_children_at_once_and_none_is_left(pages: PagesByChild, tmp_path: Path) -> None:
    names = [f"{number}" for number in range(module.MAX_CHILDREN + 5)]
    releases = {name: fifo(tmp_path, name) for name in names}
    for name in names:
        pages.drop_soon(INODE, name.encode())
    await until(lambda: len(children()) == module.MAX_CHILDREN)
    await trio.sleep(0.1)
    assert len(children()) == module.MAX_CHILDREN
    waiting = set(names)

    def release() -> bool:
        for name in list(waiting):
            try:
                releases[name]()
                waiting.discard(name)
            except OSError:  # nobody has it open
                pass
        return not waiting

    await until(release)
    await until(lambda: children() == [])


async def test_a_child_is_reaped_at_once(pages: PagesByChild, tmp_path: Path) -> None:
    release = fifo(tmp_path, "file")
    pages.drop_soon(INODE, b"file")
    await until(lambda: len(children()) == 1)
    await trio.sleep(0.1)
    release()
    await until(lambda: children() == [])


async def test_a_file_has_one_child_at_a_time_and_a_new_one_for_who_comes_later(
    pages: PagesByChild, tmp_path: Path, invalidated: list[int]
) -> None:
    """An opening that has begun may have dropped the pages already that became old since."""
    release = fifo(tmp_path, "file")
    results: list[bool] = []

    async def drop() -> None:
        results.append(await pages.drop(INODE, b"file", TIME))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drop)
        await until(lambda: len(children()) == 1)
        (first,) = pages._children
        for _ in range(3):
            nursery.start_soon(drop)
        pages.drop_soon(INODE, b"file")
        await wait_all_tasks_blocked()
        assert len(children()) == 1
        seen_by_fuse(pages, INODE)
        await trio.sleep(0.1)
        release()
        await until(lambda: [*pages._children] not in ([first], []))
        assert results == [True]
        seen_by_fuse(pages, INODE)
        await trio.sleep(0.1)
        release()
    assert results == [True] * 4
    assert invalidated == []


@pytest.mark.parametrize("seen", [None, INODE + 1])
async def test_where_a_child_opens_another_file_a_thread_tells_the_kernel(
    pages: PagesByChild, tmp_path: Path, invalidated: list[int], seen: int | None
) -> None:
    """A path can lead to another mount, or to none."""
    release = fifo(tmp_path, "file")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pages.drop, INODE, b"file", TIME)
        await until(lambda: len(children()) == 1)
        if seen is not None:
            seen_by_fuse(pages, seen)
        await trio.sleep(0.1)
        release()
    assert invalidated == [INODE]
    assert await pages.drop(INODE, b"missing", TIME)
    assert await pages.drop(INODE, None, TIME)
    assert invalidated == [INODE] * 3


async def test_where_no_child_can_be_started_a_thread_tells_the_kernel(
    pages: PagesByChild, tmp_path: Path, invalidated: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMMAND", ("/nonexistent",))
    assert await pages.drop(INODE, b"file", TIME)
    assert invalidated == [INODE]
    assert await pages.is_answered()


async def test_where_there_is_no_memory_for_a_child_a_thread_tells_the_kernel(
    pages: PagesByChild, invalidated: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(trio.lowlevel, "spawn_system_task", fail)
    assert await pages.drop(INODE, b"file", TIME)
    assert invalidated == [INODE]
    pages.drop_soon(INODE, b"file")
    assert not await pages.write_back(INODE, b"file", lambda: True)
    assert await pages.is_answered()


async def test_who_waits_gives_up_in_time(pages: PagesByChild, tmp_path: Path) -> None:
    release = fifo(tmp_path, "file")
    assert not await pages.drop(INODE, b"file", 0.05)
    assert not await pages.write_back(INODE, b"file", lambda: False)
    for _ in range(2):
        await trio.sleep(0.1)
        release()
    await until(lambda: children() == [])


async def test_a_thread_that_waits_is_known_until_it_returns(tmp_path: Path) -> None:
    held = threading.Event()

    def invalidate(inode: int) -> None:
        held.wait(TIME)

    pages = PagesByThread(tmp_path, invalidate)
    try:
        assert not await pages.drop(INODE, None, 0.05)
        assert pages.is_thread_waiting
    finally:
        held.set()
    await until(lambda: not pages.is_thread_waiting)
    with trio.CancelScope() as scope:
        scope.cancel()
        await pages.drop(INODE, None, TIME)
    assert not pages.is_thread_waiting


@pytest.mark.real
@pytest.mark.mount
@pytest.mark.parametrize("place", ["reachable", "detached", "covered"])
def test_a_truncation_drops_the_pages_wherever_the_path_leads(
    place: str, mount_hosts: MountHosts, require_root: None
) -> None:
    with TestTarget(name="iqn.2026-01.example:disk") as target:
        target.disk.write(0, b"x" * (1 << 20))
        mounted = mount_hosts(target.url)
        descriptor = os.open(mounted.storage(), os.O_RDWR)
        try:
            assert os.pread(descriptor, 4096, 8192) == b"x" * 4096
            if place == "detached":
                run("umount", "-l", mounted.path)
            elif place == "covered":
                run("mount", "-t", "tmpfs", "none", mounted.path)
            size = os.fstat(descriptor).st_size
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, size)
            assert os.pread(descriptor, 4096, 8192) == bytes(4096)
        finally:
            os.close(descriptor)
            if place == "covered":
                run("umount", mounted.path)
        if place != "detached":
            run("umount", mounted.path)  # no child keeps it busy
        mounted.wait()
