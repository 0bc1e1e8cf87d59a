"""What a configuration file says of one target, or of one portal to ask for targets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.keys import Value
from iscsifs.iscsi.names import TargetAddress


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Our end of a session. None is what there would be without the entry.

    *address* is ours to connect from. *dscp* (6 bits) and *pcp* (3 bits) go into the packets that we send.
    *queue_depth* is the number of commands that may be on the wire.
    """

    name: str | None = None
    alias: str | None = None
    address: str | None = None
    dscp: int | None = None
    pcp: int | None = None
    queue_depth: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A nickname and what it stands for: a target or, without *target_name*, a portal to discover from.

    *lun* is the label of the only unit wanted. An entry that is not *enabled* is known, and not attached by
    itself. With *anonymous* there is no CHAP, even where there are credentials for all. *offer* are keys of
    the login, *session* fields of InitiatorOptions.
    """

    nickname: str
    address: TargetAddress
    target_name: str | None = None
    lun: str | None = None
    enabled: bool = True
    endpoint: Endpoint = field(default_factory=Endpoint)
    credentials: Credentials | None = None
    anonymous: bool = False
    offer: Mapping[str, Value] = field(default_factory=dict)
    session: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Configuration:
    """The entries of a file, in its order. *notes* are warnings, each one line with the place.

    *has_secrets*: nobody else may read the file, whether the secrets in it are used or not.
    """

    entries: tuple[Entry, ...] = ()
    notes: tuple[str, ...] = ()
    has_secrets: bool = False

    def find(self, nickname: str) -> Entry | None:
        """Return the entry called *nickname*, in capitals or not."""
        return next((entry for entry in self.entries if entry.nickname.lower() == nickname.lower()), None)
