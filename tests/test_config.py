"""What the command line means: hosts, mount options, secrets, and our own name."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.command_line import parser
from iscsifs.config import HostSpec, configure, initiator_name
from iscsifs.errors import ConfigError
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.names import Portal, name_fault
from iscsifs.mount_options import GENERIC_OPTIONS, MountOptions, split
from iscsifs.secret import read_secret

IQN = "iqn.2001-04.com.example:disk1"


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("host", HostSpec(Portal("host", 3260))),
        ("host:3261", HostSpec(Portal("host", 3261))),
        ("alice@host", HostSpec(Portal("host"), "alice")),
        ("alice@example.com@host:1", HostSpec(Portal("host", 1), "alice@example.com")),
        ("iqn.1994-05.com.example:abc@host", HostSpec(Portal("host"), "iqn.1994-05.com.example:abc")),
        ("10.4.0.42", HostSpec(Portal("10.4.0.42"))),
        ("2001:db8::1", HostSpec(Portal("2001:db8::1"))),
        ("[2001:db8::1]", HostSpec(Portal("2001:db8::1"))),
        ("[fe80::1%eth0]:3261", HostSpec(Portal("fe80::1%eth0", 3261))),
        (f"iscsi://host/{IQN}", HostSpec(Portal("host"), None, IQN)),
        (f"iscsi://bob@[::1]:1/{IQN}/0", HostSpec(Portal("::1", 1), "bob", IQN, "0")),
        (f"iscsi://host/{IQN}/010", HostSpec(Portal("host"), None, IQN, "10")),
        (f"iscsi://host/{IQN}/0x4005", HostSpec(Portal("host"), None, IQN, "0x4005")),
    ],
)
def test_hosts(text: str, spec: HostSpec) -> None:
    assert HostSpec.parse(text) == spec


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("host", 9),
        ("host:3260", 3260),
        ("::1", 9),
        ("[::1]", 9),
        ("[::1]:3260", 3260),
        (f"iscsi://a@host/{IQN}", 9),
        (f"iscsi://host:3260/{IQN}", 3260),
    ],
)
def test_the_default_port_is_for_hosts_without_one(text: str, port: int) -> None:
    assert HostSpec.parse(text, default_port=9).portal.port == port


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "portal"),
        ("@host", 'no user before the "@"'),
        ("host:0", "port"),
        ("host:70000", "port"),
        ("[::1", "address"),
        ("fe80::1", r"this address needs its interface, as in \[fe80::1%eth0\]"),
        ("[FE80::1]:3261", "needs its interface"),
        ("ho st", "name of a host"),
        ("host/x", "name of a host"),
        ("iscsi://host", "no target name"),
        ("iscsi://host/", "no target name"),
        ("iscsi://host/disk1", "iqn., eui. or naa."),
        ("iscsi://host/iqn.2001-04.com.example:a b", '" " is not allowed'),
        (f"iscsi://host/{IQN}/x", "not the number of a logical unit"),
        (f"iscsi://host/{IQN}/-1", "not the number of a logical unit"),
        (f"iscsi://host/{IQN}/", "not the number of a logical unit"),
        (f"iscsi://host/{IQN}/0/1", "not the number of a logical unit"),
    ],
)
def test_what_is_no_host_is_named(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        HostSpec.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (IQN, f"iscsi://HOST/{IQN}"),
        ("host:3260,1", "host:3260"),
        (f"host/{IQN}", f"iscsi://host/{IQN}"),
        (f"//host:1/{IQN}/0", f"iscsi://host:1/{IQN}/0"),
        (f"iscsi:/host/{IQN}", f"iscsi://host/{IQN}"),
        ("http://host", "host"),
        ("iscsi:host", "host"),
    ],
)
def test_what_other_programs_take_for_a_host_is_recognised(text: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HostSpec.parse(text)
    assert str(caught.value) == f'"{text}" is not a host; did you mean {meant}?'


@pytest.mark.parametrize("text", ["alice:hunter2hunter2@host", f"iscsi://alice%hunter2hunter2@host/{IQN}"])
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError, match="--secret-file") as caught:
        HostSpec.parse(text)
    assert "hunter2" not in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_a_host_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert HostSpec.parse(text).portal.host


def test_mount_options() -> None:
    options = MountOptions.parse(["ro,allow_other", "direct_io,uid=5,gid=6", "writebehind=0,readahead=0"])
    assert options == MountOptions(
        5,
        6,
        read_only=True,
        direct_io=True,
        read_ahead=0,
        fuse=("allow_other", "ro"),
        session={"write_behind": False},
    )
    assert MountOptions.parse([]) == MountOptions(os.getuid(), os.getgid())
    assert MountOptions.parse([], read_only=True).fuse == ("ro",)


def test_what_is_mounted_is_the_source_unless_another_is_given() -> None:
    """A comma or a backslash there does not begin another option of FUSE."""
    assert MountOptions.parse(["fsname=disks"]).fuse_options("host") == ("fsname=disks",)
    assert MountOptions.parse(["noatime"]).fuse_options("host") == ("noatime", "fsname=host")
    assert MountOptions.parse([]).fuse_options(r"a\b@host,other") == (r"fsname=a\\b@host\,other",)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("a,b", ["a", "b"]),
        ("", []),
        (",a,,b,", ["a", "b"]),
        (r"secret_file=/a\,b,c", ["secret_file=/a,b", "c"]),
        (r"a=\\,b", ["a=\\", "b"]),
        ('context="u:r:t:s0:c1,c2",b', ['context="u:r:t:s0:c1,c2"', "b"]),
        ('a="b,c', ['a="b,c']),
        ("a\\", ["a\\"]),
    ],
)
def test_a_comma_may_belong_to_a_value(argument: str, options: list[str]) -> None:
    assert [option for option in split(argument) if option] == options


@given(st.text(alphabet='ab=,\\"'))
def test_a_list_of_options_is_split_whatever_it_holds(argument: str) -> None:
    options = list(split(argument))
    if not set('\\"') & set(argument):
        assert [option for option in options if option] == [part for part in argument.split(",") if part]
    assert sum(map(len, options)) <= len(argument)


def test_of_contradicting_options_the_last_one_holds() -> None:
    assert not MountOptions.parse(["ro", "rw"]).read_only
    assert MountOptions.parse(["rw,ro"]).read_only
    assert MountOptions.parse(["rw"], read_only=True).read_only  # mount -r adds rw by itself
    assert MountOptions.parse(["uid=1,uid=2"]).uid == 2


def test_owners_may_be_names() -> None:
    options = MountOptions.parse(["uid=root,gid=root"])
    assert (options.uid, options.gid) == (0, 0)


@pytest.mark.parametrize(
    ("text", "kib"), [("64", 64), ("64k", 64), ("4M", 4096), ("4MB", 4096), ("1GiB", 1048576)]
)
def test_sizes_have_units(text: str, kib: int) -> None:
    assert MountOptions.parse([f"readahead={text}"]).read_ahead == kib


def test_what_flags_say_can_be_said_by_options() -> None:
    options = MountOptions.parse(
        ["user=alice,secret_file=s,digest=all,pattern=*a,pattern=*b,port=1,auth=chap"]
    )
    assert options.command == {
        "user": "alice",
        "secret_file": Path.cwd() / "s",
        "digest": "all",
        "patterns": ["*a", "*b"],
        "port": 1,
        "auth": "chap",
    }


def test_generic_options_are_let_pass() -> None:
    """All of those of mount(8) for any file system, and of fstab(5)."""
    assert (
        MountOptions.parse([",".join(sorted(GENERIC_OPTIONS)).replace("=", "=x") + ",x-a=b,X-c"]).fuse == ()
    )


@pytest.mark.parametrize(
    "name", ["login_timeout", "command_timeout", "ping_interval", "ping_timeout", "replacement_timeout"]
)
def test_time_outs_are_seconds_for_the_sessions(name: str) -> None:
    session = MountOptions.parse([f"{name}=7"]).session
    assert session == {name: 7}
    assert getattr(replace(InitiatorOptions("iqn.2001-04.com.example:me"), **session), name) == 7


@pytest.mark.parametrize(
    "option",
    ["ping_interval=-1", "command_timeout=0", "replacement_timeout=1e3", "max_background=11", "readahead=x"],
)
def test_a_value_out_of_bounds_is_refused_with_the_bounds(option: str) -> None:
    with pytest.raises(ConfigError, match="give .*, [0-9]+ to [0-9]+"):
        MountOptions.parse([option])


def test_what_fstab_adds_is_let_pass() -> None:
    options = MountOptions.parse(["rw,_netdev,nofail,noauto,user,x-systemd.automount,nodev,nosuid"])
    assert options.fuse == ("nodev", "nosuid")


@pytest.mark.parametrize(
    "option",
    [
        *(
            "nonsense",
            "uid=",
            "uid=no such user",
            "gid=-1",
            "uid=4294967295",
            "ro=1",
            "fsname",
            "writebehind=2",
        ),
        *("relatime=1", "comment", "user=", "digest=x", "port=0", "auth=x", "readahead=1T", "readahead=2X"),
    ],
)
def test_an_unknown_option_is_named(option: str) -> None:
    with pytest.raises(ConfigError, match=f"-o {option.partition('=')[0]}"):
        MountOptions.parse([option])


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("max_read=65536", "readahead=KiB"),
        ("remount", "unmount it and mount it again"),
        ("password=hunter2hunter2", "give secret_file=FILE"),
        ("secret-file=/x", "did you mean secret_file?"),
        ("reaahead=1", "did you mean readahead?"),
        ("alow_other", "did you mean allow_other?"),
        ("allow_other=1", "it takes no value"),
        ("secret_file", "it takes a value: secret_file=VALUE"),
    ],
)
def test_the_message_says_what_may_have_been_meant(option: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MountOptions.parse([option])
    assert hint in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.touch(0o600)
    return path


@pytest.mark.parametrize("content", [b"secret", b"secret\n", b"secret\r\n", b"secret\n\n"])
def test_a_secret_is_the_line_of_its_file(secret_file: Path, content: bytes) -> None:
    secret_file.write_bytes(content)
    assert read_secret(secret_file) == b"secret"


def test_a_table_has_a_secret_for_each_user(secret_file: Path) -> None:
    secret_file.write_bytes(b"alice secret of alice\r\n\nbob\t \tbob's  \n")
    assert read_secret(secret_file, "alice") == b"secret of alice"
    assert read_secret(secret_file, "bob") == b"bob's  "


def test_one_line_is_one_secret_also_with_a_space(
    secret_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret_file.write_bytes(b"correct horse\n")
    assert read_secret(secret_file, "alice") == b"correct horse"
    assert caplog.text == ""
    assert read_secret(secret_file, "correct") == b"correct horse"
    assert "its only line is taken as one secret" in caplog.text
    assert "horse" not in caplog.text


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"alice secret\nbob other\n", 'no line is for user "carol"'),
        (b"carol secret\ncarol other\n", 'several lines are for user "carol"'),
        (b"carol\nbob other\n", 'no line is for user "carol"'),
    ],
)
def test_a_table_without_the_user_is_refused(secret_file: Path, content: bytes, complaint: str) -> None:
    secret_file.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_secret(secret_file, "carol")
    assert "secret\n" not in str(caught.value)
    assert "other" not in str(caught.value)


def test_a_secret_is_bytes(secret_file: Path) -> None:
    secret_file.write_bytes(b" \xff\x00 s\n")
    assert read_secret(secret_file) == b" \xff\x00 s"


@pytest.mark.parametrize("content", [b"", b"\n", b"one\ntwo\n", b"x" * 70000])
def test_a_file_without_exactly_one_secret_is_refused(secret_file: Path, content: bytes) -> None:
    secret_file.write_bytes(content)
    with pytest.raises(ConfigError, match="in one line"):
        read_secret(secret_file)


@pytest.mark.parametrize("mode", [0o400, 0o600])
def test_a_secret_file_of_a_strict_mode_is_read(secret_file: Path, mode: int) -> None:
    secret_file.write_bytes(b"secret")
    secret_file.chmod(mode)
    assert read_secret(secret_file) == b"secret"


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o602, 0o601, 0o644, 0o700, 0o4600])
def test_a_secret_file_that_others_may_use_is_refused(secret_file: Path, mode: int) -> None:
    secret_file.write_bytes(b"secret")
    secret_file.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {secret_file}"):
        read_secret(secret_file)


def test_a_secret_file_of_another_user_is_refused(secret_file: Path, require_root: None) -> None:
    secret_file.write_bytes(b"secret")
    os.chown(secret_file, 65534, 65534)
    with pytest.raises(ConfigError, match="another user"):
        read_secret(secret_file)


def test_a_link_is_judged_by_the_file_behind_it(secret_file: Path, tmp_path: Path) -> None:
    secret_file.write_bytes(b"secret")
    secret_file.chmod(0o644)
    (tmp_path / "link").symlink_to(secret_file)
    with pytest.raises(ConfigError, match="others may use it"):
        read_secret(tmp_path / "link")


def test_a_secret_may_come_through_a_pipe() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"secret\n")
    os.close(writer)
    try:
        assert read_secret(Path(f"/dev/fd/{reader}")) == b"secret"
    finally:
        os.close(reader)


def test_what_is_no_file_holds_no_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_secret(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="directory"):
        read_secret(tmp_path)
    with pytest.raises(ConfigError, match="not a file"):
        read_secret(Path("/dev/null"))


@pytest.fixture
def name_file(tmp_path: Path) -> Path:
    return tmp_path / "initiatorname.iscsi"


@pytest.fixture
def machine_id(tmp_path: Path) -> Path:
    path = tmp_path / "machine-id"
    path.write_text("9b0c4e2d7a5f4c0f8e6b3d1a2c4e6f80\n")
    return path


def test_the_name_given_comes_first(name_file: Path, machine_id: Path) -> None:
    name_file.write_text("InitiatorName=iqn.1993-08.org.debian:01:abc\n")
    assert initiator_name("iqn.2001-04.com.example:me", name_file, machine_id) == "iqn.2001-04.com.example:me"


def test_the_name_of_this_machine_s_initiator_comes_next(name_file: Path, machine_id: Path) -> None:
    name_file.write_text(
        "# InitiatorName=iqn.x\nInitiatorAlias=a\n InitiatorName= iqn.1993-08.org.debian:01:abc \n"
    )
    assert initiator_name(None, name_file, machine_id) == "iqn.1993-08.org.debian:01:abc"


@pytest.mark.parametrize("content", [None, "", "# nothing\n"])
def test_without_one_the_name_is_made_of_the_machine(
    name_file: Path, machine_id: Path, content: str | None
) -> None:
    if content is not None:
        name_file.write_text(content)
    name = initiator_name(None, name_file, machine_id)
    assert name == initiator_name(None, name_file, machine_id)
    assert name_fault(name) is None
    assert name.startswith("naa.3")
    assert machine_id.read_text().strip() not in name
    machine_id.write_text("another\n")
    assert initiator_name(None, name_file, machine_id) != name


def test_a_machine_without_an_identity_has_a_name(name_file: Path, tmp_path: Path) -> None:
    name = initiator_name(None, name_file, tmp_path / "nothing")
    assert name == initiator_name(None, name_file, tmp_path / "nothing")
    assert name_fault(name) is None


def test_what_is_no_name_is_refused_with_its_place(name_file: Path, machine_id: Path) -> None:
    with pytest.raises(ConfigError, match='initiator name "me"'):
        initiator_name("me", name_file, machine_id)
    name_file.write_text("InitiatorName=me\n")
    with pytest.raises(ConfigError, match=str(name_file)):
        initiator_name(None, name_file, machine_id)


@pytest.mark.parametrize("operands", [["/"], ["none", "/"]])
def test_hosts_may_come_later_with_the_options_of_the_mount(operands: list[str], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret of Alice")
    secret.chmod(0o600)
    args = parser().parse_args(
        ["-u", "alice", "--secret-file", str(secret), "-p", "3261", "-o", "autohost", *operands]
    )
    config = configure(args, lambda whose: b"")
    assert (config.hosts, config.mount_point) == ((), Path("/"))
    assert config.mount_options.autohost
    host = config.host("192.0.2.1")
    assert host.spec.portal == Portal("192.0.2.1", 3261)
    assert host.options.credentials is not None
    assert host.options.credentials.user == "alice"
    assert config.host("192.0.2.1:3260").spec.portal == Portal("192.0.2.1")
    for text in "bob@192.0.2.1", "iscsi://192.0.2.1/iqn.2001-04.com.example:disk":
        with pytest.raises(ConfigError, match="the options of the mount hold"):
            config.host(text)


@pytest.mark.parametrize(
    ("options", "retry"),
    [("", None), ("retry", True), ("noretry", False), ("retry=0", False), ("noretry,retry", True)],
)
def test_whether_what_is_missing_is_tried_again(options: str, retry: bool | None) -> None:
    assert MountOptions.parse([options]).retry is retry


def test_how_often_targets_are_asked() -> None:
    assert dict(MountOptions.parse(["poll=0"]).session) == {"poll": 0}
    with pytest.raises(ConfigError, match="seconds"):
        MountOptions.parse(["poll=often"])
