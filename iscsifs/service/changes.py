"""What has changed about the units of a target, and what they have lost, told as events."""

from collections.abc import Callable, Sequence

import trio

from iscsifs.fs.storage import Storage
from iscsifs.fs.storages import Storages
from iscsifs.fs.tree import UnitDescription

Tell = Callable[[str, str, str], None]
"""Takes the kind of an event, the number of the unit and a sentence."""


class UnitChanges:
    """Tells what is other about the units of a target than at the last look."""

    def __init__(self, units: Sequence[UnitDescription], tell: Tell) -> None:
        self._tell = tell
        self._known = {unit.label: _Known(unit) for unit in units}

    def look(self, units: Sequence[UnitDescription]) -> None:
        """Compare *units* with those of the last look, and tell what has come, gone and changed."""
        known, self._known = self._known, {unit.label: _Known(unit) for unit in units}
        for label, before in known.items():
            now = self._known.get(label)
            if now is None:
                self._tell("unit_removed", label, f"the logical unit is gone: {before.text}")
            elif now.unit.storage is not before.unit.storage:
                self._tell(
                    "unit_removed", label, f"there is another logical unit now in place of {before.text}"
                )
                self._tell("unit_added", label, f"a new logical unit: {now.text}")
            elif now.text != before.text:
                self._tell("unit_changed", label, f"the logical unit was {before.text}, and is {now.text}")
        for label, now in self._known.items():
            if label not in known:
                self._tell("unit_added", label, f"a new logical unit: {now.text}")


class LossWatch:
    """Tells of writes that were acknowledged and are lost; *tell* is told of the unit and of the reason."""

    def __init__(self, storages: Storages, tell: Callable[[Storage, str], None]) -> None:
        self._storages = storages
        self._tell = tell
        self._counts: dict[Storage, int] = {}

    async def run(self) -> None:
        """Look every second, until cancelled."""
        while True:
            await trio.sleep(1.0)
            self.look()

    def look(self) -> None:
        """Look once at what was ever opened to be written."""
        counts = {storage: storage.failures for storage in self._storages.written}
        for storage, count in counts.items():
            if count > self._counts.get(storage, 0):
                self._tell(storage, f"acknowledged writes are lost: {storage.last_failure}")
        self._counts = counts


class _Known:
    """A unit as it was at a look: its size is that of the moment."""

    __slots__ = ("text", "unit")

    def __init__(self, unit: UnitDescription) -> None:
        self.unit = unit
        parts = [unit.type_name, unit.vendor, unit.product, unit.version, unit.serial or "", unit.wwid or ""]
        if unit.storage is not None:
            parts.append(f"{unit.storage.size} bytes")
            parts.append("read-only" if unit.storage.read_only else "")
        self.text = ", ".join(part for part in parts if part)
