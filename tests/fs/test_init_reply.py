"""What the kernel is told when it asks how to serve this file system, with sockets for /dev/fuse."""

import gc
import logging
import os
import socket
from collections.abc import Iterator

import pytest

from iscsifs.fs.platform.init_reply import (
    FUSE_ATOMIC_O_TRUNC,
    FUSE_AUTO_INVAL_DATA,
    FUSE_DIRECT_IO_ALLOW_MMAP,
    FUSE_INIT,
    FUSE_INIT_EXT,
    IN_HEADER,
    INIT_IN,
    INIT_OUT,
    OUT_HEADER,
    AmendedInit,
    UnexpectedInitError,
    amend,
)

ASYNC_READ = 1 << 0
OTHER = 1 << 1  # in flags2
UNUSED = bytes(28)


def request(
    opcode: int = FUSE_INIT, flags: int = FUSE_INIT_EXT, flags2: int = FUSE_DIRECT_IO_ALLOW_MMAP
) -> bytes:
    body = INIT_IN.pack(7, 45, 131072, flags | ASYNC_READ, flags2) + bytes(44)
    return IN_HEADER.pack(IN_HEADER.size + len(body), opcode, 2, 0, 0, 0, 0, 0, 0) + body


def reply(flags: int = FUSE_ATOMIC_O_TRUNC | FUSE_AUTO_INVAL_DATA, flags2: int = 0, major: int = 7) -> bytes:
    body = INIT_OUT.pack(major, 38, 131072, flags | ASYNC_READ, 0, 0, 1 << 20, 1, 256, 0, flags2) + UNUSED
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, 2) + body


def test_what_does_not_suit_a_disk_is_taken_out_and_the_rest_stays() -> None:
    amended = amend(request(), reply(), 4096)
    expected = INIT_OUT.pack(
        *(
            7,
            38,
            131072,
            ASYNC_READ | FUSE_INIT_EXT,
            4096,
            3072,
            1 << 20,
            1,
            256,
            0,
            FUSE_DIRECT_IO_ALLOW_MMAP,
        )
    )
    assert amended == reply()[: OUT_HEADER.size] + expected + UNUSED


@pytest.mark.parametrize("offer", [{"flags": 0}, {"flags2": OTHER}])
def test_what_the_kernel_does_not_offer_is_not_asked_for(offer: dict[str, int]) -> None:
    amended = amend(request(**offer), reply(), 12)
    *_, flags, background, threshold, _, _, _, _, flags2 = INIT_OUT.unpack_from(amended, OUT_HEADER.size)
    assert flags & ~FUSE_INIT_EXT == ASYNC_READ
    assert (background, threshold, flags2) == (12, 9, 0)


def test_what_libfuse_has_asked_for_in_the_second_word_stays() -> None:
    amended = amend(request(), reply(FUSE_INIT_EXT, OTHER), 4096)
    assert INIT_OUT.unpack_from(amended, OUT_HEADER.size)[-1] == OTHER | FUSE_DIRECT_IO_ALLOW_MMAP


def test_a_kernel_without_the_second_word_is_served() -> None:
    old = request(flags=0)[: IN_HEADER.size + 16]  # struct fuse_init_in before 7.36
    assert INIT_OUT.unpack_from(amend(old, reply(), 4096), OUT_HEADER.size)[3] == ASYNC_READ


REFUSED = OUT_HEADER.pack(OUT_HEADER.size, -71, 2)


@pytest.mark.parametrize(
    ("asked", "answered", "complaint"),
    [
        (request(opcode=1), reply(), "not FUSE_INIT"),
        (b"", reply(), "not FUSE_INIT"),
        (request(), b"", "0 bytes"),
        (request(), REFUSED, "16 bytes"),
        (request(), reply()[:40], "40 bytes"),
        (request(), reply(major=8), "version 8"),
    ],
)
def test_what_is_not_as_expected_is_not_amended(asked: bytes, answered: bytes, complaint: str) -> None:
    with pytest.raises(UnexpectedInitError, match=complaint):
        amend(asked, answered, 4096)


class Device:
    """A socket in the place of /dev/fuse: `kernel` is its other end."""

    def __init__(self) -> None:
        self.kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fd = ours.detach()
        self.kernel.settimeout(5)

    def close(self) -> None:
        self.kernel.close()
        os.close(self.fd)


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    yield device
    device.close()


def open_descriptors() -> int:
    gc.collect()  # what other tests have left is closed now, and not in between
    return len(os.listdir("/proc/self/fd"))


def test_libfuse_is_between_the_request_and_its_answer_and_then_out(device: Device) -> None:
    before, descriptors = os.readlink(f"/proc/self/fd/{device.fd}"), open_descriptors()
    init = AmendedInit(4096)
    device.kernel.send(request())
    init.begin(device.fd)
    assert os.readlink(f"/proc/self/fd/{device.fd}") != before
    assert os.read(device.fd, 65536) == request()
    os.write(device.fd, reply())
    init.end()
    assert init.is_in_force
    assert device.kernel.recv(65536) == amend(request(), reply(), 4096)
    assert os.readlink(f"/proc/self/fd/{device.fd}") == before
    assert not os.get_inheritable(device.fd)
    assert open_descriptors() == descriptors
    init.end()  # and nothing more


def test_an_answer_that_is_not_as_expected_reaches_the_kernel_as_it_is(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    init = AmendedInit(4096)
    device.kernel.send(request())
    init.begin(device.fd)
    os.write(device.fd, REFUSED)
    init.end()
    assert device.kernel.recv(65536) == REFUSED
    assert not init.is_in_force
    assert "16 bytes" in caplog.text
    assert "O_TRUNC" in caplog.text


def test_without_an_answer_the_descriptor_is_put_back(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    before, descriptors = os.readlink(f"/proc/self/fd/{device.fd}"), open_descriptors()
    init = AmendedInit(4096)
    device.kernel.send(request())
    init.begin(device.fd)
    init.end()
    assert os.readlink(f"/proc/self/fd/{device.fd}") == before
    assert open_descriptors() == descriptors
    assert not init.is_in_force
    assert "not answered" in caplog.text


def test_without_descriptors_libfuse_answers_alone(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "dup", refuse)
    descriptors = open_descriptors()
    init = AmendedInit(4096)
    device.kernel.send(request())
    init.begin(device.fd)
    assert os.read(device.fd, 65536) == request()
    init.end()
    assert open_descriptors() == descriptors
    assert "Too many open files; raise the limit with: ulimit -n" in caplog.text


def test_a_mount_that_is_gone_is_no_news(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    init = AmendedInit(4096)
    device.kernel.send(request())
    init.begin(device.fd)
    os.write(device.fd, reply())

    def refuse(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        with caplog.at_level(logging.INFO):
            init.end()
    assert not init.is_in_force
    assert not caplog.records
