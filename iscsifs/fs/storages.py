"""What a mount knows of its disks as a whole: which are open, which were written, and what was lost."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from iscsifs.fs.kernel import Kernel, NoKernel, drop_cached_pages
from iscsifs.fs.losses import Ledger, Losses
from iscsifs.fs.nodes import Refusal, Refused, TreeOptions
from iscsifs.fs.open_files import OpenFiles
from iscsifs.fs.platform.pages import Pages, PagesByThread
from iscsifs.fs.storage import Storage, overlapping
from iscsifs.fs.times import Timetable
from iscsifs.fs.truncation import Truncations


class Storages:
    """What all `StorageFile` of a mount share. *in_tree(storage)* says whether one can still be opened,
    *path_of(inode)* where its file is."""

    def __init__(
        self,
        options: TreeOptions,
        in_tree: Callable[[Storage], bool],
        path_of: Callable[[int], bytes | None],
    ) -> None:
        self.options = options
        self.kernel: Kernel = NoKernel()
        self.files = OpenFiles()
        self.times = Timetable()
        self.losses = Ledger(in_tree)
        self.pages: Pages = PagesByThread(Path("/"), drop_cached_pages)
        """The kernel's cached pages of the files."""
        self.truncations = Truncations(
            self.files, lambda inode, patience: self.pages.drop(inode, path_of(inode), patience)
        )
        self.on_close: Callable[[Storage], None] = lambda storage: None
        """Called when a file that was open to write is closed for good."""
        self._path_of = path_of
        self._written: dict[Storage, None] = {}

    @property
    def written(self) -> list[Storage]:
        """The units of what was ever opened to be written, or truncated, also where they are not in the tree
        any more."""
        return list(self._written)

    @property
    def untold(self) -> list[Losses]:
        """The units of which writes were lost that no fsync and no synchronous write has reported."""
        return self.losses.unseen()

    def owes(self, storage: Storage) -> None:
        """Take note that the end has to ask whether *storage* has everything and has lost nothing.

        A truncation by name changes bytes without a handle.
        """
        self._written[storage.whole] = None
        self.losses.open(storage)

    def forget(self, storages: Iterable[Storage]) -> None:
        """Take note that *storages*, which owe nothing, are gone for good; a loss that nobody was told of
        stays."""
        for storage in storages:
            self._written.pop(storage, None)
            self.losses.forget(storage)

    async def require_free(self, is_free: Callable[[], bool]) -> None:
        """Refuse unless the files that are open permit another one, or do so in a moment."""
        if not await self.files.wait_until(is_free):
            raise Refused(Refusal.IN_USE)

    def open_to_write(self) -> Iterator[tuple[int, Storage]]:
        """Yield the inode and the storage of each file that is open to write."""
        yield from {file.inode: file.storage for file in self.files if file.writes}.items()

    def has_work(self) -> bool:
        """Say whether any request is in work that does not wait for a target that is away."""
        return any(file.in_work and not file.storage.is_away for file in self.files)

    def may_have_changed(self, storage: Storage) -> None:
        """Take note that other initiators may have written to *storage*, a unit: its session is a new one.

        Its times and those of its partitions move on, and cached pages are dropped: at once where it is open,
        else at the next open.
        """
        for view in overlapping(storage):
            self._may_have_changed(view)

    def closed(self, storage: Storage) -> None:
        """Take note that *storage* was written to by a file that is being closed: so were the other files
        that have bytes of it."""
        for other in overlapping(storage):
            times = self.times.known(other)
            if other is not storage and times is not None:
                times.modify()
                self.kernel.forget_attributes(times.inode)

    def _may_have_changed(self, storage: Storage) -> None:
        times = self.times.known(storage)
        if times is None:
            return  # nobody has looked at it
        times.modify()
        self.kernel.forget_attributes(times.inode)
        if self.files.of(storage) and (path := self._path_of(times.inode)) is not None:
            self.pages.drop_soon(times.inode, path)
