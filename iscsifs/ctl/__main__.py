"""Run the command with ``python -m iscsifs.ctl``."""

import sys

from iscsifs.ctl.cli import main

sys.exit(main())
