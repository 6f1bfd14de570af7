from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.api.chat import ChatRequest, parse_chat
from cluster.api.completion import parse_completion
from cluster.api.embedding import parse_embedding
from cluster.api.errors import ApiError
from cluster.config.contract import Sampling
from cluster.config.load import parse_config
from cluster.contracts import contract_for, contract_of, enforce
from cluster.routing.resolve import Policy
from cluster.routing.signals import signals_of

CONFIG = parse_config((Path(__file__).parents[3] / "infra" / "clusters" / "local.yaml").read_text(), "local.yaml")
LIMITS = CONFIG.ingress.limits
STRONG = contract_of(CONFIG, "dense", "strong")
FACTS = contract_of(CONFIG, "dense", "facts")


def chat(text: str = "hello", **changes: object) -> ChatRequest:
    body: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": text}], **changes}
    return parse_chat(body, LIMITS)


def refusal(contract: object, request: ChatRequest) -> ApiError:
    with pytest.raises(ApiError) as caught:
        enforce(contract, request)  # type: ignore[arg-type]
    assert caught.value.status == 400
    return caught.value


def test_the_contract_is_that_of_the_role_or_of_the_models_first_role_with_one() -> None:
    assert (STRONG.role, STRONG.max_prompt_tokens, STRONG.max_completion_tokens) == ("strong", 1536, 512)
    assert contract_of(CONFIG, "dense").role == "strong"
    assert contract_of(CONFIG, "encoder").role is None
    request = chat(model="facts")
    decision = Policy(CONFIG).decide("facts", signals_of(request), {})
    assert contract_for(CONFIG, decision) == FACTS


def test_open_fields_are_filled_in() -> None:
    request = enforce(STRONG, chat())
    assert request.max_tokens == request.body["max_tokens"] == 512
    assert "temperature" not in request.body
    request = enforce(STRONG, chat(max_completion_tokens=7))
    assert (request.max_tokens, request.body["max_completion_tokens"]) == (7, 7)
    assert "max_tokens" not in request.body


def test_completions_default_to_sixteen_tokens() -> None:
    request = enforce(STRONG, parse_completion({"model": "dense", "prompt": "x"}, LIMITS))
    assert request.body["max_tokens"] == 16
    with pytest.raises(ApiError, match="min_tokens"):
        enforce(STRONG, parse_completion({"model": "dense", "prompt": "x", "min_tokens": 17}, LIMITS))


def test_sizes_past_the_contract_are_refused_with_both_numbers() -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        error = refusal(STRONG, chat(**{field: 513}))
        assert error.param == field
        assert f"`{field}` must be at most 512" in error.message
    error = refusal(STRONG, chat("x" * 8 * 1537))
    assert (error.code, error.param) == ("context_length_exceeded", "messages")
    assert "1536" in error.message
    assert enforce(STRONG, chat("x" * 8 * 1536))


def test_a_deterministic_role_is_greedy_and_seeded() -> None:
    assert FACTS.sampling is Sampling.DETERMINISTIC
    request = enforce(FACTS, chat())
    assert (request.temperature, request.seed) == (0.0, 0)
    assert (request.body["temperature"], request.body["seed"]) == (0.0, 0)
    assert enforce(FACTS, chat(temperature=0, seed=9)).seed == 9
    assert refusal(FACTS, chat(temperature=0.7)).param == "temperature"
    assert refusal(FACTS, chat(n=2)).param == "n"


def test_a_stochastic_role_never_samples_greedily() -> None:
    contract = replace(STRONG, sampling=Sampling.STOCHASTIC)
    assert enforce(contract, chat()).body["temperature"] == 1.0
    assert enforce(contract, chat(temperature=0.3)).temperature == 0.3
    assert refusal(contract, chat(temperature=0)).param == "temperature"


def test_a_model_without_contract_is_bounded_by_its_length() -> None:
    config = CONFIG.model_copy(update={"contracts": {}})
    contract = contract_of(config, "dense")
    assert contract.label == "the model dense"
    assert refusal(contract, chat(max_tokens=2048)).param == "max_tokens"
    assert "max_tokens" not in enforce(contract, chat()).body


def test_a_window_lets_long_prompts_through() -> None:
    dense = CONFIG.models["dense"]
    windowed = dense.model_copy(update={"engine": dense.engine.model_copy(update={"kv_window_tokens": 256})})
    config = CONFIG.model_copy(update={"models": {**CONFIG.models, "dense": windowed}})
    contract = contract_of(config, "dense", "strong")
    assert contract.max_completion_tokens == 255
    assert enforce(contract, chat("x" * 100_000)).max_tokens == 255


def test_a_fallback_that_holds_less_bounds_the_request_too() -> None:
    mini = CONFIG.models["mini"]
    small = mini.model_copy(update={"engine": mini.engine.model_copy(update={"max_model_len": 128})})
    config = CONFIG.model_copy(update={"models": {**CONFIG.models, "mini": small}})
    contract = contract_of(config, "mini", "strong")
    assert (contract.max_prompt_tokens, contract.max_completion_tokens) == (127, 127)


def test_embeddings_are_bounded_by_the_encoder() -> None:
    encoder = CONFIG.models["encoder"]
    short = encoder.model_copy(update={"engine": encoder.engine.model_copy(update={"max_model_len": 256})})
    config = CONFIG.model_copy(update={"models": {**CONFIG.models, "encoder": short}})
    request = parse_embedding({"model": "encoder", "input": "x" * 100}, LIMITS)
    assert enforce(contract_of(config, "encoder"), request) is request
    with pytest.raises(ApiError) as caught:
        enforce(contract_of(config, "encoder"), parse_embedding({"model": "encoder", "input": "x" * 9999}, LIMITS))
    assert caught.value.param == "input"
