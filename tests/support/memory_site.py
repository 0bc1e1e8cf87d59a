"""An initiator with its files and two targets in one trio loop, without a network and without a mount.

Everything is real but TCP (see `support.network`) and the kernel: files are the handlers that FUSE
calls. With trio's autojump clock hours of silence take milliseconds, and always the same ones.
"""

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast
from unittest import mock

import pyfuse3
import pytest
import trio
from pyfuse3 import FUSEError, RequestContext

from iscsifs.discovery.source import Wanted
from iscsifs.fs.nodes import TreeOptions
from iscsifs.fs.operations import Operations
from iscsifs.fs.storage_file import StorageFile
from iscsifs.fs.tree import ROOT_INODE, Tree
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.framing import Buffer
from iscsifs.iscsi.names import Portal, TargetAddress
from iscsifs.iscsi.pdu import Pdu
from iscsifs.scsi.sense import Sense
from iscsifs.service import Initiator, open_initiator
from iscsifs.service.attach import Attached, Login, log_in
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.session import Session
from iscsifs.target.unit import SYNCHRONIZE_CODES, WRITE_ERROR, Fault, Operation
from support.network import Network, Site
from support.trouble import Trouble

PAGE = 4096
SIZE = 4 << 20
KERNEL = cast(RequestContext, None)

INTERVAL = 1.0
"""Seconds between two uses of a file by `World.meanwhile`."""

Says = Callable[[], list[str]]
"""The fixture `says`."""

BEHIND = pytest.mark.parametrize("behind", [True, False], ids=["behind", "through"])
"""With write-behind, and without."""


def page(letter: str, pages: int = 1) -> bytes:
    """Return *pages* pages full of *letter*."""
    return letter.encode() * (PAGE * pages)


class File:
    """An open `storage` file."""

    def __init__(self, operations: Operations, path: str, handle: int, inode: int) -> None:
        self.path = path
        self._operations = operations
        self._handle = handle
        self.inode = inode

    async def read(self, offset: int = 0, size: int = PAGE) -> bytes:
        return bytes(await self._operations.read(self._handle, offset, size))

    async def write(self, offset: int, data: bytes) -> None:
        assert await self._operations.write(self._handle, offset, data) == len(data)

    async def fsync(self) -> None:
        await self._operations.fsync(self._handle, False)

    async def close(self) -> None:
        """Close the file as close(2) does; the handle goes in any case."""
        try:
            await self._operations.flush(self._handle)
        finally:
            await self._operations.release(self._handle)

    async def size(self) -> int:
        return (await self._operations.getattr(self.inode, KERNEL)).st_size


async def errno_of(request: Awaitable[object]) -> str:
    """Return the name of the error that *request* has to end with."""
    with pytest.raises(FUSEError) as caught:
        await request
    return errno.errorcode[caught.value.errno]


class FailedFlush(Fault):
    """The next flush of *disk*, which is droppable, fails, and what was in the cache is lost unsaid."""

    def __init__(self, disk: Disk, sense: Sense = WRITE_ERROR) -> None:
        super().__init__(sense, codes=SYNCHRONIZE_CODES, times=1)
        self._disk = disk

    def apply(self, cdb: bytes, operation: Operation) -> Operation:
        assert self._disk.undo_log is not None
        self._disk.undo_log.undo()
        return super().apply(cdb, operation)


class NamedSite(Site):
    """A site called *name*, with its *disks*, which are LUN 0, 1 and so on."""

    def __init__(self, name: str, network: Network, nursery: trio.Nursery, *disks: Disk) -> None:
        self.name = name
        self.target_name = f"iqn.2026-01.example:{name}"
        self.disks = list(disks)
        device = Device(self.target_name, dict(enumerate(disks)))
        super().__init__(device, network, nursery, host=f"{name}.example")

    @property
    def connections(self) -> int:
        """How many connections there were."""
        return self.listener.connections

    def exchange(self, lun: int, disk: Disk) -> None:
        """Put another *disk* at *lun*, as if by a new configuration: nobody is told."""
        self.device = self.server.devices[self.target_name] = Device(
            self.target_name, self.device.units | {lun: disk}
        )


