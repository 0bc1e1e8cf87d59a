"""The command iscsifs, which counts the calls of its own Python functions.

    python count_calls.py OUT ARGUMENT...

runs ``iscsifs ARGUMENT...``. SIGUSR1 begins to count, in all threads; SIGUSR2 ends that, and writes the
number of calls by function to OUT, as JSON. A coroutine that goes on counts as a call.
"""

import collections
import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from iscsifs import __file__ as package
from iscsifs.cli import main

ROOM = f"{Path(package).parent}/"

counts: collections.Counter[str] = collections.Counter()


def profile(frame: FrameType, event: str, argument: object) -> None:
    """Count a call."""
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(ROOM):
        counts[f"{code.co_filename.removeprefix(ROOM)}:{code.co_qualname}"] += 1


def begin(*_: object) -> None:
    """Count from now on."""
    counts.clear()
    threading.setprofile(profile)
    sys.setprofile(profile)


def end(*_: object) -> None:
    """Count no more, and write what was counted."""
    sys.setprofile(None)
    threading.setprofile(None)
    out = Path(sys.argv[1])
    draft = out.with_suffix(".draft")
    draft.write_text(json.dumps(counts.most_common()))
    os.replace(draft, out)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    sys.exit(main(sys.argv[2:]))
