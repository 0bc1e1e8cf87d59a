"""Try random mutants, and print those that no fast test notices."""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from mutatelib.mutations import Mutant, count, mutant

TOP: Final = Path(__file__).resolve().parents[2]
PATIENCE: Final = 900.0
"""Seconds for the tests of a room: a mutant for which they take longer has been noticed, it hangs."""

TESTS: Final[Mapping[str, Sequence[str]]] = {
    "iscsi": ["tests/iscsi", "tests/target", "tests/fuzz"],
    "scsi": ["tests/scsi", "tests/target", "tests/initiator/test_unit.py", "tests/fuzz"],
    "transport": ["tests/initiator", "tests/faults"],
    "initiator": ["tests/initiator", "tests/faults"],
    "units": ["tests/units", "tests/initiator", "tests/model", "tests/faults"],
    "target": ["tests/target"],
    "fs": ["tests/fs", "tests/faults"],
    "service": ["tests/initiator", "tests/faults"],
}
"""The tests of a room; those of the modules beside the rooms are the tests beside the rooms' tests."""

BESIDE: Final = [
    *("tests/test_attach.py", "tests/test_cli.py", "tests/test_config.py", "tests/test_logs.py"),
    *("tests/test_notify.py", "tests/test_terminal.py"),
]
NEEDS_A_MOUNT: Final = frozenset(
    {
        *("__main__.py", "target/__main__.py", "fs/mount.py", "fs/background.py", "unmount.py"),
        *("fs/platform/pages.py", "fs/platform/process.py", "fs/platform/tuning.py"),
    }
)
"""Modules that are held by tests with processes and real mounts, which are not run here."""


class Copies:
    """Copies of the project, in which mutants take the place of modules."""

    def __init__(self, directory: Path, count: int) -> None:
        self._free: SimpleQueue[Path] = SimpleQueue()
        listed = subprocess.run(
            ["git", "-C", TOP, "ls-files", "-z"], check=True, capture_output=True, text=True
        )
        for number in range(count):
            for name in filter(None, listed.stdout.split("\0")):
                if (TOP / name).is_file():
                    copy = directory / str(number) / name
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(TOP / name, copy)
            self._free.put(directory / str(number))

    def fails(self, module: str, source: str | None, tests: Sequence[str]) -> bool:
        """Whether one of *tests* fails, or none ends, with *source* in the place of *module*."""
        copy = self._free.get()
        place = copy / "iscsifs" / module
        original = place.read_bytes()
        try:
            if source is not None:
                place.write_text(source)
            return _fails(copy, tests)
        finally:
            place.write_bytes(original)
            self._free.put(copy)


def _fails(copy: Path, tests: Sequence[str]) -> bool:
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    process = subprocess.Popen(
        [*command, "-m", "not real and not mount", *(test for test in tests if (copy / test).exists())],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "CI": "true"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        return process.wait(PATIENCE) != 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


def modules(wanted: Sequence[str]) -> list[str]:
    """Return the modules of the rooms, or the modules, that are *wanted*; all, where that is empty."""
    everything = sorted(str(path.relative_to(TOP / "iscsifs")) for path in TOP.glob("iscsifs/**/*.py"))

    def is_wanted(name: str) -> bool:
        places = {name, name.removesuffix(".py"), *map(str, Path(name).parents)}
        return not wanted or not places.isdisjoint(wanted)

    found = [name for name in everything if name not in NEEDS_A_MOUNT and is_wanted(name)]
    if not found:
        sys.exit(f"contrib/mutate: there is no {' or '.join(wanted)} in iscsifs/ whose tests need no mount")
    return found


def tests_of(name: str) -> Sequence[str]:
    """Return the tests of the room of a module."""
    return TESTS.get(name.split("/")[0].removesuffix(".py"), BESIDE)


def choose(names: Sequence[str], number: int, seed: int) -> list[tuple[str, Mutant]]:
    """Return *number* mutants of the modules *names*, all with the same chance."""
    everything = [(name, index) for name in names for index in range(count(TOP / "iscsifs" / name))]
    chosen = random.Random(seed).sample(everything, min(number, len(everything)))
    return [(name, mutant(TOP / "iscsifs" / name, index)) for name, index in chosen]


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="contrib/mutate", description=__doc__)
    parser.add_argument("--count", type=int, default=80, help="how many mutants to try (80)")
    parser.add_argument("--seed", type=int, default=7143, help="which ones (7143)")
    parser.add_argument("-j", type=int, default=1, dest="jobs", help="how many at once (1)")
    parser.add_argument("places", nargs="*", metavar="ROOM OR MODULE", help="where (everywhere)")
    arguments = parser.parse_args()
    chosen = choose(modules(arguments.places), arguments.count, arguments.seed)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="iscsifs-mutate.") as directory:
        copies = Copies(Path(directory), arguments.jobs)
        everything = sorted({test for name, _ in chosen for test in tests_of(name)})
        if copies.fails(chosen[0][0], None, everything):
            sys.exit("contrib/mutate: the tests fail without any change; see contrib/test")

        def survives(choice: tuple[str, Mutant]) -> bool:
            name, changed = choice
            survived = not copies.fails(
                name, changed.source, TESTS.get(name.split("/")[0].removesuffix(".py"), BESIDE)
            )
            if survived:
                place = f"iscsifs/{name}:{changed.line}"
                print(f"survived: {place}\n    - {changed.before}\n    + {changed.after}", flush=True)
            return survived

        with ThreadPoolExecutor(arguments.jobs) as pool:
            survivors = sum(pool.map(survives, chosen))
    print(f"{len(chosen)} mutants, {survivors} survived ({time.monotonic() - start:.0f} s)")


if __name__ == "__main__":
    main()
