"""Root paths as RFC 4173 section 5 and dracut have them."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iscsifs.errors import ConfigError
from iscsifs.iscsi.names import Portal
from iscsifs.iscsi.root_path import RootPath, is_root_path, parse_lun, without_secrets
from iscsifs.scsi.luns import lun_label

NAME = "iqn.2009-06.com.example:disk"


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        RootPath.parse(text)
    return str(caught.value)


@pytest.mark.conformance("RP-1.1")
def test_all_that_may_be_left_out_has_its_default() -> None:
    name = "iqn.2009-06.com.example:a:b"
    assert RootPath.parse(f"iscsi:192.0.2.1::::{name}") == RootPath(Portal("192.0.2.1", 3260), name, 0)


@pytest.mark.conformance("RP-1.2")
def test_the_server_is_a_name_or_an_address() -> None:
    six = RootPath.parse(f"iscsi:[2001:db8::1]:6:3261:0:{NAME}")
    assert six.portal == Portal("2001:db8::1", 3261)
    assert RootPath.parse(f"iscsi:Array.example.com::::{NAME}").portal == Portal("array.example.com")
    assert "needs its interface" in refusal(f"iscsi:[fe80::1]::::{NAME}")
    for server in (
        "[2001:db8::1",
        "2001:db8::1]",
        "2001:db8::1",
        "[192.0.2.1]",
        "a b",
        "-x",
        "[]",
        "0.0.0.0",
    ):
        assert (
            "IPv6 address stands in brackets" in refusal(f"iscsi:{server}::::{NAME}")
            or server == "2001:db8::1"
        )


@pytest.mark.conformance("RP-1.3")
def test_the_protocol_is_tcp_or_nothing() -> None:
    assert RootPath.parse(f"iscsi:a.example:6:::{NAME}") == RootPath.parse(f"iscsi:a.example::::{NAME}")
    for protocol in ("17", "tcp", "06", " 6"):
        assert f'the protocol is "{protocol}"' in refusal(f"iscsi:a.example:{protocol}:::{NAME}")


@pytest.mark.conformance("RP-1.4")
@pytest.mark.parametrize(
    ("text", "lun", "label"),
    [
        ("", 0, "0"),
        ("1", 0x0001000000000000, "1"),
        ("10", 0x0010000000000000, "16"),
        ("1-7", 0x0001000700000000, "0x0001000700000000"),
        ("4752-3A4F-6b7e-2F99", 0x47523A4F6B7E2F99, "0x47523a4f6b7e2f99"),
        ("4186-9", 0x4186000900000000, "0x4186000900000000"),
    ],
)
def test_a_lun_is_hexadecimal_from_the_left(text: str, lun: int, label: str) -> None:
    found = RootPath.parse(f"iscsi:a.example:::{text}:{NAME}")
    assert found.lun == lun
    assert lun_label(found.lun) == label


@pytest.mark.conformance("RP-1.5")
@pytest.mark.parametrize("text", ["12345", "1-", "-1", "1-2-3-4-5", "0x1", "g", " 1", "1--2", "\u0661"])
def test_what_is_no_lun_is_refused(text: str) -> None:
    assert "the LUN" in refusal(f"iscsi:a.example:::{text}:{NAME}")


@pytest.mark.conformance("RP-1.6")
@pytest.mark.parametrize("text", ["0", "65536", "-1", " 3260", "x", "\u0663"])
def test_what_is_no_port_is_refused(text: str) -> None:
    assert "the port" in refusal(f"iscsi:a.example::{text}::{NAME}")


@pytest.mark.conformance("RP-1.7")
def test_only_the_server_may_be_empty() -> None:
    without = RootPath.parse(f"iscsi:::::{NAME}")
    assert without.portal is None, "the name service has to be asked"
    assert without.target_name == NAME
    assert "name of the target is missing" in refusal("iscsi:a.example::::")
    for text in ("iscsi:a.example:", "iscsi:a.example::", f"iscsi:a.example:::{NAME}", "iscsi:a:b"):
        refusal(text)
    assert "needs 4" in refusal("iscsi:a.example:6:3260")


@pytest.mark.conformance("RP-1.8")
def test_a_root_path_is_told_from_our_url_and_from_a_host() -> None:
    assert is_root_path(f"iscsi:a.example::::{NAME}")
    assert is_root_path(f"ISCSI:a.example::::{NAME}")
    assert RootPath.parse(f"ISCSI:a.example::::{NAME}") == RootPath.parse(f"iscsi:a.example::::{NAME}")
    assert is_root_path(f"iscsi:::::{NAME}")
    for other in (
        f"iscsi://a.example/{NAME}",
        f"iscsi://a.example:3260/{NAME}/0",
        "iscsi:host",
        "iscsi:3260",
        "a:1",
    ):
        assert not is_root_path(other)
        refusal(other)


@pytest.mark.conformance("RP-2.1")
def test_credentials_stand_before_the_first_at() -> None:
    one = RootPath.parse(f"iscsi:joe:secretsecret1@a.example::::{NAME}").credentials
    assert one is not None
    assert (one.user, one.secret, one.target_user, one.target_secret) == ("joe", b"secretsecret1", None, None)
    both = RootPath.parse(f"iscsi:joe:secretsecret1:array:secretsecret2@a.example::::{NAME}").credentials
    assert both is not None
    assert (both.target_user, both.target_secret) == ("array", b"secretsecret2")
    assert RootPath.parse(f"iscsi:@a.example::::{NAME}").credentials is None
    # A name with "@" is none of an iSCSI target, but it is the name that is refused, and all of it.
    assert f'target "{NAME}@b"' in refusal(f"iscsi:@a.example::::{NAME}@b")
    assert f'target "{NAME}@b"' in refusal(f"iscsi:a.example::::{NAME}@b")


@pytest.mark.conformance("RP-2.1", "RP-2.6")
@pytest.mark.parametrize(
    "given",
    [
        "joe:secret:secret:secret:secret",
        "joe:secret:secret",
        "joe",
        "joe:secret",
        "joe:secret@secret",
        ":secretsecret1",
        "joe:secretsecret1:joe:secretsecret2",
    ],
)
def test_other_credentials_are_refused_and_not_shown(given: str) -> None:
    message = refusal(f"iscsi:{given}@a.example::::{NAME}")
    assert "secret1" not in message
    assert "secret@" not in message
    assert ":secret" not in message
    if given.count(":") not in (1, 3):
        assert "a secret with a colon cannot be written here" in message


@pytest.mark.conformance("RP-2.2")
@pytest.mark.parametrize(
    "name", [NAME, "eui.0011223344556677", "naa.0011223344556677", "iqn.2009-06.x:a:iqn.b:c"]
)
def test_dracuts_interface_and_device_are_read(name: str) -> None:
    found = RootPath.parse(f"iscsi:a.example:6:3261:ib0:eth1:2:{name}")
    assert (found.interface, found.network_device) == ("ib0", "eth1")
    assert (found.lun, found.target_name, found.portal) == (2 << 48, name, Portal("a.example", 3261))
    nothing = RootPath.parse(f"iscsi:a.example::::::{name}")
    assert (nothing.interface, nothing.network_device, nothing.target_name) == ("", "", name)
    assert RootPath.parse(f"iscsi:a.example::::{name}").target_name == name


@pytest.mark.conformance("RP-2.3")
def test_a_lun_that_dracut_reads_otherwise_is_told() -> None:
    assert RootPath.parse(f"iscsi:a.example:::9:{NAME}").notes == ()
    (note,) = RootPath.parse(f"iscsi:a.example:::10:{NAME}").notes
    assert note == "LUN 10 of the root path is hexadecimal (RFC 4173), so it is unit 16"


@pytest.mark.conformance("RP-2.6")
def test_secrets_are_never_shown() -> None:
    text = f"iscsi:joe:secretsecret1:array:secretsecret2@a.example::::{NAME}"
    assert without_secrets(text) == f"iscsi:joe:***@a.example::::{NAME}"
    assert without_secrets(f"iscsi:a.example::::{NAME}") == f"iscsi:a.example::::{NAME}"
    assert without_secrets(f"iscsi:@a.example::::{NAME}") == f"iscsi:@a.example::::{NAME}"
    assert without_secrets(f"iscsi:joe:a@b@a.example::::{NAME}") == f"iscsi:joe:***@a.example::::{NAME}"
    found = RootPath.parse(text)
    assert "secretsecret" not in repr(found)
    (note,) = found.notes
    assert "/proc/cmdline" in note


PARTS = st.sampled_from(
    ["", "a.example", "[::1]", ":", "6", "3260", "1-2", NAME, "@", "joe:secretsecret1@", "\x1b", "é"]
)


@given(st.one_of(st.text(), st.lists(PARTS).map(lambda parts: "iscsi:" + ":".join(parts))))
@example("iscsi:\ud800:x@a::::iqn.2001-04.x")
def test_anything_is_a_root_path_or_refused_in_one_line(text: str) -> None:
    shown = without_secrets(text)
    assert "secretsecret1@" not in shown
    try:
        found = RootPath.parse(text)
    except ConfigError as error:
        message = str(error)
    else:
        assert is_root_path(text)
        assert 0 <= found.lun < 1 << 64
        return
    assert message.isascii()
    assert message.isprintable()
    assert text.count("@") > 1 or "secretsecret1@" not in message


@given(st.integers(0, (1 << 64) - 1))
def test_every_lun_can_be_written(lun: int) -> None:
    groups = re.findall("....", f"{lun:016x}")
    assert parse_lun("-".join(groups)) == lun
    shortened = [f"{int(group, 16):x}" for group in groups]
    while len(shortened) > 1 and shortened[-1] == "0":
        shortened.pop()
    assert parse_lun("-".join(shortened)) == lun
