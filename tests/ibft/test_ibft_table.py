"""The iBFT as a table in memory."""

import ipaddress
import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import ConfigError
from iscsifs.ibft.model import ChapType, Ibft
from iscsifs.ibft.table import parse
from iscsifs.iscsi.names import Portal
from support.ibft_tables import (
    CONTROL,
    INITIATOR,
    NIC,
    SHOWN,
    TABLE,
    TARGET,
    changed,
    checked,
    target,
    with_strings,
    with_targets,
)

MAPPED = bytes(10) + b"\xff\xff"


def refusal(data: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(data)
    return str(caught.value)


def one_note(table: Ibft) -> str:
    (note,) = table.notes
    assert note.isascii()
    assert note.isprintable()
    return note


@pytest.mark.conformance("IBFT-1.1")
def test_ipxes_table_says_what_linux_shows_of_it() -> None:
    assert sum(TABLE) % 256 == 0
    found = parse(TABLE)
    assert found.notes == ()
    assert found.initiator is not None
    (nic,), (disk,) = found.nics, found.targets
    credentials = disk.credentials
    assert credentials is not None
    shown = {
        "ethernet0/vlan": nic.vlan,
        "ethernet0/gateway": nic.gateway,
        "ethernet0/ip-addr": nic.address,
        "ethernet0/origin": nic.origin,
        "ethernet0/subnet-mask": ipaddress.ip_network(f"0.0.0.0/{nic.prefix}").netmask,
        "ethernet0/index": nic.index,
        "ethernet0/mac": nic.mac,
        "ethernet0/dhcp": nic.dhcp,
        "ethernet0/prefix-len": nic.prefix,
        "ethernet0/primary-dns": nic.dns[0],
        "ethernet0/flags": nic.flags,
        "initiator/initiator-name": found.initiator_name,
        "initiator/index": 0,
        "initiator/flags": found.initiator.flags,
        "target0/chap-type": disk.chap_type.value,
        "target0/ip-addr": disk.portal.host,
        "target0/port": disk.portal.port,
        "target0/chap-secret": credentials.secret.decode(),
        "target0/target-name": disk.name,
        "target0/index": disk.index,
        "target0/chap-name": credentials.user,
        "target0/nic-assoc": disk.nic,
        "target0/lun": "".join(f"{byte:x}" for byte in (disk.lun or 0).to_bytes(8, "big")),
        "target0/flags": disk.flags,
        "acpi_header/signature": "iBFT",
        "acpi_header/oem_table_id": found.oem_table_id,
        "acpi_header/oem_id": found.oem_id,
    }
    assert {path: str(value) for path, value in shown.items()} == SHOWN
    assert nic.device == "00:02.0"
    assert nic.dns[1] is None
    assert nic.host_name is None


@pytest.mark.conformance("IBFT-1.2", "IBFT-3.1")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it has 0 bytes"),
        (TABLE[:47], "it has 47 bytes"),
        (TABLE[:65], "its length at 4 is 574"),
        (changed((4, struct.pack("<I", 65)), table=TABLE[:65]), "its length at 4 is 65, and the least is 66"),
        (changed((4, struct.pack("<I", len(TABLE) + 1))), "its length at 4 is 575"),
        (changed((4, b"\xff\xff\xff\xff")), "its length at 4 is 4294967295"),
        (changed((8, b"\x02")), "its revision at 8 is 2"),
        (TABLE[:9] + bytes([TABLE[9] ^ 1]) + TABLE[10:], "its checksum at 9 is wrong"),
    ],
)
def test_a_table_with_a_wrong_header_is_refused(data: bytes, words: str) -> None:
    assert words in refusal(data)
    assert refusal(data).endswith("the table is not used")


@pytest.mark.conformance("IBFT-3.1")
def test_each_byte_that_is_another_is_found() -> None:
    for place in range(len(TABLE)):
        for bit in range(8):
            data = bytearray(TABLE)
            data[place] ^= 1 << bit
            refusal(bytes(data))


@pytest.mark.conformance("IBFT-3.1")
def test_what_is_behind_the_table_is_ignored() -> None:
    assert parse(TABLE + bytes(range(1, 256))) == parse(TABLE)


@pytest.mark.conformance("IBFT-1.3")
def test_the_signatures_that_exist_are_taken() -> None:
    for signature in (b"iBFT", b"IBFT", b"BIFT"):
        assert parse(changed((0, signature))) == parse(TABLE)
    for signature in (b"ibft", b"XXXX", b"\x1b[2J"):
        assert "its signature at 0 is" in refusal(changed((0, signature)))
        assert refusal(changed((0, signature))).isprintable()


@pytest.mark.conformance("IBFT-1.4")
def test_structures_that_the_control_does_not_point_to_are_absent() -> None:
    none = parse(changed((CONTROL + 8, bytes(10))))
    assert (none.initiator, none.nics, none.targets, none.notes) == (None, (), (), ())
    assert none.initiator_name is None


