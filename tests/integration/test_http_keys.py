"""Who may do what: a key on every route but two, keys that come and go, limits per key, usage."""

from __future__ import annotations

import json
import re

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from deployments.ingress.app import PUBLIC_PATHS
from tests.clusters import RunningCluster
from tests.integration.access_keys import Key, add_key, revoke_key
from tests.integration.cluster_processes import wait_for
from tests.integration.raw_http import bearer, head, talk

pytestmark = pytest.mark.timeout(300)

WRONG = "pm-" + "Aa1_" * 10 + "xyz"

# Beside the routes there are: what frameworks often add, what is not there, and detours to what needs no key.
TARGETS = (
    "/",
    "/docs",
    "/openapi.json",
    "/v1",
    "/v1/nothing",
    "/v1/models/alpha",
    "/livez/",
    "/LIVEZ",
    "//livez",
    "/livez/../metrics",
    "/livez%2f..%2fmetrics",
    "/metrics?path=/livez",
    "/metrics;/livez",
    "/metrics#/livez",
    "/readyz/v1/models",
)


@pytest.fixture(scope="module")
def key(simulated_cluster: RunningCluster) -> Key:
    return add_key(simulated_cluster, "tests of access")


def routes(cluster: RunningCluster, key: Key) -> list[str]:
    """All that the cluster itself says is there."""
    with cluster.client(key=key.key) as client:
        refused = client.get("/v1/nothing")
    assert refused.status_code == 404
    return re.findall(r"(/[\w/]+)[,.]", refused.json()["error"]["message"])


def bad_credentials(key: Key) -> dict[str, tuple[str, ...]]:
    good = bearer(key.key)
    return {
        "missing": (),
        "unknown": (bearer(WRONG),),
        "8 KiB": (bearer("pm-" + "A" * 8192),),
        "8 KiB behind a good one": (bearer(key.key + "A" * 8192),),
        "SQL": (bearer("' OR '1'='1' --"),),
        "SQL of a key's length": (bearer("pm-' OR 1=1; DROP TABLE keys; --".ljust(46, "x")),),
        "twice the same": (good, good),
        "good, then bad": (good, bearer(WRONG)),
        "bad, then good": (bearer(WRONG), good),
        "two in one": (bearer(f"{key.key}, Bearer {key.key}"),),
        "basic": (f"authorization: Basic {key.key}",),
        "no scheme": (f"authorization: {key.key}",),
        "another header": (f"x-api-key: {key.key}",),
        "cookie": (f"cookie: authorization=Bearer {key.key}",),
        "cut short": (bearer(key.key[:-1]),),
        "one character changed": (bearer(key.key[:-1] + ("A" if key.key[-1] != "A" else "B")),),
        "beyond ASCII": (bearer("pm-" + "é" * 43),),
    }


