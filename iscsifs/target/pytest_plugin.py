"""Fixtures for pytest: iSCSI targets for the tests of any program. pytest finds them by itself."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from iscsifs.target.testing import TestTarget


@pytest.fixture
def make_iscsi_target() -> "Iterator[Callable[..., TestTarget]]":
    """Start targets, as in ``make_iscsi_target(disks=2, size=1 << 30)``, and end them after the test.

    The arguments are those of `iscsifs.target.testing.TestTarget`.
    """
    # Imported when it is used: who has no such test does not wait for it.
    from iscsifs.target.testing import TestTarget

    with ExitStack() as stack:

        def start(**options: Any) -> TestTarget:
            return stack.enter_context(TestTarget(**options))

        yield start


@pytest.fixture
def iscsi_target(make_iscsi_target: "Callable[..., TestTarget]") -> "TestTarget":
    """A running iSCSI target with a disk of 64 MiB of zeros; see `iscsifs.target.testing.TestTarget`."""
    return make_iscsi_target()
