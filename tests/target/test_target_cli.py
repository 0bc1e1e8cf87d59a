"""The command iscsifs-target: what it serves, what it refuses, and how it ends."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.names import TargetAddress
from iscsifs.scsi import cdb as commands
from iscsifs.scsi import vpd
from iscsifs.scsi.capacity import Capacity
from iscsifs.scsi.luns import lun_from_number
from iscsifs.target.cli import DEFAULT_NAME, main
from support.raw_initiator import RawInitiator, raw_initiator

COMMAND = (sys.executable, "-c", "import sys; from iscsifs.target.cli import main; sys.exit(main())")


pytestmark = pytest.mark.usefixtures("own_log")


@contextmanager
def running(
    *arguments: object, end: int = signal.SIGTERM, targets: int = 1
) -> Iterator[tuple[TargetAddress, str]]:
    """Run the command at a free port; give its address and the names of its *targets*. It has to end well."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(targets)]
        ((address,),) = (set(addresses) for addresses in zip(*(line[:1] for line in lines), strict=True))
        try:
            yield TargetAddress.parse(address), " ".join(line[1] for line in lines)
        finally:
            process.send_signal(end)
            rest, errors = process.communicate(timeout=10)
    assert (process.returncode, rest, errors) == (0, "", "")


async def ready(initiator: RawInitiator, name: str, credentials: Credentials | None = None) -> None:
    await initiator.login(name, credentials=credentials)
    await initiator.execute(commands.test_unit_ready())
    await initiator.execute(commands.test_unit_ready(), lun=lun_from_number(1))


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_files_and_memory_until_a_signal_comes(tmp_path: Path, end: int) -> None:
    image = tmp_path / "image"
    with running("--size", "1M", "--block-size", 4096, image, "mem:64K", end=end) as (address, name):
        assert name == DEFAULT_NAME
        assert (address.portal.host, address.tag) == ("127.0.0.1", 1)
        async with raw_initiator(address.portal) as initiator:
            await ready(initiator, name)
            for number, blocks in (0, 256), (1, 16):
                lun = lun_from_number(number)
                _, data, _ = await initiator.execute(commands.read_capacity_16(), read=32, lun=lun)
                capacity = Capacity.parse_16(data)
                assert (capacity.blocks, capacity.block_size) == (blocks, 4096)
            assert (await initiator.execute(commands.write_16(0, 1), b"x" * 4096))[0] == 0
            serial = (await initiator.execute(commands.inquiry(255, 0x80), read=255))[1]
    assert image.stat().st_size == 1 << 20
    assert image.read_bytes()[:4097] == b"x" * 4096 + b"\0"
    with running("--name", "iqn.2001-04.com.example:again", image) as (address, name):
        async with raw_initiator(address.portal) as initiator:
            await ready(initiator, name)
            assert name == "iqn.2001-04.com.example:again"
            again = (await initiator.execute(commands.inquiry(255, 0x80), read=255))[1]
            assert vpd.parse_serial(again) == vpd.parse_serial(serial)


async def test_read_only(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1024))
    image.chmod(0o400)
    with running("--read-only", image) as (address, name):
        async with raw_initiator(address.portal) as initiator:
            await ready(initiator, name)
            assert (await initiator.execute(commands.write_16(0, 1), bytes(512)))[0] == 2


def secret(path: Path, content: str) -> Path:
    path.write_text(content)
    path.chmod(0o600)
    return path


