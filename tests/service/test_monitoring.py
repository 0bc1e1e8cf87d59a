"""What is shown of sessions and disks: the files of the tree, and the metrics, with the disks in memory."""

from collections.abc import Iterator
from time import process_time

import pytest
import trio
from prometheus_client import Metric
from prometheus_client.openmetrics import parser

from iscsifs.errors import MediumError
from iscsifs.fs.nodes import Directory, Node, TextFile, TreeOptions
from iscsifs.fs.tree import TargetDescription, TargetDirectory, Tree, UnitDescription
from iscsifs.initiator.report import ConnectionReport, SessionReport
from iscsifs.iscsi.states import SessionState
from iscsifs.limits import MAX_METRIC_UNITS
from iscsifs.monitor.events import Events
from iscsifs.monitor.openmetrics import openmetrics
from iscsifs.scsi.status import Status
from iscsifs.service.metrics import Shown, families, show_metrics
from iscsifs.service.session_files import show_session
from iscsifs.service.unit_files import show_counts
from iscsifs.target.disk import Disk
from iscsifs.target.unit import READ_CODES, READ_ERROR, Fault
from iscsifs.units.block import BlockUnit
from support.memory_san import San

BLOCK = 512
IQN = "iqn.2001-04.com.example:"
REPORT = SessionReport(
    state=SessionState.LOGGED_IN,
    since_ns=1_800_000_000_250_000_000,
    isid=0x800000000001,
    tsih=7,
    target_portal_group_tag=1,
    parameters={"HeaderDigest": "CRC32C", "TargetAlias": "a\x1b[2J"},
    connections=(ConnectionReport(0, "192.0.2.9:40000", "[2001:db8::1]:3260", "LOGGED_IN"),),
    reconnects=2,
    losses=((1_800_000_000_000_000_000, "no answer\nto a ping"), (1_800_000_000_250_000_000, "closed")),
    last_error="closed",
)


@pytest.fixture
async def san(nursery: trio.Nursery) -> San:
    san = San(nursery, Disk.in_memory(64 * BLOCK))
    await san.log_in()
    return san


@pytest.fixture
def tree() -> Tree:
    return Tree(TreeOptions(uid=0, gid=0))


def target(name: str, *units: BlockUnit | None, port: int = 3260) -> TargetDescription:
    described = (UnitDescription(str(label), 0, "disk", storage=unit) for label, unit in enumerate(units))
    return TargetDescription("array.example.com", "192.0.2.1", port, IQN + name, tuple(described))


def show(tree: Tree, *targets: TargetDescription) -> list[TargetDirectory]:
    if not tree.on_unit:
        tree.on_unit.append(lambda _, unit: show_counts(tree, unit))
    return tree.add_targets(targets)


def shown(directories: list[TargetDirectory]) -> list[Shown]:
    return [Shown(directory, lambda: REPORT) for directory in directories]


def node_at(tree: Tree, path: str) -> Node:
    node: Node = tree.root
    for name in path.split("/"):
        assert isinstance(node, Directory)
        node = node.find(name.encode())
    return node


async def read(tree: Tree, path: str) -> str:
    node = node_at(tree, path)
    assert isinstance(node, TextFile)
    content = await (await node.open(0, 0)).read(0, 1 << 20)
    assert node.stat().size == len(content)
    return bytes(content).decode()


def parsed(directories: list[TargetDirectory], events: Events | None = None) -> dict[str, Metric]:
    text = openmetrics(families(shown(directories), events or Events())).decode()
    metrics: Iterator[Metric] = parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    return {metric.name: metric for metric in metrics}


def sample(metrics: dict[str, Metric], name: str, suffix: str = "", **labels: str) -> float:
    (value,) = (
        sample.value
        for sample in metrics[name].samples
        if sample.name == name + suffix and sample.labels.items() >= labels.items()
    )
    return value


# Sessions.


async def test_the_files_of_a_session_have_one_value_each(tree: Tree) -> None:
    (directory,) = show(tree, target("disk"))
    report = REPORT
    show_session(tree, directory, lambda: report)
    place = "array.example.com/disk/session/"
    assert {name: await read(tree, place + name) for name in _names(tree, place)} == {
        "state": "LOGGED_IN\n",
        "since": "2027-01-15T08:00:00Z\n",
        "isid": "0x800000000001\n",
        "tsih": "0x0007\n",
        "target_portal_group": "1\n",
        "parameters": "HeaderDigest=CRC32C\nTargetAlias=a\\x1b[2J\n",
        "connections": "0 192.0.2.9:40000 -> [2001:db8::1]:3260 LOGGED_IN\n",
        "reconnects": "2\n",
        "losses": "2027-01-15T08:00:00Z no answer\\nto a ping\n2027-01-15T08:00:00Z closed\n",
        "last_error": "closed\n",
    }


