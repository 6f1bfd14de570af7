"""The two arms, and the config that each of their clusters starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from cluster.config.cluster import ClusterConfig
from cluster.config.load import parse_config

SIMULATED_SPEED: Final = {
    "prefill_tokens_per_s": 20_000.0,
    "decode_step_base_s": 0.002,
    "decode_step_per_seq_s": 0.0001,
    "kv_blocks": 512,
}
"""A simulated engine that is quick enough for its pools to be what limits it."""
SHAPE: Final = {"layers": 30, "experts": 4, "top_k": 2}
"""Of the embedded sparse model, and so of the simulated one."""
STALL_S: Final = 20.0
"""Given to the engine: while its pools hold to a quota it waits for them, and a step may take seconds."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One setting of replicas of pools."""

    name: str
    replicas: int | None
    """Replicas of each pool, a fixed number; None: as many as the config says, by heat."""


STATIC: Final = Arm("static", 1)
REPLICATED: Final = Arm("replicated", None)
ARMS: Final = (STATIC, REPLICATED)


def order(number: int) -> tuple[Arm, ...]:
    """The arms of a round; every second one goes backwards, so that drift cancels out."""
    return ARMS[::-1] if number % 2 else ARMS


@dataclass(frozen=True, slots=True)
class Terms:
    """What both arms have in common beside the base config."""

    quota_pairs_per_s: float | None
    """Pairs of token and expert a second that a replica of a pool computes at most; None: as the base config says."""
    high: float | None
    """Share of that above which a pool gains a replica; None: as the base config says."""
    simulated: bool = False
    experts: Mapping[str, int] | None = None
    """`layers`, `experts` and `top_k` of the simulated model."""
    port: int | None = None
    """Where the cluster answers; None: where the base config says."""


def config_of(base: str, model: str, arm: Arm, terms: Terms) -> str:
    """The config of an arm, YAML: the model of `base` alone, with the arm's pools. Raises `ValueError` for a model without pools.

    Other models are left out, as are the ladder and traces: they would take cores and memory, and nothing is to take over
    while pools are busy. Nothing is refused for waiting: the queue is what is looked at.
    """
    document: dict[str, Any] = yaml.safe_load(base)
    chosen = (document.get("models") or {}).get(model)
    if not chosen or not chosen.get("pools"):
        raise ValueError(f"the config has no model {model!r} with pools")
    pools = dict(chosen["pools"])
    if terms.quota_pairs_per_s is not None:
        pools["quota_pairs_per_s"] = terms.quota_pairs_per_s
    if terms.high is not None:
        pools |= {"high": terms.high, "low": min(float(pools.get("low", 0.3)), terms.high / 2)}
    pools["min"] = 1
    if arm.replicas is not None:
        pools["min"] = pools["max"] = arm.replicas
    engine = dict(chosen.get("engine") or {})
    if terms.simulated:
        kept = ("max_model_len", "max_num_seqs", "max_num_batched_tokens")
        engine = {name: engine[name] for name in kept if name in engine}
        engine |= {"type": "simulated", "simulated": {**SIMULATED_SPEED, "experts": dict(terms.experts or {})}}
    replicas = {**(chosen.get("replicas") or {}), "max_queued_requests": 10_000, "stall_timeout_s": STALL_S}
    document["models"] = {model: {**chosen, "engine": engine, "pools": pools, "replicas": replicas}}
    contracts = {role: terms for role, terms in (document.get("contracts") or {}).items() if role in chosen["roles"]}
    document["contracts"] = {role: {**terms, "fallback": []} for role, terms in contracts.items()}
    document["routing"] = {"default_role": chosen["roles"][0], "fast_role": chosen["roles"][0]}
    document["precision"] = {"enabled": False}
    document["admission"] = {"tenant_share": 1.0, "kv_overcommit": 100.0}
    document["telemetry"] = {**(document.get("telemetry") or {}), "traces": "off"}
    if terms.port is not None:
        document["ingress"] = {**(document.get("ingress") or {}), "port": terms.port}
    return yaml.safe_dump(document, sort_keys=False)


def parsed(text: str) -> ClusterConfig:
    """The config of an arm as the cluster reads it. Raises `ConfigError`."""
    return parse_config(text, "the arm's config")
