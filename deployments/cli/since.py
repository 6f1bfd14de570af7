"""Points in time as people type them."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Annotated, Final, TypeAlias

import typer

from deployments.cli.errors import CliError, ExitCode

_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

Since: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="WHEN",
        help="From then on: 90s, 15m, 2h, 7d ago, or a date like 2026-01-31 or 2026-01-31T12:00. Default: all.",
        show_default=False,
    ),
]


def since_time(given: str | None) -> float | None:
    """Unix time in seconds; a date without a zone is in this machine's. Raises `CliError` for what is neither."""
    if given is None:
        return None
    span = _SPAN.fullmatch(given.strip())
    if span is not None:
        return time.time() - float(span[1]) * _SECONDS[span[2]]
    try:
        return datetime.fromisoformat(given.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise CliError(
            f"--since {given} is no time", "Write 90s, 15m, 2h, 7d, or a date like 2026-01-31T12:00.", ExitCode.USAGE
        ) from None
