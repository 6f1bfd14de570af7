"""The policy that Serve's controller calls: Serve's own count of requests, and memory beside it."""

from __future__ import annotations

from importlib import import_module

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from deployments.autoscaling import LEVEL, POLICY, ladder_aware


def context(requests: float, replicas: int, levels: list[float] | None) -> AutoscalingContext:
    deployment = DeploymentID("model", "model-dense")
    ids = [ReplicaID(str(number), deployment) for number in range(replicas)]
    metrics = None if levels is None else {LEVEL: dict(zip(ids, levels, strict=True))}
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


@pytest.mark.parametrize(
    ("requests", "replicas", "levels", "wanted"),
    [
        (8, 1, [0.0], 0.5),
        (8, 1, None, 0.5),
        (8, 1, [1.0], 2),
        (8, 2, [0.0, 3.0], 3),
        (96, 2, [4.0, 4.0], 6),
    ],
)
def test_a_pressed_model_is_to_have_one_more(
    requests: float, replicas: int, levels: list[float] | None, wanted: float
) -> None:
    found, _ = ladder_aware(context(requests, replicas, levels))
    assert found == pytest.approx(wanted)


def test_the_controller_finds_it_by_its_name() -> None:
    module, _, name = POLICY.partition(":")
    assert getattr(import_module(module), name) is ladder_aware
