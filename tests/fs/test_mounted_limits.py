"""What a mount bears: thousands of operations that wait for one unit, and no file descriptors."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.mounting import TIME, Mounted, MountHosts, iscsifs, run, wait_until
from support.targets import Daemon, Serve, Target, Tgt, Unit, make_image

NAME = "iqn.2026-01.example:disk"
OTHER = "iqn.2026-01.example:other"
MIB = 1 << 20
PAGE = 4096
READERS = 2000
LONGEST_READ = 1.0  # seconds, of a unit that answers

pytestmark = [pytest.mark.real, pytest.mark.mount]

# Reads one page in each of many threads, and tells which were not what they should have been.
_READERS = """import mmap, os, sys, threading
descriptor = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
wrong, count = [], int(sys.argv[2])
def read(number):
    page = mmap.mmap(-1, 4096)
    try:
        if os.preadv(descriptor, [page], number * 4096) != 4096 or page[:8] != number.to_bytes(8, "big"):
            wrong.append(number)
    except OSError as error:
        wrong.append(error.strerror)
threading.stack_size(64 << 10)
threads = [threading.Thread(target=read, args=[number]) for number in range(count)]
for thread in threads:
    thread.start()
print("under way", flush=True)
for thread in threads:
    thread.join()
print(wrong, flush=True)
"""

# Writes and synchronises with a file of its own, which takes as long as the target is away.
_WRITER = """import os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
for _ in sys.stdin:
    os.pwrite(descriptor, b"there" * 100, 4096)
    os.fsync(descriptor)
    print("done", flush=True)
"""


def url(daemon: Daemon, name: str) -> str:
    return f"iscsi://{daemon.portal}/{name}/{daemon.first_lun}"


def serve_disk(serve: Serve, directory: Path, name: str) -> Tgt:
    """Serve 16 MiB whose pages begin with their numbers."""
    image = directory / name.rpartition(":")[2]
    numbers = (number.to_bytes(8, "big") for number in range(16 * MIB // PAGE))
    image.write_bytes(b"".join(number.ljust(PAGE, b"-") for number in numbers))
    keys = {"DefaultTime2Wait": "0"}  # a lost session may come back at once
    return serve(Tgt(directory, Target(name, [Unit(image)], parameters=keys), io_threads=2))


def pid_of(mounted: Mounted) -> int:
    assert mounted.process is not None
    return mounted.process.pid


def processor_time(pid: int) -> float:
    """Return the seconds of processor time that process *pid* has used (proc(5): utime and stime)."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Return how many bytes of memory process *pid* has in use."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def addresses(pid: int) -> int:
    """Return how many bytes of addresses process *pid* has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def test_thousands_of_operations_wait_for_one_unit_and_the_other_is_served(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path, require_root: None
) -> None:
    stalled, good = (serve_disk(serve, tmp_path, name) for name in (NAME, OTHER))
    mounted = mount_hosts("-oping_interval=0", url(stalled, NAME), url(good, OTHER), foreground=True)
    pid = pid_of(mounted)
    assert mounted.storage().stat().st_size  # it has begun to serve
    before, idle = resident(pid), addresses(pid)
    stalled.freeze()
    words = [sys.executable, "-c", _READERS, str(mounted.storage()), str(READERS)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as readers:
        assert readers.stdout is not None
        assert readers.stdout.readline() == "under way\n"
        # Every request that is in work has memory of its own in the process.
        wait_until(lambda: addresses(pid) - idle > READERS * MIB, "all are in work")
        began = time.monotonic()
        for _ in range(10):
            assert run("dd", f"if={mounted.storage('other')}", "of=/dev/null", "bs=1M", "iflag=direct")
            assert len(os.listdir(mounted.target())) > 5
        assert time.monotonic() - began < 10 * LONGEST_READ
        assert resident(pid) - before < 128 * MIB
        used = processor_time(pid)
        time.sleep(0.5)
        assert processor_time(pid) - used < 0.25
        assert readers.poll() is None
        stalled.thaw()
        assert readers.communicate(timeout=TIME)[0] == "[]\n"
    wait_until(lambda: addresses(pid) - idle < 128 * MIB, "their memory is given back")
    mounted.unmount()
    assert mounted.process is not None
    (line,) = mounted.process.communicate()[1].splitlines()
    assert "have the same worldwide name" in line  # tgt makes it from numbers that each daemon counts from 1


def test_without_descriptors_a_mount_goes_on_and_a_lost_connection_waits_for_them(
    serve: Serve, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    tgt = serve_disk(serve, tmp_path, NAME)
    mounted = mount_hosts(url(tgt, NAME), foreground=True)
    pid = pid_of(mounted)
    run("prlimit", f"--pid={pid}", "--nofile=4:")
    content = mounted.storage().read_bytes()
    assert content == tgt.targets[0].units[0].image.read_bytes()
    words = [sys.executable, "-c", _WRITER, str(mounted.storage())]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        print(file=writer.stdin, flush=True)
        assert writer.stdout.readline() == "done\n"
        tgt.kill()
        tgt.start()
        used, began = processor_time(pid), time.monotonic()
        print(file=writer.stdin, flush=True)
        time.sleep(1.5)
        assert "storage" in os.listdir(mounted.target())
        assert os.readlink(mounted.target() / "targetname") == NAME
        assert mounted.storage().stat().st_size == len(content)
        assert processor_time(pid) - used < (time.monotonic() - began) / 4
        run("prlimit", f"--pid={pid}", "--nofile=1024:")
        assert writer.stdout.readline() == "done\n"
        writer.communicate()
    mounted.unmount()
    assert mounted.process is not None
    said = mounted.process.communicate()[1].splitlines()
    reason = f"{NAME}: {tgt.portal}: Too many open files; raise the limit with: ulimit -n; still trying"
    assert [line for line in said if "open files" in line] == [f"iscsifs: {reason}"]
    assert mounted.process.returncode == 0


def test_a_start_with_too_few_descriptors_fails_in_one_line_or_mounts_what_it_can(
    serve: Serve, tmp_path: Path
) -> None:
    """From where Python itself starts up to where there are enough for all; nothing is left behind."""
    units = [Unit(make_image(tmp_path / f"disk{number}", MIB)) for number in range(3)]
    targets = [Target(f"{NAME}{number}", [unit]) for number, unit in enumerate(units)]
    tgt = serve(Tgt(tmp_path, *targets, io_threads=1))
    path = tmp_path / "mnt"
    path.mkdir()
    mounted = Mounted(path)
    ends = []
    try:
        for limit in range(6, 32, 2):
            done = iscsifs(tgt.portal, path, limit=f"nofile={limit}")
            ends.append(done.returncode)
            if done.returncode in (0, 6):
                mounted.unmount()
            else:
                mounted.wait()
            for line in done.stderr.splitlines():
                assert line.startswith("iscsifs: ")
                assert "Too many open files" in line
                assert "ulimit -n" in line or "/dev/fuse" in line
            if done.returncode == 0:
                break
        assert ends[-1] == 0
        assert ends[0] == 1
        assert 2 in ends
        assert all(tgt.adm(op="show", mode="conn", tid=tgt.tid(target)) == "" for target in targets)
    finally:
        mounted.close()
