"""The life of the process behind a mount: ended under load, killed, cut off from the kernel, or from its
target; what it keeps to itself meanwhile."""

import os
import re
import signal
import struct
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iscsifs.limits import LAST_LOGOUT_TIMEOUT
from iscsifs.target.testing import TestTarget
from support.mounting import Mounted, MountHosts, iscsifs, run, wait_until
from support.targets import Chap, Serve, Target, Tgt, Unit

NAME = "iqn.2026-01.example:disk"
MIB = 1 << 20
PAGE = 4096
CAP_SYS_RESOURCE = 24
SLOTS = 256  # pages that one writer goes round in

pytestmark = [pytest.mark.real, pytest.mark.mount]

# Writes its count into one page after the other, and tells of each that is on stable storage.
_WRITER = """import itertools, mmap, os, struct, sys
path, start, slots, flags = sys.argv[1], *map(int, sys.argv[2:])
descriptor = os.open(path, os.O_RDWR | flags)
page = mmap.mmap(-1, 4096)
for count in itertools.count(1):
    page[:] = struct.pack("<Q", count) * 512
    os.pwritev(descriptor, [page], start + count % slots * 4096)
    if not flags & os.O_DSYNC:
        os.fsync(descriptor)
    print(count, flush=True)
"""

# Says each step, and takes the next one when it is told to.
_HOLDER = """import os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
for number, line in enumerate(sys.stdin):
    try:
        os.pwrite(descriptor, bytes([number + 1]) * 4096, number * 4096)
        if line == "fsync\\n":
            os.fsync(descriptor)
        print("done", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
os.close(descriptor)
"""


# Changes so many bytes of a mapping, and keeps it.
_MAPPER = """import mmap, os, sys, time
size = int(sys.argv[2])
pages = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), size)
pages[:] = b"m" * size
print("done", flush=True)
time.sleep(1000)
"""


# Truncates to nothing and back when it is told to.
_TRUNCATER = """import os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
print("open", flush=True)
sys.stdin.readline()
for size in 0, os.fstat(descriptor).st_size:
    os.ftruncate(descriptor, size)
"""


