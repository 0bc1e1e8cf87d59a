"""The file system as the kernel and the usual programs see it, with units in memory."""

import contextlib
import errno
import mmap
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from iscsifs.errors import ConfigError
from iscsifs.fs.background import Ready, run_in_background
from iscsifs.fs.mount import check_mount_point
from support import MODULES
from support.descriptors import opened
from support.mounted_units import MEMORY_MOUNT, NOBODY, Mounted, MountMemory, as_nobody
from support.mounting import run

MIB = 1 << 20


pytestmark = pytest.mark.mount


def test_the_usual_programs_see_a_tree(mount: MountMemory) -> None:
    mounted = mount(f"{MIB}", f"{MIB}")
    assert run("ls", mounted.path).split() == ["by-id", "host"]
    assert run("readlink", mounted.path / "by-id/naa.1") == "../host/disk/lun1\n"
    assert (mounted.path / "by-id/naa.0/storage").samefile(mounted.storage)
    assert run("stat", "-c", "%h %s %a %o %b", mounted.storage) == f"2 {MIB} 600 {MIB} {MIB // 512}\n"
    found = run("find", mounted.path, "-name", "storage").splitlines()
    assert sorted(Path(path).parent.name for path in found) == ["disk", "lun0", "lun1"]
    assert run("df", "--output=source,fstype,size", mounted.path).splitlines()[1].split() == [
        "iscsifs",
        "fuse.iscsifs",
        "0",
    ]
    with pytest.raises(PermissionError):
        (mounted.path / "new").touch()


def test_many_entries_are_all_listed_once(mount: MountMemory) -> None:
    mounted = mount(*["512"] * 300)
    names = os.listdir(mounted.path / "host/disk")
    assert len(names) == len(set(names)) == 300 + 9
    assert len(os.listdir(mounted.path / "by-id")) == 300


def test_cp_dd_and_cmp_work_on_storage(mount: MountMemory, tmp_path: Path) -> None:
    mounted = mount(f"{8 * MIB}")
    image = tmp_path / "image"
    image.write_bytes(os.urandom(8 * MIB))
    run("cp", image, mounted.storage)
    run("cmp", image, mounted.storage)
    assert mounted.storage.stat().st_size == 8 * MIB
    run("dd", f"if={image}", f"of={mounted.storage}", "bs=64k", "skip=1", "seek=3", "count=5", "oflag=direct")
    content = bytearray(image.read_bytes())
    content[3 << 16 : 8 << 16] = content[1 << 16 : 6 << 16]
    assert mounted.storage.read_bytes() == content
    copy = tmp_path / "copy"
    run("dd", f"if={mounted.storage}", f"of={copy}", "bs=1M", "iflag=direct")
    assert copy.read_bytes() == content


def test_a_disk_has_an_end(mount: MountMemory) -> None:
    mounted = mount(f"{MIB}")
    with open(mounted.storage, "r+b", buffering=0) as file:
        assert file.seek(0, os.SEEK_END) == MIB
        assert file.read(1) == b""
        with pytest.raises(OSError, match="No space") as caught:
            file.write(b"x")
        assert caught.value.errno == errno.ENOSPC
        file.seek(MIB - 3)
        assert file.write(b"abcdef") == 3
        file.seek(MIB - 3)
        assert file.read() == b"abc"
    run("truncate", "-s", "0", mounted.storage)
    assert mounted.storage.stat().st_size == MIB
    assert mounted.storage.read_bytes()[-3:] == b"abc"
    assert "No space left" in run("dd", "if=/dev/zero", f"of={mounted.storage}", "bs=1M", check=False)
    assert mounted.storage.stat().st_size == MIB


def test_fsync_flushes_and_unmounting_ends_the_program(mount: MountMemory) -> None:
    mounted = mount(f"{MIB}")
    with open(mounted.storage, "r+b", buffering=0) as file:
        file.write(b"0123456789abcdef")
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
    run("fusermount3", "-u", mounted.path)
    assert mounted.wait() == [(2, b"0123456789abcdef".hex())]


def test_what_mmap_has_changed_is_written_at_the_end(mount: MountMemory) -> None:
    mounted = mount(f"{MIB}")
    with opened(mounted.storage) as descriptor, mmap.mmap(descriptor, 4096) as pages:
        pages[:16] = b"0123456789abcdef"
        mounted.signal(signal.SIGTERM)
        assert mounted.wait() == [(0, b"0123456789abcdef".hex())]


