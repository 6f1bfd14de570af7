"""The ingress's part of the precision ladder: watches the replicas, gives orders, and knows which level is in force.

Of several ingresses each replica takes the orders of one, and says which. So this one decides for the replicas that it
leads, and knows of the others.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median_low
from typing import Final

from cluster.config.cluster import ClusterConfig
from cluster.precision.ladder import Ladder, decide
from cluster.precision.ladder import Order as Decided
from cluster.precision.measures import OWN, level_of
from cluster.precision.pressure import PressureMeter, Sample
from cluster.precision.replica import ReplicaState
from cluster.records.precision_change import PrecisionChange
from deployments.channel.messages import Order
from deployments.channel.receiver import AttachedReplica, ChannelReceiver

_log = logging.getLogger(__name__)

LOOK_S: Final = 0.25
"""Seconds between two looks at the replicas; they tell of themselves as often."""
ORDER_S: Final = 10.0
"""Seconds after which an order that a replica has not taken up counts as lost. One that it has taken up takes as long as it
takes."""


@dataclass(slots=True)
class _Watched:
    """What is remembered of one replica."""

    meter: PressureMeter
    calm_since_s: float | None = None
    order: str = ""
    """Id of the last order."""
    ordered_s: float = -math.inf


@dataclass(slots=True)
class PrecisionControl:
    """Watches all replicas of one ingress. Times are those of the event loop's clock, seconds."""

    config: ClusterConfig
    channel: ChannelReceiver
    queued: Callable[[str], int]
    """Requests that wait in this ingress for a model."""
    note: Callable[[PrecisionChange], None]
    """Told of every change that this ingress ordered."""
    _watched: dict[str, _Watched] = field(default_factory=dict)
    _ladders: dict[str, Ladder] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch."""
        self.channel.on_changed = self.note
        self.follow(self.config)
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def stop(self) -> None:
        """Give no more orders."""
        if self._task is not None:
            self._task.cancel()

    def follow(self, config: ClusterConfig) -> None:
        """Another config is in force."""
        if config.precision.window_s != self.config.precision.window_s:
            self._watched.clear()
        self.config = config
        self._ladders = {name: Ladder.of(config, name) for name in config.models}

    def ladder(self, model: str) -> Ladder | None:
        """What the config says of a model's ladder; None for a model that is not there."""
        return self._ladders.get(model)

    def level(self, model: str) -> int:
        """The level in force for new requests: that which at least half of the model's replicas have reached.

        Not the lowest: one that has just started would lift all measures for all. Not the highest: one that is pressed would
        bring them upon all.
        """
        levels = [self.level_of(replica) for replica in self.channel.replicas(model)]
        return median_low(levels) if levels else 0

    def level_of(self, replica: AttachedReplica) -> int:
        """The level that a replica is at by the config in force."""
        return level_of(self.config.precision.levels, replica.position.measures)

    def defaults(self, model: str) -> tuple[float, float]:
        """Temperature and top-p that the model's engine samples with where a request leaves them open."""
        for replica in self.channel.replicas(model):
            return replica.hello.temperature, replica.hello.top_p
        return 1.0, 1.0

    def states(self, model: str, now_s: float | None = None) -> list[tuple[AttachedReplica, ReplicaState]]:
        """The replicas of a model as the ladder sees them at `now_s`; None: now."""
        replicas = self.channel.replicas(model)
        queued = self.queued(model) / max(1, len(replicas))
        now = asyncio.get_running_loop().time() if now_s is None else now_s
        return [(replica, self._state(replica, queued, now)) for replica in replicas]

    def _state(self, replica: AttachedReplica, queued: float, now: float) -> ReplicaState:
        stats, position = replica.stats, replica.position
        watched = self._watched.get(replica.hello.replica_id)
        if watched is None:
            watched = _Watched(PressureMeter(self.config.precision.window_s))
            self._watched[replica.hello.replica_id] = watched
        rates = watched.meter.rates()
        clock = asyncio.get_running_loop().time()
        ahead_s = clock - time.time()
        own_blocks = stats.kv_blocks if position.kv_precision == OWN else position.own_kv_blocks
        # A replica that says nothing of an order has not got it, or the ingress that gave it is gone.
        unheard = watched.order not in (position.order, position.under_way) and now - watched.ordered_s < ORDER_S
        return ReplicaState(
            name=replica.hello.replica_id,
            level=self.level_of(replica),
            level_since_s=_since(position.level_since, ahead_s, clock),
            kv_precision=position.kv_precision,
            kv_switched_s=_since(position.kv_since, ahead_s, clock),
            switching=bool(position.under_way) or unheard,
            kv_usage=stats.kv_usage,
            kv_tokens=stats.kv_blocks * stats.kv_block_tokens,
            own_kv_tokens=own_blocks * stats.kv_block_tokens,
            preemptions_per_s=rates.preemptions_per_s,
            waiting=stats.waiting + queued,
            queue_growth_per_s=rates.queue_growth_per_s,
            prefix_hits_per_s=rates.prefix_hits_per_s,
            prefill_tokens_per_s=stats.prefill_tokens_per_s or None,
            calm_since_s=watched.calm_since_s,
            kv_precisions=replica.hello.kv_precisions,
            kv_failed_s=_since(position.kv_failed, ahead_s, clock),
            kv_failures=position.kv_failures,
        )

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self._look(asyncio.get_running_loop().time())
            except Exception:  # noqa: BLE001 - see below
                # The ladder must not end for one bad look; requests are served whatever becomes of it.
                _log.exception("the precision ladder could not be looked after")

    def _look(self, now: float) -> None:
        seen = set()
        for model, ladder in self._ladders.items():
            pairs = self.states(model, now)
            if not pairs:
                continue
            for replica, state in pairs:
                seen.add(state.name)
                self._sample(ladder, replica, state, now)
            led = {replica.hello.replica_id: replica for replica, _ in pairs if replica.leads}
            for order in decide(ladder, [state for _, state in pairs], now, led.keys()):
                self._give(led[order.replica], order, now)
        attached = {replica.hello.replica_id for replica in self.channel.attached()}
        self._watched = {name: one for name, one in self._watched.items() if name in seen or name in attached}

    def _sample(self, ladder: Ladder, replica: AttachedReplica, state: ReplicaState, now: float) -> None:
        stats, watched = replica.stats, self._watched[state.name]
        watched.meter.add(
            Sample(
                at_s=now,
                kv_usage=stats.kv_usage,
                preemptions=stats.preemptions,
                waiting=state.waiting,
                prefix_hits=stats.prefix_hits,
            )
        )
        if not ladder.is_calm(state):
            watched.calm_since_s = None
        elif watched.calm_since_s is None:
            watched.calm_since_s = now

    def _give(self, replica: AttachedReplica, decided: Decided, now: float) -> None:
        watched = self._watched[decided.replica]
        watched.order, watched.ordered_s = uuid.uuid4().hex, now
        measures = tuple(measure.value for measure in self.config.precision.levels[: decided.level])
        replica.order(Order(watched.order, measures, decided.kv_precision, decided.cause, decided.reason))


def _since(unix_s: float, ahead_s: float, now_s: float) -> float:
    """A time of the wall clock on the event loop's; clocks of two machines differ, and nothing was in the future."""
    return min(unix_s + ahead_s, now_s) if unix_s else -math.inf
