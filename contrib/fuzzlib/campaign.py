"""One run of a harness under libFuzzer, restarted where an input ends it, and what came of it."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).resolve().parents[2]
SEEDS: Final = TOP / "tests" / "fuzz" / "seeds"

CACHE: Final = Path(os.environ["ISCSIFS_FUZZ"])
"""Holds the virtual environment, and for each harness its corpus, its findings and its log."""

STUCK: Final = 600
"""Seconds by the clock after which one input has stopped the worker, which finds the slow ones itself."""

MEMORY: Final = 1024
"""Megabytes that a harness may take."""

_EXECUTED: Final = re.compile(r"^stat::number_of_executed_units: (\d+)", re.MULTILINE)
_PROGRESS: Final = re.compile(r"^#(\d+)\s.*\bcov: (\d+)", re.MULTILINE)
_FINDING: Final = re.compile(
    r"^Traceback .*?^finding: .*?$|Test unit written to .*?$", re.MULTILINE | re.DOTALL
)


@dataclass
class Outcome:
    """What a run of *harness* gave; *edges* is libFuzzer's count of what was reached of the code."""

    harness: str
    seconds: float = 0.0
    executions: int = 0
    edges: int = 0
    findings: list[str] = field(default_factory=list)
    """Each as it was reported: a traceback and where the input is."""

    def row(self) -> str:
        """Return the outcome as a row of `TABLE`."""
        rate = self.executions / self.seconds if self.seconds else 0
        return (
            f"| {self.harness:20} | {self.seconds:7.0f} | {self.executions:11,} | {rate:12,.0f} "
            f"| {self.edges:5} | {len(self.findings):8} |"
        )


TABLE: Final = (
    "| harness              | seconds |  executions | executions/s | edges | findings |\n"
    "|----------------------|--------:|------------:|-------------:|------:|---------:|"
)


def run(harness: str, longest: int, seconds: int) -> Outcome:
    """Fuzz *harness* for *seconds* with inputs of up to *longest* bytes."""
    home = CACHE / harness
    corpus, findings, log = home / "corpus", home / "findings", home / "log"
    for directory in corpus, findings:
        directory.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    outcome = Outcome(harness)
    started = time.monotonic()
    while (left := seconds - (time.monotonic() - started)) >= 1:
        with log.open("ab") as output:
            start = output.tell()
            subprocess.run(
                [
                    *(sys.executable, Path(__file__).with_name("worker.py"), harness, findings),
                    f"-max_total_time={round(left)}",
                    f"-max_len={longest}",
                    f"-timeout={STUCK}",
                    f"-rss_limit_mb={MEMORY}",
                    f"-artifact_prefix={findings}/",
                    f"-dict={CACHE / 'tokens'}",
                    "-print_final_stats=1",
                    *(corpus, SEEDS / harness),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            )
        text = log.read_bytes()[start:].decode(errors="replace")
        if not _add(outcome, text):
            sys.exit(f"{harness} does not run; see {log}:\n{text[-2000:]}")
    outcome.seconds = time.monotonic() - started
    return outcome


def _add(outcome: Outcome, text: str) -> bool:
    """Add what libFuzzer said to *outcome*; return whether it said that it did something."""
    progress = _PROGRESS.findall(text)
    executed = _EXECUTED.findall(text) or [number for number, _ in progress[-1:]]
    outcome.executions += sum(map(int, executed))
    outcome.edges = max([outcome.edges, *(int(edges) for _, edges in progress)])
    outcome.findings += [report for report in _FINDING.findall(text) if report not in outcome.findings]
    return bool(executed)


def write_tokens(tokens: tuple[str, ...]) -> None:
    """Write *tokens* where the runs look for them, in libFuzzer's form of a dictionary."""
    (CACHE / "tokens").write_text("".join(f"{json.dumps(token)}\n" for token in tokens))
