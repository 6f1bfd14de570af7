from __future__ import annotations

import time

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from cluster.config.records import RecordsConfig
from cluster.telemetry import metric_table
from deployments.channel.receiver import ChannelReceiver
from deployments.engines.protocol import Endpoint, EngineReply, EngineStats
from deployments.ingress.experts import ExpertsControl
from deployments.ingress.pools import PoolsControl
from deployments.records.recorder import Records
from deployments.telemetry.exposition import MAX_ACCEPT_CHARS, Exposition, accepted
from deployments.telemetry.metrics import IngressMetrics, ReplicaStats, StreamTimer
from deployments.telemetry.series import TRACE_ID
from tests.unit.ingress import bare_ingress, sparse_models

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
OPENMETRICS, PLAIN = Exposition.OPENMETRICS, Exposition.PLAIN
# What Prometheus 2.42, 2.55 and 3 send.
SCRAPES = (
    (
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
        "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    ),
    (
        "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
        "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
    ),
    (
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
        "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
    ),
)


@pytest.mark.parametrize("accept", SCRAPES)
def test_prometheus_gets_openmetrics(accept):
    assert accepted([accept]) is OPENMETRICS
    assert accepted(accept.split(",")) is OPENMETRICS


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ([], PLAIN),
        (["*/*"], PLAIN),
        (["text/html, */*;q=0.8"], PLAIN),
        (["text/plain;version=0.0.4"], PLAIN),
        (["Application/OpenMetrics-Text; Version=1.0.0"], OPENMETRICS),
        (["application/openmetrics-text"], OPENMETRICS),
        (["application/openmetrics-text;version=2.0.0"], PLAIN),
        (["application/openmetrics-text;q=0"], PLAIN),
        (["application/openmetrics-text;q=0.1, text/plain;q=0.9"], PLAIN),
        (["application/openmetrics-text;q=nan"], PLAIN),
        (["application/openmetrics-text;q=9"], PLAIN),
        ([";;,=,;q"], PLAIN),
        (["application/openmetrics-text," + "x" * MAX_ACCEPT_CHARS], PLAIN),
    ],
)
def test_who_asks_for_something_else_gets_it(accept, form):
    assert accepted(accept) is form


def all_families(metrics: IngressMetrics) -> dict[str, list[Sample]]:
    """As a strict parser of OpenMetrics reads them."""
    text = metrics.render(OPENMETRICS).decode()
    return {family.name: family.samples for family in text_string_to_metric_families(text)}


def answered(metrics: IngressMetrics, trace_id: str | None) -> None:
    timer = StreamTimer(100.0)
    for now in (100.3, 100.32, 100.40, 100.41):
        timer.chunk(now)
    metrics.answered("dense", Endpoint.CHAT, EngineReply(200), timer, 100.5, trace_id)


def exemplars(metrics: IngressMetrics) -> dict[str, list[tuple[str, float]]]:
    """By family: the bucket and the value of each."""
    found: dict[str, list[tuple[str, float]]] = {}
    for name, samples in all_families(metrics).items():
        for sample in samples:
            if sample.exemplar is not None:
                assert sample.exemplar.labels == {TRACE_ID: TRACE}
                assert abs(float(sample.exemplar.timestamp) - time.time()) < 60
                found.setdefault(name, []).append((sample.labels["le"], sample.exemplar.value))
    return found


def test_latencies_point_to_a_trace():
    metrics = IngressMetrics("ingress", ["dense"])
    answered(metrics, TRACE)
    assert exemplars(metrics) == {
        "pointsman_request_seconds": [("0.5", pytest.approx(0.5))],
        "pointsman_time_to_first_token_seconds": [("0.3", pytest.approx(0.3))],
        "pointsman_inter_token_latency_seconds": [("0.1", pytest.approx(0.08))],
    }


def test_the_latest_request_of_a_bucket_is_its_example():
    metrics = IngressMetrics("ingress", ["dense"])
    metrics.answered("dense", Endpoint.CHAT, EngineReply(200), StreamTimer(0.0), 0.3, "0" * 32)
    metrics.answered("dense", Endpoint.CHAT, EngineReply(200), StreamTimer(0.0), 0.4, TRACE)
    metrics.answered("dense", Endpoint.CHAT, EngineReply(200), StreamTimer(0.0), 999.0, TRACE)
    metrics.answered("dense", Endpoint.CHAT, EngineReply(200), StreamTimer(0.0), 0.35)
    assert exemplars(metrics)["pointsman_request_seconds"] == [("0.5", 0.4), ("+Inf", 999.0)]


def test_a_request_whose_trace_is_not_kept_is_no_example():
    metrics = IngressMetrics("ingress", ["dense"])
    answered(metrics, None)
    assert exemplars(metrics) == {}


def test_the_plain_format_has_no_exemplars():
    metrics = IngressMetrics("ingress", ["dense"])
    answered(metrics, TRACE)
    assert TRACE not in metrics.render().decode()


async def test_every_metric_of_the_table_is_sound_openmetrics(tmp_path):
    metrics = IngressMetrics("ingress", ["dense"])
    metrics.also(Records(RecordsConfig(), tmp_path, ChannelReceiver("bare"), "ingress").families)
    ExpertsControl(sparse_models.config(), ChannelReceiver("bare"), metrics)
    PoolsControl(sparse_models.config(), {}, metrics, bare_ingress.no_pools)
    metrics.set_replicas([ReplicaStats("dense", "d1", EngineStats(kv_precision="bfloat16"))], {("dense", "ready"): 1})
    answered(metrics, TRACE)
    shown = all_families(metrics)
    assert set(shown) == {metric.name.removesuffix("_total") for metric in metric_table.all_metrics()}
