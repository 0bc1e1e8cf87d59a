"""From entries to the text of iscsi.conf(5)."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from iscsifs.conffile.keywords import KEYWORDS, Sets
from iscsifs.conffile.model import Entry
from iscsifs.conffile.options import DEFAULTS
from iscsifs.conffile.parser import parse
from iscsifs.conffile.syntax import scan
from iscsifs.errors import ConfigError, printable
from iscsifs.iscsi.keys import format_value

_PLAIN: Final = re.compile(r"[A-Za-z0-9._/:\[\]-]+")  # what FreeBSD takes without quotation marks


def format_entry(entry: Entry) -> str:
    """Return the block of an entry. Raises ConfigError for a value that cannot be written."""
    lines = [f"{_written(entry.nickname)} {{"]
    lines += [f"\t{name} = {value}" for name, value in _statements(entry)]
    return "\n".join([*lines, "}", ""])


def merge(text: str, entries: Iterable[Entry], source: str = "iscsi.conf") -> str:
    """Return the file *text* with *entries*: those that it has stay, others are replaced or added at its end.

    What else is in the file stays as it is. Raises ConfigError where the file cannot be read, or where a
    block that is to be replaced has comments, which would be lost.
    """
    known = parse(text, source)
    blocks = {block.nickname.lower(): block for block in scan(text).blocks}
    pieces: list[tuple[int, int, str]] = []
    added = ""
    for entry in entries:
        old, block = known.find(entry.nickname), blocks.get(entry.nickname.lower())
        if block is None:
            added += f"\n{format_entry(entry)}"
        elif old != entry:
            if _has_comment(text[block.start : block.end]):
                raise ConfigError(
                    f'{printable(source)}:{block.line}: the block "{printable(block.nickname)}" has comments,'
                    " which would be lost; change it by hand"
                )
            pieces.append((block.start, block.end, format_entry(entry).rstrip("\n")))
    for start, end, piece in sorted(pieces, reverse=True):
        text = text[:start] + piece + text[end:]
    if added:
        text = f"{text.rstrip()}\n{added}" if text.strip() else added.lstrip("\n")
    # What stands outside of the blocks holds for a new one as well: what was written is what has to be read.
    found = parse(text, source)
    for entry in entries:
        if found.find(entry.nickname) != entry:
            raise ConfigError(
                f"{printable(source)}: what stands outside of the blocks would change"
                f' "{printable(entry.nickname)}"; save to another file'
            )
    return text


def _statements(entry: Entry) -> Iterator[tuple[str, str]]:
    """Give the keywords of an entry and their values, as they are written."""
    if entry.target_name is None:
        yield "SessionType", "Discovery"
    else:
        yield "TargetName", _written(entry.target_name)
    yield "TargetAddress", _written(str(entry.address.portal))
    if entry.address.tag is not None:
        yield "TargetPortalGroupTag", str(entry.address.tag)
    if entry.lun is not None:
        yield "Lun", entry.lun
    if not entry.enabled:
        yield "Enable", "Off"
    if credentials := entry.credentials:
        yield "AuthMethod", "CHAP"
        yield "chapIName", _written(credentials.user)
        yield "chapSecret", _secret(credentials.secret)
        if credentials.target_user is not None and credentials.target_secret is not None:
            yield "tgtChapName", _written(credentials.target_user)
            yield "tgtChapSecret", _secret(credentials.target_secret)
        elif credentials.target_secret is not None:
            raise ConfigError(
                f'"{printable(entry.nickname)}" has a target secret for any user,'
                " which iscsi.conf(5) cannot say; give the target's user"
            )
    elif entry.anonymous:
        yield "AuthMethod", "None"
    session = dict(entry.session)
    if "ping_timeout" in session:
        # PingTimeout sets both.
        session.setdefault("ping_interval", DEFAULTS["ping_interval"])
    for keyword in KEYWORDS.values():
        if keyword.sets is Sets.ENDPOINT:
            value = getattr(entry.endpoint, keyword.fields[0])
        elif keyword.sets is Sets.OFFER:
            value = entry.offer.get(keyword.name)
        elif keyword.sets is Sets.SESSION:
            value = session.get(keyword.fields[-1])
            if keyword.name == "PingInterval" and value == session.get("ping_timeout"):
                continue
        else:
            continue
        if value is not None:
            yield keyword.name, _written(_formatted(value))


def _formatted(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else format_value(value)


def _written(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    if '"' in value or not value.isprintable():
        raise ConfigError(f'"{printable(value)}" cannot be written to iscsi.conf(5)')
    return f'"{value}"'


def _secret(secret: bytes) -> str:
    """Write a secret that is text as text: FreeBSD knows no other."""
    if secret.isascii() and (text := secret.decode()).isprintable() and '"' not in text:
        return f'"{text}"'
    return f"0x{secret.hex()}"


def _has_comment(block: str) -> bool:
    return "#" in re.sub(r'"[^"\n]*"', "", block)
