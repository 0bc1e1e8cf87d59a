"""A workload on a file system that notes what it was promised, and whether a crash kept the promise."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

SECTOR: Final = 512
SLOTS: Final = 4
"""Files of each kind that a worker keeps; those that are created go when there are twice as many."""
OVERWRITTEN_SIZE: Final = 128 << 10


@dataclass
class State:
    """A file with *contents* (None: there is no such file) from its operation's beginning on."""

    contents: bytes | None
    begun: float
    acknowledged: float = float("inf")
    """When fsync had returned; no earlier state is to be seen after that."""


class History:
    """All states of a file, the oldest first. Times are positions in the log of the disk.

    With *atomic* every change is one of the whole file, as with rename(2).
    """

    def __init__(self, position: Callable[[], int], *, atomic: bool) -> None:
        self._position = position
        self._atomic = atomic
        self._states = [State(None, 0, 0)]

    @property
    def contents(self) -> bytes | None:
        """What the file holds now."""
        return self._states[-1].contents

    @property
    def acknowledgements(self) -> list[int]:
        """When fsync has returned."""
        return [int(state.acknowledged) for state in self._states[1:] if state.acknowledged < float("inf")]

    def begin(self, contents: bytes | None) -> None:
        """Take note that the file is about to become *contents*."""
        self._states.append(State(contents, self._position()))

    def acknowledge(self) -> None:
        """Take note that it was fsynced as it is now."""
        self._states[-1].acknowledged = self._position()

    def complaint(self, found: bytes | None, position: int) -> str:
        """Return what is wrong with *found* after a power failure at *position*; nothing if it is right."""
        begun = [state for state in self._states if state.begun <= position]
        safe = max(number for number, state in enumerate(begun) if state.acknowledged <= position)
        possible = [state.contents for state in begun[safe:]]
        if found in possible:
            return ""
        if found is None:
            return "it is not there"
        if len(possible) > 1 and not self._atomic:
            return _mixed(found, [contents or b"" for contents in possible])
        return "it is there again" if possible == [None] else "its contents are not those that were fsynced"


def _mixed(found: bytes, possible: list[bytes]) -> str:
    """Say what is wrong with a file that is in change: each sector has to come from a state of it."""
    sizes = [len(contents) for contents in possible]
    if not min(sizes) <= len(found) <= max(sizes):
        return f"it has {len(found)} bytes instead of {min(sizes)} to {max(sizes)}"
    for start in range(0, len(found), SECTOR):
        sector = found[start : start + SECTOR]
        allowed = [contents[start : start + len(sector)] for contents in possible]
        # What was allocated and not written yet reads as zeros.
        if sector not in allowed and not (start >= min(sizes) and not any(sector)):
            return f"the sector at {start} is of none of its {len(possible)} possible states"
    return ""


class Worker:
    """Creates, overwrites, renames and removes files of its own in *directory*."""

    def __init__(self, directory: Path, position: Callable[[], int], rng: random.Random) -> None:
        self._directory = directory
        self._position = position
        self._random = rng
        self._numbers = count()
        self._created: list[Path] = []
        self.histories: dict[Path, History] = {}

    def prepare(self) -> None:
        """Make the directory, and the files that are overwritten."""
        self._directory.mkdir()
        _fsync(self._directory.parent)
        for slot in range(SLOTS):
            path = self._directory / f"overwritten{slot}"
            self._write_new(path, self._history(path), self._random.randbytes(OVERWRITTEN_SIZE))

    def work(self) -> None:
        """Do one thing."""
        self._random.choice((self._create, self._replace, self._overwrite, self._overwrite))()

    def _history(self, path: Path, *, atomic: bool = False) -> History:
        return self.histories.setdefault(path, History(self._position, atomic=atomic))

    def _contents(self) -> bytes:
        return self._random.randbytes(self._random.randint(1, 48 << 10))

    def _create(self) -> None:
        path = self._directory / f"created{next(self._numbers)}"
        self._write_new(path, self._history(path), self._contents())
        self._created.append(path)
        if len(self._created) > 2 * SLOTS:
            oldest = self._created.pop(self._random.randrange(SLOTS))
            history = self.histories[oldest]
            history.begin(None)
            oldest.unlink()
            _fsync(self._directory)
            history.acknowledge()

    def _replace(self) -> None:
        path = self._directory / f"replaced{self._random.randrange(SLOTS)}"
        history = self._history(path, atomic=True)
        contents = self._contents()
        new = self._directory / "new"
        with new.open("wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        history.begin(contents)
        new.rename(path)
        _fsync(self._directory)
        history.acknowledge()

    def _overwrite(self) -> None:
        path = self._directory / f"overwritten{self._random.randrange(SLOTS)}"
        history = self._history(path)
        contents = bytearray(history.contents or b"")
        length = self._random.choice((SECTOR, 4096, 10000, 40000))
        start = self._random.randrange(len(contents) - length)
        contents[start : start + length] = self._random.randbytes(length)
        history.begin(bytes(contents))
        with path.open("r+b") as file:
            file.seek(start)
            file.write(contents[start : start + length])
            file.flush()
            if self._random.random() < 0.7:  # the others come with a later one, or not at all
                self._random.choice((os.fsync, os.fdatasync))(file.fileno())
                history.acknowledge()

    def _write_new(self, path: Path, history: History, contents: bytes) -> None:
        history.begin(contents)
        with path.open("xb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        history.acknowledge()


def run(workers: list[Worker], operations: int) -> None:
    """Let the *workers* do *operations* side by side; raise what the first that failed raised."""
    each = operations // len(workers)
    failures: list[BaseException] = []

    def work(worker: Worker) -> None:
        try:
            for _ in range(each):
                if failures:
                    break
                worker.work()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def complaints(root: Path, histories: dict[Path, History], mounted: Path, position: int) -> Iterator[str]:
    """Compare the files below *root*, found below *mounted* after a power failure at *position*."""
    for path, history in histories.items():
        try:
            found = (mounted / path.relative_to(root)).read_bytes()
        except FileNotFoundError:
            found = None
        except OSError as exc:
            yield f"{path.name}: {exc.strerror}"
            continue
        if complaint := history.complaint(found, position):
            yield f"{path.name}: {complaint}"


def _fsync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
