"""What follows an attempt at a request: accept it, ask again more conservatively, ask a stronger model, or the passages.

Pure: the attempts so far, the bounds and the clock in, the next step with its reason out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cluster.api.knobs import Knobs
from cluster.config.base import Kind
from cluster.config.cluster import ClusterConfig
from cluster.routing.decision import RouteDecision
from cluster.verification.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt, as far as it is known."""

    model: str
    temperature: float | None
    """What the answer was drawn with; None: the model's own default."""
    confidence: float | None = None
    """How sure the model was, 0 to 1; None: not known."""
    verdict: Verdict | None = None
    """What the checks said; None: nothing was checked."""
    tokens: int = 0
    """Prompt and completion tokens that it took so far."""
    seconds: float = 0.0
    failed: str | None = None
    """Why there is no answer, a code; None: there is one."""
    kept: bool = True
    """Whether its answer can still be sent."""
    tokens_at_most: int = 0
    """Tokens that it takes to its end, where it has none yet: a stream whose beginning was judged."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What holds for all attempts at one request."""

    threshold: float
    """Confidence from which an answer is accepted."""
    max_attempts: int
    max_tokens: int
    """Tokens that all attempts and checks may take together."""
    deadline_s: float
    """When the request's time is over, on the caller's clock, seconds."""
    requery_temperature: float
    escalation: tuple[str, ...] = ()
    """Models to ask next, in order."""
    thresholds: Mapping[str, float] | None = None
    """Thresholds of single models."""
    template: bool = True
    """Whether the passages take the place of an answer that is not good enough."""

    def threshold_of(self, model: str) -> float:
        """The confidence from which an answer of `model` is accepted."""
        return self.threshold if self.thresholds is None else self.thresholds.get(model, self.threshold)


@dataclass(frozen=True, slots=True)
class Accept:
    """Send the answer of attempt `attempt` (counted from 0)."""

    attempt: int
    good: bool
    """False: it is the best there is, and not good enough."""
    reason: str


@dataclass(frozen=True, slots=True)
class Requery:
    """Ask the same model again."""

    temperature: float
    reason: str


@dataclass(frozen=True, slots=True)
class Escalate:
    """Ask another model."""

    model: str
    temperature: float | None
    """What it draws with; None: as the request says."""
    reason: str


@dataclass(frozen=True, slots=True)
class Template:
    """Answer with the passages, or that there are none."""

    reason: str


Step: TypeAlias = "Accept | Requery | Escalate | Template"


def next_step(
    attempts: Sequence[Attempt], bounds: Bounds, ready: Collection[str], now_s: float, check_tokens: int = 0
) -> Step:
    """The step after `attempts`, of which there is one at least. `ready` are the models that can answer now.

    `check_tokens` is what asking a verifier about them took.
    """
    last = attempts[-1]
    wrong = _shortcoming(last, bounds)
    if wrong is None:
        return Accept(len(attempts) - 1, True, _praise(last, bounds))
    spent = _spent(attempts, bounds, now_s, check_tokens)
    if spent is not None:
        return _end(attempts, bounds, f"{wrong}; {spent}")
    asked_before = any(attempt.model == last.model for attempt in attempts[:-1])
    if last.failed is None and not asked_before and _can_vary(last, bounds):
        reason = f"{wrong}; asking {last.model} again at temperature {bounds.requery_temperature:g}"
        return Requery(bounds.requery_temperature, reason)
    tried = {attempt.model for attempt in attempts}
    following = next((model for model in bounds.escalation if model not in tried and model in ready), None)
    if following is None:
        return _end(attempts, bounds, f"{wrong}; no other model is ready that was not asked")
    temperature = bounds.requery_temperature if last.temperature != 0 else None
    return Escalate(following, temperature, f"{wrong}; asking {following}")


def best_of(attempts: Sequence[Attempt]) -> int | None:
    """The attempt (counted from 0) whose answer is the best of those that can still be sent; None if none can."""
    kept = [at for at, attempt in enumerate(attempts) if attempt.kept and attempt.failed is None]
    return max(kept, key=lambda at: _merit(attempts[at]), default=None)


