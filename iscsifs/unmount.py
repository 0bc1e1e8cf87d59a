"""Unmounting: to the end of the process behind the mount, and not only of the mount."""

import errno
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from iscsifs.errors import ConfigError, IscsifsError
from iscsifs.exit_status import ExitStatus
from iscsifs.fs.record import MountEntry, Watch, mount_at
from iscsifs.terminal import OutputError, Parser, complain, open_standard_streams, say

_FSTYPE: Final = "fuse.iscsifs"

_SHOWN: Final = 5
"""Users of a busy mount that are named."""

_BUSY_TIME: Final = 2.0
"""Seconds for which a mount may be busy without a user: its own process opens files for moments, to have
cached pages dropped (`iscsifs.fs.platform.pages`)."""

_PAUSE: Final = 0.05
"""Seconds between two attempts to unmount."""


def unmount(mount_point: Path, options: Sequence[str] = ()) -> int:
    """Unmount *mount_point*, wait until its process has written everything and has ended, and return its exit
    status; *options* are those of umount(8), which only root can give.

    Where it is unmounted already, only the end of the process is waited for; with ``-l`` not even that.
    Raises ConfigError where nothing is mounted, or another file system; IscsifsError where it is busy.
    """
    path = Path(os.path.realpath(mount_point))
    entry = mount_at(path)
    if entry is not None and entry.fstype != _FSTYPE:
        raise ConfigError(f"{path}: is not ours but of type {entry.fstype}; unmount with: umount {path}")
    watch = Watch.find(path, entry)
    if entry is None:
        if watch is None:
            raise ConfigError(f"{path}: nothing is mounted there, and nothing is being written any more")
        return _wait(path, watch)
    has_died = watch is None and _is_dead(path)
    if not has_died and "-l" not in options:
        _detach_loop_devices(path)
    _unmount(entry, options, None if watch is None else watch.pid, lazy=has_died or "-l" in options)
    if has_died:
        _say(f"{path}: its process had died; what it had not written is lost")
        return ExitStatus.NOT_WRITTEN
    if "-l" in options or mount_at(path) == entry:
        return ExitStatus.OK
    if watch is None:
        raise IscsifsError(
            f"{path}: unmounted, but its process cannot be found from here, and is not waited for;"
            " its log tells whether all was written"
        )
    return _wait(path, watch)


def _wait(path: Path, watch: Watch) -> int:
    try:
        status = watch.wait(_say)
    except KeyboardInterrupt:
        _say(f"{path}: no longer waited for; process {watch.pid} goes on")
        return ExitStatus.FAILED
    if status is None:
        _say(f"{path}: its process was killed; what it had not written is lost")
        return ExitStatus.NOT_WRITTEN
    return status


def _say(message: str) -> None:
    complain(f"iscsifs: {message}")


def _is_dead(path: Path) -> bool:
    """Say whether the process that serves the mount on *path* has died."""
    try:
        os.statvfs(path)
    except OSError as exc:
        return exc.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _detach_loop_devices(path: Path) -> None:
    """Have the loop devices detached that the mount on *path* has attached itself, and that nobody holds.

    Others, and those that are held, keep the mount busy: the attempt to unmount it says which.
    """
    for backing in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        with suppress(OSError):
            storage = Path(backing.read_text().rstrip("\n"))
            if storage.is_relative_to(path):
                switch = storage.with_name("loop")
                if switch.read_text().strip() == f"/dev/{backing.parts[3]}":
                    switch.write_text("0")


def _unmount(entry: MountEntry, options: Sequence[str], server: int | None, *, lazy: bool) -> None:
    """Have the mount ended by the program that is permitted to; raises IscsifsError.

    *server* is the process that serves it, if that is known.
    """
    path = str(entry.path)
    if os.geteuid() == 0:
        # Without -i it would call the helper, which is this module.
        others = [option for option in options if option != "-l"]
        command = ["umount", "-i", *others, *(["-l"] if lazy else []), path]
    else:
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), path]
    began = time.monotonic()
    while said := _run(path, command):
        if "busy" not in said:
            raise IscsifsError(f"{path}: cannot unmount: {said}")
        users = list(_users(entry, server))
        if users or time.monotonic() - began > _BUSY_TIME:
            more = f" and {len(users) - _SHOWN} more" if len(users) > _SHOWN else ""
            by = f" by {', '.join(users[:_SHOWN])}{more}" if users else ""
            raise IscsifsError(f"{path}: target is busy: in use{by}; nothing was unmounted")
        time.sleep(_PAUSE)


def _run(path: str, command: list[str]) -> str:
    """Run *command*, which unmounts *path*; return why it has failed, or an empty text."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=os.environ | {"LC_ALL": "C"},
        )
    except OSError as exc:
        raise IscsifsError(f"{path}: cannot unmount: {command[0]}: {exc.strerror}") from None
    with suppress(OutputError):
        say(done.stdout, end="")
    if done.returncode == 0:
        return ""
    return "; ".join(done.stderr.splitlines()) or f"{command[0]} has ended with status {done.returncode}"


def _users(entry: MountEntry, server: int | None) -> Iterator[str]:
    """Yield the users of a mount: loop devices, mounts on it, and processes, as far as this user sees.

    The children of *server* are left out.
    """
    path = str(entry.path)

    def is_inside(text: str) -> bool:
        return text == path or text.startswith(path + "/")

    for backing in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        with suppress(OSError):
            if is_inside(backing.read_text().rstrip("\n")):
                yield f"/dev/{backing.parts[3]}"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        if (target := line.split()[4]).startswith(path + "/"):
            yield f"the mount on {target}"
    device = "{:02x}:{:02x}".format(*map(int, entry.device.split(":")))
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda process: int(process.name)):
        with suppress(OSError):
            links = [process / "cwd", process / "root", *(process / "fd").iterdir()]
            uses = any(is_inside(_link(link)) for link in links)
            uses = uses or bool(re.search(rf" {device} ", (process / "maps").read_text(errors="replace")))
            if uses and _parent(process) != server:
                yield f"{(process / 'comm').read_text().strip()} ({process.name})"


def _parent(process: Path) -> int:
    """Return the number of the parent of a process (proc(5))."""
    return int((process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])


def _link(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def helper(argv: Sequence[str] | None = None) -> int:
    """Run as umount.fuse.iscsifs, which umount(8) calls with its options."""
    open_standard_streams()
    parser = Parser(
        prog="umount.fuse.iscsifs",
        description="Unmount what iscsifs has mounted, and wait until everything is written. For umount(8).",
    )
    parser.add_argument("mount_point", metavar="MOUNTPOINT", type=Path)
    for flag, meaning in (
        ("-f", "end the kernel's connection first"),
        ("-l", "only detach it, and do not wait"),
        ("-n", "do not write to /etc/mtab"),
        ("-r", "remount read-only where it is busy"),
        ("-v", "tell more"),
    ):
        parser.add_argument(flag, action="append_const", dest="options", const=flag, default=[], help=meaning)
    parser.add_argument("-N", metavar="NAMESPACE", help="unmount in this namespace of mounts")
    parser.add_argument("-t", metavar="TYPE", help="the type, which is known")
    args = parser.parse_args(argv)
    options = args.options + (["-N", args.N] if args.N else [])
    try:
        return unmount(args.mount_point, options)
    except ConfigError as exc:
        _say(str(exc))
        return ExitStatus.USAGE
    except IscsifsError as exc:
        _say(str(exc))
        return ExitStatus.FAILED
