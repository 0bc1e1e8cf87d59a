"""What other programs see of a disk while it is truncated, written, mapped and filled to its end."""

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import SUPPORT
from support.mounted_units import Mounted, MountMemory, as_nobody
from support.mounting import run

MIB = 1 << 20
SIZE = 16 * MIB + 1536
TIMES = 300
LINUX = tuple(int(number) for number in platform.release().split(".")[:2])

pytestmark = pytest.mark.mount

direct_or_not = pytest.mark.parametrize("direct_io", ["direct_io=0", "direct_io=1"])

# Opens its argument O_TRUNC again and again, and says so at the end.
_TRUNCATE = f"""import os, sys
for _ in range({TIMES}):
    os.close(os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC))
"""

# Reads a mapping until its standard input ends: private where the second argument is "private".
_READ_MAPPING = """import mmap, os, select, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
flags = mmap.MAP_PRIVATE if sys.argv[2] == "private" else mmap.MAP_SHARED
pages = mmap.mmap(descriptor, os.fstat(descriptor).st_size // 4096 * 4096, flags)
print("ready", flush=True)
rounds = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    assert all(pages[offset] == 120 for offset in range(0, len(pages), 4096))
    if sys.argv[2] == "shared":
        pages[8192:8195] = b"xxx"
        pages.flush()
    rounds += 1
print(rounds, flush=True)
"""


