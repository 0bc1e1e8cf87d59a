"""READ CAPACITY, and the units that cannot be shown as a file."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import UnitError
from iscsifs.scsi.capacity import MAX_BYTES, Capacity

block_sizes = st.sampled_from([2**n for n in range(9, 17)])


@st.composite
def capacities(draw: st.DrawFn) -> Capacity:
    size = draw(block_sizes)
    return Capacity(
        blocks=draw(st.integers(1, MAX_BYTES // size)),
        block_size=size,
        physical_block_size=size << draw(st.integers(0, 15)),
        lbpme=draw(st.booleans()),
        lbprz=draw(st.booleans()),
        protection=draw(st.integers(0, 3)),
    )


def answer_16(last_lba: int, block_size: int) -> bytes:
    return struct.pack(">QI20x", last_lba, block_size)


def test_a_disk_of_tgt() -> None:
    assert Capacity.parse_10(bytes.fromhex("0001ffff00000200")) == Capacity(131072, 512)
    data = bytes.fromhex("000000000001ffff000002000003c000").ljust(32, b"\0")
    capacity = Capacity.parse_16(data)
    assert capacity == Capacity(131072, 512, physical_block_size=4096, lbpme=True, lbprz=True)
    assert capacity.size == 64 << 20


def test_a_unit_that_says_nothing_of_physical_blocks_has_blocks_of_one_size() -> None:
    assert Capacity(1, 4096).physical_block_size == 4096


def test_the_first_twelve_bytes_are_enough() -> None:
    assert Capacity.parse_16(answer_16(9, 512)[:12]) == Capacity(10, 512)


@given(capacities())
def test_read_capacity_16_comes_back(capacity: Capacity) -> None:
    packed = capacity.pack_16()
    assert len(packed) == 32
    assert Capacity.parse_16(packed) == capacity


@given(capacities())
def test_read_capacity_10_comes_back_or_asks_for_16(capacity: Capacity) -> None:
    parsed = Capacity.parse_10(capacity.pack_10())
    if capacity.blocks < 2**32:
        assert parsed == Capacity(capacity.blocks, capacity.block_size)
    else:
        assert parsed is None


@pytest.mark.conformance("HOSTILE-37")
def test_the_last_lba_ffffffff_asks_for_16() -> None:
    assert Capacity.parse_10(bytes.fromhex("ffffffff00000200")) is None
    assert Capacity.parse_10(bytes.fromhex("fffffffe00000200")) == Capacity(2**32 - 1, 512)
    # (10) is not believed in anything else then, whatever its block size.
    assert Capacity.parse_10(bytes.fromhex("ffffffff00000000")) is None


@pytest.mark.conformance("HOSTILE-37")
@pytest.mark.parametrize("block_size", [0, 1, 3, 256, 511, 520, 528, 2352, 4160, 131072, 2**31, 2**32 - 1])
def test_a_block_size_that_is_refused_is_named(block_size: int) -> None:
    for parse, data in (
        (Capacity.parse_16, answer_16(99, block_size)),
        (Capacity.parse_10, struct.pack(">II", 99, block_size)),
    ):
        with pytest.raises(UnitError, match=f"blocks of {block_size} bytes are not supported.*power of two"):
            parse(data)


@pytest.mark.parametrize("block_size", [512, 1024, 2048, 4096, 8192, 65536])
def test_block_sizes_that_are_supported(block_size: int) -> None:
    assert Capacity.parse_16(answer_16(99, block_size)).size == 100 * block_size


@pytest.mark.conformance("HOSTILE-37")
@pytest.mark.parametrize("last_lba", [2**64 - 1, 2**64 - 2, 2**54 - 1])
def test_a_unit_larger_than_a_file_is_refused(last_lba: int) -> None:
    with pytest.raises(UnitError, match=f"{last_lba + 1} blocks of 512 bytes is larger than a file"):
        Capacity.parse_16(answer_16(last_lba, 512))


def test_the_largest_unit() -> None:
    assert Capacity.parse_16(answer_16(2**54 - 2, 512)).size == 2**63 - 512


def test_a_unit_without_blocks_is_refused() -> None:
    with pytest.raises(UnitError, match="without blocks"):
        Capacity(0, 512)


@pytest.mark.parametrize("length", range(12))
def test_an_answer_cut_short_is_refused(length: int) -> None:
    with pytest.raises(UnitError, match=rf"READ CAPACITY\(16\) gave {length} bytes"):
        Capacity.parse_16(answer_16(9, 512)[:length])
    if length < 8:
        with pytest.raises(UnitError, match=rf"READ CAPACITY\(10\) gave {length} bytes"):
            Capacity.parse_10(struct.pack(">II", 9, 512)[:length])


@given(st.binary(max_size=40))
def test_garbage_is_a_capacity_or_a_unit_error(data: bytes) -> None:
    for parse in (Capacity.parse_10, Capacity.parse_16):
        with contextlib.suppress(UnitError):
            capacity = parse(data)
            assert capacity is None or 0 < capacity.size <= MAX_BYTES
