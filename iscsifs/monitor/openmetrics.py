"""Metrics as text, for Prometheus and its relatives: OpenMetrics 1.0, and the older text format 0.0.4.

The two differ in the names of counters, in units and in the end mark. The older one is what node_exporter's
textfile collector and ``promtool check metrics`` read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

Kind = Literal["counter", "gauge", "histogram", "info"]
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Histogram:
    """The value of a histogram: *counts* of the buckets with the upper *bounds*, and one more without.

    The counts are not cumulative. *total* is the sum of what was observed.
    """

    bounds: Sequence[float]
    counts: Sequence[int]
    total: float


@dataclass(slots=True)
class Family:
    """A metric, by labels: its *name* begins with ``iscsifs_`` and ends with its *unit*, where it has one."""

    name: str
    kind: Kind
    help: str
    unit: str = ""
    samples: list[tuple[Labels, float | Histogram]] = field(default_factory=list)

    def add(self, labels: Labels, value: float | Histogram) -> None:
        """Add the *value* for *labels*; the same labels must not come twice."""
        self.samples.append((labels, value))


def openmetrics(families: Iterable[Family]) -> bytes:
    """Return *families* in OpenMetrics 1.0. Those without a sample are left out."""
    lines: list[str] = []
    for family in families:
        if family.samples:
            lines.append(f"# TYPE {family.name} {family.kind}")
            if family.unit:
                lines.append(f"# UNIT {family.name} {family.unit}")
            lines.append(f"# HELP {family.name} {_escaped(family.help)}")
            suffix = {"counter": "_total", "info": "_info"}.get(family.kind, "")
            lines += _samples(family, suffix)
    return "".join(f"{line}\n" for line in [*lines, "# EOF"]).encode()


def prometheus_text(families: Iterable[Family]) -> bytes:
    """Return *families* in Prometheus' text format 0.0.4. Those without a sample are left out."""
    lines: list[str] = []
    for family in families:
        if family.samples:
            suffix = {"counter": "_total", "info": "_info"}.get(family.kind, "")
            kind = "gauge" if family.kind == "info" else family.kind
            text = family.help.replace("\\", r"\\").replace("\n", r"\n")
            lines += [f"# HELP {family.name}{suffix} {text}", f"# TYPE {family.name}{suffix} {kind}"]
            lines += _samples(family, suffix)
    return "".join(f"{line}\n" for line in lines).encode()


def _samples(family: Family, suffix: str) -> Iterable[str]:
    for labels, value in family.samples:
        if isinstance(value, Histogram):
            yield from _buckets(family.name, labels, value)
        else:
            yield f"{family.name}{suffix}{_label_set(labels)} {_number(value)}"


def _buckets(name: str, labels: Labels, histogram: Histogram) -> Iterable[str]:
    label_set = _label_set(labels)
    others = f"{label_set[1:-1]}," if labels else ""
    start = f'{name}_bucket{{{others}le="'
    count = 0
    for le, observed in zip(_les(tuple(histogram.bounds)), histogram.counts, strict=True):
        count += observed
        yield f'{start}{le}"}} {count}'
    yield f"{name}_count{label_set} {count}"
    yield f"{name}_sum{label_set} {_number(histogram.total)}"


@cache
def _les(bounds: tuple[float, ...]) -> tuple[str, ...]:
    """Return the values of the label ``le``."""
    return *(repr(float(bound)) for bound in bounds), "+Inf"


def _label_set(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return repr(value) if isinstance(value, float) and not value.is_integer() else str(int(value))