class Meanwhile:
    """Repeats *look* in a thread; `complaints` are what it has raised, the first of them only."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._over = threading.Event()
        self.rounds = 0
        self.complaints: list[Exception] = []
        self._thread = threading.Thread(target=self._repeat)

    def __enter__(self) -> "Meanwhile":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _repeat(self) -> None:
        while not self._over.is_set():
            try:
                self._look()
            except Exception as exc:
                self.complaints.append(exc)
                return
            self.rounds += 1


def truncate_often(path: Path) -> None:
    subprocess.run([sys.executable, "-c", _TRUNCATE, path], check=True, timeout=60)


def truncate_during(look: Callable[[], None], path: Path) -> None:
    """Truncate until there were enough looks at *path*, and see that none has found anything wrong."""
    with Meanwhile(look) as meanwhile:
        for _ in range(20):  # on a busy machine the first is over before there were any
            truncate_often(path)
            if meanwhile.rounds > 10 or meanwhile.complaints:
                break
    assert not meanwhile.complaints
    assert meanwhile.rounds > 10


def filled(mounted: Mounted) -> Path:
    mounted.storage.write_bytes(b"x" * SIZE)
    return mounted.storage


@pytest.fixture
def loop_device(require_root: None) -> Iterator[Callable[[Path, str], Path]]:
    with contextlib.ExitStack() as stack:

        def attach(path: Path, direct: str) -> Path:
            loop = Path(run("losetup", "--find", "--show", f"--direct-io={direct}", path).strip())
            stack.callback(run, "losetup", "-d", loop)
            return loop

        yield attach


@direct_or_not
@pytest.mark.parametrize("direct", ["on", "off"])
def test_o_trunc_of_others_is_no_error_for_a_loop_device(
    direct_io: str, direct: str, mount: MountMemory, loop_device: Callable[[Path, str], Path]
) -> None:
    path = filled(mount(f"{SIZE}", direct_io))
    descriptor = os.open(loop_device(path, direct), os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, 65536)
    page[:] = b"x" * 65536

    def look() -> None:
        assert os.pwrite(descriptor, page, 65536) == 65536
        for offset in range(0, 16 * MIB, 4 * MIB):
            assert os.preadv(descriptor, [page], offset) == 65536
            assert page[:] == b"x" * 65536

    try:
        truncate_during(look, path)
    finally:
        os.close(descriptor)


@direct_or_not
def test_o_trunc_of_others_is_no_end_for_a_reader(direct_io: str, mount: MountMemory) -> None:
    path = filled(mount(f"{SIZE}", direct_io))
    descriptor = os.open(path, os.O_RDONLY)

    def look() -> None:
        assert os.fstat(descriptor).st_size == SIZE
        for offset in range(0, SIZE, MIB):
            assert len(os.pread(descriptor, MIB, offset)) == min(MIB, SIZE - offset)

    try:
        truncate_during(look, path)
    finally:
        os.close(descriptor)


@direct_or_not
@pytest.mark.parametrize("kind", ["private", "shared"])
def test_o_trunc_of_others_is_no_signal_for_a_mapping(direct_io: str, kind: str, mount: MountMemory) -> None:
    if LINUX < (6, 6) and (direct_io, kind) == ("direct_io=1", "shared"):
        pytest.skip("this kernel does not map such files")
    path = filled(mount(f"{SIZE}", direct_io))
    with subprocess.Popen(
        [sys.executable, "-c", _READ_MAPPING, path, kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        truncate_often(path)
        output, _ = reader.communicate(timeout=20)
    assert reader.returncode == 0
    assert int(output) > 0
    assert path.read_bytes() == b"x" * SIZE


@pytest.mark.skipif(LINUX < (6, 6), reason="this kernel does not map such files")
def test_a_shared_mapping_and_direct_io_see_each_other(mount: MountMemory) -> None:
    mounted = mount(f"{MIB}", "direct_io=1")
    with open(mounted.storage, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), MIB) as pages:
        assert pages[:3] == bytes(3)
        pages[:3] = b"one"
        assert os.pread(file.fileno(), 3, 0) == b"one"
        os.pwrite(file.fileno(), b"two", 0)
        assert pages[:3] == b"two"
        pages[5000:5005] = b"three"
        other = os.open(mounted.storage, os.O_RDWR | os.O_DIRECT)
        aligned = mmap.mmap(-1, 8192)
        assert os.preadv(other, [aligned], 0) == 8192
        assert (aligned[:3], aligned[5000:5005]) == (b"two", b"three")
        aligned[:4] = b"four"
        assert os.pwrite(other, aligned, 0) == 8192
        assert pages[:4] == b"four"
        os.close(other)
        pages[:4] = b"five"
        pages.flush()
    assert mounted.storage.read_bytes()[:4] == b"five"


@direct_or_not
def test_dd_fills_a_disk_and_finds_no_space(direct_io: str, mount: MountMemory) -> None:
    path = filled(mount(f"{SIZE}", direct_io))
    for extra in [], ["oflag=direct"], ["oflag=direct", "iflag=fullblock"]:
        path.write_bytes(b"x" * SIZE)
        for size in "bs=1M", "bs=3M", "bs=64k":
            said = run("dd", "if=/dev/zero", f"of={path}", size, *extra, check=False)
            assert "No space left on device" in said
            assert path.read_bytes() == bytes(SIZE)


@direct_or_not
@pytest.mark.parametrize("way", ["native", "io_uring"])
def test_asynchronous_writes_across_the_end_find_no_space(
    direct_io: str, way: str, mount: MountMemory
) -> None:
    path = filled(mount(f"{SIZE}", direct_io))
    program = SUPPORT / "aio_write.py"
    done = subprocess.run(
        [sys.executable, program, path, way, f"{16 * MIB}", "4096"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert int(done.stdout) == -errno.ENOSPC
    assert path.read_bytes()[16 * MIB :] == b"y" * 1536


@direct_or_not
def test_a_write_across_the_end_is_short_and_then_finds_no_space(direct_io: str, mount: MountMemory) -> None:
    path = filled(mount(f"{SIZE}", direct_io))
    with open(path, "r+b", buffering=0) as file:
        file.seek(SIZE - 1000)
        assert file.write(b"y" * 4096) == 1000
        with pytest.raises(OSError, match="No space"):
            file.write(b"y" * 4096)
        assert os.pwrite(file.fileno(), b"", SIZE) == 0
        os.fsync(file.fileno())
    assert path.stat().st_size == SIZE


@direct_or_not
def test_shred_stays_within_the_disk(direct_io: str, mount: MountMemory) -> None:
    path = filled(mount(f"{SIZE}", direct_io))
    assert run("shred", "-n", "1", path) == ""
    assert run("shred", "-n", "0", "-z", path) == ""
    assert path.read_bytes() == bytes(SIZE)


def changes(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_ctime_ns


@direct_or_not
def test_mtime_follows_every_way_to_write(direct_io: str, mount: MountMemory) -> None:
    path = filled(mount(f"{SIZE}", direct_io))
    other_name = path.parent / "lun0/storage"
    assert other_name.samefile(path)
    last = changes(path)
    assert changes(other_name) == last

    def moved() -> bool:
        nonlocal last
        before, last = last, changes(other_name)
        assert changes(path) == last
        return last[0] > before[0] and last[1] > before[1]

    assert not moved()
    path.read_bytes()
    assert not moved()
    with open(path, "r+b", buffering=0) as file:
        assert not moved()
        file.write(b"y")
        assert moved()
        if direct_io == "direct_io=0" or LINUX >= (6, 6):
            with mmap.mmap(file.fileno(), 4096) as pages:
                pages[:1] = b"z"
                pages.flush()
                os.fsync(file.fileno())
            assert moved()
    assert not moved()
    run("dd", "if=/dev/zero", f"of={path}", "bs=4k", "count=1", "oflag=direct", "conv=notrunc")
    assert moved()


def test_what_compares_times_sees_a_write(mount: MountMemory, tmp_path: Path) -> None:
    path = filled(mount(f"{SIZE}"))
    stamp = tmp_path / "stamp"
    run("cp", "-p", path, stamp)
    assert run("find", path, "-newer", stamp) == ""
    with open(path, "r+b") as file:
        file.write(b"y")
    assert run("find", path, "-newer", stamp) == f"{path}\n"


def test_rsync_copies_a_disk_that_has_changed(
    mount: MountMemory, tmp_path: Path, require: Callable[..., None]
) -> None:
    require("rsync")
    path = filled(mount(f"{SIZE}"))
    copy = tmp_path / "copy"
    os.utime(path, (986083200, 986083200))  # it compares whole seconds
    run("rsync", "-a", path, copy)
    assert run("rsync", "-ai", path, copy) == ""
    with open(path, "r+b") as file:
        file.write(b"changed")
    assert run("rsync", "-ai", path, copy) != ""
    assert copy.read_bytes()[:7] == b"changed"


def test_times_that_are_set_are_kept(mount: MountMemory) -> None:
    path = filled(mount(f"{SIZE}"))
    run("touch", "-d", "2001-04-01 UTC", path)
    assert run("stat", "-c", "%X %Y", path) == "986083200 986083200\n"
    run("touch", "-a", path)
    assert path.stat().st_atime > 986083200 == path.stat().st_mtime
    run("touch", path)
    assert time.time() - path.stat().st_mtime < 60


def test_cp_keeps_the_attributes_of_a_file_that_is_like_the_disk(mount: MountMemory, tmp_path: Path) -> None:
    mounted = mount(f"{SIZE}", f"{SIZE}")
    image = tmp_path / "image"
    image.write_bytes(os.urandom(SIZE))
    image.chmod(0o600)
    os.utime(image, ns=(986083200_000000001, 986083200_000000001))
    # cp -a first removes what has several names, as target/storage has.
    for option, path in ("-p", mounted.storage), ("-a", mounted.path / "host/disk/lun1/storage"):
        assert run("cp", option, image, path) == ""
        run("cmp", image, path)
        assert path.stat().st_mtime_ns == 986083200_000000001


def test_owner_and_mode_can_be_what_they_are_and_nothing_else(mount: MountMemory) -> None:
    path = mount(f"{MIB}").storage
    assert run("chmod", "600", path) == ""
    assert run("chown", f"{os.getuid()}:{os.getgid()}", path) == ""
    assert "not permitted" in run("chmod", "644", path, check=False)
    assert "not permitted" in run("chown", "1", path, check=False)
    status = path.stat()
    assert (status.st_mode & 0o777, status.st_uid) == (0o600, os.getuid())
    assert os.listxattr(path) == []


def test_pages_are_dropped_when_somebody_else_may_have_written(mount: MountMemory) -> None:
    mounted = mount(f"{MIB}")
    with (
        open(mounted.storage, "rb", buffering=0) as file,
        mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ) as pages,
    ):
        assert file.read(16) == pages[:16] == bytes(16)
        before = changes(mounted.storage)
        mounted.signal(signal.SIGUSR2)
        deadline = time.monotonic() + 5
        while os.pread(file.fileno(), 16, 0) != b"written by other":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert pages[:16] == b"written by other"
        assert changes(mounted.storage) > before


def test_writes_leave_the_pages_of_readers(mount: MountMemory) -> None:
    path = filled(mount(f"{SIZE}"))
    with open(path, "r+b", buffering=0) as file:
        assert len(file.read(8 * MIB)) == 8 * MIB
        for number in range(3):
            before = changes(path)
            os.pwrite(file.fileno(), b"y", 12 * MIB + number)
            assert changes(path) > before  # so the kernel has seen the new time
        assert cached_pages(file.fileno(), 8 * MIB) == 8 * MIB // mmap.PAGESIZE


def cached_pages(descriptor: int, size: int) -> int:
    """Return how many pages of the first *size* bytes are cached (mincore(2))."""
    pages = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
    with mmap.mmap(descriptor, size) as mapping:
        start = ctypes.c_char.from_buffer(mapping)
        libc = ctypes.CDLL(None, use_errno=True)
        result = libc.mincore(ctypes.byref(start), ctypes.c_size_t(size), pages)
        del start
    assert result == 0, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in pages)


def test_an_exclusive_disk_has_one_writer(mount: MountMemory) -> None:
    mounted = mount(f"{MIB}", "exclusive=1")
    with open(mounted.storage, "r+b", buffering=0):
        said = run("mkfs.ext4", "-q", "-F", mounted.path / "host/disk/lun0/storage", check=False)
        assert "busy" in said
        assert mounted.storage.read_bytes() == bytes(MIB)
    for _ in range(20):  # as soon as it is closed
        with open(mounted.storage, "r+b", buffering=0) as file:
            file.read(4096)


def test_df_is_not_alarmed(mount: MountMemory) -> None:
    mounted = mount(*[f"{MIB}"] * 3)
    for option in [], ["-i"]:
        assert f"{mounted.path}" not in run("df", *option, check=False)
        assert run("df", *option, mounted.path).splitlines()[1].split()[1:5] == ["0", "0", "0", "-"]


@pytest.fixture
def connections(tmp_path: Path, require_root: None) -> Iterator[Path]:
    path = tmp_path / "connections"
    path.mkdir()
    run("mount", "-t", "fusectl", "fusectl", path)
    yield path
    run("umount", path)


def device_of(path: Path) -> int:
    """Return the minor number of what is mounted on *path*, which only its user may look into."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    (device,) = [words[2] for words in map(str.split, lines) if words[4] == f"{path}"]
    return int(device.partition(":")[2])


