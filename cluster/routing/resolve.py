"""From what a caller wrote into `model` to the model that takes the request, with the reason: filter, score, pick."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from cluster.api.errors import ApiError
from cluster.config.base import AUTO, Kind
from cluster.config.cluster import ClusterConfig
from cluster.routing.decision import Candidate, RouteDecision, ScoreOf
from cluster.routing.filters import NEVER, RATHER_NOT, Filter
from cluster.routing.option import Option
from cluster.routing.picker import pick
from cluster.routing.rules import Rules
from cluster.routing.scorers import Scorer, scorers
from cluster.routing.signals import RequestSignals
from cluster.routing.snapshot import UNKNOWN, ModelState, Snapshot

_NO_REQUEST = RequestSignals(embedding=False, prompt_tokens=0, max_tokens=None)
"""For scorers that look at the model alone."""

RETRY_AFTER_S = 2
"""Seconds after which a caller may ask again for a model that has no replica ready."""


class Policy:
    """The routing policy of one config. What does not change from request to request is worked out once."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._routing = config.routing
        self._roles = frozenset(role for model in config.models.values() for role in model.roles)
        self._rules = Rules(config.routing.rules_for(self._roles), config.routing)
        self._scorers: tuple[Scorer, ...] = scorers(config.routing.scorers)
        weights = sum(scorer.weight for scorer in self._scorers)
        self._shares = tuple((s.weight / weights, s.score) for s in self._scorers if not s.constant)
        self._constant = tuple((s.weight / weights, s.score) for s in self._scorers if s.constant)
        self._wanted = {name: (name,) for name in config.models} | {
            role: config.models_of(role) for role in self._roles
        }
        self._chains = {start: tuple(self._chain(start)) for start in self._wanted}
        """Option by option what does not change from request to request, by model and by role."""

    def decide(
        self, model_field: str, signals: RequestSignals, snapshot: Snapshot, *, explain: bool = False
    ) -> RouteDecision:
        """Decides which model takes a request. With `explain`, every score comes with its reason.

        Raises `ApiError`: 404 for a name that is neither model nor role nor `auto`, 400 for embeddings asked of a chat
        model and the reverse and for allowed models that leave none, 503 with Retry-After if no candidate is healthy.
        """
        role, code, why = self._role(model_field, signals)
        start = role if role is not None else model_field
        wanted = self._wanted[start]
        self._check_kind(wanted, signals)
        options = [
            option.at(state) if (state := snapshot.get(option.model)) is not None else option
            for option in self._chains[start]
        ]
        against = [_first_against(NEVER, signals, option) for option in options]
        if all(against):
            raise self._unavailable(role, wanted, options, signals)
        rather_not = [_first_against(RATHER_NOT, signals, option) for option in options]
        if not all(words or reserved for words, reserved in zip(against, rather_not, strict=True)):
            against = [words or reserved for words, reserved in zip(against, rather_not, strict=True)]
        fitting = [option for option, words in zip(options, against, strict=True) if words is None]
        scored = self._scored(fitting, signals) if role is not None else [(option.model, 0.0) for option in fitting]
        ranked = pick(scored, self._routing.switch_margin)
        candidates = self._candidates(options, against, dict(scored) if role is not None else {}, signals, explain)
        chosen = ranked[0]
        reason, took_over = _reason(why, chosen, candidates)
        return RouteDecision(
            model=chosen,
            role=role,
            reason=reason,
            reason_code=f"{code}_fallback" if took_over else code,
            considered=candidates,
            fallbacks=tuple(ranked[1:]),
            sampling=None if signals.embedding else self._rules.sampling(signals),
            signals=signals,
        )

    def parked(self, model_field: str, signals: RequestSignals, snapshot: Snapshot) -> tuple[str, ...]:
        """Models that a request asks for before any that is ready, and that have no replica while nobody asks for them.

        Raises `ApiError` 404 as `decide` does.
        """
        role, _, _ = self._role(model_field, signals)
        found = []
        for option in self._chains[role if role is not None else model_field]:
            state = snapshot.get(option.model, UNKNOWN)
            if state.healthy:
                break
            if state.parked and (signals.allowed_models is None or option.model in signals.allowed_models):
                found.append(option.model)
        # One is enough: the others of the chain stand in for it.
        return tuple(found[:1])

    def against(self, model: str, signals: RequestSignals, state: ModelState) -> str | None:
        """What speaks against a model that nobody asked for; None: it can take the request."""
        option = Option(model, self._config.models[model], 1, state, None, self._routing.stale_after_s, "")
        return _first_against((*NEVER, *RATHER_NOT), signals, option)

    def _role(self, model_field: str, signals: RequestSignals) -> tuple[str | None, str, str]:
        if model_field in self._config.models:
            return None, "named_model", "model named by the caller"
        if model_field == AUTO:
            if signals.embedding:
                return self._encoder_role(), "auto_embedding", "auto: embeddings go to the encoder"
            ruling = self._rules.role(signals)
            return ruling.role, ruling.code, ruling.reason
        if model_field in self._roles:
            return model_field, "named_role", f"role {model_field} named by the caller"
        names, roles = ", ".join(sorted(self._config.models)), ", ".join(sorted(self._roles))
        message = f"No such model. Models: {names}. Roles: {roles}. Or `{AUTO}`."
        raise ApiError(404, "model_not_found", message, param="model")

    def _encoder_role(self) -> str:
        for model in self._config.models.values():
            if model.kind is Kind.ENCODER:
                return model.roles[0]
        raise ApiError(404, "model_not_found", "This cluster has no encoder for embeddings.", param="model")

    def _check_kind(self, wanted: tuple[str, ...], signals: RequestSignals) -> None:
        models = self._config.models
        encodes = models[wanted[0]].kind is Kind.ENCODER
        if encodes == signals.embedding:
            return
        fitting = [name for name, model in models.items() if (model.kind is Kind.ENCODER) == signals.embedding]
        instead = f"use {' or '.join(fitting)}" if fitting else "this cluster has none that does"
        does_not = "make embeddings" if signals.embedding else "chat or complete text"
        message = f"The model {wanted[0]} does not {does_not}: {instead}."
        raise ApiError(400, "model_not_supported", message, param="model")

    def _chain(self, start: str) -> Iterator[Option]:
        """The models that may take what `start` was asked for, in order of preference, before anything is known of them."""
        config, routing = self._config, self._routing
        own = frozenset(config.models_of(start)) or {start}
        encodes = config.models[next(iter(own))].kind is Kind.ENCODER
        contract = config.contracts.get(start)
        target = contract.latency_target_s if contract is not None else None
        place = 0
        for name in dict.fromkeys(_walk(config, start, set())):
            model = config.models[name]
            if (model.kind is Kind.ENCODER) != encodes:
                continue
            place += name not in own
            words = f"serves {start}" if place == 0 else f"falls back for {start}"
            option = Option(name, model, place, UNKNOWN, target, routing.stale_after_s, words)
            yield option._replace(fixed=sum(share * score(_NO_REQUEST, option) for share, score in self._constant))

    def _scored(self, options: Sequence[Option], signals: RequestSignals) -> list[tuple[str, float]]:
        scored = []
        for option in options:
            total = option.fixed
            for share, score in self._shares:
                total += share * score(signals, option)
            scored.append((option.model, total))
        return scored

    def _candidates(
        self,
        options: Sequence[Option],
        against: Sequence[str | None],
        scored: dict[str, float],
        signals: RequestSignals,
        explain: bool,
    ) -> tuple[Candidate, ...]:
        made = []
        for option, words in zip(options, against, strict=True):
            model, healthy = option.model, option.state.ready_replicas > 0
            score = scored.get(model)
            scores = self._explained(option, signals) if explain and score is not None else ()
            made.append(Candidate(model, healthy, words or option.words, words is None, score, scores))
        return tuple(made)

    def _explained(self, option: Option, signals: RequestSignals) -> tuple[ScoreOf, ...]:
        return tuple(ScoreOf(s.name, s.score(signals, option), s.weight, s.why(signals, option)) for s in self._scorers)

    def _unavailable(
        self, role: str | None, wanted: tuple[str, ...], options: Sequence[Option], signals: RequestSignals
    ) -> ApiError:
        if signals.allowed_models is not None and signals.allowed_models.isdisjoint(o.model for o in options):
            names = ", ".join(option.model for option in options)
            message = f"`pointsman.allowed_models` leaves no model that may take this request; these may: {names}."
            return ApiError(400, "no_allowed_model", message, param="pointsman.allowed_models")
        what = f"for the role {role}" if role is not None else f"of the model {wanted[0]}"
        allowed = signals.allowed_models
        waits = [
            option.state.start_s
            for option in options
            if option.state.start_s is not None and (allowed is None or option.model in allowed)
        ]
        if waits:
            seconds = max(1, math.ceil(min(waits)))
            message = (
                f"There is no replica {what} while nobody asks for it; one is being started. Try again in {seconds} s."
            )
            return ApiError(503, "model_starting", message, type="server_error", headers={"retry-after": str(seconds)})
        message = f"No replica {what} is ready, nor any fallback. Try again in {RETRY_AFTER_S} s."
        headers = {"retry-after": str(RETRY_AFTER_S)}
        return ApiError(503, "model_unavailable", message, type="server_error", headers=headers)


def _walk(config: ClusterConfig, target: str, seen: set[str]) -> Iterator[str]:
    """Models in order of preference: those of `target`, then those of its fallbacks and of theirs."""
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


def _first_against(filters: tuple[Filter, ...], signals: RequestSignals, option: Option) -> str | None:
    for against in filters:
        words = against(signals, option)
        if words is not None:
            return words
    return None


def _reason(why: str, chosen: str, candidates: Sequence[Candidate]) -> tuple[str, bool]:
    """The reason in words, and whether another model than the first took over."""
    first = candidates[0]
    if first.model == chosen:
        return why, False
    passed = []
    for candidate in candidates:
        if candidate.model == chosen:
            break
        passed.append(f"{candidate.model} {candidate.reason if not candidate.fits else _lower(candidate)}")
    return f"{why}; {', '.join(passed)}; fell back to {chosen}", True


def _lower(candidate: Candidate) -> str:
    return f"scores {candidate.score or 0:.2f}, which is less"
