"""What a mount bears: no memory for what is asked of it."""

import errno
import json
import mmap
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.embedded import Embedded
from support.mounting import TIME, Mounted, MountHosts, iscsifs, run, wait_until
from support.targets import Serve, Target, Unit, make_image

NAME = "iqn.2026-01.example:disk"
MIB = 1 << 20
WRITERS = 12
EACH = 4  # MiB of each writer, and of each reader
LONGEST = 20.0  # seconds that any call may take

pytestmark = [pytest.mark.real, pytest.mark.mount]

# Writes to the first half of the disk, and reads from the second, with several threads each, in pieces of
# 1 MiB and three turns. It tells what failed, what fsync has put on stable storage (the turn of each piece),
# and how long the longest call took.
_LOAD = """import json, mmap, os, sys, threading, time
path, count, each, flags, first = sys.argv[1], *map(int, sys.argv[2:])
MIB = 1 << 20
failures, stable, longest = [], {}, 0.0
def call(function, *arguments):
    global longest
    began = time.monotonic()
    try:
        return function(*arguments)
    except OSError as error:
        failures.append(error.errno)
    finally:
        longest = max(longest, time.monotonic() - began)
def write(writer):
    descriptor, piece = os.open(path, os.O_RDWR | flags), mmap.mmap(-1, MIB)
    for turn in range(first, first + 3):
        written = {}
        for number in range(writer * each, (writer + 1) * each):
            stable.pop(number, None)
            piece[:] = (turn << 32 | number).to_bytes(8, "big") * (MIB // 8)
            if call(os.pwritev, descriptor, [piece], number * MIB) == MIB:
                written[number] = turn
        failed = len(failures)
        call(os.fsync, descriptor)
        if len(failures) == failed:
            stable.update(written)
    call(os.close, descriptor)
def read(reader):
    descriptor, piece = os.open(path, os.O_RDONLY | flags), mmap.mmap(-1, MIB)
    for number in 3 * [*range(reader * each, (reader + 1) * each)]:
        number += count * each
        if call(os.preadv, descriptor, [piece], number * MIB) == MIB:
            if piece[:] != number.to_bytes(8, "big") * (MIB // 8):
                failures.append("wrong")
threads = [threading.Thread(target=work, args=[number]) for number in range(count) for work in (write, read)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps([failures, stable, longest]))
"""


