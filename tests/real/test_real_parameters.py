"""Reading and writing under all the parameters that the regression test of open-iscsi goes through.

Six ways to send the first data, with and without digests, times sixteen sizes of bursts and segments.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import trio

from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.keys import Value
from iscsifs.iscsi.names import Portal
from iscsifs.service import open_initiator
from support.disks import disks
from support.targets import Daemon, Istgt, Serve, Target, Tgt, Unit, make_image

pytestmark = pytest.mark.real

NAME = "iqn.2026-01.example:disk"
REGION = 1 << 19
SIZES = (1, 511, 4096, 8192, 65536, 140_000)  # of the writes; each ends elsewhere in a burst

# ImmediateData, InitialR2T, HeaderDigest, DataDigest.
WAYS = [
    (False, True, "None", "None"),
    (True, False, "None", "None"),
    (True, True, "None", "None"),
    (False, False, "None", "None"),
    (False, True, "CRC32C", "None"),
    (False, True, "CRC32C", "CRC32C"),
]
# FirstBurstLength, MaxBurstLength, MaxRecvDataSegmentLength.
LENGTHS = [
    (4096, 4096, 4096),
    *((first, 4096, 4096) for first in (8192, 16384, 32768, 65536, 131972)),
    *((4096, burst, 4096) for burst in (8192, 16384, 32768, 65536, 131072)),
    *((4096, 4096, segment) for segment in (8192, 16384, 32768, 65536, 131072)),
]


@dataclass(frozen=True)
class Case:
    """One of the combinations."""

    number: int
    immediate_data: bool
    initial_r2t: bool
    header_digest: str
    data_digest: str
    first_burst: int
    max_burst: int
    segment: int

    @property
    def offer(self) -> dict[str, Value]:
        """What the initiator says, its FirstBurstLength not above its MaxBurstLength (section 13.14)."""
        return {
            "ImmediateData": self.immediate_data,
            "InitialR2T": self.initial_r2t,
            "HeaderDigest": (self.header_digest,),
            "DataDigest": (self.data_digest,),
            "FirstBurstLength": min(self.first_burst, self.max_burst),
            "MaxBurstLength": self.max_burst,
            "MaxRecvDataSegmentLength": self.segment,
        }

    @property
    def lengths(self) -> dict[str, str]:
        """The lengths as the target is told them."""
        return {
            "FirstBurstLength": str(self.first_burst),
            "MaxBurstLength": str(self.max_burst),
            "MaxRecvDataSegmentLength": str(self.segment),
        }

    def writes(self) -> list[tuple[int, bytes]]:
        """Offsets and data within the region of this case, the same at each call."""
        choice = random.Random(self.number)
        start = self.number * REGION
        writes = []
        for size in SIZES:
            offset = start + choice.randrange(512)
            writes.append((offset, choice.randbytes(size)))
            start += 2 * size // 512 * 512 + 1024
        assert start <= (self.number + 1) * REGION
        return writes

    async def run(self, daemon: Daemon, target_name: str, expected: Mapping[str, object]) -> None:
        """Log in, check what was settled, write and read."""
        options = InitiatorOptions(
            "iqn.2026-01.example:me", offer=self.offer, write_behind=False, login_timeout=60
        )
        async with open_initiator(options) as initiator:
            target = await initiator.login(target_name, [Portal("127.0.0.1", daemon.port)])
            parameters = target.session.link.connection.parameters
            settled = {name: getattr(parameters, name) for name in expected}
            assert settled == expected, self
            (disk,) = disks(target.units)
            for offset, data in self.writes():
                await disk.write(offset, data)
            await disk.flush()
            for offset, data in self.writes():
                assert await disk.read(offset, len(data)) == data, self

    def settled(self) -> dict[str, object]:
        """What both sides are to agree on."""
        return {
            "immediate_data": self.immediate_data,
            "initial_r2t": self.initial_r2t,
            "header_digest": self.header_digest == "CRC32C",
            "data_digest": self.data_digest == "CRC32C",
            "first_burst_length": min(self.first_burst, self.max_burst),
            "max_burst_length": self.max_burst,
            "max_send_data_segment_length": self.segment,
            "max_recv_data_segment_length": self.segment,
        }


CASES = [Case(number, *way, *lengths) for number, (way, lengths) in enumerate(product(WAYS, LENGTHS))]


@pytest.fixture
def large_image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "large.img", len(CASES) * REGION)


def check_image(image: Path) -> None:
    """Each case has written what it was to write, and nothing else."""
    expected = bytearray(len(CASES) * REGION)
    for case in CASES:
        for offset, data in case.writes():
            expected[offset : offset + len(data)] = data
    content = image.read_bytes()
    for case in CASES:
        region = slice(case.number * REGION, (case.number + 1) * REGION)
        assert content[region] == expected[region], case


def yes(value: bool) -> str:
    return "Yes" if value else "No"


def test_there_are_96_of_them() -> None:
    assert len(set(CASES)) == 96


async def test_with_tgt(serve: Serve, large_image: Path, tmp_path: Path) -> None:
    disk = Target(NAME, [Unit(large_image)])
    tgt = serve(Tgt(tmp_path, disk))
    current: dict[str, str] = {}
    for case in CASES:
        wanted = case.lengths | {
            "ImmediateData": yes(case.immediate_data),
            "InitialR2T": yes(case.initial_r2t),
            "HeaderDigest": case.header_digest,
            "DataDigest": case.data_digest,
        }
        for key, value in wanted.items():
            if current.get(key) != value:
                await trio.to_thread.run_sync(tgt.update, disk, key, value)
        current = wanted
        await case.run(tgt, NAME, case.settled())
    check_image(large_image)


async def test_with_istgt(serve: Serve, large_image: Path, tmp_path: Path) -> None:
    """Its lengths are fixed for each target at its start; a login takes it a second, so a dozen of it run.

    It starts neither with InitialR2T=No, so that its own Yes decides whatever is offered, nor with a
    FirstBurstLength above MaxBurstLength.
    """
    daemons = 12

    def target(case: Case) -> Target:
        first_burst = str(min(case.first_burst, case.max_burst))
        parameters = {"UseDigest": "Auto", **case.lengths, "FirstBurstLength": first_burst}
        return Target(f"{NAME}{case.number}", [Unit(large_image)], parameters=parameters)

    async def run(cases: Sequence[Case]) -> None:
        istgt = serve(Istgt(tmp_path, *map(target, cases)))
        for case in cases:
            await case.run(istgt, f"{NAME}{case.number}", case.settled() | {"initial_r2t": True})

    async with trio.open_nursery() as nursery:
        for number in range(daemons):
            nursery.start_soon(run, CASES[number::daemons])
    check_image(large_image)
