"""Faults as the programs that use a mount see them: real targets, a real network, the real kernel."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from iscsifs.iscsi.pdu import DataIn, DataOut, Pdu
from support.mounting import MountHosts, wait_until
from support.proxy import Connection, Proxy, Unit, running
from support.targets import Daemon, Istgt, Serve, Target, Tgt
from support.targets import Unit as Lun

MIB = 1 << 20
PAGE = 4096
SIZE = 16 * MIB
NAME = "iqn.2026-01.example:disk"
OTHER = "iqn.2026-01.example:other"
IMPATIENT = "-oping_interval=1,ping_timeout=1,login_timeout=5"

pytestmark = [pytest.mark.real, pytest.mark.mount]

BEHIND = pytest.mark.parametrize("behind", ["writebehind=1", "writebehind=0"])


class OnceFault:
    """Does *what* to the PDU *number* of a *kind* that comes through the proxy; `done` says that it has."""

    def __init__(self, kind: type[Pdu], number: int, what: Callable[[Connection, Unit], object]) -> None:
        self.done = False
        self._kind = kind
        self._left = number
        self._what = what

    def __call__(self, connection: Connection, unit: Unit) -> bool:
        if self.done or not isinstance(unit.pdu, self._kind) or not unit.length:
            return True
        self._left -= 1
        if self._left:
            return True
        self.done = True
        return self._what(connection, unit) is not None


def reset(connection: Connection, unit: Unit) -> None:
    connection.cut(reset=True)


def cut_header(connection: Connection, unit: Unit) -> None:
    connection.cut_within(unit, 20)


def cut_data(connection: Connection, unit: Unit) -> None:
    connection.cut_within(unit, 48 + 1000)


def spoil(connection: Connection, unit: Unit) -> bool:
    unit.spoil_data()
    return True


def disk(directory: Path, name: str = NAME) -> Target:
    """A target with a disk full of random bytes."""
    image = directory / name.rpartition(":")[2]
    image.write_bytes(os.urandom(SIZE))
    return Target(name, [Lun(image)])


def begin(serve: Serve, kind: type[Daemon], directory: Path, target: Target) -> Daemon:
    """Start a daemon that lets a lost session come back at once."""
    keys = {"DefaultTime2Wait": "0"}
    if kind is Istgt:
        return serve(Istgt(directory, target, settings=keys))
    keys |= {"HeaderDigest": "CRC32C,None", "DataDigest": "CRC32C,None"}  # which istgt does unasked
    return serve(Tgt(directory, replace(target, parameters=keys), io_threads=2))


def url(portal: str, daemon: Daemon, name: str = NAME) -> str:
    return f"iscsi://{portal}/{name}/{daemon.first_lun}"


@contextmanager
def in_use(*paths: Path, longest: float = 3.0) -> Iterator[None]:
    """Hold that reads, writes and flushes of *paths* are carried out, none in more than *longest* seconds,
    while the body runs."""
    stop = False
    rounds = 0

    def use(path: Path) -> None:
        nonlocal rounds
        descriptor = os.open(path, os.O_RDWR)
        try:
            while not stop:
                began = time.monotonic()
                mark = os.urandom(PAGE)
                os.pwrite(descriptor, mark, SIZE // 2)
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.pread(descriptor, PAGE, SIZE // 2) == mark
                assert time.monotonic() - began < longest
                rounds += 1
                time.sleep(0.05)
        finally:
            os.close(descriptor)

    with ThreadPoolExecutor() as pool:
        users = [pool.submit(use, path) for path in paths]
        try:
            yield
        finally:
            stop = True
        for user in users:
            user.result(60)
    assert rounds > len(paths)


def write_all(path: Path, contents: bytes, *, piece: int = MIB) -> None:
    """Write *contents* and have them flushed, as dd conv=fsync does."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        for start in range(0, len(contents), piece):
            assert os.pwrite(descriptor, contents[start : start + piece], start) == piece
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def dd(source: Path, storage: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Copy *source* with many small writes and a flush at the end."""
    words = ["dd", f"if={source}", f"of={storage}", "bs=16k", "conv=notrunc,fsync", "status=none"]
    with subprocess.Popen(words) as process:
        try:
            yield process
        finally:
            process.kill()


def can_be_read(path: Path) -> bool:
    try:
        return len(read_uncached(path, 0, PAGE)) == PAGE
    except OSError:
        return False


def read_uncached(path: Path, offset: int, size: int) -> bytes:
    """Read with an open that drops what the kernel has cached."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no more than that
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("kind", "cut", "behind"),
    [(Tgt, reset, 1), (Istgt, reset, 0), (Tgt, cut_header, 0), (Istgt, cut_data, 1)],
    ids=["tgt-RST-behind", "istgt-RST-through", "tgt-header-through", "istgt-data-behind"],
)
def test_1_2_a_cut_while_data_are_written_costs_time_and_nothing_else(
    kind: type[Daemon],
    serve: Serve,
    mount_hosts: MountHosts,
    tmp_path: Path,
    cut: Callable[[Connection, Unit], None],
    behind: int,
) -> None:
    target = disk(tmp_path)
    daemon = begin(serve, kind, tmp_path, target)
    with running(partial(Proxy, daemon.port)) as (proxy, _):
        mounted = mount_hosts(f"-owritebehind={behind}", url(proxy.portal, daemon))
        proxy.fault = once = OnceFault(DataOut, 3, cut)
        contents = os.urandom(4 * MIB)
        write_all(mounted.storage(), contents)
        assert once.done
        assert proxy.connections == 2
        assert target.units[0].image.read_bytes()[: 4 * MIB] == contents
        mounted.unmount()


