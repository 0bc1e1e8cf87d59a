"""Fuzz harnesses for what is read in one piece: texts, parameter data, names.

Each takes any bytes. It raises nothing but what no input must bring about: an exception that is not
documented, or an AssertionError for a broken promise.
"""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from iscsifs.errors import (
    AuthenticationError,
    ConfigError,
    NegotiationError,
    ProtocolError,
    UnitError,
    printable,
)
from iscsifs.fs.names import safe_name
from iscsifs.fs.nodes import Directory, Link, TreeOptions
from iscsifs.fs.tree import TargetDescription, Tree, UnitDescription
from iscsifs.iscsi import text as texts
from iscsifs.iscsi.chap import ChallengeMemory, ChapInitiator, ChapTarget, Credentials, response
from iscsifs.iscsi.discovery import read_targets
from iscsifs.iscsi.keys import INITIATOR_OFFER, TABLE, Parameters, Role, format_value, read_value
from iscsifs.iscsi.names import MAX_NAME_LENGTH, Portal, TargetAddress, name_fault
from iscsifs.iscsi.negotiation import Negotiation
from iscsifs.iscsi.pdu import Stage
from iscsifs.iscsi.task import read_sense
from iscsifs.iscsi.text import Pair, TextCollector, decode_pairs, encode_pairs
from iscsifs.limits import MAX_LUNS, MAX_TEXT_PIECES
from iscsifs.scsi import mode, vpd
from iscsifs.scsi.capacity import MAX_BYTES, Capacity
from iscsifs.scsi.inquiry import InquiryData
from iscsifs.scsi.luns import (
    LunList,
    is_well_known,
    lun_from_number,
    lun_label,
    lun_number,
    pack_luns,
    parse_luns,
)
from iscsifs.scsi.sense import Sense
from iscsifs.target.login import TARGET_OFFER
from support.fuzz.checks import allowed, is_line, value_or_none

JUNK = b"\xa5" * 64
"""What may stand behind the end of parameter data, and must not be looked at."""

PORTAL = Portal("192.0.2.1")


# Text: RFC 7143 section 6.


def text(data: bytes) -> None:
    """A data segment of text: its pairs, the forms of values, every key, and a negotiation by either side."""
    whole: list[Pair] | None = None
    with allowed(ProtocolError):
        whole = decode_pairs(data, pdu="TEXT")
    if whole is not None:
        assert encode_pairs(whole) == data
        assert _collected(data) == whole
        for value in {value for _, value in whole}:
            _read_values(value)
        for role, offer in (Role.INITIATOR, INITIATOR_OFFER), (Role.TARGET, TARGET_OFFER):
            for stage in Stage.SECURITY, Stage.OPERATIONAL:
                _negotiate(Negotiation(role, offer), whole, stage)
    _parse_value(data.decode("utf-8", "surrogateescape"))


