"""The collector's config: its structure, its names, and what becomes of traces that the cluster makes."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry import trace as otel_trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cluster.config.cluster import ClusterConfig
from cluster.experts.pool_use import PoolPart, PoolUse
from cluster.records.precision_change import PrecisionChange
from cluster.telemetry import names
from deployments.engines.protocol import Endpoint, EngineReply, EngineRequest, KvUse
from deployments.replica.tracing import ReplicaSpan, ReplicaTracer
from deployments.telemetry.setup import Telemetry
from tests.unit.ingress import judged
from tests.unit.ingress.bare_ingress import BareIngress, bare_ingress, die
from tests.unit.telemetry.tail_sampling import events_of, kept_by, keys_of

CONFIG = yaml.safe_load((Path(__file__).parents[3] / "infra" / "otel" / "collector.yaml").read_text())
POLICIES = CONFIG["processors"]["tail_sampling"]["policies"]
SHARE = "a-share-of-the-others"
# What each component may be told here; what a collector does not know it refuses to start with.
KNOWN: dict[str, Any] = {
    "extensions": {"health_check": {"endpoint"}},
    "receivers": {"otlp": {"protocols"}},
    "processors": {
        "memory_limiter": {"check_interval", "limit_mib", "spike_limit_mib"},
        "tail_sampling": {"decision_wait", "num_traces", "expected_new_traces_per_sec", "policies"},
        "batch": {"timeout", "send_batch_size", "send_batch_max_size"},
    },
    "exporters": {"otlp": {"endpoint", "tls", "sending_queue", "retry_on_failure"}},
}


def test_it_has_the_components_that_it_uses_and_no_others():
    assert set(CONFIG) == {*KNOWN, "service"}
    for kind, components in KNOWN.items():
        assert {name: set(settings) <= components[name] for name, settings in CONFIG[kind].items()} == dict.fromkeys(
            components, True
        )
    service = CONFIG["service"]
    assert set(service) == {"extensions", "pipelines", "telemetry"}
    assert service["extensions"] == list(CONFIG["extensions"])
    (pipeline,) = service["pipelines"].values()
    assert pipeline["receivers"] == list(CONFIG["receivers"])
    assert pipeline["exporters"] == list(CONFIG["exporters"])
    # What refuses comes before what holds, and what gathers after what chooses.
    assert pipeline["processors"] == ["memory_limiter", "tail_sampling", "batch"]


def test_nothing_is_without_a_bound():
    limiter, batch = CONFIG["processors"]["memory_limiter"], CONFIG["processors"]["batch"]
    assert 0 < limiter["spike_limit_mib"] < limiter["limit_mib"]
    assert CONFIG["processors"]["tail_sampling"]["num_traces"] > 0
    assert batch["send_batch_size"] <= batch["send_batch_max_size"]
    exporter = CONFIG["exporters"]["otlp"]
    assert exporter["sending_queue"]["queue_size"] > 0
    assert exporter["retry_on_failure"]["max_elapsed_time"] != "0s"
    protocols = CONFIG["receivers"]["otlp"]["protocols"]
    assert protocols["grpc"]["max_recv_msg_size_mib"] * 2**20 == protocols["http"]["max_request_body_size"]


def test_it_listens_at_loopback_unless_told_otherwise_and_sends_over_tls():
    protocols = CONFIG["receivers"]["otlp"]["protocols"]
    host = "${env:POINTSMAN_OTLP_HOST:-127.0.0.1}"
    assert (protocols["grpc"]["endpoint"], protocols["http"]["endpoint"]) == (f"{host}:4317", f"{host}:4318")
    assert CONFIG["extensions"]["health_check"]["endpoint"].startswith(f"{host}:")
    assert CONFIG["exporters"]["otlp"]["tls"] == {"insecure": False}
    variables = set(re.findall(r"\$\{env:(\w+)", str(CONFIG)))
    assert variables == {"POINTSMAN_OTLP_HOST", "POINTSMAN_TRACES_BACKEND"}


def test_every_name_in_it_is_one_of_ours():
    ours = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    events = {value for name, value in vars(names).items() if name.startswith("EVENT_")}
    assert set(keys_of(POLICIES)) <= ours
    assert set(events_of(POLICIES)) <= events
    assert len({policy["name"] for policy in POLICIES}) == len(POLICIES)


class Recorded:
    """Spans of an ingress and of a replica in this process, and what the collector does with them."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.telemetry = Telemetry(self.provider, (), captures_content=False)

    def traces(self) -> list[list[ReadableSpan]]:
        found: dict[int, list[ReadableSpan]] = {}
        for span in self._exporter.get_finished_spans():
            context = span.get_span_context()
            assert context is not None
            found.setdefault(context.trace_id, []).append(span)
        return list(found.values())

    def kept(self) -> set[str]:
        """Names of the policies that keep the only trace, but for the one that keeps any."""
        (trace,) = self.traces()
        return set(kept_by(POLICIES, trace)) - {SHARE}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    made = Recorded()
    monkeypatch.setattr(otel_trace, "get_tracer", made.provider.get_tracer)
    yield made
    made.provider.shutdown()


