"""The target for tests of other programs: its faults and its log, its fixtures, and the page on it."""

import gc
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import trio

from iscsifs.errors import ConfigError, LoginRefused
from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.names import Portal
from iscsifs.scsi import cdb as commands
from iscsifs.scsi.capacity import Capacity
from iscsifs.scsi.luns import lun_from_number
from iscsifs.scsi.sense import Sense, SenseKey
from iscsifs.scsi.status import Status
from iscsifs.target import command_log, testing, unit
from iscsifs.target.testing import TestTarget
from support import cdbs
from support.raw_initiator import INITIATOR, Closed, RawInitiator, raw_initiator

BLOCK = 512
DATA = bytes(range(256)) * 2
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "testing.rst"


def portal(target: TestTarget) -> Portal:
    return Portal(target.host, target.port)


async def ready(initiator: RawInitiator, target: TestTarget, **config: Any) -> None:
    await initiator.login(target.name, **config)
    await initiator.execute(commands.test_unit_ready())


async def failed(initiator: RawInitiator, cdb: bytes, data: bytes = b"", *, read: int = 0) -> Sense:
    """Return the sense data with which a command ends that fails."""
    status, _, sense = await initiator.execute(cdb, data, read=read)
    assert status == Status.CHECK_CONDITION
    return Sense.parse(sense)


async def test_what_is_written_is_there_and_logged(iscsi_target: TestTarget) -> None:
    target = iscsi_target
    assert target.url == f"iscsi://127.0.0.1:{target.port}/{target.name}/0"
    async with raw_initiator(portal(target)) as initiator:
        await ready(initiator, target)
        assert target.initiators == [INITIATOR]
        assert (await initiator.execute(commands.write_10(8, 1), DATA))[0] == Status.GOOD
        assert target.disk.read(8 * BLOCK, BLOCK) == DATA
        assert target.disk.unsynchronised == [8]
        assert (await initiator.execute(commands.synchronize_cache_10()))[0] == Status.GOOD
        assert target.disk.unsynchronised == []
        target.disk.write(0, b"behind its back")
        _, data, _ = await initiator.execute(commands.read_10(0, 1), read=BLOCK)
        assert data.startswith(b"behind its back\0")
    tested, written, flushed, read = target.commands
    assert tested.name == "TEST UNIT READY"
    assert (tested.lba, tested.blocks) == (None, None)
    assert (tested.sense, str(tested)) == (unit.POWER_ON, "TEST UNIT READY: CHECK_CONDITION")
    assert (written.name, written.lba, written.blocks, written.data) == ("WRITE(10)", 8, 1, DATA)
    assert str(written) == "WRITE(10) LBA 8, 1 block: GOOD"
    assert flushed.name == "SYNCHRONIZE CACHE(10)"
    assert (read.cdb[:10], read.data, read.status) == (commands.read_10(0, 1), b"", Status.GOOD)
    target.clear()
    assert target.commands == []


async def test_blocks_that_fail(iscsi_target: TestTarget) -> None:
    disk = iscsi_target.disk
    async with raw_initiator(portal(iscsi_target)) as initiator:
        await ready(initiator, iscsi_target)
        disk.fail("write", offset=8 * BLOCK, length=BLOCK)
        disk.fail("read", offset=20 * BLOCK + 1, length=BLOCK, times=1)
        assert await failed(initiator, commands.write_10(7, 2), DATA * 2) == Sense(
            SenseKey.MEDIUM_ERROR, 0x0C, 0, information=8
        )
        assert (await initiator.execute(commands.write_10(9, 1), DATA))[0] == Status.GOOD
        assert await failed(initiator, commands.read_10(21, 2), read=2 * BLOCK) == Sense(
            SenseKey.MEDIUM_ERROR, 0x11, 0, information=21
        )
        assert (await initiator.execute(commands.read_10(20, 2), read=2 * BLOCK))[0] == Status.GOOD
        assert disk.read(7 * BLOCK, 2 * BLOCK) == bytes(2 * BLOCK)
        disk.heal()
        assert (await initiator.execute(commands.write_10(8, 1), DATA))[0] == Status.GOOD
        disk.fail("flush", sense=unit.SPACE_ALLOCATION_FAILED, times=1)
        assert await failed(initiator, commands.synchronize_cache_10()) == unit.SPACE_ALLOCATION_FAILED
        disk.answer({0x2A}, Status.BUSY, times=2)
        statuses = [(await initiator.execute(commands.write_10(0, 1), DATA))[0] for _ in range(3)]
        assert statuses == [Status.BUSY, Status.BUSY, Status.GOOD]
    assert [command.status for command in disk.commands][-3:] == statuses


