"""Vital product data: the pages of INQUIRY with EVPD (SPC-3 section 7.6; SBC-3 for B0h and B2h).

A target is free not to have a page, to send less than it announces, or to answer with another page. Then the
parsers give the empty value and never raise.
"""

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from iscsifs.scsi.inquiry import DeviceType, ascii_field


class Page(IntEnum):
    """The pages that are read here."""

    SUPPORTED_PAGES = 0x00
    UNIT_SERIAL_NUMBER = 0x80
    DEVICE_IDENTIFICATION = 0x83
    BLOCK_LIMITS = 0xB0
    LOGICAL_BLOCK_PROVISIONING = 0xB2


_HEADER = struct.Struct(">BBH")


def _payload(page: Page, data: bytes) -> bytes:
    """Return what follows the header of *page*, as far as it is there; nothing if it is another page."""
    if len(data) < _HEADER.size:
        return b""
    _, code, length = _HEADER.unpack_from(data)
    return data[_HEADER.size : _HEADER.size + length] if code == page else b""


def _pack(page: Page, payload: bytes, device_type: DeviceType) -> bytes:
    return _HEADER.pack(device_type, page, len(payload)) + payload


# -- 00h and 80h ---------------------------------------------------------------------------------------------


def parse_supported_pages(data: bytes) -> frozenset[int]:
    """Return the codes of the pages that the unit has (SPC-3 section 7.6.9)."""
    payload = _payload(Page.SUPPORTED_PAGES, data)
    # The list begins with page 00h itself. Standard INQUIRY data, which old units send here, do not fit.
    return frozenset(payload) if payload[:1] == b"\0" else frozenset()


def pack_supported_pages(pages: Iterable[int], device_type: DeviceType = DeviceType.DISK) -> bytes:
    """Return the page that lists *pages*, in the ascending order that the standard wants."""
    return _pack(Page.SUPPORTED_PAGES, bytes(sorted(pages)), device_type)


def parse_serial(data: bytes) -> str:
    """Return the unit's serial number (SPC-3 section 7.6.10), fit for a terminal; empty when absent."""
    return ascii_field(_payload(Page.UNIT_SERIAL_NUMBER, data))


def pack_serial(serial: str, device_type: DeviceType = DeviceType.DISK) -> bytes:
    """Return the page with *serial*, which is ASCII."""
    return _pack(Page.UNIT_SERIAL_NUMBER, serial.encode("ascii"), device_type)


# -- 83h -----------------------------------------------------------------------------------------------------


class CodeSet(IntEnum):
    """How a designator is written (SPC-3 section 7.6.3.1)."""

    BINARY = 1
    ASCII = 2
    UTF_8 = 3


class Association(IntEnum):
    """What a designator names (SPC-3 section 7.6.3.1)."""

    LOGICAL_UNIT = 0
    TARGET_PORT = 1
    TARGET_DEVICE = 2


class DesignatorType(IntEnum):
    """The form of a designator (SPC-3 sections 7.6.3.2 to 7.6.3.11)."""

    VENDOR_SPECIFIC = 0
    T10_VENDOR_ID = 1
    EUI_64 = 2
    NAA = 3
    RELATIVE_TARGET_PORT = 4
    TARGET_PORT_GROUP = 5
    LOGICAL_UNIT_GROUP = 6
    MD5_LOGICAL_UNIT = 7
    SCSI_NAME_STRING = 8


@dataclass(frozen=True, slots=True)
class Designator:
    """One name from the Device Identification page. The numbers may be reserved ones, as they came."""

    type: int
    code_set: int
    value: bytes
    association: int = Association.LOGICAL_UNIT


def parse_designators(data: bytes) -> tuple[Designator, ...]:
    """Return the designators (SPC-3 section 7.6.3) up to the first that is not all there."""
    payload = _payload(Page.DEVICE_IDENTIFICATION, data)
    designators = []
    start = 0
    while len(payload) >= start + 4:
        end = start + 4 + payload[start + 3]
        if end > len(payload):
            break
        designators.append(
            Designator(
                type=payload[start + 1] & 0x0F,
                code_set=payload[start] & 0x0F,
                value=payload[start + 4 : end],
                association=payload[start + 1] >> 4 & 0x03,
            )
        )
        start = end
    return tuple(designators)


def pack_designators(designators: Iterable[Designator], device_type: DeviceType = DeviceType.DISK) -> bytes:
    """Return the Device Identification page; a designator has 255 bytes at most."""
    payload = b"".join(
        bytes((d.code_set, d.association << 4 | d.type, 0, len(d.value))) + d.value for d in designators
    )
    return _pack(Page.DEVICE_IDENTIFICATION, payload, device_type)


