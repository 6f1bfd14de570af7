import dataclasses
from pathlib import Path

import pytest

from cluster.api.chat import parse_chat
from cluster.api.embedding import parse_embedding
from cluster.api.errors import ApiError
from cluster.config.cluster import ClusterConfig
from cluster.config.ingress import LimitsConfig
from cluster.config.load import parse_config
from cluster.routing.decision import RouteDecision
from cluster.routing.reading import Reading
from cluster.routing.resolve import Policy
from cluster.routing.signals import RequestSignals, is_code, signals_of
from cluster.routing.snapshot import ModelState, Snapshot

CONFIG = parse_config((Path(__file__).parents[4] / "infra" / "clusters" / "local.yaml").read_text(), "local.yaml")
PLAIN = RequestSignals(embedding=False, prompt_tokens=500, max_tokens=None)
SHORT = RequestSignals(embedding=False, prompt_tokens=20, max_tokens=50)
CODE = RequestSignals(embedding=False, prompt_tokens=20, max_tokens=50, intent=Reading("code", "lexical"))
VECTORS = RequestSignals(embedding=True, prompt_tokens=20, max_tokens=None)
DOWN = ModelState(0, "its engine is starting")


def resolve(asked: str, signals: RequestSignals, config: ClusterConfig, snapshot: Snapshot) -> RouteDecision:
    return Policy(config).decide(asked, signals, snapshot)


@pytest.mark.parametrize(
    ("asked", "signals", "model", "role", "code"),
    [
        ("dense", PLAIN, "dense", None, "named_model"),
        ("fluency", PLAIN, "sparse", "fluency", "named_role"),
        ("auto", PLAIN, "dense", "strong", "auto_default"),
        ("auto", SHORT, "mini", "fast", "auto_fast"),
        ("auto", CODE, "sparse", "code", "auto_code"),
        ("auto", VECTORS, "encoder", "embedding", "auto_embedding"),
        ("embedding", VECTORS, "encoder", "embedding", "named_role"),
    ],
)
def test_names_roles_and_the_rule(asked: str, signals: RequestSignals, model: str, role: str | None, code: str) -> None:
    decision = resolve(asked, signals, CONFIG, {})
    assert (decision.model, decision.role, decision.reason_code) == (model, role, code)
    assert decision.candidates[0] == model
    assert decision.reason


def test_an_open_ended_request_is_not_bound_by_latency() -> None:
    signals = RequestSignals(embedding=False, prompt_tokens=20, max_tokens=None)
    assert resolve("auto", signals, CONFIG, {}).model == "dense"


def test_an_unhealthy_model_is_replaced_along_the_chain_with_a_reason() -> None:
    decision = resolve("strong", PLAIN, CONFIG, {"dense": DOWN, "mini": ModelState(1)})
    assert decision.candidates == ("dense", "sparse", "mini")
    assert (decision.model, decision.fallbacks) == ("sparse", ("mini",))
    assert decision.reason_code == "named_role_fallback"
    assert "dense is not ready (its engine is starting); fell back to sparse" in decision.reason
    assert resolve("dense", PLAIN, CONFIG, {"dense": DOWN, "sparse": DOWN}).model == "mini"


def test_without_any_replica_the_answer_is_503_with_a_time() -> None:
    with pytest.raises(ApiError) as caught:
        resolve("strong", PLAIN, CONFIG, {"dense": DOWN, "sparse": DOWN, "mini": DOWN})
    assert (caught.value.status, caught.value.headers) == (503, {"retry-after": "2"})
    with pytest.raises(ApiError) as caught:
        resolve("encoder", VECTORS, CONFIG, {"encoder": DOWN})
    assert caught.value.status == 503


def test_an_unknown_name_is_404_and_lists_the_known_ones() -> None:
    with pytest.raises(ApiError) as caught:
        resolve("canary-model", PLAIN, CONFIG, {})
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")
    assert "dense, encoder, mini, sparse" in caught.value.message
    assert "canary" not in caught.value.body().decode()


