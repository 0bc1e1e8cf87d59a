"""What the process asks of the kernel, seen from outside."""

import os
import subprocess
import sys

import pytest

from iscsifs.fs.platform import process

CAP_SYS_RESOURCE = 24
PRELUDE = (
    "import ctypes, logging; from iscsifs.fs.platform.process import *; "
    "memory = ProcessMemory(); libc = ctypes.CDLL(None);"
)


def outcome(code: str) -> str:
    """Return what a Python of its own prints for *code*."""
    command = [sys.executable, "-c", PRELUDE + code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_no_core_is_dumped_while_there_are_secrets() -> None:
    get_dumpable = 3
    ask = f"print(libc.prctl({get_dumpable}, 0, 0, 0, 0))"
    assert outcome(f"from iscsifs.secret import *; {ask}; forbid_core_dumps(); {ask}") == "1\n0\n"


@pytest.mark.usefixtures("require_root")
def test_root_s_process_stays_in_memory_and_does_not_wait_for_write_back() -> None:
    get_io_flusher = 58
    ask = f"print(libc.prctl({get_io_flusher}, 0, 0, 0, 0)); print(open('/proc/self/status').read())"
    flusher, *status = outcome(f"memory.keep(); {ask}").splitlines()
    # A container's root may lack the capability: then the kernel does not even answer the question.
    (capabilities,) = [line for line in status if line.startswith("CapEff:")]
    assert flusher == ("1" if int(capabilities.split()[1], 16) >> CAP_SYS_RESOURCE & 1 else "-1")
    (locked,) = [line for line in status if line.startswith("VmLck:")]
    assert int(locked.split()[1]) > 1024


def test_where_all_is_permitted_all_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the numbers of <linux/prctl.h> and <sys/mman.h>: a container's root may not do all of this."""
    pr_set_io_flusher, mcl_current, mcl_future, mcl_onfault = 57, 1, 2, 4
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(process, "_call", lambda *call: asked.append(call))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    caplog.set_level("INFO")
    process.ProcessMemory().keep()
    assert asked == [
        ("prctl", pr_set_io_flusher, 1, 0, 0, 0),
        ("mlockall", mcl_current | mcl_future | mcl_onfault),
    ]
    assert caplog.records == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_is_not_permitted_is_said_and_does_no_harm() -> None:
    loud = "import os, sys; logging.basicConfig(level='INFO', stream=sys.stdout); os.setuid(65534);"
    assert "CAP_SYS_RESOURCE" in (said := outcome(f"{loud} memory.keep()"))
    assert "ulimit -l" in said or "locked" in said


def test_memory_is_given_back_between_what_is_in_use() -> None:
    """Also where it is locked."""
    size = "int(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024"
    code = f"""
import re
memory.keep()
before = {size}
buffers = [bytes(4096 if number % 2 else 64) for number in range(40_000)]
buffers = [buffer for buffer in buffers if len(buffer) == 64]
full = {size}
memory.give_back()
print(full - before, {size} - before)
"""
    full, left = map(int, outcome(code).split())
    assert full > 60
    assert left < 20


def test_freed_memory_is_used_again_without_asking_the_kernel() -> None:
    code = """
import resource
memory.keep_freed()
faults = []
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffers = [bytearray(1 << 20) for _ in range(64)]
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    del buffers
print(*faults)
"""
    first, second = map(int, outcome(code).split())
    assert first > 64 * 100
    assert second < 64
