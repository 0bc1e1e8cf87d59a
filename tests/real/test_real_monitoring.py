"""Sessions, disks and metrics in the files of a real mount: what programs read of them."""

import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client import parser as text_parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from iscsifs.target.testing import TestTarget
from support.mounting import Mounted, MountHosts, run, wait_until

pytestmark = [pytest.mark.real, pytest.mark.mount]

BLOCK = 4096


class Monitored:
    """A mount of one disk, and its target."""

    def __init__(self, mounted: Mounted, target: TestTarget) -> None:
        self.mounted = mounted
        self.target = target
        self.own = mounted.path / ".iscsifs"
        self.directory = mounted.target("test", target.host)
        self.session = self.directory / "session"
        self.unit = self.directory / "lun0"
        self.storage = self.unit / "storage"

    def statistics(self) -> dict[str, float]:
        lines = (self.unit / "statistics").read_text().splitlines()
        return {name: float(value) for name, value in (line.split(" ") for line in lines)}

    def metrics(self) -> dict[str, float]:
        """Return the samples of the disk, from OpenMetrics; the older format has to say the same."""
        texts = {name: (self.own / name).read_text() for name in ("metrics", "metrics.prom")}
        found = openmetrics(texts["metrics"])
        old = text_parser.text_string_to_metric_families(texts["metrics.prom"])
        assert samples(old) == found
        return found

    def texts(self) -> list[Path]:
        """Return every text file that shows the state of something."""
        found = [
            *self.own.iterdir(),
            *self.session.iterdir(),
            self.unit / "statistics",
            self.unit / "latency",
        ]
        return [path for path in found if path.is_file() and path.stat().st_mode & 0o044]


