"""Run the command with ``python -m iscsifs.target``."""

import sys

from iscsifs.target.cli import main

sys.exit(main())
