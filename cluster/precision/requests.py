"""What a level of the precision ladder does to a request that comes to its model. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from cluster.api.embedding import EmbeddingRequest
from cluster.api.errors import ApiError
from cluster.api.requests import ApiRequest
from cluster.precision.measures import Measure, in_force, name_of
from cluster.precision.sampling import Change, conservative

if TYPE_CHECKING:
    from cluster.config.cluster import ClusterConfig

Request = TypeVar("Request", bound=ApiRequest)


@dataclass(frozen=True, slots=True)
class LevelInForce:
    """The level that a request met at its model, and what that changed of it."""

    level: int
    name: str
    changes: tuple[Change, ...] = ()

    def changed(self) -> tuple[str, ...]:
        """The changes in words: field, what was asked for, what is in force."""
        return tuple(f"{one.field} {'open' if one.old is None else one.old} -> {one.new:g}" for one in self.changes)


def twin_of(config: ClusterConfig, model: str, level: int, request: ApiRequest) -> str | None:
    """The model that takes this request instead of `model` at `level`; None: it stays. Business-critical ones stay."""
    if isinstance(request, EmbeddingRequest) or request.knobs.business_critical:
        return None
    twin = config.models[model].precision.twin
    if twin is None or Measure.TWIN not in in_force(config.precision.levels, level):
        return None
    allowed = request.knobs.allowed_models
    return twin if allowed is None or twin in allowed else None


def at_level(config: ClusterConfig, model: str, level: int, request: Request) -> tuple[Request, LevelInForce]:
    """`request`, within its contract, as `level` has it run. Raises `ApiError` 503 for one that is shed."""
    terms = config.precision
    name = name_of(terms.levels, level)
    if level == 0 or isinstance(request, EmbeddingRequest):
        return request, LevelInForce(level, name)
    measures, knobs = in_force(terms.levels, level), request.knobs
    if Measure.SHED in measures and knobs.latency_class in terms.best_effort and not knobs.business_critical:
        wait_s = math.ceil(terms.dwell_s)
        raise ApiError(
            503,
            "shed",
            f"The model {model} is short of KV memory and takes no {knobs.latency_class.value} requests now. "
            f"Try again in {wait_s} s, or send `pointsman.latency_class` if somebody waits for it.",
            type="server_error",
            headers={"retry-after": str(wait_s)},
        )
    if Measure.CONSERVATIVE_SAMPLING not in measures:
        return request, LevelInForce(level, name)
    body, changes = conservative(
        terms, request.body, latency_class=knobs.latency_class, critical=knobs.business_critical
    )
    told = {one.field: one.new for one in changes}
    tokens = told.get("max_tokens", told.get("max_completion_tokens", request.max_tokens))
    temperature = told.get("temperature", request.temperature)
    changed = replace(
        request,
        body=body,
        max_tokens=None if tokens is None else int(tokens),
        temperature=temperature,
    )
    return changed, LevelInForce(level, name, changes)
