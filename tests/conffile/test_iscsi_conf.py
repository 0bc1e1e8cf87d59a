"""iscsi.conf(5): what is read from its text."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.conffile.keywords import KEYWORDS, Sets
from iscsifs.conffile.model import Configuration, Endpoint, Entry
from iscsifs.conffile.options import initiator_options
from iscsifs.conffile.parser import parse
from iscsifs.conffile.writer import format_entry
from iscsifs.errors import ConfigError
from iscsifs.initiator.dial import offer
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.keys import check_offer
from iscsifs.iscsi.names import Portal, TargetAddress

NAME = "iqn.2001-04.com.example:disk"
TARGET = f"TargetAddress = 192.0.2.1; TargetName = {NAME};"


def one(statements: str, before: str = "") -> Entry:
    """Return the one entry of a file whose block has these statements as well."""
    (entry,) = parse(f"{before}\na {{ {TARGET}\n{statements}\n}}").entries
    return entry


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    return str(caught.value)


def refused(statements: str) -> str:
    """Return why a block with these statements, from line 2 on, is refused."""
    return refusal(f"a {{ {TARGET}\n{statements}\n}}")


def notes(statements: str) -> tuple[str, ...]:
    return parse(f"a {{ {TARGET}\n{statements}\n}}").notes


EXAMPLE = f"""\
# a file
first {{ # nickname
   targetaddress = array.example.com
   TARGETNAME    = {NAME}
}}

