"""iscsifsctl stats and top: the figures of an interval."""

import json
import time
from pathlib import Path

import pytest

from iscsifs.ctl.cli import main
from iscsifs.ctl.places import Place
from iscsifs.ctl.sample import Sampler, rate_table
from iscsifs.ctl.statistics import Operations, read_statistics
from iscsifs.ctl.top import ORDERS, View, arranged
from support.control_tree import HOST, MIB, ControlTree

INF = float("inf")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def tree(tmp_path: Path) -> ControlTree:
    return ControlTree(tmp_path / "mnt")


@pytest.fixture
def unit(tree: ControlTree) -> Path:
    return tree.add_unit(tree.add_target())


def operations(*counts: int, bounds: tuple[float, ...] = (0.001, 0.01, 1.0, INF)) -> Operations:
    return Operations(sum(counts), 0, 0, 1.0, tuple(zip(bounds, counts, strict=True)))


@pytest.mark.parametrize(
    ("counts", "p99"),
    [
        ((0, 0, 0, 0), None),
        ((1, 0, 0, 0), 0.001),
        ((99, 1, 0, 0), 0.001),
        ((98, 2, 0, 0), 0.01),
        ((989, 0, 11, 0), 1.0),
        ((0, 0, 0, 5), INF),
    ],
)
def test_the_percentile_is_the_bound_of_its_bucket(counts: tuple[int, ...], p99: float | None) -> None:
    assert operations(*counts).p99 == p99


def test_a_unit_without_a_histogram_has_no_percentile(tree: ControlTree, unit: Path) -> None:
    (unit / "latency").unlink()
    tree.write("", HOST, "disk", "lun0", "latency")
    found = read_statistics(tree.mount, Place(HOST, "disk", "lun0"))
    assert found is not None
    assert found.reads.p99 is None
    assert found.transfers.p99 is None


def test_rates_are_those_of_the_interval_alone(tree: ControlTree, unit: Path) -> None:
    clock = Clock()
    tree.count(unit, reads=1000, writes=1000, seconds=0.5)
    sampler = Sampler(tree.mount, clock=clock)
    assert sampler.take()[0].rates is None
    clock.now += 2.0
    before = (unit / "statistics").read_text(), (unit / "latency").read_text()
    tree.count(unit, reads=1400, writes=1200, seconds=0.5, dirty=3 * MIB, depth=4)
    _, row = rate_table(sampler.take())
    # The 400 reads and 200 writes of 4096 bytes, in 2 s, of 0.5 s each.
    expected = f"{HOST}/disk/lun0 LOGGED_IN 200 100 0.8 0.4 500ms <1s 3M 4"
    assert row.split() == expected.split()
    # What is another unit now has none: its counts have fallen.
    for name, text in zip(("statistics", "latency"), before, strict=True):
        (unit / name).write_text(text)
    clock.now += 2.0
    assert sampler.take()[0].rates is None
    clock.now += 2.0
    (sample,) = sampler.take()
    assert sample.rates is not None
    assert (sample.rates.reads.count, sample.rates.transfers.mean) == (0, None)


def test_units_come_and_go_and_targets_are_away(tree: ControlTree, unit: Path) -> None:
    clock = Clock()
    sampler = Sampler(tree.mount, clock=clock)
    sampler.take()
    clock.now += 1
    tree.add_unit(unit.parent, 1, wwid="naa.1")
    tree.write("FAILED", HOST, "disk", "session", "state")
    tree.add_target("192.0.2.2", "other", state="FREE")
    rows = [" ".join(row.split()) for row in rate_table(sampler.take())[1:]]
    assert rows == [
        f"{HOST}/disk/lun0 FAILED 0.0 0.0 0.0 0.0 - - 0 0",
        f"{HOST}/disk/lun1 FAILED - - - - - - - -",
        "192.0.2.2/other FREE - - - - - - - -",
    ]
    unit.parent.rename(tree.path.parent / "gone")
    clock.now += 1
    assert [sample.place for sample in sampler.take()] == [Place("192.0.2.2", "other")]


