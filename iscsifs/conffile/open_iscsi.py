"""The records of open-iscsi: ``key = value`` lines, as iscsid.conf(5) describes them.

A record is a node (a target at a portal, over an interface), or a portal to discover targets from. What is
read here are texts; `records` finds the files.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from iscsifs.conffile.model import Endpoint, Entry
from iscsifs.conffile.options import DEFAULTS
from iscsifs.errors import ConfigError, printable
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.keys import INITIATOR_OFFER, TABLE, Form, Value, check_offer
from iscsifs.iscsi.names import Portal, TargetAddress, check_name

MAX_LINE: Final = 2048
"""Bytes of a line, in open-iscsi's reader as well; longer ones are skipped."""

FOR_EVER: Final = 86400.0
"""Seconds that stand for a replacement time-out without an end: the longest that there is here."""

Record = dict[str, str]
"""Keys and values."""


@dataclass(slots=True)
class Import:
    """What came of records. *isns* are name servers to ask; *notes* tell what was not taken, a line each."""

    entries: list[Entry] = field(default_factory=list)
    isns: list[Portal] = field(default_factory=list)
    initiator_name: str | None = None
    notes: list[str] = field(default_factory=list)
    unreadable: int = 0


def parse_record(text: str, source: str, notes: list[str]) -> Record:
    """Read the lines of a record; what is no line of that form is skipped, with a note.

    A value goes to the end of its line, spaces and all; the last line with a key counts.
    """
    record: Record = {}
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        key, equals, value = stripped.partition("=")
        if len(line.encode(errors="surrogateescape")) > MAX_LINE:
            notes.append(f"{printable(source)}:{number}: the line is longer than {MAX_LINE} bytes; skipped")
        elif not equals or not key.strip():
            notes.append(f"{printable(source)}:{number}: the line is not KEY = VALUE; skipped")
        else:
            record[key.strip()] = value.strip()
    return record


def node(record: Record, nickname: str, source: str, notes: list[str]) -> Entry:
    """Return the entry of a node's record. Raises ConfigError where it cannot be used."""
    transport = record.get("iface.transport_name", "tcp")
    if transport != "tcp":
        raise ConfigError(
            f'{printable(source)}: its transport is "{printable(transport)}"; only tcp is supported'
        )
    name, address = record.get("node.name"), record.get("node.conn[0].address")
    if name is None or address is None:
        missing = "node.name" if name is None else "node.conn[0].address"
        raise ConfigError(f"{printable(source)}: {missing} is missing")
    check_name(name, f"{printable(source)}: target")
    taken = _Taken(record, source, notes)
    credentials = taken.credentials("node.session.auth")
    depth = taken.number("node.session.queue_depth", 0)
    entry = Entry(
        nickname,
        TargetAddress(_portal(address, taken.number("node.conn[0].port", 3260)), _tag(taken)),
        name,
        enabled=record.get("node.startup") == "automatic",
        endpoint=Endpoint(
            name=taken.initiator_name(),
            queue_depth=depth if 1 <= depth <= 65535 else None,
        ),
        credentials=credentials,
        offer=taken.offer(),
        session=taken.session(),
    )
    taken.note_the_rest()
    return entry


def discovery(record: Record, nickname: str, source: str, notes: list[str]) -> Entry:
    """Return the entry of a record of send_targets. Raises ConfigError where it cannot be used."""
    taken = _Taken(record, source, notes)
    return Entry(
        nickname,
        TargetAddress(portal_of(record, source)),
        credentials=taken.credentials("discovery.sendtargets.auth"),
        enabled=record.get("discovery.startup", "manual") != "manual",
    )


def portal_of(record: Record, source: str, default_port: int = 3260) -> Portal:
    """Return the portal of a record for discovery: those of iSNS have the same keys. Raises ConfigError."""
    address = record.get("discovery.sendtargets.address")
    if address is None:
        raise ConfigError(f"{printable(source)}: discovery.sendtargets.address is missing")
    port = record.get("discovery.sendtargets.port", str(default_port))
    if not re.fullmatch("[0-9]{1,5}", port):
        raise ConfigError(f'{printable(source)}: the port "{printable(port)}" is not a number')
    return _portal(address, int(port))


