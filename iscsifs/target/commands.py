"""The commands that the device servers here know: one table, by which CDBs are checked and reported.

A row gives, for an operation code (and service action), the CDB usage data of SPC-4 section 6.35.3: the
operation code, then for every further byte the bits that are looked at. The others are reserved: a CDB that
sets one asks for something that would not be done, and is refused. The length of a row is that of the CDB.
"""

import struct
from collections.abc import Collection
from typing import Final

# DPO and FUA are 18h in byte 1, BYTCHK is 06h. There is no protection information (E0h). The group
# number (1Fh) counts what need not be counted (SBC-3 section 4.22).
_ROWS: Final = """
    00      00 00 00 00 00 00                                   TEST UNIT READY
    03      03 01 00 00 ff 00                                   REQUEST SENSE
    08      08 1f ff ff ff 00                                   READ(6)
    0a      0a 1f ff ff ff 00                                   WRITE(6)
    12      12 01 ff ff ff 00                                   INQUIRY
    15      15 11 00 00 ff 00                                   MODE SELECT(6)
    1a      1a 08 ff ff ff 00                                   MODE SENSE(6)
    1b      1b 01 00 0f f7 00                                   START STOP UNIT
    1e      1e 00 00 00 03 00                                   PREVENT ALLOW MEDIUM REMOVAL
    25      25 00 ff ff ff ff 00 00 01 00                       READ CAPACITY(10)
    28      28 18 ff ff ff ff 1f ff ff 00                       READ(10)
    2a      2a 18 ff ff ff ff 1f ff ff 00                       WRITE(10)
    2e      2e 16 ff ff ff ff 1f ff ff 00                       WRITE AND VERIFY(10)
    2f      2f 16 ff ff ff ff 1f ff ff 00                       VERIFY(10)
    34      34 02 ff ff ff ff 1f ff ff 00                       PRE-FETCH(10)
    35      35 02 ff ff ff ff 1f ff ff 00                       SYNCHRONIZE CACHE(10)
    37      37 00 1f 00 00 00 00 ff ff 00                       READ DEFECT DATA(10)
    41      41 08 ff ff ff ff 1f ff ff 00                       WRITE SAME(10)
    42      42 00 00 00 00 00 1f ff ff 00                       UNMAP
    55      55 11 00 00 00 00 00 ff ff 00                       MODE SELECT(10)
    5a      5a 18 ff ff 00 00 00 ff ff 00                       MODE SENSE(10)
    88      88 18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00     READ(16)
    89      89 18 ff ff ff ff ff ff ff ff 00 00 00 ff 1f 00     COMPARE AND WRITE
    8a      8a 18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00     WRITE(16)
    8b      8b 18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00     ORWRITE(16)
    8e      8e 16 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00     WRITE AND VERIFY(16)
    8f      8f 16 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00     VERIFY(16)
    90      90 02 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00     PRE-FETCH(16)
    91      91 02 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00     SYNCHRONIZE CACHE(16)
    93      93 09 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00     WRITE SAME(16)
    9e10    9e 10 ff ff ff ff ff ff ff ff ff ff ff ff 01 00     READ CAPACITY(16)
    9e12    9e 12 ff ff ff ff ff ff ff ff ff ff ff ff 00 00     GET LBA STATUS
    a0      a0 00 ff 00 00 00 ff ff ff ff 00 00                 REPORT LUNS
    a30c    a3 0c 87 ff ff ff ff ff ff ff 00 00                 REPORT SUPPORTED OPERATION CODES
    a30d    a3 0d 00 00 00 00 ff ff ff ff 00 00                 REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS
    a8      a8 18 ff ff ff ff ff ff ff ff 1f 00                 READ(12)
    aa      aa 18 ff ff ff ff ff ff ff ff 1f 00                 WRITE(12)
    ae      ae 16 ff ff ff ff ff ff ff ff 1f 00                 WRITE AND VERIFY(12)
    af      af 16 ff ff ff ff ff ff ff ff 1f 00                 VERIFY(12)
    b7      b7 1f 00 00 00 00 ff ff ff ff 00 00                 READ DEFECT DATA(12)
"""

_SERVICE_ACTION: Final = 0x1F  # in byte 1
_SUPPORTED: Final = 3
_NOT_SUPPORTED: Final = 1
_CTDP: Final = 0x80  # a command timeouts descriptor is present
_NO_TIMEOUTS: Final = struct.pack(">H10x", 10)  # length, then zeros: nothing is said of times

# Operation code, service action, flags, CDB length.
_DESCRIPTOR: Final = struct.Struct(">BxHxBH")
_SERVACTV: Final = 0x01
_DESCRIPTOR_CTDP: Final = 0x02


def _read_rows() -> dict[int, bytes]:
    rows = {}
    for line in _ROWS.strip().splitlines():
        command, _, usage = line.strip().partition(" ")
        rows[int(command, 16)] = bytes.fromhex(usage.strip().partition("   ")[0])
    return rows


USAGE: Final = _read_rows()
"""The CDB usage data by command: an operation code, or 256 times that and a service action."""

_RESERVED: Final = {
    command: ~int.from_bytes(usage[1:], "big") & (1 << 8 * len(usage) - 8) - 1
    for command, usage in USAGE.items()
}
_WITH_SERVICE_ACTION: Final = frozenset(command >> 8 for command in USAGE if command > 0xFF)


def has_service_action(code: int) -> bool:
    """Tell whether *code* names a command only together with a service action."""
    return code in _WITH_SERVICE_ACTION


def command_of(cdb: bytes) -> int:
    """Return what `USAGE` knows *cdb* by, whether it is there or not."""
    code = cdb[0]
    return code << 8 | cdb[1] & _SERVICE_ACTION if code in _WITH_SERVICE_ACTION else code


def sets_reserved_bits(command: int, cdb: bytes) -> bool:
    """Tell whether *cdb* sets a bit that the row of *command* does not have."""
    return bool(int.from_bytes(cdb[1 : len(USAGE[command])], "big") & _RESERVED[command])


def pack_supported(commands: Collection[int], *, timeouts: bool) -> bytes:
    """Return the parameter data that list *commands* (SPC-4 section 6.35.2)."""
    descriptors = b""
    for command in sorted(commands, key=_split):
        code, action = _split(command)
        flags = (_SERVACTV if command > 0xFF else 0) | (_DESCRIPTOR_CTDP if timeouts else 0)
        descriptors += _DESCRIPTOR.pack(code, action, flags, len(USAGE[command]))
        descriptors += _NO_TIMEOUTS if timeouts else b""
    return len(descriptors).to_bytes(4, "big") + descriptors


def pack_one(command: int | None, *, timeouts: bool) -> bytes:
    """Return the parameter data for one *command*, None for one that is not supported (section 6.35.3)."""
    if command is None:
        return struct.pack(">xBH", _NOT_SUPPORTED, 0)
    usage = USAGE[command]
    flags = _SUPPORTED | (_CTDP if timeouts else 0)
    return struct.pack(">xBH", flags, len(usage)) + usage + (_NO_TIMEOUTS if timeouts else b"")


def _split(command: int) -> tuple[int, int]:
    """Return the operation code and the service action of *command*, 0 where it has none."""
    return (command >> 8, command & 0xFF) if command > 0xFF else (command, 0)
