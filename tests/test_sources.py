"""What a command line can name: configuration files, the firmware's table, root paths, name servers."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from iscsifs.cli import ExitStatus, main
from iscsifs.command_line import parser
from iscsifs.config import Config, Host, HostSpec, configure
from iscsifs.errors import ConfigError, NoTargetError, TransportError
from iscsifs.fs.nodes import Directory, TextFile, TreeOptions
from iscsifs.fs.tree import Tree
from iscsifs.hosts import NameServer, Reader
from iscsifs.ibft.search import NoIbft
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.discovery import DiscoveredTarget
from iscsifs.iscsi.names import Portal, TargetAddress
from iscsifs.monitor.events import Events
from iscsifs.service.about import config_text, show_config
from support.fake_network import FakeNetwork, FakeTarget, FakeUnit
from support.ibft_tables import TABLE

IQN = "iqn.2001-04.com.example:"
ME = IQN + "me"
SECRET = "a secret of some length"
MOUNT_POINT = "/mnt"
CONF = f"""
disk {{ TargetAddress = 127.0.0.1; TargetName = {IQN}disk; chapIName = alice; chapSecret = "{SECRET}" }}
one {{ TargetAddress = 127.0.0.1:3261; TargetName = {IQN}one; Lun = 1; InitiatorName = {IQN}other }}
all {{ TargetAddress = 127.0.0.1; SessionType = Discovery; HeaderDigest = CRC32C }}
off {{ TargetAddress = 127.0.0.1; TargetName = {IQN}off; Enable = Off }}
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "iscsi.conf"
    path.touch(0o600)
    path.write_text(CONF)
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "iBFT"
    path.touch(0o600)
    path.write_bytes(TABLE)
    return path


def no_terminal(whose: str) -> bytes:
    raise ConfigError(f"no secret for {whose}")


def configured(*words: object, ask: Callable[[str], bytes] = no_terminal) -> Config:
    arguments = ["-i", ME, *map(str, words)]
    return configure(parser().parse_intermixed_args(arguments), ask)


def specs(config: Config) -> list[HostSpec]:
    return [host.spec for host in config.hosts]


# Configuration files.


@pytest.mark.conformance("CONF-1.11", "CONF-1.13", "CONF-1.14")
def test_a_file_names_what_is_enabled_each_with_its_own_secret(conf: Path) -> None:
    config = configured("-c", conf, MOUNT_POINT)
    disk, one, everything = config.hosts
    assert disk.spec == HostSpec(Portal("127.0.0.1"), None, IQN + "disk")
    assert disk.options.credentials == Credentials("alice", SECRET.encode())
    assert one.spec == HostSpec(Portal("127.0.0.1", 3261), None, IQN + "one", "1")
    assert (one.options.initiator_name, one.options.credentials) == (IQN + "other", None)
    assert everything.spec == HostSpec(Portal("127.0.0.1"))
    assert everything.options.offer == {"HeaderDigest": ("CRC32C",)}
    assert config.source == str(conf)


@pytest.mark.conformance("CONF-1.14")
def test_a_nickname_chooses_also_what_is_not_enabled(conf: Path) -> None:
    config = configured("-c", conf, "-n", "OFF", "-n", "one", MOUNT_POINT)
    assert [spec.target for spec in specs(config)] == [IQN + "off", IQN + "one"]
    assert config.source == f"{conf}#OFF,{conf}#one"


def test_every_way_to_say_it_means_the_same(conf: Path) -> None:
    """In fstab(5) the source is the file; what findmnt(8) shows can be typed again."""
    wanted = specs(configured("-c", conf, "-n", "one", MOUNT_POINT))
    for words in (
        ("-o", f"conf={conf},nickname=one", MOUNT_POINT),
        ("-o", f"conf={conf},nickname=one", "none", MOUNT_POINT),
        ("-o", "nickname=one", conf, MOUNT_POINT),
        (f"{conf}#one", MOUNT_POINT),
        ("-n", "one", conf, MOUNT_POINT),
    ):
        assert specs(configured(*words)) == wanted, words
    assert configured(conf, "-o", "nickname=one", MOUNT_POINT).source == str(conf)


def test_the_flag_and_its_option_must_not_differ(conf: Path) -> None:
    with pytest.raises(ConfigError, match="--conf and -o conf= contradict each other"):
        configured("-c", conf, "-o", "conf=/etc/other", MOUNT_POINT)


