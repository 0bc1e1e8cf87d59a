"""The PDUs of RFC 7143 section 11: one class for each, and the codes in their fields.

A PDU is a named tuple of the fields of its 48-byte basic header segment (BHS), in the order of the wire and
without the lengths: those belong to the framing, which has the additional header segments (AHS) and the data
segment beside it. Names follow the RFC; numbers are unsigned, a LUN is its eight bytes read as one big-endian
number, `flags` is byte 1 whole, and `immediate`, the I bit of byte 0, comes last.

`iscsifs.iscsi.bhs` packs them into headers, and unpacks them.
"""

from enum import IntEnum
from typing import Final, NamedTuple

RESERVED_TAG: Final = 0xFFFFFFFF
"""The task tag that means "none" (sections 11.2.1.8 and 11.7.4)."""

FINAL: Final = 0x80
"""The F bit of byte 1 (section 11.2.1.3)."""


class Opcode(IntEnum):
    """Byte 0 without the I bit (section 11.2.1.2)."""

    NOP_OUT = 0x00
    SCSI_COMMAND = 0x01
    TASK_MANAGEMENT_REQUEST = 0x02
    LOGIN_REQUEST = 0x03
    TEXT_REQUEST = 0x04
    DATA_OUT = 0x05
    LOGOUT_REQUEST = 0x06
    SNACK_REQUEST = 0x10
    NOP_IN = 0x20
    SCSI_RESPONSE = 0x21
    TASK_MANAGEMENT_RESPONSE = 0x22
    LOGIN_RESPONSE = 0x23
    TEXT_RESPONSE = 0x24
    DATA_IN = 0x25
    LOGOUT_RESPONSE = 0x26
    R2T = 0x31
    ASYNC_MESSAGE = 0x32
    REJECT = 0x3F


class CommandFlag(IntEnum):
    """Byte 1 of a SCSI Command (section 11.3.1); the task attribute is in the low three bits."""

    FINAL = 0x80
    READ = 0x40
    WRITE = 0x20
    SIMPLE = 0x01
    ORDERED = 0x02
    HEAD_OF_QUEUE = 0x03
    ACA = 0x04


class ResponseFlag(IntEnum):
    """Byte 1 of a SCSI Response (section 11.4.1)."""

    FINAL = 0x80
    BIDI_OVERFLOW = 0x10
    BIDI_UNDERFLOW = 0x08
    OVERFLOW = 0x04
    UNDERFLOW = 0x02


class DataInFlag(IntEnum):
    """Byte 1 of a Data-In (section 11.7)."""

    FINAL = 0x80
    ACKNOWLEDGE = 0x40
    OVERFLOW = 0x04
    UNDERFLOW = 0x02
    STATUS = 0x01


class TextFlag(IntEnum):
    """Byte 1 of a Text Request or Response (sections 11.10 and 11.11)."""

    FINAL = 0x80
    CONTINUE = 0x40


class LoginFlag(IntEnum):
    """Byte 1 of a Login Request or Response; CSG and NSG are its low four bits (section 11.12)."""

    TRANSIT = 0x80
    CONTINUE = 0x40


class Stage(IntEnum):
    """CSG and NSG of the login phase (section 11.12.3)."""

    SECURITY = 0
    OPERATIONAL = 1
    FULL_FEATURE = 3


class TaskFunction(IntEnum):
    """Functions of a Task Management Function Request (section 11.5.1)."""

    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_ACA = 3
    CLEAR_TASK_SET = 4
    LOGICAL_UNIT_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    TASK_REASSIGN = 8


class TaskResponse(IntEnum):
    """Answers of a Task Management Function Response (section 11.6.1)."""

    COMPLETE = 0
    NO_SUCH_TASK = 1
    NO_SUCH_LUN = 2
    STILL_ALLEGIANT = 3
    REASSIGNMENT_UNSUPPORTED = 4
    FUNCTION_UNSUPPORTED = 5
    AUTHORIZATION_FAILED = 6
    REJECTED = 255


class LogoutReason(IntEnum):
    """Reasons of a Logout Request (section 11.14.1)."""

    CLOSE_SESSION = 0
    CLOSE_CONNECTION = 1
    REMOVE_FOR_RECOVERY = 2


class LogoutResponseCode(IntEnum):
    """Answers of a Logout Response (section 11.15.1)."""

    CLOSED = 0
    CID_NOT_FOUND = 1
    RECOVERY_UNSUPPORTED = 2
    CLEANUP_FAILED = 3


class AsyncEvent(IntEnum):
    """Events of an Asynchronous Message (section 11.9.1)."""

    SCSI = 0
    LOGOUT_REQUESTED = 1
    CONNECTION_DROPPED = 2
    ALL_CONNECTIONS_DROPPED = 3
    NEGOTIATION_REQUESTED = 4
    TASKS_TERMINATED = 5
    VENDOR_SPECIFIC = 255


class RejectReason(IntEnum):
    """Reasons of a Reject (section 11.17.1)."""

    DATA_DIGEST_ERROR = 0x02
    SNACK_REJECT = 0x03
    PROTOCOL_ERROR = 0x04
    COMMAND_NOT_SUPPORTED = 0x05
    TOO_MANY_IMMEDIATE_COMMANDS = 0x06
    TASK_IN_PROGRESS = 0x07
    INVALID_DATA_ACK = 0x08
    INVALID_PDU_FIELD = 0x09
    OUT_OF_RESOURCES = 0x0A
    NEGOTIATION_RESET = 0x0B
    WAITING_FOR_LOGOUT = 0x0C


