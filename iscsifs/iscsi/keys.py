"""The keys of RFC 7143 section 13 as one table, their values, and what a login settles with them.

The rules by which the two sides agree on a value are in `negotiation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, Flag, auto
from types import MappingProxyType
from typing import Final, NamedTuple

from iscsifs.errors import ConfigError, NegotiationError
from iscsifs.iscsi.names import name_fault
from iscsifs.iscsi.pdu import Stage
from iscsifs.iscsi.text import check_length, format_boolean, parse_boolean, parse_list, parse_number
from iscsifs.limits import MAX_DATA_SEGMENT_LENGTH, MAX_OUTSTANDING_R2TS

Value = bool | int | str | tuple[str, ...]
"""The value of a key; a list is offered as a tuple, in order of preference, and settled as one of them."""


class Role(Flag):
    """The two sides of a negotiation."""

    INITIATOR = auto()
    TARGET = auto()


class Form(Enum):
    """What a value looks like (section 6.1)."""

    BOOLEAN = auto()
    NUMBER = auto()
    LIST = auto()
    NAME = auto()
    TEXT = auto()


class Result(Enum):
    """How the value that is settled follows from the one that is offered (sections 6.2.1, 6.2.2 and 13)."""

    DECLARED = auto()  # no answer: the value is the result
    AND = auto()
    OR = auto()
    MINIMUM = auto()
    MAXIMUM = auto()
    CHOICE = auto()  # the first item of the list that the other side accepts


class Use(Enum):
    """When a key may be sent (section 13)."""

    LEADING = "LO"
    LOGIN = "IO"
    ALL = "ALL"
    FULL_FEATURE = "FFPO"


class Key(NamedTuple):
    """One row of section 13."""

    name: str
    form: Form
    result: Result
    use: Use
    senders: Role
    default: Value | None = None  # None: no default that one could fall back to
    bounds: tuple[int, int] = (0, 0)  # of a number
    stages: tuple[Stage, ...] = (Stage.OPERATIONAL,)
    normal_only: bool = False  # irrelevant when SessionType=Discovery
    later: bool = False  # younger than RFC 3720: NotUnderstood is a good answer to it


_BOOLEAN, _NUMBER, _LIST, _NAME, _TEXT = Form
_DECLARED, _AND, _OR, _MINIMUM, _MAXIMUM, _CHOICE = Result
_LO, _IO, _ALL, _FFPO = Use
_I, _T, _BOTH = Role.INITIATOR, Role.TARGET, Role.INITIATOR | Role.TARGET
_ANY_STAGE: Final = (Stage.SECURITY, Stage.OPERATIONAL)
_LENGTH: Final = (512, 2**24 - 1)
_COUNT: Final = (1, 65535)
_TAG: Final = (0, 65535)
_SECONDS: Final = (0, 3600)

_ROWS: Final = (
    Key("SessionType", _TEXT, _DECLARED, _LO, _I, "Normal", stages=_ANY_STAGE),
    Key("InitiatorName", _NAME, _DECLARED, _IO, _I, stages=_ANY_STAGE),
    Key("InitiatorAlias", _TEXT, _DECLARED, _ALL, _I, "", stages=_ANY_STAGE),
    # A target sends TargetName in answer to SendTargets only, which is no part of a login.
    Key("TargetName", _NAME, _DECLARED, _IO, _I, stages=_ANY_STAGE),
    Key("TargetAlias", _TEXT, _DECLARED, _ALL, _T, "", stages=_ANY_STAGE),
    Key("TargetAddress", _TEXT, _DECLARED, _ALL, _T, stages=_ANY_STAGE),
    Key("TargetPortalGroupTag", _NUMBER, _DECLARED, _IO, _T, None, _TAG, stages=_ANY_STAGE),
    Key("SendTargets", _TEXT, _DECLARED, _FFPO, _I),
    Key("AuthMethod", _LIST, _CHOICE, _IO, _BOTH, stages=(Stage.SECURITY,)),  # section 12.1
    Key("HeaderDigest", _LIST, _CHOICE, _IO, _BOTH, "None"),
    Key("DataDigest", _LIST, _CHOICE, _IO, _BOTH, "None"),
    Key("MaxRecvDataSegmentLength", _NUMBER, _DECLARED, _ALL, _BOTH, 8192, _LENGTH),
    Key("DefaultTime2Wait", _NUMBER, _MAXIMUM, _LO, _BOTH, 2, _SECONDS),
    Key("DefaultTime2Retain", _NUMBER, _MINIMUM, _LO, _BOTH, 20, _SECONDS),
    Key("ErrorRecoveryLevel", _NUMBER, _MINIMUM, _LO, _BOTH, 0, (0, 2)),
    Key("MaxConnections", _NUMBER, _MINIMUM, _LO, _BOTH, 1, _COUNT, normal_only=True),
    Key("InitialR2T", _BOOLEAN, _OR, _LO, _BOTH, True, normal_only=True),
    Key("ImmediateData", _BOOLEAN, _AND, _LO, _BOTH, True, normal_only=True),
    Key("MaxBurstLength", _NUMBER, _MINIMUM, _LO, _BOTH, 262144, _LENGTH, normal_only=True),
    Key("FirstBurstLength", _NUMBER, _MINIMUM, _LO, _BOTH, 65536, _LENGTH, normal_only=True),
    Key("MaxOutstandingR2T", _NUMBER, _MINIMUM, _LO, _BOTH, 1, _COUNT, normal_only=True),
    Key("DataPDUInOrder", _BOOLEAN, _OR, _LO, _BOTH, True, normal_only=True),
    Key("DataSequenceInOrder", _BOOLEAN, _OR, _LO, _BOTH, True, normal_only=True),
    Key("TaskReporting", _LIST, _CHOICE, _LO, _BOTH, "RFC3720", normal_only=True, later=True),
    Key("iSCSIProtocolLevel", _NUMBER, _MINIMUM, _LO, _BOTH, 1, (0, 31), later=True),  # RFC 7144
    # No behaviour may depend on this one (section 13.26.2): not even on the stage that it comes in.
    Key("X#NodeArchitecture", _TEXT, _DECLARED, _LO, _BOTH, stages=_ANY_STAGE, later=True),
)

TABLE: Final[Mapping[str, Key]] = MappingProxyType({key.name: key for key in _ROWS})
"""Every key of section 13, and AuthMethod, by name."""

OBSOLETE: Final = frozenset({"IFMarker", "OFMarker", "IFMarkInt", "OFMarkInt"})
"""Keys of RFC 3720 that are answered with Reject (section 13.25)."""

METHOD_KEYS: Final = frozenset(
    {
        *("CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R"),
        *("SRP_U", "SRP_GROUP", "SRP_A", "SRP_B", "SRP_M", "SRP_HM", "SRP_s", "TargetAuth"),
        *("KRB_AP_REQ", "KRB_AP_REP"),
    }
)
"""The keys of the authentication methods, which the method checks step by step (section 12.1)."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a login settled; lengths are bytes, times seconds (section 13).

    At the start of a connection, and for whatever a login leaves out, the defaults of the standard hold.
    """

    header_digest: bool = False
    data_digest: bool = False
    max_send_data_segment_length: int = 8192
    """The peer's MaxRecvDataSegmentLength."""
    max_recv_data_segment_length: int = 8192
    """Our own MaxRecvDataSegmentLength."""
    max_connections: int = 1
    initial_r2t: bool = True
    immediate_data: bool = True
    max_burst_length: int = 262144
    first_burst_length: int = 65536
    default_time2wait: int = 2
    default_time2retain: int = 20
    max_outstanding_r2t: int = 1
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True
    error_recovery_level: int = 0
    task_reporting: str = "RFC3720"
    target_alias: str = ""
    target_portal_group_tag: int | None = None
    """None where the target did not say it (section 6.3.1 demands it)."""


