"""The records of open-iscsi, as its versions have written them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.conffile import records
from iscsifs.conffile.files import save
from iscsifs.conffile.model import Entry
from iscsifs.conffile.open_iscsi import Import, initiator_name, node, parse_record
from iscsifs.conffile.options import initiator_options
from iscsifs.conffile.parser import parse
from iscsifs.conffile.records import import_records
from iscsifs.conffile.writer import format_entry
from iscsifs.errors import ConfigError
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.names import Portal, TargetAddress

NAME = "iqn.2001-04.com.example:disk.1"

RECORD = f"""\
# BEGIN RECORD 2.1.8
node.name = {NAME}
node.tpgt = 1
node.startup = automatic
node.leading_login = No
iface.iscsi_ifacename = default
iface.transport_name = tcp
node.discovery_address = 192.0.2.1
node.discovery_port = 3260
node.discovery_type = send_targets
node.session.initial_cmdsn = 0
node.session.queue_depth = 32
node.session.nr_sessions = 1
node.session.auth.authmethod = CHAP
node.session.auth.username = joe
node.session.auth.password = secret secret # 1
node.session.auth.chap_algs = MD5
node.session.timeo.replacement_timeout = 120
node.session.iscsi.InitialR2T = No
node.session.iscsi.ImmediateData = Yes
node.session.iscsi.FirstBurstLength = 262144
node.session.iscsi.MaxBurstLength = 16776192
node.session.iscsi.DefaultTime2Retain = 0
node.session.iscsi.DefaultTime2Wait = 2
node.session.iscsi.MaxConnections = 1
node.session.iscsi.MaxOutstandingR2T = 1
node.session.iscsi.ERL = 0
node.conn[0].address = 192.0.2.1
node.conn[0].port = 3261
node.conn[0].startup = manual
node.conn[0].timeo.login_timeout = 15
node.conn[0].timeo.noop_out_interval = 5
node.conn[0].timeo.noop_out_timeout = 5
node.conn[0].iscsi.MaxRecvDataSegmentLength = 262144
node.conn[0].iscsi.HeaderDigest = CRC32C,None
node.conn[0].iscsi.DataDigest = None
# END RECORD
"""


@pytest.fixture(autouse=True)
def _core_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "forbid_core_dumps", lambda: None)


def entry_of(text: str) -> tuple[Entry, list[str]]:
    notes: list[str] = []
    return node(parse_record(text, "record", notes), "a", "record", notes), notes


def changed(*lines: str) -> str:
    """Return the record with other values for these keys."""
    keys = {line.partition(" = ")[0] for line in lines}
    kept = [line for line in RECORD.splitlines() if line.partition(" = ")[0] not in keys]
    return "\n".join([*kept, *lines])


def refusal(*lines: str) -> str:
    with pytest.raises(ConfigError) as caught:
        entry_of(changed(*lines))
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    return str(caught.value)


def write(directory: Path, path: str, text: str = RECORD) -> Path:
    file = directory / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.mark.conformance("CONF-2.3")
def test_a_record_is_an_entry() -> None:
    entry, notes = entry_of(RECORD)
    assert notes == []
    assert (entry.target_name, entry.address) == (NAME, TargetAddress(Portal("192.0.2.1", 3261), 1))
    assert entry.enabled
    assert entry.endpoint.queue_depth == 32
    assert entry.offer["HeaderDigest"] == ("CRC32C", "None")
    assert entry.offer["DataDigest"] == ("None",)
    assert entry.offer["MaxBurstLength"] == 16776192
    assert entry.offer["InitialR2T"] is False
    credentials = entry.credentials
    assert credentials is not None
    assert (credentials.user, credentials.secret, credentials.target_user) == (
        "joe",
        b"secret secret # 1",
        None,
    )
    options = initiator_options(entry, InitiatorOptions("iqn.2001-04.com.example:us"))
    assert options.replacement_timeout == 120
    assert parse(format_entry(entry)).entries == (entry,)


@pytest.mark.conformance("CONF-2.3")
def test_what_is_not_taken_is_listed() -> None:
    _, notes = entry_of(
        changed(
            "node.session.nr_sessions = 2",
            "node.session.cmds_max = 128",
            "node.session.auth.chap_algs = SHA1",
        )
    )
    assert notes == [
        "record: not taken: node.session.auth.chap_algs, node.session.cmds_max, node.session.nr_sessions"
    ]


@pytest.mark.conformance("CONF-2.3")
def test_the_target_proves_itself_as_username_in() -> None:
    entry, _ = entry_of(
        changed("node.session.auth.username_in = array", "node.session.auth.password_in = secretsecret2")
    )
    assert entry.credentials is not None
    assert (entry.credentials.target_user, entry.credentials.target_secret) == ("array", b"secretsecret2")


@pytest.mark.conformance("CONF-2.4")
def test_a_user_is_enough_for_chap() -> None:
    entry, notes = entry_of(changed("node.session.auth.authmethod = None"))
    assert entry.credentials is not None
    (note,) = notes
    assert "CHAP is used, as open-iscsi does" in note
    nobody, notes = entry_of(
        changed("node.session.auth.authmethod = None", "node.session.auth.password = <empty>")
    )
    assert (nobody.credentials, notes) == (None, [])
    assert "CHAP needs" in refusal("node.session.auth.password = <empty>")
    assert "not supported" in refusal("node.session.auth.authmethod = SRP")
    assert "5 bytes" in refusal("node.session.auth.password = short")


@pytest.mark.conformance("CONF-2.5")
@pytest.mark.parametrize(
    ("line", "field", "value", "noted"),
    [
        ("node.session.timeo.replacement_timeout = 86000", "replacement_timeout", 86000, False),
        ("node.session.timeo.replacement_timeout = 0", "replacement_timeout", 1, True),
        ("node.session.timeo.replacement_timeout = -1", "replacement_timeout", 86400, True),
        ("node.conn[0].timeo.login_timeout = 30", "login_timeout", 30, False),
        ("node.conn[0].timeo.noop_out_interval = 0", "ping_interval", 0, False),
        ("node.conn[0].timeo.noop_out_interval = 7", "ping_interval", 7, False),
        ("node.conn[0].timeo.noop_out_timeout = 9", "ping_timeout", 9, False),
        ("node.conn[0].timeo.noop_out_timeout = 0", "ping_interval", 0, False),
    ],
)
def test_times(line: str, field: str, value: float, noted: bool) -> None:
    entry, notes = entry_of(changed(line))
    assert getattr(initiator_options(entry, InitiatorOptions("iqn.2001-04.com.example:us")), field) == value
    assert bool(notes) == noted
    assert parse(format_entry(entry)).entries == (entry,)


@pytest.mark.conformance("CONF-2.6")
def test_what_cannot_be_done_is_refused_by_name() -> None:
    assert 'its transport is "iser"' in refusal("iface.transport_name = iser")
    for startup, enabled in ("automatic", True), ("manual", False), ("onboot", False):
        assert entry_of(changed(f"node.startup = {startup}"))[0].enabled == enabled


@pytest.mark.conformance("CONF-2.6")
def test_the_initiators_name() -> None:
    assert initiator_name("## comment\n#InitiatorName=iqn.x\nInitiatorName=iqn.2001-04.com.example:us\n") == (
        "iqn.2001-04.com.example:us"
    )
    assert initiator_name("GenerateName=yes\n") is None
    with pytest.raises(ConfigError, match="InitiatorName"):
        initiator_name("InitiatorName=me\n")


@pytest.mark.conformance("CONF-2.2")
def test_lines_of_a_record() -> None:
    notes: list[str] = []
    long = "x" * 2049
    text = f"a = b c  \n\n # no\n b=c=d#e\n\tspace\t=\t1\r\nnonsense\n= x\nkey = {long}\na = last\n"
    assert parse_record(text, "record", notes) == {"a": "last", "b": "c=d#e", "space": "1"}
    assert notes == [
        "record:6: the line is not KEY = VALUE; skipped",
        "record:7: the line is not KEY = VALUE; skipped",
        "record:8: the line is longer than 2048 bytes; skipped",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "node.conn[0].port = x",
        "node.conn[0].port = 0",
        "node.conn[0].port = 65536",
        "node.conn[0].address = a b",
        "node.conn[0].address = 2001:db8::g",
        "node.name = disk",
        "node.name = \x1b[31m",
        "node.conn[0].iscsi.HeaderDigest = MD5",
        "node.session.iscsi.InitialR2T = Perhaps",
        "node.session.iscsi.MaxBurstLength = 1",
        "node.session.timeo.replacement_timeout = soon",
        "node.session.auth.username = \udcff",
        "iface.initiatorname = me",
    ],
)
def test_a_record_that_is_wrong_is_refused(line: str) -> None:
    assert "secret secret" not in refusal(line)


@pytest.mark.conformance("CONF-2.1")
def test_old_and_new_layouts_are_read_in_both_places(tmp_path: Path) -> None:
    etc, var = tmp_path / "etc", tmp_path / "var"
    write(etc, f"nodes/{NAME}/198.51.100.9,9,9/default")
    write(var, f"nodes/{NAME}/192.0.2.2,3260", changed("node.conn[0].address = 192.0.2.2"))
    write(var, f"nodes/{NAME}/2001:db8::1,3260,1/default", changed("node.conn[0].address = 2001:db8::1"))
    found = import_records([etc, var])
    assert [str(entry.address) for entry in found.entries] == [
        "192.0.2.1:3261,1",
        "192.0.2.2:3261,1",
        "[2001:db8::1]:3261,1",
    ]
    assert [entry.nickname for entry in found.entries] == ["disk.1", "disk.1-2", "disk.1-3"]
    assert found.unreadable == 0


def test_one_target_over_two_interfaces_is_one_entry(tmp_path: Path) -> None:
    write(tmp_path, f"nodes/{NAME}/192.0.2.1,3261,1/default")
    write(tmp_path, f"nodes/{NAME}/192.0.2.1,3261,1/eth1")
    found = import_records([tmp_path])
    assert len(found.entries) == 1
    (note,) = found.notes
    assert note.endswith("192.0.2.1,3261,1/default")


@pytest.mark.conformance("CONF-2.7")
def test_portals_to_discover_from_become_sources(tmp_path: Path) -> None:
    portal = "discovery.startup = manual\ndiscovery.sendtargets.address = 192.0.2.5\n"
    chap = "".join(
        f"discovery.sendtargets.auth.{line}\n"
        for line in ("authmethod = CHAP", "username = joe", "password = secretsecret1")
    )
    write(
        tmp_path,
        "send_targets/192.0.2.5,3260/st_config",
        f"{portal}discovery.sendtargets.port = 3261\n{chap}",
    )
    (tmp_path / "send_targets" / "192.0.2.5,3260" / NAME).symlink_to(tmp_path / "nodes")
    write(tmp_path, "send_targets/192.0.2.6,3260", portal.replace("192.0.2.5", "192.0.2.6"))
    server = "discovery.sendtargets.address = 192.0.2.7\ndiscovery.sendtargets.port = 3205\n"
    write(tmp_path, "isns/192.0.2.7,3205/isns_config", server)
    write(
        tmp_path, "isns/192.0.2.8,3205/isns_config", server.replace("2.7", "2.8").replace("3205\n", "3206\n")
    )
    write(tmp_path, "isns/broken,3205/isns_config", "nothing\n")
    found = import_records([tmp_path])
    assert [(str(entry.address), entry.target_name) for entry in found.entries] == [
        ("192.0.2.5:3261", None),
        ("192.0.2.6:3260", None),
    ]
    assert found.entries[0].credentials is not None
    assert found.isns == [Portal("192.0.2.7", 3205), Portal("192.0.2.8", 3206)]
    assert found.unreadable == 1


def test_the_rest_is_imported_where_a_record_is_wrong(tmp_path: Path) -> None:
    write(
        tmp_path,
        f"nodes/{NAME}/192.0.2.1,3261,1/default",
        changed("node.session.timeo.replacement_timeout = x"),
    )
    write(tmp_path, "nodes/b/192.0.2.2,3260,1/default", changed("node.conn[0].address = 192.0.2.2"))
    write(tmp_path, "initiatorname.iscsi", "InitiatorName=iqn.2001-04.com.example:us\n")
    write(
        tmp_path,
        "iscsid.conf",
        "node.conn[0].timeo.login_timeout = 99\nnode.session.scan = manual\nother = x\n",
    )
    (tmp_path / "nodes" / "c").symlink_to(tmp_path / "missing")
    found = import_records([tmp_path])
    assert [str(entry.address) for entry in found.entries] == ["192.0.2.2:3261,1"]
    assert found.entries[0].session["login_timeout"] == 15
    assert found.initiator_name == "iqn.2001-04.com.example:us"
    assert found.unreadable == 2
    assert any("which is no number" in note for note in found.notes)
    assert any("No such file" in note for note in found.notes)


def test_a_record_takes_what_it_lacks_from_iscsid_conf(tmp_path: Path) -> None:
    write(tmp_path, f"nodes/{NAME}/a/default", f"node.name = {NAME}\nnode.conn[0].address = 192.0.2.1\n")
    write(tmp_path, "iscsid.conf", "node.conn[0].timeo.login_timeout = 99\n")
    assert import_records([tmp_path]).entries[0].session == {"login_timeout": 99}


def test_where_there_is_nothing_both_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"there is nothing of open-iscsi in {tmp_path}/a or {tmp_path}/b"):
        import_records([tmp_path / "a", tmp_path / "b"])


def test_what_was_imported_can_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iscsifs.conffile.files.forbid_core_dumps", lambda: None)
    write(tmp_path, f"nodes/{NAME}/192.0.2.1,3261,1/default")
    found = import_records([tmp_path])
    save(tmp_path / "iscsi.conf", found.entries)
    assert parse((tmp_path / "iscsi.conf").read_text()).entries == tuple(found.entries)
    assert "secret secret" not in repr(found)


KEYS = st.sampled_from([line.partition(" = ")[0] for line in RECORD.splitlines()])
VALUES = st.one_of(
    st.text(max_size=20),
    st.integers(-(10**12), 10**12).map(str),
    st.sampled_from(["<empty>", "", "CRC32C", "None,CRC32C", "Yes", "[::1]", "a\x1bb", "\udcff"]),
)


@given(st.dictionaries(KEYS, VALUES), st.text())
def test_any_record_is_read_or_refused_in_one_line(values: dict[str, str], text: str) -> None:
    notes: list[str] = []
    record = parse_record(RECORD, "record", notes) | values | parse_record(text, "record", notes)
    try:
        node(record, "a", "record", notes)
    except ConfigError as error:
        notes.append(str(error))
    assert all(note.isascii() and note.isprintable() for note in notes)
    assert Import().entries == []
