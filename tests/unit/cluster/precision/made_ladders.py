"""A ladder and replicas for tests of what is decided."""

from dataclasses import replace
from math import inf
from typing import Any

from cluster.config.cluster import ClusterConfig
from cluster.precision.ladder import Ladder, Order, ReplicaState, decide

QUALITY = {"agreement": 0.99, "kl": 0.01, "consistency": 0.8}
CALM = ReplicaState(
    name="a",
    level=0,
    level_since_s=-inf,
    kv_precision="auto",
    kv_switched_s=-inf,
    switching=False,
    kv_usage=0.2,
    kv_tokens=1000,
    own_kv_tokens=1000,
    preemptions_per_s=0.0,
    waiting=0.0,
    queue_growth_per_s=0.0,
    prefix_hits_per_s=0.0,
    prefill_tokens_per_s=None,
    calm_since_s=0.0,
    kv_precisions=("auto", "fp8"),
)
FULL = replace(CALM, kv_usage=0.95, waiting=2.0, calm_since_s=None)
NOW_S = 1000.0


def ladder(model: dict[str, Any] | None = None, engine: dict[str, Any] | None = None, **precision: Any) -> Ladder:
    """Of a model that has a twin and a measured fp8, if `model` does not say otherwise."""
    precise = {"twin": "small", "kv_quality": {"fp8": QUALITY}} if model is None else model
    common = {"source": "embedded:x", "roles": ["strong", "fast"]}
    large = {"kind": "dense", "precision": precise, "engine": engine or {}, **common}
    config = {"models": {"large": large, "small": {"kind": "mini", **common}}, "precision": precision}
    return Ladder.of(ClusterConfig.model_validate(config | {"routing": {"code_role": "strong"}}), "large")


LADDER = ladder()
WITHOUT_TWIN = {"kv_quality": {"fp8": QUALITY}}


def order(rules: Ladder, state: ReplicaState, now_s: float = NOW_S) -> Order | None:
    orders = decide(rules, [state], now_s)
    assert len(orders) < 2
    assert all(one.reason and one.replica == state.name for one in orders)
    return orders[0] if orders else None


def target(rules: Ladder, state: ReplicaState, now_s: float = NOW_S) -> tuple[int, str, str] | None:
    found = order(rules, state, now_s)
    return (found.level, found.kv_precision, found.cause) if found is not None else None
