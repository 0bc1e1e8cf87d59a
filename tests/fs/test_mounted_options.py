"""Every option of mount(8) for all file systems, on real mounts."""

import itertools
from pathlib import Path

import pytest

from iscsifs.mount_options import FUSE_OPTIONS, GENERIC_OPTIONS
from iscsifs.target.testing import TestTarget
from support.mounting import MountHosts, iscsifs, run

_SELINUX = {"context=", "fscontext=", "defcontext=", "rootcontext="}
_SHOWN = {"nodev", "nosuid", "noexec", "noatime", "sync", "dirsync", "allow_other"}
"""What the kernel tells of in the table of mounts; the others are its defaults, or mean nothing to it."""

_VALUES = {"fsname=": "fsname=disks", "comment=": "comment=a, b".replace(",", r"\,")}
_OPTIONS = [*sorted((FUSE_OPTIONS | GENERIC_OPTIONS) - _SELINUX), "x-gvfs-hide", "X-mount.mkdir=0700"]

# Opposites meet at most in one set of these, where the last one holds.
_SETS = [list(filter(None, options)) for options in itertools.zip_longest(*[iter(_OPTIONS)] * 8)]

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("require_root")]


@pytest.mark.parametrize("options", _SETS, ids=lambda options: options[0])
def test_each_option_is_mounted_with(
    options: list[str], iscsi_target: TestTarget, mount_hosts: MountHosts
) -> None:
    mounted = mount_hosts("-o", ",".join(_VALUES.get(option, option) for option in options), iscsi_target.url)
    assert mounted.said.stderr == ""
    shown = set(run("findmnt", "-n", "-o", "OPTIONS", mounted.path).strip().split(","))
    assert _SHOWN & set(options) <= shown
    source = run("findmnt", "-n", "-o", "SOURCE", mounted.path).strip()
    assert source == ("disks" if "fsname=" in options else iscsi_target.url)
    storage = mounted.path / iscsi_target.host / "test" / "storage"
    storage_text = b"written".ljust(4096)
    with storage.open("r+b", buffering=0) as file:
        file.write(storage_text)
    mounted.unmount()
    assert iscsi_target.disk.read(0, 4096) == storage_text


@pytest.mark.parametrize("option", sorted(_SELINUX))
def test_a_label_that_the_kernel_refuses_is_no_mount(
    option: str, iscsi_target: TestTarget, tmp_path: Path
) -> None:
    if Path("/sys/fs/selinux/enforce").exists():
        pytest.skip("this kernel knows the labels")
    done = iscsifs("-o", f"{option}system_u:object_r:tmp_t:s0", iscsi_target.url, tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "cannot mount" in line
    assert line.endswith(f"; leave out {option} where there is no SELinux")
    assert f" {tmp_path} " not in Path("/proc/self/mounts").read_text()
