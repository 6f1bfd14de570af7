"""One connected trace from the caller to the engine, and nothing in it, or anywhere else, of what was said."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.telemetry import names
from deployments.paths import logs_path, traces_path
from deployments.telemetry.reader import TraceReader
from deployments.telemetry.spans import StoredSpan
from tests.clusters import RunningCluster
from tests.integration.cluster_processes import all_of, title

pytestmark = pytest.mark.timeout(500)

STORED_S = 6.0
CHAT = "/v1/chat/completions"


def traceparent() -> tuple[str, str, dict[str, str]]:
    """A caller's trace and span, and the header that says so."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, {"traceparent": f"00-{trace_id}-{span_id}-01"}


def label(span: StoredSpan) -> str:
    """A span's name; of the ingress's own the operation alone, without the model that may follow."""
    return span.name.partition(" ")[0] if span.process == "ingress" else span.name


def stored(cluster: RunningCluster, trace_id: str, *wanted: str) -> Mapping[str, StoredSpan]:
    """The spans of a trace by label, once all that are wanted are there."""
    deadline = time.monotonic() + STORED_S
    with TraceReader(traces_path(cluster.state_dir)) as reader:
        while True:
            spans = {label(span): span for span in reader.get_trace(trace_id)}
            if set(wanted) <= set(spans):
                return spans
            assert time.monotonic() < deadline, f"{sorted(spans)} of {sorted(wanted)}"
            time.sleep(0.1)


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, **more}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["dense", "sparse", "mini"])
def test_one_tree_from_the_caller_to_the_engine(running_cluster: RunningCluster, model: str, stream: bool) -> None:
    trace_id, caller, headers = traceparent()
    with running_cluster.client() as client:
        answer = client.post(CHAT, json=chat(model, stream=stream), headers=headers | {"x-request-id": "traced-1"})
    assert answer.status_code == 200
    assert answer.headers["x-pointsman-trace-id"] == trace_id
    wanted = (names.OPERATION_CHAT, names.SPAN_ROUTE, names.SPAN_REPLICA, names.SPAN_ENGINE)
    spans = stored(running_cluster, trace_id, *wanted)
    ingress, route, replica, engine = (spans[name] for name in wanted)
    assert (ingress.parent_id, ingress.kind, ingress.process) == (caller, "server", "ingress")
    assert route.parent_id == ingress.span_id
    assert replica.parent_id == ingress.span_id
    assert replica.process == f"replica:{model}"
    assert engine.parent_id == replica.span_id
    assert ingress.start_ns <= route.start_ns <= replica.start_ns <= engine.start_ns
    assert engine.end_ns <= replica.end_ns <= ingress.end_ns + 50_000_000
    assert ingress.attributes[names.REQUEST_ID] == "traced-1"
    assert ingress.attributes[names.HTTP_STATUS] == 200
    assert ingress.attributes[names.USAGE_OUTPUT_TOKENS] == 5
    if stream:
        assert 0 < float(str(ingress.attributes[names.TTFT])) < 60
    assert route.attributes[names.ROUTE_MODEL] == model
    assert route.attributes[names.ROUTE_REASON] == "model named by the caller"


def test_embeddings_and_completions_are_traced_too(running_cluster: RunningCluster) -> None:
    for path, body, operation, engine in (
        ("/v1/embeddings", {"model": "encoder", "input": "Hello"}, names.OPERATION_EMBEDDING, ()),
        ("/v1/completions", {"model": "dense", "prompt": "Hello"}, names.OPERATION_COMPLETION, (names.SPAN_ENGINE,)),
    ):
        trace_id, caller, headers = traceparent()
        with running_cluster.client() as client:
            assert client.post(path, json=body, headers=headers).status_code == 200
        spans = stored(running_cluster, trace_id, operation, names.SPAN_REPLICA, *engine)
        assert spans[operation].parent_id == caller
        assert spans[names.SPAN_REPLICA].parent_id == spans[operation].span_id


def test_the_command_draws_the_tree(running_cluster: RunningCluster) -> None:
    trace_id, _, headers = traceparent()
    with running_cluster.client() as client:
        client.post(CHAT, json=chat("fast"), headers=headers)
    drawn = running_cluster.pointsman("trace", trace_id)
    assert drawn.returncode == 0, drawn.stderr
    for text in (trace_id, "chat", "route", "replica", "llm_request", "mini"):
        assert text in drawn.stdout
    listed = running_cluster.pointsman("trace")
    assert trace_id[:8] in listed.stdout
    unknown = running_cluster.pointsman("trace", "0" * 32)
    assert unknown.returncode != 0


