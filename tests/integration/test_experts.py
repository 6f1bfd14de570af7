"""The heat of a simulated sparse model's experts: it moves with the traffic, at the API and in the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.clusters import RunningCluster
from tests.integration.access_keys import add_key

CHAT = "/v1/chat/completions"
CODE = "Write a Python function that sorts a list of numbers, with tests."
TALK = "Hello there, how are you today?"


@pytest.fixture(scope="module")
def key(simulated_cluster: RunningCluster) -> str:
    return add_key(simulated_cluster, "tests of experts").key


@pytest.fixture(scope="module")
def client(simulated_cluster: RunningCluster, key: str) -> Iterator[httpx.Client]:
    with simulated_cluster.client(key=key) as made:
        yield made


def ask(client: httpx.Client, prompt: str, **more: Any) -> dict[str, Any]:
    body = {"model": "beta", "messages": [{"role": "user", "content": prompt}], "max_tokens": 60, **more}
    reply = client.post(CHAT, json=body)
    assert reply.status_code == 200, reply.text
    told: dict[str, Any] = reply.json()["pointsman"]
    return told


def heated(client: httpx.Client, prompt: str, kind: str) -> dict[str, Any]:
    """What the page tells of the model once this kind of traffic is what heats its hottest expert."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        ask(client, prompt)
        model: dict[str, Any] = client.get("/v1/experts").json()["models"].get("beta", {})
        hot = model.get("hot", [])
        if hot and hot[0]["traffic"] and hot[0]["traffic"][0]["name"] == kind and hot[0]["traffic"][0]["share"] > 0.8:
            return model
    raise AssertionError(f"{kind} heated nothing")


def hottest(model: dict[str, Any]) -> list[int]:
    """The expert with most tokens, by layer."""
    return [shares.index(max(shares)) for shares in model["shares"]]


def test_heat_moves_with_the_traffic(simulated_cluster: RunningCluster, client: httpx.Client, key: str) -> None:
    code = heated(client, CODE, "code")
    assert code["shape"] == {"layers": 3, "experts": 8, "top_k": 2}
    assert all(sum(shares) == pytest.approx(1, abs=1e-3) for shares in code["shares"])
    shown = simulated_cluster.pointsman("experts", "--key", key)
    assert shown.returncode == 0, shown.stderr
    assert "3 layers of 8 experts, 2 for each token" in shown.stdout
    assert "▇" in shown.stdout or "█" in shown.stdout
    assert "code" in shown.stdout.partition("hot experts")[2]
    talk = heated(client, TALK, "smalltalk")
    assert hottest(talk) != hottest(code)
    assert {"code", "smalltalk"} <= set(talk["traffic"])
    assert talk["replicas"][0]["tokens"] > code["replicas"][0]["tokens"]
    assert talk["tail"]["requests"] > code["tail"]["requests"] > 0
    maps = simulated_cluster.pointsman("experts", "show", "--by", "traffic", "--key", key).stdout.splitlines()
    assert {"code", "smalltalk"} <= set(maps)
    series = client.get("/metrics").text
    assert 'pointsman_expert_tokens_total{expert="0",layer="0",model="beta"}' in series
    assert 'pointsman_experts_hot{model="beta"}' in series


def test_an_answer_tells_the_experts_of_each_token_and_its_trace_a_summary(
    simulated_cluster: RunningCluster, client: httpx.Client
) -> None:
    told = ask(client, CODE, max_tokens=5, pointsman={"experts": True})
    (log,) = told["experts"]["logs"]
    assert len(log["tokens"]) == len(log["experts"]) > 5
    assert all(len(layers) == 3 and all(len(set(experts)) == 2 for experts in layers) for layers in log["experts"])
    assert told["experts"]["tokens"] == len(log["tokens"])
    silent = ask(client, CODE, model="alpha", max_tokens=2, pointsman={"experts": True})
    assert silent["experts"] == {"unavailable": "the model has no experts"}
    shown = simulated_cluster.pointsman("trace", told["trace_id"], "--json")
    spans = {span["name"]: span["attributes"] for span in json.loads(shown.stdout)["spans"]}
    assert spans["replica"]["pointsman.experts.tokens"] == told["experts"]["tokens"]
    layer, expert, share = told["experts"]["top"][0]
    assert spans["replica"]["pointsman.experts.top"][0] == f"layer {layer} expert {expert} {share:.2f}"


def test_the_stability_of_routing_is_scored(simulated_cluster: RunningCluster, key: str) -> None:
    done = simulated_cluster.pointsman("experts", "stability", "--prompt", CODE, "--json", "--key", key)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["model"] == "beta"
    assert told["again"]["stability"]["score"] == 1.0
    assert told["totals"]["variants"] == 7
    assert told["totals"]["model_changed"] == 0
    # The route of a simulated token depends on nothing but the token and the kind of traffic.
    scores = {row["name"]: row["stability"]["score"] for row in told["variants"]}
    assert scores["trailing space"] == 1.0
    shown = simulated_cluster.pointsman("experts", "stability", "--variants", "2", "--key", key)
    assert "thrash" in shown.stdout, shown.stderr
