"""The keywords of iscsi.conf(5), as one table: those of FreeBSD, of the older iscontrol, and our own.

They are read in any case, and written as they stand here.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from iscsifs.conffile.syntax import Statement
from iscsifs.errors import ConfigError, printable
from iscsifs.iscsi.keys import INITIATOR_OFFER, TABLE, Form
from iscsifs.iscsi.names import check_name
from iscsifs.iscsi.text import parse_binary

_YES: Final = frozenset(("yes", "true", "on", "1"))
_NO: Final = frozenset(("no", "false", "off", "0"))
_LUN: Final = re.compile("[0-9]{1,8}|0x(?:[0-9a-fA-F]{4}|[0-9a-fA-F]{16})")

_CODE_POINTS: Final = {
    "be": 0,
    "ef": 46,
    **{f"cs{number}": number * 8 for number in range(8)},
    **{f"af{number}{drop}": number * 8 + drop * 2 for number in range(1, 5) for drop in range(1, 4)},
}
"""DSCPs by name (RFC 2474, RFC 2597, RFC 3246)."""


class Sets(Enum):
    """What a keyword is for."""

    ENTRY = auto()  # what the parser makes an entry of
    ENDPOINT = auto()  # a field of Endpoint
    OFFER = auto()  # a key of the login
    SESSION = auto()  # fields of InitiatorOptions
    FIXED = auto()  # a key of the login for which we have one value
    IGNORED = auto()


class Keyword(NamedTuple):
    """One keyword. *read* raises ValueError, with what to give instead; *fields* are what it sets."""

    name: str
    sets: Sets
    read: Callable[[Statement], Any]
    fields: tuple[str, ...] = ()
    reason: str = ""  # why it is ignored


def _text(statement: Statement) -> str:
    if not statement.value:
        raise ValueError("it is empty")
    return statement.value


def _boolean(statement: Statement) -> bool:
    value = statement.value.lower()
    if value not in _YES | _NO:
        raise ValueError("give Yes or No")
    return value in _YES


def _number(low: int, high: int) -> Callable[[Statement], int]:
    def read(statement: Statement) -> int:
        value = statement.value
        if not re.fullmatch("[0-9]{1,10}|0x[0-9a-fA-F]{1,8}", value) or not low <= int(value, 0 if "x" in value else 10) <= high:  # fmt: skip # noqa: E501
            raise ValueError(f"give a number from {low} to {high}")
        return int(value, 0 if "x" in value else 10)

    return read


def _one_of(*choices: str) -> Callable[[Statement], str]:
    by_name = {choice.lower(): choice for choice in choices}

    def read(statement: Statement) -> str:
        if statement.value.lower() not in by_name:
            raise ValueError(f"give {' or '.join(choices)}")
        return by_name[statement.value.lower()]

    return read


def _digests(statement: Statement) -> tuple[str, ...]:
    by_name = {"none": "None", "crc32c": "CRC32C"}
    found = [by_name.get(word.strip().lower()) for word in statement.value.split(",")]
    digests = tuple(digest for digest in found if digest)
    if len(digests) != len(found) or len(set(digests)) != len(digests):
        raise ValueError("give None, CRC32C, or both with a comma, the better one first")
    return digests


def _secret(statement: Statement) -> bytes:
    """Read a secret: text or, without quotation marks, hexadecimal after 0x and base64 after 0b."""
    value = statement.value
    if not is_binary(statement):
        return value.encode()
    if value[1] in "xX" and len(value) % 2:
        raise ValueError("it has an odd number of hexadecimal digits; text stands between quotation marks")
    try:
        return parse_binary(value)
    except ValueError:
        raise ValueError(
            "it is neither hexadecimal after 0x nor base64 after 0b; text stands between quotation marks"
        ) from None


def is_binary(statement: Statement) -> bool:
    """Say whether a secret is given in hexadecimal digits or base64."""
    return not statement.quoted and statement.value[:2] in ("0x", "0X", "0b", "0B")


def _name(what: str) -> Callable[[Statement], str]:
    def read(statement: Statement) -> str:
        try:
            check_name(statement.value, what)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return statement.value

    return read


def _own_address(statement: Statement) -> str:
    try:
        return str(ipaddress.ip_address(statement.value.strip("[]")))
    except ValueError:
        raise ValueError("give an IPv4 or an IPv6 address of this machine") from None


def _dscp(statement: Statement) -> int:
    point = _CODE_POINTS.get(statement.value.lower())
    try:
        return _number(0, 63)(statement) if point is None else point
    except ValueError:
        raise ValueError("give a number from 0 to 63, or a name such as ef, af11 or cs3") from None


def _lun(statement: Statement) -> str:
    if not _LUN.fullmatch(statement.value):
        raise ValueError("give a number, or 0x and 4 or 16 hexadecimal digits")
    return statement.value.lower() if statement.value.startswith("0x") else str(int(statement.value))


def _key(name: str, sets: Sets = Sets.OFFER, reason: str = "") -> Keyword:
    """Return the keyword of a key of RFC 7143 section 13."""
    key = TABLE[name]
    reader = _boolean if key.form is Form.BOOLEAN else _number(*key.bounds)
    return Keyword(name, sets, _digests if key.form is Form.LIST else reader, (name,), reason)


_SECONDS: Final = _number(1, 3600)
_ONE_CONNECTION: Final = "a session has one connection"
_IN_ORDER: Final = "data go in order"

_ROWS: Final = (
    # FreeBSD's.
    Keyword("TargetName", Sets.ENTRY, _name("target")),
    Keyword("TargetAddress", Sets.ENTRY, _text),
    Keyword("SessionType", Sets.ENTRY, _one_of("Normal", "Discovery")),
    Keyword("Enable", Sets.ENTRY, _boolean),
    Keyword("AuthMethod", Sets.ENTRY, _one_of("None", "CHAP")),
    Keyword("chapIName", Sets.ENTRY, _text),
    Keyword("chapSecret", Sets.ENTRY, _secret),
    Keyword("tgtChapName", Sets.ENTRY, _text),
    Keyword("tgtChapSecret", Sets.ENTRY, _secret),
    Keyword("Protocol", Sets.ENTRY, _one_of("iSCSI")),
    Keyword("Offload", Sets.ENTRY, _one_of("None")),
    Keyword("InitiatorName", Sets.ENDPOINT, _name("initiator name"), ("name",)),
    Keyword("InitiatorAlias", Sets.ENDPOINT, _text, ("alias",)),
    Keyword("InitiatorAddress", Sets.ENDPOINT, _own_address, ("address",)),
    Keyword("dscp", Sets.ENDPOINT, _dscp, ("dscp",)),
    Keyword("pcp", Sets.ENDPOINT, _number(0, 7), ("pcp",)),
    Keyword("PingTimeout", Sets.SESSION, _SECONDS, ("ping_interval", "ping_timeout")),
    Keyword("LoginTimeout", Sets.SESSION, _SECONDS, ("login_timeout",)),
    _key("HeaderDigest"),
    _key("DataDigest"),
    # The older iscontrol's, which FreeBSD's iscsictl still reads, and ignores.
    Keyword("port", Sets.ENTRY, _number(1, 65535)),
    Keyword("TargetPortalGroupTag", Sets.ENTRY, _number(0, 65535)),
    Keyword("tags", Sets.ENDPOINT, _number(1, 65535), ("queue_depth",)),
    _key("InitialR2T"),
    _key("ImmediateData"),
    _key("MaxRecvDataSegmentLength"),
    _key("MaxBurstLength"),
    _key("FirstBurstLength"),
    _key("DefaultTime2Wait"),
    _key("DefaultTime2Retain"),
    _key("MaxOutstandingR2T"),
    _key("MaxConnections", Sets.FIXED, _ONE_CONNECTION),
    _key("ErrorRecoveryLevel", Sets.FIXED, "only level 0 is offered"),
    _key("DataPDUInOrder", Sets.FIXED, _IN_ORDER),
    _key("DataSequenceInOrder", Sets.FIXED, _IN_ORDER),
    Keyword("TargetAlias", Sets.IGNORED, _text, reason="a target gives its alias itself"),
    Keyword("maxluns", Sets.IGNORED, _text, reason="all units are shown"),
    Keyword("sockbufsize", Sets.IGNORED, _text, reason="the system chooses its buffers"),
    Keyword("chapDigest", Sets.IGNORED, _text, reason="the target chooses among all that are known"),
    Keyword("iqn", Sets.IGNORED, _text, reason="give InitiatorName"),
    Keyword("maxXmitDataSegmentLength", Sets.IGNORED, _text, reason="the target declares it"),
    Keyword("tgtChallengeLen", Sets.IGNORED, _text, reason="challenges have 32 bytes"),
    # Our own.
    Keyword("Lun", Sets.ENTRY, _lun),
    Keyword("PingInterval", Sets.SESSION, _number(0, 3600), ("ping_interval",)),
    Keyword("CommandTimeout", Sets.SESSION, _SECONDS, ("command_timeout",)),
    Keyword("ReplacementTimeout", Sets.SESSION, _number(1, 86400), ("replacement_timeout",)),
    Keyword("DiscoveryAuth", Sets.SESSION, _one_of("auto", "chap", "none"), ("discovery_auth",)),
    Keyword("WriteBehind", Sets.SESSION, _boolean, ("write_behind",)),
    Keyword("TrustUnidentified", Sets.SESSION, _boolean, ("trust_unidentified",)),
)

KEYWORDS: Final[Mapping[str, Keyword]] = MappingProxyType({row.name.lower(): row for row in _ROWS})
"""Every keyword by its name in small letters."""


SECRETS: Final = frozenset(("chapSecret", "tgtChapSecret"))
"""Keywords whose values nobody else may read, and no message shows."""


def is_ours(keyword: Keyword, value: Any) -> bool:
    """Say whether a FIXED keyword has the one value that we have anyway."""
    return bool(INITIATOR_OFFER[keyword.name] == value)


def shown(statement: Statement) -> str:
    """Return a value for a message, without what may be a secret."""
    return "" if KEYWORDS[statement.key.lower()].name in SECRETS else f' = "{printable(statement.value)}"'
