"""What the rules look at: the signals of one request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cluster.api.embedding import EmbeddingRequest
from cluster.api.requests import ApiRequest
from cluster.routing.intent import Intent, lexical_intent
from cluster.routing.latency_class import LatencyClass
from cluster.routing.reading import Reading

NO_INTENT: Final[Reading[str]] = Reading(None, "lexical")
NOT_TOLD: Final[Reading[float]] = Reading(None, "caller")


@dataclass(frozen=True, slots=True)
class RequestSignals:
    """What a request looks like, without its text."""

    embedding: bool
    """Whether vectors are asked for, not text."""
    prompt_tokens: int
    """About that many (estimated)."""
    max_tokens: int | None
    """Completion tokens asked for; None: left open."""
    intent: Reading[str] = NO_INTENT
    """What the request is for."""
    density: float = 0.0
    """Bytes of the prompt per word of the last message: about 6 for prose, far more for compact data."""
    messages: int = 1
    """Messages of the conversation (a count)."""
    tools: bool = False
    """Whether the model may call tools on its own."""
    latency_class: LatencyClass = LatencyClass.STANDARD
    business_critical: bool = False
    retrieval_confidence: Reading[float] = NOT_TOLD
    """How well what was retrieved fits the question, 0 to 1, told by the caller."""
    allowed_models: frozenset[str] | None = None
    """Models that the caller allows; None: all."""

    def named(self) -> dict[str, str]:
        """All signals in words, for people."""
        return {
            "intent": str(self.intent),
            "prompt_tokens": f"about {self.prompt_tokens}",
            "max_tokens": "open" if self.max_tokens is None else str(self.max_tokens),
            "density": f"{self.density:.1f} bytes per word",
            "messages": str(self.messages),
            "latency_class": self.latency_class.value,
            "business_critical": "yes" if self.business_critical else "no",
            "retrieval_confidence": str(self.retrieval_confidence),
        }


def signals_of(request: ApiRequest, intent: Reading[str] | None = None) -> RequestSignals:
    """The signals of `request`. Without an `intent` its words decide."""
    if isinstance(request, EmbeddingRequest):
        return RequestSignals(True, request.prompt_tokens_estimate, None)
    knobs, text = request.knobs, request.text
    return RequestSignals(
        embedding=False,
        prompt_tokens=request.prompt_tokens_estimate,
        max_tokens=request.max_tokens,
        intent=lexical_intent(text) if intent is None else intent,
        density=_density(text),
        messages=getattr(request, "messages", 1),
        tools=getattr(request, "tool_choice", None) == "auto",
        latency_class=knobs.latency_class,
        business_critical=knobs.business_critical,
        retrieval_confidence=Reading(knobs.retrieval_confidence, "caller"),
        allowed_models=knobs.allowed_models,
    )


def is_code(signals: RequestSignals) -> bool:
    """Whether the request is about code."""
    return signals.intent.value == Intent.CODE


def _density(text: str) -> float:
    """Of the first 1,000 characters: the cost does not grow with the prompt."""
    seen = text[:1000]
    words = len(seen.split())
    return len(seen.encode(errors="replace")) / words if words else 0.0
