"""Judged requests on a cluster of simulated models: attempts in one trace, and what leaves in the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.clusters import RunningCluster
from tests.integration.access_keys import add_key

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CHAT = "/v1/chat/completions"
PASSAGES = [{"id": "doc-7", "text": "Paris is the capital of France.", "score": 0.9}]


@pytest.fixture(scope="module")
def client(simulated_cluster: RunningCluster) -> Iterator[httpx.Client]:
    key = add_key(simulated_cluster, "tests of feedback")
    with simulated_cluster.client(key=key.key) as made:
        yield made


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "alpha", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, **more}


def attempts_in(simulated_cluster: RunningCluster, trace_id: str) -> list[str]:
    """Outcomes of the attempts in a trace, in their order."""
    shown = simulated_cluster.pointsman("trace", trace_id, "--json")
    spans = [span for span in json.loads(shown.stdout)["spans"] if span["name"] == "attempt"]
    spans.sort(key=lambda span: span["attributes"]["pointsman.attempt.number"])
    return [span["attributes"]["pointsman.attempt.outcome"] for span in spans]


def test_what_no_attempt_can_meet_ends_in_the_passages(simulated_cluster: RunningCluster, client: httpx.Client) -> None:
    knobs = {"verify": {"regex": "^never said$"}, "passages": PASSAGES}
    answer = client.post(CHAT, json=chat(pointsman=knobs))
    body = answer.json()
    assert answer.status_code == 200, answer.text
    assert "Paris is the capital of France. [doc-7]" in body["choices"][0]["message"]["content"]
    trail = body["pointsman"]["trail"]
    assert trail[0]["outcome"] == "requeried"
    assert trail[-1]["outcome"] == "template"
    assert body["usage"]["completion_tokens"] == 3 * len(trail)
    assert attempts_in(simulated_cluster, body["pointsman"]["trace_id"]) == [step["outcome"] for step in trail]


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_verified_leaves(client: httpx.Client, stream: bool) -> None:
    answer = client.post(CHAT, json=chat(stream=stream, pointsman={"verify": {"regex": "."}}))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-pointsman-model"] == "alpha"
    assert answer.headers["x-pointsman-attempts"] == "1"
    assert '"verified": true' in answer.text
    assert answer.text.endswith("data: [DONE]\n\n") is stream


@pytest.mark.parametrize("stream", [False, True])
def test_a_doubtful_answer_is_asked_for_again_then_of_a_surer_model(
    simulated_cluster: RunningCluster, client: httpx.Client, stream: bool
) -> None:
    """Seen in one trace, and by a stream's caller only in what is told at its end."""
    knobs = {"min_confidence": 0.8, "retries": 2}
    answer = client.post(CHAT, json=chat(stream=stream, max_tokens=40, temperature=0.9, pointsman=knobs))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-pointsman-model"] == "beta"
    text = answer.text
    told = json.loads(text.split(": pointsman ")[1].split("\n")[0]) if stream else answer.json()["pointsman"]
    assert [(step["model"], step["outcome"]) for step in told["trail"]] == [
        ("alpha", "requeried"),
        ("alpha", "escalated"),
        ("beta", "accepted"),
    ]
    assert told["trail"][0]["confidence"] < 0.8 < told["trail"][2]["confidence"]
    assert ": judged" not in text
    assert text.count("(simulated)") == text.count("beta (simulated)")
    assert attempts_in(simulated_cluster, told["trace_id"]) == ["requeried", "escalated", "accepted"]
