"""The bytes of real targets' disks, as programs read and write them."""

import errno
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.mounting import MountHosts, drop_caches, run
from support.targets import Daemon, Serve, Target, Unit, make_image

NAME = "iqn.2026-01.example:disk"
MIB = 1 << 20

pytestmark = [pytest.mark.real, pytest.mark.mount]


@pytest.fixture
def small_image(tmp_path: Path) -> Path:
    """A disk of 4 MiB."""
    return make_image(tmp_path / "small.img", 4 * MIB)


class Model:
    """A disk and the bytes that ought to be on it; all is read and written at places that *seed* chooses."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path = path
        self._choice = random.Random(seed)
        self.content = bytearray(path.stat().st_size)
        self._file = os.open(path, os.O_RDWR)

    def close(self) -> None:
        """Close the disk."""
        os.close(self._file)

    def reopen(self) -> None:
        """Close the disk, and open it again, which drops what the kernel has cached."""
        os.close(self._file)
        self._file = os.open(self._path, os.O_RDWR)

    def step(self) -> None:
        """Do something."""
        offset, size = self._place()
        actions = (self._write, self._read, lambda *_: os.fsync(self._file), lambda *_: self.reopen())
        (action,) = self._choice.choices(actions, (60, 35, 3, 2))
        action(offset, size)

    def _place(self) -> tuple[int, int]:
        """Return an offset and a length: small or large, on blocks or not, here and there at the end."""
        length = len(self.content)
        size = min(length, int(2 ** self._choice.uniform(0, 19)))
        offset = self._choice.randrange(length)
        if self._choice.random() < 0.4:
            size = max(512, size // 512 * 512)
            offset = offset // 512 * 512
        if self._choice.random() < 0.1:
            offset = length - self._choice.randrange(1, size + 1)
        return offset, size

    def _write(self, offset: int, size: int) -> None:
        data = self._choice.randbytes(size)
        written = os.pwrite(self._file, data, offset)
        assert written == min(size, len(self.content) - offset)
        self.content[offset : offset + written] = data[:written]

    def _read(self, offset: int, size: int) -> None:
        assert os.pread(self._file, size, offset) == self.content[offset : offset + size], (offset, size)


@pytest.mark.parametrize(
    ("options", "block_size"),
    [("", 512), ("-odirect_io", 512), ("-odirect_io,writebehind=0", 4096), ("-owritebehind=0", 512)],
)
def test_any_bytes_are_read_and_written(
    any_target: type[Daemon],
    options: str,
    block_size: int,
    serve: Serve,
    mount_hosts: MountHosts,
    small_image: Path,
    tmp_path: Path,
) -> None:
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(small_image, block_size=block_size)])))
    mounted = mount_hosts(*options.split(), f"iscsi://{daemon.portal}/{NAME}")
    model = Model(mounted.storage(), seed=len(options) + block_size)
    for _ in range(300):
        model.step()
    model.close()
    mounted.unmount()
    assert small_image.read_bytes() == model.content


def test_a_disk_ends(
    any_target: type[Daemon], serve: Serve, mount_hosts: MountHosts, small_image: Path, tmp_path: Path
) -> None:
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(small_image)])))
    mounted = mount_hosts(f"iscsi://{daemon.portal}/{NAME}")
    storage = mounted.storage()
    with open(storage, "r+b", buffering=0) as file:
        assert file.seek(0, os.SEEK_END) == 4 * MIB
        assert file.read(1) == b""
        for offset in (4 * MIB, 4 * MIB + 1, 1 << 40):
            assert os.pread(file.fileno(), 10, offset) == b""
            with pytest.raises(OSError, match="No space") as caught:
                os.pwrite(file.fileno(), b"x", offset)
            assert caught.value.errno == errno.ENOSPC
        assert os.pwrite(file.fileno(), b"abcdef", 4 * MIB - 3) == 3
        assert os.pread(file.fileno(), 100, 4 * MIB - 5) == b"\0\0abc"
    assert "No space left" in run("dd", "if=/dev/zero", f"of={storage}", "bs=3M", "count=2", check=False)
    assert storage.stat().st_size == 4 * MIB
    mounted.unmount()
    assert small_image.read_bytes() == bytes(4 * MIB)


def test_truncation_leaves_the_size_and_what_is_behind_its_end(
    any_target: type[Daemon], serve: Serve, mount_hosts: MountHosts, small_image: Path, tmp_path: Path
) -> None:
    content = random.Random(1).randbytes(4 * MIB)
    small_image.write_bytes(content)
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(small_image)])))
    mounted = mount_hosts(f"iscsi://{daemon.portal}/{NAME}")
    storage = mounted.storage()
    os.close(os.open(storage, os.O_WRONLY | os.O_TRUNC))
    os.truncate(storage, 5)
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        os.truncate(storage, 5 * MIB)
    content = bytes(5) + content[5:]  # after 0 bytes, 5 are so many zeros
    assert storage.stat().st_size == 4 * MIB
    assert storage.read_bytes() == content
    mounted.unmount()
    assert small_image.read_bytes() == content


def test_the_usual_programs_copy_disks(
    any_target: type[Daemon],
    serve: Serve,
    mount_hosts: MountHosts,
    require: Callable[..., None],
    small_image: Path,
    tmp_path: Path,
) -> None:
    require("qemu-img", "dd", "cmp")
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(small_image)])))
    mounted = mount_hosts(f"iscsi://{daemon.portal}/{NAME}")
    storage = mounted.storage()
    source = tmp_path / "source"
    content = bytearray(random.Random(2).randbytes(4 * MIB))
    source.write_bytes(content)

    run("cp", source, storage)
    run("cmp", source, storage)
    run("dd", f"if={source}", f"of={storage}", "bs=7k", "skip=2", "seek=9", "count=40", "conv=notrunc,fsync")
    content[9 * 7168 : 49 * 7168] = content[2 * 7168 : 42 * 7168]
    run("dd", f"if={source}", f"of={storage}", "bs=64k", "seek=48", "count=4", "oflag=direct", "conv=notrunc")
    content[3 * MIB : 3 * MIB + (4 << 16)] = source.read_bytes()[: 4 << 16]
    copy = tmp_path / "copy"
    run("dd", f"if={storage}", f"of={copy}", "bs=1M", "iflag=direct")
    assert copy.read_bytes() == content

    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", storage, tmp_path / "qcow2")
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, storage)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, storage)
    run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", tmp_path / "qcow2", storage)
    mounted.unmount()
    assert small_image.read_bytes() == content


@pytest.mark.parametrize("options", ["", "-odirect_io"])
def test_sixty_four_readers_and_writers(
    any_target: type[Daemon],
    options: str,
    serve: Serve,
    mount_hosts: MountHosts,
    require_root: None,
    tmp_path: Path,
) -> None:
    """Each writer has a region of its own, which ends within a block that it shares with the next one."""
    region, writers, readers = 100_001, 32, 32
    size = 8 * MIB
    image = tmp_path / "image"
    start = size - MIB  # what is only read
    fixed = random.Random(0).randbytes(MIB)
    image.write_bytes(bytes(start) + fixed)
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(image)])))
    mounted = mount_hosts(*options.split(), f"iscsi://{daemon.portal}/{NAME}")

    def write(number: int) -> bytes:
        choice = random.Random(number)
        with ExitStack() as stack:
            file = os.open(mounted.storage(), os.O_RDWR)
            stack.callback(os.close, file)
            content = bytearray(region)
            for _ in range(4):
                for _ in range(4):
                    offset = choice.randrange(region)
                    data = choice.randbytes(choice.randrange(1, region - offset + 1))
                    assert os.pwrite(file, data, number * region + offset) == len(data)
                    content[offset : offset + len(data)] = data
                if choice.random() < 0.5:
                    os.fsync(file)
                assert os.pread(file, region, number * region) == content
            return bytes(content)

    def read(number: int) -> None:
        choice = random.Random(number)
        with ExitStack() as stack:
            file = os.open(mounted.storage(), os.O_RDONLY)
            stack.callback(os.close, file)
            for _ in range(16):
                offset = choice.randrange(MIB)
                length = choice.randrange(1, 200_000)
                assert os.pread(file, length, start + offset) == fixed[offset : offset + length]

    with ThreadPoolExecutor(writers + readers) as pool:
        reads = [pool.submit(read, number) for number in range(readers)]
        contents = list(pool.map(write, range(writers)))
        for done in reads:
            done.result()
    expected = b"".join(contents).ljust(start, b"\0") + fixed
    drop_caches()
    assert mounted.storage().read_bytes() == expected
    mounted.unmount()
    assert image.read_bytes() == expected
