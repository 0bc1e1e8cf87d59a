"""iscsifsctl import: the records of open-iscsi become a configuration file."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from iscsifs.conffile.parser import parse
from iscsifs.exit_status import ExitStatus
from support.mounting import ENVIRONMENT, TIME

NAME = "iqn.2001-04.com.example:disk1"
OURS = "iqn.2001-04.com.example:host"
NODE = f"""\
# BEGIN RECORD 2.1.8
node.name = {NAME}
node.tpgt = 1
node.startup = automatic
iface.transport_name = tcp
node.session.auth.authmethod = CHAP
node.session.auth.username = ann
node.session.auth.password = a secret of some length
node.conn[0].address = 192.0.2.1
node.conn[0].port = 3261
# END RECORD
"""


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """What open-iscsi has in /etc/iscsi."""
    top = tmp_path / "iscsi"
    node = top / "nodes" / NAME / "192.0.2.1,3261,1"
    node.mkdir(parents=True)
    (node / "default").write_text(NODE)
    (top / "initiatorname.iscsi").write_text(f"InitiatorName={OURS}\n")
    return top


def control(*words: object) -> tuple[int, list[str], list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "iscsifs.ctl", "import", *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIME,
        env=os.environ | ENVIRONMENT,
    )
    assert "a secret of" not in done.stdout + done.stderr
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def test_a_record_becomes_an_entry_with_its_secret_and_our_name(records: Path, tmp_path: Path) -> None:
    file = tmp_path / "iscsi.conf"
    status, table, notes = control(records, "--to", file)
    assert (status, notes) == (0, [])
    assert [row.split() for row in table] == [
        ["NICKNAME", "ADDRESS", "TARGET", "ATTACHED"],
        ["disk1", "192.0.2.1:3261", NAME, "yes"],
    ]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (entry,) = parse(file.read_text(), "iscsi.conf").entries
    assert (entry.target_name, entry.endpoint.name, entry.address.tag) == (NAME, OURS, 1)
    assert entry.credentials is not None
    assert (entry.credentials.user, entry.credentials.secret) == ("ann", b"a secret of some length")


def test_what_is_in_the_file_stays_and_twice_is_as_once(records: Path, tmp_path: Path) -> None:
    file = tmp_path / "iscsi.conf"
    file.write_text("# mine\nmine { TargetAddress = 192.0.2.9; TargetName = iqn.2001-04.com.example:mine }\n")
    file.chmod(0o600)
    assert control(records, "--to", file)[0] == 0
    text = file.read_text()
    assert text.startswith("# mine\nmine {")
    assert control(records, "--to", file)[0] == 0
    assert file.read_text() == text


def test_what_is_not_taken_is_told(records: Path, tmp_path: Path) -> None:
    (records / "nodes" / "broken").write_text("node.name = x\x1b[2J\n")
    isns = records / "isns" / "192.0.2.5,3205"
    isns.mkdir(parents=True)
    (isns / "isns_config").write_text("discovery.sendtargets.address = 192.0.2.5\n")
    status, table, notes = control(records, "--to", tmp_path / "iscsi.conf")
    assert (status, len(table)) == (ExitStatus.PARTIAL, 2)
    assert len(notes) == 2
    assert all(note.startswith("iscsifsctl: ") and note.isprintable() for note in notes)
    assert "isns://192.0.2.5" in notes[1]
    (records / "nodes" / NAME / "192.0.2.1,3261,1" / "default").unlink()
    status, table, _ = control(records, "--to", tmp_path / "other.conf")
    assert (status, table) == (ExitStatus.FAILED, [])
    assert not (tmp_path / "other.conf").exists()


def test_without_records_or_into_a_file_that_is_none_there_is_a_line(records: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, table, notes = control(tmp_path / "empty", "--to", tmp_path / "iscsi.conf")
    assert (status, table, len(notes)) == (ExitStatus.USAGE, [], 1)
    assert "nothing of open-iscsi" in notes[0]
    status, table, notes = control(records, "--to", tmp_path)
    assert (status, table, len(notes)) == (ExitStatus.USAGE, [], 1)
