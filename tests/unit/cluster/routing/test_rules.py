from pathlib import Path

import pytest

from cluster.config.contract import Sampling
from cluster.config.load import parse_config
from cluster.config.mistakes import ConfigError
from cluster.config.routing import DEFAULT_RULES, ConditionsConfig
from cluster.routing.conditions import conditions_of, holds
from cluster.routing.latency_class import LatencyClass
from cluster.routing.reading import Reading
from cluster.routing.resolve import Policy
from cluster.routing.signals import RequestSignals

TEXT = (Path(__file__).parents[4] / "infra" / "clusters" / "local.yaml").read_text()
POLICY = Policy(parse_config(TEXT, "local.yaml"))


def signals(**changes: object) -> RequestSignals:
    return RequestSignals(**{"embedding": False, "prompt_tokens": 500, "max_tokens": None, **changes})  # type: ignore[arg-type]


def met(when: ConditionsConfig, seen: RequestSignals) -> str | None:
    return holds(conditions_of(when), seen)


@pytest.mark.parametrize(
    ("changes", "role", "code"),
    [
        ({"retrieval_confidence": Reading(0.59, "caller")}, "strong", "auto_low_retrieval"),
        ({"retrieval_confidence": Reading(0.6, "caller"), "prompt_tokens": 9, "max_tokens": 9}, "fast", "auto_fast"),
        ({"latency_class": LatencyClass.INTERACTIVE}, "fast", "auto_interactive"),
        ({"latency_class": LatencyClass.BATCH}, "large_context", "auto_batch"),
        ({"business_critical": True}, "strong", "auto_default"),
        # The first rule that holds decides.
        (
            {"retrieval_confidence": Reading(0.1, "caller"), "latency_class": LatencyClass.BATCH},
            "strong",
            "auto_low_retrieval",
        ),
    ],
)
def test_the_default_rules(changes: dict[str, object], role: str, code: str) -> None:
    decision = POLICY.decide("auto", signals(**changes), {})
    assert (decision.role, decision.reason_code) == (role, code)


def test_rules_on_sampling_hold_for_named_models_too() -> None:
    critical = POLICY.decide("dense", signals(business_critical=True), {}).sampling
    assert critical is not None
    assert (critical.sampling, critical.rule, critical.strict) == (Sampling.DETERMINISTIC, "critical", True)
    ideas = POLICY.decide("auto", signals(intent=Reading("ideation", "lexical")), {}).sampling
    assert ideas is not None
    assert (ideas.sampling, ideas.strict) == (Sampling.STOCHASTIC, False)
    assert POLICY.decide("auto", signals(), {}).sampling is None


def test_a_missing_signal_meets_no_condition() -> None:
    assert met(ConditionsConfig(retrieval_confidence_below=1.0), signals()) is None
    assert met(ConditionsConfig(max_completion_tokens=10), signals()) is None
    assert met(ConditionsConfig(intents=("code",)), signals()) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("when", "fits", "unfit"),
    [
        ({"max_prompt_tokens": 500}, {}, {"prompt_tokens": 501}),
        ({"max_completion_tokens": 10}, {"max_tokens": 10}, {"max_tokens": 11}),
        ({"min_messages": 3}, {"messages": 3}, {"messages": 2}),
        ({"business_critical": False}, {}, {"business_critical": True}),
        ({"latency_class": "batch"}, {"latency_class": LatencyClass.BATCH}, {}),
        ({}, {}, None),
    ],
)
def test_each_condition(when: dict[str, object], fits: dict[str, object], unfit: dict[str, object] | None) -> None:
    conditions = ConditionsConfig.model_validate(when)
    assert met(conditions, signals(**fits))
    assert unfit is None or met(conditions, signals(**unfit)) is None


def test_default_rules_whose_role_nobody_plays_are_left_out() -> None:
    routing = POLICY._routing
    assert routing.rules_for(frozenset({"strong"})) == tuple(r for r in DEFAULT_RULES if r.role in {None, "strong"})


@pytest.mark.parametrize(
    ("routing", "path", "words"),
    [
        ("rules: [{name: a, role: nobody}]", "routing.rules.0.role", "no model has the role nobody"),
        ("rules: [{name: a, role: embedding}]", "routing.rules.0.role", "cannot chat"),
        ("rules: [{name: a}]", "routing.rules.0", "decides nothing"),
        ("rules: [{name: a, role: fast}, {name: a, role: fast}]", "routing.rules.1.name", "an earlier rule"),
        ("scorers: {speed: 1}", "routing.scorers.speed", "there are confidence, cost"),
        ("rules: [{name: a, role: fast, when: {intents: [gossip]}}]", "routing.rules.0.when.intents.0", "code"),
    ],
)
def test_mistakes_in_rules_are_named(routing: str, path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(TEXT.replace("routing:\n", f"routing:\n  {routing}\n"), "file.yaml")
    said = str(caught.value)
    assert path in said
    assert words in said
