"""Mounts what a host offers, and logs out of targets and in again as it is told: MOUNTPOINT HOST:PORT.

Each line of the standard input is ``out NAME`` or ``in NAME``, NAME being that of a directory in the mount;
the answer is ``ok``, or the class of what was raised. The same can be done by rmdir(2) and mkdir(2) in the
directory of the host.
"""

import os
import sys
from pathlib import Path

import trio

from iscsifs import service
from iscsifs.config import Config, Host, HostSpec
from iscsifs.errors import IscsifsError, NoTargetError
from iscsifs.fs.mount import Mount
from iscsifs.fs.nodes import Directory, TreeOptions
from iscsifs.fs.platform.platform import LinuxPlatform
from iscsifs.fs.platform.tuning import Limits
from iscsifs.fs.tree import Tree
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.mount_options import MountOptions
from iscsifs.service.attach import Login
from iscsifs.service.drain import put_on_stable_storage
from iscsifs.service.find import origins_of
from iscsifs.service.living import LivingSet, open_living_set


class Commands:
    """Carries out what is asked for by the name of a directory."""

    def __init__(self, living: LivingSet) -> None:
        self._living = living
        self._gone: dict[str, Login] = {}

    async def log_out(self, name: str) -> None:
        for attached in self._living.targets:
            if attached.target.target_name.endswith(f":{name}"):
                await self._living.log_out(attached)
                self._gone[name] = attached.login
                return
        raise NoTargetError(name)

    async def log_in(self, name: str) -> None:
        await self._living.log_in(self._gone[name])

    async def carry_out(self, line: str) -> str:
        word, name = line.split()
        try:
            await (self.log_out(name) if word == "out" else self.log_in(name))
        except IscsifsError as exc:
            return type(exc).__name__
        return "ok"

    def by_directory(self, host: Directory) -> None:
        """Have rmdir(2) and mkdir(2) in *host* do the same."""

        async def remove(name: bytes) -> None:
            await self.log_out(name.decode())

        async def make(name: bytes) -> None:
            await self.log_in(name.decode())

        host.on_rmdir, host.on_mkdir = remove, make


async def main(mount_point: Path, portal: str) -> None:
    options = InitiatorOptions("iqn.2026-01.example:living")
    host = Host(HostSpec.parse(portal), options)
    config = Config((host,), mount_point, MountOptions(os.getuid(), os.getgid()), options)
    tree = Tree(TreeOptions(uid=os.getuid(), gid=os.getgid()))
    platform = LinuxPlatform(Limits())
    async with open_living_set(tree, service, platform.poller) as living:
        found, failures = await living.find(origins_of(config, service))
        _, refused = await living.attach(found)
        assert not failures + refused, [*map(str, failures + refused)]
        mount = Mount(tree, mount_point, (), platform)
        commands = Commands(living)
        for directory in tree.root.entries.values():
            if isinstance(directory, Directory) and directory.path != b"by-id":
                commands.by_directory(directory)

        async def obey() -> None:
            while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
                print(await commands.carry_out(line), flush=True)

        async def write_back() -> None:
            await put_on_stable_storage(tree.storages)

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(obey)
                nursery.start_soon(living.follow)
                await mount.serve(trio.Event(), lambda: print("mounted", flush=True), write_back)
                nursery.cancel_scope.cancel()
        finally:
            mount.close()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2])
