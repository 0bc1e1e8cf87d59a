"""Disks as block devices: loop devices on the files of the mount, attached for their user.

A device is never pulled away from who uses it. It is detached by its control file, when its disk leaves the
tree, and at the end, which waits until it is free.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from iscsifs.errors import InUseError, IscsifsError
from iscsifs.fs.nodes import Refusal, Refused
from iscsifs.fs.platform import loop_devices
from iscsifs.fs.switch import SwitchFile
from iscsifs.fs.tree import DIRECT_ACCESS, TargetDirectory, Tree, UnitDirectory
from iscsifs.monitor.events import Events

log = logging.getLogger(__name__)

_POLL: Final = 1.0
"""Seconds between two looks at what is attached."""

_TIME_TO_DETACH: Final = 2.0
"""Seconds that a device may take to be detached that nobody holds: udev may look at it for a moment."""

_TIME_TO_ATTACH: Final = 30.0
"""Seconds that the start waits for the devices."""

_AT_ONCE: Final = 4
"""Devices that are attached at once by themselves."""

_NO_DEVICE: Final = "none"


@dataclass(eq=False, slots=True)
class _Loop:
    """The loop device of the disk that *directory* shows; *device* is None while there is none.

    *backing* is what the kernel calls the file; *size* is what the device has.
    """

    directory: UnitDirectory
    where: dict[str, str]
    device: str | None = None
    backing: str = ""
    size: int = 0
    lock: trio.Lock = field(default_factory=trio.Lock)


class Loops:
    """The loop devices of the disks of *tree*, mounted on *mount_point*.

    With *is_automatic* each disk has one. *tell* gets a line of what the end waits for.
    """

    def __init__(
        self,
        tree: Tree,
        mount_point: Path,
        events: Events,
        *,
        is_automatic: bool,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._tree = tree
        self._mount_point = Path(os.path.realpath(mount_point))  # not later: a look at it would wait for us
        self._events = events
        self._is_automatic = is_automatic
        self._tell = tell
        self._loops: dict[UnitDirectory, _Loop] = {}
        self._nursery: trio.Nursery | None = None
        self._children = trio.CapacityLimiter(_AT_ONCE)
        self._is_ending = False
        if not loop_devices.why_not():
            tree.on_unit.append(self._of_unit)

    async def run(self, mounted: trio.Event, ready: Callable[[], None]) -> None:
        """Attach what is to be attached once it is *mounted*, call *ready*, and follow what happens to the
        devices, until cancelled."""
        await mounted.wait()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if self._is_automatic:
                with trio.move_on_after(_TIME_TO_ATTACH):
                    await self._attach_all()
            ready()
            while True:
                await trio.sleep(_POLL)
                for loop in list(self._loops.values()):
                    if loop.lock.locked():
                        continue
                    if loop.device is not None:
                        await self._look_at(loop)
                    elif not self._is_shown(loop):
                        del self._loops[loop.directory]

    async def end(self) -> None:
        """Detach all devices, and wait for those that are in use; say what holds them."""
        self._is_ending = True
        async with trio.open_nursery() as nursery:
            for loop in self._loops.values():
                nursery.start_soon(self._end, loop)

    def left(self) -> list[str]:
        """Return the devices that are attached."""
        return [loop.device for loop in self._loops.values() if self._is_attached(loop) and loop.device]

    def _of_unit(self, target: TargetDirectory, directory: UnitDirectory) -> None:
        if directory.unit.storage is None:
            return
        host = target.path.partition(b"/")[0].decode()
        where = {"host": host, "target": target.target.name, "lun": directory.unit.label}
        loop = self._loops[directory] = _Loop(directory, where)

        async def switch(on: bool) -> None:
            if self._is_ending or self._nursery is None:
                raise Refused(Refusal.IN_USE)
            try:
                await (self._attach(loop) if on else self._detach(loop))
            except IscsifsError as exc:
                self._events.add("loop_failed", str(exc), **where)
                raise

        self._tree.add_node(
            directory, b"loop", lambda inode: SwitchFile(inode, lambda: loop.device or _NO_DEVICE, switch)
        )
        if self._is_automatic and self._nursery is not None and not self._is_ending:
            self._nursery.start_soon(self._attach_or_complain, loop)

    def _is_shown(self, loop: _Loop) -> bool:
        return self._tree.nodes.get(loop.directory.inode) is loop.directory

    def _is_attached(self, loop: _Loop) -> bool:
        return loop.device is not None and loop_devices.backing_file(loop.device) == loop.backing

    def _path(self, loop: _Loop) -> Path:
        return self._mount_point / loop.directory.path.decode() / "storage"

    async def _attach_all(self) -> None:
        async with trio.open_nursery() as nursery:
            for loop in list(self._loops.values()):
                nursery.start_soon(self._attach_or_complain, loop)

    async def _attach_or_complain(self, loop: _Loop) -> None:
        if loop.directory.unit.device_type != DIRECT_ACCESS:
            return
        try:
            async with self._children:
                await self._attach(loop)
        except IscsifsError as exc:
            log.error("%s: no loop device: %s", loop.directory.path.decode(), exc)
            self._events.add("loop_failed", str(exc), **loop.where)

    async def _attach(self, loop: _Loop) -> None:
        async with loop.lock:
            storage = loop.directory.unit.storage
            if self._is_ending or self._is_attached(loop) or not self._is_shown(loop) or storage is None:
                return
            path = self._path(loop)
            read_only = self._tree.storages.options.read_only or storage.read_only
            size = storage.size
            device = await loop_devices.attach(path, storage.block_size, read_only=read_only)
            loop.device, loop.size = device, size
            loop.backing = loop_devices.backing_file(device) or ""
            self._tree.set_link(loop.directory, b"device", device.encode())
            log.info("%s: attached to %s", loop.directory.path.decode(), device)
            self._events.add("loop_attached", f"attached to {device}", **loop.where)

    async def _detach(self, loop: _Loop) -> None:
        """Detach the device; raises InUseError where somebody uses it."""
        async with loop.lock:
            if (device := loop.device) is None:
                return
            if self._is_attached(loop):
                if held := loop_devices.holders(device):
                    raise InUseError(f"{device}: not detached, as it is {', '.join(held)}")
                await loop_devices.detach(device)
                if not await loop_devices.wait_until_detached(device, loop.backing, _TIME_TO_DETACH):
                    raise InUseError(f"{device}: a program has it open; it is detached when that closes it")
            self._forget(loop)

    def _forget(self, loop: _Loop) -> None:
        """Take note that the device is not there any more."""
        self._events.add("loop_detached", f"detached from {loop.device}", **loop.where)
        loop.device = None
        if self._is_shown(loop):
            self._tree.set_link(loop.directory, b"device", None)
        else:
            self._loops.pop(loop.directory, None)

    async def _look_at(self, loop: _Loop) -> None:
        """Follow the size of the disk, its end, and what others do to the device."""
        device, storage = loop.device, loop.directory.unit.storage
        assert device is not None
        try:
            if not self._is_attached(loop):
                self._forget(loop)
            elif not self._is_shown(loop):
                if not loop_devices.holders(device):
                    await self._detach(loop)
            elif storage is not None and storage.size != loop.size:
                size = storage.size
                await loop_devices.resize(device, self._path(loop))
                loop.size = size
                log.info("%s: has %d bytes now", device, size)
                self._events.add("loop_resized", f"{device} has {size} bytes now", **loop.where)
        except IscsifsError as exc:
            log.warning("%s: %s", device, exc, extra={"kind": f"{device}: {exc.kind}"})

    async def _end(self, loop: _Loop) -> None:
        """Detach the device when nobody uses it any more; say what does."""
        async with loop.lock:
            if loop.device is None or not self._is_attached(loop):
                return
            device, told = loop.device, ""
            try:
                await loop_devices.detach(device)  # as soon as it is free
            except IscsifsError as exc:
                log.warning("%s", exc)
            while not await loop_devices.wait_until_detached(device, loop.backing, _TIME_TO_DETACH):
                what = ", ".join(loop_devices.holders(device)) or "open in a program"
                line = f"{device} is {what}; waiting until it is free, a second signal ends it anyway"
                if line != told:
                    told = line
                    log.warning("%s: %s", loop.directory.path.decode(), line)
                    self._events.add("loop_busy", line, **loop.where)
                self._tell(line)
            self._forget(loop)


async def remove_left_over(mount_point: Path) -> None:
    """Detach the loop devices that a run on *mount_point* has left behind when it was killed; say so."""
    if loop_devices.why_not():
        return
    try:
        devices = await loop_devices.left_over(mount_point)
    except OSError as exc:
        log.info("loop devices that may be left behind were not looked for: %s", exc.strerror)
        return
    for device in devices:
        held = loop_devices.holders(device)
        if held:
            log.warning(
                "%s: left behind by a run that was killed, and %s: unmount that, then: losetup -d %s",
                device,
                ", ".join(held),
                device,
            )
            continue
        try:
            await loop_devices.detach(device)
            log.warning("%s: was left behind by a run that was killed; detached", device)
        except IscsifsError as exc:
            log.warning("%s: was left behind by a run that was killed: %s", device, exc)
