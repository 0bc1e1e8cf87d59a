"""One mount of one target: fio on it round after round, and trouble all the time."""

import os
import random
import subprocess
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from support.mounting import ENVIRONMENT, ISCSIFS

from . import load
from .sides import NAME, SIZE, Embedded, RealTgt, Trouble, until

MIB: Final = 1 << 20
HANG: Final = 600.0  # seconds for a round; it takes less, whatever goes wrong meanwhile
START: Final = 30.0  # seconds that iscsifs may take to mount, and to end
CALM: Final = (0.5, 4.0)  # seconds between two troubles
PLACES: Final = ("buffered", "direct", "ext4", "ext4, direct")


@dataclass(frozen=True)
class Plan:
    """Which target, and how it is mounted."""

    target: type[Embedded] | type[RealTgt]
    behind: bool
    digests: bool
    block_size: int = 512

    def __str__(self) -> str:
        name = "embedded" if self.target is Embedded else "tgt"
        words = [name, "write-behind" if self.behind else "no write-behind"]
        words += ["CRC32C"] if self.digests else []
        words += [str(self.block_size)] if self.block_size != 512 else []
        return ", ".join(words)


class Lane:
    """Carries out *plan* in *directory*. Everything that is random comes from *rng*."""

    def __init__(self, plan: Plan, directory: Path, rng: random.Random) -> None:
        self.plan = plan
        self.tally = load.Tally()
        self.troubles: Counter[str] = Counter()
        self.memory: list[int] = []
        """The resident bytes of iscsifs, each time that they were looked at."""
        self.said: list[str] = []
        """What went wrong."""
        self.log = directory / "log"
        self._directory = directory
        self._random = rng
        self._process: trio.Process | None = None

    async def run(self, stop: trio.Event) -> None:
        """Work until *stop*, and on to the end of the round; what goes wrong is counted and told."""
        plan = self.plan
        (mountpoint := self._directory / "mnt").mkdir()
        (root := self._directory / "root").mkdir()
        async with AsyncExitStack() as stack:
            side: Embedded | RealTgt = (
                Embedded(self._directory, self._random, block_size=plan.block_size)
                if plan.target is Embedded
                else RealTgt(self._directory, self._random, digests=plan.digests)
            )
            await side.start(stack, digests=plan.digests)
            try:
                await self._mount(f"iscsi://{side.proxy.portal}/{NAME}/{side.lun}", mountpoint)
                storage = mountpoint / "127.0.0.1" / "disk" / "storage"
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._disturb, side.troubles())
                    nursery.start_soon(self._watch)
                    while not stop.is_set():
                        await self._round(PLACES[self.tally.rounds % len(PLACES)], storage, side.image, root)
                    nursery.cancel_scope.cancel()
                await load.command("fusermount3", "-u", mountpoint)
            except* load.Failed as group:
                self.tally.errors += len(group.exceptions)
                self.said += map(str, group.exceptions)
            finally:
                with trio.CancelScope(shield=True):
                    await self._end(mountpoint)

    def look(self) -> None:
        """Take note of the memory that iscsifs uses."""
        if self._process is not None and self._process.poll() is None:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
            self.memory.append(pages * os.sysconf("SC_PAGE_SIZE"))

    async def _round(self, place: str, storage: Path, image: Path, root: Path) -> None:
        seed = self._random.randrange(1 << 31)
        direct = "direct" in place
        if "ext4" in place:
            job = load.Job(root / "file", 16 * MIB, seed, direct=direct)
            async with load.ext4(storage, root, make=True):
                await job.write(self.tally, self.said)
            async with load.ext4(storage, root, make=False):
                await job.verify(self.tally, self.said)
        else:
            job = load.Job(storage, SIZE // 8, seed, direct=direct)
            await job.write(self.tally, self.said)
            await job.verify(self.tally, self.said)
            await job.verify(self.tally, self.said, image)  # fsync said that it is there
        self.tally.rounds += 1

    async def _disturb(self, troubles: Mapping[str, Trouble]) -> None:
        while True:
            await trio.sleep(self._random.uniform(*CALM))
            name = self._random.choice(list(troubles))
            self.troubles[name] += await troubles[name]()

    async def _watch(self) -> None:
        """End iscsifs when no round is over for long: with it end the programs that wait."""
        assert self._process is not None
        while True:
            rounds = self.tally.rounds
            await trio.sleep(HANG)
            if self.tally.rounds == rounds:
                self.tally.hangs += 1
                self.said.append(f"nothing was done for {HANG:g} s")
                self._process.kill()
                return

    async def _mount(self, url: str, mountpoint: Path) -> None:
        options = ["-o", f"writebehind={int(self.plan.behind)}"]
        options += ["--digest", "all"] if self.plan.digests else []
        with self.log.open("wb") as log:
            process = self._process = await trio.lowlevel.open_process(
                [*ISCSIFS, "-f", *options, url, str(mountpoint)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | ENVIRONMENT,
            )
        await until(lambda: _is_mounted(mountpoint) or process.poll() is not None, START)
        if process.poll() is not None or not _is_mounted(mountpoint):
            raise load.Failed(f"it does not mount: {self.log.read_text(errors='replace')}")

    async def _end(self, mountpoint: Path) -> None:
        """Wait for the end of iscsifs, which has to be a good one."""
        process = self._process
        if process is None:
            return
        with trio.move_on_after(START if not _is_mounted(mountpoint) else 0):
            await process.wait()
        if process.poll() is None:
            process.kill()
            await process.wait()
        if process.returncode:
            self.tally.errors += 1
            self.said.append(f"iscsifs ended with status {process.returncode}")
        if _is_mounted(mountpoint):
            await load.command("fusermount3", "-u", "-z", mountpoint, check=False)


def _is_mounted(path: Path) -> bool:
    return f" {path} " in Path("/proc/self/mounts").read_text()
