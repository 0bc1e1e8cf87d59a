"""The texts and the control files of a mount, with a real target."""

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

import iscsifs
from support.mounting import MountHosts, run, wait_until
from support.targets import Serve, Target, Tgt, Unit, make_image

NAME = "iqn.2026-01.example:disk"
MIB = 1 << 20
NOBODY = 65534

pytestmark = [pytest.mark.real, pytest.mark.mount]


@pytest.fixture
def tgt(serve: Serve, tmp_path: Path) -> Tgt:
    return serve(Tgt(tmp_path, Target(NAME, [Unit(make_image(tmp_path / "image", MIB))])))


def test_a_mount_says_what_it_is_and_what_is_in_force(
    tgt: Tgt, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    mounted = mount_hosts("-o", "sync,login_timeout=7", tgt.portal)
    own = mounted.path / ".iscsifs"
    assert (own / "version").read_text() == f"{iscsifs.__version__}\n"
    config = own / "config"
    lines = config.read_text().splitlines()
    wanted = ["sync yes", "exclusive no", "login_timeout 7", f"host {tgt.portal}", f"source {tgt.portal}"]
    assert set(wanted) <= set(lines)
    assert config.stat().st_size == len(config.read_bytes())
    assert run("wc", "-c", config).split()[0] == str(config.stat().st_size)
    assert run("tail", "-n", "1", config).strip() == lines[-1]
    with pytest.raises(PermissionError):
        config.open("wb")


def test_a_disk_that_comes_later_is_found_when_its_owner_asks(
    tgt: Tgt, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    mounted = mount_hosts(tgt.portal)
    target = mounted.target()
    assert not (target / "lun2").exists()
    tgt.add_unit(tgt.targets[0], 2, Unit(make_image(tmp_path / "second", 2 * MIB)))
    run("sh", "-c", f"echo 1 > {target}/rescan")
    assert (target / "lun2" / "storage").stat().st_size == 2 * MIB
    for nonsense in ("0", "rescan", "1 1"):
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            (target / "rescan").write_text(nonsense)


def test_everything_can_be_listed_counted_and_copied(
    tgt: Tgt, mount_hosts: MountHosts, tmp_path: Path
) -> None:
    """Tools that read all files meet one that is for writing only."""
    mounted = mount_hosts("-o", "allow_other", tgt.portal)
    rescan = mounted.target() / "rescan"
    assert stat.S_IMODE(rescan.stat().st_mode) == 0o200
    assert rescan.read_bytes() == b""  # root may
    for command in (
        ["ls", "-laR", mounted.path],
        ["find", mounted.path, "-ls"],
        ["du", "-a", mounted.path],
        ["cp", "-r", mounted.path, tmp_path / "copy"],
        ["tar", "-cf", tmp_path / "all.tar", "-C", mounted.path, "."],
        ["grep", "-r", "--include=config", "login_timeout", mounted.path],
    ):
        run(*command)
    copied = tmp_path / "copy" / "127.0.0.1" / "disk"
    assert (copied / "storage").stat().st_size == MIB
    assert (copied / "rescan").stat().st_size == 0
    others = subprocess.run(["cat", rescan], user=NOBODY, capture_output=True, text=True, check=False)
    assert others.returncode != 0
    assert os.strerror(errno.EACCES) in others.stderr
    wait_until(lambda: mounted.target().exists(), "it is there still")
