"""What the replica's span tells of the experts that a request used."""

from __future__ import annotations

import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cluster.experts.load import ExpertShape, ExpertUse, used
from deployments.engines.protocol import EngineReply
from deployments.replica.tracing import ReplicaSpan


def attributes(experts: ExpertUse | None) -> dict[str, object]:
    """Of the span of a request that ended with that."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("test").start_as_current_span("replica") as span:
        ReplicaSpan(span, {}).finished(EngineReply(200, experts=experts))
    (ended,) = exporter.get_finished_spans()
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
