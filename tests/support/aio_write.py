"""Writes "y" to a file with O_DIRECT, asynchronously; prints the result: PATH native|io_uring OFFSET SIZE."""

import ctypes
import mmap
import os
import platform
import struct
import sys
from typing import Final

_SYSCALLS: Final = {"x86_64": (206, 209, 208), "aarch64": (0, 2, 4)}  # io_setup, io_submit, io_getevents
_IO_URING_SETUP: Final = 425
_IO_URING_ENTER: Final = 426

_libc = ctypes.CDLL(None, use_errno=True)


def syscall(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def address_of(buffer: mmap.mmap | bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def native(descriptor: int, buffer: int, size: int, offset: int) -> int:
    """Write with io_submit(2)."""
    setup, submit, getevents = _SYSCALLS[platform.machine()]
    context = ctypes.c_ulong(0)
    syscall(setup, ctypes.c_long(1), ctypes.byref(context))
    # struct iocb: data, key, rw_flags, opcode (IOCB_CMD_PWRITE), reqprio, fildes, buf, nbytes, offset, ...
    iocb = bytearray(struct.pack("=QIIHhIQQqQII", 0, 0, 0, 1, 0, descriptor, buffer, size, offset, 0, 0, 0))
    pointers = (ctypes.c_void_p * 1)(address_of(iocb))
    syscall(submit, context, ctypes.c_long(1), pointers)
    event = bytearray(32)  # struct io_event: data, obj, res, res2
    into = ctypes.c_void_p(address_of(event))
    syscall(getevents, context, ctypes.c_long(1), ctypes.c_long(1), into, ctypes.c_void_p(None))
    result: int = struct.unpack_from("=QQqq", event)[2]
    return result


def io_uring(descriptor: int, buffer: int, size: int, offset: int) -> int:
    """Write with io_uring_enter(2)."""
    parameters = bytearray(120)  # struct io_uring_params
    ring = syscall(_IO_URING_SETUP, ctypes.c_uint(1), ctypes.c_void_p(address_of(parameters)))
    sq_entries, cq_entries = struct.unpack_from("=II", parameters)
    sq, cq = (struct.unpack_from("=8I", parameters, start) for start in (40, 80))  # offsets in the rings
    sq_ring = mmap.mmap(ring, sq[6] + sq_entries * 4, offset=0)
    cq_ring = mmap.mmap(ring, cq[5] + cq_entries * 16, offset=0x8000000)
    sqes = mmap.mmap(ring, sq_entries * 64, offset=0x10000000)
    # struct io_uring_sqe: opcode (IORING_OP_WRITE), flags, ioprio, fd, off, addr, len, ...
    sqes[:64] = struct.pack("=BBHiQQI", 23, 0, 0, descriptor, offset, buffer, size).ljust(64, b"\0")
    struct.pack_into("=I", sq_ring, sq[6], 0)
    struct.pack_into("=I", sq_ring, sq[1], 1)  # the tail
    syscall(
        _IO_URING_ENTER,
        ctypes.c_uint(ring),
        *map(ctypes.c_uint, (1, 1, 1)),
        ctypes.c_void_p(None),
        ctypes.c_size_t(0),
    )
    result: int = struct.unpack_from("=Qi", cq_ring, cq[5])[1]
    return result


def main() -> None:
    path, way, offset, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, size)
    buffer[:] = b"y" * size
    print({"native": native, "io_uring": io_uring}[way](descriptor, address_of(buffer), size, offset))


if __name__ == "__main__":
    main()