def piece(number: int, turn: int = 0) -> bytes:
    return (turn << 32 | number).to_bytes(8, "big") * (MIB // 8)


@dataclass
class Disk:
    """A disk that is mounted, and loaded."""

    target: Embedded
    image: Path
    mounted: Mounted

    @property
    def pid(self) -> int:
        assert self.mounted.process is not None
        return self.mounted.process.pid

    def used(self, resource: str) -> int:
        """Return the bytes that count: all addresses ("as"), or those for what can be written to ("data")."""
        words = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(words[{"as": 0, "data": 5}[resource]]) * mmap.PAGESIZE

    def limit(self, resource: str, headroom: int) -> None:
        """Let the process have *headroom* bytes more than it has."""
        run("prlimit", f"--pid={self.pid}", f"--{resource}={self.used(resource) + headroom}:")

    def load(self, turn: int, *, direct: bool) -> set[object]:
        """Write *turn* and the next two, and read; return what failed."""
        return self.check(run(*self.command(turn, direct=direct)))

    def command(self, turn: int, *, direct: bool) -> list[str]:
        """Return what does that."""
        flags = os.O_DIRECT if direct else 0
        return [
            sys.executable,
            "-c",
            _LOAD,
            str(self.mounted.storage()),
            *map(str, (WRITERS, EACH, flags, turn)),
        ]

    def check(self, said: str) -> set[object]:
        """Have all that is said to be stable in the image; return what failed."""
        failures, stable, longest = json.loads(said)
        assert longest < LONGEST
        with open(self.image, "rb") as image:
            for number, turn in stable.items():
                image.seek(int(number) * MIB)
                assert image.read(MIB) == piece(int(number), turn), f"piece {number}"
        if not failures:
            assert len(stable) == WRITERS * EACH
        return {*failures}


@pytest.fixture
def disk(serve: Serve, mount_hosts: MountHosts, tmp_path: Path) -> Disk:
    image = tmp_path / "image"
    image.write_bytes(b"".join(map(piece, range(2 * WRITERS * EACH))))
    target = serve(Embedded(tmp_path, Target(NAME, [Unit(image)])))
    mounted = mount_hosts(f"iscsi://{target.portal}/{NAME}/{target.first_lun}", foreground=True)
    assert mounted.storage().stat().st_size == image.stat().st_size  # it has begun to serve
    return Disk(target, image, mounted)


@pytest.mark.parametrize(
    ("resource", "headroom", "direct"),
    [("as", 0, True), ("as", 8, False), ("as", 16, True), ("data", 32, False), ("data", 64, True)],
)
def test_when_memory_runs_out_requests_wait_or_fail_and_nothing_is_lost(
    disk: Disk, resource: str, headroom: int, direct: bool
) -> None:
    disk.limit(resource, headroom * MIB)
    assert disk.load(1, direct=direct) <= {errno.ENOMEM, errno.EIO}
    run("prlimit", f"--pid={disk.pid}", f"--{resource}=unlimited:")
    assert disk.load(4, direct=direct) == set()
    disk.mounted.unmount()
    assert disk.mounted.process is not None
    said = disk.mounted.process.communicate()[1].splitlines()
    if said or headroom < 32:  # with more it may just be enough
        assert said[0].startswith("iscsifs: memory runs short")
        assert said[0].endswith("ulimit -v")
        assert said[-1] == "iscsifs: there is enough memory again"
    assert disk.mounted.process.returncode == 0


def test_what_is_held_is_given_back_without_an_fsync(disk: Disk, tmp_path: Path) -> None:
    assert disk.load(1, direct=True) == set()  # after which there are idle workers, with their buffers
    source = tmp_path / "source"
    source.write_bytes(
        b"".join(piece(number, 7 * (number < WRITERS * EACH)) for number in range(2 * WRITERS * EACH))
    )
    disk.limit("data", -30 * MIB)  # which leaves nearly nothing of the reserve
    run("dd", f"if={source}", f"of={disk.mounted.storage()}", "bs=1M", "conv=notrunc,fsync")
    assert disk.image.read_bytes() == source.read_bytes()
    assert disk.load(8, direct=True) <= {errno.ENOMEM, errno.EIO}


def test_without_any_memory_requests_wait(disk: Disk) -> None:
    disk.limit("data", -44 * MIB)  # the reserve would not be enough
    words = ["dd", f"if={disk.mounted.storage()}", "of=/dev/null", "bs=1M", "iflag=direct"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as reader:
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(1)
        assert disk.mounted.process is not None
        assert disk.mounted.process.poll() is None
        run("prlimit", f"--pid={disk.pid}", "--data=unlimited:")
        assert reader.wait(TIME) == 0
    assert disk.load(1, direct=True) == set()


def test_while_what_is_held_cannot_be_written_requests_wait(disk: Disk) -> None:
    disk.limit("as", 8 * MIB)
    disk.target.kill()
    with subprocess.Popen(disk.command(1, direct=False), stdout=subprocess.PIPE, text=True) as load:
        with pytest.raises(subprocess.TimeoutExpired):
            load.wait(2)
        disk.target.start()
        disk.check(load.communicate(timeout=TIME)[0])
    run("prlimit", f"--pid={disk.pid}", "--as=unlimited:")
    assert disk.load(4, direct=False) == set()


def needed_by_modules() -> int:
    """Return the bytes of data that Python has with all modules of the program."""
    program = (
        "import iscsifs.cli, mmap; print(int(open('/proc/self/statm').read().split()[5]) * mmap.PAGESIZE)"
    )
    return int(run(sys.executable, "-c", program))


def test_a_start_with_too_little_memory_fails_in_one_line_or_what_is_mounted_works(
    disk: Disk, serve: Serve, tmp_path: Path
) -> None:
    """From what Python and all the modules need up to where there is enough."""
    enough = disk.used("data") + 12 * MIB
    target = serve(Embedded(tmp_path, Target(NAME, [Unit(make_image(tmp_path / "other", 16 * MIB))])))
    path = tmp_path / "limited"
    path.mkdir()
    mounted = Mounted(path)
    ends = []
    try:
        for limit in range(needed_by_modules() + 4 * MIB, enough, 6 * MIB):
            done = iscsifs(target.portal, path, limit=f"data={limit}")
            ends.append(done.returncode)
            if done.returncode == 0:
                run("dd", f"if={mounted.storage()}", "of=/dev/null", "bs=1M", "iflag=direct")
                run(
                    "dd", "if=/dev/zero", f"of={mounted.storage()}", "bs=1M", "count=16", "conv=fsync,notrunc"
                )
                mounted.unmount()
                assert done.stderr == "" or done.stderr.count("\n") == 1
                assert "memory runs short" in done.stderr or not done.stderr
            else:
                (line,) = done.stderr.splitlines()
                assert line.startswith("iscsifs: ")
                assert line.endswith("Cannot allocate memory; raise the limit with: ulimit -v")
                assert not mounted.is_mounted()
        assert ends[0] == 2
        assert ends[-1] == 0
        assert ends == sorted(ends, reverse=True)
    finally:
        mounted.close()
        wait_until(lambda: not mounted.pids, "it has ended")
