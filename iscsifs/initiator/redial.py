"""Logging in again after a lost connection, with growing delays (RFC 7143 section 7.5)."""

import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from iscsifs.errors import IscsifsError
from iscsifs.limits import ATTEMPT_PATIENCE, ATTEMPT_PAUSE, MAX_TIME2WAIT
from iscsifs.transport.link import Link

log = logging.getLogger(__name__)

FIRST_DELAY: Final = 0.25
"""Seconds before the second attempt to log in again; the first comes at once, if Time2Wait allows it."""

LONGEST_DELAY: Final = 5.0
"""Seconds at most between two attempts; a session that lived this long resets the back-off."""


class Redial:
    """Dials by *dial* until that works. *name* is for the log.

    *failed* is called with each failure, and whether it is another one than the last.
    """

    def __init__(
        self, name: str, dial: Callable[[], Awaitable[Link]], failed: Callable[[IscsifsError, bool], None]
    ) -> None:
        self.time2wait: float | None = None
        """Seconds to stay away, as the target has said at the end; None: what the login agreed on."""
        self._name = name
        self._dial = dial
        self._failed = failed
        self._backoff = 0.0
        self._failure = ""
        self._attempt_began: float | None = None  # the one under way
        self._attempt_ended = -math.inf  # the last one that has failed
        self._wanted = trio.Event()
        self._scope = trio.CancelScope()
        self._is_stopped = False

    def connected(self, seconds: float) -> None:
        """Take note that a session has lived for *seconds*."""
        if seconds >= LONGEST_DELAY:
            self._backoff = 0.0

    def want(self, *, is_expired: bool) -> float:
        """Cut the back-off short; return until when an attempt to log in may help.

        Where the replacement time-out *is_expired* there is a pause of ATTEMPT_PAUSE behind each attempt that
        has failed.
        """
        now = trio.current_time()
        if self._attempt_began is None and is_expired and now < self._attempt_ended + ATTEMPT_PAUSE:
            return -math.inf
        self._wanted.set()
        return (now if self._attempt_began is None else self._attempt_began) + ATTEMPT_PATIENCE

    def stop(self) -> None:
        """End an attempt that is under way, and begin none any more."""
        self._is_stopped = True
        self._scope.cancel()

    async def __call__(self, default_time2wait: float) -> Link | None:
        """Dial until it works, and return the link; None after `stop`.

        The delays also grow, over several calls, while sessions end as soon as they have begun.
        """
        pause = default_time2wait if self.time2wait is None else self.time2wait
        self.time2wait = None
        if pause > MAX_TIME2WAIT:
            log.warning(
                "%s: the target wants us away for %g s; coming back after %g s",
                self._name,
                pause,
                MAX_TIME2WAIT,
            )
            pause = MAX_TIME2WAIT
        with trio.CancelScope() as self._scope:
            while not self._is_stopped:
                jittered = FIRST_DELAY * random.uniform(0.75, 1.25)
                await trio.sleep(max(pause, jittered) if self._backoff else pause)
                with trio.move_on_after(self._backoff):
                    await self._wanted.wait()  # a new command cuts the back-off short
                self._wanted = trio.Event()
                self._backoff = min(2 * self._backoff + jittered, LONGEST_DELAY)
                pause = 0.0
                self._attempt_began = trio.current_time()
                try:
                    link = await self._dial()
                except IscsifsError as error:
                    self._attempt_ended = trio.current_time()
                    is_new, self._failure = str(error) != self._failure, str(error)
                    self._failed(error, is_new)
                    continue
                finally:
                    self._attempt_began = None
                self._failure = ""
                return link
        return None
