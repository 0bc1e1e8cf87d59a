"""Fuzz harnesses for what names targets: configuration files, records, the boot firmware's table, root paths.

Each takes any bytes. It raises nothing but what no input must bring about: an exception that is not
documented, or an AssertionError for a broken promise.
"""

from iscsifs.conffile.open_iscsi import node, parse_record
from iscsifs.conffile.options import initiator_options
from iscsifs.conffile.parser import parse as parse_conf
from iscsifs.conffile.writer import format_entry, merge
from iscsifs.errors import ConfigError
from iscsifs.ibft.model import Ibft
from iscsifs.ibft.show import text_files
from iscsifs.ibft.table import parse as parse_table
from iscsifs.initiator.dial import offer
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.keys import check_offer
from iscsifs.iscsi.names import name_fault
from iscsifs.iscsi.root_path import RootPath, is_root_path, without_secrets
from support.fuzz.checks import allowed, is_line

BASE = InitiatorOptions("iqn.2001-04.com.example:host")


def iscsi_conf(data: bytes) -> None:
    """A file of iscsi.conf(5): what is read can be used, and written, and read again."""
    text = data.decode("utf-8", "surrogateescape")
    with allowed(ConfigError):
        found = parse_conf(text)
        assert all(map(is_line, found.notes))
        nicknames = [entry.nickname.lower() for entry in found.entries]
        assert len(set(nicknames)) == len(nicknames)
        assert merge(text, found.entries) == text
        for entry in found.entries:
            assert entry.target_name is None or name_fault(entry.target_name) is None
            assert entry.credentials is None or found.has_secrets
            options = initiator_options(entry, BASE)
            with allowed(ConfigError):  # FirstBurstLength above what MaxBurstLength is for all
                check_offer(offer(options))
            with allowed(ConfigError):  # what cannot be written
                assert parse_conf(format_entry(entry)).entries == (entry,)


def open_iscsi_record(data: bytes) -> None:
    """A record of open-iscsi."""
    notes: list[str] = []
    record = parse_record(data.decode("utf-8", "surrogateescape"), "record", notes)
    with allowed(ConfigError):
        entry = node(record, "a", "record", notes)
        check_offer(entry.offer)
        with allowed(ConfigError):
            assert parse_conf(format_entry(entry)).entries == (entry,)
    assert all(map(is_line, notes))


def ibft_table(data: bytes) -> None:
    """A table as it is, and with the length and the checksum that it should have."""
    with allowed(ConfigError):
        _check_table(parse_table(data))
    table = bytearray(data)
    table[4:8] = len(table).to_bytes(4, "little")
    if len(table) > 9:
        table[9] = (table[9] - sum(table)) % 256
    with allowed(ConfigError):
        _check_table(parse_table(bytes(table)))
        assert parse_table(bytes(table) + b"\xa5" * 64) == parse_table(bytes(table))


def _check_table(found: Ibft) -> None:
    assert all(map(is_line, found.notes))
    assert sorted(found.by_preference(), key=id) == sorted(found.targets, key=id)
    secrets = [target.credentials.secret for target in found.targets if target.credentials]
    shown = text_files(found)
    assert all(text.endswith("\n") for text in shown.values())
    assert all(text.isprintable() for name, text in _lines(shown) if name != "notes")
    for target in found.targets:
        assert name_fault(target.name) is None
        assert 1 <= target.portal.port <= 65535
    for secret in secrets:
        names = {target.credentials.user.encode() for target in found.targets if target.credentials}
        names |= {target.name.encode() for target in found.targets}
        whole = repr(found.targets).encode() if not any(secret in name for name in names) else b""
        assert secret not in whole


def _lines(shown: dict[str, str]) -> list[tuple[str, str]]:
    return [(name, text.removesuffix("\n")) for name, text in shown.items()]


def root_path(data: bytes) -> None:
    """A root path of RFC 4173 or dracut's."""
    text = data.decode("utf-8", "surrogateescape")
    shown = without_secrets(text)
    with allowed(ConfigError):
        found = RootPath.parse(text)
        assert is_root_path(text)
        assert 0 <= found.lun < 1 << 64
        assert name_fault(found.target_name) is None
        assert all(map(is_line, found.notes))
        if found.credentials is not None:
            assert f":{found.credentials.secret.decode('utf-8', 'surrogateescape')}@" not in shown
