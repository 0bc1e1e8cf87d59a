"""Memory for requests: looked for before one is taken, with a reserve for the time when there is none."""

import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyfuse3
import pytest
import trio

from iscsifs.fs.mount import Mount
from iscsifs.fs.nodes import TreeOptions
from iscsifs.fs.platform import headroom
from iscsifs.fs.platform.headroom import MIB, RESERVE, Headroom
from iscsifs.fs.platform.platform import LinuxPlatform
from iscsifs.fs.platform.tuning import Limits
from iscsifs.fs.record import MountEntry
from iscsifs.fs.tree import Tree
from support.mounting import ENVIRONMENT

LOT = 1 << 40


class Addresses:
    """The addresses that the kernel lets a process have, *left* of them."""

    def __init__(self) -> None:
        self.left = LOT
        self.looks = 0

    def map(self, fd: int, size: int, flags: int) -> "Mapping":
        self.looks += 1
        if size > self.left:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self.left -= size
        return Mapping(self, size)


class Mapping:
    """Some of them."""

    def __init__(self, addresses: Addresses, size: int) -> None:
        self._addresses = addresses
        self._size = size

    def close(self) -> None:
        self._addresses.left += self._size


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> Addresses:
    addresses = Addresses()
    monkeypatch.setattr(mmap, "mmap", addresses.map)
    monkeypatch.setattr(headroom, "_has_pieces", lambda: False)
    return addresses


def test_while_there_is_plenty_one_look_is_good_for_many_requests(
    addresses: Addresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(headroom, "monotonic", lambda: now)
    room = Headroom(lambda: None)
    addresses.looks = 0
    assert all(room.has_room() for _ in range(64))
    assert addresses.looks == 1
    assert room.has_room()
    assert addresses.looks == 2
    now = 0.01
    assert room.has_room()
    assert addresses.looks == 3


def test_when_memory_runs_short_the_reserve_is_given_up_until_there_is_plenty(
    addresses: Addresses, says: Callable[[], list[str]]
) -> None:
    relieved = []
    room = Headroom(lambda: relieved.append(addresses.left))
    assert addresses.left == LOT - RESERVE
    addresses.left = 20 * MIB
    assert room.has_room()
    assert addresses.left == 20 * MIB
    addresses.left = 4 * MIB
    assert room.has_room()
    assert addresses.left == 4 * MIB + RESERVE
    assert relieved == [addresses.left]
    addresses.left = 4 * MIB
    assert not room.has_room()
    assert not room.has_room()
    assert len(relieved) == 3
    addresses.left = LOT
    assert room.has_room()
    assert addresses.left == LOT - RESERVE
    assert [line.partition(",")[0] for line in says()] == [
        "memory runs short",
        "there is enough memory again",
    ]


def test_without_memory_to_begin_to_relieve_requests_wait(addresses: Addresses) -> None:
    def relieve() -> None:
        raise MemoryError

    room = Headroom(relieve)
    addresses.left = 0
    assert room.has_room()  # by the reserve
    addresses.left = 0
    assert not room.has_room()


def test_without_memory_for_the_reserve_there_is_no_start(addresses: Addresses) -> None:
    addresses.left = RESERVE - 1
    with pytest.raises(OSError, match="Cannot allocate"):
        Headroom(lambda: None)


# In a process of its own, whose memory no other test has used.
_OWN = """import mmap, resource
from iscsifs.fs.platform.headroom import MIB, Headroom
def limit(size):
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + size, resource.RLIM_INFINITY))
room = Headroom(lambda: None)
limit(4 * MIB)
room.has_room()  # gives up the reserve
limit(4 * MIB)
print(room.has_room())
limit(32 * MIB)
print(room.has_room())
pieces = [bytes(MIB // 16) for _ in range(24 * 16)]
top = bytes(MIB // 16)
limit(MIB)
print(room.has_room())
del pieces
print(room.has_room())
"""


def test_memory_that_the_process_has_but_does_not_use_counts() -> None:
    own = subprocess.run(
        [sys.executable, "-c", _OWN], capture_output=True, text=True, check=True, env=os.environ | ENVIRONMENT
    )
    assert own.stdout.split() == ["False", "True", "False", "True"]


async def test_without_memory_for_a_process_a_mount_does_what_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Callable[[], list[str]]
) -> None:
    ended = trio.Event()

    async def serve(min_tasks: int, max_tasks: int) -> None:
        await ended.wait()

    def start_process(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    entry = MountEntry("1", "0:0", tmp_path, "fuse.iscsifs", 0)
    monkeypatch.setattr(pyfuse3, "init", lambda *_: None)
    monkeypatch.setattr(pyfuse3, "main", serve)
    monkeypatch.setattr(pyfuse3, "terminate", ended.set)
    monkeypatch.setattr(pyfuse3, "trio", trio)
    monkeypatch.setattr("iscsifs.fs.mount.mount_at", lambda path: entry)
    monkeypatch.setattr(subprocess, "Popen", start_process)
    mount = Mount(Tree(TreeOptions(uid=0, gid=0)), tmp_path, (), LinuxPlatform(Limits()))
    stop = trio.Event()
    await mount.serve(stop, stop.set, trio.lowlevel.checkpoint)
    assert stop.is_set()
    assert mount.fault is None
    assert says() == []