def test_stats_repeats_the_rates_so_often(
    tree: ControlTree, unit: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = iter(range(100, 1000, 100))
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        tree.count(unit, reads=next(reads))

    monkeypatch.setattr(time, "sleep", sleep)
    assert main(("stats", "-i", "10", "-c", "3", "disk"), find_mount=tree.find) == 0
    tables = capsys.readouterr().out.split("\n\n")
    assert [table.count("\n") for table in tables] == [1, 1, 2]
    assert main(("stats", "--json", "-c", "2"), find_mount=tree.find) == 0
    lines = capsys.readouterr().out.splitlines()
    assert waited == [10.0] * 3 + [1.0] * 2
    for line in lines:
        found = json.loads(line)["units"][f"{HOST}/disk/lun0"]
        assert found["reads_per_second"] * found["seconds"] == pytest.approx(100)
        assert found["p99_seconds"] == 0.001


# top


@pytest.fixture
def view(tree: ControlTree) -> View:
    """A view of three units that differ in everything."""
    clock = Clock()
    sampler = Sampler(tree.mount, clock=clock)
    units = [tree.add_unit(tree.add_target(HOST, name), wwid=f"naa.{name}") for name in ("a", "b", "c")]
    sampler.take()
    clock.now += 1
    tree.count(units[0], reads=10, size=1 << 20, seconds=0.0005, dirty=1 << 20, depth=1)
    tree.count(units[1], reads=1000, size=512, seconds=0.005, dirty=2 << 20, depth=2)
    tree.count(units[2], writes=20, size=4096, seconds=0.5, dirty=0, depth=9)
    tree.add_unit(tree.add_target(HOST, "new", state="FAILED"), wwid="naa.new")
    view = View("title")
    view.samples, view.message = sampler.take(), ""
    return view


@pytest.mark.parametrize(
    ("order", "names"),
    [("name", "abcn"), ("iops", "bcan"), ("bytes", "abcn"), ("mean", "cban"), ("p99", "cban"),
     ("dirty", "bacn"), ("depth", "cban")],
)  # fmt: skip
def test_units_are_sorted_by_each_column_the_busiest_first(order: str, names: str, view: View) -> None:
    found = arranged(view.samples, order)
    assert "".join(sample.place.target[0] for sample in found) == names
    assert arranged(view.samples, order, reverse=True) == found[::-1]


def test_keys_sort_reverse_scroll_and_quit(view: View) -> None:
    seen = []
    for _ in ORDERS:
        seen.append(view.order)
        assert not view.press("s")
    assert seen == list(ORDERS)
    assert view.order == "name"
    view.press("S")
    assert view.order == "depth"
    assert view.lines(100, 24)[3].startswith(f"{HOST}/c/lun0")
    view.press("r")
    assert view.lines(100, 24)[3].startswith(f"{HOST}/new/lun0")
    assert "depth upwards" in view.lines(100, 24)[-1]
    for key in ("k", "j", "KEY_DOWN", "j", "j", "j", "KEY_UP", "KEY_RESIZE", "x"):
        assert not view.press(key)
    assert view.first == 2
    assert view.lines(100, 24)[3].startswith(f"{HOST}/b/lun0")
    view.samples = ()
    assert view.lines(100, 24)[2].startswith("UNIT")
    assert view.press("q")
    assert view.press("\x1b")


def test_the_sums_are_those_of_all_units(view: View) -> None:
    total = view.lines(120, 24)[1]
    assert total == "units 3  read 1010/s 11.0 MB/s  write 20.0/s 0.1 MB/s  dirty 3M  targets away 1"


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 24])
@pytest.mark.parametrize("width", [1, 5, 10, 40, 79, 80, 200])
def test_what_is_shown_fits_into_any_window(width: int, height: int, view: View) -> None:
    lines = view.lines(width, height)
    assert 0 < len(lines) <= height
    assert max(map(len, lines)) <= width


def test_long_names_give_way_to_the_figures(tree: ControlTree, view: View) -> None:
    host = "a-host-with-a-long-name.example.com"
    tree.add_unit(tree.add_target(host, "and-a-target"), wwid="naa.long")
    view.samples = Sampler(tree.mount).take()
    heading, *rows = view.lines(80, 24)[2:-1]
    assert heading.endswith("DEPTH")
    assert [row for row in rows if row.startswith("<") and "target/lun0  LOGGED_IN" in row]
    assert len({row.index("LOGGED_IN") for row in rows if "LOGGED_IN" in row}) == 1


def test_without_a_terminal_it_is_one_table(
    tree: ControlTree, unit: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)

    def run(*words: str) -> int:
        return main(("top", *words), find_mount=tree.find)

    assert run("--sort", "iops") == 0
    assert run("--once", "-i", "5") == 0
    assert waited == [2.0, 5.0]
    assert capsys.readouterr().out.count("UNIT") == 2
    assert run("--json") == 0
    assert "depth" in json.loads(capsys.readouterr().out)["units"][f"{HOST}/disk/lun0"]
