"""Mounts units in memory, for the tests with a real mount: MOUNTPOINT SIZE... [SETTING=VALUE...].

A size of 0 stands for a unit that never answers. Its process belongs to *user*, if that is given: everything
is imported before, so that this user needs no access to the project.
"""

import logging
import os
import signal
import sys
from pathlib import Path

import trio

from iscsifs.fs.mount import Mount, check_mount_point
from iscsifs.fs.nodes import TreeOptions
from iscsifs.fs.platform import init_reply
from iscsifs.fs.platform.platform import LinuxPlatform
from iscsifs.fs.platform.tuning import Limits
from iscsifs.fs.tree import TargetDescription, Tree, UnitDescription
from support.memory_unit import Memory


class Stuck(Memory):
    """A unit whose target is away."""

    async def read(self, offset: int, size: int) -> memoryview:
        self.requests.append(("read", offset, size))
        await trio.sleep_forever()
        raise AssertionError


def leave_as_it_is(request: bytes, reply: bytes, max_background: int) -> bytes:
    """Take the place of `init_reply.amend`, as with a libfuse that is not as expected."""
    raise init_reply.UnexpectedInitError("it is not to be")


def unit(number: int, size: int, read_only: bool) -> UnitDescription:
    storage = Memory(size, read_only) if size else Stuck(1 << 20)
    return UnitDescription(
        str(number), 0, "disk", "NetBSD", "NetBSD iSCSI", "0", "1", f"naa.{number}", 512, storage
    )


async def serve(tree: Tree, mount_point: Path, options: list[str]) -> None:
    mount = Mount(tree, mount_point, options, LinuxPlatform(Limits()))
    stop = trio.Event()
    storages = [file.storage for file in tree.files()]

    async def on_signals() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2) as signals:
            async for number in signals:
                if number == signal.SIGTERM:
                    stop.set()
                elif number == signal.SIGUSR2:
                    other = storages[0]
                    assert isinstance(other, Memory)
                    other.content[:16] = b"written by other"
                    tree.storages.may_have_changed(other)
                else:
                    first = storages[0]
                    assert isinstance(first, Memory)
                    first.content += bytes(first.size)
                    first.size *= 2
                    for file in tree.files():
                        tree.storages.kernel.forget_attributes(file.inode)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(on_signals)
            await mount.serve(stop, lambda: print("mounted", flush=True), trio.lowlevel.checkpoint)
            nursery.cancel_scope.cancel()
    finally:
        mount.close()
    for storage in storages:
        assert isinstance(storage, Memory)
        print(f"{storage.flushes} {bytes(storage.content[:16]).hex()}")


def main() -> None:
    mount_point = Path(sys.argv[1])
    sizes = [int(argument) for argument in sys.argv[2:] if "=" not in argument]
    settings = dict(argument.split("=", 1) for argument in sys.argv[2:] if "=" in argument)
    if user := int(settings.get("user", 0)):
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    logging.basicConfig()
    check_mount_point(mount_point)
    if settings.get("plain_init") == "1":
        init_reply.amend = leave_as_it_is
        logging.disable()
    read_only = settings.get("read_only") == "1"
    switches = {name for name in settings if settings[name] == "1"}
    tree = Tree(
        TreeOptions(
            uid=os.getuid(),
            gid=os.getgid(),
            direct_io="direct_io" in switches,
            exclusive="exclusive" in switches,
        )
    )
    units = tuple(unit(number, size, read_only) for number, size in enumerate(sizes))
    tree.add_targets([TargetDescription("host", "10.4.0.42", 3260, "iqn.2001-04.com.example:disk", units)])
    options = [option for option in settings.get("options", "").split(",") if option]
    trio.run(serve, tree, mount_point, options)


if __name__ == "__main__":
    main()
