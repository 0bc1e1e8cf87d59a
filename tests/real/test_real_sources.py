"""Every source of targets with every authentication, at a real target, as a user types it."""

import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from support.ibft_tables import TARGET as STRUCTURE
from support.ibft_tables import changed, with_strings
from support.isnsd import Isnsd
from support.mounting import MountHosts, iscsifs, run, wait_until
from support.targets import Chap, Serve, Target, Tgt, Unit, make_image

pytestmark = [pytest.mark.real, pytest.mark.mount]

ME = "iqn.2026-01.example:me"
NAME = "iqn.2026-01.example:disk"
CHAP = Chap("alice", "secret-of-alice", "the-target", "secret-of-target")
MIB = 1 << 20


class Site:
    """A target, and what the sources are made of in *directory*."""

    def __init__(self, directory: Path, tgt: Tgt, chap: Chap | None, isnsd: Isnsd | None = None) -> None:
        self.directory = directory
        self.tgt = tgt
        self.chap = chap
        self.isnsd = isnsd

    def file(self, name: str, content: bytes | str) -> Path:
        """Write a file that nobody else may read."""
        path = self.directory / name
        path.touch(0o600)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def credentials(self) -> list[object]:
        """Return the flags for the target's users."""
        if self.chap is None:
            return []
        secret = self.file("secret", self.chap.secret)
        other = self.file("target-secret", self.chap.target_secret)
        words: list[object] = ["-u", self.chap.user, "--secret-file", secret]
        return [*words, "--target-user", self.chap.target_user, "--target-secret-file", other]


def send_targets(site: Site) -> tuple[list[object], str]:
    return [*site.credentials(), site.tgt.portal], site.tgt.portal


def static(site: Site) -> tuple[list[object], str]:
    url = f"iscsi://{site.tgt.portal}/{NAME}/1"
    return [*site.credentials(), url], url


def root_path(site: Site) -> tuple[list[object], str]:
    chap, hidden = "", ""
    if site.chap is not None:
        proof = f":{site.chap.target_user}:{site.chap.target_secret}"
        chap, hidden = f"{site.chap.user}:{site.chap.secret}{proof}@", f"{site.chap.user}:***@"
    place = f"127.0.0.1:6:{site.tgt.port}:1:{NAME}"
    return [f"iscsi:{chap}{place}"], f"iscsi:{hidden}{place}"


def conf(site: Site) -> tuple[list[object], str]:
    text = f"disk {{ TargetAddress = {site.tgt.portal}; TargetName = {NAME}\n"
    if site.chap is not None:
        text += f"chapIName = {site.chap.user}; chapSecret = {site.chap.secret}\n"
        text += f"tgtChapName = {site.chap.target_user}; tgtChapSecret = {site.chap.target_secret}\n"
    path = site.file(
        "iscsi.conf", text + "}\nother { TargetAddress = 127.0.0.1:1; SessionType = Discovery }\n"
    )
    return ["-c", path, "-n", "disk"], f"{path}#disk"


def ibft(site: Site) -> tuple[list[object], str]:
    texts = [NAME]
    if site.chap is not None:
        texts += [site.chap.user, site.chap.secret, site.chap.target_user, site.chap.target_secret]
    table, pointers = with_strings(*(text.encode() for text in texts))
    address = IPv6Address(f"::ffff:{IPv4Address('127.0.0.1')}").packed
    table = changed(
        (STRUCTURE + 6, address + struct.pack("<H", site.tgt.port)),
        (STRUCTURE + 24, bytes((0, 1, 0, 0, 0, 0, 0, 0))),
        (STRUCTURE + 32, bytes((0 if site.chap is None else 2,))),
        (STRUCTURE + 34, b"".join(pointers).ljust(20, b"\0")),
        table=table,
    )
    path = site.file("iBFT", table)
    return ["--ibft-file", path], f"ibft:{path}"


def isns(site: Site) -> tuple[list[object], str]:
    assert site.isnsd is not None
    site.isnsd.register("array", NAME, site.tgt.portal)
    return [*site.credentials(), "--isns", site.isnsd.portal], f"isns://{site.isnsd.portal}"


@pytest.fixture
def isnsd(tmp_path: Path, require: Callable[..., None]) -> Iterator[Isnsd]:
    require("isnsd", "isnsadm")
    with Isnsd(tmp_path) as server:
        yield server


def tgt_with(serve: Serve, directory: Path, chap: Chap | None) -> Tgt:
    image = make_image(directory / "image", MIB)
    return serve(Tgt(directory, Target(NAME, [Unit(image)], chap)))


