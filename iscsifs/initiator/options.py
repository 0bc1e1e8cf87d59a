"""What the initiator is told: who it is, how it proves that, and how long it waits."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.keys import Value
from iscsifs.transport.tap import MakeRecorder

Digests = Literal["none", "header", "data", "all"]
DiscoveryAuth = Literal["auto", "chap", "none"]


@dataclass(frozen=True, slots=True)
class InitiatorOptions:
    """The settings that all sessions of one initiator share.

    With *credentials* the target has to ask for CHAP. *family* is the address family to connect over. Times
    are in seconds.
    """

    initiator_name: str
    credentials: Credentials | None = None
    discovery_auth: DiscoveryAuth = "auto"
    """Whether a discovery session uses the credentials: where the portal asks for them (auto), else without;
    always, and mutual CHAP with a target secret (chap); never (none)."""
    digests: Digests = "none"
    family: socket.AddressFamily = socket.AF_UNSPEC
    offer: Mapping[str, Value] = field(default_factory=dict, hash=False)
    """Operational keys (RFC 7143 section 13) to offer with other values than those of `INITIATOR_OFFER`, for
    a target that does badly with these."""
    login_timeout: float = 15.0
    """From the first packet of a connection to the full feature phase."""
    command_timeout: float = 30.0
    """How long one command may be without an answer before it is aborted."""
    ping_interval: float = 5.0
    """How long a connection may be silent before a NOP-Out is sent; 0: none is."""
    ping_timeout: float = 5.0
    """How long after that ping it may stay silent before it is given up."""
    replacement_timeout: float = 120.0
    """How long commands wait for a lost session to come back before they fail."""
    poll: float = 60.0
    """How often a target is asked which units it has and what they are; 0: only when it reports a change."""
    trust_unidentified: bool = False
    """Whether a unit that nothing identifies is taken for the same one after a new login, and gets the writes
    of before; otherwise these are lost, and reported."""
    write_behind: bool = True
    """Whether a write is acknowledged as soon as it is kept here; fsync waits for the target in any case."""
    alias: str = ""
    """InitiatorAlias, our name for people; none is sent where it is empty."""
    source_address: str | None = None
    """The numeric address of this machine to connect from."""
    dscp: int | None = None
    """The code point (6 bits) of the packets that are sent."""
    pcp: int | None = None
    """Their priority (3 bits) in a VLAN."""
    queue_depth: int | None = None
    """How many commands of a session may be on the wire, None: as many as the target takes."""
    record: MakeRecorder | None = None
    """Chooses who records each connection, as it is made."""
