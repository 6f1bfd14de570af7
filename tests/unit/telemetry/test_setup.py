from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from cluster.config.operations import TelemetryConfig
from cluster.telemetry import names
from deployments.paths import traces_path
from deployments.telemetry.exporter import BoundedSpanProcessor
from deployments.telemetry.otlp import OtlpTarget, Protocol, TelemetryConfigError, otlp_target
from deployments.telemetry.reader import TraceReader
from deployments.telemetry.setup import check_telemetry, setup_telemetry

CANARY = "CANARY7f3a"


def begin(state_dir, config=None, environ=None, process="ingress"):
    return setup_telemetry(process, config or TelemetryConfig(), state_dir, environ=environ or {}, set_global=False)


def stored(state_dir):
    with TraceReader(traces_path(state_dir)) as reader:
        return [span for trace in reader.list_traces() for span in reader.get_trace(trace.trace_id)]


def test_a_finished_span_is_in_the_store_within_a_second(state_dir):
    telemetry = begin(state_dir)
    with telemetry.tracer.start_as_current_span("request", attributes={names.REQUEST_MODEL: "dense"}):
        pass
    started = time.monotonic()
    while not stored(state_dir) and time.monotonic() - started < 5:
        time.sleep(0.01)
    assert time.monotonic() - started < 1
    (span,) = stored(state_dir)
    assert (span.name, span.process) == ("request", "ingress")
    assert span.attributes == {names.REQUEST_MODEL: "dense"}
    assert telemetry.close()
    assert telemetry.counts().exported == 1
    assert telemetry.counts().dropped == 0


def test_two_processes_make_one_trace(state_dir):
    from deployments.telemetry.propagation import context_from, outgoing_headers

    ingress, replica = begin(state_dir), begin(state_dir, process="replica:dense")
    with ingress.tracer.start_as_current_span("request") as span:
        headers = outgoing_headers(span)
        replica.tracer.start_span("replica", context=context_from(headers)).end()
    assert ingress.flush()
    assert replica.flush()
    outer, inner = stored(state_dir)
    assert inner.parent_id == outer.span_id
    assert (outer.process, inner.process) == ("ingress", "replica:dense")
    assert outer.instance != inner.instance
    ingress.close()
    replica.close()


def test_closing_writes_what_is_left_and_can_be_repeated(state_dir):
    telemetry = begin(state_dir)
    telemetry.tracer.start_span("last").end()
    assert telemetry.close()
    assert telemetry.close()
    assert [span.name for span in stored(state_dir)] == ["last"]


def test_off_makes_ids_but_keeps_nothing(state_dir):
    telemetry = begin(
        state_dir, TelemetryConfig(traces="off"), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"}
    )
    span = telemetry.tracer.start_span("request")
    assert span.get_span_context().is_valid
    assert not span.is_recording()
    assert telemetry.exporters == ()
    assert telemetry.close()
    assert not traces_path(state_dir).exists()


def test_the_ratio_holds_for_traces_begun_here(state_dir):
    telemetry = begin(state_dir, TelemetryConfig(sample_ratio=0.25))
    recorded = sum(telemetry.tracer.start_span("s").is_recording() for _ in range(2000))
    assert 350 < recorded < 650
    telemetry.close()