def test_without_a_trace_the_ingress_begins_one(running_cluster: RunningCluster) -> None:
    with running_cluster.client() as client:
        ids = {client.post(CHAT, json=chat("mini")).headers["x-pointsman-trace-id"] for _ in range(2)}
        odd = client.post(CHAT, json=chat("mini"), headers={"traceparent": "00-zz-xx-01", "baggage": "a=" + "b" * 5000})
    assert len(ids) == 2
    assert len(odd.headers["x-pointsman-trace-id"]) == 32
    spans = stored(running_cluster, ids.pop(), names.OPERATION_CHAT, names.SPAN_ENGINE)
    assert spans[names.OPERATION_CHAT].parent_id is None


def test_a_refused_request_is_traced(running_cluster: RunningCluster) -> None:
    trace_id, _, headers = traceparent()
    with running_cluster.client() as client:
        assert client.post(CHAT, json=chat("dense", temperature=9), headers=headers).status_code == 400
    span = stored(running_cluster, trace_id, names.OPERATION_CHAT)[names.OPERATION_CHAT]
    assert span.attributes[names.HTTP_STATUS] == 400


def canary_requests(word: str) -> list[tuple[str, dict[str, Any], int]]:
    """Requests with the word wherever a caller can write, answered or refused, with the status of the answer."""
    tool = {"type": "function", "function": {"name": "f", "description": word, "parameters": {"type": "object"}}}
    schema = {"type": "object", "properties": {word: {"type": "string", "maxLength": 3}}, "required": [word]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    said = [{"role": "system", "content": word}, {"role": "user", "content": f"Say {word}. {word}"}]
    return [
        (CHAT, chat("dense", messages=said, stop=[word], user=word, metadata={word: word}), 200),
        (CHAT, chat("mini", messages=said, stream=True), 200),
        (CHAT, chat("sparse", tools=[tool], tool_choice="none"), 200),
        (CHAT, chat("dense", response_format=form, max_tokens=30), 200),
        ("/v1/completions", {"model": "dense", "prompt": word, "echo": True, "max_tokens": 3}, 200),
        ("/v1/embeddings", {"model": "encoder", "input": [word]}, 200),
        (CHAT, chat(word), 404),
        (CHAT, chat("dense", messages=[{"role": word, "content": word}]), 400),
        (CHAT, chat("dense", messages=[{"role": "user", "content": f"{word} " * 1500}]), 400),
        (CHAT, chat("dense", temperature=word), 400),
        (CHAT, chat("dense", **{word: word}), 400),
        (CHAT, chat("dense", response_format={**form, "json_schema": {"name": "x", "schema": {"type": word}}}), 400),
        ("/v1/embeddings", {"model": "dense", "input": word}, 400),
        ("/v1/embeddings", {"model": "encoder", "input": f"{word} " * 2000}, 400),
        (f"/v1/{word}", {word: word}, 404),
    ]


def ray_logs(cluster: RunningCluster) -> list[Path]:
    """What Ray itself writes: the output of every actor among it."""
    (raylet,) = (process for process in all_of(cluster) if "raylet/raylet " in title(process) + " ")
    (session,) = (word.partition("=")[2] for word in raylet.cmdline() if word.startswith("--session_dir="))
    return [path for path in Path(session).rglob("*") if path.is_file() and path.suffix in (".log", ".out", ".err")]


def test_what_was_said_is_nowhere(running_cluster: RunningCluster) -> None:
    word = f"canary{secrets.token_hex(6)}"
    ids = []
    with running_cluster.client() as client:
        for path, body, status in canary_requests(word):
            answer = client.post(path, json=body)
            assert answer.status_code == status, (body, answer.text)
            if status != 200:
                assert word not in answer.text
            assert word not in str(answer.headers)
            ids.append(answer.headers.get("x-pointsman-trace-id"))
        metrics = client.get("/metrics").text
        for information in ("/v1/models", "/readyz"):
            assert word not in client.get(information).text
    assert word not in metrics
    for trace_id in ids[:5]:
        stored(running_cluster, str(trace_id), names.SPAN_ENGINE)
    # Spans and log lines are written in batches.
    time.sleep(2.0)
    files = [path for path in running_cluster.state_dir.rglob("*") if path.is_file()]
    assert traces_path(running_cluster.state_dir) in files
    assert any(path.is_relative_to(logs_path(running_cluster.state_dir)) for path in files)
    logs = ray_logs(running_cluster)
    assert logs
    for path in (*files, *logs):
        assert word.encode() not in path.read_bytes(), path
    for command in (("trace",), ("trace", str(ids[0]), "--all"), ("status",)):
        done = running_cluster.pointsman(*command)
        assert word not in done.stdout + done.stderr
