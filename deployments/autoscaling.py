"""A Ray Serve autoscaling policy that sees KV pressure beside the number of requests."""

from __future__ import annotations

from typing import Any, Final

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext

from cluster.scaling import replicas_wanted

POLICY: Final = "deployments.autoscaling:ladder_aware"
"""Where Serve's controller finds it."""
LEVEL: Final = "precision_level"
"""Name under which replicas tell the controller of their level."""


def ladder_aware(ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Serve's own policy, and a replica more where precision is lowered. Serve applies bounds, factors and delays to it."""
    by_requests, state = replica_queue_length_autoscaling_policy(ctx)
    levels = (ctx.aggregated_metrics or {}).get(LEVEL, {}).values()
    return replicas_wanted(by_requests, ctx.current_num_replicas, levels), state