_DIGEST_NAMES: Final = ("None", "CRC32C")


def agreed(parameters: Parameters) -> dict[str, str]:
    """Return what a login settled, as values of the keys of section 13, in the order of that section.

    The MaxRecvDataSegmentLength of the peer, which has the same key, is MaxXmitDataSegmentLength here.
    """
    values: dict[str, Value] = {
        "HeaderDigest": _DIGEST_NAMES[parameters.header_digest],
        "DataDigest": _DIGEST_NAMES[parameters.data_digest],
        "MaxConnections": parameters.max_connections,
        "TargetAlias": parameters.target_alias,
        "InitialR2T": parameters.initial_r2t,
        "ImmediateData": parameters.immediate_data,
        "MaxRecvDataSegmentLength": parameters.max_recv_data_segment_length,
        "MaxXmitDataSegmentLength": parameters.max_send_data_segment_length,
        "MaxBurstLength": parameters.max_burst_length,
        "FirstBurstLength": parameters.first_burst_length,
        "DefaultTime2Wait": parameters.default_time2wait,
        "DefaultTime2Retain": parameters.default_time2retain,
        "MaxOutstandingR2T": parameters.max_outstanding_r2t,
        "DataPDUInOrder": parameters.data_pdu_in_order,
        "DataSequenceInOrder": parameters.data_sequence_in_order,
        "ErrorRecoveryLevel": parameters.error_recovery_level,
        "TaskReporting": parameters.task_reporting,
    }
    return {name: format_value(value) for name, value in values.items()}