def test_files_stand_beside_hosts(conf: Path) -> None:
    config = configured("-c", conf, "-n", "one", "host", MOUNT_POINT)
    assert [spec.portal.host for spec in specs(config)] == ["host", "127.0.0.1"]


def test_a_nickname_that_is_not_there_is_named_with_those_that_are(conf: Path) -> None:
    with pytest.raises(ConfigError, match='there is no nickname "dsk"; there is: disk, one, all, off'):
        configured("-c", conf, "-n", "dsk", MOUNT_POINT)


def test_a_file_with_nothing_enabled_is_no_target(tmp_path: Path) -> None:
    path = tmp_path / "iscsi.conf"
    path.write_text("off { TargetAddress = h; SessionType = Discovery; Enable = Off }")
    with pytest.raises(NoTargetError, match="choose one with -n"):
        configured("-c", path, MOUNT_POINT)


@pytest.mark.conformance("CONF-1.16")
def test_secrets_that_others_may_read_are_refused(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf.chmod(0o644)
    assert main(["-c", str(conf), MOUNT_POINT]) == ExitStatus.USAGE
    assert "chmod 600" in capsys.readouterr().err


@pytest.mark.conformance("CONF-1.8")
def test_what_is_ignored_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "iscsi.conf"
    path.write_text("a { TargetAddress = 127.0.0.1; SessionType = Discovery; maxluns = 4 }")
    network = FakeNetwork()
    network.hosts[Portal("127.0.0.1")] = [
        DiscoveredTarget(IQN + "a", (TargetAddress(Portal("127.0.0.1"), 1),))
    ]
    assert main(["-D", "-c", str(path)], network=network) == ExitStatus.OK
    output = capsys.readouterr()
    assert output.out == f"127.0.0.1: 127.0.0.1:3260,1 {IQN}a\n"
    assert "maxluns is ignored" in output.err


def test_a_file_lists_its_targets(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-D", "-c", str(conf), "-n", "disk", "-n", "off"], network=FakeNetwork()) == ExitStatus.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"127.0.0.1: 127.0.0.1:3260 {IQN}disk", f"127.0.0.1: 127.0.0.1:3260 {IQN}off"]


# The firmware.


@pytest.mark.conformance("IBFT-1.5", "IBFT-1.7", "IBFT-1.8")
def test_the_table_names_target_user_and_ourselves(table: Path) -> None:
    config = configured("--ibft-file", table, MOUNT_POINT)
    (host,) = config.hosts
    assert host.spec.target is not None
    assert host.spec.lun is not None
    assert host.options.credentials is not None
    assert host.options.initiator_name == ME  # as -i says
    assert configured(f"ibft:{table}", MOUNT_POINT).hosts == config.hosts
    assert configured("-o", f"ibft_file={table}", MOUNT_POINT).hosts == config.hosts
    assert config.source == f"ibft:{table}"


def test_our_name_is_that_of_the_table(table: Path) -> None:
    config = configure(parser().parse_intermixed_args(["--ibft-file", str(table), MOUNT_POINT]), no_terminal)
    assert config.ibft is not None
    assert config.hosts[0].options.initiator_name == config.ibft.initiator_name


@pytest.mark.conformance("IBFT-2.5")
def test_the_table_is_shown_without_its_secret(table: Path) -> None:
    config = configured("--ibft-file", table, MOUNT_POINT)
    tree = Tree(TreeOptions(0, 0))
    show_config(tree, config, Events())
    directory = tree.root.find(b".iscsifs")
    assert isinstance(directory, Directory)
    shown = directory.find(b"ibft")
    assert isinstance(shown, Directory)
    names = {b"initiator_name", b"target_name", b"target_port", b"target_lun", b"target_address"}
    assert names <= set(shown.entries)
    assert {b"nic0", b"target0", b"initiator"} <= set(shown.entries)
    texts = config_text(config).encode()
    for node in tree.nodes.values():
        if isinstance(node, TextFile):
            texts += node.content()
    credentials = config.hosts[0].options.credentials
    assert credentials is not None
    assert credentials.user.encode() in texts
    assert credentials.secret not in texts


@pytest.mark.conformance("IBFT-3.4")
def test_no_table_at_all_is_no_target(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    def find(file: Path | None) -> None:
        raise NoIbft("there is no iBFT in /a or /b")

    monkeypatch.setattr("iscsifs.ibft.search.find", find)
    assert main(["--ibft", MOUNT_POINT]) == ExitStatus.NO_TARGET
    assert capsys.readouterr().err == "iscsifs: there is no iBFT in /a or /b\n"


@pytest.mark.conformance("IBFT-3.1")
def test_a_table_that_is_none_is_a_usage_error(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table.write_bytes(TABLE[:-1] + b"?")
    assert main(["--ibft-file", str(table), MOUNT_POINT]) == ExitStatus.USAGE
    assert len(capsys.readouterr().err.splitlines()) == 1


# Root paths.


@pytest.mark.conformance("RP-1.1", "RP-1.4")
def test_a_root_path_is_taken_where_our_url_is(caplog: pytest.LogCaptureFixture) -> None:
    config = configured(f"iscsi:192.0.2.1:6:3261:10:{IQN}a:b", MOUNT_POINT)
    assert specs(config) == [HostSpec(Portal("192.0.2.1", 3261), None, IQN + "a:b", "16")]
    assert "hexadecimal" in caplog.text


@pytest.mark.conformance("RP-2.1", "RP-2.6")
def test_the_secret_of_a_root_path_stays_with_it() -> None:
    path = f"iscsi:alice:{SECRET.replace(' ', '_')}@192.0.2.1::::{IQN}a"
    config = configured(path, "host", MOUNT_POINT)
    first, second = config.hosts
    assert first.options.credentials == Credentials("alice", SECRET.replace(" ", "_").encode())
    assert second.options.credentials is None
    assert config.source == f"iscsi:alice:***@192.0.2.1::::{IQN}a,host"
    assert "some_length" not in config_text(config)


@pytest.mark.conformance("RP-2.6")
def test_the_secret_of_a_root_path_is_not_shown_by_ps(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from iscsifs.command_line import parser; from iscsifs.config import configure\n"
        "configure(parser().parse_intermixed_args(sys.argv[1:]), lambda whose: b'')\n"
        "sys.stdout.buffer.write(Path('/proc/self/cmdline').read_bytes())\n"
    )
    words = ["-i", ME, f"iscsi:alice:a_secret_of_some_length@192.0.2.1::::{IQN}a", "/mnt/here"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, check=True)
    assert b"a_secret" not in done.stdout
    assert b"iscsi:alice:***@192.0.2.1::::" in done.stdout
    assert done.stdout.endswith(b"\0/mnt/here\0")
    assert b"a_secret" not in done.stderr


@pytest.mark.conformance("RP-1.7")
def test_a_root_path_without_a_server_asks_the_name_server() -> None:
    config = configured("--isns", "192.0.2.5", f"iscsi:::::{IQN}a".replace(":::::", "::::1:"), MOUNT_POINT)
    assert config.hosts == ()
    (server,) = config.name_servers
    assert (server.portal, server.target, server.lun) == (Portal("192.0.2.5", 3205), IQN + "a", "1")
    with pytest.raises(ConfigError, match="--isns SERVER"):
        configured(f"iscsi:::::{IQN}a", MOUNT_POINT)


# Name servers.


@pytest.mark.conformance("ISNS-8.3")
@pytest.mark.parametrize(
    ("words", "portal"),
    [
        (("--isns", "192.0.2.5"), Portal("192.0.2.5", 3205)),
        (("--isns", "[2001:db8::1]:3206"), Portal("2001:db8::1", 3206)),
        (("-o", "isns=192.0.2.5:1"), Portal("192.0.2.5", 1)),
        (("isns://192.0.2.5",), Portal("192.0.2.5", 3205)),
    ],
)
def test_name_servers(words: tuple[str, ...], portal: Portal) -> None:
    config = configured(*words, MOUNT_POINT)
    assert [server.portal for server in config.name_servers] == [portal]
    assert config.source.startswith("isns://")


def test_the_user_of_all_is_that_of_a_name_server(tmp_path: Path) -> None:
    config = configured("--isns", "192.0.2.5", "-u", "alice", MOUNT_POINT, ask=lambda whose: SECRET.encode())
    (server,) = config.name_servers
    assert server.options.credentials == Credentials("alice", SECRET.encode())


def test_a_name_server_that_is_away_is_unreachable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-i", ME, "-D", "--isns", "127.0.0.1:1"]) == ExitStatus.UNREACHABLE
    (complaint,) = capsys.readouterr().err.splitlines()
    assert complaint.startswith("iscsifs: iSNS server 127.0.0.1:1: Connection refused; ")


# Traces.


@pytest.mark.parametrize("words", [("host", MOUNT_POINT), ("-D", "host"), ("-D", "-f", "host")])
def test_the_standard_output_takes_a_trace_of_the_foreground_only(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="add -f"):
        configured("-o", "trace=-", *words)
    assert configured("-f", "-o", "trace=-", "host", MOUNT_POINT).mount_options.trace == Path("-")


# What comes while mounted.


def test_a_reader_knows_only_the_users_of_the_mount() -> None:
    options = InitiatorOptions(ME)
    alice = Credentials("alice", SECRET.encode())
    reader = Reader(options, {"alice": alice})
    (host,) = reader.read("alice@host").hosts
    assert host.options.credentials == alice
    with pytest.raises(ConfigError, match='no secret for user "bob"'):
        reader.read("bob@host")
    assert reader.read("host").hosts == [Host(HostSpec(Portal("host")), options)]
    assert reader.read("isns://host").name_servers == [NameServer(Portal("host", 3205), options)]


# Lists.


def listed(network: FakeNetwork, *words: str) -> int:
    return main(["-i", ME, "-D", *words], network=network)


@pytest.fixture
def network() -> FakeNetwork:
    network = FakeNetwork()
    units = [
        FakeUnit(size=3 << 29),
        FakeUnit("1", is_block=False, type_name="tape", vendor="A\x1b", wwid="naa.1"),
    ]
    network.offer(Portal("127.0.0.1"), FakeTarget(IQN + "disk", units, Portal("127.0.0.1")))
    return network


def test_a_long_list_has_the_units_and_their_sizes(
    network: FakeNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(network, "-l", "127.0.0.1") == ExitStatus.OK
    assert capsys.readouterr().out.splitlines() == [
        f"127.0.0.1: 127.0.0.1:3260,1 {IQN}disk",
        "    lun0  disk  1.5 GiB (1610612736 bytes, blocks of 512)  ACME  Disk  1.0  s1",
        "    lun1  tape  A\\x1b  Disk  1.0  naa.1",
    ]
    assert (len(network.logins), network.logouts) == (1, 1)


def test_a_list_for_programs(network: FakeNetwork, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(network, "--json", "127.0.0.1") == ExitStatus.OK
    (target,) = json.loads(capsys.readouterr().out)
    assert target == {
        "host": "127.0.0.1",
        "target": IQN + "disk",
        "portals": [{"host": "127.0.0.1", "port": 3260, "tag": 1}],
    }
    assert network.logins == []
    assert listed(network, "-l", "--json", f"iscsi://127.0.0.1/{IQN}disk/0") == ExitStatus.OK
    output = capsys.readouterr().out
    (target,) = json.loads(output)
    (unit,) = target["units"]
    assert (unit["lun"], unit["size"], unit["wwid"]) == ("0", 3 << 29, None)


def test_what_fails_is_no_json(network: FakeNetwork, capsys: pytest.CaptureFixture[str]) -> None:
    network.hosts[Portal("127.0.0.1")] = TransportError("refused")
    assert listed(network, "--json", "127.0.0.1") == ExitStatus.UNREACHABLE
    output = capsys.readouterr()
    assert json.loads(output.out) == []
    assert output.err == "iscsifs: 127.0.0.1:3260: refused\n"


def test_a_target_that_lets_nobody_in_leaves_the_others_listed(
    network: FakeNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    portal = Portal("127.0.0.1")
    other = FakeTarget(IQN + "other", [FakeUnit()], portal)
    network.offer(portal, FakeTarget(IQN + "disk", [FakeUnit()], portal), other)
    network.targets[IQN + "other"] = TransportError("refused")
    assert listed(network, "-l", "127.0.0.1") == ExitStatus.PARTIAL
    assert capsys.readouterr().out.count("lun0") == 1


@pytest.mark.parametrize("flag", ["--json", "--long"])
def test_these_are_for_lists_only(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag, "host", MOUNT_POINT]) == ExitStatus.USAGE
    assert f"{flag} is for -D only" in capsys.readouterr().err