def escalation_of(
    config: ClusterConfig, decision: RouteDecision, allowed: Collection[str] | None = None
) -> tuple[str, ...]:
    """Models to ask after the chosen one, in order: those of the config, else those that take over from it.

    Those that a filter of the routing is against, or that are not among the `allowed`, are left out.
    """
    targets = config.routing.feedback.escalate_to or decision.fallbacks
    named = (
        model for target in targets for model in ((target,) if target in config.models else config.models_of(target))
    )
    unfit = {candidate.model for candidate in decision.considered if not candidate.fits}
    return tuple(
        name
        for name in dict.fromkeys(named)
        if config.models[name].kind is not Kind.ENCODER and name not in unfit and (allowed is None or name in allowed)
    )


def bounds_for(
    config: ClusterConfig, decision: RouteDecision, knobs: Knobs, *, template: bool, deadline_s: float
) -> Bounds:
    """The bounds of a request that was routed by `decision`: what its caller asks for within what the operator allows."""
    feedback = config.routing.feedback
    thresholds = {}
    for name, model in config.models.items():
        own = next((feedback.thresholds[key] for key in (name, *model.roles) if key in feedback.thresholds), None)
        if own is not None:
            thresholds[name] = own
    role = feedback.thresholds.get(decision.role or "", feedback.confidence_threshold)
    return Bounds(
        threshold=role if knobs.min_confidence is None else knobs.min_confidence,
        max_attempts=min(feedback.max_attempts, feedback.max_attempts if knobs.retries is None else knobs.retries + 1),
        max_tokens=feedback.max_tokens,
        deadline_s=deadline_s,
        requery_temperature=feedback.requery_temperature,
        escalation=escalation_of(config, decision, knobs.allowed_models),
        thresholds=thresholds if knobs.min_confidence is None else None,
        template=template,
    )


def _shortcoming(attempt: Attempt, bounds: Bounds) -> str | None:
    """Why the attempt is not accepted; None if it is."""
    if attempt.failed is not None:
        return f"{attempt.model} gave no answer ({attempt.failed})"
    if attempt.verdict is not None and not attempt.verdict.ok:
        return f"{attempt.verdict.name}: {attempt.verdict.reason}"
    threshold = bounds.threshold_of(attempt.model)
    if attempt.confidence is not None and attempt.confidence < threshold:
        return f"confidence {attempt.confidence:.2f} of {attempt.model} is below {threshold:g}"
    return None


def _praise(attempt: Attempt, bounds: Bounds) -> str:
    checked = "" if attempt.verdict is None else f"; {attempt.verdict.name}: {attempt.verdict.reason}"
    if attempt.confidence is None:
        return f"{attempt.model} reported no confidence{checked}"
    threshold = bounds.threshold_of(attempt.model)
    return f"confidence {attempt.confidence:.2f} of {attempt.model} is at least {threshold:g}{checked}"


def _spent(attempts: Sequence[Attempt], bounds: Bounds, now_s: float, check_tokens: int) -> str | None:
    """Which bound leaves no room for one more attempt, which is taken to be as costly as the costliest; None: none does."""
    if len(attempts) >= bounds.max_attempts:
        return f"{bounds.max_attempts} attempts are made"
    if now_s + max(attempt.seconds for attempt in attempts) >= bounds.deadline_s:
        return "no time is left for another attempt"
    whole = [max(attempt.tokens, attempt.tokens_at_most) for attempt in attempts]
    # A stream that is kept runs on. Where the passages come last nothing is kept.
    tokens = check_tokens + sum(
        most if attempt.kept and not bounds.template else attempt.tokens
        for attempt, most in zip(attempts, whole, strict=True)
    )
    if tokens + max(whole) > bounds.max_tokens:
        return f"another attempt would pass {bounds.max_tokens} tokens"
    return None


def _can_vary(attempt: Attempt, bounds: Bounds) -> bool:
    """Whether a more conservative temperature can change the answer: one that was drawn deterministically stays."""
    return attempt.temperature is None or attempt.temperature > bounds.requery_temperature


def _end(attempts: Sequence[Attempt], bounds: Bounds, why: str) -> Step:
    if bounds.template:
        return Template(f"{why}; answering from the passages")
    best = best_of(attempts)
    if best is None:
        return Template(f"{why}; no attempt has an answer")
    return Accept(best, False, f"{why}; sending the best answer, that of attempt {best + 1}")


def _merit(attempt: Attempt) -> tuple[bool, float]:
    """Verified ones first, then by confidence; of equals, the first."""
    ok = attempt.verdict is None or attempt.verdict.ok
    return ok, attempt.confidence if attempt.confidence is not None else 0.0
