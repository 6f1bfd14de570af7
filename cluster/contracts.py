"""What a role promises, and making a request keep to it before an engine sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, TypeVar

from cluster.api.chat import ChatRequest
from cluster.api.completion import CompletionRequest
from cluster.api.embedding import EmbeddingRequest
from cluster.api.errors import ApiError, bad_request
from cluster.api.json_body import JsonObject
from cluster.api.prompt_size import fewest_tokens
from cluster.api.requests import ApiRequest
from cluster.config.cluster import ClusterConfig
from cluster.config.contract import DEFAULT_TIMEOUT_S, ContractConfig, Sampling
from cluster.routing.decision import RouteDecision, SamplingRuling

COMPLETION_DEFAULT_TOKENS: Final = 16
"""What OpenAI's completions endpoint makes of an open `max_tokens`."""

DETERMINISTIC_SEED: Final = 0

Request = TypeVar("Request", bound=ApiRequest)


@dataclass(frozen=True, slots=True)
class Contract:
    """The contract in force for one request."""

    model: str
    role: str | None
    """The role whose contract it is; None: bounded by the model alone."""
    max_prompt_tokens: int | None
    """None: a window shortens prompts, or the limit is not known."""
    max_completion_tokens: int | None
    default_completion_tokens: int | None
    """What a caller gets who names no number; None: what fits."""
    sampling: Sampling
    latency_target_s: float | None
    timeout_s: float
    ruling: SamplingRuling | None = None
    """What a routing rule says of sampling, where the contract leaves it to the caller."""

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"the role {self.role}" if self.role is not None else f"the model {self.model}"


def contract_for(config: ClusterConfig, decision: RouteDecision) -> Contract:
    """The contract for a request that was routed by `decision`."""
    contract = contract_of(config, decision.model, decision.role)
    if decision.sampling is None or contract.sampling is not Sampling.CALLER:
        return contract
    return replace(contract, ruling=decision.sampling)


def contract_of(config: ClusterConfig, model: str, role: str | None = None) -> Contract:
    """The contract for a request to `model` that asked for `role`.

    Without a role, or for one without a contract, that of the model's first role that has one; without any, the model's
    own length bounds the request. A fallback model that holds less than the role promises bounds it too.
    """
    chosen = next((name for name in (role, *config.models[model].roles) if name in config.contracts), None)
    terms: ContractConfig | None = config.contracts[chosen] if chosen is not None else None
    engine = config.models[model].engine
    room = engine.max_model_len - 1 if engine.max_model_len is not None else None
    window = engine.kv_window_tokens
    completion_room = min((size for size in (room, window - 1 if window is not None else None) if size), default=None)
    if terms is None:
        prompt = None if window is not None else room
        return Contract(model, None, prompt, completion_room, None, Sampling.CALLER, None, DEFAULT_TIMEOUT_S)
    completion = min(terms.max_completion_tokens, completion_room or terms.max_completion_tokens)
    return Contract(
        model=model,
        role=chosen,
        max_prompt_tokens=None if window is not None else min(terms.max_prompt_tokens, room or terms.max_prompt_tokens),
        max_completion_tokens=completion,
        default_completion_tokens=completion,
        sampling=terms.sampling,
        latency_target_s=terms.latency_target_s,
        timeout_s=terms.timeout_s,
    )


def enforce(contract: Contract, request: Request) -> Request:
    """`request` within `contract`: open fields filled in. Raises `ApiError` 400 naming field and limit.

    The prompt is judged by its bytes, so only what is over the limit for certain is refused here; the engine counts.
    """
    _check_prompt(contract, request)
    if isinstance(request, EmbeddingRequest):
        return request
    max_tokens = _completion_tokens(contract, request)
    temperature, seed = _sampling(contract, request)
    changes: JsonObject = {"temperature": temperature, "seed": seed}
    if request.max_tokens is None:
        changes["max_tokens"] = max_tokens
    body = {**request.body, **{name: value for name, value in changes.items() if value is not None}}
    return replace(request, body=body, max_tokens=max_tokens, temperature=temperature, seed=seed)


def _sampling(contract: Contract, request: ChatRequest | CompletionRequest) -> tuple[float | None, int | None]:
    """Temperature and seed in force."""
    sampling, who, ruling = contract.sampling, contract.label, contract.ruling
    if ruling is not None and (ruling.strict or (request.temperature is None and request.n == 1)):
        sampling, who = ruling.sampling, f"the routing rule {ruling.rule}"
    if sampling is Sampling.DETERMINISTIC:
        if request.temperature:
            raise _mode(who, "temperature", "samples deterministically; leave `temperature` out or send 0")
        if request.n > 1:
            raise _mode(who, "n", "samples deterministically, so all answers are the same; send `n` 1")
        return 0.0, DETERMINISTIC_SEED if request.seed is None else request.seed
    if sampling is Sampling.STOCHASTIC:
        if request.temperature == 0:
            raise _mode(who, "temperature", "samples stochastically; send a `temperature` above 0 or leave it out")
        return (1.0 if request.temperature is None else request.temperature), request.seed
    return request.temperature, request.seed


def _check_prompt(contract: Contract, request: ApiRequest) -> None:
    limit = contract.max_prompt_tokens
    if limit is not None and fewest_tokens(request.prompt_bytes) > limit:
        param = {ChatRequest: "messages", CompletionRequest: "prompt", EmbeddingRequest: "input"}[type(request)]
        message = (
            f"The prompt has {request.prompt_bytes} bytes, about {request.prompt_tokens_estimate} tokens; "
            f"{contract.label} takes at most {limit} tokens. Shorten `{param}`."
        )
        raise ApiError(400, "context_length_exceeded", message, param=param)


def _completion_tokens(contract: Contract, request: ChatRequest | CompletionRequest) -> int | None:
    """Completion tokens in force; None: what fits."""
    limit = contract.max_completion_tokens
    if request.max_tokens is not None:
        if limit is not None and request.max_tokens > limit:
            field = "max_completion_tokens" if "max_completion_tokens" in request.body else "max_tokens"
            raise bad_request(field, f"`{field}` must be at most {limit} for {contract.label}.")
        return request.max_tokens
    default = contract.default_completion_tokens
    if isinstance(request, CompletionRequest):
        default = COMPLETION_DEFAULT_TOKENS if default is None else min(default, COMPLETION_DEFAULT_TOKENS)
    least = request.body.get("min_tokens")
    if default is not None and isinstance(least, int) and least > default:
        raise bad_request("min_tokens", f"`min_tokens` must be at most {default} unless `max_tokens` is sent.")
    return default


def _mode(who: str, param: str, message: str) -> ApiError:
    return bad_request(param, f"{who[:1].upper()}{who[1:]} {message}.")
