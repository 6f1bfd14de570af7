"""What the rules look at: the signals of one request, and the health of the models."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.api.embedding import EmbeddingRequest
from cluster.api.requests import ApiRequest
from cluster.routing.code_like import code_like


@dataclass(frozen=True, slots=True)
class RequestSignals:
    """What a request looks like, without its text."""

    embedding: bool
    """Whether vectors are asked for, not text."""
    prompt_tokens: int
    """About that many (estimated)."""
    max_tokens: int | None
    """Completion tokens asked for; None: left open."""
    code_like: bool


@dataclass(frozen=True, slots=True)
class ModelHealth:
    """What is known of a model's replicas."""

    ready_replicas: int
    reason: str = ""
    """Why none is ready, for people."""

    @property
    def healthy(self) -> bool:
        """Whether a request can be served."""
        return self.ready_replicas > 0


def signals_of(request: ApiRequest) -> RequestSignals:
    """The signals of `request`."""
    if isinstance(request, EmbeddingRequest):
        return RequestSignals(True, request.prompt_tokens_estimate, None, False)
    return RequestSignals(False, request.prompt_tokens_estimate, request.max_tokens, code_like(request.text))
