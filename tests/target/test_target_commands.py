"""Commands of a disk that compare data, report what there is, or change modes; errors of its file."""

import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.scsi import cdb as commands
from iscsifs.scsi import mode, vpd
from iscsifs.scsi.sense import Sense, SenseKey
from iscsifs.target import unit as units
from iscsifs.target.block import Cd
from iscsifs.target.commands import USAGE, sets_reserved_bits
from iscsifs.target.disk import Disk
from iscsifs.target.store import Store
from iscsifs.target.unit import Identity
from support import cdbs
from support.memory_client import BLOCK, BLOCKS, READS, WRITES, Client, block, make_disk


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = make_disk(droppable=True)
    yield disk
    disk.close()


@pytest.fixture
def client(disk: Disk) -> Client:
    return Client(disk)


# Commands that compare, and those that report what there is.


def cdb_10(code: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    return bytes((code, flags)) + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"


def cdb_12(code: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    return bytes((code, flags)) + lba.to_bytes(4, "big") + blocks.to_bytes(4, "big") + b"\0\0"


def cdb_16(code: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    return bytes((code, flags)) + lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + b"\0\0"


def compare_and_write(lba: int, blocks: int, flags: int = 0) -> bytes:
    return bytes((0x89, flags)) + lba.to_bytes(8, "big") + bytes((0, 0, 0, blocks, 0, 0))


Build = Callable[[int, int, int, int], bytes]
VERIFY = [(cdb_10, 0x2F), (cdb_12, 0xAF), (cdb_16, 0x8F)]
WRITE_AND_VERIFY = [(cdb_10, 0x2E), (cdb_12, 0xAE), (cdb_16, 0x8E)]
BYTCHK_ALL, BYTCHK_RESERVED, BYTCHK_ONE = 0x02, 0x04, 0x06


def miscompare(offset: int) -> Sense:
    return Sense(SenseKey.MISCOMPARE, 0x1D, 0x00, information=offset)


@pytest.mark.parametrize(("build", "code"), VERIFY)
def test_verify_compares_as_it_is_asked_to(client: Client, disk: Disk, build: Build, code: int) -> None:
    client.good(commands.write_10(4, 3), block(1, 3))
    client.good(build(code, 4, 3, 0))
    client.good(build(code, 4, 3, BYTCHK_ALL), block(1, 3))
    wrong = bytearray(block(1, 3))
    wrong[BLOCK + 7] ^= 1
    assert client.sense(build(code, 4, 3, BYTCHK_ALL), bytes(wrong)) == miscompare(BLOCK + 7)
    assert client.sense(build(code, 4, 3, BYTCHK_ALL), block(1, 2)) == units.PARAMETER_LIST_LENGTH_ERROR
    assert client.sense(build(code, 4, 3, BYTCHK_ONE), block(1)) == miscompare(BLOCK)
    client.good(build(code, 5, 1, BYTCHK_ONE), block(2))
    client.good(build(code, 5, 0, BYTCHK_ONE))
    assert client.sense(build(code, 4, 3, BYTCHK_RESERVED)) == units.INVALID_FIELD_IN_CDB
    assert client.sense(build(code, BLOCKS - 1, 2, 0)) == units.LBA_OUT_OF_RANGE
    disk.drop_cache()  # what was verified was on the medium
    client.run(commands.test_unit_ready())
    assert client.good(commands.read_10(4, 3)) == block(1, 3)


@pytest.mark.parametrize(("build", "code"), WRITE_AND_VERIFY)
def test_what_is_written_and_verified_is_on_the_medium(
    client: Client, disk: Disk, build: Build, code: int
) -> None:
    for flags in 0, BYTCHK_ALL:
        client.good(build(code, 4 + flags, 2, flags), block(1 + flags, 2))
    disk.drop_cache()
    client.run(commands.test_unit_ready())
    assert client.good(commands.read_10(4, 4)) == block(1, 4)
    for flags in BYTCHK_RESERVED, BYTCHK_ONE:
        assert client.sense(build(code, 4, 1, flags), block(9)) == units.INVALID_FIELD_IN_CDB
    disk.read_only = True
    assert client.sense(build(code, 4, 1, 0), block(9)) == units.WRITE_PROTECTED


def test_compare_and_write_writes_where_the_first_half_is_there(client: Client, disk: Disk) -> None:
    client.good(commands.write_10(4, 2), block(1, 2))
    assert client.sense(compare_and_write(4, 2), block(1) + block(3) + block(8, 2)) == miscompare(BLOCK)
    assert client.good(commands.read_10(4, 2)) == block(1, 2)
    client.good(compare_and_write(4, 2, 0x08), block(1, 2) + block(8, 2))
    disk.drop_cache()  # FUA was asked for
    client.run(commands.test_unit_ready())
    assert client.good(commands.read_10(4, 2)) == block(8, 2)
    client.good(compare_and_write(4, 0))
    assert client.sense(compare_and_write(4, 2), block(8, 3)) == units.PARAMETER_LIST_LENGTH_ERROR
    assert client.sense(compare_and_write(BLOCKS, 1), block(8, 2)) == units.LBA_OUT_OF_RANGE
    assert client.good(commands.read_10(4, 2)) == block(8, 2)
    limits = vpd.BlockLimits.parse(client.good(commands.inquiry(255, 0xB0)))
    assert limits.max_compare_and_write == 255


@given(st.binary(min_size=BLOCK, max_size=BLOCK), st.lists(st.integers(0, BLOCK - 1), min_size=1))
def test_the_first_byte_that_differs_is_named(data: bytes, at: list[int]) -> None:
    disk = make_disk()
    client = Client(disk)
    client.good(commands.write_10(0, 1), data)
    other = bytearray(data)
    for offset in set(at):
        other[offset] ^= 0x80
    assert client.sense(cdb_10(0x2F, 0, 1, BYTCHK_ALL), bytes(other)) == miscompare(min(at))
    disk.close()


def test_orwrite_sets_bits(client: Client) -> None:
    client.good(commands.write_10(4, 2), b"\x0f" * BLOCK + b"\xf0" * BLOCK)
    client.good(cdb_16(0x8B, 4, 2), b"\xc1" * BLOCK + b"\x00" * BLOCK)
    assert client.good(commands.read_10(4, 2)) == b"\xcf" * BLOCK + b"\xf0" * BLOCK


@pytest.mark.parametrize("build", [partial(cdb_10, 0x34), partial(cdb_16, 0x90)])
def test_pre_fetch_checks_its_range(client: Client, build: Callable[[int, int, int], bytes]) -> None:
    client.good(build(4, 8, 0))
    client.good(build(4, 0, 2))
    assert client.sense(build(BLOCKS - 1, 2, 0)) == units.LBA_OUT_OF_RANGE


def test_there_are_no_defects(client: Client) -> None:
    assert client.good(bytes((0x37, 0, 0x18, 0, 0, 0, 0, 0, 255, 0))) == bytes((0, 0x18, 0, 0))
    assert client.good(bytes((0xB7, 0x10, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0))) == bytes((0, 0x10, *bytes(6)))


@pytest.mark.parametrize("command", USAGE)
def test_reserved_bits_are_refused(command: int) -> None:
    """And those that are looked at are not, whatever else may be wrong with them."""
    usage = USAGE[command]
    fixed = 2 if command > 0xFF else 1
    for at in range(fixed, len(usage)):
        for bit in range(8):
            cdb = bytearray(usage[:fixed]).ljust(len(usage), b"\0")
            cdb[at] |= 1 << bit
            assert sets_reserved_bits(command, bytes(cdb)) == (not usage[at] & 1 << bit)


@pytest.mark.parametrize("naca", [False, True])
def test_protection_and_naca_are_refused_by_every_command_with_blocks(client: Client, naca: bool) -> None:
    cdbs = [
        *(build(code, 4, 1, 0) for build, code in VERIFY + WRITE_AND_VERIFY),
        *(read(4, 1) for size, read in READS.items() if size != "6"),
        *(write(4, 1) for size, write in WRITES.items() if size != "6"),
        *(commands.write_same_10(4, 1), commands.write_same_16(4, 1), cdb_16(0x8B, 4, 1)),
        compare_and_write(4, 1),
    ]
    for cdb in cdbs:
        changed = bytearray(cdb)
        changed[-1 if naca else 1] |= 0x04 if naca else 0x20
        assert client.sense(bytes(changed)) == units.INVALID_FIELD_IN_CDB, commands.describe(cdb)


def report(options: int, code: int = 0, action: int = 0, *, length: int = 4096) -> bytes:
    return bytes((0xA3, 0x0C, options, code, 0, action)) + length.to_bytes(4, "big") + b"\0\0"


@pytest.mark.parametrize("timeouts", [False, True])
def test_the_commands_that_are_reported_are_those_that_are_answered(
    client: Client, disk: Disk, timeouts: bool
) -> None:
    rctd, size = (0x80, 20) if timeouts else (0, 8)
    answer = client.good(report(rctd))
    assert int.from_bytes(answer[:4], "big") == len(answer) - 4
    reported = set()
    for at in range(4, len(answer), size):
        code, action, flags, length = struct.unpack_from(">BxHxBH", answer, at)
        assert bool(flags & 2) == timeouts
        command = code << 8 | action if flags & 1 else code
        reported.add(command)
        one = client.good(report(rctd | (2 if flags & 1 else 1), code, action))
        assert one[:4] == bytes((0, 0x83 if timeouts else 3, 0, length))
        assert one[4 : 4 + length] == USAGE[command]
        assert client.good(report(rctd | 3, code, action)) == one
        assert client.sense(report(1 if flags & 1 else 2, code, action)) == units.INVALID_FIELD_IN_CDB
    for code in range(256):
        actions = [command & 0xFF for command in reported if command >> 8 == code and command > 0xFF]
        for action in actions or [0]:
            operation = disk.prepare(client.nexus, bytes((code, action)).ljust(16, b"\0"))
            unknown = operation.run(memoryview(b"")).sense == units.INVALID_OPERATION_CODE
            # REPORT LUNS is answered by the device.
            assert unknown == (code not in reported and not actions) or code == 0xA0, hex(code)
        client.run(cdbs.request_sense())
        disk.started, disk.write_protect = True, False
    assert client.good(report(1, 0xEE))[1] == 1
    assert len(client.good(report(0, length=10))) == 10


def test_task_management_functions_are_reported(client: Client) -> None:
    assert client.good(bytes((0xA3, 0x0D, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0))) == bytes((0xDA, 0, 0, 0))


# MODE SELECT.

CACHING_WITHOUT_WCE = bytes((0x08, 18)) + bytes(18)


def select_6(pages: bytes, flags: int = 0x10) -> tuple[bytes, bytes]:
    return bytes((0x15, flags, 0, 0, len(pages) + 4, 0)), bytes(4) + pages


def select_10(pages: bytes, flags: int = 0x10) -> tuple[bytes, bytes]:
    return bytes((0x55, flags, 0, 0, 0, 0, 0, 0, len(pages) + 8, 0)), bytes(8) + pages


@pytest.mark.parametrize("select", [select_6, select_10])
def test_the_write_cache_is_turned_off_with_all_it_holds_on_the_medium(
    disk: Disk, client: Client, select: Any
) -> None:
    other = Client(disk)
    client.good(commands.write_10(4, 1), block(1))
    client.good(*select(CACHING_WITHOUT_WCE))
    assert other.sense(commands.test_unit_ready()) == units.MODE_CHANGED
    client.good(commands.write_10(5, 1), block(2))
    disk.drop_cache()
    client.run(commands.test_unit_ready())
    assert client.good(commands.read_10(4, 2)) == block(1, 2)
    caching = mode.parse_6(client.good(commands.mode_sense_6(mode.CACHING_PAGE))).caching
    assert caching is not None
    assert not caching.wce
    client.good(*select(CACHING_WITHOUT_WCE))
    assert other.run(commands.test_unit_ready()).sense == units.POWER_ON
    other.good(commands.test_unit_ready())  # nothing has changed this time


def test_write_protection_and_descriptor_sense_by_the_control_page(disk: Disk, client: Client) -> None:
    client.good(*select_6(bytes((0x0A, 10, 0x04, 0, 0x08)).ljust(12, b"\0")))
    assert client.sense(commands.write_10(0, 1), block(1)) == units.WRITE_PROTECTED
    assert mode.parse_6(client.good(commands.mode_sense_6(mode.ALL_PAGES))).write_protected
    assert client.run(commands.read_10(BLOCKS, 1)).sense_data[0] == 0x72
    client.good(*select_6(bytes((0x0A, 10)).ljust(12, b"\0")))
    client.good(commands.write_10(0, 1), block(1))
    assert client.run(commands.read_10(BLOCKS, 1)).sense_data[0] == 0x70


@pytest.mark.parametrize(
    ("pages", "flags", "sense"),
    [
        (b"", 0x00, units.INVALID_FIELD_IN_CDB),  # not in page format
        (CACHING_WITHOUT_WCE, 0x11, units.INVALID_FIELD_IN_CDB),  # nothing can be saved
        (bytes((0x08, 18, 0x01)).ljust(20, b"\0"), 0x10, units.INVALID_FIELD_IN_PARAMETERS),  # RCD
        (bytes((0x08, 17)) + bytes(17), 0x10, units.INVALID_FIELD_IN_PARAMETERS),
        (bytes((0x08, 0)), 0x10, units.INVALID_FIELD_IN_PARAMETERS),  # a whole page, of no bytes
        (bytes((0x1C, 10)) + bytes(10), 0x10, units.INVALID_FIELD_IN_PARAMETERS),
        (bytes((0x48, 18)) + bytes(18), 0x10, units.INVALID_FIELD_IN_PARAMETERS),
        (CACHING_WITHOUT_WCE[:-1], 0x10, units.PARAMETER_LIST_LENGTH_ERROR),
        (CACHING_WITHOUT_WCE + b"\x0a", 0x10, units.PARAMETER_LIST_LENGTH_ERROR),
    ],
)
def test_mode_select_changes_all_or_nothing(
    disk: Disk, client: Client, pages: bytes, flags: int, sense: Sense
) -> None:
    assert client.sense(*select_6(pages, flags)) == sense
    assert disk.write_cache


def test_mode_select_takes_no_block_descriptors(disk: Disk, client: Client) -> None:
    data = bytes((0, 0, 0, 8)) + bytes(8) + CACHING_WITHOUT_WCE
    assert client.sense(bytes((0x15, 0x10, 0, 0, len(data), 0)), data) == units.INVALID_FIELD_IN_PARAMETERS
    assert disk.write_cache


# What becomes of errors of the file.


def test_a_file_that_was_cut_is_a_medium_error_at_its_first_missing_block(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(BLOCKS * BLOCK))
    disk = Disk(Store.open(path), Identity("cut"))
    client = Client(disk)
    os.truncate(path, 100 * BLOCK + 5)
    client.good(commands.write_10(99, 1), block(1))
    assert client.sense(commands.read_10(90, 20)) == Sense(SenseKey.MEDIUM_ERROR, 0x11, 0, information=100)
    for cdb, data in (
        (commands.write_10(100, 1), block(2)),
        (commands.write_same_16(100, 8, unmap=True, ndob=True), b""),
        (cdbs.unmap(24), cdbs.unmap_parameters([(100, 8)])),
    ):
        assert client.sense(cdb, data) == units.WRITE_ERROR
    status = bytes((0x9E, 0x12)) + (90).to_bytes(8, "big") + (24).to_bytes(4, "big") + bytes(2)
    assert client.sense(status) == units.READ_ERROR
    sync = client.run(commands.synchronize_cache_10()).sync
    assert sync is not None
    with pytest.raises(OSError, match="cut"):
        sync()
    assert path.stat().st_size == 100 * BLOCK + 5
    disk.close()


def test_too_many_ranges_to_unmap_are_refused(client: Client) -> None:
    limits = vpd.BlockLimits.parse(client.good(commands.inquiry(255, 0xB0)))
    most = limits.max_unmap_descriptors
    for count, sense in ((most, None), (most + 1, units.INVALID_FIELD_IN_PARAMETERS)):
        parameters = cdbs.unmap_parameters([(4, 1)] * count)
        assert client.run(cdbs.unmap(len(parameters)), parameters).sense == sense


def test_a_medium_that_somebody_needs_is_not_ejected() -> None:
    cd = Cd(Store.memory(64 * 2048), Identity("cd"))
    client, other = Client(cd), Client(cd)
    prevent, allow, eject = bytes((0x1E, 0, 0, 0, 1, 0)), bytes(6), bytes((0x1B, 0, 0, 0, 2, 0))
    other.good(prevent)
    assert client.sense(eject) == units.REMOVAL_PREVENTED
    other.good(b"\x1e" + allow[1:])
    client.good(eject)
    assert client.sense(commands.read_10(0, 1)) == units.NO_MEDIUM
    client.good(bytes((0x1B, 0, 0, 0, 3, 0)))
    other.good(prevent)
    cd.reset(client.nexus)
    client.good(eject)
    cd.close()
