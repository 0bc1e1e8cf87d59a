"""Every exception that iscsifs raises on purpose::

    IscsifsError
    ├── ConfigError              what the user gave cannot be used
    ├── TransportError           the network: unreachable, refused, closed, silent
    │   ├── ConnectionClosed     the other end closed or reset the connection
    │   ├── LoginTimeout         it took the connection, but did not finish the login in time
    │   └── PathLost             the connection was lost before a command was answered
    ├── ProtocolError            the peer broke a rule of RFC 7143
    │   └── DigestError          a CRC32C did not match
    ├── IsnsError                the iSNS server refuses something, or does not answer
    │   └── IsnsProtocolError    it broke a rule of RFC 4171
    ├── LoginError               the login ended without a session
    │   ├── NegotiationError     a key's value cannot be accepted
    │   ├── AuthenticationError  one of the two sides was not believed
    │   ├── RedirectionError     the target has moved to where we cannot follow
    │   ├── LoginRefused         the target ended the login with a status
    │   └── LoginDropped         the target ended the login by closing the connection
    ├── CommandError             a SCSI command did not succeed
    │   ├── StatusError          the target ended it with a SCSI status (and sense data)
    │   │   ├── MediumError          these blocks cannot be read or written
    │   │   ├── WriteProtectedError  the unit takes no writes
    │   │   ├── SpaceError           a thin unit has no room left
    │   │   ├── NoMediumError        there is nothing in the drive, or it is not ready
    │   │   └── ReservationError     another initiator has reserved the unit
    │   ├── DataError            GOOD status, but not the data that were asked for
    │   ├── TaskAborted          it was aborted, rejected or lost with its session
    │   └── CommandTimeout       no answer in time, or the session could not be restored in time
    ├── DataLostError            writes that were not synchronised may be lost
    └── UnitError                a logical unit that cannot be used as a disk

Each message is one line that names the thing and the reason. Text from the network goes into a message
only through `printable`.
"""

import errno
from typing import Final, Self

_REMEDIES: Final = {
    errno.ECONNREFUSED: "is a target running there, and is the port right?",
    errno.EHOSTUNREACH: "is the host up, and is there a route to it?",
    errno.ENETUNREACH: "is there a route to it?",
    errno.ETIMEDOUT: "is the host up, and does a firewall drop the packets?",
    errno.EMFILE: "raise the limit with: ulimit -n",
    errno.ENFILE: "raise the limit with: sysctl fs.file-max",
    errno.ENOMEM: "raise the limit with: ulimit -v",
}


class IscsifsError(Exception):
    """The root of the tree."""

    _kind = ""

    @property
    def kind(self) -> str:
        """What the log counts it as (`iscsifs.logs`): its text, or what was said instead."""
        return self._kind or str(self)

    def counted_as(self, kind: str) -> Self:
        """Return the exception, of this *kind* from now on: its text is different each time."""
        self._kind = kind
        return self


class ConfigError(IscsifsError):
    """An option, a file or an argument cannot be used."""


class TransportError(IscsifsError):
    """A connection could not be made, or was lost (RFC 7143 section 7.14)."""


class ConnectionClosed(TransportError):
    """The other end closed or reset the connection."""


class LoginTimeout(TransportError):
    """The target has taken the connection, but had not finished the login in time."""


