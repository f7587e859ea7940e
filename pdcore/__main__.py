"""``python -m pdcore``: the command line."""

from __future__ import annotations

import sys

from pdcore.cli import main

sys.exit(main())
