"""A scripted target for logins: a test says what it answers, and looks at what the initiator asks."""

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from iscsifs.iscsi.chap import ChallengeMemory, Credentials
from iscsifs.iscsi.keys import INITIATOR_OFFER, TABLE, Form
from iscsifs.iscsi.login import InitiatorLogin, LoginConfig, Outgoing, Redirect
from iscsifs.iscsi.pdu import LoginFlag, LoginResponse, Stage
from iscsifs.iscsi.text import Pair, decode_pairs, encode_pairs

RANDOM = random.Random(7143)

INITIATOR = "iqn.2001-04.com.example:initiator"
TARGET = "iqn.2001-04.com.example:target"
ISID = bytes.fromhex("800102030405")

SECRET, TARGET_SECRET = b"the secret of Alice", b"the secret of Storage"
ONE_WAY = Credentials("alice", SECRET)
MUTUAL = Credentials("alice", SECRET, "storage", TARGET_SECRET)


class Dialogue:
    """One login of an initiator, whose keyword arguments are those of LoginConfig.

    An answer mirrors T, the stages and the tags of the request, and has the next StatSN, unless it is told
    otherwise: every field of the Login Response can be given by its name.
    """

    def __init__(
        self,
        *,
        random_bytes: Any = None,
        memory: ChallengeMemory | None = None,
        stat_sn: int = 0,
        **config: Any,
    ) -> None:
        config = {"initiator_name": INITIATOR, "target_name": TARGET, "isid": ISID} | config
        self.login = InitiatorLogin(
            LoginConfig(**config),
            random_bytes=random_bytes or RANDOM.randbytes,
            memory=memory or ChallengeMemory(),
            initiator_task_tag=0x1234,
        )
        self.stat_sn = stat_sn
        self.history: list[Outgoing] = []
        self.outcome: Outgoing | Redirect | None = None
        self._asked(self.login.start())

    def _asked(self, outcome: Outgoing | Redirect | None) -> None:
        self.outcome = outcome
        if isinstance(outcome, tuple):
            self.request, self.text = outcome
            self.history.append(outcome)

    @property
    def pairs(self) -> list[Pair]:
        """What the last request says."""
        return decode_pairs(self.text, pdu="Login Request")

    @property
    def asked(self) -> tuple[Stage, Stage | None]:
        """The stage of the last request, and the one that it asks for."""
        flags = self.request.flags
        return Stage(flags >> 2 & 3), Stage(flags & 3) if flags & LoginFlag.TRANSIT else None

    @property
    def done(self) -> bool:
        return self.outcome is None

    def answer(self, *pairs: Pair, data: bytes | None = None, **fields: Any) -> "Dialogue":
        """Answer the last request with *pairs*, or with *data* as it is."""
        flags = self.request.flags & ~LoginFlag.CONTINUE
        final = bool(flags & LoginFlag.TRANSIT) and flags & 3 == int(Stage.FULL_FEATURE)
        response = LoginResponse(
            flags=flags,
            version_max=0,
            version_active=0,
            isid=self.request.isid,
            tsih=0x77 if final else self.request.tsih,
            initiator_task_tag=self.request.initiator_task_tag,
            stat_sn=self.stat_sn,
            exp_cmd_sn=self.request.cmd_sn,
            max_cmd_sn=self.request.cmd_sn + 31,
        )
        self.stat_sn = (self.stat_sn + 1) % 2**32
        self._asked(
            self.login.receive(response._replace(**fields), encode_pairs(pairs) if data is None else data)
        )
        return self

    def agree(self, *more: Pair, without: tuple[str, ...] = (), **values: Any) -> "Dialogue":
        """Answer every operational key that was offered: as it is, the first of a list, or from *values*."""
        answers = {
            name: value.split(",")[0] if TABLE[name].form is Form.LIST else value
            for name, value in self.pairs
            if Stage.OPERATIONAL in TABLE[name].stages and Stage.SECURITY not in TABLE[name].stages
        }
        answers |= values
        return self.answer(*((n, v) for n, v in answers.items() if n not in without), *more)

    def skip_security(self) -> "Dialogue":
        """Get over the security stage of a login without credentials."""
        assert self.asked == (Stage.SECURITY, Stage.OPERATIONAL)
        return self.answer(("TargetPortalGroupTag", "1"), ("AuthMethod", "None"))


def operational(**config: Any) -> Dialogue:
    """A login that has sent its operational offer."""
    return Dialogue(**config).skip_security()


def settle(offer: Mapping[str, Any] = MappingProxyType({}), /, **values: Any) -> Dialogue:
    """A login that offers the usual and *offer*, and is answered with *values*."""
    return operational(offer={**INITIATOR_OFFER, **offer}).agree(**values)