class World:
    """*site* is the target that gets into trouble, *neighbour* the one that must not notice.

    `file` is LUN 0 of the site, `sibling` its LUN 1, `other` the disk of the neighbour.
    """

    def __init__(self, site: NamedSite, neighbour: NamedSite, options: InitiatorOptions) -> None:
        self.site = site
        self.neighbour = neighbour
        self.options = options
        self.tree = Tree(TreeOptions(uid=0, gid=0))
        self.operations = Operations(self.tree)
        self.file = self.sibling = self.other = cast(File, None)

    @property
    def disk(self) -> Disk:
        return self.site.disks[0]

    @property
    def trouble(self) -> Trouble:
        return self.site.trouble

    def stored(self, offset: int = 0, size: int = PAGE, disk: Disk | None = None) -> bytes:
        """Return what the disk holds now, its volatile cache included."""
        return bytes((disk or self.disk).store.read(offset, size))

    async def sent(self) -> None:
        """Wait until LUN 0 has been sent all that was written, without a flush."""
        with trio.fail_after(1):
            node = self.tree.nodes[self.file.inode]
            assert isinstance(node, StorageFile)
            await node.storage.drain()

    async def open(self, site: NamedSite, lun: int = 0) -> File:
        """Open the `storage` of a unit."""
        inode = ROOT_INODE
        path = f"{site.host}/{site.name}/lun{lun}/storage"
        for name in path.split("/"):
            inode = (await self.operations.lookup(inode, name.encode(), KERNEL)).st_ino
        return File(self.operations, path, (await self.operations.open(inode, os.O_RDWR, KERNEL)).fh, inode)

    @asynccontextmanager
    async def meanwhile(self, *files: File) -> AsyncIterator[None]:
        """Hold that reads, writes and flushes of *files* are carried out at once while the body runs."""
        rounds = 0
        started = trio.current_time()

        async def use(file: File) -> None:
            nonlocal rounds
            while True:
                mark = page(chr(ord("a") + rounds % 26))
                with trio.fail_after(0.1):
                    await file.write(8 * PAGE, mark)
                    assert await file.read(8 * PAGE) == mark
                    await file.fsync()
                    assert await file.read(9 * PAGE) == bytes(PAGE)
                rounds += 1
                await trio.sleep(INTERVAL)

        async with trio.open_nursery() as nursery:
            for file in files:
                nursery.start_soon(use, file)
            yield
            # Nothing is proved about a time in which there was nothing to do.
            assert rounds > len(files) or trio.current_time() - started <= INTERVAL
            nursery.cancel_scope.cancel()

    async def log_in(self, initiator: Initiator) -> None:
        """Put both targets into the tree."""
        attached = []
        for site in (self.site, self.neighbour):
            portal = Portal(site.host, 3260)
            login = Login(Wanted(site.host, site.target_name, (TargetAddress(portal),)), self.options)
            attached.append(await log_in(login, initiator))
        directories = self.tree.add_targets([target.describe() for target in attached])
        for target, directory in zip(attached, directories, strict=True):

            def refresh(target: Attached = target, directory: Any = directory) -> None:
                self.tree.update(directory, target.describe())

            cast(Any, target.target).on_change = refresh
        self.file = await self.open(self.site)
        self.sibling = await self.open(self.site, 1)
        self.other = await self.open(self.neighbour)


@asynccontextmanager
async def open_world(
    *,
    write_behind: bool = True,
    disk: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[World]:
    """Give a `World` in which everything works; *disk* are options of LUN 0, the others are those of the
    initiator, with the defaults that users have."""
    initiator_options = replace(
        InitiatorOptions("iqn.2026-01.example:initiator", write_behind=write_behind), **options
    )
    first = Disk.in_memory(SIZE, "first", **{"droppable": True, **(disk or {})})
    async with trio.open_nursery() as nursery:
        network = Network()
        site = NamedSite("site", network, nursery, first, Disk.in_memory(SIZE, "second"))
        neighbour = NamedSite("neighbour", network, nursery, Disk.in_memory(SIZE, "third"))
        sites = (site, neighbour)
        world = World(site, neighbour, initiator_options)
        with mock.patch.object(pyfuse3, "invalidate_inode"):
            async with open_initiator(initiator_options, network.poller, network.connect) as initiator:
                await world.log_in(initiator)
                yield world
                for each in sites:
                    each.trouble.go_on()
            for each in sites:
                for session in list(each.server.sessions):
                    await session.ended.wait()
        nursery.cancel_scope.cancel()
    for each in sites:
        for unit in each.disks:
            unit.close()


class Once:
    """Does something at the first PDU of a kind, and lets all others go on."""

    def __init__(self, kind: type[Pdu], then: Callable[[Session, Pdu, Buffer], object]) -> None:
        self.done = False
        self._kind = kind
        self._then = then

    async def __call__(self, session: Session, pdu: Pdu, data: Buffer = b"") -> bool:
        if self.done or not isinstance(pdu, self._kind):
            return True
        self.done = True
        result = self._then(session, pdu, data)
        if hasattr(result, "__await__"):
            await result
        return False


def reset(session: Session, *_: object) -> None:
    session.wire.reset()


def close(session: Session, *_: object) -> None:
    session.wire.close()


async def nothing_was_lost(world: World, contents: bytes) -> None:
    """Hold that the disk has *contents*, safe from a power failure, and that nothing complains."""
    await world.file.fsync()
    assert world.stored(0, len(contents)) == contents
    assert await world.file.read(0, len(contents)) == contents
    world.disk.undo_log.undo()  # type: ignore[union-attr]
    assert world.stored(0, len(contents)) == contents
    await world.file.close()


async def spoil_data(session: Session, pdu: Any, data: Buffer) -> None:
    """Send a response whose data segment does not match its digest."""
    await session.wire.send_spoilt(pdu, data, payload=True)


async def spoil_header(session: Session, pdu: Any, data: Buffer) -> None:
    """Send a response whose header does not match its digest."""
    await session.wire.send_spoilt(pdu, data, header=True)
