"""Finds the iBFT: in a file, in sysfs, or among the tables of ACPI.

Some firmware, iPXE for one, leaves the table in low memory only, where ACPI does not know of it: the kernel's
module iscsi_ibft finds it there. /dev/mem is not searched here.
"""

import os
from pathlib import Path
from typing import Final

from iscsifs.errors import ConfigError, reason
from iscsifs.ibft import sysfs, table
from iscsifs.ibft.model import Ibft

FIRMWARE: Final = Path("/sys/firmware")

_TABLES: Final = tuple(signature.decode() for signature in table.SIGNATURES)
_MAX_TABLE: Final = 1 << 20
_MAX_FILE: Final = 4096  # of sysfs, which has no longer ones
_MAX_FILES: Final = 4096


class NoIbft(ConfigError):
    """There is no iBFT where one was looked for."""


def find(file: Path | None = None, firmware: Path = FIRMWARE) -> Ibft:
    """Return the table in *file* where that is given, else the one of sysfs, else the one of ACPI.

    Raises NoIbft where there is none, and ConfigError where it cannot be read.
    """
    if file is not None:
        return table.parse(_read(file, _MAX_TABLE))
    directory = firmware / "ibft"
    found = _of_sysfs(directory)
    if found is not None and all(target.lun is not None for target in found.targets):
        return found
    tables = _tables(firmware / "acpi" / "tables")
    if tables:
        return table.parse(_read(tables[0], _MAX_TABLE))
    if found is None:
        raise NoIbft(
            f"there is no iBFT in {directory} or {firmware}/acpi/tables;"
            " was this system booted from iSCSI, and is the module loaded (modprobe iscsi_ibft)?"
        )
    return found


def _of_sysfs(directory: Path) -> Ibft | None:
    """Return the table that sysfs shows, None where it shows none."""
    if not os.path.lexists(directory):
        return None
    files: dict[str, bytes] = {}
    for structure in _entries(directory):
        if structure.is_symlink() or not structure.is_dir():
            continue
        for file in _entries(structure):
            # The links lead to devices, and to the directory of the subsystem.
            if not file.is_symlink() and file.is_file() and len(files) < _MAX_FILES:
                files[f"{structure.name}/{file.name}"] = _read(file, _MAX_FILE)
    return sysfs.parse(files) if files else None


def _tables(directory: Path) -> list[Path]:
    """Return the tables of ACPI that are called as an iBFT is: iBFT, iBFT1..."""
    if not os.path.lexists(directory):
        return []
    return [path for name in _TABLES for path in _entries(directory) if path.name.startswith(name)]


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError as error:
        raise ConfigError(_refused(directory, error)) from None


def _read(path: Path, limit: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(descriptor, "rb") as file:
            return file.read(limit + 1)[:limit]
    except OSError as error:
        raise ConfigError(_refused(path, error)) from None


def _refused(path: Path, error: OSError) -> str:
    remedy = (
        "; the table has secrets in it, so only root may read it"
        if isinstance(error, PermissionError)
        else ""
    )
    return f"iBFT: {path}: {reason(error)}{remedy}"
