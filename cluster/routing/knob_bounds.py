"""The operator's bounds on what callers may decide about routing."""

from __future__ import annotations

from cluster.api.embedding import EmbeddingRequest
from cluster.api.errors import ApiError, bad_request
from cluster.api.knobs import FIELD
from cluster.api.requests import ApiRequest
from cluster.config.experts import ExpertsConfig
from cluster.config.routing import KnobsConfig


def check_knobs(bounds: KnobsConfig, request: ApiRequest) -> None:
    """Raises `ApiError` 400 for a knob that the operator keeps, or one that is turned too far."""
    if isinstance(request, EmbeddingRequest) or not request.knobs.given:
        return
    knobs = request.knobs
    for name in sorted(knobs.given - {"retries", "experts"}):
        if not getattr(bounds, name):
            message = f"`{FIELD}.{name}` is not taken: the operator of this cluster decides it. Leave it out."
            raise ApiError(400, "unsupported_parameter", message, param=f"{FIELD}.{name}")
    if knobs.retries is not None and knobs.retries > bounds.max_retries:
        raise bad_request(f"{FIELD}.retries", f"`{FIELD}.retries` must be at most {bounds.max_retries} here.")


def check_expert_log(config: ExpertsConfig, request: ApiRequest) -> None:
    """Raises `ApiError` 400 for a request that wants its tokens' experts listed where the operator has turned that off."""
    if isinstance(request, EmbeddingRequest) or not request.knobs.experts or config.log_tokens:
        return
    message = (
        f"`{FIELD}.experts` is not taken: the operator of this cluster has turned the log of experts off. Leave it out."
    )
    raise ApiError(400, "unsupported_parameter", message, param=f"{FIELD}.experts")
