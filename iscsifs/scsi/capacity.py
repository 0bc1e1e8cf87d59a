"""The size of a logical unit: READ CAPACITY(10) and (16) parameter data (SBC-3 sections 5.15 and 5.16)."""

import struct
from dataclasses import dataclass

from iscsifs.errors import UnitError

MIN_BLOCK_SIZE = 512
MAX_BLOCK_SIZE = 65536
MAX_BYTES = 2**63 - 1
"""The largest size of a file (off_t)."""

_DATA_10 = struct.Struct(">II")
_DATA_16 = struct.Struct(">QIBBH16x")
_SHORTEST_16 = 12
_LAST_LBA_10 = 0xFFFFFFFF

_PROT_EN = 0x01
_LBPME = 0x8000
_LBPRZ = 0x4000


@dataclass(frozen=True, slots=True)
class Capacity:
    """The size of a logical unit that can be shown as a file; `UnitError` says why another cannot.

    *blocks* is the number of logical blocks, *block_size* their size in bytes: a power of two from 512 to
    65536, so that every page of a file is whole blocks or every block whole pages. *physical_block_size* is
    in bytes. *lbpme*: the unit is thinly or resource provisioned; *lbprz*: its unmapped blocks read as zeros.
    *protection* is the type of protection information (1 to 3; 0 for none), which READ and WRITE leave out
    unless they are told otherwise.
    """

    blocks: int
    block_size: int
    physical_block_size: int = 0
    lbpme: bool = False
    lbprz: bool = False
    protection: int = 0

    def __post_init__(self) -> None:
        size = self.block_size
        if not MIN_BLOCK_SIZE <= size <= MAX_BLOCK_SIZE or size & (size - 1):
            raise UnitError(
                f"blocks of {size} bytes are not supported: "
                f"the size must be a power of two from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE}"
            )
        if self.blocks < 1:
            raise UnitError("a unit without blocks")
        if self.blocks * size > MAX_BYTES:
            raise UnitError(
                f"a unit of {self.blocks} blocks of {size} bytes is larger than a file can be (2^63-1 bytes)"
            )
        if not self.physical_block_size:
            object.__setattr__(self, "physical_block_size", size)

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.blocks * self.block_size

    @classmethod
    def parse_10(cls, data: bytes) -> "Capacity | None":
        """Read the answer to READ CAPACITY(10); None means that READ CAPACITY(16) has to be asked.

        Raises `UnitError` for an answer that is cut short, and for a unit that cannot be used.
        """
        if len(data) < _DATA_10.size:
            raise UnitError(f"READ CAPACITY(10) gave {len(data)} bytes instead of {_DATA_10.size}")
        last_lba, block_size = _DATA_10.unpack_from(data)
        return None if last_lba == _LAST_LBA_10 else cls(last_lba + 1, block_size)

    @classmethod
    def parse_16(cls, data: bytes) -> "Capacity":
        """Read the answer to READ CAPACITY(16), of which SBC-2's units send only the first 12 bytes.

        Raises `UnitError` for an answer that is cut short, and for a unit that cannot be used.
        """
        if len(data) < _SHORTEST_16:
            raise UnitError(f"READ CAPACITY(16) gave {len(data)} bytes instead of {_DATA_16.size}")
        last_lba, block_size, protection, exponents, provisioning = _DATA_16.unpack(
            data[: _DATA_16.size].ljust(_DATA_16.size, b"\0")
        )
        return cls(
            blocks=last_lba + 1,
            block_size=block_size,
            physical_block_size=block_size << (exponents & 0x0F),
            lbpme=bool(provisioning & _LBPME),
            lbprz=bool(provisioning & _LBPRZ),
            protection=(protection >> 1 & 0x07) + 1 if protection & _PROT_EN else 0,
        )

    def pack_10(self) -> bytes:
        """Return the data of READ CAPACITY(10), which for a large unit say that (16) has to be asked."""
        return _DATA_10.pack(min(self.blocks - 1, _LAST_LBA_10), self.block_size)

    def pack_16(self) -> bytes:
        """Return the data of READ CAPACITY(16)."""
        return _DATA_16.pack(
            self.blocks - 1,
            self.block_size,
            (self.protection - 1) << 1 | _PROT_EN if self.protection else 0,
            (self.physical_block_size // self.block_size).bit_length() - 1,
            (_LBPME if self.lbpme else 0) | (_LBPRZ if self.lbprz else 0),
        )