@pytest.mark.conformance("IBFT-1.4")
def test_a_longer_control_has_further_pairs() -> None:
    table = TABLE + target(2)
    longer = struct.pack("<H", 22), struct.pack("<HH", 0, len(TABLE))
    found = parse(
        changed(
            (4, struct.pack("<I", len(table))),
            (CONTROL + 2, longer[0]),
            (CONTROL + 18, longer[1]),
            table=table,
        )
    )
    assert [disk.index for disk in found.targets] == [0, 2]


@pytest.mark.conformance("IBFT-1.5")
def test_servers_of_the_initiator_are_read() -> None:
    servers = b"".join(MAPPED + bytes([192, 0, 2, number]) for number in (1, 2, 3, 4))
    initiator = parse(changed((INITIATOR + 6, servers))).initiator
    assert initiator is not None
    found = [initiator.isns, initiator.slp, *initiator.radius]
    assert [str(server) for server in found] == ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]
    assert initiator.name == "iqn.2026-11.bars:ipxe"


@pytest.mark.conformance("IBFT-1.6")
def test_all_of_a_network_interface_is_read() -> None:
    table, (host,) = with_strings(b"host.example")
    (nic,) = parse(
        changed(
            (NIC + 56, MAPPED + bytes([192, 0, 2, 53])),
            (NIC + 88, struct.pack("<H", 42)),
            (NIC + 96, struct.pack("<H", 0xA5FF)),
            (NIC + 98, host),
            table=table,
        )
    ).nics
    assert str(nic.dns[1]) == "192.0.2.53"
    assert nic.vlan == 42
    assert nic.device == "a5:1f.7"
    assert nic.host_name == "host.example"
    assert nic.mac == "52:54:00:12:34:56"


@pytest.mark.conformance("IBFT-1.7")
def test_port_0_is_the_usual_one() -> None:
    (disk,) = parse(changed((TARGET + 22, bytes(2)))).targets
    assert disk.portal == Portal("10.0.2.2", 3260)


@pytest.mark.conformance("IBFT-1.8")
@pytest.mark.parametrize(
    ("octets", "lun"),
    [
        ("0001000000000000", 1 << 48),
        ("4100000000000000", 0x4100 << 48),
        ("0001000700000000", 0x00010007 << 32),
    ],
)
def test_a_lun_has_the_order_of_the_wire(octets: str, lun: int) -> None:
    (disk,) = parse(changed((TARGET + 24, bytes.fromhex(octets)))).targets
    assert disk.lun == lun


@pytest.mark.conformance("IBFT-1.9")
def test_flags_say_what_is_used() -> None:
    for place, kind in (INITIATOR, "initiator"), (NIC, "nics"), (TARGET, "targets"):
        assert not getattr(parse(changed((place + 5, b"\x00"))), kind)
        for flags in (b"\x01", b"\x02", b"\x03"):
            assert getattr(parse(changed((place + 5, flags))), kind)
    assert parse(changed((NIC + 5, b"\x07"))).nics[0].flags == 7
    for flags in (b"\x05", b"\x09", b"\x0d"):
        wants_radius = parse(changed((TARGET + 5, flags)))
        assert wants_radius.targets == ()
        assert "RADIUS" in one_note(wants_radius)


@pytest.mark.conformance("IBFT-1.10")
def test_chap_is_as_its_type_says() -> None:
    assert parse(changed((TARGET + 32, b"\x00"))).targets[0].credentials is None
    (one_way,) = parse(TABLE).targets
    assert one_way.chap_type is ChapType.CHAP
    table, pointers = with_strings(b"array", b"secretsecret2")
    both = (TARGET + 46, pointers[0]), (TARGET + 50, pointers[1])
    (mutual,) = parse(changed((TARGET + 32, b"\x02"), *both, table=table)).targets
    assert mutual.credentials is not None
    assert (mutual.credentials.target_user, mutual.credentials.target_secret) == ("array", b"secretsecret2")
    (only_ours,) = parse(changed(*both, table=table)).targets
    assert only_ours.credentials == one_way.credentials
    for change, words in (
        ((TARGET + 32, b"\x03"), "CHAP type is 3"),
        ((TARGET + 32, b"\x02"), "mutual CHAP"),
        ((TARGET + 42, bytes(4)), "its secret is missing"),
        ((TARGET + 38, bytes(4)), "its secret is missing"),
        ((TARGET + 42, struct.pack("<H", 3)), "3 bytes"),
    ):
        found = parse(changed(change))
        assert found.targets == ()
        assert words in one_note(found)
        assert "secretsecret" not in one_note(found)


