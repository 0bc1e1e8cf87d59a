"""The programs under test: a LUN of a target as a file, by iscsifs and by its peer."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SECONDS = 20.0  # that a program may take to begin or to end


@dataclass(frozen=True)
class Lun:
    """Where a logical unit is: a portal on this machine, the target's name, the number."""

    port: int
    target: str
    lun: int


@contextmanager
def iscsifs(lun: Lun, directory: Path, digest: str = "none") -> Iterator[Path]:
    """Mount *lun* by iscsifs and give the path of its `storage`."""
    mountpoint = directory / "mnt"
    mountpoint.mkdir()
    url = f"iscsi://127.0.0.1:{lun.port}/{lun.target}/{lun.lun}"
    words: list[str | Path] = ["iscsifs", "--digest", digest, url, mountpoint]
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True, timeout=SECONDS)
    try:
        yield next(mountpoint.glob("127.0.0.1*/*/storage"))
    finally:
        subprocess.run(["fusermount3", "-u", mountpoint], check=True, timeout=SECONDS)
        wait_until(lambda: not pids(str(mountpoint)), "iscsifs does not end")
        mountpoint.rmdir()


@contextmanager
def peer(lun: Lun, directory: Path) -> Iterator[Path]:
    """Export *lun* as a file by qemu-storage-daemon, and give the path of that file."""
    file = directory / "peer"
    file.touch()
    unmounted = file.stat().st_dev
    drive = (
        f"driver=iscsi,node-name=i0,transport=tcp,portal=127.0.0.1:{lun.port},target={lun.target},lun={lun.lun},"
        "cache.direct=on,cache.no-flush=off"
    )
    export = f"type=fuse,id=e0,node-name=i0,mountpoint={file},writable=on"
    with subprocess.Popen(["qemu-storage-daemon", "--blockdev", drive, "--export", export]) as daemon:
        try:
            wait_until(lambda: file.stat().st_dev != unmounted, "qemu-storage-daemon exports nothing")
            yield file
        finally:
            daemon.terminate()
            daemon.wait(SECONDS)
    file.unlink()


def pids(argument: str) -> list[int]:
    """Return the processes that were started with *argument*."""
    found = subprocess.run(["pgrep", "-f", "--", argument], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait until *condition* holds; TimeoutError saying *otherwise* when it does not in time."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.05)
