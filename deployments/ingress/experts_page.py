"""`GET /v1/experts`: how hot the experts of each sparse model are, which traffic heats them, and which requests are wide."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Final

import msgspec

from cluster.config.base import Kind
from cluster.experts.heat import Heat, HotExpert, Reals
from cluster.experts.tail import TailTable
from cluster.keys import KeyRecord
from deployments.channel.receiver import AttachedReplica
from deployments.ingress.exchange import Exchange
from deployments.ingress.pools import NOT_YET, Standing
from deployments.ingress.services import Services

_NOT_YET: Final = "no replica has told of its experts yet"
_DIGITS: Final = 5


class ExpertsPage:
    """Handler of one ingress."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def serve(self, exchange: Exchange, _key: KeyRecord | None) -> None:
        """All models that tell of experts, and why the other sparse ones do not."""
        config, experts = self._services.config, self._services.experts
        models, silent, silent_pools = {}, {}, {}
        for name, model in config.models.items():
            heat = experts.heat(name)
            if heat is not None:
                models[name] = self._model(name, heat)
            elif model.kind is Kind.SPARSE:
                silent[name] = self._why_silent(name)
                if (standing := self._services.pools.standing(name)) is not None:
                    silent_pools[name] = _pools(standing)
        rules = config.experts
        told = {
            "half_life_s": rules.half_life_s,
            "hot": rules.hot,
            "cool": rules.cool,
            "dwell_s": rules.dwell_s,
            "min_tokens": rules.min_tokens,
            "log_tokens": rules.log_tokens,
            "models": models,
            "silent": silent,
            "silent_pools": silent_pools,
        }
        await exchange.respond(200, msgspec.json.encode(told))

    def _model(self, name: str, heat: Heat) -> dict[str, object]:
        tail = self._services.experts.tail(name)
        standing = self._services.pools.standing(name)
        return {
            "shape": asdict(heat.shape),
            "tokens": _rounded(heat.tokens, 1),
            "tokens_per_s": round(float(heat.per_s.sum(axis=1).max()) / heat.shape.top_k, 2),
            "imbalance": _rounded(heat.imbalance),
            "entropy": _rounded(heat.entropy),
            "shares": _rounded(heat.shares),
            "hot": [_hot(one, heat.at_s) for one in heat.hot],
            "traffic": {kind: _rounded(shares) for kind, shares in heat.by_traffic.items()},
            "replicas": [_replica(one) for one in self._replicas(name) if one.load is not None],
            "tail": None if tail is None else _tail(tail),
            "pools": None if standing is None else _pools(standing),
        }

    def _replicas(self, name: str) -> list[AttachedReplica]:
        return [one for one in self._services.channel.attached() if one.hello.model == name]

    def _why_silent(self, name: str) -> list[str]:
        """Of its replicas, which are alike."""
        for replica in self._replicas(name):
            return list(replica.hello.expert_blockers) or [_NOT_YET]
        return ["no replica of it is attached"]


def _pools(standing: Standing) -> dict[str, object]:
    """The view, its age, and the time here: that of changes is Unix time, and the reader's clock may be another."""
    if standing.view is None:
        return {"unavailable": standing.failed or NOT_YET}
    told: dict[str, object] = msgspec.to_builtins(standing.view)
    return {
        **told,
        "age_s": round(standing.age_s, 1),
        "stale": standing.stale,
        "failed": standing.failed or None,
        "now_s": round(time.time(), 3),
    }


def _hot(one: HotExpert, now_s: float) -> dict[str, object]:
    return {
        "layer": one.layer,
        "expert": one.expert,
        "share": round(one.share, _DIGITS),
        "times": round(one.times, 2),
        "age_s": round(max(0.0, now_s - one.since_s), 1),
        "traffic": [{"name": name, "share": round(share, 4)} for name, share in one.traffic],
    }


def _replica(replica: AttachedReplica) -> dict[str, object]:
    load = replica.load
    tokens = 0 if load is None else int(load.counts().sum(axis=1).max()) // load.shape.top_k
    return {"id": replica.hello.replica_id, "tokens": tokens}


def _tail(tail: TailTable) -> dict[str, object]:
    rows = [{**asdict(row), "rare": row.rare} for row in tail.rows]
    return {"requests": tail.requests, "rows": rows}


def _rounded(values: Reals, digits: int = _DIGITS) -> object:
    return values.round(digits).tolist()
