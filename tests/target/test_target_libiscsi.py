"""libiscsi's test suite, iscsi-test-cu, on our target: each of its tests ends as is expected here."""

import re
import subprocess
from collections.abc import Callable, Iterator

import pytest

from support.embedded import Embedded
from support.targets import Target, Unit, make_image

pytestmark = pytest.mark.real

NAME = "iqn.2001-04.com.example:libiscsi"
TIMEOUT = 60.0

FAMILIES = (
    *("CompareAndWrite", "ExtendedCopy", "GetLBAStatus", "Inquiry", "Mandatory", "ModeSense6"),
    *("NoMedia", "OrWrite", "Prefetch10", "Prefetch16", "PreventAllow", "PrinReadKeys"),
    *("PrinServiceactionRange", "PrinReportCapabilities", "ProutRegister", "ProutReserve"),
    *("ProutClear", "ProutPreempt", "Read6", "Read10", "Read12", "Read16", "ReadCapacity10"),
    *("ReadCapacity16", "ReadDefectData10", "ReadDefectData12", "ReadOnly", "ReceiveCopyResults"),
    *("ReportSupportedOpcodes", "Reserve6", "Sanitize", "StartStopUnit", "TestUnitReady", "Unmap"),
    *("Verify10", "Verify12", "Verify16", "Write10", "Write12", "Write16", "WriteAtomic16"),
    *("WriteSame10", "WriteSame16", "WriteVerify10", "WriteVerify12", "WriteVerify16", "iSCSIcmdsn"),
    *("iSCSIdatasn", "iSCSIResiduals", "iSCSITMF", "MultipathIO"),
)

NO_COPY_MANAGER = "there is no copy manager"
NOT_REMOVABLE = "the disk is not removable"
NO_RESERVATIONS = "there are no reservations yet"
NON_ZERO = "WSNZ is set: 0 blocks do not mean all that follow, which could be any amount of work"

SKIPPED = {
    "ExtendedCopy": NO_COPY_MANAGER,
    "ReceiveCopyResults": NO_COPY_MANAGER,
    "PreventAllow": NOT_REMOVABLE,
    "StartStopUnit.Simple": NOT_REMOVABLE,
    "PrinReadKeys": NO_RESERVATIONS,
    "PrinServiceactionRange": NO_RESERVATIONS,
    "PrinReportCapabilities": NO_RESERVATIONS,
    "ProutRegister": NO_RESERVATIONS,
    "ProutReserve": NO_RESERVATIONS,
    "ProutClear": NO_RESERVATIONS,
    "ProutPreempt": NO_RESERVATIONS,
    "Reserve6": NO_RESERVATIONS,
    "Sanitize": "the host of an image may keep copies of what it held: nobody can say that nothing is left",
    "WriteAtomic16": "a power failure of the host may cut any write to an image in two",
    "WriteSame10.ZeroBlocks": NON_ZERO,
    "WriteSame16.ZeroBlocks": NON_ZERO,
    "ReportSupportedOpcodes.OneCommand": "it passes, but calls each refusal that it wants a reason to skip",
}
"""Why all tests of a family, or one test, skip."""

FAILED = {
    "GetLBAStatus.UnmapSingle": "it asks for one LBA, and wants the answer for another",
    "iSCSIdatasn.iSCSIDataSnInvalid": "a wrong DataSN ends the session (ErrorRecoveryLevel 0); after a new "
    "login it sends its next write as immediate data, without any Data-Out that could be wrong",
    "MultipathIO.Reset": "it wants the unit attention of a reset also on the I_T nexus that asked for it",
}
"""Why one test fails."""

OUTCOME = re.compile(r"^  Test: (\S+) \.\.\.(.*?)(passed|FAILED)", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, str]]:
    """Serve a disk that can be written and one that cannot; give their URLs by that they cannot."""
    home = tmp_path_factory.mktemp("libiscsi")
    images = [make_image(home / name, 100 << 20) for name in ("writable", "protected")]
    targets = [Target(NAME, [Unit(image, read_only=image == images[1])]) for image in images]
    with Embedded(home, targets[0]) as writable, Embedded(home, targets[1]) as protected:
        yield {
            daemon is protected: f"iscsi://{daemon.portal}/{NAME}/{daemon.first_lun}"
            for daemon in (writable, protected)
        }


def expected(test: str) -> str:
    if test in FAILED:
        return "failed"
    return "skipped" if test in SKIPPED or test.partition(".")[0] in SKIPPED else "passed"


def outcomes(family: str, url: str) -> dict[str, str]:
    """Run the tests of *family* on two sessions with the same disk, and tell how each has ended."""
    # The program leaves SIGPIPE as it finds it, and Python ignores it: a closed connection must not end it.
    done = subprocess.run(
        ["iscsi-test-cu", "--dataloss", "--verbose", f"--test=ALL.{family}", url, url],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        restore_signals=False,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr  # 1: a test has failed
    return {
        f"{family}.{name}": "failed" if end == "FAILED" else "skipped" if "[SKIPPED]" in said else "passed"
        for name, said, end in OUTCOME.findall(done.stdout)
    }


@pytest.fixture(scope="module")
def all_tests() -> list[str]:
    done = subprocess.run(["iscsi-test-cu", "--list"], capture_output=True, text=True, check=False)
    names = [
        line.strip().removeprefix("ALL.") for line in done.stdout.splitlines() if line.startswith("ALL.")
    ]
    assert len(names) > 200
    return names


@pytest.fixture(autouse=True)
def required(require: Callable[..., None]) -> None:
    require("iscsi-test-cu")


# One by one: what one family does to the CDBs of its own goes on in the next.
@pytest.mark.parametrize("family", FAMILIES)
def test_every_test_ends_as_expected(family: str, served: dict[bool, str], all_tests: list[str]) -> None:
    tests = {test: expected(test) for test in all_tests if test.startswith(f"{family}.")}
    assert outcomes(family, served[family == "ReadOnly"]) == tests


def test_no_family_is_left_out(all_tests: list[str]) -> None:
    assert {test for test in all_tests if "." not in test} == set(FAMILIES)
    assert {*SKIPPED, *FAILED} <= set(all_tests)