def _portal(address: str, port: int) -> Portal:
    """Return the portal of an *address* as records have it: an IPv6 address without brackets."""
    host = Portal.parse(f"[{address.strip('[]')}]" if ":" in address else address).host
    if not 1 <= port <= 65535:
        raise ConfigError(f"the port {port} is not between 1 and 65535")
    return Portal(host, port)


def _tag(taken: "_Taken") -> int | None:
    tag = taken.number("node.tpgt", -1)
    return tag if 0 <= tag <= 65535 else None


def initiator_name(text: str) -> str | None:
    """Return the name in the text of initiatorname.iscsi, None where it has none. Raises ConfigError."""
    names = [
        line.partition("=")[2].strip()
        for line in text.splitlines()
        if line.strip().startswith("InitiatorName=")
    ]
    if not names:
        return None
    check_name(names[-1], "InitiatorName")
    return names[-1]


_DIGESTS: Final = {"none": "None", "crc32c": "CRC32C"}

_OFFERED: Final = {
    **{
        f"node.conn[0].iscsi.{key}": key for key in ("HeaderDigest", "DataDigest", "MaxRecvDataSegmentLength")
    },
    **{
        f"node.session.iscsi.{key}": key
        for key in (
            *("InitialR2T", "ImmediateData", "FirstBurstLength", "MaxBurstLength", "DefaultTime2Wait"),
            *("DefaultTime2Retain", "MaxOutstandingR2T"),
        )
    },
}
"""Keys of the login."""

_TIMES: Final[Mapping[str, Callable[[int], dict[str, float]]]] = {
    "node.session.timeo.replacement_timeout": lambda seconds: {
        # 0 fails at once; a negative one never does.
        "replacement_timeout": FOR_EVER if seconds < 0 else min(max(seconds, 1), FOR_EVER)
    },
    "node.conn[0].timeo.login_timeout": lambda seconds: {"login_timeout": min(max(seconds, 1), 3600)},
    "node.conn[0].timeo.noop_out_interval": lambda seconds: {"ping_interval": min(max(seconds, 0), 3600)},
    "node.conn[0].timeo.noop_out_timeout": lambda seconds: {"ping_timeout": min(max(seconds, 1), 3600)},
}
"""Times, and the fields of InitiatorOptions that they are."""

_SILENT: Final = frozenset(
    (
        *("node.startup", "node.leading_login", "node.conn[0].startup", "node.discovery_address"),
        *("node.discovery_port", "node.discovery_type", "iface.transport_name", "iface.iscsi_ifacename"),
    )
)
"""Keys that are used elsewhere, or say only where the record comes from."""

_USUAL: Final = {
    "node.session.nr_sessions": "1",
    "node.session.iscsi.MaxConnections": "1",
    "node.session.iscsi.ERL": "0",
    "node.session.auth.chap_algs": "MD5",
    "node.session.initial_cmdsn": "0",
    "node.session.reopen_max": "0",
    "node.session.xmit_thread_priority": "-20",
}
"""Keys without an effect here, and a value with which they need no note."""


