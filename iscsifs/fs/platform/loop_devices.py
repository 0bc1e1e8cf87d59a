"""Loop devices, by losetup(8) as a child and by what sysfs shows.

This process never opens one itself: the kernel reads through it then, perhaps from a file that this process
serves, and the two would wait for each other. Nor does it wait for a child without being cancelled: a child
may be in the kernel until its read is answered.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from iscsifs.errors import IscsifsError, printable, reason

_SYSFS: Final = Path("/sys/block")

_OURS: Final = re.compile(r"/[^/]+/[^/]+/lun[^/]+/storage( \(deleted\))?")
"""The path of a disk in our tree. Of a mount that was detached (umount -l) the kernel tells no more."""

TIME_TO_FAIL: Final = 2.0
"""Seconds within which a read fails whose file system is dead."""

_SHORT: Final = 0.05


class LoopError(IscsifsError):
    """losetup(8) does not do what it is asked for."""


def why_not() -> str:
    """Return why this process cannot attach loop devices, or an empty text."""
    if os.geteuid() != 0:
        return "only root can attach loop devices"
    if _losetup() is None:
        return "losetup: not found; install the package mount"
    if not os.path.exists("/dev/loop-control"):
        return "/dev/loop-control: no such device; load it with: modprobe loop"
    return ""


async def attach(path: Path, block_size: int, *, read_only: bool) -> str:
    """Attach the file *path* with O_DIRECT, and scan for partitions; return the device, as in /dev/loop0.

    Raises LoopError.
    """
    options = [f"--sector-size={block_size}", "--direct-io=on", "--partscan"]
    options += ["--read-only"] if read_only else []
    return (await _run("--find", "--show", *options, str(path))).strip()


async def resize(device: str, path: Path) -> None:
    """Have *device* take over the size of its file, *path*; raises LoopError."""
    await _command("stat", "--cached=never", str(path))  # the driver takes the size that the kernel knows
    await _run("--set-capacity", device)


async def detach(device: str) -> None:
    """Detach *device* when its last user closes it; raises LoopError."""
    await _run("--detach", device)


def backing_file(device: str) -> str | None:
    """Return what *device* is attached to, as the kernel calls it; None where it is not attached."""
    try:
        return (_SYSFS / Path(device).name / "loop/backing_file").read_text(errors="replace").rstrip("\n")
    except OSError:
        return None


def holders(device: str) -> list[str]:
    """Return what holds *device*, or a partition of it, as far as that is seen from here: for a message."""
    name = Path(device).name
    disk = _SYSFS / name
    found: list[str] = []
    numbers: set[str] = set()
    for directory in (disk, *disk.glob(f"{name}p*")):
        with suppress(OSError):
            numbers.add((directory / "dev").read_text().strip())
        with suppress(OSError):
            found += [f"in use by /dev/{holder}" for holder in sorted(os.listdir(directory / "holders"))]
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields = line.split(" ")
        if fields[2] in numbers:
            found.append(f"mounted on {printable(_unescaped(fields[4]))}")
    with suppress(OSError):
        for line in Path("/proc/swaps").read_text(errors="replace").splitlines()[1:]:
            if re.fullmatch(re.escape(device) + r"(p\d+)?", line.split()[0]):
                found.append("in use for swapping")
    return found


async def left_over(mount_point: Path) -> list[str]:
    """Return the loop devices that a mount on *mount_point*, or one that was detached, has left behind whose
    process is dead.

    Nothing is mounted on *mount_point* now. A device whose file can still be read, or does not answer,
    belongs to another mount.
    """
    return [device for device in _below(mount_point) if await _is_dead(device)]


def _below(mount_point: Path) -> Iterator[str]:
    """Yield the loop devices of disks in the tree of a mount on *mount_point*, or of a detached one."""
    prefix = os.path.realpath(mount_point)
    for backing in sorted(_SYSFS.glob("loop*/loop/backing_file")):
        device = f"/dev/{backing.parts[-3]}"
        path = backing_file(device)
        if path is not None and _OURS.fullmatch(path.removeprefix(prefix)):
            yield device


async def _is_dead(device: str) -> bool:
    """Say whether reading from *device* fails at once."""
    command = ["dd", f"if={device}", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"]
    with trio.move_on_after(TIME_TO_FAIL):
        status, _ = await _child(command)
        return status != 0
    return False


async def wait_until_detached(device: str, backing: str, seconds: float) -> bool:
    """Return whether *device* does not have the file *backing* any more, or comes to lose it in *seconds*."""
    with trio.move_on_after(seconds):
        while backing_file(device) == backing:  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(_SHORT)
        return True
    return False


def _losetup() -> str | None:
    path = os.environ.get("PATH", os.defpath)
    return shutil.which("losetup", path=f"{path}:/usr/sbin:/sbin")


async def _run(*arguments: str) -> str:
    return await _command(_losetup() or "losetup", *arguments)


async def _command(*command: str) -> str:
    """Return what *command* prints; raises LoopError."""
    try:
        status, output = await _child(command)
    except OSError as exc:
        raise LoopError(f"{command[0]}: {reason(exc)}") from None
    if status != 0:
        said = "; ".join(printable(line) for line in output.splitlines())
        raise LoopError(said or f"{command[0]} has ended with status {status}")
    return output


async def _child(command: "tuple[str, ...] | list[str]") -> tuple[int, str]:
    """Run *command*; return its exit status, and all that it has printed.

    Where this is cancelled the child goes on. It closes no descriptors before it executes: one may be that of
    a file which this process serves.
    """
    output = os.memfd_create("output")
    try:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            close_fds=False,
            env=os.environ | {"LC_ALL": "C"},
        )
        status = await process.wait()
        return status, os.pread(output, 1 << 16, 0).decode(errors="replace")
    finally:
        os.close(output)


def _unescaped(text: str) -> str:
    """Return a path of /proc/self/mountinfo as it is."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
