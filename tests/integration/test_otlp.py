"""Real OTLP, received over gRPC and over HTTP: spans of two processes arrive as one connected trace."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from cluster.config.operations import TelemetryConfig
from cluster.telemetry import metric_table, names
from deployments.paths import traces_path
from deployments.telemetry.content import CAPTURE
from deployments.telemetry.propagation import incoming_context, outgoing_headers
from deployments.telemetry.reader import TraceReader
from deployments.telemetry.series import TRACE_ID
from deployments.telemetry.setup import setup_telemetry
from tests.clusters import cluster_environment, run_pointsman, simulated_config

CANARY = "CANARY7f3a"
LUGGAGE = "LUGGAGE51c0"
QUEUE, BATCH = 4096, 256
"""Spans that wait for an exporter at most, and spans that it gets at a time."""
CALLER_TRACE, CALLER_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

# The replica: its own span, and one made through the global provider as vLLM makes its own.
REPLICA = """
import json, sys
from pathlib import Path
from opentelemetry import trace
from cluster.config.operations import TelemetryConfig
from cluster.telemetry import names
from deployments.telemetry.propagation import context_from, outgoing_headers
from deployments.telemetry.setup import setup_telemetry

telemetry = setup_telemetry("replica:dense", TelemetryConfig(), Path(sys.argv[1]))
context = context_from(json.loads(sys.argv[2]))
with telemetry.tracer.start_as_current_span(names.SPAN_REPLICA, context=context) as span:
    engine = trace.get_tracer("vllm.llm_engine")
    engine.start_span(names.SPAN_ENGINE, context=context_from(outgoing_headers(span))).end()
sys.exit(0 if telemetry.close(5.0) else 1)
"""


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what arrives."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        self.arrived = threading.Condition()

    def Export(self, request, context):  # noqa: N802 - gRPC's name
        with self.arrived:
            for resource_spans in request.resource_spans:
                attributes = {each.key: each.value.string_value for each in resource_spans.resource.attributes}
                for scope_spans in resource_spans.scope_spans:
                    self.spans += [(attributes[names.PROCESS_ROLE], span) for span in scope_spans.spans]
            self.arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def of_trace(self, trace_id: str, count: int, timeout_s: float) -> list[tuple[str, Span]]:
        """The spans of a trace with their processes' roles, once there are `count` or the time is over."""
        deadline = time.monotonic() + timeout_s
        with self.arrived:
            while True:
                found = [(role, span) for role, span in self.spans if span.trace_id.hex() == trace_id]
                left = deadline - time.monotonic()
                if len(found) >= count or left <= 0:
                    return found
                self.arrived.wait(left)


@contextmanager
def grpc_collector(port: int) -> Iterator[Collector]:
    """Listens for OTLP over gRPC."""
    servicer = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    servicer.port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield servicer
    finally:
        server.stop(None).wait()


@contextmanager
def http_collector(port: int) -> Iterator[Collector]:
    """Listens for OTLP over HTTP; refuses the first request, as a collector does that is short of memory."""
    servicer = Collector()
    refused: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if not refused:
                refused.append(self.path)
                self.send_response(503)
                self.send_header("retry-after", "1")
            else:
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                servicer.Export(trace_service_pb2.ExportTraceServiceRequest.FromString(body), None)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield servicer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        assert refused == ["/v1/traces"]


@pytest.fixture
def collector():
    with grpc_collector(0) as made:
        yield made


def run_request(state_dir: Path) -> None:
    """One request through an ingress here and a replica in a process of its own, as the environment says."""
    ingress = setup_telemetry("ingress", TelemetryConfig(), state_dir, set_global=False)
    caller = [(b"traceparent", f"00-{CALLER_TRACE}-{CALLER_SPAN}-01".encode())]
    incoming = incoming_context(caller, trusted=True)
    with ingress.tracer.start_as_current_span(names.OPERATION_CHAT, context=incoming.context) as span:
        span.set_attribute("gen_ai.prompt", CANARY)
        ingress.tracer.start_span(names.SPAN_ROUTE).end()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", REPLICA, str(state_dir), json.dumps(outgoing_headers(span))]
        subprocess.run(command, env=environment, check=True, timeout=60)
    assert ingress.close(5.0)
    assert ingress.counts().dropped == 0


def assert_connected(spans: list[Span]) -> None:
    by_name = {span.name: span for span in spans}
    assert set(by_name) == {names.OPERATION_CHAT, names.SPAN_ROUTE, names.SPAN_REPLICA, names.SPAN_ENGINE}
    assert {span.trace_id.hex() for span in spans} == {CALLER_TRACE}
    request = by_name[names.OPERATION_CHAT]
    assert request.parent_span_id.hex() == CALLER_SPAN
    assert by_name[names.SPAN_ROUTE].parent_span_id == request.span_id
    assert by_name[names.SPAN_REPLICA].parent_span_id == request.span_id
    assert by_name[names.SPAN_ENGINE].parent_span_id == by_name[names.SPAN_REPLICA].span_id
    assert CANARY not in str(spans)