class Holder:
    """A process of its own that has a file open, for a fork would close the files of the tests."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def write(self, *, fsync: bool = False) -> str:
        """Write the next page; return "done", or what is wrong."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print("fsync" if fsync else "", file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        """Close the file."""
        self._process.communicate(timeout=10)


@contextmanager
def holding(path: Path) -> Iterator[Holder]:
    command = [sys.executable, "-c", _HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Holder(process)
        finally:
            process.kill()


@contextmanager
def writers(path: Path, directory: Path, *flags: int) -> Iterator[list[tuple[subprocess.Popen[str], Path]]]:
    """Run a writer for each of *flags*, number N on the MiB N of *path*; give them and what they say."""
    running: list[tuple[subprocess.Popen[str], Path]] = []
    try:
        for number, flag in enumerate(flags):
            said = directory / f"writer{number}"
            words = [path, number * MIB, SLOTS, flag]
            with said.open("w") as file:
                process = subprocess.Popen(
                    [sys.executable, "-c", _WRITER, *map(str, words)],
                    stdout=file,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            running.append((process, said))
        yield running
    finally:
        for process, _ in running:
            process.kill()
            process.communicate()


def counts(said: Path) -> list[int]:
    return [int(line) for line in said.read_text().splitlines()]


def nobody_is_logged_in(tgt: Tgt) -> bool:
    return all(tgt.adm(op="show", mode="conn", tid=tgt.tid(target)) == "" for target in tgt.targets)


def serve_disk(serve: Serve, directory: Path, image: Path) -> tuple[Tgt, str]:
    """Serve *image*; return the daemon and the URL of the disk."""
    tgt = serve(Tgt(directory, Target(NAME, [Unit(image)]), io_threads=2))
    return tgt, f"iscsi://{tgt.portal}/{NAME}/{tgt.first_lun}"


def pages(image: Path, count: int) -> bytes:
    """Return the first byte of each of the first *count* pages."""
    return image.read_bytes()[: count * PAGE : PAGE]


def fail_with(process: subprocess.Popen[str]) -> str:
    """Wait for the end of *process*, which has to fail; return the last line that it says."""
    _, said = process.communicate(timeout=10)
    assert process.returncode == 1
    return said.splitlines()[-1]


def test_a_signal_under_load_ends_it_soon_and_everything_synchronised_is_there(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path, image: Path
) -> None:
    tgt, url = serve_disk(serve, tmp_path, image)
    mounted = mount_hosts(url, foreground=True)
    flags = [0, 0, os.O_DSYNC, os.O_DIRECT | os.O_DSYNC]
    flood = ["dd", "if=/dev/zero", f"of={mounted.storage()}", "bs=128k", "seek=64", "conv=notrunc"]
    with (
        writers(mounted.storage(), tmp_path, *flags) as running,
        subprocess.Popen(flood, stderr=subprocess.PIPE, text=True) as dd,
    ):
        wait_until(lambda: all(len(counts(said)) > SLOTS for _, said in running), "all have come round")
        mounted.signal(signal.SIGTERM)
        began = time.monotonic()
        assert mounted.status() == 0
        assert time.monotonic() - began < 10
        for process, _ in running:
            assert re.search("not connected|connection abort", fail_with(process))
        dd.communicate(timeout=10)
    assert not mounted.is_mounted()
    content = image.read_bytes()
    for number, (_, said) in enumerate(running):
        for count in counts(said)[-SLOTS:]:
            start = number * MIB + count % SLOTS * PAGE
            there = struct.unpack("<512Q", content[start : start + PAGE])
            assert len(set(there)) == 1
            assert there[0] in (count, count + SLOTS)  # the last one may have had no answer
    assert nobody_is_logged_in(tgt)
    assert mounted.process is not None
    assert mounted.process.communicate() == (f"127.0.0.1: {tgt.portal},1 {NAME}\n", "")


def test_after_a_kill_the_message_says_how_to_mount_again(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path, image: Path
) -> None:
    _, url = serve_disk(serve, tmp_path, image)
    mounted = mount_hosts(url)
    with holding(mounted.storage()) as holder:
        assert holder.write(fsync=True) == "done"
        mounted.signal(signal.SIGKILL)
        wait_until(lambda: not mounted.pids, "it is dead")
        refused = iscsifs(url, mounted.path)
        assert refused.returncode == 2
        assert refused.stdout == ""
        (line,) = refused.stderr.splitlines()
        assert line.startswith(f"iscsifs: {mounted.path}: the program that had mounted it has died; ")
        assert holder.write() == "Transport endpoint is not connected"
        # Although a file is open there.
        run(*line.partition("unmount with: ")[2].split())
        assert not mounted.is_mounted()
        mounted.start(url)
        assert mounted.said.returncode == 0
    with mounted.storage().open("rb") as file:
        assert file.read(PAGE) == bytes([1]) * PAGE
    mounted.unmount()


@pytest.mark.parametrize("command", ["umount -l", "fusermount3 -u -z"])
def test_a_busy_mount_that_is_detached_serves_its_files_to_the_end(
    command: str, serve: Serve, mount_hosts: MountHosts, tmp_path: Path, image: Path, require_root: None
) -> None:
    tgt, url = serve_disk(serve, tmp_path, image)
    mounted = mount_hosts(url, foreground=True)
    assert mounted.process is not None
    with holding(mounted.storage()) as holder:
        assert holder.write() == "done"
        assert "busy" in run("umount", mounted.path, check=False)
        run(*command.split(), mounted.path)
        assert not mounted.is_mounted()
        assert holder.write(fsync=True) == "done"
        assert pages(image, 3) == b"\1\2\0"
        assert holder.write() == "done"
        assert mounted.process.poll() is None
        holder.close()
    assert mounted.status() == 0
    assert pages(image, 3) == b"\1\2\3"
    assert nobody_is_logged_in(tgt)
    assert mounted.process.communicate()[1] == ""


@pytest.fixture
def fusectl(tmp_path: Path, require_root: None) -> Iterator[Path]:
    """The directory of FUSE's connections."""
    path = tmp_path / "fusectl"
    path.mkdir()
    run("mount", "-t", "fusectl", "fusectl", path)
    yield path
    run("umount", path)


