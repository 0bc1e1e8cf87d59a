"""REPORT LUNS and the forms of a LUN."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.limits import MAX_LUNS
from iscsifs.scsi import luns

u64 = st.integers(0, 2**64 - 1)
numbers = st.integers(0, 2**24 - 1)


def answer(length: int, entries: list[int]) -> bytes:
    return length.to_bytes(4, "big") + bytes(4) + b"".join(lun.to_bytes(8, "big") for lun in entries)


def test_the_units_of_tgt() -> None:
    parsed = luns.parse_luns(bytes.fromhex("0000001000000000 0000000000000000 0001000000000000"))
    assert parsed.luns == (0, 1 << 48)
    assert parsed.reported == 2
    assert not parsed.cut


@given(st.lists(u64, unique=True, max_size=50))
def test_lun_lists_come_back(expected: list[int]) -> None:
    packed = luns.pack_luns(expected)
    parsed = luns.parse_luns(packed)
    assert parsed.luns == tuple(expected)
    assert not parsed.cut
    assert parsed.allocation_length == len(packed)


@pytest.mark.conformance("HOSTILE-35")
def test_a_length_of_0_has_no_units() -> None:
    parsed = luns.parse_luns(answer(0, [0, 1 << 48]))
    assert parsed.luns == ()
    assert not parsed.cut


@pytest.mark.conformance("HOSTILE-35")
def test_an_odd_length_counts_whole_units() -> None:
    assert luns.parse_luns(answer(13, [0, 1 << 48])).luns == (0,)
    assert not luns.parse_luns(answer(13, [0])).cut
    assert luns.parse_luns(answer(16, [0]) + b"\0\1\0").luns == (0,)


@pytest.mark.conformance("HOSTILE-35")
def test_a_length_beyond_the_data_means_that_the_rest_can_be_asked_for() -> None:
    parsed = luns.parse_luns(answer(24, [0, 1 << 48]))
    assert parsed.luns == (0, 1 << 48)
    assert parsed.cut
    assert parsed.allocation_length == 32


@pytest.mark.conformance("HOSTILE-35")
def test_a_length_of_4_gib_asks_for_no_more_than_the_cap() -> None:
    parsed = luns.parse_luns(answer(2**32 - 1, [0]))
    assert parsed.luns == (0,)
    assert parsed.cut
    assert parsed.allocation_length == 8 + 8 * MAX_LUNS
    assert parsed.reported > MAX_LUNS


@pytest.mark.conformance("HOSTILE-35")
def test_duplicates_are_one_unit() -> None:
    assert luns.parse_luns(luns.pack_luns([1 << 48, 0, 1 << 48, 0])).luns == (1 << 48, 0)


@pytest.mark.conformance("HOSTILE-35")
def test_a_million_units_are_cut_at_the_cap() -> None:
    million = luns.pack_luns(range(2**20))
    parsed = luns.parse_luns(million)
    assert parsed.luns == tuple(range(MAX_LUNS))
    assert parsed.reported == 2**20
    assert not parsed.cut


@pytest.mark.conformance("HOSTILE-35")
@pytest.mark.parametrize("length", range(8))
def test_less_than_a_header_has_no_units(length: int) -> None:
    parsed = luns.parse_luns(answer(16, [])[:length])
    assert parsed.luns == ()
    assert parsed.cut


@pytest.mark.conformance("HOSTILE-35")
@given(st.binary(max_size=200))
def test_garbage_is_parsed(data: bytes) -> None:
    parsed = luns.parse_luns(data)
    assert 8 * len(parsed.luns) <= len(data)
    assert parsed.allocation_length <= 8 + 8 * MAX_LUNS
    assert len(set(parsed.luns)) == len(parsed.luns)


@pytest.mark.parametrize(
    ("lun", "number", "label"),
    [
        (0x0000_0000_0000_0000, 0, "0"),
        (0x0001_0000_0000_0000, 1, "1"),
        (0x00FF_0000_0000_0000, 255, "255"),
        (0x4100_0000_0000_0000, 256, "256"),
        (0x4101_0000_0000_0000, 257, "257"),
        (0x7FFF_0000_0000_0000, 16383, "16383"),
        (0xD200_4000_0000_0000, 16384, "16384"),
        (0xD2FF_FFFF_0000_0000, 2**24 - 1, "16777215"),
        # Numbers in a form that is not the usual one: another LUN than the one with that label.
        (0x4005_0000_0000_0000, 5, "0x4005"),
        (0xD200_0005_0000_0000, 5, "0xd200000500000000"),
        # No single number.
        (0x0101_0000_0000_0000, None, "0x0101"),  # another bus
        (0x8001_0000_0000_0000, None, "0x8001"),  # logical unit addressing
        (0x0001_0002_0003_0000, None, "0x0001000200030000"),  # three levels
        (0x4001_0000_0000_0001, None, "0x4001000000000001"),
        (0xD200_4000_0000_0001, None, "0xd200400000000001"),
        (0xE200_0000_0001_0000, None, "0xe200000000010000"),  # long extended flat space
        (0xC101_0000_0000_0000, None, "0xc101"),
        (0xFFFF_FFFF_FFFF_FFFF, None, "0xffffffffffffffff"),
    ],
)
def test_numbers_and_labels(lun: int, number: int | None, label: str) -> None:
    assert luns.lun_number(lun) == number
    assert luns.lun_label(lun) == label


@given(numbers)
def test_a_number_leads_to_its_lun_and_back(number: int) -> None:
    lun = luns.lun_from_number(number)
    assert luns.lun_number(lun) == number
    assert luns.lun_label(lun) == str(number)


@pytest.mark.parametrize("number", [-1, 2**24])
def test_numbers_without_a_lun(number: int) -> None:
    with pytest.raises(ValueError, match=f"LUN {number} is not between"):
        luns.lun_from_number(number)


@given(st.sets(u64 | numbers.map(luns.lun_from_number) | st.integers(0, 65535).map(lambda n: n << 48)))
def test_no_two_luns_have_one_label(several: set[int]) -> None:
    assert len({luns.lun_label(lun) for lun in several}) == len(several)


def test_well_known_units() -> None:
    assert luns.is_well_known(0xC101 << 48)
    assert not luns.is_well_known(0)
    assert not luns.is_well_known(0xD2C1 << 48)
