"""Run the command with ``python -m iscsifs``."""

import sys

from iscsifs.cli import main

sys.exit(main())