# The names of a logical unit, best first, as (type, NAA or length of the EUI-64; None for any): NAA before
# the others as in udev's scsi_id, and of one kind the longer ones first. The last two come last because they
# are unique only as far as an administrator (NAA 3 is locally assigned) or a serial number makes them so.
_WWID_ORDER: tuple[tuple[DesignatorType, int | None], ...] = (
    (DesignatorType.NAA, 6),
    (DesignatorType.NAA, 5),
    (DesignatorType.NAA, 2),
    (DesignatorType.EUI_64, 16),
    (DesignatorType.EUI_64, 12),
    (DesignatorType.EUI_64, 8),
    (DesignatorType.SCSI_NAME_STRING, None),
    (DesignatorType.NAA, 3),
    (DesignatorType.T10_VENDOR_ID, None),
)
_NAA_LENGTH = {2: 8, 3: 8, 5: 8, 6: 16}
_WWID_LIMIT = 255

# The bits of a binary name that its company gives to each unit (SPC-3 sections 7.6.3.5 and 7.6.3.6), by NAA
# or by the length of the EUI-64. The rest is the format and the IEEE company identifier, the same for all.
_NAA_OWN_BITS = {
    2: 0x0FFF_000000_FFFFFF,
    3: (1 << 60) - 1,
    5: (1 << 36) - 1,
    6: (1 << 100) - 1,
}
_EUI_OWN_BITS = {
    8: (1 << 40) - 1,
    12: (1 << 72) - 1,
    16: (1 << 128) - 1 ^ 0xFFFFFF << 40,
}
_T10_VENDOR_LENGTH = 8
_MD5_LENGTH = 16


def wwid(designators: Iterable[Designator]) -> str | None:
    """Return the best persistent name of the logical unit, or None where no designator is one.

    It looks like ``naa.600...``, ``eui.0011...``, ``iqn.2001-04.com.example:disk`` or ``t10.Vendor_serial``,
    has letters, digits and ``._:-`` only, and at most 255 of them. The order of the designators is of no
    importance unless two are of the same kind.
    """
    names: dict[tuple[DesignatorType, int | None], str] = {}
    for designator in designators:
        if not distinguishes(designator):
            continue
        kind, name = _name(designator)
        if kind in _WWID_ORDER and 0 < len(name) <= _WWID_LIMIT:
            names.setdefault(kind, name)
    return next((names[kind] for kind in _WWID_ORDER if kind in names), None)


def distinguishes(designator: Designator, product: str = "") -> bool:
    """Return whether *designator* tells its logical unit from all others, as far as it can be seen from it.

    It does not where it names the target or a port; where it is of a type that several units may share
    (vendor specific, target port group, logical unit group); where it is malformed; and where the part that
    is the unit's own is missing or a placeholder, all zeros or all ones. A T10 name needs more than the
    vendor and the *product*.
    """
    if designator.association != Association.LOGICAL_UNIT:
        return False
    value = designator.value
    match designator.type:
        case DesignatorType.NAA:
            naa = value[0] >> 4 if value else 0
            own_bits = _NAA_OWN_BITS.get(naa, 0) if len(value) == _NAA_LENGTH.get(naa) else 0
            return int.from_bytes(value, "big") & own_bits not in (0, own_bits)
        case DesignatorType.EUI_64:
            own_bits = _EUI_OWN_BITS.get(len(value), 0)
            return int.from_bytes(value, "big") & own_bits not in (0, own_bits)
        case DesignatorType.MD5_LOGICAL_UNIT:
            return len(value) == _MD5_LENGTH and len(set(value)) > 1
        case DesignatorType.SCSI_NAME_STRING:
            text = _safe(value)
            form = next((form for form in ("naa.", "eui.", "iqn.") if text.startswith(form)), text)
            return not is_placeholder(text.removeprefix(form))
        case DesignatorType.T10_VENDOR_ID:
            own = value[_T10_VENDOR_LENGTH:]
            if designator.code_set == CodeSet.BINARY:
                return len(set(own)) > 1 or own.strip(b"\0\xff") != b""
            text = own.strip(b" \0").decode("latin-1")
            return not is_placeholder(text.removeprefix(product) if product else text)
        case _:
            return False


def is_placeholder(text: str) -> bool:
    """Return whether *text*, a serial number or the like, stands where there is none: nothing, or only zeros,
    spaces and punctuation."""
    return not any(character.isalnum() and character != "0" for character in text)


def _name(designator: Designator) -> tuple[tuple[int, int | None], str]:
    """Return the designator's kind, in the terms of `_WWID_ORDER`, and its text; "" if it is malformed."""
    value = designator.value
    match designator.type:
        case DesignatorType.NAA:
            naa = value[0] >> 4
            return (designator.type, naa), f"naa.{value.hex()}" if len(value) == _NAA_LENGTH.get(naa) else ""
        case DesignatorType.EUI_64:
            return (designator.type, len(value)), f"eui.{value.hex()}"
        case DesignatorType.SCSI_NAME_STRING:
            text = _safe(value)
            if text.startswith(("naa.", "eui.")):
                text = text.lower()  # hexadecimal, as the binary forms give it
            return (designator.type, None), text if text.startswith(("naa.", "eui.", "iqn.")) else ""
        case DesignatorType.T10_VENDOR_ID:
            text = value.hex() if designator.code_set == CodeSet.BINARY else _safe(value)
            return (designator.type, None), f"t10.{text}" if text else ""
        case _:
            return (designator.type, None), ""


