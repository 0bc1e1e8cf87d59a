"""A test that hangs fails, and what a run leaves behind is a failure; see `support.bounds`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import TESTS, TOP
from support.bounds import mounts

_PLUGIN = "from support import bounds\nfrom support.bounds import nothing_is_left, pytest_configure\n"


def run(directory: Path, tests: str) -> str:
    """Run *tests* with a bound of two seconds, and return what pytest says."""
    (directory / "conftest.py").write_text(_PLUGIN)
    (directory / "test_it.py").write_text(tests)
    environment = os.environ | {"ISCSIFS_TEST_LONGEST": "2", "PYTHONPATH": str(TESTS)}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    done = subprocess.run(
        [*words, f"--rootdir={directory}", f"--basetemp={directory / 'temporary'}", directory],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
    )
    return done.stdout + done.stderr


def test_a_test_that_hangs_fails_where_it_is_and_the_others_go_on(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        "import subprocess, time\n"
        "def test_sleep(): time.sleep(60)\n"
        "def test_wait(): subprocess.run(['sleep', '60'])\n"
        "def test_good(): pass\n",
    )
    assert "2 failed, 1 passed" in said
    assert said.count("Failed: not over after 2 s") >= 2


@pytest.mark.mount
def test_a_request_to_fuse_that_is_never_answered_is_ended_too(tmp_path: Path) -> None:
    """No signal ends it: what would have to answer is killed."""
    said = run(
        tmp_path,
        f"""import os, subprocess, sys
SERVER = '''
import signal, os, sys
sys.path.insert(0, {str(TOP)!r})
import pyfuse3, trio
class Silent(pyfuse3.Operations):
    async def getattr(self, inode, ctx=None):
        print("asked", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
pyfuse3.init(Silent(), sys.argv[1], {{"fsname=silent"}})
print("mounted", flush=True)
trio.run(pyfuse3.main)
'''
def test_stat(tmp_path):
    words = [sys.executable, "-c", SERVER, str(tmp_path)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert server.stdout.readline() == "mounted\\n"
    os.listdir(tmp_path)
""",
    )
    assert "1 failed" in said
    assert "Failed: not over after 2 s" in said
    assert "left behind: [" in said
    assert not mounts(tmp_path)


def test_what_a_run_leaves_behind_is_an_error(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        "import subprocess\n"
        "def test_it(): subprocess.Popen(['sleep', '1000'], start_new_session=True, stdout=-3, stderr=-3)\n",
    )
    assert "1 passed, 1 error" in said
    assert "left behind: ['sleep 1000 ']" in said
