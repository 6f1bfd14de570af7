"""How sure a model was of its own tokens: from log probabilities to one figure per answer.

Single-token likelihoods and their extremes are the baseline of hallucination and quality detectors, for example SelfCheckGPT's
token-level baselines (arXiv 2303.08896); the weakest window is their windowed minimum.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WINDOW: Final = 8
"""Tokens of the window whose worst mean is kept: a phrase, so that one rare word does not condemn an answer."""

TOP: Final = 5
"""Most likely tokens that a distribution is judged by; what is left of it counts as one further token."""

FLOOR: Final = -20.0
"""Log probability below which a token is as good as impossible; engines also say minus infinity."""


@dataclass(frozen=True, slots=True)
class TokenConfidence:
    """What the log probabilities of an answer's tokens say. Of several choices, those of the first."""

    tokens: int
    """Tokens judged."""
    mean_logprob: float
    """Mean log probability of the tokens that were chosen, nats, 0 at best."""
    weakest_window: float
    """The worst mean over `WINDOW` tokens in a row, nats."""
    margin: float
    """Mean distance of the most likely token to the second, in probability, 0 to 1."""
    entropy: float
    """Mean entropy over the `TOP` tokens and the rest, nats."""

    @property
    def raw(self) -> float:
        """The four as one figure, 0 to 1, 1 sure. Says nothing yet of how often such an answer is right: see `Calibration`."""
        certainty = 1.0 - self.entropy / math.log(TOP + 1)
        parts = (math.exp(self.mean_logprob), math.exp(self.weakest_window), self.margin, certainty)
        return min(1.0, max(0.0, sum(parts) / len(parts)))


class ConfidenceMeter:
    """Takes in one token after the other; holds a window of them, however long the answer."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sum = self._margins = self._entropies = 0.0
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._recent_sum = 0.0
        self._weakest = 0.0

    def add(self, chosen: float, top: Sequence[float]) -> None:
        """One token: its log probability, and those of the most likely tokens, best first, nats."""
        chosen = max(FLOOR, min(0.0, chosen))
        self.tokens += 1
        self._sum += chosen
        if len(self._recent) == WINDOW:
            self._recent_sum -= self._recent[0]
        self._recent.append(chosen)
        self._recent_sum += chosen
        mean = self._recent_sum / len(self._recent)
        # Until the first window is full, the answer so far is the window.
        self._weakest = mean if self.tokens <= WINDOW else min(self._weakest, mean)
        probabilities = [math.exp(max(FLOOR, min(0.0, value))) for value in top[:TOP]]
        first = probabilities[0] if probabilities else math.exp(chosen)
        second = probabilities[1] if len(probabilities) > 1 else 0.0
        self._margins += max(0.0, first - second)
        rest = max(0.0, 1.0 - sum(probabilities))
        self._entropies -= sum(p * math.log(p) for p in (*probabilities, rest) if p > 0)

    def result(self) -> TokenConfidence | None:
        """The figures so far; None before the first token."""
        if not self.tokens:
            return None
        count = self.tokens
        entropy = min(math.log(TOP + 1), max(0.0, self._entropies / count))
        return TokenConfidence(count, self._sum / count, self._weakest, min(1.0, self._margins / count), entropy)


@dataclass(frozen=True, slots=True)
class Judgement:
    """How much an answer is trusted."""

    score: float
    """0 to 1; calibrated: how often such answers of this model are right."""
    calibrated: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """From raw confidence to the share of right answers, a monotone line through points (isotonic regression).

    Source: Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates", KDD 2002.
    """

    points: tuple[tuple[float, float], ...]
    """Raw confidence and share, both 0 to 1, the first ascending, the second never falling; empty: not calibrated."""

    def judge(self, confidence: TokenConfidence) -> Judgement:
        """The judgement of one answer."""
        if not self.points:
            return Judgement(confidence.raw, False, confidence.tokens)
        return Judgement(self._at(confidence.raw), True, confidence.tokens)

    def _at(self, raw: float) -> float:
        before = self.points[0]
        if raw <= before[0]:
            return before[1]
        for point in self.points[1:]:
            if raw <= point[0]:
                width = point[0] - before[0]
                share = (raw - before[0]) / width if width > 0 else 1.0
                return before[1] + share * (point[1] - before[1])
            before = point
        return before[1]
