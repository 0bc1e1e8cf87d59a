"""Without all that serves only speed or scarcity the program does the same."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.embedded import Embedded
from support.mounting import MountHosts, wait_until
from support.targets import Serve, Target, Unit, make_image

MIB = 1 << 20
SIZE = 8 * MIB
PIECE = 64 << 10

WITHOUT = """import sys
from iscsifs.cli import main
from iscsifs.fs.platform.platform import NoPlatform
sys.exit(main(platform=NoPlatform))"""


@pytest.mark.mount
def test_without_a_platform_a_mount_reads_writes_and_flushes(
    tmp_path: Path, serve: Serve, mount_hosts: MountHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image(tmp_path / "image", SIZE)
    target = serve(Embedded(tmp_path, Target("iqn.2026-01.example:disk", [Unit(image)])))
    monkeypatch.setattr("support.mounting.ISCSIFS", (sys.executable, "-c", WITHOUT))
    mounted = mount_hosts(target.portal, foreground=True)
    wait_until(mounted.storage().exists, "the tree is there")
    (pid,) = mounted.pids
    assert "VmLck:\t       0 kB" in Path(f"/proc/{pid}/status").read_text()
    content = os.urandom(SIZE)
    descriptor = os.open(mounted.storage(), os.O_RDWR)
    try:

        def write(offset: int) -> None:
            assert os.pwrite(descriptor, content[offset : offset + PIECE], offset) == PIECE

        def read(offset: int) -> bytes:
            return os.pread(descriptor, PIECE, offset)

        offsets = range(0, SIZE, PIECE)
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(write, offsets))
            os.fsync(descriptor)
            assert image.read_bytes() == content
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            assert b"".join(threads.map(read, offsets)) == content
    finally:
        os.close(descriptor)
    mounted.unmount()
    assert mounted.status() == 0
