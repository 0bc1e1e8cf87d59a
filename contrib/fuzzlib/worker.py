"""Fuzz one harness with atheris in this process: ``worker.py HARNESS FINDINGS LIBFUZZER_ARGUMENT...``

A finding does not end the run: its input is made small, written to the directory FINDINGS and announced on
standard output, once for each place in the code where it comes to light.
"""

import hashlib
import logging
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

import atheris

TOP: Final = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP), str(TOP / "tests")]

with atheris.instrument_imports(include=["iscsifs"]):
    from support.fuzz import harnesses
    from support.fuzz.checks import LogCheck

SLOWEST: Final = 5.0
"""Seconds of the processor, not of the clock on the wall, that one input may take."""

PATIENCE: Final = 4.0
"""Seconds to make one input small: it counts as the time of that input."""

Place = tuple[str, str, int]
"""Where an exception came from: its type, a file, and a line."""


class TooSlow(Exception):
    """An input took longer than `SLOWEST`."""


def too_slow(*_: object) -> None:
    """Say that an input takes too long: what to do when the timer has run down."""
    raise TooSlow


def place_of(function: Callable[[bytes], None], data: bytes) -> tuple[Place, str] | None:
    """Run *function* on *data*; return the place and the traceback of what it raises, or None."""
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, SLOWEST)
        function(data)
    except TooSlow:
        return ("TooSlow", "", 0), traceback.format_exc()  # in another line every time
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return (type(error).__name__, frame.filename, frame.lineno or 0), traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return None


def made_small(function: Callable[[bytes], None], data: bytes, place: Place) -> bytes:
    """Return what is left of *data* when what is not needed for the finding is cut out."""
    give_up_at = time.monotonic() + PATIENCE
    size = len(data) // 2
    while size:
        start = 0
        while start < len(data) and time.monotonic() < give_up_at:
            shorter = data[:start] + data[start + size :]
            found = place_of(function, shorter)
            if found is not None and found[0] == place:
                data = shorter
            else:
                start += size
        size //= 2
    return data


def main() -> None:
    """Fuzz until libFuzzer's arguments say that it is enough."""
    name, findings, *arguments = sys.argv[1:]
    function = harnesses.HARNESSES[name].function
    known: set[Place] = set()

    def test_one_input(data: bytes) -> None:
        found = place_of(function, data)
        if found is None or found[0] in known:
            return
        place, report = found
        known.add(place)
        data = made_small(function, data, place)
        path = Path(findings) / f"{place[0]}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        print(f"{report}finding: {path}", flush=True)

    signal.signal(signal.SIGVTALRM, too_slow)
    log = logging.getLogger("iscsifs")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    log.addHandler(LogCheck())
    atheris.enabled_hooks.add("str")
    atheris.enabled_hooks.add("RegEx")
    atheris.Setup([sys.argv[0], *arguments], test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