def test_3_silence_of_a_few_seconds_is_sat_out_and_the_other_target_is_served(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    target = disk(tmp_path)
    tgt = begin(serve, Tgt, tmp_path, target)
    good = begin(serve, Tgt, tmp_path, disk(tmp_path, OTHER))
    with running(partial(Proxy, tgt.port)) as (proxy, call):
        mounted = mount_hosts(IMPATIENT, url(proxy.portal, tgt), url(good.portal, good, OTHER))
        contents = os.urandom(4 * MIB)
        call(proxy.silence)
        with ThreadPoolExecutor() as pool, in_use(mounted.storage("other")):
            writing = pool.submit(write_all, mounted.storage(), contents)
            time.sleep(4)
            assert not writing.done()
            call(proxy.resume)
            writing.result(10)
        assert proxy.connections > 1
        assert target.units[0].image.read_bytes()[: 4 * MIB] == contents
        mounted.unmount()


def test_4_silence_beyond_the_deadline_is_eio_and_then_it_goes_on(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    target = disk(tmp_path)
    before = target.units[0].image.read_bytes()
    tgt = begin(serve, Tgt, tmp_path, target)
    good = begin(serve, Tgt, tmp_path, disk(tmp_path, OTHER))
    with running(partial(Proxy, tgt.port)) as (proxy, call):
        mounted = mount_hosts(
            f"{IMPATIENT},replacement_timeout=2",
            url(proxy.portal, tgt),
            url(good.portal, good, OTHER),
        )
        contents = os.urandom(MIB)
        call(proxy.silence)
        began = time.monotonic()
        with ThreadPoolExecutor() as pool, in_use(mounted.storage("other")):
            reading = pool.submit(read_uncached, mounted.storage(), 8 * MIB, PAGE)
            with pytest.raises(OSError, match="Input/output error"):
                write_all(mounted.storage(), contents)
            with pytest.raises(OSError, match="Input/output error"):
                reading.result(1)
            assert 3 <= time.monotonic() - began < 8
        call(proxy.resume)
        wait_until(lambda: can_be_read(mounted.storage()), "the target is back", 10)
        # What nobody has promised is there or not, by whole blocks.
        image = target.units[0].image.read_bytes()
        for start in range(0, MIB, 512):
            piece = slice(start, start + 512)
            assert image[piece] in (before[piece], contents[piece])
        write_all(mounted.storage(), contents)
        assert target.units[0].image.read_bytes() == contents + before[MIB:]
        mounted.unmount()


def test_5_a_target_that_is_stopped_and_continued_goes_on(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    target = disk(tmp_path)
    istgt = begin(serve, Istgt, tmp_path, target)
    good = begin(serve, Tgt, tmp_path, disk(tmp_path, OTHER))
    mounted = mount_hosts(IMPATIENT, url(istgt.portal, istgt), url(good.portal, good, OTHER))
    contents = os.urandom(4 * MIB)
    with ThreadPoolExecutor() as pool, in_use(mounted.storage("other")):
        istgt.freeze()
        writing = pool.submit(write_all, mounted.storage(), contents)
        time.sleep(3)
        istgt.thaw()
        writing.result(20)
    assert target.units[0].image.read_bytes()[: 4 * MIB] == contents
    mounted.unmount()


@pytest.mark.parametrize(("kind", "behind"), [(Tgt, 1), (Istgt, 0)], ids=["tgt-behind", "istgt-through"])
def test_6_a_target_that_is_killed_and_restarted_under_load_loses_nothing(
    kind: type[Daemon], serve: Serve, mount_hosts: MountHosts, tmp_path: Path, behind: int
) -> None:
    target = disk(tmp_path)
    contents = os.urandom(12 * MIB)
    source = tmp_path / "source"
    source.write_bytes(contents)
    daemon = begin(serve, kind, tmp_path, target)
    good = begin(serve, Tgt, tmp_path, disk(tmp_path, OTHER))
    mounted = mount_hosts(
        f"-owritebehind={behind}", url(daemon.portal, daemon), url(good.portal, good, OTHER)
    )
    # In a process of its own: one that forks has its files closed for it, and would wait for the target.
    with in_use(mounted.storage("other")), dd(source, mounted.storage()) as writer:
        wait_until(lambda: target.units[0].image.read_bytes()[:PAGE] == contents[:PAGE], "it has begun")
        daemon.kill()
        assert writer.poll() is None
        time.sleep(0.5)
        daemon.start()
        assert writer.wait(30) == 0
    assert read_uncached(mounted.storage(), 0, 12 * MIB) == contents
    assert target.units[0].image.read_bytes()[: 12 * MIB] == contents
    mounted.unmount()


@pytest.mark.parametrize(
    ("daemon_kind", "kind"), [(Tgt, DataIn), (Istgt, DataOut)], ids=["tgt-read", "istgt-write"]
)
def test_11_data_that_a_bad_cable_changes_are_sent_again(
    daemon_kind: type[Daemon], kind: type[Pdu], serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    target = disk(tmp_path)
    before = target.units[0].image.read_bytes()
    daemon = begin(serve, daemon_kind, tmp_path, target)
    with running(partial(Proxy, daemon.port)) as (proxy, _):
        mounted = mount_hosts("--digest=all", url(proxy.portal, daemon))
        proxy.fault = once = OnceFault(kind, 2, spoil)
        if kind is DataIn:
            assert mounted.storage().read_bytes() == before
        else:
            contents = os.urandom(4 * MIB)
            write_all(mounted.storage(), contents)
            assert target.units[0].image.read_bytes() == contents + before[4 * MIB :]
        assert once.done
        assert proxy.connections == 2
        mounted.unmount()
