from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config.base import Kind
from cluster.config.engine import EngineConfig, EngineType
from cluster.config.model import ModelConfig, UpstreamConfig
from cluster.config.operations import TelemetryConfig
from deployments.engines.protocol import EngineStartError
from deployments.replica.engines import make_engine
from deployments.replica.spec import ReplicaSpec

UPSTREAM = UpstreamConfig(base_url="http://127.0.0.1:9/v1", model="m")


def spec(path: Path | None, kind: Kind = Kind.DENSE, **model: Any) -> ReplicaSpec:
    made = ModelConfig(kind=kind, roles=("strong",), **model)
    return ReplicaSpec("name", made, path, TelemetryConfig(), Path("state"))


@pytest.mark.parametrize(
    ("made_for", "kind"),
    [
        (spec(None, Kind.EXTERNAL, upstream=UPSTREAM), "external"),
        (spec(None, engine=EngineConfig(type=EngineType.SIMULATED)), "simulated"),
        (spec(Path("model"), Kind.ENCODER, source="embedded:encoder"), "encoder"),
        (spec(Path("model"), source="embedded:dense"), "vllm"),
    ],
)
def test_the_engine_of_a_model(made_for: ReplicaSpec, kind: str) -> None:
    assert make_engine(made_for).kind == kind


@pytest.mark.parametrize(
    ("made_for", "message"),
    [(spec(None, Kind.EXTERNAL), "no upstream"), (spec(None, source="embedded:dense"), "cannot be had")],
)
def test_what_is_missing_is_named(made_for: ReplicaSpec, message: str) -> None:
    with pytest.raises(EngineStartError, match=message):
        make_engine(made_for)
