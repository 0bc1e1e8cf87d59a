"""CHAP, the authentication of every initiator and target (RFC 7143 sections 9.2.1 and 12.1.3; RFC 1994).

    initiator = ChapInitiator(credentials, (8, 7, 6, 5), random_bytes, memory)
    ->  initiator.propose()         CHAP_A
    <-  CHAP_A, CHAP_I, CHAP_C
    ->  initiator.answer(...)       CHAP_N, CHAP_R, and for mutual authentication CHAP_I, CHAP_C
    <-  CHAP_N, CHAP_R
        initiator.verify(...)

`ChapTarget` is the mirror. The initiator raises AuthenticationError for all that goes wrong. The target
raises it for an initiator whose proof is wrong, and NegotiationError for keys of another step (section 9.2).
"""

import hashlib
import hmac
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeVar

from iscsifs.errors import AuthenticationError, ConfigError, LoginError, NegotiationError, printable
from iscsifs.iscsi.text import (
    MAX_VALUE_LENGTH,
    Pair,
    format_binary,
    parse_binary,
    parse_list,
    parse_number,
)
from iscsifs.limits import MAX_CHALLENGES

log = logging.getLogger(__name__)

ALGORITHMS: Final[Mapping[int, str]] = MappingProxyType({5: "md5", 6: "sha1", 7: "sha256", 8: "sha3_256"})
"""The values of CHAP_A that are known, and the hash of each (IANA: "PPP Authentication Algorithms")."""

MIN_SECRET_LENGTH: Final = 12
"""Bytes of a secret: 96 bits, without IPsec (section 9.2.1)."""

MAX_BINARY_LENGTH: Final = 1024
"""Bytes of a challenge or a response (section 12.1.3)."""

CHALLENGE_LENGTH: Final = 32
"""Bytes of our own challenges."""

_DRAWS: Final = 16

RandomBytes = Callable[[int], bytes]
"""Returns that many unpredictable random bytes, as os.urandom() does."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Credentials:
    """The names and secrets of both sides: our own and, for mutual authentication, the target's.

    Where *target_user* is None any name is accepted that goes with *target_secret*: a session keeps to the
    one that it saw first. Raises ConfigError for names and secrets that cannot be used.
    """

    user: str
    secret: bytes = field(repr=False)
    target_user: str | None = None
    target_secret: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, what in (self.user, "user"), (self.target_user, "target user"):
            if name is not None and not 1 <= len(name.encode()) <= MAX_VALUE_LENGTH:
                raise ConfigError(
                    f"the CHAP {what} has {len(name.encode())} bytes; give 1 to {MAX_VALUE_LENGTH}"
                )
        for secret, what in (self.secret, "secret"), (self.target_secret, "target secret"):
            if secret is not None and len(secret) < MIN_SECRET_LENGTH:
                raise ConfigError(
                    f"the CHAP {what} has {len(secret)} bytes; give at least {MIN_SECRET_LENGTH} random ones"
                )
        if self.target_secret is None:
            if self.target_user is not None:
                raise ConfigError("there is a CHAP target user, but no target secret; give both or none")
            return
        if hmac.compare_digest(self.secret, self.target_secret):
            raise ConfigError("the CHAP secret is the same for both directions; give the target its own")
        if self.user == self.target_user:
            raise ConfigError("the CHAP user is the same for both directions; give the target its own")


class ChallengeMemory:
    """What is remembered of challenges from one login to the next.

    Share one between all logins of a process: it keeps challenges from being used twice, and from being
    reflected over a parallel or a later login (section 9.2.1). Old ones are forgotten.
    """

    def __init__(self) -> None:
        self._issued: dict[bytes, None] = {}
        self._seen: dict[bytes, None] = {}
        self._identifier: int | None = None

    def issue(self, random_bytes: RandomBytes, *, other_than: bytes = b"") -> tuple[int, bytes]:
        """Return an identifier and a challenge of our own, neither of them the one before.

        *other_than* is the challenge of the other direction. Raises AuthenticationError where the source of
        random numbers gives nothing new.
        """
        for _ in range(_DRAWS):
            challenge = random_bytes(CHALLENGE_LENGTH)
            if challenge != other_than and challenge not in self._issued:
                _remember(self._issued, challenge)
                if self._identifier is None:
                    self._identifier = random_bytes(1)[0]
                self._identifier = (self._identifier + 1) % 256
                return self._identifier, challenge
        raise AuthenticationError("CHAP_C", "the source of random numbers repeats itself")

    def is_ours(self, challenge: bytes) -> bool:
        """Tell whether *challenge* is one that we issued."""
        return challenge in self._issued

    def seen_before(self, challenge: bytes) -> bool:
        """Take note of a peer's *challenge*; tell whether it was used before."""
        known = challenge in self._seen
        _remember(self._seen, challenge)
        return known


