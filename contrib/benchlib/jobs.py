"""The fio jobs, how they are run, and how what they wrote is read back from the image behind the target."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MIB = 1 << 20
Unit = Literal["GB/s", "k/s"]


@dataclass(frozen=True)
class Job:
    """A row of the table: one fio job on a file *storage*.

    Reads last a time; writes go once over *size* MiB (*far_size* behind the delaying relay), so that every
    byte that the image must hold afterwards is known.
    """

    name: str
    options: tuple[str, ...]
    size: int = 0
    far_size: int = 0

    @property
    def writes(self) -> bool:
        """Whether the job changes the image."""
        return self.size > 0

    @property
    def block_size(self) -> int:
        """Bytes of one operation."""
        return MIB if "1M" in self.name else 4096

    @property
    def unit(self) -> Unit:
        """What the job's figure counts: bytes for large blocks, operations for small ones."""
        return "GB/s" if self.block_size == MIB else "k/s"

    @property
    def sequential(self) -> bool:
        """Whether the job goes through the file in order."""
        return "rand" not in self.name


DEPTH_1 = ("--ioengine=psync",)
DEPTH_8 = ("--ioengine=libaio", "--iodepth=8")
DEPTH_32 = ("--ioengine=libaio", "--iodepth=32")
DIRECT = ("--direct=1",)
END = ("--end_fsync=1",)

JOBS = (
    Job("read 1M, buffered", ("--rw=read", *DEPTH_1)),
    Job("read 1M, O_DIRECT", ("--rw=read", *DEPTH_1, *DIRECT)),
    Job("read 1M, O_DIRECT, depth 8", ("--rw=read", *DEPTH_8, *DIRECT)),
    Job("randread 4k, depth 1", ("--rw=randread", *DEPTH_1, *DIRECT)),
    Job("randread 4k, depth 32", ("--rw=randread", *DEPTH_32, *DIRECT)),
    Job("write 1M, buffered", ("--rw=write", *DEPTH_1, *END), 1024, 256),
    Job("write 1M, O_DIRECT", ("--rw=write", *DEPTH_1, *DIRECT, *END), 1024, 256),
    Job("write 1M, O_DIRECT, depth 8", ("--rw=write", *DEPTH_8, *DIRECT, *END), 1024, 256),
    Job("randwrite 4k, depth 1", ("--rw=randwrite", *DEPTH_1, *DIRECT, *END), 64, 8),
    Job("randwrite 4k, depth 32", ("--rw=randwrite", *DEPTH_32, *DIRECT, *END), 256, 64),
    Job("randwrite 4k, fsync after each", ("--rw=randwrite", *DEPTH_1, *DIRECT, "--fsync=1"), 32, 4),
)


@dataclass(frozen=True)
class Result:
    """The figure of one run in the job's unit, and how many of the blocks it wrote are wrong in the image."""

    rate: float
    wrong_blocks: int = 0


class JobFailed(Exception):
    """fio ended with an error; the message is fio's last line."""


def run(job: Job, storage: Path, image: Path, *, far: bool, quick: bool) -> Result:
    """Run *job* on *storage*, and when it writes, compare *image*, the file behind the target."""
    size = (job.far_size if far else job.size) // (4 if quick else 1)
    tag = os.urandom(8)
    command = ["fio", "--name=job", f"--filename={storage}", f"--bs={job.block_size}", *job.options]
    command += ["--allow_file_create=0", "--output-format=json"]
    if job.writes:
        # Each block is filled with this run's tag and its own offset: a block that was lost, torn or put in
        # the wrong place cannot look right.
        command += [
            f"--size={size}M",
            "--verify=pattern",
            f"--verify_pattern=0x{tag.hex()}%o",
            "--do_verify=0",
        ]
    else:
        command += ["--size=1024M", "--time_based", f"--runtime={700 if quick else 2000}ms"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise JobFailed((done.stderr.strip() or done.stdout.strip()).splitlines()[-1])
    report = json.loads(done.stdout)["jobs"][0]["write" if job.writes else "read"]
    operations = report["total_ios"] / report["runtime"] * 1000
    rate = operations * job.block_size / 1e9 if job.unit == "GB/s" else operations / 1e3
    return Result(rate, wrong_blocks(image, size * MIB, job.block_size, tag) if job.writes else 0)


def wrong_blocks(image: Path, size: int, block_size: int, tag: bytes) -> int:
    """Count the blocks in the first *size* bytes of *image* that do not hold *tag* and their own offset."""
    wrong = 0
    with image.open("rb") as file:
        for offset in range(0, size, block_size):
            pattern = tag + offset.to_bytes(8, "little")
            wrong += file.read(block_size) != pattern * (block_size // len(pattern))
    return wrong
