"""What a test needs of this machine: programs, devices, root.

A test that needs a program or a device that this machine lacks is skipped with the reason; with CI=true, or
with ISCSIFS_TEST_ALL=1, which contrib/test sets, it fails.
"""

import os
import shutil

import pytest

EVERYTHING = os.environ.get("CI") == "true" or os.environ.get("ISCSIFS_TEST_ALL") == "1"

# An ordinary user's PATH lacks the directories of the daemons and of the file systems' tools.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def absent(reason: str) -> None:
    """End the test that runs: a failure where everything has to be there, elsewhere a skip."""
    if EVERYTHING:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def require_programs(*programs: str) -> None:
    """End the test that runs unless each of *programs* is on this machine."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        absent(f"not installed: {' '.join(missing)} (contrib/test installs what the tests need)")