def test_an_ordinary_user_has_as_many_requests_as_the_kernel_allows(
    for_nobody: Callable[..., Mounted], connections: Path
) -> None:
    allowed = int(Path("/sys/module/fuse/parameters/max_user_bgreq").read_text())
    path = for_nobody(f"{MIB}", "options=auto_unmount").path
    number = f"{device_of(path)}"
    assert int((connections / number / "max_background").read_text()) == min(4096, allowed) > 12


def test_an_ordinary_user_s_disk_is_not_disturbed_by_o_trunc(for_nobody: Callable[..., Mounted]) -> None:
    path = for_nobody(f"{SIZE}").storage
    script = "import os, sys\nreader = os.open(sys.argv[1], os.O_RDONLY)\n" + _TRUNCATE
    script += (
        f"    assert os.fstat(reader).st_size == {SIZE}\n    assert len(os.pread(reader, 9, 4096)) == 9\n"
    )
    as_nobody(sys.executable, "-c", script, path)


def test_with_libfuse_s_own_answer_o_trunc_is_refused_while_it_would_disturb(mount: MountMemory) -> None:
    path = filled(mount(f"{SIZE}", "plain_init=1"))
    with open(path, "rb", buffering=0) as reader:
        with pytest.raises(OSError, match="busy"):
            path.write_bytes(b"y")
        assert os.fstat(reader.fileno()).st_size == SIZE
        assert len(reader.read(16)) == 16
    path.write_bytes(b"y")
    assert path.read_bytes() == b"y" + b"x" * (SIZE - 1)
