"""iSCSI names and the addresses of portals (RFC 7143 sections 4.2.7 and 13.8)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import ConfigError, ProtocolError
from iscsifs.iscsi.names import MAX_NAME_LENGTH, Portal, TargetAddress, check_name, name_fault

GOOD_NAMES = [
    # The examples of sections 4.2.7.4 to 4.2.7.6.
    "iqn.2001-04.com.example:storage:diskarrays-sn-a8675309",
    "iqn.2001-04.com.example",
    "iqn.2001-04.com.example:storage.tape1.sys1.xyz",
    "eui.02004567A425678D",
    "naa.52004567BA64678D",
    "naa.62004567BA64678D0123456789ABCDEF",
    # Seen in the field: nothing behind the colon, capitals, underscores, another script.
    "iqn.1994-04.org.netbsd.iscsi-target:target0",
    "iqn.2003-01.org.linux-iscsi.host.x8664:",
    "iqn.2004-04.com.qnap:ts-431:iscsi.Data_1.0ab1c2",
    "iqn.2001-04.com.example:größe",
    "iqn.2001-04.com.example:" + "x" * (MAX_NAME_LENGTH - 24),
]

BAD_NAMES = {
    "": "begin",
    "disk1": "begin",
    "IQN.2001-04.com.example": "begin",
    "iqn.2001-13.com.example": "form",
    "iqn.01-04.com.example": "form",
    "iqn.2001-04.": "form",
    "iqn.2001-04.:disk": "form",
    "eui.02004567A425678": "form",
    "eui.02004567A425678G": "form",
    "naa.52004567BA64678D0": "form",
    "iqn.2001-04.com.example:a b": "allowed",
    "iqn.2001-04.com.example:a/../b": "allowed",
    "iqn.2001-04.com.example:\x1b[31m": "allowed",
    "iqn.2001-04.com.example:\u202egnp": "allowed",
    "iqn.2001-04.com.example:a,b": "allowed",
    "iqn.2001-04.com.example:\ud800": "allowed",
    "iqn.2001-04.com.example:o\u0308": "normalization",
    "iqn.2001-04.com.example:" + "x" * (MAX_NAME_LENGTH - 23): "longer",
    "iqn.2001-04.com.example:" + "ä" * 100: "longer",
}


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_name_is_accepted(name: str) -> None:
    assert name_fault(name) is None
    check_name(name, "--target")


@pytest.mark.parametrize(("name", "reason"), BAD_NAMES.items())
def test_a_bad_name_is_refused_with_its_reason(name: str, reason: str) -> None:
    fault = name_fault(name)
    assert fault is not None
    assert reason in fault
    with pytest.raises(
        ConfigError, match=r'^--initiator-name ".*iqn\.2001-04\.com\.example:disk1$'
    ) as caught:
        check_name(name, "--initiator-name")
    assert str(caught.value).isprintable()


@given(st.text())
def test_any_text_is_a_name_or_has_a_fault(text: str) -> None:
    if name_fault("iqn.2001-04.com.example:" + text) is None:
        assert text.isprintable()
        assert not set(text) & set(" /\\,=")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("storage.example.com", "storage.example.com", 3260),
        ("Storage.Example.COM:860", "storage.example.com", 860),
        ("10.0.0.1", "10.0.0.1", 3260),
        ("10.0.0.1:5003", "10.0.0.1", 5003),
        ("[1080:0:0:0:8:800:200C:417A]:5003", "1080::8:800:200c:417a", 5003),
        ("::1", "::1", 3260),
        ("fe80::1%eth0", "fe80::1%eth0", 3260),
        ("[fe80::1%2]:3261", "fe80::1%2", 3261),
    ],
)
def test_a_user_names_a_portal(text: str, host: str, port: int) -> None:
    assert Portal.parse(text) == Portal(host, port)
    assert Portal.parse(str(Portal(host, port))) == Portal(host, port)


@pytest.mark.parametrize(
    "text",
    ["", ":3260", "host:", "host:0", "host:65536", "host:+1", "a b", "10.0.0.256", "::1%eth0", "[::1", "::g"],
)
def test_a_portal_that_is_none_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(ConfigError, match="give host, host:port or"):
        Portal.parse(text)


@pytest.mark.conformance("DISC-6")
@pytest.mark.parametrize(
    ("host", "canonical"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("computingcenter.example.com", "computingcenter.example.com"),
        ("[1080:0:0:0:8:800:200C:417A]", "1080::8:800:200c:417a"),
    ],
)
@pytest.mark.parametrize(("port_text", "port"), [("", 3260), (":5003", 5003)])
@pytest.mark.parametrize(("tag_text", "tag"), [("", None), (",0", 0), (",65535", 65535), (",0x1", 1)])
def test_an_address_with_and_without_port_and_tag(
    host: str, canonical: str, port_text: str, port: int, tag_text: str, tag: int | None
) -> None:
    address = TargetAddress.parse(host + port_text + tag_text)
    assert address == TargetAddress(Portal(canonical, port), tag)
    assert TargetAddress.parse(str(address)) == address


@pytest.mark.conformance("DISC-7")
@pytest.mark.parametrize("value", ["[fe80::1]:3260,1", "[fe80::1%eth9]:3260,1", "[fe80::1%25eth9]:3260,1"])
def test_a_link_local_address_is_in_the_zone_of_the_connection(value: str) -> None:
    address = TargetAddress.parse(value, zone="eth0")
    assert address == TargetAddress(Portal("fe80::1%eth0"), 1)
    assert str(address) == "[fe80::1]:3260,1"
    with pytest.raises(ProtocolError, match="no zone"):
        TargetAddress.parse(value)


@pytest.mark.conformance("DISC-7")
@pytest.mark.parametrize(
    "value",
    [
        "fe80::1",
        "1080::8:800:200c:417a,1",
        "::1",
        "[2001:db8::1%eth0]:3260,1",
        "10.0.0.1:0,1",
        "10.0.0.1:65536,1",
        "10.0.0.1:3260,65536",
        "10.0.0.1:3260,",
        "10.0.0.1:3260,1,2",
        "10.0.0.1: 3260,1",
        "",
        ",1",
        ":3260,1",
        "[],1",
        "[10.0.0.1],1",
        "0.0.0.0:3260,1",
        "[::]:3260,1",
        "224.0.0.1,1",
        "127.1,1",
        "0x7f000001,1",
        "2130706433,1",
        "../../etc/passwd",
        "host name,1",
        "host\x1b[2J,1",
        "-host,1",
        "x" * 64 + ",1",
    ],
)
def test_what_is_no_address_is_refused(value: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        TargetAddress.parse(value, zone="eth0")
    assert caught.value.section == "13.8"
    assert str(caught.value).isprintable()


@given(st.text(alphabet="0123456789abf:.[],%x-\u0660 "), st.sampled_from([None, "eth0"]))
def test_any_value_is_an_address_or_a_protocol_error(value: str, zone: str | None) -> None:
    try:
        address = TargetAddress.parse(value, zone=zone)
    except ProtocolError:
        return
    assert TargetAddress.parse(str(address), zone=zone) == address
