"""What the commands tell that only read: tables for people, one JSON document for scripts."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from iscsifs.ctl import tables
from iscsifs.ctl.description import (
    Session,
    Target,
    Unit,
    describe_all,
    describe_target,
    describe_unit,
    read_session,
)
from iscsifs.ctl.mounted import CONTROL, Mount
from iscsifs.ctl.places import Place, all_places
from iscsifs.ctl.sample import Sample, bound
from iscsifs.ctl.statistics import Operations, Statistics, read_statistics


def as_json(value: object) -> str:
    """Return *value*, made of dataclasses, sequences and mappings, as one line of JSON in ASCII."""
    return tables.json_line(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, Place):
        return str(value)
    if isinstance(value, Operations):
        shown = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return shown | {"mean_seconds": value.mean, "p99_seconds": _plain(value.p99)}
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "+Inf"
    return value


def version(mount: Mount) -> str | None:
    """Return the program and version that serves *mount*."""
    return mount.value(CONTROL, "version")


# list


def list_targets(mount: Mount) -> list[str]:
    """Return the table of all units, and of targets that have none."""
    rows: list[Sequence[object]] = []
    for target in describe_all(mount):
        for unit in target.units:
            capacity = None if unit.size is None else tables.size(unit.size)
            texts = (unit.device, unit.vendor, unit.product)
            rows.append((target.place, target.state, unit.place.unit, capacity, *texts))
        if not target.units:
            rows.append((target.place, target.state, *(None for _ in range(5))))
    headings = ("TARGET", "STATE", "UNIT", "SIZE", "DEVICE", "VENDOR", "PRODUCT")
    return tables.table(headings, rows, ("SIZE",)) if rows else []


def list_json(mount: Mount) -> str:
    """Return the same for scripts."""
    return as_json({"mount": str(mount.path), "version": version(mount), "targets": describe_all(mount)})


# show


def show(mount: Mount, place: Place | None) -> list[str]:
    """Return all that is known of *place*; of the mount where that is None."""
    if place is None:
        return _show_mount(mount)
    if place.unit:
        return _show_unit(mount, place)
    if place.target:
        return _show_target(describe_target(mount, place), read_session(mount, place))
    below = [target for target in describe_all(mount) if place.contains(target.place)]
    lines = [
        line for target in below for line in [*_show_target(target, read_session(mount, target.place)), ""]
    ]
    return lines[:-1] if lines else tables.fields([("host", place), ("targets", "none yet")])


def show_json(mount: Mount, place: Place | None) -> str:
    """Return the same for scripts."""
    if place is None:
        return as_json({"mount": str(mount.path), "version": version(mount), "config": _config(mount)})
    if place.unit:
        return as_json({"unit": describe_unit(mount, place), "statistics": read_statistics(mount, place)})
    below = [target for target in describe_all(mount) if place.contains(target.place)]
    return as_json([{"target": target, "session": read_session(mount, target.place)} for target in below])


def _config(mount: Mount) -> list[list[tuple[str, str]]]:
    """Return the settings in force, in sections: of the mount, and of each host; a key may come again."""
    text = mount.value(CONTROL, "config") or ""
    sections = [section.splitlines() for section in re.split(r"\n\s*\n", text.strip("\n"))]
    return [[_setting(line) for line in section] for section in sections if any(section)]


def _setting(line: str) -> tuple[str, str]:
    """Take ``key value`` or ``key = value`` apart."""
    key, _, value = re.sub(r"\s*=\s*|\s+", " ", line.strip(), count=1).partition(" ")
    return key, value


def _show_mount(mount: Mount) -> list[str]:
    about = [("mount", str(mount.path)), ("version", version(mount) or "")]
    sections = [tables.fields(section) for section in [about, *_config(mount)]]
    return [line for section in sections for line in [*section, ""]][:-1]


def _show_target(target: Target, session: Session) -> list[str]:
    keys = " ".join(f"{key}={value}" for key, value in session.parameters.items())
    return tables.fields(
        [
            ("target", target.place),
            ("targetname", target.targetname),
            ("hostname", target.hostname),
            ("ip", target.ip),
            ("port", target.port),
            ("state", session.state),
            ("since", session.since),
            ("isid", session.isid),
            ("tsih", session.tsih),
            ("portal group", session.target_portal_group),
            *(("connection", connection) for connection in session.connections),
            *(("negotiated", part) for part in _folded(keys)),
            ("reconnects", session.reconnects),
            ("last error", session.last_error or None),
            *(("unit", _summary(unit)) for unit in target.units),
        ]
    )


def _folded(text: str) -> Iterable[str]:
    """Yield the words of *text* in lines of moderate length."""
    line = ""
    for word in text.split():
        if line and len(line) + len(word) > 70:
            yield line
            line = ""
        line = f"{line} {word}".lstrip()
    if line:
        yield line


def _summary(unit: Unit) -> str:
    texts = (tables.size(unit.size), unit.type, unit.vendor, unit.product, unit.device)
    return " ".join([unit.place.unit, *(text for text in texts if text)])


def _show_unit(mount: Mount, place: Place) -> list[str]:
    unit, counts = describe_unit(mount, place), read_statistics(mount, place)
    capacity = None if unit.size is None else f"{tables.size(unit.size)} ({unit.size} bytes)"
    lines = tables.fields(
        [
            ("unit", unit.place),
            ("type", unit.type),
            ("vendor", unit.vendor),
            ("product", unit.product),
            ("version", unit.version),
            ("serial", unit.serial),
            ("wwid", unit.wwid),
            ("block size", unit.block_size),
            ("size", capacity),
            ("read-only", unit.read_only),
            ("device", unit.device),
            *((name, tables.size(count)) for name, count in unit.partitions.items()),
        ]
    )
    return lines if counts is None else [*lines, "", *statistics_tables([(place, counts)])]


# stats and top


def statistics_of(mount: Mount, wanted: Sequence[Place]) -> list[tuple[Place, Statistics]]:
    """Return the counts of the units that are in *wanted*, of all where that is empty."""
    units = [place for place in all_places(mount) if place.unit]
    if wanted:
        units = [unit for unit in units if any(place.contains(unit) for place in wanted)]
    found = [(unit, counts) for unit in units if (counts := read_statistics(mount, unit)) is not None]
    if units and not found:
        mount.require(*units[0].names, "statistics")
    return found


def statistics_tables(counts: Sequence[tuple[Place, Statistics]]) -> list[str]:
    """Return two tables: the operations of each kind, and how the units stand."""
    operations: list[Sequence[object]] = []
    for place, found in counts:
        for kind, done in ("read", found.reads), ("write", found.writes), ("flush", found.flushes):
            volume = tables.size(done.bytes) if kind != "flush" else None
            times = (tables.duration(done.mean), bound(done.p99))
            operations.append((place, kind, done.count, volume, done.errors, *times))
    standing = [
        (
            place,
            found.depth,
            found.deepest,
            tables.size(found.dirty_bytes),
            tables.size(found.unsynchronised_bytes),
            found.repeats,
            found.losses,
        )
        for place, found in counts
    ]
    numbers = ("COUNT", "BYTES", "ERRORS", "MEAN", "P99")
    others = ("DEPTH", "DEEPEST", "DIRTY", "UNSYNC", "REPEATS", "LOSSES")
    return [
        *tables.table(("UNIT", "KIND", *numbers), operations, numbers),
        "",
        *tables.table(("UNIT", *others), standing, others),
    ]


def statistics_json(mount: Mount, counts: Sequence[tuple[Place, Statistics]]) -> str:
    """Return the counts for scripts."""
    units = {str(place): found for place, found in counts}
    return as_json({"mount": str(mount.path), "units": units})


def samples_json(mount: Mount, samples: Sequence[Sample]) -> str:
    """Return the rates of an interval for scripts, in one line."""
    units = {}
    for sample in samples:
        shown: dict[str, object] = {"state": sample.state}
        if (found := sample.rates) is not None:
            now = found.now
            shown |= {
                "seconds": found.seconds,
                "reads_per_second": found.each_second(found.reads.count),
                "writes_per_second": found.each_second(found.writes.count),
                "read_bytes_per_second": found.each_second(found.reads.bytes),
                "write_bytes_per_second": found.each_second(found.writes.bytes),
                "mean_seconds": found.transfers.mean,
                "p99_seconds": found.transfers.p99,
                "dirty_bytes": now.dirty_bytes,
                "unsynchronised_bytes": now.unsynchronised_bytes,
                "depth": now.depth,
            }
        units[str(sample.place)] = shown
    return as_json({"mount": str(mount.path), "units": units})


# loop and trace


def loop_devices(mount: Mount) -> list[Unit]:
    """Return the units that can be attached to a loop device, or are."""
    units = [unit for target in describe_all(mount) for unit in target.units]
    return [unit for unit in units if unit.size is not None or unit.device is not None]


def loop_table(units: Iterable[Unit]) -> list[str]:
    """Return the table of units and their loop devices."""
    rows = [(unit.place, tables.size(unit.size), unit.device) for unit in units]
    return tables.table(("UNIT", "SIZE", "DEVICE"), rows, ("SIZE",)) if rows else []


def trace_lines(status: Mapping[str, object] | None) -> list[str]:
    """Return what the trace has written so far."""
    return ["off"] if status is None else tables.fields(status.items())
