"""The target's login phase (RFC 7143 section 6.3): a request in, a response out.

    login = TargetLogin(config, tsih=1, random_bytes=os.urandom, memory=memory)
    while not login.done:
        ...  # receive a request
        response, text = login.receive(request, text)
        ...  # send the response; where its status_class is not 0, close the connection

All that is wrong with a request becomes the status of the response.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from iscsifs.errors import AuthenticationError, NegotiationError, ProtocolError
from iscsifs.iscsi import serial
from iscsifs.iscsi.chap import ALGORITHMS, ChallengeMemory, ChapTarget, RandomBytes
from iscsifs.iscsi.keys import Parameters, Role, Value, check_offer
from iscsifs.iscsi.login import LOGIN_SEGMENT_LENGTH
from iscsifs.iscsi.negotiation import Negotiation
from iscsifs.iscsi.numbering import CommandOrder, StatusCounter
from iscsifs.iscsi.pdu import InitiatorPdu, LoginFlag, LoginRequest, LoginResponse, Stage
from iscsifs.iscsi.text import Pair, TextCollector, cut_text, encode_pairs
from iscsifs.limits import (
    COMMAND_WINDOW,
    MAX_DATA_SEGMENT_LENGTH,
    MAX_HELD_LENGTH,
    MAX_HELD_PDUS,
    MAX_OUTSTANDING_R2TS,
)

INITIATOR_ERROR: Final = (2, 0x00)
AUTHENTICATION_FAILURE: Final = (2, 0x01)
NOT_FOUND: Final = (2, 0x03)
UNSUPPORTED_VERSION: Final = (2, 0x05)
MISSING_PARAMETER: Final = (2, 0x07)
SESSION_DOES_NOT_EXIST: Final = (2, 0x0A)
INVALID_DURING_LOGIN: Final = (2, 0x0B)

_MEANINGS: Final = {
    INITIATOR_ERROR: "the Login Request breaks a rule",
    AUTHENTICATION_FAILURE: "it does not offer CHAP",
    NOT_FOUND: "there is no such target here",
    UNSUPPORTED_VERSION: "it wants a version of the protocol that is not supported",
    MISSING_PARAMETER: "the Login Request lacks a key",
    SESSION_DOES_NOT_EXIST: "it names a session that does not exist, and only one connection is supported",
    INVALID_DURING_LOGIN: "it sent something else than a Login Request",
}

TARGET_OFFER: Final[Mapping[str, Value]] = MappingProxyType(
    {
        "HeaderDigest": ("None", "CRC32C"),
        "DataDigest": ("None", "CRC32C"),
        "MaxRecvDataSegmentLength": MAX_DATA_SEGMENT_LENGTH,
        "InitialR2T": False,
        "ImmediateData": True,
        "MaxBurstLength": (1 << 24) - 512,
        "FirstBurstLength": 1 << 18,
        "MaxOutstandingR2T": MAX_OUTSTANDING_R2TS,
    }
)
"""What the target offers by default; other keys have the defaults of the standard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetConfig:
    """What a target lets in; raises ConfigError for an *offer* that cannot be made."""

    target_names: frozenset[str]
    target_alias: str = ""
    portal_group_tag: int = 1
    secrets: Mapping[str, bytes] | None = field(default=None, repr=False)
    """The CHAP users and their secrets; None lets everybody in."""
    own: tuple[str, bytes] | None = field(default=None, repr=False)
    """The CHAP name and secret with which the target proves itself."""
    discovery: tuple[Mapping[str, bytes] | None, tuple[str, bytes] | None] | None = field(
        default=None, repr=False
    )
    """The secrets and the own secret for discovery sessions, where these are others."""
    algorithms: tuple[int, ...] = tuple(ALGORITHMS)
    offer: Mapping[str, Value] = field(default_factory=lambda: TARGET_OFFER)
    command_window: int = COMMAND_WINDOW
    """How many commands are taken at once."""

    def __post_init__(self) -> None:
        check_offer(self.offer)


Arrived = tuple[InitiatorPdu, bytes, memoryview]
"""A PDU with its additional header segments and its data."""

Status = tuple[int, int]
"""Status-Class and Status-Detail (section 11.13.5)."""

Outgoing = tuple[LoginResponse, list[Pair]]
"""A Login Response and the pairs that go with it, before they are cut into data segments."""


