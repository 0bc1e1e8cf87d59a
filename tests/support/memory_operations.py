"""What the tests of the operations share: a tree of units in memory, and requests as the kernel makes."""

import os
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import cast

import pytest
from pyfuse3 import EntryAttributes, FUSEError, RequestContext, SetattrFields

from iscsifs.fs.kernel import FuseKernel
from iscsifs.fs.nodes import TreeOptions
from iscsifs.fs.operations import Operations
from iscsifs.fs.storage import Storage
from iscsifs.fs.tree import ROOT_INODE, TargetDescription, Tree, UnitDescription

SIZE = 10_000
STATUS = 2  # CHECK CONDITION
NOBODY = cast(RequestContext, None)  # who asks makes no difference: the kernel checks permissions
OPENER, OTHER = (cast(RequestContext, SimpleNamespace(pid=pid)) for pid in (100, 200))


def unit(storage: Storage | None, label: str = "0") -> UnitDescription:
    return UnitDescription(label, 0, "disk", vendor="NetBSD", block_size=512, storage=storage)


def serve(
    *storages: Storage,
    read_only: bool = False,
    direct_io: bool = False,
    sync: bool = False,
    exclusive: bool = False,
) -> Operations:
    options = TreeOptions(
        uid=1000, gid=100, read_only=read_only, direct_io=direct_io, sync=sync, exclusive=exclusive
    )
    tree = Tree(options)
    units = tuple(unit(storage, str(number)) for number, storage in enumerate(storages))
    tree.add_targets([TargetDescription("host", "10.4.0.42", 3260, "iqn.2001-04.com.example:disk", units)])
    tree.storages.kernel = FuseKernel()
    return Operations(tree)


async def walk(operations: Operations, path: str) -> EntryAttributes:
    inode = ROOT_INODE
    attributes = await operations.getattr(inode, NOBODY)
    for name in path.split("/"):
        attributes = await operations.lookup(inode, name.encode(), NOBODY)
        inode = attributes.st_ino
    return attributes


async def open_storage(operations: Operations, flags: int = os.O_RDWR) -> int:
    inode = (await walk(operations, "host/disk/storage")).st_ino
    return (await operations.open(inode, flags, NOBODY)).fh


async def errno_of(request: Awaitable[object]) -> int:
    with pytest.raises(FUSEError) as caught:
        await request
    return caught.value.errno


def fields(**wanted: bool) -> SetattrFields:
    """What to set; the real class can be filled in by pyfuse3 only."""

    class Fields:
        update_atime = update_mtime = update_ctime = False
        update_mode = update_uid = update_gid = update_size = False

    result = Fields()
    for name, value in wanted.items():
        setattr(result, name, value)
    return cast(SetattrFields, result)


async def open_by(operations: Operations, by: RequestContext, flags: int = os.O_WRONLY) -> int:
    inode = (await walk(operations, "host/disk/storage")).st_ino
    return (await operations.open(inode, flags, by)).fh
