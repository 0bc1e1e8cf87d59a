"""fio: what it writes, and whether that is what is read afterwards."""

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

_MISMATCH: Final = 84  # EILSEQ: fio's error for data that are not what was written
_BLOCK_SIZES: Final = "512/15:2k/15:4k/40:20k/15:64k/10:256k/5"


@dataclass
class Tally:
    """What was done so far, and what went wrong."""

    rounds: int = 0
    reads: int = 0
    writes: int = 0
    bytes: int = 0
    mismatches: int = 0
    errors: int = 0
    hangs: int = 0

    @property
    def operations(self) -> int:
        """Reads and writes."""
        return self.reads + self.writes

    @property
    def is_clean(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.mismatches or self.errors or self.hangs)

    def add(self, other: "Tally") -> None:
        """Count what *other* counts too."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Failed(Exception):
    """A command ended with an error; the message says which."""


async def command(*words: object, check: bool = True) -> "subprocess.CompletedProcess[bytes]":
    """Run a command; raise `Failed` where it fails and that is not to be."""
    text = [str(word) for word in words]
    done = await trio.run_process(text, capture_stdout=True, capture_stderr=True, check=False)
    if check and done.returncode:
        raise Failed(f"{' '.join(text)}: {(done.stderr or done.stdout).decode(errors='replace').strip()}")
    return done


class Job:
    """One random fill of *size* bytes of *file*, known by its *seed*, and the check of it.

    Every block carries its place and the seed, so that what is lost, torn, old or somewhere else is seen.
    """

    def __init__(self, file: Path, size: int, seed: int, *, direct: bool) -> None:
        self._file = file
        engine = ("--ioengine=libaio", "--iodepth=8") if direct else ("--ioengine=psync",)
        self._options = (
            "--name=soak",
            "--rw=randwrite",
            f"--size={size}",
            f"--bssplit={_BLOCK_SIZES}",
            f"--randseed={seed}",
            "--verify=crc32c",
            f"--direct={int(direct)}",
            "--verify_state_save=0",
            "--output-format=json",
            "--continue_on_error=verify",
            *engine,
        )

    async def write(self, tally: Tally, say: list[str]) -> None:
        """Write, with an fsync now and then and one at the end."""
        await self._fio(self._file, tally, say, "--do_verify=0", "--fsync=200", "--end_fsync=1")

    async def verify(self, tally: Tally, say: list[str], file: Path | None = None) -> None:
        """Read everything back, out of *file* where the same is to be found there."""
        await self._fio(file or self._file, tally, say, "--verify_only=1")

    async def _fio(self, file: Path, tally: Tally, say: list[str], *options: str) -> None:
        done = await command("fio", f"--filename={file}", *self._options, *options, check=False)
        output = done.stdout.decode(errors="replace")
        try:
            (job,) = json.loads(output[output.index("{") :])["jobs"]
        except ValueError:
            raise Failed(f"fio {file}: {done.stderr.decode(errors='replace').strip()}") from None
        tally.reads += job["read"]["total_ios"]
        tally.writes += job["write"]["total_ios"]
        tally.bytes += job["read"]["io_bytes"] + job["write"]["io_bytes"]
        if job["error"] or done.returncode or job.get("total_err", 0):
            if job["error"] in (0, _MISMATCH) and job.get("first_error", _MISMATCH) in (0, _MISMATCH):
                tally.mismatches += max(job.get("total_err", 0), 1)
            else:
                tally.errors += 1
            say.append(f"fio {file}: {done.stderr.decode(errors='replace').strip()[-2000:]}")


@asynccontextmanager
async def ext4(storage: Path, root: Path, *, make: bool) -> AsyncIterator[Path]:
    """Mount the file system on a loop device on *storage* at *root*, and check it after that."""
    device = (await command("losetup", "--direct-io=on", "-f", "--show", storage)).stdout.decode().strip()
    try:
        if make:
            await command("mkfs.ext4", "-q", "-F", device)
        await command("mount", device, root)
        try:
            yield root
        finally:
            with trio.CancelScope(shield=True):
                await command("umount", root)
        await command("e2fsck", "-f", "-n", device)
    finally:
        with trio.CancelScope(shield=True):
            await command("losetup", "-d", device)
