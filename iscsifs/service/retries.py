"""What is tried again, and when: what is missing may come."""

import random
from collections.abc import Iterator
from typing import Final

from iscsifs.errors import IscsifsError, LoginRefused, NoTargetError, TransportError, UnknownHost

FIRST_DELAY: Final = 1.0
"""Seconds before the second attempt; each further pause is twice as long."""

LONGEST_DELAY: Final = 60.0
"""Seconds at most between two attempts."""

_TARGET_ERROR: Final = 3
"""The status class that says: later perhaps (RFC 7143 section 11.13.5)."""

_MISSING: Final = ((2, 3), (2, 7))
"""Not found, and removed: a target that may be set up later."""


def may_pass(error: IscsifsError) -> bool:
    """Say whether what has failed with *error* may succeed later, with nothing changed here.

    A secret that is wrong stays so, and each attempt counts: some targets lock an account.
    """
    if isinstance(error, LoginRefused):
        status = error.status_class, error.status_detail
        return error.status_class == _TARGET_ERROR or status in _MISSING
    return isinstance(error, TransportError | NoTargetError) and not isinstance(error, UnknownHost)


def delays() -> Iterator[float]:
    """Yield the seconds to wait before each further attempt, without an end."""
    delay = FIRST_DELAY
    while True:
        yield delay * random.uniform(0.75, 1.25)
        delay = min(2 * delay, LONGEST_DELAY)
