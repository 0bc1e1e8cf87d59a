"""The PDU headers of RFC 7143 section 11."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import ProtocolError
from iscsifs.iscsi import bhs, pdu
from iscsifs.iscsi.pdu import Opcode

OPCODES = sorted(Opcode)

# Headers written out by hand from the figures of section 11, one for each direction of each service.
KNOWN = [
    (
        pdu.ScsiCommand(
            flags=pdu.CommandFlag.FINAL | pdu.CommandFlag.READ | pdu.CommandFlag.SIMPLE,
            lun=0x0001_0000_0000_0000,
            initiator_task_tag=0x11223344,
            expected_data_transfer_length=512,
            cmd_sn=7,
            exp_stat_sn=9,
            cdb=bytes.fromhex("28000000000a00000100000000000000"),
        ),
        "01c10000 00000000 0001000000000000 11223344 00000200 00000007"
        " 00000009 28000000000a00000100000000000000",
    ),
    (
        pdu.DataIn(
            flags=pdu.DataInFlag.FINAL | pdu.DataInFlag.STATUS | pdu.DataInFlag.UNDERFLOW,
            status=0,
            lun=0,
            initiator_task_tag=5,
            target_transfer_tag=pdu.RESERVED_TAG,
            stat_sn=1,
            exp_cmd_sn=2,
            max_cmd_sn=3,
            data_sn=4,
            buffer_offset=0x1000,
            residual_count=6,
        ),
        "25830000 00000000 0000000000000000 00000005 ffffffff 00000001"
        " 00000002 00000003 00000004 00001000 00000006",
    ),
    (
        pdu.DataOut(
            flags=pdu.FINAL,
            lun=0,
            initiator_task_tag=5,
            target_transfer_tag=0x80000000,
            exp_stat_sn=1,
            data_sn=2,
            buffer_offset=3,
        ),
        "05800000 00000000 0000000000000000 00000005 80000000 00000000"
        " 00000001 00000000 00000002 00000003 00000000",
    ),
    (
        pdu.LoginRequest(
            flags=pdu.LoginFlag.TRANSIT | pdu.Stage.SECURITY << 2 | pdu.Stage.OPERATIONAL,
            version_max=0,
            version_min=0,
            isid=bytes.fromhex("800000000001"),
            tsih=0,
            initiator_task_tag=1,
            cid=2,
            cmd_sn=3,
            exp_stat_sn=4,
        ),
        "43810000 00000000 800000000001 0000 00000001 0002 0000 00000003 00000004" + "00" * 16,
    ),
    (
        pdu.LoginResponse(
            flags=0x87,
            version_max=0,
            version_active=0,
            isid=bytes.fromhex("800000000001"),
            tsih=0x1234,
            initiator_task_tag=1,
            stat_sn=2,
            exp_cmd_sn=3,
            max_cmd_sn=4,
            status_class=2,
            status_detail=1,
        ),
        "23870000 00000000 800000000001 1234 00000001 00000000 00000002 00000003 00000004 0201" + "00" * 10,
    ),
    (
        pdu.TaskManagementRequest(pdu.TaskFunction.ABORT_TASK, 0, 1, 2, 3, 4, 5, 0),
        "42810000 00000000 0000000000000000 00000001 00000002 00000003 00000004 00000005 00000000" + "00" * 8,
    ),
    (
        pdu.AsyncMessage(0, pdu.RESERVED_TAG, 1, 2, 3, pdu.AsyncEvent.LOGOUT_REQUESTED, 0, 4, 5, 6),
        "32800000 00000000 0000000000000000 ffffffff 00000000 00000001"
        " 00000002 00000003 0100000400050006 00000000",
    ),
    (
        pdu.LogoutResponse(0, 1, 2, 3, 4, 5, 6),
        "26800000 00000000 0000000000000000 00000001 00000000 00000002"
        " 00000003 00000004 00000000 00050006 00000000",
    ),
    (
        pdu.Reject(pdu.RejectReason.INVALID_PDU_FIELD, pdu.RESERVED_TAG, 1, 2, 3, 4),
        "3f800900 00000000 0000000000000000 ffffffff 00000000 00000001 00000002 00000003 00000004" + "00" * 8,
    ),
]


@pytest.mark.parametrize(("fields", "text"), KNOWN, ids=[type(fields).__name__ for fields, _ in KNOWN])
def test_headers_lie_as_the_figures_draw_them(fields: pdu.Pdu, text: str) -> None:
    header = bytes.fromhex(text)
    assert bhs.pack(fields) == header
    assert bhs.unpack(header) == fields


@given(st.sampled_from(OPCODES), st.binary(min_size=47, max_size=47))
def test_what_is_unpacked_packs_to_the_same_fields(opcode: Opcode, rest: bytes) -> None:
    fields = bhs.unpack(bytes([opcode]) + rest)
    assert bhs.opcode_of(fields) == opcode
    assert bhs.unpack(bhs.pack(fields)) == fields


@given(st.sampled_from(OPCODES), st.integers(0, 2**24 - 1), st.integers(0, 255))
def test_the_lengths_are_the_third_word(opcode: Opcode, data_length: int, ahs_words: int) -> None:
    header = bhs.pack(bhs.unpack(bytes([opcode]) + bytes(47)), data_length, ahs_words * 4)
    assert header[4] == ahs_words
    assert int.from_bytes(header[5:8], "big") == data_length


@pytest.mark.conformance("HOSTILE-3")
@pytest.mark.parametrize("opcode", [0x3C, 0x3D, 0x3E, 0x07, 0x1C, 0x27, 0x33])
def test_an_undefined_opcode_is_a_protocol_error(opcode: int) -> None:
    with pytest.raises(ProtocolError, match=f"{opcode:02x}h"):
        bhs.unpack(bytes([opcode]) + bytes(47))


def test_the_immediate_bit_is_a_field() -> None:
    assert bhs.pack(pdu.NopOut(immediate=True))[0] == 0x40
    assert bhs.unpack(bhs.pack(pdu.NopOut(immediate=True))).immediate  # type: ignore[union-attr]
