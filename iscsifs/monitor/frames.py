"""Ethernet, IP and TCP around what a connection carried: made up, and right in every field.

The system shows us no packets, only the bytes of the stream. What is made of them has the addresses, ports
and bytes of the connection, and sequence numbers that count them.
"""

import ipaddress
import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

ETHERNET_LENGTH: Final = 14
TCP_LENGTH: Final = 20
MAX_SEGMENT: Final = 65000
"""Bytes of a segment: an IPv4 packet has 65535 with its headers."""

WINDOW_SCALE: Final = 14
_OPTIONS: Final = bytes([2, 4, 0xFF, 0xFF, 3, 3, WINDOW_SCALE, 0])  # of a SYN: segment size, window scale
_WINDOW: Final = 0xFFFF  # scaled: a gigabyte, so that no window is ever full
_TTL: Final = 64
_TCP: Final = 6
_ETHERTYPES: Final = {4: 0x0800, 6: 0x86DD}


class TcpFlag(IntFlag):
    """The flags of TCP that are used."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10


@dataclass(frozen=True, slots=True)
class End:
    """One end of a connection; the zone of a link-local *address* is left out."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int

    @classmethod
    def of(cls, address: str, port: int) -> "End":
        """Make one of what getsockname(2) gives."""
        return cls(ipaddress.ip_address(address.partition("%")[0]), port)

    @property
    def mac(self) -> bytes:
        """A locally administered address, the same for the same host."""
        return b"\x02\x00" + self.address.packed[-4:]


def frame(
    source: End,
    destination: End,
    flags: int,
    sequence: int,
    acknowledged: int,
    data: bytes = b"",
    data_length: int | None = None,
) -> bytes:
    """Return the frame of a segment; the sequence numbers are taken modulo 2^32.

    Where *data* is cut, *data_length* is how much there was; then the checksum of TCP is left out.
    """
    options = _OPTIONS if flags & TcpFlag.SYN else b""
    cut = data_length is not None and data_length > len(data)
    length = TCP_LENGTH + len(options) + (len(data) if data_length is None else data_length)
    offset = (TCP_LENGTH + len(options)) // 4 << 4
    tcp = bytearray(
        struct.pack(
            ">HHIIBBHHH",
            source.port,
            destination.port,
            sequence & 0xFFFFFFFF,
            acknowledged & 0xFFFFFFFF,
            offset,
            flags,
            _WINDOW,
            0,
            0,
        )
    )
    tcp += options
    tcp += data
    addresses = source.address.packed + destination.address.packed
    if not cut:
        struct.pack_into(">H", tcp, 16, _checksum(addresses + struct.pack(">II", length, _TCP) + tcp))
    version = source.address.version
    if version == 4:
        head = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, _TTL, _TCP, 0) + addresses)
        struct.pack_into(">H", head, 10, _checksum(bytes(head)))
    else:
        head = bytearray(struct.pack(">IHBB", 6 << 28, length, _TCP, _TTL) + addresses)
    return b"".join((destination.mac, source.mac, struct.pack(">H", _ETHERTYPES[version]), head, tcp))


def header_length(end: End) -> int:
    """Return how many bytes of a frame from *end* stand before its data."""
    return ETHERNET_LENGTH + (20 if end.address.version == 4 else 40) + TCP_LENGTH


def _checksum(data: bytes) -> int:
    """Return the checksum of the internet protocols (RFC 1071)."""
    padded = data + b"\0" if len(data) % 2 else data
    # 2^16 is 1 modulo 65535, so the sum of all words is the whole number modulo that.
    total = int.from_bytes(padded, "big") % 0xFFFF
    return (0xFFFF - total) % 0xFFFF
