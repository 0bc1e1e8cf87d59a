"""iscsifsctl: what it tells of a mount, for people and for scripts."""

import json
import os
from pathlib import Path

import pytest

from iscsifs.ctl import tables
from iscsifs.ctl.cli import main
from iscsifs.exit_status import ExitStatus
from support.control_tree import HOST, NAME, WWID, ControlTree

ESCAPE = "\x1b[2J\x9b2J\x7f"


@pytest.fixture
def tree(tmp_path: Path) -> ControlTree:
    return ControlTree(tmp_path / "mnt")


@pytest.fixture
def unit(tree: ControlTree) -> Path:
    return tree.add_unit(tree.add_target())


class Said:
    """Runs the command and keeps what it said."""

    def __init__(self, tree: ControlTree, capsys: pytest.CaptureFixture[str]) -> None:
        self._tree, self._capsys = tree, capsys

    def __call__(self, *words: str, status: int = 0) -> list[str]:
        """Return the lines of the standard output, of the standard error where it fails."""
        assert main(words, find_mount=self._tree.find) == status
        out, error = self._capsys.readouterr()
        assert bool(error) == bool(status), error
        return (error if status else out).splitlines()


@pytest.fixture
def said(tree: ControlTree, capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(tree, capsys)


def test_list_has_a_row_for_each_unit_and_for_a_target_without(
    tree: ControlTree, unit: Path, said: Said
) -> None:
    tree.add_unit(unit.parent, 10, 3 << 30, wwid="naa.2")
    tree.add_unit(unit.parent, 2, 0, wwid="naa.3")
    (unit / "device").symlink_to("/dev/loop3")
    tree.add_target("array.example.com", "backup", state="FAILED")
    rows = [" ".join(row.split()) for row in said("list")]
    assert rows == [
        "TARGET STATE UNIT SIZE DEVICE VENDOR PRODUCT",
        f"{HOST}/disk LOGGED_IN lun0 64M /dev/loop3 IET VIRTUAL-DISK",
        f"{HOST}/disk LOGGED_IN lun2 0 - IET VIRTUAL-DISK",
        f"{HOST}/disk LOGGED_IN lun10 3G - IET VIRTUAL-DISK",
        "array.example.com/backup FAILED - - - - -",
    ]


def test_list_for_scripts_has_all_of_it(unit: Path, tree: ControlTree, said: Said) -> None:
    (unit / "storage").chmod(0o400)
    (unit / "part1").write_bytes(b"x" * 512)
    (unit / "part1.img").touch()
    (line,) = said("list", "--json")
    found = json.loads(line)
    assert (found["mount"], found["version"]) == (str(tree.path), "iscsifs 1.2.3")
    (target,) = found["targets"]
    assert (target["targetname"], target["port"], target["state"]) == (NAME, 3260, "LOGGED_IN")
    (shown,) = target["units"]
    assert shown == {
        "place": f"{HOST}/disk/lun0",
        "type": "disk",
        "vendor": "IET",
        "product": "VIRTUAL-DISK",
        "version": "0001",
        "serial": "beaf11",
        "wwid": WWID,
        "block_size": 512,
        "size": 64 << 20,
        "read_only": True,
        "device": None,
        "partitions": {"part1": 512},
    }


def test_an_empty_mount_is_an_empty_list(said: Said) -> None:
    assert said("list") == []
    assert json.loads(*said("list", "--json"))["targets"] == []


def test_show_of_a_target_has_its_session(unit: Path, said: Said) -> None:
    lines = said("show", "disk")
    for line in (
        f"targetname:   {NAME}",
        "state:        LOGGED_IN",
        "since:        2026-11-21T12:00:00Z",
        "connection:   0 192.0.2.9:40000 -> 192.0.2.1:3260 LOGGED_IN",
        "negotiated:   HeaderDigest=None MaxBurstLength=262144 MaxConnections=1",
        "reconnects:   2",
        "unit:         lun0 64M disk IET VIRTUAL-DISK",
    ):
        assert line in lines
    assert not [line for line in lines if line.startswith("last error")]
    (shown,) = json.loads(*said("show", HOST, "--json"))
    assert shown["session"]["parameters"]["MaxBurstLength"] == "262144"
    assert shown["session"]["tsih"] == "0x0007"


def test_show_of_a_unit_has_its_counts(tree: ControlTree, unit: Path, said: Said) -> None:
    tree.count(unit, reads=1000, writes=50)
    lines = said("show", f"{unit}/storage")
    assert "size:       64M (67108864 bytes)" in lines
    assert f"{HOST}/disk/lun0  read    1000   3.9M       0    1ms  <1ms" in lines
    found = json.loads(*said("show", str(unit), "--json"))
    assert found["statistics"]["reads"]["count"] == 1000
    assert found["statistics"]["reads"]["p99_seconds"] == 0.001
    assert found["statistics"]["reads"]["latency"][-1] == ["+Inf", 0]


def test_show_of_nothing_is_the_mount(tree: ControlTree, said: Said) -> None:
    tree.write("pattern = a = b\npattern=b\n\nhost 192.0.2.1\nport 3260\nuser", ".iscsifs", "config")
    assert said("show") == [
        f"mount:   {tree.path}",
        "version: iscsifs 1.2.3",
        "",
        "pattern: a = b",
        "pattern: b",
        "",
        "host: 192.0.2.1",
        "port: 3260",
        "user: -",
    ]
    assert said("show", str(tree.path)) == said("show")
    assert json.loads(*said("show", "--json"))["config"] == [
        [["pattern", "a = b"], ["pattern", "b"]],
        [["host", "192.0.2.1"], ["port", "3260"], ["user", ""]],
    ]


@pytest.mark.parametrize(
    "word",
    [
        f"{HOST}/disk/lun0",
        "disk/lun0",
        f"{HOST}/disk/lun0/storage",
        f"{NAME}/lun0",
        f"{NAME.upper()}/lun0",
        WWID,
        f"by-id/{WWID}",
        "MNT/192.0.2.1/disk/lun0",
        "MNT/by-id/" + WWID,
    ],
)
def test_a_unit_has_many_names(word: str, tree: ControlTree, unit: Path, said: Said) -> None:
    tree.add_target("192.0.2.2", "other", "iqn.2001-04.com.example:other")
    assert f"unit:       {HOST}/disk/lun0" in said("show", word.replace("MNT", str(tree.path)))


@pytest.mark.parametrize(
    "word", ["nonsense", "disk/lun1", "by-id/naa.7", ".iscsifs", "by-id", "disk/session", ".."]
)
def test_what_is_not_there_is_one_line(word: str, tree: ControlTree, unit: Path, said: Said) -> None:
    lines = said("show", word, status=ExitStatus.NO_TARGET)
    assert lines == [
        f"iscsifsctl: {word}: no such host, target or unit in {tree.path}; see iscsifsctl list",
    ]


def test_a_name_of_several_is_none(tree: ControlTree, unit: Path, said: Said) -> None:
    tree.add_target("192.0.2.2")
    (line,) = said("show", "disk", status=ExitStatus.USAGE)
    assert line == f"iscsifsctl: disk: may be {HOST}/disk, 192.0.2.2/disk; give the whole path"


def test_a_link_of_by_id_that_leads_elsewhere_leads_nowhere(
    tree: ControlTree, unit: Path, said: Said
) -> None:
    (tree.path / "by-id" / "evil").symlink_to("../../etc")
    said("show", "evil", status=ExitStatus.NO_TARGET)


@pytest.mark.parametrize(
    "words", [("list",), ("show", "disk"), ("show",), ("stats",), ("events",), ("loop",)]
)
def test_no_text_of_the_mount_reaches_the_terminal_as_it_is(
    words: tuple[str, ...], tree: ControlTree, said: Said
) -> None:
    """Not even from a process that serves somebody else's mount and tells anything."""
    target = tree.add_target(
        target="disk", state=ESCAPE, last_error=ESCAPE, connections=ESCAPE, parameters=f"a={ESCAPE}"
    )
    unit = tree.add_unit(target, vendor="%1B%5B2J", product=ESCAPE)
    (unit / "device").symlink_to(ESCAPE)
    evil = tree.add_unit(tree.add_target(f"host{ESCAPE}", f"disk{ESCAPE}"), wwid="naa.2")
    (evil / "device").symlink_to(ESCAPE)
    tree.write(f"user = {ESCAPE}", ".iscsifs", "config")
    tree.event(f"login{ESCAPE}", f"refused {ESCAPE}", host=ESCAPE, target=ESCAPE)
    for options in (), ("--json",):
        text = "\n".join(said(*words, *options))
        assert "\\x1b" in text or "\\u001b" in text
        assert text.replace("\n", "").isprintable()


def test_what_leaves_while_it_is_read_is_left_out(
    tree: ControlTree, unit: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.scandir

    def leave(path: Path) -> object:
        if path == unit.parent and unit.parent.exists():
            unit.parent.rename(tree.path.parent / "gone")
        return listed(path)

    monkeypatch.setattr(os, "scandir", leave)
    (_, row) = said("list")
    assert row.split() == [f"{HOST}/disk", "LOGGED_IN", *("-" * 5)]


def test_statistics_of_another_version_are_an_error_and_no_figure(
    tree: ControlTree, unit: Path, said: Said
) -> None:
    tree.write("reads 12", HOST, "disk", "lun0", "statistics")
    (line,) = said("stats", status=ExitStatus.FAILED)
    assert "cannot be understood" in line
    for latency in ("read 0.1:x", "read 0.2:1 0.1:2 +Inf:0", "read 0.1:-1 +Inf:0"):
        tree.count(unit)
        tree.write(latency, HOST, "disk", "lun0", "latency")
        (line,) = said("stats", status=ExitStatus.FAILED)
        assert "cannot be understood" in line


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (("events",), ".iscsifs/events"),
        (("stats",), f"{HOST}/disk/lun0/statistics"),
        (("trace", "status"), ".iscsifs/trace"),
    ],
)
def test_what_the_mount_does_not_know_is_told(
    words: tuple[str, ...], file: str, tree: ControlTree, unit: Path, said: Said
) -> None:
    (tree.path / file).unlink()
    assert said(*words, status=ExitStatus.FAILED) == [
        f"iscsifsctl: {tree.path}/{file}: is not there: the iscsifs that serves the mount does not know this"
    ]


