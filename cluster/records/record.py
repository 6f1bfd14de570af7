"""The record of one routing decision and of what came of it. Holds nothing of what was asked or answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from cluster.api.json_body import JsonObject, JsonValue
from cluster.config.cluster import ClusterConfig
from cluster.cost import RequestCost
from cluster.routing.decision import Candidate
from cluster.routing.reading import Reading
from cluster.routing.signals import RequestSignals

MAX_TEXT: Final = 2000
"""Characters that are kept of a reason."""

_TRAIL: Final = ("model", "temperature", "confidence", "tokens", "seconds", "outcome", "why")
_VERDICT: Final = ("name", "ok", "score")


@dataclass(frozen=True, slots=True)
class Precision:
    """Number formats, as the config names them: `auto` is what the checkpoint says."""

    compute: str
    kv: str

    def __str__(self) -> str:
        return f"compute={self.compute}, kv={self.kv}"


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """One request that got as far as a routing decision, whatever its end."""

    id: str
    """Its own: callers may send the same request id twice."""
    request_id: str
    trace_id: str
    at: float
    """Unix time of its arrival, seconds."""
    endpoint: str
    asked_model: str
    """A model's or a role's name, or `auto`."""
    model: str
    """The one whose answer was sent, or that was at work last."""
    role: str | None
    rule: str
    """The decision's code, a word."""
    reason: str
    status: int
    """HTTP status; 499: the caller left, 502: a stream that broke."""
    error: str | None = None
    """A code; None: it was answered."""
    tenant: str = ""
    key_id: str | None = None
    """The public part of the key; None: none was shown."""
    key_name: str | None = None
    streamed: bool = False
    attempts: int = 0
    """On replicas (a count)."""
    finish_reason: str | None = None
    confidence: float | None = None
    """Of what was sent, 0 to 1; None: not known."""
    verified: bool | None = None
    """What the checks said of it; None: nothing was checked."""
    precision: Precision | None = None
    """Of the model's engine; None: it has none here."""
    sampling: str | None = None
    """The mode by a rule; None: no rule says."""
    ttft_s: float | None = None
    """Seconds to the first token sent; None: none was, or the answer went out in one piece."""
    total_s: float = 0.0
    """Seconds from arrival to the end."""
    candidates: tuple[Candidate, ...] = ()
    signals: RequestSignals | None = None
    trail: Sequence[Mapping[str, object]] = ()
    """The attempts of a judged request, in their order."""
    cost: RequestCost = field(default_factory=RequestCost)


def precision_of(config: ClusterConfig, model: str) -> Precision | None:
    """The number formats of a model's engine as far as the config says; None for a model that runs elsewhere."""
    entry = config.models.get(model)
    if entry is None or entry.upstream is not None:
        return None
    return Precision(entry.engine.quantization or entry.engine.dtype, entry.engine.kv_cache_dtype)


def told_candidates(candidates: Sequence[Candidate]) -> list[JsonValue]:
    """The candidates, ready for JSON."""
    return [
        {
            "model": one.model,
            "healthy": one.healthy,
            "fits": one.fits,
            "score": None if one.score is None else round(one.score, 4),
            "reason": one.reason[:MAX_TEXT],
        }
        for one in candidates
    ]


def told_signals(signals: RequestSignals | None) -> JsonObject:
    """The signals, ready for JSON: numbers, and words of ours. What is a caller's own text is left out."""
    if signals is None:
        return {}
    told: JsonObject = {}
    for each in dataclasses.fields(signals):
        value = getattr(signals, each.name)
        if isinstance(value, Reading):
            told[each.name] = {"value": value.value, "source": value.source, "age_s": round(value.age_s, 3)}
        elif isinstance(value, Enum):
            told[each.name] = str(value.value)
        elif value is None or isinstance(value, bool | int | float):
            told[each.name] = round(value, 4) if isinstance(value, float) else value
    return told


def told_trail(trail: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """The attempts, ready for JSON. A check's own words stay out: a hook of the operator's may repeat the answer."""
    told = []
    for step in trail:
        entry = {name: step[name] for name in _TRAIL if name in step}
        if isinstance(why := entry.get("why"), str):
            entry["why"] = why[:MAX_TEXT]
        verdict = step.get("verdict")
        if isinstance(verdict, Mapping):
            entry["verdict"] = {name: verdict.get(name) for name in _VERDICT}
            if not verdict.get("ok", True):
                # The reason of an attempt that a check refused is that check's.
                entry["why"] = f"{verdict.get('name')} refused it"
        told.append(entry)
    return told
