"""The initiator's login phase (RFC 7143 section 6.3) as a conversation of requests and responses.

    login = InitiatorLogin(config, random_bytes=os.urandom, memory=memory)
    request, text = login.start()
    while True:
        ...  # send the request, receive the response
        outcome = login.receive(response, text)
        if outcome is None: break                       # logged in: see login.parameters
        if isinstance(outcome, Redirect): ...           # close, and try again over there
        request, text = outcome

Whatever is wrong is raised, and then the connection must be closed: ProtocolError, NegotiationError,
AuthenticationError, RedirectionError or LoginRefused. A retry without change can succeed only where
`LoginRefused.status_class` is 3; `another_try` returns another configuration to try. Harmless faults of a
target are in `login.oddities`.
"""

import logging
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Final

from iscsifs.errors import (
    AuthenticationError,
    ConfigError,
    ConnectionClosed,
    IscsifsError,
    LoginDropped,
    LoginRefused,
    ProtocolError,
    RedirectionError,
    printable,
)
from iscsifs.iscsi import serial
from iscsifs.iscsi.chap import ALGORITHMS, ChallengeMemory, ChapInitiator, Credentials, RandomBytes
from iscsifs.iscsi.keys import INITIATOR_OFFER, METHOD_KEYS, Parameters, Role, Value, check_offer
from iscsifs.iscsi.names import Portal, TargetAddress, check_name
from iscsifs.iscsi.negotiation import REJECT, Negotiation
from iscsifs.iscsi.pdu import LoginFlag, LoginRequest, LoginResponse, Pdu, Stage
from iscsifs.iscsi.text import Pair, TextCollector, cut_text, decode_pairs, encode_pairs
from iscsifs.limits import MAX_LOGIN_EXCHANGES, MAX_REDIRECTIONS

log = logging.getLogger(__name__)

LOGIN_SEGMENT_LENGTH: Final = 8192
"""Bytes of a data segment during login: the default of MaxRecvDataSegmentLength (section 6.3)."""

INITIATOR_ERROR: Final = (2, 0x00)
AUTHENTICATION_FAILURE: Final = (2, 0x01)
AUTHORIZATION_FAILURE: Final = (2, 0x02)

STATUS: Final[Mapping[tuple[int, int], str]] = MappingProxyType(
    {
        (1, 0x01): "the target has moved temporarily",
        (1, 0x02): "the target has moved permanently",
        (2, 0x00): "initiator error",
        (2, 0x01): "authentication failure",
        (2, 0x02): "authorization failure",
        (2, 0x03): "not found; there is no target of this name here, list them with -D",
        (2, 0x04): "the target was removed",
        (2, 0x05): "unsupported version",
        (2, 0x06): "too many connections",
        (2, 0x07): "missing parameter",
        (2, 0x08): "can't include in session",
        (2, 0x09): "session type not supported",
        (2, 0x0A): "session does not exist",
        (2, 0x0B): "invalid request type during login",
        (3, 0x00): "target error",
        (3, 0x01): "service unavailable; try again later, and check the name: -D lists what there is",
        (3, 0x02): "out of resources; log other initiators out, or try again later",
    }
)
"""Status-Class and Status-Detail of a Login Response, and what they mean (section 11.13.5)."""


