from __future__ import annotations

import json

import pytest

PATH = "/v1/route"
ROUTE = {
    "object": "route",
    "model": "dense",
    "role": "strong",
    "reason": "auto: neither short nor code, goes to role strong",
    "rule": "auto_default",
    "sampling": {"mode": "deterministic", "rule": "critical", "strict": True},
    "fallbacks": ["mini"],
    "candidates": [
        {
            "model": "dense",
            "healthy": True,
            "fits": True,
            "reason": "serves strong",
            "score": 0.875,
            "scores": [{"name": "kv", "value": 0.75, "weight": 2.0, "reason": "KV cache 25% used"}],
        },
        {
            "model": "mini",
            "healthy": False,
            "fits": False,
            "reason": "is not ready (gone)",
            "score": None,
            "scores": [],
        },
    ],
    "signals": {"intent": "missing", "latency_class": "standard"},
}


def test_decision_candidates_and_signals_are_shown(invoke, api, running):
    api.json(PATH, ROUTE)
    done = invoke("explain", "Tell me about trains")
    assert done.exit_code == 0, done.output
    for words in ("dense", "auto_default", "0.875", "0.75", "KV cache 25% used", "is not ready (gone)", "critical"):
        assert words in done.stdout
    path, _, body = api.asked[0]
    assert path == PATH
    assert body == {"model": "auto", "messages": [{"role": "user", "content": "Tell me about trains"}]}


def test_options_become_knobs_and_json_is_as_it_came(invoke, api, running):
    api.json(PATH, ROUTE)
    options = ["--allow", "dense", "--allow", "mini", "--latency-class", "batch", "--retrieval-confidence", "0.3"]
    done = invoke("explain", "x", "--model", "strong", "--max-tokens", "9", *options, "--json")
    assert json.loads(done.stdout) == ROUTE
    body = api.asked[0][2]
    assert body["pointsman"] == {
        "latency_class": "batch",
        "retrieval_confidence": 0.3,
        "allowed_models": ["dense", "mini"],
    }
    assert (body["model"], body["max_tokens"]) == ("strong", 9)


@pytest.mark.parametrize("status", [400, 404])
def test_a_refusal_is_an_error_in_words(invoke, api, running, status):
    api.json(PATH, {"error": {"message": "`pointsman.latency_class` must be one of: batch."}}, status)
    done = invoke("explain", "x", "--latency-class", "soon")
    assert done.exit_code == 1
    assert "must be one of" in done.stderr
    assert "Traceback" not in done.stderr


def test_there_must_be_a_prompt(invoke, running):
    done = invoke("explain", "")
    assert done.exit_code == 2
    assert "there is no prompt" in done.stderr