@pytest.mark.conformance("IBFT-1.11")
def test_strings_end_at_a_nul_or_at_their_length() -> None:
    table, (pointer,) = with_strings(b"joe\0secret")
    assert parse(changed((TARGET + 38, pointer), table=table)).targets[0].credentials.user == "joe"  # type: ignore[union-attr]
    last = checked(TABLE[:4] + struct.pack("<I", len(TABLE) - 1) + TABLE[8:-1])
    assert parse(last) == parse(TABLE), "the last string has no NUL behind it"
    for absent in (struct.pack("<HH", 0, 0x230), struct.pack("<HH", 3, 0)):
        assert parse(changed((TARGET + 32, b"\0"), (TARGET + 38, absent))).targets


@pytest.mark.conformance("IBFT-1.12")
def test_addresses_of_both_families_and_none() -> None:
    for nothing in (bytes(16), MAPPED + bytes(4)):
        found = parse(changed((NIC + 24, nothing), (TARGET + 6, nothing)))
        assert found.nics[0].gateway is None
        assert found.targets == ()
        assert "no address" in one_note(found)
    six = ipaddress.IPv6Address("2001:db8::1")
    (disk,) = parse(changed((TARGET + 6, six.packed))).targets
    assert str(disk.portal) == "[2001:db8::1]:42289"


@pytest.mark.conformance("IBFT-1.13")
def test_what_was_booted_from_comes_first() -> None:
    found = parse(with_targets(target(0, at_5=b"\x01"), target(1, at_5=b"\x03", at_33=b"\x07")))
    assert [disk.index for disk in found.by_preference()] == [1, 0]
    assert one_note(found) == "target 1: there is no network interface 7"
    assert found.nic_of(found.targets[0]) is found.nics[0]
    assert found.nic_of(found.targets[1]) is None


@pytest.mark.conformance("IBFT-3.2")
@pytest.mark.parametrize(
    ("place", "octets"),
    [(0, b"\x02"), (1, b"\x02"), (2, b"\x11\x00"), (4, b"\x01"), (2, b"\xff\xff"), (2, b"\x00\x00")],
)
def test_a_wrong_control_structure_is_refused(place: int, octets: bytes) -> None:
    assert "control structure at 48" in refusal(changed((CONTROL + place, octets)))


@pytest.mark.conformance("IBFT-3.2")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((TARGET, b"\x03"), "it has id 3"),
        ((TARGET + 2, b"\x35"), "length 53"),
        ((CONTROL + 12, struct.pack("<H", 20)), "in the header"),
        ((CONTROL + 12, struct.pack("<H", 50)), "in the header"),
        ((CONTROL + 12, struct.pack("<H", 0xFFFF)), "beyond the end"),
        ((CONTROL + 12, struct.pack("<H", len(TABLE) - 53)), "beyond the end"),
        ((CONTROL + 16, struct.pack("<H", TARGET)), "another offset"),
        ((CONTROL + 16, struct.pack("<H", NIC)), "another offset"),
    ],
)
def test_a_wrong_structure_is_left_out_and_the_rest_is_used(change: tuple[int, bytes], words: str) -> None:
    found = parse(changed(change))
    assert words in one_note(found)
    assert found.initiator is not None
    assert found.nics
    assert len(found.targets) == (1 if change[0] == CONTROL + 16 else 0)


@pytest.mark.conformance("IBFT-3.3")
@pytest.mark.parametrize("text", [b"\xff\xfe", b"a\nb", b"\x1b[31m", "a\u202eb".encode()])
@pytest.mark.parametrize("place", [INITIATOR + 70, NIC + 98, TARGET + 34, TARGET + 38, TARGET + 46])
def test_strings_that_harm_a_terminal_cost_their_structure(place: int, text: bytes) -> None:
    table, (pointer,) = with_strings(text)
    found = parse(changed((place, pointer), table=table))
    assert any(re.search("not UTF-8|control characters", note) for note in found.notes)
    assert all(note.isascii() and note.isprintable() for note in found.notes)
    assert None in (found.initiator, found.nics or None, found.targets or None)


@pytest.mark.conformance("IBFT-3.3")
def test_strings_that_are_not_in_the_table_cost_their_structure() -> None:
    for pointer in (struct.pack("<HH", 0xFFFF, 0x200), struct.pack("<HH", 9, 574), struct.pack("<HH", 4, 2)):
        found = parse(changed((TARGET + 34, pointer)))
        assert "is not in the table" in one_note(found)
        assert found.targets == ()
    table, (pointer,) = with_strings(b"target0")
    assert "does not begin with iqn" in one_note(parse(changed((TARGET + 34, pointer), table=table)))
    assert "does not begin with iqn" in one_note(parse(changed((INITIATOR + 70, pointer), table=table)))


@given(st.one_of(st.binary(max_size=200), st.tuples(st.integers(8, 573), st.binary(max_size=40))))
def test_any_bytes_are_a_table_or_refused_in_one_line(given: bytes | tuple[int, bytes]) -> None:
    data = given if isinstance(given, bytes) else changed(given)[: len(TABLE)]
    try:
        found = parse(data)
    except ConfigError as error:
        lines = [str(error)]
    else:
        lines = list(found.notes)
    assert all(line.isascii() and line.isprintable() for line in lines)
