"""A part of a disk as a range of bytes of its own: a partition."""

from typing import TYPE_CHECKING, Final

from iscsifs.errors import DataError, IscsifsError
from iscsifs.units.holes import Holes

if TYPE_CHECKING:
    from iscsifs.units.block import BlockUnit


class Window:
    """*size* bytes from *start* of the disk *whole*, whose *holes* it shares; *name* is for messages.

    It is written to by the write buffer of the disk, and what is lost is lost by the disk. Nothing outside is
    read, written or made zeros by it. All methods raise what those of the disk raise.
    """

    def __init__(self, whole: "BlockUnit", holes: Holes, name: str, start: int, size: int) -> None:
        self.whole: Final = whole
        self.name: Final = name
        self.start: Final = start
        self._holes = holes
        self._view = holes.view(start, start + size)

    def resize(self, size: int) -> None:
        """Let it have *size* bytes."""
        self._view.resize(self.start + size)

    def close(self) -> None:
        """Forget what was truncated: nobody uses it any more."""
        self._holes.remove_view(self._view)

    @property
    def size(self) -> int:
        """The number of bytes, as far as the disk has them."""
        return max(0, min(self._view.stop, self.whole.size) - self.start)

    @property
    def parts(self) -> tuple[()]:
        """Nothing: a partition is not divided."""
        return ()

    @property
    def block_size(self) -> int:
        """Bytes of a logical block."""
        return self.whole.block_size

    @property
    def preferred_size(self) -> int:
        """Bytes of a transfer that goes well."""
        return self.whole.preferred_size

    @property
    def read_only(self) -> bool:
        """Whether the disk takes no writes."""
        return self.whole.read_only

    @property
    def failures(self) -> int:
        """How many losses the disk had."""
        return self.whole.failures

    @property
    def last_failure(self) -> IscsifsError | None:
        """The latest of these losses."""
        return self.whole.last_failure

    @property
    def is_away(self) -> bool:
        """Whether there is no session with the target."""
        return self.whole.is_away

    @property
    def unwritten(self) -> int:
        """How many bytes that the disk has accepted are not known to have reached the target."""
        return self.whole.unwritten

    @property
    def needs_flush(self) -> bool:
        """Whether the disk has anything that is not known to be on stable storage."""
        return self.whole.needs_flush

    async def read(self, offset: int, size: int) -> memoryview:
        """Return *size* bytes from *offset*; fewer, or none, at the end."""
        size = min(size, self.size - offset)
        return await self.whole.read(self.start + offset, size) if size > 0 else memoryview(b"")

    async def write(self, offset: int, data: bytes, sync: bool = False) -> None:
        """Write *data* at *offset*, as `BlockUnit.write` does; raises DataError where they do not fit."""
        if offset < 0 or offset + len(data) > self.size:
            raise DataError(f"{self.name}: {len(data)} bytes at {offset} are not within it")
        await self.whole.write(self.start + offset, data, sync)

    def shrinks(self, size: int) -> bool:
        """Say whether a truncation to *size* would lay the end of what programs mean further to the front."""
        return self._view.shrinks(size, self.whole.size)

    async def truncate(self, size: int) -> None:
        """Let *size* bytes be what programs mean of it, as far as its bytes are to be zeros."""
        if self.whole.failure is not None:
            raise self.whole.failure
        self._view.truncate(size, self.whole.size)

    async def zero(self) -> None:
        """Return when the holes of the disk are zeros."""
        await self.whole.zero()

    def release(self) -> None:
        """From now on nobody writes who would know of the last truncation."""
        self._view.release()

    def take_stale(self) -> bool:
        """Say whether copies of what was read may have old bytes where there are zeros now; once."""
        stale, self._view.stale = self._view.stale, False
        return stale

    def relieve(self) -> None:
        """Do nothing: the disk is told as well."""

    async def drain(self) -> None:
        """Return when all writes that the disk received before have reached the target, or have failed."""
        await self.whole.drain()

    async def flush(self) -> None:
        """Return when all writes that the disk received before are on stable storage."""
        await self.whole.flush()
