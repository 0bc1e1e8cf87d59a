"""What a mount has done, as metrics for Prometheus: the files ``metrics`` and ``metrics.prom``.

The labels ``host``, ``target`` and ``lun`` are the names of the directories in the mount, which are the same
at every mount. What else a target is called is in ``iscsifs_target_info``.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import iscsifs
from iscsifs.fs.nodes import Directory
from iscsifs.fs.tree import TargetDirectory, Tree
from iscsifs.initiator.report import SessionReport
from iscsifs.iscsi.states import SessionState
from iscsifs.limits import MAX_METRIC_UNITS
from iscsifs.monitor.events import Events
from iscsifs.monitor.openmetrics import (
    Family,
    Histogram,
    Kind,
    Labels,
    openmetrics,
    prometheus_text,
)
from iscsifs.service.unit_files import KINDS, counted, operations
from iscsifs.units.block import BlockUnit
from iscsifs.units.statistics import LATENCY_BOUNDS


@dataclass(frozen=True, slots=True)
class Shown:
    """A target that *directory* shows, and its session as *report* returns it."""

    directory: TargetDirectory
    report: Callable[[], SessionReport]


Targets = Callable[[], Iterable[Shown]]


def show_metrics(tree: Tree, targets: Targets, events: Events) -> None:
    """Give the directory of the mount's own files the metrics of *targets* and *events*, in both formats."""
    directory = tree.root.find(b".iscsifs")
    assert isinstance(directory, Directory)
    tree.add_text(directory, b"metrics", lambda: openmetrics(families(targets(), events)).decode())
    tree.add_text(directory, b"metrics.prom", lambda: prometheus_text(families(targets(), events)).decode())


def families(targets: Iterable[Shown], events: Events) -> list[Family]:
    """Return all metrics as they are now: those of the mount, of each session, and of each disk.

    Sessions and disks beyond the first MAX_METRIC_UNITS are left out.
    """
    shown = list(targets)
    disks = list(_disks(shown))
    sessions = [(_labels(target.directory), target.report()) for target in shown[:MAX_METRIC_UNITS]]
    left_out = len(disks) - MAX_METRIC_UNITS
    del disks[MAX_METRIC_UNITS:]
    info = Family("iscsifs_target", "info", "The name of the target.")
    for (labels, _), target in zip(sessions, shown, strict=False):
        info.add({**labels, "targetname": target.directory.target.name}, 1)
    build = Family("iscsifs_build", "info", "The program.")
    build.add({"version": iscsifs.__version__}, 1)
    return [
        build,
        _single("iscsifs_events", "counter", "Events, as in the file events.", events.last_id),
        _single("iscsifs_disks_left_out", "gauge", "Disks without metrics.", max(left_out, 0)),
        info,
        *(metric.of(sessions) for metric in _OF_SESSION),
        *_of_operations(disks),
        *(metric.of(disks) for metric in _OF_DISK),
    ]


def _single(name: str, kind: Kind, text: str, value: float) -> Family:
    family = Family(name, kind, text)
    family.add({}, value)
    return family


def _labels(directory: TargetDirectory) -> dict[str, str]:
    host, _, target = directory.path.decode(errors="backslashreplace").partition("/")
    return {"host": host, "target": target}


def _disks(targets: Iterable[Shown]) -> Iterator[tuple[Labels, BlockUnit]]:
    for target in targets:
        for directory in target.directory.units():
            if (disk := counted(directory.unit.storage)) is not None:
                yield {**_labels(target.directory), "lun": directory.unit.label}, disk


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Metric(Generic[_T]):
    """A metric of sessions or of disks: *value* returns that of one of them."""

    name: str
    kind: Kind
    help: str
    value: Callable[[_T], float]
    unit: str = ""

    def of(self, owners: Iterable[tuple[Labels, _T]]) -> Family:
        """Return it with the values of all *owners*."""
        samples: list[tuple[Labels, float | Histogram]] = [
            (labels, self.value(owner)) for labels, owner in owners
        ]
        return Family(f"iscsifs_{self.name}", self.kind, self.help, self.unit, samples)


_OF_SESSION: Final[tuple[_Metric[SessionReport], ...]] = (
    _Metric(
        "session_up",
        "gauge",
        "1 while the session is in the state LOGGED_IN, else 0.",
        lambda session: session.state is SessionState.LOGGED_IN,
    ),
    _Metric(
        "session_state_change_timestamp_seconds",
        "gauge",
        "When the state of the session changed last.",
        lambda session: session.since_ns / 10**9,
        "seconds",
    ),
    _Metric(
        "session_reconnects", "counter", "Logins after the first one.", lambda session: session.reconnects
    ),
)

_OF_DISK: Final[tuple[_Metric[BlockUnit], ...]] = (
    _Metric(
        "command_repeats",
        "counter",
        "Attempts at a command that called for another one.",
        lambda disk: disk.statistics.repeats,
    ),
    _Metric("queue_depth", "gauge", "Commands that have not ended.", lambda disk: disk.statistics.depth),
    _Metric(
        "queue_depth_highest",
        "gauge",
        "The most commands at once that had not ended.",
        lambda disk: disk.statistics.deepest,
    ),
    _Metric(
        "dirty_bytes",
        "gauge",
        "Bytes that were accepted and that the target may not have.",
        lambda disk: disk.unwritten,
        "bytes",
    ),
    _Metric(
        "unsynchronised_bytes",
        "gauge",
        "Bytes that the target has and may still lose.",
        lambda disk: disk.unsynchronised,
        "bytes",
    ),
    _Metric("losses", "counter", "Losses of acknowledged writes.", lambda disk: disk.failures),
)


_BYTES: Final = {"read": "Bytes that were read.", "write": "Bytes that were accepted to be written."}


def _of_operations(disks: Iterable[tuple[Labels, BlockUnit]]) -> Iterator[Family]:
    """Yield the metrics of each kind of operation: bytes, errors and times."""
    counts = [(labels, operations(disk.statistics)) for labels, disk in disks]
    for index, kind in enumerate(KINDS):
        size = Family(f"iscsifs_{kind}_bytes", "counter", _BYTES.get(kind, ""), "bytes")
        errors = Family(f"iscsifs_{kind}_errors", "counter", f"Times that a {kind} failed.")
        times = Family(f"iscsifs_{kind}_duration_seconds", "histogram", f"Time of a {kind}.", "seconds")
        for labels, kinds in counts:
            done = kinds[index]
            size.add(labels, done.bytes)
            errors.add(labels, done.errors)
            times.add(labels, Histogram(LATENCY_BOUNDS, done.latencies, done.seconds))
        yield from (size, errors, times) if kind in _BYTES else (errors, times)
