"""What the file system asks of a logical unit, or of a partition of one."""

from collections.abc import Iterator, Sequence
from typing import Protocol


class Storage(Protocol):
    """A logical unit, or a partition of one, as a range of bytes.

    What it raises is an `iscsifs.errors.IscsifsError`.
    """

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def whole(self) -> "Storage":
        """The logical unit: the storage itself, unless it is a partition of that."""

    @property
    def start(self) -> int:
        """The offset in `whole` of the first byte."""

    @property
    def parts(self) -> "Sequence[Storage]":
        """The partitions that are storages of their own."""

    @property
    def size(self) -> int:
        """The capacity in bytes; it may change (`Operations.changed`)."""

    @property
    def block_size(self) -> int:
        """The length of a logical block in bytes."""

    @property
    def preferred_size(self) -> int:
        """The length in bytes with which transfers go best."""

    @property
    def read_only(self) -> bool:
        """Whether the unit is write-protected."""

    @property
    def failures(self) -> int:
        """How often writes that had succeeded turned out to be lost."""

    @property
    def last_failure(self) -> Exception | None:
        """The latest such loss."""

    @property
    def is_away(self) -> bool:
        """Whether nothing is answered at present, because the connection was lost."""

    @property
    def unwritten(self) -> int:
        """How many bytes that were accepted are not known to be in the unit."""

    @property
    def needs_flush(self) -> bool:
        """Whether anything was written, or is being written, that is not known to be on stable storage."""

    async def read(self, offset: int, size: int) -> bytes | bytearray | memoryview:
        """Return *size* bytes from *offset*, fewer only at the end of the unit."""

    async def write(self, offset: int, data: bytes, sync: bool = False) -> None:
        """Write *data* at *offset*, all of it within the unit; what fails later counts in `failures`.

        With *sync* it returns when they are on stable storage, and raises what fails.
        """

    def shrinks(self, size: int) -> bool:
        """Say whether `truncate` to *size* lays the end of what programs mean further to the front."""

    async def truncate(self, size: int) -> None:
        """Let what comes inside *size* bytes again, and is not written, be zeros; the capacity stays."""

    async def zero(self) -> None:
        """Return when what has to be zeros after a truncation is zeros in the unit."""

    def release(self) -> None:
        """From now on nobody writes who would know of the last truncation."""

    def take_stale(self) -> bool:
        """Say whether copies of what was read may have old bytes where there are zeros now; once."""

    def relieve(self) -> None:
        """Soon keep nothing in memory that need not be kept; called again as long as memory is short."""

    async def drain(self) -> None:
        """Return when every write that was received before is in the unit, or counts in `failures`."""

    async def flush(self) -> None:
        """Return when every write that was received before is on stable storage."""


def overlapping(storage: Storage) -> Iterator[Storage]:
    """Yield *storage* and the others that have bytes of it: its partitions, or its unit and the partitions
    that overlap."""
    yield storage
    whole = storage.whole
    if storage is whole:
        yield from whole.parts
        return
    yield whole
    start, end = storage.start, storage.start + storage.size
    for part in whole.parts:
        if part is not storage and part.start < end and start < part.start + part.size:
            yield part
