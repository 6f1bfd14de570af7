from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.api.errors import ApiError
from cluster.config.cluster import ClusterConfig
from cluster.config.load import parse_config
from cluster.routing.picker import pick
from cluster.routing.resolve import Policy
from cluster.routing.scorers import scorer_names
from cluster.routing.signals import RequestSignals
from cluster.routing.snapshot import ModelState

CONFIG = parse_config((Path(__file__).parents[4] / "infra" / "clusters" / "local.yaml").read_text(), "local.yaml")
POLICY = Policy(CONFIG)
PLAIN = RequestSignals(embedding=False, prompt_tokens=500, max_tokens=None)
IDLE = ModelState(1, running=0, waiting=0, kv_usage=0.0)
FULL = ModelState(1, running=32, waiting=32, kv_usage=1.0)

states = st.builds(
    ModelState,
    ready_replicas=st.integers(0, 3),
    running=st.none() | st.floats(0, 200),
    waiting=st.none() | st.floats(0, 200),
    kv_usage=st.none() | st.floats(0, 1),
    load_age_s=st.floats(0, 20),
    ttft_s=st.none() | st.floats(0.001, 60),
    confidence=st.dictionaries(st.sampled_from(["", "code", "facts"]), st.floats(0, 1)),
)
snapshots = st.fixed_dictionaries(dict.fromkeys(CONFIG.models, states))


def with_routing(**changes: object) -> ClusterConfig:
    return CONFIG.model_copy(update={"routing": CONFIG.routing.model_copy(update=changes)})


def test_a_role_goes_to_another_model_once_its_own_is_full_and_says_so() -> None:
    assert POLICY.decide("strong", PLAIN, dict.fromkeys(CONFIG.models, IDLE)).model == "dense"
    decision = POLICY.decide("strong", PLAIN, {"dense": FULL, "sparse": IDLE, "mini": IDLE})
    assert (decision.model, decision.reason_code) == ("sparse", "named_role_fallback")
    assert "dense scores" in decision.reason
    # Whoever names a model gets it, full or not.
    assert POLICY.decide("dense", PLAIN, {"dense": FULL, "sparse": IDLE, "mini": IDLE}).model == "dense"


def test_when_all_are_full_or_nothing_is_known_the_roles_own_model_is_kept() -> None:
    assert POLICY.decide("strong", PLAIN, dict.fromkeys(CONFIG.models, FULL)).model == "dense"
    stale = replace(IDLE, load_age_s=60.0)
    assert POLICY.decide("strong", PLAIN, dict.fromkeys(CONFIG.models, stale)).model == "dense"
    assert POLICY.decide("strong", PLAIN, {}).model == "dense"


def test_a_stale_report_counts_as_bad_news() -> None:
    stale = {"dense": replace(IDLE, load_age_s=60.0), "sparse": IDLE, "mini": IDLE}
    decision = POLICY.decide("strong", PLAIN, stale, explain=True)
    assert decision.model == "sparse"
    reasons = {score.name: score.reason for score in decision.considered[0].scores}
    assert "60.0 s ago, which is too old" in reasons["queue"]


def test_small_differences_move_nobody() -> None:
    busier = ModelState(1, running=6, waiting=0, kv_usage=0.1)
    policy = Policy(with_routing(scorers={"queue": 1.0}, switch_margin=0.1))
    assert policy.decide("strong", PLAIN, {"dense": busier, "sparse": IDLE, "mini": IDLE}).model == "dense"
    assert policy.decide("strong", PLAIN, {"dense": FULL, "sparse": IDLE, "mini": IDLE}).model == "sparse"


def test_allowed_models_leave_the_others_out() -> None:
    only = replace(PLAIN, allowed_models=frozenset({"mini"}))
    assert POLICY.decide("strong", only, {}).model == "mini"
    with pytest.raises(ApiError) as caught:
        POLICY.decide("dense", replace(PLAIN, allowed_models=frozenset({"encoder"})), {})
    assert (caught.value.status, caught.value.param) == (400, "pointsman.allowed_models")
    assert "dense, sparse, mini" in caught.value.message


def test_a_model_that_is_too_small_is_passed_over_unless_all_are() -> None:
    small = CONFIG.models["dense"].model_copy(
        update={"engine": CONFIG.models["dense"].engine.model_copy(update={"max_model_len": 256})}
    )
    policy = Policy(CONFIG.model_copy(update={"models": {**CONFIG.models, "dense": small}}))
    decision = policy.decide("strong", PLAIN, {})
    assert decision.model == "sparse"
    assert "dense holds 256 tokens" in decision.reason
    assert policy.decide("strong", replace(PLAIN, prompt_tokens=9000), {}).model == "dense"


def test_an_explanation_has_every_score_with_its_reason() -> None:
    decision = POLICY.decide("auto", PLAIN, dict.fromkeys(CONFIG.models, IDLE), explain=True)
    for candidate in decision.considered:
        assert {score.name for score in candidate.scores} == set(scorer_names())
        assert all(score.reason for score in candidate.scores)
        weights = sum(score.weight for score in candidate.scores)
        mean = sum(score.value * score.weight for score in candidate.scores) / weights
        assert candidate.score == pytest.approx(mean)


def test_without_weights_the_order_of_the_role_decides() -> None:
    policy = Policy(with_routing(scorers={}))
    assert policy.decide("strong", PLAIN, {"dense": FULL, "sparse": IDLE, "mini": IDLE}).model == "dense"


@given(snapshots, st.sampled_from(["auto", "strong", "fast", "code", "facts", "dense", "mini"]))
def test_never_an_unhealthy_model_while_a_healthy_one_exists(snapshot: dict[str, ModelState], asked: str) -> None:
    chain = POLICY.decide(asked, PLAIN, {}).candidates
    if not any(snapshot[model].healthy for model in chain):
        with pytest.raises(ApiError, match="is ready"):
            POLICY.decide(asked, PLAIN, snapshot)
        return
    decision = POLICY.decide(asked, PLAIN, snapshot)
    assert snapshot[decision.model].healthy
    assert all(snapshot[model].healthy for model in decision.fallbacks)
    assert decision == POLICY.decide(asked, PLAIN, snapshot)
    assert all(0 <= candidate.score <= 1 for candidate in decision.considered if candidate.score is not None)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1))
def test_the_first_stays_unless_it_is_beaten_by_the_margin(scores: list[float], margin: float) -> None:
    ranked = pick([(str(position), score) for position, score in enumerate(scores)], margin)
    assert sorted(ranked) == sorted(str(position) for position in range(len(scores)))
    if ranked[0] != "0":
        assert scores[int(ranked[0])] == max(scores)
        assert max(scores) - scores[0] >= margin
    assert pick([], margin) == []