class NopOut(NamedTuple):
    """NOP-Out (section 11.18): a ping, or the answer to the target's."""

    lun: int = 0
    initiator_task_tag: int = RESERVED_TAG
    target_transfer_tag: int = RESERVED_TAG
    cmd_sn: int = 0
    exp_stat_sn: int = 0
    immediate: bool = False


class ScsiCommand(NamedTuple):
    """SCSI Command (section 11.3); *cdb* is 16 bytes, what is longer goes into an AHS (11.2.2.3)."""

    flags: int
    lun: int
    initiator_task_tag: int
    expected_data_transfer_length: int
    cmd_sn: int
    exp_stat_sn: int
    cdb: bytes
    immediate: bool = False


class ScsiResponse(NamedTuple):
    """SCSI Response (section 11.4); the data segment is SenseLength and the sense data (11.4.7)."""

    flags: int
    response: int
    status: int
    initiator_task_tag: int
    snack_tag: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    exp_data_sn: int = 0
    bidirectional_residual_count: int = 0
    residual_count: int = 0


class TaskManagementRequest(NamedTuple):
    """Task Management Function Request (section 11.5)."""

    function: int
    lun: int
    initiator_task_tag: int
    referenced_task_tag: int = RESERVED_TAG
    cmd_sn: int = 0
    exp_stat_sn: int = 0
    ref_cmd_sn: int = 0
    exp_data_sn: int = 0
    immediate: bool = True


class TaskManagementResponse(NamedTuple):
    """Task Management Function Response (section 11.6)."""

    response: int
    initiator_task_tag: int
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0


class LoginRequest(NamedTuple):
    """Login Request (section 11.12); *isid* is six bytes, the stages are in *flags*."""

    flags: int
    version_max: int
    version_min: int
    isid: bytes
    tsih: int
    initiator_task_tag: int
    cid: int = 0
    cmd_sn: int = 0
    exp_stat_sn: int = 0
    immediate: bool = True


class LoginResponse(NamedTuple):
    """Login Response (section 11.13); *isid* is six bytes, the stages are in *flags*."""

    flags: int
    version_max: int
    version_active: int
    isid: bytes
    tsih: int
    initiator_task_tag: int
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    status_class: int = 0
    status_detail: int = 0


class TextRequest(NamedTuple):
    """Text Request (section 11.10)."""

    flags: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int = RESERVED_TAG
    cmd_sn: int = 0
    exp_stat_sn: int = 0
    immediate: bool = False


class TextResponse(NamedTuple):
    """Text Response (section 11.11)."""

    flags: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int = RESERVED_TAG
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0


class DataOut(NamedTuple):
    """SCSI Data-Out (section 11.7): unsolicited, or in answer to an R2T."""

    flags: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    exp_stat_sn: int
    data_sn: int
    buffer_offset: int


class DataIn(NamedTuple):
    """SCSI Data-In (section 11.7), with the status of the command where `DataInFlag.STATUS` is set."""

    flags: int
    status: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    data_sn: int
    buffer_offset: int
    residual_count: int = 0


class R2T(NamedTuple):
    """Ready To Transfer (section 11.8): the target asks for a part of a write's data."""

    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    r2t_sn: int
    buffer_offset: int
    desired_data_transfer_length: int


class AsyncMessage(NamedTuple):
    """Asynchronous Message (section 11.9); the data segment is sense or vendor data (11.9.4)."""

    lun: int
    initiator_task_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    async_event: int
    async_vcode: int = 0
    parameter1: int = 0
    parameter2: int = 0
    parameter3: int = 0


class LogoutRequest(NamedTuple):
    """Logout Request (section 11.14)."""

    reason: int
    initiator_task_tag: int
    cid: int = 0
    cmd_sn: int = 0
    exp_stat_sn: int = 0
    immediate: bool = True


class LogoutResponse(NamedTuple):
    """Logout Response (section 11.15); the two times are seconds."""

    response: int
    initiator_task_tag: int
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    time2wait: int = 0
    time2retain: int = 0


class SnackRequest(NamedTuple):
    """SNACK Request (section 11.16): not sent at ErrorRecoveryLevel 0, but a target must know it."""

    snack_type: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    exp_stat_sn: int
    beg_run: int
    run_length: int


class Reject(NamedTuple):
    """Reject (section 11.17); the data segment is the header of the rejected PDU (11.17.4)."""

    reason: int
    initiator_task_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    data_sn: int = 0


class NopIn(NamedTuple):
    """NOP-In (section 11.19): the target's ping, or its echo of ours."""

    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int


InitiatorPdu = (
    NopOut
    | ScsiCommand
    | TaskManagementRequest
    | LoginRequest
    | TextRequest
    | DataOut
    | LogoutRequest
    | SnackRequest
)
"""What an initiator sends."""

TargetPdu = (
    NopIn
    | ScsiResponse
    | TaskManagementResponse
    | LoginResponse
    | TextResponse
    | DataIn
    | LogoutResponse
    | R2T
    | AsyncMessage
    | Reject
)
"""What a target sends."""

Pdu = InitiatorPdu | TargetPdu