def test_a_file_that_would_not_end_or_not_answer_ends(
    tree: ControlTree, unit: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iscsifs.ctl.mounted.MAX_STATE_FILE", 1 << 20)
    version = tree.path / ".iscsifs" / "version"
    with open(version, "wb") as file:
        file.truncate(1 << 30)
    assert len(tree.mount.read(".iscsifs", "version")) == 1 << 20
    version.unlink()
    os.mkfifo(version)
    assert tree.mount.read(".iscsifs", "version") == ""


def test_the_trace_tells_what_it_has_written(tree: ControlTree, said: Said) -> None:
    assert said("trace", "status") == ["off"]
    assert said("trace", "status", "--json") == ["null"]
    tree.write("/tmp/a trace.pcapng 123456 78 9", ".iscsifs", "trace")
    assert said("trace", "status") == [
        "file:    /tmp/a trace.pcapng",
        "bytes:   123456",
        "frames:  78",
        "dropped: 9",
    ]
    found = json.loads(*said("trace", "status", "--json"))
    assert found == {"file": "/tmp/a trace.pcapng", "bytes": 123456, "frames": 78, "dropped": 9}


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (1, "1"), (1023, "1023"), (1024, "1K"), (1536, "1.5K"), (1 << 20, "1M"),
     ((1 << 20) - 1, "1.0M"),
     (10 * 1024 + 600, "11K"), (64 << 20, "64M"), (10 << 40, "10T"), (1 << 63, "8E"), (None, "-")],
)  # fmt: skip
def test_sizes_are_as_ls_shows_them(count: int | None, shown: str) -> None:
    assert tables.size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.000085, "85us"), (0.00125, "1.25ms"), (0.9996, "1s"), (3.5, "3.5s"), (120.0, "120s"),
     (4000.0, "4000s"),
     (float("inf"), "inf"), (None, "-")],
)  # fmt: skip
def test_times_have_their_unit(seconds: float | None, shown: str) -> None:
    assert tables.duration(seconds) == shown
