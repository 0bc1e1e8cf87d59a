"""What the tests share: stand-ins, real targets, mounts and proxies. contrib/ uses them too.

The directory of this package is on the path of whatever uses it (setup.cfg, and the commands in contrib/).
"""

from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parents[1]
"""The directory of the tests."""

TOP: Final = TESTS.parent
"""The directory of the whole project."""

MODULES: Final = f"{TOP}:{TESTS}"
"""PYTHONPATH for the modules of this package that are programs."""

SUPPORT: Final = TESTS / "support"
"""The directory of this package, for its modules that are programs."""
