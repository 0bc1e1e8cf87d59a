"""A capture into a file, a pipe or the standard output, while the mount is served.

It never holds up the I/O that it shows: where a pipe is full packets are dropped and counted, and where a
disk is full the trace ends.
"""

import logging
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from iscsifs.errors import ConfigError, reason
from iscsifs.monitor.capture import Capture, Stream
from iscsifs.monitor.frames import End
from iscsifs.monitor.segments import Digests

log = logging.getLogger(__name__)

STANDARD_OUTPUT: Final = Path("-")
_OPEN: Final = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY
_OWNER_ONLY: Final = 0o600


class Trace:
    """What was asked for with ``-o trace=FILE``. Raises ConfigError where the file cannot be made.

    A new file is made, for its owner only; one that is there is not overwritten, but a FIFO is written to.
    *path* may be ``-``. A file that has *max_bytes* (0: no bound) gets the suffix ``.1``, and those before it
    the next number; *files* are kept in all. *on_end* gets the reason where the trace ends by itself.
    """

    def __init__(
        self,
        path: Path,
        *,
        snap_length: int = 0,
        show_chap: bool = False,
        max_bytes: int = 0,
        files: int = 2,
        on_end: Callable[[str], None] = log.warning,
    ) -> None:
        self.path = path if path == STANDARD_OUTPUT else Path(os.path.abspath(path))
        self.dropped = 0
        """Blocks that were not written because the reader of a pipe was too slow."""
        self.bytes = 0
        """How many were written, into all files."""
        self.blocks = 0
        """The same in blocks of pcapng: one for each packet, and a few at the beginning of each file."""
        self._max_bytes = max_bytes
        self._files = files
        self._on_end = on_end
        self._rest = b""  # of a block of which a pipe took a part
        self._size = 0
        self._descriptor = -1
        self._is_file = True
        self._begins = False
        self._open()
        self._capture = Capture(
            self._write, time.time_ns, self._end, snap_length=snap_length, show_chap=show_chap
        )
        self._begin()

    @property
    def is_open(self) -> bool:
        """Whether packets are still written."""
        return self._descriptor >= 0

    def stream(
        self,
        local: tuple[str, int],
        remote: tuple[str, int],
        digests: tuple[bool, bool] | None = None,
        *,
        skip_sent: int = 0,
        skip_received: int = 0,
    ) -> Stream | None:
        """Return what records a connection between these addresses; see `Capture.stream`.

        One that is logged in already has *digests*, for headers and for data. None where the trace has ended.
        """
        if not self.is_open:
            return None
        return self._capture.stream(
            End.of(*local),
            End.of(*remote),
            Digests(*digests, logged_in=True) if digests else None,
            skip_sent=skip_sent,
            skip_received=skip_received,
        )

    def close(self) -> None:
        """End the trace."""
        self._capture.is_over = True
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        try:
            if self.path == STANDARD_OUTPUT:
                # Opened anew: whoever shares the descriptor keeps its flags.
                self._descriptor = os.open("/proc/self/fd/1", _OPEN | os.O_APPEND | os.O_NONBLOCK)
            elif self._is_fifo():
                self._descriptor = os.open(self.path, _OPEN | os.O_NOFOLLOW | os.O_NONBLOCK)
            else:
                flags = _OPEN | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                self._descriptor = os.open(self.path, flags, _OWNER_ONLY)
        except FileExistsError:
            raise ConfigError(f"trace {self.path}: there is such a file already; remove it first") from None
        except OSError as error:
            hint = "; start its reader first" if self._is_fifo() else ""
            raise ConfigError(f"trace {self.path}: {reason(error)}{hint}") from None
        self._is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._size = os.fstat(self._descriptor).st_size

    def _is_fifo(self) -> bool:
        try:
            return stat.S_ISFIFO(os.lstat(self.path).st_mode)
        except OSError:
            return False

    def _write(self, block: bytes) -> None:
        """Write a block with one write(2), so that who reads along finds whole ones."""
        if self._descriptor < 0:
            return
        is_full = self._max_bytes and self._size + len(block) > self._max_bytes
        if is_full and self._is_file and not self._begins and not self._rotate():
            return
        try:
            if self._is_file:
                self._write_to_file(block)
            else:
                self._write_to_pipe(block)
                return
        except OSError as error:
            self._end(reason(error))
        else:
            self.blocks += 1
            self.bytes += len(block)

    def _write_to_file(self, block: bytes) -> None:
        try:
            written = os.write(self._descriptor, block)
            if written < len(block):
                written += os.write(self._descriptor, block[written:])
        except OSError:
            with suppress(OSError):  # what was written of the block
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += written

    def _write_to_pipe(self, block: bytes) -> None:
        try:
            if self._rest:
                self._rest = self._rest[os.write(self._descriptor, self._rest) :]
            if self._rest:
                self.dropped += 1
                return
            self._rest = block[os.write(self._descriptor, block) :]
            self.blocks += 1
            self.bytes += len(block)
        except BlockingIOError:
            self.dropped += 1

    def _rotate(self) -> bool:
        """Begin a new file; return whether that went well."""
        if self.path == STANDARD_OUTPUT:
            return True
        numbered = [self.path, *(Path(f"{self.path}.{number}") for number in range(1, self._files))]
        try:
            if self._files == 1:
                os.unlink(self.path)
            for newer, older in zip(numbered[-2::-1], numbered[:0:-1], strict=True):
                with suppress(FileNotFoundError):
                    os.replace(newer, older)
            os.close(self._descriptor)
            self._descriptor = -1
            self._open()
        except (OSError, ConfigError) as error:
            self._end(reason(error) if isinstance(error, OSError) else str(error))
            return False
        self._begin()
        return True

    def _begin(self) -> None:
        self._begins = True  # however small a file may be
        self._capture.begin()
        self._begins = False

    def _end(self, why: str) -> None:
        self.close()
        self._on_end(f"trace {self.path}: {why}; the trace ends here")