def test_a_signal_ends_it_while_files_are_open(mount: MountMemory) -> None:
    mounted = mount(f"{MIB}")
    with opened(mounted.storage) as descriptor:
        os.write(descriptor, b"x")
        mounted.signal(signal.SIGTERM)
        mounted.wait()
        with pytest.raises(OSError, match="not connected|abort"):
            os.read(descriptor, 1)


def test_a_resize_is_seen(mount: MountMemory) -> None:
    mounted = mount(f"{MIB}")
    with open(mounted.storage, "r+b", buffering=0) as file:
        assert os.fstat(file.fileno()).st_size == MIB
        mounted.signal(signal.SIGUSR1)
        deadline = time.monotonic() + 5
        while os.fstat(file.fileno()).st_size != 2 * MIB:
            assert time.monotonic() < deadline
        file.seek(2 * MIB - 3)
        assert file.write(b"abcdef") == 3


def test_a_unit_that_is_away_does_not_stop_the_others(mount: MountMemory, require_root: None) -> None:
    mounted = mount("0", f"{MIB}")
    away = mounted.path / "host/disk/lun0/storage"
    with contextlib.ExitStack() as stack:
        # More than pyfuse3 takes by default, and more than the kernel has in the background.
        descriptors = [stack.enter_context(opened(away, os.O_RDWR | os.O_DIRECT)) for _ in range(150)]
        pool = stack.enter_context(ThreadPoolExecutor(len(descriptors)))
        stack.enter_context(contextlib.closing(mounted))
        reads = [pool.submit(os.read, descriptor, 4096) for descriptor in descriptors]
        time.sleep(0.3)
        assert not any(read.done() for read in reads)
        assert (mounted.path / "host/disk/lun1/storage").read_bytes() == bytes(MIB)
        assert len(os.listdir(mounted.path)) == 2
        mounted.close()
        for read in reads:
            assert isinstance(read.exception(timeout=5), OSError)


def test_direct_io_bypasses_the_page_cache(mount: MountMemory) -> None:
    mounted = mount(f"{MIB}", "direct_io=1")
    with open(mounted.storage, "r+b", buffering=0) as file:
        file.seek(100)
        assert file.write(b"abc") == 3
        file.seek(100)
        assert file.read(3) == b"abc"


@pytest.mark.parametrize("setting", ["read_only=1", "options=ro"])
def test_a_read_only_unit_cannot_be_opened_for_writing(mount: MountMemory, setting: str) -> None:
    mounted = mount(f"{MIB}", setting)
    with pytest.raises(OSError, match="Read-only file system"):
        os.open(mounted.storage, os.O_RDWR)
    assert mounted.storage.read_bytes() == bytes(MIB)


