"""From what a caller wrote into `model` to the model that takes the request, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from cluster.api.errors import ApiError
from cluster.config.base import AUTO, Kind
from cluster.config.cluster import ClusterConfig
from cluster.routing.signals import ModelHealth, RequestSignals

RETRY_AFTER_S = 2
"""Seconds after which a caller may ask again for a model that has no replica ready."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that could take the request, and what speaks for or against it."""

    model: str
    healthy: bool
    reason: str


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """Which model takes a request, and why."""

    model: str
    role: str | None
    """The role asked for or chosen by the rule; None: the model was named."""
    reason: str
    """For people, and for the trace."""
    reason_code: str
    """The rule that decided, one of a few words: a label for metrics. Ends in `_fallback` if another model took over."""
    considered: tuple[Candidate, ...]
    """All that were considered, in order of preference."""
    fallbacks: tuple[str, ...]
    """Healthy models that take over, in this order, if the chosen one fails."""

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of all models considered, in order of preference."""
        return tuple(candidate.model for candidate in self.considered)

    def after_loss(self) -> RouteDecision | None:
        """The decision once the chosen model was lost before it answered; None if no other takes over."""
        if not self.fallbacks:
            return None
        following, *later = self.fallbacks
        reason = f"{self.reason}; {self.model} was lost before it answered; fell back to {following}"
        code = self.reason_code.removesuffix("_fallback") + "_fallback"
        return replace(self, model=following, reason=reason, reason_code=code, fallbacks=tuple(later))


def resolve(
    model_field: str, signals: RequestSignals, config: ClusterConfig, health: Mapping[str, ModelHealth]
) -> RouteDecision:
    """Decides which model takes a request. A model that is not in `health` counts as healthy.

    Raises `ApiError`: 404 for a name that is neither model nor role nor `auto`, 400 for embeddings asked of a chat model
    and the reverse, 503 with Retry-After if no candidate is healthy.
    """
    role, code, why = _role(model_field, signals, config)
    start = role if role is not None else model_field
    wanted = config.models_of(role) if role is not None else (model_field,)
    _check_kind(wanted, signals, config)
    candidates = tuple(_candidate(name, start, wanted, health) for name in _chain(config, start))
    healthy = tuple(candidate.model for candidate in candidates if candidate.healthy)
    if not healthy:
        raise _unavailable(role, wanted)
    chosen = healthy[0]
    skipped = [candidate for candidate in candidates[: _position(candidates, chosen)] if not candidate.healthy]
    if skipped:
        why = f"{why}; " + ", ".join(f"{candidate.model} {candidate.reason}" for candidate in skipped)
        why = f"{why}; fell back to {chosen}"
        code = f"{code}_fallback"
    return RouteDecision(chosen, role, why, code, candidates, healthy[1:])


def _role(model_field: str, signals: RequestSignals, config: ClusterConfig) -> tuple[str | None, str, str]:
    if model_field in config.models:
        return None, "named_model", "model named by the caller"
    if model_field == AUTO:
        return _auto(signals, config)
    if config.models_of(model_field):
        return model_field, "named_role", f"role {model_field} named by the caller"
    names = ", ".join(sorted(config.models))
    roles = ", ".join(sorted({role for model in config.models.values() for role in model.roles}))
    message = f"No such model. Models: {names}. Roles: {roles}. Or `{AUTO}`."
    raise ApiError(404, "model_not_found", message, param="model")


def _auto(signals: RequestSignals, config: ClusterConfig) -> tuple[str | None, str, str]:
    if signals.embedding:
        encoder = next((name for name, model in config.models.items() if model.kind is Kind.ENCODER), None)
        if encoder is None:
            raise ApiError(404, "model_not_found", "This cluster has no encoder for embeddings.", param="model")
        return config.models[encoder].roles[0], "auto_embedding", "auto: embeddings go to the encoder"
    rule = config.routing
    if signals.code_like:
        return rule.code_role, "auto_code", f"auto: looks like code, goes to role {rule.code_role}"
    short = signals.prompt_tokens <= rule.fast_max_prompt_tokens
    if short and signals.max_tokens is not None and signals.max_tokens <= rule.fast_max_completion_tokens:
        why = f"about {signals.prompt_tokens} prompt tokens and at most {signals.max_tokens} to answer with"
        return rule.fast_role, "auto_fast", f"auto: short ({why}), goes to role {rule.fast_role}"
    return rule.default_role, "auto_default", f"auto: neither short nor code, goes to role {rule.default_role}"


def _check_kind(wanted: tuple[str, ...], signals: RequestSignals, config: ClusterConfig) -> None:
    encodes = config.models[wanted[0]].kind is Kind.ENCODER
    if encodes == signals.embedding:
        return
    fitting = [name for name, model in config.models.items() if (model.kind is Kind.ENCODER) == signals.embedding]
    instead = f"use {' or '.join(fitting)}" if fitting else "this cluster has none that does"
    does_not = "make embeddings" if signals.embedding else "chat or complete text"
    message = f"The model {wanted[0]} does not {does_not}: {instead}."
    raise ApiError(400, "model_not_supported", message, param="model")


def _chain(config: ClusterConfig, start: str) -> tuple[str, ...]:
    """Models in order of preference: those of `start`, then those of its fallbacks and of theirs."""
    return tuple(dict.fromkeys(_walk(config, start, set())))


def _walk(config: ClusterConfig, target: str, seen: set[str]) -> Iterator[str]:
    if target in seen:
        return
    seen.add(target)
    model = config.models.get(target)
    if model is None:
        yield from config.models_of(target)
        role: str | None = target
    else:
        yield target
        role = next((name for name in model.roles if name in config.contracts), None)
    contract = config.contracts.get(role) if role is not None else None
    for fallback in contract.fallback if contract is not None else ():
        yield from _walk(config, fallback, seen)


def _candidate(name: str, start: str, wanted: tuple[str, ...], health: Mapping[str, ModelHealth]) -> Candidate:
    state = health.get(name)
    if state is not None and not state.healthy:
        return Candidate(name, False, f"is not ready ({state.reason or 'no replica'})")
    return Candidate(name, True, f"serves {start}" if name in wanted else f"falls back for {start}")


def _position(candidates: tuple[Candidate, ...], model: str) -> int:
    return next(at for at, candidate in enumerate(candidates) if candidate.model == model)


def _unavailable(role: str | None, wanted: tuple[str, ...]) -> ApiError:
    what = f"for the role {role}" if role is not None else f"of the model {wanted[0]}"
    message = f"No replica {what} is ready, nor any fallback. Try again in {RETRY_AFTER_S} s."
    headers = {"retry-after": str(RETRY_AFTER_S)}
    return ApiError(503, "model_unavailable", message, type="server_error", headers=headers)
