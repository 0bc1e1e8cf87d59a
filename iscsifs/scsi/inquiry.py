"""Standard INQUIRY data (SPC-3 section 6.4.2)."""

from dataclasses import dataclass
from enum import IntEnum

from iscsifs.errors import UnitError, printable


class DeviceType(IntEnum):
    """The peripheral device type (SPC-3 section 6.4.2, table 83, and SPC-4)."""

    DISK = 0x00
    TAPE = 0x01
    PRINTER = 0x02
    PROCESSOR = 0x03
    WRITE_ONCE = 0x04
    CD_DVD = 0x05
    SCANNER = 0x06
    OPTICAL_MEMORY = 0x07
    MEDIUM_CHANGER = 0x08
    COMMUNICATIONS = 0x09
    STORAGE_ARRAY_CONTROLLER = 0x0C
    ENCLOSURE_SERVICES = 0x0D
    SIMPLIFIED_DISK = 0x0E
    OPTICAL_CARD = 0x0F
    BRIDGE_CONTROLLER = 0x10
    OBJECT_STORAGE = 0x11
    AUTOMATION_DRIVE_INTERFACE = 0x12
    ZONED_DISK = 0x14
    WELL_KNOWN_LOGICAL_UNIT = 0x1E
    UNKNOWN = 0x1F

    @classmethod
    def _missing_(cls, value: object) -> "DeviceType":
        """Take a reserved type for what the standard has for such cases: unknown or no device."""
        return cls.UNKNOWN

    @property
    def label(self) -> str:
        """The type as one word: ``disk``, ``cd-dvd``, ``storage-array-controller``."""
        return self.name.lower().replace("_", "-")

    @property
    def addressed_by_block(self) -> bool:
        """True where READ(10) with an LBA reads data, so that the unit can be shown as one file."""
        return self in _ADDRESSED_BY_BLOCK


_ADDRESSED_BY_BLOCK = frozenset(
    {
        DeviceType.DISK,
        DeviceType.WRITE_ONCE,
        DeviceType.CD_DVD,
        DeviceType.OPTICAL_MEMORY,
        DeviceType.SIMPLIFIED_DISK,
        DeviceType.ZONED_DISK,
    }
)

STANDARD_LENGTH = 36
"""The bytes of the standard data that every unit has; the rest is of no use here."""

_DESCRIPTORS_AT = 58
_DESCRIPTORS_LENGTH = 16


@dataclass(frozen=True, slots=True)
class InquiryData:
    """What a logical unit says of itself.

    The texts have lost their padding and are fit for a terminal; an absent one is empty. *version* is the
    standard claimed (5 is SPC-3), *peripheral_qualifier* 0 when there is a device behind the LUN.
    """

    device_type: DeviceType
    peripheral_qualifier: int = 0
    removable: bool = False
    version: int = 0
    vendor: str = ""
    product: str = ""
    revision: str = ""
    version_descriptors: tuple[int, ...] = ()
    """The standards claimed, eight at most (SPC-3 section 6.4.2); they are sent, and not read."""

    @property
    def connected(self) -> bool:
        """True when the LUN leads to a device (peripheral qualifier 000b)."""
        return self.peripheral_qualifier == 0 and self.device_type is not DeviceType.UNKNOWN

    @classmethod
    def parse(cls, data: bytes) -> "InquiryData":
        """Read standard INQUIRY data, of which any part may be missing but the first byte.

        Raises `UnitError` when there is no data at all.
        """
        if not data:
            raise UnitError("the logical unit answered INQUIRY without data")
        if len(data) > 4:
            data = data[: data[4] + 5]
        return cls(
            device_type=DeviceType(data[0] & 0x1F),
            peripheral_qualifier=data[0] >> 5,
            removable=bool(data[1] & 0x80) if len(data) > 1 else False,
            version=data[2] if len(data) > 2 else 0,
            vendor=ascii_field(data[8:16]),
            product=ascii_field(data[16:32]),
            revision=ascii_field(data[32:36]),
        )

    def pack(self) -> bytes:
        """Return the standard data: `STANDARD_LENGTH` bytes, or more with version descriptors.

        Texts that are too long are cut.
        """
        descriptors = b""
        if self.version_descriptors:
            codes = b"".join(code.to_bytes(2, "big") for code in self.version_descriptors)
            descriptors = bytes(_DESCRIPTORS_AT - STANDARD_LENGTH) + codes.ljust(_DESCRIPTORS_LENGTH, b"\0")
        return (
            bytes((self.peripheral_qualifier << 5 | self.device_type, 0x80 if self.removable else 0))
            # Response data format 2; the additional length counts from byte 5; CMDQUE: commands are queued.
            + bytes((self.version, 2, STANDARD_LENGTH + len(descriptors) - 5, 0, 0, 0x02))
            + b"".join(
                text.encode("ascii", "replace")[:size].ljust(size)
                for text, size in ((self.vendor, 8), (self.product, 16), (self.revision, 4))
            )
            + descriptors
        )


def ascii_field(data: bytes) -> str:
    """Return an ASCII data field (SPC-3 section 4.4.1) without its padding, escaped."""
    return printable(data.strip(b" \0"))