async def test_what_happens_to_any_command_does_not_happen_to_those_that_find_a_disk(
    iscsi_target: TestTarget,
) -> None:
    disk = iscsi_target.disk
    async with raw_initiator(portal(iscsi_target)) as initiator:
        await ready(initiator, iscsi_target)
        disk.disconnect("any")
        assert (await initiator.execute(commands.inquiry(36), read=36))[0] == Status.GOOD
        assert (await initiator.execute(cdbs.request_sense(), read=252))[0] == Status.GOOD
        disk.heal()
        assert (await initiator.execute(commands.test_unit_ready()))[0] == Status.GOOD
        disk.answer("any", Status.BUSY)
        assert (await initiator.execute(commands.inquiry(36), read=36))[0] == Status.GOOD
        assert (await initiator.execute(commands.test_unit_ready()))[0] == Status.BUSY
        disk.disconnect("any")
        with pytest.raises(Closed):
            await initiator.execute(commands.test_unit_ready())


async def test_a_late_answer(iscsi_target: TestTarget) -> None:
    async with raw_initiator(portal(iscsi_target)) as initiator:
        await ready(initiator, iscsi_target)
        iscsi_target.disk.delay("write", 0.2, times=1)
        begun = time.monotonic()
        await initiator.send(initiator.command(commands.write_10(0, 1), write=BLOCK), DATA)
        iscsi_target.wait_for("write")
        assert iscsi_target.disk.read(0, BLOCK) == DATA
        assert (await initiator.finish())[0] == Status.GOOD
        assert time.monotonic() - begun >= 0.2
        # The end of the target does not wait for what it would have answered.
        iscsi_target.disk.delay("write", 1000.0)
        iscsi_target.clear()
        await initiator.send(initiator.command(commands.write_10(0, 1), write=BLOCK), DATA)
        iscsi_target.wait_for("write")


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("end", [{}, {"reset": False}, {"reset": True}], ids=str)
async def test_a_connection_that_ends_instead_of_an_answer(
    iscsi_target: TestTarget, carried_out: bool, end: dict[str, bool]
) -> None:
    iscsi_target.disk.disconnect("write", carried_out=carried_out, **end)
    async with raw_initiator(portal(iscsi_target)) as initiator:
        await ready(initiator, iscsi_target)
        await initiator.send(initiator.command(commands.write_10(0, 1), write=BLOCK), DATA)
        if end.get("reset"):
            with pytest.raises(trio.BrokenResourceError):
                await initiator.stream.receive_some(1)
        else:
            assert await initiator.stream.receive_some(1) == b""
    assert iscsi_target.disk.read(0, BLOCK) == (DATA if carried_out else bytes(BLOCK))
    async with raw_initiator(portal(iscsi_target)) as initiator:
        await ready(initiator, iscsi_target)
        assert (await initiator.execute(commands.write_10(0, 1), DATA))[0] == Status.GOOD


async def test_what_a_disk_tells_its_initiators(iscsi_target: TestTarget) -> None:
    disk = iscsi_target.disk
    async with raw_initiator(portal(iscsi_target)) as initiator:
        await ready(initiator, iscsi_target)
        assert (await initiator.execute(commands.write_10(0, 1), DATA))[0] == Status.GOOD
        disk.lose_cache()
        assert await failed(initiator, commands.test_unit_ready()) == unit.POWER_ON
        assert disk.read(0, BLOCK) == bytes(BLOCK)
        disk.resize(1 << 20)
        assert await failed(initiator, commands.test_unit_ready()) == unit.CAPACITY_CHANGED
        _, data, _ = await initiator.execute(commands.read_capacity_16(), read=32)
        assert Capacity.parse_16(data).blocks * BLOCK == disk.size == 1 << 20
        disk.read_only = True
        assert disk.read_only
        assert await failed(initiator, commands.test_unit_ready()) == unit.MODE_CHANGED
        assert await failed(initiator, commands.write_10(0, 1), DATA) == unit.WRITE_PROTECTED
        disk.attention(unit.LUNS_CHANGED)
        assert await failed(initiator, commands.test_unit_ready()) == unit.LUNS_CHANGED


