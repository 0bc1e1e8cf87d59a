"""Vital product data, from real targets and from hostile ones."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.scsi import vpd
from iscsifs.scsi.inquiry import DeviceType, InquiryData
from iscsifs.scsi.vpd import (
    Association,
    BlockLimits,
    CodeSet,
    Designator,
    DesignatorType,
    Provisioning,
    ProvisioningType,
)

TGT_DESIGNATORS = bytes.fromhex(
    "00830048 02010024 494554202020202030303031303030310000000000000000000000000000000000000000"
    "01030008 3000000100000001 01030010 60000000000000000e00000000010001"
)
ISTGT_DESIGNATORS = bytes.fromhex(
    "008300a3 01030008 300000007acfabe3"
    "01030038 46726565425344206953435349204449534b202020202020"
    "3130303030303031202020202020202020202020202020202020202020202020"
    "53a80019 69716e2e323030312d30342e636f6d2e6578616d706c653a69"
    "53980022 69716e2e323030312d30342e636f6d2e6578616d706c653a692c742c307830303031"
    "51940004 00000001 51950004 00000001 51960004 00000001"
)
TGT_THIN_LIMITS = bytes.fromhex("00b0003c00800000 000000000000000000000000 ffffffffffffffff").ljust(64, b"\0")
ISTGT_LIMITS = bytes.fromhex("00b0003c00ff0008 0000000000000800").ljust(64, b"\0")

u8, u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))

designators = st.builds(
    Designator,
    type=st.integers(0, 15),
    code_set=st.integers(0, 15),
    value=st.binary(max_size=255),
    association=st.integers(0, 3),
)
limits = st.builds(
    BlockLimits,
    optimal_granularity=u16,
    max_transfer_length=u32,
    optimal_transfer_length=u32,
    max_unmap_blocks=u32,
    max_unmap_descriptors=u32,
    unmap_granularity=u32,
    unmap_alignment=st.integers(0, 2**31 - 1),
    max_write_same_length=u64,
    write_same_non_zero=st.booleans(),
)
provisionings = st.builds(
    Provisioning,
    lbpu=st.booleans(),
    lbpws=st.booleans(),
    lbpws10=st.booleans(),
    lbprz=st.booleans(),
    provisioning_type=st.integers(0, 7),
)


def naa(digits: str) -> Designator:
    return Designator(DesignatorType.NAA, CodeSet.BINARY, bytes.fromhex(digits))


def eui(digits: str) -> Designator:
    return Designator(DesignatorType.EUI_64, CodeSet.BINARY, bytes.fromhex(digits))


def t10(text: bytes) -> Designator:
    return Designator(DesignatorType.T10_VENDOR_ID, CodeSet.ASCII, text)


def scsi_name(text: bytes) -> Designator:
    return Designator(DesignatorType.SCSI_NAME_STRING, CodeSet.UTF_8, text)


# -- 00h and 80h


def test_the_pages_of_tgt() -> None:
    pages = vpd.parse_supported_pages(bytes.fromhex("00000006008083b0b1b2"))
    assert pages == {0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2}


@given(st.frozensets(st.integers(1, 255)))
def test_supported_pages_come_back(pages: frozenset[int]) -> None:
    packed = vpd.pack_supported_pages(pages | {0})
    assert packed[4:] == bytes(sorted(packed[4:]))
    assert vpd.parse_supported_pages(packed) == pages | {0}


def test_standard_data_are_not_taken_for_a_list_of_pages() -> None:
    data = InquiryData(DeviceType.DISK, version=5, vendor="ACME").pack()
    assert vpd.parse_supported_pages(data) == frozenset()


def test_a_serial_number_loses_its_padding() -> None:
    assert vpd.parse_serial(bytes.fromhex("00800024") + b" " * 30 + b"beaf11") == "beaf11"
    assert vpd.parse_serial(bytes.fromhex("00800008") + b"10000001") == "10000001"


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="\\"), max_size=60))
def test_serial_numbers_come_back(serial: str) -> None:
    assert vpd.parse_serial(vpd.pack_serial(serial)) == serial


# -- 83h


def test_the_designators_of_tgt() -> None:
    assert vpd.parse_designators(TGT_DESIGNATORS) == (
        t10(b"IET     00010001".ljust(36, b"\0")),
        naa("3000000100000001"),
        naa("60000000000000000e00000000010001"),
    )


def test_the_designators_of_istgt_name_its_ports_too() -> None:
    parsed = vpd.parse_designators(ISTGT_DESIGNATORS)
    assert [d.association for d in parsed] == [
        Association.LOGICAL_UNIT,
        Association.LOGICAL_UNIT,
        Association.TARGET_DEVICE,
        *[Association.TARGET_PORT] * 4,
    ]
    assert parsed[2] == Designator(
        DesignatorType.SCSI_NAME_STRING,
        CodeSet.UTF_8,
        b"iqn.2001-04.com.example:i",
        Association.TARGET_DEVICE,
    )


@given(st.lists(designators, max_size=8))
def test_designators_come_back(expected: list[Designator]) -> None:
    assert vpd.parse_designators(vpd.pack_designators(expected)) == tuple(expected)


def test_the_persistent_names_of_real_units() -> None:
    assert vpd.wwid(vpd.parse_designators(TGT_DESIGNATORS)) == "naa.60000000000000000e00000000010001"
    assert vpd.wwid(vpd.parse_designators(ISTGT_DESIGNATORS)) == "naa.300000007acfabe3"


BEST_FIRST = [
    (naa("6" + "1" * 31), "naa.6" + "1" * 31),
    (naa("5" + "1" * 15), "naa.5" + "1" * 15),
    (naa("2" + "1" * 15), "naa.2" + "1" * 15),
    (eui("ab" * 16), "eui." + "ab" * 16),
    (eui("ab" * 12), "eui." + "ab" * 12),
    (eui("ab" * 8), "eui." + "ab" * 8),
    (scsi_name(b"iqn.2001-04.com.example:disk\0\0\0\0"), "iqn.2001-04.com.example:disk"),
    (naa("3" + "1" * 15), "naa.3" + "1" * 15),
    (t10(b"ACME    disk  17 \0\0"), "t10.ACME_disk_17"),
]


@given(st.sets(st.integers(0, len(BEST_FIRST) - 1), min_size=1), st.randoms(use_true_random=False))
def test_the_best_name_wins_wherever_it_stands(chosen: set[int], random: object) -> None:
    shuffled = [BEST_FIRST[i][0] for i in chosen]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert vpd.wwid(shuffled) == BEST_FIRST[min(chosen)][1]


@pytest.mark.parametrize(
    ("designator", "expected"),
    [
        (scsi_name(b"naa.600A0B80"), "naa.600a0b80"),
        (scsi_name(b"iqn.2001-04.com.example:a,L,0x0001"), "iqn.2001-04.com.example:a_L_0x0001"),
        (scsi_name(b"../../etc"), None),
        (scsi_name(b"."), None),
        (t10(b"ACME/../../x\x1b[2J"), "t10.ACME_.._.._x_2J"),
        (t10("ACME    größe".encode()), "t10.ACME_gr_e"),
        (t10(b"        "), None),
        (t10(b"\0\0\0\0"), None),
        (t10(b"x" * 251), "t10." + "x" * 251),
        (t10(b"x" * 252), None),
        (
            Designator(DesignatorType.T10_VENDOR_ID, CodeSet.BINARY, b"ACME    \x00\x01"),
            "t10.41434d45202020200001",
        ),
        (naa("0" * 16), None),
        (naa("70" * 8), None),
        (naa("60" * 8), None),  # NAA 6 has 16 bytes
        (naa("50" * 16), None),  # NAA 5 has 8
        (naa(""), None),
        (eui("00" * 8), None),
        (eui("ab" * 9), None),
        (Designator(DesignatorType.VENDOR_SPECIFIC, CodeSet.ASCII, b"name"), None),
        (Designator(DesignatorType.NAA, CodeSet.BINARY, b"\x50" * 8, Association.TARGET_PORT), None),
    ],
)
def test_names_are_safe_or_absent(designator: Designator, expected: str | None) -> None:
    assert vpd.wwid([designator]) == expected


@given(st.lists(designators, max_size=8))
def test_a_name_is_always_fit_for_a_path(given_designators: list[Designator]) -> None:
    name = vpd.wwid(given_designators)
    assert name is None or re.fullmatch(r"(naa|eui|iqn|t10)\.[A-Za-z0-9._:-]{0,251}", name)


# -- B0h and B2h


def test_the_limits_of_real_units() -> None:
    assert BlockLimits.parse(TGT_THIN_LIMITS) == BlockLimits(
        max_unmap_blocks=0xFFFFFFFF, max_unmap_descriptors=0xFFFFFFFF
    )
    assert BlockLimits.parse(ISTGT_LIMITS) == BlockLimits(optimal_granularity=8, optimal_transfer_length=2048)


def test_the_short_page_of_sbc_2_has_no_unmap() -> None:
    data = bytes.fromhex("00b0000c 00000008 00010000 00000800")
    assert BlockLimits.parse(data) == BlockLimits(
        optimal_granularity=8, max_transfer_length=65536, optimal_transfer_length=2048
    )


def test_the_alignment_counts_only_when_it_is_said_to_be_valid() -> None:
    data = bytearray(BlockLimits(unmap_granularity=8, unmap_alignment=4).pack())
    assert BlockLimits.parse(bytes(data)).unmap_alignment == 4
    data[32] &= 0x7F
    assert BlockLimits.parse(bytes(data)).unmap_alignment == 0


@given(limits)
def test_limits_come_back(expected: BlockLimits) -> None:
    packed = expected.pack()
    assert len(packed) == 64
    assert BlockLimits.parse(packed) == expected


def test_a_thin_unit_of_tgt() -> None:
    assert Provisioning.parse(bytes.fromhex("00b2000400e40200")) == Provisioning(
        lbpu=True, lbpws=True, lbpws10=True, lbprz=True, provisioning_type=ProvisioningType.THIN
    )


@given(provisionings)
def test_provisioning_comes_back(expected: Provisioning) -> None:
    assert Provisioning.parse(expected.pack()) == expected


# -- hostile targets


@pytest.mark.conformance("HOSTILE-36")
@pytest.mark.parametrize("page", [0x00, 0x80, 0x83, 0xB0, 0xB2])
def test_another_page_than_was_asked_for_is_no_page(page: int) -> None:
    data = bytearray(TGT_DESIGNATORS)
    data[1] = page ^ 0x01
    answer = bytes(data)
    assert vpd.parse_supported_pages(answer) == frozenset()
    assert vpd.parse_serial(answer) == ""
    assert vpd.parse_designators(answer) == ()
    assert BlockLimits.parse(answer) == BlockLimits()
    assert Provisioning.parse(answer) == Provisioning()


@pytest.mark.conformance("HOSTILE-36")
def test_a_length_beyond_the_data_brings_what_is_there() -> None:
    assert vpd.parse_serial(bytes.fromhex("0080ffff") + b"abc") == "abc"
    assert vpd.parse_supported_pages(bytes.fromhex("0000ffff0080")) == {0x00, 0x80}
    assert (
        vpd.parse_designators(b"\0\x83\xff\xff" + TGT_DESIGNATORS[4:56])
        == (vpd.parse_designators(TGT_DESIGNATORS)[:2])
    )


@pytest.mark.conformance("HOSTILE-36")
def test_a_length_below_the_data_hides_the_rest() -> None:
    assert vpd.parse_serial(bytes.fromhex("00800003") + b"abcdef") == "abc"


@pytest.mark.conformance("HOSTILE-36")
def test_a_designator_past_the_end_and_all_behind_it_are_absent() -> None:
    for cut in range(4, len(TGT_DESIGNATORS)):
        expected = sum(cut >= end for end in (44, 56, 76))
        assert len(vpd.parse_designators(TGT_DESIGNATORS[:cut])) == expected
    lying = bytearray(TGT_DESIGNATORS)
    lying[47] = 0xFF  # the length of the second one
    assert len(vpd.parse_designators(bytes(lying))) == 1


@pytest.mark.conformance("HOSTILE-36")
def test_control_characters_in_a_serial_number_are_escaped() -> None:
    assert vpd.parse_serial(b"\0\x80\0\x06\x1b[2J\n1") == "\\x1b[2J\\n1"


@pytest.mark.conformance("HOSTILE-36")
@given(st.sampled_from(vpd.Page), u16, st.binary(max_size=80))
def test_garbage_is_parsed(page: vpd.Page, length: int, payload: bytes) -> None:
    for data in (bytes((0, page)) + length.to_bytes(2, "big") + payload, payload):
        assert len(vpd.parse_supported_pages(data)) <= len(data)
        assert vpd.parse_serial(data).isascii()
        assert sum(4 + len(d.value) for d in vpd.parse_designators(data)) <= len(data)
        BlockLimits.parse(data)
        Provisioning.parse(data)


@pytest.mark.conformance("HOSTILE-36")
@given(limits, st.integers(0, 63))
def test_limits_that_did_not_arrive_are_absent(expected: BlockLimits, length: int) -> None:
    parsed = BlockLimits.parse(expected.pack()[:length])
    if length >= 12:
        assert parsed.max_transfer_length == expected.max_transfer_length
    if length <= 20:
        assert (parsed.max_unmap_blocks, parsed.max_write_same_length) == (0, 0)