INITIATOR_OFFER: Final[Mapping[str, Value]] = MappingProxyType(
    {
        "HeaderDigest": ("None", "CRC32C"),
        "DataDigest": ("None", "CRC32C"),
        "MaxRecvDataSegmentLength": MAX_DATA_SEGMENT_LENGTH,
        "DefaultTime2Wait": 2,
        "DefaultTime2Retain": 0,
        "ErrorRecoveryLevel": 0,
        "MaxConnections": 1,
        "InitialR2T": False,
        "ImmediateData": True,
        "MaxBurstLength": (1 << 24) - 512,
        "FirstBurstLength": 1 << 18,
        "MaxOutstandingR2T": MAX_OUTSTANDING_R2TS,
        "DataPDUInOrder": True,
        "DataSequenceInOrder": True,
    }
)
"""What our initiator offers unless told otherwise."""


def check_offer(offer: Mapping[str, Value]) -> None:
    """Raise ConfigError where *offer* has a key that is not offered, or a value that its key cannot take."""
    for name, value in offer.items():
        key = TABLE.get(name)
        if key is None or key.senders != _BOTH or key.form is Form.TEXT or key.name == "AuthMethod":
            raise ConfigError(f"{name} is not a key that can be offered")
        low, high = key.bounds
        expected = {
            Form.BOOLEAN: ("Yes or No", isinstance(value, bool)),
            Form.NUMBER: (f"a number from {low} to {high}", type(value) is int and low <= value <= high),
            Form.LIST: ("a list of values", isinstance(value, tuple) and bool(value)),
        }
        form, good = expected[key.form]
        if not good:
            raise ConfigError(f"{name}={value} cannot be offered: it takes {form}")
    first, burst = offer.get("FirstBurstLength", 512), offer.get("MaxBurstLength", 262144)
    if isinstance(first, int) and isinstance(burst, int) and first > burst:
        raise ConfigError(f"FirstBurstLength={first} is above MaxBurstLength={burst}; lower it")


class OutOfBounds(NegotiationError):
    """A number outside the range of its key."""


def read_value(key: Key, value: str) -> Value:
    """Read *value* in the form of *key*; raises NegotiationError, OutOfBounds for a number out of range."""
    try:
        match key.form:
            case Form.BOOLEAN:
                return parse_boolean(value)
            case Form.LIST:
                return parse_list(value)
            case Form.NUMBER:
                number = parse_number(value)
            case Form.NAME:
                if fault := name_fault(value):
                    raise ValueError(fault)
                return value
            case Form.TEXT:
                check_length(value)
                if key.name == "SessionType" and value not in ("Normal", "Discovery"):
                    raise ValueError("neither Normal nor Discovery")
                return value
    except ValueError as exc:
        raise NegotiationError(key.name, str(exc)) from None
    low, high = key.bounds
    if not low <= number <= high:
        raise OutOfBounds(key.name, f"{number} is not between {low} and {high}")
    return number


def format_value(value: Value) -> str:
    """Write *value* as it is sent."""
    if isinstance(value, bool):
        return format_boolean(value)
    return ",".join(value) if isinstance(value, tuple) else str(value)


def decides(key: Key, value: Value) -> bool:
    """Tell whether a proposed boolean is the result whatever the answer, which may then be left out."""
    return (key.result is Result.AND and value is False) or (key.result is Result.OR and value is True)
