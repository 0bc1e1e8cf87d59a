"""The iBFT as Linux's module iscsi_ibft shows it under /sys/firmware/ibft.

A file that is not there is a field that is not there. The LUN is a trap: the kernel prints each of its eight
bytes without leading zeros, so that only eight digits can be read for certain.
"""

import re
from collections.abc import Mapping
from typing import Final

from iscsifs.errors import printable
from iscsifs.ibft.model import (
    Address,
    Block,
    Ibft,
    Initiator,
    Nic,
    TargetFields,
    assemble,
    printable_text,
    text_address,
)

_LUN_BYTES: Final = 8


def parse(files: Mapping[str, bytes]) -> Ibft:
    """Read what the files hold, each under its path below the directory: ``target0/lun``."""
    notes: list[str] = []
    initiator: Initiator | None = None
    nics: list[Nic] = []
    targets: list[TargetFields] = []
    directories = sorted({path.partition("/")[0] for path in files}, key=lambda name: (len(name), name))
    for name in directories:
        directory = _Directory(files, name)
        try:
            if name == "initiator":
                initiator = _initiator(directory)
            elif re.fullmatch("ethernet[0-9]+", name):
                nics.append(_nic(directory))
            elif re.fullmatch("target[0-9]+", name):
                targets.append(_target(directory))
        except ValueError as error:
            notes.append(f"{name}: {error}; left out")
    header = _Directory(files, "acpi_header")
    return assemble(
        initiator,
        nics,
        targets,
        notes,
        oem_id=printable(header.raw("oem_id") or b"").strip(),
        oem_table_id=printable(header.raw("oem_table_id") or b"").strip(),
    )


class _Directory:
    """The files of one structure; each reader raises ValueError for what cannot be read."""

    def __init__(self, files: Mapping[str, bytes], name: str) -> None:
        self._files = files
        self._name = name

    def raw(self, field: str) -> bytes | None:
        """Return the content without the newline at its end, None where there is none."""
        return self._files.get(f"{self._name}/{field}", b"").removesuffix(b"\n") or None

    def text(self, field: str) -> str | None:
        """Return a string."""
        octets = self.raw(field)
        return None if octets is None else printable_text(octets)

    def number(self, field: str, default: int = 0) -> int:
        """Return a number."""
        text = self.text(field)
        if text is None:
            return default
        if not re.fullmatch("[0-9]{1,9}", text):
            raise ValueError(f'{field} is "{printable(text)}", which is no number')
        return int(text)

    def address(self, field: str) -> Address | None:
        """Return an address; one of zeros is none."""
        text = self.text(field)
        return None if text is None else text_address(text)


def _initiator(files: _Directory) -> Initiator:
    return Initiator(
        files.text("initiator-name"),
        files.address("isns-server"),
        files.address("slp-server"),
        (files.address("pri-radius-server"), files.address("sec-radius-server")),
        files.number("flags", Block.VALID),
    )


def _nic(files: _Directory) -> Nic:
    return Nic(
        files.number("index"),
        files.address("ip-addr"),
        files.number("prefix-len"),
        files.number("origin"),
        files.address("gateway"),
        (files.address("primary-dns"), files.address("secondary-dns")),
        files.address("dhcp"),
        files.number("vlan"),
        files.text("mac") or "",
        host_name=files.text("hostname"),
        flags=files.number("flags", Block.VALID),
    )


def _target(files: _Directory) -> TargetFields:
    return TargetFields(
        files.number("index"),
        files.number("flags", Block.VALID),
        files.address("ip-addr"),
        files.number("port"),
        _lun(files.text("lun")),
        files.number("chap-type"),
        files.number("nic-assoc"),
        files.text("target-name"),
        files.text("chap-name"),
        files.raw("chap-secret"),
        files.text("rev-chap-name"),
        files.raw("rev-chap-name-secret"),
    )


def _lun(text: str | None) -> int | None:
    """Read eight bytes of one digit each; None for anything else, which may be one LUN or another."""
    if text is None:
        return 0
    if not re.fullmatch(f"[0-9a-fA-F]{{{_LUN_BYTES}}}", text):
        return None
    return int.from_bytes(bytes(int(digit, 16) for digit in text), "big")