async def test_a_target_that_is_down_for_a_while(iscsi_target: TestTarget) -> None:
    address = portal(iscsi_target)
    async with raw_initiator(address) as initiator:
        await ready(initiator, iscsi_target)
        assert (await initiator.execute(commands.write_10(0, 1), DATA))[0] == Status.GOOD
        iscsi_target.stop_listening()
        with pytest.raises(Closed):
            await initiator.receive()
        with pytest.raises(OSError, match="all attempts to connect"):
            async with raw_initiator(address):
                pass
    iscsi_target.listen_again()
    async with raw_initiator(address) as initiator:
        await ready(initiator, iscsi_target)
        _, data, _ = await initiator.execute(commands.read_10(0, 1), read=BLOCK)
        assert data == DATA
        iscsi_target.drop_connections(reset=True)
        with pytest.raises(Closed):
            await initiator.receive()


async def test_disks_and_users(make_iscsi_target: Callable[..., TestTarget]) -> None:
    options = {"disks": 2, "block_size": 4096, "write_cache": False, "dpo_fua": False}
    target = make_iscsi_target(size=1 << 20, user="alice", secret="the secret of Alice", **options)
    async with raw_initiator(portal(target)) as initiator:
        with pytest.raises(LoginRefused):
            await initiator.login(target.name)
    async with raw_initiator(portal(target)) as initiator:
        await ready(initiator, target, credentials=Credentials("alice", b"the secret of Alice"))
        second = lun_from_number(1)
        await initiator.execute(commands.test_unit_ready(), lun=second)
        written = await initiator.execute(commands.write_10(3, 1), DATA * 8, lun=second)
        assert written[0] == Status.GOOD
        assert target.disks[1].read(3 * 4096, BLOCK) == DATA
        assert target.disks[1].unsynchronised == []  # without a write cache
        assert target.disk.read(3 * 4096, BLOCK) == bytes(BLOCK)
        assert (
            await failed(initiator, commands.write_10(0, 1, fua=True), DATA * 8) == unit.INVALID_FIELD_IN_CDB
        )
    assert [command.name for command in target.disks[1].commands] == ["TEST UNIT READY", "WRITE(10)"]


def test_what_does_not_come_is_not_waited_for_for_ever(iscsi_target: TestTarget) -> None:
    with pytest.raises(TimeoutError, match=r"no such command within 0\.01 s"):
        iscsi_target.wait_for("write", timeout=0.01)


@pytest.mark.parametrize(
    "options", [{"name": "disk"}, {"size": 100}, {"block_size": 1000}, {"user": "alice"}], ids=str
)
def test_what_cannot_be_served(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TestTarget(**options)


def test_nothing_is_left_of_it() -> None:
    gc.collect()  # what other tests have left is closed now, and not in between
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    target = TestTarget(disks=3)
    with target:
        pass
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


async def test_the_log_is_bounded(iscsi_target: TestTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_log, "LOGGED_COMMANDS", 3)
    async with raw_initiator(portal(iscsi_target)) as initiator:
        await ready(initiator, iscsi_target)
        for lba in range(5):
            await initiator.execute(commands.write_10(lba, 1), DATA)
        assert [command.lba for command in iscsi_target.commands] == [2, 3, 4]
        monkeypatch.setattr(command_log, "LOGGED_DATA", 2 * BLOCK)
        await initiator.execute(commands.write_10(5, 1), DATA)
    assert [command.lba for command in iscsi_target.commands] == [4, 5]


# The page on it, as a reader uses it.


def examples() -> list[str]:
    """Return the Python code of the page."""
    blocks = re.findall(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", PAGE.read_text(), re.MULTILINE)
    return [dedent(block) for block in blocks]


@pytest.mark.mount
def test_the_test_file_of_the_page_passes(tmp_path: Path) -> None:
    (tmp_path / "test_storage.py").write_text(examples()[0])
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(tmp_path),
            str(tmp_path),
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{examples()[0].count('def test_')} passed" in done.stdout


def test_the_script_of_the_page_runs() -> None:
    done = subprocess.run([sys.executable, "-c", examples()[1]], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("log in at iscsi://127.0.0.1:")


def test_the_page_names_what_there_is() -> None:
    disk = set(re.findall(r"``disk\.(\w+)", PAGE.read_text()))
    public = {name for name in vars(testing.ServedDisk) if not name.startswith("_")}
    assert disk == public - {"block_size", "size", "commands"}


def test_pytest_is_no_requirement() -> None:
    """Neither for the target, nor for its use in tests; and the plugin brings nothing that is not used."""
    check = "import sys; import iscsifs.target.testing; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
    check = "import sys; import iscsifs.target.pytest_plugin; assert 'trio' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
