"""When a rule holds."""

from __future__ import annotations

from collections.abc import Callable

from cluster.config.routing import ConditionsConfig
from cluster.routing.signals import RequestSignals

Condition = Callable[[RequestSignals], str | None]
"""Words if it is met, None if not. A signal that is missing meets none."""


def holds(conditions: tuple[Condition, ...], signals: RequestSignals) -> str | None:
    """Why all conditions are met, in words; None if one is not."""
    met = []
    for condition in conditions:
        words = condition(signals)
        if words is None:
            return None
        met.append(words)
    return ", ".join(met) or "always"


def conditions_of(when: ConditionsConfig) -> tuple[Condition, ...]:
    """The conditions that are given."""
    made: list[Condition] = []
    if (urgency := when.latency_class) is not None:
        made.append(lambda s: f"latency class {urgency.value}" if s.latency_class is urgency else None)
    if (critical := when.business_critical) is not None:
        words = "business-critical" if critical else "not business-critical"
        made.append(lambda s: words if s.business_critical is critical else None)
    if intents := frozenset(intent.value for intent in when.intents):
        made.append(lambda s: f"intent {s.intent.value}" if s.intent.value in intents else None)
    if (below := when.retrieval_confidence_below) is not None:
        made.append(lambda s: _retrieval(s.retrieval_confidence.value, below))
    if (prompt := when.max_prompt_tokens) is not None:
        made.append(lambda s: f"about {s.prompt_tokens} prompt tokens" if s.prompt_tokens <= prompt else None)
    if (completion := when.max_completion_tokens) is not None:
        made.append(lambda s: _completion(s.max_tokens, completion))
    if (messages := when.min_messages) is not None:
        made.append(lambda s: f"{s.messages} messages" if s.messages >= messages else None)
    return tuple(made)


def _retrieval(told: float | None, below: float) -> str | None:
    if told is None or told >= below:
        return None
    return f"retrieval confidence {told:g} is below {below:g}"


def _completion(asked: int | None, limit: int) -> str | None:
    if asked is None or asked > limit:
        return None
    return f"at most {asked} tokens to answer with"
