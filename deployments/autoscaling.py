"""A Ray Serve autoscaling policy that sees what loads an engine beside the number of requests.

Replicas tell Serve's controller their figures (`Figures`); the controller has `ModelScaling` decide.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext

from cluster.config.scaling import ScalingConfig
from cluster.experts.load import ExpertLoad
from cluster.scaling import Load, replicas_wanted
from deployments.engines.protocol import EngineStats

_log = logging.getLogger("ray.serve")

POLICY: Final = "deployments.autoscaling:ModelScaling"
"""Where Serve's controller finds it."""
LEVEL: Final = "precision_level"
WAITING: Final = "waiting"
TOKENS: Final = "tokens_in_flight"
KV_USAGE: Final = "kv_usage"
EXPERT_TOKENS: Final = "expert_tokens_per_s"
"""Names under which replicas tell the controller."""

STALE_S: Final = 5.0
"""Seconds after which a load that did not change is that of an idle engine."""

_SHOWN: Final = {
    WAITING: "requests waiting in the engine",
    TOKENS: "tokens in flight",
    KV_USAGE: "share of the KV cache in use",
    EXPERT_TOKENS: "tokens a second of the busiest expert",
}


def targets(config: ScalingConfig) -> dict[str, float]:
    """What is aimed at, by the name under which replicas tell of it."""
    found = {
        WAITING: config.target_waiting,
        TOKENS: config.target_tokens_in_flight,
        KV_USAGE: config.target_kv_usage,
        EXPERT_TOKENS: config.target_expert_tokens_per_s,
    }
    return {name: float(target) for name, target in found.items() if target is not None}


class ModelScaling:
    """Serve's own policy on requests, and the largest need of all figures. Serve applies bounds, factors and delays to it."""

    def __init__(self, aims: Mapping[str, float], tolerance: float) -> None:
        self._aims = dict(aims)
        self._tolerance = tolerance

    def __call__(self, ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        by_requests, state = replica_queue_length_autoscaling_policy(ctx)
        told = ctx.aggregated_metrics or {}
        loads = [Load(_SHOWN[name], tuple(told.get(name, {}).values()), target) for name, target in self._aims.items()]
        levels = tuple(told.get(LEVEL, {}).values())
        wanted = replicas_wanted(by_requests, ctx.current_num_replicas, loads, levels, self._tolerance)
        if state.get("pointsman_reason") != wanted.reason:
            _log.info("%s: %.2f replicas wanted: %s", ctx.app_name, wanted.replicas, wanted.reason)
        return wanted.replicas, {**state, "pointsman_reason": wanted.reason}


class Figures:
    """What one replica tells the controller."""

    def __init__(self) -> None:
        self._busiest = 0.0
        self._before: tuple[float, ExpertLoad] | None = None

    def of(self, stats: EngineStats, load: ExpertLoad | None, level: int) -> dict[str, float]:
        """By name, as of now."""
        told = {
            LEVEL: float(level),
            WAITING: float(stats.waiting),
            TOKENS: stats.kv_usage * stats.kv_blocks * stats.kv_block_tokens,
            KV_USAGE: stats.kv_usage,
        }
        if load is not None:
            told[EXPERT_TOKENS] = self._expert_tokens_per_s(load, time.monotonic())
        return told

    def _expert_tokens_per_s(self, load: ExpertLoad, now_s: float) -> float:
        """Of the busiest expert since the load was another one; an idle engine's does not change, and counts as nothing."""
        if self._before is None:
            self._before = now_s, load
            return 0.0
        since_s, before = self._before
        if load.total == before.total:
            # The load is told once a second; this may be asked more often.
            return self._busiest if now_s - since_s < STALE_S else 0.0
        grown = int(np.max(load.counts() - before.counts()))
        self._before = now_s, load
        self._busiest = max(0, grown) / max(now_s - since_s, 1e-3)
        return self._busiest