def openmetrics(text: str) -> dict[str, float]:
    """Return the `samples` of OpenMetrics."""
    return samples(openmetrics_parser.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


def samples(families: Iterable[Metric]) -> dict[str, float]:
    """Return the samples of the disk by name, those of a bucket with its bound."""
    return {
        sample.name + (f" {float(sample.labels['le'])}" if "le" in sample.labels else ""): sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("lun", "0") == "0"
    }


@pytest.fixture
def monitored(iscsi_target: TestTarget, mount_hosts: MountHosts) -> Monitored:
    mounted = mount_hosts(iscsi_target.url)
    assert mounted.said.stderr == ""
    return Monitored(mounted, iscsi_target)


def fio(path: Path, *options: str) -> dict[str, dict[str, int]]:
    """Run fio on *path*; return what it says that it has done."""
    said = run(
        "fio",
        *("--name=load", f"--filename={path}", "--bs=4k", "--size=1M", "--direct=1", "--ioengine=psync"),
        *("--output-format=json", *options),
    )
    (job,) = json.loads(said[said.index("{") :])["jobs"]
    return {kind: job[kind] for kind in ("read", "write", "sync")}


@pytest.mark.conformance("METRICS-1.1", "METRICS-1.8")
def test_the_numbers_are_what_fio_has_done(monitored: Monitored, require: Callable[..., None]) -> None:
    require("fio")
    before = monitored.metrics()
    assert not any(value for name, value in before.items() if "_bytes" in name or "_bucket" in name)
    written = fio(monitored.storage, "--rw=randwrite", "--number_ios=120", "--fsync=4")
    read = fio(monitored.storage, "--rw=randread", "--number_ios=200")
    now, statistics = monitored.metrics(), monitored.statistics()
    assert (written["write"]["total_ios"], read["read"]["total_ios"]) == (120, 200)
    done = {
        "read": (200, 200 * BLOCK),
        "write": (120, 120 * BLOCK),
        "flush": (written["sync"]["total_ios"], None),
    }
    for kind, (operations, size) in done.items():
        assert now[f"iscsifs_{kind}_duration_seconds_count"] == operations > 0
        assert now[f"iscsifs_{kind}_duration_seconds_bucket inf"] == operations
        assert now[f"iscsifs_{kind}_errors_total"] == statistics[f"{kind}_errors"] == 0
        assert now[f"iscsifs_{kind}_duration_seconds_sum"] == pytest.approx(
            statistics[f"{kind}_seconds"], abs=1e-6
        )
        if size is not None:
            assert now[f"iscsifs_{kind}_bytes_total"] == statistics[f"{kind}_bytes"] == size
    assert (statistics["reads"], statistics["writes"]) == (200, 120)
    assert statistics["flushes"] == written["sync"]["total_ios"]
    # The times are those of the daemon: less than the program has seen, and not nothing.
    assert 0 < statistics["read_seconds"] <= read["read"]["runtime"] / 1000 + 0.01
    assert statistics["deepest"] >= 1
    assert statistics["depth"] == statistics["dirty_bytes"] == 0
    assert statistics["unsynchronised_bytes"] == (120 - 4 * written["sync"]["total_ios"]) * BLOCK


def test_what_is_not_flushed_is_told(monitored: Monitored) -> None:
    with monitored.storage.open("r+b", buffering=0) as disk:
        disk.write(bytes(3 * BLOCK))
        wait_until(lambda: monitored.statistics()["dirty_bytes"] == 0, "the target has it")
        assert monitored.metrics()["iscsifs_unsynchronised_bytes"] == 3 * BLOCK
        os.fsync(disk.fileno())
        assert monitored.metrics()["iscsifs_unsynchronised_bytes"] == 0
    assert monitored.metrics()["iscsifs_flush_duration_seconds_count"] == 1


def test_an_error_counts(monitored: Monitored) -> None:
    monitored.target.disk.fail("read")
    with monitored.storage.open("rb", buffering=0) as disk, pytest.raises(OSError, match="error"):
        disk.read(BLOCK)
    assert monitored.statistics()["read_errors"] == monitored.metrics()["iscsifs_read_errors_total"] >= 1


# The session.


def value(path: Path) -> str:
    return path.read_text().removesuffix("\n")


def test_a_session_that_is_lost_and_comes_back(monitored: Monitored) -> None:
    session, target = monitored.session, monitored.target
    assert value(session / "state") == "LOGGED_IN"
    assert (value(session / "reconnects"), value(session / "losses"), value(session / "last_error")) == (
        "0",
        "",
        "",
    )
    (connection,) = value(session / "connections").splitlines()
    assert connection.startswith("0 127.0.0.1:")
    assert connection.endswith(f" -> {target.portal} LOGGED_IN")
    began, isid = value(session / "since"), value(session / "isid")
    parameters = dict(line.split("=", 1) for line in value(session / "parameters").splitlines())
    assert parameters["MaxConnections"] == "1"
    assert parameters["HeaderDigest"] == "None"
    target.stop_listening()
    target.drop_connections()
    wait_until(lambda: value(session / "state") == "FAILED", "the loss is seen")
    assert value(session / "connections") == ""
    (loss,) = value(session / "losses").splitlines()
    moment, _, reason = loss.partition(" ")
    assert moment >= began
    assert reason.startswith("the ")
    wait_until(lambda: "refused" in value(session / "last_error"), "an attempt has failed")
    target.listen_again()
    wait_until(lambda: value(session / "state") == "LOGGED_IN", "it is back")
    assert value(session / "reconnects") == "1"
    assert value(session / "isid") == isid
    assert value(session / "connections") != connection


@pytest.mark.conformance("METRICS-1.6")
def test_no_secret_and_no_user_is_in_the_metrics(mount_hosts: MountHosts, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text("a secret of some length")
    with TestTarget(user="alice-the-user", secret=secret.read_text()) as target:
        mounted = mount_hosts("-u", "alice-the-user", "--secret-file", secret, target.url)
        assert mounted.said.returncode == 0, mounted.said.stderr
        monitored = Monitored(mounted, target)
        assert "AuthMethod=CHAP" in value(monitored.session / "parameters").splitlines()
        texts = {path: path.read_text() for path in monitored.texts()}
        assert not [path for path, text in texts.items() if secret.read_text() in text]
        for name in "metrics", "metrics.prom":
            assert "alice" not in texts[monitored.own / name]
        mounted.unmount()


# What programs make of the files.


def outputs(path: Path, scratch: Path) -> dict[str, bytes]:
    """Return what each of several programs reads from *path*."""
    copy = scratch / "copy"
    subprocess.run(["cp", path, copy], check=True)
    copied = copy.read_bytes()
    copy.unlink()
    with path.open("rb", buffering=0) as file:
        whole = file.read()
        file.seek(0)
        again = file.readall()
    return {
        "cat": subprocess.check_output(["cat", path]),
        "cp": copied,
        "dd": subprocess.check_output(["dd", f"if={path}", "bs=1", "status=none"]),
        "tail": subprocess.check_output(["tail", "-n", "+1", path]),
        "read": whole,
        "read again": again,
    }


@pytest.mark.conformance("CONTROL-1.1", "CONTROL-1.2")
def test_all_programs_read_the_same(monitored: Monitored, tmp_path: Path) -> None:
    with monitored.storage.open("r+b", buffering=0) as disk:
        disk.write(bytes(100 * BLOCK))
        os.fsync(disk.fileno())
    texts = monitored.texts()
    assert len(texts) >= 16
    for path in texts:
        read = outputs(path, tmp_path)
        content = read["cat"]
        assert {name for name, text in read.items() if text != content} == set(), path
        assert path.stat().st_size == len(content), path
        assert int(run("wc", "-c", path).split()[0]) == len(content), path
        last = b"".join(content.splitlines(keepends=True)[-1:])
        assert subprocess.check_output(["tail", "-n1", path]) == last, path
        assert content == b"" or content.endswith(b"\n"), path
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
        with pytest.raises(OSError, match="not permitted|denied"):
            path.open("r+b")


@pytest.mark.conformance("CONTROL-1.1")
def test_nothing_is_cut_while_it_changes(monitored: Monitored) -> None:
    """The texts grow and shrink between the stat, the open and the reads of each program."""
    load = subprocess.Popen(
        ["dd", "if=/dev/zero", f"of={monitored.storage}", "bs=4k", "count=256", "conv=notrunc"],
        stderr=subprocess.DEVNULL,
    )
    metrics, statistics = monitored.own / "metrics", monitored.unit / "statistics"
    rounds = 0
    while load.poll() is None or rounds < 30:
        rounds += 1
        assert subprocess.check_output(["tail", "-n1", metrics]) == b"# EOF\n"
        assert subprocess.check_output(["tail", "-n1", statistics]) == b"losses 0\n"
        for path, end in (metrics, b"# EOF\n"), (statistics, b"losses 0\n"):
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                text = file.read()
            assert len(text) == size
            assert text.endswith(b"\n" + end)
        openmetrics(metrics.read_text())
        with monitored.storage.open("r+b", buffering=0) as disk:
            disk.write(bytes(BLOCK))
    assert load.returncode == 0
    assert monitored.statistics()["writes"] > rounds


QUIET = [("find", "{}", "-ls"), ("du", "-sx", "{}"), ("ls", "-lR", "{}"), ("rsync", "-an", "{}/", "{out}/")]
READING = [("grep", "-r", "no such text", "{}"), ("tar", "-cf", "{out}/all.tar", "{}")]


@pytest.mark.conformance("CONTROL-1.15")
@pytest.mark.parametrize("command", [*QUIET, *READING], ids=lambda command: str(command[0]))
def test_who_walks_through_all_of_it_triggers_nothing(
    monitored: Monitored, command: tuple[str, ...], tmp_path: Path, require: Callable[..., None]
) -> None:
    require(command[0])
    monitored.target.clear()
    before = value(monitored.own / "events")
    out = tmp_path / "out"
    out.mkdir()
    words = [word.format(monitored.mounted.path, out=out) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (1 if command[0] == "grep" else 0), done.stderr  # nothing was found
    assert "rror" not in done.stderr.replace("Removing leading", "")
    sent = {logged.cdb[0] for logged in monitored.target.commands}
    assert sent <= ({0x28, 0x88} if command in READING else set())
    assert value(monitored.own / "events") == before
    assert value(monitored.session / "reconnects") == "0"