@pytest.mark.parametrize("asked", ["dense", "strong"])
def test_embeddings_asked_of_a_chat_model_name_the_encoder(asked: str) -> None:
    with pytest.raises(ApiError) as caught:
        resolve(asked, VECTORS, CONFIG, {})
    assert caught.value.status == 400
    assert "use encoder" in caught.value.message


@pytest.mark.parametrize("asked", ["encoder", "embedding"])
def test_chat_asked_of_the_encoder_names_the_chat_models(asked: str) -> None:
    with pytest.raises(ApiError) as caught:
        resolve(asked, PLAIN, CONFIG, {})
    assert caught.value.status == 400
    assert "use dense or sparse or mini" in caught.value.message


def test_a_cluster_without_encoder_says_so() -> None:
    models = {name: model for name, model in CONFIG.models.items() if name != "encoder"}
    config = CONFIG.model_copy(update={"models": models})
    with pytest.raises(ApiError, match="has no encoder"):
        resolve("auto", VECTORS, config, {})
    with pytest.raises(ApiError, match="has none that does"):
        resolve("dense", VECTORS, config, {})


def test_signals_are_read_from_requests() -> None:
    limits = LimitsConfig()
    body = {"model": "auto", "max_tokens": 9, "messages": [{"role": "user", "content": "```python\nprint(1)\n```"}]}
    signals = signals_of(parse_chat(body, limits))  # type: ignore[arg-type]
    assert (signals.embedding, signals.max_tokens, is_code(signals)) == (False, 9, True)
    assert signals_of(parse_embedding({"model": "e", "input": "x"}, limits)).embedding


PARKED = ModelState(0, "parked, and started when it is asked for", parked=True, start_s=12.3)


def test_a_parked_model_says_when_it_is_there() -> None:
    snapshot = dict.fromkeys(CONFIG.models, DOWN) | {"sparse": PARKED}
    with pytest.raises(
        ApiError, match=r"no replica of the model sparse while nobody asks for it; one is being started"
    ) as info:
        resolve("sparse", PLAIN, CONFIG, snapshot)
    assert (info.value.status, info.value.code, info.value.headers) == (503, "model_starting", {"retry-after": "13"})


def test_a_parked_model_is_passed_over_while_another_one_takes_over() -> None:
    decision = resolve("strong", PLAIN, CONFIG, {"dense": PARKED})
    assert decision.model == "sparse"
    assert "dense is not ready (parked, and started when it is asked for)" in decision.reason


@pytest.mark.parametrize(
    ("asked", "parked", "found"),
    [
        ("dense", {"dense"}, ("dense",)),
        ("strong", {"dense", "sparse"}, ("dense",)),
        # What nobody asked for stays parked.
        ("strong", {"sparse"}, ()),
        ("mini", {"dense"}, ()),
    ],
)
def test_what_is_asked_for_before_any_that_is_ready_is_to_be_started(
    asked: str, parked: set[str], found: tuple[str, ...]
) -> None:
    snapshot = dict.fromkeys(parked, PARKED)
    assert Policy(CONFIG).parked(asked, PLAIN, snapshot) == found


def test_a_model_that_the_caller_does_not_allow_stays_parked() -> None:
    signals = dataclasses.replace(PLAIN, allowed_models=frozenset({"sparse"}))
    assert Policy(CONFIG).parked("strong", signals, {"dense": PARKED}) == ()


def test_a_model_that_is_impaired_is_left_to_those_who_name_it() -> None:
    impaired = ModelState(1, impaired="pool 1 of its experts has no replica")
    decision = resolve("fluency", PLAIN, CONFIG, {"sparse": impaired})
    assert decision.model != "sparse" and decision.reason_code == "named_role_fallback"
    assert "sparse is impaired (pool 1 of its experts has no replica)" in decision.reason
    everything = dict.fromkeys(CONFIG.models, impaired)
    assert resolve("fluency", PLAIN, CONFIG, everything).model == "sparse", "worse answers are better than none"
