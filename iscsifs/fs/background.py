"""Going to the background, once all is mounted, as sshfs does."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Final, NoReturn

Ready = Callable[[int], None]
"""Called with an exit status by a process in the foreground that goes to the background."""

_CRASHED: Final = 70  # EX_SOFTWARE


def run_in_background(serve: Callable[[Ready], int]) -> int:
    """Run *serve* in a new process and return the exit status for this one.

    That is the status that *serve* passes to its argument when it is ready; after that it runs in a session
    of its own, without a terminal. Or it is what *serve* returns, if that comes first. Until then both
    processes belong to the terminal, and its ^C ends both. Call it before there are threads or
    sockets. Raises OSError where there is no process or no descriptor for it.
    """
    null = os.open(os.devnull, os.O_RDWR)
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)  # until it is known what to do with them
    try:
        child = os.fork()
        if child == 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(reader)
            _serve(serve, writer, null)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child has it as well, and tells its end
        signal.signal(signal.SIGTERM, lambda signum, frame: os.kill(child, signum))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.close(writer)
    os.close(null)
    try:
        with open(reader, "rb") as pipe:
            status = pipe.read(1)
        if status:
            return status[0]
        exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return exit_code if exit_code >= 0 else 128 - exit_code
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def _serve(serve: Callable[[Ready], int], writer: int, null: int) -> NoReturn:
    """Run *serve* in the child, which ends here whatever happens."""

    def ready(status: int) -> None:
        os.setsid()
        os.chdir("/")  # keeps no file system busy
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor in range(3):
            os.dup2(null, descriptor)
        os.close(null)
        os.write(writer, bytes([status]))
        os.close(writer)

    status = _CRASHED
    try:
        status = serve(ready)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