@pytest.mark.conformance("IBFT-1.7", "IBFT-1.10", "CONF-1.11", "RP-2.1", "RP-2.6", "IBFT-2.5", "ISNS-8.5")
@pytest.mark.parametrize("chap", [None, CHAP], ids=["open", "chap"])
@pytest.mark.parametrize("source", [send_targets, static, root_path, conf, ibft, isns])
def test_every_source_mounts_and_shows_no_secret(
    tmp_path: Path,
    serve: Serve,
    mount_hosts: MountHosts,
    isnsd: Isnsd,
    source: Callable[[Site], tuple[list[object], str]],
    chap: Chap | None,
) -> None:
    tgt = tgt_with(serve, tmp_path, chap)
    words, shown = source(Site(tmp_path, tgt, chap, isnsd))
    mounted = mount_hosts("-i", ME, *words)
    assert run("findmnt", "-n", "-o", "SOURCE", mounted.path).strip() == shown
    storage = mounted.storage()
    wait_until(storage.exists, "the target is there")
    storage.write_bytes(b"x" * 4096)
    (pid,) = mounted.pids
    seen = Path(f"/proc/{pid}/cmdline").read_bytes() + Path("/proc/self/mounts").read_bytes()
    seen += "".join(mounted.said.stdout + mounted.said.stderr).encode()
    for path in (mounted.path / ".iscsifs").rglob("*"):
        seen += path.read_bytes() if path.is_file() and path.stat().st_mode & 0o444 else b""
    assert CHAP.secret.encode() not in seen
    assert CHAP.target_secret.encode() not in seen
    mounted.unmount()
    assert tgt.targets[0].units[0].image.read_bytes()[:4096] == b"x" * 4096
    assert ME not in isnsd.nodes()


@pytest.mark.parametrize("source", [conf, ibft, isns])
def test_every_source_lists_its_targets(
    tmp_path: Path,
    serve: Serve,
    isnsd: Isnsd,
    source: Callable[[Site], tuple[list[object], str]],
) -> None:
    tgt = tgt_with(serve, tmp_path, None)
    words, shown = source(Site(tmp_path, tgt, None, isnsd))
    for arguments in (words, [shown]):
        done = iscsifs("-D", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"127.0.0.1: {tgt.portal}")
        assert done.stdout.endswith(f" {NAME}\n")


@pytest.mark.conformance("CONF-1.11")
@pytest.mark.parametrize("source", [conf, ibft, root_path])
def test_a_wrong_secret_is_refused_whatever_has_it(
    tmp_path: Path,
    serve: Serve,
    isnsd: Isnsd,
    source: Callable[[Site], tuple[list[object], str]],
) -> None:
    tgt = tgt_with(serve, tmp_path, CHAP)
    wrong = Chap(CHAP.user, "another-secret", CHAP.target_user, CHAP.target_secret)
    words, _ = source(Site(tmp_path, tgt, wrong, isnsd))
    mount_point = tmp_path / "mnt"
    mount_point.mkdir()
    done = iscsifs("-i", ME, *words, mount_point)
    assert done.returncode == 4
    assert "another-secret" not in done.stderr


@pytest.mark.conformance("ISNS-8.5")
def test_a_target_that_is_registered_later_appears_and_leaves_again(
    tmp_path: Path, serve: Serve, mount_hosts: MountHosts, isnsd: Isnsd
) -> None:
    tgt = tgt_with(serve, tmp_path, None)
    mounted = mount_hosts("-i", ME, "--isns", isnsd.portal)
    assert list(mounted.path.glob("127*")) == []
    isnsd.register("array", NAME, tgt.portal)
    wait_until(mounted.storage().exists, "the target is there", 5.0)
    isnsd.deregister(f"iscsi-name={NAME}")
    wait_until(lambda: not mounted.storage().exists(), "the target has left", 5.0)
    mounted.unmount()


def test_a_name_server_that_goes_away_is_told_of_and_takes_nothing(
    tmp_path: Path, serve: Serve, mount_hosts: MountHosts, isnsd: Isnsd
) -> None:
    tgt = tgt_with(serve, tmp_path, None)
    isnsd.register("array", NAME, tgt.portal)
    mounted = mount_hosts("-i", ME, "--isns", isnsd.portal)
    wait_until(mounted.storage().exists, "the target is there", 5.0)
    isnsd.kill()
    events = mounted.path / ".iscsifs" / "events"
    wait_until(lambda: "its targets stay" in events.read_text(), "it is told", 5.0)
    assert mounted.storage().stat().st_size == MIB
    mounted.unmount()


@pytest.mark.conformance("RP-1.7")
def test_a_root_path_without_a_server_is_found_by_the_name_server(
    tmp_path: Path, serve: Serve, mount_hosts: MountHosts, isnsd: Isnsd
) -> None:
    tgt = tgt_with(serve, tmp_path, None)
    isnsd.register("array", NAME, tgt.portal)
    isnsd.register("other", NAME + "2", "127.0.0.1:1")
    mounted = mount_hosts("-i", ME, "--isns", isnsd.portal, f"iscsi::::1:{NAME}")
    wait_until(mounted.storage().exists, "the target is there", 5.0)
    assert [path.name for path in (mounted.path / "127.0.0.1").iterdir()] == ["disk"]
    mounted.unmount()