class TargetLogin:
    """One login on one connection, for a session that gets *tsih*.

    *rewrite* is called with each response before it is sent, and returns what is sent instead: a test makes
    the target misbehave with it.
    """

    def __init__(
        self,
        config: TargetConfig,
        *,
        tsih: int,
        random_bytes: RandomBytes,
        memory: ChallengeMemory,
        stat_sn: int = 0,
        rewrite: Callable[[LoginResponse, list[Pair]], Outgoing] = lambda response, pairs: (response, pairs),
    ) -> None:
        self.done = False
        """Whether the connection has reached the full feature phase."""
        self.parameters = Parameters()
        self.initiator_name = ""
        self.target_name: str | None = None
        self.discovery = False
        self.refusal = ""
        """Why the login was refused, for a log; empty unless it was."""
        self.tsih = tsih
        self.statuses = StatusCounter(stat_sn)
        """The StatSN of the connection."""
        self.commands: CommandOrder[Arrived] = CommandOrder(
            config.command_window, max_held=MAX_HELD_PDUS, max_held_length=MAX_HELD_LENGTH
        )
        """The CmdSN of the session."""
        self._config = config
        self._random_bytes = random_bytes
        self._memory = memory
        self._rewrite = rewrite
        self._wish: dict[str, Value] = {**config.offer, "AuthMethod": _methods(config)}
        self._negotiation = Negotiation(Role.TARGET, self._wish)
        self._text = TextCollector("Login Request")
        self._first: LoginRequest | None = None
        self._stage = Stage.SECURITY
        self._chap: ChapTarget | None = None
        self._trusted = config.secrets is None
        self._declared = False
        self._unsent: list[bytes] = []

    def receive(self, request: InitiatorPdu, text: bytes) -> tuple[LoginResponse, bytes]:
        """Take a request and its data segment; return the response and its."""
        if not isinstance(request, LoginRequest):
            response = LoginResponse(0, 0, 0, bytes(6), 0, request.initiator_task_tag)
            return self._refusal(response, INVALID_DURING_LOGIN, _MEANINGS[INVALID_DURING_LOGIN])
        response = LoginResponse(
            flags=0,
            version_max=0,
            version_active=0,
            isid=request.isid,
            tsih=request.tsih,
            initiator_task_tag=request.initiator_task_tag,
        )
        try:
            self._check(request)
            if self._unsent:
                if text:
                    raise _Refused(INITIATOR_ERROR)
                return self._send_piece(response)
            pairs = self._text.add(text, more=bool(request.flags & LoginFlag.CONTINUE))
            answer = [] if pairs is None else self._answer(pairs)
            if request.flags & LoginFlag.TRANSIT and self._trusted:
                following = request.flags & 3
                response = response._replace(flags=LoginFlag.TRANSIT | following)
                if following == Stage.FULL_FEATURE:
                    self.parameters = self._negotiation.conclude()
                    response = response._replace(tsih=self.tsih)
        except _Refused as refused:
            return self._refusal(response, refused.status, _MEANINGS[refused.status])
        except AuthenticationError as exc:
            return self._refusal(response, AUTHENTICATION_FAILURE, str(exc))
        except (NegotiationError, ProtocolError) as exc:
            return self._refusal(response, INITIATOR_ERROR, str(exc))
        return self._send(response, answer)

    def _send(self, response: LoginResponse, pairs: list[Pair]) -> tuple[LoginResponse, bytes]:
        """Apply the test's `rewrite`, send the first piece of the answer, and go on to the next stage."""
        response, pairs = self._rewrite(self._numbered(response), pairs)
        self._unsent = cut_text(encode_pairs(pairs), LOGIN_SEGMENT_LENGTH)
        if len(self._unsent) > 1:
            return self._send_piece(response._replace(flags=0))
        self.statuses.stat_sn = serial.add(response.stat_sn, 1)
        if response.flags & LoginFlag.TRANSIT and response.status_class == 0:
            self.done = response.flags & 3 == Stage.FULL_FEATURE
            self._stage = Stage.OPERATIONAL
        return response, self._unsent.pop()

    def _send_piece(self, response: LoginResponse) -> tuple[LoginResponse, bytes]:
        """Send the next piece of an answer that does not fit into one data segment (section 6.2)."""
        response, piece = self._numbered(response), self._unsent.pop(0)
        self.statuses.stat_sn = serial.add(response.stat_sn, 1)
        return response._replace(flags=response.flags | (LoginFlag.CONTINUE if self._unsent else 0)), piece

    def _numbered(self, response: LoginResponse) -> LoginResponse:
        """Fill in the current stage and the numbers."""
        return response._replace(
            flags=response.flags | self._stage << 2,
            stat_sn=self.statuses.stat_sn,
            exp_cmd_sn=self.commands.exp_cmd_sn,
            max_cmd_sn=self.commands.max_cmd_sn,
        )

    def _refusal(self, response: LoginResponse, status: Status, why: str) -> tuple[LoginResponse, bytes]:
        self.refusal = why
        response = response._replace(flags=0, status_class=status[0], status_detail=status[1])
        return self._send(response, [])

    def _check(self, request: LoginRequest) -> None:
        """Check the header of a request against the first one and the stage (section 11.12)."""
        flags, current = request.flags, request.flags >> 2 & 3
        if self._first is None:
            if request.version_min > 0:
                raise _Refused(UNSUPPORTED_VERSION)
            if request.tsih != 0:
                raise _Refused(SESSION_DOES_NOT_EXIST)
            if current not in (Stage.SECURITY, Stage.OPERATIONAL) or not request.immediate:
                raise _Refused(INITIATOR_ERROR)
            self._first = request
            self._stage = Stage(current)
            self.commands.exp_cmd_sn = request.cmd_sn
        elif request != self._first._replace(flags=flags, exp_stat_sn=self.statuses.stat_sn):
            raise _Refused(INITIATOR_ERROR)
        transit = bool(flags & LoginFlag.TRANSIT)
        if current != self._stage or (transit and flags & LoginFlag.CONTINUE):
            raise _Refused(INITIATOR_ERROR)
        if transit and (flags & 3 == 2 or flags & 3 <= current):
            raise _Refused(INITIATOR_ERROR)

    def _answer(self, received: list[Pair]) -> list[Pair]:
        """Take the whole text of a request; return the pairs to answer with."""
        negotiation = self._negotiation
        pairs = []
        first = "InitiatorName" not in negotiation.values
        if first:
            negotiation.discovery = ("SessionType", "Discovery") in received
            if negotiation.discovery and self._config.discovery is not None:
                secrets, own = self._config.discovery
                self._config = replace(self._config, secrets=secrets, own=own)
                self._wish["AuthMethod"] = _methods(self._config)
                self._trusted = secrets is None
        answers, step = negotiation.receive(received, self._stage, final=False)
        if first:
            self._identify()
            pairs.append(negotiation.send("TargetPortalGroupTag", self._config.portal_group_tag))
            if self._config.target_alias and not self.discovery:
                pairs.append(negotiation.send("TargetAlias", self._config.target_alias))
        pairs += answers
        if self._stage is Stage.SECURITY:
            return pairs + self._authenticate(step)
        if not self._trusted:
            raise _Refused(AUTHENTICATION_FAILURE)
        if not self._declared:
            self._declared = True
            length = self._config.offer.get("MaxRecvDataSegmentLength", 8192)
            pairs.append(negotiation.send("MaxRecvDataSegmentLength", length))
        return pairs

    def _identify(self) -> None:
        """Check the names of the initiator and of the target (section 6.3.1)."""
        values = self._negotiation.values
        self.discovery = self._negotiation.discovery
        if "InitiatorName" not in values or ("TargetName" not in values and not self.discovery):
            raise _Refused(MISSING_PARAMETER)
        self.initiator_name = str(values["InitiatorName"])
        if "TargetName" in values:
            self.target_name = str(values["TargetName"])
            if self.target_name not in self._config.target_names:
                raise _Refused(NOT_FOUND)

    def _authenticate(self, step: list[Pair]) -> list[Pair]:
        """Go on with the authentication of the initiator (section 12.1)."""
        if self._trusted and not step:
            return []
        method = self._negotiation.values.get("AuthMethod")
        if self._config.secrets is None or method != "CHAP":
            raise _Refused(INITIATOR_ERROR if step else AUTHENTICATION_FAILURE)
        if self._chap is None:
            if not step:
                return []
            self._chap = ChapTarget(
                self._config.secrets,
                self._config.own,
                self._config.algorithms,
                self._random_bytes,
                self._memory,
            )
            return self._chap.challenge(step)
        if not {"CHAP_N", "CHAP_R"} <= dict(step).keys():
            raise _Refused(MISSING_PARAMETER)
        proof = self._chap.verify(step)
        self._trusted = True
        return proof


def _methods(config: TargetConfig) -> tuple[str, ...]:
    """Return the authentication methods that *config* takes."""
    return ("None",) if config.secrets is None else ("CHAP",)


class _Refused(Exception):
    """The request is answered with *status*, and the login has ended."""

    def __init__(self, status: Status) -> None:
        super().__init__()
        self.status = status