def test_one_connected_trace_arrives_over_grpc_and_in_the_store(collector, state_dir, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
    run_request(state_dir)
    assert_connected([span for _, span in collector.spans])
    assert {role for role, _ in collector.spans} == {"ingress", "replica:dense"}
    with TraceReader(traces_path(state_dir)) as reader:
        assert len(reader.get_trace(CALLER_TRACE[:8])) == 4


async def test_one_connected_trace_arrives_over_http(free_port, state_dir, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{free_port}/v1/traces")
    received: list[Span] = []
    async with OtelTapHttpProtobufReceiver(OtelTapHttpProtobufReceiverSettings(http_port=free_port)) as receiver:

        async def collect() -> None:
            async for span in receiver.stream_traces():
                received.append(span)  # noqa: PERF401 - what has arrived is looked at while the stream goes on

        collecting = asyncio.create_task(collect())
        await asyncio.to_thread(run_request, state_dir)
        deadline = time.monotonic() + 10
        while len(received) < 4 and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        collecting.cancel()
    assert_connected(received)


def test_otlp_alone_leaves_no_store(collector, state_dir, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
    telemetry = setup_telemetry("ingress", TelemetryConfig(traces="otlp"), state_dir, set_global=False)
    telemetry.tracer.start_span("request").end()
    assert telemetry.close(5.0)
    assert [span.name for _, span in collector.spans] == ["request"]
    assert not traces_path(state_dir).exists()


def exemplars(url: str) -> dict[str, set[str]]:
    """Traces that each metric points to, by what Prometheus is told that asks for OpenMetrics."""
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    answer = httpx.get(f"{url}/metrics", headers={"accept": accept}, trust_env=False)
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            if sample.exemplar is not None:
                found.setdefault(family.name, set()).add(sample.exemplar.labels[TRACE_ID])
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("asked_for", [False, True], ids=["no prompt", "prompt asked for"])
def test_a_whole_cluster_sends_one_connected_trace(collector, state_dir, free_port, asked_for):
    config = state_dir / "config.yaml"
    config.write_text(yaml.safe_dump(simulated_config("alpha") | {"ingress": {"port": free_port}}))
    env = cluster_environment(state_dir, free_port)
    env["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{collector.port}"
    if asked_for:
        env[CAPTURE] = "span_only"
    started = run_pointsman("up", "--config", str(config), env=env, timeout_s=200)
    try:
        assert started.returncode == 0, started.stderr
        body = {"model": "alpha", "messages": [{"role": "user", "content": CANARY}], "max_tokens": 4, "stream": True}
        answer = httpx.post(
            f"http://127.0.0.1:{free_port}/v1/chat/completions",
            json=body,
            headers={"traceparent": f"00-{CALLER_TRACE}-{CALLER_SPAN}-01", "baggage": f"user={LUGGAGE}"},
            timeout=60,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        shown = exemplars(f"http://127.0.0.1:{free_port}")
        received = collector.of_trace(CALLER_TRACE, 3, timeout_s=15)
    finally:
        assert run_pointsman("down", env=env).returncode == 0
    by_role = {(role, span.name.partition(" ")[0]): span for role, span in received}
    request = by_role["ingress", names.OPERATION_CHAT]
    assert request.parent_span_id.hex() == CALLER_SPAN
    assert by_role["ingress", names.SPAN_ROUTE].parent_span_id == request.span_id
    assert by_role["replica:alpha", names.SPAN_REPLICA].parent_span_id == request.span_id
    assert (CANARY in str(request)) is asked_for
    others = [span for _, span in received if span is not request]
    assert CANARY not in str(others)
    answered = {each.key: each.value.string_value for each in request.attributes}.get(names.OUTPUT_MESSAGES)
    assert (answered is not None) is asked_for
    assert LUGGAGE not in str(received)
    latencies = {metric_table.REQUEST_SECONDS, metric_table.TTFT_SECONDS, metric_table.ITL_SECONDS}
    assert shown == {metric.name: {CALLER_TRACE} for metric in latencies}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_out_of_reach_costs_spans_and_nothing_else(free_port, state_dir, monkeypatch, protocol):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    telemetry = setup_telemetry("ingress", TelemetryConfig(), state_dir, set_global=False)
    started = time.monotonic()
    for _ in range(100):
        telemetry.tracer.start_span("request").end()
    assert time.monotonic() - started < 0.5
    telemetry.close(1.5)
    assert time.monotonic() - started < 4
    with TraceReader(traces_path(state_dir)) as reader:
        assert len(reader.list_traces(limit=200)) == 100


@pytest.mark.parametrize(("protocol", "listen"), [("grpc", grpc_collector), ("http/protobuf", http_collector)])
def test_what_a_collector_misses_for_a_moment_it_gets_when_it_is_back(
    free_port, state_dir, monkeypatch, protocol, listen: Callable[[int], Any]
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    telemetry = setup_telemetry("ingress", TelemetryConfig(traces="otlp"), state_dir, set_global=False)
    for number in range(600):
        telemetry.tracer.start_span(f"request {number}").end()
    # The first attempt is made a second after the first span, and finds nobody.
    time.sleep(2.0)
    with listen(free_port) as collector:
        assert telemetry.flush(30.0)
    assert {span.name for _, span in collector.spans} == {f"request {number}" for number in range(600)}
    assert telemetry.counts().exported == 600
    assert telemetry.counts().dropped == 0
    telemetry.close(1.0)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_hangs_delays_nobody_and_what_waits_for_it_is_bounded(state_dir, monkeypatch, protocol):
    """It takes connections and never answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        telemetry = setup_telemetry("ingress", TelemetryConfig(traces="otlp"), state_dir, set_global=False)
        slowest = 0.0
        for _ in range(20_000):
            began = time.perf_counter()
            telemetry.tracer.start_span("request").end()
            slowest = max(slowest, time.perf_counter() - began)
        # The interpreter's other threads may hold one up for a moment; an export takes 10 s here.
        assert slowest < 0.5
        # One batch is under way at most, and the queue is full.
        assert telemetry.counts().queue_full >= 20_000 - QUEUE - 2 * BATCH
        began = time.monotonic()
        assert not telemetry.close(1.0)
        assert time.monotonic() - began < 4
        assert telemetry.counts().queue_full >= 20_000 - 2 * BATCH
