"""Holes are zeroed by whatever each target knows: WRITE SAME, or writes."""

from pathlib import Path

import pytest

from support.mounting import MountHosts, run
from support.targets import Daemon, Serve, Target, Unit

NAME = "iqn.2001-04.com.example:disk"
MIB = 1 << 20
SIZE = 100 * MIB

pytestmark = [pytest.mark.real, pytest.mark.mount]


@pytest.mark.parametrize("block_size", [512, 4096])
def test_an_image_with_holes_leaves_no_old_bytes(
    tmp_path: Path,
    serve: Serve,
    mount_hosts: MountHosts,
    any_target: type[Daemon],
    block_size: int,
) -> None:
    """More than what is zeroed at once, and an end within a block."""
    image = tmp_path / "disk.img"
    image.write_bytes(b"old bytes." * (SIZE // 10))
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(image, block_size=block_size)])))
    storage = mount_hosts(daemon.portal).storage()
    source = tmp_path / "sparse"
    with source.open("xb") as file:
        file.seek(MIB + 1000)
        file.write(b"new")
        file.truncate(90 * MIB + 100)
    run("cp", source, storage)
    run("sync", storage)
    old = (b"old bytes." * (SIZE // 10))[90 * MIB + 100 :]
    assert image.read_bytes() == source.read_bytes() + old
