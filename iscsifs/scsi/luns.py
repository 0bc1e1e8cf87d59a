"""Logical unit numbers (SAM-5 section 4.7) and REPORT LUNS parameter data (SPC-3 section 6.21).

A LUN is handled as the integer of its eight bytes, so LUN 1 is 0001000000000000h: this is what goes back to
the target. People, and names of directories, use `lun_label`.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from iscsifs.limits import MAX_LUNS

_HEADER = struct.Struct(">I4x")
_LUN = struct.Struct(">Q")

# The first two bits of a LUN are its address method, in extended addressing the first byte.
_FLAT_SPACE = 0x4000 << 48
_EXTENDED_FLAT_SPACE = 0xD2 << 56
_WELL_KNOWN = 0xC1


@dataclass(frozen=True, slots=True)
class LunList:
    """The units that a target has, each once and in the target's order.

    *reported* is how many the target says it has, of which `MAX_LUNS` are used at most. *cut*: more were
    to arrive than did, and REPORT LUNS with *allocation_length* bytes would bring them; a target that then
    still sends less has lied.
    """

    luns: tuple[int, ...]
    reported: int
    cut: bool
    allocation_length: int


def parse_luns(data: bytes) -> LunList:
    """Read the parameter data of REPORT LUNS; whatever it says, only what arrived is used."""
    length = _HEADER.unpack_from(data)[0] if len(data) >= _HEADER.size else 0
    wanted = _HEADER.size + min(length, MAX_LUNS * _LUN.size) // _LUN.size * _LUN.size
    end = min(wanted, len(data) // _LUN.size * _LUN.size)
    luns = dict.fromkeys(lun for (lun,) in _LUN.iter_unpack(data[_HEADER.size : end]))
    return LunList(tuple(luns), length // _LUN.size, cut=len(data) < wanted, allocation_length=wanted)


def pack_luns(luns: Iterable[int]) -> bytes:
    """Return the parameter data of REPORT LUNS."""
    body = b"".join(_LUN.pack(lun) for lun in luns)
    return _HEADER.pack(len(body)) + body


def lun_number(lun: int) -> int | None:
    """Return the number in a LUN of one level: peripheral device (bus 0), flat or extended flat space.

    All others, such as those of units behind other units and of well-known units, have no single number.
    """
    first, second, rest = lun >> 56, lun >> 48, lun & 0xFFFF_FFFF_FFFF
    if first == 0x00 and not rest:
        return second
    if first >> 6 == 0b01 and not rest:
        return second & 0x3FFF
    if first == 0xD2 and not lun & 0xFFFF_FFFF:
        return lun >> 32 & 0xFF_FFFF
    return None


def lun_from_number(number: int) -> int:
    """Return the LUN that is usual for *number*, as Linux writes it: the smallest method that can hold it.

    Raises `ValueError` outside of 0 to 2^24-1.
    """
    if not 0 <= number < 1 << 24:
        raise ValueError(f"LUN {number} is not between 0 and {(1 << 24) - 1}")
    if number < 1 << 8:
        return number << 48
    if number < 1 << 14:
        return _FLAT_SPACE | number << 48
    return _EXTENDED_FLAT_SPACE | number << 32


def lun_label(lun: int) -> str:
    """Return a text that no other LUN has: the number where it is written in the usual way, else hexadecimal.

    ``0``, ``1``, ``257``; ``0x4005`` (5 in flat space), ``0x0001000200030000`` (three levels).
    """
    number = lun_number(lun)
    if number is not None and lun_from_number(number) == lun:
        return str(number)
    digits = f"{lun:016x}"
    return f"0x{digits[:4]}" if digits.endswith("0" * 12) else f"0x{digits}"


def is_well_known(lun: int) -> bool:
    """Whether *lun* is a well-known logical unit (extended addressing), which is no device of its own."""
    return lun >> 56 == _WELL_KNOWN
