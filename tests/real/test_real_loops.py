"""Loop devices that the program attaches, on a real kernel: as root only."""

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.machine import absent
from support.mounting import Mounted, MountHosts, iscsifs, run, wait_until
from support.served import served
from support.targets import Serve, Target, Tgt, Unit, make_image

NAME = "iqn.2001-04.com.example:disk"
MIB = 1 << 20
SIZE = 32 * MIB

pytestmark = [pytest.mark.real, pytest.mark.mount]


@pytest.fixture(autouse=True)
def loop_devices(require_root: None, require: Callable[..., None], tmp_path: Path) -> Iterator[None]:
    """Require them, and detach what a test leaves behind that has failed."""
    require("losetup", "mkfs.ext4", "blockdev")
    if not os.path.exists("/dev/loop-control"):
        absent("/dev/loop-control: load the module loop")
    yield
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        if file.read_text().startswith(f"{tmp_path}/"):
            run("losetup", "-d", f"/dev/{file.parts[3]}", check=False)


@pytest.fixture
def tgt(tmp_path: Path, serve: Serve, request: pytest.FixtureRequest) -> Tgt:
    block_size = getattr(request, "param", 512)
    image = make_image(tmp_path / "disk.img", SIZE)
    return serve(Tgt(tmp_path, Target(NAME, [Unit(image, block_size=block_size)])))


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Path]:
    """A directory for the file system on a loop device, which is unmounted in the end."""
    path = tmp_path / "files"
    path.mkdir()
    yield path
    run("umount", path, check=False)


def unit(mounted: Mounted) -> Path:
    return mounted.target() / "lun1"


def device(mounted: Mounted) -> str:
    return os.readlink(unit(mounted) / "device")


def backing(device: str) -> str:
    with suppress(OSError):
        return Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text().strip()
    return ""


def switch(mounted: Mounted, text: str) -> None:
    (unit(mounted) / "loop").write_text(text)


def log_of(mounted: Mounted) -> str:
    return (mounted.path / ".iscsifs" / "events").read_text()


@pytest.mark.parametrize("tgt", [512, 4096], indirect=True)
def test_a_file_system_on_an_attached_disk(tgt: Tgt, mount_hosts: MountHosts, files: Path) -> None:
    mounted = mount_hosts("-o", "loop", tgt.portal)
    name = device(mounted)
    assert (unit(mounted) / "loop").read_text() == f"{name}\n"
    block_size = tgt.targets[0].units[0].block_size
    assert run("blockdev", "--getss", "--getsize64", name).split() == [str(block_size), str(SIZE)]
    assert Path(f"/sys/block/{Path(name).name}/loop/dio").read_text() == "1\n"
    by_id = (mounted.path / "by-id").iterdir()
    assert [os.readlink(path / "device") for path in by_id if path.samefile(unit(mounted))] == [name]
    run("mkfs.ext4", "-q", name)
    run("mount", name, files)
    (files / "hello").write_text("hello\n")
    with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
        switch(mounted, "0\n")
    assert f"mounted on {files}" in log_of(mounted)
    assert backing(name) == str(unit(mounted) / "storage")
    said = iscsifs("--unmount", mounted.path)
    assert (said.returncode, said.stderr.count("busy")) == (1, 1)
    run("umount", files)
    said = iscsifs("--unmount", mounted.path)
    assert (said.returncode, said.stderr) == (0, "")
    assert backing(name) == ""
    assert b"hello\n" in tgt.targets[0].units[0].image.read_bytes()


def test_a_switch_attaches_and_detaches(tgt: Tgt, mount_hosts: MountHosts) -> None:
    mounted = mount_hosts(tgt.portal)
    assert (unit(mounted) / "loop").read_text() == "none\n"
    assert not os.path.lexists(unit(mounted) / "device")
    switch(mounted, "1\n")
    name = device(mounted)
    assert backing(name) == str(unit(mounted) / "storage")
    switch(mounted, "1\n")
    assert device(mounted) == name
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        switch(mounted, "loop\n")
    switch(mounted, "0\n")
    assert backing(name) == ""
    assert (unit(mounted) / "loop").read_text() == "none\n"
    wait_until(lambda: not os.path.lexists(unit(mounted) / "device"), "its link is gone", 2.0)


