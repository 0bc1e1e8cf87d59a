"""Writes under way, by the blocks that they touch: those that overlap go one after the other."""

import trio


class Range:
    """Bytes *start* to *end* (exclusive) of a write under way, until that is `over`."""

    __slots__ = ("_end_of_it", "end", "over", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.over = False
        self._end_of_it: trio.Event | None = None  # made by the first who waits

    async def wait(self) -> None:
        """Return when the write is over."""
        if not self.over:
            if self._end_of_it is None:
                self._end_of_it = trio.Event()
            await self._end_of_it.wait()

    def finish(self) -> None:
        """Say that it is."""
        self.over = True
        if self._end_of_it is not None:
            self._end_of_it.set()


class Ranges:
    """The writes of one logical unit, in the order of their arrival."""

    def __init__(self) -> None:
        self._active: dict[Range, None] = {}

    def __bool__(self) -> bool:
        """Whether any write is under way."""
        return bool(self._active)

    async def enter(self, start: int, end: int) -> Range:
        """Wait until no earlier write touches bytes *start* to *end*; the caller must `leave` it again."""
        earlier = [other for other in self._active if other.start < end and start < other.end]
        mine = Range(start, end)
        self._active[mine] = None
        try:
            for other in earlier:
                await other.wait()
        except BaseException:
            self.leave(mine)
            raise
        return mine

    def leave(self, mine: Range) -> None:
        """Say that the write is over, well or not."""
        del self._active[mine]
        mine.finish()

    async def drain(self) -> None:
        """Wait until every write that is under way now is over."""
        for other in list(self._active):
            await other.wait()
