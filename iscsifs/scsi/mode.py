"""Mode parameters: the answers to MODE SENSE(6) and (10) (SPC-3 section 7.4; SBC-3 for disks)."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

CACHING_PAGE = 0x08
ALL_PAGES = 0x3F

# Mode data length, medium type, device-specific parameter, (LONGLBA,) block descriptor length.
_HEADER_6 = struct.Struct(">BBBB")
_HEADER_10 = struct.Struct(">HBBxxH")
_SUBPAGE_HEADER = struct.Struct(">BBH")

# The device-specific parameter of a direct access device (SBC-3, Mode parameters).
_WP = 0x80
_DPOFUA = 0x10

_SPF = 0x40

_WCE = 0x04
_RCD = 0x01
_CACHING_LENGTH = 0x12


@dataclass(frozen=True, slots=True)
class Caching:
    """The Caching mode page (SBC-3): *wce*, a volatile write cache is on; *rcd*, the read cache is off."""

    wce: bool
    rcd: bool = False

    def pack(self) -> bytes:
        """Return the page's parameters, without its header."""
        return bytes((self.wce << 2 | self.rcd,)).ljust(_CACHING_LENGTH, b"\0")


@dataclass(frozen=True, slots=True)
class ModeData:
    """What MODE SENSE gave.

    *write_protected*: the unit refuses writes; *dpo_fua*: it honours FUA and DPO. *pages* has the parameters
    of each page behind its header, by (page code, subpage code), as far as they arrived.
    """

    write_protected: bool = False
    dpo_fua: bool = False
    pages: Mapping[tuple[int, int], bytes] = field(default_factory=dict)

    @property
    def caching(self) -> Caching | None:
        """The Caching page; None where the unit did not send it, which is no promise that it has no cache."""
        parameters = self.pages.get((CACHING_PAGE, 0))
        if not parameters:
            return None
        return Caching(wce=bool(parameters[0] & _WCE), rcd=bool(parameters[0] & _RCD))

    def pack_6(self) -> bytes:
        """Return the answer to MODE SENSE(6), without a block descriptor."""
        pages = self._pack_pages()
        return _HEADER_6.pack(len(pages) + 3, 0, self._device_specific, 0) + pages

    def pack_10(self) -> bytes:
        """Return the answer to MODE SENSE(10), without a block descriptor."""
        pages = self._pack_pages()
        return _HEADER_10.pack(len(pages) + 6, 0, self._device_specific, 0) + pages

    @property
    def _device_specific(self) -> int:
        return (_WP if self.write_protected else 0) | (_DPOFUA if self.dpo_fua else 0)

    def _pack_pages(self) -> bytes:
        return b"".join(
            (
                _SUBPAGE_HEADER.pack(page | _SPF, subpage, len(parameters))
                if subpage
                else bytes((page, len(parameters)))
            )
            + parameters
            for (page, subpage), parameters in self.pages.items()
        )


def parse_6(data: bytes) -> ModeData:
    """Read the answer to MODE SENSE(6); what is not there is absent from the result."""
    if len(data) < _HEADER_6.size:
        return ModeData()
    length, _, device_specific, descriptors = _HEADER_6.unpack_from(data)
    return _parse(data[: length + 1], _HEADER_6.size + descriptors, device_specific)


def parse_10(data: bytes) -> ModeData:
    """Read the answer to MODE SENSE(10); what is not there is absent from the result."""
    if len(data) < _HEADER_10.size:
        return ModeData()
    length, _, device_specific, descriptors = _HEADER_10.unpack_from(data)
    return _parse(data[: length + 2], _HEADER_10.size + descriptors, device_specific)


def _parse(data: bytes, position: int, device_specific: int) -> ModeData:
    pages: dict[tuple[int, int], bytes] = {}
    while len(data) >= position + 2:
        page, subpage, length, start = data[position] & 0x3F, 0, data[position + 1], position + 2
        if data[position] & _SPF:
            start = position + _SUBPAGE_HEADER.size
            if len(data) < start:
                break
            _, subpage, length = _SUBPAGE_HEADER.unpack_from(data, position)
        position = start + length
        pages.setdefault((page, subpage), data[start:position])
    return ModeData(bool(device_specific & _WP), bool(device_specific & _DPOFUA), pages)
