from __future__ import annotations

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.config.records import RecordsConfig
from cluster.telemetry import metric_table
from deployments.channel.receiver import ChannelReceiver
from deployments.engines.protocol import Endpoint, EngineReply, EngineStats, TokenUsage
from deployments.ingress.experts import ExpertsControl
from deployments.ingress.pools import PoolsControl
from deployments.records.recorder import Records
from deployments.telemetry.metrics import OTHER, IngressMetrics, ReplicaStats, StreamTimer
from deployments.telemetry.series import Buckets
from deployments.telemetry.setup import SpanCounts
from tests.unit.ingress import bare_ingress, sparse_models


def samples(metrics: IngressMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics: IngressMetrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, tuple(sorted(labels.items()))))


@pytest.fixture
def metrics() -> IngressMetrics:
    return IngressMetrics("ingress", ["dense", "mini"])


def test_an_answer_is_counted_with_its_times_and_tokens(metrics):
    timer = StreamTimer(100.0)
    for now in (100.3, 100.32, 100.34, 100.40):
        timer.chunk(now)
    with metrics.in_flight(Endpoint.CHAT):
        assert value(metrics, "pointsman_requests_in_flight", endpoint="chat") == 1
    metrics.answered("dense", Endpoint.CHAT, EngineReply(200, usage=TokenUsage(12, 4, 8)), timer, 100.5)
    assert value(metrics, "pointsman_requests_in_flight", endpoint="chat") == 0
    assert value(metrics, "pointsman_requests_total", endpoint="chat", model="dense", status="200") == 1
    assert value(metrics, "pointsman_request_seconds_sum", endpoint="chat", model="dense") == pytest.approx(0.5)
    assert value(metrics, "pointsman_time_to_first_token_seconds_sum", model="dense") == pytest.approx(0.3)
    assert value(metrics, "pointsman_inter_token_latency_seconds_count", model="dense") == 3
    assert value(metrics, "pointsman_inter_token_latency_seconds_sum", model="dense") == pytest.approx(0.1)
    assert value(metrics, "pointsman_prompt_tokens_total", model="dense") == 12
    assert value(metrics, "pointsman_completion_tokens_total", model="dense") == 4
    assert value(metrics, "pointsman_cached_tokens_total", model="dense") == 8


def test_a_plain_answer_has_no_gaps(metrics):
    metrics.answered("dense", Endpoint.EMBEDDING, EngineReply(200), StreamTimer(0.0), 1.0)
    assert value(metrics, "pointsman_inter_token_latency_seconds_count", model="dense") is None
    assert value(metrics, "pointsman_request_seconds_count", endpoint="embedding", model="dense") == 1


def test_a_chunk_of_several_tokens_shares_its_gap():
    timer = StreamTimer(0.0)
    timer.chunk(1.0)
    timer.chunk(1.08, tokens=4)
    timer.chunk(2.0, tokens=0)
    assert sum(timer.gaps.counts) == 4
    assert timer.gaps.total == pytest.approx(0.08)


def test_a_chunk_costs_next_to_nothing():
    timer = StreamTimer(0.0)
    started = time.perf_counter()
    for number in range(20_000):
        timer.chunk(number * 0.02)
    assert (time.perf_counter() - started) / 20_000 < 20e-6


def test_buckets_are_cumulative_and_complete(metrics):
    for seconds in (0.001, 0.3, 999.0):
        metrics.answered("dense", Endpoint.CHAT, EngineReply(200), StreamTimer(0.0), seconds)
    counts = {
        dict(labels)["le"]: number
        for (name, labels), number in samples(metrics).items()
        if name == "pointsman_request_seconds_bucket"
    }
    assert counts["0.01"] == 1
    assert counts["0.5"] == 2
    assert counts["300.0"] == 2
    assert counts["+Inf"] == 3


def test_histograms_of_different_bounds_are_not_merged():
    with pytest.raises(ValueError, match="different bounds"):
        Buckets((1.0,)).merge(Buckets((2.0,)))