second {{ targetaddress = [2001:db8::de:ef]:3261; targetname={NAME}; HeaderDigest = CRC32C DataDigest=none # x
}}
third {{
   TargetAddress = 192.0.2.1; # a portal
   SessionType   = Discovery
   ; ;
}} fourth{{TargetAddress=192.0.2.2;TargetName={NAME}}}
"""


@pytest.mark.conformance("CONF-1.1")
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_layout_is_free(newline: str) -> None:
    found = parse(EXAMPLE.replace("\n", newline))
    assert found == Configuration(
        (
            Entry("first", TargetAddress(Portal("array.example.com")), NAME),
            Entry(
                "second",
                TargetAddress(Portal("2001:db8::de:ef", 3261)),
                NAME,
                offer={"HeaderDigest": ("CRC32C",), "DataDigest": ("None",)},
            ),
            Entry("third", TargetAddress(Portal("192.0.2.1"))),
            Entry("fourth", TargetAddress(Portal("192.0.2.2")), NAME),
        )
    )
    assert found.find("SECOND") is found.entries[1]
    assert found.find("fifth") is None
    assert parse("") == parse("\n# nothing\n") == Configuration()


@pytest.mark.conformance("CONF-1.2")
def test_a_word_is_taken_whole_or_refused() -> None:
    for word in ("joe@example.com", "a,b!c", "x=y", "0x", "a'b", "joe/1:[2]"):
        entry = one(f"chapIName = {word}; chapSecret = secretsecret1")
        assert entry.credentials is not None
        assert entry.credentials.user == word
    for rest in ("#b", '"b"', "{b"):
        assert "iscsi.conf:2: the value of chapIName goes on with" in refused(f"chapIName = a{rest}")
    assert 'goes on with "b"' in refused('chapIName = "a"b')


@pytest.mark.conformance("CONF-1.2")
def test_a_secret_with_spaces_is_refused_and_not_shown() -> None:
    for statement in ("chapSecret = my secret words", "chapSecret = my secret"):
        message = refused(statement)
        assert "iscsi.conf:2: the value of chapSecret has spaces in it" in message
        assert "words" not in message
    assert "has no value behind its =" in refused("chapSecret =\ntgtChapName=joe")
    assert "has no value behind its =" in refused("chapSecret = # none")


@pytest.mark.conformance("CONF-1.3")
def test_what_is_between_quotation_marks_is_literal() -> None:
    entry = one('chapIName = "a # b; } = {"; chapSecret = "  0xsecret #1 "')
    assert entry.credentials is not None
    assert entry.credentials.user == "a # b; } = {"
    assert entry.credentials.secret == b"  0xsecret #1 "
    assert "it is empty" in refused('chapIName = ""')
    assert "chapIName" in refused('chapIName = "no end')


@pytest.mark.conformance("CONF-1.4")
@pytest.mark.parametrize(
    ("address", "portal"),
    [
        ("array.example.com", Portal("array.example.com", 3262)),
        ("array.example.com:3261", Portal("array.example.com", 3261)),
        ("[2001:db8::1]", Portal("2001:db8::1", 3262)),
        ("[2001:db8::1]:3261", Portal("2001:db8::1", 3261)),
        ("192.0.2.1:3261,1", Portal("192.0.2.1", 3261)),
        ("192.0.2.1,1", Portal("192.0.2.1", 3262)),
    ],
)
def test_the_port_of_the_address_comes_before_the_keyword(address: str, portal: Portal) -> None:
    block = f"a {{ TargetAddress = {address}; TargetName = {NAME}"
    assert parse(f"{block}; port = 3262 }}").entries[0].address == TargetAddress(portal)
    assert parse(f"port = 3262\n{block} }}").entries[0].address == TargetAddress(portal)
    for wrong in ("0", "65536", "x"):
        assert "port" in refused(f"port = {wrong}")


def test_an_address_that_is_none_is_refused() -> None:
    assert "needs its interface" in refusal(f"a {{ TargetAddress = [fe80::1]:3261; TargetName = {NAME} }}")
    zone = parse(f"a {{ TargetAddress = [fe80::1%eth0]; TargetName = {NAME} }}").entries[0]
    assert zone.address.portal == Portal("fe80::1%eth0")
    assert parse(format_entry(zone)).entries == (zone,)
    assert 'TargetAddress: portal "a b"' in refusal(f'a {{ TargetAddress = "a b"; TargetName = {NAME} }}')


@pytest.mark.conformance("CONF-1.5")
def test_what_stands_outside_of_blocks_holds_for_all() -> None:
    text = (
        f"HeaderDigest = CRC32C\na {{ {TARGET} }}\nb {{ {TARGET} HeaderDigest = None }}\nLoginTimeout = 7\n"
    )
    first, second = parse(text).entries
    assert (first.offer, second.offer) == ({"HeaderDigest": ("CRC32C",)}, {"HeaderDigest": ("None",)})
    assert first.session == second.session == {"login_timeout": 7}
    assert "LoginTimeout is here twice, first in line 1" in refusal("LoginTimeout = 1\nlogintimeout = 2")


@pytest.mark.conformance("CONF-1.6")
def test_what_is_there_twice_or_has_no_end_is_refused() -> None:
    assert refusal(f"Disk {{ {TARGET} }}\n\ndisk {{ {TARGET} }}").startswith(
        'iscsi.conf:3: there are two blocks "disk"'
    )
    assert "iscsi.conf:3: pcp is here twice, first in line 2" in refused("pcp = 1\nPCP = 2")
    assert refusal(f"\na {{ {TARGET}").startswith('iscsi.conf:2: the block of "a" has no end')
    assert '"port" is a keyword' in refusal(f"port {{ {TARGET} }}")
    assert "is no nickname" in refusal(f'"a b" {{ {TARGET} }}')
    for text in ("a", "a b {}", "{", "}", "=", "a = ", "a { b }", "a { b { } }"):
        refusal(text)


@pytest.mark.conformance("CONF-1.7")
def test_an_unknown_keyword_is_named_with_the_nearest_one() -> None:
    assert refusal(f"a {{\n TargetAdress = b; TargetName = {NAME} }}") == (
        'iscsi.conf:2: there is no keyword "TargetAdress"; did you mean TargetAddress?'
    )
    assert "see iscsi.conf(5)" in refusal("zzz = 1")


IGNORED = {
    "TargetAlias": "x",
    "maxluns": "4",
    "sockbufsize": "128",
    "chapDigest": "SHA1",
    "iqn": "iqn.2005-01.il.ac.huji.cs:",
    "maxXmitDataSegmentLength": "8192",
    "tgtChallengeLen": "16",
    "MaxConnections": "2",
    "ErrorRecoveryLevel": "2",
    "DataPDUInOrder": "No",
    "DataSequenceInOrder": "No",
}


@pytest.mark.conformance("CONF-1.8")
def test_what_has_no_effect_is_told_once() -> None:
    for name, value in IGNORED.items():
        (note,) = parse(f"a {{ {TARGET}\n{name} = {value} }} b {{ {TARGET} {name} = {value} }}").notes
        assert note.startswith(f"iscsi.conf:2: {name} is ignored: ")
    assert (
        notes("MaxConnections = 1\nErrorRecoveryLevel = 0\nDataPDUInOrder = Yes DataSequenceInOrder = 1")
        == ()
    )
    without_effect = {row.name for row in KEYWORDS.values() if row.sets in (Sets.IGNORED, Sets.FIXED)}
    assert without_effect == IGNORED.keys()


@pytest.mark.conformance("CONF-1.8")
def test_keys_of_the_login_are_offered() -> None:
    entry = one(
        "InitialR2T = Yes; ImmediateData = No; MaxRecvDataSegmentLength = 0x10000; MaxBurstLength = 65536\n"
        "FirstBurstLength = 32768; DefaultTime2Wait = 3; DefaultTime2Retain = 4; MaxOutstandingR2T = 1\n"
    )
    assert entry.offer == {
        "InitialR2T": True,
        "ImmediateData": False,
        "MaxRecvDataSegmentLength": 65536,
        "MaxBurstLength": 65536,
        "FirstBurstLength": 32768,
        "DefaultTime2Wait": 3,
        "DefaultTime2Retain": 4,
        "MaxOutstandingR2T": 1,
    }
    assert one("TargetPortalGroupTag = 7").address.tag == 7
    assert one("tags = 256").endpoint.queue_depth == 256
    assert "above MaxBurstLength" in refused("MaxBurstLength = 1024 FirstBurstLength = 2048")
    assert "MaxBurstLength" in refused("MaxBurstLength = 100")


@pytest.mark.conformance("CONF-1.8")
def test_no_more_is_offered_than_there_is() -> None:
    assert one("MaxRecvDataSegmentLength = 16777215").offer == {"MaxRecvDataSegmentLength": 1 << 20}
    assert notes("MaxOutstandingR2T = 64") == (
        "iscsi.conf:2: MaxOutstandingR2T is 16, which is the most there is here",
    )


@pytest.mark.conformance("CONF-1.9")
def test_booleans_have_many_spellings() -> None:
    for word in ("Yes", "True", "1", "On", "yes", "ON"):
        assert one(f"InitialR2T = {word}").offer == {"InitialR2T": True}
    for word in ("No", "False", "0", "Off"):
        assert one(f"InitialR2T = {word}").offer == {"InitialR2T": False}
    assert "give Yes or No" in refused("InitialR2T = maybe")


@pytest.mark.conformance("CONF-1.10")
def test_a_block_is_a_target_or_a_portal_to_discover_from() -> None:
    assert 'iscsi.conf:1: "a" has no TargetName' in refusal("a { TargetAddress = b }")
    assert '"a" has no TargetName' in refusal("a { TargetAddress = b; SessionType = normal }")
    assert "SessionType Discovery and a TargetName" in refused("SessionType = Discovery")
    assert '"a" has no TargetAddress' in refusal(f"a {{ TargetName = {NAME} }}")
    assert "give Normal or Discovery" in refused("SessionType = Boot")
    assert "TargetName" in refusal("a { TargetAddress = b; TargetName = disk0 }")


@pytest.mark.conformance("CONF-1.11")
def test_chap_is_complete_or_refused() -> None:
    ours = "chapIName = joe; chapSecret = secretsecret1\n"
    theirs = "tgtChapName = array; tgtChapSecret = secretsecret2\n"
    for method in ("", "AuthMethod = CHAP\n"):
        credentials = one(method + ours + theirs).credentials
        assert credentials is not None
        assert (credentials.user, credentials.secret) == ("joe", b"secretsecret1")
        assert (credentials.target_user, credentials.target_secret) == ("array", b"secretsecret2")
    for statements, missing in (
        ("AuthMethod = CHAP", "chapIName is missing"),
        ("AuthMethod = CHAP; chapIName = joe", "chapSecret is missing"),
        ("chapSecret = secretsecret1", "chapIName is missing"),
        (theirs, "chapIName is missing"),
        (f"{ours} tgtChapName = array", "tgtChapSecret is missing"),
        (f"{ours} tgtChapSecret = secretsecret2", "tgtChapName is missing"),
        ("chapIName = joe; chapSecret = short", "5 bytes"),
        (f"{ours} tgtChapName = array; tgtChapSecret = secretsecret1", "the same for both directions"),
    ):
        assert missing in refused(statements)
        assert "secretsecret" not in refused(statements)
    none = parse(f"a {{ {TARGET}\nAuthMethod = None; {ours} {theirs} }}")
    assert none.entries[0].credentials is None
    assert none.entries[0].anonymous
    assert none.has_secrets, "nobody else may read it all the same"
    assert not one("").anonymous


@pytest.mark.conformance("CONF-1.12")
def test_secrets_in_hexadecimal_digits_and_base64() -> None:
    def secret(value: str) -> bytes:
        credentials = one(f"chapIName = joe; chapSecret = {value}").credentials
        assert credentials is not None
        return credentials.secret

    assert secret("0x3713c3336d9a224c2791c873d3d2b174") == bytes.fromhex("3713c3336d9a224c2791c873d3d2b174")
    assert secret("0bc2VjcmV0c2VjcmV0MQ==") == b"secretsecret1"
    assert secret('"0x3713c3336d9a"') == b"0x3713c3336d9a"
    assert secret('"0bc2VjcmV0c2U="') == b"0bc2VjcmV0c2U="
    (note,) = notes("chapIName = joe; chapSecret = 0x3713c3336d9a224c2791c873d3d2b174")
    assert note == "iscsi.conf:2: chapSecret is taken as binary; iscsictl of FreeBSD takes the same as text"
    for value in ("0x3713c3336d9a224c2791c873d3d2b17", "0xsecretsecret1", "0b===secretsecret", "0x"):
        message = refused(f"chapIName = joe; chapSecret = {value}")
        assert "text stands between quotation marks" in message
        assert value[2:8] not in message or value == "0x"


@pytest.mark.conformance("CONF-1.13")
def test_our_end_of_the_session() -> None:
    base = InitiatorOptions("iqn.2001-04.com.example:us")
    assert initiator_options(one(""), base) == base
    name = "iqn.2001-04.com.example:me"
    entry = one(f'InitiatorName = {name}; InitiatorAlias = "my host"; InitiatorAddress = 192.0.2.7')
    assert entry.endpoint == Endpoint(name, "my host", "192.0.2.7")
    assert initiator_options(entry, base).initiator_name == name
    assert one("InitiatorAddress = [2001:db8::1]").endpoint.address == "2001:db8::1"
    assert "address of this machine" in refused("InitiatorAddress = eth0")
    assert "InitiatorName" in refused("InitiatorName = me")


@pytest.mark.conformance("CONF-1.14")
def test_freebsds_other_keywords() -> None:
    assert not one("Enable = Off").enabled
    assert not one("Enable = No").enabled
    assert one("Enable = Yes").enabled
    assert one("Protocol = iscsi; Offload = none") == one("")
    assert "Protocol" in refused("Protocol = iSER")
    assert "Offload" in refused("Offload = cxgbe")
    points = {"0x2e": 46, "46": 46, "ef": 46, "af11": 10, "AF43": 38, "cs3": 24, "be": 0, "63": 63}
    assert {text: one(f"dscp = {text}").endpoint.dscp for text in points} == points
    for wrong in ("64", "0x40", "af14", "cs8", "-1"):
        assert "give a number from 0 to 63" in refused(f"dscp = {wrong}")
    assert one("pcp = 7").endpoint.pcp == 7
    assert "pcp" in refused("pcp = 8")


@pytest.mark.conformance("CONF-1.15")
def test_times() -> None:
    base = InitiatorOptions("iqn.2001-04.com.example:us")
    options = initiator_options(one("PingTimeout = 1; LoginTimeout = 60"), base)
    assert (options.ping_interval, options.ping_timeout, options.login_timeout) == (1, 1, 60)
    both = initiator_options(one("PingInterval = 0 PingTimeout = 9"), base)
    assert (both.ping_interval, both.ping_timeout) == (0, 9)
    absent = initiator_options(one(""), base)
    assert (absent.ping_interval, absent.ping_timeout) == (5, 5)
    for keyword in ("PingTimeout", "LoginTimeout", "CommandTimeout", "ReplacementTimeout"):
        assert keyword in refused(f"{keyword} = 0")


def test_an_entry_says_more_than_what_holds_for_all() -> None:
    everything = one("WriteBehind = Off; TrustUnidentified = Yes; DiscoveryAuth = chap; Lun = 0x4005")
    assert everything.lun == "0x4005"
    base = InitiatorOptions("iqn.2001-04.com.example:us", digests="all", login_timeout=3)
    options = initiator_options(everything, base)
    assert (options.write_behind, options.trust_unidentified, options.discovery_auth) == (False, True, "chap")
    assert (options.digests, options.login_timeout) == ("all", 3)
    assert offer(initiator_options(one("HeaderDigest = None"), base))["HeaderDigest"] == ("None",)
    small = offer(initiator_options(one("MaxBurstLength = 8192"), base))
    check_offer(small)
    assert small["FirstBurstLength"] == 8192


def test_keywords_set_fields_that_there_are() -> None:
    options = {field.name for field in fields(InitiatorOptions)}
    endpoint = {field.name for field in fields(Endpoint)}
    for row in KEYWORDS.values():
        if row.sets is Sets.SESSION:
            assert set(row.fields) <= options
        if row.sets is Sets.ENDPOINT:
            assert set(row.fields) <= endpoint


PIECES = st.sampled_from(
    [
        *KEYWORDS,
        "=",
        "{",
        "}",
        ";",
        "#",
        '"',
        "\n",
        " ",
        "a",
        NAME,
        "192.0.2.1",
        "0x12",
        "secretsecret1",
        "\x1b",
        "é",
    ]
)


@given(st.one_of(st.text(), st.lists(PIECES).map(" ".join), st.lists(PIECES).map("".join)))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        found = parse(text)
    except ConfigError as error:
        lines = [str(error)]
        assert lines[0].startswith("iscsi.conf:")
    else:
        lines = list(found.notes)
    assert all(line.isascii() and line.isprintable() for line in lines)