@asynccontextmanager
async def ingress(recorded: Recorded, state_dir: Path, config: ClusterConfig) -> AsyncIterator[BareIngress]:
    async with bare_ingress(config, state_dir) as made:
        services = dataclasses.replace(made.services, telemetry=recorded.telemetry)
        yield BareIngress(services, made.clients, made.health)


async def test_of_ordinary_requests_a_share_is_kept(recorded, state_dir):
    async with ingress(recorded, state_dir, judged.config(enabled=False)) as made:
        for _ in range(400):
            assert (await made.post(judged.CHAT, judged.chat())).status == 200
    traces = recorded.traces()
    assert len(traces) == 400
    kept = [kept_by(POLICIES, trace) for trace in traces]
    assert all(set(names_) <= {SHARE} for names_ in kept)
    # Five in a hundred; the chance of fewer than 5 or more than 45 of 400 is below one in ten thousand.
    assert 5 <= sum(map(bool, kept)) <= 45


async def test_a_failed_request_is_kept(recorded, state_dir):
    async with ingress(recorded, state_dir, judged.config(enabled=False)) as made:
        for client in made.clients.values():
            client.up = False
        assert (await made.post(judged.CHAT, judged.chat())).status == 503
    assert recorded.kept() == {"errors"}


async def test_a_request_that_its_caller_got_wrong_is_one_of_the_others(recorded, state_dir):
    async with ingress(recorded, state_dir, judged.config(enabled=False)) as made:
        assert (await made.post(judged.CHAT, judged.chat(temperature=9))).status == 400
    assert recorded.kept() == set()


async def test_an_escalation_is_kept(recorded, state_dir):
    async with ingress(recorded, state_dir, judged.config()) as made:
        made.clients["mini"].behaviour = judged.says("doubtful", 0.1)
        made.clients["dense"].behaviour = judged.says("sure", 0.9)
        assert (await made.post(judged.CHAT, judged.chat(temperature=1))).status == 200
    assert recorded.kept() >= {"escalated-attempts", "escalated-decisions", "retries"}


async def test_a_model_that_takes_over_is_kept(recorded, state_dir):
    async with ingress(recorded, state_dir, judged.config(enabled=False)) as made:
        made.clients["dense"].behaviour = die
        assert (await made.post(judged.CHAT, judged.chat(model="strong"))).status == 200
    assert recorded.kept() >= {"escalated-decisions"}


CHANGE = PrecisionChange(
    id="c1", at=1.0, model="dense", replica="d1", cause="kv_usage", reason="92% of KV used", level_before=0, level=1,
    level_name="kv", kv_before="bfloat16", kv_after="fp8",
)  # fmt: skip
CALLED = EngineRequest("r1", Endpoint.CHAT, {}, {})


def on_replica(recorded: Recorded, end: Callable[[ReplicaSpan], None]) -> set[str]:
    """Policies that keep a request in a replica to which that happens."""
    with ReplicaTracer("dense", "simulated").request(CALLED, "d1") as span:
        end(span)
    return recorded.kept()


def test_steps_on_the_precision_ladder_are_kept(recorded):
    ReplicaTracer("dense", "simulated").changed(CHANGE)
    assert recorded.kept() == {"precision-steps", "below-normal-precision"}


def test_steps_back_to_normal_are_kept_too(recorded):
    ReplicaTracer("dense", "simulated").changed(dataclasses.replace(CHANGE, level_before=1, level=0, cause="calm"))
    assert recorded.kept() == {"precision-steps"}


def test_a_request_that_lived_through_a_switch_is_kept(recorded):
    assert on_replica(recorded, lambda span: span.lived_through(CHANGE)) == {"precision-switches-lived-through"}


def test_a_request_whose_kv_a_switch_took_is_kept(recorded):
    reply = EngineReply(200, kv=KvUse(precision="fp8", preemptions=2, switches=1))
    assert on_replica(recorded, lambda span: span.finished(reply)) == {"precision-switches-that-took-kv"}


@pytest.mark.parametrize(("rows", "kept"), [(0, set()), (3, {"degraded-experts"})])
def test_a_request_that_other_experts_stood_in_for_is_kept(recorded, rows, kept):
    now = time.time()
    use = PoolUse(now, now, 5, 0.1, (PoolPart("0", 10, ("0-a",)),), degraded_rows=rows)
    assert on_replica(recorded, lambda span: span.finished(EngineReply(200, pools=use))) == kept


def test_a_slow_request_is_kept(recorded):
    tracer = recorded.provider.get_tracer("test")
    tracer.start_span("request", start_time=1).end(10_000_000_001)
    assert recorded.kept() == {"slow"}


def test_what_a_policy_says_that_is_not_understood_is_an_error():
    with pytest.raises(ValueError, match="not understood"):
        kept_by([{"name": "x", "type": "rate_limiting", "rate_limiting": {"spans_per_second": 1}}], [])
    with pytest.raises(ValueError, match="not understood"):
        kept_by([{"name": "x", "type": "ottl_condition", "ottl_condition": {"spanevent": ["true"]}}], [])
