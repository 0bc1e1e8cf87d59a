"""Sense data: both formats, the words, and what an initiator makes of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.scsi.sense import Condition, Sense, SenseKey
from iscsifs.scsi.status import Status

u8, u64 = st.integers(0, 255), st.integers(0, 2**64 - 1)
senses = st.builds(
    Sense,
    key=st.sampled_from(SenseKey),
    asc=u8,
    ascq=u8,
    information=st.none() | u64,
    deferred=st.booleans(),
)

TGT_RESET = bytes.fromhex("700006000000000a00000000290000000000")
# The information is marked as valid, and means nothing.
ISTGT_RESET = bytes.fromhex("f00006000000000a00000000290000000000")
READ_ERROR = bytes.fromhex("f0000300001e240a00000000110000000000")
READ_ERROR_FAR_OUT = bytes.fromhex("720311000000000c 000a8000 0000000100000000")


def test_fixed_format() -> None:
    assert Sense.parse(TGT_RESET) == Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x00)
    assert Sense.parse(ISTGT_RESET) == Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x00, information=0)
    assert Sense.parse(READ_ERROR) == Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00, information=7716)


def test_descriptor_format() -> None:
    assert Sense.parse(READ_ERROR_FAR_OUT) == Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00, information=2**32)


def test_the_information_descriptor_is_found_behind_others() -> None:
    field_pointer = bytes.fromhex("0206 00000000 0000")
    data = bytes.fromhex("7203110000000014") + field_pointer + READ_ERROR_FAR_OUT[8:]
    assert Sense.parse(data).information == 2**32


def test_information_that_is_not_valid_is_absent() -> None:
    assert Sense.parse(b"\x70" + READ_ERROR[1:]).information is None
    assert Sense.parse(READ_ERROR_FAR_OUT[:10] + b"\0" + READ_ERROR_FAR_OUT[11:]).information is None


@pytest.mark.parametrize("code", ["71", "73"])
def test_deferred_errors(code: str) -> None:
    sense = Sense.parse(bytes.fromhex(code) + bytes(17))
    assert sense.deferred


@given(senses)
def test_descriptor_format_comes_back(sense: Sense) -> None:
    assert Sense.parse(sense.pack(descriptor=True)) == sense


@given(senses)
def test_fixed_format_comes_back_without_information_that_is_too_long(sense: Sense) -> None:
    parsed = Sense.parse(sense.pack())
    assert (parsed.key, parsed.asc, parsed.ascq, parsed.deferred) == (
        sense.key,
        sense.asc,
        sense.ascq,
        sense.deferred,
    )
    fits = sense.information is not None and sense.information < 2**32
    assert parsed.information == (sense.information if fits else None)


def test_packed_sense_data_are_those_of_the_standard() -> None:
    sense = Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00, information=7716)
    assert sense.pack() == READ_ERROR
    assert Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00, 2**32).pack(descriptor=True) == READ_ERROR_FAR_OUT


# -- hostile targets


@pytest.mark.parametrize("data", [b"", b"\0" * 18, b"\x7f" + b"\xff" * 17, b"\x6f\xff", b"nonsense"])
def test_what_is_no_sense_data_is_no_sense(data: bytes) -> None:
    sense = Sense.parse(data)
    assert sense == Sense(SenseKey.NO_SENSE)
    assert sense.condition is Condition.FAILED


@given(senses, st.booleans(), st.integers(0, 20))
def test_what_did_not_arrive_is_absent(sense: Sense, descriptor: bool, length: int) -> None:
    whole = Sense.parse(sense.pack(descriptor=descriptor))
    cut = Sense.parse(sense.pack(descriptor=descriptor)[:length])
    assert cut.key in (whole.key, SenseKey.NO_SENSE)
    assert cut.asc in (whole.asc, 0)
    assert cut.ascq in (whole.ascq, 0)
    assert cut.information in (whole.information, None)


def test_the_additional_length_bounds_what_is_read() -> None:
    short = bytearray(READ_ERROR)
    short[7] = 4  # up to the command-specific information
    assert Sense.parse(bytes(short)) == Sense(SenseKey.MEDIUM_ERROR, information=7716)
    empty = bytearray(READ_ERROR_FAR_OUT)
    empty[7] = 0
    assert Sense.parse(bytes(empty)) == Sense(SenseKey.MEDIUM_ERROR, 0x11)


@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda data: b"\x72" + data))
def test_garbage_is_parsed(data: bytes) -> None:
    sense = Sense.parse(data)
    assert isinstance(sense.condition, Condition)
    assert str(sense).isprintable()


# -- what it means

C = Condition


@pytest.mark.parametrize(
    ("key", "asc", "ascq", "condition"),
    [
        ("NO_SENSE", 0x00, 0x00, C.FAILED),
        ("RECOVERED_ERROR", 0x17, 0x01, C.RECOVERED),
        ("COMPLETED", 0x00, 0x00, C.RECOVERED),
        ("NOT_READY", 0x04, 0x01, C.BECOMING_READY),
        ("NOT_READY", 0x04, 0x0A, C.BECOMING_READY),
        ("NOT_READY", 0x04, 0x02, C.NOT_READY),
        ("NOT_READY", 0x04, 0x00, C.NOT_READY),
        ("NOT_READY", 0x3A, 0x00, C.NO_MEDIUM),
        ("NOT_READY", 0x3A, 0x02, C.NO_MEDIUM),
        ("MEDIUM_ERROR", 0x11, 0x00, C.MEDIUM_ERROR),
        ("MEDIUM_ERROR", 0x0C, 0x02, C.MEDIUM_ERROR),
        ("BLANK_CHECK", 0x00, 0x00, C.MEDIUM_ERROR),
        ("HARDWARE_ERROR", 0x44, 0x00, C.FAILED),
        ("ILLEGAL_REQUEST", 0x20, 0x00, C.UNSUPPORTED),
        ("ILLEGAL_REQUEST", 0x24, 0x00, C.UNSUPPORTED),
        ("ILLEGAL_REQUEST", 0x26, 0x02, C.UNSUPPORTED),
        ("ILLEGAL_REQUEST", 0x21, 0x00, C.OUT_OF_RANGE),
        ("ILLEGAL_REQUEST", 0x25, 0x00, C.NO_UNIT),
        ("ILLEGAL_REQUEST", 0x20, 0x02, C.FAILED),
        ("UNIT_ATTENTION", 0x29, 0x00, C.RESET),
        ("UNIT_ATTENTION", 0x29, 0x01, C.RESET),
        ("UNIT_ATTENTION", 0x29, 0x02, C.RESET),
        ("UNIT_ATTENTION", 0x29, 0x03, C.RESET),
        ("UNIT_ATTENTION", 0x29, 0x04, C.RESET),
        ("UNIT_ATTENTION", 0x29, 0x99, C.RESET),
        ("UNIT_ATTENTION", 0x29, 0x07, C.COMMANDS_CLEARED),
        ("UNIT_ATTENTION", 0x47, 0x7F, C.COMMANDS_CLEARED),
        ("UNIT_ATTENTION", 0x2F, 0x00, C.COMMANDS_CLEARED),
        ("UNIT_ATTENTION", 0x2F, 0x01, C.RESET),
        ("UNIT_ATTENTION", 0x28, 0x00, C.MEDIUM_CHANGED),
        ("UNIT_ATTENTION", 0x2A, 0x01, C.MODE_CHANGED),
        ("UNIT_ATTENTION", 0x2A, 0x09, C.CAPACITY_CHANGED),
        ("UNIT_ATTENTION", 0x3F, 0x0E, C.LUNS_CHANGED),
        ("UNIT_ATTENTION", 0x3F, 0x03, C.INQUIRY_CHANGED),
        ("UNIT_ATTENTION", 0x2A, 0x06, C.RETRY),
        ("UNIT_ATTENTION", 0x38, 0x07, C.RETRY),
        ("DATA_PROTECT", 0x27, 0x00, C.WRITE_PROTECTED),
        ("DATA_PROTECT", 0x27, 0x02, C.WRITE_PROTECTED),
        ("DATA_PROTECT", 0x27, 0x07, C.NO_SPACE),
        ("DATA_PROTECT", 0x74, 0x71, C.FAILED),
        # RFC 7143 section 11.4.7.2: failures of the transport, not of the unit.
        ("ABORTED_COMMAND", 0x47, 0x05, C.RETRY),
        ("ABORTED_COMMAND", 0x0C, 0x0C, C.RETRY),
        ("ABORTED_COMMAND", 0x0C, 0x0D, C.RETRY),
        ("ABORTED_COMMAND", 0x11, 0x13, C.RETRY),
        ("ABORTED_COMMAND", 0x10, 0x01, C.FAILED),
        ("MISCOMPARE", 0x1D, 0x00, C.MISCOMPARE),
        ("VENDOR_SPECIFIC", 0x80, 0x00, C.FAILED),
        ("COPY_ABORTED", 0x00, 0x00, C.FAILED),
        ("VOLUME_OVERFLOW", 0x00, 0x00, C.FAILED),
    ],
)
def test_conditions(key: str, asc: int, ascq: int, condition: Condition) -> None:
    assert Sense(SenseKey[key], asc, ascq).condition is condition


@pytest.mark.parametrize("key", [SenseKey.MEDIUM_ERROR, SenseKey.HARDWARE_ERROR, SenseKey.DATA_PROTECT])
def test_a_deferred_error_tells_of_a_write_that_was_lost(key: SenseKey) -> None:
    assert Sense(key, 0x0C, 0x00, deferred=True).condition is Condition.DEFERRED_ERROR


def test_a_deferred_warning_still_means_that_the_command_was_not_carried_out() -> None:
    assert Sense(SenseKey.RECOVERED_ERROR, 0x18, 0x00, deferred=True).condition is Condition.RETRY


@given(senses)
def test_a_unit_attention_is_never_the_end_of_a_command(sense: Sense) -> None:
    if sense.key is SenseKey.UNIT_ATTENTION:
        assert sense.condition.repeatable


def test_which_conditions_are_repeated() -> None:
    assert {condition for condition in Condition if not condition.repeatable} == {
        C.RECOVERED,
        C.NOT_READY,
        C.NO_MEDIUM,
        C.MEDIUM_ERROR,
        C.WRITE_PROTECTED,
        C.NO_SPACE,
        C.UNSUPPORTED,
        C.OUT_OF_RANGE,
        C.NO_UNIT,
        C.MISCOMPARE,
        C.FAILED,
    }


# -- in words


@pytest.mark.parametrize(
    ("sense", "expected"),
    [
        (Sense(SenseKey.MEDIUM_ERROR, 0x11, 0, 1234), "MEDIUM ERROR 11/00: unrecovered read error, LBA 1234"),
        (Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x99), "MEDIUM ERROR 11/99"),
        (
            Sense(SenseKey.UNIT_ATTENTION, 0x29, 0, 0),
            "UNIT ATTENTION 29/00: power on, reset, or bus device reset occurred",
        ),
        (Sense(SenseKey.MEDIUM_ERROR, 0x0C, 0, 7, True), "deferred MEDIUM ERROR 0c/00: write error, LBA 7"),
        (
            Sense(SenseKey.HARDWARE_ERROR, 0x40, 0x85),
            "HARDWARE ERROR 40/85: diagnostic failure on component 85h",
        ),
        (Sense(SenseKey.NO_SENSE), "NO SENSE 00/00: no additional sense information"),
    ],
)
def test_sense_data_in_words(sense: Sense, expected: str) -> None:
    assert str(sense) == expected


def test_status_codes() -> None:
    assert {status.name: int(status) for status in Status} == {
        "GOOD": 0x00,
        "CHECK_CONDITION": 0x02,
        "CONDITION_MET": 0x04,
        "BUSY": 0x08,
        "RESERVATION_CONFLICT": 0x18,
        "TASK_SET_FULL": 0x28,
        "ACA_ACTIVE": 0x30,
        "TASK_ABORTED": 0x40,
    }