def _safe(text: bytes) -> str:
    """Return *text* without padding; each run of what a name must not have becomes one ``_``."""
    return re.sub(r"[^A-Za-z0-9._:-]+", "_", text.strip(b" \0").decode("latin-1"))


# -- B0h and B2h ---------------------------------------------------------------------------------------------

# WSNZ, maximum compare and write length, optimal transfer length granularity, maximum and optimal transfer
# length, maximum prefetch length, maximum unmap LBA and descriptor count, optimal unmap granularity, UGAVALID
# and alignment, maximum write same length; the rest of the page is about atomic writes.
_BLOCK_LIMITS = struct.Struct(">BBHIIIIIIIQ20x")
_UGAVALID = 0x80000000


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """The Block Limits page (SBC-3, Block Limits VPD page), in logical blocks unless said otherwise.

    0 means that the unit does not report the field: there is no limit, or no UNMAP.
    *max_unmap_descriptors* counts ranges in one command. *write_same_non_zero*: WRITE SAME with 0 blocks for
    "to the end" is not supported. *unmap_alignment* is the first LBA of a whole granule.
    """

    optimal_granularity: int = 0
    max_transfer_length: int = 0
    optimal_transfer_length: int = 0
    max_unmap_blocks: int = 0
    max_unmap_descriptors: int = 0
    unmap_granularity: int = 0
    unmap_alignment: int = 0
    max_write_same_length: int = 0
    write_same_non_zero: bool = False

    @classmethod
    def parse(cls, data: bytes) -> "BlockLimits":
        """Read the page; SBC-2's short form lacks everything about UNMAP."""
        payload = _payload(Page.BLOCK_LIMITS, data)[: _BLOCK_LIMITS.size].ljust(_BLOCK_LIMITS.size, b"\0")
        (
            flags,
            _compare_and_write,
            optimal_granularity,
            max_transfer_length,
            optimal_transfer_length,
            _prefetch,
            max_unmap_blocks,
            max_unmap_descriptors,
            unmap_granularity,
            alignment,
            max_write_same_length,
        ) = _BLOCK_LIMITS.unpack(payload)
        return cls(
            optimal_granularity=optimal_granularity,
            max_transfer_length=max_transfer_length,
            optimal_transfer_length=optimal_transfer_length,
            max_unmap_blocks=max_unmap_blocks,
            max_unmap_descriptors=max_unmap_descriptors,
            unmap_granularity=unmap_granularity,
            unmap_alignment=alignment & ~_UGAVALID if alignment & _UGAVALID else 0,
            max_write_same_length=max_write_same_length,
            write_same_non_zero=bool(flags & 0x01),
        )

    def pack(self, device_type: DeviceType = DeviceType.DISK) -> bytes:
        """Return the page in SBC-3's full length."""
        payload = _BLOCK_LIMITS.pack(
            int(self.write_same_non_zero),
            0,
            self.optimal_granularity,
            self.max_transfer_length,
            self.optimal_transfer_length,
            0,
            self.max_unmap_blocks,
            self.max_unmap_descriptors,
            self.unmap_granularity,
            _UGAVALID | self.unmap_alignment,
            self.max_write_same_length,
        )
        return _pack(Page.BLOCK_LIMITS, payload, device_type)


class ProvisioningType(IntEnum):
    """How the unit provides its blocks (SBC-3, Logical Block Provisioning VPD page)."""

    NOT_REPORTED = 0
    RESOURCE = 1
    THIN = 2


@dataclass(frozen=True, slots=True)
class Provisioning:
    """The Logical Block Provisioning page: which commands can give blocks back.

    *lbpu*: UNMAP; *lbpws*, *lbpws10*: WRITE SAME(16) and (10) with the UNMAP bit; *lbprz*: unmapped blocks
    read as zeros. *provisioning_type* is one of `ProvisioningType`, or a reserved number.
    """

    lbpu: bool = False
    lbpws: bool = False
    lbpws10: bool = False
    lbprz: bool = False
    provisioning_type: int = ProvisioningType.NOT_REPORTED

    @classmethod
    def parse(cls, data: bytes) -> "Provisioning":
        """Read the page; a target without it has no unmapping that could be relied upon."""
        _, flags, kind = _payload(Page.LOGICAL_BLOCK_PROVISIONING, data)[:3].ljust(3, b"\0")
        return cls(
            lbpu=bool(flags & 0x80),
            lbpws=bool(flags & 0x40),
            lbpws10=bool(flags & 0x20),
            lbprz=bool(flags & 0x04),
            provisioning_type=kind & 0x07,
        )

    def pack(self, device_type: DeviceType = DeviceType.DISK) -> bytes:
        """Return the page without a provisioning group."""
        flags = self.lbpu << 7 | self.lbpws << 6 | self.lbpws10 << 5 | self.lbprz << 2
        payload = bytes((0, flags, self.provisioning_type, 0))
        return _pack(Page.LOGICAL_BLOCK_PROVISIONING, payload, device_type)
