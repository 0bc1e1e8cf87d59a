"""Command descriptor blocks, bit by bit."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.scsi import cdb
from iscsifs.scsi.cdb import OperationCode
from support import cdbs

u8, u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))


@pytest.mark.parametrize(
    ("built", "expected"),
    [
        (cdb.test_unit_ready(), "00 00 00 00 00 00"),
        (cdb.inquiry(255), "12 00 00 00ff 00"),
        (cdb.inquiry(512, 0x83), "12 01 83 0200 00"),
        (cdb.inquiry(255, 0x00), "12 01 00 00ff 00"),
        (cdbs.request_sense(), "03 00 00 00 fc 00"),
        (cdb.mode_sense_6(0x08), "1a 08 08 00 ff 00"),
        (cdb.mode_sense_6(0x3F, 0xFF, allocation_length=192, dbd=False), "1a 00 3f ff c0 00"),
        (cdbs.mode_sense_10(0x08), "5a 08 08 00 000000 0400 00"),
        (cdbs.mode_sense_10(0x0A, 1, allocation_length=65535, dbd=False), "5a 00 0a 01 000000 ffff 00"),
        (cdb.report_luns(16384), "a0 00 00 000000 00004000 00 00"),
        (cdb.read_capacity_10(), "25 00 00000000 0000 00 00"),
        (cdb.read_capacity_16(), "9e 10 0000000000000000 00000020 00 00"),
        (cdb.read_10(0x01020304, 0x0506), "28 00 01020304 00 0506 00"),
        (cdb.read_10(1, 2, fua=True), "28 08 00000001 00 0002 00"),
        (cdb.read_16(0x0102030405060708, 0x090A0B0C), "88 00 0102030405060708 090a0b0c 00 00"),
        (cdb.read_16(1, 2, fua=True), "88 08 0000000000000001 00000002 00 00"),
        (cdb.write_10(1, 2), "2a 00 00000001 00 0002 00"),
        (cdb.write_10(1, 2, fua=True), "2a 08 00000001 00 0002 00"),
        (cdb.write_16(1, 2), "8a 00 0000000000000001 00000002 00 00"),
        (cdb.write_16(1, 2, fua=True), "8a 08 0000000000000001 00000002 00 00"),
        (cdb.synchronize_cache_10(), "35 00 00000000 00 0000 00"),
        (cdb.synchronize_cache_10(1, 2, immed=True), "35 02 00000001 00 0002 00"),
        (cdb.synchronize_cache_16(), "91 00 0000000000000000 00000000 00 00"),
        (cdb.synchronize_cache_16(1, 2, immed=True), "91 02 0000000000000001 00000002 00 00"),
        (cdb.write_same_10(1, 2, unmap=True), "41 08 00000001 00 0002 00"),
        (cdb.write_same_16(1, 2), "93 00 0000000000000001 00000002 00 00"),
        (cdb.write_same_16(1, 2, unmap=True, ndob=True), "93 09 0000000000000001 00000002 00 00"),
        (cdbs.unmap(40), "42 00 00000000 00 0028 00"),
        (
            cdbs.unmap_parameters([(1, 2), (2**40, 2**20)]),
            "0026 0020 00000000 0000000000000001 00000002 00000000 0000010000000000 00100000 00000000",
        ),
    ],
)
def test_cdbs_are_those_of_the_standard(built: bytes, expected: str) -> None:
    assert built == bytes.fromhex(expected)


@pytest.mark.parametrize(
    "build",
    [
        lambda: cdb.read_10(2**32, 1),
        lambda: cdb.write_10(0, 65536),
        lambda: cdb.read_16(2**64, 1),
        lambda: cdb.write_16(-1, 1),
        lambda: cdb.inquiry(65536),
        lambda: cdbs.unmap_parameters([(0, 1)] * (cdbs.MAX_UNMAP_RANGES + 1)),
    ],
)
def test_a_value_that_does_not_fit_is_an_error_of_the_caller(build: object) -> None:
    assert callable(build)
    with pytest.raises(struct.error):
        build()


def test_the_largest_unmap_fits_its_length_field() -> None:
    parameters = cdbs.unmap_parameters([(0, 1)] * cdbs.MAX_UNMAP_RANGES)
    assert cdb.allocation_length(cdbs.unmap(len(parameters))) == len(parameters)


@given(u32, u16, st.booleans())
def test_read_and_write_10_come_apart_as_they_were_built(lba: int, blocks: int, fua: bool) -> None:
    for build in (cdb.read_10, cdb.write_10):
        assert cdb.parse_rw(build(lba, blocks, fua)) == (lba, blocks, fua)


@given(u64, u32, st.booleans())
def test_read_and_write_16_come_apart_as_they_were_built(lba: int, blocks: int, fua: bool) -> None:
    for build in (cdb.read_16, cdb.write_16):
        assert cdb.parse_rw(build(lba, blocks, fua)) == (lba, blocks, fua)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("08 1fffff 01 00", (0x1FFFFF, 1, False)),
        ("08 e00001 05 00", (1, 5, False)),  # the obsolete LUN field is no part of the LBA
        ("0a 000000 00 00", (0, 256, False)),  # 0 means 256 here
        ("a8 00 01020304 05060708 00 00", (0x01020304, 0x05060708, False)),
        ("aa 08 00000001 00000000 00 00", (1, 0, True)),
        ("2e 10 00000001 00 0002 00", (1, 2, False)),  # DPO is not FUA
    ],
)
def test_reads_and_writes_of_other_lengths(data: str, expected: tuple[int, int, bool]) -> None:
    parsed = cdb.parse_rw(bytes.fromhex(data).ljust(16, b"\0"))
    assert (parsed.lba, parsed.blocks, parsed.fua) == expected


@given(u64, u32, st.booleans(), st.booleans())
def test_cache_and_write_same_16_come_apart(lba: int, blocks: int, flag: bool, ndob: bool) -> None:
    assert cdb.parse_synchronize_cache(cdb.synchronize_cache_16(lba, blocks, flag)) == (lba, blocks, flag)
    built = cdb.write_same_16(lba, blocks, unmap=flag, ndob=ndob)
    assert cdb.parse_write_same(built) == (lba, blocks, flag, ndob)


@given(u32, u16, st.booleans())
def test_cache_and_write_same_10_come_apart(lba: int, blocks: int, flag: bool) -> None:
    assert cdb.parse_synchronize_cache(cdb.synchronize_cache_10(lba, blocks, flag)) == (lba, blocks, flag)
    assert cdb.parse_write_same(cdb.write_same_10(lba, blocks, unmap=flag)) == (lba, blocks, flag, False)


def test_write_same_10_has_no_ndob_bit() -> None:
    assert not cdb.parse_write_same(bytes.fromhex("41 01 00000000 00 0001 00")).ndob


@given(u16, st.none() | u8)
def test_inquiry_comes_apart(length: int, page: int | None) -> None:
    parsed = cdb.parse_inquiry(cdb.inquiry(length, page))
    assert parsed == (page is not None, page or 0, length)


@given(st.integers(0, 63), u8, u8, st.booleans())
def test_mode_sense_comes_apart(page: int, subpage: int, length: int, dbd: bool) -> None:
    for build in (cdb.mode_sense_6, cdbs.mode_sense_10):
        parsed = cdb.parse_mode_sense(build(page, subpage, allocation_length=length, dbd=dbd))
        assert parsed == (page, subpage, 0, dbd, length)


def test_mode_sense_for_changeable_values() -> None:
    assert cdb.parse_mode_sense(bytes.fromhex("1a 00 48 00 ff 00")).page_control == 1


@given(u32)
def test_allocation_lengths(length: int) -> None:
    assert cdb.allocation_length(cdb.report_luns(length)) == length
    assert cdb.allocation_length(cdb.read_capacity_16(length)) == length
    assert cdb.allocation_length(cdb.test_unit_ready()) == 0


@given(st.lists(st.tuples(u64, u32), max_size=20))
def test_unmap_parameters_come_apart(ranges: list[tuple[int, int]]) -> None:
    assert cdb.parse_unmap_parameters(cdbs.unmap_parameters(ranges)) == ranges


def test_an_incomplete_unmap_descriptor_is_ignored() -> None:
    whole = cdbs.unmap_parameters([(1, 2), (3, 4)])
    assert cdb.parse_unmap_parameters(whole[:-1]) == [(1, 2)]
    assert cdb.parse_unmap_parameters(whole[:8]) == []
    shorter = whole[:2] + (16).to_bytes(2, "big") + whole[4:]
    assert cdb.parse_unmap_parameters(shorter) == [(1, 2)]


@given(st.binary(max_size=64))
def test_unmap_parameters_that_are_garbage(data: bytes) -> None:
    if len(data) < 8:
        with pytest.raises(ValueError, match="header"):
            cdb.parse_unmap_parameters(data)
    else:
        assert len(cdb.parse_unmap_parameters(data)) <= (len(data) - 8) // 16


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (cdb.read_16(2048, 8), "READ(16) LBA 2048, 8 blocks"),
        (cdb.write_10(7, 1), "WRITE(10) LBA 7, 1 block"),
        (cdb.synchronize_cache_10(), "SYNCHRONIZE CACHE(10) LBA 0, 0 blocks"),
        (cdb.write_same_16(1, 2, unmap=True), "WRITE SAME(16) LBA 1, 2 blocks"),
        (bytes.fromhex("080000100000"), "READ(6) LBA 16, 256 blocks"),
        (cdb.test_unit_ready(), "TEST UNIT READY"),
        (cdb.inquiry(96), "INQUIRY, 96 bytes"),
        (cdb.inquiry(255, 0x83), "INQUIRY page 83h, 255 bytes"),
        (cdb.mode_sense_6(8), "MODE SENSE(6) page 08h, 255 bytes"),
        (cdb.report_luns(16), "REPORT LUNS, 16 bytes"),
        (cdb.read_capacity_10(), "READ CAPACITY(10)"),
        (cdb.read_capacity_16(), "READ CAPACITY(16), 32 bytes"),
        (bytes.fromhex("9e12").ljust(16, b"\0"), "SERVICE ACTION IN(16) 12h, 0 bytes"),
        (cdbs.unmap(24), "UNMAP, 24 bytes"),
        (bytes.fromhex("89").ljust(16, b"\0"), "COMPARE AND WRITE"),
        (bytes.fromhex("c1").ljust(16, b"\0"), "operation code c1h"),
        (cdb.read_16(1, 1)[:15], "READ(16), cut to 15 bytes"),
        (b"", "empty CDB"),
    ],
)
def test_a_cdb_in_words(data: bytes, expected: str) -> None:
    assert cdb.describe(data) == expected


@given(st.binary(max_size=20))
def test_anything_can_be_described(data: bytes) -> None:
    assert cdb.describe(data).isprintable()


@given(st.sampled_from(OperationCode), st.binary(min_size=15, max_size=15))
def test_every_known_command_is_described_by_name(code: OperationCode, rest: bytes) -> None:
    first_word = code.name.split("_")[0]
    if code is not OperationCode.SERVICE_ACTION_IN_16:
        assert cdb.describe(bytes((code,)) + rest).startswith(first_word)
