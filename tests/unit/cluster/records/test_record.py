from __future__ import annotations

import json
from pathlib import Path

from cluster.config.load import parse_config
from cluster.records.record import MAX_TEXT, Precision, precision_of, told_candidates, told_signals, told_trail
from cluster.routing.decision import Candidate
from cluster.routing.latency_class import LatencyClass
from cluster.routing.reading import Reading
from cluster.routing.signals import RequestSignals

ROOT = Path(__file__).parents[4]
CANARY = "the-canary-that-nobody-may-write-down"


def test_signals_are_numbers_and_words_of_ours() -> None:
    signals = RequestSignals(
        False,
        12,
        None,
        Reading("code", "lexical"),
        6.12345,
        3,
        latency_class=LatencyClass.BATCH,
        allowed_models=frozenset({CANARY}),
    )
    told = told_signals(signals)
    assert told["intent"] == {"value": "code", "source": "lexical", "age_s": 0.0}
    assert (told["density"], told["latency_class"], told["max_tokens"], told["messages"]) == (6.1235, "batch", None, 3)
    assert CANARY not in json.dumps(told)
    assert told_signals(None) == {}


def test_what_a_check_says_of_an_answer_stays_out() -> None:
    verdict = {"name": "hook", "ok": False, "reason": f"it says {CANARY}", "score": 0.1}
    trail = [
        {"model": "dense", "why": f"hook: it says {CANARY}; asking again", "outcome": "requeried", "verdict": verdict}
    ]
    (step,) = told_trail(trail)
    assert CANARY not in json.dumps(step)
    assert step["verdict"] == {"name": "hook", "ok": False, "score": 0.1}
    assert (step["outcome"], step["why"]) == ("requeried", "hook refused it")
    assert trail[0]["verdict"] is verdict


def test_a_reason_of_a_decision_is_kept_within_bounds() -> None:
    (step,) = told_trail([{"model": "dense", "why": "x" * 9999, "later": 1}])
    assert step == {"model": "dense", "why": "x" * MAX_TEXT}
    (candidate,) = told_candidates([Candidate("dense", True, "y" * 9999, True, 0.123456)])
    assert candidate == {"model": "dense", "healthy": True, "fits": True, "score": 0.1235, "reason": "y" * MAX_TEXT}


def test_precision_is_what_the_config_says() -> None:
    config = parse_config((ROOT / "infra" / "clusters" / "gpu.yaml").read_text(), "gpu.yaml")
    external = next(name for name, model in config.models.items() if model.upstream is not None)
    assert precision_of(config, external) is None
    assert precision_of(config, "nobody") is None
    local = parse_config((ROOT / "infra" / "clusters" / "local.yaml").read_text(), "local.yaml")
    assert precision_of(local, "dense") == Precision(
        local.models["dense"].engine.dtype, local.models["dense"].engine.kv_cache_dtype
    )
    assert str(Precision("bfloat16", "fp8")) == "compute=bfloat16, kv=fp8"
