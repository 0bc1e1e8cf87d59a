"""The control files of targets and logical units: what is written to them is carried out, and told."""

import logging
from collections.abc import Awaitable, Callable

from iscsifs.errors import IscsifsError, printable
from iscsifs.fs.nodes import Directory, Refusal, Refused
from iscsifs.fs.tree import TargetDirectory, Tree, UnitDirectory
from iscsifs.monitor.events import MAX_TEXT, Events
from iscsifs.service.attach import Attached
from iscsifs.service.living import LivingSet

log = logging.getLogger(__name__)


class Commands:
    """Gives each target of *living* its control files ``rescan``, ``reset`` and ``logout``, and each of its
    units ``rescan`` and ``reset``."""

    def __init__(self, living: LivingSet) -> None:
        self._living = living
        living.on_target.append(self._of_target)
        living.tree.on_unit.append(self._of_unit)

    def _of_target(self, directory: TargetDirectory) -> None:
        living = self._living

        async def rescan() -> None:
            await self._attached(directory).target.rescan()
            await living.partitions.rescan(directory.units())

        async def reset() -> None:
            await self._attached(directory).target.reset()

        async def logout() -> None:
            await living.log_out(self._attached(directory))

        where = {"host": directory.path.partition(b"/")[0].decode(), "target": directory.target.name}
        for name, command in {b"rescan": rescan, b"reset": reset, b"logout": logout}.items():
            add_control(living.tree, living.events, directory, name, command, where)

    def _of_unit(self, target: TargetDirectory, directory: UnitDirectory) -> None:
        label = directory.unit.label

        async def rescan() -> None:
            await self._attached(target).target.rescan(label)
            await self._living.partitions.rescan([directory])

        async def reset() -> None:
            await self._attached(target).target.reset(label)

        host = target.path.partition(b"/")[0].decode()
        where = {"host": host, "target": target.target.name, "lun": label}
        for name, command in {b"rescan": rescan, b"reset": reset}.items():
            add_control(self._living.tree, self._living.events, directory, name, command, where)

    def _attached(self, directory: TargetDirectory) -> Attached:
        """Return the target of *directory*; raises Refused where it was logged out of."""
        for attached in self._living.at(directory.path):
            if self._living.directory_of(attached) is directory:
                return attached
        raise Refused(Refusal.GONE)


def add_control(
    tree: Tree,
    events: Events,
    directory: Directory,
    name: bytes,
    command: Callable[[], Awaitable[None]],
    where: dict[str, str],
) -> None:
    """Give *directory* the control file *name*; *where* is what its events are about."""
    path = printable(directory.path + b"/" + name)

    async def carry_out() -> None:
        try:
            await command()
        except IscsifsError as exc:
            events.add("control_failed", printable(f"{path}: {exc}", MAX_TEXT), **where)
            raise
        except Refused:
            events.add("control_failed", f"{path}: it is logged out of already", **where)
            raise
        log.info("%s: done", path)
        events.add("control", f"{path}: done", **where)

    def misused() -> None:
        events.add("control_failed", f"{path}: what was written is no command; write 1", **where)

    tree.add_command(directory, name, carry_out, misused)
