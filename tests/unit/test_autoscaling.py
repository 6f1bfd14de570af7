"""The policy that Serve's controller calls: Serve's own count of requests, and what loads the engines beside it."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from cluster.config.scaling import ScalingConfig
from cluster.experts.load import ExpertLoad, ExpertShape, packed
from deployments import autoscaling
from deployments.autoscaling import (
    EXPERT_TOKENS,
    KV_USAGE,
    LEVEL,
    POLICY,
    STALE_S,
    TOKENS,
    WAITING,
    Figures,
    ModelScaling,
    targets,
)
from deployments.engines.protocol import EngineStats

SHAPE = ExpertShape(2, 2, 1)


def context(requests: float, replicas: int, told: dict[str, list[float]] | None) -> AutoscalingContext:
    deployment = DeploymentID("model", "model-dense")
    ids = [ReplicaID(str(number), deployment) for number in range(replicas)]
    metrics = None
    if told is not None:
        metrics = {name: dict(zip(ids, values, strict=True)) for name, values in told.items()}
    return AutoscalingContext(
        deployment_id=deployment,
        deployment_name="model",
        app_name="model-dense",
        current_num_replicas=replicas,
        target_num_replicas=replicas,
        running_replicas=ids,
        total_num_requests=requests,
        total_queued_requests=0.0,
        aggregated_metrics=metrics,
        raw_metrics=None,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=AutoscalingConfig(min_replicas=1, max_replicas=8, target_ongoing_requests=16),
    )


def policy(config: ScalingConfig | None = None) -> ModelScaling:
    aimed = config or ScalingConfig()
    return ModelScaling(targets(aimed), aimed.tolerance)


@pytest.mark.parametrize(
    ("requests", "replicas", "told", "wanted"),
    [
        (8, 1, {LEVEL: [0.0]}, 0.5),
        (8, 1, None, 0.5),
        (8, 1, {LEVEL: [1.0]}, 2),
        (8, 2, {LEVEL: [0.0, 3.0]}, 3),
        (96, 2, {LEVEL: [4.0, 4.0]}, 6),
        (8, 1, {LEVEL: [0.0], WAITING: [12.0]}, 3),
        (8, 2, {LEVEL: [0.0, 0.0], KV_USAGE: [1.0, 1.0]}, 2.5),
        (8, 1, {LEVEL: [0.0], EXPERT_TOKENS: [1e6], TOKENS: [1e6]}, 0.5),
    ],
)
def test_what_loads_the_replicas_decides(
    requests: float, replicas: int, told: dict[str, list[float]] | None, wanted: float
) -> None:
    found, state = policy()(context(requests, replicas, told))
    assert found == pytest.approx(wanted)
    assert state["pointsman_reason"]


def test_only_what_has_a_target_counts() -> None:
    config = ScalingConfig(target_waiting=None, target_kv_usage=None, target_expert_tokens_per_s=50, tolerance=0)
    told = {WAITING: [99.0], KV_USAGE: [1.0], EXPERT_TOKENS: [200.0]}
    found, state = policy(config)(context(1, 1, told))
    assert found == 4
    assert state["pointsman_reason"] == "tokens a second of the busiest expert: 200 a replica, aimed at 50"


def test_the_controller_finds_it_by_its_name() -> None:
    module, _, name = POLICY.partition(":")
    assert getattr(import_module(module), name) is ModelScaling


def load(*counts: int) -> ExpertLoad:
    return ExpertLoad(SHAPE, packed(np.array(counts, np.int64).reshape(2, 2)))


def test_a_replica_tells_what_loads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(autoscaling.time, "monotonic", lambda: clock[0])
    stats = EngineStats(waiting=3, kv_usage=0.5, kv_blocks=10, kv_block_tokens=128)
    figures = Figures()
    assert figures.of(stats, None, 2) == {LEVEL: 2.0, WAITING: 3.0, TOKENS: 640.0, KV_USAGE: 0.5}
    assert figures.of(stats, load(5, 5, 5, 5), 0)[EXPERT_TOKENS] == 0
    clock[0] += 2
    assert figures.of(stats, load(15, 5, 5, 105), 0)[EXPERT_TOKENS] == 50
    clock[0] += 1
    # Nothing new was told yet: what was known holds for a while.
    assert figures.of(stats, load(15, 5, 5, 105), 0)[EXPERT_TOKENS] == 50
    clock[0] += STALE_S
    assert figures.of(stats, load(15, 5, 5, 105), 0)[EXPERT_TOKENS] == 0
    # An engine that started anew counts from nothing.
    assert figures.of(stats, load(1, 1, 1, 1), 0)[EXPERT_TOKENS] == 0
