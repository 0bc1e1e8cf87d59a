"""What is written to .iscsifs/trace, save and attach, at a mount of a real target."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from iscsifs.conffile.files import load
from support.mounting import Mounted, MountHosts, iscsifs, run, wait_until
from support.targets import Chap, Serve, Target, Tgt, Unit, make_image
from support.tshark import capinfos, count, dissect

pytestmark = [pytest.mark.real, pytest.mark.mount]

NAME = "iqn.2026-01.example:"
CHAP = Chap("alice", "secret-of-alice")
MIB = 1 << 20


@pytest.fixture
def tgt(tmp_path: Path, serve: Serve) -> Tgt:
    """Two targets, one of which wants CHAP."""
    return serve(
        Tgt(
            tmp_path,
            Target(NAME + "open", [Unit(make_image(tmp_path / "open", MIB))]),
            Target(NAME + "closed", [Unit(make_image(tmp_path / "closed", MIB))], CHAP),
        )
    )


def write(mounted: Mounted, name: str, text: str | bytes) -> int:
    """Write a command with one write(2); return its errno, 0 where it succeeds."""
    descriptor = os.open(mounted.path / ".iscsifs" / name, os.O_WRONLY | os.O_TRUNC)
    try:
        data = text if isinstance(text, bytes) else text.encode()
        assert os.write(descriptor, data) == len(data)
    except OSError as error:
        return error.errno or -1
    finally:
        os.close(descriptor)
    return 0


def read(mounted: Mounted, name: str) -> str:
    return (mounted.path / ".iscsifs" / name).read_text()


def known(tgt: Tgt) -> list[str]:
    return [f"iscsi.target_ports:3260,{tgt.port}"]


@pytest.mark.conformance("TRACE-1.3", "TRACE-1.11", "TRACE-1.14")
def test_a_trace_begins_with_the_mount(
    tmp_path: Path, tgt: Tgt, mount_hosts: MountHosts, require: Callable[..., None]
) -> None:
    require("tshark", "capinfos")
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text(CHAP.secret)
    capture = tmp_path / "trace.pcapng"
    url = f"iscsi://{tgt.portal}/{NAME}closed"
    mounted = mount_hosts("-u", CHAP.user, "--secret-file", secret, "-o", f"trace={capture}", url)
    mounted.storage("closed").read_bytes()
    assert read(mounted, "trace").startswith(f"{capture} ")
    mounted.unmount()
    assert capture.stat().st_mode & 0o777 == 0o600
    capinfos(capture)
    logins = dissect(capture, ["iscsi.keyvalue"], only="iscsi.opcode == 0x03", options=known(tgt))
    assert any("CHAP_N=alice" in str(row) for row in logins)
    assert not any("CHAP_R=0x" in str(row) and "xxxx" not in str(row) for row in logins)
    assert count(capture, "scsi_sbc.opcode == 0x28", options=known(tgt)) > 0
    assert count(capture, "_ws.malformed", options=known(tgt)) == 0


def test_a_trace_is_refused_where_a_file_is(tmp_path: Path, tgt: Tgt, mount_hosts: MountHosts) -> None:
    file = tmp_path / "file"
    file.write_text("dear")
    mount_point = tmp_path / "mnt"
    mount_point.mkdir()
    done = iscsifs("-o", f"trace={file}", tgt.portal, mount_point)
    assert (done.returncode, file.read_text()) == (2, "dear")
    assert "there is such a file already" in done.stderr
    done = iscsifs("-D", "-o", f"trace={tmp_path}/discovery", tgt.portal)
    assert done.returncode == 0
    assert (tmp_path / "discovery").stat().st_size > 1000


@pytest.mark.conformance("TRACE-1.3", "TRACE-1.7", "CONTROL-1.5", "CONTROL-1.6")
def test_a_trace_is_started_and_stopped_while_mounted(
    tmp_path: Path, tgt: Tgt, mount_hosts: MountHosts, require: Callable[..., None]
) -> None:
    require("tshark", "capinfos")
    capture = tmp_path / "trace.pcapng"
    mounted = mount_hosts(f"iscsi://{tgt.portal}/{NAME}open")
    assert read(mounted, "trace") == "off\n"
    assert write(mounted, "trace", f"{capture} 128\n") == 0
    assert write(mounted, "trace", f"{tmp_path}/other") == errno.EBUSY
    mounted.storage("open").write_bytes(b"x" * 8192)
    run("sync", mounted.storage("open"))
    name, size, blocks, dropped = read(mounted, "trace").split()
    assert (name, int(size) > 500, int(blocks) > 5, dropped) == (str(capture), True, True, "0")
    assert write(mounted, "trace", "stop\n") == 0
    assert read(mounted, "trace") == "off\n"
    length = capture.stat().st_size
    mounted.storage("open").read_bytes()
    assert capture.stat().st_size == length
    capinfos(capture)
    assert count(capture, "scsi_sbc.opcode == 0x2a", options=known(tgt)) > 0
    assert count(capture, "_ws.malformed", options=known(tgt)) == 0
    assert write(mounted, "trace", f"{capture}") == errno.EINVAL  # it is there
    for wrong in (
        "start",
        "relative",
        f"{mounted.path}/trace",
        f"{mounted.path}/127.0.0.1/x",
        b"/\0",
        b"\xff",
        "\n",
    ):
        assert write(mounted, "trace", wrong) == errno.EINVAL, wrong
    assert write(mounted, "trace", "/" + "x" * 4096) == errno.E2BIG
    assert '"event": "trace_started"' in read(mounted, "events")
    assert '"event": "trace_stopped"' in read(mounted, "events")
    mounted.unmount()


@pytest.mark.conformance("CONF-1.17")
def test_what_is_saved_mounts_the_same(tmp_path: Path, tgt: Tgt, mount_hosts: MountHosts) -> None:
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text(CHAP.secret)
    saved = tmp_path / "saved.conf"
    url = f"iscsi://{CHAP.user}@{tgt.portal}/{NAME}closed/1"
    mounted = mount_hosts(
        *("--secret-file", secret, "--digest", "header", "-o", "ping_interval=7"),
        url,
    )
    assert write(mounted, "attach", f"iscsi://{tgt.portal}/{NAME}open") == 0
    assert write(mounted, "save", f"{saved}\n") == 0
    assert saved.stat().st_mode & 0o777 == 0o600
    closed, opened = sorted(load(saved).entries, key=lambda entry: entry.nickname)
    assert (closed.nickname, closed.target_name, closed.lun) == ("closed", NAME + "closed", "1")
    assert closed.credentials is not None
    assert closed.credentials.secret == CHAP.secret.encode()
    assert (opened.nickname, opened.lun, opened.credentials) == ("open", None, None)
    assert opened.session["ping_interval"] == 7
    for wrong in ("relative", "/does/not/exist/x", str(tmp_path), f"{mounted.path}/127.0.0.1/x"):
        assert write(mounted, "save", wrong) == errno.EINVAL, wrong
    assert CHAP.secret not in read(mounted, "events")
    mounted.unmount()
    again = mount_hosts("-c", saved)
    assert sorted(path.name for path in (again.path / "127.0.0.1").iterdir()) == ["closed", "open"]
    again.unmount()


def test_sources_are_attached_while_mounted(tmp_path: Path, tgt: Tgt, mount_hosts: MountHosts) -> None:
    conf = tmp_path / "iscsi.conf"
    conf.touch(0o600)
    conf.write_text(
        f"open {{ TargetAddress = {tgt.portal}; TargetName = {NAME}open }}\n"
        f"closed {{ TargetAddress = {tgt.portal}; TargetName = {NAME}closed; Enable = Off\n"
        f"chapIName = {CHAP.user}; chapSecret = {CHAP.secret} }}\n"
    )
    mounted = mount_hosts("-c", conf)
    assert not mounted.target("closed").exists()
    assert (
        write(mounted, "attach", f"iscsi:alice:wrong-secret-12@127.0.0.1::{tgt.port}:1:{NAME}closed")
        == errno.EACCES
    )
    assert write(mounted, "attach", "closed\n") == 0  # the nickname
    assert mounted.storage("closed").stat().st_size == MIB
    assert write(mounted, "attach", f"{conf}#closed") == errno.EEXIST
    assert write(mounted, "attach", f"bob@{tgt.portal}") == errno.EINVAL
    assert write(mounted, "attach", "127.0.0.1:1") == errno.ECONNREFUSED
    events = read(mounted, "events")
    assert "wrong-secret-12" not in events
    assert CHAP.secret not in events
    wait_until(lambda: "source_added" in read(mounted, "events"), "it is told")
    mounted.unmount()


def test_only_who_has_mounted_gives_commands(tmp_path: Path, tgt: Tgt, mount_hosts: MountHosts) -> None:
    """The owner of the files cannot have another user write files."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    mounted = mount_hosts("-o", "uid=65534,allow_other", f"iscsi://{tgt.portal}/{NAME}open")
    directory = mounted.path / ".iscsifs"
    assert {name: (directory / name).stat().st_uid for name in ("trace", "save", "attach")} == {
        "trace": 0,
        "save": 0,
        "attach": 0,
    }
    assert (directory / "config").stat().st_uid == 65534
    mounted.unmount()
