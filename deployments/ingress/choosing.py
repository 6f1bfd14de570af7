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
from cluster.precision.measures import name_of
from cluster.precision.requests import at_level, twin_of
from cluster.routing.decision import RouteDecision
from cluster.routing.knob_bounds import check_knobs
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
        signals = signals_of(request, intent)
        health = services.health.models()
        decision = services.policy.decide(request.model, signals, health, explain=explain)
        return Chosen(self._diverted(request, decision, health), signals)

    def _diverted(self, request: ApiRequest, decision: RouteDecision, health: Snapshot) -> RouteDecision:
        """The decision for the model's twin, if the model's level says so and the twin can keep what was promised."""
        services, model = self._services, decision.model
        level = services.precision.level(model)
        twin = twin_of(services.config, model, level, request)
        if twin is None or not health.get(twin, UNKNOWN).healthy:
            return decision
        diverted = decision.to_twin(twin, f"{level} {name_of(services.config.precision.levels, level)}")
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
        level = self._services.precision.level(model)
        bound, in_force = at_level(config, model, level, enforce(contract, request))
        return replace(decision, level=in_force), contract, bound


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
