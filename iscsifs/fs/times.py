"""The times that stat(2) shows for a storage file: a unit has none of its own."""

from dataclasses import dataclass
from time import time_ns
from weakref import WeakKeyDictionary

from iscsifs.fs.storage import Storage


@dataclass(slots=True)
class Times:
    """The times of a unit, in nanoseconds since 1970, and the inode that shows them."""

    inode: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int

    def modify(self) -> None:
        """Take note that the content has changed, or may have."""
        self.mtime_ns = self.ctime_ns = time_ns()


class Timetable:
    """The times of all units that anybody has looked at, for as long as these exist."""

    def __init__(self) -> None:
        self._times: WeakKeyDictionary[Storage, Times] = WeakKeyDictionary()

    def known(self, storage: Storage) -> Times | None:
        """Return the times of *storage*, None where nobody has looked at it."""
        return self._times.get(storage)

    def of(self, storage: Storage, inode: int) -> Times:
        """Return the times of *storage*, which *inode* shows: those of the first look at it, until something
        changes them."""
        times = self._times.get(storage)
        if times is None:
            now = time_ns()
            times = self._times[storage] = Times(inode, now, now, now)
        return times
