"""The ingress's view of expert pools: asks the deployment that decides on them, and counts what requests had of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
from prometheus_client.metrics_core import Metric as Family

from cluster.config.cluster import ClusterConfig
from cluster.experts.pools_view import ChangeView, PoolsView
from deployments.engines.protocol import EngineReply
from deployments.ingress.dispatch import ModelClient
from deployments.ingress.pools_metrics import PoolCounts, pool_families
from deployments.telemetry.metrics import IngressMetrics

_log = logging.getLogger(__name__)

ASK_S: Final = 1.0
"""Seconds between an answer and the next question."""
LIMIT_S: Final = 2.0
"""Seconds that an answer may take."""
STALE_S: Final = 10.0
"""Age, seconds, above which what was told is called stale."""

NOT_YET: Final = "the pools have not told how they stand yet"

Ask = Callable[[], Awaitable[bytes]]
"""How the pools of one model stand: a `PoolsView` as JSON. May raise anything."""

_ChangeKey = tuple[str, float, int, int]


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of the pools of one model."""

    view: PoolsView | None
    """As they told last; None: they have not."""
    age_s: float
    """Of the view; 0 where there is none."""
    failed: str
    """Why the last question had no answer; empty: it had one, or none was asked yet."""

    @property
    def stale(self) -> bool:
        """Whether the view is too old to go by."""
        return self.age_s > STALE_S


@dataclass(slots=True)
class _Asked:
    """What is remembered of the pools of one application."""

    application: str
    ask: Ask
    view: PoolsView | None = None
    at_s: float = 0.0
    """When they told it, on the control's clock."""
    failed: str = ""
    counted: frozenset[_ChangeKey] = frozenset()
    """Changes that the last view had."""


@dataclass(slots=True)
class PoolsControl:
    """Follows the pools of all models of one ingress. No request waits for it."""

    config: ClusterConfig
    clients: Mapping[str, ModelClient]
    """They know which application a model is."""
    metrics: IngressMetrics
    asking: Callable[[str], Ask]
    """What asks about the pools of a model's Serve application (name)."""
    clock: Callable[[], float] = time.monotonic
    _asked: dict[str, _Asked] = field(default_factory=dict)
    _counts: PoolCounts = field(default_factory=PoolCounts)
    _began_s: float = field(default_factory=time.time)
    """Since when changes count, Unix time, seconds: those before are not this ingress's to count."""
    _task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.metrics.also(self.families)

    def start(self) -> None:
        """Begin to ask."""
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()

    def follow(self, config: ClusterConfig, clients: Mapping[str, ModelClient]) -> None:
        """Another config is in force. What was told of models that still have pools is kept."""
        self.config, self.clients = config, clients
        self._asked = {name: asked for name, asked in self._asked.items() if self.has_pools(name)}
        self._counts.keep(config.models)

    def has_pools(self, model: str) -> bool:
        """Whether a model's experts live in pools, by the config."""
        found = self.config.models.get(model)
        return found is not None and found.pools is not None

    def standing(self, model: str) -> Standing | None:
        """How a model's pools stand, as far as they told; None for a model without pools."""
        if not self.has_pools(model):
            return None
        asked = self._asked.get(model)
        client = self.clients.get(model)
        if asked is None or client is None or asked.application != client.application:
            return Standing(None, 0.0, "")
        age_s = 0.0 if asked.view is None else max(0.0, self.clock() - asked.at_s)
        return Standing(asked.view, age_s, asked.failed)

    def impairment(self, model: str) -> str:
        """Why a model's answers would be worse than usual now: experts that nobody computes. Empty: they would not be."""
        standing = self.standing(model)
        if standing is None or standing.view is None or standing.stale or standing.view.listens:
            return ""
        gone = [pool.name for pool in standing.view.pools if pool.target and not pool.replicas]
        if not gone:
            return ""
        return f"pool{'s' if len(gone) > 1 else ''} {', '.join(gone)} of its experts has no replica that answers"

    def answered(self, model: str, reply: EngineReply) -> None:
        """An answer of a model has left."""
        if reply.pools is not None and model in self.config.models:
            self._counts.used(model, reply.pools)

    async def _watch(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(ASK_S)

    async def look(self) -> None:
        """Ask about all models that have pools, at the same time; never raises."""
        await asyncio.gather(*(self._look_at(name) for name in self.config.models if self.has_pools(name)))

    async def _look_at(self, model: str) -> None:
        client = self.clients.get(model)
        if client is None:
            return
        asked = self._asked.get(model)
        if asked is None or asked.application != client.application:
            # Other pools, if the model's replicas were replaced: nothing of the old ones holds for them.
            asked = self._asked[model] = _Asked(client.application, self.asking(client.application))
        try:
            async with asyncio.timeout(LIMIT_S):
                told = await asked.ask()
            view = msgspec.json.decode(told, type=PoolsView)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Serve cancelled the call, and nobody this task.
            self._failed(model, asked, "the question was cancelled")
        except TimeoutError:
            self._failed(model, asked, f"no answer within {LIMIT_S:g} s")
        except msgspec.MsgspecError as error:
            self._failed(model, asked, f"what they tell cannot be read: {error}")
        except Exception as error:  # noqa: BLE001 - Serve raises errors of any type; the next question may have an answer
            self._failed(model, asked, f"asking failed: {type(error).__name__}")
        else:
            self._count_changes(model, asked, view.changes)
            asked.view, asked.at_s, asked.failed = view, self.clock(), ""

    @staticmethod
    def _failed(model: str, asked: _Asked, why: str) -> None:
        """Say so in the log once, not every second."""
        if not asked.failed:
            _log.warning("how the pools of a model stand is not known: %s", why, extra={"model": model})
        asked.failed = why

    def _count_changes(self, model: str, asked: _Asked, changes: Iterable[ChangeView]) -> None:
        """Count those that were not told before."""
        known = {(change.pool, change.at_s, change.before, change.after): change for change in changes}
        for key, change in known.items():
            if key not in asked.counted and change.at_s >= self._began_s:
                self._counts.changed(model, change.cause)
        asked.counted = frozenset(known)

    def families(self) -> Iterator[Family]:
        """The metrics, as of now; pools whose view is stale have none."""
        views = {}
        for name in self.config.models:
            standing = self.standing(name)
            if standing is not None and standing.view is not None and not standing.stale:
                views[name] = standing.view
        yield from pool_families(views)
        yield from self._counts.families()
