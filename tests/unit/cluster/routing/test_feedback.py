"""What follows an attempt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.api.knobs import NO_KNOBS, Knobs
from cluster.config.cluster import ClusterConfig
from cluster.config.feedback import FeedbackConfig
from cluster.config.load import parse_config
from cluster.routing.decision import RouteDecision
from cluster.routing.feedback import (
    Accept,
    Attempt,
    Bounds,
    Escalate,
    Requery,
    Template,
    bounds_for,
    escalation_of,
    next_step,
)
from cluster.verification.verdict import Verdict

ROOT = Path(__file__).parents[4]
BOUNDS = Bounds(0.6, 3, 1000, 100.0, 0.2, ("dense", "sparse"))
LOW = Attempt("mini", 1.0, confidence=0.3, tokens=50, seconds=1.0)
READY = ("mini", "dense", "sparse")
BAD = Verdict(False, "regex", "the pattern is not found")
DECISION = RouteDecision("mini", "fast", "a test", "test", (), ("sparse",))


def config(**feedback: object) -> ClusterConfig:
    made = parse_config((ROOT / "infra" / "clusters" / "local.yaml").read_text(), "local.yaml")
    routing = made.routing.model_copy(update={"feedback": FeedbackConfig.model_validate(feedback)})
    return made.model_copy(update={"routing": routing})


def test_a_confident_answer_is_accepted() -> None:
    step = next_step([replace(LOW, confidence=0.6)], BOUNDS, READY, 0.0)
    assert step == Accept(0, True, "confidence 0.60 of mini is at least 0.6")


def test_one_whose_confidence_is_not_known_is_accepted_and_said_to_be_so() -> None:
    step = next_step([replace(LOW, confidence=None)], BOUNDS, READY, 0.0)
    assert step == Accept(0, True, "mini reported no confidence")


def test_a_doubtful_answer_is_asked_for_again_then_of_the_next_model_then_of_none() -> None:
    first = next_step([LOW], BOUNDS, READY, 0.0)
    assert first == Requery(0.2, "confidence 0.30 of mini is below 0.6; asking mini again at temperature 0.2")
    again = replace(LOW, temperature=0.2, confidence=0.4)
    second = next_step([LOW, again], BOUNDS, READY, 0.0)
    assert second == Escalate("dense", 0.2, "confidence 0.40 of mini is below 0.6; asking dense")
    third = next_step([LOW, again, Attempt("dense", 0.2, confidence=0.5)], BOUNDS, READY, 0.0)
    assert isinstance(third, Template)
    assert third.reason.startswith("confidence 0.50 of dense is below 0.6; 3 attempts are made")


@pytest.mark.parametrize("temperature", [0.0, 0.2])
def test_what_would_come_out_the_same_is_not_asked_for_again(temperature: float) -> None:
    step = next_step([replace(LOW, temperature=temperature)], BOUNDS, READY, 0.0)
    assert isinstance(step, Escalate)
    assert step.temperature == (None if temperature == 0 else 0.2)


def test_a_model_that_is_not_ready_or_was_asked_is_skipped() -> None:
    cold = replace(LOW, temperature=0.0)
    step = next_step([cold], BOUNDS, ("mini", "sparse"), 0.0)
    assert isinstance(step, Escalate) and step.model == "sparse"
    asked = [cold, replace(cold, model="dense", failed="replica_lost")]
    step = next_step(asked, BOUNDS, READY, 0.0)
    assert isinstance(step, Escalate) and step.model == "sparse"


def test_a_confident_answer_that_is_not_verified_is_not_accepted() -> None:
    sure = replace(LOW, confidence=0.99, verdict=BAD)
    step = next_step([sure], BOUNDS, READY, 0.0)
    assert isinstance(step, Requery)
    assert step.reason.startswith("regex: the pattern is not found")


@pytest.mark.parametrize(
    ("bounds", "now_s", "why"),
    [
        (replace(BOUNDS, max_attempts=1), 0.0, "1 attempts are made"),
        (BOUNDS, 99.0, "no time is left"),
        (replace(BOUNDS, max_tokens=99), 0.0, "would pass 99 tokens"),
        (replace(BOUNDS, escalation=()), 0.0, "no other model is ready"),
    ],
)
def test_each_bound_ends_it_and_says_which(bounds: Bounds, now_s: float, why: str) -> None:
    attempts = [replace(LOW, temperature=0.0)]
    step = next_step(attempts, bounds, READY, now_s)
    assert isinstance(step, Template) and why in step.reason
    best = next_step(attempts, replace(bounds, template=False), READY, now_s)
    assert isinstance(best, Accept) and not best.good and why in best.reason


def test_the_best_attempt_is_sent_verified_ones_first() -> None:
    bounds = replace(BOUNDS, template=False)
    attempts = [replace(LOW, confidence=0.5, verdict=BAD), replace(LOW, confidence=0.2), replace(LOW, confidence=0.1)]
    step = next_step(attempts, bounds, READY, 0.0)
    assert isinstance(step, Accept) and step.attempt == 1
    gone = [attempts[0], replace(attempts[1], kept=False), replace(attempts[2], failed="replica_lost")]
    step = next_step(gone, bounds, READY, 0.0)
    assert isinstance(step, Accept) and step.attempt == 0


def test_the_chain_is_that_of_the_config_else_the_fallbacks() -> None:
    assert escalation_of(config(), DECISION) == ("sparse",)
    assert escalation_of(config(escalate_to=["strong", "mini", "facts"]), DECISION) == ("dense", "mini")


def test_thresholds_are_a_models_own_its_roles_or_the_clusters() -> None:
    made = config(confidence_threshold=0.5, thresholds={"dense": 0.7, "fast": 0.4})
    bounds = bounds_for(made, DECISION, NO_KNOBS, template=True, deadline_s=1.0)
    assert [bounds.threshold_of(name) for name in ("dense", "mini", "sparse")] == [0.7, 0.4, 0.4]
    strong = bounds_for(made, replace(DECISION, role="strong"), NO_KNOBS, template=True, deadline_s=1.0)
    assert strong.threshold_of("sparse") == 0.5


@pytest.mark.parametrize(("retries", "attempts"), [(None, 3), (0, 1), (1, 2), (50, 3)])
def test_a_caller_may_ask_for_fewer_attempts_than_the_operator_allows(retries: int | None, attempts: int) -> None:
    bounds = bounds_for(config(), DECISION, Knobs(retries=retries), template=True, deadline_s=1.0)
    assert bounds.max_attempts == attempts


def test_a_caller_may_ask_for_more_confidence_and_fewer_models() -> None:
    made = config(thresholds={"fast": 0.4}, escalate_to=["strong", "fluency"])
    knobs = Knobs(min_confidence=0.9, allowed_models=frozenset({"mini", "sparse"}))
    bounds = bounds_for(made, DECISION, knobs, template=True, deadline_s=1.0)
    assert bounds.threshold_of("mini") == 0.9
    assert bounds.escalation == ("sparse",)