def _remember(memory: dict[bytes, None], challenge: bytes) -> None:
    memory[challenge] = None
    if len(memory) > MAX_CHALLENGES:
        del memory[next(iter(memory))]


def response(algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    """Return CHAP_R: the hash over identifier, secret and challenge (RFC 1994 section 4.1)."""
    # Some systems refuse MD5 and SHA-1 as security functions, but CHAP has no other that all peers know.
    digest = hashlib.new(ALGORITHMS[algorithm], usedforsecurity=False)
    digest.update(bytes([identifier]) + secret + challenge)
    return digest.digest()


class _Step:
    """The keys of one step of the exchange: these and no others (section 9.2)."""

    def __init__(self, pairs: list[Pair], names: set[str], error: Callable[[str, str], LoginError]) -> None:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            raise error(pairs[-1][0], "a key stands twice in this step of the authentication")
        for name in sorted(names - keys.keys()):
            raise error(name, "it is missing in this step of the authentication")
        for name in sorted(keys.keys() - names):
            raise error(name, "it does not belong into this step of the authentication")
        self._keys = keys
        self._error = error

    def number(self, name: str, high: int) -> int:
        return self._read(name, parse_number, lambda number: number <= high)

    def numbers(self, name: str) -> tuple[int, ...]:
        return self._read(name, lambda value: tuple(parse_number(item) for item in parse_list(value)))

    def name(self) -> str:
        return self._read("CHAP_N", str, lambda name: 1 <= len(name.encode()) <= MAX_VALUE_LENGTH)

    def binary(self, name: str, algorithm: int | None = None) -> bytes:
        """Read a challenge, or a response that is as long as the hash of *algorithm*."""
        if algorithm is None:
            return self._read(name, parse_binary, lambda data: len(data) <= MAX_BINARY_LENGTH)
        size = hashlib.new(ALGORITHMS[algorithm], usedforsecurity=False).digest_size
        return self._read(name, parse_binary, lambda data: len(data) == size)

    def _read(self, name: str, parse: Callable[[str], _T], good: Callable[[_T], bool] = lambda _: True) -> _T:
        value = self._keys[name]
        try:
            result = parse(value)
        except ValueError as exc:
            raise self._error(name, str(exc)) from None
        if not good(result):
            raise self._error(name, f'"{printable(value, 64)}" is not acceptable')
        return result


class ChapInitiator:
    """The initiator's side of one exchange; every method raises AuthenticationError."""

    def __init__(
        self,
        credentials: Credentials,
        algorithms: tuple[int, ...],
        random_bytes: RandomBytes,
        memory: ChallengeMemory,
    ) -> None:
        self.algorithm: int | None = None
        """The algorithm that the target chose."""
        self.target_user: str | None = None
        """The name by which the target proved itself."""
        self._credentials = credentials
        self._algorithms = algorithms
        self._random_bytes = random_bytes
        self._memory = memory
        self._identifier = 0
        self._challenge = b""

    @property
    def mutual(self) -> bool:
        """Whether the target has to prove itself too."""
        return self._credentials.target_secret is not None

    def propose(self) -> list[Pair]:
        """Return the first step: the algorithms that we offer, the best first."""
        return [("CHAP_A", ",".join(map(str, self._algorithms)))]

    def answer(self, pairs: list[Pair]) -> list[Pair]:
        """Answer the target's challenge, and challenge the target where the authentication is mutual."""
        step = _Step(pairs, {"CHAP_A", "CHAP_I", "CHAP_C"}, AuthenticationError)
        algorithm = step.number("CHAP_A", max(ALGORITHMS))
        identifier = step.number("CHAP_I", 255)
        challenge = step.binary("CHAP_C")
        if algorithm not in self._algorithms:
            raise AuthenticationError("CHAP_A", f"{algorithm} was not offered")
        if self._memory.is_ours(challenge):
            raise AuthenticationError(
                "CHAP_C", "the target sent us one of our own challenges (a reflection attack)"
            )
        if self._memory.seen_before(challenge):
            log.warning("CHAP_C: the target uses the same challenge again: others may replay what we answer")
        self.algorithm = algorithm
        ours = self._credentials
        answer = [
            ("CHAP_N", ours.user),
            ("CHAP_R", format_binary(response(algorithm, identifier, ours.secret, challenge))),
        ]
        if self.mutual:
            self._identifier, self._challenge = self._memory.issue(self._random_bytes, other_than=challenge)
            answer += [("CHAP_I", str(self._identifier)), ("CHAP_C", format_binary(self._challenge))]
        return answer

    def verify(self, pairs: list[Pair]) -> None:
        """Check the last step: the target's proof where the authentication is mutual, else nothing."""
        secret = self._credentials.target_secret
        if secret is not None and not pairs:
            raise AuthenticationError(
                "CHAP_N",
                "the target does not prove itself; give it a secret for that (mutual CHAP),"
                " or leave out the target secret here",
            )
        step = _Step(pairs, {"CHAP_N", "CHAP_R"} if secret is not None else set(), AuthenticationError)
        if secret is None:
            return
        assert self.algorithm is not None
        name = step.name()
        answer = step.binary("CHAP_R", self.algorithm)
        expected = self._credentials.target_user
        if name == self._credentials.user or name != (expected or name):
            raise AuthenticationError(
                "CHAP_N",
                f'the target calls itself "{printable(name)}"' + (f', not "{expected}"' if expected else ""),
            )
        reflected = response(self.algorithm, self._identifier, self._credentials.secret, self._challenge)
        if hmac.compare_digest(answer, reflected):
            raise AuthenticationError(
                "CHAP_R", "the target answers with our own secret (a reflection attack)"
            )
        if not hmac.compare_digest(
            answer, response(self.algorithm, self._identifier, secret, self._challenge)
        ):
            raise AuthenticationError(
                "CHAP_R", "the target does not know its secret; check the target secret"
            )
        self.target_user = name


class ChapTarget:
    """The target's side of one exchange.

    *secrets* are the users that may log in; *own* is the target's name and secret for mutual authentication.
    """

    def __init__(
        self,
        secrets: Mapping[str, bytes],
        own: tuple[str, bytes] | None,
        algorithms: tuple[int, ...],
        random_bytes: RandomBytes,
        memory: ChallengeMemory,
    ) -> None:
        self.user: str | None = None
        """Who logged in."""
        self._secrets = secrets
        self._own = own
        self._algorithms = algorithms
        self._random_bytes = random_bytes
        self._memory = memory
        self._algorithm = 0
        self._identifier = 0
        self._challenge = b""

    def challenge(self, pairs: list[Pair]) -> list[Pair]:
        """Choose the first algorithm offered that we have, and challenge the initiator."""
        offered = _Step(pairs, {"CHAP_A"}, NegotiationError).numbers("CHAP_A")
        accepted = [algorithm for algorithm in offered if algorithm in self._algorithms]
        if not accepted:
            raise AuthenticationError("CHAP_A", "no algorithm in common")
        self._algorithm = accepted[0]
        self._identifier, self._challenge = self._memory.issue(self._random_bytes)
        return [
            ("CHAP_A", str(self._algorithm)),
            ("CHAP_I", str(self._identifier)),
            ("CHAP_C", format_binary(self._challenge)),
        ]

    def verify(self, pairs: list[Pair]) -> list[Pair]:
        """Check the initiator's proof, and give our own where it asks for it."""
        mutual = {"CHAP_I", "CHAP_C"} if {"CHAP_I", "CHAP_C"} & dict(pairs).keys() else set()
        step = _Step(pairs, {"CHAP_N", "CHAP_R"} | mutual, NegotiationError)
        user = step.name()
        answer = step.binary("CHAP_R", self._algorithm)
        secret = self._secrets.get(user)
        if secret is None or not hmac.compare_digest(
            answer, response(self._algorithm, self._identifier, secret, self._challenge)
        ):
            raise AuthenticationError("CHAP_R", f'"{printable(user)}" was not believed')
        self.user = user
        if not mutual:
            return []
        identifier, challenge = step.number("CHAP_I", 255), step.binary("CHAP_C")
        if self._memory.is_ours(challenge):
            raise AuthenticationError("CHAP_C", "the initiator sent us one of our own challenges")
        if self._own is None:
            raise AuthenticationError("CHAP_C", "this target has no secret to prove itself with")
        name, own_secret = self._own
        return [
            ("CHAP_N", name),
            ("CHAP_R", format_binary(response(self._algorithm, identifier, own_secret, challenge))),
        ]
