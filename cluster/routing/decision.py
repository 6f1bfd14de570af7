"""What the routing decided, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from cluster.config.contract import Sampling
from cluster.precision.requests import LevelInForce
from cluster.routing.signals import RequestSignals


@dataclass(frozen=True, slots=True)
class SamplingRuling:
    """The sampling mode that a rule asks for."""

    sampling: Sampling
    rule: str
    """Name of the rule."""
    strict: bool
    """True: what the caller sends must keep to it, as business-critical output must; False: it fills in what is left open."""


@dataclass(frozen=True, slots=True)
class ScoreOf:
    """What one scorer gave one model."""

    name: str
    value: float
    """0 to 1."""
    weight: float
    reason: str


class Candidate(NamedTuple):
    """A model that could take the request, and what speaks for or against it."""

    model: str
    healthy: bool
    reason: str
    fits: bool = True
    """Whether no filter speaks against it."""
    score: float | None = None
    """Weighted mean of the scores, 0 to 1; None: not scored, as the caller named a model or a filter is against it."""
    scores: tuple[ScoreOf, ...] = ()
    """Score by score; only for those who ask for an explanation."""


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """Which model takes a request, and why."""

    model: str
    role: str | None
    """The role asked for or chosen by a rule; None: the model was named."""
    reason: str
    """For people, and for the trace."""
    reason_code: str
    """The rule that decided, one of a few words: a label for metrics. Ends in `_fallback` if another model took over."""
    considered: tuple[Candidate, ...]
    """All that were considered, in the order in which the role names them."""
    fallbacks: tuple[str, ...]
    """Models that take over, in this order, if the chosen one fails."""
    sampling: SamplingRuling | None = None
    """Sampling mode by a rule; None: no rule says."""
    signals: RequestSignals | None = None
    """What it rests on, without any text of the request."""
    level: LevelInForce | None = None
    """Level of the model's precision ladder, and what it changed; None: not looked up."""
    diverted: LevelInForce | None = None
    """Level of the model whose twin takes the request; None: no twin does."""

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of all models considered, in the order in which the role names them."""
        return tuple(candidate.model for candidate in self.considered)

    @property
    def score(self) -> float | None:
        """The chosen model's score."""
        return next((candidate.score for candidate in self.considered if candidate.model == self.model), None)

    def turn_to(self, model: str, why: str) -> RouteDecision:
        """The same decision for one of its fallbacks. Those before it are not tried any more."""
        later = self.fallbacks[self.fallbacks.index(model) + 1 :] if model in self.fallbacks else ()
        code = self.reason_code.removesuffix("_fallback") + "_fallback"
        reason = f"{self.reason}; {why}"
        return replace(self, model=model, reason=reason, reason_code=code, fallbacks=later, diverted=None)

    def to_twin(self, twin: str, level: LevelInForce, role: str | None) -> RouteDecision:
        """The same decision for the model's twin of lower precision, under the contract of `role`, the model's own.

        The model itself takes over if the twin is lost.
        """
        why = f"{self.model} is short of KV memory (level {level}), so its twin {twin} takes new requests"
        return replace(
            self,
            model=twin,
            role=self.role if self.role is not None else role,
            reason=f"{self.reason}; {why}",
            reason_code=f"{self.reason_code}_twin",
            fallbacks=(self.model, *(name for name in self.fallbacks if name != twin)),
            diverted=level,
        )

    def after_loss(self) -> RouteDecision | None:
        """The decision once the chosen model was lost before it answered; None if no other takes over."""
        if not self.fallbacks:
            return None
        following = self.fallbacks[0]
        return self.turn_to(following, f"{self.model} was lost before it answered; fell back to {following}")
