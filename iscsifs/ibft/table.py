"""The iBFT as it is in memory: a header of ACPI, the control structure, and what that points to.

All integers are little-endian, but the LUN, which has the order of SAM. Offsets count from the start of the
table; 0 is nothing. A table that is wrong as a whole is refused; of a good one only the wrong structures
are left out.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from iscsifs.errors import ConfigError, printable
from iscsifs.ibft.model import (
    Ibft,
    Initiator,
    Nic,
    TargetFields,
    address,
    assemble,
    printable_text,
)

SIGNATURES: Final = (b"iBFT", b"IBFT", b"BIFT")
"""How the table is called: by the specification, by some firmware, and by a misprint that was copied."""

_HEADER: Final = struct.Struct("<4sIBB6s8s24x")
_BLOCK: Final = struct.Struct("<BBHBB")  # id, version, length, index, flags
_OFFSETS: Final = struct.Struct("<6H")  # extensions, initiator, NIC 0, target 0, NIC 1, target 1
_INITIATOR: Final = struct.Struct("<6x16s16s16s16sHH")
_NIC: Final = struct.Struct("<6x16sBB16s16s16s16sH6sHHH")
_TARGET: Final = struct.Struct("<6x16sH8sBBHHHHHHHHHH")

_REVISION: Final = 1
_CONTROL, _INITIATOR_ID, _NIC_ID, _TARGET_ID = 1, 2, 3, 4
_CONTROL_LENGTH: Final = _BLOCK.size + _OFFSETS.size
_NAMES: Final = {_INITIATOR_ID: "initiator", _NIC_ID: "network interface", _TARGET_ID: "target"}
_LENGTHS: Final = {_INITIATOR_ID: _INITIATOR.size, _NIC_ID: _NIC.size, _TARGET_ID: _TARGET.size}


def parse(data: bytes) -> Ibft:
    """Read a table; what is behind its length is ignored. Raises ConfigError: what is wrong, and where."""
    try:
        return _Table(data).read()
    except ValueError as error:
        raise ConfigError(f"iBFT: {error}; the table is not used") from None


class _Table:
    """The bytes of a table, of which the header and the control structure were checked."""

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size:
            raise ValueError(f"it has {len(data)} bytes, and the header alone takes {_HEADER.size}")
        signature, length, revision, _, self._oem_id, self._oem_table_id = _HEADER.unpack_from(data)
        if signature not in SIGNATURES:
            raise ValueError(f'its signature at 0 is "{printable(signature)}", not iBFT')
        if length < _HEADER.size + _CONTROL_LENGTH:
            raise ValueError(
                f"its length at 4 is {length}, and the least is {_HEADER.size + _CONTROL_LENGTH}"
            )
        if length > len(data):
            raise ValueError(f"its length at 4 is {length}, and there are {len(data)} bytes")
        if revision != _REVISION:
            raise ValueError(f"its revision at 8 is {revision}, not {_REVISION}")
        self._data = data[:length]
        if total := sum(self._data) % 256:
            raise ValueError(f"its checksum at 9 is wrong: the sum of all bytes is {total}, not 0")
        identity, version, self._control_length, index, _ = _BLOCK.unpack_from(data, _HEADER.size)
        if (identity, version, index) != (_CONTROL, 1, 0) or self._control_length < _CONTROL_LENGTH:
            raise ValueError(
                f"the control structure at {_HEADER.size} has id {identity}, version {version},"
                f" length {self._control_length} and index {index}, not 1, 1, {_CONTROL_LENGTH} and 0"
            )
        self._first = _HEADER.size + self._control_length  # offset that a structure or a string may have
        if self._first > length:
            raise ValueError(f"the control structure at {_HEADER.size} is longer than the table")
        self._notes: list[str] = []

    def read(self) -> Ibft:
        """Return what the structures say."""
        initiators: list[Initiator] = []
        nics: list[Nic] = []
        targets: list[TargetFields] = []
        seen: set[int] = set()
        readers: dict[int, tuple[Callable[[int], Any], list[Any]]] = {
            _INITIATOR_ID: (self._initiator, initiators),
            _NIC_ID: (self._nic, nics),
            _TARGET_ID: (self._target, targets),
        }
        for identity, offset in self._offsets():
            read, found = readers[identity]
            try:
                if offset in seen:
                    raise ValueError("another offset has led there already")
                seen.add(offset)
                self._check_block(identity, offset)
                found.append(read(offset))
            except ValueError as error:
                self._notes.append(f"{_NAMES[identity]} at {offset}: {error}; left out")
        return assemble(
            initiators[0] if initiators else None,
            nics,
            targets,
            self._notes,
            oem_id=_ascii(self._oem_id),
            oem_table_id=_ascii(self._oem_table_id),
        )

    def _offsets(self) -> Iterator[tuple[int, int]]:
        """Give (id of the structure, its offset) for each that the control structure has.

        A longer one has further pairs of an interface and a target. Linux refuses such a table.
        """
        _, initiator, *pairs = _OFFSETS.unpack_from(self._data, _HEADER.size + _BLOCK.size)
        further = self._data[_HEADER.size + _CONTROL_LENGTH : self._first]
        pairs += [offset for (offset,) in struct.iter_unpack("<H", further[: len(further) // 2 * 2])]
        kinds = [_INITIATOR_ID] + [_TARGET_ID if place % 2 else _NIC_ID for place in range(len(pairs))]
        yield from ((kind, offset) for kind, offset in zip(kinds, [initiator, *pairs], strict=True) if offset)

    def _check_block(self, identity: int, offset: int) -> None:
        wanted = _LENGTHS[identity]
        if offset < self._first:
            raise ValueError("it would be in the header")
        if offset + wanted > len(self._data):
            raise ValueError("it goes beyond the end of the table")
        found, _, length, _, _ = _BLOCK.unpack_from(self._data, offset)
        if (found, length) != (identity, wanted):
            raise ValueError(f"it has id {found} and length {length}, not {identity} and {wanted}")

    def _octets(self, length: int, offset: int) -> bytes | None:
        """Return the bytes of a string, None where there is none; raise ValueError."""
        if not length or not offset:
            return None
        if offset < self._first or offset + length > len(self._data):
            raise ValueError(f"a string of {length} bytes at {offset} is not in the table")
        return self._data[offset : offset + length].partition(b"\0")[0] or None

    def _text(self, length: int, offset: int) -> str | None:
        octets = self._octets(length, offset)
        return None if octets is None else printable_text(octets)

    def _index_and_flags(self, offset: int) -> tuple[int, int]:
        _, _, _, index, flags = _BLOCK.unpack_from(self._data, offset)
        return index, flags

    def _initiator(self, offset: int) -> Initiator:
        isns, slp, radius, other, length, at = _INITIATOR.unpack_from(self._data, offset)
        _, flags = self._index_and_flags(offset)
        return Initiator(
            self._text(length, at),
            address(isns),
            address(slp),
            (address(radius), address(other)),
            flags,
        )

    def _nic(self, offset: int) -> Nic:
        own, prefix, origin, gateway, dns, other, dhcp, vlan, mac, bdf, length, at = _NIC.unpack_from(
            self._data, offset
        )
        index, flags = self._index_and_flags(offset)
        return Nic(
            index,
            address(own),
            prefix,
            origin,
            address(gateway),
            (address(dns), address(other)),
            address(dhcp),
            vlan,
            mac.hex(":"),
            f"{bdf >> 8:02x}:{bdf >> 3 & 0x1F:02x}.{bdf & 7}",
            self._text(length, at),
            flags,
        )

    def _target(self, offset: int) -> TargetFields:
        portal, port, lun, chap_type, nic, *strings = _TARGET.unpack_from(self._data, offset)
        index, flags = self._index_and_flags(offset)
        name, chap_name, chap_secret, reverse_name, reverse_secret = zip(
            strings[::2], strings[1::2], strict=True
        )
        return TargetFields(
            index,
            flags,
            address(portal),
            port,
            int.from_bytes(lun, "big"),
            chap_type,
            nic,
            self._text(*name),
            self._text(*chap_name),
            self._octets(*chap_secret),
            self._text(*reverse_name),
            self._octets(*reverse_secret),
        )


def _ascii(octets: bytes) -> str:
    return printable(octets.partition(b"\0")[0]).strip()
