"""iscsi.conf(5) as a file: permissions, and what is saved."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.conffile import files
from iscsifs.conffile.files import load, save
from iscsifs.conffile.keywords import KEYWORDS, Sets
from iscsifs.conffile.model import Endpoint, Entry
from iscsifs.conffile.options import entry_of, initiator_options
from iscsifs.conffile.parser import parse
from iscsifs.conffile.writer import format_entry, merge
from iscsifs.errors import ConfigError
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.names import Portal, TargetAddress

NAME = "iqn.2001-04.com.example:disk"
PLAIN = f"a {{ TargetAddress = 192.0.2.1; TargetName = {NAME} }}\n"
SECRET = PLAIN.replace("}", "; chapIName = joe; chapSecret = secretsecret1 }")
ADDRESS = TargetAddress(Portal("192.0.2.1"))


@pytest.fixture(autouse=True)
def core_dumps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note that core dumps are forbidden, and leave this process as it is."""
    calls: list[str] = []
    monkeypatch.setattr(files, "forbid_core_dumps", lambda: calls.append("forbidden"))
    return calls


@pytest.fixture
def conf(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, mode: int = 0o600) -> Path:
        path = tmp_path / "iscsi.conf"
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@pytest.mark.conformance("CONF-1.16")
def test_nobody_else_may_read_secrets(conf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(conf(PLAIN, 0o644)).entries == parse(PLAIN).entries
    for mode in (0o644, 0o604, 0o601, 0o620):
        message = refusal(conf(SECRET, mode))
        assert "it has secrets in it" in message
        assert f"chmod 600 {conf(SECRET, mode)}" in message
    for mode in (0o600, 0o400):
        assert load(conf(SECRET, mode)).has_secrets
    owner = os.getuid()
    assert (owner == 0) == (load_or_none(conf(SECRET, 0o640)) is not None), (
        "root's group may read root's file"
    )
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    if owner:
        assert "belongs to another user" in refusal(conf(PLAIN))


def load_or_none(path: Path) -> object:
    try:
        return load(path)
    except ConfigError:
        return None


@pytest.mark.conformance("CONF-1.16")
@pytest.mark.parametrize(
    ("uid", "mode", "words"),
    [
        (0, 0o640, None),
        (0, 0o644, "it has secrets in it"),
        (1000, 0o640, "it has secrets in it"),
        (1000, 0o600, None),
        (1001, 0o600, "belongs to another user (uid 1001)"),
        (0, 0o602, "everybody may write it"),
    ],
)
def test_owner_and_mode_are_those_of_the_open_file(
    conf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, uid: int, mode: int, words: str | None
) -> None:
    path = conf(SECRET)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        fields = list(real(descriptor))
        fields[0], fields[4] = 0o100000 | mode, uid
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", fstat)
    if words is None:
        assert load(path).has_secrets
    else:
        assert words in refusal(path)


@pytest.mark.conformance("CONF-1.16")
def test_what_a_link_leads_to_is_checked(conf: Callable[..., Path], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(conf(SECRET, 0o644))
    assert "it has secrets in it" in refusal(link)
    conf(SECRET, 0o600)
    assert load(link).has_secrets


@pytest.mark.conformance("CONF-1.16")
def test_a_pipe_is_read_and_one_without_a_writer_does_not_block(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    assert load(fifo).entries == ()
    reading, writing = os.pipe()
    os.write(writing, SECRET.encode())
    os.close(writing)
    try:
        assert load(Path(f"/dev/fd/{reading}")).has_secrets
    finally:
        os.close(reading)
    assert "Is a directory" in refusal(tmp_path)
    assert "it is not a file" in refusal(Path("/dev/null"))


def test_core_dumps_are_forbidden_before_a_file_is_read(tmp_path: Path, core_dumps: list[str]) -> None:
    refusal(tmp_path / "missing")
    assert core_dumps


def test_what_cannot_be_read_is_refused_in_one_line(conf: Callable[..., Path], tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing")
    assert "more than 1048576 bytes" in refusal(conf("#" * (1 << 20) + "\n"))
    path = conf("")
    path.write_bytes(b"a = \xff\n")
    with pytest.raises(ConfigError, match=r"iscsi\.conf:1: .*not UTF-8"):
        load(path)


# What is saved.

WORDS = st.text(st.sampled_from('ab#;{} =\\é"')).filter(lambda word: word.strip() and '"' not in word)
SECRETS = st.one_of(
    st.binary(min_size=12, max_size=20), st.text(st.characters(codec="ascii"), min_size=12).map(str.encode)
)
USERS = WORDS.filter(lambda word: len(word.encode()) < 200)
CREDENTIALS = st.one_of(
    st.builds(Credentials, USERS.map("u{}".format), SECRETS.map(b"1".__add__)),
    st.builds(
        Credentials,
        USERS.map("u{}".format),
        SECRETS.map(b"1".__add__),
        USERS.map("t{}".format),
        SECRETS.map(b"2".__add__),
    ),
)
SECONDS = st.integers(1, 3600)
ENTRIES = st.builds(
    Entry,
    st.sampled_from(["a", "disk-1", "[x]", "b/c", "é", "B#"]),
    st.builds(
        TargetAddress,
        st.builds(
            Portal, st.sampled_from(["192.0.2.1", "2001:db8::1", "array.example"]), st.integers(1, 65535)
        ),
        st.none() | st.integers(0, 65535),
    ),
    st.none() | st.just(NAME),
    st.sampled_from([None, "0", "12", "0x4005"]),
    st.booleans(),
    st.builds(
        Endpoint,
        st.none() | st.just(NAME),
        st.none() | WORDS,
        st.sampled_from([None, "192.0.2.7", "2001:db8::7"]),
        st.none() | st.integers(0, 63),
        st.none() | st.integers(0, 7),
        st.none() | st.integers(1, 65535),
    ),
    st.none() | CREDENTIALS,
    st.just(False),
    st.fixed_dictionaries(
        {},
        optional={
            "HeaderDigest": st.sampled_from([("None",), ("CRC32C",), ("CRC32C", "None"), ("None", "CRC32C")]),
            "DataDigest": st.just(("CRC32C",)),
            "InitialR2T": st.booleans(),
            "MaxBurstLength": st.integers(65536, (1 << 24) - 1),
            "FirstBurstLength": st.integers(512, 65536),
            "MaxOutstandingR2T": st.integers(1, 16),
        },
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "login_timeout": SECONDS,
            "command_timeout": SECONDS,
            "ping_interval": st.integers(0, 3600),
            "replacement_timeout": SECONDS,
            "discovery_auth": st.sampled_from(["auto", "chap", "none"]),
            "write_behind": st.booleans(),
            "trust_unidentified": st.booleans(),
        },
    ),
)


@pytest.mark.conformance("CONF-1.17")
@given(ENTRIES, st.booleans(), st.none() | SECONDS)
def test_what_is_written_is_read_again(entry: Entry, anonymous: bool, ping: int | None) -> None:
    changes: dict[str, Any] = {"anonymous": anonymous and entry.credentials is None}
    if ping is not None:
        interval = entry.session.get("ping_interval", ping)
        changes["session"] = {**entry.session, "ping_timeout": ping, "ping_interval": interval}
    values = {name: getattr(entry, name) for name in Entry.__slots__} | changes
    entry = Entry(**values)
    text = format_entry(entry)
    (found,) = parse(text).entries
    assert found == entry
    assert merge(text, [entry]) == text


@pytest.mark.conformance("CONF-1.17")
def test_options_of_a_session_survive(tmp_path: Path) -> None:
    options = InitiatorOptions(
        "iqn.2001-04.com.example:us",
        Credentials("joe", bytes(range(16)), "array", b'a "secret"!!'),
        digests="header",
        offer={"InitialR2T": True},
        login_timeout=7.0,
        ping_timeout=2.0,
        write_behind=False,
    )
    path = tmp_path / "saved"
    save(path, [entry_of("a", ADDRESS, NAME, options, "3")])
    (entry,) = load(path).entries
    found = initiator_options(entry, InitiatorOptions("iqn.2001-04.com.example:other"))
    assert (entry.address, entry.target_name, entry.lun) == (ADDRESS, NAME, "3")
    assert found.offer == {"HeaderDigest": ("CRC32C", "None"), "InitialR2T": True}
    for name in (
        "initiator_name",
        "credentials",
        "login_timeout",
        "ping_timeout",
        "ping_interval",
        "write_behind",
    ):
        assert getattr(found, name) == getattr(options, name)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(tmp_path.iterdir()) == [path], "nothing is left beside it"


OLD = f"""# mine
LoginTimeout = 9 # slow

a {{ # of old
  TargetAddress = 192.0.2.1; TargetName = {NAME}
}}
b {{ TargetAddress = 192.0.2.2; TargetName = {NAME} }}  # the other
"""


@pytest.mark.conformance("CONF-1.17")
def test_what_else_is_in_the_file_stays(conf: Callable[..., Path]) -> None:
    path = conf(OLD, 0o644)
    old = load(path).entries
    before = path.stat()
    save(path, old)
    assert path.stat() == before, "nothing has changed, so nothing is written"
    changed = Entry("b", TargetAddress(Portal("192.0.2.3")), NAME, session={"login_timeout": 9})
    new = Entry("c", ADDRESS, session={"login_timeout": 9})
    save(path, [changed, new])
    text = path.read_text()
    assert text.startswith(OLD[: OLD.index("b {")])
    assert "}  # the other\n" in text
    assert load(path).entries == (old[0], changed, new)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.conformance("CONF-1.17")
def test_comments_are_not_lost(conf: Callable[..., Path]) -> None:
    path = conf(OLD)
    with pytest.raises(ConfigError, match=r'iscsi\.conf:4: the block "a" has comments, which would be lost'):
        save(path, [Entry("a", TargetAddress(Portal("192.0.2.3")), NAME)])
    with pytest.raises(ConfigError, match="what stands outside of the blocks would change"):
        save(path, [Entry("c", ADDRESS)])
    assert path.read_text() == OLD
    with pytest.raises(ConfigError, match="cannot be written"):
        save(path, [Entry("c", ADDRESS, endpoint=Endpoint(alias='a "b"'))])
    with pytest.raises(ConfigError, match="target secret for any user"):
        save(
            path,
            [Entry("c", ADDRESS, credentials=Credentials("u", b"secretsecret1", None, b"secretsecret2"))],
        )


@pytest.mark.conformance("CONF-1.17")
def test_a_file_is_replaced_as_a_whole(conf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = conf(PLAIN)
    synced: list[int] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        real_fsync(descriptor)

    def replace(source: str, destination: Path) -> None:
        assert len(synced) == 1, "its content is on stable storage first"
        assert os.stat(source).st_mode & 0o777 == 0o600
        real_replace(source, destination)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    save(path, [Entry("b", ADDRESS)])
    assert len(synced) == 2, "and then the directory"

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    before = path.read_text()
    with pytest.raises(ConfigError, match="it cannot be written: No space left on device"):
        save(path, [Entry("c", ADDRESS)])
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_link_is_written_through(conf: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(conf(PLAIN))
    save(tmp_path / "link", [Entry("b", ADDRESS)])
    assert (tmp_path / "link").is_symlink()
    assert len(load(tmp_path / "iscsi.conf").entries) == 2


def test_every_keyword_that_says_something_is_written() -> None:
    entry = Entry(
        "a",
        TargetAddress(Portal("192.0.2.1"), 1),
        NAME,
        "1",
        False,
        Endpoint(NAME, "x", "192.0.2.7", 1, 1, 1),
        Credentials("joe", b"secretsecret1", "array", b"secretsecret2"),
        offer={row.name: _any(row.name) for row in KEYWORDS.values() if row.sets is Sets.OFFER},
        session={
            "ping_interval": 1,
            "ping_timeout": 2,
            "login_timeout": 3,
            "command_timeout": 4,
            "replacement_timeout": 5,
            "discovery_auth": "chap",
            "write_behind": False,
            "trust_unidentified": True,
        },
    )
    written = {line.split(" = ")[0].strip() for line in format_entry(entry).splitlines() if " = " in line}
    written |= {
        "SessionType",
        "Protocol",
        "Offload",
        "port",
    }  # the default, the only ones, part of the address
    assert written == {row.name for row in KEYWORDS.values() if row.sets not in (Sets.IGNORED, Sets.FIXED)}
    assert parse(format_entry(entry)).entries == (entry,)


def _any(key: str) -> Any:
    if key.endswith("Digest"):
        return ("CRC32C",)
    return {"InitialR2T": True, "ImmediateData": False}.get(key, 1 if "R2T" in key else 1024)