@pytest.mark.usefixtures("require_root")
@pytest.mark.parametrize("direct", ["on", "off"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_file_systems_live_on_loop_devices(
    mount: MountMemory,
    require: Callable[..., None],
    require_root: None,
    tmp_path: Path,
    kind: str,
    direct: str,
) -> None:
    require("losetup", f"mkfs.{kind}", "blkid", "file", "mount", f"fsck.{kind}", "e2fsck", "xfs_repair")
    mounted = mount(f"{(320 if kind == 'xfs' else 32) * MIB}")
    inner = tmp_path / "inner"
    inner.mkdir()
    check = ["e2fsck", "-f", "-n"] if kind == "ext4" else ["xfs_repair", "-n"]
    content = os.urandom(3 * MIB)
    with contextlib.ExitStack() as stack:
        loop = run("losetup", "--find", "--show", f"--direct-io={direct}", mounted.storage).strip()
        stack.callback(run, "losetup", "-d", loop)
        run(f"mkfs.{kind}", "-q", loop)
        for _ in range(2):
            run("mount", loop, inner)
            with contextlib.ExitStack() as inside:
                inside.callback(run, "umount", inner)
                file = inner / "file"
                if file.exists():
                    assert file.read_bytes() == content
                file.write_bytes(content)
        run(*check, loop)
    assert f'TYPE="{kind}"' in run("blkid", "-p", mounted.storage)
    assert kind in run("file", "-s", mounted.storage).lower()
    run(*check, mounted.storage)
    run("fusermount3", "-u", mounted.path)
    ((flushes, _),) = mounted.wait()
    assert flushes > 0


def test_qemu_img_converts_to_and_from_storage(
    mount: MountMemory, require: Callable[..., None], tmp_path: Path
) -> None:
    require("qemu-img")
    mounted = mount(f"{4 * MIB}")
    image, copy = tmp_path / "image", tmp_path / "copy.qcow2"
    image.write_bytes(os.urandom(4 * MIB))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, mounted.storage)
    run("cmp", image, mounted.storage)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", mounted.storage, copy)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, copy)


def test_an_ordinary_user_can_mount_and_unmount(for_nobody: Callable[..., Mounted]) -> None:
    mounted = for_nobody(f"{MIB}")
    assert as_nobody("stat", "-c", "%u %a", mounted.storage) == f"{NOBODY} 600\n"
    as_nobody("sh", "-c", f"echo -n 0123456789abcdef >{mounted.storage}")
    assert as_nobody("head", "-c", "16", mounted.storage) == "0123456789abcdef"
    as_nobody("fusermount3", "-u", mounted.path)
    assert mounted.wait() == [(0, b"0123456789abcdef".hex())]


def test_an_ordinary_user_s_mount_ends_with_a_signal(for_nobody: Callable[..., Mounted]) -> None:
    mounted = for_nobody(f"{MIB}")
    mounted.signal(signal.SIGTERM)
    mounted.wait()


def test_only_a_usable_mount_point_is_taken(tmp_path: Path, mount: MountMemory) -> None:
    file = tmp_path / "file"
    file.touch()
    full = tmp_path / "full"
    (full / "something").mkdir(parents=True)
    mounted = mount(f"{MIB}")
    for path, complaint in [
        (tmp_path / "nothing", "no such directory"),
        (file, "not a directory"),
        (full, "not empty"),
        (mounted.path, "mounted there already"),
    ]:
        with pytest.raises(ConfigError, match=complaint) as caught:
            check_mount_point(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_mount_whose_program_has_died_is_named(tmp_path: Path, mount: MountMemory) -> None:
    mounted = mount(f"{MIB}")
    mounted.signal(signal.SIGKILL)
    mounted._process.wait()
    with pytest.raises(ConfigError, match="has died; unmount with: ") as caught:
        check_mount_point(mounted.path)
    run(*str(caught.value).partition("unmount with: ")[2].split())
    check_mount_point(mounted.path)


def test_what_fuse_complains_of_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    done = subprocess.run(
        [*MEMORY_MOUNT, tmp_path / "mnt", "512", "options=nonsense"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": MODULES},
    )
    complaint = done.stderr.splitlines()[-1]
    assert f"{tmp_path / 'mnt'}: cannot mount: fuse: unknown option(s): `-o nonsense'" in complaint
    assert not os.path.ismount(tmp_path / "mnt")


def test_the_foreground_returns_when_the_background_is_ready(tmp_path: Path) -> None:
    report = tmp_path / "report"

    def serve(ready: Ready) -> int:
        session = os.getsid(0)
        ready(6)
        described = os.readlink("/proc/self/fd/1"), os.getcwd(), os.getsid(0) == session
        (tmp_path / "new").write_text(repr(described))
        (tmp_path / "new").rename(report)
        return 0

    assert run_in_background(serve) == 6
    deadline = time.monotonic() + 5
    while not report.exists():
        assert time.monotonic() < deadline
    assert report.read_text() == repr(("/dev/null", "/", False))


def test_the_foreground_has_the_status_of_what_fails_before() -> None:
    assert run_in_background(lambda ready: 4) == 4


def test_the_foreground_tells_that_the_background_was_killed() -> None:
    def serve(ready: Ready) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert run_in_background(serve) == 128 + signal.SIGKILL


@pytest.mark.parametrize("delay", [0.0, 0.2])
def test_a_signal_to_the_foreground_reaches_the_background(
    monkeypatch: pytest.MonkeyPatch, delay: float
) -> None:
    fork = os.fork

    def slow_fork() -> int:
        if child := fork():
            time.sleep(delay)  # the signal comes before we return
        return child

    monkeypatch.setattr(os, "fork", slow_fork)

    def serve(ready: Ready) -> int:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(5)
        return 0

    handler = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert run_in_background(serve) == 9
    finally:
        signal.signal(signal.SIGTERM, handler)
