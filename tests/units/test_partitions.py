"""The partition tables that fdisk(8) writes, and tables that lie."""

import os
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.limits import MAX_PARTITIONS
from iscsifs.units.partitions import Partition, partitions

MIB = 1 << 20
LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"


def read_table(disk: bytes | bytearray, block_size: int = 512) -> list[Partition]:
    """Run the parser on an image; it must ask for bytes of the disk only."""
    parser = partitions(len(disk), block_size)
    try:
        offset, size = next(parser)
        while True:
            assert 0 <= offset <= offset + size <= len(disk)
            assert size <= 512 << 10
            offset, size = parser.send(bytes(disk[offset : offset + size]))
    except StopIteration as stop:
        found: list[Partition] = stop.value
    assert len(found) <= MAX_PARTITIONS
    for partition in found:
        assert 0 < partition.start < partition.start + partition.size <= len(disk)
    return found


def fdisk(image: Path, script: str, block_size: int = 512) -> bytearray:
    """Make a table with fdisk, from a *script* of sfdisk, on a sparse image of 64 MiB."""
    image.write_bytes(b"")
    os.truncate(image, 64 * MIB)
    script_file = image.with_suffix(".script")
    script_file.write_text(script)
    command = ["fdisk", "-b", str(block_size), str(image)]
    subprocess.run(command, input=f"I\n{script_file}\nw\n", text=True, check=True, capture_output=True)
    return bytearray(image.read_bytes())


@pytest.fixture(params=[512, 4096])
def block_size(request: pytest.FixtureRequest) -> int:
    size: int = request.param
    return size


def test_a_gpt_shows_numbers_places_types_and_names(tmp_path: Path, block_size: int) -> None:
    script = f"label: gpt\nstart={MIB // block_size}, size=16MiB, name=boot\n4: size=8MiB, name=data\n"
    assert read_table(fdisk(tmp_path / "disk", script, block_size), block_size) == [
        Partition(1, MIB, 16 * MIB, LINUX, "boot"),
        Partition(4, 17 * MIB, 8 * MIB, LINUX, "data"),
    ]


def test_the_backup_of_a_gpt_serves_where_the_first_is_damaged(tmp_path: Path, block_size: int) -> None:
    disk = fdisk(tmp_path / "disk", "label: gpt\nsize=16MiB\n", block_size)
    whole = read_table(disk, block_size)
    assert len(whole) == 1
    disk[block_size + 40] ^= 1  # the first usable block
    assert read_table(disk, block_size) == whole
    disk[-block_size + 40] ^= 1
    assert read_table(disk, block_size) == []


def test_an_mbr_has_primary_and_logical_partitions(tmp_path: Path, block_size: int) -> None:
    script = (
        "label: dos\nstart=1MiB, size=8MiB\nstart=9MiB, size=4MiB, type=7\n"
        "start=16MiB, size=40MiB, type=5\nstart=17MiB, size=4MiB\nstart=24MiB, size=4MiB, type=82\n"
    )
    assert read_table(fdisk(tmp_path / "disk", script, block_size), block_size) == [
        Partition(1, MIB, 8 * MIB, "0x83"),
        Partition(2, 9 * MIB, 4 * MIB, "0x07"),
        Partition(5, 17 * MIB, 4 * MIB, "0x83"),
        Partition(6, 24 * MIB, 4 * MIB, "0x82"),
    ]


def boot_record(*entries: tuple[int, int, int], status: int = 0) -> bytearray:
    block = bytearray(512)
    for index, (kind, first, count) in enumerate(entries):
        struct.pack_into("<B3xB3xII", block, 446 + 16 * index, status, kind, first, count)
    block[510:] = b"\x55\xaa"
    return block


def test_a_boot_sector_with_code_in_the_place_of_the_table_has_no_partitions() -> None:
    disk = boot_record((0x83, 1, 10), status=0x41) + bytes(MIB)
    assert read_table(disk) == []
    disk = boot_record((0x83, 1, 10), status=0x80) + bytes(MIB)
    assert read_table(disk) == [Partition(1, 512, 5120, "0x83")]