def test_a_device_that_somebody_else_detaches_is_not_shown(tgt: Tgt, mount_hosts: MountHosts) -> None:
    mounted = mount_hosts("-o", "loop", tgt.portal)
    name = device(mounted)
    run("losetup", "-d", name)
    wait_until(lambda: (unit(mounted) / "loop").read_text() == "none\n", "it is seen", 5.0)
    switch(mounted, "1")
    assert (unit(mounted) / "loop").read_text() == f"{device(mounted)}\n"


def test_a_read_only_mount_has_a_read_only_device(tgt: Tgt, mount_hosts: MountHosts) -> None:
    mounted = mount_hosts("-r", "-o", "loop", tgt.portal)
    assert run("blockdev", "--getro", device(mounted)).strip() == "1"


def test_the_end_waits_for_a_mounted_device(tgt: Tgt, mount_hosts: MountHosts, files: Path) -> None:
    mounted = mount_hosts("-o", "loop", tgt.portal, foreground=True)
    wait_until(lambda: os.path.lexists(unit(mounted) / "device"), "it is attached")
    name = device(mounted)
    run("mkfs.ext4", "-q", name)
    run("mount", name, files)
    mounted.signal(signal.SIGTERM)
    wait_until(lambda: "loop_busy" in log_of(mounted), "it says what it waits for")
    assert f"{name} is mounted on {files}; waiting until it is free" in log_of(mounted)
    data = os.urandom(MIB)
    (files / "late").write_bytes(data)
    run("umount", files)
    assert mounted.status() == 0
    assert backing(name) == ""
    assert data in tgt.targets[0].units[0].image.read_bytes()


def test_a_second_signal_ends_it_all_the_same(tgt: Tgt, mount_hosts: MountHosts, files: Path) -> None:
    mounted = mount_hosts("-o", "loop", tgt.portal, foreground=True)
    wait_until(lambda: os.path.lexists(unit(mounted) / "device"), "it is attached")
    name = device(mounted)
    run("mkfs.ext4", "-q", name)
    run("mount", name, files)
    mounted.signal(signal.SIGTERM)
    wait_until(lambda: "loop_busy" in log_of(mounted), "it waits")
    mounted.signal(signal.SIGTERM)
    assert mounted.process is not None
    _, said = mounted.process.communicate(timeout=60)
    assert f"{name}: left attached" in said
    run("umount", files)
    wait_until(lambda: backing(name) == "", "it is detached by its last user")


def test_a_device_grows_with_its_disk(mount_hosts: MountHosts) -> None:
    with served(SIZE) as (disk, portal):
        mounted = mount_hosts("-o", "loop", portal)
        (storage,) = mounted.path.glob("127.0.0.1/*/lun0/storage")
        name = os.readlink(storage.with_name("device"))
        disk.resize(2 * SIZE // disk.block_size)
        storage.with_name("rescan").write_text("1\n")
        wait_until(lambda: run("blockdev", "--getsize64", name).strip() == str(2 * SIZE), "it has grown", 10)
        mounted.signal(signal.SIGTERM)
        mounted.wait()


def test_a_device_left_behind_by_a_killed_run_is_detached(tgt: Tgt, mount_hosts: MountHosts) -> None:
    mounted = mount_hosts("-o", "loop", tgt.portal)
    name = device(mounted)
    mounted.signal(signal.SIGKILL)
    wait_until(lambda: not mounted.pids, "it is dead")
    run("umount", "-l", mounted.path)
    assert backing(name) != ""
    again = Mounted(mounted.path)
    try:
        again.start(tgt.portal)
        assert again.said.returncode == 0
        assert f"{name}: was left behind by a run that was killed; detached" in again.said.stderr
        assert backing(name) == ""
    finally:
        again.close()


def test_a_device_of_a_living_file_below_the_mount_point_stays(tgt: Tgt, tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    (path / "host/disk/lun1").mkdir(parents=True)
    image = make_image(path / "host/disk/lun1/storage", MIB)
    name = run("losetup", "--find", "--show", image).strip()
    mounted = Mounted(path)
    try:
        mounted.start("-o", "nonempty", tgt.portal)
        assert (mounted.said.returncode, mounted.said.stderr) == (0, "")
        assert backing(name) == str(image)
    finally:
        mounted.close()
        run("losetup", "-d", name)


def test_an_ordinary_user_is_told_why_not(tgt: Tgt, tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    path.mkdir()
    said = iscsifs("-o", "loop", tgt.portal, path, user=65534)
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
