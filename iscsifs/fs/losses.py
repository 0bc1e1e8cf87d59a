"""Lost writes, and who was told of them.

A write can be acknowledged and turn out to be lost later. The rules are those of Linux's errseq_t: every
handle that was open has to see the loss once, and a loss that nobody has seen is also reported to a handle
that is opened later. So each unit has a count of its losses and the count up to which somebody has seen them;
a handle begins at what was seen, not at what was lost.

`Handle.report` is for fsync(2) and for synchronous writes, whose caller has to act on the result: what it
raises counts as seen. `Handle.untold` is for FLUSH, which the kernel sends for every close of a descriptor,
also of one that a fork or a dup has made, and at the end of a process: nobody may be there to read the
result, so the loss is shown and stays unseen.
"""

from collections.abc import Callable
from typing import Final

from iscsifs.fs.storage import Storage


class KnownLoss(Exception):
    """Shows a *failure* once more that the log has had when it came."""

    def __init__(self, failure: Exception) -> None:
        super().__init__(str(failure))
        self.failure: Final = failure


class Losses:
    """The losses of one unit, with all its partitions.

    A unit that went away and came back is another *storage* of the same name; what nobody has seen of the
    first one is reported by the second, so there may be several storages.
    """

    def __init__(self, storage: Storage) -> None:
        self.name: Final = storage.name
        self.storages: Final = [storage]
        self.seen = 0
        """The count of losses up to which somebody was told."""

    @property
    def count(self) -> int:
        """How many losses there were."""
        count = 0
        for storage in self.storages:  # most often one: each fsync looks at it
            count += storage.failures
        return count

    @property
    def latest(self) -> Exception | None:
        """The latest loss of the latest storage that had one."""
        failures = (storage.last_failure for storage in reversed(self.storages))
        return next((failure for failure in failures if failure is not None), None)

    @property
    def unseen(self) -> int:
        """How many losses nobody was told of."""
        return self.count - self.seen


class Handle:
    """What one open file knows of the *losses* of its unit."""

    __slots__ = ("_losses", "_since")

    def __init__(self, losses: Losses) -> None:
        self._losses = losses
        self._since = losses.seen

    @property
    def untold(self) -> Exception | None:
        """The latest loss, if this handle was not told of it."""
        return self._losses.latest if self._since != self._losses.count else None

    def report(self) -> None:
        """Raise the latest loss if this handle was not told of it; it counts as seen."""
        if (failure := self.untold) is not None:
            self.saw_all()
            raise failure

    def saw_all(self) -> None:
        """Count all losses up to now as seen, by this handle and by somebody."""
        self._since = self._losses.seen = self._losses.count


class Ledger:
    """The losses of all units of a mount that were ever opened.

    *in_tree(storage)* says whether a storage can still be opened.
    """

    def __init__(self, in_tree: Callable[[Storage], bool]) -> None:
        self._in_tree = in_tree
        self._losses: dict[Storage, Losses] = {}

    def open(self, storage: Storage) -> Handle:
        """Return what a new handle to *storage* knows."""
        storage = storage.whole
        losses = self._losses.get(storage)
        if losses is None:
            losses = self._losses[storage] = self._inherited(storage) or Losses(storage)
        return Handle(losses)

    def forget(self, storage: Storage) -> None:
        """Forget *storage*, a unit, unless it has losses of which nobody was told."""
        losses = self._losses.get(storage)
        if losses is not None and not losses.unseen:
            del self._losses[storage]

    def unseen(self) -> list[Losses]:
        """Return the units that have losses of which nobody was told."""
        return [losses for losses in dict.fromkeys(self._losses.values()) if losses.unseen]

    def _inherited(self, storage: Storage) -> Losses | None:
        """Return what nobody has seen of a unit that had the name of *storage* and is gone."""
        for losses in self.unseen():
            if losses.name == storage.name and not any(map(self._in_tree, losses.storages)):
                losses.storages.append(storage)
                return losses
        return None
