"""How the ingress tells what a request is for."""

from __future__ import annotations

from pydantic import Field

from cluster.config.base import ModelName, Section


class IntentConfig(Section):
    """Intent of requests to `auto`: by a sentence encoder if there is one and it answers in time, else by plain signs of the words."""

    encode: bool = True
    """True asks the encoder, false leaves it at the words (yes or no, no unit)."""
    encoder: ModelName | None = None
    """Name of the encoder that is asked; null: the first model of that kind."""
    deadline_s: float = Field(0.015, gt=0, le=1)
    """Seconds that the encoder may take before the words decide."""
    max_in_flight: int = Field(8, ge=1, le=1024)
    """Prompts at the encoder at a time, per ingress process (a count); for one more the words decide."""
    cache_entries: int = Field(4096, ge=0, le=1_000_000)
    """Prompts whose intent is remembered, per ingress process (a count)."""
    misses_until_pause: int = Field(3, ge=1, le=1000)
    """Missed deadlines in a row after which the encoder is left alone for a while (a count)."""
    pause_s: float = Field(5.0, ge=0, le=3600)
    """Seconds for which it is left alone then."""
