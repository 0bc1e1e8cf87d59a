"""What systemd is told with Type=notify, at a socket that takes its place."""

import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from iscsifs.limits import ATTACH_TIMEOUT, END_TIMEOUT, LAST_LOGOUT_TIMEOUT
from iscsifs.notify import notify
from support.embedded import Embedded
from support.mounting import MountHosts
from support.targets import Serve, Target, Unit


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The socket of a service manager, of whom the environment says where it is."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@iscsifs-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield manager


def said(manager: socket.socket) -> dict[str, str]:
    """Return the assignments of the next datagram."""
    return dict(line.split("=", 1) for line in manager.recv(4096).decode().splitlines())


def test_assignments_are_one_datagram(manager: socket.socket) -> None:
    notify("READY=1", "STATUS=all is there", extend=1.5)
    assert said(manager) == {"READY": "1", "STATUS": "all is there", "EXTEND_TIMEOUT_USEC": "1500000"}


@pytest.mark.parametrize("address", [None, "", "relative", "/does/not/exist", "/" + 200 * "x", "@nobody"])
def test_nothing_is_raised_where_nobody_listens(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")


def test_a_manager_that_does_not_read_is_not_waited_for(manager: socket.socket) -> None:
    manager.setblocking(False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
        filler.connect(manager.getsockname())
        filler.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                filler.send(b"x")
    notifying = Thread(target=notify, args=["READY=1"], daemon=True)
    notifying.start()
    notifying.join(5)
    assert not notifying.is_alive()


@pytest.mark.real
@pytest.mark.mount
@pytest.mark.parametrize("end", ["SIGTERM", "unmount"])
def test_the_life_of_a_mount_is_told(
    end: str, manager: socket.socket, tmp_path: Path, image: Path, serve: Serve, mount_hosts: MountHosts
) -> None:
    """The start and the end say how long they may take, so that neither is killed before its time."""
    daemon = serve(Embedded(tmp_path, Target("iqn.2026-01.example:disk", [Unit(image)])))
    mounted = mount_hosts(daemon.portal, foreground=True)
    first, ready = said(manager), said(manager)
    assert int(first["EXTEND_TIMEOUT_USEC"]) >= ATTACH_TIMEOUT * 1e6
    assert "READY" not in first
    assert ready["READY"] == "1"
    assert re.fullmatch(r"Targets mounted: 1; failures at the start: 0", ready["STATUS"])
    assert mounted.is_mounted()
    assert mounted.storage().stat().st_size == image.stat().st_size
    if end == "unmount":
        mounted.unmount()
    else:
        mounted.signal(signal.SIGTERM)
    last = said(manager)
    assert last["STOPPING"] == "1"
    assert int(last["EXTEND_TIMEOUT_USEC"]) >= (END_TIMEOUT + LAST_LOGOUT_TIMEOUT) * 1e6
    assert mounted.status() == 0
