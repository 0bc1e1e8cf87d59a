"""What the user is told."""

import logging

import pytest
from memory_site import Says


@pytest.fixture
def says(caplog: pytest.LogCaptureFixture) -> Says:
    """What iscsifs has said to its user so far: warnings and errors."""

    def lines() -> list[str]:
        return [
            record.getMessage()
            for record in caplog.records
            if record.levelno >= logging.WARNING
            and record.name.startswith(("iscsifs.initiator", "iscsifs.fs"))
        ]

    return lines
