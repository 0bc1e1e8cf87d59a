"""The units of a target that have bytes."""

from collections.abc import Iterable

from iscsifs.units.block import BlockUnit
from iscsifs.units.unit import LogicalUnit


def disks(units: Iterable[LogicalUnit]) -> list[BlockUnit]:
    """Return those of *units* that have a storage."""
    return [unit.storage for unit in units if unit.storage is not None]