def test_refusals_decisions_and_mishaps_are_counted(metrics):
    metrics.refused(Endpoint.CHAT, 400, "invalid_json")
    metrics.decided("mini", "auto_fast")
    metrics.retried("dense")
    metrics.disconnected(Endpoint.CHAT)
    metrics.engine_died("dense", "stalled")
    metrics.set_loop_lag(0.02)
    assert value(metrics, "pointsman_refused_total", endpoint="chat", status="400", code="invalid_json") == 1
    assert value(metrics, "pointsman_route_decisions_total", model="mini", rule="auto_fast") == 1
    assert value(metrics, "pointsman_retries_total", model="dense") == 1
    assert value(metrics, "pointsman_client_disconnects_total", endpoint="chat") == 1
    assert value(metrics, "pointsman_engine_deaths_total", model="dense", cause="stalled") == 1
    assert value(metrics, "pointsman_event_loop_lag_seconds", process="ingress") == 0.02


def test_labels_are_bounded(metrics):
    for number in range(1000):
        metrics.decided(f"made-up-{number}", f"rule-{number}")
        metrics.refused(Endpoint.CHAT, 400, "x" * 1000)
    told = samples(metrics)
    assert len(told) < 400
    assert value(metrics, "pointsman_refused_total", endpoint="chat", status="400", code=OTHER) == 1000
    assert not any("made-up" in str(labels) for _, labels in told)


def test_models_change_with_the_config(metrics):
    metrics.set_models(["sparse"])
    metrics.decided("sparse", "named")
    assert value(metrics, "pointsman_route_decisions_total", model="sparse", rule="named") == 1


def test_replicas_come_and_go(metrics):
    stats = EngineStats(
        running=3, waiting=2, kv_usage=0.5, kv_blocks=100, preemptions=7, prefix_hits=9, generated_tokens=11
    )
    metrics.set_replicas([ReplicaStats("dense", "d1", stats)], {("dense", "ready"): 1, ("mini", "starting"): 1})
    where = {"model": "dense", "replica": "d1"}
    assert value(metrics, "pointsman_engine_running", **where) == 3
    assert value(metrics, "pointsman_engine_waiting", **where) == 2
    assert value(metrics, "pointsman_kv_usage_ratio", **where) == 0.5
    assert value(metrics, "pointsman_kv_blocks", **where) == 100
    assert value(metrics, "pointsman_preemptions_total", **where) == 7
    assert value(metrics, "pointsman_prefix_hits_total", **where) == 9
    assert value(metrics, "pointsman_engine_generated_tokens_total", **where) == 11
    assert value(metrics, "pointsman_replicas", model="mini", state="starting") == 1
    metrics.set_replicas([], {})
    assert value(metrics, "pointsman_engine_running", **where) is None


def test_lost_spans_and_lines_are_told():
    metrics = IngressMetrics("ingress", [], spans=lambda: SpanCounts(10, 2, 3), log_lines_dropped=lambda: 4)
    assert value(metrics, "pointsman_spans_stored_total", process="ingress") == 10
    assert value(metrics, "pointsman_spans_dropped_total", process="ingress") == 5
    assert value(metrics, "pointsman_log_lines_dropped_total", process="ingress") == 4


async def test_every_metric_of_the_table_is_exposed_with_its_help(metrics, tmp_path):
    metrics.also(Records(RecordsConfig(), tmp_path, ChannelReceiver("bare"), "ingress").families)
    ExpertsControl(sparse_models.config(), ChannelReceiver("bare"), metrics)
    PoolsControl(sparse_models.config(), {}, metrics, bare_ingress.no_pools)
    text = metrics.render().decode()
    for metric in metric_table.all_metrics():
        assert f"# HELP {metric.name} {metric.help}" in text
        assert f"# TYPE {metric.name} {metric.type}" in text


def test_two_instances_share_nothing():
    first, second = IngressMetrics("a", ["dense"]), IngressMetrics("b", ["dense"])
    first.decided("dense", "named")
    assert value(second, "pointsman_route_decisions_total", model="dense", rule="named") is None
