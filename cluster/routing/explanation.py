"""A decision in full, for people who ask why."""

from __future__ import annotations

from cluster.api.json_body import JsonObject, JsonValue
from cluster.routing.decision import Candidate, RouteDecision
from cluster.routing.signals import RequestSignals


def explanation(decision: RouteDecision, signals: RequestSignals) -> JsonObject:
    """The decision, every candidate with its scores, and the signals that they rest on. Holds nothing of the prompt."""
    ruling = decision.sampling
    sampling: JsonObject | None = None
    if ruling is not None:
        sampling = {"mode": ruling.sampling.value, "rule": ruling.rule, "strict": ruling.strict}
    named: JsonObject = {**signals.named()}
    return {
        "object": "route",
        "model": decision.model,
        "role": decision.role,
        "reason": decision.reason,
        "rule": decision.reason_code,
        "sampling": sampling,
        "fallbacks": list(decision.fallbacks),
        "candidates": [_candidate(candidate) for candidate in decision.considered],
        "signals": named,
    }


def _candidate(candidate: Candidate) -> JsonValue:
    return {
        "model": candidate.model,
        "healthy": candidate.healthy,
        "fits": candidate.fits,
        "reason": candidate.reason,
        "score": candidate.score,
        "scores": [
            {"name": score.name, "value": score.value, "weight": score.weight, "reason": score.reason}
            for score in candidate.scores
        ],
    }