async def test_chap_both_ways(tmp_path: Path) -> None:
    arguments = (
        *("--user", "alice", "--secret-file", secret(tmp_path / "alice", "the secret of Alice\n")),
        *("--target-user", "disk", "--target-secret-file", secret(tmp_path / "disk", "the secret of Disk")),
    )
    good = Credentials("alice", b"the secret of Alice", "disk", b"the secret of Disk")
    with running(*arguments, "mem:64K") as (address, name):
        async with raw_initiator(address.portal) as initiator:
            await ready(initiator, name, credentials=good)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one line in which the command refuses *arguments*."""
    with pytest.raises(SystemExit) as caught:
        sys.exit(main(list(map(str, arguments))))
    out, line = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert line.startswith("iscsifs-target: ")
    assert line.count("\n") == 1
    return line.removeprefix("iscsifs-target: ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "the following arguments are required: FILE"),
        (["--frobnicate", "mem:1M"], "unrecognized arguments: --frobnicate"),
        (["/nonexistent/image"], "image /nonexistent/image: No such file or directory"),
        ([""], 'FILE "": give the name of a file'),
        (["mem:"], '"" is not a size'),
        (["mem:-1"], '"-1" is not a size'),
        (["mem:99999999999T"], '"99999999999T" is too much'),
        (["mem:1e6"], '"1e6" is not a size'),
        (["mem:1.5G"], '"1.5G" is not a size'),
        (["mem:0M"], '"0M" is not a size'),
        (["mem:100"], "100 bytes are less than a block; make it longer: truncate -s SIZE"),
        (["--size", "12X", "mem:1M"], '"12X" is not a size'),
        (["--block-size", "1000", "mem:1M"], "blocks of 1000 bytes are not supported"),
        (["--block-size", "0", "mem:1M"], "blocks of 0 bytes are not supported"),
        (["--name", "disk", "mem:1M"], 'target name "disk"'),
        (["--bind", "localhost", "mem:1M"], '--bind "localhost": give an IPv4 or IPv6 address'),
        (["--port", "65536", "mem:1M"], "--port 65536: give a number from 0 to 65535"),
        (["--port", "iscsi", "mem:1M"], 'argument -p/--port: "iscsi" is not a whole number'),
        (["iqn.2001-04.com.example:a"], "target iqn.2001-04.com.example:a has no disk"),
        (["mem:1M", "iqn.2001-04.com.example:a"], "target iqn.2001-04.com.example:a has no disk"),
        (["iqn.2001-04.com.example:a", "mem:1M", "iqn.2001-04.com.example:a", "mem:1M"], "is named twice"),
        (["mem:1M", DEFAULT_NAME, "mem:1M"], "is named twice"),
        (["iqn.disk", "mem:1M"], 'target name "iqn.disk": it is not of the form'),
        (["--readonly", "mem:1M"], "did you mean --read-only?"),
        (["/"], "image /: Is a directory; give a file, a block device or mem:SIZE"),
        (["/no/such.img"], "No such file or directory; give --size SIZE to have it made"),
        (["--read-only", "--size", "1M", "/no/such.img"], "leave out --read-only to have it made"),
        (["--user", "alice", "mem:1M"], "--user and --secret-file belong together"),
        (["--target-user", "disk", "mem:1M"], "--target-user and --target-secret-file belong together"),
    ],
)
def test_what_cannot_be_served(capsys: pytest.CaptureFixture[str], arguments: list[str], line: str) -> None:
    assert line in refused(capsys, *arguments)


def test_secrets_have_to_be_secret_long_and_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alice = secret(tmp_path / "alice", "the secret of Alice")
    disk = secret(tmp_path / "disk", "the secret of Alice")
    user = ("--user", "alice", "--secret-file", alice)
    target = ("--target-user", "disk", "--target-secret-file", disk)
    assert "same for both directions" in refused(capsys, *user, *target, "mem:1M")
    assert "mutual CHAP" in refused(capsys, *target, "mem:1M")
    alice.write_text("short")
    assert "at least 12" in refused(capsys, *user, "mem:1M")
    alice.chmod(0o640)
    assert f"secret file {alice}" in refused(capsys, *user, "mem:1M")
    alice.unlink()
    assert f"secret file {alice}: No such file" in refused(capsys, *user, "mem:1M")


def test_a_portal_open_to_everybody_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    # An address of TEST-NET-1 (RFC 5737), which no machine has: it warns, then cannot listen.
    assert main(["--bind", "192.0.2.1", "--port", "0", "mem:1M"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("iscsifs-target: warning: everybody who reaches 192.0.2.1 can read and write")
    assert error.endswith("192.0.2.1:0: Cannot assign requested address; this machine has no such address")


def test_descriptors_are_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    gc.collect()  # what other tests have left is closed now, and not in between
    before = len(os.listdir("/proc/self/fd"))
    refused(capsys, "mem:1M", "mem:1M", "/nonexistent/image")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("size", "length"),
    [
        ("3m", 3 << 20),
        ("3MiB", 3 << 20),
        ("3MB", 3_000_000),
        ("4096", 4096),
        ("1g", 1 << 30),
        ("1T", 1 << 40),
    ],
)
def test_sizes_are_those_of_truncate(tmp_path: Path, size: str, length: int) -> None:
    image = tmp_path / "image"
    with running("--size", size, image):
        assert image.stat().st_size == length


@pytest.mark.parametrize(
    "arguments", [["/nonexistent/image"], ["--bind", "192.0.2.1"], ["mem:0"]], ids=["file", "portal", "size"]
)
def test_files_made_for_nothing_are_not_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    assert main(["--port", "0", "--size", "1M", str(new), str(old), *arguments]) == 2
    assert not new.exists()
    assert old.exists()


async def test_several_targets() -> None:
    one, two = "iqn.2001-04.com.example:one", "iqn.2001-04.com.example:two"
    arguments = ("mem:64K", one, "mem:128K", "--block-size", 4096, "mem:256K", two, "mem:512K")
    with running(*arguments, targets=3) as (address, names):
        assert names.split() == [DEFAULT_NAME, one, two]
        for name, sizes in (DEFAULT_NAME, [64]), (one, [128, 256]), (two, [512]):
            async with raw_initiator(address.portal) as initiator:
                await initiator.login(name)
                for number, size in enumerate(sizes):
                    lun = lun_from_number(number)
                    await initiator.execute(commands.test_unit_ready(), lun=lun)
                    _, data, _ = await initiator.execute(commands.read_capacity_16(), read=32, lun=lun)
                    capacity = Capacity.parse_16(data)
                    assert (capacity.blocks * 4, capacity.block_size) == (size, 4096)
                beyond = await initiator.execute(commands.test_unit_ready(), lun=lun_from_number(len(sizes)))
                assert beyond[0] == 2


async def test_disks_are_told_apart(tmp_path: Path) -> None:
    image, link = tmp_path / "image", tmp_path / "link"
    link.symlink_to(image)
    found = []
    for arguments in (("mem:64K", "mem:64K", image), ("mem:64K", "mem:64K", link)):
        with running("--size", "64K", *arguments) as (address, name):
            async with raw_initiator(address.portal) as initiator:
                await initiator.login(name)
                for number in range(3):
                    lun = lun_from_number(number)
                    await initiator.execute(commands.test_unit_ready(), lun=lun)
                    _, data, _ = await initiator.execute(commands.inquiry(255, 0x80), read=255, lun=lun)
                    found.append(vpd.parse_serial(data))
    assert found[2] == found[5]  # the same file, by whichever name
    assert len(set(found)) == 5


def test_an_image_is_served_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, link = tmp_path / "image", tmp_path / "link"
    image.write_bytes(bytes(1024))
    link.hardlink_to(image)
    with running(image):
        assert f"image {link}: it is served already" in refused(capsys, "--port", "0", link)
        assert f"image {link}: it is served already" in refused(capsys, "--port", "0", "--shared", link)
        assert f"image {link}: it is served already" in refused(capsys, "--port", "0", "--read-only", link)
    assert f"image {image}: it is served already" in refused(capsys, "--port", "0", image, image)
    with running("--shared", image), running("--shared", image), running("--read-only", link):
        pass


PROBE = """
import ctypes, sys
from iscsifs.target import cli
async def serve(*arguments):
    print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
cli._serve = serve
sys.exit(cli.main())
"""


def test_no_core_is_dumped_while_there_are_secrets(tmp_path: Path) -> None:
    file = secret(tmp_path / "alice", "the secret of Alice")
    for arguments, dumpable in ([], "1\n"), (["--user", "alice", "--secret-file", str(file)], "0\n"):
        command = [sys.executable, "-c", PROBE, *arguments, "mem:64K"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == dumpable