class PathLost(TransportError):
    """The path was lost before a command was answered; *sent* says whether the target may have seen it."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__("the connection was lost")
        self.sent = sent


class ProtocolError(IscsifsError):
    """The peer broke a rule of RFC 7143; the connection cannot be used any more.

    *section* is the section of RFC 7143 that holds the rule, *pdu* the name of the PDU that broke it.
    """

    def __init__(self, rule: str, *, section: str, pdu: str = "") -> None:
        where = f"{pdu}: " if pdu else ""
        super().__init__(f"{where}{rule} (RFC 7143 section {section})")
        self.rule = rule
        self.section = section
        self.pdu = pdu


class DigestError(ProtocolError):
    """A header or data digest did not match (RFC 7143 section 7.8)."""


class IsnsError(IscsifsError):
    """An iSNS server refuses a request, or does not answer it."""


class IsnsProtocolError(IsnsError):
    """An iSNS server broke a *rule* of RFC 4171, which *section* has."""

    def __init__(self, rule: str, *, section: str) -> None:
        super().__init__(f"{rule} (RFC 4171 section {section})")


class LoginError(IscsifsError):
    """The login ended without a session."""


class NegotiationError(LoginError):
    """The value of *key* cannot be accepted (RFC 7143 sections 6.2 and 7.12)."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{printable(key)}: {reason}")
        self.key = key


class AuthenticationError(LoginError):
    """Authentication failed on our side of it; *key* is the key to blame (section 12.1)."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key


class RedirectionError(LoginError):
    """A redirection (status class 1) that leads nowhere (RFC 7143 section 11.13.5)."""


class LoginRefused(LoginError):
    """The target ended the login with *status_class* and *status_detail* (RFC 7143 section 11.13.5)."""

    def __init__(self, status_class: int, status_detail: int, meaning: str) -> None:
        super().__init__(f"the target refused the login: {meaning} ({status_class:02x}{status_detail:02x}h)")
        self.status_class = status_class
        self.status_detail = status_detail


class LoginDropped(LoginError):
    """The target closed the connection instead of sending a login status."""


class CommandError(IscsifsError):
    """A SCSI command did not succeed."""


class StatusError(CommandError):
    """The target ended a command with a *status* other than GOOD (SAM), *sense* being its raw sense data."""

    def __init__(self, message: str, *, status: int, sense: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.sense = sense


class BusyError(StatusError):
    """The unit stayed busy: BUSY, TASK SET FULL and the like, until the retries were used up."""


class MediumError(StatusError):
    """These blocks cannot be read or written (sense key MEDIUM ERROR or HARDWARE ERROR)."""


class WriteProtectedError(StatusError):
    """The unit takes no writes (sense 27h/00h to 06h)."""


class SpaceError(StatusError):
    """A thin-provisioned unit has no room left (sense 27h/07h)."""


class NoMediumError(StatusError):
    """There is no medium in the unit, or the unit is not ready (sense key NOT READY)."""


class ReservationError(StatusError):
    """Another initiator has reserved the unit (status RESERVATION CONFLICT)."""


class DataError(CommandError):
    """A command ended with GOOD status, but fewer bytes arrived than it asked for."""


class TaskAborted(CommandError):
    """A command was aborted, rejected or lost with its session; it may have been done or not."""


class CommandTimeout(CommandError):
    """A command had no answer within its time, or the session did not come back within its time."""


class TruncationError(IscsifsError):
    """A truncation to more bytes than the unit has."""


class InUseError(IscsifsError):
    """A truncation, or a logout, is refused because the unit is open elsewhere."""


class NoTargetError(IscsifsError):
    """What was asked for is not there: no target at all, no name that matches, no such logical unit."""


class DataLostError(IscsifsError):
    """Writes that were not synchronised may be lost: with the target's cache, or because it is not known
    which unit they would be written to."""


class UnitError(IscsifsError):
    """A logical unit that cannot be used as a disk, with the reason."""


def reason(error: OSError) -> str:
    """Return why the system refused something, with the remedy or what to look at, where there is such."""
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{error.strerror}; {remedy}" if remedy else str(error.strerror)


def printable(text: str | bytes, limit: int = 255) -> str:
    """Return *text* from the network fit for a terminal or a log.

    Printable ASCII stays, everything else is escaped; what is longer than *limit* characters is cut.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    safe = "".join(
        c if " " <= c <= "~" and c != "\\" else c.encode("unicode_escape").decode("ascii")
        for c in text[:limit]
    )
    return safe + ("..." if len(text) > limit else "")
