"""Real file systems, and fio, on real targets' disks: on `storage` itself and on loop devices."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.embedded import Embedded
from support.mounting import MountHosts, drop_caches, run, wait_until
from support.targets import Daemon, Istgt, Serve, Target, Tgt, Unit, make_image

NAME = "iqn.2026-01.example:disk"
MIB = 1 << 20

pytestmark = [pytest.mark.real, pytest.mark.mount]

MKFS = {
    "ext4": (["mkfs.ext4", "-q"], 64 * MIB),
    "xfs": (["mkfs.xfs", "-q"], 320 * MIB),
    "btrfs": (["mkfs.btrfs", "-q"], 128 * MIB),
}
CHECK = {
    "ext4": ["e2fsck", "-f", "-n"],
    "xfs": ["xfs_repair", "-n"],
    "btrfs": ["btrfs", "check", "--check-data-csum", "-q"],
}


@contextmanager
def loop_device(file: Path, direct_io: str) -> Iterator[str]:
    """Make a loop device of *file*, and wait at the end until it is gone."""
    device = run("losetup", "--find", "--show", f"--direct-io={direct_io}", file).strip()
    try:
        yield device
    finally:
        run("losetup", "-d", device)
        wait_until(lambda: str(file) not in run("losetup", "-a"), "the loop device is gone")


@contextmanager
def mounted_on(directory: Path, device: str) -> Iterator[Path]:
    """Mount *device* on *directory*."""
    directory.mkdir(exist_ok=True)
    run("mount", device, directory)
    try:
        yield directory
    finally:
        run("umount", directory)


def fill(directory: Path, files: dict[str, bytes]) -> None:
    """Write *files*, with fsync, without, and by cp(1)."""
    for number, (name, content) in enumerate(files.items()):
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        if number % 3 == 0:
            run("sync", path)
        elif number % 3 == 1:
            run("cp", path, path.with_suffix(".copy"))


def holds(directory: Path, files: dict[str, bytes]) -> None:
    """Check that *files* are there as they were written."""
    for number, (name, content) in enumerate(files.items()):
        path = directory / name
        assert path.read_bytes() == content, name
        if number % 3 == 1:
            assert path.with_suffix(".copy").read_bytes() == content, name


@pytest.mark.parametrize(
    ("kind", "file_system", "direct_io"),
    [
        (Embedded, "ext4", "on"),
        (Embedded, "xfs", "off"),
        (Embedded, "btrfs", "on"),
        *(
            (kind, *choice)
            for kind in (Tgt, Istgt)
            for choice in (("ext4", "on"), ("ext4", "off"), ("xfs", "on"), ("btrfs", "off"))
        ),
    ],
)
def test_a_file_system_lives_on_a_disk(
    kind: type[Daemon],
    file_system: str,
    direct_io: str,
    serve: Serve,
    mount_hosts: MountHosts,
    require: Callable[..., None],
    require_root: None,
    tmp_path: Path,
) -> None:
    mkfs, size = MKFS[file_system]
    require("losetup", mkfs[0], CHECK[file_system][0], "mount", "umount")
    image = make_image(tmp_path / "image", size)
    daemon = serve(kind(tmp_path, Target(NAME, [Unit(image)])))
    mounted = mount_hosts(f"iscsi://{daemon.portal}/{NAME}")
    choice = random.Random(file_system)
    files = {f"directory{n % 7}/file{n}": choice.randbytes(choice.randrange(200_000)) for n in range(60)}
    late = {"late": choice.randbytes(5 * MIB)}
    inner = tmp_path / "inner"
    with loop_device(mounted.storage(), direct_io) as loop:
        run(*mkfs, loop)
        with mounted_on(inner, loop):
            fill(inner, files)
        drop_caches()
        with mounted_on(inner, loop):
            holds(inner, files)
            fill(inner, late)
        drop_caches()
        run(*CHECK[file_system], loop)
        with mounted_on(inner, loop):
            holds(inner, late)
    run(*CHECK[file_system], mounted.storage())
    mounted.unmount()
    run(*CHECK[file_system], image)


def fio(file: object, *options: str) -> None:
    """Write blocks of any size at random places, and verify them."""
    run(
        "fio",
        "--name=verify",
        f"--filename={file}",
        "--rw=randrw",
        "--bsrange=512-192k",
        "--size=12M",
        "--randseed=1",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--allow_file_create=0",
        "--fallocate=none",
        "--fsync=64",
        *options,
    )


@pytest.mark.parametrize("options", ["", "-odirect_io"])
def test_fio_on_storage(
    any_target: type[Daemon],
    options: str,
    serve: Serve,
    mount_hosts: MountHosts,
    require: Callable[..., None],
    image: Path,
    tmp_path: Path,
) -> None:
    require("fio")
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(image)])))
    mounted = mount_hosts(*options.split(), f"iscsi://{daemon.portal}/{NAME}")
    fio(mounted.storage(), "--ioengine=libaio", "--iodepth=8", "--direct=1")
    fio(mounted.storage(), "--ioengine=psync", "--offset=32M")
    mounted.unmount()


def test_fio_on_a_loop_device(
    any_target: type[Daemon],
    serve: Serve,
    mount_hosts: MountHosts,
    require: Callable[..., None],
    require_root: None,
    image: Path,
    tmp_path: Path,
) -> None:
    require("fio", "losetup")
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(image)])))
    mounted = mount_hosts(f"iscsi://{daemon.portal}/{NAME}")
    for direct_io in ("on", "off"):
        with loop_device(mounted.storage(), direct_io) as loop:
            fio(loop, "--ioengine=libaio", "--iodepth=16", "--direct=1")
    mounted.unmount()
