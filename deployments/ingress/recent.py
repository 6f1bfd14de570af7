"""How the last answers of each model were: moving averages that routing looks at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from deployments.ingress.steadiness import Steadiness

WEIGHT: Final = 0.1
"""Of a new answer in a moving average: about the last twenty answers count."""


@dataclass(slots=True)
class Recent:
    """One model's averages."""

    ttft_s: float | None = None
    """Seconds to the first token."""
    confidence: dict[str, float] = field(default_factory=dict)
    """0 to 1, by intent: as many entries as there are intents."""


class RecentAnswers:
    """Of all models of one ingress. Everything runs on its event loop, so nothing is locked."""

    def __init__(self, models: Iterable[str]) -> None:
        self._models = {model: Recent() for model in models}
        self.steadiness = Steadiness()
        """Which requests went where."""

    def follow(self, models: Iterable[str]) -> None:
        """The models that there are now; what is known of those that stay is kept."""
        self._models = {model: self._models.get(model, Recent()) for model in models}

    def of(self, model: str) -> Recent:
        """One model's averages; none of one that is there no more."""
        return self._models.get(model) or Recent()

    def began(self, model: str, ttft_s: float) -> None:
        """An answer's first token came after so many seconds."""
        recent = self.of(model)
        recent.ttft_s = _moved(recent.ttft_s, ttft_s)

    def judged(self, model: str, intent: str | None, confidence: float) -> None:
        """An answer was judged."""
        known = self.of(model).confidence
        known[intent or ""] = _moved(known.get(intent or ""), confidence)


def _moved(average: float | None, value: float) -> float:
    return value if average is None else average + WEIGHT * (value - average)
