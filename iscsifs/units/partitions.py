"""The partition table of a disk: GPT (UEFI specification, chapter 5) and MBR, for any block size.

Without I/O: `partitions` is a generator that asks for bytes of the disk and is sent them. What the table says
may come from anybody who could write to the disk, so nothing beyond the end of the disk is believed.
"""

import struct
import uuid
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from iscsifs.limits import MAX_PARTITION_ENTRIES, MAX_PARTITIONS

_SIGNATURE: Final = b"\x55\xaa"
_EXTENDED: Final = frozenset({0x05, 0x0F, 0x85})
_PROTECTIVE: Final = 0xEE
_FIRST_LOGICAL: Final = 5

_HEADER: Final = struct.Struct("<8s4sIIIQQQQ16sQIII")
_ENTRY: Final = struct.Struct("<16s16sQQQ72s")


@dataclass(frozen=True, slots=True)
class Partition:
    """Bytes *start* to *start* + *size* of a disk, as partition *number* (from 1, as Linux counts).

    *type* is the GUID of a GPT, or the number of an MBR as in ``0x83``. *name* is what a GPT says.
    """

    number: int
    start: int
    size: int
    type: str
    name: str = ""


Reads = Generator[tuple[int, int], bytes, list[Partition]]
"""Yields (offset, size) of what is to be read, is sent the bytes, and returns the partitions."""


def partitions(size: int, block_size: int) -> Reads:
    """Return the partitions of a disk of *size* bytes, none where there is no valid table."""
    if size < 2 * block_size:
        return []
    entries = _mbr_entries((yield 0, block_size))
    if any(kind == _PROTECTIVE for kind, _, _ in entries):
        blocks = size // block_size
        for lba in 1, blocks - 1:  # the backup, where the first one is damaged
            found = yield from _gpt(lba, blocks, block_size)
            if found is not None:
                return found
        return []
    return (yield from _mbr(entries, size, block_size))


def _mbr_entries(block: bytes) -> list[tuple[int, int, int]]:
    """Return (type, first block, blocks) of the four entries; nothing where the block is no boot record.

    A boot sector of FAT or NTFS has the signature as well, and code in the place of the entries.
    """
    if block[510:512] != _SIGNATURE:
        return []
    entries = [block[offset : offset + 16] for offset in range(446, 510, 16)]
    if any(entry[0] & 0x7F for entry in entries):
        return []
    return [(entry[4], *struct.unpack_from("<II", entry, 8)) for entry in entries]


def _mbr(entries: list[tuple[int, int, int]], size: int, block_size: int) -> Reads:
    found: list[Partition] = []
    extended: tuple[int, int] | None = None
    for number, (kind, first, count) in enumerate(entries, 1):
        start = first * block_size
        if not kind or not first or not count or start >= size:
            continue
        if kind in _EXTENDED:
            extended = extended or (first, count)
        else:
            found.append(Partition(number, start, min(count * block_size, size - start), f"0x{kind:02x}"))
    if extended is not None:
        found += yield from _logical(*extended, size, block_size)
    return found


def _logical(first: int, count: int, size: int, block_size: int) -> Reads:
    """Walk the chain of extended boot records in the extended partition of *count* blocks from *first*."""
    found: list[Partition] = []
    record = first
    seen: set[int] = set()
    while record not in seen and len(seen) < MAX_PARTITIONS and (record + 1) * block_size <= size:
        seen.add(record)
        entries = _mbr_entries((yield record * block_size, block_size))[:2]
        following = 0
        for kind, offset, length in entries:
            if kind in _EXTENDED and offset < count:
                following = first + offset
            elif kind and length:
                start = (record + offset) * block_size
                if offset and start < size:
                    number = _FIRST_LOGICAL + len(found)
                    length = min(length * block_size, size - start)
                    found.append(Partition(number, start, length, f"0x{kind:02x}"))
        if not following:
            break
        record = following
    return found


def _gpt(lba: int, blocks: int, block_size: int) -> Generator[tuple[int, int], bytes, list[Partition] | None]:
    """Return the partitions of the GPT whose header is block *lba*; None where that is not valid."""
    block = yield lba * block_size, block_size
    if len(block) < _HEADER.size:
        return None
    fields = _HEADER.unpack_from(block)
    signature, _, length, checksum, _, own_lba, _, first, last, _ = fields[:10]
    entries_lba, count, entry_size, entries_checksum = fields[10:]
    if signature != b"EFI PART" or own_lba != lba or not _HEADER.size <= length <= block_size:
        return None
    header = bytearray(block[:length])
    header[16:20] = bytes(4)
    if zlib.crc32(header) != checksum:
        return None
    table_size = count * entry_size
    if not 0 < table_size <= MAX_PARTITION_ENTRIES or entry_size < _ENTRY.size or entry_size % 8:
        return None
    whole_blocks = -(-table_size // block_size)
    if not 1 < entries_lba <= blocks - whole_blocks or not first <= last < blocks:
        return None
    table = (yield entries_lba * block_size, whole_blocks * block_size)[:table_size]
    if zlib.crc32(table) != entries_checksum:
        return None
    found: list[Partition] = []
    for number in range(1, count + 1):
        kind, _, begin, end, _, name = _ENTRY.unpack_from(table, (number - 1) * entry_size)
        if any(kind) and first <= begin <= end <= last and len(found) < MAX_PARTITIONS:
            size = (end - begin + 1) * block_size
            text = name.decode("utf-16-le", "replace").partition("\0")[0]
            found.append(Partition(number, begin * block_size, size, str(uuid.UUID(bytes_le=kind)), text))
    return found
