"""The answer to FUSE_INIT, in which a file system tells the kernel how it is to be served.

libfuse writes this answer, and pyfuse3 has no way to change it. Two of libfuse's defaults do not suit a disk:

FUSE_ATOMIC_O_TRUNC
    open(2) with O_TRUNC is one request. The kernel sets the size of the file to 0 until it asks for the
    attributes the next time: meanwhile a loop device gets EIO, a mapping SIGBUS, and a reader the end of the
    file. Without the flag the kernel sends FUSE_SETATTR, whose answer says that the size is what it was.
FUSE_AUTO_INVAL_DATA
    A new mtime drops the pages that the kernel has cached. Without the flag the mtime can follow the writes.

In the same answer stand max_background and congestion_threshold, which pyfuse3 does not set either, and
FUSE_DIRECT_IO_ALLOW_MMAP (Linux 6.6), without which direct_io refuses MAP_SHARED.

libfuse reads and writes at one descriptor number. So `AmendedInit` puts a socket in the
place of the descriptor for the length of this one request: FUSE_INIT is read from the kernel and passed on to
libfuse, libfuse's answer is amended and passed on to the kernel, and then the descriptor is put back. Nothing
else uses the descriptor in between: the kernel sends nothing before it has the answer, and pyfuse3 does not
return to trio between reading a request and answering this one.

The structures are those of linux/fuse.h.
"""

import logging
import os
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from iscsifs.errors import reason

log = logging.getLogger(__name__)

IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
"""struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""

OUT_HEADER: Final = struct.Struct("=IiQ")
"""struct fuse_out_header: len, error, unique."""

INIT_IN: Final = struct.Struct("=IIIII")
"""struct fuse_init_in, the beginning: major, minor, max_readahead, flags, flags2."""

INIT_OUT: Final = struct.Struct("=IIIIHHIIHHI")
"""struct fuse_init_out, without unused[7]: major, minor, max_readahead, flags, max_background,
congestion_threshold, max_write, time_gran, max_pages, map_alignment, flags2."""

FUSE_INIT: Final = 26
FUSE_KERNEL_VERSION: Final = 7

FUSE_ATOMIC_O_TRUNC: Final = 1 << 3
FUSE_AUTO_INVAL_DATA: Final = 1 << 12
FUSE_INIT_EXT: Final = 1 << 30
FUSE_DIRECT_IO_ALLOW_MMAP: Final = 1 << 36 - 32
"""In flags2, which counts only with FUSE_INIT_EXT."""

_LONGEST_REQUEST: Final = 64 * 1024
"""Bytes to read FUSE_INIT into; the kernel refuses buffers of less than 8 KiB (FUSE_MIN_READ_BUFFER)."""

_UNTOUCHED: Final = (
    "O_TRUNC of one program can disturb others that use the same disk, and a write drops the page cache"
)


class UnexpectedInitError(Exception):
    """FUSE_INIT or its answer is not as linux/fuse.h has it."""


def amend(request: bytes, reply: bytes, max_background: int) -> bytes:
    """Return the *reply* of libfuse to *request* (FUSE_INIT) with what a disk needs.

    Raises UnexpectedInitError where it cannot be changed.
    """
    if len(request) < IN_HEADER.size + INIT_IN.size - 4 or IN_HEADER.unpack_from(request)[1] != FUSE_INIT:
        raise UnexpectedInitError("the first request of the kernel is not FUSE_INIT")
    *_, offered, offered2 = INIT_IN.unpack_from(
        request.ljust(IN_HEADER.size + INIT_IN.size, b"\0"), IN_HEADER.size
    )
    if len(reply) < OUT_HEADER.size + INIT_OUT.size or OUT_HEADER.unpack_from(reply)[1] != 0:
        raise UnexpectedInitError(f"libfuse has answered FUSE_INIT with {len(reply)} bytes")
    major, minor, readahead, flags, _, _, *sizes, flags2 = INIT_OUT.unpack_from(reply, OUT_HEADER.size)
    if major != FUSE_KERNEL_VERSION:
        raise UnexpectedInitError(f"libfuse speaks version {major} of the protocol")
    flags &= ~(FUSE_ATOMIC_O_TRUNC | FUSE_AUTO_INVAL_DATA)
    if not flags & FUSE_INIT_EXT:
        flags2 = 0
    if offered & FUSE_INIT_EXT:
        flags |= FUSE_INIT_EXT
        flags2 |= offered2 & FUSE_DIRECT_IO_ALLOW_MMAP
    amended = bytearray(reply)
    threshold = max_background * 3 // 4
    INIT_OUT.pack_into(
        amended,
        OUT_HEADER.size,
        *(major, minor, readahead, flags, max_background, threshold, *sizes, flags2),
    )
    return bytes(amended)


@dataclass(slots=True)
class _Exchange:
    """FUSE_INIT on its way: the number *fd* is that of a socket now, *kernel* is what it was before."""

    fd: int
    kernel: int
    libfuse: socket.socket
    request: bytes


class AmendedInit:
    """One FUSE_INIT whose answer is amended; *max_background* is what the kernel is to be told.

    Where that is not possible the mount goes on with libfuse's own answer, and the log tells it.
    """

    def __init__(self, max_background: int) -> None:
        self._max_background = max_background
        self._exchange: _Exchange | None = None
        self.is_in_force = False

    def begin(self, fd: int) -> None:
        """Have libfuse read FUSE_INIT, which can be read from *fd* now, from a socket in its place."""
        try:
            with ExitStack() as stack:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                stack.callback(ours.close)
                with theirs:
                    kernel = os.dup(fd)
                    stack.callback(os.close, kernel)
                    request = os.read(kernel, _LONGEST_REQUEST)
                    # Nothing may fail behind this: the request is read, and so has to be answered.
                    ours.send(request)
                    os.dup2(theirs.fileno(), fd, inheritable=False)
                stack.pop_all()
        except OSError as exc:
            log.warning("FUSE_INIT is not amended (%s): %s", reason(exc), _UNTOUCHED)
            return
        self._exchange = _Exchange(fd, kernel, ours, request)

    def end(self) -> None:
        """Amend what libfuse has answered, pass it on to the kernel, and put the descriptor back."""
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        try:
            try:
                reply = exchange.libfuse.recv(_LONGEST_REQUEST, socket.MSG_DONTWAIT)
            finally:
                os.dup2(exchange.kernel, exchange.fd, inheritable=False)
                exchange.libfuse.close()
            try:
                reply = amend(exchange.request, reply, self._max_background)
                self.is_in_force = True
            except UnexpectedInitError as exc:
                log.warning("FUSE_INIT is not amended (%s): %s", exc, _UNTOUCHED)
            os.write(exchange.kernel, reply)
        except OSError as exc:
            self.is_in_force = False
            # Nobody waits for the answer any more where the file system was unmounted (ENOENT).
            level = logging.DEBUG if isinstance(exc, FileNotFoundError) else logging.WARNING
            log.log(level, "FUSE_INIT is not answered: %s", exc.strerror)
        finally:
            os.close(exchange.kernel)
