"""The ingress's part of the heat of experts: takes in what replicas count, and which requests were wide."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from prometheus_client.metrics_core import Metric as Family

from cluster.config.cluster import ClusterConfig
from cluster.experts.heat import Heat, HeatMeter, Reals
from cluster.experts.load import Counts, ExpertLoad, ExpertShape
from cluster.experts.tail import TailMonitor, TailTable
from cluster.telemetry import metric_table
from deployments.channel.receiver import AttachedReplica, ChannelReceiver
from deployments.ingress.account import Call
from deployments.telemetry.metrics import IngressMetrics
from deployments.telemetry.series import number_family

_log = logging.getLogger(__name__)

LOOK_S: Final = 0.5
"""Seconds between two looks at the replicas; they tell of their experts once a second at most."""
SILENT_S: Final = 3.0
"""A replica that has told of no token for so long after it attached has computed none: what it tells first is all new."""


@dataclass(slots=True)
class _Watched:
    """What is remembered of one replica."""

    model: str
    seen_s: float
    told_s: float | None = None
    """When it told of experts first; None: it has not."""
    load: ExpertLoad | None = None
    """As it was taken in last."""
    counts: Counts | None = None


@dataclass(slots=True)
class _Model:
    """One model whose replicas tell of their experts."""

    meter: HeatMeter
    total: Counts
    """Tokens by layer and expert since this ingress began, (layers, experts)."""


@dataclass(slots=True)
class ExpertsControl:
    """Watches all replicas of one ingress. Times are those of the event loop's clock, seconds."""

    config: ClusterConfig
    channel: ChannelReceiver
    metrics: IngressMetrics
    _watched: dict[str, _Watched] = field(default_factory=dict)
    _models: dict[str, _Model] = field(default_factory=dict)
    _tails: dict[str, TailMonitor] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.metrics.also(self.families)

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def stop(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()

    def follow(self, config: ClusterConfig) -> None:
        """Another config is in force. What was measured of models that are still there is kept."""
        self.config = config
        self._models = {name: model for name, model in self._models.items() if name in config.models}
        self._tails = {name: tail for name, tail in self._tails.items() if name in config.models}
        for model in self._models.values():
            model.meter.follow(config.experts)

    def heat(self, model: str) -> Heat | None:
        """How hot a model's experts are now; None: it has told of none."""
        found = self._models.get(model)
        return None if found is None else found.meter.heat(asyncio.get_running_loop().time())

    def tail(self, model: str) -> TailTable | None:
        """Latency of a model's requests by the experts that they used; None: none was told of."""
        found = self._tails.get(model)
        return None if found is None else found.table()

    def ended(self, calls: Iterable[Call]) -> None:
        """A request ended that took these calls of engines; never raises."""
        try:
            for call in calls:
                self._ended(call)
        except Exception:  # noqa: BLE001 - a request must not fail for what is noted of it
            _log.exception("the experts of a request could not be noted")

    def _ended(self, call: Call) -> None:
        use = call.experts
        if use is None or not use.tokens or call.model not in self.config.models:
            return
        made = 0 if call.usage is None else call.usage.completion_tokens
        now = asyncio.get_running_loop().time()
        self._tails.setdefault(call.model, TailMonitor()).add(use.width, use.distinct, call.seconds, made, now)
        self.metrics.experts_used(call.model, use, call.seconds)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look(asyncio.get_running_loop().time())

    async def look(self, now: float) -> None:
        """Take in what all replicas have told by `now`; never raises. Requests get their turn between two replicas."""
        for name in self.config.models:
            replicas = [one for one in self.channel.attached() if one.hello.model == name]
            shape = _shape(replicas)
            for replica in replicas:
                await asyncio.sleep(0)
                try:
                    self._take(name, replica, shape, now)
                except Exception:  # noqa: BLE001 - see below
                    # One bad count must not end it for all; requests are served whatever becomes of it.
                    _log.exception("the load of experts could not be taken in", extra={"model": name})
            if (model := self._models.get(name)) is not None:
                model.meter.observe(now)
        self._forget()

    def _take(self, name: str, replica: AttachedReplica, shape: ExpertShape | None, now: float) -> None:
        watched = self._watched.setdefault(replica.hello.replica_id, _Watched(name, now))
        load = replica.load
        if watched.told_s is None and load is not None:
            watched.told_s = now
        # While replicas are replaced by others of another form, those of the form that most have are heard.
        if load is None or load is watched.load or load.shape != shape or name not in self.config.models:
            return
        model = self._model(name, load.shape)
        counts, traffic = load.counts(), load.traffic()
        silent = watched.load is None and watched.told_s is not None and watched.told_s - watched.seen_s >= SILENT_S
        if silent:
            model.meter.add(replica.hello.replica_id, load.shape.zeros(), watched.seen_s)
        model.meter.add(replica.hello.replica_id, counts, now)
        for kind, part in traffic.items():
            model.meter.add_traffic(kind, replica.hello.replica_id, part, now)
        before = load.shape.zeros() if silent else watched.counts
        if before is not None and before.shape == counts.shape:
            model.total += counts if (counts < before).any() else counts - before
        watched.load, watched.counts = load, counts

    def _model(self, name: str, shape: ExpertShape) -> _Model:
        """The model's heat; another one if the model has become another."""
        found = self._models.get(name)
        if found is None or found.meter.shape != shape:
            if found is not None:
                self._tails.pop(name, None)
            found = self._models[name] = _Model(HeatMeter(shape, self.config.experts), shape.zeros())
        return found

    def _forget(self) -> None:
        attached = {replica.hello.replica_id for replica in self.channel.attached()}
        for gone in self._watched.keys() - attached:
            model = self._models.get(self._watched.pop(gone).model)
            if model is not None:
                model.meter.forget(gone)

    def families(self) -> Iterator[Family]:
        """The metrics, as of now."""
        heats = {name: heat for name in self._models if (heat := self.heat(name)) is not None}
        few = self.config.experts.metric_series
        totals = {name: model.total for name, model in self._models.items() if model.total.size <= few}
        tokens = [
            ((name, str(layer), str(expert)), float(count))
            for name, total in totals.items()
            for (layer, expert), count in np.ndenumerate(total)
        ]
        yield number_family(metric_table.EXPERT_TOKENS, tokens)
        imbalance = _by_layer((name, heat.imbalance) for name, heat in heats.items())
        yield number_family(metric_table.EXPERT_IMBALANCE, imbalance)
        entropy = _by_layer((name, heat.entropy) for name, heat in heats.items())
        yield number_family(metric_table.EXPERT_ENTROPY, entropy)
        yield number_family(metric_table.EXPERTS_HOT, [((name,), len(heat.hot)) for name, heat in heats.items()])


def _by_layer(values: Iterable[tuple[str, Reals]]) -> Iterator[tuple[tuple[str, str], float]]:
    for name, layers in values:
        yield from (((name, str(layer)), value) for layer, value in enumerate(layers.tolist()))


def _shape(replicas: Iterable[AttachedReplica]) -> ExpertShape | None:
    """The form that most replicas tell of, of several the later one; None: none tells."""
    shapes = Counter(replica.load.shape for replica in replicas if replica.load is not None)
    return max(reversed(shapes), key=shapes.__getitem__, default=None)
