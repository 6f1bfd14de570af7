"""How sure a model was of what it said, from the probabilities of its tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenConfidence:
    """Confidence in an answer, or in its beginning. Log probabilities are natural."""

    score: float
    """0 (guessed) to 1 (certain)."""
    calibrated: bool = False
    """Whether `score` is the share of answers of this kind that are right; else it only ranks them."""
    mean_logprob: float = 0.0
    weakest_window: float = 0.0
    """Lowest mean log probability of consecutive tokens."""
    margin: float = 0.0
    """Mean distance of the two most probable tokens, log probability."""
    entropy: float = 0.0
    """Mean entropy of the next token, nats."""
    tokens: int = 0
    """Tokens judged."""
