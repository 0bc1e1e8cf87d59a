"""The initiator on trio: sockets, sessions, discovery, and a logical unit as a range of bytes."""

from iscsifs.initiator.initiator import Initiator, discover, open_initiator
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.initiator.target import Target
from iscsifs.initiator.unit import LogicalUnit

__all__ = ["Initiator", "InitiatorOptions", "LogicalUnit", "Target", "discover", "open_initiator"]
