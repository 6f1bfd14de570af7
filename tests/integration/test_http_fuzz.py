"""Ten thousand bodies over HTTP against real engines: each is answered or refused properly, and the engines live on."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from typing import Any

import httpx
import pytest

from tests.clusters import RunningCluster
from tests.integration.cluster_processes import engine_of, ingress_of
from tests.property.odd_bodies import CANARY, FIELDS, VALID, odd_value

CASES = 10_000
STREAMS = 16
PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions", "embedding": "/v1/embeddings"}
MODELS = {"chat": ("dense", "sparse", "mini"), "completion": ("dense", "sparse", "mini"), "embedding": ("encoder",)}
# What reaches the engine is where an engine can break, so these are tried more often, with values close to good ones.
NEAR: dict[str, tuple[Any, ...]] = {
    "logit_bias": ({"0": 100}, {"49151": -100}, {"49152": 1}, {"16777215": 1}, {"1": 0.0}, {}),
    "temperature": (0, 1e-9, 2, 2.0001), "top_p": (1e-9, 1, 0.5), "top_k": (-1, 0, 1, 49_152, 16_777_215),
    "min_p": (0, 1), "seed": (-(2**63), 2**63 - 1, 0), "n": (1, 8, 9), "max_tokens": (1, 2, 512, 513, 2048),
    "stop": ("\x00", ["a", "b", "c", "d"], "\ud7ff", "é" * 128), "min_tokens": (0, 1, 2),
    "repetition_penalty": (1e-9, 2), "frequency_penalty": (-2, 2), "presence_penalty": (-2, 2), "ignore_eos": (True, False),
    "logprobs": (True, 0, 1, 20), "top_logprobs": (0, 20), "echo": (True, False), "best_of": (1, 2), "dimensions": (384, 1),
    "prompt": ("", "x", "x" * 5000, [0], [49_151], [49_152], [16_777_215], [[1], [2]], ["a", "b"], [[]], "\x00", "😀" * 40),
    "input": ("", "x" * 5000, ["a"] * 3, [1, 2], "\x00"),
    "stream": (True, False), "stream_options": ({"include_usage": True},),
    "tool_choice": ("auto", "required", "none", {"type": "function", "function": {"name": "f"}}),
    "tools": (
        [{"type": "function", "function": {"name": "f"}}],
        [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}],
    ),
}  # fmt: skip
SCHEMAS: tuple[Any, ...] = (
    {}, {"type": "object"}, {"type": "nonsense"}, {"type": []}, {"type": ["string", "null"]}, {"enum": []}, {"enum": [1, "a", None]},
    {"const": {"a": 1}}, {"anyOf": []}, {"allOf": [{"type": "string"}, {"type": "integer"}]}, {"not": {}}, {"$ref": "#"},
    {"$ref": "#/nowhere"}, {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, {"type": "string", "pattern": "("},
    {"type": "string", "pattern": "(a*)*b"}, {"type": "string", "pattern": "\\p{L}(?=x)"}, {"type": "string", "minLength": 9, "maxLength": 1},
    {"type": "integer", "minimum": 5, "maximum": 1}, {"type": "number", "multipleOf": 0}, {"type": "array", "minItems": 4096},
    {"type": "string", "format": "no-such"}, {"type": "object", "required": ["a"], "additionalProperties": False},
    {"type": "object", "properties": {"\x00": {"type": "string"}}}, {"properties": 5}, {"items": "x"}, {"patternProperties": {"(": {}}},
)  # fmt: skip


def body_of(endpoint: str, rng: random.Random) -> dict[str, Any]:
    """A body with one to three fields that are odd, or nearly good."""
    body: dict[str, Any] = {**VALID[endpoint], "model": rng.choice(MODELS[endpoint])}
    if endpoint != "embedding":
        body["max_tokens"] = 2
    for _ in range(rng.randrange(1, 4)):
        field = rng.choice(FIELDS[endpoint])
        body[field] = rng.choice(NEAR[field]) if field in NEAR and rng.random() < 0.7 else odd_value(rng)
    if endpoint == "chat" and rng.random() < 0.1:
        schema = {"name": "x", "schema": rng.choice(SCHEMAS)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    # Long answers show nothing here: a field that asks for one is cut to a short one, unless no engine has room for it.
    if isinstance(body.get("max_tokens"), int) and 2 < body["max_tokens"] < 2048:
        body["max_tokens"] = 2
    return body


def fault(body: dict[str, Any], reply: httpx.Response) -> str | None:
    """What is wrong with a reply that is neither a whole answer nor a proper refusal."""
    if reply.status_code == 200:
        whole = body.get("stream") is not True or reply.text.endswith("data: [DONE]\n\n")
        return None if whole else "a stream that broke off"
    if not 400 <= reply.status_code < 500:
        return f"status {reply.status_code}"
    if not reply.json()["error"]["message"]:
        return "no message"
    return "the caller's text" if CANARY in reply.text else None


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ten_thousand_odd_bodies_leave_the_engines_alive(running_cluster: RunningCluster) -> None:
    rng = random.Random("over HTTP")
    endpoints = list(PATHS)
    bodies = [(name, body_of(name, rng)) for name in rng.choices(endpoints, (6, 3, 1), k=CASES)]
    engines = {model: engine_of(running_cluster, model).pid for model in ("dense", "sparse", "mini")}
    ingress = ingress_of(running_cluster).pid
    statuses: Counter[int] = Counter()
    slowest = 0.0
    faults: list[str] = []

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal slowest
        while bodies:
            endpoint, body = bodies.pop()
            raw = json.dumps(body).encode("utf-8", "surrogatepass")
            began = time.monotonic()
            reply = await client.post(PATHS[endpoint], content=raw)
            slowest = max(slowest, time.monotonic() - began)
            if (wrong := fault(body, reply)) is not None:
                faults.append(f"{wrong}: {raw[:500]!r} -> {reply.text[-300:]}")
            statuses[reply.status_code] += 1

    async def all_of_them() -> None:
        async with (
            httpx.AsyncClient(base_url=running_cluster.url, timeout=60.0, trust_env=False) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(STREAMS):
                group.create_task(work(client))

    asyncio.run(all_of_them())
    print(f"{dict(statuses)}, slowest {slowest:.1f} s")  # noqa: T201 - shown when the test fails, or with -s
    assert not faults, f"{len(faults)} in {dict(statuses)}, among them:\n" + "\n".join(faults[:20])
    assert sum(statuses.values()) == CASES
    assert min(statuses[200], statuses[400]) > CASES / 10
    assert engines == {model: engine_of(running_cluster, model).pid for model in engines}
    assert ingress == ingress_of(running_cluster).pid
    with running_cluster.client() as client:
        assert client.get("/readyz").status_code == 200
        for model in engines:
            question = [{"role": "user", "content": "What is the capital of France?"}]
            answer = client.post(PATHS["chat"], json={"model": model, "messages": question, "max_tokens": 8})
            assert answer.status_code == 200
