"""What a request cost: tokens and engine-seconds by model, and money for models that are paid by the token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.config.base import Kind
from cluster.config.cluster import ClusterConfig


@dataclass(frozen=True, slots=True)
class EngineUse:
    """What one call took of an engine."""

    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's, those found in the prefix cache."""
    engine_seconds: float = 0.0
    """Seconds from when a replica took the call until it ended, on all replicas that tried.

    An engine works on many requests at once, so the sum over requests is more than the engine was busy for.
    """
    calls: int = 1
    """Replicas asked (a count)."""
    estimated: bool = False
    """Whether the tokens are estimated: the call was left before its engine told."""


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What one model did for one request, or for many."""

    model: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    engine_seconds: float
    cost: float
    """In the money in which the config states prices."""
    estimated: bool


@dataclass(frozen=True, slots=True)
class RequestCost:
    """What a request cost, attempts that were left and checks included."""

    models: tuple[ModelCost, ...] = ()
    """By model, in the order in which they were first asked."""

    @property
    def prompt_tokens(self) -> int:
        """Of all models."""
        return sum(one.prompt_tokens for one in self.models)

    @property
    def completion_tokens(self) -> int:
        """Of all models."""
        return sum(one.completion_tokens for one in self.models)

    @property
    def cached_tokens(self) -> int:
        """Of all models."""
        return sum(one.cached_tokens for one in self.models)

    @property
    def engine_seconds(self) -> float:
        """Of all models."""
        return sum(one.engine_seconds for one in self.models)

    @property
    def cost(self) -> float:
        """Of all models, in the money of the config."""
        return sum(one.cost for one in self.models)

    @property
    def estimated(self) -> bool:
        """Whether some of the tokens are estimated."""
        return any(one.estimated for one in self.models)


def price_of(config: ClusterConfig, model: str) -> float:
    """What a million tokens of `model` are paid with. Only an external model is paid by the token.

    The price of a model of one's own says how dear routing is to take it for; its cost is the machine, which is counted
    in seconds.
    """
    entry = config.models.get(model)
    return entry.price_per_million_tokens if entry is not None and entry.kind is Kind.EXTERNAL else 0.0


def cost_of(config: ClusterConfig, uses: Iterable[EngineUse]) -> RequestCost:
    """The cost of a request whose calls took `uses`. Cached tokens are paid like others: the config has one price."""
    by_model: dict[str, list[EngineUse]] = {}
    for use in uses:
        by_model.setdefault(use.model, []).append(use)
    return RequestCost(tuple(_sum(config, model, those) for model, those in by_model.items()))


def _sum(config: ClusterConfig, model: str, uses: list[EngineUse]) -> ModelCost:
    prompt = sum(use.prompt_tokens for use in uses)
    completion = sum(use.completion_tokens for use in uses)
    return ModelCost(
        model=model,
        calls=sum(use.calls for use in uses),
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=sum(use.cached_tokens for use in uses),
        engine_seconds=sum(use.engine_seconds for use in uses),
        cost=(prompt + completion) * price_of(config, model) / 1e6,
        estimated=any(use.estimated for use in uses),
    )
