"""How urgent a request is."""

from __future__ import annotations

from enum import StrEnum


class LatencyClass(StrEnum):
    """What a caller waits for: a person at a screen, a service, or nobody."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"
