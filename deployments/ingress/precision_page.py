"""`GET /v1/precision`: where each replica stands on its precision ladder, and what each level would take."""

from __future__ import annotations

import asyncio
import json
import time

from cluster.keys import KeyRecord
from cluster.precision.ladder import Ladder
from cluster.precision.measures import name_of
from cluster.precision.replica import ReplicaState
from deployments.channel.receiver import AttachedReplica
from deployments.ingress.exchange import Exchange
from deployments.ingress.services import Services


class PrecisionPage:
    """Handler of one ingress."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def serve(self, exchange: Exchange, _key: KeyRecord | None) -> None:
        """All models that have a KV cache, with their replicas."""
        config = self._services.config
        models = {}
        for name in config.models:
            pairs = self._services.precision.states(name)
            ladder = self._services.precision.ladder(name)
            if ladder is not None and any(replica.stats.kv_blocks for replica, _ in pairs):
                models[name] = self._model(ladder, pairs)
        told = {
            "enabled": config.precision.enabled,
            "levels": ["normal", *(measure.value for measure in config.precision.levels)],
            "dwell_s": config.precision.dwell_s,
            "models": models,
        }
        await exchange.respond(200, json.dumps(told).encode())

    def _model(self, ladder: Ladder, pairs: list[tuple[AttachedReplica, ReplicaState]]) -> dict[str, object]:
        quality = {kv: one.model_dump() for kv, one in ladder.model.kv_quality.items()}
        return {
            "level": self._services.precision.level(ladder.name),
            "pinned": ladder.model.pinned,
            "twin": ladder.model.twin,
            "kv_quality": quality,
            "replicas": [_replica(ladder, replica, state) for replica, state in pairs],
        }


def _replica(ladder: Ladder, replica: AttachedReplica, state: ReplicaState) -> dict[str, object]:
    stats, position = replica.stats, replica.position
    now_s = asyncio.get_running_loop().time()
    why = {measure: ladder.unusable(measure, state) for measure in ladder.config.levels}
    return {
        "id": replica.hello.replica_id,
        "level": state.level,
        "level_name": name_of(ladder.config.levels, state.level),
        "level_age_s": round(time.time() - position.level_since, 1) if position.level_since else None,
        "switching": state.switching,
        "weights": replica.hello.weights,
        "kv_precision": stats.kv_precision,
        "kv_precisions": replica.hello.kv_precisions,
        "kv_blockers": replica.hello.kv_blockers,
        "unusable": {measure.value: reason for measure, reason in why.items() if reason is not None},
        "kv_retry": ladder.waits_for_retry(state, now_s),
        "kv_usage": round(stats.kv_usage, 4),
        "kv_blocks": stats.kv_blocks,
        "kv_tokens": state.kv_tokens,
        "running": stats.running,
        "waiting": stats.waiting,
        "preemptions": stats.preemptions,
        "preemptions_per_s": round(state.preemptions_per_s, 3),
        "forced_preemptions": stats.forced_preemptions,
        "recomputed_tokens": stats.recomputed_tokens,
        "switches": stats.kv_switches,
    }
