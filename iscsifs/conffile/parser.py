"""From the text of iscsi.conf(5) to entries."""

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Final

from iscsifs.conffile.keywords import KEYWORDS, SECRETS, Keyword, Sets, is_binary, is_ours, shown
from iscsifs.conffile.model import Configuration, Endpoint, Entry
from iscsifs.conffile.syntax import Block, Document, Fault, Statement, scan
from iscsifs.errors import ConfigError, printable
from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.keys import INITIATOR_OFFER, check_offer
from iscsifs.iscsi.names import Portal, TargetAddress, check_zone

_MOST: Final = ("MaxRecvDataSegmentLength", "MaxOutstandingR2T")
"""Keys of which we can take no more than we offer."""

Settings = dict[str, tuple[Statement, Any]]
"""Statements and their values, by keyword."""


def parse(text: str, source: str = "iscsi.conf") -> Configuration:
    """Read the text of a file; *source* is its name, for messages. Raises ConfigError, with the line."""
    try:
        return _Parser(scan(text), source).configuration()
    except Fault as fault:
        raise ConfigError(f"{printable(source)}:{fault.line}: {fault}") from None


class _Parser:
    def __init__(self, document: Document, source: str) -> None:
        self._document = document
        self._source = printable(source)
        self._notes: dict[str, str] = {}  # by what they are about: each is told once
        self._has_secrets = False

    def configuration(self) -> Configuration:
        defaults = self._settings(self._document.statements, {})
        entries: dict[str, Entry] = {}
        for block in self._document.blocks:
            nickname = _nickname(block)
            if nickname.lower() in entries:
                raise Fault(
                    block.line, f'there are two blocks "{printable(nickname)}"; give each its own name'
                )
            entry = self._entry(nickname, block, self._settings(block.statements, defaults))
            entries[nickname.lower()] = entry
        return Configuration(tuple(entries.values()), tuple(self._notes.values()), self._has_secrets)

    def _settings(self, statements: Sequence[Statement], defaults: Settings) -> Settings:
        own: Settings = {}
        for statement in statements:
            keyword = _keyword(statement)
            if keyword.name in own:
                first = own[keyword.name][0].line
                raise Fault(
                    statement.line, f"{keyword.name} is here twice, first in line {first}; leave one out"
                )
            try:
                value = keyword.read(statement)
            except ValueError as error:
                raise Fault(statement.line, f"{keyword.name}{shown(statement)}: {error}") from None
            own[keyword.name] = statement, value
            self._has_secrets |= keyword.name in SECRETS
            self._note_unused(statement, keyword, value)
        return {**defaults, **own}

    def _note_unused(self, statement: Statement, keyword: Keyword, value: Any) -> None:
        name = keyword.name
        if keyword.sets is Sets.IGNORED or (keyword.sets is Sets.FIXED and not is_ours(keyword, value)):
            self._note(statement, name, f"{name} is ignored: {keyword.reason}")
        elif name in _MOST and value > INITIATOR_OFFER[name]:
            self._note(statement, name, f"{name} is {INITIATOR_OFFER[name]}, which is the most there is here")
        elif name in SECRETS and is_binary(statement):
            self._note(
                statement, name, f"{name} is taken as binary; iscsictl of FreeBSD takes the same as text"
            )

    def _note(self, statement: Statement, about: str, words: str) -> None:
        self._notes.setdefault(about, f"{self._source}:{statement.line}: {words}")

    def _entry(self, nickname: str, block: Block, settings: Settings) -> Entry:
        values = {name: value for name, (_, value) in settings.items()}
        what = f'"{printable(nickname)}"'
        kind, target = values.get("SessionType", "Normal"), values.get("TargetName")
        if kind == "Normal" and target is None:
            raise Fault(block.line, f"{what} has no TargetName; give it, or SessionType = Discovery")
        if kind == "Discovery" and target is not None:
            raise Fault(block.line, f"{what} has SessionType Discovery and a TargetName; leave one out")
        if "TargetAddress" not in values:
            raise Fault(block.line, f"{what} has no TargetAddress")
        offer = _of(settings, Sets.OFFER)
        for name in _MOST:
            if name in offer:
                offer[name] = min(offer[name], INITIATOR_OFFER[name])
        try:
            check_offer(offer)
            credentials = _credentials(values)
        except (ConfigError, ValueError) as error:
            raise Fault(block.line, f"{what}: {error}") from None
        return Entry(
            nickname,
            _address(*settings["TargetAddress"], values),
            target,
            values.get("Lun"),
            values.get("Enable", True),
            Endpoint(**_of(settings, Sets.ENDPOINT)),
            credentials,
            values.get("AuthMethod") == "None",
            offer,
            _of(settings, Sets.SESSION),
        )


def _of(settings: Settings, sets: Sets) -> dict[str, Any]:
    """Return the fields that the keywords of one kind set; later rows of the table override earlier ones."""
    return {
        field: settings[keyword.name][1]
        for keyword in KEYWORDS.values()
        if keyword.sets is sets and keyword.name in settings
        for field in keyword.fields
    }


def _keyword(statement: Statement) -> Keyword:
    found = KEYWORDS.get(statement.key.lower())
    if found is not None:
        return found
    near = get_close_matches(statement.key.lower(), KEYWORDS, 1)
    hint = f"; did you mean {KEYWORDS[near[0]].name}?" if near else "; see iscsi.conf(5)"
    raise Fault(statement.line, f'there is no keyword "{printable(statement.key)}"{hint}')


def _nickname(block: Block) -> str:
    name = block.nickname
    if not name or not name.isprintable() or " " in name:
        raise Fault(block.line, f'"{printable(name)}" is no nickname; give letters and digits')
    if name.lower() in KEYWORDS:
        raise Fault(block.line, f'"{printable(name)}" is a keyword, and cannot be a nickname')
    return name


def _address(statement: Statement, text: str, values: dict[str, Any]) -> TargetAddress:
    """Read a TargetAddress; the tag that may stand behind it is not used, as with iscontrol."""
    address = text.partition(",")[0]
    try:
        portal = Portal.parse(address)
        check_zone(portal.host)
    except ConfigError as error:
        raise Fault(statement.line, f"TargetAddress: {error}") from None
    # An IPv6 address stands alone, or in brackets with a port behind them.
    has_port = not address.endswith("]") if address.startswith("[") else address.count(":") == 1
    if not has_port:
        portal = replace(portal, port=values.get("port", portal.port))
    return TargetAddress(portal, values.get("TargetPortalGroupTag"))


def _credentials(values: dict[str, Any]) -> Credentials | None:
    """Return the credentials; raises ValueError and ConfigError where they are not complete."""
    user, secret = values.get("chapIName"), values.get("chapSecret")
    target_user, target_secret = values.get("tgtChapName"), values.get("tgtChapSecret")
    method = values.get("AuthMethod")
    given = [name for name in ("chapIName", "chapSecret", "tgtChapName", "tgtChapSecret") if name in values]
    if method == "None" or (method is None and not given):
        return None
    if user is None or secret is None:
        missing = "chapIName" if user is None else "chapSecret"
        raise ValueError(f"CHAP needs chapIName and chapSecret, and {missing} is missing")
    if (target_user is None) != (target_secret is None):
        missing = "tgtChapName" if target_user is None else "tgtChapSecret"
        raise ValueError(f"mutual CHAP needs tgtChapName and tgtChapSecret, and {missing} is missing")
    return Credentials(user, secret, target_user, target_secret)