def _collected(data: bytes) -> list[Pair] | None:
    """Return the pairs of *data* that came in as many pieces as may be."""
    collector = TextCollector("TEXT")
    size = -(-len(data) // MAX_TEXT_PIECES) or 1
    *firsts, last = texts.cut_text(data, size)
    for piece in firsts:
        assert collector.add(piece, more=True) is None
    return collector.add(last, more=False)


def _read_values(value: str) -> None:
    """Read *value* as that of every key."""
    for key in TABLE.values():
        with allowed(NegotiationError):
            result = read_value(key, value)
            assert read_value(key, format_value(result)) == result
            if type(result) is int:
                assert key.bounds[0] <= result <= key.bounds[1]


def _parse_value(value: str) -> None:
    for parse in texts.parse_boolean, texts.parse_list, texts.check_length:
        value_or_none(parse, value)
    number = value_or_none(texts.parse_number, value)
    assert number is None or 0 <= number < 2**64
    binary = value_or_none(texts.parse_binary, value)
    if binary is not None:
        assert 0 < len(binary) <= len(value)
        assert texts.parse_binary(texts.format_binary(binary)) == binary


def _negotiate(negotiation: Negotiation, pairs: list[Pair], stage: Stage) -> None:
    offered = dict(negotiation.offer()) if stage is Stage.OPERATIONAL else {}
    with allowed(NegotiationError, ProtocolError):
        answers, _ = negotiation.receive(pairs, stage, final=False)
        assert decode_pairs(encode_pairs(answers), pdu="TEXT") == answers
        assert not offered.keys() & dict(answers).keys()
        check_parameters(negotiation.conclude())


def check_parameters(parameters: Parameters) -> None:
    """Assert that what a login settled is within the bounds of section 13."""
    for value, key in (
        (parameters.max_send_data_segment_length, "MaxRecvDataSegmentLength"),
        (parameters.max_recv_data_segment_length, "MaxRecvDataSegmentLength"),
        (parameters.max_connections, "MaxConnections"),
        (parameters.max_burst_length, "MaxBurstLength"),
        (parameters.first_burst_length, "FirstBurstLength"),
        (parameters.default_time2wait, "DefaultTime2Wait"),
        (parameters.default_time2retain, "DefaultTime2Retain"),
        (parameters.max_outstanding_r2t, "MaxOutstandingR2T"),
        (parameters.error_recovery_level, "ErrorRecoveryLevel"),
    ):
        low, high = TABLE[key].bounds
        assert low <= value <= high, key
    assert parameters.first_burst_length <= parameters.max_burst_length
    tag = parameters.target_portal_group_tag
    assert tag is None or 0 <= tag <= 65535


# CHAP: RFC 7143 section 12.1.

USER = "alice"
SECRET, TARGET_SECRET = b"the secret of Alice", b"the secret of Storage"
STEP = b"\xff"
"""Stands between the texts of two steps: no UTF-8 has it."""


def chap(data: bytes) -> None:
    """The texts of an exchange, one step after the other, to an initiator and to a target."""
    steps: list[list[Pair]] = []
    for step in (data + 2 * STEP).split(STEP)[:2]:
        with allowed(ProtocolError):
            steps.append(decode_pairs(step, pdu="TEXT"))
    if len(steps) < 2:
        return
    for credentials in (
        Credentials(USER, SECRET),
        Credentials(USER, SECRET, None, TARGET_SECRET),
        Credentials(USER, SECRET, "storage", TARGET_SECRET),
    ):
        _chap_initiator(credentials, *steps)
    for own in None, ("storage", TARGET_SECRET):
        _chap_target(own, *steps)


def _chap_initiator(credentials: Credentials, challenge: list[Pair], proof: list[Pair]) -> None:
    initiator = ChapInitiator(credentials, (8, 7, 6, 5), random.Random(7143).randbytes, ChallengeMemory())
    with allowed(AuthenticationError):
        answer = dict(initiator.answer(challenge))
        assert answer["CHAP_N"] == USER
        assert initiator.algorithm is not None
        initiator.verify(proof)
        if credentials.target_secret is None:
            assert not proof
            return
        expected = response(
            initiator.algorithm,
            texts.parse_number(answer["CHAP_I"]),
            credentials.target_secret,
            texts.parse_binary(answer["CHAP_C"]),
        )
        assert texts.parse_binary(dict(proof)["CHAP_R"]) == expected
        assert (
            initiator.target_user
            == dict(proof)["CHAP_N"]
            == (credentials.target_user or dict(proof)["CHAP_N"])
        )


def _chap_target(own: tuple[str, bytes] | None, proposal: list[Pair], proof: list[Pair]) -> None:
    target = ChapTarget({USER: SECRET}, own, (5, 7), random.Random(7143).randbytes, ChallengeMemory())
    with allowed(AuthenticationError, NegotiationError):
        challenge = dict(target.challenge(proposal))
        answer = dict(target.verify(proof))
        assert target.user == USER
        expected = response(
            texts.parse_number(challenge["CHAP_A"]),
            texts.parse_number(challenge["CHAP_I"]),
            SECRET,
            texts.parse_binary(challenge["CHAP_C"]),
        )
        assert texts.parse_binary(dict(proof)["CHAP_R"]) == expected
        assert set(answer) in (set(), {"CHAP_N", "CHAP_R"})


# Parameter data: SPC-3, SBC-3.


def sense(data: bytes) -> None:
    """Sense data, with and without SenseLength in front, in words and as a condition."""
    parsed = Sense.parse(data)
    if len(data) > 7 and len(data) >= data[7] + 8:
        assert Sense.parse(data + JUNK) == parsed
    assert is_line(str(parsed))
    assert isinstance(parsed.condition.repeatable, bool)
    assert Sense.parse(parsed.pack(descriptor=True)) == parsed
    with allowed(ProtocolError):
        assert len(read_sense(memoryview(data), "SCSI_RESPONSE")) <= max(len(data) - 2, 0)


def vital_product_data(data: bytes) -> None:
    """The answer to any INQUIRY: standard data and every VPD page that is read."""
    with allowed(UnitError):
        inquiry = InquiryData.parse(data)
        for field in inquiry.vendor, inquiry.product, inquiry.revision, inquiry.device_type.label:
            assert is_line(field)
        assert len(inquiry.pack()) == 36
    end = 4 + int.from_bytes(data[2:4], "big")
    if len(data) >= max(end, 4):
        assert _pages(data + JUNK) == _pages(data)
    _, serial, designators, name, limits, _ = _pages(data)
    assert isinstance(serial, str)
    assert is_line(serial)
    assert isinstance(designators, tuple)
    assert sum(4 + len(designator.value) for designator in designators) <= max(len(data) - 4, 0)
    assert all(designator.value in data for designator in designators)
    if name is not None:
        assert safe_name(str(name)) == str(name).encode()
    assert isinstance(limits, vpd.BlockLimits)
    assert limits.unmap_alignment < 1 << 31
    if designators:
        assert vpd.parse_designators(vpd.pack_designators(designators)) == designators
    assert vpd.BlockLimits.parse(limits.pack()) == limits


def _pages(data: bytes) -> tuple[object, ...]:
    """Return everything that is read from VPD pages."""
    designators = vpd.parse_designators(data)
    return (
        vpd.parse_supported_pages(data),
        vpd.parse_serial(data),
        designators,
        vpd.wwid(designators),
        vpd.BlockLimits.parse(data),
        vpd.Provisioning.parse(data),
    )


def mode_pages(data: bytes) -> None:
    """The answers to MODE SENSE(6) and (10)."""
    for parse, width, header in (mode.parse_6, 1, 4), (mode.parse_10, 2, 8):
        parsed = parse(data)
        assert sum(map(len, parsed.pages.values())) <= len(data)
        assert all(0 <= page <= 0x3F and 0 <= subpage <= 0xFF for page, subpage in parsed.pages)
        assert parsed.caching is None or isinstance(parsed.caching.wce, bool)
        if len(data) >= max(header, int.from_bytes(data[:width], "big") + width):
            assert parse(data + JUNK) == parsed


def luns(data: bytes) -> None:
    """The answer to REPORT LUNS, and what becomes of a LUN."""
    answer = parse_luns(data)
    assert len(set(answer.luns)) == len(answer.luns) <= MAX_LUNS
    assert len(answer.luns) * 8 <= len(data)
    assert 8 <= answer.allocation_length <= 8 + 8 * MAX_LUNS
    assert answer.cut == (len(data) < answer.allocation_length)
    labels = Counter(map(lun_label, answer.luns))
    assert not labels or max(labels.values()) == 1
    for lun in answer.luns:
        assert safe_name(lun_label(lun)) == lun_label(lun).encode()
        number = lun_number(lun)
        if number is not None:
            assert not is_well_known(lun)
            assert lun_number(lun_from_number(number)) == number
    count = len(answer.luns)
    assert parse_luns(pack_luns(answer.luns)) == LunList(
        answer.luns, count, cut=False, allocation_length=8 + 8 * count
    )


def capacity(data: bytes) -> None:
    """The answers to READ CAPACITY(10) and (16)."""
    with allowed(UnitError):
        if (short := Capacity.parse_10(data)) is not None:
            _check_capacity(short)
            if short.blocks < 1 << 32:
                assert Capacity.parse_10(short.pack_10()) == short
    with allowed(UnitError):
        long = Capacity.parse_16(data)
        _check_capacity(long)
        assert Capacity.parse_16(long.pack_16()) == long
        if len(data) >= 32:
            assert Capacity.parse_16(data + JUNK) == long


def _check_capacity(unit: Capacity) -> None:
    assert 0 < unit.size <= MAX_BYTES
    assert unit.block_size.bit_count() == 1
    assert unit.block_size <= unit.physical_block_size <= unit.block_size << 15
    assert 0 <= unit.protection <= 8


# Names and addresses.


def addresses(data: bytes) -> None:
    """The answer to SendTargets, TargetAddress, and what a user may give for a portal."""
    value = data.decode("utf-8", "surrogateescape")
    for zone in None, "eth0":
        with allowed(ProtocolError):
            address = TargetAddress.parse(value, zone=zone)
            _check_portal(address.portal)
            assert address.tag is None or 0 <= address.tag <= 65535
            assert TargetAddress.parse(str(address), zone=zone) == address
    with allowed(ConfigError):
        portal = Portal.parse(value)
        assert Portal.parse(str(portal)) == portal
    with allowed(ProtocolError):
        pairs = decode_pairs(data, pdu="TEXT_RESPONSE", errors="surrogateescape")
        for target in read_targets(pairs, PORTAL, "eth0"):
            assert name_fault(target.name) is None
            assert len(target.name.encode()) <= MAX_NAME_LENGTH
            assert target.name.isprintable()
            assert target.addresses
            assert len(set(target.addresses)) == len(target.addresses)
            for address in target.addresses:
                _check_portal(address.portal)


def _check_portal(portal: Portal) -> None:
    assert 1 <= portal.port <= 65535
    assert 0 < len(portal.host) <= 255
    assert is_line(str(portal))
    assert not set(portal.host) & set(" /\\,\"'`$|;&<>")


def path_names(data: bytes) -> None:
    """Texts as path components and in messages; a whole tree made of them, NUL between two texts."""
    fields = data.decode("utf-8", "surrogateescape").split("\0")
    for field in fields:
        _check_component(safe_name(field))
        assert is_line(printable(field, 64))
    assert is_line(printable(data, 64))
    given = iter(fields)
    tree = Tree(TreeOptions(uid=0, gid=0))
    for host in islice(given, 8):
        # Targets by twos, so that names of one call and those of an earlier one meet.
        targets = [
            TargetDescription(
                host, "192.0.2.1", 3260, next(given, ""), (_unit("0", given), _unit(label, given))
            )
            for label in ("1", next(given, "0"))
        ]
        first, second = tree.add_targets(targets)
        assert first is not second
    _check_directory(tree.root, set())


def _unit(label: str, given: Iterator[str]) -> UnitDescription:
    return UnitDescription(label, 0, "disk", next(given, ""), serial=next(given, ""), wwid=next(given, None))


def _check_component(name: bytes) -> None:
    assert 1 <= len(name) <= 255
    assert name not in (b".", b"..")
    assert b"/" not in name
    assert not name.startswith((b"-", b"."))
    assert all(0x20 <= byte < 0x7F for byte in name)


def _check_directory(directory: Directory, inodes: set[int]) -> None:
    for name, node in directory.entries.items():
        _check_component(name)
        assert node.inode not in inodes
        inodes.add(node.inode)
        if isinstance(node, Directory):
            _check_directory(node, inodes)
        elif isinstance(node, Link):
            for part in node.target.removeprefix(b"../").split(b"/"):
                _check_component(part)
