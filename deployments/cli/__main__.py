"""`python -m deployments.cli`: the same as `pointsman`."""

from __future__ import annotations

import sys

from deployments.cli import main

sys.exit(main())
