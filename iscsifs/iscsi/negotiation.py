"""The negotiation of a login's keys, from either side (RFC 7143 section 6.2).

    negotiation = Negotiation(Role.INITIATOR, INITIATOR_OFFER)
    request = negotiation.offer()
    ...
    answers, _ = negotiation.receive(response, Stage.OPERATIONAL, final=False)
    ...
    parameters = negotiation.conclude()

A value that its key does not allow is a NegotiationError; a key in the wrong place, from the wrong side or
for the second time, and the choice of something that was not offered, is a ProtocolError.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from iscsifs.errors import NegotiationError, ProtocolError, printable
from iscsifs.iscsi.keys import (
    METHOD_KEYS,
    OBSOLETE,
    TABLE,
    Form,
    Key,
    OutOfBounds,
    Parameters,
    Result,
    Role,
    Use,
    Value,
    decides,
    format_value,
    read_value,
)
from iscsifs.iscsi.pdu import Stage
from iscsifs.iscsi.text import Pair, parse_boolean

NOT_UNDERSTOOD: Final = "NotUnderstood"
IRRELEVANT: Final = "Irrelevant"
REJECT: Final = "Reject"


class Negotiation:
    """The keys of one login, seen from one side.

    *offer* is what this side proposes, and what it prefers where the peer proposes first; *leading* tells
    the login of a session's first connection from that of a further one.
    """

    def __init__(
        self, role: Role, offer: Mapping[str, Value], *, discovery: bool = False, leading: bool = True
    ) -> None:
        self.values: dict[str, Value] = {}
        """What is settled so far, or was declared by the peer."""
        self.discovery = discovery
        """Whether this is a discovery session; a target learns it from the first request."""
        self._role = role
        self._pdu = "Login Response" if role is Role.INITIATOR else "Login Request"
        self._wish = offer
        self._leading = leading
        self._sent: dict[str, Value] = {}
        self._received: set[str] = set()

    def send(self, name: str, value: Value) -> Pair:
        """Return the pair that declares or proposes *name*; no key can be sent twice (section 6.3)."""
        assert name in TABLE
        assert name not in self._sent
        self._sent[name] = value
        return name, format_value(value)

    def offer(self) -> list[Pair]:
        """Return our proposals and declarations; nothing of the operational stage was received before."""
        return [
            self.send(key.name, self._wish[key.name])
            for key in TABLE.values()
            if key.name in self._wish
            and (self._leading or key.use is not Use.LEADING)
            and not (self.discovery and key.normal_only)
        ]

    def receive(self, pairs: Iterable[Pair], stage: Stage, *, final: bool) -> tuple[list[Pair], list[Pair]]:
        """Take what the peer sent in *stage*.

        Returns our answers to its proposals, and apart from them the keys of the authentication method.
        *final* tells that no answer can be sent any more: the peer set T=1 (section 11.13.6).
        """
        answers: list[Pair] = []
        method: list[Pair] = []
        for name, value in pairs:
            if name in METHOD_KEYS:
                if stage is not Stage.SECURITY:
                    raise self._broken(f"{name} in the {stage.name.lower()} stage", "12")
                method.append((name, value))
                continue
            if name in self._received and name != "TargetAddress":
                raise self._broken(f"{name} for the second time", "6.3")
            self._received.add(name)
            if name in self._sent and TABLE[name].result is not Result.DECLARED:
                self._take_answer(name, value)
            else:
                answer = self._answer(name, value, stage)
                if answer is not None and not final:
                    answers.append((name, answer))
                elif answer is not None and self._is_due(name, value):
                    raise self._broken(
                        f"{name}={printable(value, 32)} needs an answer, but T is set", "11.13.6"
                    )
        return answers, method

    def conclude(self) -> Parameters:
        """Check the outcome as a whole, and return it; raises NegotiationError."""
        settled = dict(self.values)
        for name, offered in self._sent.items():
            key = TABLE[name]
            if key.default is None or key.result is Result.DECLARED or name in settled:
                continue
            if decides(key, offered) and name not in self._received:
                settled[name] = offered
            elif isinstance(offered, tuple) and key.default not in offered:
                raise NegotiationError(name, f"no agreement on {format_value(offered)}")

        def number(name: str) -> int:
            value = settled.get(name, TABLE[name].default)
            assert isinstance(value, int)
            return value

        def boolean(name: str) -> bool:
            return bool(settled.get(name, TABLE[name].default))

        burst, first = number("MaxBurstLength"), number("FirstBurstLength")
        if first > burst:
            if "FirstBurstLength" in settled:
                raise NegotiationError("FirstBurstLength", f"{first} is above the MaxBurstLength of {burst}")
            first = burst
        declared = self._sent.get("MaxRecvDataSegmentLength", 8192)
        assert isinstance(declared, int)
        tag = settled.get("TargetPortalGroupTag")
        return Parameters(
            header_digest=settled.get("HeaderDigest") == "CRC32C",
            data_digest=settled.get("DataDigest") == "CRC32C",
            max_send_data_segment_length=number("MaxRecvDataSegmentLength"),
            max_recv_data_segment_length=declared,
            max_connections=number("MaxConnections"),
            initial_r2t=boolean("InitialR2T"),
            immediate_data=boolean("ImmediateData"),
            max_burst_length=burst,
            first_burst_length=first,
            default_time2wait=number("DefaultTime2Wait"),
            default_time2retain=number("DefaultTime2Retain"),
            max_outstanding_r2t=number("MaxOutstandingR2T"),
            data_pdu_in_order=boolean("DataPDUInOrder"),
            data_sequence_in_order=boolean("DataSequenceInOrder"),
            error_recovery_level=number("ErrorRecoveryLevel"),
            task_reporting=str(settled.get("TaskReporting", "RFC3720")),
            target_alias=str(settled.get("TargetAlias", "")),
            target_portal_group_tag=tag if isinstance(tag, int) else None,
        )

    def _take_answer(self, name: str, value: str) -> None:
        """Check the peer's answer to what we proposed, and settle it."""
        key, offered = TABLE[name], self._sent[name]
        if value == NOT_UNDERSTOOD:
            if not key.later:
                raise self._broken(f"{name}=NotUnderstood, a key that everyone must know", "6.2")
            return
        if value in (REJECT, IRRELEVANT):
            if key.default is None:
                raise NegotiationError(name, f"the peer takes none of {format_value(offered)}")
            return
        answer = read_value(key, value)
        match key.result, answer, offered:
            case Result.CHOICE, (str(choice),), tuple() if choice in offered:
                answer = choice
            case Result.CHOICE, _, _:
                raise self._broken(f"{name}={printable(value, 64)}, which was not offered", "6.2.1")
            case Result.AND, True, False:
                raise NegotiationError(name, "Yes was answered to No")
            case Result.OR, False, True:
                raise NegotiationError(name, "No was answered to Yes")
            case Result.MINIMUM, int(), int() if answer > offered:
                raise NegotiationError(name, f"{answer} was answered, above the {offered} that was offered")
            case Result.MAXIMUM, int(), int() if answer < offered:
                raise NegotiationError(name, f"{answer} was answered, below the {offered} that was offered")
        self.values[name] = answer

    def _answer(self, name: str, value: str, stage: Stage) -> str | None:
        """Take the peer's declaration or proposal; return what it is to be answered with, if anything."""
        key = TABLE.get(name)
        if value in (NOT_UNDERSTOOD, IRRELEVANT, REJECT):
            raise self._broken(f"{printable(name)}={value}, which can only be an answer", "6.2")
        if key is None:
            return REJECT if name in OBSOLETE else NOT_UNDERSTOOD
        peer = Role.TARGET if self._role is Role.INITIATOR else Role.INITIATOR
        if peer not in key.senders or key.use is Use.FULL_FEATURE:
            raise self._broken(f"{name}, which is not for it to send", "13")
        if key.use is Use.LEADING and not self._leading:
            raise self._broken(f"{name} on a further connection of the session", "13")
        if stage not in key.stages:
            raise self._broken(f"{name} in the {stage.name.lower()} stage", "12")
        if key.result is Result.DECLARED:
            self.values[name] = read_value(key, value)
            return None
        return self._select(key, value)

    def _select(self, key: Key, value: str) -> str:
        """Settle a proposal of the peer by the rule of its key; return the answer."""
        try:
            proposed = read_value(key, value)
        except OutOfBounds:
            return REJECT
        if self.discovery and key.normal_only:
            return IRRELEVANT
        default: Value | None = (key.default,) if isinstance(key.default, str) else key.default
        wish = self._wish.get(key.name, default)
        result: Value
        match key.result, proposed, wish:
            case Result.CHOICE, tuple(), tuple():
                accepted = [item for item in proposed if item in wish]
                if not accepted:
                    return REJECT
                result = accepted[0]
            case Result.AND, bool(), bool():
                result = proposed and wish
            case Result.OR, bool(), bool():
                result = proposed or wish
            case Result.MINIMUM, int(), int():
                result = min(proposed, wish)
            case Result.MAXIMUM, int(), int():
                result = max(proposed, wish)
            case _:
                return REJECT
        self.values[key.name] = result
        return format_value(result)

    def _is_due(self, name: str, value: str) -> bool:
        """Tell whether a proposal must be answered (section 6.2.2); an unknown one can be dropped."""
        key = TABLE.get(name)
        if key is None:
            return name in OBSOLETE
        return key.form is not Form.BOOLEAN or not decides(key, parse_boolean(value))

    def _broken(self, rule: str, section: str) -> ProtocolError:
        return ProtocolError(rule, section=section, pdu=self._pdu)
