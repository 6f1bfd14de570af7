"""The first decision about a request, the same for who has it answered and for who only asks: read, choose, hold to the contract."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cluster.api.chat import ChatRequest
from cluster.api.embedding import EmbeddingRequest
from cluster.api.errors import ApiError, bad_request
from cluster.api.requests import ApiRequest
from cluster.config.base import AUTO
from cluster.config.cluster import ClusterConfig
from cluster.contracts import Contract, contract_for, enforce
from cluster.precision.measures import Measure, in_force, name_of
from cluster.precision.requests import NO_DEFAULTS, LevelInForce, at_level, is_turned_away
from cluster.routing.decision import RouteDecision
from cluster.routing.knob_bounds import check_expert_log, check_knobs
from cluster.routing.reading import Reading
from cluster.routing.signals import RequestSignals, signals_of
from cluster.routing.snapshot import UNKNOWN, Snapshot
from deployments.ingress.services import Services

Bound = tuple[RouteDecision, Contract, ApiRequest]
"""A decision, the contract that it means, and the request within that contract."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A decision, and what it rests on."""

    decision: RouteDecision
    signals: RequestSignals


class Choosing:
    """Chooses models for the requests of one ingress."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def first(self, request: ApiRequest, *, explain: bool = False) -> Chosen:
        """The first decision about a request; one of two stages goes to the role of facts first. Raises `ApiError`."""
        config = self._services.config
        if not isinstance(request, EmbeddingRequest) and request.knobs.two_stage:
            check_two_stage(request, config)
            request = replace(request, model=config.routing.feedback.facts_role)
        return self.decide(request, await self._services.intents.read(request), explain=explain)

    def decide(self, request: ApiRequest, intent: Reading[str] | None = None, *, explain: bool = False) -> Chosen:
        """The decision about what is asked of `request.model`. Raises `ApiError` if no model can take it."""
        services = self._services
        check_knobs(services.config.routing.knobs, request)
        check_expert_log(services.config.experts, request)
        signals = signals_of(request, intent)
        health = services.health.models()
        if not explain and any(state.parked for state in health.values()):
            services.waking.wake(services.policy.parked(request.model, signals, health))
        decision = services.policy.decide(request.model, signals, health, explain=explain)
        chosen = Chosen(decision, signals)
        return replace(chosen, decision=self._relieved(request, chosen, health))

    def _relieved(self, request: ApiRequest, chosen: Chosen, health: Snapshot) -> RouteDecision:
        """The decision, or another one if the model's level turns the request away.

        A model of the same role that does not takes it, else the model's twin. Raises `ApiError` 400 for what the model's own
        contract refuses.
        """
        services, decision, model = self._services, chosen.decision, chosen.decision.model
        config, levels = services.config, services.precision
        number = levels.level(model)
        if not is_turned_away(config, model, number, request):
            return decision
        contract = contract_for(config, decision)
        enforce(contract, request)
        level = LevelInForce(number, name_of(config.precision.levels, number))
        for other in decision.fallbacks:
            serves = decision.role in config.models[other].roles
            if serves and not is_turned_away(config, other, levels.level(other), request):
                return decision.turn_to(other, f"{model} is short of KV memory (level {level}), {other} is not")
        return self._for_twin(request, chosen, health, level, contract.role)

    def _for_twin(
        self, request: ApiRequest, chosen: Chosen, health: Snapshot, level: LevelInForce, role: str | None
    ) -> RouteDecision:
        """The decision for the model's twin if that one can take the request, else the decision as it is."""
        services, decision, model = self._services, chosen.decision, chosen.decision.model
        twin = services.config.models[model].precision.twin
        if twin is None or Measure.TWIN not in in_force(services.config.precision.levels, level.level):
            return decision
        state = health.get(twin, UNKNOWN)
        # It is to relieve the model, not to drown in its place.
        fuller = (state.kv_usage or 0.0) > (health.get(model, UNKNOWN).kv_usage or 0.0)
        if fuller or services.policy.against(twin, chosen.signals, state) is not None:
            return decision
        diverted = decision.to_twin(twin, level, role)
        try:
            self.bind(request, diverted)
        except ApiError:
            # It holds less than was asked for, or is short of memory itself.
            return decision
        return diverted

    def bind(self, request: ApiRequest, decision: RouteDecision) -> Bound:
        """Hold a request to the contract that a decision means, and to the level that the model is at.

        Raises `ApiError` 400 if the contract cannot be kept, and 503 if the level takes no such requests.
        """
        config, model = self._services.config, decision.model
        contract = contract_for(config, decision)
        precision, within = self._services.precision, enforce(contract, request)
        at = precision.level(model)
        bound, met = at_level(
            config,
            model,
            at,
            within,
            # Asked of the replicas only where a level may change something.
            defaults=precision.defaults(model) if at else NO_DEFAULTS,
            max_tokens=contract.max_completion_tokens,
        )
        # Whoever answers in a model's place is told of the level that sent the request there.
        level = met if decision.diverted is None else replace(decision.diverted, changes=met.changes)
        return replace(decision, level=level), contract, bound


def check_two_stage(request: ApiRequest, config: ClusterConfig) -> None:
    """Raises `ApiError` 400 for two stages of what has no two: tools, forms, several choices, a model by name."""
    field = "pointsman.two_stage"
    if not isinstance(request, ChatRequest):
        raise bad_request(field, f"`{field}` is for chat completions; leave it out here.")
    if request.n > 1 or request.tools or request.response_format or request.logprobs:
        message = f"`{field}` gives one text: leave out `n`, `tools`, `response_format` and `logprobs`, or this."
        raise bad_request(field, message)
    if request.model != AUTO:
        raise bad_request("model", f"`{field}` chooses both models by their roles: set `model` to `{AUTO}`.")
    feedback = config.routing.feedback
    if feedback.max_attempts < 2:
        raise bad_request(field, f"`{field}` takes two attempts, and this cluster allows one; leave it out.")
    for role in (feedback.facts_role, feedback.fluency_role, feedback.verifier_role):
        if not config.models_of(role):
            raise bad_request(field, f"`{field}` needs a model of the role {role}, and this cluster has none.")


def tokens_at_most(request: ApiRequest) -> int:
    """What a request may use, prompt and completion, as far as it is known before."""
    if isinstance(request, EmbeddingRequest):
        return request.prompt_tokens_estimate
    return request.prompt_tokens_estimate + (request.max_tokens or 0) * request.sequences