def test_every_route_but_two_asks_for_a_key(simulated_cluster: RunningCluster, key: Key) -> None:
    found = routes(simulated_cluster, key)
    assert set(found) > {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/metrics"}
    assert set(found) > PUBLIC_PATHS == {"/livez", "/readyz"}
    protected = [*(path for path in found if path not in PUBLIC_PATHS), *TARGETS]
    for name, credentials in bad_credentials(key).items():
        for target in protected:
            for method in ("GET", "POST", "OPTIONS", "DELETE"):
                answer = talk(simulated_cluster.url, head(method, target, "content-length: 0", *credentials))
                assert answer.status == 401, (name, method, target)
                assert answer.error["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
                assert key.key.encode() not in answer.body
                assert b"DROP" not in answer.body


def test_a_key_in_the_url_is_none(simulated_cluster: RunningCluster, key: Key) -> None:
    for name in ("api_key", "key", "access_token", "authorization"):
        answer = talk(simulated_cluster.url, head("GET", f"/v1/models?{name}={key.key}"))
        assert answer.status == 401
        assert key.key.encode() not in answer.body


def test_the_public_routes_need_none(simulated_cluster: RunningCluster, key: Key) -> None:
    for path in PUBLIC_PATHS:
        for credentials in ((), (bearer(WRONG),), (bearer(key.key),)):
            assert talk(simulated_cluster.url, head("GET", path, *credentials)).status == 200


def test_a_good_key_opens_the_door(simulated_cluster: RunningCluster, key: Key) -> None:
    for scheme in ("Bearer", "bearer", "BEARER"):
        answer = talk(simulated_cluster.url, head("GET", "/v1/models", f"Authorization: {scheme} {key.key}"))
        assert answer.status == 200


def test_keys_come_and_go_without_a_restart(simulated_cluster: RunningCluster) -> None:
    passing = add_key(simulated_cluster, "passing")
    other = add_key(simulated_cluster, "staying")
    revoke_key(simulated_cluster, passing)
    with simulated_cluster.client(key=other.key) as client:
        assert client.get("/v1/models").status_code == 200
    listed = json.loads(simulated_cluster.pointsman("keys", "list", "--json").stdout)
    assert {record["id"] for record in listed if record["revoked"]} >= {passing.id}


def test_the_state_directory_holds_no_key(simulated_cluster: RunningCluster, key: Key) -> None:
    files = [path for path in simulated_cluster.state_dir.rglob("*") if path.is_file()]
    assert any(path.name == "keys.jsonl" for path in files)
    for path in files:
        assert key.key.encode() not in path.read_bytes(), path


def chat(client: httpx.Client, **more: object) -> httpx.Response:
    body = {"model": "alpha", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, **more}
    return client.post("/v1/chat/completions", json=body)


def test_requests_per_minute(simulated_cluster: RunningCluster) -> None:
    key = add_key(simulated_cluster, "three a minute", "--requests-per-minute", "3")
    with simulated_cluster.client(key=key.key) as client:
        for left in (2, 1, 0):
            answer = chat(client)
            assert answer.status_code == 200
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
            assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
        refused = chat(client)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 61
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        # Looking around is free.
        assert client.get("/v1/usage").json()["rejected"] == 1


def test_the_openai_client_understands_refusals(simulated_cluster: RunningCluster) -> None:
    key = add_key(simulated_cluster, "one a minute", "--requests-per-minute", "1")
    base = f"{simulated_cluster.url}/v1"
    with openai.OpenAI(base_url=base, api_key=WRONG, max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as unknown:
            stranger.models.list()
        assert unknown.value.code == "invalid_api_key"
    with openai.OpenAI(base_url=base, api_key=key.key, max_retries=0) as client:
        question: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
        answers = client.chat.completions.create(model="alpha", messages=question, max_tokens=2, n=2, stream=True)
        assert {chunk.choices[0].index for chunk in answers if chunk.choices} == {0, 1}
        with pytest.raises(openai.RateLimitError) as limited:
            client.chat.completions.create(model="alpha", messages=question, max_tokens=2)
        assert limited.value.code == "rate_limit_exceeded"
        assert int(limited.value.response.headers["retry-after"]) >= 1


def test_tokens_per_minute(simulated_cluster: RunningCluster) -> None:
    key = add_key(simulated_cluster, "few tokens", "--tokens-per-minute", "60")
    with simulated_cluster.client(key=key.key) as client:
        first = chat(client, max_tokens=40)
        assert first.status_code == 200
        used = first.json()["usage"]["total_tokens"]
        assert used > 40
        refused = chat(client, messages=[{"role": "user", "content": "word " * 40}])
        assert refused.status_code == 429
        assert refused.headers["x-ratelimit-limit-tokens"] == "60"
        # What the first one really used is what is charged.
        assert refused.headers["x-ratelimit-remaining-tokens"] == str(60 - used)
        assert int(refused.headers["retry-after"]) >= 1
        too_large = chat(client, messages=[{"role": "user", "content": "word " * 200}])
        assert too_large.status_code == 429
        assert "retry-after" not in too_large.headers


def test_requests_at_once(simulated_cluster: RunningCluster) -> None:
    key = add_key(simulated_cluster, "one at a time", "--concurrency", "1")
    with simulated_cluster.client(key=key.key) as client:
        body = {"model": "alpha", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 500, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as running:
            # Kept: an iterator that is dropped closes the connection.
            pieces = running.iter_raw()
            next(pieces)
            refused = chat(client)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
        # The client went away in the middle, and its place is free again.
        wait_for(lambda: chat(client).status_code == 200, 3.0)


def test_usage_is_counted_per_key(simulated_cluster: RunningCluster) -> None:
    key = add_key(simulated_cluster, "counted")
    with simulated_cluster.client(key=key.key) as client:
        answers = [chat(client, max_tokens=3), chat(client, max_tokens=5)]
        assert chat(client, temperature=9).status_code == 400
        prompt = sum(answer.json()["usage"]["prompt_tokens"] for answer in answers)
        used = client.get("/v1/usage").json()
    assert (used["key_id"], used["name"]) == (key.id, "counted")
    assert (used["requests"], used["rejected"]) == (2, 1)
    assert (used["prompt_tokens"], used["completion_tokens"]) == (prompt, 8)

    def written() -> bool:
        done = simulated_cluster.pointsman("keys", "usage", key.id, "--json")
        assert done.returncode == 0, done.stderr
        listed = json.loads(done.stdout)
        return bool(listed[0]["completion_tokens"] == 8 and listed[0]["requests"] == 2)

    # It is written down every two seconds.
    wait_for(written, 6.0)
