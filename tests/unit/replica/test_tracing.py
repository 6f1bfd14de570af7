"""What the replica's span tells of the experts that a request used, and of the pools that computed them."""

from __future__ import annotations

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cluster.experts.load import ExpertShape, ExpertUse, used
from cluster.experts.pool_use import PoolPart, PoolUse
from deployments.engines.protocol import EngineReply
from deployments.replica.tracing import MAX_POOL_SPANS, ReplicaSpan


def spans(reply: EngineReply) -> list[ReadableSpan]:
    """Of a request that ended with that; its own span comes first, whatever is below it in the order of its making."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("replica") as span:
        ReplicaSpan(span, {}, tracer).finished(reply)
    *below, own = exporter.get_finished_spans()
    return [own, *below]


def attributes(experts: ExpertUse | None) -> dict[str, object]:
    """Of the span of a request that ended with that."""
    (ended,) = spans(EngineReply(200, experts=experts))
    return {name: value for name, value in (ended.attributes or {}).items() if ".experts." in name}


def test_a_request_of_a_sparse_model_carries_a_summary() -> None:
    counts = np.array([[6, 2, 0, 0], [1, 7, 0, 0]], np.int64)
    assert attributes(used(counts, ExpertShape(2, 4, 1))) == {
        "pointsman.experts.tokens": 8,
        "pointsman.experts.distinct": 4,
        "pointsman.experts.entropy": pytest.approx(0.3387, abs=1e-3),
        "pointsman.experts.top": (
            "layer 1 expert 1 0.88",
            "layer 0 expert 0 0.75",
            "layer 0 expert 1 0.25",
            "layer 1 expert 0 0.12",
        ),
    }


@pytest.mark.parametrize("experts", [None, used(np.zeros((2, 4), np.int64), ExpertShape(2, 4, 1))])
def test_a_request_that_used_none_carries_nothing(experts: ExpertUse | None) -> None:
    assert attributes(experts) == {}


PARTS = (PoolPart("cold", 10, ("cold-0",)), PoolPart("hot", 30, ("hot-0", "hot-1")))


def test_each_pool_has_a_span_below_the_replica_s() -> None:
    use = PoolUse(1000.25, 1002.5, 5, 0.125, PARTS, resent_rows=2)
    own, *below = spans(EngineReply(200, pools=use))
    assert (
        dict(own.attributes or {}).items()
        >= {
            "pointsman.pools.steps": 5,
            "pointsman.pools.wait_s": 0.125,
            "pointsman.pools.resent_rows": 2,
            "pointsman.pools.degraded_rows": 0,
        }.items()
    )
    assert own.events == ()
    assert [(span.name, dict(span.attributes or {})) for span in below] == [
        (
            "experts.pool",
            {
                "pointsman.pool.name": "hot",
                "pointsman.pool.pairs": 30,
                "pointsman.pool.replicas": ("hot-0", "hot-1"),
            },
        ),
        (
            "experts.pool",
            {"pointsman.pool.name": "cold", "pointsman.pool.pairs": 10, "pointsman.pool.replicas": ("cold-0",)},
        ),
    ]
    for span in below:
        assert span.parent is not None and own.context is not None
        assert span.parent.span_id == own.context.span_id
        assert (span.start_time, span.end_time) == (1_000_250_000_000, 1_002_500_000_000)


def test_it_is_an_event_that_other_experts_stood_in() -> None:
    own, *_ = spans(EngineReply(200, pools=PoolUse(1000.0, 1001.0, 1, 0.0, PARTS, degraded_rows=7)))
    (event,) = own.events
    assert (event.name, event.timestamp) == ("experts_degraded", 1_001_000_000_000)
    assert dict(event.attributes or {}) == {"pointsman.pools.degraded_rows": 7}


def test_of_hundreds_of_pools_those_that_computed_most_have_spans() -> None:
    parts = tuple(PoolPart(f"p{number}", number) for number in range(200))
    # A clock that was set back meanwhile makes no span that ends before it begins.
    own, *below = spans(EngineReply(200, pools=PoolUse(1000.0, 999.0, 1, 0.0, parts)))
    assert [dict(span.attributes or {})["pointsman.pool.pairs"] for span in below] == [*range(199, 183, -1)]
    assert (own.attributes or {})["pointsman.pools.not_shown"] == 200 - MAX_POOL_SPANS
    assert all(span.start_time == span.end_time for span in below)


def test_without_pools_there_is_nothing_of_them() -> None:
    (own,) = spans(EngineReply(200))
    assert not any("pool" in name for name in own.attributes or {})