async def test_what_there_is_not_is_an_empty_file(tree: Tree) -> None:
    (directory,) = show(tree, target("disk"))
    nothing = SessionReport(SessionState.FREE, 0, 0, 0, None, {}, (), 0, (), "")
    show_session(tree, directory, lambda: nothing)
    place = "array.example.com/disk/session/"
    empty = {name for name in _names(tree, place) if await read(tree, place + name) == ""}
    assert empty == {"target_portal_group", "parameters", "connections", "losses", "last_error"}


def _names(tree: Tree, path: str) -> list[str]:
    directory = node_at(tree, path.rstrip("/"))
    assert isinstance(directory, Directory)
    return [name.decode() for name in directory.entries]


# Disks.


async def test_the_counts_of_a_disk(tree: Tree, san: San) -> None:
    show(tree, target("disk", san.unit))
    await san.unit.write(0, bytes(3 * BLOCK))
    await san.unit.drain()
    san.disk.faults.append(Fault(status=Status.TASK_SET_FULL, codes=READ_CODES, times=1))
    await san.unit.read(0, BLOCK)
    san.disk.faults.append(Fault(READ_ERROR, codes=READ_CODES))
    with pytest.raises(MediumError):
        await san.unit.read(0, BLOCK)
    lines = (await read(tree, "array.example.com/disk/lun0/statistics")).splitlines()
    values = dict(line.split(" ") for line in lines)
    assert [values.pop(f"{kind}_seconds") != "" for kind in ("read", "write", "flush")]
    assert " ".join(f"{name}={value}" for name, value in values.items()) == (
        "reads=2 read_bytes=512 read_errors=1 writes=1 write_bytes=1536 write_errors=0"
        " flushes=0 flush_errors=0 repeats=1 depth=0 deepest=1"
        " dirty_bytes=0 unsynchronised_bytes=1536 losses=0"
    )
    histograms = [
        line.split(" ") for line in (await read(tree, "array.example.com/disk/lun0/latency")).splitlines()
    ]
    assert [kind for kind, *_ in histograms] == ["read", "write", "flush"]
    for (_, *buckets), expected in zip(histograms, (2, 1, 0), strict=True):
        assert sum(int(bucket.partition(":")[2]) for bucket in buckets) == expected
        assert buckets[-1].startswith("+Inf:")


async def test_the_counts_are_those_of_the_unit_that_is_there(
    tree: Tree, san: San, nursery: trio.Nursery
) -> None:
    (directory,) = show(tree, target("disk", san.unit, None))
    await san.unit.read(0, BLOCK)
    assert "statistics" not in _names(tree, "array.example.com/disk/lun1")  # nothing that could be counted
    other = San(nursery, Disk.in_memory(64 * BLOCK))
    await other.log_in()
    tree.update(directory, target("disk", other.unit, san.unit))
    assert (await read(tree, "array.example.com/disk/lun0/statistics")).startswith("reads 0\n")
    assert (await read(tree, "array.example.com/disk/lun1/statistics")).startswith("reads 1\n")


# Metrics.


@pytest.mark.conformance("METRICS-1.2", "METRICS-1.6")
async def test_the_metrics_are_what_was_done(tree: Tree, san: San) -> None:
    directories = show(tree, target("disk", san.unit))
    events = Events()
    events.add("login", "logged in")
    await san.unit.write(0, bytes(BLOCK))
    await san.unit.flush()
    for _ in range(3):
        await san.unit.read(0, BLOCK)
    metrics = parsed(directories, events)
    where = {"host": "array.example.com", "target": "disk"}
    disk = where | {"lun": "0"}
    assert sample(metrics, "iscsifs_read_bytes", "_total", **disk) == 3 * BLOCK
    assert sample(metrics, "iscsifs_read_duration_seconds", "_count", **disk) == 3
    assert (
        sample(metrics, "iscsifs_read_duration_seconds", "_sum", **disk) == san.unit.statistics.reads.seconds
    )
    assert sample(metrics, "iscsifs_write_bytes", "_total", **disk) == BLOCK
    assert sample(metrics, "iscsifs_flush_duration_seconds", "_bucket", le="+Inf", **disk) == 1
    assert sample(metrics, "iscsifs_session_up", **where) == 1
    assert sample(metrics, "iscsifs_session_reconnects", "_total", **where) == 2
    assert sample(metrics, "iscsifs_session_state_change_timestamp_seconds", **where) == 1_800_000_000.25
    assert sample(metrics, "iscsifs_target", "_info", targetname=IQN + "disk", **where) == 1
    assert sample(metrics, "iscsifs_events", "_total") == 1
    for metric in metrics.values():
        assert metric.name.startswith("iscsifs_")
        assert metric.name.endswith(metric.unit)
        allowed = (
            {"host", "target", "lun", "le"} if metric.type != "info" else {*where, "targetname", "version"}
        )
        for each in metric.samples:
            assert each.labels.keys() <= allowed


