"""iBFTs made from parts, and the one that iPXE made."""

import struct
from pathlib import Path

HERE = Path(__file__).parents[1] / "ibft"

TABLE = (HERE / "ipxe-chap.bin").read_bytes()
"""What iPXE 1.0.0 left in memory for a target with one-way CHAP."""

SHOWN = dict(line.split(" = ", 1) for line in (HERE / "ipxe-chap.sysfs").read_text().splitlines())
"""What Linux 6.1 showed of it below /sys/firmware/ibft: path and content."""

FILES = {path: f"{content}\n".encode() for path, content in SHOWN.items()}

CONTROL, INITIATOR, NIC, TARGET = 0x30, 0x50, 0xA0, 0x180
"""Where iPXE put the structures."""


def checked(data: bytes | bytearray) -> bytes:
    """Return the table with a right checksum."""
    table = bytearray(data)
    table[9] = 0
    table[9] = -sum(table[: int.from_bytes(table[4:8], "little")]) % 256
    return bytes(table)


def changed(*changes: tuple[int, bytes], table: bytes = TABLE) -> bytes:
    """Return the table with other bytes at these offsets, and a right checksum."""
    data = bytearray(table)
    for offset, octets in changes:
        data[offset : offset + len(octets)] = octets
    return checked(data)


def with_strings(*texts: bytes, table: bytes = TABLE) -> tuple[bytes, list[bytes]]:
    """Return the table with *texts* at its end, and for each the four bytes that point to it."""
    pointers = []
    for text in texts:
        pointers.append(struct.pack("<HH", len(text), len(table)))
        table += text + b"\0"
    return changed((4, struct.pack("<I", len(table))), table=table), pointers


def with_targets(*targets: bytes) -> bytes:
    """Return the table with these structures behind it as targets, from index 0; the ends may lack one."""
    table, at = TABLE, []
    for target in targets:
        at.append(len(table))
        table += target
    offsets = [at[0], 0, at[1] if len(at) > 1 else 0]
    control = struct.pack("<HHH", offsets[0], offsets[1], offsets[2])
    return changed((4, struct.pack("<I", len(table))), (CONTROL + 12, control), table=table)


def target(index: int, **fields: bytes) -> bytes:
    """Return iPXE's target structure with another *index*, and other bytes at ``at_OFFSET``."""
    data = bytearray(TABLE[TARGET : TARGET + 54])
    data[4] = index
    for name, octets in fields.items():
        offset = int(name.removeprefix("at_"))
        data[offset : offset + len(octets)] = octets
    return bytes(data)
