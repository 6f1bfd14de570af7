"""A model as filters and scorers see it."""

from __future__ import annotations

from typing import NamedTuple

from cluster.config.model import ModelConfig
from cluster.routing.snapshot import ModelState


class Option(NamedTuple):
    """One model that could take a request. A tuple, as one is made per model and request."""

    model: str
    config: ModelConfig
    place: int
    """0: it was asked for, or plays the role that was; 1 and up: its place among the fallbacks."""
    state: ModelState
    latency_target_s: float | None
    """Seconds to the first token that the role aims at; None: no role, or one without a contract."""
    stale_after_s: float
    """Seconds after which what replicas told of their load does not count any more."""
    words: str
    """What speaks for it: that it serves what was asked for, or stands in."""
    fixed: float = 0.0
    """Its share of the score by scorers that look at nothing which changes."""
    stale: bool = False
    """Whether what is known of its load is too old."""

    def at(self, state: ModelState) -> Option:
        """The same model in another state. Not by `_replace`, which takes ten times as long."""
        model, config, place, _, target, after, words, fixed, _ = self
        return Option(model, config, place, state, target, after, words, fixed, state.load_age_s > after)