class _Taken:
    """A record, and which of its keys were used."""

    def __init__(self, record: Record, source: str, notes: list[str]) -> None:
        self._record = record
        self._source = printable(source)
        self._notes = notes
        self._used = {"node.name", "node.conn[0].address"}

    def text(self, key: str) -> str | None:
        """Return a value, None where there is none: open-iscsi writes <empty> for that."""
        self._used.add(key)
        value = self._record.get(key)
        return None if value in ("", "<empty>") else value

    def initiator_name(self) -> str | None:
        """Return our own name over this interface, None where it has none. Raises ConfigError."""
        name = self.text("iface.initiatorname")
        if name is not None:
            check_name(name, f"{self._source}: iface.initiatorname")
        return name

    def number(self, key: str, default: int) -> int:
        """Return a number. Raises ConfigError."""
        value = self.text(key)
        if value is None:
            return default
        if not re.fullmatch("-?[0-9]{1,9}", value):
            raise ConfigError(f'{self._source}: {key} is "{printable(value)}", which is no number')
        return int(value)

    def credentials(self, prefix: str) -> Credentials | None:
        """Return the credentials whose keys begin with *prefix*. Raises ConfigError.

        ``username_in`` is who the target is. A user without CHAP is taken all the same, as open-iscsi does.
        """
        method = self.text(f"{prefix}.authmethod") or "None"
        user, secret = self.text(f"{prefix}.username"), self.text(f"{prefix}.password")
        target, target_secret = self.text(f"{prefix}.username_in"), self.text(f"{prefix}.password_in")
        if method.upper() not in ("CHAP", "NONE"):
            raise ConfigError(f'{self._source}: the method "{printable(method)}" is not supported')
        if user is None or secret is None:
            if method.upper() == "CHAP":
                raise ConfigError(f"{self._source}: CHAP needs {prefix}.username and {prefix}.password")
            return None
        if method.upper() == "NONE":
            self._note("there are a user and a secret, so CHAP is used, as open-iscsi does; set authmethod")
        try:
            return Credentials(
                user,
                secret.encode(errors="surrogateescape"),
                target if target_secret else None,
                target_secret.encode(errors="surrogateescape") if target_secret else None,
            )
        except ConfigError as error:
            raise ConfigError(f"{self._source}: {error}") from None
        except UnicodeEncodeError:
            raise ConfigError(f"{self._source}: a user's name is not UTF-8") from None

    def offer(self) -> dict[str, Value]:
        """Return the keys of the login. Raises ConfigError."""
        offer: dict[str, Value] = {}
        for name, key in _OFFERED.items():
            if (value := self.text(name)) is None:
                continue
            form = TABLE[key].form
            if form is Form.LIST:
                words = [_DIGESTS.get(word.strip().lower()) for word in value.split(",")]
                if None in words:
                    raise ConfigError(f'{self._source}: {name} is "{printable(value)}", which is unknown')
                offer[key] = tuple(word for word in words if word)
            elif form is Form.BOOLEAN:
                if value.lower() not in ("yes", "no"):
                    raise ConfigError(f'{self._source}: {name} is "{printable(value)}", not Yes or No')
                offer[key] = value.lower() == "yes"
            else:
                most = INITIATOR_OFFER[key]
                number = self.number(name, 0)
                limited = key in ("MaxRecvDataSegmentLength", "MaxOutstandingR2T") and isinstance(most, int)
                offer[key] = min(number, most) if limited and isinstance(most, int) else number
        try:
            check_offer(offer)
        except ConfigError as error:
            raise ConfigError(f"{self._source}: {error}") from None
        return offer

    def session(self) -> dict[str, Any]:
        """Return the time-outs. Raises ConfigError."""
        session: dict[str, Any] = {}
        for name, fields in _TIMES.items():
            if self.text(name) is None:
                continue
            seconds = self.number(name, 0)
            session |= fields(seconds)
            if name.endswith("replacement_timeout") and seconds <= 0:
                words = "commands fail at once" if seconds == 0 else "commands wait for ever"
                self._note(f"{name} = {seconds} ({words}) is {session['replacement_timeout']:g} s here")
            if name.endswith("noop_out_timeout") and seconds == 0:
                session["ping_interval"] = 0  # no ping can be late
        if "ping_timeout" in session:
            session.setdefault("ping_interval", DEFAULTS["ping_interval"])
        return session

    def note_the_rest(self) -> None:
        """Tell which keys were not taken, in one line."""
        rest = sorted(
            key
            for key, value in self._record.items()
            if key not in self._used | _SILENT and _USUAL.get(key) != value
        )
        if rest:
            self._note(f"not taken: {', '.join(printable(key) for key in rest)}")

    def _note(self, words: str) -> None:
        self._notes.append(f"{self._source}: {words}")


assert {field for times in _TIMES.values() for field in times(1)} <= set(InitiatorOptions.__slots__)