@pytest.mark.parametrize("way", ["fusectl", "umount -f"])
def test_what_was_accepted_is_written_when_the_kernel_s_connection_is_aborted(
    way: str, serve: Serve, mount_hosts: MountHosts, tmp_path: Path, image: Path, fusectl: Path
) -> None:
    tgt, url = serve_disk(serve, tmp_path, image)
    mounted = mount_hosts(url, foreground=True)
    connection = fusectl / f"{os.minor(mounted.path.stat().st_dev)}"
    with holding(mounted.storage()) as holder:
        tgt.freeze()
        assert [holder.write() for _ in range(16)] == ["done"] * 16
        if way == "fusectl":
            (connection / "abort").write_text("1")
        else:
            run(*way.split(), mounted.path, check=False)
        assert holder.write() != "done"
        assert pages(image, 17) == bytes(17)
        tgt.thaw()
        assert mounted.status() == 0
    assert pages(image, 17) == bytes([*range(1, 17), 0])
    assert not mounted.is_mounted()
    assert nobody_is_logged_in(tgt)
    assert mounted.process is not None
    complaint = f"iscsifs: {mounted.path}: the kernel's connection was aborted; unmounting\n"
    assert mounted.process.communicate()[1] == complaint


def test_a_write_in_work_is_carried_out_when_the_kernel_s_connection_is_aborted(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path, image: Path, fusectl: Path
) -> None:
    tgt, url = serve_disk(serve, tmp_path, image)
    mounted = mount_hosts("-o", "direct_io", url, foreground=True)
    connection = fusectl / f"{os.minor(mounted.path.stat().st_dev)}"
    tgt.freeze()
    words = ["dd", f"of={mounted.storage()}", "oflag=seek_bytes", "seek=10", "conv=notrunc", "status=none"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as dd:
        assert dd.stdin is not None
        dd.stdin.write("part of a block")  # the rest of which has to be read first
        dd.stdin.close()
        wait_until(lambda: (connection / "waiting").read_text() != "0\n", "it waits")
        time.sleep(0.2)  # for the request to be taken
        (connection / "abort").write_text("1")
        assert dd.wait(10) == 1
        tgt.thaw()
        assert mounted.status() == 0
    assert image.read_bytes()[:26] == bytes(10) + b"part of a block" + bytes(1)
    assert mounted.process is not None
    complaint = f"iscsifs: {mounted.path}: the kernel's connection was aborted; unmounting\n"
    assert mounted.process.communicate()[1] == complaint


def dies_of_abort(process: subprocess.Popen[str]) -> int:
    """Have *process* killed as by a bug; return how it ended: CLD_KILLED, or CLD_DUMPED with a core."""
    run("prlimit", f"--pid={process.pid}", "--core=unlimited:")
    process.send_signal(signal.SIGABRT)
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    assert ended.si_status == signal.SIGABRT
    return ended.si_code


@pytest.mark.parametrize("has_secrets", [True, False])
def test_with_secrets_no_core_is_dumped_and_nothing_is_said_of_them(
    has_secrets: bool,
    serve: Serve,
    mount_hosts: MountHosts,
    tmp_path: Path,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chap = Chap("alice", "correct horse battery", "array", "staple of another kind")
    tgt = serve(Tgt(tmp_path, Target(NAME, [Unit(image)], chap=chap if has_secrets else None)))
    words: list[object] = ["-d", f"iscsi://{tgt.portal}/{NAME}"]
    if has_secrets:
        for option, secret in ("", chap.secret), ("target-", chap.target_secret):
            file = tmp_path / f"{option}secret"
            file.touch(mode=0o600)
            file.write_text(secret)
            words += [f"--{option}secret-file", file]
        words += ["-u", chap.user]
    monkeypatch.chdir(tmp_path)  # for the core
    mounted = mount_hosts(*words, foreground=True)
    assert mounted.process is not None
    if has_secrets:
        assert dies_of_abort(mounted.process) == os.CLD_KILLED
    elif Path("/proc/sys/kernel/core_pattern").read_text() == "core\n":  # elsewhere others have their say
        assert dies_of_abort(mounted.process) == os.CLD_DUMPED
    said = "".join(mounted.process.communicate(timeout=10))
    assert NAME in said
    for secret in chap.secret, chap.target_secret:
        for form in secret, secret.encode().hex(), b64encode(secret.encode()).decode():
            assert form not in said


def test_it_stays_in_memory_and_says_what_it_is_not_permitted(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path, image: Path, require_root: None
) -> None:
    _, url = serve_disk(serve, tmp_path, image)
    mounted = mount_hosts("-v", url, foreground=True)
    assert mounted.process is not None
    lines = Path(f"/proc/{mounted.process.pid}/status").read_text().splitlines()
    status = {name: words for name, *words in (line.split() for line in lines if line.split())}
    assert int(status["VmLck:"][0]) > 1024
    mounted.unmount()
    may = int(status["CapEff:"][0], 16) >> CAP_SYS_RESOURCE & 1
    assert ("takes CAP_SYS_RESOURCE" in mounted.process.communicate()[1]) == (not may)


# The end with a target that is away.

WAITING = f"{NAME} LUN 1: not all that was written is on stable storage; trying for 30 seconds in all"


def read_at(path: Path, offset: int, *flags: str) -> subprocess.Popen[str]:
    """Begin to read, past what the kernel has cached where the *flags* of dd(1) say direct."""
    words = ["dd", f"if={path}", "of=/dev/null", "bs=4k", "count=1", f"skip={offset // PAGE}", *flags]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)


def seconds_to_the_end(mounted: Mounted, end: Callable[[], object]) -> float:
    began = time.monotonic()
    end()
    mounted.status()
    return time.monotonic() - began


@pytest.mark.parametrize("end", ["fusermount3", "SIGTERM"])
@pytest.mark.parametrize("away", ["killed", "silent"])
def test_where_all_is_on_stable_storage_the_end_does_not_wait_for_the_target(
    away: str, end: str, serve: Serve, mount_hosts: MountHosts, tmp_path: Path, image: Path
) -> None:
    tgt, url = serve_disk(serve, tmp_path, image)
    mounted = mount_hosts(url, foreground=True)
    with holding(mounted.storage()) as holder:
        assert holder.write(fsync=True) == "done"
        holder.close()
    (tgt.kill if away == "killed" else tgt.freeze)()
    if end == "SIGTERM":
        took = seconds_to_the_end(mounted, lambda: mounted.signal(signal.SIGTERM))
    else:
        took = seconds_to_the_end(mounted, lambda: run("fusermount3", "-u", mounted.path))
    assert took < (1.5 if away == "killed" else LAST_LOGOUT_TIMEOUT + 1.5)
    assert mounted.status() == 0
    assert not mounted.is_mounted()


@pytest.mark.parametrize("end", ["SIGTERM", "abort"])
def test_a_read_that_waits_for_a_target_that_is_away_does_not_keep_the_process(
    end: str, serve: Serve, mount_hosts: MountHosts, tmp_path: Path, image: Path, fusectl: Path
) -> None:
    tgt, url = serve_disk(serve, tmp_path, image)
    mounted = mount_hosts(url, foreground=True)
    connection = fusectl / f"{os.minor(mounted.path.stat().st_dev)}"
    tgt.kill()
    with read_at(mounted.storage(), MIB, "iflag=direct") as reader:
        wait_until(lambda: (connection / "waiting").read_text() != "0\n", "it waits")
        time.sleep(0.2)  # for the request to be taken
        assert reader.poll() is None
        if end == "SIGTERM":
            took = seconds_to_the_end(mounted, lambda: mounted.signal(signal.SIGTERM))
        else:
            took = seconds_to_the_end(mounted, lambda: (connection / "abort").write_text("1"))
        assert "connection abort" in reader.communicate(timeout=10)[1]
    assert took < 3
    assert mounted.status() == 0
    assert not mounted.is_mounted()


@pytest.mark.parametrize("options", [(), ("-o", "direct_io"), ("-o", "writebehind=0")])
def test_what_a_mapping_has_changed_is_written_at_a_signal(
    options: tuple[str, ...], mount_hosts: MountHosts
) -> None:
    size = 48 * MIB
    with TestTarget(name=NAME, size=64 * MIB) as target:
        mounted = mount_hosts(*options, target.url, foreground=True)
        mapper = subprocess.Popen(
            [sys.executable, "-c", _MAPPER, mounted.storage(), str(size)], stdout=subprocess.PIPE
        )
        try:
            assert mapper.stdout is not None
            assert mapper.stdout.readline() == b"done\n"
            mounted.signal(signal.SIGTERM)
            assert mounted.status() == 0
        finally:
            mapper.kill()
            mapper.communicate()
        assert target.disk.read(0, size).count(b"m") == size


@contextmanager
def truncation_that_waits(mounted: Mounted, target: TestTarget) -> Iterator[subprocess.Popen[bytes]]:
    """Truncate while the kernel reads a page, of which the target does not answer the read; give the process
    that truncates."""
    truncater = subprocess.Popen(
        [sys.executable, "-c", _TRUNCATER, mounted.storage()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert truncater.stdin is not None
    assert truncater.stdout is not None
    assert truncater.stdout.readline() == b"open\n"
    target.clear()
    target.disk.delay("read", 3600)
    with read_at(mounted.storage(), MIB):
        try:
            target.wait_for("read")
            truncater.stdin.write(b"\n")
            truncater.stdin.flush()
            time.sleep(0.5)  # for the kernel to wait for that page
            assert truncater.poll() is None
            yield truncater
        finally:
            if mounted.is_mounted():
                run("umount", "-f", mounted.path, check=False)
            truncater.communicate(timeout=10)


def test_a_truncation_that_waits_for_a_page_does_not_keep_the_process(
    mount_hosts: MountHosts, require_root: None
) -> None:
    with TestTarget(name=NAME) as target:
        mounted = mount_hosts(target.url, foreground=True)
        with truncation_that_waits(mounted, target):
            mounted.signal(signal.SIGINT)
            time.sleep(0.2)
            mounted.signal(signal.SIGINT)
            assert mounted.status() == 7
        assert not mounted.is_mounted()


def test_a_process_that_is_killed_while_a_truncation_waits_for_a_page_ends_at_once(
    mount_hosts: MountHosts, require_root: None
) -> None:
    """A thread that waits in the kernel for an answer of its own process would keep both for ever."""
    with TestTarget(name=NAME) as target:
        mounted = mount_hosts(target.url, foreground=True)
        with truncation_that_waits(mounted, target) as truncater:
            assert mounted.process is not None
            mounted.process.kill()
            assert mounted.process.wait(5) == -signal.SIGKILL
            assert truncater.wait(5) == 1
            assert "not connected" in run("stat", mounted.path, check=False)


def end_with_writes_owed(mounted: Mounted, tgt: Tgt, holder: Holder) -> None:
    """Have 16 pages accepted that the target cannot take any more, and ask for the end, up to where it tells
    that it waits."""
    assert mounted.process is not None
    assert mounted.process.stderr is not None
    tgt.kill()
    assert [holder.write() for _ in range(16)] == ["done"] * 16
    mounted.signal(signal.SIGTERM)
    assert any(WAITING in line for line in mounted.process.stderr)


def test_a_second_signal_gives_up_what_is_not_written_and_tells_it(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path, image: Path
) -> None:
    tgt, url = serve_disk(serve, tmp_path, image)
    mounted = mount_hosts(url, foreground=True)
    assert mounted.process is not None
    assert mounted.process.stderr is not None
    with holding(mounted.storage()) as holder:
        end_with_writes_owed(mounted, tgt, holder)
        took = seconds_to_the_end(mounted, lambda: mounted.signal(signal.SIGINT))
    assert took < 1.5
    assert mounted.status() == 7
    assert (
        f"iscsifs: {NAME} LUN 1: data may be lost: {16 * PAGE} bytes were not written\n"
        in mounted.process.stderr
    )
    assert not mounted.is_mounted()


def test_what_is_not_written_is_written_when_the_target_is_back_in_time(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path, image: Path
) -> None:
    tgt, url = serve_disk(serve, tmp_path, image)
    mounted = mount_hosts(url, foreground=True)
    with holding(mounted.storage()) as holder:
        end_with_writes_owed(mounted, tgt, holder)
        tgt.start()
        assert mounted.status() == 0
    assert pages(image, 17) == bytes([*range(1, 17), 0])
    assert nobody_is_logged_in(tgt)
