"""What a level of the precision ladder does to a request that comes to its model. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

from cluster.api.embedding import EmbeddingRequest
from cluster.api.errors import ApiError
from cluster.api.requests import ApiRequest
from cluster.precision.measures import Measure, in_force, name_of
from cluster.precision.sampling import OPENAI_TEMPERATURE, OPENAI_TOP_P, Change, conservative

if TYPE_CHECKING:
    from cluster.config.cluster import ClusterConfig

NO_DEFAULTS: Final = (OPENAI_TEMPERATURE, OPENAI_TOP_P)
"""Temperature and top-p of an engine that has none of its own."""

Request = TypeVar("Request", bound=ApiRequest)


@dataclass(frozen=True, slots=True)
class LevelInForce:
    """The level that a request met at its model, and what that changed of it."""

    level: int
    name: str
    changes: tuple[Change, ...] = ()
    """What the level of the model that answers changed of the request."""

    def __str__(self) -> str:
        return f"{self.level} {self.name}"

    def changed(self) -> tuple[str, ...]:
        """The changes in words: field, what was asked for, what is in force."""
        return tuple(f"{one.field} {'open' if one.old is None else one.old} -> {one.new:g}" for one in self.changes)


def is_turned_away(config: ClusterConfig, model: str, level: int, request: ApiRequest) -> bool:
    """Whether `level` has `model` not take this request itself: it goes to its twin, or nowhere."""
    if isinstance(request, EmbeddingRequest) or request.knobs.business_critical:
        return False
    measures = in_force(config.precision.levels, level)
    if Measure.TWIN in measures and config.models[model].precision.twin is not None:
        return True
    return Measure.SHED in measures and request.knobs.latency_class in config.precision.best_effort


def at_level(
    config: ClusterConfig,
    model: str,
    level: int,
    request: Request,
    *,
    defaults: tuple[float, float] = NO_DEFAULTS,
    max_tokens: int | None = None,
) -> tuple[Request, LevelInForce]:
    """`request`, within its contract, as `level` has it run. Raises `ApiError` 503 for one that is shed.

    `defaults` are temperature and top-p of the model's engine where a request leaves them open; `max_tokens` is what its
    contract allows of an answer, None: it does not say.
    """
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
    if max_tokens is not None and max_tokens < terms.max_completion_tokens:
        terms = terms.model_copy(update={"max_completion_tokens": max_tokens})
    body, changes = conservative(
        terms,
        request.body,
        latency_class=knobs.latency_class,
        critical=knobs.business_critical,
        default_temperature=defaults[0],
        default_top_p=defaults[1],
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
