"""Steps of a shutdown, each taken whatever becomes of the others."""

from __future__ import annotations

import logging
from collections.abc import Callable

from deployments.telemetry.log_safety import Safe

_log = logging.getLogger(__name__)


def attempt(what: str, step: Callable[[], object]) -> None:
    """One step of the way down; the others follow, whatever becomes of it."""
    try:
        step()
    except Exception:  # noqa: BLE001 - whatever it was, the rest must still be ended
        _log.exception("the shutdown could not %s", Safe(what))
