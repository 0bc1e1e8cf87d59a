"""What `semantics` compares: a loop device over a file, and `storage` of a real mount on tgt.

A row of a table is a small program, run on each of them, with old bytes on the disk beforehand. It says what
has to hold on `storage`: the same as on the device, or a difference that was chosen, with its reason.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support.mounting import Mounted, run
from support.targets import Target, Tgt, Unit, make_image

MIB: Final = 1 << 20
SIZE: Final = 16 * MIB + 1536
"""Bytes of the disk: no multiple of a page."""

OLD: Final = (b"old bytes" * (SIZE // 9 + 1))[:SIZE]
"""What is on the disk before."""

NAME: Final = "iqn.2001-04.com.example:disk"


@dataclass
class Subject:
    """A disk at *path*; *image* has its bytes."""

    path: Path
    image: Path
    is_device: bool = False
    is_direct_io: bool = False

    def reset(self) -> None:
        """Put the old bytes on it."""
        with self.image.open("r+b") as image:
            image.write(OLD)
        if self.is_device:
            run("blockdev", "--flushbufs", self.path)
        else:
            with self.path.open("rb", buffering=0) as file:
                file.read(1)  # the end of a truncation before is forgotten

    def content(self) -> bytes:
        """What is on the disk after its writers have closed."""
        if self.is_device:
            run("blockdev", "--flushbufs", self.path)
        return self.image.read_bytes()


Program = Callable[[Subject], object]


@dataclass(frozen=True)
class Row:
    """*program* does on `storage` what it does on a device, or, for a reason that *why* says, *instead*.

    *instead_direct_io* is the same for mounts with direct_io where it differs.
    """

    name: str
    program: Program
    why: str = ""
    instead: object = None
    instead_direct_io: object = None


def outcome(program: Program, subject: Subject) -> object:
    """Return what *program* returns on *subject*, or the name of the error that it ends with."""
    subject.reset()
    try:
        return program(subject)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Open *path*, and close it in the end."""
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def device(directory: Path) -> Iterator[Subject]:
    """A loop device."""
    image = make_image(directory / "device.img", SIZE)
    name = run("losetup", "--find", "--show", image).strip()
    try:
        yield Subject(Path(name), image, is_device=True)
    finally:
        run("losetup", "--detach", name)


@contextmanager
def storage(directory: Path, *options: str) -> Iterator[Subject]:
    """A mount on tgt."""
    image = make_image(directory / "disk.img", SIZE)
    with ExitStack() as stack:
        tgt = stack.enter_context(Tgt(directory, Target(NAME, [Unit(image)])))
        path = directory / "mnt"
        path.mkdir()
        mounted = Mounted(path)
        stack.callback(mounted.close)
        mounted.start(tgt.portal, *options)
        assert mounted.is_mounted(), mounted.said
        yield Subject(mounted.storage(), image)
