"""A config with a model whose experts live in pools, how these stand, and what requests have of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from cluster.config.cluster import ClusterConfig
from cluster.experts.pool_use import PoolPart, PoolUse
from cluster.experts.pools_view import ChangeView, PoolsView, PoolView, ReplicaView
from deployments.ingress.pools import Ask


def config(*with_pools: str) -> ClusterConfig:
    """Three models, of which those named have their experts in pools."""
    simulated = {"experts": {"layers": 2, "experts": 4, "top_k": 2}}
    engine = {"type": "simulated", "max_model_len": 512, "simulated": simulated}
    dense = {"kind": "dense", "roles": ["strong", "fast"], "source": "embedded:dense", "engine": {"type": "simulated"}}
    models: dict[str, dict[str, Any]] = {"big": dense}
    for name, role in (("moe", "code"), ("other", "more")):
        models[name] = {"kind": "sparse", "roles": [role], "source": "embedded:sparse", "engine": engine}
        if name in with_pools:
            models[name]["pools"] = {"count": 2}
    return ClusterConfig.model_validate({"models": models, "routing": {"code_role": "strong"}})


def pool(name: str, target: int, answering: int, pairs_per_s: float = 0.0) -> PoolView:
    replicas = tuple(
        ReplicaView(f"{name}-{number}", "node", 5, pairs_per_s, 0, 1000, 300) for number in range(answering)
    )
    return PoolView(name, 4, target, pairs_per_s, 500.0, replicas)


def change(cause: str, at_s: float, name: str = "a", before: int = 1, took_s: float | None = None) -> ChangeView:
    return ChangeView(name, before, before + 1, cause, "it had to be", at_s, took_s)


def view(*pools: PoolView, changes: tuple[ChangeView, ...] = ()) -> PoolsView:
    return PoolsView(3, 2, 4, 9000, pools, changes)


def use(**more: Any) -> PoolUse:
    """What two pools did for a request."""
    parts = PoolPart("a", 30, ("a-0", "a-1")), PoolPart("b", 10, ("b-0",))
    fields: dict[str, Any] = {"begun_s": 1000.0, "ended_s": 1002.0, "steps": 5, "wait_s": 0.25, "parts": parts, **more}
    return PoolUse(**fields)


class Pools:
    """The pools of all applications. What they tell is a view, bytes, an error, or something to await."""

    def __init__(self, **tells: object) -> None:
        self.tells: dict[str, Any] = {f"model-{model}": told for model, told in tells.items()}
        self.asked: list[str] = []

    def asking(self, application: str) -> Ask:
        async def ask() -> bytes:
            self.asked.append(application)
            told = self.tells[application]
            if isinstance(told, Callable):  # type: ignore[arg-type]
                told = await told()
            if isinstance(told, BaseException):
                raise told
            return told if isinstance(told, bytes) else msgspec.json.encode(told)

        return ask
