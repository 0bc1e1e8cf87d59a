"""Workers that wait for requests: one is woken by the kernel, and others with it when there are many."""

import os
from collections.abc import Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from iscsifs.fs.platform.busy_poll import BusyPoller
from iscsifs.fs.platform.requests import Readiness


class Requests:
    """A pipe in the place of FUSE; each byte is a request."""

    def __init__(self) -> None:
        self.fd, self.in_end = os.pipe()
        self.readiness = Readiness(lambda: self.has_room, BusyPoller())
        self.has_room = True
        self.taken = 0
        self.ended = 0

    def send(self, count: int) -> None:
        os.write(self.in_end, bytes(count))

    async def work(self) -> None:
        """Take requests, as pyfuse3's workers do: a read must never block."""
        os.set_blocking(self.fd, False)
        try:
            while True:
                await self.readiness.wait_readable(self.fd)
                self.taken += len(os.read(self.fd, 1))
        except trio.ClosedResourceError:
            self.ended += 1

    def close(self) -> None:
        self.readiness.notify_closing(self.fd)


@pytest.fixture
def requests() -> Iterator[Requests]:
    requests = Requests()
    yield requests
    os.close(requests.fd)
    os.close(requests.in_end)


async def test_all_requests_are_taken(requests: Requests, nursery: trio.Nursery) -> None:
    for _ in range(5):
        nursery.start_soon(requests.work)
    await wait_all_tasks_blocked()
    for count in (1, 100, 1, 3):
        before = requests.taken
        requests.send(count)
        await wait_all_tasks_blocked(0.01)
        assert requests.taken == before + count
    requests.close()
    await wait_all_tasks_blocked()
    assert requests.ended == 5


async def test_the_end_of_the_connection_is_noticed_by_whoever_does_not_read(nursery: trio.Nursery) -> None:
    peer, fd = os.pipe()
    readiness = Readiness(lambda: True, BusyPoller())
    nursery.start_soon(readiness.wait_readable, fd)
    os.close(peer)  # an error on the other end, as that of FUSE when it was unmounted
    with trio.fail_after(5):
        await readiness.disconnected()
    readiness.notify_closing(fd)
    os.close(fd)


async def test_idle_workers_are_dismissed_but_for_one(requests: Requests, nursery: trio.Nursery) -> None:
    for _ in range(5):
        nursery.start_soon(requests.work)
    await wait_all_tasks_blocked()
    requests.readiness.dismiss_idle()
    await wait_all_tasks_blocked()
    assert requests.ended == 4
    requests.send(2)
    await wait_all_tasks_blocked(0.01)
    assert requests.taken == 2
    for _ in range(2):
        nursery.start_soon(requests.work)
    await wait_all_tasks_blocked()
    requests.readiness.dismiss_idle()
    await wait_all_tasks_blocked()
    assert requests.ended == 6
    requests.close()
    await wait_all_tasks_blocked()
    assert requests.ended == 7


async def test_without_memory_requests_wait_and_idle_workers_give_theirs_back(
    requests: Requests, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    for _ in range(5):
        nursery.start_soon(requests.work)
    await wait_all_tasks_blocked()
    requests.has_room = False
    requests.send(20)
    await trio.sleep(10)
    assert requests.taken == 0
    assert requests.ended == 4
    requests.has_room = True
    await trio.sleep(1)
    assert requests.taken == 20
    requests.close()


async def test_without_memory_the_end_is_heard_of(
    requests: Requests, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    requests.has_room = False
    nursery.start_soon(requests.work)
    requests.send(1)
    await trio.sleep(1)
    requests.close()
    await trio.sleep(1)
    assert requests.ended == 1


async def test_without_memory_an_unmounted_file_system_is_seen(
    requests: Requests, nursery: trio.Nursery
) -> None:
    requests.has_room = False
    os.close(requests.in_end)
    try:
        await requests.readiness.wait_readable(requests.fd)  # the read of which tells it
    finally:
        requests.in_end = os.dup(requests.fd)
