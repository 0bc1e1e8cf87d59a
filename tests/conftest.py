"""Fixtures and policies of the whole suite."""

import itertools
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest

from support.embedded import Embedded
from support.machine import absent, require_programs
from support.mounting import Mounted, MountHosts
from support.subjects import Subject, device, storage
from support.targets import D, Daemon, Istgt, Serve, Tgt, make_image

pytest_plugins = ["support.bounds", "support.conformance", "support.promises", "support.mounted_units"]

# Deadlines measure the machine, and CI has to find the same today as tomorrow.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hold the marker `mount` to its word."""
    if item.get_closest_marker("mount"):
        require_programs("fusermount3")
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            absent("/dev/fuse cannot be opened: load the module fuse, or have root run chmod 666 /dev/fuse")


@pytest.fixture
def require() -> Callable[..., None]:
    """Require programs by name: ``require("mkfs.ext4", "losetup")``."""
    return require_programs


@pytest.fixture
def require_root() -> None:
    """Require root, for loop devices, mount(8) and the like."""
    if os.geteuid() != 0:
        absent("needs root")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file of 64 MiB to serve as a disk."""
    return make_image(tmp_path / "disk.img", 64 << 20)


@pytest.fixture(params=[Tgt, Istgt])
def either(request: pytest.FixtureRequest) -> type[Daemon]:
    """Each real daemon in turn, for what both have to agree on."""
    kind: type[Daemon] = request.param
    return kind


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start daemons, as in ``tgt = serve(Tgt(tmp_path, Target(...)))``, and end them after the test.

    Their logs stand in the report of a test that fails. A daemon that ended by itself is an error.
    """
    with ExitStack() as stack:

        def start(daemon: D) -> D:
            require_programs(daemon.program)
            stack.callback(lambda: print(f"{daemon.log}:\n{daemon.log_text()}"))
            stack.enter_context(daemon)
            return daemon

        yield start


@pytest.fixture(params=[Embedded, Tgt, Istgt])
def any_target(request: pytest.FixtureRequest) -> type[Daemon]:
    """Each target in turn, our own one too."""
    kind: type[Daemon] = request.param
    return kind


@pytest.fixture
def mount_hosts(tmp_path: Path, serve: Serve) -> Iterator[MountHosts]:
    """Mount with the command, as in ``mounted = mount_hosts(daemon.portal, "-r")``, until the test ends.

    It has to end with *status* when it goes to the background.
    """
    with ExitStack() as stack:
        numbers = itertools.count()

        def start(
            *arguments: object, status: int = 0, foreground: bool = False, user: int | None = None
        ) -> Mounted:
            path = tmp_path / f"mnt{next(numbers)}"
            if user is None:
                path.mkdir()
            else:  # who does not get into tmp_path
                path = Path(tempfile.mkdtemp(prefix="iscsifs."))
                stack.callback(path.rmdir)
                os.chown(path, user, user)
            mounted = Mounted(path)
            stack.callback(mounted.close)
            if foreground:
                mounted.start_in_foreground(*arguments)
            else:
                mounted.start(*arguments, user=user)
                assert mounted.said.returncode == status, mounted.said
                assert mounted.is_mounted()
            return mounted

        yield start


@pytest.fixture(scope="session")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """A loop device, the model for what `storage` does."""
    if os.geteuid() != 0:
        absent("needs root")
    require_programs("losetup", "blockdev")
    with device(tmp_path_factory.mktemp("device")) as subject:
        yield subject


@pytest.fixture(scope="session", params=["default", "direct_io"])
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """`storage` of a mount on tgt, with the kernel's page cache and without it."""
    require_programs("tgtd")
    is_direct_io = request.param == "direct_io"
    options = ["-o", "direct_io"] if is_direct_io else []
    with storage(tmp_path_factory.mktemp(request.param), *options) as subject:
        subject.is_direct_io = is_direct_io
        yield subject


@pytest.fixture
def says(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What iscsifs has said to its user so far: warnings and errors."""

    def lines() -> list[str]:
        return [
            record.getMessage()
            for record in caplog.records
            if record.levelno >= logging.WARNING
            and record.name.startswith(
                ("iscsifs.initiator", "iscsifs.transport", "iscsifs.units", "iscsifs.fs")
            )
        ]

    return lines


@pytest.fixture
def own_log() -> Iterator[None]:
    """Give the log back to pytest: what is under test writes it to an output that is gone afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
