"""A compile on ext4 on a loop device: on `storage`, and beside it on a local file."""

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from support.targets import Target, Tgt, Unit, make_image

from . import servers

SIZE = 2 << 30
NAME = "iqn.2026-01.example:build"
# libsodium comes inside this package: a program with an ordinary configure and make.
PACKAGE = "PyNaCl==1.5.0"
LOCAL, STORAGE = "local file", "storage"


def table(rounds: int) -> str:
    """Compile *rounds* times at each place, in turns, and return the medians in Markdown."""
    times: dict[str, list[tuple[float, float]]] = {LOCAL: [], STORAGE: []}
    with tempfile.TemporaryDirectory(prefix="iscsifs-bench.", dir="/var/tmp") as name:
        directory = Path(name)
        _sh(
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            ":all:",
            "-d",
            name,
            PACKAGE,
        )
        source = next(directory.glob("*.tar.gz"))
        image = make_image(directory / "served.img", SIZE)
        local = make_image(directory / "local.img", SIZE)
        with (
            Tgt(directory, Target(NAME, [Unit(image)])) as tgt,
            servers.iscsifs(servers.Lun(tgt.port, NAME, tgt.first_lun), directory) as storage,
        ):
            places = {LOCAL: local, STORAGE: storage}
            for _ in range(rounds):
                for place, file in places.items():
                    with _ext4(file, directory / "ext4") as root:
                        times[place].append(_compile(source, root))
    lines = [
        "",
        "| unpack, configure, make -j2 of libsodium on ext4 | elapsed | user + sys |",
        "|---|---:|---:|",
    ]
    medians = {place: [median(column) for column in zip(*rows, strict=True)] for place, rows in times.items()}
    lines += [f"| {place} | {elapsed:.2f} s | {cpu:.2f} s |" for place, (elapsed, cpu) in medians.items()]
    ratios = [ours / theirs - 1 for ours, theirs in zip(medians[STORAGE], medians[LOCAL], strict=True)]
    return "\n".join(
        [*lines, "| more on storage | " + " | ".join(f"{ratio:+.1%}" for ratio in ratios) + " |"]
    )


@contextmanager
def _ext4(file: Path, mountpoint: Path) -> Iterator[Path]:
    """Make a file system on a loop device on *file* and mount it."""
    command = ["losetup", "--direct-io=on", "-f", "--show", str(file)]
    loop = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        _sh("mkfs.ext4", "-q", "-F", loop)
        mountpoint.mkdir(exist_ok=True)
        _sh("mount", loop, mountpoint)
        try:
            yield mountpoint
        finally:
            _sh("umount", mountpoint)
    finally:
        _sh("losetup", "-d", loop)


def _compile(source: Path, root: Path) -> tuple[float, float]:
    """Return the elapsed and the processor's seconds of the whole, and of writing it back to the disk."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    script = 'tar xf "$0" && cd */src/libsodium && ./configure -q && make -s -j2 && sync -f .'
    _sh("bash", "-c", script, source, cwd=root)
    elapsed, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _sh(*command: str | Path, cwd: Path | None = None) -> None:
    if shutil.which(command[0]) is None:
        raise SystemExit(f"{command[0]}: not installed")
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr[-2000:]}")