@pytest.mark.conformance("METRICS-1.2")
async def test_a_counter_outlives_a_session_and_a_rescan(tree: Tree, san: San) -> None:
    directories = show(tree, target("disk", san.unit))
    await san.unit.read(0, BLOCK)
    san.trouble.answers_to_lose = 1
    await san.unit.read(0, BLOCK)
    tree.update(directories[0], target("disk", san.unit))
    metrics = parsed(directories)
    assert sample(metrics, "iscsifs_read_bytes", "_total") == 2 * BLOCK
    assert sample(metrics, "iscsifs_command_repeats", "_total") == 1


@pytest.mark.conformance("METRICS-1.5")
async def test_all_disks_have_the_same_buckets(tree: Tree, san: San) -> None:
    directories = show(tree, target("disk", san.unit, san.unit), target("other", san.unit))
    await san.unit.read(0, BLOCK)
    buckets: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for each in parsed(directories)["iscsifs_read_duration_seconds"].samples:
        if each.name.endswith("_bucket"):
            place = each.labels["target"], each.labels["lun"]
            buckets.setdefault(place, []).append((each.labels["le"], each.value))
    assert len(buckets) == 3
    assert len({tuple(bound for bound, _ in found) for found in buckets.values()}) == 1
    for found in buckets.values():
        assert [float(bound) for bound, _ in found] == sorted(float(bound) for bound, _ in found)
        assert found[-1] == ("+Inf", 1)
        assert [count for _, count in found] == sorted(count for _, count in found)


@pytest.mark.conformance("METRICS-1.7")
async def test_the_series_of_a_target_leave_with_it(tree: Tree, san: San) -> None:
    directories = show(tree, target("disk", san.unit), target("other", san.unit))
    assert series(directories) == {("disk", "0"), ("other", "0")}
    tree.remove_target(directories.pop(0))
    assert series(directories) == {("other", "0")}
    directories += show(tree, target("disk", san.unit))
    assert series(directories) == {("disk", "0"), ("other", "0")}
    tree.update(directories[0], target("other"))
    assert series(directories) == {("disk", "0")}


@pytest.mark.conformance("METRICS-1.7")
async def test_one_name_at_two_ports_is_two_series(tree: Tree, san: San) -> None:
    directories = show(tree, target("disk", san.unit), target("disk", san.unit, port=3261))
    assert len(series(directories)) == 2


def series(directories: list[TargetDirectory]) -> set[tuple[str, str]]:
    """The target and the number of each disk; none of them may come twice."""
    found = [
        (each.labels["target"], each.labels["lun"]) for each in parsed(directories)["iscsifs_losses"].samples
    ]
    assert len(found) == len({*found})
    return {*found}


@pytest.mark.conformance("METRICS-1.7")
async def test_the_number_of_series_is_bounded(tree: Tree, san: San, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iscsifs.service.metrics.MAX_METRIC_UNITS", 3)
    directories = show(tree, *(target(f"disk{number}", san.unit, san.unit) for number in range(5)))
    metrics = parsed(directories)
    assert len(metrics["iscsifs_losses"].samples) == len(metrics["iscsifs_session_up"].samples) == 3
    assert sample(metrics, "iscsifs_disks_left_out") == 7


async def test_metrics_of_many_disks_take_a_moment(tree: Tree, san: San) -> None:
    """The file is made while nothing else is served."""
    units = [san.unit] * MAX_METRIC_UNITS
    directories = show(tree, target("disk", *units))
    times = []
    for _ in range(5):
        began = process_time()
        openmetrics(families(shown(directories), Events()))
        times.append(process_time() - began)
    assert min(times) < 0.25


@pytest.mark.conformance("METRICS-1.1")
async def test_both_files_are_snapshots(tree: Tree, san: San) -> None:
    tree.add_directory(tree.root, b".iscsifs")
    directories = show(tree, target("disk", san.unit))
    show_metrics(tree, lambda: shown(directories), Events())
    for name in "metrics", "metrics.prom":
        file = node_at(tree, f".iscsifs/{name}")
        handle = await file.open(0, 0)
        before = bytes(await handle.read(0, 100))
        await san.unit.read(0, BLOCK)
        rest = bytes(await handle.read(100, 1 << 20))
        assert b"_read_bytes_total" in rest
        assert bytes(await handle.read(0, 1 << 20)) != before + rest
        text = (before + rest).decode()
        assert not [line for line in text.splitlines() if not line]
        assert "\r" not in text
        assert text.endswith("# EOF\n" if name == "metrics" else "\n")