_OPEN_KEYS: Final = frozenset({"CHAP_A", "CHAP_I", "CHAP_N"})
"""Keys of authentication methods whose values may be shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginConfig:
    """What an initiator logs in with; raises ConfigError for what cannot be used.

    Without *target_name* the session is a discovery session. *isid* and *tsih* say which session the
    connection is for: TSIH 0 is a new one, or the reinstatement of the one with the same ISID (6.3.5).
    """

    initiator_name: str
    target_name: str | None
    isid: bytes
    tsih: int = 0
    cid: int = 0
    cmd_sn: int = 1
    credentials: Credentials | None = None
    allow_none: bool = False
    """Whether to log in as well where the target does not ask for CHAP, or does not prove itself."""
    algorithms: tuple[int, ...] = (8, 7, 6, 5)
    """Values of CHAP_A to offer, in order of preference."""
    first_stage: Stage = Stage.SECURITY
    """OPERATIONAL skips the security stage, where there are no credentials."""
    offer: Mapping[str, Value] = field(default_factory=lambda: INITIATOR_OFFER)
    """The operational keys to offer, by their names on the wire."""
    target_portal_group_tag: int | None = None
    """The tag that discovery gave for this portal; another one is logged."""
    alias: str = ""
    """InitiatorAlias; none is sent where it is empty."""
    zone: str | None = None
    """The zone of the connection, for link-local addresses in redirections."""

    def __post_init__(self) -> None:
        check_name(self.initiator_name, "initiator name")
        if self.target_name is not None:
            check_name(self.target_name, "target name")
        check_offer(self.offer)
        if len(self.isid) != 6 or self.isid[0] >> 6 == 3:
            raise ConfigError(f"ISID {self.isid.hex()}: give six bytes, the first below c0h")
        if 5 not in self.algorithms or not set(self.algorithms) <= ALGORITHMS.keys():
            raise ConfigError(
                f"CHAP algorithms {self.algorithms}: give some of {sorted(ALGORITHMS)}, 5 always among them"
            )
        if self.first_stage is Stage.FULL_FEATURE or (
            self.credentials and self.first_stage is not Stage.SECURITY
        ):
            raise ConfigError("a login with credentials begins with the security stage")


@dataclass(frozen=True, slots=True)
class Redirect:
    """The target has moved to one of *portals* (Status-Class 1)."""

    portals: tuple[Portal, ...]
    permanent: bool


Outgoing = tuple[LoginRequest, bytes]
"""A Login Request and its data segment."""

_Conversation = Generator[Outgoing, tuple[LoginResponse, bytes], None]
_Exchange = Generator[Outgoing, tuple[LoginResponse, bytes], tuple[Stage, list[Pair]]]


class InitiatorLogin:
    """One login on one connection.

    *random_bytes* and *memory* serve CHAP (see `chap`). The attributes are those of the session and the
    connection as they stand when `receive` has returned None.
    """

    def __init__(
        self,
        config: LoginConfig,
        *,
        random_bytes: RandomBytes,
        memory: ChallengeMemory,
        initiator_task_tag: int = 0,
    ) -> None:
        self.parameters = Parameters()
        self.tsih = config.tsih
        self.exp_stat_sn = 0
        self.exp_cmd_sn = 0
        self.max_cmd_sn = 0
        self.chap: ChapInitiator | None = None
        """The CHAP exchange, once the target chose to have one."""
        self.oddities: list[str] = []
        """Broken rules that cost nothing, each once; fit to be printed."""
        self.config = config
        self._random_bytes = random_bytes
        self._memory = memory
        self._negotiation = Negotiation(
            Role.INITIATOR, config.offer, discovery=config.target_name is None, leading=config.tsih == 0
        )
        self._text = TextCollector("Login Response")
        self._request = LoginRequest(
            flags=0,
            version_max=0,
            version_min=0,
            isid=config.isid,
            tsih=config.tsih,
            initiator_task_tag=initiator_task_tag,
            cid=config.cid,
            cmd_sn=config.cmd_sn,
        )
        self._requests = 0
        self._conversation = self._converse()

    def is_proven(self, credentials: Credentials) -> bool:
        """Whether both sides have proven what *credentials* allow for."""
        if self.chap is None:
            return False
        return credentials.target_secret is None or self.chap.target_user is not None

    @property
    def stage(self) -> Stage:
        """The stage that the last request belongs to."""
        return Stage(self._request.flags >> 2 & 3)

    def start(self) -> Outgoing:
        """Return the first request."""
        return next(self._conversation)

    def receive(self, response: Pdu, text: bytes) -> Outgoing | Redirect | None:
        """Take a response and its data segment.

        Returns the next request, or None when the login is complete, or where to log in instead.
        """
        if not isinstance(response, LoginResponse):
            raise ProtocolError(
                "only Login Responses may come during login", section="4.2.4", pdu=type(response).__name__
            )
        if response.status_class == 1:
            return self._redirect(response, text)
        self._check(response)
        self._check_stages(response.flags)
        try:
            return self._conversation.send((response, text))
        except StopIteration:
            self._finish(response)
            return None

    def _converse(self) -> _Conversation:
        """The whole login, from the first request to the final response."""
        config, negotiation = self.config, self._negotiation
        pairs = [negotiation.send("InitiatorName", config.initiator_name)]
        if config.alias:
            pairs.append(negotiation.send("InitiatorAlias", config.alias))
        if config.target_name is not None:
            pairs.append(negotiation.send("TargetName", config.target_name))
        if config.tsih == 0:
            session_type = "Discovery" if config.target_name is None else "Normal"
            pairs.append(negotiation.send("SessionType", session_type))
        if config.first_stage is Stage.SECURITY:
            yield from self._security_stage(pairs)
            pairs = []
        pairs += negotiation.offer()
        stage = Stage.OPERATIONAL
        while stage is Stage.OPERATIONAL:
            stage, received = yield from self._exchange(stage, pairs, Stage.FULL_FEATURE)
            pairs, _ = negotiation.receive(received, Stage.OPERATIONAL, final=stage is Stage.FULL_FEATURE)

    def _security_stage(self, pairs: list[Pair]) -> Generator[Outgoing, tuple[LoginResponse, bytes], None]:
        config, negotiation = self.config, self._negotiation
        methods: tuple[str, ...] = ("None",)
        if config.credentials:
            methods = ("CHAP", "None") if config.allow_none else ("CHAP",)
        pairs = [*pairs, negotiation.send("AuthMethod", methods)]
        # Where CHAP has to come it is not yet time to ask for the next stage. Where None will do it is asked
        # for at once: LIO chooses CHAP of the list even where it needs none, and refuses its exchange.
        next_stage = None if config.credentials and not config.allow_none else Stage.OPERATIONAL
        stage = Stage.SECURITY
        while stage is Stage.SECURITY:
            stage, received = yield from self._exchange(stage, pairs, next_stage)
            if (answer := dict(received).get("AuthMethod")) is not None:
                self._check_method(answer, methods)
            elif stage is not Stage.SECURITY and "AuthMethod" not in negotiation.values:
                self._check_method("None", methods)  # gotgt and others leave the answer out
            pairs, step = negotiation.receive(received, Stage.SECURITY, final=stage is not Stage.SECURITY)
            if step:
                raise AuthenticationError(step[0][0], "it is not expected in this step of the login")
            method = negotiation.values.get("AuthMethod")
            if stage is not Stage.SECURITY and method == "CHAP":
                # LIO chooses the first method of the list, and goes on without it where it needs none.
                if not config.allow_none:
                    raise _broken("T is set with AuthMethod=CHAP, before its exchange", "12.1")
            elif method == "CHAP" and config.credentials and self.chap is None:
                stage, pairs = yield from self._authenticate(config.credentials, pairs)
            if method is not None:
                next_stage = Stage.OPERATIONAL

    def _authenticate(self, credentials: Credentials, pairs: list[Pair]) -> _Exchange:
        """Go through CHAP; *pairs* are what else the first request has to say."""
        chap = ChapInitiator(credentials, self.config.algorithms, self._random_bytes, self._memory)
        self.chap = chap
        stage, received = yield from self._exchange(Stage.SECURITY, [*pairs, *chap.propose()], None)
        pairs, step = self._negotiation.receive(received, Stage.SECURITY, final=False)
        pairs += chap.answer(step)
        stage, received = yield from self._exchange(Stage.SECURITY, pairs, Stage.OPERATIONAL)
        pairs, step = self._negotiation.receive(received, Stage.SECURITY, final=stage is not Stage.SECURITY)
        if step or not self.config.allow_none:
            chap.verify(step)
        return stage, pairs

    def _check_method(self, answer: str, offered: tuple[str, ...]) -> None:
        """Say in plain words why there is no authentication method that both sides take."""
        if answer == "CHAP" and "CHAP" not in offered:
            raise AuthenticationError("AuthMethod", "the target asks for CHAP; give -u USER")
        if answer == "None" and "None" not in offered:
            reason = "the target does not ask for CHAP and would let anybody in"
            raise AuthenticationError(
                "AuthMethod", f"{reason}; leave out {self._chap_options} if that is right"
            )
        if answer == REJECT and "CHAP" in offered:
            raise AuthenticationError(
                "AuthMethod", f"the target takes no CHAP; leave out {self._chap_options}"
            )
        if answer == REJECT:
            raise AuthenticationError("AuthMethod", "the target asks for a user; give -u USER")

    @property
    def _chap_options(self) -> str:
        """What the user has to leave out of the command line to log in without CHAP."""
        return "--discovery-auth chap" if self.config.target_name is None else "the user"

    def refusal_hint(self) -> str:
        """Return what to do where the target has ended the security stage without saying why."""
        config, chap = self.config, self.chap
        if config.credentials is None:
            return "it may ask for a user: give -u USER"
        if chap is None or chap.algorithm is None:
            return f"it may take no CHAP: leave out {self._chap_options}"
        where = "" if config.target_name is not None else " for discovery"
        other = (
            "that the target has a secret to prove itself"
            if chap.mutual
            else "whether it demands mutual CHAP"
        )
        return f'check the user "{config.credentials.user}" and the secret{where}, and {other}'

    def _exchange(self, stage: Stage, pairs: list[Pair], next_stage: Stage | None) -> _Exchange:
        """Send *pairs* and ask for *next_stage*; return the stage that we are in then, and what came back."""
        self._show(stage, "->", pairs)
        *firsts, last = cut_text(encode_pairs(pairs), LOGIN_SEGMENT_LENGTH)
        for piece in firsts:
            response, text = yield self._outgoing(LoginFlag.CONTINUE | stage << 2, piece)
            if text or response.flags & LoginFlag.CONTINUE:
                raise _broken("data in answer to a request with C=1", "6.2")
        flags = stage << 2 if next_stage is None else LoginFlag.TRANSIT | stage << 2 | next_stage
        response, text = yield self._outgoing(flags, last)
        while (received := self._text.add(text, more=bool(response.flags & LoginFlag.CONTINUE))) is None:
            response, text = yield self._outgoing(flags, b"")
        self._show(stage, "<-", received)
        return Stage(response.flags & 3) if response.flags & LoginFlag.TRANSIT else stage, received

    def _show(self, stage: Stage, direction: str, pairs: list[Pair]) -> None:
        """Log each key of a step for -d, but no value that a secret could be guessed by."""
        for name, value in pairs:
            hidden = name in METHOD_KEYS and name not in _OPEN_KEYS
            shown = f"({len(value)} characters)" if hidden else printable(value)
            log.debug("%s stage %s %s=%s", stage.name, direction, printable(name), shown)

    def _outgoing(self, flags: int, text: bytes) -> Outgoing:
        self._requests += 1
        if self._requests > MAX_LOGIN_EXCHANGES:
            raise _broken("the login does not come to an end", "6.2")
        self._request = self._request._replace(flags=flags, exp_stat_sn=self.exp_stat_sn)
        return self._request, text

    def _check(self, response: LoginResponse) -> None:
        """Check a response against the request that it answers (section 11.13), its status first."""
        status = response.status_class, response.status_detail
        if response.status_class in (2, 3):
            meaning = STATUS.get(status, "for a reason that has no name")
            if status == AUTHENTICATION_FAILURE:
                meaning += f"; {self.refusal_hint()}"
            elif status == AUTHORIZATION_FAILURE:
                meaning += f"; allow the initiator {self.config.initiator_name} there"
            raise LoginRefused(*status, meaning)
        if response.status_class:
            raise _broken(f"Status-Class {response.status_class}", "11.13.5")
        request = self._request
        if response.initiator_task_tag != request.initiator_task_tag:
            raise _broken("another Initiator Task Tag than that of the request", "6.3")
        if response.isid != request.isid:
            if any(response.isid):
                raise _broken("another ISID than that of the request", "6.3")
            self._tolerate("the ISID of its Login Responses is 0")
        if response.version_active != 0:
            raise _broken(f"Version-active {response.version_active}", "11.13.2")
        if self._requests > 1 and serial.lt(response.stat_sn, self.exp_stat_sn):
            self._tolerate("the StatSN of its Login Responses does not count up")  # nothing is missing then
            return
        if self._requests > 1 and response.stat_sn != self.exp_stat_sn:
            raise _broken(f"StatSN {response.stat_sn}, not {self.exp_stat_sn}", "11.13.4")
        self.exp_stat_sn = serial.add(response.stat_sn, 1)

    def _tolerate(self, oddity: str) -> None:
        if oddity not in self.oddities:
            self.oddities.append(oddity)

    def _check_stages(self, flags: int) -> None:
        """Check the stages of a response against those of its request (sections 6.3 and 11.13.6)."""
        asked = self._request.flags
        current, following = flags >> 2 & 3, flags & 3
        if current != asked >> 2 & 3:
            raise _broken(f"an answer in stage {current} to a request in stage {asked >> 2 & 3}", "6.3")
        if flags & LoginFlag.TRANSIT:
            if flags & LoginFlag.CONTINUE:
                raise _broken("both T and C are set", "11.13.7")
            if not asked & LoginFlag.TRANSIT:
                if current == Stage.SECURITY and following == Stage.OPERATIONAL and self.chap is None:
                    return  # the message says that CHAP is needed
                raise _broken("T is set with AuthMethod=CHAP, before the exchange", "12.1")
            if following == 2 or not current < following <= asked & 3:
                raise _broken(f"from stage {current} to {following}, where {asked & 3} was asked for", "6.3")

    def _redirect(self, response: LoginResponse, text: bytes) -> Redirect:
        name = self.config.target_name or "the portal"
        portals = []
        try:
            pairs = decode_pairs(text, pdu="Login Response")
        except ProtocolError as exc:
            raise RedirectionError(f"{name} has moved, but where to cannot be read: {exc}") from exc
        for key, value in pairs:
            if key == "TargetAddress":
                try:
                    portals.append(TargetAddress.parse(value, zone=self.config.zone).portal)
                except ProtocolError as exc:
                    log.warning("%s has moved, but not there: %s", name, exc)
        if not portals:
            raise RedirectionError(f"{name} has moved, but gives no address to follow it to")
        permanent = response.status_detail == 2
        if permanent:
            log.warning("%s has moved to %s for good; change its address", name, portals[0])
        return Redirect(tuple(portals), permanent)

    def _finish(self, response: LoginResponse) -> None:
        config = self.config
        if config.tsih != 0 and response.tsih != config.tsih:
            raise _broken(f"TSIH {response.tsih} at the end of the login", "11.13.3")
        if response.tsih == 0:
            self._tolerate("the TSIH of its sessions is 0")
        self.tsih = response.tsih
        self.exp_cmd_sn = response.exp_cmd_sn
        self.max_cmd_sn = response.max_cmd_sn
        self.parameters = self._negotiation.conclude()
        for name, value in asdict(self.parameters).items():
            log.debug("agreed: %s=%s", name, printable(str(value)))
        tag = self.parameters.target_portal_group_tag
        if tag is None and config.target_name is not None:
            log.warning("%s does not say its TargetPortalGroupTag", config.target_name)
        elif config.target_portal_group_tag not in (None, tag):
            log.warning(
                "%s: portal group %s, where discovery said %s",
                config.target_name,
                tag,
                config.target_portal_group_tag,
            )


class Redirections:
    """The way from the configured *portal* over the redirections of one login."""

    def __init__(self, portal: Portal) -> None:
        self._visited = {portal}

    def follow(self, redirect: Redirect) -> Portal:
        """Return where to try next; the same *redirect* again gives its next portal, if one fails.

        Raises RedirectionError where all of them were tried, and after MAX_REDIRECTIONS.
        """
        if len(self._visited) > MAX_REDIRECTIONS:
            raise RedirectionError(f"still no login after {MAX_REDIRECTIONS} redirections")
        for portal in redirect.portals:
            if portal not in self._visited:
                self._visited.add(portal)
                return portal
        raise RedirectionError(f"redirected in a circle, back to {redirect.portals[0]}")


def another_try(login: InitiatorLogin, failure: IscsifsError) -> LoginConfig | None:
    """Return the configuration to try once more with after *login* ended in *failure*, or None to give up.

    - tgt 1.0.85 takes CHAP_A=7 for SHA-1, and others close the connection on a list: MD5 gets a try alone.
    - A target that refuses mutual authentication is asked without it, unless the user demands it.
    - gotgt reads SessionType=Discovery in the operational stage only: without authentication a discovery may
      begin there (section 6.3.1).

    Each try asks for less than the one before, so that there is an end to them.
    """
    config, chap = login.config, login.chap
    closed = isinstance(failure, ConnectionClosed)
    if chap is not None and login.stage is Stage.SECURITY:
        refused = isinstance(failure, LoginRefused) and (failure.status_class, failure.status_detail) in (
            INITIATOR_ERROR,
            AUTHENTICATION_FAILURE,
        )
        may_be_one_way = chap.mutual and config.allow_none
        other_algorithm = chap.algorithm != 5 and config.algorithms != (5,)
        if not (closed or refused) or not (may_be_one_way or other_algorithm):
            return None
        credentials = config.credentials
        if may_be_one_way and credentials is not None:
            credentials = replace(credentials, target_user=None, target_secret=None)
        return replace(config, algorithms=(5,), credentials=credentials)
    may_be_none = config.credentials is None or (config.allow_none and chap is None)
    if closed and may_be_none and config.target_name is None and login.stage is not config.first_stage:
        return replace(config, credentials=None, first_stage=Stage.OPERATIONAL)
    return None


def dropped(login: InitiatorLogin, failure: ConnectionClosed) -> LoginDropped | None:
    """Return what *failure* means where it came before the target had let us in, else None."""
    if login.stage is not Stage.SECURITY:
        return None
    return LoginDropped(f"{failure} (SECURITY stage of the login); {login.refusal_hint()}")


def _broken(rule: str, section: str) -> ProtocolError:
    return ProtocolError(rule, section=section, pdu="Login Response")
