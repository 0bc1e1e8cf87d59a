"""Standard INQUIRY data, from real targets and from hostile ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import UnitError
from iscsifs.scsi.inquiry import STANDARD_LENGTH, DeviceType, InquiryData

TGT_CONTROLLER = bytes.fromhex(
    "0c0005123d000002 4945542020202020 436f6e74726f6c6c6572202020202020 30303031"
    "0000000000000000000000000000000000000000000004c0096001fb0000"
)
ISTGT_DISK = bytes.fromhex(
    "001005025b001002 4672656542534420 6953435349204449534b202020202020 30303031"
    "202020202020202020202020202020202020202000000096003000320004"
).ljust(96, b"\0")

# What a text may be so that it comes back as it was: ASCII without what is escaped, or is padding.
texts = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="\\"), max_size=4)
inquiries = st.builds(
    InquiryData,
    device_type=st.sampled_from(DeviceType),
    peripheral_qualifier=st.integers(0, 7),
    removable=st.booleans(),
    version=st.integers(0, 255),
    vendor=texts,
    product=texts,
    revision=texts,
)


def test_a_controller_of_tgt() -> None:
    data = InquiryData.parse(TGT_CONTROLLER)
    assert data == InquiryData(
        DeviceType.STORAGE_ARRAY_CONTROLLER, version=5, vendor="IET", product="Controller", revision="0001"
    )
    assert data.connected
    assert not data.device_type.addressed_by_block
    assert data.device_type.label == "storage-array-controller"


def test_a_disk_of_istgt() -> None:
    data = InquiryData.parse(ISTGT_DISK)
    assert data == InquiryData(
        DeviceType.DISK, version=5, vendor="FreeBSD", product="iSCSI DISK", revision="0001"
    )
    assert data.device_type.addressed_by_block
    assert data.device_type.label == "disk"


def test_a_lun_without_a_unit() -> None:
    data = InquiryData.parse(bytes((0x7F,)) + ISTGT_DISK[1:])
    assert (data.peripheral_qualifier, data.device_type) == (3, DeviceType.UNKNOWN)
    assert not data.connected


def test_a_reserved_device_type_is_an_unknown_device() -> None:
    assert InquiryData.parse(b"\x1d").device_type is DeviceType.UNKNOWN


@pytest.mark.parametrize("device_type", [DeviceType.TAPE, DeviceType.CD_DVD])
def test_tapes_are_not_addressed_by_block_and_discs_are(device_type: DeviceType) -> None:
    assert device_type.addressed_by_block is (device_type is DeviceType.CD_DVD)


@given(inquiries)
def test_what_is_packed_can_be_parsed(data: InquiryData) -> None:
    packed = data.pack()
    assert len(packed) == STANDARD_LENGTH
    assert InquiryData.parse(packed) == data


def test_version_descriptors_follow_where_they_belong() -> None:
    packed = InquiryData(DeviceType.DISK, vendor="v", version_descriptors=(0x0060, 0x0300)).pack()
    assert len(packed) == 74
    assert packed[4] == 69
    assert packed[58:] == bytes.fromhex("00600300").ljust(16, b"\0")
    assert InquiryData.parse(packed) == InquiryData(DeviceType.DISK, vendor="v")


def test_texts_that_are_too_long_are_cut() -> None:
    packed = InquiryData(DeviceType.DISK, vendor="123456789", product="x" * 20, revision="12345").pack()
    parsed = InquiryData.parse(packed)
    assert (parsed.vendor, parsed.product, parsed.revision) == ("12345678", "x" * 16, "1234")


@pytest.mark.conformance("HOSTILE-36")
def test_control_characters_are_escaped() -> None:
    data = bytearray(ISTGT_DISK)
    data[8:16] = b"\x1b[2J\n\xff  "
    vendor = InquiryData.parse(bytes(data)).vendor
    assert vendor.isascii()
    assert vendor.isprintable()
    assert vendor.startswith("\\x1b[2J\\n")


@pytest.mark.conformance("HOSTILE-36")
@given(inquiries, st.integers(1, STANDARD_LENGTH - 1))
def test_fields_that_did_not_arrive_are_absent(data: InquiryData, length: int) -> None:
    parsed = InquiryData.parse(data.pack()[:length])
    assert parsed.device_type == data.device_type
    assert parsed.vendor == data.vendor[: max(0, length - 8)]
    assert parsed.product == data.product[: max(0, length - 16)]
    assert parsed.revision == data.revision[: max(0, length - 32)]


@pytest.mark.conformance("HOSTILE-36")
@pytest.mark.parametrize(
    ("additional", "vendor", "product"), [(0, "", ""), (11, "IET", ""), (255, "IET", "C")]
)
def test_the_additional_length_bounds_what_is_read(additional: int, vendor: str, product: str) -> None:
    data = bytearray(TGT_CONTROLLER[:17])
    data[4] = additional
    parsed = InquiryData.parse(bytes(data))
    assert (parsed.vendor, parsed.product, parsed.revision) == (vendor, product, "")


def test_no_data_is_no_unit() -> None:
    with pytest.raises(UnitError, match="without data"):
        InquiryData.parse(b"")


@pytest.mark.conformance("HOSTILE-36")
@given(st.binary(min_size=1, max_size=255))
def test_garbage_is_parsed(data: bytes) -> None:
    parsed = InquiryData.parse(data)
    assert (parsed.vendor + parsed.product + parsed.revision).isascii()
    assert "\x1b" not in parsed.vendor + parsed.product + parsed.revision
