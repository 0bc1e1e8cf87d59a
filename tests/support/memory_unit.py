"""A logical unit in memory."""

from dataclasses import dataclass, field


@dataclass(eq=False)
class Memory:
    """*size* bytes; keeps what it was asked for, and fails with *failure* while that is set."""

    size: int
    read_only: bool = False
    block_size: int = 512
    preferred_size: int = 1 << 20
    failure: Exception | None = None
    flushes: int = 0
    failures: int = 0
    last_failure: Exception | None = None
    name: str = "disk"
    is_away: bool = False
    unwritten: int = 0
    needs_flush: bool = False
    end: int | None = None
    stale: bool = False
    content: bytearray = field(init=False, repr=False)
    requests: list[tuple[str, int, int]] = field(default_factory=list, repr=False)
    synchronous: list[bool] = field(default_factory=list, repr=False)
    """For each write, whether it was to reach stable storage."""

    def __post_init__(self) -> None:
        self.content = bytearray(self.size)

    async def read(self, offset: int, size: int) -> memoryview:
        self._note("read", offset, size)
        return memoryview(self.content)[offset : offset + size]

    async def write(self, offset: int, data: bytes, sync: bool = False) -> None:
        self._note("write", offset, len(data))
        self.synchronous.append(sync)
        assert offset + len(data) <= self.size
        self.content[offset : offset + len(data)] = data

    def shrinks(self, size: int) -> bool:
        return size < (self.size if self.end is None else self.end)

    async def truncate(self, size: int) -> None:
        self._note("truncate", 0, size)
        self.end = size

    async def zero(self) -> None:
        self._note("zero", 0, 0)

    def release(self) -> None:
        self.requests.append(("release", 0, 0))

    @property
    def whole(self) -> "Memory":
        return self

    @property
    def start(self) -> int:
        return 0

    @property
    def parts(self) -> tuple[()]:
        return ()

    def take_stale(self) -> bool:
        stale, self.stale = self.stale, False
        return stale

    def relieve(self) -> None:
        self.requests.append(("relieve", 0, 0))

    async def drain(self) -> None:
        self._note("drain", 0, 0)

    def lose(self, failure: Exception) -> None:
        """Lose a write that had been acknowledged."""
        self.failures += 1
        self.last_failure = failure

    async def flush(self) -> None:
        self._note("flush", 0, 0)
        self.flushes += 1

    def _note(self, operation: str, offset: int, size: int) -> None:
        self.requests.append((operation, offset, size))
        if self.failure is not None:
            raise self.failure
