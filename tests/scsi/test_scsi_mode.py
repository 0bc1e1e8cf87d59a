"""MODE SENSE answers, from real targets and from hostile ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.scsi import mode
from iscsifs.scsi.mode import CACHING_PAGE, Caching, ModeData

TGT_6 = bytes.fromhex("1f001008000000000000020008121400ffff0000ffffffff8014000000000000")
TGT_10 = bytes.fromhex("001a00100000000008121400ffff0000ffffffff8014000000000000")
ISTGT_6 = bytes.fromhex(
    "7b000000010a00000000000000000000020e0000000000000000000000000000070a0000000000000000000088120400000000000000"
    "000000000000000000000a0a000000000000000000001016000000000000000000000000000000000000000000001a0a00000000000000"
    "0000001c0a00000000000000000000"
)
# With a long LBA block descriptor although none was asked for.
ISTGT_10 = bytes.fromhex(
    "002a000002000010 00000000000200000000000000000200 8812040000000000000000000000000000000000"
)

pages = st.dictionaries(
    st.tuples(st.integers(0, 0x3F), st.integers(0, 255)), st.binary(max_size=40), max_size=4
)
mode_data = st.builds(ModeData, st.booleans(), st.booleans(), pages)


@pytest.mark.parametrize("parsed", [mode.parse_6(TGT_6), mode.parse_10(TGT_10)])
def test_a_disk_of_tgt(parsed: ModeData) -> None:
    assert not parsed.write_protected
    assert parsed.dpo_fua
    assert parsed.caching == Caching(wce=True)


@pytest.mark.parametrize("parsed", [mode.parse_6(ISTGT_6), mode.parse_10(ISTGT_10)])
def test_a_disk_of_istgt(parsed: ModeData) -> None:
    assert not parsed.write_protected
    assert not parsed.dpo_fua
    assert parsed.caching == Caching(wce=True)


def test_all_pages_are_there() -> None:
    assert [page for page, _ in mode.parse_6(ISTGT_6).pages] == [1, 2, 7, 8, 0x0A, 0x10, 0x1A, 0x1C]


def test_write_protection() -> None:
    assert mode.parse_6(bytes.fromhex("03008000")) == ModeData(write_protected=True)
    assert mode.parse_10(bytes.fromhex("0006009000000000")) == ModeData(write_protected=True, dpo_fua=True)


def test_a_subpage() -> None:
    data = bytes.fromhex("0b00000 0 4a 01 0004 00010203".replace(" ", ""))
    assert mode.parse_6(data).pages == {(0x0A, 0x01): b"\0\x01\x02\x03"}


@given(st.booleans(), st.booleans())
def test_the_caching_page_comes_back(wce: bool, rcd: bool) -> None:
    caching = Caching(wce, rcd)
    data = ModeData(pages={(CACHING_PAGE, 0): caching.pack()})
    assert len(caching.pack()) == 0x12
    assert mode.parse_6(data.pack_6()).caching == caching
    assert mode.parse_10(data.pack_10()).caching == caching


@given(mode_data)
def test_what_is_packed_can_be_parsed(data: ModeData) -> None:
    assert mode.parse_6(data.pack_6()) == data
    assert mode.parse_10(data.pack_10()) == data


@pytest.mark.conformance("HOSTILE-36")
def test_without_the_page_nothing_is_known_of_the_cache() -> None:
    assert ModeData().caching is None
    assert mode.parse_6(bytes.fromhex("03000000")).caching is None
    wrong_page = bytearray(TGT_10)
    wrong_page[8] = 0x0A
    assert mode.parse_10(bytes(wrong_page)).caching is None
    empty_page = bytes.fromhex("050000000800")
    assert mode.parse_6(empty_page).caching is None


@pytest.mark.conformance("HOSTILE-36")
def test_nothing_is_read_past_the_data() -> None:
    for cut in range(len(TGT_10)):
        parsed = mode.parse_10(TGT_10[:cut])
        assert parsed.dpo_fua is (cut >= 8)
        # The header of the page has 10 bytes before it, then comes WCE.
        assert parsed.caching == (Caching(wce=True) if cut >= 11 else None)
    for cut in range(len(TGT_6)):
        assert mode.parse_6(TGT_6[:cut]).caching == (Caching(wce=True) if cut >= 15 else None)


@pytest.mark.conformance("HOSTILE-36")
def test_lengths_beyond_the_data() -> None:
    block_descriptors_past_the_end = bytes.fromhex("ff0080ff") + TGT_6[12:]
    assert mode.parse_6(block_descriptors_past_the_end) == ModeData(write_protected=True)
    page_past_the_end = bytes.fromhex("ff00800008ff04")
    assert mode.parse_6(page_past_the_end).caching == Caching(wce=True)
    subpage_past_the_end = bytes.fromhex("ffff00800000000048 01 ff".replace(" ", ""))
    assert mode.parse_10(subpage_past_the_end) == ModeData(write_protected=True)


@pytest.mark.conformance("HOSTILE-36")
def test_the_mode_data_length_hides_what_is_behind_it() -> None:
    assert mode.parse_6(b"\x03" + TGT_6[1:]).pages == {}


@pytest.mark.conformance("HOSTILE-36")
@given(st.binary(max_size=300))
def test_garbage_is_parsed(data: bytes) -> None:
    for parsed in (mode.parse_6(data), mode.parse_10(data)):
        assert sum(map(len, parsed.pages.values())) <= len(data)