def test_the_standard_sampler_variable_wins(state_dir, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    telemetry = begin(state_dir, environ=os.environ)
    assert not telemetry.tracer.start_span("s").is_recording()
    telemetry.close()


def test_the_sdk_can_be_disabled(state_dir, monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    telemetry = begin(state_dir, environ=os.environ)
    telemetry.tracer.start_span("s").end()
    assert telemetry.exporters == ()
    assert telemetry.close()


def test_resource_variables_win_over_the_config(state_dir, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "theirs")
    telemetry = begin(state_dir)
    span = telemetry.tracer.start_span("s")
    assert isinstance(span, ReadableSpan)
    assert span.resource.attributes[names.SERVICE_NAME] == "theirs"
    assert span.resource.attributes[names.PROCESS_ROLE] == "ingress"
    telemetry.close()


@pytest.mark.parametrize(
    ("environ", "target"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, OtlpTarget("http://c:4317", Protocol.GRPC)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, OtlpTarget("http://c:4318", Protocol.HTTP)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317"}, OtlpTarget("c:4317", Protocol.GRPC)),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://c/v1/traces", "OTEL_EXPORTER_OTLP_ENDPOINT": "x"},
            OtlpTarget("https://c/v1/traces", Protocol.HTTP),
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            OtlpTarget("http://c:4318", Protocol.GRPC),
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            OtlpTarget("http://c:1", Protocol.HTTP),
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_the_variables_name_the_collector(environ, target):
    assert otlp_target(environ) == target


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "grpc or http/protobuf",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "zipkin"}, "use otlp or none"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:port"}, "no valid address"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4318"}, "must begin with http"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_a_remedy(state_dir, environ, words):
    with pytest.raises(TelemetryConfigError, match=words):
        begin(state_dir, environ=environ)


def test_otlp_without_a_collector_is_refused():
    with pytest.raises(TelemetryConfigError, match="set OTEL_EXPORTER_OTLP_ENDPOINT"):
        check_telemetry(TelemetryConfig(traces="otlp"), {})
    check_telemetry(TelemetryConfig(traces="otlp"), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"})


def record_everything(telemetry):
    def fail():
        with telemetry.tracer.start_as_current_span("request", attributes={"gen_ai.prompt": CANARY, "kept": 1}) as span:
            span.add_event("gen_ai.choice", {"gen_ai.completion": CANARY, "index": 0})
            raise ValueError(f"bad {CANARY}")

    with pytest.raises(ValueError, match=CANARY):
        fail()
    assert telemetry.flush()


def test_no_content_is_stored_unless_asked_for(state_dir):
    telemetry = begin(state_dir)
    record_everything(telemetry)
    telemetry.close()
    (span,) = stored(state_dir)
    assert CANARY not in repr(span)
    assert (span.status, span.status_message) == ("error", "ValueError")
    assert span.attributes == {"kept": 1}
    assert [event.name for event in span.events] == ["gen_ai.choice", "exception"]
    assert span.events[1].attributes["exception.type"] == "ValueError"
    raw = sqlite3.connect(traces_path(state_dir))
    assert CANARY not in "\n".join(raw.iterdump())
    raw.close()


def test_a_span_is_bounded_whatever_is_put_into_it(state_dir):
    telemetry = begin(state_dir)
    span = telemetry.tracer.start_span("s")
    for number in range(1000):
        span.set_attribute(f"a{number}", "x" * 10_000)
        span.add_event("e", {f"b{key}": "y" * 10_000 for key in range(100)})
    span.end()
    telemetry.close()
    (kept,) = stored(state_dir)
    assert len(kept.attributes) <= 96
    assert len(kept.events) <= 64
    assert max(len(str(value)) for value in kept.attributes.values()) <= 1024


class Refusing(SpanExporter):
    def __init__(self) -> None:
        self.ended = 0

    def export(self, spans):
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.ended += 1


def test_spans_that_an_exporter_refuses_are_counted_and_nothing_is_raised(state_dir):
    telemetry = begin(state_dir)
    exporter = Refusing()
    processor = BoundedSpanProcessor("test", exporter, max_queue=10, max_batch=5, delay_s=0.01, shutdown_timeout_s=1.0)
    telemetry._provider.add_span_processor(processor)
    for _ in range(7):
        telemetry.tracer.start_span("s").end()
    assert processor.force_flush()
    assert processor.dropped_failed == 7
    telemetry.close()
    assert exporter.ended == 1


def test_an_unwritable_store_drops_spans_and_never_raises(tmp_path):
    (tmp_path / "state").write_text("a file where the directory should be")
    telemetry = begin(tmp_path / "state")
    for _ in range(10):
        telemetry.tracer.start_span("s").end()
    telemetry.close()
    assert telemetry.counts().export_failed == 10


PROBE = """
import sys
from pathlib import Path
from opentelemetry import trace
from cluster.config.operations import TelemetryConfig
from deployments.telemetry.setup import setup_telemetry
first = setup_telemetry("ingress", TelemetryConfig(), Path(sys.argv[1]), environ={})
setup_telemetry("again", TelemetryConfig(), Path(sys.argv[1]), environ={})
trace.get_tracer("vllm").start_span("llm_request").end()
heavy = [name for name in ("grpc", "requests", "vllm", "torch", "ray", "google.protobuf") if name in sys.modules]
sys.exit(" ".join(heavy) or None)
"""


def test_engines_spans_go_through_the_global_provider_and_the_exit_writes_them(state_dir):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(state_dir)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"imported although not needed: {done.stderr}"
    (span,) = stored(state_dir)
    assert (span.name, span.process) == ("llm_request", "ingress")