def test_what_lies_beyond_the_end_is_cut_or_left_out() -> None:
    disk = boot_record((0x83, 10, 2**32 - 1), (0x83, 2**31, 10)) + bytes(20 * 512)
    assert read_table(disk) == [Partition(1, 5120, len(disk) - 5120, "0x83")]


def test_a_chain_of_extended_records_that_bites_its_tail_ends() -> None:
    disk = bytearray(100 * 512)
    disk[:512] = boot_record((5, 10, 90))
    disk[10 * 512 : 11 * 512] = boot_record((0x83, 1, 2), (5, 20, 5))
    disk[30 * 512 : 31 * 512] = boot_record((0x83, 1, 2), (5, 20, 5))
    assert [partition.number for partition in read_table(disk)] == [5, 6]


def gpt(header: dict[str, int], entries: bytes, disk_blocks: int = 2000) -> bytearray:
    """Return a disk with a GPT whose checksums are right, and whose *header* says what it likes."""
    says = {"length": 92, "own": 1, "first": 34, "last": 1900, "entries": 2, "count": 4, "size": 128} | header
    disk = bytearray(disk_blocks * 512)
    disk[:512] = boot_record((0xEE, 1, disk_blocks - 1))
    if says["entries"] < disk_blocks:
        disk[says["entries"] * 512 : says["entries"] * 512 + len(entries)] = entries
    front = b"EFI PART", b"\0\0\1\0", says["length"], 0, 0, says["own"], 0, says["first"], says["last"]
    behind = bytes(16), says["entries"], says["count"], says["size"], zlib.crc32(entries)
    packed = bytearray(struct.pack("<8s4sIIIQQQQ16sQIII", *front, *behind))
    packed[16:20] = zlib.crc32(packed[: says["length"]]).to_bytes(4, "little")
    disk[512 : 512 + len(packed)] = packed
    return disk


def entry(begin: int, end: int) -> bytes:
    return struct.pack("<16s16sQQQ72s", b"T" * 16, b"U" * 16, begin, end, 0, "x".encode("utf-16-le"))


ENTRIES = entry(40, 49) + entry(60, 59) + entry(10, 20) + entry(100, 5000)


def test_entries_of_a_gpt_outside_its_usable_blocks_are_left_out() -> None:
    (partition,) = read_table(gpt({}, ENTRIES))
    assert (partition.number, partition.start, partition.size, partition.name) == (1, 40 * 512, 5120, "x")


@pytest.mark.parametrize(
    "header",
    [
        *({"length": 91}, {"length": 513}, {"own": 2}, {"first": 1901}, {"last": 2000}),
        *({"entries": 1}, {"entries": 2000}, {"entries": 2**63}, {"count": 0}, {"count": 2**32 - 1}),
        *({"size": 64}, {"size": 132}, {"count": 65536, "size": 65536}),
    ],
)
def test_a_header_that_contradicts_the_disk_is_no_table(header: dict[str, int]) -> None:
    assert read_table(gpt(header, ENTRIES)) == []


@given(st.lists(st.tuples(st.sampled_from([0, 5, 0xEE, 0x83]), st.integers(0, 99), st.integers(0, 99))))
def test_any_boot_records_end(entries: list[tuple[int, int, int]]) -> None:
    disk = bytearray(100 * 512)
    for place in range(0, len(entries), 4):
        disk[place * 512 : (place + 1) * 512] = boot_record(*entries[place : place + 4])
    read_table(disk[: 100 * 512])


@given(st.binary(min_size=1024, max_size=4096))
def test_any_bytes_are_read(data: bytes) -> None:
    read_table(boot_record((0xEE, 1, 9)) + bytearray(data[: len(data) // 512 * 512]))
