"""Which targets an answer tells of, and by which portals each can be reached."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.isns.attributes import Attribute, Value
from iscsifs.isns.targets import IsnsPortal, IsnsTarget, read_targets, usable_address, wire_address
from iscsifs.limits import MAX_ADDRESSES, MAX_TARGETS
from support.memory_isns import attributes

A, B = "iqn.2001-04.com.example:a", "iqn.2001-04.com.example:b"


def mapped(last: int) -> IPv6Address:
    return wire_address(IPv4Address(f"192.0.2.{last}"))


def read(*pairs: tuple[int, Value]) -> tuple[dict[str, IsnsTarget], list[str]]:
    notes: list[str] = []
    return read_targets(attributes(*pairs), notes.append), notes


def portals(target: IsnsTarget) -> list[tuple[str, int, int]]:
    return [(str(portal.address), portal.port, portal.tag) for portal in target.portals]


def node(name: str, *last: int, type_: int = 1) -> list[tuple[int, Value]]:
    """A node and the portals beside it, as it stands in an answer."""
    beside: list[tuple[int, Value]] = []
    for number in last:
        beside += [(16, mapped(number)), (17, 3260)]
    return [(32, name), (33, type_), *beside]


def group(name: str | None, last: int, tag: int | None) -> list[tuple[int, Value]]:
    named: list[tuple[int, Value]] = [] if name is None else [(48, name)]
    return [*named, (49, mapped(last)), (50, 3260), (51, tag)]


@pytest.mark.conformance("ISNS-2.5")
def test_addresses_are_what_they_stand_for() -> None:
    given_addresses = {
        "::ffff:192.0.2.1": "192.0.2.1",
        "::c000:201": "192.0.2.1",  # as isnsadm registers them
        "2001:db8::1": "2001:db8::1",
        "::1": "::1",
        "::": None,
        "fe80::1": None,
        "ff02::1": None,
        "::ffff:0.0.0.0": None,
        "::ffff:224.0.0.1": None,
    }
    for wire, meaning in given_addresses.items():
        assert usable_address(IPv6Address(wire)) == (None if meaning is None else ip_address(meaning))
    found, notes = read(
        (32, A), (33, 1), (16, IPv6Address("fe80::1")), (17, 3260), (16, IPv6Address("::2:0:0:1")), (17, 1)
    )
    assert portals(found[A]) == [("::2:0:0:1", 1, 1)]
    assert notes == [f'a portal of "{A}" is left out: nothing can be reached at fe80::1']


@pytest.mark.conformance("ISNS-2.6")
def test_ports_are_those_of_tcp() -> None:
    for port, meant in (0, 3260), (860, 860), (0xFFFE035C, 860):
        found, notes = read((32, A), (33, 1), (16, mapped(1)), (17, port))
        assert portals(found[A]) == [("192.0.2.1", meant, 1)]
        assert not notes
    found, notes = read((32, A), (33, 1), (16, mapped(1)), (17, 0x10CBC), (16, mapped(2)), (17, None))
    assert portals(found[A]) == [("192.0.2.2", 3260, 1)]
    assert notes == [f'a portal of "{A}" is left out: its port is one of UDP']


@pytest.mark.conformance("ISNS-4.2")
def test_a_portal_belongs_to_the_node_that_its_group_names_or_that_it_stands_beside() -> None:
    expected = {A: [("192.0.2.1", 3260, 7)], B: [("192.0.2.2", 3260, 9), ("192.0.2.3", 3260, 1)]}
    # Beside their portals, as open-isns has them; A and B are in one entity, whose portals are repeated.
    a = [*node(A, 1), *group(None, 1, 7), (16, mapped(2)), (17, 3260), *group(None, 2, None)]
    b = [*node(B, 2), *group(None, 2, 9), (16, mapped(3)), (17, 3260)]
    # Named, behind all nodes and in front of them, in the order of their tags or not.
    named = [*group(B, 2, 9), *group(A, 2, None), *reversed(group(A, 1, 7))]
    for answer in (
        [*a, *b],
        [*node(A, 1, 2), *node(B, 2, 3), *named],
        [*named, *node(A, 1, 2), *node(B, 2, 3)],
    ):
        found, notes = read(*answer)
        assert {name: portals(target) for name, target in found.items()} == expected
        assert not notes


def test_a_group_in_front_of_the_portals_of_its_node_is_not_that_of_the_portal_before() -> None:
    found, _ = read(*node(A, 1), (32, B), (33, 1), (51, 5), (34, "disk"), (17, 3260))
    assert portals(found[B]) == []


@pytest.mark.conformance("ISNS-4.3")
def test_portal_group_tags() -> None:
    found, _ = read(*node(A, 1, 2, 3, 4), *group(A, 1, 7), *group(A, 2, 0x10002), *group(A, 3, None))
    assert portals(found[A]) == [("192.0.2.1", 3260, 7), ("192.0.2.2", 3260, 2), ("192.0.2.4", 3260, 1)]


@pytest.mark.conformance("ISNS-4.4")
def test_only_the_bit_of_targets_counts() -> None:
    types = {0: False, 2: False, 4: False, 3: True, 1: True, 0x80000001: True}
    found, _ = read(*(pair for type_ in types for pair in node(f"{A}{type_}", 1, type_=type_)), (32, B))
    assert set(found) == {f"{A}{type_}" for type_, is_target in types.items() if is_target}


@pytest.mark.conformance("ISNS-4.5")
def test_a_target_with_several_portals_is_one() -> None:
    found, _ = read(*node(A, 2, 1, 3), *group(A, 1, 5), *group(A, 2, 5), *group(A, 3, 6))
    assert portals(found[A]) == [("192.0.2.2", 3260, 5), ("192.0.2.1", 3260, 5), ("192.0.2.3", 3260, 6)]


def test_a_node_that_comes_twice_is_one() -> None:
    found, _ = read(*node(A, 1), *node(B, 3), *node(A, 2))
    assert portals(found[A]) == [("192.0.2.1", 3260, 1), ("192.0.2.2", 3260, 1)]


@pytest.mark.conformance("ISNS-8.2")
def test_there_are_no_more_targets_and_portals_than_the_bounds() -> None:
    many = [pair for number in range(MAX_TARGETS + 50) for pair in node(f"{A}{number}", 1)]
    found, notes = read(*many)
    assert len(found) == MAX_TARGETS
    assert notes == [f"it names more than {MAX_TARGETS} targets; the others are left out"]
    wide: list[tuple[int, Value]] = [(32, A), (33, 1)]
    for port in range(1, 10_001):
        wide += [(16, mapped(1)), (17, port)]
    found, notes = read(*wide)
    assert len(found[A].portals) == MAX_ADDRESSES
    assert notes == [f'"{A}" has more than {MAX_ADDRESSES} portals; the others are left out']


tags = st.sampled_from([16, 17, 32, 33, 48, 49, 50, 51])
values = (
    st.none()
    | st.integers(0, 1 << 32)
    | st.sampled_from([A, B, ""])
    | st.ip_addresses(v=6).map(lambda address: IPv6Address(int(address)))
)


@given(st.lists(st.builds(Attribute, tags, values), max_size=60))
def test_attributes_in_any_order_give_portals_that_one_can_connect_to(answer: list[Attribute]) -> None:
    for name, target in read_targets(answer, lambda sentence: None).items():
        assert target.name == name
        assert len(set(target.portals)) == len(target.portals)
        for portal in target.portals:
            assert isinstance(portal, IsnsPortal)
            assert 0 < portal.port < 1 << 16
            assert 0 <= portal.tag < 1 << 16
            assert not portal.address.is_unspecified
