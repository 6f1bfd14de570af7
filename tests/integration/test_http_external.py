"""An external model as callers see it: the whole way from the ingress to a second server on this machine, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.clusters import RunningCluster, simulated_config, start_cluster, stop_cluster
from tests.integration.cluster_processes import unused_port, wait_for
from tests.integration.upstream import CANARY, KEY, MODEL, Upstream, running_upstream

pytestmark = pytest.mark.timeout(300)

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream() as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[RunningCluster]:
    config = simulated_config("alpha")
    models = config["models"]
    assert isinstance(models, dict)
    models["alpha"]["roles"] = ["strong", "fast"]
    models["hosted"] = {
        "kind": "external",
        "roles": ["outside"],
        "upstream": {"base_url": upstream.url, "model": MODEL, "api_key_env": "UPSTREAM_TEST_KEY", "timeout_s": 5},
        "replicas": {"cpus": 0.1},
    }
    config["contracts"] = {"outside": {"max_prompt_tokens": 500, "max_completion_tokens": 100, "timeout_s": 20}}
    with pytest.MonkeyPatch.context() as patch:
        # The key is where the operator puts it: in the environment of the command that starts the cluster.
        patch.setenv("UPSTREAM_TEST_KEY", KEY)
        made = start_cluster(config, tmp_path_factory.mktemp("external") / "state", unused_port())
    yield made
    stop_cluster(made.env)


@pytest.fixture
def client(cluster: RunningCluster, upstream: Upstream) -> Iterator[httpx.Client]:
    upstream.requests.clear()
    with cluster.client() as made:
        yield made


def chat(text: str = "ok", model: str = "outside", **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


@pytest.mark.parametrize("model", ["outside", "hosted"])
def test_an_answer_comes_from_the_upstream_under_the_clusters_name(
    client: httpx.Client, upstream: Upstream, model: str
) -> None:
    reply = client.post(CHAT, json=chat(model=model, temperature=0.5, n=2))
    answer = reply.json()
    assert (reply.status_code, answer["model"], reply.headers["x-pointsman-engine"]) == (200, "hosted", "external")
    assert answer["choices"][0]["message"]["content"] == "hello"
    path, headers, body = upstream.requests[-1]
    assert (path, headers["authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    # The contract of its role holds for it as for the cluster's own models.
    assert (body["model"], body["max_tokens"], body["temperature"], body["n"]) == (MODEL, 100, 0.5, 2)


def test_the_openai_client_streams_it(cluster: RunningCluster) -> None:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="anything", max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                model="hosted",
                messages=[{"role": "user", "content": "ok"}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model="hosted", messages=[{"role": "user", "content": "429"}])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two three"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 8
    assert refused.value.response.headers["retry-after"] == "7"


def test_what_goes_wrong_there_is_told_in_openais_form_and_leaks_nothing(
    client: httpx.Client, cluster: RunningCluster
) -> None:
    for behaviour, status in (("500", 502), ("401", 502), ("400", 400), ("no-json", 502), ("stuck", 504)):
        for stream in (False, True):
            if stream and behaviour in ("no-json", "stuck"):
                continue
            reply = client.post(CHAT, json=chat(behaviour, stream=stream))
            assert reply.status_code == status, (behaviour, stream)
            assert reply.json()["error"]["code"]
            assert KEY not in reply.text
            assert CANARY not in reply.text
    cut = client.post(CHAT, json=chat("cut", stream=True))
    assert cut.status_code == 200
    assert '"upstream_cut"' in cut.text
    assert "[DONE]" not in cut.text
    for path in cluster.state_dir.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def test_a_caller_who_leaves_ends_the_request_there(client: httpx.Client, upstream: Upstream) -> None:
    upstream.closed_early.clear()
    with client.stream("POST", CHAT, json=chat("endless", stream=True)) as running:
        pieces = running.iter_raw()
        next(pieces)
    wait_for(lambda: upstream.closed_early, 3.0)


def test_it_is_in_the_list_and_bounded_like_the_rest(client: httpx.Client, upstream: Upstream) -> None:
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert (models["hosted"]["kind"], models["hosted"]["engine"], models["hosted"]["ready"]) == (
        "external",
        "external",
        True,
    )
    for body in (chat("word " * 2000), chat(max_tokens=101), chat(api_base="http://127.0.0.1:9"), chat(n=99)):
        assert client.post(CHAT, json=body).status_code == 400
    refused = client.post("/v1/embeddings", json={"model": "hosted", "input": "Hello"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
    assert upstream.requests == []
    assert json.loads(client.get("/readyz").text)["models"]["hosted"]["ready"]
